"""Outcomes and comparisons, figures and tables of the study of causes, on made-up studies."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_studies import COLLAPSE, NEVER, PLATEAU, SHALLOW, made
from matplotlib.figure import Figure

from grokutils import ConfigError, RunConfig, cli, load_record, train
from grokutils.paper.causes import conditions as causes
from grokutils.paper.causes import detectors as d
from grokutils.paper.causes.conditions import Cause
from grokutils.paper.causes.figures import areas, condition_panels, fall_dots, false_alarm_map, lead_curves
from grokutils.paper.causes.outcomes import VERDICTS, compare, displacement, of_seeds, outcomes_of, studies
from grokutils.paper.causes.tables import (
    least_p,
    printed_detectors,
    printed_ends,
    printed_falls,
    printed_traps,
)
from grokutils.records.analysis import NotKept
from grokutils.training.sweep import check

TABLE = (
    Cause("plain", topic="control", says="as it is"),
    Cause("wd", topic="norm", says="decay"),
    Cause("same", topic="optimiser", says="nothing"),
    Cause("clip", topic="traps", says="clipped"),
    Cause("center", topic="traps", says="centred"),
    Cause("never", topic="negative", says="random labels"),
    Cause("gone", topic="optimiser", says="not run"),
)
SEEDS = 10


@pytest.fixture
def found(tmp_path):
    """Ten seeds each: without decay all fall, with it none."""
    courses = {"plain": COLLAPSE, "wd": PLATEAU, "same": COLLAPSE, "clip": COLLAPSE, "center": PLATEAU, "never": NEVER}
    made_ones = {}
    for name, test in courses.items():
        study = made(tmp_path / name, (test,) * SEEDS)
        (study.record.folder / "provenance.json").write_text(
            '{"step": 100000, "complete": true, "data": [], "sessions": [], "diverged": {}}'
        )
        if name in ("clip", "center"):
            study = replace(study, diagnostics=study.diagnostics.assign(traps=0.0))
        made_ones[name] = study
    return made_ones | {"gone": None}


@pytest.fixture
def rows(found):
    return outcomes_of(found, TABLE)


def test_a_row_per_condition_and_seed(rows):
    assert len(rows) == 6 * SEEDS and set(rows.name) == {cause.name for cause in TABLE} - {"gone"}
    plain, decay = rows[rows.name == "plain"], rows[rows.name == "wd"]
    # medians of the last five measurements
    assert plain.final.iloc[0] == pytest.approx(np.median([0.15, 0.2, 0.22, 0.9, 0.5][-5:]))
    assert plain.fell.all() and plain.collapsed.all() and not decay.fell.any()
    assert (plain.at_learning == 0.2).all() and plain.displacement.isna().all()
    assert (plain.train == 1).all() and (plain.norm > 1).all()
    assert plain.traps_fc1.iloc[0] == 4 and plain.most_traps_fc1.iloc[0] == 4 and plain.alpha_fc1.iloc[0] == 1.5


def test_five_points_are_not_ten(tmp_path):
    study = made(tmp_path / "x", (SHALLOW, COLLAPSE))
    provenance = '{"step": 100000, "complete": true, "data": [], "sessions": [], "diverged": {}}'
    (study.record.folder / "provenance.json").write_text(provenance)
    rows = outcomes_of({"plain": study}, TABLE[:1])
    assert rows.fell.tolist() == [True, True] and rows.collapsed.tolist() == [False, True]


def falling(values, name="plain", moved=np.nan):
    """Rows with given falls, a seed each."""
    return pd.DataFrame({
        "name": name, "seed": range(len(values)), "lost": values, "fell": np.array(values) > 0.05,
        "collapsed": np.array(values) > 0.1, "displacement": moved, "diverged": False,
    })  # fmt: skip


FORKS = (
    Cause("fork", topic="control", says="as it is", forked=True),
    Cause("still", topic="optimiser", says="stands", forked=True),
    Cause("moving", topic="optimiser", says="moves", forked=True),
)


def forked(still, moving, fall):
    frames = [falling([0.2] * 10, "fork", 1.5), falling([0.01] * 10, "still", still), falling(fall, "moving", moving)]
    compared = compare(pd.concat(frames), FORKS)
    return compared, compared.set_index("name")


def test_how_far_a_fork_moved_stands_beside_its_verdict():
    compared, by = forked(0.015, 1.2, [0.2] * 10)
    assert by.moved.to_dict() == pytest.approx({"fork": 1.0, "still": 0.01, "moving": 0.8})
    assert by.verdict["still"] == "prevents it"
    printed = printed_falls(compared)
    assert printed.loc[("Optimiser", "stands"), "weights moved / control's"] == "0.01"
    assert list(printed)[:2] == ["the condition", "weights moved / control's"]


def test_how_far_weights_have_moved_counts_matrices_alone():
    start = {"fc1.weight": np.full((2, 2), 2.0, np.float32), "fc2.weight": np.zeros((1, 9)), "fc1.bias": np.ones(2)}
    assert displacement(start, start) == 0.0
    end = start | {"fc2.weight": np.full((1, 9), 1.0), "fc1.bias": np.full(2, 99.0)}
    assert displacement(start, end) == pytest.approx(3 / 4)
    turned = start | {"fc1.weight": np.array([[2.0, 2.0], [-2.0, -2.0]])}
    assert displacement(start, turned) == pytest.approx(np.sqrt(2)), "of the same norm, and moved"


def test_what_the_comparisons_can_show_is_computed():
    frame = pd.concat([falling([0.2] * 10), falling([0.0] * 10, "wd"), falling([0.1] * 10, "same")])
    compared = compare(frame, TABLE[:3])
    assert least_p(compared) == 2 * 2 / 2**10 == pytest.approx(compared.p_holm.min())
    assert np.isnan(least_p(compare(falling([0.2]), TABLE[:1])))


def test_the_verdicts_are_what_the_plan_says():
    control = falling([0.1 + 0.001 * i for i in range(10)])
    table = TABLE[:4]
    other = {"wd": [0.01] * 10, "same": [0.1 + 0.002 * i for i in range(10)], "clip": [0.07] * 9 + [0.06]}
    frame = pd.concat([control, *(falling(values, name) for name, values in other.items())])
    found = compare(frame, table).set_index("name")
    assert found.verdict.to_dict() == {
        "plain": "not compared", "wd": "prevents it", "same": "deepens it", "clip": "lessens it"
    } or found.verdict["same"] == "no difference shown"
    assert found.p["wd"] == pytest.approx(2 / 2**10) and found.p_holm["wd"] == pytest.approx(3 * 2 / 2**10)
    assert found.difference["wd"] == pytest.approx(0.01 - 0.1045)
    assert found.lost_low["plain"] < found.lost["plain"] < found.lost_high["plain"]
    assert np.isnan(found.p["plain"]) and set(found.verdict) <= set(VERDICTS)


def test_with_few_seeds_nothing_is_shown():
    frame = pd.concat([falling([0.2, 0.2]), falling([0.0, 0.0], "wd")])
    found = compare(frame, TABLE[:2]).set_index("name")
    assert found.verdict["wd"] == "no difference shown" and found.p["wd"] == 0.5


def test_only_seeds_that_both_have_are_compared():
    frame = pd.concat([falling([0.2] * 8), falling([0.0] * 10, "wd")])
    assert compare(frame, TABLE[:2]).set_index("name").difference_n["wd"] == 8


def test_negative_controls_are_described_and_not_tested(rows):
    compared = compare(rows, TABLE).set_index("name")
    assert np.isnan(compared.p["never"]) and compared.verdict["never"] == "not compared"


def test_nothing_measured_is_no_error():
    empty = outcomes_of({"plain": None}, TABLE[:1])
    compared = compare(empty, TABLE[:1])
    assert len(empty) == 0 and len(compared) == 0
    assert isinstance(fall_dots(empty, compared), Figure)


def test_figures_and_tables(found, rows):
    compared = compare(rows, TABLE)
    figure = fall_dots(rows, compared)
    labels = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert set(labels) == set(compared.says)
    assert figure.axes[-1].get_xlabel().endswith("points") and figure.axes[-1].get_xlim()[1] > 5
    figure = condition_panels(found, TABLE[:4], ("test_accuracy", "traps", "alpha", "max_over_std"), columns=2)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [cause.says for cause in TABLE[:4]]
    assert isinstance(condition_panels(found, TABLE[-1:]), Figure)
    printed = printed_falls(compared)
    for column in ("fell by 5", "collapsed by 10"):
        assert printed.loc[("Norm", "decay"), column] == f"0\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{SEEDS}"
    assert printed.loc[("As it is", "as it is"), "difference, points"] == "–"
    ends = printed_ends(rows, TABLE)
    assert ends.loc[("As it is", "as it is"), "traps of FC1"] == "4.0" and len(ends) == 6
    plt.close("all")


def test_whether_a_fall_needs_traps_is_counted(rows):
    table = printed_traps(rows, TABLE).map(lambda x: x.replace("\N{NO-BREAK SPACE}", " ") if isinstance(x, str) else x)
    clip, everything = table.loc["What traps need", "clipped"], table.loc["All", "from initial weights"]
    assert clip["never held a trap"] == "10 of 10" and clip["of these fell"] == clip["collapsed"] == 10
    assert everything["never held a trap"] == "20 of 60" and everything["of these fell"] == 10
    # of those that never fell: decay and random labels hold traps, the centred ones none
    assert everything["know their training set and did not fall"] == "30 of 60" and everything["of these hold a trap"] == 20
    # forks are the same networks again
    forked = [replace(cause, forked=cause.name == "wd") for cause in TABLE]
    own = printed_traps(rows, forked).loc["All", "from initial weights"]
    assert own["of these hold a trap"] == 10 and own["never held a trap"].endswith("50")


def test_a_rule_that_always_alarms_is_none(found):
    names = ["plain", "wd"]
    ranking = d.ranking(d.watch([found[name] for name in names], names))
    printed = printed_detectors(ranking)
    none = printed[printed["fitted rule"] == "–"]
    assert len(none) and (none[["warned ", "lead, decades ", "false alarms "]] == "–").all(axis=None)
    assert not printed["fitted rule"].str.contains("≥ -1|inf", regex=True).any()


def test_detectors_in_figures_and_tables(found):
    names = ["plain", "wd", "never"]
    watched = d.watch([found[name] for name in names], names)
    ranking = d.ranking(watched)
    printed = printed_detectors(ranking)
    assert len(printed) == len(d.SIGNALS) and printed.index.tolist() == ranking.label.tolist()
    drawn = [s for s in d.SIGNALS if s.measure in ("alpha", "traps")]
    for figure in (areas(ranking, watched, drawn), lead_curves(watched, drawn)):
        assert isinstance(figure, Figure) and len(figure.axes) >= 1
    shares = d.false_alarms(watched)
    assert list(shares) == names
    figure = false_alarm_map(shares, {"wd": "decay"}, d.never_fell(watched))
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["decay\nn = 10", "never\nn = 10\nnear chance"]


@pytest.mark.parametrize("name", ["plain", "wd"])
def test_networks_of_one_kind_are_no_error(found, name):
    watched = d.watch([found[name]], [name])
    for figure in (areas(d.ranking(watched), watched, d.SIGNALS[:1]), lead_curves(watched, d.SIGNALS[:1]),
                   false_alarm_map(d.false_alarms(watched), {}, d.never_fell(watched))):  # fmt: skip
        assert isinstance(figure, Figure)


# -- the real table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", causes.SCALES)
def test_every_condition_can_be_built(scale):
    plan = causes.plan(scale)
    check(plan.causes, plan.base, plan.seeds[:2], f"runs/nothing-{scale}", plan.fork)
    names = [cause.name for cause in plan.causes]
    assert len(set(names)) == len(names) and {cause.topic for cause in plan.causes} == set(causes.TOPICS)
    assert set(causes.CONTROL.values()) <= set(names)
    assert len({cause.says for cause in plan.causes}) == len(names)


def test_another_number_of_seeds_has_a_folder_of_its_own():
    assert causes.plan("full").out == "results/causes" and causes.plan("full", 10).out == "results/causes"
    assert causes.plan("full", 3).out == "runs/causes-full-3" and list(causes.plan("quick", 3).seeds) == [0, 1, 2]


@pytest.mark.parametrize("arguments, said", [
    (("nonsense",), "scale must be one of full, quick"), (("quick", 0), "seeds must be a whole number of at least 1"),
    (("quick", 1.5), "seeds must be"), (("quick", True), "seeds must be"),
])  # fmt: skip
def test_a_plan_without_meaning(arguments, said):
    with pytest.raises(ConfigError, match=said):
        causes.plan(*arguments)


def test_an_unknown_condition_is_refused(runs):
    with pytest.raises(ConfigError, match="there is no condition 'sleep' at the quick scale"):
        causes.run("quick", only=["sleep"])
    assert not runs.exists()


def test_what_was_not_run_is_none(runs):
    assert set(studies("quick", 1).values()) == {None}


def test_the_study_of_some_seeds_of_a_record(runs):
    record = train(RunConfig.recipe("express", steps=30).ensemble([3, 5, 8]), "x", progress=False)
    with pytest.warns(NotKept, match="is not stored"):
        study = of_seeds(record, [5, 8, 9])
    assert study.members == [1, 2] and set(study.diagnostics.seed) == {5, 8}
    assert not (record.folder / "diagnostics.parquet").exists(), "reading changes nothing"


@pytest.mark.usefixtures("copied_jobs")
def test_the_command_lists_and_runs(capsys, runs, monkeypatch):
    assert cli.main(["causes", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(cause.name in listed for cause in causes.conditions())
    assert cli.main(["causes", "--scale", "quick", "--only", "sleep"]) == 2
    assert "there is no condition 'sleep'" in capsys.readouterr().err
    monkeypatch.setitem(causes.SCALES, "quick", causes.Scale(steps=20, forked_steps=20, seeds=1, out="runs/causes-quick"))
    assert cli.main(["causes", "--scale", "quick", "--only", "plain", "fork", "--jobs", "1", "--quiet"]) == 0
    assert "20 steps (complete)" in capsys.readouterr().out
    found = studies("quick")
    assert found["plain"].step == found["fork"].step == 20 and found["clip"] is None
    plan = causes.plan("quick")
    rows = outcomes_of(found, plan.causes, plan.fork).set_index("name")
    assert 0 < rows.displacement["fork"] < 0.5 and np.isnan(rows.displacement["plain"])
    # of the same seed: that of another network is farther than the weights of most
    source = load_record(plan.fork.record)
    own, other = (source.weights(plan.fork.step, member) for member in (0, 1))
    end = found["fork"].record.weights()
    assert rows.displacement["fork"] == pytest.approx(displacement(own, end)) and displacement(other, end) > 1
    assert outcomes_of(found, plan.causes).displacement.isna().all()
