"""Sweeps: refused before anything runs, resumed where they stopped, nothing kept that is not needed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from grokutils import ConfigError, RecordError, RunConfig, load_record, train
from grokutils.records.files import read_parquet
from grokutils.records.record import publish
from grokutils.training.hooks import ClipWeights, Hook
from grokutils.training.sweep import Condition, Fork, check, config_of, folder_of, sweep

pytestmark = pytest.mark.usefixtures("copied_jobs")

BASE = RunConfig.recipe("express", steps=120, width=16)


class Breaks(Hook):
    """Makes one member's weights NaN."""

    identity, first, every = "breaks", 50, 1000

    def before(self, step, model):
        model.flat[0] = float("nan")


class Refuses(Hook):
    identity = "refuses"

    def begin(self, model):
        raise ValueError("it does not fit")


@pytest.fixture
def source(runs):
    train(BASE.ensemble([0, 1, 2]), "source", progress=False)
    return load_record("source")


def go(table, seeds=(0, 1), **options):
    return sweep(table, BASE, seeds, "runs/s", jobs=1, progress=False, **options)


@pytest.mark.parametrize(
    "table, said",
    [
        ([], "conditions must be at least one"),
        ([Condition("a"), Condition("a")], "'a' is there twice"),
        ([Condition("../a")], "a condition's name must be letters"),
        ([Condition("a", {"epsilon": 1})], "condition 'a': there is no hyperparameter 'epsilon'"),
        ([Condition("a", {"eps": -1})], "condition 'a': eps must be a number greater than 0"),
        ([Condition("a", {"batch_size": 7})], "condition 'a': batch_size must divide"),
        ([Condition("a", hooks=(ClipWeights(k=3.0, names=("fc9.weight",)),))], "condition 'a': ClipWeights: there is no"),
        ([Condition("a", hooks=(Refuses(),))], "condition 'a': it does not fit"),
        ([Condition("a", hooks=("clip",))], "condition 'a': hooks must be a list of hooks"),
        ([Condition("a", forked=True)], "condition 'a' goes on from a record"),
        ([Condition("a", record="results/express/nothing")], "there is no record"),
        ([Condition("fine"), Condition("a", {"steps": 0})], "condition 'a': steps must be"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_runs(table, said, runs):
    with pytest.raises((ConfigError, FileNotFoundError), match=said):
        go(table)
    assert not runs.exists() or not list(runs.iterdir())


def test_a_hook_that_no_other_process_can_import_is_refused():
    class Local(Hook):
        identity = "local"

    with pytest.raises(ConfigError, match="condition 'a': its hooks must be of classes that another process can import"):
        go([Condition("a", hooks=(Local(),))])


def test_a_fork_must_be_there(source):
    table = [Condition("a", forked=True)]
    with pytest.raises(ConfigError, match="condition 'a': step 7 of source was not saved"):
        go(table, fork=Fork("source", 7, 10))
    with pytest.raises(ConfigError, match="condition 'a': source has no network of seed 9"):
        go(table, seeds=(0, 9), fork=Fork("source", 100, 10))
    with pytest.raises(ConfigError, match="condition 'a': there is no record 'nowhere'"):
        go(table, fork=Fork("nowhere", 100, 10))


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_jobs_without_meaning(jobs):
    with pytest.raises(ConfigError, match="jobs must be a whole number of at least 1"):
        sweep([Condition("a")], BASE, [0], "runs/s", jobs=jobs)


def test_a_folder_outside_is_refused(tmp_path):
    for out in ("runs/../../x", str(tmp_path / "elsewhere")):
        with pytest.raises(ValueError, match="out must"):
            check([Condition("a")], BASE, [0], out)


def test_conditions_are_run_analysed_and_thinned_out(source):
    table = [
        Condition("plain"),
        Condition("clip", hooks=(ClipWeights(k=1.5, every=10),)),
        Condition("fork", {"learning_rate": 1e-3}, forked=True),
        Condition("there", record="source"),
    ]
    fork = Fork("source", 100, 60)
    found = sweep(table, BASE, [0, 2], "runs/s", fork, jobs=2, progress=False)
    assert [outcome.name for outcome in found] == ["plain", "clip", "fork", "there"]
    assert not any(outcome.error or outcome.diverged for outcome in found)
    plain, clip, forked, there = (outcome.record for outcome in found)
    assert there.name == "source" and there.step == BASE.steps
    for record in (plain, clip, forked):
        assert record.complete and record.steps_saved == [record.step]
        assert not (record.folder / "state.safetensors").exists()
        spectra = read_parquet(record.folder / "spectra.parquet")
        assert set(spectra.shuffle) == {-1}
        assert set(spectra.step) == set(read_parquet(record.folder / "diagnostics.parquet").step) > {record.step}
    assert [network.seed for network in plain.config.networks] == [0, 2]
    # each member of the fork begins where its own seed was
    for member, old in enumerate((0, 2)):
        begun = forked.metrics[(forked.metrics.member == member) & (forked.metrics.step == 0)]
        was = source.metrics[(source.metrics.member == old) & (source.metrics.step == 100)]
        np.testing.assert_allclose(begun.test_accuracy, was.test_accuracy, atol=1e-3)
    assert clip.metrics.fc1_max_abs.iloc[-1] < plain.metrics.fc1_max_abs.iloc[-1]
    # the same call again changes nothing
    before = {p: p.stat().st_mtime_ns for p in folder_of("runs/s", table[0]).parent.rglob("*") if p.suffix != ".lock"}
    again = sweep(table, BASE, [0, 2], "runs/s", fork, jobs=1, progress=False)
    assert all(outcome.record is not None for outcome in again)
    parquet = {p: t for p, t in before.items() if p.suffix in (".parquet", ".safetensors")}
    assert parquet and all(p.stat().st_mtime_ns == t for p, t in parquet.items())


def keep_nothing(record):
    publish(record, record.folder, ())


def test_what_is_measured_saved_and_kept_can_be_chosen():
    training = dict(measure_every=50, measures_per_decade=1, saves_per_decade=1)
    (found,) = go([Condition("a")], seeds=[0], training=training, thin_out=keep_nothing)
    assert found.record.metrics.step.tolist() == [0, 1, 10, 50, 100, 120]
    assert found.record.steps_saved == []
    assert set(read_parquet(found.record.folder / "diagnostics.parquet").step) == {0, 1, 10, 100, 120}
    (again,) = go([Condition("a")], seeds=[0], training=training, thin_out=keep_nothing)
    assert again.record is not None and not again.error


def test_another_run_in_the_folder_is_refused():
    go([Condition("a")], seeds=[0])
    with pytest.raises(RecordError, match="holds another run \\(1 seeds, 120 steps\\)"):
        go([Condition("a")], seeds=[0, 1])
    with pytest.raises(RecordError, match="holds another run"):
        go([Condition("a", {"eps": 1e-3})], seeds=[0])


def test_a_member_that_diverges_is_reported_and_kept_and_a_run_that_does_stops_no_other():
    table = [
        Condition("one", hooks=(Breaks(),)),
        Condition("all", {"optimizer": "sgd", "learning_rate": 10.0, "init_scale": 100.0}),
        Condition("fine"),
    ]
    one, everything, fine = go(table, seeds=[3, 4])
    assert one.diverged == (3,) and one.record.complete
    metrics = one.record.metrics
    assert set(metrics[metrics.step == 120].seed) == {3, 4}
    assert everything.record is None and "no longer finite" in everything.error
    assert fine.record is not None and not fine.diverged


SCRIPT = """
import sys
from grokutils import RunConfig
from grokutils.training.sweep import Condition, sweep
if __name__ == "__main__":
    base = RunConfig.recipe("express", steps=8_000, width=16)
    sweep([Condition("a"), Condition("b", {"eps": 1e-4})], base, [0], "runs/s", jobs=2, progress=False)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGINT, signal.SIGTERM))])
def test_an_interrupted_sweep_goes_on_to_the_same_bits(how, tmp_path, runs):
    script = tmp_path / "go.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, script], env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)
    folder = runs / "s" / "a"
    try:
        deadline = time.monotonic() + 120
        while not (folder / "provenance.json").is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, how)
    finally:
        process.wait(timeout=60)
    assert not load_record(folder).complete, "it was in the middle"
    base = BASE.replace(steps=8_000)
    found = sweep([Condition("a"), Condition("b", {"eps": 1e-4})], base, [0], "runs/s", jobs=1, progress=False)
    assert len(found[0].record.provenance["sessions"]) >= 2
    whole = train(config_of(Condition("a"), base, [0]), "whole", threads=1, progress=False)
    for name, array in whole.weights().items():
        assert (found[0].record.weights()[name] == array).all()
