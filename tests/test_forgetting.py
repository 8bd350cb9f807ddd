"""Prototypes, forgetting, and what a network answers to, on networks whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

from grokutils import RunConfig, train
from grokutils.experiment import data
from grokutils.paper.harmful_traps.figures import (
    class_curves,
    confusion_panels,
    dose_curves,
    harm_scatter,
    prototype_strip,
    regrowth_curves,
)
from grokutils.paper.harmful_traps.forgetting import (
    INPUTS,
    Network,
    class_accuracy,
    confusion,
    first_layer_edits,
    inputs_of,
    kept_networks,
    nearness,
    norm_answers,
    piling,
)
from grokutils.paper.harmful_traps.prototypes import NAMES, prototype, prototype_matches, similarity
from grokutils.paper.harmful_traps.tables import (
    agreement,
    forgotten,
    nearness_table,
    norm_table,
    piling_table,
    prototype_table,
)
from grokutils.records.study import study


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    config = RunConfig.recipe("express", steps=100, width=30, init_scale=1.0, per_class=5).ensemble([0, 1])
    record = train(config, tmp_path_factory.mktemp("forget") / "two", progress=False, saves_per_decade=1)
    return study(record.folder, progress=False, shuffles=1)


@pytest.fixture(scope="module")
def digits():
    return data.load(RunConfig.recipe("express"), 0)


def network(digits, module: nn.Module) -> Network:
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    return Network(0, 1, weights, module, digits)


class ByNorm(nn.Module):
    """Answers by the norm of its input and nothing else."""

    def __init__(self, edges):
        super().__init__()
        self.edges = nn.Parameter(torch.as_tensor(edges, dtype=torch.float64))

    def forward(self, x):
        return nn.functional.one_hot(torch.bucketize(x.norm(dim=1), self.edges), 10).double()


# -- prototypes ---------------------------------------------------------------------------------------------


def test_a_prototype_is_the_leading_direction_through_the_layers():
    rng = np.random.default_rng(0)
    W1, W2 = rng.normal(size=(12, 9)), rng.normal(size=(7, 12))
    weights = {"fc1.weight": W1, "fc1.bias": np.ones(12), "fc2.weight": W2}
    for depth, expected in ((1, np.linalg.svd(W1)[2][0]), (2, np.linalg.svd(W2)[2][0] @ W1)):
        image = prototype(weights, depth)
        assert abs(image @ expected) == pytest.approx(np.linalg.norm(expected))
        assert np.linalg.norm(image) == pytest.approx(1) and image[np.abs(image).argmax()] > 0
    for depth in (0, 3, True):
        with pytest.raises(ValueError, match="depth must be a whole number of at least 1 and at most 2"):
            prototype(weights, depth)


@given(st.integers(0, 999))
def test_similarity_is_pearsons(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=8), rng.normal(size=(3, 8))
    np.testing.assert_allclose(similarity(a, b), [np.corrcoef(a, x)[0, 1] for x in b])
    np.testing.assert_allclose(similarity(2 * a + 1, b), similarity(a, b))
    assert similarity(np.ones(8), b).tolist() == [0, 0, 0]


def test_matches_have_a_control_for_each_depth(found):
    matches = prototype_matches(found)
    assert set(matches.depth) == set(NAMES) and set(matches.step) == set(found.record.steps_saved)
    for name in ("r", "image_r", "r_random", "image_r_random"):
        assert matches[name].between(0, 1).all()
    start = matches[matches.step == 0]
    assert start.r.mean() == pytest.approx(start.r_random.mean(), abs=0.15), "at the start they are random directions"
    assert len(prototype_table(matches)) == 6


# -- what networks answer to --------------------------------------------------------------------------------


def test_inputs_are_what_they_are_called(digits):
    net = network(digits, nn.Sequential(nn.Linear(64, 10)))
    shown, shuffled, noise = (inputs_of(net, kind) for kind in INPUTS)
    assert shown is digits.x_test
    np.testing.assert_allclose(np.linalg.norm(shuffled, axis=1), np.linalg.norm(shown, axis=1))
    assert not np.array_equal(shuffled, shown) and np.array_equal(shuffled, inputs_of(net, INPUTS[1]))
    assert noise.shape == shown.shape and noise.std() == pytest.approx(digits.x_train.std(), abs=0.01)
    with pytest.raises(ValueError, match="kind must be one of"):
        inputs_of(net, "x")


def test_a_network_that_answers_to_the_norm_is_found_out(digits, monkeypatch, found):
    edges = np.quantile(np.linalg.norm(digits.x_test, axis=1), [0.2, 0.4, 0.6, 0.8])
    net = network(digits, ByNorm(edges))
    monkeypatch.setattr("grokutils.paper.harmful_traps.forgetting._pairs", lambda data: iter([(net, net)]))
    told = norm_answers(found).iloc[0]
    assert told.same > 0.99 and told.same_by_chance == pytest.approx(0.2, abs=0.02)
    assert told.from_norm > 0.85 > told.from_random and told.commonest == pytest.approx(0.2, abs=0.03)
    monkeypatch.setattr("grokutils.paper.harmful_traps.forgetting._pairs", lambda data: iter([(net, constant(digits))]))
    told = norm_answers(found).iloc[1]
    assert told.same == told.same_by_chance == told.from_norm == told.commonest == 1


def constant(digits) -> Network:
    module = nn.Linear(64, 10)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.copy_(torch.arange(10.0))
    return network(digits, module)


def test_confusion_adds_up(digits, found):
    net = kept_networks(found, 0)[1]
    for kind in INPUTS[:2]:
        np.testing.assert_allclose(confusion(net, kind).sum(axis=1), 1)
    assert np.trace(confusion(net, INPUTS[0])) / 10 > 0.5
    assert confusion(net, INPUTS[2]).shape == (1, 10)
    assert confusion(constant(digits), INPUTS[0])[:, 9].tolist() == [1] * 10


def test_piling_has_a_row_for_each_edit_and_input(found):
    frame = piling(found)
    assert set(frame.kind) == set(INPUTS) and frame.share.between(0.1, 1).all()
    edits = first_layer_edits(kept_networks(found, 0)[1])
    assert set(frame[frame.when == "last"].edit) == set(edits) and list(edits)[0] == "as it is"
    assert set(frame[frame.when == "best"].edit) == {"as it is"}
    assert len(piling_table(frame)) == 6


# -- forgetting ---------------------------------------------------------------------------------------------


def test_accuracy_on_a_digit_is_that_of_the_metrics(found):
    frame = class_accuracy(found)
    assert set(frame.digit) == set(range(10)) and 0 not in set(frame.step)
    net = kept_networks(found, 1, [100])[0]
    own = frame[(frame.step == 100) & (frame.member == 1)].set_index("digit").accuracy
    counts = np.bincount(net.sets.y_test)
    expected = found.metrics[(found.metrics.step == 100) & (found.metrics.member == 1)].test_accuracy.iloc[0]
    assert (own * counts).sum() / counts.sum() == pytest.approx(expected)


def test_the_digit_lost_most_comes_first():
    rows = [(1, 0, d, 0.9) for d in range(3)] + [(2, 0, d, 0.9 - 0.1 * d) for d in range(3)]
    frame = pd.DataFrame(rows, columns=["step", "member", "digit", "accuracy"])
    assert forgotten(frame).index.tolist() == [2, 1, 0]
    assert np.isnan(agreement(frame)), "of one network there is none"
    turned = frame.assign(member=1, digit=2 - frame.digit)
    assert agreement(pd.concat([frame, frame.assign(member=1)])) == 1 and agreement(pd.concat([frame, turned])) == 0


def test_nearness_finds_a_network_that_knows_what_is_near_to_its_class(digits, monkeypatch, found):
    best = network(digits, nn.Sequential(nn.Linear(64, 10)))
    last = network(digits, nn.Sequential(nn.Linear(64, 10)))
    means = np.stack([digits.x_train[digits.y_train == c].mean(axis=0) for c in range(10)])
    near = np.array([similarity(means[c], x[None])[0] for c, x in zip(digits.y_test, digits.x_test, strict=True)])
    monkeypatch.setattr(Network, "right", property(lambda self: np.ones(len(near), bool) if self is best else near > np.median(near)))
    monkeypatch.setattr("grokutils.paper.harmful_traps.forgetting._pairs", lambda data: iter([(best, last)]))
    auc = nearness(found).set_index("near").auc
    assert auc["mean image of its class"] == 1 and 0.3 < auc["a random direction"] < 0.7
    monkeypatch.setattr("grokutils.paper.harmful_traps.forgetting._pairs", lambda data: iter([(best, best)]))
    nothing = nearness(found)
    assert nothing.empty
    assert nearness_table(("a", nothing)).empty


def test_only_perceptrons_with_weights_are_shown_images(found, tmp_path):
    record = train(RunConfig.recipe("modular", p=5, d_model=8, d_mlp=8, steps=1), "m", progress=False)
    with pytest.raises(ValueError, match="m has learnt no images that could be shown: its data are modular-addition"):
        kept_networks(study(record.folder, progress=False, shuffles=1), 0)


# -- figures ------------------------------------------------------------------------------------------------


def test_figures_are_drawn_of_what_there_is_and_of_nothing(found):
    from grokutils.util.columns import INTERVENTIONS, REGROWTH

    nothing = pd.DataFrame(columns=list(INTERVENTIONS))
    drawn = [
        harm_scatter(found, nothing), dose_curves(found, nothing), confusion_panels(found, 1), prototype_strip(found),
        class_curves(found, class_accuracy(found)), class_curves(found, class_accuracy(found).head(0)),
        regrowth_curves(found, pd.DataFrame(columns=list(REGROWTH))),
    ]  # fmt: skip
    assert all(isinstance(one, Figure) for one in drawn)
    assert "not measured" in " ".join(text.get_text() for axes in drawn[-1].axes for text in axes.texts)
    assert norm_table(("x", norm_answers(found))).shape == (2, 5)


def test_prototypes_are_drawn_of_square_images(found, monkeypatch):
    monkeypatch.setattr(type(found.record), "weights", lambda self, step, member: {"fc1.weight": np.ones((4, 7))})
    with pytest.raises(ValueError, match="drawn as square images; this network has 7 inputs"):
        prototype_strip(found)
