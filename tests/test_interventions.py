"""Edits of a matrix: exactly the weights they say, by exactly as much, and nothing at strength 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from grokutils.spectra.interventions import (
    CONTROLS,
    INJECTIONS,
    REPLACEMENTS,
    Edit,
    control,
    edited,
    edited_weights,
    inject,
    layer_matrix,
    remove_trap,
    traps_in,
)
from grokutils.spectra.trap_makers import lone_weight
from grokutils.spectra.traps import find_traps

SHAPES = st.sampled_from([(30, 40), (40, 30), (36, 36)])
SEEDS = st.integers(0, 2**20)


def gaussian(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def spiked(*shape, at=(3, 5), size=40.0, seed=0) -> np.ndarray:
    W = gaussian(*shape, seed=seed)
    W[at] = size
    return W


def bits(W: np.ndarray) -> bytes:
    return np.ascontiguousarray(W).tobytes()


# -- taking out ---------------------------------------------------------------------------------------------


def test_a_trap_taken_out_is_gone_in_every_shuffle():
    for W in (spiked(60, 50), gaussian(60, 50) + 0.6):
        edit = remove_trap(W, replace="nothing")
        assert find_traps(W).mean >= 1 and find_traps(edit.after).mean < 0.2


def test_matched_noise_takes_an_outlier_away_and_leaves_a_mean():
    assert find_traps(remove_trap(spiked(60, 50)).after).mean < 0.2
    shifted = gaussian(60, 50) + 0.6
    after = remove_trap(shifted).after
    assert find_traps(after).mean >= 1 and after.mean() == pytest.approx(shifted.mean(), rel=0.1)


def test_what_is_taken_off_is_the_rank_one_part_in_its_own_places():
    W = spiked(40, 30)
    (trap,) = traps_in(W, "fc1")
    assert (trap.layer, trap.number, trap.entries[0].row, trap.entries[0].col) == ("fc1", 0, 3, 5)
    edit = remove_trap(W, trap, replace="nothing", strength=0.5)
    shuffled = (-edit.change / 0.5).reshape(-1)[trap.permutation].reshape(W.shape)
    np.testing.assert_allclose(shuffled, trap.sigma * np.outer(trap.left, trap.right), atol=1e-12)
    assert edit.norm == pytest.approx(0.5 * trap.sigma) and edit.layer == "fc1"


def test_the_noise_has_the_mean_and_the_spread_of_what_it_replaces():
    (trap,) = traps_in(gaussian(40, 30) + 1.0)
    edits = [remove_trap(trap.matrix, trap, seed=seed) for seed in (0, 0, 1)]
    assert bits(edits[0].after) == bits(edits[1].after) != bits(edits[2].after)
    put_in = (edits[0].after - remove_trap(trap.matrix, trap, replace="nothing").after).reshape(-1)[trap.permutation]
    u, _, v = np.linalg.svd(put_in.reshape(40, 30))
    for found, own in ((u[:, 0], trap.left), (v[0], trap.right)):
        assert abs(found.mean()) == pytest.approx(abs(own.mean())) and found.std() == pytest.approx(own.std())


@given(SHAPES, SEEDS, st.sampled_from(REPLACEMENTS))
@settings(max_examples=15)
def test_strength_0_takes_nothing_out_bit_for_bit(shape, seed, how):
    W = spiked(*shape, seed=seed)
    W[0, 0] = -0.0
    edit = remove_trap(W, replace=how, strength=0, seed=seed)
    assert bits(edit.after) == bits(W) and not edit.moved.any() and edit.norm == 0


# -- putting in ---------------------------------------------------------------------------------------------


@given(SHAPES, SEEDS, st.sampled_from(INJECTIONS), st.floats(-8, 8))
def test_an_injection_moves_what_it_says_by_as_much_as_it_says(shape, seed, kind, strength):
    W = gaussian(*shape, seed=seed)
    W[1, 1] = -0.0
    edit = inject(W, kind, strength, seed=seed, count=3)
    expected = {"entry": 1, "entries": 3, "mean": W.size, "rank-one": W.size}[kind]
    if abs(strength) > 1e-6:
        assert edit.moved.sum() == expected
        assert edit.norm == pytest.approx(abs(strength) * lone_weight(W.shape) * W.std())
    assert bits(edit.after[~edit.moved]) == bits(W[~edit.moved])
    again = inject(W, kind, strength, seed=seed, count=3)
    assert bits(edit.after) == bits(again.after)


@given(SHAPES, SEEDS, st.sampled_from(INJECTIONS))
def test_strength_0_puts_nothing_in_bit_for_bit(shape, seed, kind):
    W = gaussian(*shape, seed=seed)
    W[0, 0] = -0.0
    for edit in (inject(W, kind, 0, seed=seed), *(control(inject(W, kind, 0), c) for c in CONTROLS)):
        assert bits(edit.after) == bits(W)


@pytest.mark.parametrize("kind, traps", [("entry", 1), ("mean", 1), ("rank-one", 0)])
def test_three_times_the_strength_of_a_trap_is_one_and_a_random_direction_never(kind, traps):
    assert find_traps(inject(gaussian(60, 80), kind, 3).after, shuffles=5).mean == traps


def test_what_is_put_in_grows_away_from_zero():
    W = gaussian(50, 40) - 0.3
    assert inject(W, "mean", 2).after.mean() < W.mean()
    for kind in ("entry", "entries"):
        edit = inject(W, kind, 2)
        assert (np.abs(edit.after[edit.moved]) > np.abs(W[edit.moved])).all()


def test_a_direction_of_ones_own():
    W, u, v = gaussian(30, 20), np.arange(30.0), np.ones(20)
    change = inject(W, "rank-one", 2, direction=(u, v)).change
    unit = np.outer(u, v) / np.linalg.norm(u) / np.linalg.norm(v)
    np.testing.assert_allclose(change / np.linalg.norm(change), unit, atol=1e-12)


# -- controls -----------------------------------------------------------------------------------------------


@given(SHAPES, SEEDS, st.sampled_from(INJECTIONS), st.sampled_from(CONTROLS))
@settings(max_examples=40)
def test_a_control_changes_the_same_matrix_by_as_much(shape, seed, kind, how):
    edit = inject(gaussian(*shape, seed=seed), kind, 2)
    other = control(edit, how, seed=seed)
    assert other.before is edit.before and other.norm == pytest.approx(edit.norm)
    if how == "places":
        np.testing.assert_allclose(np.sort(other.change, axis=None), np.sort(edit.change, axis=None), atol=1e-12)
        assert other.moved.sum() == edit.moved.sum()
    else:
        assert np.linalg.matrix_rank(other.change, tol=1e-8) == 1


# -- networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_weights_that_no_edit_moves_keep_their_bits(dtype):
    net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10)).to(dtype)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    other = edited(net, inject(layer_matrix(net, "0"), "entries", 2, layer="0"))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items()), "a copy is edited"
    changed = {name: int((before[name] != value).sum()) for name, value in other.state_dict().items()}
    assert changed == {"0.weight": 4, "0.bias": 0, "2.weight": 0, "2.bias": 0}


def test_two_layers_at_once_and_weights_by_name():
    net = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 10)).double()
    edits = [inject(layer_matrix(net, name), "mean", 2, layer=name) for name in ("0", "1")]
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    new = edited_weights(weights, *edits)
    for name, value in edited(net, *edits).state_dict().items():
        assert np.array_equal(value.numpy(), new[name])
    assert np.array_equal(weights["0.weight"], net[0].weight.detach().numpy()), "given arrays stay as they are"


def test_convolutions_are_edited_in_their_own_shape():
    net = nn.Sequential(nn.Conv2d(3, 20, 3))
    other = edited(net, inject(layer_matrix(net, "0"), "entry", 2, layer="0"))
    assert int((other[0].weight != net[0].weight).sum()) == 1


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda W: remove_trap(gaussian(30, 40), layer="fc1"), "fc1 has no trap in shuffle 0, so none can be taken out."),
        (lambda W: remove_trap(W, 1), "trap must be between 0 and 0 in the matrix; got 1."),
        (lambda W: remove_trap(W, -1), "trap must be between 0 and 0 in the matrix; got -1."),
        (lambda W: remove_trap(W, 0.5), "trap must be a whole number, 0 for the largest; got 0.5."),
        (lambda W: remove_trap(W, replace="x"), "replace must be one of matched, nothing; got 'x'."),
        (lambda W: remove_trap(W, strength=np.inf), "strength must be a finite number; got inf."),
        (lambda W: inject(W, "x"), "kind must be one of entry, entries, mean, rank-one; got 'x'."),
        (lambda W: inject(W, "entry", np.nan), "strength must be a finite number; got nan."),
        (lambda W: inject(W, "entries", count=0), "count must be between 1 and 1200, the number of weights; got 0."),
        (lambda W: inject(W, "entry", seed=-1), "seed must be a whole number of at least 0; got -1."),
        (lambda W: inject(np.ones((9, 9)), "entry", layer="fc1"), "fc1 is constant"),
        (lambda W: inject(W[:7, :9], "mean", layer="fc3"), "fc3 is 7 x 9, too small for traps."),
        (lambda W: inject(W, "rank-one", direction=(np.ones(3), np.ones(40))), "direction must be vectors of 30 and 40"),
        (lambda W: inject(W, "rank-one", direction=(np.zeros(30), np.ones(40))), "that are not all zero."),
        (lambda W: inject(W, "rank-one", direction=3), "direction must be two vectors"),
        (lambda W: inject(W * np.nan, "entry"), "must hold finite numbers"),
        (lambda W: control(inject(W, "entry"), "x"), "kind must be one of direction, places; got 'x'."),
        (lambda W: layer_matrix(nn.Linear(3, 2), "fc9"), "layer must be one of weight; got 'fc9'."),
        (lambda W: edited(nn.Linear(3, 2), Edit("weight", "", W, W)), "weight is (2, 3), and the edit is of (30, 40)."),
        (lambda W: edited_weights({"a": np.ones((2, 3))}, Edit("a", "", W, W)), "a is (2, 3), and the edit is of (30, 40)."),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, said):
    with pytest.raises(ValueError) as caught:
        call(spiked(30, 40))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_layer_whose_weights_are_computed_cannot_be_edited():
    net = nn.utils.parametrizations.weight_norm(nn.Linear(30, 40))
    name = "weight"
    with pytest.raises(ValueError, match="cannot be edited: its weights are computed from others"):
        edited(net, inject(layer_matrix(net, name), "mean", 2, layer=name))
