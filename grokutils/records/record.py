"""A run on disk: written so that a crash at any moment leaves the last good state, read without pickle.

::

    config.json                 the RunConfig
    metrics.parquet             a row per measured step and member
    checkpoints/step_*.safetensors   weights by their torch.nn names
    state.safetensors           what a later process needs to go on (not in finished reference records)
    provenance.json             how far, complete or not, versions, hardware, wall time, data digests

Every file appears by write-to-temporary, fsync, rename. The state is written last: whatever it says has
been done is already in the other files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import safetensors
import safetensors.numpy
import torch

from grokutils.experiment import models
from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.util import columns, paths

__all__ = ["Record", "RecordError", "find_reference", "list_records", "load_record", "publish"]


# What analysis adds to a record.
_DERIVED = (
    "diagnostics.parquet", "spectra.parquet", "baselines.parquet", "interventions.parquet", "regrowth.parquet"
)  # fmt: skip


class RecordError(RuntimeError):
    """A record cannot be read, written or continued; the message says which file and what to do."""


class Record:
    """A run read from its folder.

    >>> record = load_record("results/express-wd0")          # doctest: +SKIP
    >>> record.metrics[["step", "train_accuracy", "test_accuracy"]]   # doctest: +SKIP
    >>> record.weights(record.steps_saved[-1])["fc1.weight"].shape    # doctest: +SKIP
    (100, 64)

    Parameters
    ----------
    folder : the run's folder
    until : leave out what lies after this step (a run contains every shorter one)
    """

    def __init__(self, folder: Path, until: int | None = None):
        self.folder = Path(folder)
        self.until = until
        self.config = _read_config(self.folder)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "unfinished"
        return f"<Record {self.name}: {self.step:,} steps, {len(self.config.networks)} member(s), {state}>"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, hardware, wall time, data digests and how far the run is."""
        return _read_json(self.folder / "provenance.json", ("step", "complete", "data", "sessions"))

    @property
    def complete(self) -> bool:
        """Whether the run reached the steps asked for."""
        return bool(self.provenance["complete"])

    @property
    def step(self) -> int:
        """Steps taken so far (or `until`)."""
        done = int(self.provenance["step"])
        return done if self.until is None else min(done, self.until)

    @property
    def metrics(self) -> pd.DataFrame:
        """A row per measured step and member: ``step, member, seed, weight_decay``, accuracies (0 to 1)
        and losses on both sets, ``l2_norm`` of all matrices, and ``<layer>_<statistic>`` of each. The transformer
        has margins too, NaN where the record is older than they are."""
        frame = read_parquet(self.folder / "metrics.parquet")
        if self.config.model == "transformer":
            frame = frame.reindex(columns=[*frame, *(name for name in columns.MARGINS if name not in frame)])
        return frame[frame.step <= self.step].reset_index(drop=True)

    @property
    def steps_saved(self) -> list[int]:
        """Steps whose weights are on disk, ascending."""
        found = (self.folder / "checkpoints").glob("step_*.safetensors")
        steps = [int(m[1]) for p in found if (m := re.fullmatch(r"step_(\d+)\.safetensors", p.name))]
        return sorted(s for s in steps if s <= self.step)

    def weights(self, step: int | None = None, member: int = 0) -> dict[str, np.ndarray]:
        """Weights at a saved step (default: the last) by their `torch.nn` names: ``fc1.weight``
        (200, 784) and so on.

        Raises
        ------
        ValueError : a step that was not saved, or a member the run has not got.
        RecordError : a damaged file.
        """
        saved = self.steps_saved
        if not saved:
            raise RecordError(f"{self.folder} has no saved weights.")
        step = saved[-1] if step is None else int(step)
        if step not in saved:
            near = min(saved, key=lambda s: abs(s - step))
            raise ValueError(f"step {step:,} of {self.name} was not saved; the nearest saved one is {near:,}.")
        count = len(self.config.networks)
        if not 0 <= member < count:
            raise ValueError(f"member must be between 0 and {count - 1}; got {member}.")
        arrays, _ = read_tensors(checkpoint_path(self.folder, step))
        if count == 1:
            return arrays
        prefix = f"member{member}/"
        return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

    def model(self, step: int | None = None, member: int = 0) -> torch.nn.Module:
        """The network at a saved step as a plain `torch.nn` module, for any other tool."""
        return self.as_module(self.weights(step, member))

    def diagnose(self, *, harmful: bool = False, inputs: Any = None, **options: Any) -> pd.DataFrame:
        """Diagnose all saved steps and members: the `diagnostics` of `grokutils.records.analysis.analyze_record`, kept
        in the record so that a second call is instant.

        >>> load_record("results/express/wd0").diagnose().verdict.value_counts()         # doctest: +SKIP

        Raises
        ------
        ValueError : `harmful` or `inputs`, which need one network, not a record.
        """
        from grokutils.records.analysis import analyze_record  # which reads records

        if harmful or inputs is not None:
            raise ValueError(
                "harmful=True needs one network: record.model(step, member) gives one, and "
                "'grokutils interventions' intervenes on all that a record keeps."
            )
        return analyze_record(self, **options).diagnostics

    def as_module(self, weights: Mapping[str, np.ndarray]) -> torch.nn.Module:
        """Weights of this run's architecture as a plain `torch.nn` module."""
        return models.as_module(self.config, weights)


def load_record(name: str | os.PathLike, until: int | None = None) -> Record:
    """The record of a run, by its name in ``runs/`` or ``results/`` or by its folder.

    Raises
    ------
    FileNotFoundError : no such record; the message lists those there are.
    RecordError : a damaged one.
    """
    return Record(paths.find_run(name), until)


def list_records() -> list[Path]:
    """Folders of all records in ``runs/`` and ``results/``, by name."""
    bases = (paths.runs_dir(), paths.results_dir())
    return sorted(found.parent for base in bases for found in base.glob("**/config.json"))


def find_reference(config: RunConfig, longer_than: int = 0) -> tuple[Record, int] | None:
    """The longest reference record in ``results/`` that holds the same network, and which member it is.

    Parameters
    ----------
    config : a run of one member
    longer_than : only records with more steps than this count
    """
    wanted = config.networks[0]
    best: tuple[Record, int] | None = None
    for file in sorted(paths.results_dir().glob("**/config.json")):
        candidate = Record(file.parent)
        networks = candidate.config.networks
        if wanted not in networks or candidate.step <= longer_than:
            continue
        alone = candidate.config.replace(members=None, seed=wanted.seed, weight_decay=wanted.weight_decay)
        if alone.identity == config.identity and (best is None or candidate.step > best[0].step):
            best = candidate, networks.index(wanted)
    return best


def publish(source: Record, target: Path, steps: Iterable[int]) -> Record:
    """Copy a record, compactly: everything but the weights of steps other than `steps`. The resumable
    state goes along only while the run is unfinished. Onto itself, the record is thinned out in place.

    Raises
    ------
    RecordError : `source` is being trained at this moment, or damaged.
    ValueError : a step was not saved.
    """
    steps = set(steps)
    if missing := sorted(steps - set(source.steps_saved)):
        raise ValueError(f"step {missing[0]:,} of {source.name} was not saved.")
    in_place = target.resolve() == source.folder.resolve()
    keep = [Path("config.json"), Path("metrics.parquet"), Path("provenance.json")]
    keep += [Path(name) for name in _DERIVED if (source.folder / name).is_file()]
    keep += [checkpoint_path(Path(), step) for step in sorted(steps)]
    if not source.complete:
        keep.append(Path("state.safetensors"))
    with locked(source.folder):
        with contextlib.nullcontext() if in_place else locked(target):
            if not in_place:
                for name in keep:
                    write_atomic(target / name, (source.folder / name).read_bytes())
            for old in [*(target / "checkpoints").glob("*.safetensors"), target / "state.safetensors"]:
                if old.relative_to(target) not in keep:
                    old.unlink(missing_ok=True)
    return Record(target)


# -- writing ------------------------------------------------------------------------------------------------


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file's content, whole or not at all.

    Raises
    ------
    RecordError : the disk is full or the folder cannot be written; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "there is no space left" if full else (error.strerror or str(error))
        raise RecordError(
            f"{path} could not be written: {why}. What was there before is intact; "
            "make room and run the same command again to go on."
        ) from error
    if hasattr(os, "O_DIRECTORY"):  # make the rename itself durable
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    write_atomic(path, frame.to_parquet(None, index=False, compression="zstd"))


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Arrays in safetensors form, with a digest of their bytes among the metadata."""
    arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    content = safetensors.numpy.save(arrays, {**metadata, "sha256": _digest(arrays)})
    write_atomic(path, content)


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a file `write_tensors` wrote.

    Raises
    ------
    RecordError : not such a file, cut short, or altered.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise RecordError(f"{path} is missing.") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise RecordError(f"{path} is damaged or no safetensors file ({error}).") from None
    if metadata.get("sha256") != _digest(arrays):
        raise RecordError(f"{path} is damaged: its content does not match its checksum.")
    return arrays, metadata


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step_{step:08d}.safetensors"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process alone; the lock goes with the process, however it ends. A folder
    in which nothing came to be is removed again.

    Raises
    ------
    RecordError : another process holds it, or it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"{folder} cannot be made: {error.strerror}.") from error
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RecordError(f"{folder} is in use: another process is training this run.") from None
    except OSError as error:
        raise RecordError(f"{folder} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        with suppress(OSError):
            if os.listdir(folder) == [".lock"]:
                (folder / ".lock").unlink()
                folder.rmdir()
        lock.release()


# -- reading ------------------------------------------------------------------------------------------------


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        a = arrays[name]
        digest.update(f"{name} {a.dtype.str} {a.shape}".encode())
        digest.update(np.ascontiguousarray(a).view(np.uint8).data if a.size else b"")
    return digest.hexdigest()


def _read_json(path: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{path} is missing.") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is damaged ({error}).") from None
    if not isinstance(value, dict) or any(key not in value for key in needed):
        raise RecordError(f"{path} is damaged: it is no object with {', '.join(needed) or 'names'}.")
    return value


def _read_config(folder: Path) -> RunConfig:
    path = folder / "config.json"
    try:
        return RunConfig.from_dict(_read_json(path))
    except (ConfigError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is not a configuration of this version ({error}).") from None


def read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise RecordError(f"{path} is missing.") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is damaged ({error}).") from None
