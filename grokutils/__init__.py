"""Grokking and its collapse, re-run, measured and checked.

>>> from grokutils import RunConfig, train, load_record
>>> record = train(RunConfig.recipe("express", steps=2_000), out="runs/x")    # doctest: +SKIP

The rooms, each of which needs only those before it: `util`; `spectra` (any matrix or model to alpha, traps and a
verdict) and `experiment` (what is trained); `records` (a run on disk); `training`; `paper` (what only this paper
needs); `cli`. Names below are loaded when they are first used, so importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .experiment.config import ConfigError, RunConfig
    from .experiment.data import DataError
    from .records.record import Record, RecordError, load_record
    from .records.recorder import Recorder
    from .spectra.diagnose import diagnose
    from .spectra.monitor import Monitor
    from .spectra.scan import scan
    from .training.train import TrainingDiverged, TrainingInterrupted, train

_FROM = {
    "ConfigError": "experiment.config",
    "DataError": "experiment.data",
    "Monitor": "spectra.monitor",
    "Record": "records.record",
    "RecordError": "records.record",
    "Recorder": "records.recorder",
    "RunConfig": "experiment.config",
    "TrainingDiverged": "training.train",
    "TrainingInterrupted": "training.train",
    "diagnose": "spectra.diagnose",
    "load_record": "records.record",
    "scan": "spectra.scan",
    "train": "training.train",
}

__all__ = [
    "ConfigError",
    "DataError",
    "Monitor",
    "Record",
    "RecordError",
    "Recorder",
    "RunConfig",
    "TrainingDiverged",
    "TrainingInterrupted",
    "diagnose",
    "load_record",
    "scan",
    "train",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
