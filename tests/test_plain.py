"""Any network by autograd: the reference of the steps by hand, exact resume, one's own parts, and what is refused."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import killed_after
from torch import nn

from grokutils import ConfigError, DataError, RecordError, RunConfig, load_record, train
from grokutils.experiment import data, models, registry
from grokutils.experiment.models.plain import Plain
from grokutils.records import files
from grokutils.records.analysis import analyze_record
from grokutils.records.study import study
from grokutils.training.hooks import ClipWeights, HoldNorm, ScaleSteps

ROOT = Path(__file__).resolve().parent.parent


def express(**changes) -> RunConfig:
    return RunConfig.recipe("express", **{"steps": 60, "init_scale": 1.0, "learning_rate": 1e-3, **changes})


class Net(nn.Module):
    """Dropout, batch statistics, a tied weight and a buffer that no state_dict has: all that makes resuming hard."""

    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(shape[0], 32), nn.BatchNorm1d(32), nn.Dropout(0.3)
        self.middle, self.last = nn.Linear(32, 32, bias=False), nn.Linear(32, classes)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen += 1
        x = self.drop(torch.relu(self.norm(self.first(x))))
        return self.last(torch.relu(nn.functional.linear(self.middle(x), self.middle.weight)))


def moons(seed: int = 0, n: int = 90) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 2 * n)
    x = rng.normal(size=(2 * n, 5)) + np.eye(5)[y] * 3
    return x[:n], y[:n], x[n:], y[n:]


def state(record) -> dict[str, bytes]:
    arrays, _ = files.read_tensors(record.folder / "state.safetensors")
    return {name: a.tobytes() for name, a in arrays.items()}


# -- the reference of the steps by hand -------------------------------------------------------------------------------

CASES = {
    "full batch": {},
    "decay": dict(weight_decay=0.1, init_scale=8.0),
    "reshuffled": dict(batch_size=40, batch_order="reshuffle"),
    "AMSGrad": dict(optimizer="amsgrad"),
    "momentum": dict(optimizer="sgd", weight_decay=0.1),
    "another table": dict(dataset="breast-cancer", batch_size=8),
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_perceptron_by_hand_is_the_plain_one(changes):
    config = express(dtype="float64", **changes).ensemble([0, 3])
    by_hand, plain = models.build(config), Plain(config, torch.device("cpu"))
    assert not isinstance(by_hand, Plain)
    for model in (by_hand, plain):
        model.init()
        model.step(0, 300)
    for mine, theirs, a, b in zip(by_hand.weights(), plain.weights(), by_hand.evaluate(), plain.evaluate(), strict=True):
        assert mine.keys() == theirs.keys()
        for name, array in mine.items():
            np.testing.assert_allclose(array, theirs[name], rtol=0, atol=1e-10, err_msg=name)
        assert a == pytest.approx(b, rel=1e-8)


def test_the_transformer_by_hand_is_the_plain_one():
    config = RunConfig.recipe("modular", dtype="float64", p=11, d_model=16, n_heads=2, d_mlp=32, steps=60)
    by_hand, plain = models.build(config), Plain(config, torch.device("cpu"))
    for model in (by_hand, plain):
        model.init()
        model.step(0, 60)
    for name, array in by_hand.weights()[0].items():
        np.testing.assert_allclose(array, plain.weights()[0][name], rtol=0, atol=1e-10, err_msg=name)


# -- the same loop ----------------------------------------------------------------------------------------------------


def own_lion(params, lr, weight_decay):
    """An optimiser of the user's own, with the state it needs in two kinds of values."""
    return _Lion(params, dict(lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99), note="own", every=None))


class _Lion(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("average", torch.zeros_like(p, dtype=torch.bfloat16))
                state["count"] = state.get("count", 0) + 1
                way = torch.lerp(state["average"].to(p), p.grad, 1 - group["betas"][0]).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(way, alpha=-group["lr"] / state["count"] ** 0.1)
                state["average"].copy_(torch.lerp(state["average"].to(p), p.grad, 1 - group["betas"][1]))
        return loss


def muon_and_adamw(params):
    matrices = [p for p in params if p.ndim == 2]
    return [torch.optim.Muon(matrices, lr=1e-2), torch.optim.AdamW([p for p in params if p.ndim != 2], lr=1e-3)]


OPTIMIZERS = {
    "AdamW": None,
    "NAdam": torch.optim.NAdam,
    "RMSprop": functools.partial(torch.optim.RMSprop, momentum=0.9, centered=True),
    "Adafactor": torch.optim.Adafactor,
    "L-BFGS": functools.partial(torch.optim.LBFGS, max_iter=3),
    "Muon, and AdamW for the biases": muon_and_adamw,
    "one's own": own_lion,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_run_that_was_cut_ends_in_the_same_bits(optimizer, tmp_path):
    config = express(batch_size=40, batch_order="reshuffle").ensemble([0, 1])
    parts = dict(model=Net, data=moons, optimizer=optimizer, progress=False)
    whole = train(config, tmp_path / "whole", **parts)
    for steps in (1, 23, 60):  # `steps` is not part of a run's identity
        cut = train(config.replace(steps=steps), tmp_path / "cut", **parts)
    assert state(cut) == state(whole)
    np.testing.assert_array_equal(
        cut.metrics[["train_loss", "test_loss"]].tail(2), whole.metrics[["train_loss", "test_loss"]].tail(2)
    )
    assert not np.isnan(whole.metrics.test_accuracy).any() and whole.config.own.classes == 3


@pytest.mark.parametrize("package, name", [("lion_pytorch", "Lion"), ("muon", "SingleDeviceMuon")])
def test_an_optimiser_of_a_package(package, name, tmp_path):
    found = getattr(pytest.importorskip(package, reason=f"{package} is not installed"), name)

    def make(params, lr, weight_decay):
        matrices = [p for p in params if p.ndim == 2]
        return [found(matrices, lr=lr), torch.optim.AdamW([p for p in params if p.ndim != 2], lr=lr)]

    parts = dict(model=Net, data=moons, optimizer=found if name == "Lion" else make, progress=False)
    whole = train(express(), tmp_path / "whole", **parts)
    train(express(steps=11), tmp_path / "cut", **parts)
    assert state(train(express(), tmp_path / "cut", **parts)) == state(whole)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from grokutils import train
from test_plain import Net, express
train(express(steps={steps}), sys.argv[1], model=Net, progress=False, autosave=0.05, measures_per_decade=2)
"""


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    script = SCRIPT.format(tests=str(ROOT / "tests"), steps=900)
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "x")], env=os.environ | {"PYTHONPATH": str(ROOT)})
    killed_after(process, tmp_path / "x", 100)
    assert process.returncode == -signal.SIGKILL and 100 < load_record(tmp_path / "x").step < 900
    options = dict(model=Net, progress=False, measures_per_decade=2)
    rest = train(express(steps=900), tmp_path / "x", **options)
    assert state(rest) == state(train(express(steps=900), tmp_path / "whole", **options))


def test_hooks_and_forks_and_analysis_are_the_same(tmp_path):
    config = express(steps=200).ensemble([0, 1])
    source = train(config, tmp_path / "x", model=Net, progress=False)
    with_hooks = train(
        config, tmp_path / "hooked", model=Net, progress=False,
        hooks=[ClipWeights(k=2.0), HoldNorm(start=5, names=("middle.weight",)), ScaleSteps(start=50, factor=0.1)],
    )  # fmt: skip
    w = with_hooks.weights(200)["first.weight"]
    assert abs(w - w.mean()).max() < 2.2 * w.std() and "ClipWeights" in with_hooks.config.intervention
    norms = [np.linalg.norm(with_hooks.weights(step)["middle.weight"]) for step in with_hooks.steps_saved if step > 5]
    assert np.ptp(norms) < 1e-3 * norms[0]
    fork = train(
        config.replace(steps=20), tmp_path / "fork", model=Net, start_from=source, step=100, member=[1, 0], progress=False,
        edit=lambda weights: {n: w * 0 if n == "last.bias" else w for n, w in weights.items()},
    )  # fmt: skip
    start, there = fork.weights(0, 0, buffers=True), source.weights(100, 1, buffers=True)
    assert all(np.array_equal(start[name], there[name]) for name in there if name != "last.bias")
    assert any(name.startswith("buffer/norm.running_mean") for name in there)
    found = analyze_record(source, progress=False, shuffles=2, ks_draws=0)
    assert set(found.diagnostics.layer) == {"first", "middle", "last"}, "buffers and norms are no matrices"
    assert found.baselines.circuit_complexity_text.notna().all() and len(found.baselines) == 2 * len(source.steps_saved)
    assert study(source.folder, progress=False, shuffles=2, ks_draws=0).layers == ["first", "middle", "last"]
    # what it is evaluated with: running means, no dropout
    module = source.model(200)
    x, y = data.load(source.config, 0).x_test, data.load(source.config, 0).y_test
    hits = (module(torch.from_numpy(x).float()).argmax(1).numpy() == y).mean()
    assert hits == pytest.approx(source.metrics[source.metrics.member == 0].test_accuracy.iloc[-1], abs=1e-9)


def test_evaluation_changes_nothing(tmp_path):
    """Measured often or rarely, the run is the same: running means and dropout are left alone."""
    often = train(express(), tmp_path / "a", model=Net, progress=False, measures_per_decade=40)
    rarely = train(express(), tmp_path / "b", model=Net, progress=False, measures_per_decade=1, saves_per_decade=1)
    before = torch.random.get_rng_state()
    assert state(often) == state(rarely) and torch.equal(before, torch.random.get_rng_state())
    assert torch.get_default_dtype() == torch.float32


def test_numbers_instead_of_classes(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    sets = (x[:40], x[:40, :1] * 2, x[40:], x[40:, :1] * 2)
    done = train(express(learning_rate=0.1), tmp_path / "x", model=lambda: nn.Linear(4, 1), data=sets, progress=False)
    assert done.metrics.train_accuracy.isna().all() and done.metrics.test_loss.iloc[-1] < done.metrics.test_loss.iloc[0]


# -- what makes one run another ---------------------------------------------------------------------------------------


def identity(**parts) -> str:
    return models.resolve(express(), **parts).identity


def small(width):
    return lambda: nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def test_another_network_is_another_run():
    sets = moons()
    changed = (sets[0] + 1e-9, *sets[1:])
    different = [
        dict(model=small(8)), dict(model=small(9)), dict(model=Net), dict(model=lambda: Net((64,), 11)),
        dict(model=lambda: nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))),
        dict(loss=nn.functional.cross_entropy), dict(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
        dict(loss=nn.CrossEntropyLoss(label_smoothing=0.2)), dict(optimizer=torch.optim.NAdam),
        dict(optimizer=functools.partial(torch.optim.NAdam, momentum_decay=0.1)), dict(optimizer=own_lion),
        dict(model=lambda: Net((5,), 3), data=sets), dict(model=lambda: Net((5,), 3), data=changed), dict(model=lambda: Net((5,), 3), data=moons),
    ]  # fmt: skip
    found = [identity(**parts) for parts in different] + [express().identity]
    assert len(set(found)) == len(found)
    assert identity(model=small(8)) == found[0] and identity(data=tuple(a.copy() for a in sets), model=lambda: Net((5,), 3)) == found[11]


def test_a_folder_of_another_network_is_refused(tmp_path):
    train(express(steps=5), tmp_path / "x", model=small(8), progress=False)
    with pytest.raises(RecordError, match="holds another run .*own"):
        train(express(steps=9), tmp_path / "x", model=small(9), progress=False)
    with pytest.raises(RecordError, match="holds another run"):
        train(express(steps=9), tmp_path / "x", progress=False)
    record = load_record(tmp_path / "x")
    assert train(record.config.replace(steps=9), tmp_path / "x", progress=False).step == 9, "known in this process"


def test_without_its_code_a_record_is_still_read(tmp_path, monkeypatch):
    train(express(steps=20), tmp_path / "x", model=Net, data=moons, progress=False)
    monkeypatch.setattr(registry, "_remembered", {})
    record = load_record(tmp_path / "x")
    assert record.config.model == "Net" and record.weights()["first.weight"].shape == (32, 5)
    with pytest.raises(DataError, match="the code of the network 'Net' is not at hand; load the plugin"):
        record.model()
    with pytest.warns(UserWarning, match="there are no baselines of x: the data set 'moons' is not registered here"):
        found = analyze_record(record, progress=False, shuffles=1, ks_draws=0)
    assert len(found.diagnostics) and not len(found.baselines)
    with pytest.raises(DataError, match="'moons' is not registered here; load its plugin, or give it to train again"):
        train(record.config.replace(steps=30), tmp_path / "x", progress=False)


# -- what is refused, before anything is written ----------------------------------------------------------------------


def unseeded():
    net = nn.Linear(64, 10)
    with torch.no_grad():
        net.weight.add_(torch.from_numpy(np.random.default_rng().normal(size=(10, 64))))
    return net


class Forgetful(nn.Module):
    """State that neither parameters nor buffers hold."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = nn.Linear(64, 10), 0

    def forward(self, x):
        self.calls += self.training
        return self.net(x) * (1 + self.calls)


class Holding(torch.optim.SGD):
    def state_dict(self):
        return super().state_dict() | {"function": print}


def bad(what: str, **parts):
    return pytest.param(parts, what, id=what[:40])


NAN = np.full((90, 5), np.nan)
SETS = moons()


@pytest.mark.parametrize(
    "parts, says",
    [
        bad("the model's outputs do not fit the labels: 10 classes need outputs of shape (examples, 10); got (160, 7).", model=lambda: nn.Linear(64, 7)),
        bad("the model failed with RuntimeError: mat1 and mat2 shapes cannot be multiplied", model=lambda: nn.Linear(63, 10)),
        bad("the model must return a tensor with a row for each of 160 examples; got tuple.", model=lambda: nn.LSTM(64, 10)),
        bad("the model failed with ZeroDivisionError", model=lambda: 1 / 0),
        bad("must be a torch.nn.Module; it makes a int", model=lambda: 3),
        bad("model must be a function or class that makes a new network, such as `lambda: Net(64)`; got a Linear", model=nn.Linear(64, 10)),
        bad("a model may ask for shape, image_shape, classes, config; 'function' asks for 'width'", model=lambda width: nn.Linear(64, 10)),
        bad("asks for the image_shape, which 'data' has not got", model=lambda image_shape: nn.Linear(5, 3), data=SETS),
        bad("must have parameters to train; it has none", model=lambda: nn.Flatten()),
        bad("two networks that 'unseeded' makes under one seed differ", model=unseeded),
        bad("could not be resumed exactly", model=Forgetful),
        bad("x_train must be finite; 450 of its 450 numbers are NaN or infinite", data=(NAN, *SETS[1:]), model=lambda: nn.Linear(5, 3)),
        bad("data must be four arrays, x_train, y_train, x_test and y_test; got 2 of them", data=SETS[:2]),
        bad("x_train and y_train must have as many examples, at least one; got 90 and 89", data=(SETS[0], SETS[1][1:], *SETS[2:])),
        bad("labels must be whole numbers from 0; got -1", data=(SETS[0], SETS[1] - 1, *SETS[2:])),
        bad("x_train must be an array of numbers; got <U1", data=(["a"], [0], ["b"], [1])),
        bad("x_train and x_test must be alike", data=(SETS[0], SETS[1], SETS[2][:, :2], SETS[3])),
        bad("the data set 'function' cannot be made: KeyError: 'x'", data=lambda seed: {}["x"]),
        bad("the loss must be finite; at the first step it is nan", loss=lambda out, y: out.sum() * float("nan")),
        bad("the loss must be one number, a tensor of shape (); got shape (160, 10)", loss=lambda out, y: out),
        bad("the loss failed with TypeError", loss=lambda: 0),
        bad("loss must be a function of outputs and labels; got a int", loss=3),
        bad("the optimiser must be a torch.optim.Optimizer, or several; got NoneType", optimizer=lambda params: None),
        bad("optimizer must be a torch.optim class", optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)),
        bad("the optimiser failed with ValueError: Muon only supports 2D parameters", optimizer=torch.optim.Muon),
        bad("the optimiser's state holds a builtin_function_or_method, which cannot be saved without pickle", optimizer=Holding),
    ],
)  # fmt: skip
def test_bad_parts_are_refused_in_one_sentence(parts, says, tmp_path):
    with pytest.raises((ConfigError, DataError)) as caught:
        train(express(), tmp_path / "x", progress=False, **parts)
    message = str(caught.value)
    assert says in message and message.endswith(".") and "\n" not in message
    assert not (tmp_path / "x").exists()


def test_a_decay_that_an_optimiser_has_not_got(tmp_path):
    with pytest.raises(ConfigError, match="weight_decay must be 0 for 'LBFGS', which takes none; got 0.1"):
        train(express(weight_decay=0.1), tmp_path / "x", optimizer=torch.optim.LBFGS, progress=False)


def test_a_loss_that_becomes_nan_keeps_the_last_good_state(tmp_path):
    from grokutils import TrainingDiverged

    def loss(out, y):
        value = nn.functional.cross_entropy(out, y)
        return value if value > 1.5 else value * float("nan")

    with pytest.raises(TrainingDiverged, match="no longer finite at step"):
        train(express(learning_rate=0.05, steps=500), tmp_path / "x", loss=loss, progress=False)
    arrays, _ = files.read_tensors(tmp_path / "x" / "state.safetensors")
    assert np.isfinite(arrays["parameters"]).all()
