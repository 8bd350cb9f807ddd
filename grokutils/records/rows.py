"""One row of a record's ``metrics.parquet``, whoever trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from grokutils.experiment.config import Member
from grokutils.spectra import measure

__all__ = ["METRICS", "metrics_row"]

#: What there is of any network; NaN where it is not known.
METRICS = ("train_accuracy", "train_loss", "test_accuracy", "test_loss")


def metrics_row(
    step: int, member: int, network: Member, scores: Mapping[str, float], weights: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Where it was measured, the scores, and the moments of every weight matrix.

    >>> row = metrics_row(7, 0, Member(1, 0.0), {"test_loss": 0.5}, {"fc1.weight": np.array([[3.0, -4.0]])})
    >>> row["test_loss"], row["fc1_max_abs"], row["l2_norm"]
    (0.5, 4.0, 5.0)
    """
    row: dict[str, Any] = {
        "step": step, "member": member, "seed": network.seed, "weight_decay": network.weight_decay,
        **dict.fromkeys(METRICS, np.nan), **scores, "l2_norm": measure.l2_norm(weights),
    }  # fmt: skip
    for name, matrix in measure.matrices(weights).items():
        layer = name.removesuffix(".weight")
        row.update({f"{layer}_{key}": value for key, value in measure.weight_statistics(matrix).items()})
    return row
