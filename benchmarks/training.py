"""``python -m benchmarks.training``: the training step against the ways it is usually written.

A section for each recipe; ``--recipe`` measures one of them and leaves the others in the report as they are.
All ways of a section take the same steps; their equality is checked before anything is timed (the loop over a
DataLoader apart, which draws its own batches).
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from grokutils import RunConfig
from grokutils.experiment import data, models
from grokutils.paper.modular_addition import grid

from . import _bench

WARM = 10


class ImageFiles(Dataset):
    """Images turned from bytes to a picture to a tensor each time they are asked for, as the usual dataset
    with a ``ToTensor`` transform does."""

    def __init__(self, dataset: data.Dataset):
        rows, columns = dataset.image_shape
        self.images = (dataset.x_train * 255).round().astype(np.uint8).reshape(-1, rows, columns)
        self.labels = dataset.y_train

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        picture = Image.fromarray(self.images[index])
        channel_last = torch.from_numpy(np.array(picture)).unsqueeze(-1)
        return channel_last.permute(2, 0, 1).contiguous().to(torch.float64).div(255), int(self.labels[index])


def network(config: RunConfig, pixels: int) -> torch.nn.Sequential:
    torch.manual_seed(config.seed)
    net = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(pixels, config.width), torch.nn.ReLU(),
        torch.nn.Linear(config.width, config.width), torch.nn.ReLU(),
        torch.nn.Linear(config.width, 10),
    ).to(torch.float64)  # fmt: skip
    torch.manual_seed(config.seed)
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, torch.nn.Linear):  # drawn in float64, as the trainer draws it
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound).mul_(config.init_scale)
                layer.bias.uniform_(-bound, bound).mul_(config.init_scale)
    return net


class DataLoaderLoop:
    """The published loop: DataLoader, per-image transform, autograd, AdamW."""

    def __init__(self, config: RunConfig):
        dataset = data.load(config, config.seed)
        self.net = network(config, dataset.x_train.shape[1])
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=config.learning_rate, weight_decay=0.0)
        loader = DataLoader(ImageFiles(dataset), batch_size=config.batch, shuffle=True)
        self.batches = itertools.chain.from_iterable(loader for _ in itertools.count())
        self.targets = torch.eye(10, dtype=torch.float64)

    def steps(self, count: int) -> None:
        for x, labels in itertools.islice(self.batches, count):
            self.optimiser.zero_grad()
            torch.nn.functional.mse_loss(self.net(x), self.targets[labels]).backward()
            self.optimiser.step()


class EagerLoop:
    """Tensors in memory, autograd, AdamW."""

    def __init__(self, config: RunConfig, positions, **options):
        dataset = data.load(config, config.seed)
        self.net = network(config, dataset.x_train.shape[1])
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, weight_decay=0.0, **options
        )
        self.x = torch.from_numpy(dataset.x_train)
        self.y = torch.nn.functional.one_hot(torch.from_numpy(dataset.y_train), 10).double()
        self.positions, self.taken = positions, 0

    def steps(self, count: int) -> None:
        for _ in range(count):
            chosen = self.positions[self.taken % len(self.positions)]
            self.optimiser.zero_grad()
            torch.nn.functional.mse_loss(self.net(self.x[chosen]), self.y[chosen]).backward()
            self.optimiser.step()
            self.taken += 1


class Ours:
    def __init__(self, config: RunConfig):
        self.model = models.build(config)
        self.model.init()
        self.taken = 0

    def steps(self, count: int) -> None:
        self.model.step(self.taken, count)
        self.taken += count


def check_equal(config: RunConfig, steps: int = 200) -> float:
    """Largest difference between our weights and the eager loop's after `steps` steps."""
    ours = Ours(config)
    positions = [torch.from_numpy(ours.model._positions(t)[0].copy()) for t in range(5)]
    eager = EagerLoop(config, positions)
    ours.steps(steps)
    eager.steps(steps)
    theirs = [p.detach().numpy() for p in eager.net.parameters()]
    worst = max(np.abs(a - b).max() for a, b in zip(ours.model.weights()[0].values(), theirs, strict=True))
    if not worst < 1e-10:
        raise SystemExit(f"not the same weights after {steps} steps: they differ by {worst:g}")
    return float(worst)


def two_processes(steps: int) -> float:
    """Seconds per step and member of two members trained at once, one thread each."""
    command = [sys.executable, "-m", "benchmarks.training", "--member", str(steps)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in running:  # both ready before either starts
        process.stdout.readline()
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    seconds = [float(process.stdout.readline()) for process in running]
    for process in running:
        process.communicate()
    return max(seconds) / steps / len(running)


def member(steps: int) -> None:
    """The child of `two_processes`: warm up, wait for the word, report the seconds taken."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    ours = Ours(RunConfig.recipe("paper"))
    ours.steps(WARM)
    print("ready", flush=True)
    sys.stdin.readline()
    print(_bench.timed(lambda: ours.steps(steps), 1), flush=True)


def paper(steps: int, rounds: int, threads: int) -> dict:
    config = RunConfig.recipe("paper")
    torch.set_num_threads(threads)
    difference = check_equal(config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours = Ours(config)
    positions = [torch.from_numpy(ours.model._positions(t)[0].copy()) for t in range(5)]
    loops = {
        "DataLoader, transform, autograd, AdamW": DataLoaderLoop(config),
        "tensors in memory, autograd, AdamW": EagerLoop(config, positions),
        "the same, fused AdamW": EagerLoop(config, positions, fused=True),
        f"grokutils, {threads} threads": ours,
    }
    for loop in loops.values():
        loop.steps(WARM)
    slow = next(iter(loops))  # fewer steps of the one that takes ten times as long

    def way(name: str) -> Callable[[], float]:
        count = max(10, steps // 5) if name == slow else steps
        return lambda: _bench.timed(lambda: loops[name].steps(count), count)

    ways = {name: way(name) for name in loops}
    ways["grokutils, two members in two processes"] = lambda: two_processes(steps)
    seconds = _bench.medians(_bench.interleaved(ways, rounds))
    # multiplications and additions of the eight matrix products, on the pixels that are ever used
    used, width, batch = len(ours.model._columns), config.width, config.batch
    flop = 2 * batch * (2 * used * width + 3 * width * width + 3 * 10 * width)
    rates = {}
    for count in (1, threads):
        torch.set_num_threads(count)
        rates[count] = _bench.gemm_rate(torch.float64)
    floors = {
        f"grokutils, {threads} threads": flop / rates[threads],
        "grokutils, two members in two processes": flop / rates[1] / 2,
    }
    first, second = list(seconds)[:2]
    return {
        "microseconds": {name: 1e6 * s for name, s in seconds.items()},
        "times faster than the DataLoader loop": {n: seconds[first] / s for n, s in seconds.items()},
        "times faster than the eager loop": {n: seconds[second] / s for n, s in seconds.items()},
        "mflop": flop / 1e6,
        "gemm_gflop_per_s": {str(k): r / 1e9 for k, r in rates.items()},
        "share of the GEMM floor": {name: floor / seconds[name] for name, floor in floors.items()},
        "largest_weight_difference": difference,
        "peak_memory_mib": before / 1024,
    }


def express(steps: int, rounds: int, members: int = 8) -> dict:
    torch.set_num_threads(1)
    config = RunConfig.recipe("express")
    batched = Ours(config.ensemble(range(members)))
    alone = [Ours(config.replace(seed=s)) for s in range(members)]
    for loop in (batched, *alone):
        loop.steps(WARM)

    def one_after_another() -> float:
        return _bench.timed(lambda: [a.steps(steps) for a in alone], steps * members)

    ways = {
        "one after another": one_after_another,
        f"{members} members batched": lambda: _bench.timed(lambda: batched.steps(steps), steps * members),
    }
    seconds = _bench.medians(_bench.interleaved(ways, rounds))
    one, many = seconds.values()
    return {
        "microseconds": {name: 1e6 * s for name, s in seconds.items()},
        "times faster batched": one / many,
        "seconds for the whole recipe": one * config.steps,
        "steps": config.steps,
    }


class PlainTransformer:
    """The network in `torch.nn`, every position computed; autograd; cross-entropy in `loss_dtype`; AdamW."""

    def __init__(self, config: RunConfig, **options):
        dataset = data.load(config, config.seed)
        self.net = models.as_module(config, Ours(config).model.weights()[0])
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps,
            weight_decay=config.weight_decay, **options,
        )  # fmt: skip
        self.x, self.y = torch.from_numpy(dataset.x_train), torch.from_numpy(dataset.y_train)
        self.loss_dtype = getattr(torch, config.loss_dtype)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimiser.zero_grad()
            torch.nn.functional.cross_entropy(self.net(self.x).to(self.loss_dtype), self.y).backward()
            self.optimiser.step()


def modular_difference(config: RunConfig, steps: int) -> float:
    """Largest difference between our weights and the plain network's after some steps, in float64."""
    ours, plain = Ours(config.replace(dtype="float64")), PlainTransformer(config.replace(dtype="float64"))
    ours.steps(steps)
    plain.steps(steps)
    mine = ours.model.weights()[0]
    worst = max(np.abs(mine[name] - p.detach().numpy()).max() for name, p in plain.net.named_parameters())
    if not worst < 1e-9:
        raise SystemExit(f"not the same weights after {steps} steps: they differ by {worst:g}")
    return float(worst)


def modular(steps: int, rounds: int, checked: int = 10, **changes) -> dict:
    """The transformer on one thread, at its full size unless `changes` of the recipe say otherwise."""
    torch.set_num_threads(1)
    config = RunConfig.recipe("modular", **changes)
    difference = modular_difference(config, checked)
    loops = {
        "torch.nn, autograd, AdamW": PlainTransformer(config),
        "the same, fused AdamW": PlainTransformer(config, fused=True),
        "grokutils": Ours(config),
    }
    for loop in loops.values():
        loop.steps(2)
    ways = {name: lambda loop=loop: _bench.timed(lambda: loop.steps(steps), steps) for name, loop in loops.items()}
    seconds = _bench.medians(_bench.interleaved(ways, rounds))
    first = next(iter(seconds))
    # multiplications and additions of the products that only the pairs need: out_proj, fc1, fc2 and unembed, thrice
    flop = 6 * config.train_size * config.d_model * (config.d_model + 2 * config.d_mlp + config.p)
    rate = _bench.gemm_rate(torch.float32)
    return {
        "microseconds": {name: 1e6 * s for name, s in seconds.items()},
        "mflop": flop / 1e6,
        "gemm_gflop_per_s": rate / 1e9,
        "share of the GEMM floor": flop / rate / seconds["grokutils"],
        "times faster than the plain loop": {name: seconds[first] / s for name, s in seconds.items()},
        "p": config.p,
        "pairs": config.train_size,
        "largest_weight_difference": difference,
        "checked_steps": checked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="steps a way takes each round (default 100)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, of which the median counts (default 9)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the ways in one process (default 2)")
    parser.add_argument("--recipe", choices=("paper", "express", "modular", "modular-grid"), help="measure this one only")
    parser.add_argument("--member", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.member:
        return member(arguments.member)
    torch.set_flush_denormal(True)
    # the transformer's steps take a hundred times as long as the perceptron's
    sections = {
        "paper": lambda: paper(arguments.steps, arguments.rounds, arguments.threads),
        "express": lambda: express(10 * arguments.steps, arguments.rounds),
        "modular": lambda: modular(max(1, arguments.steps // 20), arguments.rounds),
        "modular-grid": lambda: modular(
            arguments.steps, arguments.rounds, p=grid.BASE.p, fraction=grid.BASE.fraction, d_model=grid.BASE.d_model,
            d_mlp=grid.BASE.d_mlp,
        ),
    }
    chosen = [arguments.recipe] if arguments.recipe else list(sections)
    report = _bench.load("training") if arguments.recipe else {}
    for recipe in chosen:
        report[recipe] = {"machine": _bench.machine()} | sections[recipe]()
    for recipe in chosen:
        print(f"\n{recipe}")
        for name, value in report[recipe].items():
            if name == "machine":
                continue
            if isinstance(value, dict):
                print(f"  {name}")
                for way, number in value.items():
                    print(f"    {way:<42} {number:10.4g}")
            else:
                print(f"  {name:<44} {value:10.4g}")
    print(f"\nwritten to {_bench.save('training', report)}")


if __name__ == "__main__":
    main()
