"""Page 02: training through grokking, and past it."""

from __future__ import annotations

import pandas as pd

from grokutils.experiment.config import RunConfig
from grokutils.paper.kit.book import being_built
from grokutils.paper.kit.curves import training_curves
from grokutils.paper.kit.figures import use_svg
from grokutils.records.phases import find_phases
from grokutils.records.record import Record, find_reference, load_record
from grokutils.training.train import train
from grokutils.util.paths import run_dir

__all__ = [
    "RunConfig", "being_built", "find_reference", "load_record", "phases_table", "run_dir", "train", "training_curves", "use_svg",
]  # fmt: skip


def phases_table(record: Record, member: int = 0) -> pd.DataFrame:
    """Where the phases of one network begin, and its accuracies.

    >>> phases_table(load_record("results/express/wd0"))             # doctest: +SKIP
    """
    metrics = record.metrics[record.metrics.member == member]
    found = find_phases(metrics)
    return pd.Series({
        "training set learnt, step": found.memorised, "test accuracy begins to rise, step": found.grokking,
        "best test accuracy, step": found.peak, "fell by five points for good, step": found.fall,
        "collapsed by ten points for good, step": found.collapse, "best test accuracy": found.peak_accuracy,
        "test accuracy at the end": found.final_accuracy, "training accuracy at the end": metrics.train_accuracy.iloc[-1],
    }, dtype=object).to_frame("value")  # fmt: skip
