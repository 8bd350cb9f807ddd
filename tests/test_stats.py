"""All statistics, against brute force, known values and scikit-learn."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from grokutils.paper.judge.stats import (
    FEWEST,
    best_threshold,
    bootstrap,
    cliffs_delta,
    has_width,
    holm,
    resampled_delta,
    roc_area,
    sign_flip_p,
)

NUMBERS = st.floats(-1, 1).map(lambda x: round(x, 3))


@given(st.lists(NUMBERS, min_size=1, max_size=7))
def test_the_exact_p_is_the_share_of_sign_patterns(d):
    d = np.array(d)
    means = [abs(np.dot(signs, d)) for signs in itertools.product([-1, 1], repeat=len(d))]
    assert sign_flip_p(d) == pytest.approx(np.mean(np.array(means) >= abs(d.sum()) - 1e-12))


@given(st.lists(NUMBERS, min_size=1, max_size=12))
def test_no_p_is_smaller_than_the_seeds_allow_and_sign_does_not_matter(d):
    p = sign_flip_p(d)
    assert min(1, 2 / 2 ** len(d)) <= p <= 1
    assert p == sign_flip_p(-np.array(d))


def test_many_seeds_are_drawn_and_agree_with_the_t_test():
    d = np.random.default_rng(0).normal(0.4, 1, size=40)
    assert sign_flip_p(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert sign_flip_p(d) == sign_flip_p(d)
    assert sign_flip_p(np.ones(40)) > 0


def test_under_no_difference_p_is_uniform():
    rng = np.random.default_rng(1)
    p = np.array([sign_flip_p(rng.normal(size=8)) for _ in range(400)])
    assert abs((p < 0.05).mean() - 0.05) < 0.03


@pytest.mark.parametrize("bad", [[], [np.nan], [[1.0, 2.0]], [np.inf]])
def test_what_is_no_difference_is_refused(bad):
    with pytest.raises(ValueError, match="differences must be finite numbers"):
        sign_flip_p(bad)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_rule(p):
    corrected = holm(p)
    order = np.argsort(p, kind="stable")
    running = 0.0
    for place, i in enumerate(order):
        running = max(running, (len(p) - place) * p[i])
        assert corrected[i] == pytest.approx(min(1.0, running))
    assert (corrected >= np.array(p)).all()


def test_holm_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).size == 0


@pytest.mark.parametrize("bad", [[1.1], [-0.1], [np.nan]])
def test_holm_refuses_what_is_no_p(bad):
    with pytest.raises(ValueError, match="p must be numbers between 0 and 1"):
        holm(bad)


# -- areas, thresholds, intervals ---------------------------------------------------------------------------------

VALUES = st.lists(st.integers(-20, 20).map(float) | st.just(-np.inf), min_size=1, max_size=12)


@given(VALUES, VALUES)
def test_cliffs_delta_and_the_area_are_those_of_all_pairs(a, b):
    delta = cliffs_delta(a, b)
    pairs = [(y > x) - (y < x) for x in a for y in b]
    assert delta == sum(pairs) / len(pairs) and -1 <= delta <= 1
    assert cliffs_delta(b, a) == -delta
    assert cliffs_delta(np.exp(np.array(a) / 10), np.exp(np.array(b) / 10)) == delta, "ranks alone"
    finite = [max(x, -99.0) for x in (*b, *a)]
    assert roc_area(b, a) == pytest.approx(roc_auc_score([1] * len(b) + [0] * len(a), finite))


def test_of_nothing_there_is_no_delta_and_no_threshold():
    assert np.isnan(cliffs_delta([], [1.0])) and np.isnan(roc_area([1.0], []))
    assert np.isnan(best_threshold(np.array([]), np.array([1.0])))


@given(VALUES, VALUES, st.integers(0, 99))
def test_a_resample_is_of_whole_units(a, b, seed):
    units = max(len(a), len(b))
    drawn = np.random.default_rng(seed).integers(units, size=(1, units))
    chosen_a, chosen_b = ([x[i] for i in drawn[0] if i < len(x)] for x in (a, b))
    found = resampled_delta(a, b, np.arange(len(a)), np.arange(len(b)))(drawn)[0]
    assert found == pytest.approx(cliffs_delta(chosen_a, chosen_b), nan_ok=True)


@given(VALUES, VALUES)
def test_the_best_threshold_is_the_best_of_all(a, b):
    no, yes = np.array(a), np.array(b)
    cut = best_threshold(no, yes)
    if np.isnan(cut):
        assert not np.isfinite([*a, *b]).any()
        return
    gain = lambda c: np.mean(yes > c) - np.mean(no > c)  # noqa: E731
    known = [x for x in (*a, *b) if np.isfinite(x)]
    assert gain(cut) == pytest.approx(max(gain(c) for c in [-np.inf, *np.arange(min(known) + 0.5, max(known))]))
    assert cut not in {*a, *b} - {-np.inf}, "in the middle of a gap"


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_an_interval_lies_among_the_values_and_has_a_width_or_is_none(values):
    x = np.array(values)
    low, high = bootstrap(lambda drawn: np.median(x[drawn], axis=1), len(x))
    if len(x) < FEWEST:
        assert np.isnan(low) and np.isnan(high) and not has_width(low, high)
    else:
        assert x.min() <= low <= high <= x.max() and has_width(low, high) == (low < high)
