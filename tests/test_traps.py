"""traps: against WeightWatcher, against matrices whose traps are known, against random ones without any."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from threadpoolctl import threadpool_limits

from benchmarks import weightwatcher_reference as reference
from grokutils.spectra import marchenko_pastur as _mp
from grokutils.spectra import traps
from grokutils.spectra.alpha import esd
from grokutils.spectra.ks import mp_null, wishart_eigenvalues
from grokutils.spectra.traps import (
    count_traps,
    find_traps,
    inverse_participation_ratio,
    mp_cdf,
    mp_ks,
    mp_pdf,
    mp_quantile,
    mp_support,
    shuffle_matrix,
    trap_vectors,
)

FC1, FC2, FC3 = (200, 784), (200, 200), (10, 200)


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """Threads that wait for each other on a busy machine cost more than these small matrices do."""
    with threadpool_limits(1):
        yield


# --- the same numbers as WeightWatcher -------------------------------------------------------------

COMPARED = {
    **reference.matrices(),
    # sigma at the bottom of its grid, and a third of the variance in single entries
    "fc1 shift 40": (np.random.default_rng(5).normal(size=FC1) + 40).astype(np.float32),
    "fc2 shift 40": (np.random.default_rng(5).normal(size=FC2) + 40).astype(np.float32),
}


@pytest.mark.parametrize(
    "name",
    [
        "fc3 gaussian",
        "fc3 pareto",
        "fc3 student t1.5",
        "fc3 six outliers",
        "fc3 shift 3",
        "fc1 gaussian",
        "fc1 student t1.5",
        "fc1 six outliers",
        "fc1 shift 0.3",
        "fc1 shift 40",
        "fc2 uniform",
        "fc2 student t3",
        "fc2 six outliers",
        "fc2 shift 3",
        "fc2 shift 40",
        "tall pareto",
        "tall decaying columns",
    ],
)
def test_every_number_equals_weightwatchers_for_the_same_shuffle(name):
    W = COMPARED[name]
    row = reference.analyze_one(W, seed=11, randomize=True)
    ours = find_traps(W, seed=np.random.RandomState(11), shuffles=1, method="weightwatcher")
    assert ours.counts[0] == row["rand_num_spikes"]
    assert ours.sigma_mp[0] == pytest.approx(row["rand_sigma_mp"], rel=1e-12)
    assert ours.bulk_max[0] == pytest.approx(row["rand_bulk_max"], rel=1e-12)
    assert ours.bulk_min[0] == pytest.approx(row["rand_bulk_min"], rel=1e-12, abs=1e-12)
    assert ours.eigenvalues[0, -1] == pytest.approx(row["max_rand_eval"], rel=1e-12)
    assert ours.replicas == (5 if min(W.shape) < 100 else 1)


@pytest.mark.parametrize("name", ["fc1 rank-one spike", "fc2 gaussian", "fc3 uniform", "tall low rank"])
def test_the_fit_of_the_matrix_itself_equals_weightwatchers(name):
    W = COMPARED[name]
    row = reference.analyze_one(W, mp_fit=True)
    ours = count_traps(esd(W), W.shape, "weightwatcher")
    assert ours.counts[0] == row["num_spikes"]
    assert ours.sigma_mp[0] == pytest.approx(row["sigma_mp"], rel=1e-12)
    assert ours.bulk_max[0] == pytest.approx(row["bulk_max"], rel=1e-12)


def test_a_density_whose_peak_is_a_plateau():
    """Rounding picks the peak of this one; summed in another order, sigma comes out 1 % different."""
    W = COMPARED["fc3 pareto"]
    row = reference.analyze_one(W, seed=3, randomize=True)
    ours = find_traps(W, seed=np.random.RandomState(3), shuffles=1, method="weightwatcher")
    assert ours.sigma_mp[0] == pytest.approx(row["rand_sigma_mp"], rel=1e-12)


def test_the_comparison_has_traps_in_it():
    counts = [
        find_traps(W, shuffles=1, method="weightwatcher").mean
        for name, W in COMPARED.items()
        if name.startswith(("fc1", "fc2"))
    ]
    assert (
        sum(count == 0 for count in counts) > 3
        and sum(count == 1 for count in counts) > 3
        and max(counts) > 5
    )


def test_its_defects_are_kept_in_its_method_and_mended_in_the_other():
    rng = np.random.default_rng(0)
    shifted = rng.normal(size=FC2) + 1.0  # the shift holds half of the mean square
    exact, bulk = (find_traps(shifted, shuffles=2, method=m).sigma_mp[0] for m in ("weightwatcher", "bulk"))
    assert exact == pytest.approx(0.92, abs=0.02)  # sigma is only a height at Q = 1
    assert bulk == pytest.approx(math.sqrt(0.5), rel=0.01)

    far = rng.normal(size=FC1) + 40.0
    exact, bulk = (find_traps(far, shuffles=2, method=m) for m in ("weightwatcher", "bulk"))
    largest = exact.eigenvalues[:, -1] / exact.eigenvalues.mean(axis=1)
    floor = 0.05 * np.sqrt(largest) / (1 + math.sqrt(200 / 784))
    assert (exact.sigma_mp >= 0.99 * floor).all() and (floor > 10 / 40).all()
    assert bulk.sigma_mp[0] == pytest.approx(1 / math.sqrt(1 + 40**2), rel=0.01)

    hidden = rng.normal(size=FC1) + 5.0  # one trap by the shift, and one that its size hides
    hidden[0, 0] = 45.0
    exact, bulk = (find_traps(hidden, shuffles=5, method=m).counts for m in ("weightwatcher", "bulk"))
    assert (exact == 1).all() and (bulk == 2).all()


# --- matrices whose traps are known ----------------------------------------------------------------


def outlier_over_threshold(square: float, shape) -> float:
    """Where a rank-one part with this squared singular value puts its eigenvalue, over the threshold.

    Benaych-Georges and Nadakuditi, J. Multivariate Anal. 111, 2012, section 3.1. The noise has standard
    deviation 1.
    """
    M, N = sorted(shape)
    edge = (1 + math.sqrt(M / N)) ** 2
    threshold = N * (edge + math.sqrt(math.sqrt(M / N) * edge ** (2 / 3) * M ** (-2 / 3)))
    out = (square + N) * (square + M) / square if square > math.sqrt(N * M) else N * edge
    return out / threshold


@pytest.mark.parametrize("shape", [FC1, FC2])
@pytest.mark.parametrize("shift", [0.0, 0.05, 0.08, 0.15, 0.3, 1.0, 2.0, 5.0])
def test_a_mean_shift_gives_one_trap_and_takes_its_part_of_the_variance(shape, shift):
    W = np.random.default_rng(21).normal(size=shape) + shift
    expected = outlier_over_threshold(shift**2 * W.size, shape)
    result = find_traps(W, shuffles=4)
    assert result.sigma_mp == pytest.approx(1 / math.sqrt(1 + shift**2), rel=0.006)
    if abs(expected - 1) > 0.04:
        assert (result.counts == (expected > 1)).all()
    if expected > 1.04:
        threshold, traps_found = result.threshold[0], result.trap_eigenvalues
        assert [t[0] / threshold for t in traps_found] == pytest.approx([expected] * 4, rel=0.05)


@pytest.mark.parametrize("shape", [FC1, FC2])
@pytest.mark.parametrize("size", [10, 15, 24, 40, 100, 200])
def test_one_planted_entry_is_one_trap_once_it_is_large_enough(shape, size):
    W = np.random.default_rng(22).normal(size=shape)
    W[3, 5] = -size
    expected = outlier_over_threshold(size**2, shape)
    result = find_traps(W, shuffles=4)
    assert result.sigma_mp == pytest.approx(1 / math.sqrt(1 + size**2 / W.size), rel=0.006)
    if abs(expected - 1) > 0.05:
        assert (result.counts == (expected > 1)).all()


def test_where_an_entry_becomes_a_trap():
    """In units of the standard deviation: between 26 and 28 in FC1, between 18 and 20 in FC2."""
    for shape, below, above in [(FC1, 25, 29), (FC2, 17, 21)]:
        W = np.random.default_rng(23).normal(size=shape)
        means = []
        for size in (below, above):
            W[0, 0] = size
            means.append(find_traps(W, shuffles=12).mean)
        assert means[0] < 0.3 and means[1] > 0.7


def test_as_many_traps_as_planted_entries():
    W = np.random.default_rng(24).normal(size=FC1)
    W[np.arange(8), np.arange(8)] = 60.0
    result = find_traps(W, shuffles=3)
    assert (result.counts == 8).all() and result.std == 0 and result.mean == 8
    assert all(len(t) == 8 and (np.diff(t) <= 0).all() for t in result.trap_eigenvalues)
    assert all((t > limit).all() for t, limit in zip(result.trap_eigenvalues, result.threshold, strict=True))


def test_correlations_alone_give_no_trap():
    rng = np.random.default_rng(25)
    u, v = rng.choice([-1.0, 1.0], size=200), rng.choice([-1.0, 1.0], size=784)
    W = rng.normal(size=FC1) + np.outer(u, v)
    assert count_traps(esd(W), W.shape).counts[0] == 1  # there is a spike in the matrix itself,
    assert find_traps(W, shuffles=3).mean == 0  # and none once its entries are shuffled


@pytest.mark.parametrize(("N", "M", "at_most"), [(784, 200, 0), (200, 200, 2), (200, 10, 3)])
def test_random_matrices_have_no_traps(N, M, at_most):
    """1,000 draws at full size, each judged alone: chance exceeds the edge of the law, not the threshold."""
    rng = np.random.default_rng(26)
    draws = [wishart_eigenvalues(N, M, rng) for _ in range(1000)]
    results = [count_traps(x, (N, M)) for x in draws]
    assert sum(r.counts[0] > 0 for r in results) <= at_most
    assert (
        sum(r.eigenvalues[0, -1] > r.bulk_max[0] for r in results) > 20
    )  # the threshold is what prevents them
    # The shuffles of one matrix share their sigma, which is then all the surer.
    assert (count_traps(draws, (N, M)).counts > 0).sum() <= at_most


@pytest.mark.parametrize("draw", ["uniform", "signs", "normal"])
@pytest.mark.parametrize("shape", [(50, 196), (50, 50)])
def test_nor_have_shuffled_matrices_of_other_entries(draw, shape):
    rng = np.random.default_rng(27)
    sampler = {
        "uniform": lambda: rng.uniform(-1, 1, size=shape),
        "signs": lambda: rng.choice([-1.0, 1.0], size=shape),
        "normal": lambda: rng.normal(size=shape),
    }[draw]
    assert sum(find_traps(sampler(), shuffles=4).mean > 0 for _ in range(100)) <= 2


# --- shuffles --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_shuffling_keeps_the_entries(rows, columns, seed):
    W = np.random.default_rng(seed).normal(size=(rows, columns))
    for rng in (np.random.default_rng(seed), np.random.RandomState(seed)):
        shuffled = shuffle_matrix(W, rng)
        assert shuffled.shape == W.shape
        assert np.array_equal(np.sort(shuffled, axis=None), np.sort(W, axis=None))
    assert np.array_equal(
        shuffle_matrix(W, np.random.default_rng(7)), shuffle_matrix(W, np.random.default_rng(7))
    )


def test_more_shuffles_extend_fewer_and_seeds_differ():
    W = np.random.default_rng(0).standard_t(2.5, size=(60, 90))
    few, more = find_traps(W, seed=3, shuffles=2), find_traps(W, seed=3, shuffles=5)
    assert np.array_equal(few.eigenvalues, more.eigenvalues[:2])
    assert not np.array_equal(few.eigenvalues, find_traps(W, seed=4, shuffles=2).eigenvalues)
    generator = np.random.default_rng(0)
    drawn = find_traps(W, seed=generator, shuffles=2).eigenvalues
    assert not np.array_equal(drawn, find_traps(W, seed=generator, shuffles=2).eigenvalues)
    assert np.array_equal(drawn, find_traps(W, seed=np.random.default_rng(0), shuffles=2).eigenvalues)


@pytest.mark.parametrize("method", traps.METHODS)
@pytest.mark.parametrize("shape", [(40, 60), (120, 300), (300, 120)])
def test_stored_eigenvalues_are_enough(method, shape):
    W = np.random.default_rng(1).standard_t(2, size=shape)
    found = find_traps(W, shuffles=3, method=method)
    again = count_traps(found.eigenvalues, shape[::-1], method)
    assert found.counts.max() > 0
    for name in ("counts", "sigma_mp", "bulk_min", "bulk_max", "threshold", "eigenvalues"):
        assert np.array_equal(getattr(found, name), getattr(again, name)), name
    assert (again.N, again.M, again.replicas) == (found.N, found.M, found.replicas)
    assert again.N == max(shape) and found.eigenvalues.shape == (3, found.replicas * min(shape))


def test_the_eigenvalues_are_those_of_the_shuffled_matrix():
    W = np.random.default_rng(2).normal(size=(30, 20))
    for method in traps.METHODS:
        rng = np.random.RandomState(5)
        mats = [
            shuffle_matrix(W.astype(np.float32) if method == "weightwatcher" else W, rng) for _ in range(5)
        ]
        got = find_traps(W, seed=np.random.RandomState(5), shuffles=1, method=method)
        expected = np.sort(np.concatenate([esd(A) for A in mats[: got.replicas]]))
        np.testing.assert_allclose(got.eigenvalues[0], expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6), method=st.sampled_from(traps.METHODS))
def test_the_scale_of_the_weights_does_not_matter(seed, scale, method):
    W = np.random.default_rng(seed).standard_t(2.2, size=(30, 45))
    result = find_traps(W, shuffles=2, method=method)
    scaled = find_traps(W * scale, shuffles=2, method=method)
    assert np.array_equal(result.counts, scaled.counts)
    assert scaled.sigma_mp == pytest.approx(result.sigma_mp, rel=1e-3 if method == "weightwatcher" else 1e-9)
    assert scaled.threshold == pytest.approx(result.threshold * scale**2, rel=1e-3)


def test_summary_numbers():
    W = np.random.default_rng(3).standard_t(1.8, size=(60, 60))
    result = find_traps(W, shuffles=12)
    assert result.std > 0
    assert result.mean == pytest.approx(result.counts.mean()) and result.std == pytest.approx(
        result.counts.std(ddof=1)
    )
    assert math.isnan(find_traps(W, shuffles=1).std)


# --- the law ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("Q", [1.0, 1.01, 2.0, 3.92, 20.0, 1000.0])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 3.0])
def test_the_closed_form_is_the_integral_of_the_density(Q, sigma):
    low, high = mp_support(Q, sigma)
    # x = low + (high - low) sin^2 t takes the roots out of both ends
    t = np.linspace(0, np.pi / 2, 200_001)[1:-1]
    x = low + (high - low) * np.sin(t) ** 2
    speed = mp_pdf(x, Q, sigma) * (high - low) * np.sin(2 * t)
    integral = np.cumsum(speed) * (t[1] - t[0])
    np.testing.assert_allclose(mp_cdf(x, Q, sigma), integral, atol=3e-5)
    assert mp_cdf([low, high], Q, sigma) == pytest.approx([0, 1], abs=1e-12)
    assert mp_cdf([low / 2 - 1, high + 1], Q, sigma).tolist() == [0, 1]
    assert mp_pdf([low / 2 - 1, high + 1], Q, sigma).tolist() == [0, 0]
    assert mp_quantile(mp_cdf(x[::1000], Q, sigma), Q, sigma) == pytest.approx(x[::1000], rel=1e-9)
    assert mp_quantile([0, 1], Q, sigma) == pytest.approx([low, high])
    mean = np.sum(speed * x) * (t[1] - t[0])
    assert mean == pytest.approx(sigma**2, rel=1e-4)  # the mean eigenvalue is the variance of the entries
    middle = (x > mp_quantile(0.25, Q, sigma)) & (x < mp_quantile(0.75, Q, sigma))
    middle_mean = np.sum((speed * x)[middle]) / np.sum(speed[middle])
    assert _mp.mp_middle_mean(Q) * sigma**2 == pytest.approx(middle_mean, rel=1e-3)


def test_the_law_describes_a_large_random_matrix():
    x = esd(np.random.default_rng(0).normal(scale=0.3, size=(600, 900))) / 900
    assert np.abs(mp_cdf(x, 1.5, 0.3) - (np.arange(600) + 0.5) / 600).max() < 0.006


def test_arguments_of_the_law():
    for Q in (0.5, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="Q = N / M"):
            mp_cdf(1.0, Q)
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma"):
            mp_pdf(1.0, 2.0, sigma)
    with pytest.raises(ValueError, match="between 0 and 1"):
        mp_quantile(1.5, 2.0)
    assert mp_pdf(0.0, 1.0) == np.inf


# --- Kolmogorov-Smirnov ----------------------------------------------------------------------------


def test_gaussian_spectra_are_drawn_from_the_right_law():
    """The two-diagonal shortcut against dense matrices: distribution and correlation of the eigenvalues."""
    rng = np.random.default_rng(0)
    for N, M in [(30, 12), (15, 15)]:
        short = np.array([wishart_eigenvalues(N, M, rng) for _ in range(3000)])
        dense = np.array([esd(rng.normal(size=(N, M))) for _ in range(3000)])
        for place in (0, M // 2, M - 1):
            assert stats.ks_2samp(short[:, place], dense[:, place]).pvalue > 0.001
        assert np.corrcoef(np.log(short).T)[0, 1] == pytest.approx(
            np.corrcoef(np.log(dense).T)[0, 1], abs=0.06
        )


@pytest.mark.parametrize(
    ("fit", "mean", "std", "q95"),
    [(None, 0.0125, 0.0015, 0.0151), ("weightwatcher", 0.0145, 0.0023, 0.0186)],
)
def test_the_null_of_the_paper_s_first_layer(fit, mean, std, q95):
    """Values measured independently, with dense 200 x 784 matrices."""
    null = mp_null(784, 200, fit=fit, draws=400)
    assert null.mean() == pytest.approx(mean, rel=0.03)
    assert null.std() == pytest.approx(std, rel=0.15)
    assert np.quantile(null, 0.95) == pytest.approx(q95, rel=0.06)


def test_the_null_is_drawn_once_per_shape():
    assert mp_null(60, 40, draws=50) is mp_null(60, 40, draws=50)
    assert mp_null(60, 40, draws=50) is not mp_null(60, 40, draws=50, seed=1)
    with pytest.raises(ValueError, match="read-only"):
        mp_null(60, 40, draws=50)[0] = 1.0


@pytest.mark.parametrize("fit", [None, "bulk", "weightwatcher"])
def test_the_monte_carlo_p_is_uniform_and_the_textbook_p_is_not(fit):
    rng = np.random.default_rng(1)
    x = np.array([wishart_eigenvalues(120, 60, rng) for _ in range(120)])
    ks = mp_ks(x, (60, 120), fit=fit, draws=200)
    assert stats.kstest(ks.p_monte_carlo, "uniform").pvalue > 0.005
    assert np.median(ks.p_textbook) > 0.999
    assert ks.null_mean == pytest.approx(ks.D.mean(), rel=0.1)


def test_a_departure_the_textbook_p_does_not_see():
    rng = np.random.default_rng(2)
    W = rng.normal(size=FC1) * np.exp(
        0.12 * rng.normal(size=(200, 1))
    )  # rows of different size, not shuffled
    ks = mp_ks(esd(W), W.shape)
    assert ks.p_textbook[0] > 0.5 and ks.p_monte_carlo[0] == pytest.approx(1 / 401)
    assert ks.D[0] > ks.null_q95 > ks.null_mean > ks.null_std


def test_ks_of_the_definition():
    x = esd(np.random.default_rng(3).normal(size=(20, 50)))
    ks = mp_ks(x[::-1].tolist(), (20, 50), fit=None, draws=20)
    expected = stats.kstest(x / x.mean(), lambda t: mp_cdf(t, 2.5))
    assert ks.D[0] == pytest.approx(expected.statistic) and ks.p_textbook[0] == pytest.approx(expected.pvalue)
    assert ks.sigma[0] == 1.0


def test_ks_of_pooled_and_of_empty_spectra():
    pooled = find_traps(np.random.default_rng(4).normal(size=FC3), method="weightwatcher", shuffles=3)
    ks = mp_ks(pooled.eigenvalues, FC3, fit="weightwatcher", draws=60)
    assert (ks.p_monte_carlo > 0.05).any()
    assert np.isnan(mp_ks(np.zeros(10), FC3, draws=10).p_monte_carlo).all()


# --- vectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_the_vectors_are_singular_vectors_of_the_shuffled_matrix(shape):
    W = np.random.default_rng(0).standard_t(2, size=shape)
    found = trap_vectors(W, seed=4, shuffle=2, k=3)
    shuffled = W.reshape(-1)[found.permutation].reshape(shape)
    assert np.array_equal(shuffled, shuffle_matrix(W, np.random.default_rng([4, 2])))
    np.testing.assert_allclose(found.eigenvalues, find_traps(W, seed=4, shuffles=3).eigenvalues[2, :-4:-1])
    U, s, Vt = np.linalg.svd(shuffled)
    for i in range(3):
        assert abs(found.left[i] @ U[:, i]) == pytest.approx(1) and abs(
            found.right[i] @ Vt[i]
        ) == pytest.approx(1)
        assert found.left[i] @ shuffled @ found.right[i] == pytest.approx(s[i])
        assert found.left[i].max() == np.abs(found.left[i]).max()
    plain = trap_vectors(W, shuffle=None, k=2)
    assert plain.permutation is None
    assert plain.left[0] @ W @ plain.right[0] == pytest.approx(np.linalg.norm(W, 2))


def test_as_many_vectors_as_traps():
    W = np.random.default_rng(1).normal(size=FC1)
    W[np.arange(4), np.arange(4)] = 70.0
    result = find_traps(W, seed=2, shuffles=2)
    assert len(trap_vectors(W, seed=2, shuffle=1).eigenvalues) == 4
    same = trap_vectors(W, seed=2, shuffle=1, threshold=result.threshold[1])
    np.testing.assert_allclose(same.eigenvalues, result.trap_eigenvalues[1])
    none = trap_vectors(np.random.default_rng(2).normal(size=FC1))
    assert none.left.shape == (0, 200) and none.right.shape == (0, 784) and none.entries == ()
    spiked = np.random.default_rng(3).normal(size=FC1) + np.outer(np.ones(200), np.ones(784) / 4)
    assert len(trap_vectors(spiked, shuffle=None).eigenvalues) == 1


def test_a_planted_entry_is_named_and_localises_the_vectors():
    W = np.random.default_rng(4).normal(size=(784, 200))
    W[700, 31] = -80.0
    found = trap_vectors(W, entries=2)
    first, second = found.entries[0]
    assert (first.row, first.col, first.value) == (700, 31, -80.0)
    assert first.z == pytest.approx((-80 - W.mean()) / W.std())
    assert first.share > 0.6 > 0.05 > second.share
    assert found.ipr_left[0] > 0.5 and found.ipr_right[0] > 0.5
    shift = trap_vectors(np.random.default_rng(5).normal(size=FC1) + 1)
    assert shift.ipr_left[0] < 2 / 200 and shift.ipr_right[0] < 2 / 784 and shift.entries[0][0].share < 1e-4


def test_shares_add_up_to_one():
    found = trap_vectors(np.random.default_rng(6).standard_t(2, size=(12, 15)), k=2, entries=12 * 15)
    for entries in found.entries:
        assert sum(e.share for e in entries) == pytest.approx(1)
        assert [e.share for e in entries] == sorted((e.share for e in entries), reverse=True)


def test_a_trap_can_be_taken_out_of_the_matrix_itself():
    W = np.random.default_rng(7).normal(size=(100, 160))
    W[5, 6] = 60.0
    found = trap_vectors(W)
    T = found.rank_one(0)
    assert abs((W - T)[5, 6]) < 30 and np.argmax(np.abs(T)) == 5 * 160 + 6
    in_shuffled_places = found.rank_one(0, own_places=False)
    assert np.linalg.matrix_rank(in_shuffled_places) == 1
    assert np.array_equal(T.reshape(-1)[found.permutation], in_shuffled_places.reshape(-1))
    assert np.linalg.norm(in_shuffled_places, 2) ** 2 == pytest.approx(found.eigenvalues[0])
    direct = trap_vectors(W, shuffle=None, k=1)
    assert np.linalg.norm(W - direct.rank_one(0), 2) == pytest.approx(np.linalg.svd(W, compute_uv=False)[1])


def test_inverse_participation_ratio():
    assert inverse_participation_ratio(np.ones(50)) == pytest.approx(1 / 50)
    assert inverse_participation_ratio([0, 0, 3.0]) == 1
    gaussian = np.random.default_rng(0).normal(size=(4, 100_000))
    assert inverse_participation_ratio(gaussian) * 100_000 == pytest.approx([3.0] * 4, rel=0.05)
    assert math.isnan(inverse_participation_ratio(np.zeros(3)))


# --- what comes in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("W", "error", "says"),
    [
        (np.array([[1.0, np.nan], [1.0, 2.0]]), ValueError, "NaN or infinite"),
        (np.full((20, 20), np.inf), ValueError, "NaN or infinite"),
        (np.empty((0, 5)), ValueError, "at least one entry"),
        (np.ones(5), ValueError, "two dimensions"),
        (np.ones((3, 3), dtype=complex), TypeError, "complex"),
    ],
)
@pytest.mark.parametrize(
    "function", [find_traps, trap_vectors, lambda W: shuffle_matrix(W, np.random.default_rng(0))]
)
def test_what_is_no_matrix_is_refused(function, W, error, says):
    with pytest.raises(error, match=says):
        function(W)


@pytest.mark.parametrize(
    ("W", "says"),
    [
        (np.full((40, 60), 0.7), "bulk"),
        (np.zeros((40, 60)), "bulk"),
        (np.eye(200), None),  # shuffled, an identity is a sparse random matrix; its rank is about 60 %
        (np.arange(9.0).reshape(3, 3), "3 eigenvalues; at least 10"),
        (np.random.default_rng(0).normal(size=(9, 500)), "9 eigenvalues; at least 10"),
        (np.pad([[1.0]], ((0, 49), (0, 49))), "bulk"),
    ],
)
def test_matrices_without_a_bulk_fail_with_a_reason(W, says):
    result = find_traps(W, shuffles=3)
    if says is None:
        assert result.status == "ok"
        return
    assert result.status == "failed" and says in result.reason
    assert np.isnan(result.counts).all() and math.isnan(result.mean) and math.isnan(result.std)
    assert all(t.size == 0 for t in result.trap_eigenvalues)
    assert len(trap_vectors(W).eigenvalues) == 0


@pytest.mark.parametrize("W", [np.full((120, 130), 0.7), np.zeros((120, 130)), np.full((20, 30), 0.7)])
def test_constant_matrices_by_weightwatcher_s_method(W):
    """Its own fit either fails or finds a spike on top of nothing; whatever it does is reproduced."""
    row = reference.analyze_one(W.astype(np.float32), seed=1, randomize=True)
    result = find_traps(W, seed=np.random.RandomState(1), shuffles=1, method="weightwatcher")
    if math.isnan(result.counts[0]):
        assert result.status == "failed" and result.reason
        assert not row["rand_num_spikes"] > 0
    else:
        assert result.counts[0] == row["rand_num_spikes"]


@pytest.mark.parametrize(
    "convert",
    [
        lambda W: W.astype(np.int32),
        lambda W: np.asfortranarray(W),
        lambda W: np.repeat(W, 2, axis=0)[::2],
        lambda W: W.astype(np.float16),
        lambda W: torch.tensor(W, dtype=torch.bfloat16),
        lambda W: torch.tensor(W, requires_grad=True),
    ],
)
def test_every_real_type_and_memory_order_gives_the_same(convert):
    W = np.random.default_rng(0).integers(0, 9, size=(12, 30)).astype(float)
    W[0, 0] = 128
    expected = find_traps(W, shuffles=2)
    got = find_traps(convert(W), shuffles=2)
    assert np.array_equal(got.counts, expected.counts) and got.counts[0] > 0
    assert np.array_equal(got.eigenvalues, expected.eigenvalues)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "tracy-widom"}, "method"),
        ({"shuffles": 0}, "shuffles"),
        ({"shuffles": 2.0}, "shuffles"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed"),
    ],
)
def test_arguments_of_find_traps(arguments, says):
    with pytest.raises(ValueError, match=says):
        find_traps(np.random.default_rng(0).normal(size=(12, 20)), **arguments)


def test_weights_beyond_float32():
    W = np.random.default_rng(0).normal(size=(12, 20)) * 1e60
    assert find_traps(W, shuffles=1).status == "ok"
    with pytest.raises(ValueError, match="float32"):
        find_traps(W, shuffles=1, method="weightwatcher")


@pytest.mark.parametrize(
    ("eigenvalues", "shape", "says"),
    [
        (np.ones(11), (10, 20), "10 eigenvalues"),
        (-np.ones(10), (10, 20), "must not be negative"),
        (np.full(10, np.nan), (10, 20), "NaN or infinite"),
        (np.ones((2, 2, 10)), (10, 20), "two dimensions"),
        (np.ones(10), (10,), "shape"),
        (np.ones(10), "ab", "shape"),
        (np.ones(10), (0, 20), "shape"),
    ],
)
def test_arguments_of_count_traps_and_mp_ks(eigenvalues, shape, says):
    for function in (count_traps, mp_ks):
        with pytest.raises(ValueError, match=says):
            function(eigenvalues, shape)


def test_arguments_of_mp_ks_and_trap_vectors():
    x, W = np.ones(10), np.random.default_rng(0).normal(size=(12, 20))
    for arguments, says in [({"fit": "median"}, "fit"), ({"draws": 0}, "draws"), ({"seed": -1}, "seed")]:
        with pytest.raises(ValueError, match=says):
            mp_ks(x, (10, 20), **arguments)
    for arguments, says in [
        ({"k": 13}, "at most 12"),
        ({"k": -1}, "k must"),
        ({"k": 1, "threshold": 2.0}, "not both"),
        ({"shuffle": -1}, "shuffle"),
        ({"entries": -1}, "entries"),
        ({"seed": "0"}, "seed"),
    ]:
        with pytest.raises(ValueError, match=says):
            trap_vectors(W, **arguments)
    with pytest.raises(ValueError, match="method"):
        count_traps(x, (10, 20), "median")


@pytest.mark.parametrize("shape", [(100, 100), (200, 784)])
@pytest.mark.parametrize("size", [1e8, 1e10, 1e13, 1e16, 1e30])
def test_one_enormous_weight_is_one_trap_whatever_its_size(shape, size):
    W = np.random.default_rng(0).normal(size=shape)
    W[3, 5] = size
    found = find_traps(W, shuffles=3)
    assert found.counts.tolist() == [1.0] * 3
    assert found.eigenvalues[:, -1] == pytest.approx(size**2, rel=1e-6)
    small = find_traps(np.where(W == size, 0, W), shuffles=3)
    np.testing.assert_allclose(found.threshold, small.threshold, rtol=0.05)  # the bulk is that of the other weights


@pytest.mark.parametrize("shift", [1e6, 1e9, 1e12])
def test_an_enormous_mean_is_one_trap(shift):
    found = find_traps(np.random.default_rng(0).normal(size=(100, 150)) + shift, shuffles=3)
    assert found.counts.tolist() == [1.0] * 3


def test_rounding_of_a_constant_matrix_is_no_bulk():
    for constant in (0.1, 65504.0, 1e30):
        found = find_traps(np.full((40, 30), constant), shuffles=3)
        assert found.status == "failed" and "lost in the rounding of the largest" in found.reason
