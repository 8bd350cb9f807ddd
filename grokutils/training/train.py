"""The training loop: steps, measurements, saves, resuming. It knows no architecture.

A run is a function of its configuration: stopped at any moment, killed or cut off, and started again, it
ends in the same bits as one never interrupted, on the same machine and number of threads. Minibatches are
a function of (seed, step), so the whole state is the parameters, AdamW's moments and the step number.
"""

from __future__ import annotations

import bisect
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from grokutils.experiment import models
from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.records import files, schedule
from grokutils.records.record import FORMAT, Record, RecordError, checkpoint_path, read_provenance
from grokutils.records.rows import metrics_row, surroundings
from grokutils.training import forks
from grokutils.training.hooks import Hook, check_hooks
from grokutils.util import paths
from grokutils.util.memory import available_memory, is_out_of_memory, size_in_words
from grokutils.util.progress import tqdm

__all__ = ["TrainingDiverged", "TrainingInterrupted", "train"]

# How long the loop may go without looking at the clock and at signals, in seconds.
_PATIENCE = 0.2
# A step that takes longer, in seconds, is announced before the first.
_LONG_STEP = 10.0


class SlowSteps(UserWarning):
    """A step of this run will take long."""


class TrainingDiverged(RuntimeError):
    """Every member's weights have become infinite or NaN; the last good state is kept."""


class TrainingInterrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the state has been saved."""


def train(
    config: RunConfig,
    out: str | os.PathLike | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool = True,
    measures_per_decade: int = schedule.MEASURES_PER_DECADE,
    measure_every: int | None = None,
    saves_per_decade: int = schedule.SAVES_PER_DECADE,
    autosave: float = 60.0,
    start_from: Record | None = None,
    step: int | Sequence[int] | None = None,
    member: int | Sequence[int] = 0,
    edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
    hooks: Sequence[Hook] = (),
    model: Any = None,
    data: Any = None,
    loss: Any = None,
    optimizer: Any = None,
) -> Record:
    """Train a run, or go on with it where it stopped.

    >>> record = train(RunConfig.recipe("express", steps=2_000), out="runs/x")    # doctest: +SKIP
    >>> record.metrics.test_accuracy.iloc[-1]                                     # doctest: +SKIP

    A network, data, a loss and an optimiser of one's own take the place of the configuration's:

    >>> train(RunConfig.recipe("express", steps=2_000), "mine", model=MyNet, optimizer=torch.optim.NAdam)  # doctest: +SKIP

    Parameters
    ----------
    config : what to train. If `out` holds the same run, shorter, it is continued; if it holds the same
        run, as long or longer, nothing is trained and its record up to ``config.steps`` is returned.
    out : name of the run (under ``runs/``) or an absolute path; default ``config.name``.
    device : "cpu" or "cuda" (any torch device of these kinds).
    threads : threads of a CPU run; default what the run began with, for a new one 1 if the matrices are
        small and all cores otherwise. The bits of the result depend on it.
    progress : show a progress bar with speed, time left and current accuracies.
    measures_per_decade, saves_per_decade : how densely to measure and to save weights, in log steps.
    measure_every : measure at all multiples of it as well: what lasts a thousand steps late in a run falls between
        log steps.
    autosave : save the resumable state at least this often, in seconds, whatever the schedule.
    start_from : fork a record: begin with its weights at a saved `step` (default: its last) of `member`. A run of
        several members may begin each from its own: then these two are lists, or one for all. The optimiser's
        moments begin at zero and steps count from 0, so that the control of an edited fork is one without
        `edit`.
    edit : changes the weights that a fork begins with: it takes and returns those of one member, by their
        `torch.nn` names.
    hooks : what is done between the steps (`grokutils.training.hooks`).
    model : a function or class that makes a `torch.nn.Module`; it may ask for ``shape`` (of an example), ``classes`` and
        ``config`` by these names. Trained by autograd, the members one after the other.
    data : ``x_train, y_train, x_test, y_test``, arrays or tensors, or a function of the seed that returns them. Labels are
        whole numbers from 0, or numbers to be predicted, of which there is no accuracy.
    loss : a function of outputs and labels, a mean over the examples.
    optimizer : a `torch.optim.Optimizer` class, or a function of the parameters that returns one or several; ``lr`` and
        ``weight_decay`` are passed where it takes them.

    Returns
    -------
    Record. Hooks and the origin of a fork make it another run (``config.intervention`` says which): to go on with
    it one must give them again. So do a model, data, a loss and an optimiser of one's own (``config.own`` says which);
    register them (`grokutils.experiment.registry`), and other processes find them too.

    Raises
    ------
    ConfigError : an option without meaning, a hook that does not fit the model, a run that does not fit the memory, or parts
        that do not fit each other.
    DataError : data that cannot be had or are none, or code that is not at hand.
    ValueError : a step or a member that `start_from` has not got, or weights that do not fit the model.
    RecordError : `out` holds another run, a damaged one or something else, is in use, or cannot be written; or memory
        ran out.
    TrainingDiverged : no member is finite any more.
    TrainingInterrupted : SIGINT or SIGTERM; the state was saved first.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(f"config must be a RunConfig; got {type(config).__name__}.")
    hooks = check_hooks(hooks)
    given = config.own
    config = models.resolve(config, model=model, data=data, loss=loss, optimizer=optimizer)
    if given not in (None, config.own):
        raise ConfigError(
            "config is that of a run with other parts than those given or registered here; give the same, or start "
            "another run with config.replace(own=None)."
        )
    origin = forks.origin(config, start_from, step, member, edit)
    says = ([origin.says] if origin else []) + [hook.identity for hook in hooks]
    if config.intervention not in ("", "; ".join(says)):
        raise ConfigError(
            "config is that of a run with hooks, or of a fork; give the same start_from and hooks again, "
            'or go without them with config.replace(intervention="").'
        )
    config = config.replace(intervention="; ".join(says))
    folder = paths.run_dir(config.name if out is None else out)
    device_ = _device(device)
    files.check_target(folder)
    with files.locked(folder):
        previous = _previous(folder, config)
        if previous and previous["step"] >= config.steps:
            return Record(folder, until=config.steps)
        threads = _threads(threads, previous, config)
        with _torch_settings(threads):
            _check_limits(config, device_)
            measure_at = schedule.log_spaced(config.steps, measures_per_decade)
            if measure_every is not None:
                measure_at = sorted({*measure_at, *schedule.every(config.steps, measure_every)})
            save_at = schedule.log_spaced(config.steps, saves_per_decade)
            try:
                run = _Run(config, folder, device_, threads, measure_at, save_at, autosave)
                run.begin(origin, hooks)
                run.go(previous, progress)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise RecordError(
                    f"memory ran out ({size_in_words(config.memory)} are needed at least). What was saved in {folder} "
                    "is kept; make room and run the same command again to go on."
                ) from None
    return Record(folder)


class _Run:
    """One process's stretch of a run."""

    def __init__(
        self, config, folder: Path, device, threads: int, measure_at: list[int], save_at: list[int], autosave: float
    ):  # fmt: skip
        self.config = config
        self.folder = folder
        self.model = models.build(config, device)
        self.device = device
        self.threads = threads
        self.measure_at = measure_at
        self.save_at = save_at
        self.autosave = autosave
        self.rows: list[dict[str, Any]] = []
        self.step = 0
        self.state_step: int | None = None
        self.diverged: dict[str, int] = {}

    def begin(self, origin: forks.Origin | None, hooks: Sequence[Hook]) -> None:
        """The weights to start from, and what is done to them on the way."""
        self.origin, self.hooks = origin, hooks
        if hooks:
            self.model.without_shortcuts()
        self.model.init()
        if origin is not None:
            self.model.load_weights(origin.weights)
        for hook in hooks:
            hook.begin(self.model)

    def go(self, previous: dict[str, Any] | None, progress: bool) -> None:
        self._resume(previous)
        self.sessions = list((previous or {}).get("sessions", []))
        self.started_at, self.began_at = time.monotonic(), self.step
        self.when = datetime.now(UTC).isoformat(timespec="seconds")
        events = sorted({*self.measure_at, *self.save_at})
        if self.state_step is None:
            self._write_config()
            self._event(0)
        else:
            self._take_up(previous)
        bar = tqdm(
            total=self.config.steps, initial=self.step, unit="step", unit_scale=True, disable=not progress,
            desc=self.folder.name, dynamic_ncols=True, mininterval=0.5,
        )  # fmt: skip
        chunk, saved_at = 1, time.monotonic()
        with bar, _signals() as caught:
            self._show(bar)
            while self.step < self.config.steps:
                upcoming = events[bisect.bisect_right(events, self.step)]
                count = min(chunk, upcoming - self.step)
                began = time.monotonic()
                if self.hooks:
                    count = self._hooked(count)
                else:
                    self.model.step(self.step, count)
                    self.step += count
                now = time.monotonic()
                # as many steps as fit into the patience, growing gently while the clock is being learnt
                chunk = max(1, min(2 * chunk, int(count * _PATIENCE / max(now - began, 1e-6))))
                bar.update(count)
                if self.step == upcoming:
                    saved_at = now if self._event(self.step) else saved_at
                    self._show(bar)
                if caught or now - saved_at > self.autosave:
                    self._save_state()
                    saved_at = now
                if caught:
                    name = signal.Signals(caught[0]).name
                    raise TrainingInterrupted(
                        f"{name} at step {self.step:,}: the state is saved in {self.folder}; "
                        "run the same command to go on."
                    )

    def _hooked(self, count: int) -> int:
        """Take steps, `count` at most, as far as the next call of a hook."""
        count = min(count, *(hook.next_call(self.step) - self.step for hook in self.hooks))
        for hook in self.hooks:
            if hook.is_due(self.step):
                hook.before(self.step, self.model)
        self.model.step(self.step, count)
        self.step += count
        for hook in self.hooks:
            if hook.is_due(self.step) and self.step > hook.first:
                hook.after(self.step, self.model)
        return count

    # -- at a scheduled step ---------------------------------------------------------------------------------

    def _event(self, step: int) -> bool:
        """Measure and save as scheduled; whether anything was saved."""
        self._check_finite()
        saving = _contains(self.save_at, step)
        if _contains(self.measure_at, step) or saving:
            with np.errstate(over="ignore", invalid="ignore"):  # a diverged member is reported, not warned of
                weights = self.model.weights()
                if _contains(self.measure_at, step):
                    self._measure(step, weights)
            if saving:
                self._check_folder()
                self._write_checkpoint(step, weights)
                self._save_state()
        return saving

    def _measure(self, step: int, weights: list[dict[str, np.ndarray]]) -> None:
        self.rows = [r for r in self.rows if r["step"] != step]
        for index, (scores, w) in enumerate(zip(self.model.evaluate(), weights, strict=True)):
            self.rows.append(metrics_row(step, index, self.config.networks[index], scores, w))

    def _check_finite(self) -> None:
        finite = self.model.finite()
        for index in np.flatnonzero(~finite):
            self.diverged.setdefault(str(index), self.step)
        if not finite.any():
            kept = "nothing was saved yet" if self.state_step is None else (
                f"the last good state, step {self.state_step:,}, is kept in {self.folder}"
            )
            raise TrainingDiverged(
                f"the weights are no longer finite at step {self.step:,}; {kept}. A smaller learning_rate "
                f"than {self.config.learning_rate:g} or a smaller init_scale may help."
            )

    # -- files -----------------------------------------------------------------------------------------------

    def _write_checkpoint(self, step: int, weights: list[dict[str, np.ndarray]]) -> None:
        if len(weights) == 1:
            arrays = weights[0]
        else:
            arrays = {f"member{i}/{name}": a for i, w in enumerate(weights) for name, a in w.items()}
        files.write_tensors(checkpoint_path(self.folder, step), arrays, self._marks(step))

    def _marks(self, step: int) -> dict[str, str]:
        return {"identity": self.config.identity, "step": str(step)}

    def _save_state(self) -> None:
        """Metrics, the state, from which a later process goes on, and last the provenance, which says how far all is."""
        self._check_finite()
        self._check_folder()
        rows = pd.DataFrame(self.rows)
        rows.attrs["grokutils"] = {"identity": self.config.identity, "step": self.step}
        files.write_parquet(self.folder / "metrics.parquet", rows)
        state = {name: tensor.numpy() for name, tensor in self.model.state_dict().items()}
        for index, hook in enumerate(self.hooks):
            state.update({f"hook{index}/{name}": array for name, array in hook.state().items()})
        files.write_tensors(self.folder / "state.safetensors", state, self._marks(self.step))
        self.state_step = self.step
        self._write_provenance()

    def _check_folder(self) -> None:
        """Refuse to save into a folder that somebody has taken away, as a whole or what it begins with."""
        if files.is_file(self.folder / "config.json"):
            return
        kept = "nothing of it is left"
        if files.is_file(self.folder / "state.safetensors"):
            kept = f"the state of step {self.state_step:,} is kept; run the same command to go on"
        raise RecordError(f"{self.folder / 'config.json'} has vanished while the run was at step {self.step:,}; {kept}.")

    def _write_config(self) -> None:
        files.write_json(self.folder / "config.json", files.sealed(self.config.to_dict()))

    def _write_provenance(self) -> None:
        files.write_json(self.folder / "provenance.json", files.sealed(self._provenance()))

    def _provenance(self) -> dict[str, Any]:
        session = {
            "started": self.when, "from_step": self.began_at, "to_step": self.step,
            "wall_s": round(time.monotonic() - self.started_at, 3), "threads": self.threads,
            **surroundings(self.device),
        }  # fmt: skip
        changed = {}
        if self.origin is not None:
            changed["origin"] = self.origin.provenance
        if self.hooks:
            changed["hooks"] = [hook.identity for hook in self.hooks]
        return {
            "format": self.format,
            "step": self.step,
            "complete": self.step == self.config.steps,
            "identity": self.config.identity,
            **changed,
            "data": self.model.data_summary(),
            "diverged": self.diverged,
            "sessions": [*self.sessions, session],
        }

    def _resume(self, previous: dict[str, Any] | None) -> None:
        path = self.folder / "state.safetensors"
        # a record begun by an earlier version may still have files without marks
        self.format = (previous or {"format": FORMAT}).get("format", 1)
        if not files.is_file(path):
            if previous and previous["step"] > 0:
                kind = "a finished record" if previous["complete"] else "a record"
                raise RecordError(f"{self.folder} is {kind} without a state to go on from; choose another out.")
            return
        arrays, metadata = _read_state(path, self.config)
        if previous and previous["data"] != self.model.data_summary():
            raise RecordError(f"{self.folder} was trained on other data than what is at hand now.")
        try:
            step = int(metadata["step"])
            self.model.load_state_dict({k: torch.from_numpy(a) for k, a in arrays.items()}, step)
            for index, hook in enumerate(self.hooks):
                own = f"hook{index}/"
                hook.load_state({k.removeprefix(own): a for k, a in arrays.items() if k.startswith(own)})
        except (KeyError, ValueError) as error:
            raise RecordError(f"{path} is not a state of this run ({error}).") from None
        self.step = self.state_step = step

    def _take_up(self, previous: dict[str, Any] | None) -> None:
        """Let the other files say what the state says, and read what was measured up to there."""
        there = Record(self.folder)
        if there.config.steps != self.config.steps:
            self._write_config()
        self.diverged = dict((previous or {}).get("diverged", {}))
        if not previous or previous["step"] != self.step:  # lost, or not written any more by a process that was killed
            self._write_provenance()
        rows = there.metrics
        self.rows = rows[rows.step <= self.step].to_dict("records")

    def _show(self, bar: tqdm) -> None:
        if self.rows:
            last = [r for r in self.rows if r["step"] == self.rows[-1]["step"]]
            mean = {k: np.mean([r[f"{k}_accuracy"] for r in last]) for k in ("train", "test")}
            bar.set_postfix({k: f"{v:.3f}" for k, v in mean.items()}, refresh=False)


# -- settings and surroundings --------------------------------------------------------------------------------


def _previous(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """The provenance of the run already in a folder, None for a new one; another run is refused."""
    if not files.is_file(folder / "config.json"):
        if not any(files.is_file(folder / name) for name in ("provenance.json", "state.safetensors")):
            return None
        # lost; but the command says what it was
        if files.is_file(folder / "provenance.json"):
            done = read_provenance(folder, config)["step"]
        else:
            _, marks = _read_state(folder / "state.safetensors", config)
            done = int(marks["step"])
        config = config.replace(steps=max(config.steps, done))
        files.write_json(folder / "config.json", files.sealed(config.to_dict()))
    there = Record(folder)
    if there.config.identity != config.identity:
        mine, theirs = config.to_dict(), there.config.to_dict()
        differ = [k for k in mine if k not in ("steps", "recipe_name") and mine[k] != theirs[k]]
        what = ", ".join(f"{k} {_short(theirs[k])} instead of {_short(mine[k])}" for k in differ)
        raise RecordError(f"{folder} holds another run ({what}); choose another out.")
    if not files.is_file(folder / "provenance.json"):
        return None  # cut off before its first save, or lost: then the state says how far it is
    return there.provenance


def _read_state(path: Path, config: RunConfig) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    arrays, metadata = files.read_tensors(path)
    if metadata.get("identity") != config.identity:
        raise RecordError(f"{path} belongs to another run; move it away or choose another out.")
    return arrays, metadata


def _short(value: Any) -> str:
    """A value as it goes into a message: never a page."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _contains(ascending: list[int], value: int) -> bool:
    place = bisect.bisect_left(ascending, value)
    return place < len(ascending) and ascending[place] == value


def _check_limits(config: RunConfig, device: torch.device) -> None:
    """Refuse a run that cannot fit the memory, and say so if its steps will take long.

    Raises
    ------
    ConfigError : it needs more than there is.
    """
    there = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if there is not None and config.memory > there:
        raise ConfigError(
            f"this run needs at least {size_in_words(config.memory)} of memory, and {size_in_words(there)} are free; "
            f"take fewer members ({len(config.networks)} now), smaller layers or float32."
        )
    if device.type == "cpu" and config.work > 1e10:  # below, a step takes less than what it takes to find out
        seconds = config.work / _speed(config)
        if seconds > _LONG_STEP:
            warnings.warn(
                f"a step of this run takes about {seconds:,.0f} seconds on this machine, and {config.steps:,} are to be "
                f"taken: {seconds * config.steps / 86400:,.1f} days.", SlowSteps, stacklevel=3,
            )  # fmt: skip


def _speed(config: RunConfig) -> float:
    """Floating-point operations a second, of a product of square matrices."""
    matrix = torch.ones(768, 768, dtype=getattr(torch, config.dtype))
    matrix @ matrix
    began = time.perf_counter()
    matrix @ matrix
    return 2 * 768**3 / (time.perf_counter() - began)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device must be 'cpu' or 'cuda'; got {name!r}.") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be 'cpu' or 'cuda'; got {name!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, but this machine or this build of torch has no CUDA.")
    return device


def _threads(asked: int | None, previous: dict[str, Any] | None, config: RunConfig) -> int:
    cores = os.cpu_count() or 1
    if asked is not None:
        number = isinstance(asked, (int, float)) and not isinstance(asked, bool)
        if not number or not 1 <= asked <= 1024 or int(asked) != asked:
            raise ConfigError(f"threads must be a whole number from 1 to 1024; got {asked!r}.")
        return int(asked)
    if previous and previous["sessions"]:
        return int(previous["sessions"][-1]["threads"])
    return cores if config.worth_threads else 1


@contextmanager
def _torch_settings(threads: int) -> Iterator[None]:
    """Thread count and flushing of denormals (thousands of times slower than normal numbers, and late in
    training AdamW's moments are full of them)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them, where Python lets us (the main thread)."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda number, frame: caught.append(number)) for kind in kinds}
    try:
        yield caught
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
