"""spectra: against WeightWatcher, against the plain definition, against samples of known laws, and bad
input."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from benchmarks import weightwatcher_reference as reference
from grokutils.spectra import alpha as spectra
from grokutils.spectra.alpha import (
    alpha_hat,
    analyze_matrix,
    as_matrix,
    erg_tail,
    esd,
    fit_power_law,
    stable_rank,
)

MATRICES = reference.matrices()


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """Threads that wait for each other on a busy machine cost more than these small matrices do."""
    with threadpool_limits(1):
        yield


# --- the same numbers as WeightWatcher -------------------------------------------------------------


@pytest.mark.parametrize("fix_fingers", [None, "clip_xmax"])
@pytest.mark.parametrize("name", MATRICES)
def test_every_number_equals_weightwatchers(name, fix_fingers):
    W = MATRICES[name]
    row = reference.analyze_one(W, fix_fingers=fix_fingers or False, detX=True)
    ours = analyze_matrix(W, fix_fingers)
    fit = ours.fit
    assert ours.erg.count == row["detX_num"]
    assert ours.stable_rank == pytest.approx(row["stable_rank"], rel=1e-9)
    if row["alpha"] == -1:
        assert row["status"] == "failed"
        assert fit.status == "failed" and fit.reason and math.isnan(fit.alpha) and math.isnan(ours.alpha_hat)
        return
    assert fit.status == "ok" and fit.reason == ""
    assert fit.alpha == pytest.approx(row["alpha"], rel=1e-9)
    assert fit.xmin == pytest.approx(row["xmin"], rel=1e-9)
    assert fit.xmax == pytest.approx(row["xmax"], rel=1e-9)
    assert fit.D == pytest.approx(row["D"], rel=1e-9)
    assert fit.sigma == pytest.approx(row["sigma"], rel=1e-9)
    assert ours.alpha_hat == pytest.approx(row["alpha_weighted"], rel=1e-9)
    assert fit.n_tail + fit.n_clipped == row["num_pl_spikes"]
    if fix_fingers:
        assert fit.raw_alpha == pytest.approx(row["raw_alpha"], rel=1e-9)
        # its num_fingers is one less than the number of eigenvalues that it takes off
        assert fit.n_clipped == (row["num_fingers"] + 1 if row["num_fingers"] else 0)


def test_the_matrices_cover_both_outcomes():
    """The comparison above would be empty if nothing were ever clipped, or nothing ever failed."""
    fits = [fit_power_law(esd(W), "clip_xmax") for W in MATRICES.values()]
    assert len(fits) >= 30
    assert any(fit.n_clipped for fit in fits) and any(fit.status == "failed" for fit in fits)


def test_float64_weights_differ_from_weightwatcher_by_its_rounding_only():
    W = np.random.default_rng(3).normal(size=(200, 784))
    row = reference.analyze_one(W)
    assert fit_power_law(esd(W)).alpha == pytest.approx(row["alpha"], rel=1e-5)
    assert fit_power_law(esd(W.astype(np.float32))).alpha == pytest.approx(row["alpha"], rel=1e-12)


def test_layers_that_weightwatcher_skips_are_not_fitted():
    W = np.random.default_rng(0).normal(size=(9, 50))
    assert reference.analyze_one(W) is None
    fit = fit_power_law(esd(W))
    assert fit.status == "failed" and "9 eigenvalues" in fit.reason


def test_the_reference_leaves_no_traces():
    import logging
    import os
    import warnings

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    before = (
        warnings.filters[:],
        logging.getLogger().level,
        logging.getLogger().handlers[:],
        dict(os.environ),
    )
    reference.analyze_one(np.random.default_rng(0).normal(size=(12, 20)), randomize=True)
    assert before == (
        warnings.filters[:],
        logging.getLogger().level,
        logging.getLogger().handlers,
        dict(os.environ),
    )
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_the_package_does_not_need_weightwatcher():
    code = "import sys, grokutils.spectra.alpha, grokutils.spectra.traps; sys.exit('weightwatcher' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the definition --------------------------------------------------------------------------------


def plain_fit(x):
    """The definition, one candidate at a time: (alpha, xmin, D)."""
    x = np.sort(x)
    best = (math.nan, math.nan, math.inf)
    for i in range(x.size - 1):
        tail = x[i:]
        slope = np.log(tail / tail[0]).sum()
        if slope > 1e-9:
            alpha = 1 + tail.size / slope
            D = np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(tail.size) / tail.size).max()
            if D < best[2]:
                best = (alpha, tail[0], D)
    return best


SAMPLERS = {
    "pareto": lambda rng, n: 1 + rng.pareto(1.5, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 2, n),
    "uniform": lambda rng, n: rng.uniform(0.5, 4, n),
    "ties": lambda rng, n: rng.integers(1, 8, n).astype(float),
    "broken": lambda rng, n: np.where(rng.random(n) < 0.5, rng.uniform(0.1, 1, n), 1 + rng.pareto(2, n)),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sampler=st.sampled_from(sorted(SAMPLERS)), n=st.integers(10, 900), seed=st.integers(0, 2**32 - 1))
def test_leaving_out_candidates_changes_nothing(sampler, n, seed):
    x = SAMPLERS[sampler](np.random.default_rng(seed), n)
    fit = fit_power_law(x)
    alpha, xmin, D = plain_fit(x)
    assert fit.D == pytest.approx(D, rel=1e-9)
    if sampler != "ties":  # where several tails are equally far, rounding picks one
        assert fit.alpha == pytest.approx(alpha, rel=1e-9) and fit.xmin == pytest.approx(xmin, rel=1e-12)
    assert fit.sigma == pytest.approx((fit.alpha - 1) / math.sqrt(fit.n_tail))
    assert fit.n_tail == np.count_nonzero(x >= fit.xmin) or sampler == "ties"


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 5.0])
def test_a_known_exponent_is_found(alpha):
    x = 1 + np.random.default_rng(1).pareto(alpha - 1, size=3000)
    fit = fit_power_law(x)
    assert abs(fit.alpha - alpha) < 4 * fit.sigma
    assert fit.xmax == x.max()


def test_the_bootstrap_interval():
    x = 1 + np.random.default_rng(2).pareto(1.5, size=400)
    fit = fit_power_law(x, bootstrap=100, seed=1)
    low, high = fit.interval
    assert low < 2.5 < high and low < fit.alpha < high and fit.n_bootstrap == 100
    assert high - low > 2 * fit.sigma  # it also covers the choice of xmin, which sigma does not
    assert fit_power_law(x, bootstrap=100, seed=1) == fit
    assert fit_power_law(x, bootstrap=100, seed=2).interval != fit.interval
    assert fit_power_law(x).interval is None
    clipped = fit_power_law(esd(MATRICES["tall student t3"]), "clip_xmax", bootstrap=20)
    assert clipped.n_clipped and clipped.interval[0] < clipped.alpha


def test_bootstrap_of_a_failed_fit_is_none():
    assert fit_power_law(np.ones(50), bootstrap=10).interval is None


def test_clipping_keeps_the_first_clear_fall():
    x = esd(MATRICES["tall student t3"])
    fit = fit_power_law(x, "clip_xmax")
    assert fit.n_clipped > 2
    alphas = [fit_power_law(x[: x.size - k]).alpha for k in range(2, fit.n_clipped + 1)]
    assert alphas[-1] == pytest.approx(fit.alpha, rel=1e-12) and alphas[-1] < fit.raw_alpha - 1
    assert min(alphas[:-1]) >= fit.raw_alpha - 1
    assert fit.raw_alpha == fit_power_law(x).alpha and fit.xmax == x[-fit.n_clipped - 1]


# --- scale, and the cutoff -------------------------------------------------------------------------

shapes = st.tuples(st.integers(10, 40), st.integers(10, 40))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=shapes, seed=st.integers(0, 10**6), exponent=st.integers(-200, 200))
def test_alpha_has_no_scale(shape, seed, exponent):
    W = np.random.default_rng(seed).standard_t(3, size=shape)
    fit = fit_power_law(esd(W), cutoff="relative")
    scaled = fit_power_law(esd(W * 2.0**exponent), cutoff="relative")
    assert scaled.alpha == pytest.approx(fit.alpha, rel=1e-9) and scaled.n_tail == fit.n_tail
    assert scaled.xmin == pytest.approx(fit.xmin * 4.0**exponent, rel=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=shapes, seed=st.integers(0, 10**6), scale=st.floats(0.1, 1e4))
def test_nor_by_default_while_no_eigenvalue_crosses_the_cutoff(shape, seed, scale):
    W = np.random.default_rng(seed).standard_t(3, size=shape)
    x = esd(W)
    if x[0] * min(scale, 1) ** 2 <= spectra.CUTOFF:
        return
    assert fit_power_law(esd(W * scale)).alpha == pytest.approx(fit_power_law(x).alpha, rel=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=shapes, seed=st.integers(0, 10**6))
def test_alpha_ignores_transposition_and_order(shape, seed):
    rng = np.random.default_rng(seed)
    W = rng.standard_t(3, size=shape)
    x = esd(W)
    alpha = fit_power_law(x).alpha
    assert fit_power_law(esd(W.T)).alpha == pytest.approx(alpha, rel=1e-7)
    shuffled = W[rng.permutation(shape[0])][:, rng.permutation(shape[1])]
    assert fit_power_law(esd(shuffled)).alpha == pytest.approx(alpha, rel=1e-7)
    assert fit_power_law(rng.permutation(x)) == fit_power_law(x)


def test_small_weights_fall_under_the_absolute_cutoff():
    W = np.random.default_rng(0).normal(size=(50, 80)).astype(np.float32)
    small = W * np.float32(1e-5)
    assert reference.analyze_one(small)["alpha"] == -1
    fit = fit_power_law(esd(small))
    assert fit.status == "failed" and "cutoff" in fit.reason
    relative = fit_power_law(esd(small), cutoff="relative")
    assert relative.alpha == pytest.approx(fit_power_law(esd(W)).alpha, rel=1e-5)


def test_the_relative_cutoff_drops_what_is_zero_in_float32():
    rng = np.random.default_rng(0)
    W = (rng.normal(size=(100, 20)) @ rng.normal(size=(20, 300))).astype(np.float32)
    fit = fit_power_law(esd(W) * 1e9, cutoff="relative")
    assert fit.xmin > 1e-3 * fit.xmax and fit.n_tail <= 20


# --- the other numbers -----------------------------------------------------------------------------


def test_stable_rank_and_alpha_hat():
    W = np.random.default_rng(0).normal(size=(30, 20))
    x = esd(W)
    assert stable_rank(x) == pytest.approx(np.linalg.norm(W) ** 2 / np.linalg.norm(W, 2) ** 2)
    assert alpha_hat(2.5, x) == pytest.approx(2.5 * math.log10(np.linalg.norm(W, 2) ** 2))
    assert math.isnan(stable_rank(np.zeros(5))) and math.isnan(alpha_hat(2.5, np.zeros(5)))
    assert math.isnan(alpha_hat(math.nan, x))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(2, 60), seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
def test_the_erg_tail_is_where_the_logarithms_turn_negative(n, seed, scale):
    x = np.sort(np.random.default_rng(seed).lognormal(0, 1.5, n))
    tail = erg_tail(x * scale, xmin=x[n // 2] * scale)
    logs = np.log(x / x.mean())
    assert logs[n - tail.count :].sum() < 0 <= logs[n - tail.count + 1 :].sum()
    assert tail.eigenvalue == pytest.approx(x[n - tail.count] * scale)
    assert tail.gap == pytest.approx((x[n // 2] - x[n - tail.count]) * scale)
    assert tail.relative_gap == pytest.approx((x[n // 2] - x[n - tail.count]) / x.mean())


def test_the_erg_tail_of_a_spectrum_whose_product_overflows():
    x = np.sort(np.random.default_rng(0).exponential(size=20_000) ** 3)
    with np.errstate(over="ignore"):
        assert np.isinf(np.prod(x[x > x.mean()] / x.mean()))
    tail = erg_tail(x)
    logs = np.log(x / x.mean())
    assert 0 < tail.count < x.size and logs[-tail.count :].sum() < 0 <= logs[-tail.count + 1 :].sum()


def test_erg_tail_with_zeros_and_without_variation():
    assert erg_tail(np.ones(5)).count == 0 and math.isnan(erg_tail(np.zeros(5)).gap)
    with_zeros = erg_tail([0.0, 0.0, 3.0, 3.0])  # only a zero brings the sum below zero
    assert with_zeros.count == 3 and with_zeros.eigenvalue == 0.0


# --- what comes in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("W", "error", "says"),
    [
        (np.array([[1.0, np.nan], [1.0, 2.0]]), ValueError, "1 of its 4 entries"),
        (np.array([[np.inf, -np.inf], [1.0, 2.0]]), ValueError, "2 of its 4 entries"),
        (np.empty((0, 5)), ValueError, "at least one entry"),
        (np.ones(5), ValueError, "two dimensions"),
        (np.ones((2, 3, 4)), ValueError, "two dimensions"),
        (3.0, ValueError, "two dimensions"),
        ([[1.0, 2.0], [3.0]], ValueError, "different lengths"),
        (np.ones((3, 3), dtype=complex), TypeError, "complex"),
        (np.array([["a", "b"]]), TypeError, "real numbers"),
        (np.array([[None, 1]], dtype=object), TypeError, "real numbers"),
        (torch.ones(3, 3, dtype=torch.complex64), TypeError, "complex"),
        (torch.ones(3), ValueError, "two dimensions"),
        (torch.ones(3, 3, device="meta"), ValueError, "meta"),
        (torch.tensor([[1.0, float("nan")]]), ValueError, "NaN"),
        (np.full((20, 20), 1e300), ValueError, "1e308"),
    ],
)
def test_what_is_no_matrix_is_refused(W, error, says):
    with pytest.raises(error, match=says):
        esd(W)


@pytest.mark.parametrize(
    "convert",
    [
        lambda W: W.tolist(),
        lambda W: np.asfortranarray(W),
        lambda W: np.repeat(W, 2, axis=1)[:, ::2],
        lambda W: W[::-1, ::-1][::-1, ::-1],
        lambda W: W.astype(np.int8),
        lambda W: W.astype(np.uint64),
        lambda W: W.astype(np.float16),
        lambda W: torch.tensor(W),
        lambda W: torch.tensor(W, requires_grad=True),
        lambda W: torch.nn.Parameter(torch.tensor(W, dtype=torch.float16)),
        lambda W: torch.tensor(W, dtype=torch.bfloat16),
        lambda W: torch.tensor(W).to(torch.int32),
        lambda W: torch.tensor(W.T.copy()).T,
        lambda W: torch.tensor(W).to_sparse(),
    ],
)
def test_every_real_type_and_memory_order_gives_the_same(convert):
    W = np.random.default_rng(0).integers(0, 9, size=(12, 30)).astype(float)  # exact in every type
    assert np.array_equal(as_matrix(convert(W)), W)
    np.testing.assert_allclose(esd(convert(W)), esd(W), rtol=1e-12)


def test_the_input_is_not_changed():
    W = np.random.default_rng(0).normal(size=(12, 30))
    copy = W.copy()
    analyze_matrix(W, bootstrap=2)
    assert (W == copy).all()


@pytest.mark.parametrize(
    ("W", "says"),
    [
        (np.full((40, 60), 0.7), "1 of 40 eigenvalues above the cutoff"),
        (np.zeros((40, 60)), "0 of 40 eigenvalues above the cutoff"),
        (np.eye(40), "all 40 eigenvalues above the cutoff are equal"),
        (np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0], "are equal"),
        (np.outer(np.arange(40.0), np.arange(60.0)), "1 of 40 eigenvalues"),
        (np.arange(9.0).reshape(3, 3), "3 eigenvalues; at least 10"),
        (np.ones((1, 1)), "1 eigenvalues; at least 10"),
        (np.random.default_rng(0).normal(size=(9, 500)), "9 eigenvalues; at least 10"),
    ],
)
def test_matrices_without_a_tail_fail_with_a_reason(W, says):
    for fix_fingers in (None, "clip_xmax"):
        result = analyze_matrix(W, fix_fingers, bootstrap=3)
        assert result.fit.status == "failed" and says in result.fit.reason
        numbers = [
            result.fit.alpha,
            result.fit.xmin,
            result.fit.xmax,
            result.fit.D,
            result.fit.sigma,
            result.alpha_hat,
        ]
        assert np.isnan(numbers).all() and result.fit.n_tail == 0


def test_a_rank_deficient_matrix_is_fitted_on_its_rank():
    rng = np.random.default_rng(0)
    result = analyze_matrix(rng.normal(size=(60, 15)) @ rng.normal(size=(15, 90)))
    assert result.fit.status == "ok" and result.fit.n_tail <= 15
    assert np.count_nonzero(result.eigenvalues > 1e-5) == 15


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"eigenvalues": []}, "at least one"),
        ({"eigenvalues": np.ones((3, 3))}, "at least one number"),
        ({"eigenvalues": [1.0, np.nan]}, "finite"),
        ({"eigenvalues": [-1.0, 2.0]}, "must not be negative"),
        ({"fix_fingers": "xmin_peak"}, "fix_fingers"),
        ({"bootstrap": -1}, "bootstrap"),
        ({"bootstrap": 2.5}, "bootstrap"),
        ({"seed": -1}, "seed"),
        ({"cutoff": -1e-5}, "cutoff"),
        ({"cutoff": "absolute"}, "cutoff"),
        ({"cutoff": math.nan}, "cutoff"),
    ],
)
def test_arguments_out_of_range(arguments, says):
    with pytest.raises(ValueError, match=says):
        fit_power_law(**({"eigenvalues": np.arange(1.0, 20.0)} | arguments))


def test_complex_eigenvalues():
    with pytest.raises(TypeError, match="complex"):
        fit_power_law(np.ones(20, dtype=complex))


def test_rounding_errors_below_zero_count_as_zero():
    x = np.append(np.linspace(1, 50, 20), -1e-12)
    assert fit_power_law(x).alpha == fit_power_law(np.append(x[:-1], 0.0)).alpha


@pytest.mark.parametrize("shape", [(60, 60), (100, 50), (30, 200), (400, 400)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_an_orthogonal_matrix_has_no_alpha_in_any_precision(shape, dtype):
    from grokutils import diagnose

    torch.manual_seed(0)
    W = torch.nn.init.orthogonal_(torch.empty(*shape)).to(dtype)
    for source in (W, {"a": W}):
        row = diagnose(source, shuffles=0, progress=False).iloc[0]
        assert math.isnan(row.alpha) and "equal" in row.alpha_reason and row.verdict == "undetermined"


def test_two_levels_of_equal_eigenvalues_have_no_slope_either():
    noise = 1 + 1e-7 * np.random.default_rng(0).normal(size=60)
    assert "equal up to rounding" in fit_power_law(noise * np.repeat([1.0, 2.0], 30)).reason
    assert fit_power_law(np.linspace(1, 1.1, 60)).status == "ok"


@pytest.mark.parametrize("seed", range(5))
def test_ties_at_xmin_are_in_the_tail_as_in_weightwatcher(seed):
    rng = np.random.default_rng(seed)
    x = np.sort(np.round(rng.pareto(1.5, 60) + 1, 1))  # many ties
    fit = fit_power_law(x)
    assert fit.n_tail == np.count_nonzero(x >= fit.xmin)


def test_no_warning_escapes_from_degenerate_matrices():
    import warnings

    from grokutils import diagnose

    matrices = [np.ones((40, 30)), np.full((20, 20), 65504, np.float16), np.zeros((40, 30)), np.eye(30), np.full((12, 12), 1e150)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for W in matrices:
            for method in ("bulk", "weightwatcher"):
                if float(W.max()) < 1e30:
                    diagnose(W, method=method, shuffles=2, ks_draws=0, progress=False)
