"""Where a `Monitor` sends its numbers besides its own log: loggers that people have, and files.

>>> class Wandb:                                    # or whatever has such a method
...     def log(self, values, step): print(step, values)
>>> rows = pd.DataFrame({"step": [7], "layer": ["fc"], "alpha": [3.5], "traps": [float("nan")]})
>>> make_sink(Wandb(), ("alpha", "traps"), "spectra/").send(rows, rows)
7 {'spectra/fc/alpha': 3.5}
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["SCALARS", "Sink", "make_sink"]

#: What is sent of each layer unless others are chosen.
SCALARS = ("alpha", "traps", "l2_norm", "max_over_std")
_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class Sink:
    """Takes new rows, and the whole history with them."""

    name: str
    send: Callable[[pd.DataFrame, pd.DataFrame], None]


def make_sink(target: Any, scalars: Sequence[str] = SCALARS, prefix: str = "spectra/") -> Sink:
    """A sink of what somebody has.

    Parameters
    ----------
    target : anything with ``add_scalar(tag, value, step)`` (a TensorBoard `SummaryWriter`), with ``log(values, step=)``
        (a Weights & Biases run), with ``log_metrics(values, step=)`` (a Lightning logger, MLflow); a function of the new
        rows; or the path of a ``.csv`` or ``.parquet`` file, which holds the whole history, all columns, after each
        measurement
    scalars : columns of the history that loggers are sent, each under ``<prefix><layer>/<column>``; NaN is left out
    prefix : before each name

    Raises
    ------
    TypeError : none of these.
    ValueError : a file of another kind, or in a folder that is not there.
    """
    if isinstance(target, (str, os.PathLike)):
        return _file(Path(target))
    name = type(target).__name__
    if callable(add := getattr(target, "add_scalar", None)):
        return _logger(name, lambda values, step: [add(tag, value, step) for tag, value in values.items()], scalars, prefix)
    for method in ("log", "log_metrics"):
        if callable(send := getattr(target, method, None)):
            return _logger(name, send, scalars, prefix)
    if callable(target):
        return Sink(getattr(target, "__name__", name), lambda new, _: target(new))
    raise TypeError(
        "a sink must have add_scalar, log or log_metrics, be a function of the new rows, or the path of a .csv or .parquet "
        f"file; got {name}."
    )


def _logger(name: str, log: Callable[..., Any], scalars: Sequence[str], prefix: str) -> Sink:
    def send(new: pd.DataFrame, _: pd.DataFrame) -> None:
        for step, values in _scalars(new, scalars, prefix):
            if values:
                log(values, step=step)

    return Sink(name, send)


def _scalars(rows: pd.DataFrame, columns: Sequence[str], prefix: str) -> list[tuple[int, dict[str, float]]]:
    found = []
    for step, own in rows.groupby("step"):
        values = {
            f"{prefix}{row['layer']}/{name}": float(row[name])
            for row in own.to_dict("records") for name in columns if name in row and np.isfinite(row[name])
        }  # fmt: skip
        found.append((int(step), values))
    return found


def _file(path: Path) -> Sink:
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"a file of the history must end in {' or '.join(_SUFFIXES)}; got {str(path)!r} (log= takes .jsonl).")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} must exist.")

    def send(_: pd.DataFrame, history: pd.DataFrame) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            if path.suffix == ".csv":
                history.to_csv(temporary, index=False)
            else:
                history.to_parquet(temporary, index=False)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    return Sink(str(path), send)
