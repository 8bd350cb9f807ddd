"""A run on disk, and how it is read.

::

    config.json                 the RunConfig
    metrics.parquet             a row per measured step and member
    checkpoints/step_*.safetensors   weights by their torch.nn names
    state.safetensors           what a later process needs to go on (not in finished reference records)
    provenance.json             how far, complete or not, versions, hardware, wall time, data digests

Every file says which run it belongs to, and reading checks it (`grokutils.records.files` writes and reads them). The
provenance is written last: as far as it says the run is, all the other files are.
"""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from grokutils.experiment import models
from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.experiment.traits import model_traits
from grokutils.records import files
from grokutils.records.files import RecordError
from grokutils.util import columns, paths

__all__ = ["FORMAT", "Record", "RecordError", "Unmarked", "find_reference", "list_records", "load_record", "publish"]

#: Of the records written now: all their files carry marks of their run.
FORMAT = 2

# What analysis adds to a record.
DERIVED = (
    "diagnostics.parquet", "spectra.parquet", "baselines.parquet", "interventions.parquet", "regrowth.parquet"
)  # fmt: skip

# Columns of the metrics of any network.
_METRICS = (
    "step", "member", "seed", "weight_decay", "train_accuracy", "train_loss", "test_accuracy", "test_loss", "l2_norm"
)  # fmt: skip


class Unmarked(UserWarning):
    """A record of an earlier version, whose files do not say which run they belong to."""


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
        """Versions, hardware, wall time, data digests and how far the run is.

        Raises
        ------
        RecordError : a damaged file, or that of another run.
        """
        return read_provenance(self.folder, self.config)

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
        provenance = self.provenance
        frame = self._stored("metrics")
        path = self.folder / "metrics.parquet"
        if lost := [name for name in _METRICS if name not in frame or frame[name].dtype.kind not in "iuf"]:
            raise RecordError(f"{path} is damaged: it has no column of numbers {lost[0]!r}.")
        networks = self.config.networks
        whose = pd.DataFrame([vars(network) for network in networks]).reindex(frame.member)
        if not all(np.array_equal(whose[name], frame[name]) for name in whose):
            raise RecordError(f"{path} belongs to another run: its seeds or weight decays are not those of config.json.")
        if frame.attrs.get("grokutils", {}).get("step", math.inf) < provenance["step"]:
            raise RecordError(f"{path} is of an earlier time of this run: it does not reach step {provenance['step']:,}.")
        if model_traits(self.config.model).margins:
            frame = frame.reindex(columns=[*frame, *(name for name in columns.MARGINS if name not in frame)])
        return _filled(frame[frame.step <= self.step].reset_index(drop=True), "metrics")

    def table(self, name: str) -> pd.DataFrame:
        """The table ``<name>.parquet`` of this record, if it belongs to this run. What the version that wrote it had
        no column for (`grokutils.util.columns.stored`) is NaN.

        Raises
        ------
        RecordError : no such file, a damaged one, or one of another run.
        """
        frame = self._stored(name)
        if lost := [key for key in ("step", "member") if key not in frame]:
            raise RecordError(f"{self.folder / name}.parquet is damaged: it has no column {lost[0]!r}.")
        return _filled(frame, name)

    def _stored(self, name: str) -> pd.DataFrame:
        path = self.folder / f"{name}.parquet"
        frame = files.read_parquet(path)
        identity = frame.attrs.get("grokutils", {}).get("identity")
        self._check_marks(path, identity, "sha256" in frame.attrs)
        return frame

    def _check_marks(self, path: Path, identity: str | None, whole: bool = True) -> None:
        """Refuse a file of another run; `identity` is what the file says, None if it says nothing."""
        if identity not in (None, self.config.identity):
            raise RecordError(f"{path} belongs to another run than {self.folder / 'config.json'}; move it away.")
        if identity is not None and whole:
            return
        if self._all_marked():
            raise RecordError(f"{path} does not say which run it belongs to, and all files of this record do; move it away.")
        if not self.folder.resolve().is_relative_to(paths.results_dir().resolve()):  # those are under version control
            _warn_once(self.folder)

    def _all_marked(self) -> bool:
        """Whether it was written by a version that marks all files."""
        there = files.is_file(self.folder / "provenance.json")
        return there and self.provenance.get("format", 1) >= FORMAT

    @property
    def steps_saved(self) -> list[int]:
        """Steps whose weights are on disk, ascending."""
        found = files.names_in(self.folder / "checkpoints")
        steps = [int(m[1]) for name in found if (m := re.fullmatch(r"step_(\d+)\.safetensors", name))]
        done = self.step
        return sorted(s for s in steps if s <= done)

    def weights(self, step: int | None = None, member: int = 0, *, buffers: bool = False) -> dict[str, np.ndarray]:
        """Weights at a saved step (default: the last) by their `torch.nn` names: ``fc1.weight``
        (200, 784) and so on. With ``buffers`` also what a network holds besides, such as the running means of batch
        normalisation, after ``buffer/``.

        Raises
        ------
        ValueError : a step that was not saved, or a member the run has not got.
        RecordError : a damaged file, or one of another run or step.
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
        path = checkpoint_path(self.folder, step)
        arrays, metadata = files.read_tensors(path)
        self._check_marks(path, metadata.get("identity"))
        if metadata.get("step", str(step)) != str(step):
            raise RecordError(f"{path} holds the weights of step {metadata['step']}, not of step {step}; move it away.")
        prefix = "" if count == 1 else f"member{member}/"
        own = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
        return {name: a for name, a in own.items() if buffers or not name.startswith(models.BUFFER)}

    def model(self, step: int | None = None, member: int = 0) -> torch.nn.Module:
        """The network at a saved step as a plain `torch.nn` module, for any other tool."""
        return self.as_module(self.weights(step, member, buffers=True))

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
        """Weights of this run's architecture, with its buffers, as a plain `torch.nn` module.

        Raises
        ------
        DataError : the code of a network of the user's own is not at hand.
        """
        return models.as_module(self.config, weights)


def _filled(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    known = columns.stored(name)
    return frame.reindex(columns=[*known, *(column for column in frame if column not in known)])


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
    RecordError : `source` is being trained at this moment, or damaged, or `target` is no place for it.
    ValueError : a step was not saved, or is no whole number.
    """
    steps = {_whole(step) for step in steps}
    if missing := sorted(steps - set(source.steps_saved)):
        raise ValueError(f"step {missing[0]:,} of {source.name} was not saved.")
    in_place = target.resolve() == source.folder.resolve()
    files.check_target(target)
    if files.is_file(target / "config.json") and _read_config(target).identity != source.config.identity:
        raise RecordError(f"{target} holds another run; choose another name.")
    keep = [Path("config.json"), Path("metrics.parquet")]
    keep += [Path(name) for name in DERIVED if files.is_file(source.folder / name)]
    keep += [checkpoint_path(Path(), step) for step in sorted(steps)]
    if not source.complete and (source.folder / "state.safetensors").is_file():
        keep.append(Path("state.safetensors"))
    keep.append(Path("provenance.json"))
    with files.locked(source.folder):
        with contextlib.nullcontext() if in_place else files.locked(target):
            if not in_place:
                for name in keep:
                    files.write_atomic(target / name, files.read_bytes(source.folder / name))
            for old in [*(target / "checkpoints").glob("*.safetensors"), target / "state.safetensors"]:
                if old.relative_to(target) not in keep:
                    old.unlink(missing_ok=True)
    return Record(target)


def _whole(step: Any) -> int:
    if isinstance(step, bool) or not isinstance(step, numbers.Real) or not math.isfinite(step) or int(step) != step:
        raise ValueError(f"steps must be whole numbers; got {step!r}.")
    return int(step)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step_{step:08d}.safetensors"


def read_provenance(folder: Path, config: RunConfig) -> dict[str, Any]:
    """What ``provenance.json`` says of a run of this configuration.

    Raises
    ------
    RecordError : no such file, a damaged one, or that of another run.
    """
    path = folder / "provenance.json"
    found = files.read_json(path, ("step", "complete", "data", "sessions"))
    if found.get("identity", config.identity) != config.identity:
        raise RecordError(f"{path} belongs to another run than {folder / 'config.json'}; move it away.")
    return found


def _read_config(folder: Path) -> RunConfig:
    path = folder / "config.json"
    try:
        return RunConfig.from_dict(files.read_json(path))
    except (ConfigError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is not a configuration of this version ({error}).") from None


@functools.cache
def _warn_once(folder: Path) -> None:
    warnings.warn(
        f"{folder} was written by an earlier version: not all of its files say which run they belong to, so they are "
        "read unchecked.", Unmarked, stacklevel=5,
    )  # fmt: skip
