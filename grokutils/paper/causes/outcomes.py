"""What became of each network of the study of causes, and whether a condition made a difference.

>>> study_plan = plan()
>>> compare(outcomes_of(studies(), study_plan.causes, study_plan.fork), study_plan.causes)    # doctest: +SKIP

The plan: each condition is compared with its control (`grokutils.paper.causes.conditions.CONTROL`), seed by seed, in the points
of test accuracy *lost* from the best to the end. The p-values of all comparisons are corrected together; the intervals
are not. The negative controls are described and not compared. It was made before the forks, but for the first two,
and before the conditions without traps and the negative controls were run; the plain record and three of weight
decay were there before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from grokutils.paper.causes.conditions import CONTROL, Cause, Plan, plan
from grokutils.paper.judge.stats import bootstrap, holm, sign_flip_p
from grokutils.records.analysis import analyze_record
from grokutils.records.phases import FALL
from grokutils.records.record import Record, load_record
from grokutils.records.study import Study
from grokutils.training import sweep
from grokutils.training.sweep import Fork
from grokutils.util import paths

__all__ = ["SMOOTH", "VERDICTS", "compare", "displacement", "of_seeds", "outcomes_of", "studies"]

#: A test accuracy is the median of so many measurements.
SMOOTH = 5
#: What a condition is found to do to the fall.
VERDICTS = ("prevents it", "lessens it", "no difference shown", "deepens it", "not compared")
_LEVEL = 0.05


def studies(scale: str = "full", seeds: int | None = None) -> dict[str, Study | None]:
    """The records of the study, by condition; None for one that is not complete yet.

    Parameters
    ----------
    scale, seeds : as they were run (`grokutils.paper.causes.conditions.run`)

    Raises
    ------
    ConfigError : no such scale, or no seeds.
    RecordError : a damaged record.
    """
    chosen = plan(scale, seeds)
    return {cause.name: _study(cause, chosen) for cause in chosen.causes}


def _study(cause: Cause, plan: Plan) -> Study | None:
    folder = sweep.folder_of(plan.out, cause) if cause.record is None else paths.find_run(cause.record)
    if not (folder / "diagnostics.parquet").is_file():
        return None
    record = Record(folder, plan.base.steps if cause.record else None)
    # a reference record reaches further and is cut; one of the study counts when it is complete
    if not (record.complete or cause.record):
        return None
    return of_seeds(record, plan.seeds)


def of_seeds(record: Record, seeds: Iterable[int]) -> Study:
    """The study of some networks of a record, which is read and not changed."""
    found = analyze_record(record, progress=False, store=False)
    networks = record.config.networks
    members = [member for member, network in enumerate(networks) if network.seed in set(seeds)]
    frames = (record.metrics, found.diagnostics, found.spectra, found.baselines)
    kept = (frame[frame.member.isin(members)].reset_index(drop=True) for frame in frames)
    return Study(record, networks[0].weight_decay, *kept)


def outcomes_of(
    found: Mapping[str, Study | None], table: Iterable[Cause], fork: Fork | None = None
) -> pd.DataFrame:
    """A row for each condition and seed.

    Parameters
    ----------
    found, table : studies by condition, and the conditions
    fork : where forked conditions began; without it ``displacement`` is NaN

    Returns
    -------
    Columns ``name``, ``seed``; ``best`` and ``final`` test accuracy from where the training set is known (each the
    median of five measurements) and their difference ``lost``; the test accuracy ``at_learning``, where the training
    set is first known; training accuracy ``train`` at the end, whether it ``fell`` (five points lost for good, with the
    training set known) and ``collapsed`` (ten), and at the end ``norm`` over that at the start,
    ``displacement`` from the weights of the fork (`displacement`; NaN for runs from initial weights),
    and of each layer followed ``traps_<layer>``, ``most_traps_<layer>`` (the most at any step),
    ``alpha_<layer>`` and ``max_over_std_<layer>``; ``diverged``, whether the weights became infinite or NaN: then
    the accuracies are not numbers. Without a training set that was ever known ``best`` and ``lost`` are NaN.
    """
    table = list(table)
    starts = _starts(fork) if fork is not None and any(c.forked and found.get(c.name) for c in table) else {}
    parts = []
    for cause in table:
        if (study := found.get(cause.name)) is None:
            continue
        own = _of_networks(study).assign(name=cause.name)
        start = [starts.get(seed) if cause.forked else None for seed in own.seed]
        moved = [np.nan if x is None else _moved(study.record, member, x) for member, x in zip(own.index, start, strict=True)]
        parts.append(own.assign(displacement=moved))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _of_networks(study: Study) -> pd.DataFrame:
    known, metrics = study.networks, study.metrics.sort_values(["member", "step"])
    smooth = metrics.groupby("member").test_accuracy.transform(lambda x: x.rolling(SMOOTH, min_periods=1).median())
    learnt = metrics.step >= metrics.member.map(known.learnt)
    own = pd.DataFrame({
        "seed": known.seed.astype(int), "best": smooth[learnt].groupby(metrics.member).max(),
        "final": smooth.groupby(metrics.member).last(), "at_learning": known.at_learning, "train": known.train_final,
    })  # fmt: skip
    diverged = own.index.astype(str).isin(list(study.record.provenance["diverged"]))
    own.loc[diverged, ["best", "final", "at_learning", "train"]] = np.nan
    own = own.assign(
        lost=own.best - own.final, diverged=diverged, fell=known.fell.notna() & ~diverged,
        collapsed=known.collapsed.notna() & ~diverged, norm=known.norm_final / known.norm_start,
    )  # fmt: skip
    for layer in study.layers:
        own[f"most_traps_{layer}"] = known[f"traps {layer} most"]
        for name in ("traps", "alpha", "max_over_std"):
            own[f"{name}_{layer}"] = known[f"{name} {layer} end"]
    return own


def displacement(start: Mapping[str, np.ndarray], end: Mapping[str, np.ndarray]) -> float:
    """How far the weights have moved: the norm of their change over that of `start`, all matrices together.

    >>> displacement({"fc1.weight": np.array([[3.0, 4.0]])}, {"fc1.weight": np.array([[3.0, 5.0]])})
    0.2
    """
    names = [name for name in start if name.endswith(".weight")]
    before, after = (
        np.concatenate([np.ravel(weights[name]).astype(np.float64) for name in names]) for weights in (start, end)
    )
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def _starts(fork: Fork) -> dict[int, dict[str, np.ndarray]]:
    """The weights that forked conditions began with, by seed."""
    source = load_record(fork.record)
    networks = enumerate(source.config.networks)
    return {network.seed: source.weights(fork.step, member) for member, network in networks}


def _moved(record: Record, member: int, start: Mapping[str, np.ndarray]) -> float:
    return displacement(start, record.weights(None, member)) if record.steps_saved else np.nan


def compare(rows: pd.DataFrame, table: Iterable[Cause]) -> pd.DataFrame:
    """Each condition against its control, seed by seed.

    Returns
    -------
    A row per condition that there are outcomes of: ``name``, ``topic``, ``says``, ``forked``; of ``seeds`` networks
    how many ``fell``, ``collapsed`` and ``diverged``; median ``displacement`` of the weights,
    and ``moved``, the same over the control's; mean of what was ``lost`` with its 95 % bootstrap interval over seeds
    (``lost_low``, ``lost_high``); mean ``difference`` to the control's with its interval (``difference_low``, ``difference_high``),
    ``p`` (`grokutils.paper.judge.stats.sign_flip_p`) and ``p_holm``, NaN where it is not compared; and ``verdict``, one of
    `VERDICTS`:

    - prevents it: ``p_holm`` < 0.05, less lost than by the control, and the whole interval of what is lost
      below five points; within the steps run, and however little the weights ``moved``
    - lessens it, deepens it: ``p_holm`` < 0.05
    """
    by_seed = rows.set_index(["name", "seed"]).lost if len(rows) else pd.Series(dtype=float)
    compared = []
    for cause in table:
        own = rows[rows.name == cause.name] if len(rows) else rows
        if not len(own):
            continue
        row = {
            "name": cause.name, "topic": cause.topic, "says": cause.says, "forked": cause.forked, "seeds": len(own),
        }  # fmt: skip
        row |= {name: int(own[name].sum()) for name in ("fell", "collapsed", "diverged")}
        row["displacement"] = float(own.displacement.median())
        row |= _mean("lost", own.lost.dropna().to_numpy())
        difference = np.empty(0)
        control = CONTROL[cause.forked]
        if cause.topic not in ("control", "negative") and control in by_seed:
            difference = (by_seed[cause.name] - by_seed[control]).dropna().to_numpy()
        row |= _mean("difference", difference)
        row["p"] = sign_flip_p(difference) if difference.size else np.nan
        compared.append(row)
    frame = pd.DataFrame(compared)
    if len(frame):
        tested = frame.p.notna()
        frame["p_holm"] = np.nan
        frame.loc[tested, "p_holm"] = holm(frame.p[tested])
        usual = {row["forked"]: row["displacement"] for row in compared if row["name"] in CONTROL.values()}
        frame["moved"] = frame.displacement / frame.forked.map(usual).astype(float)
        frame["verdict"] = [_verdict(row) for row in frame.to_dict("records")]
    return frame


def _mean(name: str, values: np.ndarray) -> dict:
    if not values.size:
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan, f"{name}_n": 0}
    low, high = bootstrap(lambda drawn: values[drawn].mean(axis=1), len(values))
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(values)}


def _verdict(row: Mapping) -> str:
    prevents, lessens, nothing, deepens, not_compared = VERDICTS
    if np.isnan(row["p_holm"]):
        return not_compared
    if row["p_holm"] >= _LEVEL:
        return nothing
    if row["difference"] > 0:
        return deepens
    return prevents if row["lost_high"] < FALL else lessens
