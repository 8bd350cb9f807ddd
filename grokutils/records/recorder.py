"""A record written by any training loop.

>>> from grokutils.records.recorder import Recorder
>>> with Recorder("runs/mine", steps=10_000) as recorder:                        # doctest: +SKIP
...     for step in range(10_001):
...         recorder.log(step, {"train_accuracy": ..., "test_accuracy": ...}, model)
...         train_on_a_batch()

What it leaves is a record as `grokutils.train` leaves one: it is analysed, drawn, explored and judged like any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import numbers
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import torch

from grokutils.experiment.config import MAX_STEPS, Member, Own, RunConfig
from grokutils.experiment.models.base import BUFFER
from grokutils.records import files, schedule
from grokutils.records.analysis import stamp_of
from grokutils.records.record import DERIVED, FORMAT, Record, RecordError, checkpoint_path
from grokutils.records.rows import METRICS, metrics_row, surroundings
from grokutils.spectra import baselines, measure
from grokutils.spectra.unwrapped import plain_name, plain_names, unwrap
from grokutils.util import columns, paths
from grokutils.util.checks import Interval, shown

__all__ = ["Recorder"]

#: When something is done: at each call, so many times a decade of steps, or when a function of the step says so.
Plan = int | Callable[[int], bool] | None

_RESERVED = ("step", "member", "seed", "weight_decay", "l2_norm")
_DRAWS = 4  # as in `analysis`


class Recorder:
    """Write a record from a loop of your own.

    >>> net = torch.nn.Linear(30, 20)
    >>> with Recorder("runs/doctest", steps=2) as recorder:                      # doctest: +SKIP
    ...     for step in range(3):
    ...         recorder.log(step, {"test_accuracy": 0.5, "train_accuracy": 1.0}, net)
    >>> recorder.record.steps_saved                                              # doctest: +SKIP
    [0, 1, 2]

    Parameters
    ----------
    out : name of the run (under ``runs/``) or an absolute path
    steps : how many there will be; the last of them is always saved. None: not known.
    measure : which calls of `log` are kept: None, all; a number, so many a decade of steps; or a function of the step
    save : at which of them weights are kept and the record is written, likewise; alpha and traps can be had there later
    inputs : training inputs as the model takes them, for the measures of page 05 (sparsity, circuit complexity), which need
        some; they are made when weights are saved. None: they are left out.
    seed, weight_decay : what the pages call the network by
    settings : anything that JSON holds and that tells this run from others; kept in its provenance
    resume : go on with the record that is there, if there is one. Where the first step logged is one it has already, what it
        has from there on is replaced, so that a loop may begin again from a checkpoint of its own.
    autosave : write the record at least this often, in seconds

    The pages read phases from ``train_accuracy`` and ``test_accuracy``; a run without them has spectra, but no phases.

    Raises
    ------
    RecordError : the folder holds a record and ``resume`` is not set, or another network's; it is in use, or cannot be
        written.
    ValueError : an argument without meaning.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        *,
        steps: int | None = None,
        measure: Plan = None,
        save: Plan = schedule.SAVES_PER_DECADE,
        inputs: Any = None,
        seed: int = 0,
        weight_decay: float = 0.0,
        settings: Mapping[str, Any] | None = None,
        resume: bool = False,
        autosave: float = 60.0,
    ):
        for name, plan in (("measure", measure), ("save", save)):
            if plan is not None and not callable(plan):
                Interval(int, 1).check(name, plan)
        self.steps = None if steps is None else int(Interval(int, 1, MAX_STEPS).check("steps", steps))
        self._measure, self._save, self._inputs, self._autosave = measure, save, inputs, autosave
        self._network = Member(
            int(Interval(int, 0, 2**32 - 1).check("seed", seed)), float(Interval(float, 0).check("weight_decay", weight_decay))
        )
        try:
            self._settings = json.loads(json.dumps(dict(settings or {}), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"settings must be values that JSON holds; {' '.join(str(error).split())}.") from None
        self.folder = paths.run_dir(out)
        files.check_target(self.folder)
        there = (self.folder / "config.json").is_file()
        if there and not resume:
            raise RecordError(f"{self.folder} holds a record; go on with it by resume=True, or choose another folder.")
        self._resumes = there
        self._held = contextlib.ExitStack()
        self.config: RunConfig | None = None
        self.rows: list[dict[str, Any]] = []
        self._baselines: list[dict[str, Any]] = []
        self._sessions: list[dict[str, Any]] = []
        self._shapes: dict[str, tuple[int, ...]] | None = None
        #: The last step logged in this process.
        self.step: int | None = None
        self._measured = self._saved = -1

    def __repr__(self) -> str:
        return f"<Recorder of {self.folder}: step {self.step}>"

    @property
    def record(self) -> Record:
        """What has been written so far."""
        return Record(self.folder)

    def __enter__(self) -> Recorder:
        self._held.enter_context(files.locked(self.folder))
        if self._resumes:
            self._take_up()
        self._began, self._when = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        self._from, self._written = max(self._saved, 0), time.monotonic()
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if self.step is not None:
                self._write(complete=kind is None)
        finally:
            self._held.close()

    def log(self, step: int, metrics: Mapping[str, float] | None = None, model: Any = None, *, save: bool = False) -> bool:
        """Keep what was measured after `step` optimisation steps, if it is due, and the weights, if they are; whether they
        were.

        Parameters
        ----------
        step : steps taken so far; later than the one before
        metrics : numbers by name; ``train_accuracy``, ``test_accuracy`` (0 to 1), ``train_loss`` and ``test_loss`` are those
            that pages draw, others are kept beside them
        model : a `torch.nn.Module`, wrapped or not, or a ``state_dict``; at least whenever weights are due
        save : keep the weights of this step in any case

        Raises
        ------
        ValueError : a step that is not later than the last one, metrics that are no numbers or have a reserved name, an
            accuracy outside 0 to 1, a model without weight matrices, or another one than before. Nothing of that step is
            kept.
        RecordError : the record cannot be written, or holds another network.
        """
        if not hasattr(self, "_began"):
            raise ValueError("a Recorder records inside its `with` block.")
        step = int(Interval(int, 0, MAX_STEPS).check("step", step))
        if self.step is not None and step <= self.step:
            raise ValueError(f"steps must go forwards; got step {step:,} after step {self.step:,}.")
        scores = _scores(metrics or {})
        save = save or _due(self._save, step, self._saved) or step == self.steps
        keep = save or _due(self._measure, step, self._measured)
        if not keep:
            self.step = step
            return False
        weights = self._weights(model) if model is not None else {}
        if save and not weights:
            raise ValueError(f"step {step:,} is one whose weights are kept: give log the model.")
        if self.step is None:
            self._rewind(step)
        row = metrics_row(step, 0, self._network, scores, weights)
        if not weights:
            row["l2_norm"] = np.nan
        self.rows.append(row)
        self.step = self._measured = step
        if save:
            metadata = {"identity": self.config.identity, "step": str(step)}
            files.write_tensors(checkpoint_path(self.folder, step), weights, metadata)
            self._saved = step
            if self._inputs is not None and isinstance(model, torch.nn.Module):
                self._baselines.append(self._progress(step, unwrap(model), weights))
        if save or time.monotonic() - self._written > self._autosave:
            self._write(complete=False)
        return save

    # -- the network ------------------------------------------------------------------------------------------------

    def _weights(self, model: Any) -> dict[str, np.ndarray]:
        """Parameters and buffers as NumPy holds them; the first time, what network this is."""
        weights = dict(_arrays(model))
        shapes = {name: a.shape for name, a in weights.items() if not name.startswith(BUFFER)}
        if self._shapes is not None and shapes != self._shapes:
            odd = sorted(name for name in {*shapes, *self._shapes} if shapes.get(name) != self._shapes.get(name))
            raise ValueError(f"the model must stay the same; {odd[0]} is not what it was.")
        if not measure.matrices(weights):
            raise ValueError("a model must have a weight matrix to be recorded; this one has none.")
        if self._shapes is None:
            self._shapes = shapes
            config = self._made_config(model, shapes)
            if self.config is not None and self.config.identity != config.identity:
                self._shapes = None
                raise RecordError(f"{self.folder} holds another network, or one of other settings; choose another folder.")
            if self.config is None:
                self.config = config
                self._write_config()
        return weights

    def _made_config(self, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> RunConfig:
        inner = unwrap(model) if isinstance(model, torch.nn.Module) else model
        said = json.dumps([sorted((n, list(s)) for n, s in shapes.items()), self._settings], sort_keys=True)
        # a checkpoint knows no class: the same network by its shapes
        digest = hashlib.sha256(said.encode()).hexdigest()[:16]
        name = type(inner).__name__ if isinstance(inner, torch.nn.Module) else "network"
        if self.config is not None:
            name = self.config.model
        name = re.sub(r"[^A-Za-z0-9._-]", "", name).strip("._-") or "network"
        return RunConfig(
            model=name, dataset="own", seed=self._network.seed, weight_decay=self._network.weight_decay,
            steps=self.steps or MAX_STEPS, own=Own(model=digest, recorded=True),
        )  # fmt: skip

    def _progress(self, step: int, module: torch.nn.Module, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The measures that need inputs, in evaluation mode, which is put back."""
        modes = {part: part.training for part in module.modules()}
        inputs = torch.as_tensor(self._inputs)
        like = next(module.parameters())
        inputs = inputs.to(like.device, like.dtype if inputs.is_floating_point() else inputs.dtype)
        try:
            module.eval()
            found = baselines.progress_measures(module, weights, inputs, draws=_DRAWS)
        finally:
            for part, training in modes.items():
                part.training = training
        return {"step": step, "member": 0, **vars(self._network), **found}

    # -- files ------------------------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Read the record that is there."""
        there = Record(self.folder)
        if there.config.own is None or not there.config.own.recorded:
            raise RecordError(f"{self.folder} holds a run of `grokutils.train`, which goes on with it; choose another folder.")
        self.config = there.config
        self._network = there.config.networks[0]
        if (self.folder / "provenance.json").is_file():
            provenance = there.provenance
            self.rows = there.metrics.to_dict("records")
            self._sessions = provenance["sessions"]
            self._settings = self._settings or provenance.get("settings", {})
        if self.steps is not None and self.steps != there.config.steps:
            self.config = self.config.replace(steps=self.steps)
        self._measured = max((row["step"] for row in self.rows), default=-1)
        self._saved = max(there.steps_saved, default=-1) if self.rows else -1
        if self._inputs is not None and (self.folder / "baselines.parquet").is_file():
            self._baselines = there.table("baselines").to_dict("records")

    def _rewind(self, step: int) -> None:
        """At the first step of this process: forget what the record has from there on."""
        if self._measured < step:
            return
        self.rows = [row for row in self.rows if row["step"] < step]
        self._baselines = [row for row in self._baselines if row["step"] < step]
        kept = [s for s in self.record.steps_saved if s < step] if (self.folder / "provenance.json").is_file() else []
        for path in (self.folder / "checkpoints").glob("step_*.safetensors"):
            if int(path.stem.removeprefix("step_")) >= step:
                path.unlink()
        for name in DERIVED:  # made of weights that are gone
            (self.folder / name).unlink(missing_ok=True)
        self._saved = max(kept, default=-1)
        self._from = min(self._from, step)

    def _write_config(self) -> None:
        files.write_json(self.folder / "config.json", files.sealed(self.config.to_dict()))

    def _write(self, complete: bool) -> None:
        """Metrics, and last the provenance, which says how far the record is."""
        if self.config is None:  # no weights yet
            return
        reached = self.rows[-1]["step"] if self.rows else 0
        done = complete and (self.steps is None or reached >= self.steps)
        if done and self.config.steps != max(reached, 1):
            self.config = self.config.replace(steps=max(reached, 1))
        self._write_config()
        identity = self.config.identity
        tables = {"metrics": (self.rows, {"identity": identity, "step": reached})}
        if self._baselines:
            tables["baselines"] = (self._baselines, stamp_of(identity))
        for name, (rows, marks) in tables.items():
            frame = pd.DataFrame(rows)
            frame = frame.reindex(columns=list(columns.BASELINES)) if name == "baselines" else frame
            frame.attrs["grokutils"] = marks
            files.write_parquet(self.folder / f"{name}.parquet", frame)
        session = {
            "started": self._when, "from_step": self._from, "to_step": reached,
            "wall_s": round(time.monotonic() - self._began, 3), "threads": torch.get_num_threads(),
            **surroundings(torch.device("cpu")),
        }  # fmt: skip
        files.write_json(self.folder / "provenance.json", files.sealed({
            "format": FORMAT, "step": reached, "complete": done, "identity": identity,
            "data": [{"source": "another loop", "sha256": ""}], "diverged": {}, "settings": self._settings,
            "sessions": [*self._sessions, session],
        }))  # fmt: skip
        self._written = time.monotonic()


def _due(plan: Plan, step: int, last: int) -> bool:
    """Whether it is time again, the last time having been at the step `last` (-1: never)."""
    if plan is None:
        return True
    if not isinstance(plan, numbers.Integral):
        return bool(plan(step))
    return step >= _next_point(last, int(plan))


def _next_point(last: int, per_decade: int) -> int:
    """The first of the steps of `schedule.log_spaced` after `last`."""
    if last < 1:
        return last + 1
    k = math.floor(per_decade * math.log10(last))
    while (point := round(10 ** (k / per_decade))) <= last:
        k += 1
    return point


def _scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED:
            raise ValueError(f"a metric's name must be one word other than {', '.join(_RESERVED)}; got {shown(name)}.")
        if isinstance(value, (torch.Tensor, np.generic, np.ndarray)) and math.prod(value.shape) == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be a number; got {shown(value)}.")
        value = float(value)
        if name in METRICS and name.endswith("accuracy") and not (0 <= value <= 1 or math.isnan(value)):
            raise ValueError(f"{name} must be between 0 and 1; got {value:g}.")
        found[name] = value
    return found


def _arrays(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters and buffers by their plain names."""
    if isinstance(model, torch.nn.Module):
        inner = unwrap(model)
        for name, p in inner.named_parameters():
            yield plain_name(name), _array(name, p)
        for name, b in inner.named_buffers():
            yield BUFFER + plain_name(name), _array(name, b)
    elif isinstance(model, Mapping):
        for name, short in plain_names(map(str, model)).items():
            array = _array(name, model[name])
            yield (short if array.dtype.kind == "f" else BUFFER + short), array
    else:
        raise ValueError(f"model must be a torch.nn.Module or a state_dict; got {type(model).__name__}.")


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.is_floating_point() and value.dtype not in (torch.float64, torch.float32, torch.float16):
            value = value.float()  # NumPy has no bfloat16
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be an array of real numbers; got {array.dtype}.")
    return array.copy()
