"""What a record says, whoever trains: a row of its ``metrics.parquet``, and where it was made."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grokutils.experiment.config import Member
from grokutils.spectra import measure
from grokutils.util import paths

__all__ = ["METRICS", "metrics_row", "surroundings"]

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


def surroundings(device: torch.device) -> dict[str, Any]:
    """``device``, ``versions`` and ``commit``, for the provenance.

    >>> sorted(surroundings(torch.device("cpu")))
    ['commit', 'device', 'versions']
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"device": _hardware(device), "versions": versions, "commit": _commit()}


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def _commit() -> str | None:
    """The checkout's commit, where there is one."""
    try:
        found = subprocess.run(
            ["git", "-C", str(paths.project_root()), "rev-parse", "HEAD"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
