"""Hooks do what they say, at the steps they say, and a run with hooks resumes as one without."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grokutils import ConfigError, RecordError, RunConfig, load_record, train
from grokutils.experiment import models
from grokutils.records import files
from grokutils.training.hooks import (
    CenterRows,
    ClipWeights,
    FreeOnly,
    HoldNorm,
    Hook,
    ScaleSteps,
    check_hooks,
)


def tiny(**changes) -> RunConfig:
    return RunConfig.recipe("express", **{**dict(steps=60, width=16, dtype="float64"), **changes})


def go(folder, *hooks, config=None, **options):
    return train(config or tiny(), folder, progress=False, hooks=hooks, **options)


def last(record) -> dict[str, np.ndarray]:
    return record.weights(record.steps_saved[-1])


class Calls(Hook):
    """Writes down when it was called."""

    identity = "calls"

    def __init__(self, first=0, every=1):
        self.first, self.every, self.calls = first, every, []

    def before(self, step, model):
        self.calls.append(("before", step))

    def after(self, step, model):
        self.calls.append(("after", step))


@settings(max_examples=15, deadline=None)
@given(first=st.integers(0, 70), every=st.integers(1, 70), chunk=st.integers(1, 70))
def test_called_at_its_steps_however_the_steps_are_cut(tmp_path_factory, first, every, chunk):
    hook = Calls(first, every)
    folder = tmp_path_factory.mktemp("x") / "x"
    for steps in sorted({min(chunk, 60), 60}):
        go(folder, hook, config=tiny(steps=steps))
    due = range(first, 60, every)
    assert [s for kind, s in hook.calls if kind == "before"] == list(due)
    assert [s for kind, s in hook.calls if kind == "after"] == [s for s in range(first + every, 61, every)]


def test_a_hook_that_does_nothing_changes_no_reported_digit(tmp_path):
    plain, hooked = go(tmp_path / "plain"), go(tmp_path / "hooked", Calls(every=7))
    # with hooks every pixel takes part in the arithmetic, which changes its rounding
    np.testing.assert_allclose(hooked.metrics.train_loss, plain.metrics.train_loss, rtol=1e-9)
    for name, array in last(plain).items():
        np.testing.assert_allclose(last(hooked)[name], array, atol=1e-9)


def test_a_smaller_step_is_a_smaller_learning_rate(tmp_path):
    # from the first step on, with decay: the whole run at a tenth
    config = tiny(wd=0.1)
    scaled = go(tmp_path / "scaled", ScaleSteps(factor=0.1), config=config)
    smaller = go(tmp_path / "smaller", config=config.replace(learning_rate=config.learning_rate / 10))
    for name, array in last(smaller).items():
        np.testing.assert_allclose(last(scaled)[name], array, atol=1e-9)


def test_factor_one_and_zero_keep_the_bits(tmp_path):
    none = go(tmp_path / "none", Calls())
    one = go(tmp_path / "one", ScaleSteps(factor=1.0, start=10))
    zero = go(tmp_path / "zero", ScaleSteps(factor=0.0, start=50))
    for name, array in last(none).items():
        assert np.array_equal(last(one)[name], array)
        assert np.array_equal(last(zero)[name], none.weights(50)[name])  # 50 is a saved step


def test_cosine_ends_where_it_should():
    model = models.build(tiny(), torch.device("cpu"))
    hook = ScaleSteps(start=20, end=40, factor=0.2)
    hook.begin(model)
    shares = [hook.share(step, model).item() for step in (0, 19, 20, 30, 40, 59)]
    assert shares == pytest.approx([1, 1, 1, 0.6, 0.2, 0.2])


def test_members_have_their_own_start(tmp_path):
    config = tiny().ensemble([0, 1])
    both = go(tmp_path / "both", ScaleSteps(start=(30, 50), factor=0.0), config=config)
    for member, start in enumerate((30, 50)):
        saved = max(s for s in both.steps_saved if s <= start)
        alone = go(tmp_path / f"alone{member}", ScaleSteps(start=start, factor=0.0), config=tiny(seed=member))
        for name, array in both.weights(60, member).items():
            np.testing.assert_allclose(array, last(alone)[name], atol=1e-9)
            assert not np.array_equal(array, both.weights(saved, member)[name]) or saved == start


def test_only_the_named_parameters_move(tmp_path):
    # decay and momentum would move the others
    found = go(tmp_path / "x", FreeOnly(names=("fc2.weight", "fc2.bias"), start=30), config=tiny(wd=0.1))
    at = min(s for s in found.steps_saved if s >= 30)
    for name, array in last(found).items():
        assert np.array_equal(array, found.weights(at)[name]) == (not name.startswith("fc2"))


def test_norms_are_held(tmp_path):
    config = tiny(wd=0.1).ensemble([0, 1])
    held = go(tmp_path / "x", HoldNorm(start=(30, 40)), config=config)
    for member in (0, 1):
        own = held.metrics[held.metrics.member == member].set_index("step")
        for layer in ("fc1", "fc2", "fc3"):
            late = own.loc[own.index >= 40, f"{layer}_l2_norm"]
            assert late.max() - late.min() < 1e-9 * late.max()
            assert own[f"{layer}_l2_norm"].loc[:30].std() > 0
    to = go(tmp_path / "y", HoldNorm(to=7.0, names=("fc1.weight",)), config=tiny())
    assert np.linalg.norm(last(to)["fc1.weight"]) == pytest.approx(7.0)
    assert np.linalg.norm(last(to)["fc2.weight"]) != pytest.approx(7.0)


def test_clipped_and_centred(tmp_path):
    found = go(tmp_path / "x", ClipWeights(k=1.5), CenterRows(names=("fc2.weight",)))
    for name in ("fc1.weight", "fc3.weight"):
        w = last(found)[name]
        assert np.abs(w - w.mean()).max() < 1.5 * 1.2 * w.std()  # of the deviation before the clipping
    assert np.abs(last(found)["fc2.weight"].mean(axis=1)).max() < 1e-12
    assert np.abs(last(found)["fc1.weight"].mean(axis=1)).max() > 1e-6


@settings(max_examples=50, deadline=None)
@given(k=st.floats(0.5, 5), seed=st.integers(0, 99))
def test_clipping_moves_no_weight_inside(k, seed):
    model = models.build(tiny(seed=seed), torch.device("cpu"))
    model.init()
    before = model.params["fc1.weight"].clone()
    hook = ClipWeights(k=k, names=("fc1.weight",))
    hook.begin(model)
    hook.after(1, model)
    after, reach = model.params["fc1.weight"], k * before.std(correction=0)
    inside = (before - before.mean()).abs() < reach * (1 - 1e-12)
    assert torch.equal(after[inside], before[inside])
    assert ((after - before.mean()).abs() <= reach * (1 + 1e-12)).all()


@pytest.mark.parametrize("cut", [17, 35])
def test_with_hooks_a_run_resumes_exactly(tmp_path, cut):
    hooks = lambda: (HoldNorm(start=30), ScaleSteps(start=20, end=50, factor=0.1), ClipWeights(k=3.0))  # noqa: E731
    whole = go(tmp_path / "whole", *hooks())
    # `steps` is not part of a run's identity: a shorter run is the start of a longer one
    go(tmp_path / "cut", *hooks(), config=tiny(steps=cut))
    rest = go(tmp_path / "cut", *hooks())
    own, theirs = (files.read_tensors(r.folder / "state.safetensors")[0] for r in (whole, rest))
    assert any(name.startswith("hook0/") for name in own) and own.keys() == theirs.keys()
    assert all(np.array_equal(own[name], theirs[name]) for name in own)


def test_hooks_are_part_of_what_a_run_is(tmp_path):
    found = go(tmp_path / "x", ClipWeights(k=3.0))
    assert load_record(found.folder).config.intervention == ClipWeights(k=3.0).identity
    assert found.provenance["hooks"] == [ClipWeights(k=3.0).identity]
    assert found.config.identity != tiny().identity
    with pytest.raises(RecordError, match="holds another run .*intervention"):
        go(found.folder, ClipWeights(k=2.0))
    with pytest.raises(RecordError, match="holds another run .*intervention"):
        go(found.folder)
    with pytest.raises(ConfigError, match="give the same start_from and hooks again"):
        train(found.config, tmp_path / "y", progress=False)
    assert train(found.config, found.folder, progress=False, hooks=[ClipWeights(k=3.0)]).complete
    assert found.config.name != tiny().name  # so that the default folder is another one as well


@pytest.mark.parametrize(
    "bad, says",
    [
        (lambda: ScaleSteps(factor=2), "factor must be between 0 and 1; got 2"),
        (lambda: ScaleSteps(start=-1), "start must be a step"),
        (lambda: ScaleSteps(start=20, end=10), "end must come after start; got 10"),
        (lambda: ClipWeights(k=0), "k must be a positive number; got 0"),
        (lambda: ClipWeights(k=math.nan), "k must be a positive number; got nan"),
        (lambda: FreeOnly(names="fc1.weight"), "names must be names of parameters"),
        (lambda: FreeOnly(names=()), "names must be names of parameters"),
        (lambda: HoldNorm(to=0.0), "to must be a positive number"),
        (lambda: check_hooks([Calls(every=0)]), "every of calls must be a whole number of at least 1; got 0"),
        (lambda: check_hooks([Hook()]), "needs an identity"),
        (lambda: check_hooks(Calls()), "hooks must be a list of hooks; got Calls"),
        (lambda: check_hooks(["x"]), "one of them is a str"),
    ],
)
def test_bad_hooks_are_refused(bad, says):
    with pytest.raises(ConfigError, match=says):
        bad()


@pytest.mark.parametrize(
    "hook, says",
    [
        (FreeOnly(names=("fc9.weight",)), "no parameter 'fc9.weight'; there are fc1.weight"),
        (HoldNorm(names=("fc1.bias",)), "'fc1.bias' is no matrix"),
        (ScaleSteps(start=(1, 2)), r"start must have a step for each of 1 member\(s\); got 2"),
    ],
)
def test_hooks_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, hook, says):
    with pytest.raises(ConfigError, match=says):
        go(tmp_path / "x", hook)
    assert not (tmp_path / "x" / "config.json").exists()
