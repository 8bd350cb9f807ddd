"""p-values of paired comparisons, against brute force and known values."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from grokutils.paper.judge.stats import holm, sign_flip_p

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
