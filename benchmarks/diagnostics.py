"""``python -m benchmarks.diagnostics``: `diagnose` against WeightWatcher, and against the bare decompositions.

The paper's MLP, 784-200-200-10, at its first step, and once more with outlying weights, so that there are traps.
WeightWatcher 0.7.5.5 runs with ``randomize``, ``mp_fit`` and ``detX``. Before anything is timed its numbers are
compared with ours: alpha, xmin and D of every layer, both sigma_mp, both numbers of eigenvalues beyond the bulk,
on the same shuffles.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy.linalg
import torch
from threadpoolctl import threadpool_limits

from grokutils import Monitor, diagnose
from grokutils.spectra.layers import find_layers

from . import _bench
from . import weightwatcher_reference as reference

WEIGHTWATCHER = dict(randomize=True, mp_fit=True, detX=True)
SAME = dict(method="weightwatcher", shuffles=1, ks_draws=0, progress=False)
# our column -> WeightWatcher's
COLUMNS = {
    "alpha": "alpha", "xmin": "xmin", "D": "D", "n_tail": "num_pl_spikes", "erg_count": "detX_num",
    "traps": "rand_num_spikes", "sigma_mp": "rand_sigma_mp", "spikes": "num_spikes", "spikes_sigma_mp": "sigma_mp",
}  # fmt: skip


def network(traps: bool) -> torch.nn.Module:
    """The paper's MLP at its first step; with traps, single weights of 60 (FC1) and 40 (FC2) standard deviations."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(784, 200), torch.nn.ReLU(),
        torch.nn.Linear(200, 200), torch.nn.ReLU(),
        torch.nn.Linear(200, 10),
    )  # fmt: skip
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(8)
        if traps:
            for layer, size in ((net[0], 60), (net[2], 40)):
                layer.weight[3, 4] = size * layer.weight.std()
    return net


def large_layer(size: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(size, size, bias=False))


def on_its_shuffles(module: torch.nn.Module, seed: int) -> pd.DataFrame:
    """`diagnose`, layer by layer, with the shuffles that WeightWatcher makes after ``numpy.random.seed(seed)``."""
    rng = np.random.RandomState(seed)
    frames = []
    for layer in find_layers(module):
        weight = layer.read()
        frames.append(diagnose({layer.name: weight}, seed=rng, **SAME))
        rng.shuffle(np.empty(weight.numel()))  # it shuffles once more, for its rand_distance
    return pd.concat(frames, ignore_index=True)


def check_equal(module: torch.nn.Module, seed: int = 0) -> float:
    """The largest relative difference between the two tables; ends the program if it is more than rounding.

    >>> check_equal(torch.nn.Sequential(torch.nn.Linear(30, 40))) < 1e-6
    True
    """
    theirs = reference.analyze(module, seed, **WEIGHTWATCHER)
    return difference(on_its_shuffles(module, seed), theirs, COLUMNS)


def difference(
    ours: pd.DataFrame, theirs: pd.DataFrame, columns: dict[str, str], limit: float = 1e-6
) -> float:
    worst = 0.0
    for mine, name in columns.items():
        want, got = theirs[name].to_numpy(dtype=float), ours[mine].to_numpy(dtype=float)
        off = np.max(np.abs(got - want) / np.maximum(np.abs(want), 1e-12))
        if not off <= limit:
            raise SystemExit(f"not the same {mine}: {got.tolist()} here, {want.tolist()} from WeightWatcher")
        worst = max(worst, float(off))
    return worst


def decompositions(module: torch.nn.Module) -> Callable[[], None]:
    """Nothing but the singular values of every layer."""
    weights = [layer.read().detach().double().numpy() for layer in find_layers(module)]

    def work() -> None:
        for W in weights:
            scipy.linalg.svd(W, compute_uv=False, check_finite=False)

    return work


def timed(ways: dict[str, Callable[[], object]], rounds: int, warm: bool = True) -> dict[str, float]:
    """Median seconds of each, all taking turns."""
    for name, way in ways.items():
        if warm and name != "WeightWatcher":  # it has run already, when its numbers were compared
            way()
    return _bench.medians(
        _bench.interleaved({n: lambda w=w: _bench.timed(w, 1) for n, w in ways.items()}, rounds)
    )


def mlp(rounds: int, traps: bool) -> dict:
    net = network(traps)
    worst = check_equal(net)
    monitor = Monitor(net, every=1, patience=10**9)
    ways = {
        "WeightWatcher": lambda: reference.analyze(net, 0, **WEIGHTWATCHER),
        "diagnose, equal to WeightWatcher": lambda: diagnose(net, **SAME),
        "diagnose, as it comes (20 shuffles)": lambda: diagnose(net, progress=False),
        "diagnose, lean (no shuffles)": lambda: diagnose(net, shuffles=0, progress=False),
        "Monitor, one measurement (5 shuffles)": monitor.measure,
        "singular values alone": decompositions(net),
    }
    seconds = timed(ways, rounds)
    slow, same, _, lean, _, bare = seconds.values()
    return {
        "milliseconds": {name: 1e3 * s for name, s in seconds.items()},
        "times faster than WeightWatcher": {name: slow / s for name, s in seconds.items()},
        "equal to WeightWatcher, times faster": slow / same,
        "lean, times the singular values alone": lean / bare,
        "largest_relative_difference": worst,
    }


def large(size: int, rounds: int) -> dict:
    net = large_layer(size)
    theirs = reference.analyze(net, 0, **WEIGHTWATCHER)
    ours = diagnose(net, shuffles=1, progress=False)
    # Left out: sigma_mp, where the library's own fit has not the defect that WeightWatcher's has for square
    # matrices, and erg_count, for which WeightWatcher multiplies thousands of numbers and overflows.
    worst = difference(
        ours, theirs, {k: v for k, v in COLUMNS.items() if "sigma" not in k and k != "erg_count"}
    )
    ways = {
        "WeightWatcher": lambda: reference.analyze(net, 0, **WEIGHTWATCHER),
        "diagnose, one shuffle": lambda: diagnose(net, shuffles=1, progress=False),
        "diagnose, lean (no shuffles)": lambda: diagnose(net, shuffles=0, progress=False),
        "singular values alone": decompositions(net),
    }
    seconds = timed(ways, rounds, warm=False)
    slow, one, *_ = seconds.values()
    return {
        "size": size,
        "seconds": seconds,
        "one shuffle, times faster": slow / one,
        "largest_relative_difference": worst,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=7, help="rounds, of which the median counts (default 7)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of the MLP's linear algebra, for all ways (default 1)"
    )
    parser.add_argument("--size", type=int, default=4096, help="of the large layer (default 4096)")
    parser.add_argument("--large-rounds", type=int, default=1, help="rounds of the large layer (default 1)")
    parser.add_argument(
        "--large-threads", type=int, help="threads of its linear algebra (default: all cores)"
    )
    parser.add_argument("--skip-large", action="store_true", help="leave the large layer out")
    options = parser.parse_args(arguments)
    with threadpool_limits(options.threads, user_api="blas"):
        report = {"machine": _bench.machine(), "threads": options.threads}
        for name, traps in (("mlp", False), ("mlp with traps", True)):
            report[name] = mlp(options.rounds, traps)
    if not options.skip_large:
        with threadpool_limits(options.large_threads, user_api="blas"):
            report["large"] = large(options.size, options.large_rounds)
    for part in ("mlp", "mlp with traps", "large"):
        print(f"\n{part}" if part in report else "")
        for name, value in report.get(part, {}).items():
            if isinstance(value, dict):
                print(f"  {name}")
                for way, number in value.items():
                    print(f"    {way:<42} {number:10.4g}")
            else:
                print(f"  {name:<44} {value:10.4g}")
    print(f"\nwritten to {_bench.save('diagnostics', report)}")


if __name__ == "__main__":
    main()
