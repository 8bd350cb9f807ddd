"""Counting traps without all eigenvalues gives what counting with all of them gives."""

import numpy as np
import pytest
import scipy.stats
import torch

from grokutils.spectra.alpha import esd, fit_power_law
from grokutils.spectra.counting import count_without_spectra, gram_spectrum, random_placement
from grokutils.spectra.diagnose import diagnose
from grokutils.spectra.traps import count_traps, find_traps


def gaussian(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


def with_outliers(W, sizes):
    W = W.copy()
    W.flat[np.random.default_rng(1).choice(W.size, len(sizes), replace=False)] = sizes
    return W


def student(degrees, rows=900, columns=700):
    return np.random.default_rng(2).standard_t(degrees, size=(rows, columns)).astype(np.float32)


def pruned(share):
    W = gaussian(800, 900)
    W[np.random.default_rng(3).random(W.shape) < share] = 0
    return W


MATRICES = {
    "gaussian": gaussian(700, 1100),
    "gaussian, square": gaussian(800, 800),
    "gaussian, large": gaussian(2100, 2060),
    "gaussian, ten rows": gaussian(10, 100_000),
    "float64, tiny": gaussian(600, 700).astype(float) * 1e-30,
    "float64, huge": gaussian(600, 700).astype(float) * 1e30,
    **{f"student {d}": student(d) for d in (2, 2.5, 3, 4, 5)},
    "one outlier, far": with_outliers(gaussian(800, 800), [90.0]),
    **{f"one outlier, near the edge, {z}": with_outliers(gaussian(800, 800), [z]) for z in (33, 35)},
    "five outliers, large": with_outliers(gaussian(2100, 2100), [47, 49, 51, 60, 200]),
    "twenty outliers": with_outliers(gaussian(1000, 800), np.linspace(25, 200, 20)),
    "mean shift, small": gaussian(900, 900) + np.float32(0.06),
    "mean shift": gaussian(900, 700) + np.float32(0.5),
    "mean shift, large": gaussian(900, 700) + np.float32(5),
    "low rank": gaussian(900, 12, 1) @ gaussian(12, 700, 2),
    "half pruned": pruned(0.5),
    "pruned": pruned(0.97),
    "uniform": np.random.default_rng(4).uniform(-1, 1, size=(600, 1500)),
    "two values": np.sign(gaussian(700, 700)),
    "no bulk": np.full((700, 600), 0.3, dtype=np.float32),
    "zeros": np.zeros((700, 600), dtype=np.float32),
    "all but a row zero": np.eye(700, 600, dtype=np.float32),
}


@pytest.mark.parametrize("name", MATRICES)
def test_counts_equal_those_from_all_eigenvalues(name):
    W = MATRICES[name]
    for shuffles in (1,) if max(W.shape) > 2000 else (1, 3):
        fast = count_without_spectra(W, seed=5, shuffles=shuffles)
        full = count_without_spectra(W, seed=5, shuffles=shuffles, exact=True)
        np.testing.assert_array_equal(fast.counts, full.counts)
        assert (fast.status, fast.reason) == (full.status, full.reason)
        assert full.way == "spectra in float64"
        if full.status == "ok":
            assert abs(fast.sigma_mp - full.sigma_mp) <= fast.sigma_error
            np.testing.assert_allclose(fast.strength, full.strength, rtol=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[], [45, 52, 58, 64, 120]], ids=["no outliers", "five outliers"])
@pytest.mark.parametrize("shape", [(4096, 4096), (5760, 2880), (1000, 30_000)], ids=str)
def test_counts_are_equal_at_the_sizes_of_llms(shape, sizes):
    W = with_outliers(gaussian(*shape), sizes)
    fast, full = (count_without_spectra(W, exact=exact) for exact in (False, True))
    assert fast.counts == full.counts
    assert fast.way == "certificate" or sizes


def test_the_test_matrices_take_every_way():
    ways = {count_without_spectra(MATRICES[name], seed=5).way for name in ("gaussian", "student 3", "student 2")}
    assert ways == {"certificate", "spectra in float32", "spectra in float64"}


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_equal_close_to_the_threshold(seed):
    """Outliers whose eigenvalues lie within some percent of the threshold, on both sides."""
    sizes = np.random.default_rng(seed).uniform(29, 40, size=3)
    W = with_outliers(gaussian(800, 900, seed), sizes)
    fast, full = (count_without_spectra(W, seed, exact=exact) for exact in (False, True))
    assert 0.9 < full.strength[0] < 1.2
    assert fast.counts == full.counts


def test_exact_is_the_full_spectrum_method_on_the_same_placements():
    W = MATRICES["twenty outliers"]
    found = count_without_spectra(W, seed=3, shuffles=2, exact=True)
    spectra = [np.linalg.svd(random_placement(W, [3, s]).astype(float), compute_uv=False) ** 2 for s in range(2)]
    full = count_traps(spectra, W.shape)
    np.testing.assert_array_equal(found.counts, full.counts)
    assert found.mean == full.mean and found.std == full.std
    assert found.sigma_mp == pytest.approx(full.sigma_mp[0], rel=1e-6)  # a power of two is all that was divided by


def test_the_interval_of_the_scale_is_neither_too_narrow_nor_far_too_wide():
    errors = []
    for seed in range(30):
        W = gaussian(600, 900, seed)
        fast, full = (count_without_spectra(W, seed, exact=exact) for exact in (False, True))
        assert fast.way == "certificate"
        errors.append((fast.sigma_mp - full.sigma_mp) / fast.sigma_error)
    # eight standard errors and a little more: each is an eighth at most, and not a fiftieth
    assert np.abs(errors).max() < 4 / 8
    assert 1 / 50 < np.std(errors) < 1.3 / 8
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors))


def test_counts_have_the_law_of_full_shuffles():
    W = np.random.default_rng(0).standard_t(3, size=(300, 250)).astype(np.float32)
    placed = count_without_spectra(W, shuffles=200).counts
    shuffled = find_traps(W, shuffles=200).counts
    assert np.unique(shuffled).size > 3
    assert scipy.stats.ks_2samp(placed, shuffled).pvalue > 0.05
    assert abs(placed.mean() - shuffled.mean()) < 3 * np.hypot(placed.std(), shuffled.std()) / np.sqrt(200)
    assert 0.7 < placed.std() / shuffled.std() < 1.4


def test_a_placement_keeps_the_entries_and_follows_its_seed():
    W = gaussian(300, 700)
    before = W.copy()
    placed = random_placement(W, 7)
    np.testing.assert_array_equal(np.sort(placed, axis=None), np.sort(W, axis=None))
    np.testing.assert_array_equal(W, before)
    np.testing.assert_array_equal(placed, random_placement(W, 7))
    assert placed.dtype == W.dtype and placed.shape == W.shape
    assert np.mean(placed == W) < 1e-4 and np.mean(placed == random_placement(W, [7, 1])) < 1e-4
    assert random_placement(W.T, 7).shape == W.T.shape


def test_every_place_is_equally_likely():
    """Over blocks and buckets: where entries of the first block end, alone and in pairs."""
    size = 3 * 65536 + 1000
    pieces, same = np.zeros(8), 0
    draws = 60
    for seed in range(draws):
        placed = random_placement(np.arange(size), seed)
        first = np.flatnonzero(placed < 65536)
        pieces += np.bincount(first * 8 // size, minlength=8)
        same += np.count_nonzero(np.diff(placed) == 1)  # neighbours that stayed neighbours: one a draw on average
    assert scipy.stats.chisquare(pieces).pvalue > 0.001
    assert abs(same - draws) < 4 * np.sqrt(draws)


def test_shares_between_blocks_and_buckets_vary_as_they_should():
    """A shuffle that dealt every block out evenly would make them all but constant."""
    size, here = 4 * 65536, []
    for seed in range(80):
        placed = random_placement(np.arange(size), seed)
        here.append(np.count_nonzero(placed[: size // 4] < size // 4))
    law = scipy.stats.hypergeom(size, size // 4, size // 4)
    assert 0.75 < np.std(here) / law.std() < 1.3
    assert abs(np.mean(here) - law.mean()) < 4 * law.std() / np.sqrt(80)


@pytest.mark.parametrize("size", [0, 1, 2, 65536, 65537])
def test_placements_of_any_size(size):
    np.testing.assert_array_equal(np.sort(random_placement(np.arange(size), 0)), np.arange(size))


@pytest.mark.parametrize("name", ["gaussian", "student 3", "mean shift", "low rank", "pruned", "gaussian, large"])
def test_alpha_from_the_gram_matrix(name):
    W = MATRICES[name]
    fast, slow = fit_power_law(gram_spectrum(W)), fit_power_law(esd(W))
    assert (fast.n_tail, fast.status) == (slow.n_tail, slow.status)
    assert fast.alpha == pytest.approx(slow.alpha, abs=1e-9)
    assert fast.D == pytest.approx(slow.D, abs=1e-9)


def test_spectra_with_small_eigenvalues_that_a_fit_can_see_are_taken_from_the_matrix_itself():
    W = gaussian(600, 600) @ np.diag(np.logspace(6, -3, 600)).astype(np.float32)
    np.testing.assert_array_equal(gram_spectrum(W), esd(W))
    assert np.count_nonzero(gram_spectrum(W, cutoff="relative") == 0) > 0


def test_types_that_torch_and_files_have():
    W = torch.tensor(gaussian(600, 700))
    assert count_without_spectra(W.bfloat16()).counts == count_without_spectra(W.bfloat16().float().numpy()).counts
    assert count_without_spectra(W.numpy().astype(np.float16)).way == "certificate"
    assert count_without_spectra(W.t()).M == 600


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(W=np.zeros((2, 3, 4), dtype=np.float32)), "two dimensions"),
        (dict(W=np.full((600, 600), np.nan, dtype=np.float32)), "360000 of its 360000 entries"),
        (dict(W=np.array([[1.0, np.inf]], dtype=np.float32)), "1 of its 2 entries"),
        (dict(W=gaussian(20, 20), seed=-1), "seed must be a whole number of at least 0; got -1"),
        (dict(W=gaussian(20, 20), seed=0.5), "seed must be a whole number"),
        (dict(W=gaussian(20, 20), shuffles=0), "shuffles must be a whole number of at least 1; got 0"),
        (dict(W=gaussian(20, 20), shuffles=True), "shuffles must be a whole number"),
    ],
)
def test_bad_input_is_named(given, said):
    with pytest.raises(ValueError, match=said):
        count_without_spectra(**given)


def test_fewer_than_ten_eigenvalues_are_no_spectrum():
    found = count_without_spectra(gaussian(5, 900))
    assert np.isnan(found.mean) and found.status == "failed" and "at least 10" in found.reason


def test_diagnose_counts_large_matrices_without_spectra_unless_asked():
    W = with_outliers(gaussian(2100, 2060), [75, 80, 90, 100, 200])
    fast, full = (diagnose(W, shuffles=2, exact=exact, progress=False).iloc[0] for exact in (False, True))
    assert fast.traps == full.traps == 5
    assert fast.alpha == full.alpha and fast.verdict == full.verdict == "trapped"
    assert fast.sigma_mp == pytest.approx(full.sigma_mp, rel=0.02)
    assert fast.trap_z == pytest.approx(full.trap_z, rel=1e-6) and fast.trap_z > 150
    assert fast.trap_share == pytest.approx(full.trap_share, rel=0.05)
