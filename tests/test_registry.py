"""Names of one's own: registered in a file, they work in configurations, on the command line, in sweeps and in pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grokutils import ConfigError, DataError, RunConfig, load_record, train
from grokutils.cli import main
from grokutils.experiment import models, registry
from grokutils.experiment.identity import identify
from grokutils.records.analysis import analyze_record
from grokutils.training.sweep import Condition, sweep

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = """
import torch
from grokutils.experiment.registry import register_dataset, register_loss, register_model, register_optimizer

@register_dataset("stripes")
def stripes(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(200, 12, generator=generator)
    y = (x[:, 0] * 3).long()
    return x[:100], y[:100], x[100:], y[100:]

@register_model("bottle", fields=("width",))
def bottle(shape, classes, config):
    return torch.nn.Sequential(
        torch.nn.Linear(shape[0], config.width), torch.nn.ReLU(), torch.nn.Linear(config.width, classes)
    )

register_optimizer("nadam", torch.optim.NAdam)
register_loss("smooth", torch.nn.CrossEntropyLoss(label_smoothing=0.1))
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Nothing registered in one test is there in the next."""
    for name in ("_registered", "_fields", "_remembered"):
        found = getattr(registry, name)
        monkeypatch.setattr(registry, name, {k: dict(v) if isinstance(v, dict) else v for k, v in found.items()})
    monkeypatch.setattr(registry, "_loaded", set())
    monkeypatch.setenv("GROKUTILS_PLUGINS", "")


@pytest.fixture
def plugin(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


def stripes(**changes) -> RunConfig:
    return RunConfig.recipe(
        "express", dataset="stripes", model="bottle", optimizer="nadam", loss="smooth", init_scale=1, steps=30, **changes
    )  # fmt: skip


def test_names_work_in_configurations(plugin, tmp_path):
    with pytest.raises(ConfigError, match="dataset must be one of 'mnist'.*; got 'stripes'"):
        stripes()
    registry.load_plugin(plugin)
    registry.load_plugin(plugin)
    record = train(stripes(width=20), tmp_path / "x", progress=False)
    assert record.weights()["0.weight"].shape == (20, 12) and record.config.own.classes == 3
    shown = {name for name, _, _ in record.config.describe()}
    assert {"width", "loss", "own"} <= shown and not {"depth", "per_class", "p"} & shown
    with pytest.raises(ConfigError, match="depth means nothing to the bottle of this recipe"):
        stripes(depth=2)
    assert train(stripes(width=20), tmp_path / "x", progress=False).step == 30
    assert analyze_record(record, progress=False, shuffles=1, ks_draws=0).baselines.notna().all().all()


def test_each_alone_goes_with_what_the_package_has(plugin):
    registry.load_plugin(plugin)
    for changes in (dict(optimizer="nadam"), dict(loss="smooth"), dict(dataset="stripes"), dict(model="bottle"), dict(loss="mse", model="cnn")):
        model = models.build(RunConfig.recipe("express", **changes))
        model.init()
        model.step(0, 2)
    one = models.build(RunConfig.recipe("modular", p=7, d_model=8, n_heads=2, d_mlp=16, optimizer="nadam"))
    one.init()
    one.step(0, 2)
    assert set(one.weights()[0]) == set(models.build(RunConfig.recipe("modular", p=7, d_model=8, n_heads=2, d_mlp=16)).params)


def test_the_command_line_and_other_processes_find_them(plugin, tmp_path, capsys):
    command = ["train", "--plugin", str(plugin), "--model", "bottle", "--dataset", "stripes", "--optimizer", "nadam", "--quiet"]
    assert main([*command, "--steps", "20", "--saves", "2", "--out", str(tmp_path / "x")]) == 0
    assert main([*command, "--steps", "40", "--saves", "2", "--out", str(tmp_path / "x")]) == 0, "it goes on"
    code = f"from grokutils import load_record; print(load_record({str(tmp_path / 'x')!r}).model())"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GROKUTILS_PLUGINS": ""}
    without, found = (
        subprocess.run([sys.executable, "-c", code], env=environment | more, capture_output=True, text=True)
        for more in ({}, {"GROKUTILS_PLUGINS": str(plugin)})
    )
    assert "Linear(in_features=12" in found.stdout and "the code of the network 'bottle' is not at hand" in without.stderr
    plugin.write_text(PLUGIN.replace("torch.nn.ReLU()", "torch.nn.Tanh()"))
    other = subprocess.run([sys.executable, "-c", code], env=environment | {"GROKUTILS_PLUGINS": str(plugin)}, capture_output=True, text=True)
    assert "the network 'bottle' that is registered here (bottle" in other.stderr and "is not that of the run" in other.stderr
    capsys.readouterr()
    assert main(["show", str(tmp_path / "x")]) == 0 and "bottle" in capsys.readouterr().out


def test_sweeps_have_them_in_processes_of_their_own(plugin, runs):
    registry.load_plugin(plugin)
    table = [Condition("plain"), Condition("smooth", changes={"loss": "smooth"})]
    base = RunConfig.recipe("express", dataset="stripes", model="bottle", steps=5)
    outcomes = sweep(table, base, [0, 1], "runs/mine", jobs=1, progress=False)
    assert [outcome.error for outcome in outcomes] == ["", ""]
    assert outcomes[1].record.config.loss == "smooth" and outcomes[1].record.config.own.loss.startswith("torch.nn")
    sweep(table, base, [0, 1], "runs/mine", jobs=1, progress=False)  # only read


@pytest.mark.parametrize(
    "text, says",
    [
        ("1 / 0", "cannot be loaded: ZeroDivisionError: division by zero."),
        ("def f(:", "cannot be loaded: SyntaxError"),
        ("from grokutils.experiment.registry import register_model\nregister_model('mlp', print)", "the model 'mlp' comes with the package"),
        ("from grokutils.experiment.registry import register_model\nregister_model('a b', print)", "a model's name must be up to 40 letters"),
        ("from grokutils.experiment.registry import register_loss\nregister_loss('x', 3)", "the loss 'x' must be a function or a class; got int."),
    ],
)  # fmt: skip
def test_bad_plugins_are_one_sentence(text, says, tmp_path, capsys):
    (tmp_path / "bad.py").write_text(text)
    assert main(["train", "--plugin", str(tmp_path / "bad.py"), "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not (tmp_path / "x").exists()
    assert main(["train", "--plugin", "no/such.py"]) == 2
    assert "there is no plugin 'no/such.py'; name a Python file" in capsys.readouterr().err


def test_code_is_told_apart_by_what_it_says_and_refers_to():
    def made(width):
        def net():
            return torch.nn.Linear(3, width)
        return net

    assert identify(made(3)) == identify(made(3)) != identify(made(4))
    assert identify(torch.optim.AdamW) == "torch.optim.adamw.AdamW"
    base = torch.nn.CrossEntropyLoss()
    assert identify(base) == identify(torch.nn.CrossEntropyLoss()) != identify(torch.nn.CrossEntropyLoss(label_smoothing=0.5))


def test_a_data_set_that_asks_for_more_than_a_seed(tmp_path):
    registry.register_dataset("odd", lambda seed, more: None)
    with pytest.raises(DataError, match="the data set 'odd' cannot be made: TypeError"):
        train(RunConfig.recipe("express", dataset="odd", steps=3), tmp_path / "x", progress=False)
    with pytest.raises(FileNotFoundError):
        load_record(tmp_path / "x")
