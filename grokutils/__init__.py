"""Grokking and its collapse, re-run, measured and checked.

>>> from grokutils import RunConfig, train, load_record
>>> record = train(RunConfig.recipe("express", steps=2_000), out="runs/x")    # doctest: +SKIP
"""

from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.experiment.data import DataError
from grokutils.records.record import Record, RecordError, load_record
from grokutils.spectra.diagnose import diagnose
from grokutils.spectra.monitor import Monitor
from grokutils.training.train import TrainingDiverged, TrainingInterrupted, train

__all__ = [
    "ConfigError",
    "DataError",
    "Monitor",
    "Record",
    "RecordError",
    "RunConfig",
    "TrainingDiverged",
    "TrainingInterrupted",
    "diagnose",
    "load_record",
    "train",
]
__version__ = "0.1.0"
