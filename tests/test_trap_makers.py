"""How much it takes to make a trap: the theory against matrices that were made so."""


import numpy as np
import pytest
from made_studies import COLLAPSE, NEVER, SHAPES, made

from grokutils.paper.traps import trap_correlates
from grokutils.spectra.trap_makers import lone_weight, mean_shift, trap_carriers, trap_causes
from grokutils.spectra.traps import find_traps

SHAPES_TRIED = [(200, 784), (200, 200), (100, 64), (60, 300)]


@pytest.mark.parametrize("shape", SHAPES_TRIED)
def test_a_lone_weight_is_a_trap_from_there_on(shape):
    rng = np.random.default_rng(1)
    for factor, traps in ((0.8, 0.0), (1.25, 1.0)):
        W = rng.normal(size=shape)
        W[3, 4] = factor * lone_weight(shape)
        assert find_traps(W, shuffles=6).mean == pytest.approx(traps, abs=0.2)


@pytest.mark.parametrize("shape", SHAPES_TRIED)
def test_a_mean_is_a_trap_from_there_on(shape):
    rng = np.random.default_rng(2)
    for factor, traps in ((0.8, 0.0), (1.25, 1.0)):
        W = rng.normal(loc=factor * mean_shift(shape), size=shape)
        assert find_traps(W, shuffles=6).mean == pytest.approx(traps, abs=0.2)


def test_a_matrix_and_its_transpose_are_alike():
    assert lone_weight((784, 200)) == lone_weight((200, 784)) and mean_shift((784, 200)) == mean_shift((200, 784))


def test_causes_are_told_apart():
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(100, 64))
    shifted, spiked = clean + 0.4, clean.copy()
    spiked[1, 2], spiked[3, 4] = 25.0, -30.0
    for W, expected, changed in (
        (clean, [0, 0, 0, 0], 0), (shifted, [1, 0, 1, 0], 0), (spiked, [2, 2, 0, 0], 2), (spiked + 0.4, [3, 2, 1, 0], 2),
    ):  # fmt: skip
        found = trap_causes(W, shuffles=3)
        assert found.traps.tolist() == expected
        assert found.weights_changed.tolist() == [0, 0, changed, changed]
        assert trap_causes(7 * W, shuffles=3).traps.tolist() == expected, "whatever the unit"


def test_an_outlying_weight_does_not_hide_a_smaller_one():
    W = np.random.default_rng(0).normal(size=(50, 50))
    W[0, 0], W[1, 1] = 1e4, 30.0
    assert trap_causes(W, shuffles=1).weights_changed.max() == 2


def test_the_matrix_is_left_alone():
    W = np.random.default_rng(0).normal(size=(50, 50))
    before = W.copy()
    trap_causes(W, shuffles=1), trap_carriers(W)
    assert np.array_equal(W, before)


def test_carriers_are_the_weights_that_were_put_there():
    W = np.random.default_rng(0).normal(size=(100, 64))
    W[7, 9], W[11, 13] = 40.0, -25.0
    found = trap_carriers(W, entries=1)
    assert found.trap.tolist() == [1, 2] and (found.strength > 1).all()
    assert found[["row", "column", "weight"]].values.tolist() == [[7, 9, 40.0], [11, 13, -25.0]]
    assert (found.share > 0.5).all() and (found.ipr > 0.3).all()
    shifted = trap_carriers(np.random.default_rng(0).normal(loc=0.5, size=(100, 64)), entries=1)
    assert len(shifted) == 1 and shifted.share[0] < 0.05, "a mean is carried by all"
    assert trap_carriers(np.random.default_rng(0).normal(size=(100, 64))).empty


def test_correlates(tmp_path):
    data = made(tmp_path / "x", (COLLAPSE, COLLAPSE, NEVER))
    found = trap_correlates(data)
    assert list(found.index) == ["fc1", "fc2"] and (found.networks == 3 * 4).all(), "four steps since memorisation"
    row = found.loc["fc1"]
    assert row.trapped == 0.5 and 0.8 < row.max_over_std < 1
    predicted = [0.05 * i > mean_shift(SHAPES["fc1"]) for i in range(3, 7)]
    assert predicted == [False, True, True, True] and row.agree == 0.75


def test_correlates_of_what_never_changes(tmp_path):
    found = trap_correlates(made(tmp_path / "x", traps={"fc1": (0,) * 7, "fc2": (0,) * 7, "fc3": (0,) * 7}))
    assert found[["max_over_std", "kurtosis", "mean_over_std"]].isna().all(axis=None) and (found.trapped == 0).all()
