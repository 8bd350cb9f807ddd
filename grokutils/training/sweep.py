"""Many runs declared as data: a table of conditions, each the same seeds with one thing changed.

>>> from grokutils import RunConfig
>>> base = RunConfig.recipe("express", steps=2_000)
>>> table = (Condition("plain"), Condition("slow", changes={"learning_rate": 1e-3}))
>>> sweep(table, base, seeds=range(2), out="runs/mine", jobs=1)                   # doctest: +SKIP

Each condition is one run of `grokutils.train`, its seeds side by side, in a folder of its own. A condition that cannot
be built is refused before anything runs; a sweep that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from grokutils.experiment import models
from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.records import files
from grokutils.records.analysis import analyze_record
from grokutils.records.record import Record, RecordError, load_record, publish
from grokutils.training.hooks import Hook, check_hooks
from grokutils.training.train import TrainingInterrupted, train
from grokutils.util import paths
from grokutils.util.progress import tqdm

__all__ = ["Condition", "Fork", "Outcome", "check", "config_of", "folder_of", "sweep"]

# How often the progress bar looks at how far the runs are, and how often the runs say so, in seconds.
_LOOK = 1.0
_AUTOSAVE = 10.0
# How long a run may take to save when it is interrupted, in seconds.
_SAVING = 60.0
_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Condition:
    """One thing changed.

    >>> Condition("gentle", changes={"eps": 1e-4}).name
    'gentle'
    """

    #: Name of its folder: letters, digits, ``-`` and ``.``.
    name: str
    #: Fields of the `RunConfig`.
    changes: Mapping[str, Any] = field(default_factory=dict)
    #: Of the training loop (`grokutils.training.hooks`).
    hooks: tuple[Hook, ...] = ()
    #: Whether it goes on from the weights of the `Fork`, not from the initial ones.
    forked: bool = False
    #: A record that holds it already, perhaps with more seeds and steps; it is not run again.
    record: str | None = None


@dataclass(frozen=True)
class Fork:
    """Where forked conditions begin, and how many steps they take."""

    record: str
    step: int
    steps: int


@dataclass(frozen=True)
class Outcome:
    """What became of one condition."""

    name: str
    #: None if it failed; `error` says why.
    record: Record | None
    error: str = ""
    #: Seeds of members whose weights became infinite or NaN; their rows are kept.
    diverged: tuple[int, ...] = ()


def config_of(condition: Condition, base: RunConfig, seeds: Sequence[int], fork: Fork | None = None) -> RunConfig:
    """The configuration of a condition: one member for each seed.

    Raises
    ------
    ConfigError : no such field, or a value without meaning; the message names the condition.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", condition.name):
        raise ConfigError(f"a condition's name must be letters, digits, '-' and '.'; got {condition.name!r}.")
    if condition.forked and fork is None:
        raise ConfigError(f"condition {condition.name!r} goes on from a record: say which (`Fork`).")
    steps = {"steps": fork.steps} if condition.forked else {}
    try:
        return base.replace(**{**steps, **condition.changes}).ensemble(seeds)
    except ConfigError as error:
        raise ConfigError(f"condition {condition.name!r}: {error}") from None


def folder_of(out: str, condition: Condition) -> Path:
    """Folder of a condition's record.

    Raises
    ------
    ValueError : it would lie outside ``runs/`` and ``results/``.
    """
    return paths.run_dir(os.path.join(out, condition.name), confined=True)


def check(
    conditions: Sequence[Condition], base: RunConfig, seeds: Iterable[int], out: str, fork: Fork | None = None
) -> None:
    """Build every condition up to its first step, and look at what is in its folder.

    Raises
    ------
    ConfigError : one that cannot be built, two of one name, or none; the message names the condition.
    ValueError : an `out` that leaves its folder.
    RecordError : a folder that holds another run.
    """
    seeds = list(seeds)
    if not conditions:
        raise ConfigError("conditions must be at least one; got none.")
    names = [condition.name for condition in conditions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"conditions must differ in name; {twice[0]!r} is there twice.")
    for condition in conditions:
        if condition.record is not None:
            _members(condition, condition.record, seeds)
            continue
        config = config_of(condition, base, seeds, fork)
        try:
            _start(condition, fork, seeds)
            model = models.build(config, torch.device("cpu"))
            for hook in check_hooks(condition.hooks):
                copy.deepcopy(hook).begin(model)
            pickle.dumps(condition)
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f"condition {condition.name!r}: {error}") from None
        except (pickle.PicklingError, AttributeError, TypeError):
            raise ConfigError(
                f"condition {condition.name!r}: its hooks must be of classes that another process can import."
            ) from None
        folder = folder_of(out, condition)
        if (folder / "config.json").is_file():
            there = Record(folder).config
            if there.replace(intervention="").identity != model.config.identity or there.steps != config.steps:
                raise RecordError(
                    f"{folder} holds another run ({len(there.networks)} seeds, {there.steps:,} steps); "
                    "remove it, or choose another folder."
                )


def _members(condition: Condition, name: str, seeds: Sequence[int]) -> list[int]:
    """Numbers of the networks of these seeds in a record."""
    there = [network.seed for network in load_record(name).config.networks]
    if missing := sorted(set(seeds) - set(there)):
        raise ConfigError(f"condition {condition.name!r}: {name} has no network of seed {missing[0]}.")
    return [there.index(seed) for seed in seeds]


def _start(condition: Condition, fork: Fork | None, seeds: Sequence[int]) -> dict[str, Any]:
    """What `train` is told of where a condition begins."""
    if not condition.forked:
        return {}
    source = load_record(fork.record)
    if fork.step not in source.steps_saved:
        raise ConfigError(f"step {fork.step:,} of {fork.record} was not saved.")
    return {"start_from": source, "step": fork.step, "member": _members(condition, fork.record, seeds)}


def sweep(
    conditions: Sequence[Condition],
    base: RunConfig,
    seeds: Iterable[int],
    out: str,
    fork: Fork | None = None,
    *,
    training: Mapping[str, Any] | None = None,
    thin_out: Callable[[Record], None] | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> list[Outcome]:
    """Run, analyse and thin out every condition; what is done already is only read.

    Parameters
    ----------
    conditions : the table
    base : what they change
    seeds : of the members of each, the same in all
    out : folder of the records, under ``runs/`` or ``results/``
    fork : where forked conditions begin
    training : further options of `grokutils.train`: what is measured and saved
    thin_out : what is done with an analysed record, a function that another process can import; by default the last
        weights alone are kept, and no spectra of shuffles
    jobs : processes, of one thread each; default one for each core
    progress : show a progress bar with the time left

    Returns
    -------
    An `Outcome` of each, in the table's order. One that fails does not stop the others.

    Raises
    ------
    ConfigError, RecordError, ValueError : as `check`, before anything runs.
    TrainingInterrupted : SIGINT or SIGTERM; the states have been saved, and the same call goes on.
    """
    seeds = list(seeds)
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise ConfigError(f"jobs must be a whole number of at least 1; got {jobs!r}.")
    check(conditions, base, seeds, out, fork)
    todo = [condition for condition in conditions if condition.record is None]
    found = {c.name: Outcome(c.name, load_record(c.record, base.steps)) for c in conditions if c.record is not None}
    steps = {c.name: config_of(c, base, seeds, fork).steps for c in todo}
    total = sum(steps.values()) * len(seeds)
    waiting, running = list(todo), {}
    bar = tqdm(total=total, unit="step", unit_scale=True, desc=out, disable=not progress, dynamic_ncols=True)
    try:
        with bar, _sigterm_interrupts():
            bar.n = bar.initial = _taken(out, todo, steps) * len(seeds)
            while waiting or running:
                while waiting and len(running) < (jobs or os.cpu_count() or 1):
                    condition = waiting.pop(0)
                    running[condition.name] = _Job(
                        condition, base, seeds, out, fork, dict(training or {}), thin_out or _thin_out
                    )
                connection.wait([job.process.sentinel for job in running.values()], timeout=_LOOK)
                for name, job in list(running.items()):
                    if not job.process.is_alive():
                        found[name] = job.outcome(folder_of(out, job.condition))
                        del running[name]
                bar.n = _taken(out, todo, steps) * len(seeds)
                bar.set_postfix_str(f"{len(todo) - len(waiting) - len(running)} of {len(todo)} conditions done")
    except KeyboardInterrupt:
        raise TrainingInterrupted(
            f"interrupted: the states are saved in {out}; run the same command to go on."
        ) from None
    finally:
        for job in running.values():
            job.process.terminate()  # it saves first
        for job in running.values():
            job.process.join(_SAVING)
            job.process.kill()
    return [found[condition.name] for condition in conditions]


class _Job:
    """One condition in a process of its own: a fresh interpreter, since a copy of this one would share its threads."""

    def __init__(self, condition: Condition, *arguments):
        self.condition = condition
        self._end, end = _CONTEXT.Pipe(duplex=False)
        self.process = _CONTEXT.Process(target=_work, args=(end, condition, *arguments), daemon=True)
        self.process.start()
        end.close()

    def outcome(self, folder: Path) -> Outcome:
        """What became of it, once its process has ended."""
        name, code = self.condition.name, self.process.exitcode
        try:
            error, diverged = self._end.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # killed, for lack of memory for one; or interrupted by itself
            return Outcome(name, None, f"its process ended with status {code}; run the same command to go on.")
        return Outcome(name, None, error) if error else Outcome(name, Record(folder), diverged=diverged)


def _work(end, condition: Condition, *arguments) -> None:
    """In the process of a condition: run it, and say how it went; nothing, if it was interrupted."""
    _end_with_parent()
    try:
        said = ("", _run(condition, *arguments))
    except KeyboardInterrupt:  # its state is saved
        os._exit(130)
    except Exception as error:
        said = (f"{type(error).__name__}: {error}", ())
    try:
        end.send(said)
    except OSError:
        print(f"condition {condition.name!r}: nobody listens any more; its record is kept.", file=sys.stderr)
        os._exit(1)


def _end_with_parent() -> None:
    """End this process, having saved, when the one that started it has gone, however it went."""

    def watch() -> None:
        connection.wait([multiprocessing.parent_process().sentinel])
        os.kill(os.getpid(), signal.SIGTERM)  # training saves; whatever else may end at once
        time.sleep(_SAVING)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what SIGINT does, where it can be: in a main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(
    condition: Condition, base: RunConfig, seeds: Sequence[int], out: str, fork: Fork | None,
    training: Mapping[str, Any], thin_out: Callable[[Record], None],
) -> tuple[int, ...]:  # fmt: skip
    """Train, analyse and thin out one condition; the seeds that diverged."""
    torch.set_num_threads(1)
    config, folder = config_of(condition, base, seeds, fork), folder_of(out, condition)
    done = train(
        config, folder, threads=1, progress=False, autosave=_AUTOSAVE, hooks=condition.hooks,
        **_start(condition, fork, seeds), **training,
    )  # fmt: skip
    analyze_record(done, progress=False, store=True)
    thin_out(done)
    return tuple(config.networks[int(member)].seed for member in done.provenance["diverged"])


def _thin_out(done: Record) -> None:
    """Keep the last weights alone, and no spectra of shuffles: a sweep has many records."""
    publish(done, done.folder, done.steps_saved[-1:])
    path = done.folder / "spectra.parquet"
    spectra = done.table("spectra")
    if (spectra.shuffle >= 0).any():
        kept = spectra[spectra.shuffle < 0].reset_index(drop=True)
        kept.attrs = spectra.attrs
        with files.locked(done.folder):
            files.write_parquet(path, kept)


def _taken(out: str, conditions: Sequence[Condition], steps: Mapping[str, int]) -> int:
    """Steps that the runs have taken, as far as their folders say."""
    taken = 0
    for condition in conditions:
        try:
            taken += min(Record(folder_of(out, condition)).step, steps[condition.name])
        except RecordError:  # not begun
            continue
    return taken
