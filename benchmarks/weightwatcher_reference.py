"""The real WeightWatcher as a reference for tests and benchmarks, kept from leaving traces in the process.

    row = analyze_one(np.random.default_rng(0).normal(size=(20, 50)), seed=0, randomize=True)
    row["alpha"], row["rand_num_spikes"]

On import WeightWatcher silences all warnings and sets the root logger to INFO, its shuffles come from
NumPy's global generator, and where it sees a CUDA device it casts all weights to float16. Here it sees none,
and everything it touches is put back.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import warnings
from unittest import mock

import numpy as np
import torch

VERSION = "0.7.5.5"


@contextlib.contextmanager
def contained():
    """Restore warning filters, logging, the global random state and CUDA_VISIBLE_DEVICES on leaving."""
    root, own = logging.getLogger(), logging.getLogger("weightwatcher")
    level, handlers, own_level = root.level, root.handlers[:], own.level
    state = np.random.get_state()  # noqa: NPY002 - WeightWatcher draws from it
    with warnings.catch_warnings(), mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""}):
        try:
            own.setLevel(logging.CRITICAL)
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
            own.setLevel(own_level)
            root.handlers[:] = handlers
            root.setLevel(level)


@functools.cache
def weightwatcher():
    """The package, imported without a sight of CUDA."""
    # is_available is replaced as well: asked under an empty CUDA_VISIBLE_DEVICES, the CUDA runtime would
    # remember for the rest of the process that there is no device, and tests that need one would fail.
    with contained(), mock.patch.object(torch.cuda, "is_available", lambda: False):
        import weightwatcher as package
        from weightwatcher import RMT_Util

    dtype = RMT_Util.torch_T_to_np(torch.zeros(1)).dtype
    if package.__version__ != VERSION or dtype != np.float32:
        raise RuntimeError(
            f"The reference is weightwatcher {VERSION} reading weights as float32; "
            f"here is {package.__version__} reading them as {dtype} (was it imported with CUDA visible?)."
        )
    return package


def analyze(model: torch.nn.Module, seed: int = 0, **options):
    """WeightWatcher's table for a model, its random generator started from ``seed``."""
    package = weightwatcher()
    with contained():
        warnings.simplefilter("ignore")
        np.random.seed(seed)  # noqa: NPY002
        return package.WeightWatcher(model=model).analyze(plot=False, savefig=False, **options)


def analyze_one(W: np.ndarray, seed: int = 0, **options) -> dict | None:
    """Its row for one matrix, as the weights of a linear layer; None if it skips the layer.

    With ``randomize=True`` the matrix is shuffled as by ``numpy.random.RandomState(seed).shuffle``.
    """
    layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(torch.tensor(np.asarray(W)))
    table = analyze(torch.nn.Sequential(layer), seed, **options)
    return None if len(table) == 0 else table.iloc[0].to_dict()


SHAPES = {"fc1": (200, 784), "fc2": (200, 200), "fc3": (10, 200), "tall": (300, 120)}


def matrices() -> dict[str, np.ndarray]:
    """What is compared: name -> matrix whose entries are float32 numbers (so rounding is no part of the
    comparison)."""
    out = {}
    for place, (layer, shape) in enumerate(SHAPES.items()):
        rng = np.random.default_rng([17, place])
        gaussian = rng.normal(size=shape)
        spiked = gaussian.copy()
        spiked[2, 7] = 60.0
        several = gaussian.copy()
        several.flat[rng.choice(several.size, size=6, replace=False)] = [40, -45, 50, -60, 80, 120]
        rank_one = np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))
        low_rank = rng.normal(size=(shape[0], 12)) @ rng.normal(size=(12, shape[1]))
        decay = np.exp(-0.3 * np.arange(shape[1]))
        out |= {
            f"{layer} gaussian": gaussian,
            f"{layer} uniform": rng.uniform(-1, 1, size=shape) * 8 / np.sqrt(shape[1]),
            f"{layer} pareto": rng.pareto(2.5, size=shape),
            f"{layer} student t3": rng.standard_t(3, size=shape),
            f"{layer} student t1.5": rng.standard_t(1.5, size=shape),
            f"{layer} one outlier": spiked,
            f"{layer} six outliers": several,
            f"{layer} shift 0.3": gaussian + 0.3,
            f"{layer} shift 3": gaussian + 3.0,
            f"{layer} rank-one spike": gaussian + 0.5 * rank_one,
            f"{layer} low rank": low_rank,
            f"{layer} decaying columns": gaussian * decay,
        }
    return {name: W.astype(np.float32).astype(np.float64) for name, W in out.items()}
