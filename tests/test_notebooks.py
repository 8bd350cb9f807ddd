"""The notebooks are thin and clean, and 02_train trains what papermill tells it to, from any folder."""

import ast
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from grokutils import RunConfig, load_record
from grokutils.paper.kit.book import BUILDING

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBERED = [path for path in NOTEBOOKS if path.stem[:2].isdigit()]
TRAIN = ROOT / "notebooks" / "02_train.ipynb"


def cells(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def parameters(path: Path) -> dict[str, object]:
    """Names and defaults of the notebook's one cell tagged `parameters`."""
    (tagged,) = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    statements = ast.parse(source(tagged)).body
    assert all(isinstance(s, ast.Assign) and len(s.targets) == 1 for s in statements), (
        "assignments and nothing else"
    )
    return {s.targets[0].id: ast.literal_eval(s.value) for s in statements}


# -- as stored --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_thin_and_clean(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path not in NUMBERED or parameters(path)
    for cell in cells(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        lines = source(cell).splitlines()
        assert 0 < len(lines) <= 25 or "parameters" in cell["metadata"].get("tags", []), lines[:1]
        definitions = [
            n for n in ast.walk(ast.parse(source(cell))) if isinstance(n, (ast.FunctionDef, ast.ClassDef))
        ]
        assert all(d.end_lineno - d.lineno < 8 for d in definitions), (
            "what is longer belongs into the package"
        )


def test_every_hyperparameter_can_be_overridden():
    given = parameters(TRAIN)
    own = {"recipe_name", "weight_decay", "steps", "seed", "members", "intervention", "own"}  # not set by hand, or named above
    overrides = {f.name for f in dataclasses.fields(RunConfig) if RunConfig().means(f.name)} - own
    assert set(given) == overrides | {"recipe", "wd", "steps", "seed", "out", "threads", "device"}
    assert all(given[name] is None for name in overrides), "None leaves the recipe's value"
    assert (given["recipe"], given["wd"], given["steps"], given["seed"]) == ("express", 0.0, None, 0)
    # and each is handed on under its own name
    calls = [
        node
        for cell in cells(TRAIN)
        for node in ast.walk(ast.parse(source(cell)))
        if isinstance(node, ast.Call)
    ]
    (recipe,) = [call for call in calls if ast.unparse(call.func) == "page.RunConfig.recipe"]
    handed = {keyword.arg: ast.unparse(keyword.value) for keyword in recipe.keywords}
    assert handed == {name: name for name in overrides} | {
        "weight_decay": "wd",
        "steps": "steps",
        "seed": "seed",
    }


# -- run by papermill -------------------------------------------------------------------------------------


def papermill(*arguments, folder: Path = ROOT, **options) -> subprocess.CompletedProcess:
    """The command as a reader types it, in this environment."""
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(binaries), os.environ["PATH"]]),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "IPYTHONDIR": str(Path(os.environ["GROKUTILS_RUNS"]).parent / "ipython"),
    }
    return subprocess.run(
        [binaries / "papermill", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=300,
        **({"capture_output": True} | options),
    )


def check_executed(notebook: str) -> None:
    """All cells ran, and each figure is there once."""
    executed = [cell for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]
    assert any("injected-parameters" in cell["metadata"]["tags"] for cell in executed)
    assert all(cell["execution_count"] for cell in executed)
    outputs = [output for cell in executed for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    for cell in executed:
        images = [o for o in cell["outputs"] if any(key.startswith("image/") for key in o.get("data", {}))]
        assert len(images) == ("figure" in cell["metadata"].get("mystnb", {})), source(cell)
        assert all("image/svg+xml" in image["data"] for image in images)


def test_from_the_root_with_an_output_path(tmp_path, runs):
    before = set(ROOT.iterdir())
    result = papermill(
        "notebooks/02_train.ipynb", tmp_path / "wd0.ipynb", "-p", "wd", "0", "-p", "steps", "2000"
    )
    assert result.returncode == 0, result.stderr
    check_executed((tmp_path / "wd0.ipynb").read_text())
    record = load_record("express-wd0-seed0")
    assert record.folder.parent == runs and record.complete
    assert record.config == RunConfig.recipe("express", wd=0, steps=2000)
    assert set(ROOT.iterdir()) == before


@pytest.mark.slow
def test_from_another_folder_without_an_output_path(tmp_path, runs):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with open(tmp_path / "out.ipynb", "w") as out:
        result = papermill(
            TRAIN,
            "-p",
            "wd",
            "0.01",
            "-p",
            "steps",
            "2e3",
            "-p",
            "seed",
            "3",
            "-p",
            "width",
            "50",
            "-p",
            "out",
            "runs/x",
            "-p",
            "threads",
            "1",
            folder=elsewhere,
            stdout=out,
            stderr=subprocess.PIPE,
            capture_output=False,
        )
    assert result.returncode == 0, result.stderr
    check_executed((tmp_path / "out.ipynb").read_text())
    assert load_record("x").config == RunConfig.recipe("express", wd=0.01, steps=2000, seed=3, width=50)
    assert [path.name for path in runs.iterdir()] == ["x"] and not list(elsewhere.iterdir())


@pytest.mark.slow
def test_a_build_of_the_book_shows_the_reference_record(tmp_path, runs, monkeypatch):
    monkeypatch.setenv(BUILDING, "1")
    result = papermill(TRAIN, tmp_path / "x.ipynb", "-p", "steps", "5e4")
    assert result.returncode == 0, result.stderr
    check_executed((tmp_path / "x.ipynb").read_text())
    assert not runs.exists() or not list(runs.iterdir())
    result = papermill(TRAIN, tmp_path / "x.ipynb", "-p", "steps", "500", "-p", "width", "50")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in runs.iterdir()] == ["express-wd0-seed0-width=50"], "of this there is no reference"


@pytest.mark.slow
def test_the_papers_recipe(mnist_root, tmp_path):
    result = papermill(
        TRAIN, tmp_path / "x.ipynb", "-p", "recipe", "paper", "-p", "steps", "20", "-p", "threads", "1"
    )
    assert result.returncode == 0, result.stderr
    check_executed((tmp_path / "x.ipynb").read_text())
    record = load_record("paper-wd0-seed0")
    assert record.complete and record.config == RunConfig.recipe("paper", steps=20)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("wd", "-1", "weight_decay must be a number of at least 0 and at most 10; got -1."),
        slow("out", "../../etc", "out must stay inside runs/; got '../../etc'."),
        slow("recipe", "nonsense", "recipe must be one of 'express', 'paper', 'modular'; got 'nonsense'."),
        slow("threads", "many", "threads must be a whole number from 1 to 1024; got 'many'."),
    ],
)
def test_bad_parameters_are_refused_in_a_sentence_and_nothing_is_written(name, value, said, tmp_path, runs):
    result = papermill(TRAIN, tmp_path / "x.ipynb", "-p", name, value, "-p", "steps", "50")
    assert result.returncode != 0
    assert said in result.stderr, result.stderr[-2000:]
    assert not runs.exists() or not list(runs.iterdir())
