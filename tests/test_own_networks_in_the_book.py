"""Networks of the reader's own, trained here or by a loop of theirs, in the pages, the explorer and the claims."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from test_reading_notebooks import execute
from test_recorder import digits, loop

from grokutils import RunConfig, train
from grokutils.paper import claims
from grokutils.paper.explorer.page import explorer_html
from grokutils.records.record import load_record

PAGES = ("03_alpha", "04_traps", "05_baselines", "06_weight_decay")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("own")
    train(RunConfig.recipe("express", model="cnn", init_scale=1, learning_rate=1e-3, steps=300), base / "cnn", progress=False)
    loop(base / "recorded", 100, steps=100, inputs=digits()[0])
    return base


@pytest.mark.parametrize("run", ["cnn", "recorded"])
@pytest.mark.parametrize("name", [PAGES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in PAGES[1:])])
def test_a_page_takes_them_with_run_alone(name, run, folder, capsys):
    with plt.rc_context():
        values = execute(name, run=str(folder / run))
    assert sum(isinstance(value, Figure) for value in values) >= 3


@pytest.mark.parametrize("run", ["cnn", "recorded"])
def test_the_explorer_and_the_claims_take_them(run, folder):
    page = explorer_html(load_record(folder / run))
    assert len(page) > 10_000 and "grok-explorer" in page
    needs = claims.with_run(folder / run)["your run"]
    judged = claims.judge({"your run": needs})
    assert judged.results["your run"], "some claims can be read from any network"
