"""The spectra of a whole recorded run, computed once and kept in the record.

Three files are added to a record's folder: ``spectra.parquet``, ``baselines.parquet`` and, last,
``diagnostics.parquet``. A step counts as done when its rows are in the last one: whatever it lists is already in
the first, so that a crash at any moment loses at most what had not been written yet.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from grokutils.experiment import data
from grokutils.records import files
from grokutils.records.record import Record, RecordError
from grokutils.spectra import baselines
from grokutils.spectra.diagnose import account
from grokutils.spectra.layers import find_layers, survey
from grokutils.spectra.matrix import Options, diagnose_layer
from grokutils.spectra.verdict import THRESHOLDS, Thresholds, with_verdicts
from grokutils.util import columns, paths
from grokutils.util.blas import one_torch_thread
from grokutils.util.progress import tqdm
from grokutils.util.text import safe_name

__all__ = ["Analysis", "NotKept", "analyze_record"]

# Raised when a change of this package makes stored numbers differ from new ones.
_VERSION = 1
# How many of the shuffled spectra are kept, so that figures can be drawn without weights.
_KEPT_SHUFFLES = 3
# Random choices behind the circuit complexity, the slowest of all measures.
_DRAWS = 4

_FILES = ("spectra", "baselines", "diagnostics")  # in the order in which they are written


def stamp_of(identity: str) -> dict[str, Any]:
    """The mark of tables whose numbers no option of the analysis changes."""
    return {"version": _VERSION, "identity": identity}


class NotKept(UserWarning):
    """An analysis could not be stored in its record, or not all of it could be done."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """A record's spectra; `grokutils.util.columns` says what every column means."""

    #: A row per saved step, member and layer.
    diagnostics: pd.DataFrame
    #: A row per saved step, member, layer and shuffle, with the eigenvalues.
    spectra: pd.DataFrame
    #: A row per saved step and member.
    baselines: pd.DataFrame


def analyze_record(
    source: Record,
    *,
    thresholds: Thresholds = THRESHOLDS,
    progress: bool = True,
    store: bool | None = None,
    **options: Any,
) -> Analysis:
    """Diagnose all saved steps and members of a record, and keep the result in it.

    >>> from grokutils import load_record
    >>> analyze_record(load_record("runs/x")).diagnostics.groupby("layer").alpha.last()    # doctest: +SKIP

    Parameters
    ----------
    source : the record
    thresholds : where the verdicts change (verdicts are not stored)
    progress : show a progress bar
    store : keep the result in the record; by default in every record but a reference record in ``results/``,
        which only ``grokutils publish`` changes
    **options : as in `grokutils.diagnose`; the seed must be a whole number

    Returns
    -------
    `Analysis`. What the record holds already, made with the same options, is read; only steps that are new,
    since the run was continued, are computed. With other options everything is computed again and replaces
    what was there.

    If it is not to be stored, or the folder cannot be written, or is in use by a training process, or holds rows
    of other options for steps whose weights are gone (a published record), the result is returned all the same,
    and a `NotKept` warning says once that it was not stored. Without the training data, or the code of a network
    of the user's own, there are no ``baselines``; a warning says so.

    Raises
    ------
    RecordError : a damaged file; the message names it.
    TypeError, ValueError : an option without meaning.
    """
    chosen = Options(**options)
    if not isinstance(chosen.seed, (int, np.integer)):
        raise ValueError(f"seed must be a whole number for a record, which keeps it; got {chosen.seed!r}.")
    if store is None:
        store = not source.folder.resolve().is_relative_to(paths.results_dir().resolve())
    work = _Work(source, chosen, store)
    try:
        work.go(progress)
    finally:  # also on Ctrl-C: what is done is done
        work.keep()
    frames = {name: frame[frame.step <= source.step] for name, frame in work.frames.items()}
    diagnostics = with_verdicts(frames["diagnostics"], thresholds)
    diagnostics = diagnostics[list(columns.DIAGNOSTICS)].reset_index(drop=True)
    if source.steps_saved:
        account(diagnostics, survey(source.weights()))
    return Analysis(
        diagnostics=diagnostics,
        spectra=frames["spectra"].reset_index(drop=True),
        baselines=frames["baselines"].reset_index(drop=True),
    )


class _Work:
    """What a record holds, what it lacks, and what has been computed since."""

    def __init__(self, source: Record, options: Options, store: bool):
        self.source = source
        self.store = store
        self.options = options
        # equal for two analyses whose numbers are the same
        run = stamp_of(source.config.identity)
        with_options = run | {name: _plain(value) for name, value in options.as_dict().items()}
        self.stamp = {"spectra": with_options, "baselines": run, "diagnostics": with_options}
        self.frames, self.lost = self._stored()
        self.new: dict[str, list[dict[str, Any]]] = {name: [] for name in _FILES}
        self._images: dict[int, torch.Tensor | None] = {}

    def go(self, progress: bool) -> None:
        wanted = [(s, m) for s in self.source.steps_saved for m in range(len(self.source.config.networks))]
        done = {name: _keys(self.frames[name]) for name in ("diagnostics", "baselines")}
        todo = [key for key in wanted if key not in done["diagnostics"] or key not in done["baselines"]]
        if todo and all(key in done["diagnostics"] for key in todo) and self._image_set(todo[0][1]) is None:
            return  # only baselines are missing, and they cannot be had
        for key in tqdm(
            todo, desc=f"spectra of {self.source.name}", unit="network", disable=not (progress and todo)
        ):
            weights = self.source.weights(*key)
            rows = self._spectra(key, weights) if key not in done["diagnostics"] else {}
            if key not in done["baselines"]:
                rows |= self._baselines(key, weights)
            for name, some in rows.items():  # all of a step or nothing of it
                self.new[name] += some

    def _where(self, step: int, member: int) -> dict[str, Any]:
        network = self.source.config.networks[member]
        return {"step": step, "member": member, "seed": network.seed, "weight_decay": network.weight_decay}

    def _spectra(self, key: tuple[int, int], weights: Mapping[str, np.ndarray]) -> dict[str, list[dict]]:
        rows, spectra = [], []
        for layer in find_layers(weights):
            found = diagnose_layer(layer, self.options)
            rows.append({**self._where(*key), "layer": layer.name, "note": layer.note, **found.row})
            shuffled = found.traps.eigenvalues[:_KEPT_SHUFFLES] if found.traps else []
            for shuffle, eigenvalues in enumerate([found.eigenvalues, *shuffled], start=-1):
                spectra.append({
                    "step": key[0], "member": key[1], "layer": layer.name,
                    "rows": found.row["rows"], "columns": found.row["columns"],
                    "shuffle": shuffle, "eigenvalues": eigenvalues.astype(np.float32),
                })  # fmt: skip
        return {"spectra": spectra, "diagnostics": rows}

    def _baselines(self, key: tuple[int, int], weights: Mapping[str, np.ndarray]) -> dict[str, list[dict]]:
        images = self._image_set(key[1])
        if images is None:
            return {}
        if all(np.isfinite(w).all() for w in weights.values()):
            module = self.source.model(*key)
            if images.is_floating_point():
                images = images.to(next(module.parameters()).dtype)
            with one_torch_thread():
                measures = baselines.progress_measures(module, weights, images, draws=_DRAWS)
        else:  # a diverged member has none
            measures = {name: np.nan for name in columns.BASELINES if name not in self._where(0, 0)}
        return {"baselines": [{**self._where(*key), **measures}]}

    def _image_set(self, member: int) -> torch.Tensor | None:
        """The training images of a member; None, and a warning, if they cannot be had."""
        seed = self.source.config.networks[member].seed
        if seed not in self._images:
            try:
                images = torch.from_numpy(data.load(self.source.config, seed).x_train)
                self.source.model(self.source.steps_saved[0], member)  # its code must be at hand, too
                self._images[seed] = images
            except data.DataError as error:
                warnings.warn(f"there are no baselines of {self.source.name}: {error}", NotKept, stacklevel=5)
                self._images = {network.seed: None for network in self.source.config.networks}
        return self._images[seed]

    # -- in the record --------------------------------------------------------------------------------------------

    def _stored(self) -> tuple[dict[str, pd.DataFrame], bool]:
        """What the record holds with the same options, and whether it holds what could not be made again."""
        frames, lost = {}, False
        saved = set(self.source.steps_saved)
        for name in _FILES:
            path = self.source.folder / f"{name}.parquet"
            frame = pd.DataFrame(columns=columns.stored(name))
            if files.is_file(path):
                try:
                    stored = self.source.table(name)
                except RecordError as error:
                    raise RecordError(f"{error} Delete it, and it is made again.") from None
                if odd := [layer for layer in set(stored.get("layer", ())) if layer != safe_name(str(layer))]:
                    raise RecordError(f"{path} names a layer {odd[0]!r}, which is no name of a parameter. Delete it.")
                if _same_options(stored.attrs.get("grokutils"), self.stamp[name]):
                    frame = stored.reindex(columns=columns.stored(name))  # an older record may lack a column
                else:
                    lost |= not set(stored.get("step", ())) <= saved
            frames[name] = frame
        # the last file is the one that says what is done
        keys = _keys(frames["diagnostics"]) & _keys(frames["spectra"])
        for name in ("diagnostics", "spectra"):
            frames[name] = _only(frames[name], keys)
        return frames, lost

    def keep(self) -> None:
        """Join what was computed to what there was, in memory and, if it can be, in the record."""
        if not any(self.new.values()):
            return
        self.frames = self._joined(self.frames)
        if not self.store:
            warnings.warn(
                f"the analysis of {self.source.name} is not stored: a reference record is changed only by "
                "`grokutils publish`.", NotKept, stacklevel=4,
            )  # fmt: skip
            return
        if self.lost:
            warnings.warn(
                f"the analysis of {self.source.name} is not stored: with these options it would replace rows of "
                "steps whose weights are not in the record.", NotKept, stacklevel=4,
            )  # fmt: skip
            return
        try:
            with files.locked(self.source.folder):
                kept = self._joined(self._stored()[0])  # another process may have been here meanwhile
                for name in _FILES:
                    kept[name].attrs["grokutils"] = self.stamp[name]
                    files.write_parquet(self.source.folder / f"{name}.parquet", kept[name])
        except RecordError as error:
            warnings.warn(f"the analysis of {self.source.name} is not stored: {error}", NotKept, stacklevel=4)

    def _joined(self, frames: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        joined = {}
        for name, frame in frames.items():
            new = pd.DataFrame(self.new[name], columns=columns.stored(name))
            if len(new):
                old = _only(frame, _keys(frame) - _keys(new))
                new = pd.concat([old, new], ignore_index=True) if len(old) else new
                frame = new.sort_values(["step", "member"], kind="stable", ignore_index=True)
            joined[name] = frame
        return joined


def _same_options(stored: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether the numbers are the same; an option that is younger than the file had what is now its default."""
    defaults = {name: _plain(value) for name, value in Options().as_dict().items() if name in wanted}
    return isinstance(stored, Mapping) and defaults | dict(stored) == wanted


def _plain(value: Any) -> Any:
    """A number as JSON gives it back."""
    return value.item() if isinstance(value, np.generic) else value


def _keys(frame: pd.DataFrame) -> set[tuple[int, int]]:
    return set(zip(frame.step.tolist(), frame.member.tolist(), strict=True))


def _only(frame: pd.DataFrame, keys: set[tuple[int, int]]) -> pd.DataFrame:
    if not len(frame):
        return frame
    held = [key in keys for key in zip(frame.step.tolist(), frame.member.tolist(), strict=True)]
    return frame[held].reset_index(drop=True)
