"""Every fault ends in a sentence, and no record mixes two runs. The trials are those of `benchmarks.reliability`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from benchmarks import reliability
from grokutils import ConfigError, RecordError, RunConfig, diagnose, load_record, train
from grokutils.cli import main
from grokutils.experiment import models
from grokutils.paper.claims_page import records as records_table
from grokutils.paper.explorer.page import explorer_html
from grokutils.paper.judge.judging import Judged
from grokutils.records import files
from grokutils.records.analysis import analyze_record
from grokutils.records.record import Record, Unmarked, publish
from grokutils.records.study import study
from grokutils.training import sweep as sweeps
from grokutils.training import train as training
from grokutils.training.hooks import Hook
from grokutils.util import memory, paths

QUICK = dict(shuffles=0, ks_draws=0)


def tiny(**changes) -> RunConfig:
    return RunConfig.recipe("express", **{**dict(steps=30, width=8, batch_size=40), **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two seeds of one run, analysed, one twice as long, and one whose layers are large enough to be drawn."""
    place = tmp_path_factory.mktemp("made")
    for name, config in (("a", tiny()), ("b", tiny(seed=1)), ("longer", tiny(steps=60)), ("wide", tiny(width=16))):
        with warnings.catch_warnings(action="error"):
            analyze_record(train(config, place / name, progress=False), progress=False, **QUICK)
    return place


@pytest.fixture
def mine(made, tmp_path) -> Path:
    """The first of them, to be spoilt."""
    return shutil.copytree(made / "a", tmp_path / "a")


def read_all(folder: Path):
    return reliability.contents(folder) | reliability._says(folder)


# -- the trials ---------------------------------------------------------------------------------------------------


def well(found: dict[str, reliability.Trials], at_least: int) -> None:
    assert [failure for trials in found.values() for failure in trials.failures] == []
    assert sum(trials.tried for trials in found.values()) >= at_least


def test_some_errors_of_the_disk():
    well(reliability.disk_errors(("open", "fsync"), stride=59), 4)


def test_some_flipped_bits():
    well(reliability.flips(60), 60)


@pytest.mark.slow
def test_errors_of_the_disk_at_all_calls():
    found = reliability.disk_errors(stride=4)
    well(found, 70)
    for call in ("open", "write", "fsync", "replace"):
        assert found[call].ended["a sentence, and the same command went on"]


@pytest.mark.slow
def test_a_thousand_flipped_bits():
    found = reliability.flips(1_000)
    well(found, 1_000)
    assert all(trials.ended["noticed"] for trials in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", reliability.KINDS)
def test_killed_at_any_moment(kind):
    well(reliability.kills(each=2, kinds=[kind]), 2)


@pytest.mark.slow
def test_what_makes_no_sense_is_refused_in_one_sentence():
    well(reliability.bad_inputs(), 400)


@pytest.mark.slow
def test_memory_stays_as_it_is():
    found = reliability.memory(200_000)
    assert found["late_mib"] < found["early_mib"] + 20


def test_a_trial_that_fails_is_counted(monkeypatch):
    """The trials can fail: without checksums, flips go unnoticed."""
    monkeypatch.setattr(files, "_FOUND", type("None_", (), {"findall": staticmethod(lambda content: [])}))
    monkeypatch.setattr(files, "_altered", lambda path: RecordError("never"))
    monkeypatch.setattr(files, "sealed", lambda value: dict(value))
    found = reliability.flips(120)
    assert any(trials.failures for trials in found.values())


# -- a record is one run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["metrics.parquet", "diagnostics.parquet", "spectra.parquet", "baselines.parquet", "provenance.json",
             "checkpoints/step_00000030.safetensors", "config.json"],
)  # fmt: skip
def test_a_file_of_another_run_is_refused_by_name(mine, made, name):
    shutil.copy(made / "b" / name, mine / name)
    with pytest.raises(RecordError, match="belongs to another run"):
        read_all(mine)


def test_weights_of_another_step_are_refused(mine):
    shutil.copy(mine / "checkpoints" / "step_00000001.safetensors", mine / "checkpoints" / "step_00000030.safetensors")
    with pytest.raises(RecordError, match=r"step_00000030\.safetensors holds the weights of step 1, not of step 30"):
        load_record(mine).weights(30)


def test_metrics_of_another_run_do_not_let_a_run_go_on(mine, made):
    shutil.copy(made / "b" / "metrics.parquet", mine / "metrics.parquet")
    with pytest.raises(RecordError, match=r"metrics\.parquet belongs to another run"):
        train(tiny(steps=60), mine, progress=False)


def test_metrics_of_an_earlier_time_are_refused(mine, made):
    longer = shutil.copytree(made / "longer", mine.with_name("longer"))
    shutil.copy(mine / "metrics.parquet", longer / "metrics.parquet")
    with pytest.raises(RecordError, match=r"metrics\.parquet is of an earlier time of this run: it does not reach step 60"):
        load_record(longer).metrics  # noqa: B018
    shutil.copy(made / "longer" / "metrics.parquet", mine / "metrics.parquet")
    assert load_record(mine).metrics.step.max() == 30, "those of a later time hold all that there was"


@pytest.mark.parametrize("column", ["step", "member", "seed", "weight_decay", "test_accuracy", "l2_norm"])
@pytest.mark.parametrize("kind", ["missing", "text"])
def test_metrics_without_a_column_are_a_sentence(mine, column, kind):
    frame = load_record(mine).metrics
    spoilt = frame.drop(columns=column) if kind == "missing" else frame.assign(**{column: "x"})
    files.write_parquet(mine / "metrics.parquet", spoilt)
    with pytest.raises(RecordError, match=rf"metrics\.parquet is damaged: it has no column of numbers '{column}'"):
        load_record(mine).metrics  # noqa: B018


def unmarked(folder: Path) -> Path:
    """The record as a version without marks would have written it."""
    for name in ("config.json", "provenance.json"):
        values = json.loads((folder / name).read_text())
        values.pop("sha256")
        values.pop("format", None)
        (folder / name).write_text(json.dumps(values))
    frame = pd.read_parquet(folder / "metrics.parquet")
    frame.attrs = {}
    frame.to_parquet(folder / "metrics.parquet", index=False)
    return folder


def test_an_old_record_is_read_and_says_so_once(mine):
    wanted = load_record(mine).metrics
    unmarked(mine)
    with pytest.warns(Unmarked, match="was written by an earlier version") as said:
        for _ in range(3):
            pd.testing.assert_frame_equal(load_record(mine).metrics, wanted)
    assert len(said) == 1
    train(tiny(steps=60), mine, progress=False)  # goes on, and is still read
    assert load_record(mine).metrics.step.max() == 60 and load_record(mine).diagnose(**QUICK) is not None


def test_metrics_of_another_seed_are_refused_without_marks_too(mine, made):
    unmarked(mine)
    frame = pd.read_parquet(made / "b" / "metrics.parquet")
    frame.attrs = {}
    frame.to_parquet(mine / "metrics.parquet", index=False)
    with pytest.warns(Unmarked), pytest.raises(RecordError, match="its seeds or weight decays are not those of config.json"):
        load_record(mine).metrics  # noqa: B018


def test_a_file_without_marks_is_refused_where_all_have_them(mine):
    frame = pd.read_parquet(mine / "metrics.parquet")
    frame.attrs = {}
    frame.to_parquet(mine / "metrics.parquet", index=False)
    with pytest.raises(RecordError, match=r"metrics\.parquet does not say which run it belongs to"):
        load_record(mine).metrics  # noqa: B018


def test_publishing_onto_another_run_is_refused(mine, made):
    other = shutil.copytree(made / "b", mine.with_name("b"))
    before = read_all(other)
    with pytest.raises(RecordError, match="holds another run; choose another name"):
        publish(load_record(mine), other, [30])
    assert not reliability.differences(before, read_all(other))


# -- what vanishes, and what is left behind -----------------------------------------------------------------------


class Removes(Hook):
    """Somebody else removes things while the run goes on."""

    identity, first, every = "removes", 20, 1000

    def __init__(self, *targets: Path):
        self.targets = targets

    def before(self, step, model):
        for path in self.targets:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_a_run_whose_config_vanishes_is_kept_and_goes_on(tmp_path):
    folder = tmp_path / "x"
    with pytest.raises(RecordError, match=r"config\.json has vanished while the run was at step \d+; the state of step 20 is kept"):
        train(tiny(), folder, progress=False, hooks=[Removes(folder / "config.json")])
    train(tiny(), folder, progress=False, hooks=[Removes()])
    straight = train(tiny(), tmp_path / "y", progress=False, hooks=[Removes()])
    assert not reliability.differences(reliability.contents(folder), reliability.contents(straight.folder))


@pytest.mark.parametrize("lost", [["config.json"], ["provenance.json"], ["config.json", "provenance.json"]])
def test_what_a_record_has_lost_the_same_command_makes_again(mine, made, lost):
    for name in lost:
        (mine / name).unlink()
    with pytest.raises(RecordError, match="is missing"):
        read_all(mine)
    with pytest.raises(RecordError):  # it is still the record of its own run
        train(tiny(seed=1), mine, progress=False)
    assert sorted(set(os.listdir(made / "a")) - set(os.listdir(mine))) == sorted(lost)
    train(tiny(), mine, progress=False)
    wanted = reliability.contents(made / "a")
    assert not reliability.differences(reliability.contents(mine), wanted)


def test_a_run_whose_folder_vanishes_ends_in_a_sentence(tmp_path):
    folder = tmp_path / "x"
    with pytest.raises(RecordError, match="has vanished while the run was at step .*; nothing of it is left"):
        train(tiny(), folder, progress=False, hooks=[Removes(folder)])
    assert not (folder / "config.json").exists()


def test_what_a_killed_process_left_is_removed(mine):
    left = [mine / ".config.json.4711.tmp", mine / "checkpoints" / ".step_00000001.safetensors.4711.tmp"]
    for path in left:
        path.write_text("half")
    (mine / ".mine.tmp").write_text("somebody's own")
    train(tiny(steps=60), mine, progress=False)
    assert not any(path.exists() for path in left) and (mine / ".mine.tmp").exists()


# -- where a run may be written -----------------------------------------------------------------------------------


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(RecordError, match="is no record, but holds other things \\('thesis.tex' for one\\)"):
        train(tiny(), folder, progress=False)
    assert os.listdir(folder) == ["thesis.tex"]


@pytest.mark.parametrize("content", [[], [".lock"], [".lock", ".config.json.12.tmp"]])
def test_a_folder_that_is_new_or_empty_will_do(tmp_path, content):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in content:
        (folder / name).touch()
    assert train(tiny(steps=1), folder, progress=False).complete


@pytest.mark.parametrize("place", ["/", "~", "/home/..", "{runs}", "{parent}"])
def test_a_folder_of_everybody_is_refused(place, runs):
    with pytest.raises(ValueError, match="out must be a folder of this run alone"):
        paths.run_dir(place.format(runs=runs, parent=runs.parent))


@pytest.mark.parametrize("name", ["~root/x", "~root", "~nobody/x"])
def test_the_home_of_somebody_else_is_refused(name):
    for read in (paths.run_dir, paths.reference_dir, paths.find_run):
        with pytest.raises(ValueError, match="must name a run"):
            read(name)


@pytest.mark.parametrize("name", ["", " ", "/tmp/x", "..", "../x", "a/../../x", "results", "."])
def test_a_name_of_a_reference_record_stays_in_results(name):
    with pytest.raises(ValueError, match="^(name|out) must "):
        paths.reference_dir(name)


@pytest.mark.parametrize("variable", ["GROKUTILS_RUNS", "GROKUTILS_HOME"])
@pytest.mark.parametrize("value", ["~nosuchuser/x", "/dev/null", "/no/such/folder"])
def test_a_root_that_is_no_folder_is_refused(variable, value, monkeypatch):
    monkeypatch.delenv("GROKUTILS_RUNS")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} must name a folder, or a new one in a folder that is there; got '{value}'"):
        train(tiny(), "x", progress=False)
    assert not Path("/no").exists()


# -- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        RunConfig.recipe("express", width=17, depth=2),
        RunConfig.recipe("express", width=17, depth=5, optimizer="amsgrad"),
        RunConfig.recipe("modular", p=11, d_model=24, d_mlp=40),
    ],
)
def test_the_estimate_counts_the_parameters_and_is_no_more_than_what_is_taken(config):
    model = models.build(config)
    model.init()
    assert config.parameters == sum(w.size for w in model.weights()[0].values())
    buffers = sum(t.nbytes for t in model.state_dict().values())
    assert buffers < config.memory < 50 * buffers
    assert config.ensemble(range(3)).memory == 3 * config.memory


def test_a_run_that_does_not_fit_is_refused_before_it_starts(runs, monkeypatch):
    big = RunConfig.recipe("express", width=8192, dtype="float64").ensemble(range(2000))
    with pytest.raises(ConfigError, match=r"this run needs at least [\d,.]+ GiB of memory, and [\d,.]+ GiB are free; .*\(2000 now\)"):
        train(big, "x", progress=False)
    assert not (runs / "x").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
def test_memory_that_runs_out_is_a_sentence(monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(models, "build", fails)
    with pytest.raises(RecordError, match=r"memory ran out .* run the same command again"):
        train(tiny(), "x", progress=False)


def test_memory_is_what_the_process_may_take():
    there = memory.available_memory()
    assert 2**20 < there <= psutil.virtual_memory().total
    code = (
        "import resource; from grokutils.util.memory import available_memory as there;"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); print(there() < 2**30)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_slow_steps_are_announced_and_others_are_not(monkeypatch):
    slow = RunConfig.recipe("modular", d_model=4096, p=257)
    monkeypatch.setattr(training, "_speed", lambda config: 1e11)
    with pytest.warns(training.SlowSteps, match=r"a step of this run takes about \d+ seconds on this machine, and 100,000 are"):
        training._check_limits(slow, torch.device("cpu"))
    with warnings.catch_warnings(action="error"):
        training._check_limits(RunConfig.recipe("paper"), torch.device("cpu"))
        training._check_limits(RunConfig.recipe("modular"), torch.device("cpu"))


def test_more_shuffles_than_anybody_needs_are_refused():
    with pytest.raises(ValueError, match="shuffles must be a whole number of at least 0 and at most 100,000; got 100000000"):
        diagnose({"a.weight": torch.zeros(20, 20)}, shuffles=100_000_000)


# -- sweeps -------------------------------------------------------------------------------------------------------

SCRIPT = """
from grokutils import RunConfig
from grokutils.training.sweep import Condition, sweep
if __name__ == "__main__":
    base = RunConfig.recipe("express", steps=16_000_000, width=16)
    sweep([Condition("a"), Condition("b", {"eps": 1e-4})], base, [0], "runs/s", jobs=2, progress=False)
"""


@pytest.mark.slow
def test_workers_end_with_their_parent_and_the_same_command_goes_on(tmp_path, runs):
    script = tmp_path / "go.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)
    states = [runs / "s" / name / "provenance.json" for name in "ab"]
    until(lambda: all(state.is_file() for state in states) or process.poll() is not None)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=60)  # which ends when all that could write there have gone
    until(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers))
    assert "Traceback" not in said
    steps = [load_record(state.parent).step for state in states]
    config = load_record(states[0].parent).config
    resumed = train(config.replace(steps=steps[0] + 10), states[0].parent, threads=1, progress=False)
    assert steps[0] > 0 and resumed.step == steps[0] + 10


def until(true, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


class Dead:
    """A pipe whose other end has gone."""

    def send(self, value):
        raise BrokenPipeError(32, "Broken pipe")

    def recv(self):
        raise ConnectionResetError(104, "Connection reset by peer")


def test_a_broken_pipe_of_a_worker_is_a_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sweeps, "_end_with_parent", lambda: None)
    monkeypatch.setattr(sweeps, "_run", lambda *_: ())
    ended = []
    monkeypatch.setattr(sweeps.os, "_exit", ended.append)
    sweeps._work(Dead(), sweeps.Condition("a"))
    assert ended == [1] and capsys.readouterr().err == "condition 'a': nobody listens any more; its record is kept.\n"


# -- names --------------------------------------------------------------------------------------------------------

HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "*a* `b` [c](d) $e$ |f|", "a&amp;b"]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_name_of_a_run_is_no_markup(made, tmp_path, name):
    folder = shutil.copytree(made / "wide", tmp_path / name.replace("/", "-"))
    data = study(folder, analyse=False)
    assert not set(data.place) & set("<>&*`[]$|\\")
    page = str(explorer_html(load_record(folder)))
    judged = Judged((), {"express": {}}, {"express": {"wd0": {"name": folder.name, "label": name}}})
    for shown in (page, str(records_table(judged))):
        assert "<img" not in shown and "<script>alert" not in shown


def test_the_name_of_a_layer_is_no_markup(mine):
    for table in ("diagnostics", "spectra"):
        frame = load_record(mine).table(table)
        frame["layer"] = "<img src=x onerror=alert(1)>"
        files.write_parquet(mine / f"{table}.parquet", frame)
    with pytest.raises(RecordError, match="names a layer '<img src=x onerror=alert\\(1\\)>', which is no name of a parameter"):
        Record(mine).diagnose(**QUICK)


def test_an_intervention_is_no_markup(tmp_path):
    hook = Hook()
    hook.identity = "*<b>$x$"
    record = train(tiny(), tmp_path / "x", progress=False, hooks=[hook])
    assert not set(study(record.folder, analyse=False).label) & set("<>*$")


def test_a_name_cannot_steer_the_terminal(made, tmp_path, capsys):
    folder = shutil.copytree(made / "a", tmp_path / "\x1b[2J\u202ea")
    assert main(["show", os.path.relpath(folder)]) == 2  # no name of a run
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GROKUTILS_RUNS", str(tmp_path))
        assert main(["list"]) == 0
    (folder / "metrics.parquet").unlink()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GROKUTILS_RUNS", str(tmp_path))
        assert main(["list"]) == 0
    told = "".join(capsys.readouterr())
    assert "\\x1b[2J\\u202ea" in told and not {"\x1b", "\u202e"} & set(told)
