"""A record that another loop wrote: read, analysed and drawn like any other; resumed; and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import killed_after
from torch import nn

from grokutils import DataError, RecordError, RunConfig, load_record, train
from grokutils.experiment.data import load
from grokutils.records.analysis import analyze_record
from grokutils.records.record import publish
from grokutils.records.recorder import Recorder
from grokutils.records.schedule import log_spaced
from grokutils.records.study import study

ROOT = Path(__file__).resolve().parent.parent


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))


def digits():
    sets = load(RunConfig.recipe("express"), 0)
    return [torch.from_numpy(a).float() if a.dtype.kind == "f" else torch.from_numpy(a)
            for a in (sets.x_train, sets.y_train, sets.x_test, sets.y_test)]  # fmt: skip


def loop(folder, last: int, start: int = 0, net=None, **options):
    """Somebody's training loop."""
    net = network() if net is None else net
    x, y, x_test, y_test = digits()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    with Recorder(folder, **options) as recorder:
        for step in range(start, last + 1):
            net.eval()
            with torch.no_grad():
                scores = {
                    f"{kind}_accuracy": (net(a).argmax(1) == b).float().mean()
                    for kind, a, b in (("train", x, y), ("test", x_test, y_test))
                }
            net.train()
            recorder.log(step, scores, net)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net, recorder.record


def test_what_it_writes_is_a_record(tmp_path):
    net, record = loop(tmp_path / "mine", 100, steps=100, inputs=digits()[0], seed=3, weight_decay=0.01, settings={"lr": 0.01})
    assert record.complete and record.step == record.config.steps == 100
    assert record.steps_saved == log_spaced(100, 10) and record.metrics.step.tolist() == list(range(101))
    assert record.metrics[["seed", "weight_decay"]].drop_duplicates().values.tolist() == [[3, 0.01]]
    assert {"0_l2_norm", "3_kurtosis", "5_max_abs"} <= set(record.metrics) and "1_l2_norm" not in record.metrics
    assert list(record.weights()) == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias"]
    assert record.weights(buffers=True)["buffer/1.running_mean"].shape == (40,)
    found = analyze_record(record, progress=False, shuffles=2, ks_draws=0)
    assert found.diagnostics.layer.unique().tolist() == ["0", "3", "5"]
    assert found.baselines.step.tolist() == record.steps_saved and found.baselines.circuit_complexity_text.notna().all()
    data = study(record.folder, progress=False, shuffles=2, ks_draws=0)
    assert data.layers == ["0", "3", "5"] and data.label.startswith("Sequential, a loop of its own, weight decay 0.01, seed 3")
    assert data.phases.memorised is not None
    assert [name for name, _, _ in record.config.describe()] == ["dataset", "model", "weight_decay", "steps", "seed", "own"]
    assert record.provenance["settings"] == {"lr": 0.01} and net.training
    with pytest.raises(DataError, match="was trained by another loop; its code is not known here"):
        record.model()
    copy = publish(record, tmp_path / "copy", record.steps_saved[-1:])
    assert copy.steps_saved == [100]


def test_the_baselines_are_those_of_a_run_of_this_package(tmp_path):
    """The same weights, recorded as they pass: the same tables."""
    own = train(RunConfig.recipe("express", steps=20), tmp_path / "own", progress=False)
    inputs = load(own.config, 0).x_train
    with Recorder(tmp_path / "mine", inputs=inputs, save=None) as recorder:
        for step in own.steps_saved:
            recorder.log(step, {"train_accuracy": 1.0, "test_accuracy": 0.5}, own.model(step))
    options = dict(progress=False, shuffles=2, ks_draws=0)
    mine, theirs = analyze_record(recorder.record, **options), analyze_record(own, **options)
    for name in ("diagnostics", "baselines", "spectra"):
        a, b = (getattr(found, name) for found in (mine, theirs))
        assert a.drop(columns="eigenvalues", errors="ignore").equals(b.drop(columns="eigenvalues", errors="ignore"))


def test_a_state_dict_does_too_whatever_wrapped_it(tmp_path):
    net = network()
    wrapped = {f"module._orig_mod.{name}": tensor.bfloat16() if tensor.is_floating_point() else tensor
               for name, tensor in net.state_dict().items()}  # fmt: skip
    with Recorder(tmp_path / "x") as recorder:
        recorder.log(0, {"test_loss": 1.0}, nn.DataParallel(net))
    with Recorder(tmp_path / "y") as recorder:
        recorder.log(0, {}, wrapped)
    a, b = (load_record(tmp_path / name).weights() for name in "xy")
    assert a["0.weight"].shape == b["0.weight"].shape and b["0.weight"].dtype == np.float32 and "0.weight" in b


def test_plans_say_what_is_kept(tmp_path):
    net = network()
    with Recorder(tmp_path / "x", measure=2, save=lambda step: step in (7, 70)) as recorder:
        kept = [step for step in range(101) if recorder.log(step, {}, net)]
        recorder.log(150, {}, net, save=True)
    assert kept == [7, 70] and recorder.record.steps_saved == [7, 70, 150]
    assert set(log_spaced(100, 2)) | {7, 70, 150} >= set(recorder.record.metrics.step) >= {0, 1, 3, 7, 70, 150}


def test_coarse_steps_are_saved_when_they_pass_the_points(tmp_path):
    net = network()
    with Recorder(tmp_path / "x", save=1) as recorder:
        for step in range(0, 1001, 60):
            recorder.log(step, {}, net)
    assert recorder.record.steps_saved == [0, 60, 120] + [], "each decade's point, at the first step from there on"


def test_without_accuracies_there_are_spectra_but_no_phases(tmp_path):
    with Recorder(tmp_path / "x", save=None) as recorder:
        for step in (0, 10):
            recorder.log(step, {"train_loss": 0.5}, network(step))
    data = study(tmp_path / "x", progress=False, shuffles=1, ks_draws=0)
    assert len(data.diagnostics) == 6 and not len(data.baselines)
    with pytest.raises(ValueError, match="phases need train_accuracy and test_accuracy, which were not measured in this run"):
        _ = data.phases


# -- going on ---------------------------------------------------------------------------------------------------------


def test_it_goes_on_and_rewinds(tmp_path):
    folder = tmp_path / "x"
    net, _ = loop(folder, 50, steps=80)
    record = load_record(folder)
    assert not record.complete and record.step == 50 and record.config.steps == 80
    analyze_record(record, progress=False, shuffles=1, ks_draws=0)
    identity = record.config.identity
    # the loop's own checkpoint is of step 40: what was recorded after it is forgotten
    loop(folder, 80, start=40, net=net, steps=80, resume=True)
    record = load_record(folder)
    assert record.complete and record.metrics.step.tolist() == list(range(81)) and record.config.identity == identity
    assert record.steps_saved[-3:] == [63, 79, 80] and len(record.provenance["sessions"]) == 2
    found = analyze_record(record, progress=False, shuffles=1, ks_draws=0)
    assert found.diagnostics.step.unique().tolist() == record.steps_saved
    # further on, with no number of steps given
    loop(folder, 90, start=81, net=net, resume=True)
    assert load_record(folder).step == 90 and load_record(folder).complete


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_recorder import loop
loop(sys.argv[1], 100_000, resume=True)
"""


def test_a_killed_loop_leaves_a_record_that_goes_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(tests=str(ROOT / "tests")), str(tmp_path / "x")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    killed_after(process, tmp_path / "x", 30)
    record = load_record(tmp_path / "x")
    reached = record.step
    assert not record.complete and record.metrics.step.max() == reached >= 30 and record.weights(record.steps_saved[-1])
    net, _ = loop(tmp_path / "x", reached + 3, start=reached, steps=reached + 3, resume=True)
    assert load_record(tmp_path / "x").metrics.step.tolist() == list(range(reached + 4))


def test_an_error_in_the_loop_keeps_what_was_measured(tmp_path):
    with pytest.raises(ZeroDivisionError), Recorder(tmp_path / "x", save=None) as recorder:
        recorder.log(0, {"train_loss": 1.0}, network())
        recorder.log(5, {"train_loss": 0.5}, network())
        1 / 0  # noqa: B018
    record = load_record(tmp_path / "x")
    assert record.metrics.train_loss.tolist() == [1.0, 0.5] and not record.complete


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "calls, says",
    [
        ([(5, {}), (4, {})], "steps must go forwards; got step 4 after step 5."),
        ([(5, {}), (5, {})], "steps must go forwards; got step 5 after step 5."),
        ([(-1, {})], "step must be a whole number of at least 0"),
        ([(1.5, {})], "step must be a whole number"),
        ([(0, {"test_accuracy": 87.3})], "test_accuracy must be between 0 and 1; got 87.3."),
        ([(0, {"loss": "low"})], "loss must be a number; got 'low'."),
        ([(0, {"loss": torch.zeros(3)})], "loss must be a number; got tensor"),
        ([(0, {"seed": 3})], "a metric's name must be one word other than step, member, seed, weight_decay, l2_norm; got 'seed'."),
        ([(0, {"a b": 3})], "a metric's name must be one word"),
    ],
)  # fmt: skip
def test_bad_calls_are_one_sentence_and_keep_nothing(calls, says, tmp_path):
    with pytest.raises(ValueError) as caught, Recorder(tmp_path / "x", save=None) as recorder:
        for step, metrics in calls:
            recorder.log(step, metrics, network())
    assert says in str(caught.value) and str(caught.value).endswith(".")
    assert not (tmp_path / "x").exists() or len(load_record(tmp_path / "x").metrics) == len(calls) - 1


@pytest.mark.parametrize(
    "model, says",
    [
        (nn.ReLU(), "a model must have a weight matrix to be recorded; this one has none."),
        ({"a": np.ones(3)}, "a model must have a weight matrix"),
        (None, "step 0 is one whose weights are kept: give log the model."),
        (np.ones((3, 3)), "model must be a torch.nn.Module or a state_dict; got ndarray."),
        ({"a": np.ones((3, 3), complex)}, "a must be an array of real numbers; got complex128."),
    ],
)
def test_bad_models(model, says, tmp_path):
    with pytest.raises(ValueError, match=says.replace("(", r"\(")), Recorder(tmp_path / "x") as recorder:
        recorder.log(0, {}, model)
    assert not (tmp_path / "x").exists()


def test_another_network_is_refused(tmp_path):
    with Recorder(tmp_path / "x", save=None) as recorder:
        recorder.log(0, {}, network())
        with pytest.raises(ValueError, match="the model must stay the same; 3.bias is not what it was"):
            recorder.log(1, {}, nn.Sequential(*network()[:3], nn.Linear(40, 20), *network()[4:]))
    with pytest.raises(RecordError, match="holds a record; go on with it by resume=True"):
        Recorder(tmp_path / "x")
    with pytest.raises(RecordError, match="holds another network"), Recorder(tmp_path / "x", resume=True) as recorder:
        recorder.log(5, {}, nn.Linear(30, 20))
    assert load_record(tmp_path / "x").step == 0
    train(RunConfig.recipe("express", steps=2), tmp_path / "own", progress=False)
    with pytest.raises(RecordError, match="holds a run of `grokutils.train`"), Recorder(tmp_path / "own", resume=True):
        pass


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(steps=0), "steps must be"), (dict(measure=0), "measure must be"), (dict(save="all"), "save must be"),
        (dict(seed=-1), "seed must be"), (dict(weight_decay=-1), "weight_decay must be"),
        (dict(settings={"f": print}), "settings must be values that JSON holds"),
    ],
)  # fmt: skip
def test_bad_options(options, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        Recorder(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_outside_its_block(tmp_path):
    with pytest.raises(ValueError, match="inside its `with` block"):
        Recorder(tmp_path / "x").log(0, {}, network())
