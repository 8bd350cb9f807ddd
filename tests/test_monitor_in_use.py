"""Monitor in real training: steps of the loop's own, resumed runs, wrapped and distributed models, costs, sinks, alarms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from grokutils import Monitor, RunConfig, train
from grokutils.paper import alarm_rates
from grokutils.records.study import study
from grokutils.spectra import alarms
from grokutils.spectra.monitor import SpectralWarning
from grokutils.spectra.unwrapped import unwrap

ROOT = Path(__file__).resolve().parent.parent


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))


# -- steps ------------------------------------------------------------------------------------------------------------


def test_the_loops_own_steps():
    monitor = Monitor(network(), every=100, shuffles=1)
    measured = [step for step in range(0, 1001, 30) if monitor.step(step) is not None]
    assert measured == [120, 210, 300, 420, 510, 600, 720, 810, 900] and monitor.taken == 990
    assert monitor.history.step.unique().tolist() == measured
    with pytest.raises(ValueError, match="global_step must be a whole number of at least 0; got 1.5"):
        monitor.step(1.5)


def test_a_resumed_run_goes_on(tmp_path):
    log = tmp_path / "alpha.jsonl"
    straight = Monitor(network(), every=2, shuffles=1, log=tmp_path / "straight.jsonl")
    first = Monitor(network(), every=2, shuffles=1, log=log)
    for _ in range(5):
        straight.step(), first.step()
    again = Monitor(network(), every=2, shuffles=1, log=log)
    assert again.taken == 4, "as far as the log knows"
    pd.testing.assert_frame_equal(again.history, first.history)
    for _ in range(6):
        again.step()
        straight.step()
    assert again.history.step.unique().tolist() == [2, 4, 6, 8, 10]
    # a loop that goes on from a checkpoint of its own says where it is; what is measured again replaces what was there
    net = network(1)
    back = Monitor(net, every=2, shuffles=1, log=log)
    for step in range(7, 11):
        back.step(step)
    assert back.history.step.unique().tolist() == [2, 4, 6, 8, 10] and len(back.history) == 10
    norms = back.history[back.history.layer == "0"].set_index("step").l2_norm
    assert norms[8] == norms[10] != norms[6]
    pd.testing.assert_frame_equal(Monitor(net, log=log).history, back.history)


def test_what_was_said_is_not_said_again(tmp_path):
    net, log = network(), tmp_path / "x.jsonl"
    with torch.no_grad():
        net[0].weight[2, 3] = 30.0
    with pytest.warns(SpectralWarning) as said:
        monitor = Monitor(net, every=1, shuffles=2, alarms="traps", log=log)
        [monitor.step() for _ in range(3)]
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Monitor(net, every=1, shuffles=2, alarms="traps", log=log)
        again.step()
    assert [alarm.message for alarm in again.alarms] == [str(said[0].message)]


def test_lines_of_somebody_else_in_the_log_are_left_alone(tmp_path):
    log = tmp_path / "x.jsonl"
    log.write_text('hello\n{"step": "one"}\n[1]\n')
    monitor = Monitor(network(), every=1, shuffles=1, log=log)
    monitor.step()
    assert monitor.taken == 1 and log.read_text().startswith("hello\n") and len(log.read_text().splitlines()) == 5


def test_every_may_be_a_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monitor = Monitor(network(), every=timedelta(seconds=10), shuffles=1)
    measured = []
    for step in range(30):
        clock[0] += 1.5
        if monitor.step(step) is not None:
            measured.append(step)
    assert measured == [6, 13, 20, 27]


def test_a_budget_bounds_the_cost(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monitor = Monitor(network(), every=1, shuffles=1, budget=0.1)
    real = monitor._send

    def slow(*arguments):
        real(*arguments)

    def diagnosed(*arguments, **options):
        clock[0] += 2.0  # what a measurement takes
        return found(*arguments, **options)

    from grokutils.spectra import monitor as module

    found = module.diagnose
    monkeypatch.setattr(module, "diagnose", diagnosed)
    monkeypatch.setattr(monitor, "_send", slow)
    count = 0
    for _ in range(1000):
        clock[0] += 0.1
        count += monitor.step() is not None
    assert monitor.seconds == pytest.approx(2.0 * count) and 3 <= count
    assert monitor.seconds <= 0.1 * clock[0] + 2.0


def test_only_the_layers_asked_for():
    monitor = Monitor(network(), every=1, shuffles=1, layers=["2"])
    assert monitor.step().layer.tolist() == ["2"]
    with pytest.raises(ValueError, match=r"layers must match some of 0, 2; got 'fc\*'"):
        Monitor(network(), layers="fc*")


# -- wrappers ---------------------------------------------------------------------------------------------------------


def test_names_survive_wrappers():
    net = network()
    plain = Monitor(net, shuffles=1).measure()
    inside = network()
    inside[0] = torch.compile(inside[0])
    for wrapped in (torch.compile(net), nn.DataParallel(net), nn.DataParallel(torch.compile(net)), inside):
        found = Monitor(wrapped, shuffles=1, layers=["0", "2"]).measure()
        pd.testing.assert_frame_equal(found, plain)
    assert unwrap(torch.compile(net)) is net


DISTRIBUTED = """
import sys
import torch, torch.distributed as dist
from torch import nn
sys.path.insert(0, {tests!r})
from test_monitor_in_use import network
from grokutils import Monitor
rank, kind, log = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + sys.argv[4], rank=rank, world_size=2)
net = network()
if kind == "ddp":
    net = nn.parallel.DistributedDataParallel(net)
elif kind == "fsdp2":
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
else:
    net = nn.parallel.DistributedDataParallel(torch.compile(net, backend="eager"))
monitor = Monitor(net, every=2, shuffles=1, log=log)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(4):
    net(torch.full((3, 40), float(rank))).square().mean().backward()
    optimizer.step(), optimizer.zero_grad()
    monitor.step()
print(len(monitor.history), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("kind", ["ddp", "compiled", "fsdp2"])
def test_of_two_processes_one_measures(kind, tmp_path):
    log = tmp_path / "alpha.jsonl"
    script = DISTRIBUTED.format(tests=str(ROOT / "tests"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), kind, str(log), str(tmp_path / "store")],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=180) for process in processes]
    assert [out.strip() for out, _ in said] == ["4", "0"], said[0][1] + said[1][1]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["step"], row["layer"], row["rows"]) for row in rows] == [(2, "0", 30), (2, "2", 20), (4, "0", 30), (4, "2", 20)]


def test_sharded_parameters_need_steps_that_all_ranks_share(monkeypatch):
    monkeypatch.setattr("grokutils.spectra.monitor._is_sharded", lambda model: True)
    with pytest.raises(ValueError, match="every must be a number of steps, without a budget, where parameters are sharded"):
        Monitor(network(), budget=0.1)


# -- sinks --------------------------------------------------------------------------------------------------------------


class Recording:
    def __init__(self):
        self.got = []

    def log(self, values, step):
        self.got.append((step, values))


class Metrics:
    def __init__(self):
        self.got = []

    def log_metrics(self, metrics, step):
        self.got.append((step, metrics))


def test_loggers_get_the_scalars_asked_for():
    one, other, rows = Recording(), Metrics(), []
    monitor = Monitor(network(), every=5, shuffles=1, sinks=[one, other, rows.append], scalars=("alpha", "l2_norm"))
    for step in range(11):
        monitor.step(step)
    assert [step for step, _ in one.got] == [5, 10] and one.got == other.got
    assert set(one.got[0][1]) == {"spectra/0/alpha", "spectra/2/alpha", "spectra/0/l2_norm", "spectra/2/l2_norm"}
    assert [len(frame) for frame in rows] == [2, 2]


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_files_hold_the_whole_history(name, tmp_path):
    monitor = Monitor(network(), every=1, shuffles=1, sinks=tmp_path / name)
    for _ in range(3):
        monitor.step()
    back = pd.read_csv(tmp_path / name) if name.endswith("csv") else pd.read_parquet(tmp_path / name)
    assert back.step.tolist() == [1, 1, 2, 2, 3, 3] and list(back) == list(monitor.history)
    np.testing.assert_allclose(back.alpha, monitor.history.alpha)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_tensorboard_reads_its_event_file(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard.SummaryWriter(tmp_path) as writer:
        monitor = Monitor(network(), every=2, shuffles=1, sinks=writer)
        for _ in range(6):
            monitor.step()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"spectra/0/alpha", "spectra/2/max_over_std"} <= set(events.Tags()["scalars"])
    found = events.Scalars("spectra/0/alpha")
    assert [event.step for event in found] == [2, 4, 6]
    expected = monitor.history[monitor.history.layer == "0"].alpha
    np.testing.assert_allclose([event.value for event in found], expected, rtol=1e-6)


def test_a_sink_that_fails_is_dropped_and_said_once():
    def broken(rows):
        raise ConnectionError("no route")

    monitor = Monitor(network(), every=1, shuffles=1, sinks=broken)
    with pytest.warns(SpectralWarning, match="step 1: broken failed and is sent nothing more, ConnectionError: no route") as said:
        for _ in range(3):
            monitor.step()
    assert len(said) == 1 and len(monitor.history) == 6


@pytest.mark.parametrize(
    "options, error, says",
    [
        (dict(sinks=3), TypeError, "a sink must have add_scalar, log or log_metrics"),
        (dict(sinks="x.txt"), ValueError, "must end in .csv or .parquet; got 'x.txt'"),
        (dict(sinks="no/such/x.csv"), ValueError, "the folder no/such must exist"),
        (dict(scalars=("alpha", "beta")), ValueError, "scalars must be columns of numbers, such as alpha, traps.*; got 'beta'"),
        (dict(scalars=("verdict",)), ValueError, "scalars must be columns of numbers"),
        (dict(alarms="trapped"), ValueError, "alarms must be among 'unreadable', 'alpha', 'traps', 'norm', 'largest weight'; got 'trapped'"),
        (dict(budget=0), ValueError, "budget must be a number greater than 0 and at most 1; got 0"),
        (dict(every=timedelta(0)), ValueError, "every must be a positive time"),
        (dict(on_alarm=3), TypeError, "on_alarm must be a function; got int"),
        (dict(stop_when="now"), TypeError, "stop_when must be a function; got str"),
    ],
)  # fmt: skip
def test_misuse_is_refused_before_training(options, error, says):
    with pytest.raises(error, match=says):
        Monitor(network(), **options)


# -- alarms ---------------------------------------------------------------------------------------------------------------


def test_alarms_are_handed_on_and_a_rule_stops(tmp_path):
    net, got = network(), []
    monitor = Monitor(
        net, every=1, shuffles=1, patience=1, alarms=("norm",), on_alarm=got.append,
        stop_when=lambda history: history.l2_norm.max() > 2 * history.l2_norm.iloc[0],
    )  # fmt: skip
    with pytest.warns(SpectralWarning, match="its norm is 1.44 times its first"):
        for step in range(4):
            monitor.step(step)
            assert not monitor.should_stop
            with torch.no_grad():
                net[0].weight.mul_(1.2)
    assert [(alarm.step, alarm.layer, alarm.name) for alarm in got] == [(3, "0", "norm")] and got == monitor.alarms
    with torch.no_grad():
        net[0].weight.mul_(2)
    monitor.step(4)
    assert monitor.should_stop


def test_what_an_alarm_handler_raises_ends_the_loop():
    def stop(alarm):
        raise KeyboardInterrupt(alarm.message)

    net = network()
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    monitor = Monitor(net, every=1, patience=1, on_alarm=stop)
    with pytest.warns(SpectralWarning), pytest.raises(KeyboardInterrupt, match="step 1: 0: cannot be measured"):
        monitor.step()


def test_a_healthy_network_raises_no_alarm(tmp_path):
    """A CNN on the digits that is right on nine in ten and still improving: nothing is said by default; of the other
    alarms some would have been."""
    config = RunConfig.recipe("express", model="cnn", init_scale=1, learning_rate=1e-3, steps=400)
    record = train(config, tmp_path / "cnn", progress=False)
    scores = record.metrics.test_accuracy
    assert scores.iloc[-1] > 0.9 and scores.iloc[-1] > scores.iloc[-20]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = record.model(0)
        quiet = Monitor(module, every=1, shuffles=5)
        loud = Monitor(module, every=1, shuffles=5, alarms=("alpha", "traps", "norm", "largest weight"))
        for step in record.steps_saved[1:]:
            module.load_state_dict({name: torch.from_numpy(a) for name, a in record.weights(step).items()})
            quiet.step(step)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loud.step(step)
    assert not quiet.alarms and loud.alarms


def test_the_rates_are_those_of_the_records():
    stored = json.loads(Path(alarms.__file__).with_name("alarms.json").read_text())
    found = alarm_rates.counted(*(study(name, progress=False) for name in alarm_rates.ENSEMBLE))
    assert stored["rules"] == {name: vars(rates) for name, rates in found.items()}
    assert set(found) == set(alarms.RULES) - {"unreadable"} and stored["patience"] == Monitor(network()).patience
    assert alarms.rates_table() in (ROOT / "book" / "howto_monitor.md").read_text(), "the page says the same"
