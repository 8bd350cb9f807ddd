"""``python -m benchmarks.counting``: alpha and traps of large matrices, against WeightWatcher and all spectra in full.

Two matrices: a layer of 4,096 x 4,096, the same for WeightWatcher 0.7.5.5, and one of an LLM's experts, 5,760 x 2,880,
both in float32 and with one shuffle. Everything is timed in one run, in turn, and the least time counts: on a busy
machine all but the least measure the others. The time of the processor is reported beside that of the clock.
WeightWatcher takes minutes; ``--weightwatcher 0`` leaves it out and keeps its last time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from grokutils.spectra.alpha import erg_tail, fit_power_law
from grokutils.spectra.counting import count_without_spectra, gram_spectrum, random_placement
from grokutils.spectra.traps import count_traps

from . import _bench
from . import weightwatcher_reference as reference
from .diagnostics import WEIGHTWATCHER

SHAPES = {"layer": (4096, 4096), "expert": (5760, 2880)}


def weights(shape: tuple[int, int], planted: int = 0) -> np.ndarray:
    """Gaussian entries as in an initialised layer, some of them replaced by 60 standard deviations."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal(shape, dtype=np.float32)
    W.flat[rng.choice(W.size, planted, replace=False)] = 60.0
    return W * np.float32(0.02)


def spectrum_part(W: np.ndarray) -> float:
    """Alpha, the ERG tail and the eigenvalues beyond the bulk, from one spectrum in float64."""
    eigenvalues = gram_spectrum(W)
    fit = fit_power_law(eigenvalues)
    erg_tail(eigenvalues, fit.xmin)
    count_traps(eigenvalues, W.shape)
    return fit.alpha


def least(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the clock and of the processor, the least of some rounds in which each way has its turn."""
    out = {name: {"clock": np.inf, "processor": np.inf} for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            clock, processor = time.perf_counter(), time.process_time()
            way()
            spent = {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}
            out[name] = {kind: min(out[name][kind], spent[kind]) for kind in spent}
            print(f"{name}: " + ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in spent.items()), flush=True)
    return out


def measure(rounds: int, weightwatcher: int, last: dict) -> dict:
    report = {}
    for name, shape in SHAPES.items():
        W, trapped = weights(shape), weights(shape, planted=5)
        for matrix in (W, trapped):
            fast, full = (count_without_spectra(matrix, exact=exact) for exact in (False, True))
            if fast.counts != full.counts:
                raise SystemExit(f"{name}: {fast.counts} traps without spectra, {full.counts} with them.")
        times = least(
            {
                "alpha and traps": lambda W=W: (spectrum_part(W), count_without_spectra(W)),
                "alpha": lambda W=W: spectrum_part(W),
                "traps": lambda W=W: count_without_spectra(W),
                "traps, five planted": lambda W=trapped: count_without_spectra(W),
                "traps, from all eigenvalues": lambda W=W: count_without_spectra(W, exact=True),
                "placement": lambda W=W: random_placement(W, 0),
                "NumPy's shuffle": lambda W=W: np.random.default_rng(0).shuffle(W.flatten()),
            },
            rounds,
        )
        report[name] = {"shape": shape, "seconds": times}
    seconds = report["layer"]["seconds"]
    if weightwatcher:
        W = weights(SHAPES["layer"])
        seconds |= least({"WeightWatcher": lambda: reference.analyze_one(W, **WEIGHTWATCHER)}, weightwatcher)
    elif last:
        seconds["WeightWatcher"] = last["layer"]["seconds"]["WeightWatcher"]
    if "WeightWatcher" in seconds:
        report["layer"]["times faster than WeightWatcher"] = {
            kind: seconds["WeightWatcher"][kind] / seconds["alpha and traps"][kind] for kind in ("clock", "processor")
        }
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weightwatcher", type=int, default=1, help="rounds of it; each takes minutes")
    given = parser.parse_args()
    name, stored = f"{given.threads} threads", _bench.load("counting")
    torch.set_num_threads(given.threads)
    with threadpool_limits(given.threads):
        report = measure(given.rounds, given.weightwatcher, stored.get(name, {}))
    print(_bench.save("counting", stored | {name: {"machine": _bench.machine()} | report}))
