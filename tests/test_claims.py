"""Every claim's rule can give every verdict, from frames whose verdict is known; and what is written of it."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from grokutils import RunConfig, train
from grokutils.cli import main
from grokutils.paper.causes.claims import CAUSE_CLAIMS
from grokutils.paper.claims import CLAIMS, REFERENCE, TOPICS, judge, table, with_run, write
from grokutils.paper.claims_page import details, overview, records, rule
from grokutils.paper.harmful_traps.claims import HARM_CLAIMS
from grokutils.paper.judge import impossible
from grokutils.paper.judge.evidence import NotMeasured, Source, at, collapsed
from grokutils.paper.judge.findings import (
    Finding,
    exact_share,
    informedness,
    mean,
    median,
    over_networks,
    phase_accuracy,
    separation,
    share,
)
from grokutils.paper.judge.judging import RULE, VERDICTS, Claim, Part, Range, judge_claim
from grokutils.paper.judge.published import MODULAR_MATRICES
from grokutils.paper.judge.stats import FEWEST, two_thresholds
from grokutils.records.record import RecordError
from grokutils.records.schedule import log_spaced
from grokutils.records.signals import LAYER_CONTROLS, NETWORK_CONTROLS
from grokutils.records.study import Study

BY_ID = {claim.id: claim for claim in CLAIMS}
YES, PARTLY, NO, UNMEASURED = VERDICTS

# -- networks whose story is known --------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """What happens to one network; triples are values before grokking, at the peak and at the end."""

    learnt: float = 0.15  # test accuracy where the training set is learnt
    best: float = 0.85
    end: float = 0.45
    learnt_at: float = 0.004  # as a share of the experiment's steps, like the times below
    train_end: float = 1.0
    norm: tuple = (1.0, 1.0, 4.5)
    fc1: tuple = (4.0, 3.2, 1.3)  # alpha
    fc2: tuple = (4.6, 2.4, 1.4)
    other: tuple = (4.1, 2.0, 3.9)  # alpha of a transformer's matrices
    traps1: tuple = (0.0, 0.0, 6.0)
    traps2: tuple = (0.0, 0.0, 1.0)
    traps: tuple = (0.0, 0.0, 5.0)  # of a transformer's matrices
    strength: tuple = (0.5, 0.6, 9.0)
    p: tuple = (0.5, 0.4, 0.002)
    D: tuple = (0.012, 0.02, 0.30)
    measures: tuple = (1.0, 2.0, 2.0)  # the papers' other measures
    late: bool = False  # alpha and traps change only after the fall
    erg: float = 1.0  # 1: the ERG gap follows |alpha - 2|, -1: the contrary, 0: neither


KEPT = Story(best=0.88, end=0.85, norm=(1.0, 0.5, 0.4), fc1=(4.0, 3.2, 3.0), fc2=(4.6, 2.4, 2.4), traps1=(0, 0, 0),
             traps2=(0, 0, 0))  # fmt: skip
# With weight decay as the paper has it: no collapse, and yet low alpha and traps.
DECAYED = replace(KEPT, fc2=(4.6, 2.4, 1.2), traps1=(0, 0, 2.0), traps2=(0, 0, 1.0))
# When the rise begins, the peak, when the signals have changed, when the fall begins.
RISE, PEAK, CHANGED, FALL = 0.02, 0.1, 0.2, 0.3


@functools.cache
def run(*stories: Story, recipe: str = "express", decay: float = 0.0, until: float = 1.0) -> Source:
    """A record of one network per story, up to a share of the experiment."""
    config = RunConfig.recipe(recipe, weight_decay=decay).ensemble(range(len(stories)))
    horizon = RunConfig.recipe(recipe).steps
    measured, saved = (np.array([s for s in log_spaced(horizon, k) if s <= until * horizon]) for k in (40, 10))
    layers = [("fc1", "fc1", "traps1"), ("fc2", "fc2", "traps2"), ("fc3", "fc1", "traps2")]
    if recipe == "modular":
        layers = [(name, "other", "traps") for name in MODULAR_MATRICES.values()]
    frames = {"metrics": [], "diagnostics": [], "baselines": []}
    for member, story in enumerate(stories):
        for name, rows in _frames(member, story, horizon, measured, saved, layers, decay).items():
            frames[name] += rows
    record = SimpleNamespace(name=f"{recipe}-test", config=config, folder=Path("nowhere"), steps_saved=[])
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
    return Source(Study(record, decay, joined["metrics"], joined["diagnostics"], pd.DataFrame(), joined["baselines"]))


def _frames(member, story, horizon, measured, saved, layers, decay):
    rng = np.random.default_rng(member)

    def course(steps, values):
        """From the value before grokking over that at the peak to that at the end."""
        pre, peak, end = values
        changes = [0.6, 0.8] if story.late else [PEAK * 1.01, CHANGED]
        return np.interp(_log(steps, horizon), np.log([RISE, PEAK, *changes]), [pre, peak, peak, end])

    at = dict(member=member, seed=member, weight_decay=decay)
    accuracy = np.interp(
        _log(measured, horizon), np.log([RISE, PEAK, FALL, 1.0]),
        [story.learnt, story.best, story.best - 0.001, story.end],
    )  # fmt: skip
    known = np.where(measured >= story.learnt_at * horizon, 1.0, 0.5)
    known[measured >= 0.9 * horizon] = story.train_end
    own = 1 + 0.05 * member  # networks differ, so that phases can overlap over networks
    norm = np.where(measured == 0, 1.0, course(measured, story.norm)) * own
    metrics = pd.DataFrame({
        "step": measured, **at, "train_accuracy": known, "test_accuracy": accuracy, "train_loss": 0.01, "l2_norm": norm
    })  # fmt: skip
    diagnostics = []
    for layer, alpha, traps in layers:
        a = course(saved, getattr(story, alpha)) * (1 + 0.004 * rng.standard_normal(len(saved)))
        gap = {1: np.abs(a - 2), -1: 10 - np.abs(a - 2), 0: rng.standard_normal(len(a))}[story.erg]
        controls = {name: 1 + 0.001 * rng.standard_normal(len(a)) for name in LAYER_CONTROLS}
        diagnostics.append(pd.DataFrame({
            "step": saved, **at, "layer": layer, "rows": 100, "columns": 100, "alpha": a, "alpha_clipped": a,
            "traps": course(saved, getattr(story, traps)), "trap_strength": course(saved, story.strength),
            "ks_p": course(saved, story.p), "ks_p_textbook": 1.0, "ks_D": course(saved, story.D), "erg_gap": gap,
            **controls,
        }))  # fmt: skip
    rivals = {
        name: course(saved, story.measures) * own * (1 + 0.004 * rng.standard_normal(len(saved)))
        for name in NETWORK_CONTROLS
    }
    baselines = pd.DataFrame({"step": saved, **at, **rivals})
    return {"metrics": [metrics], "diagnostics": diagnostics, "baselines": [baselines]}


def _log(steps, horizon):
    return np.log(np.maximum(steps, 1) / horizon)


N = 6  # the fewest of which "all" has an exact interval above one half


def records_of(wd0=Story(), wd001=DECAYED, modular=Story(), **options) -> dict[str, Source]:
    """A record for every need; a story stands for several networks of it."""
    wd0, wd001, modular = (s if isinstance(s, tuple) else (s,) * N for s in (wd0, wd001, modular))
    beside = {"until": options["until"]} if "until" in options else {}
    return {
        "wd0": run(*wd0, **options),
        "wd0.01": run(*wd001, decay=0.01, **options),
        "modular": run(*modular, recipe="modular", **beside),
    }


def half(one: Story, other: Story) -> tuple[Story, ...]:
    return (one,) * (N // 2) + (other,) * (N - N // 2)


S = Story()


def but(**changes) -> Story:
    return replace(S, **changes)


# Of each claim: stories that replicate it, do partly, and do not; at weight decay 0 and, after it, 0.01.
CASES = {
    "three-phases": [(S,), (but(end=0.70),), (but(learnt=0.8, end=0.82, train_end=0.9),)],
    "memorisation": [(S,), (but(learnt=0.3),), (but(learnt=0.6),)],
    "peak": [(S,), (but(best=0.93),), (but(best=0.6, learnt_at=0.05),)],
    "back-to-chance": [(but(end=0.11),), (S,), (but(end=0.70),)],
    "norm-grows": [(S,), (but(norm=(1.0, 1.0, 1.5)),), (but(norm=(1.5, 1.0, 1.0)),)],
    "decay-prevents": [
        (S, KEPT),
        (S, half(KEPT, replace(KEPT, end=0.70))),
        (S, replace(KEPT, end=0.6, norm=(1.0, 1.0, 3.0))),
    ],
    "alpha-falls": [
        (S,),
        (half(S, but(fc1=(4.0, 3.2, 3.5))),),
        (but(fc1=(3.0, 3.2, 3.5), fc2=(2.0, 3.0, 4.0)),),
    ],
    "alpha-values": [
        (but(fc1=(4.0, 3.2, 1.1), fc2=(4.6, 2.4, 1.4)),),
        (but(fc1=(4.0, 3.2, 5.0)),),
        (but(fc1=(12.0, 9.0, 8.0), fc2=(12.0, 9.0, 8.0)),),
    ],
    "alpha-identifies": [
        (S, KEPT),
        (S, half(KEPT, replace(KEPT, fc1=(4.0, 3.2, 1.3), fc2=(4.6, 2.4, 1.3)))),
        (S, replace(DECAYED, fc1=(4.0, 3.2, 1.3))),
    ],
    "alpha-warns": [(S,), (half(S, but(late=True)),), (but(fc1=(4.0, 3.2, 2.5), fc2=(4.6, 2.4, 2.5)),)],
    "alpha-warns-alone": [
        (but(measures=(1.0, 1.0, 1.0)), KEPT),
        (half(but(measures=(1.0, 2.0, 2.0)), but(measures=(1.0, 1.0, 1.0))), replace(KEPT, measures=(1.0, 1.0, 1.0))),
        (but(fc1=(4.0, 3.2, 3.0), fc2=(4.6, 2.4, 2.4)), replace(KEPT, measures=(1.0, 1.0, 1.0))),
    ],
    "alpha-alone-three": [
        (but(measures=(1.0, 2.0, 2.0)),),
        (half(but(measures=(1.0, 2.0, 3.0)), but(measures=(1.0, 2.0, 2.0))),),
        (but(measures=(1.0, 2.0, 3.0), fc1=(4.0, 4.0, 4.0), fc2=(4.0, 4.0, 4.0)),),
    ],
    "setol-alignment": [(S,), (half(S, but(erg=-1.0)),), (but(erg=-1.0),)],
    "no-traps-before": [
        (S,), (half(S, but(traps1=(0, 1, 6))),), (but(traps1=(0, 1, 6)),),
    ],
    "traps-at-collapse": [(S,), (but(traps2=(0, 0, 0)),), (but(traps1=(0, 0, 0), traps2=(0, 0, 0)),)],
    "many-and-one": [(S,), (but(traps1=(0, 0, 1.5)),), (but(traps1=(0, 0, 0), traps2=(0, 0, 4)),)],
    "decay-awkward": [(S, DECAYED), (S, KEPT), (S, replace(KEPT, end=0.5))],
    "traps-definitive": [
        (but(fc1=(4.0, 3.2, 1.3)), KEPT),
        (S, half(KEPT, replace(DECAYED, fc1=(4.0, 3.2, 1.3)))),
        (S, replace(DECAYED, fc1=(4.0, 3.2, 1.3))),
    ],
    "traps-detect": [
        (but(traps2=(0, 0, 2.0)), KEPT),
        (but(traps1=(0, 0, 1), traps2=(0, 0, 1)), KEPT),
        (S, replace(DECAYED, traps1=(0, 0, 6))),
    ],
    "traps-grow": [
        (S,), (but(traps2=(0, 0, 0)),), (but(traps1=(6, 6, 0), traps2=(1, 1, 0), strength=(5, 5, 1)),),
    ],
    "random-before": [(S,), (but(p=(0.5, 0.01, 0.002)),), (but(p=(0.01, 0.01, 0.002)),)],
    "deviates-after": [(S,), (half(S, but(p=(0.5, 0.5, 0.5))),), (but(p=(0.5, 0.5, 0.5), D=(0.01, 0.01, 0.02)),)],
    **{
        f"{name}-blind": [(S,), ((but(measures=(1.0, 2.0, 3.0)),) * 2 + (S,) * 4,), (but(measures=(1.0, 2.0, 3.0)),)]
        for name in ("activation-sparsity", "weight-entropy", "circuit-complexity")
    },
    "l2-norm-blind": [(but(norm=(1.0, 2.0, 2.0)),), (half(but(norm=(1.0, 2.0, 2.0)), S),), (S,)],
    "modular-phases": [
        (but(best=0.97, end=0.68),), (but(best=0.97, end=0.85),),
        (but(learnt=0.5, best=0.6, end=0.6, train_end=0.9, learnt_at=0.09),),
    ],
    "modular-alpha": [(S,), (but(other=(4.1, 2.0, 1.2)),), (but(other=(8.0, 8.0, 8.0)),)],
    "modular-opposite": [
        (S,), (but(other=(4.1, 2.0, 1.2)),), (but(other=(8.0, 8.0, 8.0), fc1=(5.0, 4.0, 3.0), fc2=(5.0, 4.0, 3.0)),),
    ],
    "modular-traps": [(S,), (but(traps=(1, 1, 5)),), (but(traps=(9, 9, 20)),)],
}  # fmt: skip


def judged_on(claim: Claim, *stories, **options):
    key = "modular" if claim.needs == ("modular",) else "wd0"
    named = dict(zip([key, "wd001"], stories, strict=False))
    if claim.needs == ("wd0", "modular"):
        named["modular"] = stories[0] if stories else S
    return judge_claim(claim, records_of(**named, **options))


def test_every_claim_that_needs_records_has_a_case_for_each_verdict():
    elsewhere = {claim.id for claim in (*HARM_CLAIMS, *CAUSE_CLAIMS)}  # test_claims_harm.py, test_claims_causes.py
    assert set(CASES) | elsewhere == {claim.id for claim in CLAIMS if claim.needs}
    assert all(len(cases) == 3 for cases in CASES.values())


@pytest.mark.parametrize(
    "claim, verdict, stories",
    [(claim, verdict, case) for claim, cases in CASES.items() for verdict, case in zip(VERDICTS, cases, strict=False)],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_claim_gets_the_verdict_of_the_story(claim, verdict, stories):
    found = judged_on(BY_ID[claim], *stories)
    parts = [(p.label, p.verdict, p.finding, p.reason) for p in found.parts if p.verdict]
    assert found.verdict == verdict, "\n".join(map(str, parts))


@pytest.mark.parametrize("claim", CASES)
def test_a_record_that_stops_short_is_not_yet_measured_and_says_how_far_it_reaches(claim):
    found = judged_on(BY_ID[claim], until=0.001)  # nothing is learnt yet
    assert found.verdict == UNMEASURED
    assert found.reasons and all("reaches step" in reason for reason in found.reasons)


@pytest.mark.parametrize("claim", [claim.id for claim in CLAIMS if claim.needs])
def test_without_a_record_nothing_is_measured(claim):
    judged = judge({"nowhere": {"wd0": "no-such-run"}}, [BY_ID[claim]], progress=False)
    found = judged.results["nowhere"][claim]
    assert found.verdict == UNMEASURED
    assert all(p.finding is None for p in found.parts)
    assert all("there is no" in reason for reason in found.reasons)


def test_what_is_settled_early_is_judged_early():
    """A fall as large as the claim says is a fall, wherever the record ends; a smaller one may still grow."""
    phases = BY_ID["three-phases"]
    assert judged_on(phases, but(end=0.1), until=0.8).verdict == YES
    assert judged_on(phases, but(end=0.75), until=0.8).verdict == UNMEASURED
    peak = BY_ID["peak"]
    assert judged_on(peak, until=0.15).verdict == UNMEASURED
    assert judged_on(peak, until=0.25).verdict == YES


def test_records_of_the_papers_recipe_are_read_at_its_tables_steps():
    source = run(but(fc1=(4.0, 3.2, 1.2)), recipe="paper")
    assert source.study.phase_steps.loc[0].tolist() == [100_000, 1_000_000, 10_000_000]
    assert source[at("anti-grokking", "fc1", "alpha")][0] == pytest.approx(1.2, rel=0.02)
    short = run(S, recipe="paper", until=0.2)
    assert short[at("grokking", "fc1", "alpha")].notna().all()
    with pytest.raises(NotMeasured, match="reaches step 1,995,262; this is read at 10,000,000"):
        short[at("anti-grokking", "fc1", "alpha")]
    pre, peak, end = run(S).study.phase_steps.loc[0]
    assert end == 250_000 and peak == pytest.approx(25_000, rel=0.1) and 2_000 < pre <= 6_400


def test_what_speaks_of_the_papers_recipe_is_shown_but_not_judged_elsewhere():
    claim = BY_ID["memorisation"]
    of = {recipe: judged_on(claim, recipe=recipe).parts[1] for recipe in ("express", "paper")}
    assert of["express"].verdict is None and of["express"].finding.value == 1000
    assert of["paper"].verdict == YES and of["paper"].finding.value == pytest.approx(40_000, rel=0.1)


def test_one_network_has_no_interval_and_is_judged_by_its_number():
    found = judged_on(BY_ID["three-phases"], (S,), recipe="paper")
    assert found.verdict == YES
    assert all(p.finding.n == 1 and p.finding.low is None for p in found.parts)
    few = judged_on(BY_ID["alpha-alone-three"], (S,), recipe="paper")
    assert few.verdict == UNMEASURED and "needs at least 5" in few.reasons[0]


# -- the rule -----------------------------------------------------------------------------------------------

judged_parts = [
    pytest.param(part, id=f"{claim.id}-{i}")
    for claim in CLAIMS
    for i, part in enumerate(claim.parts)
    if part.range is not None
]


@pytest.mark.parametrize("part", judged_parts)
def test_every_range_can_give_every_verdict(part):
    (a, b), (c, d) = part.range.agrees, part.range.close
    inside = a if math.isfinite(a) else b
    outside = c - 1 if math.isfinite(c) else d + 1
    assert part.range.verdict(Finding(inside)) == YES
    assert part.range.verdict(Finding(outside)) == NO
    # undecided: the number is far off, but the interval reaches what agrees, or the other way round
    assert part.range.verdict(Finding(outside, min(outside, inside), max(outside, inside), 9)) == PARTLY
    assert part.range.verdict(Finding(inside, min(outside, inside), max(outside, inside), 9)) == PARTLY


ends = st.floats(-10, 10)


@given(st.tuples(ends, ends, ends, ends), st.tuples(ends, ends, ends))
def test_a_verdict_follows_the_stated_rule(bounds, numbers):
    c, a, b, d = sorted(bounds)
    low, value, high = sorted(numbers)
    verdict = Range((a, b), (c, d)).verdict(Finding(value, low, high, 20))
    if a <= value <= b and c <= low and high <= d:
        assert verdict == YES
    elif not c <= value <= d and (high < a or low > b):
        assert verdict == NO
    else:
        assert verdict == PARTLY


def test_a_range_that_is_none_is_refused():
    with pytest.raises(ValueError, match="what agrees must lie inside what is close"):
        Range((0, 1), (0.5, 2))


@pytest.mark.parametrize(
    "values, together",
    [
        ([1, 1], YES), ([0, 0], NO), ([1, 0], PARTLY), ([0.5, 0.5], PARTLY), ([0.5, 0], PARTLY), ([1, None], UNMEASURED),
        ([0, None], UNMEASURED),
    ],
)  # fmt: skip
def test_a_claim_is_what_its_judged_parts_are_together(values, together):
    def test_of(value):
        def test(sources):
            if value is None:
                raise NotMeasured("too short")
            return Finding(value)

        return test

    rule = Range((0.9, 1.1), (0.4, 1.1))
    parts = [Part("x", test_of(value), rule) for value in values]
    shown = [Part("not judged", test_of(value)) for value in (0, None)]
    claim = Claim("x", "phases", "X", "X.", "P1", "1", (), (*parts, *shown))
    assert judge_claim(claim, {}).verdict == together
    # "always": one part that fails settles it
    assert judge_claim(replace(claim, exclusive=True), {}).verdict == (NO if 0 in values else together)


def test_what_cannot_rise_any_more_is_past_its_peak():
    early = dict(until=1.2 * PEAK)
    with pytest.raises(NotMeasured, match="may still rise"):
        run(S, **early)["best"]
    assert run(but(learnt=1.0, best=1.0), **early)["best"][0] == 1.0


def test_before_its_own_rise():
    found = run(but(norm=(1.0, 5.0, 5.0)))
    rise = found["rise"][0]
    norm, traps = (found.course(0, *place) for place in (("network", "l2_norm"), ("fc1", "traps")))
    assert found["norm_rise"][0] == norm[norm.index <= rise].iloc[-1] < 5
    assert found[at("rise", "fc1", "traps")][0] == traps[traps.index <= rise].iloc[-1]
    never = run(but(learnt=0.5, best=0.5, end=0.5))
    assert np.isnan(never["norm_rise"][0]) and np.isnan(never[at("rise", "fc1", "traps")][0])
    with pytest.raises(NotMeasured, match="has no traps network rise"):
        found[at("rise", "network", "traps")]


# -- numbers over networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count, n, low, high", [(20, 20, 0.832, 1), (0, 20, 0, 0.168), (10, 20, 0.272, 0.728)])
def test_exact_interval(count, n, low, high):
    found = exact_share(count, n)
    assert (found.value, found.n) == (count / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-4)  # Clopper and Pearson's tables


def test_few_networks_have_no_interval():
    assert exact_share(1, 1).low is None and exact_share(FEWEST, FEWEST).low is not None
    assert over_networks(np.ones(FEWEST - 1), np.mean).high is None


@given(st.lists(st.floats(-5, 5), min_size=FEWEST, max_size=20))
def test_bootstrap_interval_lies_among_the_values(values):
    found = over_networks(np.array(values), np.median)
    assert found.value == np.median(values) and found.n == len(values)
    assert found.low is found.high is None or min(values) <= found.low < found.high <= max(values)


def test_networks_that_all_agree_have_no_interval():
    """An interval without width says only that these networks agree."""
    assert over_networks(np.full(20, 0.5), np.median) == Finding(0.5, n=20)
    assert exact_share(20, 20).low is not None, "an exact one is never without width"


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(size=400)
    found = over_networks(values, np.mean)
    half_width = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((found.value - half_width, found.value + half_width), abs=0.02)


def test_networks_without_a_value_are_left_out_of_a_median_and_said():
    source = run(S, S, S, but(end=0.84))
    quantity = lambda s: pd.Series([1.0, 2.0, 6.0, np.nan])  # noqa: E731
    found = median("wd0", quantity)({"wd0": source})
    assert (found.value, found.n, found.note) == (2.0, 3, "1 without a value")
    assert mean("wd0", quantity)({"wd0": source}).value == 3.0
    with pytest.raises(NotMeasured, match="no network of express-test has a value"):
        median("wd0", lambda s: pd.Series([np.nan] * 4))({"wd0": source})
    flags = lambda s: pd.Series([1.0, 1.0, 0.0, np.nan])  # noqa: E731
    assert share("wd0", flags)({"wd0": source}).value == 0.5
    assert share("wd0", flags, known=True)({"wd0": source}).note == "2 of 3"


def test_informedness_is_hits_less_false_alarms():
    both = {"wd0": run(*half(S, KEPT)), "wd0.01": run(*(KEPT,) * N, decay=0.01)}
    for hits, false, j in ((3, 0, 1.0), (3, 9, 0.0), (0, 9, -1.0), (2, 3, 1 / 3)):
        flags = {"wd0": [True] * hits + [False] * (3 - hits) + [i < false for i in range(3)],
                 "wd0.01": [i < false - 3 for i in range(N)]}  # fmt: skip
        quantity = lambda s, flags=flags: pd.Series(flags["wd0.01" if s.study.weight_decay else "wd0"])  # noqa: E731
        found = informedness({"it": quantity})(both)
        assert found.value == pytest.approx(j) and found.n == 2 * N
    best = informedness({"never": lambda s: collapsed(s) & False, "right": collapsed})(both)
    assert best.value == 1 and best.note.startswith("right: 1.00 of 3 collapsed, 0.00 of 9")
    with pytest.raises(NotMeasured, match="no network collapsed"):
        informedness({"it": lambda s: collapsed(s) | True})({"wd0": run(KEPT), "wd0.01": run(KEPT, decay=0.01)})


def test_separation_is_that_of_the_two_phases():
    column = {"it": ("network", "activation_sparsity_text")}
    assert separation("wd0", column)({"wd0": run(*(but(measures=(1, 1, 3)),) * N)}).value == 1
    assert separation("wd0", column)({"wd0": run(*(but(measures=(1, 1, 1)),) * N)}).value < 0.3
    with pytest.raises(NotMeasured, match="0 collapsed networks"):
        separation("wd0", column)({"wd0": run(*(KEPT,) * N)})


def test_phases_are_told_by_other_networks():
    column = {"it": ("network", "activation_sparsity_text")}
    told = lambda *m: phase_accuracy("wd0", column)({"wd0": run(*(but(measures=m),) * N)}).value  # noqa: E731
    assert told(1, 2, 3) == 1
    assert told(1, 3, 2) == 1, "the order of the phases does not matter"
    assert told(1, 2, 2) == pytest.approx(2 / 3, abs=0.2)
    assert told(1, 1, 1) < 0.7


def test_thresholds_are_the_best_there_are():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.normal(size=(6, 3)).round(1) + rng.permutation(3)
        order, cuts = two_thresholds(values)
        assert cuts[0] <= cuts[1] and sorted(order) == [0, 1, 2]

        def right(a, b, values=values, order=order):
            return np.mean(order[np.searchsorted([a, b], values)] == np.arange(3))

        known = [-np.inf, *((np.unique(values)[1:] + np.unique(values)[:-1]) / 2), np.inf]
        assert right(*cuts) == max(right(a, b) for a in known for b in known if a <= b)


# -- arithmetic ---------------------------------------------------------------------------------------------


def test_no_claim_of_arithmetic_rests_on_a_record_and_each_could_have_been_right():
    judged = judge({}, CLAIMS, progress=False)
    assert set(judged.results["arithmetic"]) == {"alpha-at-most-1", "ks-pair", "ks-peak-random", "trap-size"}
    own = {name: one.verdict for name, one in judged.results["arithmetic"].items()}
    # 1.0 could have been rounded from a mean that is possible; 0.9 could not
    assert own.pop("alpha-at-most-1") == PARTLY and set(own.values()) == {NO}
    assert impossible.excess_over_smallest_alpha(1.4)({}).value > 0
    p = stats.kstwo.sf(0.1, 200)
    assert impossible.decades_off(0.1, p, 200)({}).value == pytest.approx(0)
    assert impossible.random_share(0.012)({}).value > 0.05
    assert impossible.trap_over_norm(2.5, 420)({}).value < 0


def test_points_for_a_p_value_are_found():
    for n in (20, 61, 200):
        p = stats.kstwo.sf(0.3, n)
        assert impossible.points_for(0.3, p)({}).value == pytest.approx(n, abs=0.01)


def test_smallest_alpha_is_a_bound_that_real_fits_respect():
    from grokutils.spectra.alpha import fit_power_law

    x = np.array([2e-5] * 3 + [float(np.finfo(np.float32).max) ** 2 * 150_000] * 40)
    x *= 1 + 1e-5 * np.arange(len(x))
    assert fit_power_law(x).alpha > impossible.smallest_alpha() > 1


# -- what is written ----------------------------------------------------------------------------------------


def test_claims_are_complete():
    assert len(CLAIMS) >= 12 and len(BY_ID) == len(CLAIMS)
    assert {claim.topic for claim in CLAIMS} == set(TOPICS)
    assert {paper for claim in CLAIMS for paper in ("P1", "P2", "P3", "S ") if paper in claim.source} == {"P1", "P2", "P3", "S "}
    for claim in CLAIMS:
        assert claim.statement.endswith(".") and claim.source and claim.paper and claim.title
        assert any(part.range and part.only is None for part in claim.parts), "every recipe has something to judge"
        assert set(claim.needs) <= set(REFERENCE["paper"])


@pytest.fixture(scope="module")
def judged():
    """All claims: on known networks, on a record that is short, and on one that is not there."""
    from grokutils.paper.judge.judging import ARITHMETIC, Judged, _Sources

    scales = {"express": records_of(), "paper": records_of(recipe="paper", until=0.2)}
    results = {
        name: {claim.id: judge_claim(claim, _Sources(found, {})) for claim in CLAIMS if claim.needs}
        for name, found in scales.items()
    }
    results["express"].pop("modular-phases")
    results[ARITHMETIC] = {claim.id: judge_claim(claim, {}) for claim in CLAIMS if not claim.needs}
    labels = {"express": {"wd0": {"name": "a", "label": "<b>"}, "wd0.01": {"missing": "there is no record b"}}}
    return Judged(CLAIMS, results, labels, ("a note & more: /of/this/machine",))


def test_json_holds_everything_and_is_json(judged, tmp_path):
    path = write(judged, tmp_path / "claims.json")
    value = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert value["rule"] == RULE and [c["id"] for c in value["claims"]] == list(BY_ID)
    one = next(c for c in value["claims"] if c["id"] == "three-phases")
    assert one["results"]["express"]["verdict"] == judged.verdict("three-phases", "express") == YES
    part = one["results"]["express"]["parts"][2]
    assert part["networks"] == N and part["low"] is part["high"] is None and part["rule"]
    assert one["results"]["paper"]["verdict"] == UNMEASURED and one["results"]["paper"]["parts"][2]["reason"]
    assert judged.verdict("modular-phases", "express") is None


def test_json_is_not_written_into_nowhere(judged, tmp_path):
    with pytest.raises(ValueError, match="must exist; name another file"):
        write(judged, tmp_path / "none" / "claims.json")


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.open, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        if tag not in ("br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_has_every_claim_once_and_every_link_leads_somewhere(judged):
    parts = [overview(judged), records(judged), rule(), *(details(judged, topic) for topic in TOPICS)]
    assert all(part._repr_html_() == part for part in parts), "a notebook shows them"
    pages = [Page(part) for part in parts]
    ids = [i for page in pages for i in page.ids]
    assert sorted(ids) == sorted(f"claim-{claim.id}" for claim in CLAIMS)
    assert [link.removeprefix("#") for link in pages[0].links] == ids
    shown = " ".join(text for page in pages for text in page.texts)
    for text in (*VERDICTS, "a note & more", "<b>", "there is no record b", "reaches step 1,995,262", "n = 6", RULE):
        assert text in shown, text
    assert "/of/this/machine" not in shown
    assert all(claim.statement in shown and claim.source in shown for claim in CLAIMS)


def test_an_unknown_topic_is_refused(judged):
    with pytest.raises(ValueError, match="topic must be one of 'phases'"):
        details(judged, "weather")


# -- on records ---------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project: no reference records, here or where the process works."""
    (tmp_path / "project" / "book" / "_assets").mkdir(parents=True)
    monkeypatch.setenv("GROKUTILS_HOME", str(tmp_path / "project"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "project"


def small(out, **options):
    config = RunConfig.recipe("express", steps=300, width=16, per_class=2, init_scale=2, **options)
    return train(config, out=out, progress=False)


def test_a_run_of_ones_own(project, capsys):
    small("runs/mine")
    assert main(["claims", "--run", "runs/mine"]) == 0
    said = capsys.readouterr().out
    path = project / "book" / "_assets" / "claims.json"
    assert str(path) in said and "your run:" in said and "does not" in said
    value = json.loads(path.read_text())
    assert value["records"]["your run"]["wd0"]["step"] == 300
    results = {c["id"]: c["results"] for c in value["claims"]}
    assert results["three-phases"]["your run"]["verdict"] == UNMEASURED
    assert "reaches step 300" in results["three-phases"]["your run"]["parts"][2]["reason"]
    assert "modular-phases" not in [i for i, r in results.items() if "your run" in r]
    reasons = results["alpha-identifies"]["your run"]["parts"][0]["reason"]
    assert "reaches step 300" in reasons or "no run at weight decay 0.01" in reasons
    assert {r["express"]["verdict"] for i, r in results.items() if "express" in r} == {UNMEASURED}


def test_a_run_of_both_decays_serves_as_both(project):
    config = RunConfig.recipe("express", steps=100, width=16, per_class=2).ensemble((0, 1), (0.0, 0.01))
    train(config, out="runs/both", progress=False)
    scale = with_run("runs/both")["your run"]
    named = {key: run for key, run in scale.items() if run is not None}
    assert named == {"wd0": "runs/both", "wd0.01": "runs/both"} and set(scale) == set(REFERENCE["express"])
    judged = judge({"both": scale}, CLAIMS[:1], progress=False)
    assert {key: one["weight_decay"] for key, one in judged.records["both"].items()} == {"wd0": 0, "wd0.01": 0.01}
    assert {one["networks"] for one in judged.records["both"].values()} == {2}
    assert "reaches step 100" in table(judged)


def test_a_damaged_record_is_an_error_and_not_a_verdict(project, capsys):
    record = small("runs/mine")
    (record.folder / "metrics.parquet").write_bytes(b"nonsense")
    with pytest.raises(RecordError, match="metrics.parquet is damaged"):
        judge({"mine": {"wd0": "runs/mine"}}, progress=False)
    assert main(["claims", "--run", "runs/mine"]) == 1
    assert "metrics.parquet is damaged" in capsys.readouterr().err
    assert main(["claims", "--run", "runs/none"]) == 1
    assert not (project / "book" / "_assets" / "claims.json").exists()


def test_a_network_that_never_learns_is_no_error():
    found = judged_on(BY_ID["memorisation"], (but(learnt_at=2.0, train_end=0.5),) * N)
    assert found.verdict == UNMEASURED and "has a value" in found.reasons[0]
    source = run(but(learnt_at=2.0, train_end=0.5))
    assert math.isnan(source["at_learning"][0])
