"""Interventions on the kept networks of a record, against controls, kept in the record.

>>> from grokutils import load_record
>>> frame = interventions_of(load_record("results/express/wd0"))                 # doctest: +SKIP
>>> frame[frame.control == ""].groupby("operation")[["js", "test_change"]].median()     # doctest: +SKIP

``interventions.parquet`` lies beside the record's other tables. ``grokutils interventions results/express/wd0``
makes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from grokutils.experiment import data
from grokutils.experiment.traits import ModelTraits, model_traits
from grokutils.records import files
from grokutils.records.record import Record
from grokutils.spectra.harm import js_divergences, probes_like
from grokutils.spectra.interventions import (
    CONTROLS,
    INJECTIONS,
    Edit,
    control,
    edited,
    inject,
    layer_matrix,
    remove_trap,
    traps_in,
)
from grokutils.spectra.measure import matrices
from grokutils.util import paths
from grokutils.util.blas import one_torch_thread
from grokutils.util.columns import INTERVENTIONS
from grokutils.util.progress import tqdm

__all__ = ["ALL", "REMOVALS", "STRENGTHS", "best_steps", "change_interval", "hidden_layers", "interventions_of"]

#: Operations that take a trap out, and what `grokutils.spectra.interventions.remove_trap` calls what comes in its place.
REMOVALS = {"replaced by noise": "matched", "taken out": "nothing"}
#: What the column ``layer`` says where the traps of all layers are taken out at once.
ALL = "all layers"
#: Strengths of what is put in; at 1 it is just a trap.
STRENGTHS = (1.0, 2.0, 4.0)

# Raised when a change of this package makes stored numbers differ from new ones.
_VERSION = 3
_MOST_TRAPS = 4
_MOST_STEPS = 12
_MOST_PROBES = 2**15
_RESAMPLES = 1000
_FILE = "interventions.parquet"


def interventions_of(
    source: Record, *, compute: bool = False, store: bool | None = None, progress: bool = True
) -> pd.DataFrame:
    """What every intervention did: a row for each; `grokutils.util.columns.INTERVENTIONS` says what columns mean.

    At every kept step (of more than twelve, at twelve evenly spaced in logarithm and at each network's best), each of
    the four largest traps of each matrix but the last is taken out, with matched noise in its place and with nothing,
    and then all of them at once; beside each stand two controls of the same norm. Where the test accuracy was best and
    at the last step something is put in, of each kind and strength; the random rank-one part is the control there.

    Parameters
    ----------
    source : the record
    compute : make what is missing; otherwise only what the record holds is read, perhaps nothing
    store : keep what was made in the record; by default in every record but a reference record in ``results/``
    progress : show a progress bar

    Returns
    -------
    DataFrame. A network whose weights are not finite has no rows, and one without traps none of their removal.

    Raises
    ------
    RecordError : a damaged file, or one that cannot be written.
    DataError : the images cannot be had.
    """
    path = source.folder / _FILE
    frame, done = pd.DataFrame(columns=list(INTERVENTIONS)), set()
    if path.is_file():
        stored = source.table(path.stem)
        if stored.attrs.get("grokutils") == _stamp(source):
            frame, done = stored, {tuple(where) for where in stored.attrs["networks"]}
    if not compute:
        return frame[frame.step <= source.step].reset_index(drop=True) if len(frame) else frame
    todo = [where for where in _networks(source) if where not in done]
    best = best_steps(source)
    rows: list[dict] = []
    with one_torch_thread():
        for step, member in tqdm(todo, desc=f"interventions on {source.name}", disable=not progress or not todo):
            rows += _network(source, step, member, step in (best.get(member), source.steps_saved[-1]))
    if rows:
        new = pd.DataFrame(rows, columns=list(INTERVENTIONS))
        frame = (pd.concat([frame, new]) if len(frame) else new).sort_values(["member", "step"], kind="stable")
    if store is None:
        store = not source.folder.resolve().is_relative_to(paths.results_dir().resolve())
    if store and todo:
        # a network without traps has no rows, and is done all the same
        frame.attrs = {"grokutils": _stamp(source), "networks": sorted(done | set(todo))}
        with files.locked(source.folder):
            files.write_parquet(path, frame)
    return frame[frame.step <= source.step].reset_index(drop=True)


def _stamp(source: Record) -> dict:
    return {"version": _VERSION, "identity": source.config.identity}


def _networks(source: Record) -> list[tuple[int, int]]:
    """(step, member) of those to intervene on."""
    steps = np.array([step for step in source.steps_saved if step > 0])
    if not steps.size:
        return []
    wanted = np.geomspace(steps[0], steps[-1], _MOST_STEPS)
    near = {int(steps[np.argmin(np.abs(np.log(steps / want)))]) for want in wanted}
    chosen = steps.tolist() if len(steps) <= _MOST_STEPS else near
    best = best_steps(source)
    members = range(len(source.config.networks))
    return [(step, m) for m in members for step in sorted({*chosen, best.get(m, steps[-1])})]


def hidden_layers(weights: Mapping[str, np.ndarray]) -> list[str]:
    """Names of all layers but the last."""
    return [name.removesuffix(".weight") for name in weights if name.endswith(".weight")][:-1]


def best_steps(source: Record) -> dict[int, int]:
    """Of each member, the kept step where the test accuracy was best."""
    metrics = source.metrics
    metrics = metrics[metrics.step.isin(source.steps_saved) & (metrics.step > 0) & metrics.test_accuracy.notna()]
    return {
        int(member): int(own.loc[own.test_accuracy.idxmax(), "step"]) for member, own in metrics.groupby("member")
    }  # fmt: skip


def _network(source: Record, step: int, member: int, put_in: bool) -> list[dict]:
    weights = source.weights(step, member)
    if not all(np.isfinite(w).all() for w in weights.values()):
        return []
    network = source.config.networks[member]
    sets = data.load(source.config, network.seed)
    module = source.model(step, member)
    where = {"step": step, "member": member, "seed": network.seed, "weight_decay": network.weight_decay}
    found = list(_interventions(weights, model_traits(source.config.model), member, put_in))
    probes = probes_like(sets.x_train, "tokens" if sets.x_train.dtype.kind == "i" else "gaussian")
    all_edits = [edits for _, edits in found]
    divergences = js_divergences(module, all_edits, probes, most=_MOST_PROBES, seed=member)
    examples = [(_inputs(module, x), y) for x, y in ((sets.x_train, sets.y_train), (sets.x_test, sets.y_test))]
    right = [_right(module, *pair) for pair in examples]
    rows = []
    for number, ((labels, edits), js) in enumerate(zip(found, divergences, strict=True)):
        row = {**where, **labels, "norm": math.hypot(*(edit.norm for edit in edits))}
        row |= {"js": js.value, "js_error": js.error, "js_probes": js.probes, "js_reached": js.reached}
        other = edited(module, *edits)
        for name, pair, before in zip(("train", "test"), examples, right, strict=True):
            change, low, high = change_interval(before, _right(other, *pair), seed=number)
            row |= {
                f"{name}_accuracy": float(before.mean()), f"{name}_change": change, f"{name}_low": low,
                f"{name}_high": high,
            }  # fmt: skip
        rows.append(row)
    return rows


def _inputs(module: torch.nn.Module, x: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(x))
    return tensor.to(next(module.parameters()).dtype) if tensor.is_floating_point() else tensor


def _right(module: torch.nn.Module, x: torch.Tensor, y: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(x).argmax(dim=1).numpy() == y


def _interventions(weights, model: ModelTraits, seed: int, put_in: bool) -> Iterator[tuple[dict, list[Edit]]]:
    """What a row of the table is called, and what is done. Places and directions differ from member to member."""
    layers = [name.removesuffix(".weight") for name in matrices(weights)]
    layers = layers if model.follows_last else layers[:-1]
    together: dict[str, list[Edit]] = {operation: [] for operation in REMOVALS}
    for layer in layers:
        W = layer_matrix(weights, layer)
        traps = traps_in(W, layer)[:_MOST_TRAPS]
        for operation, how in REMOVALS.items():
            edits = [remove_trap(W, trap, replace=how, seed=seed) for trap in traps]
            labels = {"layer": layer, "operation": operation, "strength": 1.0}
            for trap, edit in zip(traps, edits, strict=True):
                yield from _controlled({**labels, "trap": trap.number}, [edit], seed)
            if edits:
                after = W + sum(edit.change for edit in edits)
                together[operation].append(replace(edits[0], after=after, what="all traps " + operation))
        for strength in STRENGTHS if put_in else ():
            for kind in INJECTIONS:
                edit = inject(W, kind, strength, layer=layer, seed=seed)
                labels = {"layer": layer, "operation": kind, "trap": -1, "strength": strength}
                yield labels | {"control": "direction" if kind == "rank-one" else ""}, [edit]
    for operation, edits in together.items():
        if edits:
            labels = {"layer": ALL, "operation": operation, "trap": -1, "strength": 1.0}
            yield from _controlled(labels, edits, seed)


def _controlled(labels: dict, edits: list[Edit], seed: int) -> Iterator[tuple[dict, list[Edit]]]:
    yield labels | {"control": ""}, edits
    for kind in CONTROLS:
        # traps of one layer have directions of their own, and so must their controls
        other = [control(edit, kind, seed=1000 * seed + labels["trap"] + 1) for edit in edits]
        yield labels | {"control": kind}, other


def change_interval(before: np.ndarray, after: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Change of accuracy on the same examples, with its 95 % bootstrap interval over the examples.

    >>> change_interval(np.ones(100, bool), np.arange(100) < 80)
    (-0.2, -0.28, -0.12)

    Parameters
    ----------
    before, after : (examples,) of bool, whether each is classified correctly
    """
    change = after.astype(int) - before.astype(int)
    n = len(change)
    # an example's change is one of three numbers, and so a resample is three counts
    shares = np.array([(change == value).mean() for value in (-1, 0, 1)])
    counts = np.random.default_rng([seed, 5]).multinomial(n, shares, size=_RESAMPLES)
    low, high = np.quantile((counts[:, 2] - counts[:, 0]) / n, [0.025, 0.975])
    return float(change.mean()), round(float(low), 12), round(float(high), 12)
