"""The statistics of a weight matrix are those that SciPy and NumPy know."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from grokutils.spectra.measure import l2_norm, weight_statistics

matrices = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=1, max_dims=2, max_side=12), elements=st.floats(-1e6, 1e6, width=32)
)


@given(matrices)
def test_statistics_are_the_textbooks(weight):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = weight_statistics(weight)
    assert set(found) == {"l2_norm", "max_abs", "mean", "std", "kurtosis"}
    assert all(type(value) is float for value in found.values())
    scale = np.abs(weight).max()
    assert found["l2_norm"] == pytest.approx(np.linalg.norm(weight.ravel()))
    assert found["max_abs"] == scale
    assert found["mean"] == pytest.approx(weight.mean(), abs=1e-9 * scale)
    assert found["std"] == pytest.approx(weight.std(), abs=1e-9 * scale)
    if weight.min() == weight.max():
        assert found["std"] == 0 and math.isnan(found["kurtosis"])
    elif weight.std() > 1e-6 * scale:
        assert found["kurtosis"] == pytest.approx(stats.kurtosis(weight, axis=None, fisher=False), rel=1e-6)


@given(matrices, st.sampled_from([1e-100, 1e-3, 7.0, 1e60]))
def test_statistics_scale(weight, factor):
    one, other = weight_statistics(weight), weight_statistics(weight * factor)
    if one["std"] > 1e-6 * one["max_abs"]:
        assert other["kurtosis"] == pytest.approx(one["kurtosis"], rel=1e-6)
    for name in ("l2_norm", "max_abs"):
        assert other[name] == pytest.approx(one[name] * factor, rel=1e-9, abs=1e-150)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-12, 1e12 / 3])
def test_a_constant_matrix_has_no_spread_and_no_kurtosis(value):
    # the mean of equal numbers is not always that number
    for size in range(1, 100):
        found = weight_statistics(np.full(size, value))
        assert found["std"] == 0 and math.isnan(found["kurtosis"])


def test_a_gaussian_has_kurtosis_3_and_an_outlier_shows():
    weight = np.random.default_rng(0).normal(0, 0.1, (400, 400))
    assert weight_statistics(weight)["kurtosis"] == pytest.approx(3, abs=0.05)
    weight[3, 5] = -14.8
    found = weight_statistics(weight)
    assert found["max_abs"] == 14.8 and found["kurtosis"] > 1000


def test_float32_weights_are_summed_in_float64():
    weight = np.full((1000, 1000), 0.1, dtype=np.float32)
    exact = 1000 * float(np.float32(0.1))
    assert weight_statistics(weight)["l2_norm"] == pytest.approx(exact, rel=1e-12)
    assert l2_norm({"fc1.weight": weight}) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("weight", [[], np.empty((0, 3))])
def test_a_matrix_without_entries_is_refused(weight):
    with pytest.raises(ValueError, match="a weight matrix must have at least one entry; got none"):
        weight_statistics(weight)


@given(st.lists(matrices, min_size=1, max_size=4))
def test_the_norm_of_a_network_is_that_of_all_its_matrices_but_not_its_biases(layers):
    layers = [np.atleast_2d(w) for w in layers]
    weights = {f"fc{k}.weight": w for k, w in enumerate(layers, 1)}
    weights |= {f"fc{k}.bias": np.full(3, 1e9) for k in range(1, len(layers) + 1)}
    weights |= {"norm.weight": np.full(3, 1e9), "buffer/norm.table": np.full((3, 3), 1e9)}
    together = np.concatenate([w.ravel() for w in layers])
    assert l2_norm(weights) == pytest.approx(np.linalg.norm(together))
    assert l2_norm(weights) == pytest.approx(math.hypot(*(weight_statistics(w)["l2_norm"] for w in layers)))
