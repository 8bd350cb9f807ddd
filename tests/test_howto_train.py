"""The page about training one's own, tried as a new user would: every block, in its order, from the page alone."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from grokutils import load_record
from grokutils.records.analysis import analyze_record

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "howto_train.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE, re.S | re.M)


def python() -> list[str]:
    return [text for kind, text in BLOCKS if kind == "python"]


def test_the_python_on_the_page_runs(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = [text for text in python() if not text.startswith("# mine.py")]
    assert len(blocks) == 3
    for text in blocks:
        exec(compile(text, "howto_train", "exec"), names)
    assert names["record"].config.own.classes == 3 and names["record"].complete
    recorded = names["recorder"].record
    assert recorded.complete and recorded.metrics.train_accuracy.iloc[-1] > 0.9
    assert analyze_record(recorded, progress=False, shuffles=1, ks_draws=0).baselines.notna().all().all()


def commands() -> list[list[str]]:
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def test_the_commands_on_the_page_run(runs, tmp_path):
    """All but those of the long recipes: the network of three commands, its page, and a plugin."""
    (tmp_path / "mine.py").write_text(next(text for text in python() if text.startswith("# mine.py")))
    environment = os.environ | {"GROKUTILS_RUNS": str(runs), "PYTHONPATH": str(ROOT), "GROKUTILS_HOME": str(ROOT)}
    mine = [words for words in commands() if words[0] == "grokutils" and ("runs/cnn" in words or "mine.py" in words)]
    assert len(mine) == 5
    for words in mine:
        if "--steps" in words:
            words[words.index("--steps") + 1] = "100"
        done = subprocess.run([sys.executable, "-m", *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert load_record("cnn").config.model == "cnn" and (runs / "cnn" / "report.html").is_file()
    assert load_record("stripes").weights()["0.weight"].shape == (50, 12)
    assert (runs / "stripes" / "baselines.parquet").is_file()


@pytest.mark.slow
def test_papermill_draws_the_convolutional_network(runs, tmp_path):
    environment = os.environ | {"GROKUTILS_RUNS": str(runs), "PYTHONPATH": str(ROOT)}
    train, diagnose, draw = [words for words in commands() if "runs/cnn" in words][:3]
    train[train.index("--steps") + 1] = "300"
    draw[1:3] = [str(ROOT / draw[1]), str(tmp_path / "alpha.ipynb")]
    for words in (train, diagnose, draw):
        done = subprocess.run([sys.executable, "-m", *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "model=cnn" in (tmp_path / "alpha.ipynb").read_text()
