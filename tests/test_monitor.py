"""Monitor: it sees what happens, says so once, and disturbs nothing."""

from __future__ import annotations

import copy
import json
import math
import random
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from grokutils import Monitor, diagnose
from grokutils.spectra.alarms import rates
from grokutils.spectra.monitor import SpectralWarning
from grokutils.spectra.verdict import Thresholds
from grokutils.util import columns

COLUMNS = ["step", *list(columns.DIAGNOSTICS)[4:]]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(0.2), nn.Linear(30, 20))


def quiet(monitor: Monitor, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(count):
            monitor.step()


def test_it_measures_every_so_many_steps_and_keeps_the_rows():
    net = network()
    monitor = Monitor(net, every=3)
    assert list(monitor.history.columns) == COLUMNS and len(monitor.history) == 0
    results = [monitor.step() for _ in range(7)]
    assert [r is None for r in results] == [True, True, False, True, True, False, True]
    assert monitor.taken == 7 and monitor.history.step.tolist() == [3, 3, 6, 6]
    assert monitor.history.layer.tolist() == ["0", "4"] * 2 and list(monitor.history.columns) == COLUMNS
    expected = diagnose(net, shuffles=5, ks_draws=0, progress=False)
    pd.testing.assert_frame_equal(results[2].drop(columns="step"), expected)
    monitor.measure()
    assert monitor.history.step.tolist() == [3, 3, 6, 6, 7, 7]


def loop(monitor: bool) -> dict:
    """A seeded training loop with dropout, batch statistics and three random generators."""
    net = network()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    watch = Monitor(net, every=2, shuffles=2, method="weightwatcher", bootstrap=2) if monitor else None
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    for _ in range(6):
        x = torch.randn(16, 40) + random.random() + float(np.random.rand())  # noqa: NPY002
        optimiser.zero_grad()
        net(x).square().mean().backward()
        optimiser.step()
        if watch:
            watch.step()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    return {"state": net.state_dict(), "gradients": gradients, "mode": [m.training for m in net.modules()]}


def test_training_is_the_same_to_the_last_bit():
    with_it, without = loop(True), loop(False)
    for part in ("state", "gradients"):
        assert with_it[part].keys() == without[part].keys()
        assert all(torch.equal(value, without[part][name]) for name, value in with_it[part].items())
    assert with_it["mode"] == without["mode"]


@pytest.mark.parametrize("training", [True, False])
def test_mode_gradients_and_flags_are_left_alone(training):
    net = network().train(training)
    net[0].requires_grad_(False)
    net(torch.randn(8, 40)).sum().backward()
    before = copy.deepcopy([(p, p.requires_grad, p.grad) for p in net.parameters()])
    versions = [p._version for p in net.parameters()]
    with torch.inference_mode():
        Monitor(net, every=1).step()
    Monitor(net, every=1).step()
    assert [p._version for p in net.parameters()] == versions, "written to"
    assert net.training == training and torch.is_grad_enabled()
    assert before[0][2] is None and before[2][2] is not None
    for mine, (old, flag, grad) in zip(net.parameters(), before, strict=True):
        assert mine.requires_grad == flag and torch.equal(mine, old)
        assert (mine.grad is None) == (grad is None) and (grad is None or torch.equal(mine.grad, grad))


# -- warnings -------------------------------------------------------------------------------------------------


def test_it_warns_at_onset_once_and_again_after_a_recovery():
    net = network()
    monitor = Monitor(net, every=10, patience=2, alarms="traps")
    clean = net[0].weight.detach().clone()
    quiet(monitor, 30)
    with torch.no_grad():
        net[0].weight[2, 3] = 30.0
    quiet(monitor, 10)  # seen once: patience
    with pytest.warns(SpectralWarning) as said:
        for _ in range(30):
            monitor.step()
    assert len(said) == 1 and said[0].filename == __file__, "the warning names the line of the loop"
    text = str(said[0].message)
    assert text.startswith("step 50: 0: 1.0 correlation traps on average over the shuffles (alpha ")
    assert "norm " in text and text.endswith(f"; {rates('traps')}.") and "trapped" not in text
    with torch.no_grad():
        net[0].weight.copy_(clean)
    quiet(monitor, 10)
    with torch.no_grad():
        net[0].weight[2, 3] = 30.0
    with pytest.warns(SpectralWarning, match="^step 100: 0: 1.0 correlation traps"):
        for _ in range(20):
            monitor.step()


def test_a_short_episode_is_no_onset():
    net = network()
    monitor = Monitor(net, every=1, patience=3, alarms="traps")
    clean = net[0].weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            net[0].weight[2, 3] = 30.0
        quiet(monitor, 2)
        with torch.no_grad():
            net[0].weight.copy_(clean)
        quiet(monitor, 1)


def test_over_correlation_is_warned_of_and_thresholds_are_heeded():
    net = network()
    strict = Monitor(net, every=1, patience=1, alarms="alpha", thresholds=Thresholds(over_correlated_below=99.0))
    with pytest.warns(SpectralWarning) as said:
        strict.measure()
    assert len(said) == 2 and all("is below 99 (" in str(w.message) for w in said)
    assert [alarm.layer for alarm in strict.alarms] == ["0", "4"]
    assert all(w.filename == __file__ for w in said)


# -- nothing ends the training --------------------------------------------------------------------------------


def test_a_layer_that_diverges_is_reported_and_survived():
    net = network()
    monitor = Monitor(net, every=1, patience=2)
    quiet(monitor, 1)
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan
    quiet(monitor, 1)
    with pytest.warns(SpectralWarning, match="step 3: 0: cannot be measured: .*1 of its 1200 entries are NaN") as said:
        for _ in range(3):
            monitor.step()
    assert len(said) == 1
    last = monitor.history.tail(2)
    assert last.verdict.tolist() == ["undetermined", "under-trained"] and math.isnan(last.alpha.iloc[0])


def test_layers_that_are_always_too_small_are_no_alarm():
    quiet(Monitor(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 3)), every=1, patience=1), 3)


def test_a_model_that_changes_while_it_is_watched():
    net = network()
    monitor = Monitor(net, every=1)
    quiet(monitor, 1)
    net[4] = nn.Linear(30, 25)
    net.append(nn.Linear(25, 12))
    quiet(monitor, 1)
    assert monitor.history.layer.tolist() == ["0", "4", "0", "4", "5"]
    for k in (0, 4, 5):
        net[k] = nn.Identity()
    with pytest.warns(SpectralWarning, match="^step 3: not measured, ValueError: .*it has none") as said:
        rows = monitor.step()
    assert len(rows) == 0 and list(rows.columns) == COLUMNS and said[0].filename == __file__


def test_whatever_else_goes_wrong(monkeypatch):
    monitor = Monitor(network(), every=1)

    def fail(*arguments, **options):
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(nn.Module, "named_parameters", fail)
    with pytest.warns(SpectralWarning, match="step 1: not measured, LinAlgError: did not converge"):
        monitor.step()
    assert len(monitor.history) == 0


# -- the log --------------------------------------------------------------------------------------------------


def test_the_log_has_every_measurement_at_once(tmp_path):
    net, path = network(), tmp_path / "alpha.jsonl"
    monitor = Monitor(net, every=2, log=path)
    assert path.read_text() == ""
    for measured in range(1, 4):
        monitor.step(), monitor.step()
        assert len(path.read_text().splitlines()) == 2 * measured
    with torch.no_grad():
        net[0].weight[0, 0] = math.inf
    monitor.measure()
    lines = [json.loads(line, parse_constant=lambda c: pytest.fail(c)) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 2, 4, 4, 6, 6, 6, 6] and list(lines[0]) == COLUMNS
    assert lines[-2]["alpha"] is None and "1 of its 1200 entries" in lines[-2]["reason"]
    back = pd.read_json(path, lines=True).drop_duplicates(["step", "layer"], keep="last").reset_index(drop=True)
    numbers = [name for name in COLUMNS if monitor.history[name].dtype.kind in "if"]
    pd.testing.assert_frame_equal(back[numbers].astype(float), monitor.history[numbers].astype(float), rtol=1e-12)


def test_an_existing_log_is_continued_without_its_torn_last_line(tmp_path):
    path = tmp_path / "alpha.jsonl"
    Monitor(network(), every=1, log=str(path)).step()
    whole = path.read_bytes()
    for torn in (b'{"step":2,"lay', b"\xff\xfe", b"{}"):
        path.write_bytes(whole + torn)
        Monitor(network(), every=1, log=path)
        assert path.read_bytes() == whole
    path.write_bytes(b'{"step":1')
    Monitor(network(), every=1, log=path).step()
    assert len(pd.read_json(path, lines=True)) == 2


def test_a_log_that_cannot_be_written_any_more_does_not_matter(tmp_path):
    path = tmp_path / "logs" / "alpha.jsonl"
    path.parent.mkdir()
    monitor = Monitor(network(), every=1, log=path)
    path.unlink()
    path.parent.rmdir()
    with pytest.warns(SpectralWarning, match="alpha.jsonl cannot be written .*kept in memory only") as said:
        for _ in range(3):
            monitor.step()
    assert len(said) == 1 and said[0].filename == __file__
    assert monitor.history.step.tolist() == [1, 1, 2, 2, 3, 3]


def test_a_log_that_cannot_be_opened_is_refused_before_training(tmp_path):
    for path in (tmp_path / "gone" / "x.jsonl", tmp_path):
        with pytest.raises(ValueError, match="^log must name a file that can be written; "):
            Monitor(network(), log=path)


# -- misuse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        (dict(model=np.ones((3, 3))), TypeError, "model must be a torch.nn.Module; got ndarray."),
        (dict(model=nn.ReLU()), ValueError, "must hold a weight matrix"),
        (dict(every=0), ValueError, "every must be a whole number of at least 1; got 0."),
        (dict(every=2.5), ValueError, "every must be a whole number of at least 1; got 2.5."),
        (dict(every=True), ValueError, "every must be"),
        (dict(patience=0), ValueError, "patience must be a whole number of at least 1; got 0."),
        (dict(shuffles=-1), ValueError, "shuffles must be"),
        (dict(method="mp"), ValueError, "method must be one of"),
        (dict(shufles=3), TypeError, "shufles"),
    ],
)
def test_misuse_is_refused_before_training(arguments, error, said):
    with pytest.raises(error, match=said):
        Monitor(**{"model": network(), **arguments})


# -- a log that is continued ----------------------------------------------------------------------------------


def test_steps_go_on_from_the_last_one_of_the_log(tmp_path):
    log, net = tmp_path / "alpha.jsonl", network()
    quiet(Monitor(net, every=10, log=log, shuffles=0), 30)
    again = Monitor(net, every=10, log=log, shuffles=0)
    assert again.taken == 30
    quiet(again, 20)
    assert pd.read_json(log, lines=True).step.tolist() == [step for step in (10, 20, 30, 40, 50) for _ in range(2)]
    other = tmp_path / "other.jsonl"
    other.write_text('{"loss": 3}\nno JSON\n')
    assert Monitor(net, log=other).taken == 0


def test_the_log_keeps_all_digits_of_small_weights(tmp_path):
    net = nn.Sequential(nn.Linear(30, 20))
    with torch.no_grad():
        net[0].weight.mul_(1e-9)
    monitor = Monitor(net, every=1, log=tmp_path / "log.jsonl", shuffles=0, cutoff="relative")
    quiet(monitor, 1)
    said = json.loads((tmp_path / "log.jsonl").read_text())
    for name, value in monitor.history.iloc[0].items():
        assert said[name] == value or (said[name] is None and math.isnan(value)), name
