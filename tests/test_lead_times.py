"""Lead times: onsets and leads are what they were made to be, whatever the unit, scale or order."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokutils import RunConfig
from grokutils.records.schedule import log_spaced
from grokutils.records.signals import LAYER_CONTROLS, NETWORK_CONTROLS, Signal, onset, signals_of
from grokutils.records.study import Study
from grokutils.util import columns

MEASURED = np.array(log_spaced(10**6, 40))
SAVED = np.array(log_spaced(10**6, 10))
LEARNT, RISE, PEAK, FALL = 100, 1_000, 10_000, 100_000  # all of them measured and saved steps


def metrics(fall: int | None = FALL, rise: int | None = RISE) -> pd.DataFrame:
    train = np.where(MEASURED >= LEARNT, 1.0, 0.3)
    test = np.where(MEASURED >= (rise or 10**9), 0.6, 0.2) + np.where(MEASURED >= PEAK, 0.2, 0.0)
    if fall:
        test -= np.where(MEASURED >= fall, 0.1, 0.0)
    loss = 0.01 * np.ones(len(MEASURED))
    return pd.DataFrame({"step": MEASURED, "train_accuracy": train, "test_accuracy": test, "train_loss": loss})


def layer(name: str = "fc1", **series) -> pd.DataFrame:
    """A layer to which nothing happens, but for the series given (functions of the step)."""
    frame = pd.DataFrame({"step": SAVED, "layer": name, "alpha": 4.0, "traps": 0.0})
    for k, control in enumerate(LAYER_CONTROLS):
        frame[control] = 3.0 + k
    return frame.assign(**{key: [float(value(s)) for s in SAVED] for key, value in series.items()})


def network(**series) -> pd.DataFrame:
    frame = pd.DataFrame({"step": SAVED, **{name: 2.0 for name in NETWORK_CONTROLS}})
    return frame.assign(**{key: [float(value(s)) for s in SAVED] for key, value in series.items()})


def from_step(step, after, before=4.0):
    return lambda s: after if s >= step else before


def lead_times(metrics: pd.DataFrame, layers: pd.DataFrame, network: pd.DataFrame | None = None) -> pd.DataFrame:
    """Of a study of these measurements; of one member unless they say whose they are."""
    frames = [frame if "member" in frame else frame.assign(member=0) for frame in (metrics, layers)]
    baselines = pd.DataFrame(columns=["step", "member"]) if network is None else network
    frames.append(baselines if "member" in baselines else baselines.assign(member=0))
    record = SimpleNamespace(config=RunConfig.recipe("modular"))
    return Study(record, 0.0, frames[0], frames[1].assign(rows=20, columns=20), pd.DataFrame(), frames[2]).leads


def signals(*arguments) -> pd.DataFrame:
    found = lead_times(*arguments)
    return found[found.layer != "average"].set_index(["layer", "signal"])


FIXED = ["alpha leaves 2 to 6", "alpha below 2", "first trap", "trap growth"]


def test_nothing_happens_and_nothing_goes_off():
    found = lead_times(metrics(), layer(), network())
    assert list(found.columns) == list(columns.LEAD_TIMES)
    names = {where: own.signal.tolist() for where, own in found.groupby("layer")}
    assert names["fc1"] == [*FIXED, *LAYER_CONTROLS] and names["network"] == [*NETWORK_CONTROLS, "train_loss"]
    assert found.onset.isna().all() and found.lead_steps.isna().all() and found.lead_decades.isna().all()
    assert (found.fall == FALL).all()


@pytest.mark.parametrize(
    "signal, series, expected",
    [
        ("alpha below 2", dict(alpha=from_step(10_000, 1.5)), 10_000),
        ("alpha leaves 2 to 6", dict(alpha=from_step(10_000, 1.5)), 10_000),
        ("alpha leaves 2 to 6", dict(alpha=from_step(10_000, 7.0)), 10_000),
        ("alpha below 2", dict(alpha=from_step(10_000, 7.0)), None),
        ("alpha leaves 2 to 6", dict(alpha=lambda s: 9.0 if s < 1000 else 4.0 if s < 10_000 else 1.9), 10_000),
        ("alpha leaves 2 to 6", dict(alpha=lambda s: 9.0), None),  # was never inside
        ("alpha below 2", dict(alpha=from_step(LEARNT, 4.0, before=1.2)), None),  # before anything was learnt
        ("alpha below 2", dict(alpha=lambda s: math.nan if s >= 10_000 else 4.0), None),  # no fit is no alpha
        ("first trap", dict(traps=from_step(1_000, 1.0, before=0.0)), 1_000),
        ("first trap", dict(traps=from_step(1_000, 0.4, before=0.0)), None),
        ("trap growth", dict(traps=from_step(1_000, 1.0, before=0.0)), None),
        ("trap growth", dict(traps=lambda s: 0.0 if s < 1000 else 1.2 if s < 50_000 else 2.2), 50_119),
        ("trap growth", dict(traps=lambda s: 0.0 if s < 1000 else 3.0 if s < 50_000 else 3.9), None),
        ("first trap", dict(traps=lambda s: math.nan), None),
    ],
)
def test_alpha_and_traps_go_off_where_they_should(signal, series, expected):
    row = signals(metrics(), layer(**series)).loc[("fc1", signal)]
    if expected is None:
        assert row[["onset", "lead_steps", "lead_decades"]].isna().all()
    else:
        assert row.onset == expected and row.lead_steps == FALL - expected
        assert row.lead_decades == pytest.approx(np.log10(FALL / expected))


@pytest.mark.parametrize("at, lead", [(10_000, 1.0), (FALL, 0.0), (10**6, -1.0)])
def test_a_lead_is_negative_if_the_signal_comes_after_the_fall(at, lead):
    row = signals(metrics(), layer(alpha=from_step(at, 1.5))).loc[("fc1", "alpha below 2")]
    assert row.onset == at and row.lead_decades == pytest.approx(lead) and row.lead_steps == FALL - at


def test_without_a_fall_there_are_onsets_but_no_leads():
    found = signals(metrics(fall=None), layer(traps=from_step(1_000, 1.0, before=0.0)))
    row = found.loc[("fc1", "first trap")]
    assert row.onset == 1_000 and found.fall.isna().all() and found.lead_decades.isna().all()
    never = metrics().assign(train_accuracy=0.5)
    assert signals(never, layer(traps=lambda s: 3.0), network()).onset.isna().all()


def test_the_fall_is_five_points_for_good():
    assert signals(metrics(), layer()).fall.eq(FALL).all()
    shallow = metrics()
    shallow.loc[shallow.step >= FALL, "test_accuracy"] += 0.06
    assert signals(shallow, layer()).fall.isna().all()
    recovered = metrics()
    recovered.loc[recovered.step > 500_000, "test_accuracy"] += 0.1
    assert signals(recovered, layer()).fall.isna().all()


def test_a_signal_must_last():
    blinking = layer(traps=lambda s: 1.0 if s in (1_000, 1_259, 10_000) or s >= 50_119 else 0.0)
    assert signals(metrics(), blinking).loc[("fc1", "first trap")].onset == 50_119
    steps = np.arange(len(SAVED))
    assert onset(steps, blinking.traps >= 0.5, lasting=2) == np.flatnonzero(SAVED == 1_000)[0]
    at_the_end = layer(alpha=from_step(794_328, 1.0))  # the last two measurements
    assert signals(metrics(), at_the_end).loc[("fc1", "alpha below 2")].onset == 794_328


# -- controls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYER_CONTROLS)
def test_every_control_of_a_layer_goes_off_when_it_leaves_its_range_by_its_width(name):
    wave = np.where(np.arange(len(SAVED)) % 2, 4.5, 5.5)
    for later, out in ((6.51, True), (3.49, True), (6.49, False), (3.51, False)):
        frame = layer().assign(**{name: np.where(SAVED < 10_000, wave, later)})
        row = signals(metrics(), frame).loc[("fc1", name)]
        assert (row.low, row.high) == pytest.approx((3.5, 6.5))
        assert row.onset == 10_000 if out else row.isna().onset


@pytest.mark.parametrize("name", [*NETWORK_CONTROLS, "train_loss"])
def test_every_control_of_the_network(name):
    jump = from_step(10_000, 7.0, before=2.0)
    if name == "train_loss":
        scores = metrics().assign(train_loss=[float(jump(s)) for s in MEASURED])  # read at the analysed steps
        found = signals(scores, layer(), network())
    else:
        found = signals(metrics(), layer(), network(**{name: jump}))
    gone_off = found[found.onset.notna()]
    assert gone_off.index.tolist() == [("network", name)] and gone_off.onset.tolist() == [10_000]
    assert gone_off.lead_decades.tolist() == pytest.approx([1.0])


def test_the_range_is_that_of_the_pre_grokking_phase():
    # wide before the training set is learnt and again after the test accuracy rises: neither counts
    series = lambda s: 50.0 if s < LEARNT else 1.0 + s / RISE if s < RISE else 9.0  # noqa: E731
    row = signals(metrics(), layer(kurtosis=series)).loc[("fc1", "kurtosis")]
    inside = [1 + s / RISE for s in SAVED if LEARNT <= s < RISE]
    low, high = min(inside), max(inside)
    assert (row.low, row.high) == pytest.approx((2 * low - high, 2 * high - low)) and row.onset == RISE
    # without a rise, and with one that follows at once, five measurements are the range
    for scores in (metrics(rise=126), metrics().assign(test_accuracy=0.2)):
        row = signals(scores, layer(kurtosis=lambda s: s)).loc[("fc1", "kurtosis")]
        five = SAVED[SAVED >= LEARNT][:5]
        assert row.low == 2 * five[0] - five[-1] and row.high == 2 * five[-1] - five[0]


def test_noise_alone_trips_no_control():
    rng = np.random.default_rng(0)
    for _ in range(40):
        frame = layer().assign(**{name: rng.normal(5, 1, len(SAVED)) for name in LAYER_CONTROLS})
        assert signals(metrics(), frame).onset.isna().all()


def test_rounding_is_no_change():
    constant = layer(kurtosis=lambda s: 3.0 * (1 + 1e-15 * s % 1e-14))
    assert signals(metrics(), constant).onset.isna().all()
    assert signals(metrics(), layer(kurtosis=from_step(10_000, 3.001, before=3.0))).onset.notna().sum() == 1


def test_missing_values_and_columns_are_survived():
    gaps = layer(kurtosis=lambda s: math.nan if s == 1_259 else 9.0 if s > 5_000 else 3.0, max_over_std=lambda s: math.nan)
    found = signals(metrics(), gaps.drop(columns="stable_rank"))
    assert found.loc[("fc1", "kurtosis")].onset == 5_012 and found.loc[("fc1", "max_over_std")].isna().onset
    assert ("fc1", "stable_rank") not in found.index and "train_loss" in found.loc["network"].index
    assert ("network", "circuit_complexity_text") not in found.index  # no baselines


@settings(max_examples=25)
@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.sampled_from(LAYER_CONTROLS), st.randoms(use_true_random=False))
def test_units_zero_points_and_the_order_of_rows_do_not_matter(factor, offset, name, rnd):
    rng = np.random.default_rng(1)
    walk = layer().assign(**{name: np.cumsum(rng.normal(size=len(SAVED)))})
    mine = lead_times(metrics(), walk)
    other = walk.assign(**{name: walk[name] * factor + offset})
    order = list(range(len(other)))
    rnd.shuffle(order)
    theirs = lead_times(metrics().iloc[::-1], other.iloc[order])
    pd.testing.assert_frame_equal(mine.drop(columns=["low", "high"]), theirs.drop(columns=["low", "high"]))


# -- layers and members ---------------------------------------------------------------------------------------


def test_layers_and_members_are_told_apart():
    layers = pd.concat([layer("fc1", traps=from_step(1_000, 1.0, 0.0)), layer("fc2", traps=from_step(10_000, 1.0, 0.0))])
    found = signals(metrics(), layers)
    assert found.loc[("fc1", "first trap")].lead_decades == pytest.approx(2)
    assert found.loc[("fc2", "first trap")].lead_decades == pytest.approx(1)

    two_metrics = pd.concat([metrics().assign(member=0), metrics(fall=None).assign(member=1)])
    two_layers = pd.concat([layers.assign(member=0), layer("fc1", traps=lambda s: 2.0).assign(member=1)])
    two_networks = pd.concat([network().assign(member=m) for m in (0, 1)])
    both = lead_times(two_metrics, two_layers, two_networks)
    first = both[both.member == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, lead_times(metrics(), layers, network()))
    second = both[(both.member == 1) & (both.signal == "first trap")].set_index("layer")
    assert second.onset["fc1"] == LEARNT and second.fall.isna().all()


# -- one definition of a signal -------------------------------------------------------------------------------


def test_a_threshold_is_reached_by_equality_unless_the_rule_says_below_or_outside():
    reaches, grows, below = (Signal("traps", "fc1", "reaches", 0.5), Signal("traps", "fc1", "grows", 1.0), Signal("alpha", "fc1", "below", 2.0))
    for signal, values, over in (
        (reaches, [0.4, 0.5], [False, True]), (grows, [1.4, 1.4, 2.4, 2.39], [False, False, True, False]),
        (below, [2.0, np.nextafter(2, 0)], [False, True]),
    ):  # fmt: skip
        assert (signal.scores(np.array(values)) >= signal.threshold).tolist() == over
    away = Signal("kurtosis", "fc1", "away", 1.0)
    values = np.array([1.0, 2, 1, 2, 1, 3, 3.01])
    assert (away.scores(values, 5) >= away.threshold).tolist() == [False] * 6 + [True], "by more than the width"


def test_growth_counts_from_the_first_lasting_trap_on():
    signal = Signal("traps", "fc1", "grows", 1.0)
    scores = signal.scores(np.array([9.0, 0, 0, 1, 1, 2.5, 2.5]))
    assert np.isneginf(scores[:3]).all() and scores[3:].tolist() == [0, 0, 1.5, 1.5]


@pytest.mark.parametrize("where", ["fc1", "average", "network"])
def test_no_two_signals_have_one_name(where):
    names = [signal.name for signal in signals_of(where)]
    assert len(set(names)) == len(names)


# -- onset ----------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 5))
def test_onset_is_the_first_lasting_run(holds, lasting):
    steps = 10 * np.arange(len(holds)) + 7
    found = onset(steps, np.array(holds), lasting)
    runs = [i for i in range(len(holds)) if all(holds[i : i + lasting])]
    assert found == (int(steps[runs[0]]) if runs else None)
