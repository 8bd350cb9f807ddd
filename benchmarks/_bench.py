"""Interleaved timing and a report with the machine it was made on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

RESULTS = Path(__file__).with_name("results")


def interleaved(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run each way once a round, in turn, so that whatever else the machine does hits all alike.

    A way returns its own time per unit of work, in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(rounds), desc="rounds", disable=None):
        for name, way in ways.items():
            times[name].append(way())
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(t) for name, t in times.items()}


def timed(work: Callable[[], Any], units: int) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / units


def gemm_rate(dtype: torch.dtype, size: int = 1500, repeats: int = 3) -> float:
    """Floating-point operations a second of a large square matrix product, with the threads now set."""
    a = torch.randn(size, size, dtype=dtype)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)
    return 2 * size**3 / min(timed(lambda: torch.mm(a, a, out=out), 1) for _ in range(repeats))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return {
        "processor": name, "cores": os.cpu_count(), "python": platform.python_version(),
        "torch": torch.__version__, "numpy": np.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


def save(name: str, report: Mapping[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def load(name: str) -> dict[str, Any]:
    """A report saved before; empty if there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}
