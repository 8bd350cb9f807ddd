"""Phases are found where they are put, and found nowhere where there are none."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grokutils.records.phases import Phases, find_phases
from grokutils.records.schedule import log_spaced


def curves(train, test, steps=None) -> pd.DataFrame:
    steps = np.arange(len(train)) if steps is None else steps
    return pd.DataFrame({"step": steps, "train_accuracy": train, "test_accuracy": test})


def sigmoid(steps, middle, sharpness=8.0):
    """From 0 to 1 around a step, on a logarithmic axis."""
    return 1 / (1 + np.exp(-sharpness * np.log10(np.maximum(steps, 1) / middle)))


def a_run(memorises=1e3, groks=1e5, collapses=3e6, steps=10**7, noise=0.0) -> pd.DataFrame:
    """Accuracies with the three phases of a run without weight decay."""
    at = np.array(log_spaced(steps, 40))
    train = 0.1 + 0.9 * sigmoid(at, memorises / 2, 20)
    test = 0.15 + 0.7 * sigmoid(at, groks) - 0.4 * (sigmoid(at, collapses) if collapses else 0)
    jitter = np.random.default_rng(0).uniform(-noise, noise, (2, len(at)))
    return curves(np.clip(train + jitter[0] * (train < 0.9), 0, 1), np.clip(test + jitter[1], 0, 1), at)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_all_three_phases(noise):
    found = find_phases(a_run(noise=noise))
    assert 5e2 < found.memorised < 1e3
    assert 3e4 < found.grokking < 1e5
    assert 1e5 < found.peak < 1e6
    assert 1e6 < found.collapse < 3e6
    assert found.peak_accuracy == pytest.approx(0.84, abs=0.02)
    assert found.final_accuracy == pytest.approx(0.46, abs=0.02)


def test_no_collapse_with_weight_decay():
    found = find_phases(a_run(collapses=None, noise=0.02))
    assert found.grokking and found.peak and found.collapse is None


def test_memorised_and_no_more():
    found = find_phases(a_run(steps=10_000))
    assert found.memorised and found.grokking is None and found.collapse is None


@pytest.mark.parametrize(
    "train, test, expected",
    [
        # one image forgotten for a moment ends no collapse, but a training set that is lost does
        ([1, 1, 1, 1, 1, 0.98], [0.2, 0.9, 0.5, 0.5, 0.5, 0.5], Phases(0, 1, 1, 2, 0.9, 0.5)),
        ([1, 1, 1, 0.9, 0.9, 0.9], [0.2, 0.9, 0.5, 0.5, 0.5, 0.5], Phases(0, 1, 1, None, 0.9, 0.5)),
        # never learnt, however the test accuracy moves
        ([0.1, 0.5, 0.98], [0.1, 0.9, 0.2], Phases(None, None, None, None, 0.9, 0.2)),
        # learnt from the start, and nothing happens
        ([1, 1, 1], [0.2, 0.2, 0.2], Phases(0, None, 0, None, 0.2, 0.2)),
        # what the test accuracy did before the training set was learnt does not count
        ([0.1, 0.1, 1, 1], [0.1, 0.9, 0.2, 0.3], Phases(2, 3, 3, None, 0.3, 0.3)),
        # a rise that is lost again is not the one that lasts
        ([1] * 5, [0.2, 0.4, 0.2, 0.5, 0.9], Phases(0, 3, 4, None, 0.9, 0.9)),
        # a fall that is made good is none
        ([1] * 4, [0.2, 0.9, 0.5, 0.85], Phases(0, 1, 1, None, 0.9, 0.85)),
        ([1] * 5, [0.2, 0.9, 0.5, 0.85, 0.6], Phases(0, 1, 1, 4, 0.9, 0.6)),
        # forgetting the training set is no anti-grokking
        ([1, 1, 0.5], [0.2, 0.9, 0.2], Phases(0, 1, 1, None, 0.9, 0.2)),
        ([1, 1, 0.5, 1, 1], [0.2, 0.9, 0.2, 0.2, 0.2], Phases(0, 1, 1, 2, 0.9, 0.2)),
        # a network that generalises at once can collapse without having grokked
        ([0.1, 1, 1], [0.1, 0.9, 0.5], Phases(1, None, 1, 2, 0.9, 0.5)),
        # one measurement
        ([1], [0.9], Phases(0, None, 0, None, 0.9, 0.9)),
        ([0.5], [0.4], Phases(None, None, None, None, 0.4, 0.4)),
    ],
)
def test_cases(train, test, expected):
    assert dataclasses.replace(find_phases(curves(train, test)), fall=None) == expected


def test_thresholds():
    frame = curves([0.95, 1, 1, 1], [0.2, 0.3, 0.9, 0.7])
    assert find_phases(frame, memorised=0.9).memorised == 0
    assert find_phases(frame, rise=0.7).grokking is None
    assert find_phases(frame, collapse=0.3).collapse is None
    assert find_phases(frame, collapse=0.1).collapse == 3


# -- properties -------------------------------------------------------------------------------------------

# thousandths, so that sums and differences with the thresholds do not hang on rounding
accuracies = st.integers(0, 1000).map(lambda n: n / 1000)
frames = st.integers(1, 30).flatmap(
    lambda n: st.builds(
        curves,
        hnp.arrays(float, n, elements=accuracies | st.just(1.0)),
        hnp.arrays(float, n, elements=accuracies),
        st.lists(st.integers(0, 10**7), min_size=n, max_size=n, unique=True).map(sorted),
    )
)


@given(frames)
def test_phases_follow_one_another_and_mean_what_they_say(frame):
    found = find_phases(frame)
    at = frame.set_index("step")
    train, test = at.train_accuracy, at.test_accuracy
    assert found.final_accuracy == test.iloc[-1]
    if found.memorised is None:
        assert not (train >= 0.99).any()
        assert (found.grokking, found.peak, found.collapse) == (None, None, None)
        return
    assert train[train >= 0.99].index[0] == found.memorised
    assert found.peak_accuracy == test[found.peak] == test.loc[found.memorised :].max()
    begun = [s for s in (found.memorised, found.grokking, found.peak, found.fall, found.collapse) if s is not None]
    assert begun == sorted(begun)
    risen = test.loc[found.memorised : found.peak] >= test[found.memorised] + 0.05
    fallen = test.loc[found.peak :] <= found.peak_accuracy - 0.10
    five = test.loc[found.peak :] <= found.peak_accuracy - 0.05
    for start, holds in ((found.grokking, risen), (found.collapse, fallen), (found.fall, five)):
        if start is None:
            still = holds.iloc[::-1].cumprod().astype(bool).iloc[::-1]  # holds from here to the end
            assert not holds.iloc[-1] or (holds is not risen and train[still[still].index].median() < 0.99)
        else:  # from there on to the end, and not from the measurement before
            assert holds.loc[start:].all()
            assert not holds.loc[:start].iloc[:-1].tail(1).any()


@given(frames)
def test_a_run_that_only_gets_better_never_collapses(frame):
    better = frame.assign(
        test_accuracy=np.sort(frame.test_accuracy), train_accuracy=np.sort(frame.train_accuracy)
    )
    found = find_phases(better)
    assert found.collapse is None
    assert found.peak_accuracy == found.final_accuracy


@given(frames, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(frame, random):
    order = list(range(len(frame)))
    random.shuffle(order)
    assert find_phases(frame.iloc[order]) == find_phases(frame)


@given(frames, st.integers(2, 9))
def test_the_unit_of_time_does_not_matter(frame, factor):
    found = dataclasses.asdict(find_phases(frame))
    longer = dataclasses.asdict(find_phases(frame.assign(step=frame.step * factor)))
    for name in ("memorised", "grokking", "peak", "fall", "collapse"):
        assert longer[name] == (None if found[name] is None else found[name] * factor)


def test_noise_alone_neither_groks_nor_collapses():
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = find_phases(curves(np.ones(200), 0.3 + rng.uniform(-0.02, 0.02, 200)))
        assert found.grokking is None and found.collapse is None


# -- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["step", "train_accuracy", "test_accuracy"])
def test_a_missing_column_is_named(name):
    with pytest.raises(
        ValueError, match=f"must have the columns step, train_accuracy, test_accuracy; no {name}"
    ):
        find_phases(a_run().drop(columns=name))


def test_no_rows_and_rows_of_several_members_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        find_phases(a_run().iloc[:0])
    with pytest.raises(ValueError, match="one member; a step is there twice"):
        find_phases(pd.concat([a_run(), a_run()]))


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1, 85.0, float("inf")])
@pytest.mark.parametrize("column", ["train_accuracy", "test_accuracy"])
def test_what_is_no_accuracy_is_refused(column, value):
    frame = a_run()
    frame.loc[3, column] = value
    with pytest.raises(ValueError, match=f"^{column} must be between 0 and 1; got {value}.$"):
        find_phases(frame)


@pytest.mark.parametrize("name", ["memorised", "rise", "fall", "collapse"])
@pytest.mark.parametrize("value", [0, -0.1, 1.1, float("nan")])
def test_thresholds_without_meaning_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a number greater than 0 and at most 1; got {value}.$"):
        find_phases(a_run(), **{name: value})
