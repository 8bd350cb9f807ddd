"""What a record survives: trials, and how many of them went well.

    python -m benchmarks.reliability            # all of them, some twenty minutes
    python -m benchmarks.reliability flips      # one, the others are left as they are

The numbers go to ``results/reliability.json``, from which the book's page on reliability is made. The tests run the same
trials, fewer of each. Every trial counts what it tried and gives the failures in words.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import io
import itertools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from benchmarks import _bench
from grokutils import cli
from grokutils.experiment.config import ConfigError, RunConfig, hyperparameters
from grokutils.records import files
from grokutils.records.analysis import analyze_record
from grokutils.records.record import Record, RecordError, publish
from grokutils.training.hooks import HoldNorm
from grokutils.training.train import train

_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
_OPTIONS = dict(shuffles=2, ks_draws=0)


@dataclass
class Trials:
    """How often something was tried, and what went wrong."""

    tried: int = 0
    #: How a trial that went well ended, and how often.
    ended: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, how: str) -> None:
        self.tried += 1
        self.ended[how] = self.ended.get(how, 0) + 1

    def fail(self, what: str) -> None:
        self.tried += 1
        self.failures.append(what)


def tiny(**changes: Any) -> RunConfig:
    values = dict(steps=1_500, batch_size=40, batch_order="reshuffle", weight_decay=0.01, width=32)
    return RunConfig.recipe("express", **{**values, **changes})


def contents(folder: Path) -> dict[str, Any]:
    """All that must not depend on how a run was cut up: tables, weights and state."""
    record = Record(folder)
    found: dict[str, Any] = {"metrics": record.metrics}
    for step in record.steps_saved:
        for member in range(len(record.config.networks)):
            found |= {f"{step}/{member}/{name}": a for name, a in record.weights(step, member).items()}
    if (folder / "state.safetensors").is_file():
        found |= {f"state/{name}": a for name, a in files.read_tensors(folder / "state.safetensors")[0].items()}
    found |= {name: record.table(name) for name in ("diagnostics", "spectra", "baselines") if (folder / f"{name}.parquet").is_file()}
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    if odd := set(one) ^ set(other):
        return sorted(odd)
    return [name for name in one if not _same(one[name], other[name])]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    try:
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    except AssertionError:
        return False
    return True


# -- kills --------------------------------------------------------------------------------------------------------


def _train(config: RunConfig, folder: Path, **options: Any) -> None:
    train(config, folder, threads=1, progress=False, autosave=0.02, **options)


def _three_members(folder: Path) -> None:
    _train(tiny(steps=800).ensemble(range(3)), folder)


def _hooks(folder: Path) -> None:
    _train(tiny(steps=150), folder, hooks=[HoldNorm(start=50)])


def _whole_batch(folder: Path) -> None:
    _train(tiny(batch_size=0, optimizer="amsgrad"), folder)


def _plain(folder: Path) -> None:
    _train(tiny(), folder)


def _transformer(folder: Path) -> None:
    _train(RunConfig.recipe("modular", p=13, d_model=32, d_mlp=64, steps=300), folder)


def _diagnosis(folder: Path) -> None:
    _train(tiny(steps=200), folder)
    analyze_record(Record(folder), progress=False, **_OPTIONS)


def _publishing(folder: Path) -> None:
    source = folder.with_name("source")
    _train(tiny(steps=200), source)
    publish(Record(source), folder, Record(source).steps_saved)


KINDS: dict[str, Callable[[Path], None]] = {
    "training": _plain,
    "training on the whole set, AMSGrad": _whole_batch,
    "training three members": _three_members,
    "training with a hook": _hooks,
    "training a transformer": _transformer,
    "training and diagnosis": _diagnosis,
    "training and publishing": _publishing,
}


def kills(each: int = 9, kinds: Sequence[str] = tuple(KINDS), seed: int = 0) -> dict[str, Trials]:
    """SIGKILL at random moments until `each` have hit; after each the record is read, and in the end it must hold the
    bits of a run that nobody disturbed."""
    _CONTEXT.set_forkserver_preload(["grokutils.training.train", "grokutils.records.analysis"])
    rng = np.random.default_rng(seed)
    return {kind: _kills(kind, each, rng) for kind in tqdm(kinds, desc="kills", disable=None)}


def _kills(kind: str, each: int, rng: np.random.Generator) -> Trials:
    trials = Trials()
    with tempfile.TemporaryDirectory() as place:
        straight, killed = Path(place) / "a" / "run", Path(place) / "b" / "run"
        began = time.monotonic()
        _end(_started(kind, straight), None)
        wanted, taken = contents(straight), time.monotonic() - began
        while trials.tried < each:
            # a fresh run now and then, so that its beginning is hit as well
            if not trials.tried % 3:
                shutil.rmtree(killed.parent, ignore_errors=True)
            if not _end(_started(kind, killed), rng.uniform(0, 0.9 * taken)):
                shutil.rmtree(killed.parent, ignore_errors=True)
                taken *= 0.9
                continue
            try:
                if (killed / "provenance.json").is_file():
                    contents(killed)
            except (RecordError, ValueError) as error:
                trials.fail(f"{kind}: cannot be read after a kill: {error}")
                continue
            trials.add("read, and taken up")
        _end(_started(kind, killed), None)
        if odd := differences(wanted, contents(killed)):
            trials.failures.append(f"{kind}: {', '.join(odd[:3])} differ from an undisturbed run's")
        if left := list(killed.rglob("*.tmp")):
            trials.failures.append(f"{kind}: {left[0].name} was left behind")
    return trials


def _started(kind: str, folder: Path):
    folder.parent.mkdir(exist_ok=True)
    process = _CONTEXT.Process(target=_alone, args=(KINDS[kind], folder))
    process.start()
    return process


def _alone(work: Callable, *arguments: Any) -> None:
    """In a process whose environment is that of the first trial, whose folders may have gone since."""
    os.environ.pop("GROKUTILS_RUNS", None)
    work(*arguments)


def _end(process, after: float | None) -> bool:
    """Whether it was still at work when it was killed; None waits for its end."""
    process.join(after)
    killed = process.exitcode is None
    if killed:
        process.kill()
        process.join()
    elif process.exitcode:
        raise RuntimeError(f"a process of the trial ended with status {process.exitcode}.")
    return killed


# -- the disk -----------------------------------------------------------------------------------------------------

ERRORS = ("EIO", "EDQUOT", "ENOSPC", "EINVAL", "EACCES", "EMFILE", "ENOTDIR", "EROFS")
CALLS = ("open", "write", "fsync", "replace", "mkdir", "unlink", "listdir", "os.open", "stat")


@contextlib.contextmanager
def failing(folder: Path, call: str, which: int, error: str) -> Iterator[list[int]]:
    """Let the call number `which` on something in `folder` fail; gives the number of calls so far."""
    count = [0]

    def hit(path: Any) -> None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if str(path).startswith(str(folder)):
            count[0] += 1
            if count[0] == which:
                code = getattr(errno, error)
                raise OSError(code, os.strerror(code), str(path))

    def guarded(function: Callable) -> Callable:
        def guard(path=".", *args, **kwargs):
            hit(path)
            return function(path, *args, **kwargs)

        return guard

    class File:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            hit(self.file.name)
            return self.file.write(content)

    def opened(path, *args, **kwargs):
        return File(real_open(path, *args, **kwargs)) if "wb" in args else real_open(path, *args, **kwargs)

    real_open = io.open
    put = []
    if call in ("open", "write"):
        put = [(module, "open", guarded(real_open) if call == "open" else opened) for module in (io, builtins)]
    else:
        name = call.removeprefix("os.")
        put = [(os, name, guarded(getattr(os, name)))]
    before = [(module, name, getattr(module, name)) for module, name, _ in put]
    for module, name, function in put:
        setattr(module, name, function)
    try:
        yield count
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def disk_errors(calls: Sequence[str] = CALLS, stride: int = 1) -> dict[str, Trials]:
    """Each call on a file of a run fails in turn, or one in `stride`, the errors taking turns: one sentence, nothing lost,
    and the same command goes on to the same bits."""
    config = tiny(steps=30, width=8)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        straight = Path(place) / "straight"
        _short_run(straight, config)
        wanted = contents(straight)
        for call in tqdm(calls, desc="disk errors", disable=None):
            trials = found[call] = Trials()
            folder = Path(place) / "run"
            with failing(folder, call, 0, "EIO") as count:
                _short_run(folder, config)
            for which, error in zip(range(1, count[0] + 1, stride), itertools.cycle(ERRORS)):
                shutil.rmtree(folder)
                _one_error(trials, folder, config, call, which, error, wanted)
            shutil.rmtree(folder)
    return found


def _short_run(folder: Path, config: RunConfig) -> None:
    train(config, folder, threads=1, progress=False)
    with warnings.catch_warnings(action="ignore"):
        analyze_record(Record(folder), progress=False, shuffles=0, ks_draws=0)


def _one_error(trials, folder: Path, config: RunConfig, call: str, which: int, error: str, wanted) -> None:
    said, name = "", f"{error} of {call}, call {which}"
    try:
        with failing(folder, call, which, error):
            _short_run(folder, config)
    except RecordError as caught:
        said = str(caught)
        if "\n" in said or not said.endswith(".") or caught.__context__ is not None and not isinstance(caught.__context__, OSError):
            return trials.fail(f"{name}: not one sentence: {said!r}")
    except Exception as caught:  # what nobody turned into a sentence
        return trials.fail(f"{name}: {type(caught).__name__}: {caught}")
    if folder.is_dir() and list(folder.rglob("*.tmp")) and call != "unlink":
        return trials.fail(f"{name}: a temporary file was left")
    _short_run(folder, config)
    if odd := differences(wanted, contents(folder)):
        return trials.fail(f"{name}: {', '.join(odd[:3])} differ afterwards")
    trials.add("a sentence, and the same command went on" if said else "nothing depended on it")


# -- bits ---------------------------------------------------------------------------------------------------------


def flips(count: int = 1_000, seed: int = 0) -> dict[str, Trials]:
    """One random bit of a record's files flips: reading everything notices, or gives the same."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        train(tiny(steps=20, width=8), folder, threads=1, progress=False, saves_per_decade=2)
        analyze_record(Record(folder), progress=False, **_OPTIONS)
        wanted = contents(folder) | _says(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        trials = {_kind(path): Trials() for path in paths}
        # as many in each file: a large table would have them all
        for number in tqdm(range(count), desc="flips", disable=None):
            path = paths[number % len(paths)]
            whole = path.read_bytes()
            place, bit = int(rng.integers(len(whole))), 1 << int(rng.integers(8))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            mine = trials[_kind(path)]
            try:
                with warnings.catch_warnings(action="error"):
                    odd = differences(wanted, contents(folder) | _says(folder))
                if odd:
                    mine.fail(f"bit {bit} of byte {place:,} of {path.name} changed {', '.join(odd[:3])} without a word")
                else:
                    mine.add("harmless")
            except RecordError:
                mine.add("noticed")
            except Exception as error:
                mine.fail(f"bit {bit} of byte {place:,} of {path.name}: {type(error).__name__}: {error}")
            path.write_bytes(whole)
    return trials


def _says(folder: Path) -> dict[str, Any]:
    record = Record(folder)
    return {
        "config": np.frombuffer(repr(record.config).encode(), np.uint8),
        "provenance": np.frombuffer(repr(record.provenance).encode(), np.uint8),
    }


def _kind(path: Path) -> str:
    return "checkpoints" if path.parent.name == "checkpoints" else path.name


# -- what is asked ------------------------------------------------------------------------------------------------

#: Values that some hyperparameter may take and most may not.
NASTY = ("nan", "inf", "-inf", "-1", "1e400", "1e308", "", " ", "x", "0x10", "1,5", "½", "١", "1e-400", "\0", "\x1b[31m", "<b>", "9" * 5000, "None", "[]")


def bad_inputs(places: Sequence[str] = ("/", "~", "~root/x", "/dev/null", "/dev/null/x", "/proc/x/y", "", " ", ".", "..", "../x", "runs", "results", "a\nb", "\0", "x" * 300)) -> dict[str, Trials]:
    """Commands without meaning: each ends in one sentence on the error stream, and nothing is made."""
    found = {"values of hyperparameters": Trials(), "places to write to": Trials(), "roots": Trials(), "publishing": Trials()}
    with tempfile.TemporaryDirectory() as place, _environment(GROKUTILS_RUNS=f"{place}/runs"):
        root = Path(place)
        for name, _, _ in hyperparameters():
            for value in NASTY:
                try:
                    RunConfig(**{name: value})
                    found["values of hyperparameters"].add("taken")
                except ConfigError as error:
                    one = "\n" not in str(error)
                    _count(found["values of hyperparameters"], f"{name}={value[:20]!r}", one and "refused", str(error))
                except Exception as error:
                    found["values of hyperparameters"].fail(f"{name}={value[:20]!r}: {type(error).__name__}: {error}")
        short = ["train", "--quiet", "--steps", "1"]
        other = root / "other"
        other.mkdir()
        (other / "mine.txt").touch()
        for out in (*places, str(other), str(root)):
            _refused(found["places to write to"], [*short, "--out", out], root)
        for variable, value in itertools.product(
            ("GROKUTILS_RUNS", "GROKUTILS_HOME"), ("~nosuchuser/x", "/dev/null", "/no/such/folder", "a\0b")
        ):
            if "\0" in value:  # no environment holds it
                continue
            with _environment(**{variable: value, **({"GROKUTILS_RUNS": ""} if variable == "GROKUTILS_HOME" else {})}):
                for command in (["list"], [*short, "--out", "x"], ["show", "x"]):
                    _refused(found["roots"], command, root, also_fine=command == ["list"])
        with _environment(GROKUTILS_HOME=place):
            analyze_record(train(tiny(steps=10, width=8), "x", progress=False), progress=False)
            (root / "results" / "group").mkdir(parents=True)
            shutil.copytree(root / "runs" / "x", root / "results" / "group" / "y")
            train(tiny(steps=10, width=8, seed=3), "results/another", progress=False)
            for options in (
                ["--steps", "inf"], ["--steps", "nan"], ["--steps", "0.5"], ["--steps", "7777"], ["--to", ""], ["--to", " "],
                ["--to", "/tmp/elsewhere"], ["--to", "group"], ["--to", ".."], ["--to", "../x"], ["--to", "results"],
                ["--to", "another"], ["--to", "~root/x"], ["--to", "a\nb"],
            ):  # fmt: skip
                _refused(found["publishing"], ["publish", "x", *options], root)
    return found


def _count(trials: Trials, name: str, how: str | bool, said: str) -> None:
    if how:
        trials.add(str(how))
    else:
        trials.fail(f"{name}: {said[:200]!r}")


def _refused(trials: Trials, command: list[str], root: Path, also_fine: bool = False) -> None:
    before, there = _listing(root), set(os.listdir("/"))
    said, status = io.StringIO(), 0
    name = " ".join(command)[:60]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="error"):
            status = cli.main(command)
    except SystemExit as error:
        status = error.code
    except BaseException as error:
        return trials.fail(f"{name}: {type(error).__name__}: {error}")
    lines = said.getvalue().splitlines()
    if status == 0:
        return _count(trials, name, also_fine and "nothing to do", "it was taken")
    if made := (_listing(root) - before) | (set(os.listdir("/")) - there):
        return trials.fail(f"{name}: made {sorted(made)[:3]}")
    _count(trials, name, len(lines) == 1 and "one sentence", said.getvalue())
    return None


def _listing(root: Path) -> set[str]:
    """All but what diagnosis adds to a record that is to be published."""
    return {str(path) for path in root.rglob("*") if path.name not in ("diagnostics.parquet", "spectra.parquet", "baselines.parquet", ".lock")}


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# -- memory -------------------------------------------------------------------------------------------------------


def memory(steps: int = 1_000_000) -> dict[str, float]:
    """What a run's process holds after a tenth of its steps and after all of them, in MiB."""
    receive, send = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_alone, args=(_held, send, steps))
    process.start()
    send.close()
    early, late = receive.recv()
    process.join()
    return {"steps": steps, "early_mib": early, "late_mib": late}


def _held(send, steps: int) -> None:
    config = RunConfig.recipe("express", width=16, batch_size=40, batch_order="reshuffle")
    found = []
    with tempfile.TemporaryDirectory() as place:
        for part in (steps // 10, steps):
            train(config.replace(steps=part), Path(place) / "run", threads=1, progress=False)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1))
    send.send(found)


# -- the report ---------------------------------------------------------------------------------------------------

ALL: dict[str, Callable[[], Any]] = {
    "kills": kills, "disk_errors": disk_errors, "flips": flips, "bad_inputs": bad_inputs, "memory": memory,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", choices=[*ALL, []], help="these trials only (default: all)")
    failures = []
    for name in parser.parse_args(argv).which or ALL:
        found = ALL[name]()
        if name != "memory":
            failures += [failure for trials in found.values() for failure in trials.failures]
            found = {kind: vars(trials) for kind, trials in found.items()}
        _bench.save("reliability", _bench.load("reliability") | {name: {"machine": _bench.machine(), "found": found}})
    print("\n".join(failures) or "no failures")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
