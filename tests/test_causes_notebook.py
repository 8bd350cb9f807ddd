"""The notebook on causes, run live at a scale of seconds: every condition, figure, table and sentence."""

import ast
import json
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from grokutils import causes

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "09_causes.ipynb"


def execute(**overrides) -> list:
    """The values of the cells, run one after the other in this process."""
    space, values = {"display": display}, []
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NOTEBOOK.name, "exec"), space)
        if last is not None:
            values.append(eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), space))
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(overrides) <= set(space)
            space |= overrides
    return values


def test_a_small_study_live(runs, monkeypatch, capsys):
    tiny = causes.Scale(steps=60, forked_steps=40, seeds=3, out="runs/causes-quick")
    monkeypatch.setitem(causes.SCALES, "quick", tiny)
    with plt.rc_context():
        values = execute(scale="quick", seeds=2.0)  # as papermill hands on a number
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    figures = [cell for cell in cells if "mystnb" in cell["metadata"]]
    assert sum(isinstance(value, Figure) for value in values) == len(figures)
    said = [value.data for value in values if isinstance(value, Markdown)]
    assert "22 networks of 11 conditions, 2 seeds." in said[0] and "nan" not in "\n".join(said).lower()
    folders = sorted(path.name for path in (runs / "causes-quick-2").iterdir())
    assert folders == sorted(cause.name for cause in causes.conditions("quick"))
