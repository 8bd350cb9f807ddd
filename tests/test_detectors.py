"""Detectors on networks whose every number is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_studies import COLLAPSE, NEVER, PLATEAU, STEPS, made
from sklearn.metrics import roc_auc_score

from grokutils.paper.causes.detectors import (
    SIGNALS,
    Watch,
    alarms,
    at_chance,
    auc,
    comparable,
    curve,
    false_alarms,
    fitted,
    leads,
    never_fell,
    ranking,
    watch,
)
from grokutils.records.signals import LASTING, Signal

ALPHA = Signal("alpha", "fc1", "below", 2.0)
TRAPS = Signal("traps", "fc1", "reaches", 0.5)
MORE = Signal("traps", "fc1", "grows", 1.0)
NORM = Signal("l2_norm", "network", "away", 1.0)


def course(study, member, **columns):
    """The study with other numbers for one member and layer fc1 (or the network), a number per step."""
    frames = {"diagnostics": study.diagnostics.copy(), "metrics": study.metrics.copy()}
    for name, values in columns.items():
        table, layer = ("metrics", None) if name == "l2_norm" else ("diagnostics", "fc1")
        frame = frames[table]
        chosen = (frame.member == member) & ((frame.layer == layer) if layer else True)
        frame.loc[chosen, name] = frame.loc[chosen, "step"].map(dict(zip(STEPS, values, strict=True))).astype(float)
    return replace(study, **frames)


def one(study, signal, member=0) -> Watch:
    return watch([study], signals=[signal])[member]


def test_an_alarm_is_known_at_the_third_of_three_measurements(tmp_path):
    study = course(made(tmp_path / "x", (PLATEAU,)), 0, alpha=(9, 9, 9, 1.5, 1.6, 1.7, 9))
    seen = one(study, ALPHA)
    assert seen.fall is None
    assert seen.alarm(ALPHA) == 10_000, "100 and 1,000 are the first two; learnt at 100"
    broken = course(study, 0, alpha=(9, 9, 9, 1.5, 2.1, 1.7, 1.5))
    assert one(broken, ALPHA).alarm(ALPHA) is None


def test_nothing_counts_before_the_training_set_is_known_or_after_the_fall(tmp_path):
    early = course(made(tmp_path / "x", (COLLAPSE,)), 0, traps=(5, 5, 5, 0, 0, 0, 5))
    assert one(early, TRAPS).alarm(TRAPS, 0.5) is None
    late = course(early, 0, traps=(0, 0, 0, 0, 1, 1, 1))
    seen = one(late, TRAPS)
    assert seen.fall == 100_000 and seen.alarm(TRAPS, 0.5) is None, "known at the fall is known too late"
    assert one(course(early, 0, traps=(0, 0, 0, 1, 1, 1, 1)), TRAPS).alarm(TRAPS, 0.5) == 10_000


def test_a_network_that_never_learns_is_watched_from_the_start(tmp_path):
    study = course(made(tmp_path / "x", (NEVER,)), 0, traps=(1, 1, 1, 0, 0, 0, 0))
    study = replace(study, metrics=study.metrics.assign(train_accuracy=0.5))
    seen = one(study, TRAPS)
    assert seen.fall is None and seen.alarm(TRAPS, 0.5) == 10


def test_growth_is_over_the_first_lasting_trap(tmp_path):
    study = course(made(tmp_path / "x", (PLATEAU,)), 0, traps=(0, 0, 0, 1, 2, 2, 2))
    assert one(study, MORE).highest(MORE) == 1.0
    assert one(study, MORE).alarm(MORE) == 100_000, "one more, from 1,000 on: 1 is reached by 2 - 1"
    assert one(course(study, 0, traps=(0, 0, 0, 0, 0, 0, 9)), MORE).highest(MORE) == -np.inf


def test_a_control_goes_off_outside_its_range_before_the_rise(tmp_path):
    study = made(tmp_path / "x", (PLATEAU,))
    # the training set is known at 100, and the rise comes at 10,000; at least five measurements make the range
    assert one(course(study, 0, l2_norm=(1, 1, 1, 1, 2, 1, 2)), NORM).highest(NORM) == -np.inf


def test_nan_is_no_alarm(tmp_path):
    study = course(made(tmp_path / "x", (PLATEAU,)), 0, alpha=(9, 9, 9, np.nan, np.nan, np.nan, np.nan))
    assert one(study, ALPHA).highest(ALPHA) == -np.inf


def test_what_never_generalised_cannot_fall_and_is_not_judged_on(tmp_path):
    watched = watch([made(tmp_path / "x", (COLLAPSE, PLATEAU, NEVER))], ["made"], [TRAPS])
    assert [w.generalised for w in watched] == [True, True, False]
    assert comparable(watched) == watched[:2] and at_chance(watched) == watched[2:]
    assert never_fell(watched).loc["made"].to_dict() == {"networks": 2, "generalised": 1}


def test_the_table_judges_without_the_networks_at_chance():
    chance = [replace(w, best=0.1) for w in watches([], [9.0, 9.0])]
    row = ranking([*watches([1.0, 1.0], [0.0, 0.0]), *chance], [TRAPS]).iloc[0]
    assert row.auc == 1.0 and row.auc_all == 0.5
    assert (row.false, row.stayed, row.chance_alarms, row.chance) == (0, 2, 2, 2)


def test_a_rule_that_always_alarms_is_none():
    assert np.isnan(fitted(watches([0.0, 1.0], [2.0, 3.0]), TRAPS))
    row = ranking(watches([0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]), [TRAPS]).iloc[0]
    assert np.isnan(row.fitted) and row.fitted_warned == 0 and row.fitted_false == 0


def watches(fell, stayed, signal=TRAPS):
    """Watches with one score each, at step 10; falls at step 1000."""
    return [
        Watch(name, seed, fall, np.array([10]), {signal: np.array([score])})
        for name, fall, scores in (("fell", 1000, fell), ("stayed", None, stayed))
        for seed, score in enumerate(scores)
    ]


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8)


@given(SCORES, SCORES)
def test_the_area_is_that_of_scikit_learn_and_of_the_curve(fell, stayed):
    watched = watches(fell, stayed)
    area, low, high = auc(watched, TRAPS)
    truth = [1] * len(fell) + [0] * len(stayed)
    assert area == pytest.approx(roc_auc_score(truth, fell + stayed))
    points = curve(watched, TRAPS)
    x, y = [0, *points.false, 1], [0, *points.hits, 1]
    assert np.trapezoid(y, x) == pytest.approx(area)
    if np.isfinite(low):
        assert 0 <= low <= high <= 1


def test_of_one_kind_alone_there_is_no_area():
    for watched in (watches([1.0], []), watches([], [1.0])):
        assert np.isnan(auc(watched, TRAPS)).all() and np.isnan(fitted(watched, TRAPS))


def test_until_nobody_is_watched_longer():
    late = Watch("x", 0, None, np.array([10, 500]), {TRAPS: np.array([0.0, 9.0])})
    watched = [*watches([1.0], []), late]
    assert auc(watched, TRAPS)[0] == 0.0 and auc(watched, TRAPS, until=100)[0] == 1.0


def test_alarms_and_leads():
    watched = watches([1.0, 0.0, 3.0], [1.0, 0.0])
    assert alarms(watched, TRAPS) == (2, 3, 1, 2)
    assert leads(watched, TRAPS).tolist() == [2.0, 2.0]
    shares = false_alarms(watched, [TRAPS])
    assert shares.loc[TRAPS.label, "stayed"] == 0.5 and np.isnan(shares.loc[TRAPS.label, "fell"])


def test_the_table_judges_the_fitted_rule_on_the_other_seeds(tmp_path):
    watched = watches([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0])
    row = ranking(watched, [TRAPS]).iloc[0]
    assert (row.fitted_warned, row.fitted_falls, row.fitted_false, row.fitted_stayed) == (2, 2, 1, 2)
    assert 0 < row.fitted < 1 and row.fitted_lead == 2.0
    assert row.auc == pytest.approx(0.75)


def test_all_signals_of_a_study(tmp_path):
    study = made(tmp_path / "x", (COLLAPSE, PLATEAU, NEVER))
    found = ranking(watch([study], ["made"]))
    assert len(found) == len(SIGNALS) and set(found.label) == {signal.label for signal in SIGNALS}
    assert len(set(found.label)) == len(SIGNALS), "no two have one name"
    assert (found.falls == 1).all() and (found.stayed == 1).all() and (found.chance == 1).all()
    assert found.auc.is_monotonic_decreasing
    assert LASTING == 3


def test_a_watch_of_nothing():
    found = ranking([], [TRAPS])
    assert found.auc.isna().all() and found.falls.tolist() == [0]
    assert isinstance(false_alarms([]), pd.DataFrame)
