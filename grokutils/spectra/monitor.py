"""Watch alpha and traps in anyone's training loop, without data.

>>> monitor = Monitor(model, every=1000, log="alpha.jsonl")       # doctest: +SKIP
>>> for batch in batches:                                         # doctest: +SKIP
...     train_on(batch)
...     monitor.step()
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from grokutils.spectra.diagnose import diagnose
from grokutils.spectra.layers import find_layers
from grokutils.spectra.matrix import Options
from grokutils.spectra.table import json_rows
from grokutils.spectra.verdict import THRESHOLDS, Thresholds
from grokutils.util.columns import DIAGNOSTICS

__all__ = ["Monitor", "SpectralWarning"]

# Verdicts that are worth a warning when a layer first earns them.
_ALARMING = ("over-correlated", "trapped")


class SpectralWarning(UserWarning):
    """A layer has become over-correlated, trapped or unreadable, or the log cannot be written."""


class Monitor:
    """Diagnose a model every so many steps, keep the history, warn at onset.

    >>> monitor = Monitor(torch.nn.Linear(50, 40), every=2)
    >>> for _ in range(4):
    ...     rows = monitor.step()
    >>> monitor.history.step.tolist()
    [2, 4]

    It reads the weights and nothing else: they, their gradients, the mode of the model and the state of every
    random generator are afterwards what they were before. A layer that cannot be measured has a row that says
    why; nothing that happens to a layer or to the log file ends the training.

    Parameters
    ----------
    model : a `torch.nn.Module`, on any device
    every : steps between measurements
    patience : measurements in a row that must agree before it warns
    log : a file that every measurement is appended to at once, a line of JSON per layer
        (``pandas.read_json(log, lines=True)`` reads it). An existing file is continued, and steps are counted from
        its last one; a last line that a crash cut off is removed.
    shuffles : of each matrix; a few do, since one measurement follows another
    thresholds : where the verdicts change
    **options : further arguments of `grokutils.diagnose` (``ks_draws`` is 0 here, which leaves the ``ks_``
        columns out)

    Attributes
    ----------
    history : DataFrame, the rows of `grokutils.diagnose` with their ``step``, in squared units of the weights
        where that has them
    taken : steps counted so far, those of a log that is continued among them; may be set

    Raises
    ------
    TypeError, ValueError : no module, one without weight matrices, a number without meaning, a log in a folder
        that is not there. Only here, never later.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        every: int = 1000,
        *,
        patience: int = 2,
        log: str | os.PathLike | None = None,
        shuffles: int = 5,
        thresholds: Thresholds = THRESHOLDS,
        **options: Any,
    ):
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
        for name, value in (("every", every), ("patience", patience)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
        options = dict(shuffles=shuffles, ks_draws=0) | options
        Options(**options)
        find_layers(model)  # says so if there is nothing to watch
        self.model, self.every, self.patience = model, every, patience
        self.options = dict(options, thresholds=thresholds, progress=False)
        self._log, self.taken = (None, 0) if log is None else _open_log(Path(log))
        self._frames: list[pd.DataFrame] = []
        self._streak: dict[str, int] = {}
        self._warned: set[str] = set()

    def step(self) -> pd.DataFrame | None:
        """Count one training step; every `every` of them measure, and return the new rows."""
        self.taken += 1
        return self._measure(stacklevel=4) if self.taken % self.every == 0 else None

    def measure(self) -> pd.DataFrame:
        """Measure now, and return the new rows."""
        return self._measure(stacklevel=4)

    @property
    def history(self) -> pd.DataFrame:
        if self._frames:
            return pd.concat(self._frames, ignore_index=True)
        names = list(DIAGNOSTICS)
        return pd.DataFrame(columns=["step", *names[names.index("layer") :]])

    def _measure(self, stacklevel: int) -> pd.DataFrame:
        try:
            frame = diagnose(self.model, **self.options)
        except Exception as error:  # whatever it is, it is no reason to end a training run
            message = f"step {self.taken:,}: not measured, {type(error).__name__}: {error}"
            warnings.warn(message, SpectralWarning, stacklevel=stacklevel - 1)
            return self.history.iloc[:0]
        frame.insert(0, "step", self.taken)
        self._frames.append(frame)
        if self._log is not None:
            self._append(frame, stacklevel)
        for row in frame.to_dict("records"):
            self._consider(row, stacklevel)
        return frame

    def _consider(self, row: dict[str, Any], stacklevel: int) -> None:
        """Warn once when a layer's verdict has been alarming for long enough, and again after a recovery."""
        layer = row["layer"]
        unreadable = row["l2_norm"] != row["l2_norm"]
        alarming = unreadable or row["verdict"] in _ALARMING
        self._streak[layer] = self._streak.get(layer, 0) + 1 if alarming else 0
        if not alarming:
            self._warned.discard(layer)
        elif self._streak[layer] >= self.patience and layer not in self._warned:
            self._warned.add(layer)
            message = f"step {self.taken:,}: {layer} is {row['verdict']}: {row['reason']}"
            warnings.warn(message, SpectralWarning, stacklevel=stacklevel)

    def _append(self, frame: pd.DataFrame, stacklevel: int) -> None:
        try:
            with open(self._log, "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in json_rows(frame))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            warnings.warn(
                f"{self._log} cannot be written ({error.strerror}); the history is kept in memory only.",
                SpectralWarning, stacklevel=stacklevel,
            )  # fmt: skip
            self._log = None


def _open_log(path: Path) -> tuple[Path, int]:
    """Make sure that lines can be appended and that the last one is whole; and the step that it is of, 0 without one."""
    try:
        with open(path, "a+b") as file:
            file.seek(0)
            whole, last = 0, b""
            for line in file:
                if line.endswith(b"\n"):
                    whole, last = whole + len(line), line
            file.truncate(whole)
    except OSError as error:
        raise ValueError(f"log must name a file that can be written; {path}: {error.strerror}.") from None
    try:
        step = json.loads(last)["step"]
    except (ValueError, KeyError, TypeError):  # somebody else's lines, or none
        step = 0
    return path, step if isinstance(step, int) and step > 0 else 0
