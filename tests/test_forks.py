"""A fork begins with the weights it says, and its record says where they come from."""

import numpy as np
import pytest

from grokutils import ConfigError, RecordError, RunConfig, load_record, train
from grokutils.records import files
from grokutils.training.hooks import CenterRows


def tiny(**changes) -> RunConfig:
    return RunConfig.recipe("express", **{**dict(steps=60, width=16, dtype="float64", wd=0.01), **changes})


@pytest.fixture
def source(tmp_path):
    return train(tiny(), tmp_path / "source", progress=False)


def fork(source, folder, config=None, **options):
    return train(config or tiny(steps=30), folder, progress=False, start_from=source, **options)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_it_begins_with_the_saved_weights(source, tmp_path):
    step = source.steps_saved[-3]
    found = fork(source, tmp_path / "x", step=step)
    assert same(found.weights(0), source.weights(step))  # unused pixels included
    assert same(fork(source, tmp_path / "y").weights(0), source.weights(60))  # the last by default
    origin = found.provenance["origin"]
    assert origin["identity"] == source.config.identity and origin["step"] == [step]


def test_without_moments_it_is_the_run_that_a_fresh_optimiser_takes(source, tmp_path):
    """From step 0 the source has no moments either: the fork is the run over again."""
    again = fork(source, tmp_path / "x", config=tiny(), step=0)
    assert same(again.weights(60), source.weights(60))


def test_an_edit_is_made_once_and_named(source, tmp_path):
    def edit(weights):
        weights["fc1.weight"][2, 3] += 5.0
        return weights

    before = source.weights(60)
    found = fork(source, tmp_path / "x", edit=edit)
    assert same(source.weights(60), before)
    change = found.weights(0)["fc1.weight"] - before["fc1.weight"]
    assert np.count_nonzero(change) == 1 and change[2, 3] == pytest.approx(5.0)
    plain = fork(source, tmp_path / "y")
    assert found.config.identity != plain.config.identity
    with pytest.raises(RecordError, match="holds another run"):
        fork(source, found.folder)


def test_unused_pixels_of_an_edit_decay_as_they_should(tmp_path):
    """Weights of pixels without ink are not trained but decayed in closed form, from what the edit made of them."""
    source = train(tiny(), tmp_path / "source", progress=False)
    dark = np.flatnonzero(~data_of(source).any(axis=0))
    assert len(dark)

    def edit(weights):
        weights["fc1.weight"][:, dark] = 3.0
        return weights

    shortcut = fork(source, tmp_path / "a", edit=edit)
    plainly = fork(source, tmp_path / "b", edit=edit, hooks=[CenterRows(names=("fc3.weight",), first=10**6)])
    expected = 3.0 * (1 - 0.01 * 0.01) ** 30
    for found in (shortcut, plainly):
        np.testing.assert_allclose(found.weights(30)["fc1.weight"][:, dark], expected, rtol=1e-12)


def data_of(source):
    from grokutils.experiment import data

    return data.load(source.config, 0).x_train != 0


def test_members_fork_from_their_own(tmp_path):
    source = train(tiny().ensemble([0, 1]), tmp_path / "source", progress=False)
    steps = source.steps_saved[-2:]
    both = fork(source, tmp_path / "x", tiny(steps=30).ensemble([0, 1]), step=steps, member=[1, 0])
    assert same(both.weights(0, 0), source.weights(steps[0], 1))
    assert same(both.weights(0, 1), source.weights(steps[1], 0))


def test_it_resumes_exactly(source, tmp_path):
    whole = fork(source, tmp_path / "whole", step=0)
    fork(source, tmp_path / "cut", tiny(steps=11), step=0)
    rest = fork(source, tmp_path / "cut", step=0)
    own, theirs = (files.read_tensors(r.folder / "state.safetensors")[0] for r in (whole, rest))
    assert all(np.array_equal(own[name], theirs[name]) for name in own)
    assert load_record(rest.folder).provenance["origin"] == whole.provenance["origin"]


@pytest.mark.parametrize(
    "options, kind, says",
    [
        (dict(step=7), ConfigError, "need start_from, a record"),
        (dict(start_from="runs/x"), ConfigError, "start_from must be a Record"),
    ],
)
def test_a_fork_of_nothing(tmp_path, options, kind, says):
    with pytest.raises(kind, match=says):
        train(tiny(), tmp_path / "x", progress=False, **options)


@pytest.mark.parametrize(
    "options, kind, says",
    [
        (dict(step=7_777), ValueError, "7,?777"),
        (dict(member=3), ValueError, "member"),
        (dict(step=[0, 1]), ConfigError, "step must be a whole number, or 1 of them"),
        (dict(step=1.5), ConfigError, "step must be a whole number"),
        (dict(edit=3), ConfigError, "edit must be a function"),
        (dict(edit=lambda w: None), ValueError, "edit must return a dict of names to arrays"),
        (dict(edit=lambda w: {}), ValueError, "weights must be named as this model's parameters are"),
        (dict(edit=lambda w: w | {"fc1.weight": np.zeros((2, 2))}), ValueError, "fc1.weight must be floating-point"),
        (dict(edit=lambda w: w | {"fc1.weight": w["fc1.weight"] * np.nan}), ValueError, "finite"),
        (dict(config=tiny(width=8)), ValueError, "fc1.weight must be floating-point numbers of shape"),
    ],
)
def test_bad_forks_are_refused_before_anything_is_written(source, tmp_path, options, kind, says):
    with pytest.raises(kind, match=says):
        fork(source, tmp_path / "x", **options)
    assert not (tmp_path / "x" / "config.json").exists()
