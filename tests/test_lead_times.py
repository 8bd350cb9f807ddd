"""Lead times: onsets and leads are what they were made to be, whatever the unit, scale or order."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokutils.records.phases import LAYER_CONTROLS, NETWORK_CONTROLS, lead_times, onset
from grokutils.records.schedule import log_spaced
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


def signals(*arguments, **options) -> pd.DataFrame:
    return lead_times(*arguments, **options).set_index(["layer", "signal"])


FIXED = ["alpha leaves 2 to 6", "alpha below 2", "first trap", "trap growth"]


def test_nothing_happens_and_nothing_goes_off():
    found = lead_times(metrics(), layer(), network())
    names = [name for name in columns.LEAD_TIMES if name != "member"]
    assert list(found.columns) == names
    assert found.signal.tolist() == [*FIXED, *LAYER_CONTROLS, *NETWORK_CONTROLS, "train_loss"]
    assert found.layer.tolist() == ["fc1"] * (4 + len(LAYER_CONTROLS)) + ["network"] * (len(NETWORK_CONTROLS) + 1)
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


def test_the_fall_is_five_points_for_good_and_can_be_moved():
    assert signals(metrics(), layer()).fall.eq(FALL).all()
    assert signals(metrics(), layer(), drop=0.2).fall.isna().all()
    recovered = metrics()
    recovered.loc[recovered.step > 500_000, "test_accuracy"] += 0.1
    assert signals(recovered, layer()).fall.isna().all()


def test_a_signal_must_last():
    blinking = layer(traps=lambda s: 1.0 if s in (1_000, 1_259, 10_000) or s >= 50_119 else 0.0)
    assert signals(metrics(), blinking).loc[("fc1", "first trap")].onset == 50_119
    assert signals(metrics(), blinking, lasting=2).loc[("fc1", "first trap")].onset == 1_000
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
        scores = metrics().assign(train_loss=[float(jump(s)) for s in MEASURED])
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
    assert ("network", "l2_norm") not in found.index  # no baselines


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
    assert list(both.columns) == list(columns.LEAD_TIMES)
    first = both[both.member == 0].drop(columns="member").reset_index(drop=True)
    pd.testing.assert_frame_equal(first, lead_times(metrics(), layers, network()))
    second = both[(both.member == 1) & (both.signal == "first trap")]
    assert second.layer.tolist() == ["fc1"] and second.onset.tolist() == [LEARNT] and second.fall.isna().all()


def test_several_members_without_a_word_are_refused():
    with pytest.raises(ValueError, match="one member"):
        lead_times(pd.concat([metrics(), metrics()]), layer())
    with pytest.raises(ValueError, match="must be those of one member, or say whose they are"):
        lead_times(metrics(), pd.concat([layer(), layer()]))
    with pytest.raises(ValueError, match="must be those of one member, or say whose they are"):
        lead_times(metrics(), layer(), pd.concat([network(), network()]))


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(metrics=metrics().drop(columns="test_accuracy")), "must have the columns step, train_accuracy"),
        (dict(metrics=metrics().iloc[:0]), "metrics must have at least one row; got none"),
        (dict(diagnostics=layer().drop(columns="alpha")), "diagnostics must have the columns step, layer, alpha, traps; no alpha"),
        (dict(diagnostics=layer().drop(columns="traps")), "no traps"),
        (dict(drop=0), "drop must be greater than 0"),
        (dict(alpha_range=(6, 2)), r"alpha_range must be two ascending numbers of at least 1; got \(6, 2\)"),
        (dict(alpha_range=(0, 2)), "alpha_range must be"),
        (dict(alpha_range=(2,)), "alpha_range must be"),
        (dict(lasting=0), "lasting must be a whole number of at least 1; got 0"),
        (dict(lasting=1.5), "lasting must be"),
        (dict(trapped_from=0), "trapped_from must be a positive number; got 0"),
    ],
)
def test_what_has_no_meaning_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        lead_times(**{"metrics": metrics(), "diagnostics": layer(), **change})


def test_no_layers_leave_the_network():
    assert set(lead_times(metrics(), layer().iloc[:0], network()).layer) == {"network"}


# -- onset ----------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 5))
def test_onset_is_the_first_lasting_run(holds, lasting):
    steps = 10 * np.arange(len(holds)) + 7
    found = onset(steps, np.array(holds), lasting)
    runs = [i for i in range(len(holds)) if all(holds[i : i + lasting])]
    assert found == (int(steps[runs[0]]) if runs else None)
