"""Following one path: from the grokked weights, by an optimiser or without one, until they have moved far enough.

>>> follow(condition("walk"), seed=0, until=0.5)                                # doctest: +SKIP
'reached'

What a path has given so far lies under ``runs/mechanism/``; the same call goes on with it, and ends in the same
numbers as one never stopped.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path as Folder

import numpy as np
import pandas as pd
import torch

from grokutils.experiment import models
from grokutils.experiment.config import RunConfig
from grokutils.paper.mechanism import measure
from grokutils.paper.mechanism.conditions import (
    LEVELS,
    MNIST_LATER,
    SOURCE,
    SOURCE_LATER,
    TOLERANCE,
    Path,
    Walk,
)
from grokutils.paper.mechanism.valley import Valley
from grokutils.records import files
from grokutils.records.record import load_record
from grokutils.training.hooks import check_hooks
from grokutils.util import paths

__all__ = ["Optimised", "Saved", "Walked", "config_of", "follow", "folder_of", "grokked", "stepper"]

#: Training steps between looks at the loss and at the displacement.
WINDOW = 10
#: Chords between these displacements give the angles between successive windows.
CHORD = 0.1
#: Edges of the classes of training loss that displacement is shared among, as powers of ten.
LOSS_EDGES = tuple(range(-12, 0))
#: How often the state is saved, in seconds.
_AUTOSAVE = 20.0
_PER_DECADE = 4

Weights = dict[str, np.ndarray]


def grokked(path: Path, seed: int, step: int | None = None) -> Weights:
    """Weights of a seed where a path begins, or at another step of its record.

    >>> from grokutils.paper.mechanism.conditions import condition
    >>> grokked(condition("adam"), 0)["fc1.weight"].shape
    (100, 64)
    """
    source = load_record(path.source)
    return source.weights(path.begin if step is None else step, _member(path, seed))


def config_of(path: Path, seed: int) -> RunConfig:
    """The configuration of its record's network of a seed, with the changes of a path.

    >>> from grokutils.paper.mechanism.conditions import condition
    >>> config_of(condition("lr-half"), 0).learning_rate
    0.005
    """
    config = load_record(path.source).config
    decay = config.networks[_member(path, seed)].weight_decay
    return config.replace(members=None, intervention="", **{"seed": seed, "weight_decay": decay, **path.changes})


def _member(path: Path, seed: int) -> int:
    return [network.seed for network in load_record(path.source).config.networks].index(seed)


class Optimised:
    """A path by training steps."""

    def __init__(self, path: Path, seed: int):
        self.config = config_of(path, seed)
        self.hooks = check_hooks(path.hooks)
        self.model = models.build(self.config, torch.device("cpu"))
        self.model.without_shortcuts()
        self.model.init()
        self.model.load_weights([grokked(path, seed)])
        for hook in self.hooks:
            hook.begin(self.model)
        self.step = 0
        self._batch = self.model.batch(0)
        mask = torch.zeros_like(self.model.flat)
        for name, view in self.model.views(mask).items():
            view.fill_(float(name.endswith(".weight")))
        self._mask = mask.bool()

    def advance(self) -> None:
        """Take `WINDOW` steps."""
        for number in range(self.step, self.step + WINDOW):
            for hook in self.hooks:
                if hook.is_due(number):
                    hook.before(number, self.model)
            self.model.step(number, 1)
            for hook in self.hooks:
                if hook.is_due(number + 1) and number + 1 > hook.first:
                    hook.after(number + 1, self.model)
        self.step += WINDOW

    def position(self) -> np.ndarray:
        """All matrices as one vector, in some fixed order."""
        return self.model.flat[self._mask].numpy()

    def weights(self) -> Weights:
        return self.model.weights()[0]

    def loss(self) -> float:
        p, h = self.model.params, self._batch.x
        for k in range(1, self.config.depth + 1):
            h = torch.addmm(p[f"fc{k}.bias"], h, p[f"fc{k}.weight"].T)
            h = h.relu_() if k < self.config.depth else h
        return float((h - self._batch.y).square_().mean())

    def state(self) -> Weights:
        state = {name: tensor.numpy() for name, tensor in self.model.state_dict().items()}
        for index, hook in enumerate(self.hooks):
            state.update({f"hook{index}/{name}": array for name, array in hook.state().items()})
        return state

    def load_state(self, state: Weights, step: int) -> None:
        self.model.load_state_dict({k: torch.from_numpy(a) for k, a in state.items()}, step)
        for index, hook in enumerate(self.hooks):
            own = f"hook{index}/"
            hook.load_state({k.removeprefix(own): a for k, a in state.items() if k.startswith(own)})
        self.step = step

    def extra(self) -> dict[str, float]:
        return {}


class Walked:
    """A path without an optimiser (`grokutils.paper.mechanism.conditions.Walk`)."""

    def __init__(self, path: Path, seed: int):
        self.walk: Walk = path.walk
        self.seed, self.draw = seed, path.draw
        self.valley = Valley(config_of(path, seed), seed)
        start = grokked(path, seed)
        self.flat = self.valley.vector(start)
        self._free = self.valley.trained()
        views = self.valley.views(self.flat)
        self._norms = {name: float(view.norm()) for name, view in views.items() if view.dim() == 2}
        self._size = math.sqrt(sum(norm**2 for norm in self._norms.values()))
        self._matrices = torch.cat([
            torch.full((view.numel(),), view.dim() == 2) for view in views.values()
        ])  # fmt: skip
        kind = self.walk.direction
        self._change = None
        if kind != "isotropic":
            later = SOURCE_LATER if path.source == SOURCE else MNIST_LATER
            self._change = (self.valley.vector(grokked(path, seed, later)) - self.flat) * self._free
        self._line = self._draw(0) if self.walk.fixed else None
        self.step, self.factors, self.failures = 0, 0, 0

    def _draw(self, number: int) -> torch.Tensor:
        """A direction: its matrices have the norm of one step."""
        rng = np.random.default_rng([self.seed, 18, number, *[self.draw] * (self.draw > 0)])
        noise = torch.from_numpy(rng.standard_normal(self.valley.size)) * self._free
        kind, change = self.walk.direction, self._change
        if kind == "layers":
            for part, as_much in zip(*map(lambda v: self.valley.views(v).values(), (noise, change)), strict=True):
                part.mul_(as_much.norm() / part.norm())
        elif kind == "adam":
            noise = change.clone()
        elif kind == "signs":
            noise = change * noise.sign()
        elif kind == "permuted":
            noise = change.clone()
            free = self.valley.views(self._free)
            for name, part in self.valley.views(noise).items():
                moved = part[free[name]].numpy()
                part[free[name]] = torch.from_numpy(rng.permutation(moved))
        return noise * (self.walk.step * self._size / noise[self._matrices].norm())

    def advance(self) -> None:
        """One random change and the return."""
        there, first = self.flat.clone(), self.walk.first
        if self.walk.step and (not first or self.step < first):
            there += self._line if self.walk.fixed else self._draw(self.step)
        for name, part in self.valley.views(there).items():
            if name in self._norms:
                target = self.walk.pull * self._norms[name] if self.walk.pull else 0.0
                if self.walk.hold:
                    part.mul_(self._norms[name] / part.norm())
                if self.walk.shrink and self.step >= first:
                    part.mul_(1.0 + self.walk.shrink * (target / part.norm() - 1.0))
        found = self.valley.settle(there, TOLERANCE)
        self.flat, self.step = found.weights, self.step + 1
        self.factors, self.failures = self.factors + found.factors, self.failures + (not found.found)

    def position(self) -> np.ndarray:
        return self.flat[self._matrices].numpy()

    def weights(self) -> Weights:
        return {name: view.numpy().copy() for name, view in self.valley.views(self.flat).items()}

    def loss(self) -> float:
        return self.valley.loss(self.flat)

    def state(self) -> Weights:
        return {"flat": self.flat.numpy(), "counts": np.array([self.factors, self.failures], dtype=np.int64)}

    def load_state(self, state: Weights, step: int) -> None:
        self.flat = torch.from_numpy(np.array(state["flat"]))
        self.factors, self.failures = (int(count) for count in state["counts"])
        self.step = step

    def extra(self) -> dict[str, float]:
        return {"factors": self.factors, "failures": self.failures}


class Saved:
    """A path as far as its record has saved weights."""

    def __init__(self, path: Path, seed: int):
        self._path, self._seed = path, seed
        self._valley = Valley(config_of(path, seed), seed)
        self._steps = [step for step in load_record(path.source).steps_saved if step >= path.begin]
        self.step = self._steps[0]
        self._read()

    def _read(self) -> None:
        self._weights = grokked(self._path, self._seed, self.step)

    @property
    def at_end(self) -> bool:
        return self.step == self._steps[-1]

    def advance(self) -> None:
        self.step = self._steps[self._steps.index(self.step) + 1]
        self._read()

    def position(self) -> np.ndarray:
        return measure.matrices(self._weights)

    def weights(self) -> Weights:
        return self._weights

    def loss(self) -> float:
        return self._valley.loss(self._valley.vector(self._weights))

    def state(self) -> Weights:
        return {}

    def load_state(self, state: Weights, step: int) -> None:
        self.step = step
        self._read()

    def extra(self) -> dict[str, float]:
        return {}


def stepper(path: Path, seed: int) -> Optimised | Walked | Saved:
    """What takes the steps of a path."""
    if path.saved:
        return Saved(path, seed)
    return Optimised(path, seed) if path.walk is None else Walked(path, seed)


def folder_of(path: Path, seed: int) -> Folder:
    """Where a path is kept while it is followed."""
    return paths.run_dir(f"mechanism/{path.name}/{seed}")


def follow(path: Path, seed: int, until: float, stop: Callable[[], bool] = lambda: False) -> str:
    """Follow one path, or go on with it.

    Parameters
    ----------
    path, seed : which
    until : displacement, and rotation
    stop : asked often; if true the state is saved and the path left

    Returns
    -------
    "reached"; "censored", if the steps are used up; "lost", if the weights are no longer finite; or "stopped".

    Raises
    ------
    RecordError : the path is being followed by another process, or its files are damaged.
    """
    folder = folder_of(path, seed)
    with files.locked(folder):
        return _Followed(path, seed, folder).go(until, stop)


class _Followed:
    def __init__(self, path: Path, seed: int, folder: Folder):
        self.path, self.seed, self.folder = path, seed, folder
        self.stepper = stepper(path, seed)
        self.start = self.stepper.position().astype(np.float64)
        self.size = float(np.linalg.norm(self.start))
        self.valley = Valley(config_of(path, seed), seed)
        self.ruler = measure.Ruler(grokked(path, seed), self.valley.data)
        self.rows: list[dict] = []
        self.lines: list[dict] = []
        #: Windows, path length and gain of squared displacement, by class of loss.
        self.bins = np.zeros((len(LOSS_EDGES) + 1, 3))
        self.chords = [np.zeros_like(self.start, dtype=np.float32)] * 2  # the last point, and the last chord
        #: Levels of displacement and of rotation that it has come to, and its displacement now.
        self.levels, self.before = np.full(2, -1.0), 0.0
        self.last = self.start.copy()
        self._load()

    # -- going ---------------------------------------------------------------------------------------

    def go(self, until: float, stop: Callable[[], bool]) -> str:
        if not self.rows:
            self.levels[:] = 0.0
            self._measure()
        saved = time.monotonic()
        every = WINDOW if isinstance(self.stepper, Optimised) else 1
        while (outcome := self._outcome(until)) is None:
            self.stepper.advance()
            self._look()
            k = self.stepper.step // every
            due = k and _log_spaced(k) and self.stepper.step != self.rows[-1]["step"]
            if due and self.stepper.step >= 100 * every:
                self._measure()
            if stop():
                self._save()
                return "stopped"
            if time.monotonic() - saved > _AUTOSAVE:
                self._save()
                saved = time.monotonic()
        if not any(row["until"] == until for row in self.lines) and outcome != "lost":
            if self.stepper.step != self.rows[-1]["step"]:
                self._measure()
            self._line(until)
        self._save()
        return outcome

    def _outcome(self, until: float) -> str | None:
        if not np.isfinite(self.before):
            return "lost"
        if self.levels.min() >= until and not self.path.whole:
            return "reached"
        if self.path.saved:
            return "censored" if self.stepper.at_end else None
        return "censored" if self.stepper.step >= self.path.most else None

    def _look(self) -> None:
        now = self.stepper.position().astype(np.float64)
        change = float(np.linalg.norm(now - self.last))
        far = float(np.linalg.norm(now - self.start)) / self.size
        loss = self.stepper.loss()
        place = int(np.searchsorted(LOSS_EDGES, math.log10(max(loss, 1e-30)))) if np.isfinite(loss) else -1
        self.bins[place] += (1, change / self.size, far**2 - self.before**2)
        self.last, self.before = now, far
        along = float(now @ self.start) / self.size**2
        rotation = math.sqrt(max(float(now @ now) / self.size**2 - along**2, 0.0)) / along if along > 0 else math.inf
        before = self.levels.copy()
        for k, way in enumerate((far, rotation)):
            self.levels[k] = max([level for level in LEVELS if level <= way] + [before[k]])
        turn = self._chord(now) if math.floor(far / CHORD) > math.floor(before[0] / CHORD + 1e-9) else np.nan
        if (self.levels > before).any():
            self._measure(turn)

    def _chord(self, now: np.ndarray) -> float:
        """Cosine between the chord that ends here and the one before it."""
        here = (now - self.start).astype(np.float32)
        chord = here - self.chords[0]
        sizes = np.linalg.norm(chord) * np.linalg.norm(self.chords[1])
        turn = float(chord @ self.chords[1] / sizes) if sizes else np.nan
        self.chords = [here, chord]
        return turn

    def _measure(self, turn: float = np.nan) -> None:
        weights = self.stepper.weights()
        row = {
            "name": self.path.name, "seed": self.seed, "step": self.stepper.step, "reached": float(self.levels.min()),
            "path": float(self.bins[:, 1].sum()), "turn": turn,
            **self.ruler.measure(weights), **self.stepper.extra(),
        }  # fmt: skip
        self.rows.append(row | (self._settled(weights) if np.isfinite(row["displacement"]) else {}))

    def _settled(self, weights: Weights) -> dict[str, float]:
        """Test accuracy once the weights are brought back to the valley: training passes a displacement in bursts
        of its loss."""
        found = self.valley.settle(self.valley.vector(weights), TOLERANCE)
        there = {name: view.numpy() for name, view in self.valley.views(found.weights).items()}
        accuracy, _ = measure.scores(there, self.valley.data.x_test, self.valley.data.y_test)
        return {
            "test_settled": accuracy, "loss_settled": found.loss,
            "displacement_settled": measure.displacement(self.ruler.start, there),
        }  # fmt: skip

    def _line(self, until: float) -> None:
        """Accuracies and losses on the straight line from the fork through here, and beyond."""
        end, start, d = self.stepper.weights(), self.ruler.start, self.ruler.data
        for share in np.round(np.linspace(0, 1.5, 31), 3):
            w = {name: (1 - share) * start[name] + share * end[name] for name in start}
            row = {"name": self.path.name, "seed": self.seed, "until": until, "share": float(share)}
            row["train_accuracy"], row["train_loss"] = measure.scores(w, d.x_train, d.y_train)
            row["test_accuracy"], row["test_loss"] = measure.scores(w, d.x_test, d.y_test)
            self.lines.append(row)

    # -- files ---------------------------------------------------------------------------------------

    def _save(self) -> None:
        losses = pd.DataFrame(self.bins, columns=["windows", "length", "gain"])
        losses.insert(0, "loss_below", [*LOSS_EDGES, 0])
        losses.insert(0, "seed", self.seed)
        losses.insert(0, "name", self.path.name)
        files.write_parquet(self.folder / "rows.parquet", pd.DataFrame(self.rows))
        files.write_parquet(self.folder / "losses.parquet", losses)
        if self.lines:
            files.write_parquet(self.folder / "lines.parquet", pd.DataFrame(self.lines))
        state = {
            **self.stepper.state(), "own/point": self.chords[0], "own/chord": self.chords[1],
            "own/last": self.last, "own/far": np.array([*self.levels, self.before]), "own/bins": self.bins,
        }  # fmt: skip
        about = {"step": str(self.stepper.step), "path": self.path.identity, "rows": str(len(self.rows))}
        files.write_tensors(self.folder / "state.safetensors", state, about)

    def _load(self) -> None:
        if not (self.folder / "state.safetensors").is_file():
            return
        state, about = files.read_tensors(self.folder / "state.safetensors")
        if about["path"] != self.path.identity:
            raise files.RecordError(f"{self.folder} holds another path of this name; move it away.")
        self.chords = [state.pop("own/point"), state.pop("own/chord")]
        self.last, self.bins = state.pop("own/last"), np.array(state.pop("own/bins"))
        *levels, self.before = (float(x) for x in state.pop("own/far"))
        self.levels = np.array(levels)
        self.stepper.load_state(state, int(about["step"]))
        # rows are written before the state: those of a save that was cut off are taken again
        self.rows = files.read_parquet(self.folder / "rows.parquet").to_dict("records")[: int(about["rows"])]
        if (self.folder / "lines.parquet").is_file():
            self.lines = files.read_parquet(self.folder / "lines.parquet").to_dict("records")


def _log_spaced(k: int) -> bool:
    """Whether a whole number is among those nearest to powers of 10^(1 / per decade)."""
    place = round(_PER_DECADE * math.log10(k))
    return round(10 ** (place / _PER_DECADE)) == k


class Interrupts:
    """Collects SIGINT and SIGTERM, so that a path can be saved first."""

    def __enter__(self) -> Interrupts:
        self.caught: list[int] = []
        kinds = (signal.SIGINT, signal.SIGTERM)
        self._before = {k: signal.signal(k, lambda number, frame: self.caught.append(number)) for k in kinds}
        return self

    def __exit__(self, *_) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def __call__(self) -> bool:
        return bool(self.caught)
