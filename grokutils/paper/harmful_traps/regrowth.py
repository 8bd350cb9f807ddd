"""Does a trap grow back once it is taken out? Forks of a record, trained on with and without its largest traps.

>>> from grokutils import load_record
>>> frame = regrowth_of(load_record("results/express/wd0"))                      # doctest: +SKIP
>>> frame[frame.layer == "fc1"].groupby(["start", "arm", "step"]).trap_strength.median()    # doctest: +SKIP

``regrowth.parquet`` lies beside the record's other tables. ``grokutils regrowth
results/express/wd0`` makes it, from forks that it trains in ``runs/``; where it was interrupted it goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd

from grokutils.experiment.traits import model_traits
from grokutils.paper.harmful_traps.intervention_study import best_steps, hidden_layers
from grokutils.records import files
from grokutils.records.record import Record
from grokutils.spectra.interventions import control, edited_weights, layer_matrix, remove_trap, traps_in
from grokutils.spectra.traps import find_traps
from grokutils.training.train import train
from grokutils.util.blas import one_torch_thread
from grokutils.util.columns import REGROWTH

__all__ = ["ARMS", "STARTS", "make_regrowth", "regrowth_of"]

Weights = dict[str, np.ndarray]

#: What is done to the weights before training goes on.
ARMS = ("nothing done", "traps taken out", "random direction")
#: Where training goes on from: each network's best kept step, and the record's last.
STARTS = ("best", "last")
_FILE = "regrowth.parquet"
_VERSION = 1
_SHUFFLES = 5


def regrowth_of(source: Record) -> pd.DataFrame:
    """What became of the traps; `grokutils.util.columns.REGROWTH` says what columns mean. No rows if nobody has
    measured it (`make_regrowth`).

    Raises
    ------
    RecordError : a damaged file.
    """
    path = source.folder / _FILE
    if path.is_file():
        stored = source.table(path.stem)
        if stored.attrs.get("grokutils") == _stamp(source):
            return stored
    return pd.DataFrame(columns=list(REGROWTH))


def _stamp(source: Record) -> dict:
    return {"version": _VERSION, "identity": source.config.identity}


def make_regrowth(source: Record, steps: int = 10_000, members: int = 6, progress: bool = True) -> pd.DataFrame:
    """Train the forks, measure their traps and store the table in the record.

    >>> make_regrowth(load_record("runs/x"), steps=10_000)                       # doctest: +SKIP

    Parameters
    ----------
    source : a record of perceptrons
    steps : optimisation steps of each of the six forks (`STARTS` x `ARMS`)
    members : how many of the record's networks are trained on, the first ones

    The optimiser's moments begin at zero in every fork (`grokutils.train`), so that all arms are disturbed alike.

    Raises
    ------
    ValueError : a record without saved weights, or one of another architecture.
    RecordError : a damaged record, or a file that cannot be written.
    """
    if not model_traits(source.config.model).perceptron:
        raise ValueError(f"the traps of a perceptron are followed; {source.name} is a {source.config.model}.")
    if not any(step > 0 for step in source.steps_saved):
        raise ValueError(f"{source.name} has no saved weights to train on from.")
    networks = source.config.networks[:members]
    chosen = range(len(networks))
    config = source.config.replace(steps=steps, intervention="")
    if source.config.members is not None:
        config = config.replace(members=networks)
    frames = []
    for start, where in zip(STARTS, ([best_steps(source)[m] for m in chosen], [source.steps_saved[-1]] * len(networks)), strict=True):
        for arm in ARMS:
            fork = train(
                config, f"regrowth-{source.name}-{start}-{arm.replace(' ', '-')}", threads=1, progress=progress,
                saves_per_decade=4, start_from=source, step=where, member=list(chosen), edit=_edit(arm),
            )  # fmt: skip
            frames.append(_measured(fork).assign(start=start, arm=arm, from_step=lambda f, w=where: f.member.map(dict(enumerate(w)))))
    frame = pd.concat(frames, ignore_index=True)[list(REGROWTH)]
    frame.attrs["grokutils"] = _stamp(source)
    with files.locked(source.folder):
        files.write_parquet(source.folder / _FILE, frame)
    return frame


def _edit(arm: str) -> Callable[[Weights], Weights] | None:
    """What an arm does to the weights of one network after the other."""
    if arm == ARMS[0]:
        return None
    numbers = itertools.count()  # each network has a random direction of its own

    def edit(weights: Weights) -> Weights:
        seed, edits = next(numbers), []
        for layer in hidden_layers(weights):
            W = layer_matrix(weights, layer)
            if traps := traps_in(W, layer):
                removed = remove_trap(W, traps[0], replace="nothing")
                edits.append(removed if arm == ARMS[1] else control(removed, seed=seed))
        return edited_weights(weights, *edits)

    return edit


def _measured(fork: Record) -> pd.DataFrame:
    rows = []
    with one_torch_thread():
        for step in fork.steps_saved:
            for member in range(len(fork.config.networks)):
                weights = fork.weights(step, member)
                for layer in hidden_layers(weights):
                    W = layer_matrix(weights, layer)
                    found = find_traps(W, shuffles=_SHUFFLES)
                    largest = found.eigenvalues.max(axis=1) / found.threshold
                    rows.append({
                        "step": step, "member": member, "layer": layer, "traps": found.mean,
                        "trap_strength": float(largest.mean()), "mean_over_std": float(W.mean() / W.std()),
                    })  # fmt: skip
    own = fork.metrics[["step", "member", "seed", "weight_decay", "train_accuracy", "test_accuracy"]]
    return pd.DataFrame(rows).merge(own, on=["step", "member"])
