"""The command does what it says, and says what it cannot do in one line."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest

from grokutils import RunConfig, load_record, train
from grokutils.cli import main
from grokutils.paper.harmful_traps.intervention_study import interventions_of

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--steps", "30", "--quiet"]


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and complaints of the command."""
    try:
        status = main(list(arguments))
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    return status, *capsys.readouterr()


def refusal(capsys, *arguments: str, status: int = 2) -> str:
    """The one line with which the command refuses."""
    found, out, complaint = outcome(capsys, *arguments)
    assert (found, out) == (status, ""), complaint
    assert complaint.startswith("grokutils: ") and complaint.endswith(".\n") and complaint.count("\n") == 1, (
        complaint
    )
    return complaint.removeprefix("grokutils: ").strip()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run, to be copied."""
    return train(
        RunConfig.recipe("express", steps=30), tmp_path_factory.mktemp("trained") / "x", progress=False
    ).folder


# -- train ------------------------------------------------------------------------------------------------


def test_training(capsys, runs):
    status, out, complaint = outcome(capsys, "train", *QUICK)
    record = load_record("express-wd0-seed0")
    assert (status, complaint) == (0, "") and record.folder == runs / "express-wd0-seed0"
    assert record.config == RunConfig.recipe("express", steps=30) and record.complete
    last = record.metrics.iloc[-1]
    assert out == (
        f"{record.folder}: 30 steps (complete), "
        f"train {last.train_accuracy:.3f}, test {last.test_accuracy:.3f}\n"
    )


def test_every_hyperparameter_can_be_given(capsys, runs):
    given = {
        "recipe": "paper",
        "wd": "0.01",
        "seed": "7",
        "steps": "2e1",
        "out": "runs/all",
        "threads": "1",
        "device": "cpu",
        "dataset": "digits",
        "per-class": "5",
        "random-labels": "0.5",
        "model": "mlp",
        "depth": "4",
        "width": "12",
        "init-scale": "2.5",
        "lr": "1e-3",
        "optimizer": "amsgrad",
        "beta1": "0.8",
        "beta2": "0.99",
        "eps": "1e-7",
        "batch-size": "25",
        "batch-order": "reshuffle",
        "dtype": "float32",
    }
    arguments = [text for name, value in given.items() for text in (f"--{name}", value)]
    assert outcome(capsys, "train", "--quiet", *arguments)[0] == 0
    assert load_record("all").config == RunConfig.recipe(
        "paper",
        wd=0.01,
        seed=7,
        steps=20,
        dataset="digits",
        per_class=5,
        random_labels=0.5,
        depth=4,
        width=12,
        init_scale=2.5,
        lr=1e-3,
        optimizer="amsgrad",
        beta1=0.8,
        beta2=0.99,
        eps=1e-7,
        batch_size=25,
        batch_order="reshuffle",
        dtype="float32",
    )
    flags = outcome(capsys, "train", "--help")[1]
    for name in RunConfig().to_dict():
        if name not in ("recipe_name", "members", "weight_decay", "learning_rate", "intervention", "own"):
            assert f"--{name.replace('_', '-')} " in flags
    assert all(f"--{name} " in flags for name in (*given, "quiet"))


def test_several_seeds_and_decays_are_members_of_one_run(capsys):
    assert outcome(capsys, "train", *QUICK, "--seed", "0", "3", "--wd", "0", "0.01", "--out", "many")[0] == 0
    record = load_record("many")
    assert record.config == RunConfig.recipe("express", steps=30).ensemble([0, 3], [0.0, 0.01])
    pairs = record.metrics[["seed", "weight_decay"]].drop_duplicates()
    assert sorted(map(tuple, pairs.to_numpy())) == [(0, 0.0), (0, 0.01), (3, 0.0), (3, 0.01)]


def test_a_longer_run_goes_on_and_a_shorter_one_is_there_already(capsys, runs):
    outcome(capsys, "train", *QUICK, "--out", "x")
    before = (runs / "x" / "provenance.json").read_bytes()
    status, out, _ = outcome(capsys, "train", "--quiet", "--steps", "10", "--out", "x")
    assert status == 0 and ": 10 steps (" in out
    assert (runs / "x" / "provenance.json").read_bytes() == before
    assert outcome(capsys, "train", "--quiet", "--steps", "50", "--out", "x")[0] == 0
    sessions = load_record("x").provenance["sessions"]
    assert [(s["from_step"], s["to_step"]) for s in sessions] == [(0, 30), (30, 50)]


def test_progress_goes_to_where_complaints_go(capsys):
    status, out, complaint = outcome(capsys, "train", "--steps", "30", "--out", "x")
    assert status == 0 and out.count("\n") == 1 and "30.0/30.0" in complaint


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--wd", "-1"], "weight_decay must be a number of at least 0 and at most 10; got '-1'."),
        (["--wd", "nan"], "weight_decay must be a number of at least 0 and at most 10; got 'nan'."),
        (["--wd", "0", "much"], "weight_decay must be a number of at least 0 and at most 10; got 'much'."),
        (
            ["--wd", "0", "0.0"],
            "members must differ from one another; a (seed, weight_decay) pair is there twice.",
        ),
        (["--steps", "0"], "steps must be a whole number of at least 1 and at most 16,777,216; got '0'."),
        (["--steps", "1.5"], "steps must be a whole number of at least 1 and at most 16,777,216; got '1.5'."),
        (
            ["--steps", "1e99"],
            "steps must be a whole number of at least 1 and at most 16,777,216; got '1e99'.",
        ),
        (["--seed", "-1"], "seed must be a whole number of at least 0 and at most 4,294,967,295; got '-1'."),
        (
            ["--seed", "0", "one"],
            "seed must be a whole number of at least 0 and at most 4,294,967,295; got 'one'.",
        ),
        (["--batch-size", "30"], "batch_size must divide the training set of 160 images; got 30."),
        (["--dataset", "cifar"], "dataset must be one of 'mnist', 'digits', 'modular-addition', 'fashion-mnist', 'breast-cancer'; got 'cifar'."),
        (["--lr", ""], "learning_rate must be a number greater than 0 and at most 10; got ''."),
        (["--threads", "0"], "threads must be a whole number from 1 to 1024; got 0."),
        (["--device", "tpu"], "device must be 'cpu' or 'cuda'; got 'tpu'."),
        (["--out", ""], "out must name a run, such as 'my-run' or 'runs/my-run'; got ''."),
        (["--out", "../../etc"], "out must stay inside runs/; got '../../etc'."),
    ],
)
def test_bad_values_are_refused_in_one_line_and_leave_nothing(arguments, said, capsys, runs):
    assert refusal(capsys, "train", *QUICK, *arguments) == said
    assert not runs.exists() or not list(runs.iterdir())


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "the following arguments are required: COMMAND"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["train", "--recipe", "nonsense"], "invalid choice: 'nonsense' (choose from"),
        (["train", "--wd"], "argument --wd: expected at least one argument"),
        (["train", "--threads", "many"], "argument --threads: invalid int value: 'many'"),
        (["train", "--members", "5"], "unrecognized arguments: --members 5"),
        (["show"], "the following arguments are required: name"),
    ],
)
def test_misuse_shows_the_usage(arguments, said, capsys, runs):
    status, out, complaint = outcome(capsys, *arguments)
    assert (status, out) == (2, "") and complaint.startswith("usage: grokutils") and said in complaint
    assert not runs.exists()


def test_another_run_of_the_name_is_refused(capsys, runs, trained):
    shutil.copytree(trained, runs / "x")
    before = {path: path.read_bytes() for path in (runs / "x").rglob("*") if path.is_file()}
    said = refusal(capsys, "train", *QUICK, "--wd", "0.5", "--out", "x", status=1)
    assert said == f"{runs / 'x'} holds another run (weight_decay 0.0 instead of 0.5); choose another out."
    assert {path: path.read_bytes() for path in (runs / "x").rglob("*") if path.is_file()} == before


def test_a_run_that_diverges(capsys):
    said = refusal(
        capsys,
        "train",
        "--quiet",
        "--steps",
        "1000",
        "--lr",
        "10",
        "--init-scale",
        "1000",
        "--beta1",
        "0",
        "--beta2",
        "0",
        "--eps",
        "1e-40",
        "--wd",
        "10",
        "--out",
        "x",
        status=1,
    )
    assert said.startswith("the weights are no longer finite at step")


# -- list and show ----------------------------------------------------------------------------------------


def test_list_and_show(capsys, runs, trained, monkeypatch, tmp_path):
    monkeypatch.setenv("GROKUTILS_HOME", str(tmp_path / "home"))
    assert outcome(capsys, "list") == (0, "There are no records yet; make one with `grokutils train`.\n", "")
    for name in ("b", "a"):
        shutil.copytree(trained, runs / name)
    status, listed, complaint = outcome(capsys, "list")
    assert (status, complaint) == (0, "")
    assert [line.split(": 30 steps (complete), train ")[0] for line in listed.splitlines()] == [
        str(runs / "a"),
        str(runs / "b"),
    ]

    status, out, complaint = outcome(capsys, "show", "a")
    assert (status, complaint) == (0, "") and out.startswith(listed.splitlines()[0] + "\n")
    shown = dict(line.split()[:2] for line in out.splitlines()[1:])
    for name, value, _ in RunConfig.recipe("express", steps=30).describe():
        assert name == "members" or shown[name] == str(value)
    assert "trained 0 to 30 in " in out and "weights saved at " in out and out.rstrip().endswith("0 to 30")
    for name in ("runs/a", str(runs / "a")):
        assert outcome(capsys, "show", name)[1] == out


def test_a_record_that_is_not_there(capsys, runs, trained, monkeypatch, tmp_path):
    monkeypatch.setenv("GROKUTILS_HOME", str(tmp_path))
    assert refusal(capsys, "show", "x", status=1) == (
        "there is no record 'x'. Records here: none yet; make one with `grokutils train`."
    )
    shutil.copytree(trained, runs / "a")
    assert refusal(capsys, "show", "../x", status=1) == "there is no record '../x'. Records here: runs/a."
    assert refusal(capsys, "show", "") == "name must name a run, such as 'my-run' or 'runs/my-run'; got ''."


@pytest.mark.parametrize("name", ["config.json", "metrics.parquet", "provenance.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_record_is_named_and_does_not_hide_the_others(
    name, content, capsys, runs, trained, monkeypatch, tmp_path
):
    monkeypatch.setenv("GROKUTILS_HOME", str(tmp_path))
    for folder in ("good", "bad"):
        shutil.copytree(trained, runs / folder)
    (runs / "bad" / name).write_bytes(content)
    assert str(runs / "bad" / name) in refusal(capsys, "show", "bad", status=1)
    status, out, complaint = outcome(capsys, "list")
    assert (status, complaint) == (0, "") and out.count("\n") == 2
    bad, good = out.splitlines()
    assert bad.startswith(f"{runs / 'bad'}: {runs / 'bad' / name} is ")
    assert good.startswith(f"{runs / 'good'}: 30 steps (complete), train ")


# -- as a process -----------------------------------------------------------------------------------------


def command(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "grokutils", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_the_command_as_a_process_from_another_folder(tmp_path, runs):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = command(
        "train", "--recipe", "express", "--wd", "0", "--steps", "1e2", "--out", "runs/x", folder=elsewhere
    )
    assert result.returncode == 0 and result.stdout.startswith(f"{runs / 'x'}: 100 steps (complete), train ")
    assert not list(elsewhere.iterdir())
    assert pd.read_parquet(runs / "x" / "metrics.parquet").step.max() == 100


def test_the_command_fails_without_a_traceback():
    result = command("train", "--wd", "-1")
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr == "grokutils: weight_decay must be a number of at least 0 and at most 10; got '-1'.\n"
    )


def test_help(capsys):
    status, out, complaint = outcome(capsys, "--help")
    assert (status, complaint) == (0, "") and out.startswith("usage: grokutils")
    commands = re.findall(r"^    ([\w-]+)", out, re.M)
    assert {"train", "diagnose", "list", "show", "publish", "causes", "interventions", "claims"} <= set(commands)
    for name in commands:
        status, details, _ = outcome(capsys, name, "--help")
        assert status == 0 and details.startswith(f"usage: grokutils {name}")


def test_publishing_a_run(capsys, runs, trained, monkeypatch, tmp_path):
    monkeypatch.setenv("GROKUTILS_HOME", str(tmp_path / "home"))
    shutil.copytree(trained, runs / "a")
    status, out, _ = outcome(capsys, "publish", "a", "--to", "few/b", "--steps", "0", "3e1")
    target = tmp_path / "home" / "results" / "few" / "b"
    assert status == 0 and out.startswith(f"{target}: 30 steps (complete)")
    published = load_record("results/few/b")
    assert published.steps_saved == [0, 30] and (target / "diagnostics.parquet").is_file()
    assert outcome(capsys, "publish", "results/few/b", "--steps", "30")[0] == 0
    assert load_record("results/few/b").steps_saved == [30], "thinned out in place"
    assert "must stay inside results/" in refusal(capsys, "publish", "a", "--to", "../b")


def test_a_reader_that_leaves_early_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "grokutils", "list"], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("grokutils.records.record.list_records", interrupted)
    assert main(["list"]) == 130 and capsys.readouterr().err == "grokutils: interrupted.\n"


def test_a_hyperparameter_of_another_model_is_refused(capsys):
    assert main(["train", "--recipe", "express", "--p", "7", "--out", "never"]) == 2
    assert "p means nothing to the mlp" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["interventions", "regrowth", "claims"])
def test_the_commands_that_make_tables_have_help_and_one_line_errors(name, capsys, runs):
    status, told, complaint = outcome(capsys, name, "--help")
    assert (status, complaint) == (0, "") and told.startswith(f"usage: grokutils {name} ")
    arguments = ["--run", "runs/none"] if name == "claims" else ["runs/none"]
    assert refusal(capsys, name, *arguments, status=1).startswith("there is no record 'runs/none'.")


def test_tables_are_made_and_kept(capsys, runs, trained):
    shutil.copytree(trained, runs / "a")
    assert outcome(capsys, "interventions", "a")[:2] == (0, f"a: {len(interventions_of(load_record('a'))):,} rows\n")


# -- quick ------------------------------------------------------------------------------------------------

HEAVY = ("torch", "pandas", "numpy", "scipy", "matplotlib", "seaborn", "sklearn", "IPython")


@pytest.mark.parametrize(
    "code",
    [
        "import grokutils",
        "from grokutils import cli; cli.main(['--help'])",
        "from grokutils import cli; cli.main(['--version'])",
        "from grokutils import cli; cli.main(['train', '--help'])",
        "from grokutils import cli; assert cli.main(['train', '--wd', '-1']) == 2",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code):
    show = f"import atexit, sys; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"{show}\n{code}"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_version(capsys):
    assert outcome(capsys, "--version") == (0, f"grokutils {metadata.version('grokutils')}\n", "")


def test_what_is_not_installed_is_named(capsys, monkeypatch):
    def lacking(name):
        def stop(*_):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr("grokutils.records.record.list_records", stop)

    lacking("sky")
    said = refusal(capsys, "list", status=1)
    assert said == "this needs sky, which is not installed; `pip install 'grokutils[all]'` brings it."
    lacking("grokutils.sky")  # a fault of our own, to be seen whole
    with pytest.raises(ModuleNotFoundError):
        main(["list"])
