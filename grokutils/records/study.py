"""A record as the book reads it: networks that differ in their seed only, and where their phases are read.

>>> from grokutils.records.study import study
>>> data = study("results/express/wd0")                              # doctest: +SKIP
>>> data.label                                                       # doctest: +SKIP
'express recipe, weight decay 0, 20 seeds, to step 250,000'
>>> data.at_phases(data.diagnostics).groupby(["layer", "phase"]).alpha.mean()    # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from grokutils.experiment.config import RunConfig
from grokutils.experiment.traits import model_traits
from grokutils.records.analysis import Analysis, analyze_record
from grokutils.records.phases import PHASES, Phases, find_phases
from grokutils.records.record import Record, load_record
from grokutils.records.signals import LAYER_CONTROLS, NETWORK_CONTROLS, lead_times
from grokutils.spectra.alpha import MIN_EIGENVALUES
from grokutils.spectra.layers import find_layers
from grokutils.util.columns import BASELINES, DIAGNOSTICS, METRICS, SPECTRA
from grokutils.util.paths import results_dir
from grokutils.util.text import safe_name

__all__ = ["PROGRESS_MEASURES", "Study", "study", "study_each_decay"]

#: The measures that the papers hold alpha against, as they call them; each in two definitions.
PROGRESS_MEASURES = {
    "activation_sparsity": "activation sparsity",
    "absolute_weight_entropy": "absolute weight entropy",
    "circuit_complexity": "circuit complexity",
}

_WHERE = ["step", "member"]
_OF_A_NETWORK = [*_WHERE, "seed", "weight_decay"]


@dataclass(frozen=True, eq=False)
class Study:
    """Measurements and analysis of the members of a record that share one weight decay."""

    record: Record
    weight_decay: float
    #: As in `grokutils.util.columns`: METRICS, DIAGNOSTICS, SPECTRA, BASELINES (which may have no rows).
    metrics: pd.DataFrame
    diagnostics: pd.DataFrame
    spectra: pd.DataFrame
    baselines: pd.DataFrame
    #: Where the phases are read, if not where they end (`at_steps`).
    fixed_steps: Mapping[str, float] | None = None

    def __repr__(self) -> str:
        return f"<Study of {self.place}: {self.label}>"

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def place(self) -> str:
        """How tables call the record: its place under ``results/``, 'runs/x' of one's own, else its folder."""
        folder = self.record.folder.resolve()
        if folder.is_relative_to(results_dir().resolve()):
            return safe_name(str(folder.relative_to(results_dir().resolve())))
        return safe_name(f"{folder.parent.name}/{folder.name}")

    @property
    def config(self) -> RunConfig:
        return self.record.config

    @cached_property
    def members(self) -> list[int]:
        """Numbers of the networks in their record."""
        return sorted(self.metrics.member.unique().tolist())

    @property
    def n(self) -> int:
        """How many networks, each of its own seed."""
        return len(self.members)

    @cached_property
    def step(self) -> int:
        """The last step measured."""
        return int(self.metrics.step.max())

    @cached_property
    def seeds(self) -> str:
        """'20 seeds', or 'seed 0' of a single network."""
        return f"{self.n} seeds" if self.n > 1 else f"seed {int(self.metrics.seed.iloc[0])}"

    @cached_property
    def recipe_changes(self) -> list[str]:
        """What was changed of the recipe, besides seed, decay and steps."""
        base = RunConfig.recipe(self.config.recipe_name)
        aside = {"recipe_name", "seed", "weight_decay", "steps", "members", "own"}
        return [
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={safe_name(str(value))}"
            for name, value, _ in self.config.describe()
            if name not in aside and value != getattr(base, name)
        ]

    @property
    def recipe(self) -> str:
        """The recipe's name, and what was changed of it; of another loop, the network's."""
        if self.config.own is not None and self.config.own.recorded:
            return f"{self.config.model}, a loop of its own"
        changes = f" with {', '.join(self.recipe_changes)}" if self.recipe_changes else ""
        return f"{self.config.recipe_name} recipe{changes}"

    @cached_property
    def label(self) -> str:
        """What every figure of it says: recipe, decay, seeds, and how far it reaches."""
        reach = f"to step {self.step:,}" + (f" of {self.config.steps:,}" if self.step < self.config.steps else "")
        return f"{self.recipe}, weight decay {self.weight_decay:g}, {self.seeds}, {reach}"

    @cached_property
    def layers(self) -> list[str]:
        """The layers that the papers follow: all matrices that are large enough for a fit of alpha, of a perceptron all of
        those but the last."""
        sizes = self.diagnostics.groupby("layer", sort=False)[["rows", "columns"]].first().min(axis=1)
        found = sizes.index[sizes >= MIN_EIGENVALUES].tolist() or sizes.index.tolist()
        return found if model_traits(self.config.model).follows_last or len(found) == 1 else found[:-1]

    # -- phases ---------------------------------------------------------------------------------------------

    @cached_property
    def phases(self) -> Phases:
        """Phases of the median accuracies over the members: what tints a figure of all of them."""
        return find_phases(self.metrics.groupby("step")[["train_accuracy", "test_accuracy"]].median().reset_index())

    @cached_property
    def member_phases(self) -> dict[int, Phases]:
        """Phases of each member by itself."""
        return {m: find_phases(self.metrics[self.metrics.member == m]) for m in self.members}

    @cached_property
    def collapsed(self) -> list[int]:
        """Members whose test accuracy has fallen by ten points for good (`find_phases`)."""
        return [m for m, found in self.member_phases.items() if found.collapse is not None]

    @cached_property
    def phase_steps(self) -> pd.DataFrame:
        """Where each phase is read: an analysed step for each member and phase, or NA.

        The paper reads "at the right edge of each phase". Here, for each member by itself:

        - ``pre-grokking``: the last analysed step before the test accuracy begins to rise, with the training
          set learnt (of a member that has not begun: its last);
        - ``grokking``: the analysed step nearest, in logarithm, to its best test accuracy;
        - ``anti-grokking``: the last analysed step, if that is later than the one before; whether the
          accuracy has fallen there is another question (`collapsed`).
        """
        analysed = np.sort(self.diagnostics.step.unique())
        if self.fixed_steps is not None:
            read = [_read_near(self.fixed_steps.get(phase), analysed) for phase in PHASES]
            rows = dict.fromkeys(self.members, read)
        else:
            rows = {m: _read_at(found, analysed) for m, found in self.member_phases.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(PHASES)).astype("Int64")

    def at_steps(self, steps: Mapping[str, float]) -> Study:
        """The same, with each phase read at one step for all members: at the analysed one nearest to that
        given, and not at all if there is none within a fifth of it.

        >>> from grokutils.paper.judge.published import TABLE_STEPS
        >>> study("results/mnist-wd0").at_steps(TABLE_STEPS).phase_steps         # doctest: +SKIP
        """
        if unknown := set(steps) - set(PHASES):
            raise ValueError(f"steps must be those of {', '.join(PHASES)}; got {min(unknown)!r}.")
        return replace(self, fixed_steps=dict(steps))

    def at_phases(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows of a frame (of ``step`` and ``member``) at the steps of `phase_steps`, with a column ``phase``.

        A row stands once for every phase that is read at its step.
        """
        where = self.phase_steps.rename_axis(index="member").melt(var_name="phase", value_name="step", ignore_index=False)
        where = where.dropna().astype({"step": "int64"}).reset_index()
        found = where.merge(frame, on=_WHERE, how="inner")
        found["phase"] = pd.Categorical(found.phase, PHASES, ordered=True)
        return found

    def reading(self, phase: str, members: Iterable[int] | None = None) -> pd.DataFrame:
        """All `measures` where a phase is read, a row per member that has been read there.

        >>> reading = study("results/express/wd0").reading("grokking")           # doctest: +SKIP
        >>> (reading["traps"] >= 0.5).any(axis=1).sum()              # doctest: +SKIP
        """
        steps = self.phase_steps[phase].dropna().astype("int64")
        if members is not None:
            steps = steps[steps.index.isin(list(members))]
        keys = pd.MultiIndex.from_arrays([steps, steps.index], names=_WHERE)
        return self.measures.reindex(keys).droplevel("step")

    def kept_steps(self, member: int) -> list[int]:
        """Steps with weights on disk, those nearest to where the phases of a member are read."""
        saved = np.array(self.record.steps_saved)
        wanted = [int(step) for step in self.phase_steps.loc[member].dropna()] or [self.step]
        return sorted({_nearest(saved, step) for step in wanted}) if saved.size else []

    def matrix(self, layer: str, step: int, member: int) -> np.ndarray:
        """A layer's weights at a step that was kept.

        Raises
        ------
        ValueError : a step that was not kept, or no such layer.
        """
        layers = {found.name: found for found in find_layers(self.record.weights(step, member))}
        if layer not in layers:
            raise ValueError(f"layer must be one of {', '.join(layers)}; got {layer!r}.")
        return layers[layer].read()

    def nearest(self, step: int) -> int:
        """The analysed step nearest, in logarithm, to a step."""
        return _nearest(np.sort(self.diagnostics.step.unique()), step)

    def after_memorisation(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows from the step at which each member has learnt its training set; none of a member that has not."""
        learnt = {m: np.inf if found.memorised is None else found.memorised for m, found in self.member_phases.items()}
        return frame[frame.step >= frame.member.map(learnt)]

    # -- measures -------------------------------------------------------------------------------------------

    @cached_property
    def measures(self) -> pd.DataFrame:
        """Every number measured at an analysed step, a row per step and member, a column per (measure, where): where is a
        layer of `layers`, ``average`` (of their alphas; NaN where one has none) or ``network``."""
        followed = self.diagnostics[self.diagnostics.layer.isin(self.layers)]
        own = followed.select_dtypes("number").columns.difference([*_OF_A_NETWORK, "rows", "columns"])
        table = followed.pivot(index=_WHERE, columns="layer", values=list(own)).astype(float)
        for name in own.intersection(["alpha", "alpha_clipped"]) if self.layers else ():
            table[name, "average"] = table[name].mean(axis=1, skipna=False)
        for layer in self.layers if "mean_over_std" in own else ():
            table["mean_over_std", layer] = table["mean_over_std", layer].abs()  # its sign is an accident of the seed
        again = self.baselines.columns.intersection(self.metrics.columns).difference(_WHERE)
        network = self.metrics.merge(self.baselines.drop(columns=again), on=_WHERE, how="left").set_index(_WHERE)
        for name in network.columns.intersection([*METRICS, *BASELINES]).difference(_OF_A_NETWORK, sort=False):
            table[name, "network"] = network[name].reindex(table.index).astype(float)
        table.columns.names = ["measure", "where"]
        return table.sort_index()

    def over_steps(self, where: str) -> pd.DataFrame:
        """The `measures` of a layer, of ``average`` or of ``network``: ``step``, ``member``, and a column each."""
        return self.measures.xs(where, axis=1, level="where").reset_index()

    @property
    def compared(self) -> list[tuple[str, str]]:
        """The columns of `measures` that stand for one another: alpha, the traps, and everything that is a control of them."""
        of_layers = [(name, layer) for name in ("alpha", "traps", *LAYER_CONTROLS) for layer in self.layers]
        return [("alpha", "average"), *of_layers, *((name, "network") for name in (*NETWORK_CONTROLS, "train_loss"))]

    @cached_property
    def leads(self) -> pd.DataFrame:
        """What went off before the fall, and how long before (`grokutils.records.signals.lead_times`)."""
        return lead_times(self.measures, self.member_phases)

    @cached_property
    def networks(self) -> pd.DataFrame:
        """A row per network, a column per quantity.

        >>> study("results/express/wd0").networks[["best", "final", "traps fc1 grokking"]]       # doctest: +SKIP

        Columns, NaN where a network has no such thing:

        - ``seed``, and steps: ``learnt``, ``saturated`` (every training image right), ``rise``, ``peak``, ``fell`` (five points
          for good) and ``collapsed`` (ten)
        - accuracies: ``at_learning``, ``best``, ``final`` on the test set, ``train_final``; the l2 norm of the network: ``norm_start``,
          ``norm_rise``, ``norm_final``
        - ``<measure> <where> <when>`` of `measures`, where a phase is read (`phase_steps`) and at the ``start``, ``rise`` (the
          last analysed step up to there), ``end``, and ``most`` (the largest there ever was)
        - ``onset <where> <signal>`` of `leads`
        """
        rows = {}
        for member, own in self.metrics.sort_values("step").groupby("member"):
            found, own = self.member_phases[member], own.set_index("step")
            saturated = own.index[own.train_accuracy >= 1]
            rows[member] = {
                "seed": own.seed.iloc[0], "learnt": found.memorised, "saturated": saturated[0] if len(saturated) else np.nan,
                "rise": found.grokking, "peak": found.peak, "fell": found.fall, "collapsed": found.collapse,
                "at_learning": own.test_accuracy.get(found.memorised), "best": found.peak_accuracy,
                "final": found.final_accuracy, "train_final": own.train_accuracy.iloc[-1],
                "norm_start": own.l2_norm.iloc[0], "norm_rise": own.l2_norm.get(found.grokking), "norm_final": own.l2_norm.iloc[-1],
            }  # fmt: skip
        frame = pd.DataFrame.from_dict(rows, orient="index", dtype=float)
        table = self.measures
        by_member, rise = table.groupby(level="member"), table.index.get_level_values("member").map(frame.rise)
        read = {phase: self.reading(phase) for phase in PHASES}
        read |= {"start": by_member.head(1), "end": by_member.tail(1), "most": by_member.max()}
        read["rise"] = table[table.index.get_level_values("step") <= rise].groupby(level="member").tail(1)
        for when, at in read.items():
            at = at.droplevel("step") if "step" in at.index.names else at
            read[when] = at.set_axis([f"{measure} {where} {when}" for measure, where in at], axis=1)
        onsets = self.leads.assign(name="onset " + self.leads.layer + " " + self.leads.signal)
        return pd.concat([frame, *read.values(), onsets.pivot(index="member", columns="name", values="onset").astype(float)], axis=1)

    def eigenvalues(self, layer: str, step: int, member: int, shuffle: int = -1) -> np.ndarray:
        """Eigenvalues of a layer (``shuffle=-1``) or of one of its kept shuffles, ascending; if ``shuffle`` is
        None, of all kept shuffles, a row each.

        Raises
        ------
        ValueError : nothing of that layer, step and member was kept.
        """
        s = self.spectra
        kept = s[(s.layer == layer) & (s.step == step) & (s.member == member)]
        kept = kept[kept.shuffle >= 0] if shuffle is None else kept[kept.shuffle == shuffle]
        if kept.empty:
            raise ValueError(f"{self.name} holds no spectrum of {layer} at step {step} of member {member}.")
        rows = np.stack([np.asarray(x, dtype=np.float64) for x in kept.eigenvalues])
        return rows if shuffle is None else rows[0]

    def shape(self, layer: str) -> tuple[int, int]:
        """(rows, columns) of a layer."""
        own = self.diagnostics[self.diagnostics.layer == layer].iloc[0]
        return int(own["rows"]), int(own["columns"])


def study(
    run: str | os.PathLike,
    pick: Callable[[Iterable[float]], float] = min,
    *,
    analyse: bool = True,
    progress: bool = True,
    **options: Any,
) -> Study:
    """Read a run, analysed (`grokutils.records.analysis.analyze_record`: at once if the record holds it already).

    >>> study("runs/x").phase_steps                                  # doctest: +SKIP

    Parameters
    ----------
    run : its name in ``runs/`` or ``results/``, or its folder
    pick : which weight decay, of a run whose members have several: ``min`` or ``max``. Members of different
        decays never stand in one study.
    analyse : without it there are measurements alone, and the analysed frames have no rows
    progress, **options : of the analysis

    Raises
    ------
    FileNotFoundError : no such record; the message lists those there are.
    RecordError : a damaged record, or one without measurements.
    """
    record = load_record(run)
    if analyse:
        found = analyze_record(record, progress=progress, **options)
    else:
        found = Analysis(*(pd.DataFrame(columns=list(c)) for c in (DIAGNOSTICS, SPECTRA, BASELINES)))
    decay = pick({network.weight_decay for network in record.config.networks})
    return Study(record, decay, *(
        frame[frame.member.isin([i for i, x in enumerate(record.config.networks) if x.weight_decay == decay])]
        .reset_index(drop=True)
        for frame in (record.metrics, found.diagnostics, found.spectra, found.baselines)
    ))  # fmt: skip


def study_each_decay(run: str | os.PathLike, **options: Any) -> list[Study]:
    """A study for each weight decay of a run's members, the smallest first.

    >>> [data.weight_decay for data in study_each_decay("results/modular-p29")]      # doctest: +SKIP
    [0.0, 0.1, 0.3, 1.0]

    Options and exceptions are those of `study`.
    """
    decays = sorted({network.weight_decay for network in load_record(run).config.networks})
    return [study(run, lambda _, decay=decay: decay, **options) for decay in decays]


def _read_at(found: Phases, analysed: np.ndarray) -> list[int | None]:
    """The steps at which the three phases of one member are read."""
    if found.memorised is None:
        return [None, None, None]
    before = analysed[analysed >= found.memorised]
    if found.grokking is not None:
        before = before[before < found.grokking]
    pre = int(before[-1]) if before.size else None
    if found.grokking is None:
        return [pre, None, None]
    peak, end = _nearest(analysed, found.peak), int(analysed[-1])
    return [pre, peak, end if end > peak else None]


def _read_near(step: float | None, analysed: np.ndarray) -> int | None:
    if step is None:
        return None
    nearest = _nearest(analysed, step)
    return nearest if 1 / 1.2 < nearest / step < 1.2 else None


def _nearest(steps: np.ndarray, step: float) -> int:
    return int(steps[np.argmin(np.abs(np.log(np.maximum(steps, 1)) - np.log(max(step, 1))))])

