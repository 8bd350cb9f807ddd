"""Watch alpha, traps and cheaper signals in anyone's training loop, without data.

>>> monitor = Monitor(model, every=1000, log="alpha.jsonl")       # doctest: +SKIP
>>> for batch in batches:                                         # doctest: +SKIP
...     train_on(batch)
...     monitor.step()
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from grokutils.spectra.alarms import RULES, Alarm, sentence
from grokutils.spectra.diagnose import chosen, diagnose
from grokutils.spectra.layers import find_layers
from grokutils.spectra.matrix import Options
from grokutils.spectra.sinks import SCALARS, Sink, make_sink
from grokutils.spectra.table import json_rows
from grokutils.spectra.unwrapped import plain_name, unwrap
from grokutils.spectra.verdict import THRESHOLDS, Thresholds
from grokutils.util.checks import Interval
from grokutils.util.columns import DIAGNOSTICS

__all__ = ["Monitor", "SpectralWarning"]

_COLUMNS = ["step", *list(DIAGNOSTICS)[list(DIAGNOSTICS).index("layer") :]]
_TEXT = ("layer", "note", "alpha_reason", "traps_reason", "verdict", "reason")


class SpectralWarning(UserWarning):
    """An alarm, or a measurement, a log or a sink that failed."""


class Monitor:
    """Diagnose a model every so often, keep the history, say when something that was asked for happens.

    >>> monitor = Monitor(torch.nn.Linear(50, 40), every=2)
    >>> for _ in range(4):
    ...     rows = monitor.step()
    >>> monitor.history.step.tolist()
    [2, 4]

    It reads the weights and nothing else: they, their gradients, the mode of the model and the state of every
    random generator are afterwards what they were before. A layer that cannot be measured has a row that says
    why; nothing that happens to a layer, the log or a sink ends the training.

    Layers have the names that the model itself gives them, whatever wraps it (`torch.compile`, DDP, FSDP). Of several
    processes only rank 0 measures and writes; all of them call `step`, since the parts of a sharded model are gathered.

    Parameters
    ----------
    model : a `torch.nn.Module`, on any device
    every : steps between measurements, or a `datetime.timedelta`
    budget : share of the time since it was made that measuring may take; a measurement that would exceed it waits. None:
        no limit
    layers : names of those to measure, or patterns such as ``"blocks.*.mlp.*"``; None: all
    alarms : names in `grokutils.spectra.alarms.RULES` that are worth a warning. By default only ``"unreadable"``, NaN and
        infinity: in networks that go on generalising the others go off as well, and each says how often.
    patience : measurements in a row in which an alarm must hold
    on_alarm : called with each `grokutils.spectra.alarms.Alarm`; what it raises, it raises
    stop_when : a function of the history; once it is true after a measurement, so is `should_stop`
    log : a file that every measurement is appended to at once, a line of JSON per layer
        (``pandas.read_json(log, lines=True)`` reads it). An existing file is read back: the history and the steps go on
        from it, and a step that is measured again replaces what was there. A last line that a crash cut off is removed.
    sinks : where scalars go besides (`grokutils.spectra.sinks.make_sink`)
    scalars : the columns of the history that sinks are sent
    shuffles : of each matrix; a few do, since one measurement follows another
    thresholds : where the verdicts and alarms change
    **options : further arguments of `grokutils.diagnose` (``ks_draws`` is 0 here, which leaves the ``ks_``
        columns out)

    Attributes
    ----------
    history : DataFrame, the rows of `grokutils.diagnose` with their ``step``, in squared units of the weights
        where that has them; in the order of the steps
    taken : steps so far, those of a log that is continued among them
    alarms : those raised so far
    should_stop : whether `stop_when` has been true
    seconds : that measuring has taken

    Raises
    ------
    TypeError, ValueError : no module, one without weight matrices, a number without meaning, a log in a folder
        that is not there, an unknown alarm, a sink that is none. Only here, never later, but for a step that is no number.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        every: int | timedelta = 1000,
        *,
        budget: float | None = None,
        layers: Sequence[str] | None = None,
        alarms: Iterable[str] = ("unreadable",),
        patience: int = 2,
        on_alarm: Callable[[Alarm], Any] | None = None,
        stop_when: Callable[[pd.DataFrame], bool] | None = None,
        log: str | os.PathLike | None = None,
        sinks: Any = (),
        scalars: Sequence[str] = SCALARS,
        shuffles: int = 5,
        thresholds: Thresholds = THRESHOLDS,
        **options: Any,
    ):
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
        if isinstance(every, timedelta):
            if every <= timedelta(0):
                raise ValueError(f"every must be a positive time; got {every}.")
        else:
            every = int(Interval(int, 1).check("every", every))
        self.patience = Interval(int, 1).check("patience", patience)
        self._budget = None if budget is None else Interval(float, 0, 1, open_low=True).check("budget", budget)
        names = (alarms,) if isinstance(alarms, str) else tuple(alarms)
        if odd := [name for name in names if name not in RULES]:
            raise ValueError(f"alarms must be among {', '.join(map(repr, RULES))}; got {odd[0]!r}.")
        for name, function in (("on_alarm", on_alarm), ("stop_when", stop_when)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function; got {type(function).__name__}.")
        options = dict(shuffles=shuffles, ks_draws=0) | options
        Options(**options)
        if unknown := [name for name in scalars if name not in _COLUMNS or name in _TEXT]:
            raise ValueError(f"scalars must be columns of numbers, such as {', '.join(SCALARS)}; got {unknown[0]!r}.")
        several = sinks if isinstance(sinks, (list, tuple)) else (sinks,)
        self._sinks: list[Sink] = [make_sink(sink, scalars) for sink in several]
        self.model, self.every = model, every
        self._sharded = _is_sharded(model)
        if self._sharded and (isinstance(every, timedelta) or self._budget is not None):
            raise ValueError("every must be a number of steps, without a budget, where parameters are sharded: all ranks take part.")
        if not self._sharded:
            there = find_layers(unwrap(model))  # says so if there is nothing to watch
            if layers is not None:
                chosen(there, layers)
        self.options = dict(options, thresholds=thresholds, progress=False, layers=layers)
        self._names, self._on_alarm, self._stop_when = names, on_alarm, stop_when
        self.alarms: list[Alarm] = []
        self.should_stop = False
        self.taken, self.seconds, self._cost = 0, 0.0, 0.0
        self._made = self._measured_at = time.monotonic()
        self._measured = 0
        self._frames: dict[int, pd.DataFrame] = {}
        self._first: dict[str, dict[str, Any]] = {}
        self._streak: dict[tuple[str, str], int] = {}
        self._said: set[tuple[str, str]] = set()
        self._log = None
        if log is not None and _rank() == 0:
            self._log, rows = _open_log(Path(log))
            self._take_up(rows)

    def step(self, global_step: int | None = None) -> pd.DataFrame | None:
        """Count one training step, or say which it is; measure if it is time, and return the new rows.

        Raises
        ------
        ValueError : a step that is no whole number.
        """
        if global_step is None:
            self.taken += 1
        else:
            self.taken = int(Interval(int, 0).check("global_step", global_step))
            self._measured = min(self._measured, self.taken)  # the loop has gone back
        return self._measure(stacklevel=4) if self._is_due() else None

    def measure(self) -> pd.DataFrame:
        """Measure now, and return the new rows."""
        return self._measure(stacklevel=4)

    @property
    def history(self) -> pd.DataFrame:
        if self._frames:
            frames = [self._frames[step] for step in sorted(self._frames)]
            return pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0].reset_index(drop=True)
        return pd.DataFrame(columns=_COLUMNS)

    def _is_due(self) -> bool:
        now = time.monotonic()
        if isinstance(self.every, timedelta):
            due = now - self._measured_at >= self.every.total_seconds()
        else:
            due = self.taken // self.every > self._measured // self.every
        if due and self._budget is not None and self._cost:
            due = self.seconds + self._cost <= self._budget * (now - self._made)
        return due

    def _measure(self, stacklevel: int) -> pd.DataFrame:
        self._measured, self._measured_at = self.taken, time.monotonic()
        began = time.perf_counter()
        try:
            with _gathered(self.model, self._sharded) as source:
                if _rank() != 0:
                    return self.history
                frame = diagnose(source, **self.options)
        except Exception as error:  # whatever it is, it is no reason to end a training run
            message = f"step {self.taken:,}: not measured, {type(error).__name__}: {error}"
            warnings.warn(message, SpectralWarning, stacklevel=stacklevel - 1)
            return self.history.iloc[:0]
        finally:
            self._cost = time.perf_counter() - began
            self.seconds += self._cost
        frame["layer"] = frame.layer.map(plain_name)
        frame.insert(0, "step", self.taken)
        self._frames[self.taken] = frame
        if self._log is not None:
            self._append(frame, stacklevel)
        self._send(frame, stacklevel)
        for alarm in self._consider(frame):
            self.alarms.append(alarm)
            warnings.warn(alarm.message, SpectralWarning, stacklevel=stacklevel - 1)
            if self._on_alarm is not None:
                self._on_alarm(alarm)
        if self._stop_when is not None and self._stop_when(self.history):
            self.should_stop = True
        return frame

    def _consider(self, frame: pd.DataFrame) -> list[Alarm]:
        """Alarms that have held for long enough, once until they have ceased."""
        found = []
        for row in frame.to_dict("records"):
            layer, limits = row["layer"], self.options["thresholds"]
            first = self._first.setdefault(layer, row)
            for name in self._names:
                key = layer, name
                holds = bool(RULES[name].holds(row, first, limits))
                self._streak[key] = self._streak.get(key, 0) + 1 if holds else 0
                if not holds:
                    self._said.discard(key)
                elif self._streak[key] >= self.patience and key not in self._said:
                    self._said.add(key)
                    message = f"step {row['step']:,}: {sentence(name, row, first, limits)}"
                    found.append(Alarm(row["step"], layer, name, message, row))
        return found

    def _take_up(self, rows: list[dict[str, Any]]) -> None:
        """Go on from the rows of a log: the last of each step and layer, and what was said already."""
        last = {(row["step"], row["layer"]): row for row in rows}
        frame = pd.DataFrame(list(last.values())).reindex(columns=_COLUMNS)
        for name in _TEXT:
            frame[name] = frame[name].fillna("").astype(str)
        for step, own in frame.groupby("step", sort=True):
            self._frames[int(step)] = own.reset_index(drop=True)
            self.alarms += self._consider(own)
        self.taken = self._measured = max(self._frames, default=0)

    def _append(self, frame: pd.DataFrame, stacklevel: int) -> None:
        try:
            with open(self._log, "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in json_rows(frame))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            warnings.warn(
                f"{self._log} cannot be written ({error.strerror}); the history is kept in memory only.",
                SpectralWarning, stacklevel=stacklevel,
            )  # fmt: skip
            self._log = None

    def _send(self, frame: pd.DataFrame, stacklevel: int) -> None:
        for sink in list(self._sinks):
            try:
                sink.send(frame, self.history)
            except Exception as error:  # a logger that fails is no reason to end a training run
                self._sinks.remove(sink)
                warnings.warn(
                    f"step {self.taken:,}: {sink.name} failed and is sent nothing more, {type(error).__name__}: {error}",
                    SpectralWarning, stacklevel=stacklevel,
                )  # fmt: skip


# -- several processes ----------------------------------------------------------------------------------------------


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _is_fsdp(module: torch.nn.Module) -> bool:
    return any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules())


def _is_sharded(module: torch.nn.Module) -> bool:
    return _is_fsdp(module) or any(hasattr(p, "full_tensor") for p in module.parameters())


@contextlib.contextmanager
def _gathered(model: torch.nn.Module, sharded: bool):
    """What is diagnosed: the module itself, with whole parameters; all ranks must come here where they are sharded."""
    if not sharded:
        yield unwrap(model)
    elif _is_fsdp(model):
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            yield unwrap(model)
    else:  # parameters that are distributed tensors
        whole: Mapping[str, torch.Tensor] = {
            name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in unwrap(model).named_parameters()
        }
        yield whole


def _open_log(path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Make sure that lines can be appended and that the last one is whole; and the rows there are."""
    rows = []
    try:
        with open(path, "a+b") as file:
            file.seek(0)
            whole = 0
            for line in file:
                if not line.endswith(b"\n"):
                    continue
                whole += len(line)
                with contextlib.suppress(ValueError):  # somebody else's lines
                    row = json.loads(line)
                    if isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("layer"), str):
                        rows.append({name: np.nan if value is None else value for name, value in row.items()})
            file.truncate(whole)
    except OSError as error:
        raise ValueError(f"log must name a file that can be written; {path}: {error.strerror}.") from None
    return path, rows
