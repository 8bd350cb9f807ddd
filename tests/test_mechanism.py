"""The mechanism: the return to the valley, the hooks, paths that stop and go on, and how they are compared."""

from __future__ import annotations

import itertools
import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.display import Markdown
from matplotlib.figure import Figure
from test_reading_notebooks import ROOT, execute

from grokutils import RunConfig
from grokutils.experiment import models
from grokutils.experiment.config import ConfigError
from grokutils.paper import mechanism
from grokutils.paper.mechanism import measure, paths, study
from grokutils.paper.mechanism.conditions import (
    CONDITIONS,
    CONTROL,
    MNIST,
    TOLERANCE,
    TOPICS,
    Path,
    Walk,
    condition,
)
from grokutils.paper.mechanism.hooks import (
    CapSteps,
    ClipSingularValues,
    Jitter,
    OnlyPixels,
    OrthogonalSteps,
    PullAlpha,
    PullNorm,
)
from grokutils.paper.mechanism.valley import Valley
from grokutils.spectra.alpha import esd, fit_power_law
from grokutils.training.train import TrainingInterrupted

SMALL = RunConfig.recipe("express", per_class=2, width=40, init_scale=2.0)


@pytest.fixture
def records(tmp_path, monkeypatch):
    """A folder for the records of a test."""
    folder = tmp_path / "results"
    monkeypatch.setattr(study, "OUT", str(folder))
    return folder


# -- the return to the valley ----------------------------------------------------------------------------


@pytest.fixture
def valley() -> Valley:
    return Valley(SMALL, seed=3)


def drawn(valley: Valley, seed: int = 0, scale: float = 0.3) -> torch.Tensor:
    return scale * torch.from_numpy(np.random.default_rng(seed).standard_normal(valley.size))


def jacobian(valley: Valley, flat: torch.Tensor) -> torch.Tensor:
    """By autograd, (images * outputs, weights)."""

    def outputs(flat):
        h, w = valley.x, valley.views(flat)
        for k in (1, 2, 3):
            h = h @ w[f"fc{k}.weight"].T + w[f"fc{k}.bias"]
            h = h.relu() if k < 3 else h
        return h.flatten()

    return torch.autograd.functional.jacobian(outputs, flat)


def test_its_products_are_those_of_the_jacobian(valley):
    flat = drawn(valley)
    J = jacobian(valley, flat)
    reads = valley.activations(flat, valley.x)
    kernel, backs = valley.gram(flat, reads)
    assert torch.allclose(kernel.double(), J @ J.T, rtol=1e-5, atol=1e-5)
    lam = drawn(valley, 1)[: len(J)]
    assert torch.allclose(valley.jacobian_t(lam.view(-1, 10), reads, backs), J.T @ lam, rtol=1e-10, atol=1e-10)


def test_a_return_ends_in_the_valley_nearby(valley):
    start = valley.settle(drawn(valley), 1e-12)
    assert start.found and start.loss <= 1e-12 and valley.loss(start.weights) == start.loss
    noise = drawn(valley, 2, 0.01) * valley.trained()
    there = start.weights + noise
    back = valley.settle(there, 1e-10)
    assert back.found and valley.loss(back.weights) <= 1e-10 < valley.loss(there)
    # the least change: it has next to no part that the outputs do not see
    J = jacobian(valley, there)
    change = back.weights - there
    seen = J.T @ torch.linalg.lstsq(J.T, change[:, None]).solution[:, 0]
    assert (change - seen).norm() < 0.1 * change.norm()
    assert change.norm() < noise.norm()


def test_a_return_from_the_valley_is_no_step(valley):
    start = valley.settle(drawn(valley), 1e-12).weights
    assert torch.equal(valley.settle(start, 1e-10).weights, start)


def test_what_cannot_be_fitted_is_said(valley):
    valley.y = valley.y.clone()
    valley.x = valley.x[:1].expand_as(valley.x).contiguous()  # one image, of ten classes
    found = valley.settle(drawn(valley), 1e-10)
    assert not found.found and found.loss > 1e-3


def test_weights_of_unused_pixels_are_not_free(valley):
    free = valley.views(valley.trained())["fc1.weight"]
    used = (valley.data.x_train != 0).any(0)
    assert not used.all() and (free.numpy() == used).all()


# -- hooks -------------------------------------------------------------------------------------------------


def stepped(hook, steps: int = 1):
    """A small model before and after some steps with a hook, as its parameters."""
    model = models.build(SMALL.replace(weight_decay=0.0), torch.device("cpu"))
    model.without_shortcuts()
    model.init()
    hook.begin(model)
    before = {name: p.clone() for name, p in model.params.items()}
    for number in range(steps):
        hook.before(number, model)
        model.step(number, 1)
        if hook.is_due(number + 1):
            hook.after(number + 1, model)
    return model, before


def test_steps_are_capped_and_keep_their_direction():
    model, before = stepped(CapSteps(rms=1e-3))
    free, start = stepped(CapSteps(rms=10.0))
    size = sum(p.numel() for p in before.values())
    step = torch.cat([(model.params[n] - before[n]).flatten() for n in before])
    whole = torch.cat([(free.params[n] - start[n]).flatten() for n in before])
    assert torch.isclose(step.norm() / size**0.5, torch.tensor(1e-3), rtol=1e-3)
    assert whole.norm() > 2 * step.norm()
    assert torch.nn.functional.cosine_similarity(step, whole, dim=0) > 0.999


def test_steps_are_orthogonal_to_each_matrix():
    model, before = stepped(OrthogonalSteps())
    for name in ("fc1.weight", "fc2.weight", "fc3.weight"):
        step = model.params[name] - before[name]
        assert abs((step * before[name]).sum()) < 1e-3 * step.norm() * before[name].norm() and step.norm() > 0


def test_norms_are_pulled_to_a_share():
    model, before = stepped(PullNorm(to=0.5, rate=1.0))
    for name in ("fc1.weight", "fc2.weight", "fc3.weight"):
        assert torch.isclose(model.params[name].norm(), 0.5 * before[name].norm(), rtol=1e-5)


@pytest.mark.parametrize("unused, factor", [("kept", 1.0), ("shrunk", 0.5)])
def test_unused_pixels_have_their_own_decay(unused, factor):
    model, before = stepped(OnlyPixels(unused=unused, rate=0.5))
    columns = ~(model.batch(0).x != 0).any(0)
    now, start = model.params["fc1.weight"], before["fc1.weight"]
    assert columns.any() and torch.allclose(now[:, columns], factor * start[:, columns])
    assert not torch.allclose(now[:, ~columns], start[:, ~columns])


def test_jitter_spares_unused_pixels_and_is_a_function_of_the_step():
    one, before = stepped(Jitter(std=0.1))
    again, _ = stepped(Jitter(std=0.1))
    columns = ~(one.batch(0).x != 0).any(0)
    assert torch.equal(one.params["fc1.weight"][:, columns], before["fc1.weight"][:, columns])
    assert torch.equal(one.flat, again.flat)
    assert (one.params["fc2.weight"] - before["fc2.weight"]).std() > 0.09


def test_alpha_is_pulled_and_the_norm_kept():
    config = RunConfig.recipe("express", weight_decay=0.0)
    model = models.build(config, torch.device("cpu"))
    model.init()
    hook = PullAlpha(to=3.0, rate=1.0, every=1, names=("fc2.weight",))
    hook.begin(model)
    matrix, other = model.params["fc2.weight"].clone(), model.params["fc3.weight"].clone()
    before = fit_power_law(esd(matrix)).alpha
    for _ in range(10):
        hook.after(1, model)
    after = fit_power_law(esd(model.params["fc2.weight"])).alpha
    assert abs(after - 3) < 0.3 < abs(before - 3)
    assert torch.isclose(model.params["fc2.weight"].norm(), matrix.norm(), rtol=1e-4)
    assert torch.equal(model.params["fc3.weight"], other)


def test_singular_values_are_clipped_at_the_largest():
    model = models.build(SMALL, torch.device("cpu"))
    model.init()
    hook = ClipSingularValues(every=1)
    hook.begin(model)
    before = torch.linalg.svdvals(model.params["fc1.weight"])
    model.params["fc1.weight"].mul_(2.0)
    hook.after(1, model)
    after = torch.linalg.svdvals(model.params["fc1.weight"])
    assert torch.allclose(after, torch.clamp(2 * before, max=float(before[0])), rtol=1e-4)


@pytest.mark.parametrize(
    "make", [lambda: CapSteps(rms=0.0), lambda: PullNorm(to=-1.0, rate=0.1), lambda: Jitter(std=float("nan")),
             lambda: PullAlpha(to=1.0, rate=0.1, every=1), lambda: OnlyPixels(unused="none")],
)  # fmt: skip
def test_a_hook_without_meaning_is_refused(make):
    with pytest.raises(ConfigError):
        make()


# -- the plan --------------------------------------------------------------------------------------------


def test_the_plan_can_be_run():
    every = (*CONDITIONS, *MNIST)
    assert len({path.name for path in every}) == len(every) == len({path.identity for path in every})
    assert len({path.says for path in every}) == len(every)
    assert {path.topic for path in every} == set(TOPICS) and condition(CONTROL).topic == "control"
    for path in CONDITIONS:
        assert (path.walk is None) or not (path.changes or path.hooks), "a walk has no optimiser to change"
        one = paths.stepper(path, 0)
        assert one.step == 0 and np.isfinite(one.loss())
    with pytest.raises(ConfigError, match="no condition 'wak'"):
        condition("wak")


# -- paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, until", [("adam", 0.02), ("line", 0.08), ("walk", 0.06), ("adam-pull", 0.02)])
def test_a_path_that_was_stopped_ends_in_the_same_numbers(name, until, tmp_path, monkeypatch):
    found = []
    for stops in (0, 2):
        monkeypatch.setenv("GROKUTILS_RUNS", str(tmp_path / str(stops)))
        for limit in [1] * stops:
            asked = itertools.count(1)
            assert paths.follow(condition(name), 1, until, lambda a=asked, n=limit: next(a) >= n) == "stopped"
        assert paths.follow(condition(name), 1, until) == "reached"
        folder = paths.folder_of(condition(name), 1)
        found.append([pd.read_parquet(folder / f"{kind}.parquet") for kind in study.FRAMES])
    for whole, in_parts in zip(*found, strict=True):
        pd.testing.assert_frame_equal(whole, in_parts)
    assert found[0][0].reached.max() >= until


def test_a_walk_stays_in_the_valley_and_knows_no_unused_pixel():
    one = paths.Walked(condition("walk"), 0)
    start, unused = one.weights(), ~one.valley.views(one.valley.trained())["fc1.weight"].numpy()
    for _ in range(3):
        one.advance()
        assert one.loss() <= TOLERANCE
    assert one.failures == 0
    assert (one.weights()["fc1.weight"][unused] == start["fc1.weight"][unused]).all()
    # three steps at right angles
    assert abs(measure.displacement(start, one.weights()) / (0.04 * 3**0.5) - 1) < 0.1


def test_directions_have_the_length_and_the_shares_that_they_should():
    sizes, tensors = [], {}
    for kind in ("isotropic", "layers", "permuted", "signs", "adam"):
        one = paths.Walked(Path("x", "walk", "", walk=Walk(0.04, fixed=True, direction=kind)), 0)
        drawn = one._line
        sizes.append(float(drawn[one._matrices].norm()) / one._size)
        views = one.valley.views(drawn)
        tensors[kind] = {name: float(view.norm() / drawn.norm()) for name, view in views.items()}
        values = {name: view.flatten().abs().sort().values for name, view in views.items()}
        if kind == "permuted":
            permuted = values
    assert np.allclose(sizes, 0.04)
    for kind in ("layers", "permuted", "signs"):
        assert tensors[kind] == pytest.approx(tensors["adam"])
    assert tensors["isotropic"] != pytest.approx(tensors["adam"], rel=0.2)
    for name, numbers in values.items():  # those of Adam's own, the last
        assert torch.allclose(numbers, permuted[name])


def test_shrinking_alone_turns_little():
    one = paths.Walked(condition("shrink"), 0)
    ruler = measure.Ruler(one.weights(), one.valley.data)
    for _ in range(10):
        one.advance()
    row = ruler.measure(one.weights())
    assert 0.02 < row["displacement"] < 0.11 and row["rotation"] < 0.5 * row["displacement"] and row["norm"] < 0.98


def test_scaled_weights_have_moved_and_not_turned():
    start = paths.grokked(condition("adam"), 0)
    ruler = measure.Ruler(start, Valley(paths.config_of(condition("adam"), 0), 0).data)
    row = ruler.measure({name: w * np.float32(0.75) if w.ndim == 2 else w for name, w in start.items()})
    assert row["displacement"] == pytest.approx(0.25) and row["norm"] == pytest.approx(0.75)
    assert row["rotation"] == pytest.approx(0, abs=1e-3) and row["displacement_fc1_bias"] == 0
    same = ruler.measure(start)
    assert same["displacement"] == same["change_rare"] == 0 and same["agreement"] == 1
    assert same["cka_fc2"] == pytest.approx(1)
    assert same["test_rare_back"] == same["test_accuracy"]


# -- many of them --------------------------------------------------------------------------------------------


def test_what_is_there_is_not_run_again_and_a_longer_path_replaces_a_shorter(records):
    assert mechanism.run(["line"], [0], 0.04, progress=False) == {"reached": 1}
    first = study.paths_frame()
    assert mechanism.run(["line"], [0], 0.04, progress=False) == {}
    assert mechanism.run(["line"], [0, 1], 0.1, progress=False) == {"reached": 2}
    rows = study.paths_frame()
    pd.testing.assert_frame_equal(rows[rows.seed == 0].iloc[: len(first)].reset_index(drop=True), first)
    assert set(rows.seed) == {0, 1} and rows.groupby("seed").reached.max().min() >= 0.1 - 1e-6
    shutil.rmtree(paths.folder_of(condition("line"), 0))
    assert mechanism.run(["line"], [0], 0.04, progress=False) == {}
    assert len(study.paths_frame()) == len(rows)


def test_a_path_in_use_is_passed_over(records):
    from grokutils.records.files import locked

    with locked(paths.folder_of(condition("line"), 0)):
        assert mechanism.run(["line"], [0], 0.04, progress=False) == {"passed over": 1}


def test_an_interrupt_is_said(records, monkeypatch):
    monkeypatch.setattr(paths.Interrupts, "__call__", lambda self: True)
    with pytest.raises(TrainingInterrupted, match="same command"):
        mechanism.run(["line"], [0], 0.5, progress=False)


@pytest.mark.parametrize("given", [dict(only=["nothing"]), dict(seeds=[20]), dict(until=0.0), dict(until=1.5)])
def test_what_has_no_meaning_is_refused(given, records):
    with pytest.raises(ConfigError):
        mechanism.run(**given, progress=False)


# -- what they say ---------------------------------------------------------------------------------------


def made(name: str, seeds: int, fall, most: float = 0.6, norm=lambda way: 1.0) -> pd.DataFrame:
    """Paths that lose `fall(displacement, seed)`."""
    rows = []
    for seed in range(seeds):
        for k, way in enumerate(np.arange(0, most + 0.001, 0.02)):
            wiggle = 0.001 * ((seed * 7 + k * 3) % 5 - 2)
            rows.append({
                "name": name, "seed": seed, "step": 10 * k, "displacement": way, "rotation": way / norm(way),
                "test_settled": 0.9 - fall(way, seed) + (wiggle if k else 0), "alpha_fc1": 4 - way, "reached": way,
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_conditions_are_compared_at_equal_displacement():
    rows = pd.concat([
        made("adam", 10, lambda way, seed: 0.1 * way * (1 + 0.01 * (seed - 5))),
        made("walk", 10, lambda way, seed: 0.3 * way),
        made("line", 10, lambda way, seed: 0.1 * way),
        made("adam-decay", 10, lambda way, seed: 0.0),
        made("cap", 10, lambda way, seed: 0.0, most=0.3),
        made("repair", 10, lambda way, seed: 0.0),
    ])  # fmt: skip
    here = study.at(rows, 0.5)
    found = study.compare(here).set_index("name")
    assert "repair" not in found.index, "it does not begin where the control does"
    assert found.verdict.to_dict() == {
        "adam": "control", "walk": "falls more", "line": "falls the same", "adam-decay": "falls less",
        "cap": "did not come so far",
    }  # fmt: skip
    assert found.loc["walk", "fall"] == pytest.approx(0.3 * 0.46, abs=0.002)
    assert found.loc["walk", "difference_low"] < found.loc["walk", "difference"] < found.loc["walk", "difference_high"]
    assert (found.p_holm.dropna() >= found.p.dropna()).all() and found.loc["cap", "reached"] == 0
    assert here[here.name == "cap"].most.max() == pytest.approx(0.3)


def test_by_rotation_a_path_that_shrinks_goes_further():
    rows = made("adam-decay", 6, lambda way, seed: way, most=0.6, norm=lambda way: 2.0)
    here = study.at(rows, 0.25, "rotation")
    assert here.reached.all() and here.displacement.between(0.4, 0.5).all()
    assert not study.at(rows, 0.4, "rotation").reached.any()


def test_where_a_path_has_fallen():
    rows = pd.concat([made("adam", 3, lambda way, seed: 0.1 * way), made("walk", 3, lambda way, seed: 0.0)])
    fallen = study.when_fallen(rows, 0.03)
    assert set(fallen.name) == {"adam"} and fallen.displacement.between(0.28, 0.4).all()
    assert not len(study.when_fallen(rows, 0.5))


# -- the page ----------------------------------------------------------------------------------------------


def said(records) -> tuple[str, list]:
    with plt.rc_context():
        values = execute("10_mechanism")
    return "\n".join(value.data for value in values if isinstance(value, Markdown)), values


def test_the_page_works_on_few_records_and_on_all(records):
    cells = json.loads((ROOT / "notebooks" / "10_mechanism.ipynb").read_text())["cells"]
    mechanism.run(["line", CONTROL], [0], 0.04, progress=False)
    text, values = said(records)
    assert "not yet measured" in text and "nan" not in text
    assert sum(isinstance(value, Figure) for value in values) == sum("mystnb" in cell["metadata"] for cell in cells)
    shutil.copytree(ROOT / "results" / "mechanism", records, dirs_exist_ok=True)
    text, values = said(records)
    assert "nan" not in text and not any(value.empty for value in values if isinstance(value, pd.DataFrame))


def test_what_the_page_says_in_words_holds_in_the_records():
    rows = study.paths_frame()
    moved = study.compare(study.at(rows)).set_index("name")
    rotated = study.compare(study.at(rows, by="rotation")).set_index("name")
    # a path without an optimiser loses, and no less than Adam's
    for name in ("walk", "line", "line-layers"):
        assert moved.fall_low[name] > 0 and moved.difference_low[name] > 0
    # contraction gains, with an optimiser or without
    for name in ("adam-decay", "walk-shrink-most"):
        assert rotated.fall_high[name] < 0 and rotated.difference_high[name] < 0
    repair = rows[rows.name == "repair"].sort_values("step").groupby("seed")
    assert (repair.test_settled.last() > repair.test_settled.first()).all()
    assert (repair.traps_fc1.last() - repair.traps_fc1.first()).abs().median() < 0.5
    # alpha falls on Adam's path and on no random one
    fallen = study.when_fallen(rows, 0.05).groupby("name").alpha_fc1.median()
    fork = rows[(rows.name == CONTROL) & (rows.step == 0)].alpha_fc1.median()
    assert fallen[CONTROL] < fork - 0.5 and (fallen[["walk", "line", "line-layers"]] > fork - 0.25).all()
