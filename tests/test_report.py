"""A run as one page: complete in itself, and with the reason in the place of what it has not got."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_recorder import network

from grokutils import RunConfig, train
from grokutils.cli import main
from grokutils.paper.report import left_behind, write_report
from grokutils.records.recorder import Recorder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "x"
    return train(RunConfig.recipe("express", steps=300), folder, progress=False, saves_per_decade=4)


def test_a_page_needs_nothing_else(run, capsys):
    assert main(["report", str(run.folder), "--quiet"]) == 0
    path = run.folder / "report.html"
    assert capsys.readouterr().out == f"Written to {path}; open {path.as_uri()} in a browser.\n"
    page = path.read_text()
    assert "express recipe, weight decay 0, seed 0, to step 300" in page and "grok-explorer" in page
    addresses = set(re.findall(r"https?://[^\"'<> )]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}, "names of formats are fetched by nobody"
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    figures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(figures) >= 6 and all(b"<svg" in base64.b64decode(figure) for figure in figures)
    assert write_report(run.folder, progress=False).read_text() == page, "the same bytes again"


def test_what_there_is_not_is_said_in_its_place(tmp_path):
    with Recorder(tmp_path / "mine", save=None) as recorder:
        for step in (0, 10, 20):
            recorder.log(step, {"train_loss": 1.0 / (step + 1)}, network(step))
    page = write_report(tmp_path / "mine", tmp_path / "page.html", progress=False).read_text()
    assert "phases need train_accuracy and test_accuracy, which were not measured in this run." in page
    assert "a loop of its own" in page


def test_a_run_without_weights_or_a_folder_that_is_not_there(run, tmp_path, capsys):
    assert main(["report", str(run.folder), "--out", str(tmp_path / "no" / "x.html"), "--quiet"]) == 2
    assert "must exist; name another file." in capsys.readouterr().err
    assert main(["report", "no-such-run"]) == 1
    assert "there is no record 'no-such-run'" in capsys.readouterr().err


def test_a_notebook_links_to_it(run):
    shown = left_behind(run)
    assert (run.folder / "report.html").as_uri() in shown


@pytest.mark.slow
def test_papermill_leaves_something_to_open_and_says_where(tmp_path):
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "02_train.ipynb"), "-p", "steps", "200"]
    environment = os.environ | {"GROKUTILS_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_CURRENT_TEST", None)  # a kernel that sees it leaves the terminal's streams alone
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    address = re.search(r"open file://(\S+report\.html) to see it", done.stderr)
    assert Path(address[1]).is_file() and "<svg" not in done.stderr
    assert address[1] in json.dumps(json.loads(done.stdout)["cells"]), "and the notebook on stdout is whole"
