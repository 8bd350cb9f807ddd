"""The notebook on causes, run live at a scale of seconds: every condition, figure, table and sentence."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from IPython.display import Markdown
from matplotlib.figure import Figure
from test_reading_notebooks import execute

from grokutils.paper.causes import conditions as causes

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "09_causes.ipynb"


@pytest.mark.usefixtures("copied_jobs")
def test_a_small_study_live(runs, monkeypatch, capsys):
    tiny = causes.Scale(steps=60, forked_steps=40, seeds=3, out="runs/causes-quick")
    monkeypatch.setitem(causes.SCALES, "quick", tiny)
    with plt.rc_context():
        values = execute("09_causes", scale="quick", seeds=2.0)  # as papermill hands on a number
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    figures = [cell for cell in cells if "mystnb" in cell["metadata"]]
    assert sum(isinstance(value, Figure) for value in values) == len(figures)
    said = [value.data for value in values if isinstance(value, Markdown)]
    assert "22 networks of 11 conditions, 2 seeds." in " ".join(said[0].split()) and "nan" not in "\n".join(said).lower()
    folders = sorted(path.name for path in (runs / "causes-quick-2").iterdir())
    assert folders == sorted(cause.name for cause in causes.conditions("quick"))
