"""Watch alpha and traps in anyone's training loop, without data.

>>> monitor = Monitor(model, every=1000)            # doctest: +SKIP
>>> for batch in batches:                           # doctest: +SKIP
...     train_on(batch)
...     monitor.step()
"""

from __future__ import annotations

import warnings
from typing import Any

import pandas as pd
import torch

from .diagnose import THRESHOLDS, Thresholds, diagnose

__all__ = ["Monitor", "SpectralWarning"]

# Verdicts that are worth a warning when a layer first earns them.
_ALARMING = ("over-correlated", "trapped")


class SpectralWarning(UserWarning):
    """A layer has become over-correlated or trapped."""


class Monitor:
    """Diagnose a model every so many steps, keep the history, warn at onset.

    >>> monitor = Monitor(torch.nn.Linear(50, 40), every=2)
    >>> for _ in range(4):
    ...     monitor.step()
    >>> monitor.history.step.tolist()
    [2, 4]

    Parameters
    ----------
    model : a `torch.nn.Module`; its weights are read, never written
    every : steps between measurements
    patience : measurements in a row that must agree before it warns
    shuffles, seed : of the trap search; a few shuffles do, since the history averages over steps
    thresholds : where the verdicts change
    **options : further arguments of `grokutils.diagnose.diagnose`

    Attributes
    ----------
    history : DataFrame, the rows of `diagnose` with their ``step``

    Raises
    ------
    TypeError, ValueError : no module, a module without weight matrices, ``every`` or ``patience`` below 1.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        every: int = 1000,
        *,
        patience: int = 2,
        shuffles: int = 5,
        seed: int = 0,
        thresholds: Thresholds = THRESHOLDS,
        **options: Any,
    ):
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
        for name, value in (("every", every), ("patience", patience)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
        if not any(p.ndim >= 2 for p in model.parameters()):
            raise ValueError(f"model must have a weight matrix to watch; {type(model).__name__} has none.")
        self.model, self.every, self.patience = model, every, patience
        self.options = dict(shuffles=shuffles, seed=seed, thresholds=thresholds, progress=False, **options)
        self.taken = 0
        self.frames: list[pd.DataFrame] = []
        self._streak: dict[str, int] = {}
        self._warned: set[str] = set()

    def step(self) -> pd.DataFrame | None:
        """Count one training step; every `every` of them measure, and return the new rows."""
        self.taken += 1
        return self.measure() if self.taken % self.every == 0 else None

    def measure(self) -> pd.DataFrame:
        """Measure now."""
        frame = diagnose(self.model, **self.options)
        frame.insert(0, "step", self.taken)
        self.frames.append(frame)
        for row in frame.to_dict("records"):
            layer = row["layer"]
            alarming = row["verdict"] in _ALARMING
            self._streak[layer] = self._streak.get(layer, 0) + 1 if alarming else 0
            if not alarming:
                self._warned.discard(layer)
            elif self._streak[layer] >= self.patience and layer not in self._warned:
                self._warned.add(layer)
                message = f"step {self.taken:,}: {layer} is {row['verdict']}: {row['reason']}"
                warnings.warn(message, SpectralWarning, stacklevel=3)
        return frame

    @property
    def history(self) -> pd.DataFrame:
        return pd.concat(self.frames, ignore_index=True) if self.frames else pd.DataFrame(columns=["step"])
