"""The notebooks that read records read the reader's own: one network or many, collapsed or hardly begun."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from grokutils import RunConfig, load_record, train
from grokutils.records.files import read_parquet

ROOT = Path(__file__).resolve().parent.parent
READING = ("03_alpha", "04_traps", "05_baselines", "06_weight_decay", "08_harmful_traps")
EXPRESS = RunConfig.recipe("express")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs of a reader: one network, and a few of two weight decays."""
    base = tmp_path_factory.mktemp("own")
    train(EXPRESS.replace(steps=1_300), base / "one", progress=False)
    train(EXPRESS.replace(steps=10).ensemble([0, 1], [0.0, 0.01]), base / "mixed", progress=False)
    return base


def code(name: str) -> list[dict]:
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def execute(name: str, **overrides) -> list:
    """The values of the cells, run one after the other in this process."""
    space, values = {"display": display}, []
    for cell in code(name):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), space)
        if last is not None:
            values.append(eval(compile(ast.Expression(last.value), name, "eval"), space))
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(overrides) <= set(space), "a parameter that the notebook has not got"
            space |= overrides
    return values


@pytest.mark.parametrize("run", ["one", "mixed"])
@pytest.mark.parametrize("name", READING)
def test_a_notebook_reads_any_run(name, run, folder, capsys):
    given = {key: str(folder / run) for key in ("run", "control", "paper", "paper_control")}
    wanted = {k: v for k, v in given.items() if k in "\n".join("".join(c["source"]) for c in code(name)).split()}
    with plt.rc_context():
        values = execute(name, **wanted)
    figures = [cell["metadata"]["mystnb"]["figure"]["name"] for cell in code(name) if "mystnb" in cell["metadata"]]
    assert sum(isinstance(value, Figure) for value in values) == len(figures) >= 3
    said = "\n".join(value.data for value in values if isinstance(value, Markdown))
    assert "nan" not in said.lower() and "NA" not in said.replace("NAME", "")


def reference_records() -> set[str]:
    """The records that the notebooks read by default."""
    text = "\n".join("".join(cell["source"]) for name in READING for cell in code(name))
    return set(re.findall(r'^\w+ = "(results/[^"]+)"', text, re.M))


@pytest.mark.parametrize("name", sorted(reference_records()))
def test_a_reference_record_holds_all_that_is_drawn(name):
    """Its weights are mostly gone and the images may not be there, so what is missing can never be made."""
    record = load_record(name)
    keys = {
        kind: set(zip(frame.step, frame.member, strict=True))
        for kind in ("diagnostics", "spectra", "baselines")
        for frame in [read_parquet(record.folder / f"{kind}.parquet")]
    }
    assert len(keys["diagnostics"]) >= 20 * len(record.config.networks)
    assert keys["diagnostics"] == keys["spectra"] == keys["baselines"]
    assert set(record.steps_saved) <= {step for step, _ in keys["diagnostics"]}
    end = max(keys["diagnostics"])[0]
    assert end == record.step if record.complete else end > 0.79 * record.step, "analysed to its end"


@pytest.mark.parametrize("name", READING)
def test_every_code_line_fits_on_the_page(name):
    for cell in code(name):
        assert max(map(len, "".join(cell["source"]).splitlines())) <= 100


@pytest.mark.slow
def test_by_papermill_from_another_folder(folder, tmp_path):
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ, "PATH": os.pathsep.join([str(binaries), os.environ["PATH"]]), "GROKUTILS_RUNS": str(folder),
        "JUPYTER_PREFER_ENV_PATH": "1", "IPYTHONDIR": str(tmp_path / "ipython"),
    }  # fmt: skip
    own = ["-p", "run", "runs/one", "-p", "control", "runs/mixed", "-p", "paper", "runs/one"]
    result = subprocess.run(
        [binaries / "papermill", ROOT / "notebooks" / "05_baselines.ipynb", tmp_path / "out.ipynb", *own],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_a_run_that_is_not_there_is_said_in_a_sentence():
    with pytest.raises(FileNotFoundError, match="there is no record 'runs/nothing'"):
        execute("03_alpha", run="runs/nothing")
