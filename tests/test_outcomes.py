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
from grokutils.paper.causes import tables as tables_causes
from grokutils.paper.causes.conditions import Cause
from grokutils.paper.causes.figures import areas, condition_panels, fall_dots, false_alarm_map, lead_curves
from grokutils.paper.causes.outcomes import VERDICTS, compare, displacement, of_seeds, outcomes, studies
from grokutils.paper.causes.tables import (
    false_alarms_in_words,
    missing_in_words,
    power_in_words,
    printed_detectors,
    printed_ends,
    printed_falls,
    statements,
    warnings_in_words,
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
    return outcomes(found, TABLE)


def test_a_row_per_condition_and_seed(rows):
    assert len(rows) == 6 * SEEDS and set(rows.name) == {cause.name for cause in TABLE} - {"gone"}
    plain, decay = rows[rows.name == "plain"], rows[rows.name == "wd"]
    # medians of the last five measurements
    assert plain.final.iloc[0] == pytest.approx(np.median([0.15, 0.2, 0.22, 0.9, 0.5][-5:]))
    assert plain.collapsed.all() and plain.fell_ten.all() and not decay.collapsed.any()
    assert (plain.at_learning == 0.2).all() and plain.displacement.isna().all()
    assert (plain.train == 1).all() and (plain.norm > 1).all()
    assert plain.traps_fc1.iloc[0] == 4 and plain.most_traps_fc1.iloc[0] == 4 and plain.alpha_fc1.iloc[0] == 1.5


def test_five_points_are_not_ten(tmp_path):
    study = made(tmp_path / "x", (SHALLOW, COLLAPSE))
    provenance = '{"step": 100000, "complete": true, "data": [], "sessions": [], "diverged": {}}'
    (study.record.folder / "provenance.json").write_text(provenance)
    rows = outcomes({"plain": study}, TABLE[:1])
    assert rows.collapsed.tolist() == [True, True] and rows.fell_ten.tolist() == [False, True]


def falling(values, name="plain", moved=np.nan):
    """Rows with given falls, a seed each."""
    return pd.DataFrame({
        "name": name, "seed": range(len(values)), "fall": values, "collapsed": np.array(values) > 0.05,
        "fell_ten": np.array(values) > 0.1, "displacement": moved, "diverged": False,
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


def test_a_fork_that_stands_still_is_not_called_a_cause():
    compared, by = forked(0.015, 1.2, [0.2] * 10)
    assert by.moved.to_dict() == pytest.approx({"fork": 1.0, "still": 0.01, "moving": 0.8})
    said = tables_causes._of_topic(by, "optimiser") + tables_causes._moving(by)
    assert by.verdict["still"] == "prevents it" and "*prevents it*" not in said
    assert "less than a tenth as far as the control's: stands (1.0\N{NO-BREAK SPACE}[1.0" in said
    assert "weights moved 0.01 times as far" in said and "others moved them 0.80 to 0.80 times" in said
    assert "No condition that moves the weights as far as the control avoids the fall" in said
    printed = printed_falls(compared)
    assert printed.loc[("Optimiser", "stands"), "weights moved / control's"] == "0.01"
    assert list(printed)[:2] == ["the condition", "weights moved / control's"]


def test_a_fork_that_moves_and_does_not_fall_is_said_to():
    _, by = forked(1.5, 0.3, [0.2] * 10)
    said = tables_causes._of_topic(by, "optimiser") + tables_causes._moving(by)
    assert "*prevents it*: stands" in said and "Farthest without a fall: stands." in said
    assert "left open" not in said


def test_how_far_weights_have_moved_counts_matrices_alone():
    start = {"fc1.weight": np.full((2, 2), 2.0, np.float32), "fc2.weight": np.zeros((1, 9)), "fc1.bias": np.ones(2)}
    assert displacement(start, start) == 0.0
    end = start | {"fc2.weight": np.full((1, 9), 1.0), "fc1.bias": np.full(2, 99.0)}
    assert displacement(start, end) == pytest.approx(3 / 4)
    turned = start | {"fc1.weight": np.array([[2.0, 2.0], [-2.0, -2.0]])}
    assert displacement(start, turned) == pytest.approx(np.sqrt(2)), "of the same norm, and moved"


def test_a_control_that_has_not_fallen_yet_is_said_to_show_nothing():
    def said(falls):
        rows = pd.concat([falling(falls, "fork", 1.0), falling([0.0] * 2, "still", 1.0)])
        return tables_causes._control(compare(rows, FORKS).set_index("name"))

    assert "None of the networks of as it is has fallen in these steps" in said([0.0, 0.0])
    assert "in these steps" not in said([0.2, 0.0])


def test_what_the_comparisons_can_show_is_computed():
    frame = pd.concat([falling([0.2] * 10), falling([0.0] * 10, "wd"), falling([0.1] * 10, "same")])
    said = power_in_words(compare(frame, TABLE[:3]))
    assert "With 10 seeds and 2 comparisons" in said and "below 0.004" in said
    assert power_in_words(compare(falling([0.2]), TABLE[:1])) == "" == power_in_words(pd.DataFrame())


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
    assert found.fall_low["plain"] < found.fall["plain"] < found.fall_high["plain"]
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
    empty = outcomes({"plain": None}, TABLE[:1])
    compared = compare(empty, TABLE[:1])
    assert len(empty) == 0 and len(compared) == 0
    assert isinstance(fall_dots(empty, compared), Figure)
    assert statements(compared, empty) == ["Nothing has been measured."]


def test_figures_and_tables(found, rows):
    compared = compare(rows, TABLE)
    assert "not run" in missing_in_words(found, TABLE) and missing_in_words(found, TABLE[:1]) == ""
    figure = fall_dots(rows, compared)
    labels = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert set(labels) == set(compared.says)
    assert figure.axes[-1].get_xlabel().endswith("points") and figure.axes[-1].get_xlim()[1] > 5
    figure = condition_panels(found, TABLE[:4], ("test_accuracy", "traps", "alpha", "max_over_std"), columns=2)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [cause.says for cause in TABLE[:4]]
    assert isinstance(condition_panels(found, TABLE[-1:]), Figure)
    printed = printed_falls(compared)
    for column in ("fell by 5", "by 10"):
        assert printed.loc[("Norm", "decay"), column] == f"0\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{SEEDS}"
    assert printed.loc[("As it is", "as it is"), "difference, points"] == "–"
    ends = printed_ends(rows, TABLE)
    assert ends.loc[("As it is", "as it is"), "traps of FC1"] == "4.0" and len(ends) == 6
    plt.close("all")


def test_what_is_said_follows_the_numbers(found, rows):
    said = "\n".join(statements(compare(rows, TABLE), rows))
    assert "A fall does not need traps: 10 of 20 networks that never held one fell by five points or more" in said
    assert "and 10 of 20 by ten" in said
    known = rows.assign(fall=rows.name.map({"plain": 0.4, "clip": 0.3}).fillna(0.1))
    known_said = "\n".join(statements(compare(known, TABLE), known))
    assert "(as it is, 10 and 10 of 10). Their mean fall, 20.0 points, is 50% smaller than the plain run's 40.0" in known_said
    # of those that never fell: decay and random labels; the centred ones hold none
    assert "of 30 networks trained from initial weights" in said and "20 hold a trap" in said
    assert "*prevents it*" in said or "*lessens it*" in said or "*no difference shown*" in said
    quiet = rows.assign(collapsed=rows.collapsed & ~rows.name.isin(["clip"]))
    assert "None of the 20 networks that never held a trap fell by five points" in "\n".join(statements(compare(quiet, TABLE), quiet))
    trapped = rows.assign(most_traps_fc1=1.0)
    assert "not settled" in "\n".join(statements(compare(trapped, TABLE), trapped))


def test_forks_are_no_networks_of_their_own(rows):
    table = [replace(cause, forked=cause.name == "wd") for cause in TABLE]
    said = "\n".join(statements(compare(rows, table), rows))
    assert "of 20 networks trained from initial weights" in said and "10 hold a trap" in said


def test_a_fall_without_a_delay_is_not_of_grokking(rows):
    table = (TABLE[0], Cause("small-init", topic="negative", says="ordinary scale"))
    own = rows[rows.name == "plain"].assign(name="small-init", at_learning=0.8)
    both = pd.concat([rows[rows.name == "plain"], own])
    said = "\n".join(statements(compare(both, table), both))
    assert "the test accuracy is 0.80 as soon as the training set is known (plain: 0.20)" in said
    assert "10 of 10 by five" in said and "not specific to grokking" in said
    quiet = both.assign(collapsed=both.collapsed & (both.name == "plain"))
    assert "not specific" not in "\n".join(statements(compare(quiet, table), quiet))


def test_a_rule_that_always_alarms_is_none(found):
    names = ["plain", "wd"]
    ranking = d.table(d.watch([found[name] for name in names], names))
    printed = printed_detectors(ranking)
    none = printed[printed["fitted rule"] == "–"]
    assert len(none) and (none[["warned ", "lead, decades ", "false alarms "]] == "–").all(axis=None)
    assert not printed["fitted rule"].str.contains("≥ -1").any()


def test_detectors_in_figures_and_words(found):
    names = ["plain", "wd", "never"]
    watched = d.watch([found[name] for name in names], names)
    ranking = d.table(watched)
    printed = printed_detectors(ranking)
    assert len(printed) == len(d.SIGNALS) and printed.index.tolist() == ranking.label.tolist()
    drawn = [s for s in d.SIGNALS if s.name in ("alpha", "traps")]
    for figure in (areas(ranking, watched, drawn), lead_curves(watched, drawn)):
        assert isinstance(figure, Figure) and len(figure.axes) >= 1
    shares = d.false_alarms(watched)
    assert list(shares) == names
    figure = false_alarm_map(shares, {"wd": "decay"})
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["decay", "never"]
    figure = false_alarm_map(shares, {"wd": "decay"}, d.never_fell(watched))
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["decay\nn = 10", "never\nn = 10\nnear chance"]
    said = warnings_in_words(ranking, watched)
    assert "10 of 30 networks fell" in said and "Of the 20 that never fell, 10 had generalised" in said
    assert "10 stayed near chance" in said
    few = [w for w in watched if w.name != "wd" or w.seed < 12]
    assert warnings_in_words(d.table(few), few).endswith("too few of one kind for an area to mean anything.")
    said = false_alarms_in_words(watched, {"wd": "decay"})
    assert "10 networks had generalised and never fell (10 of decay)" in said
    assert "10 more stayed near chance" in said and "not false of that" in said


@pytest.mark.parametrize("name, said", [("plain", "every network fell"), ("wd", "no network fell")])
def test_networks_of_one_kind_are_said_to_be(found, name, said):
    watched = d.watch([found[name]], [name])
    ranking = d.table(watched)
    assert "nothing can be told apart" in warnings_in_words(ranking, watched)
    for figure in (areas(ranking, watched, d.SIGNALS[:1]), lead_curves(watched, d.SIGNALS[:1]),
                   false_alarm_map(d.false_alarms(watched), {})):  # fmt: skip
        assert isinstance(figure, Figure)
    said_of_alarms = false_alarms_in_words(watched)
    assert ("no alarm was false" in said_of_alarms) == (name == "plain")


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
    rows = outcomes(found, plan.causes, plan.fork).set_index("name")
    assert 0 < rows.displacement["fork"] < 0.5 and np.isnan(rows.displacement["plain"])
    # of the same seed: that of another network is farther than the weights of most
    source = load_record(plan.fork.record)
    own, other = (source.weights(plan.fork.step, member) for member in (0, 1))
    end = found["fork"].record.weights()
    assert rows.displacement["fork"] == pytest.approx(displacement(own, end)) and displacement(other, end) > 1
    assert outcomes(found, plan.causes).displacement.isna().all()
