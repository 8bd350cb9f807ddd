"""A parameter that a notebook does not know ends its run under papermill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from grokutils.util.parameters import check_parameters

ROOT = Path(__file__).resolve().parent.parent


def notebook(path: Path) -> Path:
    parameters = nbformat.v4.new_code_cell("wd = 0.0  # weight decay\nsteps = None", metadata={"tags": ["parameters"]})
    check = nbformat.v4.new_code_cell("from grokutils.util.parameters import check_parameters\n\ncheck_parameters()")
    use = nbformat.v4.new_code_cell("from pathlib import Path\n\nPath('trained').write_text(f'{wd} {steps}')")
    title = nbformat.v4.new_markdown_cell("# A page")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[title, parameters, title, check, use], metadata=kernel), path)
    return path


@pytest.mark.parametrize("given, stops", [([], False), (["wd", "0.01"], False), (["weight_decay", "0.01"], True), (["WD", "0.01"], True)])
def test_under_papermill(given, stops, tmp_path):
    arguments = ["-p", *given] if given else []
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JUPYTER_PREFER_ENV_PATH="1")
    ran = subprocess.run(
        [sys.executable, "-m", "papermill", str(notebook(tmp_path / "n.ipynb")), str(tmp_path / "o.ipynb"), "--no-progress-bar", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert (ran.returncode != 0) == stops, ran.stderr
    if stops:
        assert f"ValueError: unknown parameter {given[0]}" in ran.stderr and "this notebook has wd, steps." in ran.stderr
        assert not (tmp_path / "trained").exists()
    else:
        assert (tmp_path / "trained").read_text() == ("0.01 None" if given else "0.0 None")


@pytest.mark.parametrize(
    "cells, said",
    [
        ([], ""), (["wd = 0.0"], ""), (["wd: float = 0.0", "# Parameters\nwd = 1\n"], ""), (["%matplotlib inline\nwd = 0", "# Parameters\nx = 1"], "unknown parameter x"),
        (["", "wd = 0.0", "# Parameters\nwds = 1", "wds = 3"], "unknown parameter wds (did you mean wd?); this notebook has wd."),
    ],
)  # fmt: skip
def test_cells(cells, said):
    if not said:
        check_parameters(cells)
        return
    with pytest.raises(ValueError) as caught:
        check_parameters(cells)
    assert said in str(caught.value)


def test_outside_of_a_notebook_nothing_is_checked():
    check_parameters()


def test_every_notebook_with_parameters_checks_them_next():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, 4).cells
        for cell, following in zip(cells, cells[1:], strict=False):
            if "parameters" in cell.metadata.get("tags", []):
                assert "check_parameters()" in following.source, path.name
