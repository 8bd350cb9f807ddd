"""The paper's numbers beside ours, effect sizes, leads and rules: checked on studies whose numbers are known."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from made_studies import ALPHA, COLLAPSE, NEVER, PLATEAU, TRAPS, made

from grokutils.paper.alpha import alpha_jumps, table_1
from grokutils.paper.baselines import (
    PAIRS,
    effect_sizes,
    lead_summary,
    leads,
    printed_effects,
    printed_leads,
)
from grokutils.paper.judge import published
from grokutils.paper.judge.published import TABLE_1, TABLE_1_ARXIV, TABLE_2, TABLE_4, TABLE_STEPS
from grokutils.paper.judge.stats import cliffs_delta
from grokutils.paper.kit.tables import course, interval, printed, readings, said
from grokutils.paper.traps import output_layer, table_2, table_4, trap_correlates, trapped
from grokutils.paper.weight_decay import (
    faultless,
    fitted_rules,
    printed_rules,
    rising,
    rules,
    without_collapse,
)
from grokutils.records.phases import PHASES


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Three that collapse, and two that stay."""
    folder = tmp_path_factory.mktemp("runs")
    return made(folder / "wd0"), made(folder / "wd0.01", (PLATEAU, PLATEAU), decay=0.01)


# -- the paper's tables -----------------------------------------------------------------------------------


def test_published_numbers_are_what_is_printed():
    assert (TABLE_1["fc1"]["pre-grokking"].mean, TABLE_1["fc1"]["pre-grokking"].spread) == (4.0, 1.3)
    assert TABLE_2[0.0, "fc1"]["anti-grokking"].mean == 6.33 and TABLE_4["ks_p_textbook"]["anti-grokking"].mean == 1.877e-5
    for table in [value for value in vars(published).values() if isinstance(value, published.Table)]:
        assert table.source and table.caveat.endswith(".") and len(table)
        for row in table.values():
            assert set(row) <= set(PHASES)
            for number in row.values():
                assert f"{number.mean:g}".lstrip("-")[0] in number.text and str(number) == number.text


def test_the_average_of_table_1_is_that_of_its_layers():
    for phase in PHASES:
        mean = (TABLE_1["fc1"][phase].mean + TABLE_1["fc2"][phase].mean) / 2
        assert TABLE_1["average"][phase].mean == pytest.approx(mean, abs=0.051)


def test_table_1(studies):
    tidy = table_1(*studies)
    ours = tidy[tidy.source == f"{studies[0].place}: express, 3 seeds"].set_index(["quantity", "phase"])
    clipped = tidy[tidy.source == f"{studies[0].place}: express, 3 seeds, clipped"].set_index(["quantity", "phase"])
    assert len(clipped) == len(ours)
    of_fc1 = studies[0].diagnostics.query("layer == 'fc1' and step == 100_000").alpha_clipped
    assert clipped.loc[("fc1", "anti-grokking"), "mean"] == pytest.approx(of_fc1.mean())
    assert ours.loc[("fc1", "anti-grokking"), "mean"] == pytest.approx(1.6)
    assert ours.loc[("fc1", "anti-grokking"), "spread"] == pytest.approx(0.1), "n - 1 in the denominator"
    assert ours.loc[("fc1", "anti-grokking"), "text"] == "1.60 ± 0.10"
    assert ours.loc[("average", "grokking"), "mean"] == pytest.approx((3 + 2.5) / 2 + 0.1)
    assert (ours.n == 3).all() and (ours["of"] == 3).all()
    paper = tidy[tidy.source == "paper, Table 1"].set_index(["quantity", "phase"])
    assert paper.loc[("fc2", "grokking"), "text"] == TABLE_1["fc2"]["grokking"].text
    assert len(tidy[tidy.source == "paper, Table 1 (arXiv)"]) == 6 == 3 * len(TABLE_1_ARXIV)


def test_what_has_no_alpha_is_left_out_and_counted(tmp_path):
    data = made(tmp_path / "x")
    at_end = (data.diagnostics.step == 100_000) & (data.diagnostics.layer == "fc1")
    data.diagnostics.loc[at_end & (data.diagnostics.member == 1), "alpha"] = math.nan
    tidy = table_1(data)
    ours = tidy[tidy.source.str.startswith(data.place + ":") & ~tidy.source.str.endswith("clipped")]
    cell = ours[(ours.quantity == "fc1") & (ours.phase == "anti-grokking")].iloc[0]
    assert (cell.n, cell["of"]) == (2, 3) and cell["mean"] == pytest.approx(1.6)
    assert cell.text == "1.60 ± 0.14 (2 of 3)"


def test_one_network_has_no_spread_and_a_missing_phase_no_number(tmp_path):
    data = made(tmp_path / "x", (NEVER,))
    tidy = table_1(data)
    own = tidy[tidy.source.str.startswith(data.place + ":") & ~tidy.source.str.endswith("clipped")]
    ours = own.set_index(["quantity", "phase"]).text
    assert ours["fc1", "pre-grokking"] == "1.50" and ours["fc1", "grokking"] == "–"


def test_table_2_is_by_weight_decay(studies):
    tidy = table_2(*studies)
    assert list(dict.fromkeys(tidy.quantity)) == [
        f"weight decay {decay}, {layer}" for decay in ("0", "0.01") for layer in ("fc1", "fc2")
    ]
    own = tidy[(tidy.quantity == "weight decay 0, fc1")].set_index(["source", "phase"]).text
    assert own["paper, Table 2", "anti-grokking"] == "6.33 ± 5.44"
    assert own["paper, Table 2 (P2, P3)", "anti-grokking"] == "7.5 ± 5.6"
    assert own[f"{studies[0].place}: express, 3 seeds", "anti-grokking"] == "4.00 ± 0.00"
    decayed = tidy[tidy.quantity == "weight decay 0.01, fc2"]
    assert set(decayed.source) == {"paper, Table 2", f"{studies[1].place}: express, 2 seeds"}
    # a decay that the paper has not got
    assert not (table_2(studies[1]).source == "paper, Table 2 (P2, P3)").any()


def test_table_4_gives_medians_of_p_values(studies):
    tidy = table_4(studies[0])
    own = tidy[tidy.source.str.startswith(studies[0].place + ":")].set_index(["quantity", "phase"]).text
    assert own["KS distance", "anti-grokking"] == "0.0600 ± 0.0000"
    assert own["p, Monte Carlo (median)", "anti-grokking"] == "0.01 (below 0.05: 3 of 3)"
    assert own["p, textbook (median)", "anti-grokking"] == "1 (below 0.05: 0 of 3)"
    paper = tidy[tidy.source == "paper, Table 4"].set_index(["quantity", "phase"]).text
    assert paper["KS distance", "grokking"] == "0.0212" and paper["p, textbook (median)", "anti-grokking"] == "1.877e-5"
    assert ("p, Monte Carlo (median)", "grokking") not in paper
    assert not table_4(studies[0], layer="fc2").source.str.startswith("paper").any(), "the paper's is of fc1"


def test_readings(studies):
    shown = printed(readings(*studies))
    source = f"{studies[0].place}: express, 3 seeds"
    assert shown.loc["step", source].tolist() == ["1,000", "10,000", "100,000"]
    assert shown.loc["test accuracy", source].tolist()[::2] == ["0.22\u00a0±\u00a00.00", "0.50\u00a0±\u00a00.00"]
    assert shown.loc["collapsed by then", source].tolist() == ["", "", "3 of 3"]
    assert shown.loc["collapsed by then", f"{studies[1].place}: express, 2 seeds"].tolist()[-1] == "0 of 2"


def test_printed_keeps_the_order_and_every_number(studies):
    tidy = table_1(*studies)
    shown = printed(tidy)
    assert list(shown.index) == list(dict.fromkeys(zip(tidy.quantity, tidy.source, strict=True)))
    assert shown.columns.tolist() == ["before grokking", "at the best test accuracy", "at the end"]
    for row in tidy.itertuples():
        assert row.text in {text.replace("\u00a0", " ") for text in shown.loc[(row.quantity, row.source)]}
    # a record beside itself, and beside itself read elsewhere
    twice = printed(table_1(studies[0], studies[0], studies[0].at_steps(TABLE_STEPS)))
    assert sum("at the paper's steps" in source for _, source in twice.index) == 6 and not twice.index.duplicated().any()


def test_the_course_of_a_network(studies, tmp_path):
    fell, stayed = (course(data).iloc[:, 0] for data in studies)
    assert fell[["best test accuracy", "... at step", "fell by five points, step", "test accuracy at the last"]].tolist() == [
        "0.900", "10,000", "100,000", "0.500",
    ]  # fmt: skip
    assert fell[["α of FC1 at the fall", "α of FC1 at the last", "α of FC1 below 2 from step"]].tolist() == ["1.50", "1.50", "100,000"]
    assert fell["α of FC2 at the fall"] == "2.20" and fell["α of FC2 below 2 from step"] == "–"
    assert fell["a trap in FC1 from step"] == "10,000"
    assert stayed["fell by five points, step"] == stayed["α of FC1 at the fall"] == "–" and stayed["α of FC1 at the last"] == "1.50"
    unlearnt = made(tmp_path / "x", (PLATEAU,))
    unlearnt.metrics["train_accuracy"] = 0.5
    assert course(unlearnt).iloc[:, 0]["training set learnt, step"] == "–"


def test_an_interval_without_width_is_not_printed():
    assert interval(1.0, 1.0, 1.0) == "1.00" == interval(1.0, np.nan, np.nan) and interval(np.nan, 0.0, 1.0) == "–"
    assert interval(-0.5, -1, 0, "+.1f") == "-0.5\u00a0[-1.0,\u00a0+0.0]"
    assert said([0.1, np.nan]) == "0.10" and said([np.nan]) == "–" and "[" in said([1, 2, 3, 4, 5])


def test_the_largest_jump_of_alpha(tmp_path):
    data = made(tmp_path / "x")
    at = (data.diagnostics.step == 10_000) & (data.diagnostics.layer == "fc2") & (data.diagnostics.member == 2)
    data.diagnostics.loc[at, ["alpha", "n_tail"]] = 20.0, 5
    jump = alpha_jumps(data).set_index("layer").loc["fc2"]
    assert (jump.seed, jump.step_before, jump.step) == (12, 10_000, 100_000), "20 to 2.4 is more than 4.2 to 20"
    assert (jump.alpha_before, jump.tail_before, jump["tail"]) == (20.0, 5, 10)
    assert jump.moved == pytest.approx(0.01 / 1.05, rel=1e-4)
    assert alpha_jumps(made(tmp_path / "y", steps=10)).empty


# -- effect sizes -----------------------------------------------------------------------------------------

def test_effect_sizes(studies):
    found = effect_sizes(studies[0]).set_index(["measure", "where", "first", "second"])
    assert set(zip(*[found.index.get_level_values(name) for name in ("first", "second")], strict=True)) == set(PAIRS)
    whole = found.loc["alpha", "fc1", "grokking", "anti-grokking"]
    assert (whole.delta, whole.n) == (-1, 3) and np.isnan(whole.low)
    assert found.loc["traps", "fc2", "pre-grokking", "grokking"].delta == 0
    assert found.loc["l2_norm", "network", "pre-grokking", "grokking"].delta == 1


def test_an_effect_that_is_not_whole_has_an_interval_around_it(tmp_path):
    data = made(tmp_path / "x", (COLLAPSE,) * 8, shift=0.0)
    rng = np.random.default_rng(0)
    data.diagnostics["alpha"] = rng.normal(size=len(data.diagnostics)) + 0.8 * (data.diagnostics.step == 10_000)
    found = effect_sizes(data).set_index(["measure", "where", "first", "second"])
    row = found.loc["alpha", "fc1", "pre-grokking", "grokking"]
    at = [data.reading(phase)["alpha", "fc1"] for phase in ("pre-grokking", "grokking")]
    assert row.delta == cliffs_delta(*at) and -1 <= row.low < row.delta < row.high <= 1
    assert "[" in printed_effects(effect_sizes(data)).loc[("α", "fc1"), "pre-grokking to grokking"]


def test_only_what_has_collapsed_counts_as_anti_grokking(tmp_path):
    found = effect_sizes(made(tmp_path / "x", (COLLAPSE, PLATEAU, COLLAPSE)))
    assert set(found[found.second == "anti-grokking"].n) == {2} and set(found[found.second == "grokking"].n) == {3}
    none = effect_sizes(made(tmp_path / "y", (PLATEAU, PLATEAU)))
    assert none[none.second == "anti-grokking"].delta.isna().all()
    assert (printed_effects(none)["grokking to anti-grokking"] == "–").all()


# -- leads ------------------------------------------------------------------------------------------------


def test_leads_are_counted(studies):
    found = leads(studies[0])
    summary = lead_summary(found).set_index(["layer", "signal"])
    first = summary.loc["fc1", "first trap"]
    assert (first.fell, first.before, first.after, first.never, first.lead) == (3, 3, 0, 0, 1.0)
    low = summary.loc["fc1", "alpha below 2"]
    assert (low.before, low.after, low.never, low.lead) == (0, 3, 0, 0.0), "with the fall is not before it"
    assert summary.loc["fc2", "alpha below 2"].never == 3
    assert (summary.before + summary.after + summary.never == summary.fell).all()
    shown = printed_leads(lead_summary(found), lead_summary(leads(studies[1])))
    assert shown.loc[("fc1", "first trap"), "without a fall"] == "2 of 2"
    assert shown.loc[("fc1", "first trap"), "before the fall"] == "3 of 3"
    assert printed_leads(lead_summary(found)).loc[("fc1", "first trap"), "without a fall"] == "–"


def test_leads_of_a_single_network_and_of_one_that_stays(tmp_path):
    one = leads(made(tmp_path / "x", (COLLAPSE,)))
    assert set(one.member) == {0} and lead_summary(one).low.isna().all()
    stays = lead_summary(leads(made(tmp_path / "y", (PLATEAU,), baselines=False)))
    assert (stays.fell == 0).all() and (stays.stayed == 1).all() and stays.lead.isna().all()


# -- rules ------------------------------------------------------------------------------------------------


def test_the_papers_rules(studies):
    table = rules(*studies).set_index(["rule", "situation"])
    situations = list(dict.fromkeys(table.index.get_level_values("situation")))
    assert situations == [
        "weight decay 0, at its best (collapsed later)", "weight decay 0, collapsed",
        "weight decay 0.01, at its best", "weight decay 0.01, at the end, not collapsed",
    ]  # fmt: skip
    assert table.loc["α < 2, fc1"].called.tolist() == [0, 3, 0, 2]
    assert table.loc["α < 2, fc2"].called.tolist() == [0, 0, 0, 0]
    assert table.loc["a trap, any layer"].called.tolist() == [3, 3, 2, 2]
    assert table.loc["a trap, all layers"].called.tolist() == [0, 3, 0, 2]
    assert table.loc["α < 2 and a trap, anywhere"].called.tolist() == [0, 3, 0, 2]
    assert table.loc["α < 2, fc1"].right.tolist() == [0, 3, 0, 0] and table.loc["α < 2, fc1"].n.tolist() == [3, 3, 2, 2]
    assert printed_rules(rules(*studies)).loc["α < 2, fc1"].tolist() == ["0 of 3", "3 of 3", "0 of 2", "2 of 2"]


def test_fitted_rules_part_what_they_were_fitted_on(tmp_path):
    """A measure that grows with the collapse alone is found; one that grows in any case gives false alarms."""
    collapsing = made(tmp_path / "a")
    staying = made(tmp_path / "b", (PLATEAU, PLATEAU), decay=0.01)
    staying.metrics["train_loss"] = 0.1
    collapsing.metrics["train_loss"] = np.where(collapsing.metrics.step == 100_000, 0.3, 0.1)
    table = fitted_rules(collapsing, staying)
    loss = table[table.rule == "training loss, network > 0.2"]
    assert loss.called.tolist() == [0, 3, 0, 0]
    norm = table[table.rule.str.startswith("ℓ² norm, network >")]
    assert norm.called.tolist() == [0, 3, 0, 2]
    alpha = table[table.rule.str.startswith("α, fc1 <")]
    assert alpha.called.tolist() == [0, 3, 0, 2]


def test_without_a_collapse_there_is_nothing_to_fit(tmp_path, studies):
    stays = made(tmp_path / "x", (PLATEAU, PLATEAU))
    assert fitted_rules(stays, studies[1]).empty and printed_rules(fitted_rules(stays, studies[1])).empty
    assert rules(stays, studies[1]).n.tolist()[:2] == [0, 0]
    assert printed_rules(rules(stays, studies[1])).loc["α < 2, fc1"].tolist()[:2] == ["–", "–"]


def test_two_runs_of_one_decay_are_told_apart_by_name(tmp_path):
    a, b = made(tmp_path / "first"), made(tmp_path / "second", (PLATEAU,))
    situations = rules(a, b).situation.unique()
    assert [name.split(",")[0] for name in situations] == ["first", "first", "second", "second"]


def test_what_is_said_of_networks_that_did_not_collapse(studies):
    found = without_collapse(studies[1])
    assert (found["low"], found["trapped"], found["both"], found["ever"]) == ("2 of 2", "2 of 2", "2 of 2", "2 of 2")
    assert found["share"] == f"{10 / 64:.0%}"
    assert without_collapse(studies[0])["low"] == "no network has come so far"
    assert rising(studies[0], "circuit_complexity_text").startswith("3 of 3")


def test_a_rule_without_an_error_is_named(studies):
    table = rules(*studies)
    assert faultless(table) == [] and faultless(table.assign(called=table.right)) == list(table.rule.unique())


# -- traps ------------------------------------------------------------------------------------------------


def test_traps_are_counted_where_phases_are_read(studies):
    assert [trapped(studies[0], phase) for phase in PHASES] == ["0 of 3", "3 of 3", "3 of 3"]
    assert trapped(studies[1], PHASES[2], studies[1].collapsed) == "no network has come so far"
    table = output_layer(*studies)
    assert table.layer.tolist() == ["fc3", "fc3"] and table["networks with a trap"].tolist() == ["0 of 3", "0 of 2"]
    assert table["collapsed by ten points at step"].tolist() == ["100,000", "–"]


def test_traps_follow_what_grows_with_them(studies):
    found = trap_correlates(studies[0])
    assert found.index.tolist() == ["fc1", "fc2"] and found.networks.eq(12).all()
    assert found.trapped.tolist() == [0.5, 0.25] and (found.max_over_std > 0.7).all()
    flat = studies[0].diagnostics.assign(kurtosis=3.0)
    assert trap_correlates(dataclasses.replace(studies[0], diagnostics=flat))["kurtosis"].isna().all()


def test_numbers_of_the_made_studies_are_as_assumed():
    assert ALPHA["fc1"][-1] < 2 < ALPHA["fc2"][-1] and TRAPS["fc1"][-2] == 1 and pd.Series(TRAPS["fc3"]).eq(0).all()
