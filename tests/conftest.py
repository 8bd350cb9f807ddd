"""What all tests share: nothing is written to the checkout or drawn on a screen, and nothing is random."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import settings
from threadpoolctl import threadpool_limits

from grokutils.experiment import data
from grokutils.util import paths

matplotlib.use("Agg")
# Several test processes share the cores, and two threads that wait for each other on a busy machine take ten times as
# long as one: one here, and one in the processes that tests start.
torch.set_num_threads(1)
threadpool_limits(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples in every run, and no failure because a machine was busy
settings.register_profile("grokutils", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("grokutils")


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch) -> Path:
    """The folder that a test's runs go to."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("GROKUTILS_RUNS", str(folder))
    monkeypatch.delenv("GROKUTILS_HOME", raising=False)
    return folder


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def copied_jobs(monkeypatch):
    """The jobs of a sweep begin as copies of this process, which has one thread, and so spare themselves the imports."""
    monkeypatch.setattr("grokutils.training.sweep._CONTEXT", multiprocessing.get_context("fork"))


@pytest.fixture
def mnist_root() -> Path:
    """A folder that holds the real MNIST."""
    root = paths.data_root()
    if not all((root / "MNIST" / "raw" / name).is_file() for name in data._MD5):
        pytest.skip(f"MNIST is not in {root}; set GROKUTILS_DATA to a folder that holds MNIST/raw/*-ubyte")
    return root
