"""Every weight matrix of a large model, experts one by one, with one matrix in memory at a time.

>>> rng = np.random.default_rng(0)
>>> model = {"layers.0.mlp.experts.up_proj": rng.normal(size=(4, 300, 200)), "lm_head.weight": rng.normal(size=(90, 60))}
>>> table = scan(model, progress=False)
>>> table[["layer", "kind", "block", "expert", "traps"]].values.tolist()[3:]
[['layers.0.mlp.experts.up_proj[3]', 'expert', 0, 3, 0.0], ['lm_head', 'head', -1, -1, 0.0]]

With ``out="model.parquet"`` every row is on the disk before the next matrix is read, in ``model.parquet.journal``; whatever
ends the scan, the same call goes on after the last row. The parquet itself is written at the end, in one step.

Traps are counted by `grokutils.spectra.counting`, alpha is fitted to all eigenvalues.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.linalg
import torch
from filelock import FileLock, Timeout
from threadpoolctl import threadpool_limits

from grokutils.spectra.alpha import CUTOFF, fit_power_law
from grokutils.spectra.arrays import NotMeasured, numbers
from grokutils.spectra.baselines import effective_rank
from grokutils.spectra.counting import SMALL, as_real_matrix, count_without_spectra, gram_spectrum, row_blocks
from grokutils.spectra.layers import Layer, NotALayer, Survey, survey
from grokutils.spectra.matrix import Options, alpha_columns
from grokutils.spectra.traps import count_traps
from grokutils.spectra.verdict import verdict
from grokutils.util.checks import Interval
from grokutils.util.memory import available_memory, is_out_of_memory, size_in_words
from grokutils.util.progress import tqdm

__all__ = ["KINDS", "Plan", "ScanStopped", "kind_of", "plan", "read_scan", "scan", "stack_of"]


class ScanStopped(OSError):
    """A scan that could not go on; what it had measured is kept."""


# -- what a layer is ------------------------------------------------------------------------------------------

#: What a matrix does in a network, by its name: the first pattern that is found.
KINDS = {
    "router": r"router|(^|[._])gate$|switch",
    "expert": r"expert|_exps(\[|\.|$)",
    "embedding": r"embed|embd|(^|[._])w[tp]e$",
    "head": r"lm_head|^output$|unembed|classifier|(^|[._])score$",
    "attention": r"attn|attention|(^|[._])(q|k|v|o|query|key|value|qkv)(_proj)?($|[._])",
    "mlp": r"mlp|ffn|feed_forward|(^|[._])(gate|up|down)_proj$|(^|[._])(w[123]|fc\w*|dense\w*)$",
}
_BLOCK = re.compile(r"(?:^|[._])(?:layers?|h|blocks?|blk|layer_module|resblocks)[._](\d+)(?:[._]|$)")
_EXPERT = re.compile(r"\[(\d+)\]$|experts?[._](\d+)(?:[._]|$)")


def kind_of(name: str, note: str = "") -> str:
    """What a layer does: one of `KINDS`, "convolution" or "other".

    >>> [kind_of(name) for name in ("model.layers.3.self_attn.q_proj", "blk.0.ffn_down_exps[5]", "model.norm")]
    ['attention', 'expert', 'other']
    """
    if " read as " in note:
        return "convolution"
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")


@dataclass(frozen=True)
class _Task:
    """One matrix to be measured, and where in the model it stands."""

    place: int
    layer: Layer
    kind: str
    #: Number of its block and of the expert; -1 where there is none.
    block: int
    expert: int
    #: Experts side by side with it.
    experts: int

    @property
    def sides(self) -> tuple[int, int]:
        return self.layer.sides if all(self.layer.sides) else (1, max(self.layer.size, 1))


def _tasks(found: Survey) -> list[_Task]:
    parts = []
    for place, layer in enumerate(found.layers):
        kind = kind_of(layer.name, layer.note)
        block, expert = _BLOCK.search(layer.name), _EXPERT.search(layer.name) if kind == "expert" else None
        number = int(next(n for n in expert.groups() if n)) if expert else -1
        parts.append((place, layer, kind, int(block[1]) if block else -1, number))
    stacks = pd.Series([stack_of(layer.name) if expert >= 0 else "" for _, layer, _, _, expert in parts], dtype=str)
    sizes = stacks.map(stacks.value_counts()).where(stacks != "", 0)
    return [_Task(*part, int(size)) for part, size in zip(parts, sizes, strict=True)]


def stack_of(name: str) -> str:
    """The name of an expert with its number left out.

    >>> stack_of("layers.0.experts.7.w1")
    'layers.0.experts.*.w1'
    """
    found = _EXPERT.search(name)
    if found is None:
        return name
    first, last = next(span for span in (found.span(1), found.span(2)) if span[0] >= 0)
    return f"{name[:first]}*{name[last:]}"


def _selected(tasks: list[_Task], layers: str | None, kinds: str | None, sample: int, seed: int) -> list[_Task]:
    if kinds is not None:
        asked = {kind.strip() for kind in kinds.split(",")}
        if unknown := sorted(asked - {task.kind for task in tasks}):
            there = ", ".join(sorted({task.kind for task in tasks}))
            raise ValueError(f"kinds must be some of {there}, which this model has; got {', '.join(unknown)}.")
        tasks = [task for task in tasks if task.kind in asked]
    if layers is not None:
        tasks = _named(tasks, layers)
    if sample:
        keep: set[int] = set()
        stacks: dict[str, list[_Task]] = {}
        for task in tasks:
            if task.expert < 0:
                keep.add(task.place)
            else:
                stacks.setdefault(stack_of(task.layer.name), []).append(task)
        for name, stack in stacks.items():
            digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
            chosen = np.random.default_rng([seed, digest]).permutation(len(stack))[:sample]
            keep |= {stack[i].place for i in chosen}
        tasks = [task for task in tasks if task.place in keep]
    return tasks


def _named(tasks: list[_Task], layers: str) -> list[_Task]:
    """By the numbers of blocks, such as 0-3,10, or by a pattern of names, such as *.self_attn.*"""
    if re.fullmatch(r"[\d,\s-]+", layers):
        wanted: set[int] = set()
        for part in layers.split(","):
            span = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
            if span is None:
                raise ValueError(f"layers must be numbers of blocks such as 0-3,10, or a pattern of names; got {layers!r}.")
            wanted |= set(range(int(span[1]), int(span[2] or span[1]) + 1))
        chosen = [task for task in tasks if task.block in wanted]
    else:
        chosen = [task for task in tasks if fnmatchcase(task.layer.name, layers)]
    if not chosen:
        names = [task.layer.name for task in tasks]
        raise ValueError(f"layers={layers!r} is none of the {len(names)} layers, such as {', '.join(names[:3])}.")
    return chosen


# -- one matrix -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What the numbers in a row depend on."""

    shuffles: int
    seed: int
    cutoff: float | str
    exact: bool

    def __post_init__(self) -> None:
        for name in ("shuffles", "seed"):
            object.__setattr__(self, name, Interval(int, 0).check(name, getattr(self, name)))
        fit_power_law([1.0], cutoff=self.cutoff)  # knows what a cutoff is


_TEXTS = ("layer", "kind", "dtype", "note", "counted_by", "alpha_reason", "traps_reason", "verdict", "reason")
_WHOLE = ("block", "expert", "experts", "rows", "columns", "n_tail", "erg_count")
_COLUMNS = (
    "layer", "kind", "block", "expert", "experts", "rows", "columns", "dtype", "note", "alpha", "alpha_sigma", "xmin", "D", "n_tail",
    "alpha_clipped", "alpha_hat", "stable_rank", "erg_count", "erg_gap", "traps", "traps_std", "trap_strength", "sigma_mp",
    "sigma_error", "counted_by", "spikes", "spikes_sigma_mp", "max_over_std", "kurtosis", "mean_over_std", "zeros", "spectral_norm",
    "effective_rank", "l2_norm", "alpha_reason", "traps_reason", "verdict", "reason",
)  # fmt: skip


def _measured(read: Callable[[], Any], name: str, settings: _Settings, dtype: str) -> dict[str, Any]:
    A = as_real_matrix(numbers(read()), name)
    shape = A.shape
    row: dict[str, Any] = {"rows": shape[0], "columns": shape[1]} | _entries(A)
    if settings.shuffles:
        found = count_without_spectra(A, settings.seed, settings.shuffles, settings.exact)
        row |= {
            "traps": found.mean, "traps_std": found.std, "trap_strength": _mean(found.strength), "sigma_mp": found.sigma_mp,
            "sigma_error": found.sigma_error, "counted_by": found.way, "traps_reason": found.reason,
        }  # fmt: skip
    else:
        row["traps_reason"] = "shuffles=0"
    held = [A]
    del A  # the Gram matrix is all that is needed from here
    eigenvalues = gram_spectrum(lambda: held.pop() if held else numbers(read()), settings.cutoff)
    own = count_traps(eigenvalues, shape)
    singular = np.sqrt(eigenvalues)
    return row | alpha_columns(eigenvalues, Options(cutoff=settings.cutoff), dtype) | {
        "spikes": own.mean,
        "spikes_sigma_mp": float(own.sigma_mp[0]),
        "spectral_norm": float(singular[-1]),
        "effective_rank": effective_rank(singular),
        "l2_norm": float(np.sqrt(eigenvalues.sum())),
    }


def _mean(values: np.ndarray) -> float:
    good = values[~np.isnan(values)]
    return float(good.mean()) if good.size else math.nan


def _entries(A: np.ndarray) -> dict[str, float]:
    """The controls of `grokutils.spectra.baselines.weight_controls` that depend on the entries alone, block by block."""
    mean = sum(float(rows.sum(dtype=np.float64)) for rows in row_blocks(A)) / A.size
    low, high = float(A.min()), float(A.max())
    largest = max(high - mean, mean - low)
    zeros = sum(int(np.count_nonzero(rows == 0)) for rows in row_blocks(A)) / A.size
    out = dict.fromkeys(("max_over_std", "kurtosis", "mean_over_std"), math.nan) | {"zeros": zeros}
    if low == high or not largest > 0:
        return out
    second = fourth = 0.0
    for rows in row_blocks(A):
        squares = np.square((rows.astype(np.float64) - mean) / largest)
        second += float(squares.sum())
        fourth += float(np.vdot(squares, squares))
    std = math.sqrt(second / A.size)
    return out | {"max_over_std": 1.0 / std, "kurtosis": fourth / A.size / std**4, "mean_over_std": mean / largest / std}


def _row(task: _Task, settings: _Settings) -> dict[str, Any]:
    """The row of one matrix; of one that has no finite numbers, NaN with the reason."""
    layer = task.layer
    row: dict[str, Any] = {name: "" if name in _TEXTS else 0 if name in _WHOLE else math.nan for name in _COLUMNS}
    row |= {"layer": layer.name, "kind": task.kind, "block": task.block, "expert": task.expert, "experts": task.experts}
    row |= {"rows": task.layer.sides[0], "columns": task.layer.sides[1], "dtype": layer.dtype, "note": layer.note}
    try:
        row |= _measured(layer.read, layer.name, settings, layer.dtype)
    except NotALayer as why:
        return {"not_measured": NotMeasured(layer.name, layer.shape, layer.dtype, str(why)).as_dict(), "size": layer.size}
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise ScanStopped(f"the memory is too small for {layer.name}, {task.sides[0]} x {task.sides[1]}.") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        row |= {"alpha_reason": reason, "traps_reason": reason}
    row["verdict"], row["reason"] = verdict(row)
    return row


# -- estimates ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a scan would do, how long it would take on this machine, and what memory it needs."""

    matrices: int
    parameters: int
    by_kind: dict[str, int]
    seconds: float
    bytes: int
    largest: str
    jobs: int

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.by_kind.items())
        there = available_memory()
        short = f" This machine has {size_in_words(there)}." if there is not None and there < self.bytes else ""
        return (
            f"{self.matrices:,} matrices of {self.parameters:,} parameters ({kinds}); about {_duration(self.seconds)} with "
            f"{self.jobs} job{'s' if self.jobs > 1 else ''}, and {size_in_words(self.bytes)} of memory, most of it for "
            f"{self.largest}.{short}"
        )


def plan(source: Any, *, layers=None, kinds=None, sample: int = 0, shuffles: int = 1, seed: int = 0, jobs: int = 1) -> Plan:
    """The estimate for `scan` with the same arguments; a tenth of a second of arithmetic is timed for it.

    >>> plan({"lm_head.weight": np.ones((90, 60))}).by_kind
    {'head': 1}
    """
    sample, jobs = int(Interval(int, 0).check("sample", sample)), int(Interval(int, 1).check("jobs", jobs))
    tasks = _selected(_tasks(survey(source)), layers, kinds, sample, seed)
    return _planned(tasks, _Settings(shuffles, seed, CUTOFF, False).shuffles, jobs, _rate())


def _planned(tasks: list[_Task], shuffles: int, jobs: int, rate: float) -> Plan:
    costs = [_seconds(task.sides, shuffles, rate) for task in tasks]
    sizes = sorted((_bytes(task.sides), task.layer.name, task.sides) for task in tasks)
    kinds = pd.Series([task.kind for task in tasks], dtype=str).value_counts()
    _, name, sides = sizes[-1] if sizes else (0, "nothing", (0, 0))
    return Plan(
        matrices=len(tasks),
        parameters=sum(task.layer.size for task in tasks),
        by_kind={str(kind): int(count) for kind, count in kinds.items()},
        seconds=sum(costs) / jobs,
        bytes=_PROCESS * (jobs + (jobs > 1)) + sum(size for size, _, _ in sizes[-jobs:]),
        largest=f"{name}, {sides[0]:,} x {sides[1]:,}",
        jobs=jobs,
    )


_PROCESS = 350 << 20  # Python with torch, before any weights


def _rate() -> float:
    """Floating-point operations a second in float64, of one thread: the most in a few tries, as others may be at work."""
    A = np.random.default_rng(0).normal(size=(768, 768))
    best = math.inf
    with threadpool_limits(1):
        for _ in range(12):
            began = time.perf_counter()
            scipy.linalg.blas.dsyrk(1.0, A)
            best = min(best, time.perf_counter() - began)
    return A.shape[0] ** 3 / best


def _seconds(sides: tuple[int, int], shuffles: int, rate: float) -> float:
    """From the operations of each step; the factors are those of `benchmarks.counting`."""
    N, M = max(sides), min(sides)
    if M < SMALL:
        return (1 + shuffles) * (6.0 * N * M * M / rate + 3e-8 * N * M) + 1e-3
    return (N * M * M + 3.0 * M**3 + shuffles * (0.5 * N * M * M + 0.5 * M**3 + 1500.0 * N * M)) / rate


def _bytes(sides: tuple[int, int]) -> int:
    """The matrix, its shuffled copy and two Gram matrices in float32; or three in float64, of which one is the solver's."""
    N, M = max(sides), min(sides)
    return max(8 * N * M + 8 * M * M, 4 * N * M + 10 * M * M, 24 * M * M) + (64 << 20)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 1):.0f} seconds"


# -- what is kept ---------------------------------------------------------------------------------------------


class _Journal:
    """Rows on the disk, one line of JSON each, after a line that says of what and how they were measured."""

    def __init__(self, out: Path, header: dict[str, Any]):
        self.out, self.path = out, out.with_name(f"{out.name}.journal")
        self.entries: dict[int, dict[str, Any]] = {}
        line = json.dumps(header)
        try:
            raw = self.path.read_bytes() if self.path.exists() else b""
            whole = raw[: raw.rfind(b"\n") + 1]  # a line that a kill has cut is measured again
            lines = whole.decode().splitlines()
            if lines and lines[0] != line:
                raise ValueError(f"{self.path} holds a scan {_difference(json.loads(lines[0]), header)}; name another file.")
            for text in lines[1:]:
                entry = json.loads(text)
                self.entries[entry["place"]] = entry
            self._file = open(self.path, "r+b" if raw else "wb", buffering=0)
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
            if not lines:
                self._write(line)
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is no journal of a scan ({type(error).__name__}); remove it or name another file.") from None

    def _write(self, line: str) -> None:
        end = self._file.tell()
        try:
            rest = line.encode() + b"\n"
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise ScanStopped(f"{self.path} cannot be written ({error.strerror or error}){self.kept()}.") from None

    def append(self, place: int, entry: dict[str, Any]) -> None:
        self._write(json.dumps({"place": place} | entry))
        self.entries[place] = entry

    def kept(self) -> str:
        return f"; {len(self.entries)} matrices are kept in {self.path.name}, and the same command goes on from there"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """In what two scans differ, for a message."""
    for name in ("settings", "selection"):
        for key, value in old.get(name, {}).items():
            if value != new[name].get(key):
                return f"with {key}={value!r}, not {new[name].get(key)!r}"
    if old.get("files") != new["files"]:
        return "of files that have changed since, or of another model"
    return "of another model"


def _header(source: Any, found: Survey, settings: _Settings, selection: dict[str, Any]) -> dict[str, Any]:
    names = "\n".join(f"{layer.name} {layer.sides} {layer.dtype}" for layer in found.layers)
    return {
        "scan": 1,
        "layers": hashlib.sha256(names.encode()).hexdigest(),
        "files": _stamps(source),
        "settings": asdict(settings),
        "selection": selection,
    }


_WEIGHTS = {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".npy", ".onnx", ".json"}


def _stamps(source: Any) -> dict[str, list[int]]:
    """Size and time of every file that weights may come from."""
    if not isinstance(source, (str, os.PathLike)):
        return {}
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    whole = path.is_dir() or path.suffix == ".json"
    files = sorted(p for p in folder.iterdir() if p.suffix in _WEIGHTS and p.is_file()) if whole else [path]
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


_KEY = b"grokutils scan"


def _save(frame: pd.DataFrame, out: Path) -> None:
    """Written whole, beside, and then put in its place; what pandas does not keep of a table goes into the file's metadata."""
    held = pa.Table.from_pandas(pd.DataFrame(frame.to_dict("list")), preserve_index=False)
    held = held.replace_schema_metadata({**(held.schema.metadata or {}), _KEY: json.dumps(frame.attrs).encode()})
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        pq.write_table(held, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def read_scan(path: str | os.PathLike) -> pd.DataFrame:
    """The table in a parquet file that `scan` wrote, with what it says was not measured in ``attrs``.

    Raises
    ------
    ValueError : another file.
    FileNotFoundError : no such file.
    """
    try:
        held = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no table of a scan ({' '.join(str(error).split())[:80]}).") from None
    about = (held.schema.metadata or {}).get(_KEY)
    if about is None:
        raise ValueError(f"{path} is no table of a scan, but another.")
    frame = held.to_pandas()
    frame.attrs = json.loads(about)
    return frame


# -- the scan -------------------------------------------------------------------------------------------------


def scan(
    source: Any,
    out: str | os.PathLike | None = None,
    *,
    layers: str | None = None,
    kinds: str | None = None,
    sample: int = 0,
    shuffles: int = 1,
    seed: int = 0,
    cutoff: float | str = CUTOFF,
    exact: bool = False,
    jobs: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Alpha and traps of every weight matrix, however large the model is.

    Parameters
    ----------
    source : the folder of a model, a file of weights, an index of shards, or anything else that
        `grokutils.spectra.layers.find_layers` reads
    out : parquet file of the table; rows are kept as they are measured, and the same call goes on where it was stopped
    layers : only these: numbers of blocks such as ``"0-3,10"``, or a pattern of names such as ``"*.self_attn.*"``
    kinds : only these, such as ``"expert,attention"``; see `kind_of`
    sample : measure this many experts of each stack, drawn at random; 0 measures all of them
    shuffles : random placements of each matrix's entries in which traps are counted; 0 leaves traps out
    seed : of the placements and of the sample
    cutoff : as of `grokutils.spectra.alpha.fit_power_law`
    exact : count traps from all eigenvalues (`grokutils.spectra.counting.count_without_spectra`)
    jobs : processes, of one thread each; each holds one matrix. With 1 the matrices are measured in this process
    progress : show a progress bar

    Returns
    -------
    DataFrame, a row a matrix, in the order of the source; columns as those of `grokutils.diagnose`, and ``kind``; ``block``, ``expert``
    and ``experts`` (numbers of the block and of the expert, -1 without, and how many experts there are in its stack); ``dtype`` as
    stored; ``sigma_error`` and ``counted_by`` (`grokutils.spectra.counting.TrapCount`). ``attrs["not_measured"]`` and
    ``attrs["parameters"]`` as there.

    Raises
    ------
    ValueError : nothing to measure, options without meaning, a file ``out`` that holds another scan.
    ScanStopped : files that changed while they were read, a full disk, a process that died: what was measured is kept.
    """
    settings = _Settings(shuffles, seed, cutoff, bool(exact))
    sample, jobs = int(Interval(int, 0).check("sample", sample)), int(Interval(int, 1).check("jobs", jobs))
    if jobs > 1 and not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"jobs must be 1 for a model that is in memory; got {jobs}.")
    found = survey(source)
    tasks = _selected(_tasks(found), layers, kinds, sample, seed)
    if not tasks:
        raise ValueError("source must hold a weight matrix: a floating-point array of two or more dimensions; it has none.")
    header = _header(source, found, settings, {"layers": layers, "kinds": kinds, "sample": sample})
    if out is None:
        entries: dict[int, dict[str, Any]] = {}
        for place, entry in _measure(source, tasks, settings, jobs, progress, header["files"]):
            entries[place] = entry
        return _table(found, tasks, entries, header)
    path = Path(out).expanduser()
    if not path.parent.is_dir():
        raise ValueError(f"the folder of {path} must exist.")
    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ScanStopped(f"another scan is writing {path}.") from None
    try:
        return _kept(source, found, tasks, settings, header, path, jobs, progress)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _kept(source, found, tasks, settings, header, path: Path, jobs: int, progress: bool) -> pd.DataFrame:
    if path.exists():
        frame = read_scan(path)
        if frame.attrs["scan"] != header:
            raise ValueError(f"{path} holds a scan {_difference(frame.attrs['scan'], header)}; name another file.")
        path.with_name(f"{path.name}.journal").unlink(missing_ok=True)
        return frame
    try:
        journal = _Journal(path, header)
    except OSError as error:
        if isinstance(error, ScanStopped):
            raise
        raise ScanStopped(f"{path} cannot be written ({error.strerror or error}).") from None
    try:
        todo = [task for task in tasks if task.place not in journal.entries]
        try:
            for place, entry in _measure(source, todo, settings, jobs, progress, header["files"]):
                journal.append(place, entry)
        except ScanStopped as error:
            said = str(error)
            raise error if journal.path.name in said else ScanStopped(said.rstrip(".") + journal.kept() + ".") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted{journal.kept()}.") from None
        frame = _table(found, tasks, journal.entries, header)
        try:
            _save(frame, path)
        except OSError as error:
            raise ScanStopped(f"{path} cannot be written ({error.strerror or error}){journal.kept()}.") from None
    finally:
        journal.close()
    journal.path.unlink()
    return frame


def _table(found: Survey, tasks: list[_Task], entries: dict[int, dict[str, Any]], header: dict[str, Any]) -> pd.DataFrame:
    rows = [entries[task.place] for task in tasks]
    masks = [entry for entry in rows if "not_measured" in entry]
    good = [entry for entry in rows if "not_measured" not in entry]
    frame = pd.DataFrame({name: [row[name] for row in good] for name in _COLUMNS})
    frame = frame.astype({name: str if name in _TEXTS else "int64" if name in _WHOLE else "float64" for name in _COLUMNS})
    left = [entry["not_measured"] for entry in masks]
    asked = sum(task.layer.size for task in tasks)
    aside = sum(entry["size"] for entry in masks)
    frame.attrs["not_measured"] = [entry.as_dict() for entry in found.not_measured] + left
    frame.attrs["parameters"] = {"measured": asked - aside, "not_measured": found.measured + found.missing - asked + aside}
    frame.attrs["not_asked_for"] = len(found.layers) - len(tasks)
    frame.attrs["scan"] = json.loads(json.dumps(header))
    if found.note:
        frame.attrs["note"] = found.note
    return frame


def _measure(source, tasks, settings, jobs, progress, files) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as they are ready, with their places."""
    costs = {task.place: _seconds(task.sides, settings.shuffles, 4e10) for task in tasks}
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=sum(costs.values()), desc="matrices", delay=3, disable=not progress, bar_format=form, smoothing=0.05) as bar:
        done = 0
        for task, entry in _in_turn(tasks, settings) if jobs == 1 else _side_by_side(str(source), tasks, settings, jobs):
            if entry.get("alpha_reason") and _stamps_or_none(source) != files:
                raise ScanStopped(f"the files of {source} have changed while they were read: {entry['alpha_reason']}")
            yield task.place, entry
            done += 1
            bar.set_postfix_str(f", {done} of {len(tasks)}, {task.layer.name[-40:]}", refresh=False)
            bar.update(costs[task.place])


def _stamps_or_none(source: Any) -> dict[str, list[int]] | None:
    try:
        return _stamps(source)
    except OSError:
        return None


def _in_turn(tasks: list[_Task], settings: _Settings) -> Iterator[tuple[_Task, dict[str, Any]]]:
    for task in tasks:
        yield task, _row(task, settings)


_WORKER: dict[int, _Task] = {}


def _start_worker(source: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it says what was kept
    torch.set_num_threads(1)
    threadpool_limits(1)
    _WORKER.update({task.place: task for task in _tasks(survey(source))})


def _work(place: int, settings: _Settings) -> dict[str, Any]:
    return _row(_WORKER[place], settings)


def _side_by_side(source: str, tasks, settings, jobs: int) -> Iterator[tuple[_Task, dict[str, Any]]]:
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (source,)) as pool:
        try:
            waiting = {pool.submit(_work, task.place, settings): task for task in tasks}
            for ready in as_completed(waiting):
                yield waiting[ready], ready.result()
        except BrokenProcessPool:
            raise ScanStopped("one of the processes has died, perhaps for want of memory; try fewer jobs.") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
