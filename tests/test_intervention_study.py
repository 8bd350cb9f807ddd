"""Interventions on a record: what is kept, what is read, what is made of it; forks without traps."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokutils import Record, RecordError, RunConfig, load_record, train
from grokutils.paper.harmful_traps import intervention_study as study_module
from grokutils.paper.harmful_traps.intervention_study import ALL, STRENGTHS, change_interval, interventions_of
from grokutils.paper.harmful_traps.regrowth import ARMS, STARTS, make_regrowth, regrowth_of
from grokutils.paper.harmful_traps.tables import (
    at_best_and_last,
    correlates_table,
    harm_rates,
    injections,
    injections_table,
    judged_traps,
    rates_table,
    regrowth_table,
    removals,
    removals_table,
)
from grokutils.records.files import read_tensors, write_tensors
from grokutils.records.record import publish
from grokutils.util import columns

#: Networks that have traps at once: the mean of their weights is not zero for long at this scale.
CONFIG = RunConfig.recipe("express", steps=400, init_scale=2.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Record:
    """Two networks, kept at two steps."""
    folder = tmp_path_factory.mktemp("harm") / "two"
    record = train(CONFIG.ensemble([0, 1]), folder, progress=False)
    return publish(record, record.folder, [0, 100, 400])


@pytest.fixture(scope="module")
def frame(source) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "_MOST_PROBES", 2048)
        return interventions_of(source, compute=True, progress=False)


DOCUMENTED = (
    "interventions", "harm", "intervention_study", "regrowth", "prototypes", "forgetting", "tables_harm", "words_harm",
    "plots_harm", "evidence_harm", "claims_harm",
)  # fmt: skip


# -- the table ----------------------------------------------------------------------------------------------


def test_it_has_the_columns_that_are_documented_and_a_row_for_each_intervention(frame, source):
    assert list(frame.columns) == list(columns.INTERVENTIONS)
    assert set(frame.step) <= {100, 400} and set(frame.member) == {0, 1}
    assert set(frame.layer) <= {"fc1", "fc2", ALL}
    put_in = frame[frame.trap == -1][lambda f: f.layer != ALL]
    assert set(put_in.strength) == set(STRENGTHS) and set(put_in.operation) == {"entry", "entries", "mean", "rank-one"}
    assert (put_in.control[put_in.operation == "rank-one"] == "direction").all()
    one = put_in[(put_in.step == 400) & (put_in.member == 0) & (put_in.layer == "fc1")]
    assert one.groupby("strength").norm.apply(lambda x: x.max() / x.min()).max() == pytest.approx(1)
    assert ((frame.js >= 0) & (frame.js <= math.log(2))).all()
    assert (frame[frame.js_reached].js_error <= 0.02 * frame[frame.js_reached].js).all()
    for name in ("train", "test"):
        after = frame[f"{name}_accuracy"] + frame[f"{name}_change"]
        assert ((after >= -1e-12) & (after <= 1 + 1e-12)).all()
        assert (frame[f"{name}_low"] <= frame[f"{name}_high"]).all()
    metrics = source.metrics.set_index(["step", "member"]).test_accuracy
    for row in frame.drop_duplicates(["step", "member"]).itertuples():
        assert row.test_accuracy == pytest.approx(metrics[row.step, row.member])


def test_removals_have_controls_of_the_same_norm(frame):
    removed = frame[frame.operation.isin(["taken out", "replaced by noise"])]
    assert len(removed), "these networks have traps"
    keys = ["step", "member", "layer", "operation", "trap"]
    for _, own in removed.groupby(keys):
        assert sorted(own.control) == ["", "direction", "places"]
        assert own.norm.max() == pytest.approx(own.norm.min())


def test_members_have_places_and_directions_of_their_own(frame):
    entry = frame[(frame.operation == "rank-one") & (frame.step == 400) & (frame.layer == "fc1")]
    assert entry.groupby("strength").js.nunique().min() == 2


def test_it_is_kept_and_read(source, frame, tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "_network", lambda *a: pytest.fail("nothing is to be computed"))
    pd.testing.assert_frame_equal(interventions_of(source), frame)
    pd.testing.assert_frame_equal(interventions_of(source, compute=True, progress=False), frame)
    shorter = load_record(source.folder, until=150)
    assert set(interventions_of(shorter).step) <= {100}
    copy = publish(source, tmp_path / "copy", [400])
    pd.testing.assert_frame_equal(interventions_of(copy), frame)


def test_a_reference_record_is_not_changed(source, tmp_path, monkeypatch):
    monkeypatch.setenv("GROKUTILS_HOME", str(tmp_path))
    copy = publish(source, tmp_path / "results" / "x", [400])
    (copy.folder / "interventions.parquet").unlink()
    before = {path: path.read_bytes() for path in copy.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(study_module, "_network", lambda source, step, member, put_in: [])
    assert interventions_of(copy, compute=True, progress=False).empty
    assert {path: path.read_bytes() for path in copy.folder.rglob("*") if path.is_file()} == before
    interventions_of(copy, compute=True, store=True, progress=False)
    assert (copy.folder / "interventions.parquet").is_file(), "that nothing was found is kept as well"


def test_only_what_is_missing_is_made(source, tmp_path, monkeypatch):
    copy = publish(source, tmp_path / "copy", [100, 400])
    monkeypatch.setattr(study_module, "_VERSION", -1)
    assert interventions_of(copy).empty, "another version's table is none"
    done = []
    monkeypatch.setattr(study_module, "_network", lambda source, step, member, put_in: done.append((step, member)) or [])
    interventions_of(copy, compute=True, progress=False)
    assert set(done) >= {(400, 0), (400, 1)} and len(done) == len(set(done))
    interventions_of(copy, compute=True, progress=False)
    assert len(done) == len(set(done))


def test_a_network_that_is_not_finite_has_no_rows(source, tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "_MOST_PROBES", 1024)
    monkeypatch.setattr(study_module, "STRENGTHS", (1.0,))
    copy = publish(source, tmp_path / "copy", [400])
    (copy.folder / "interventions.parquet").unlink()
    path = copy.folder / "checkpoints" / "step_00000400.safetensors"
    arrays, metadata = read_tensors(path)
    arrays["member1/fc1.weight"] = np.full_like(arrays["member1/fc1.weight"], np.nan)
    write_tensors(path, arrays, metadata)
    found = interventions_of(copy, compute=True, progress=False)
    assert set(found.member) == {0}


def test_a_damaged_table_is_named(source, tmp_path):
    copy = publish(source, tmp_path / "copy", [400])
    (copy.folder / "interventions.parquet").write_bytes(b"x")
    with pytest.raises(RecordError, match="interventions.parquet is damaged"):
        interventions_of(copy)


def test_of_many_kept_steps_some_are_chosen():
    saved = [0, *range(1, 60)]
    metrics = pd.DataFrame({"step": saved, "member": 0, "test_accuracy": [0.5] * 47 + [0.9] + [0.6] * 12})
    record = SimpleNamespace(steps_saved=saved, metrics=metrics, config=CONFIG)
    chosen = [step for step, _ in study_module._networks(record)]
    assert 6 < len(chosen) <= 13 and {1, 47, 59} <= set(chosen) and chosen == sorted(set(chosen))
    few = SimpleNamespace(steps_saved=saved[:6], metrics=metrics, config=CONFIG)
    assert study_module._networks(few) == [(step, 0) for step in range(1, 6)]
    assert study_module._networks(SimpleNamespace(steps_saved=[0], metrics=metrics, config=CONFIG)) == []


# -- the interval -------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_an_interval_holds_its_number(n, before, after, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) < before, rng.random(n) < after
    change, low, high = change_interval(a, b, seed)
    assert change == pytest.approx(b.mean() - a.mean())
    assert -1 <= low <= high <= 1 and low - 0.5 / n <= change <= high + 0.5 / n or n < 30
    assert change_interval(a, a, seed) == (0, 0, 0)


def test_an_interval_has_the_width_of_its_standard_error():
    rng = np.random.default_rng(0)
    a, b = rng.random(2000) < 0.8, rng.random(2000) < 0.7
    _, low, high = change_interval(a, b)
    error = (b.astype(int) - a).std() / math.sqrt(2000)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


# -- threshold and rates ------------------------------------------------------------------------------------


def made(*traps: tuple[int, float, float, float], operation="taken out", layer="fc1") -> pd.DataFrame:
    """(member, J, lower and upper end of the change of test accuracy)."""
    rows = [
        {"step": 1, "member": m, "layer": layer, "operation": operation, "control": "", "trap": 0, "strength": 1.0, "js": js,
         "norm": 1.0, "test_low": low, "test_high": high, "test_change": (low + high) / 2, "train_change": 0.0,
         "test_accuracy": 0.8, "train_accuracy": 1.0}
        for m, js, low, high in traps
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_threshold_is_chosen_on_one_half_and_judged_on_the_other():
    frame = made((0, 0.1, -0.01, 0.01), (2, 0.3, -0.5, -0.4), (1, 0.15, -0.01, 0.01), (1, 0.25, -0.01, 0.01),
                 (3, 0.1, -0.3, -0.1), (3, 0.3, 0.05, 0.1), (5, 0.4, -0.3, -0.1))  # fmt: skip
    found = harm_rates(frame)
    assert found.threshold == pytest.approx(0.2) and (found.positive, found.negative) == (3, 2)
    assert found.false_alarms == 1 / 2 and found.misses == 1 / 3
    threshold, judged = judged_traps(frame)
    assert threshold == found.threshold and judged.yes.sum() == 3 and set(judged.member) == {1, 3, 5}
    assert harm_rates(frame, "hurts").positive == 1


def test_where_there_is_nothing_to_tell_apart_there_are_no_rates():
    for frame in (made((0, 0.1, -0.01, 0.01), (1, 0.2, -0.01, 0.01)), made()):
        frame = frame if len(frame) else pd.DataFrame(columns=made((0, 0.1, 0, 0)).columns)
        found = harm_rates(frame)
        assert math.isnan(found.threshold) and math.isnan(found.misses)
    with pytest.raises(ValueError, match="truth must be matters or hurts; got 'x'"):
        harm_rates(made((0, 0.1, 0, 0)), "x")


def test_only_single_traps_count():
    frame = pd.concat([made((0, 0.1, -0.01, 0.01), (1, 0.3, -0.3, -0.2)), made((1, 0.9, -0.9, -0.8), layer=ALL)])
    assert harm_rates(frame).positive == 1


def test_tables_are_made_of_any_frame(frame):
    nothing = pd.DataFrame(columns=list(columns.INTERVENTIONS))
    for one in (frame, nothing, frame[frame.member == 0]):
        tables = [rates_table(one), correlates_table(("x", one)), removals_table(one), injections_table(one)]
        assert not any("nan" in table.to_string() for table in tables)
    means = removals(frame)
    own = at_best_and_last(frame)
    first = means.iloc[0]
    rows = own[(own[["when", "layer", "operation", "control", "member"]] == first[["when", "layer", "operation", "control", "member"]]).all(axis=1)]
    assert first.test_change == pytest.approx(rows.test_change.mean())
    assert set(injections(frame).operation) == {"entry", "entries", "mean", "rank-one"}


def test_a_collapse_by_injection_is_counted():
    rows = made((0, 0.1, -0.3, -0.2), (1, 0.1, -0.3, -0.2), (2, 0.1, -0.01, 0.01), operation="mean")
    rows.loc[1, "train_change"] = -0.5
    assert injections_table(rows).loc[("fc1", "mean"), "a collapse"] == "1 of 3", "the second no longer knows its training set"


# -- regrowth -----------------------------------------------------------------------------------------------


def test_forks_without_traps(source, tmp_path):
    copy = publish(source, tmp_path / "copy", [100, 400])
    assert regrowth_of(copy).empty
    made = make_regrowth(copy, steps=20, members=2, progress=False)
    pd.testing.assert_frame_equal(regrowth_of(copy), made)
    assert list(made.columns) == list(columns.REGROWTH)
    assert set(made.arm) == set(ARMS) and set(made.start) == set(STARTS) and set(made.layer) == {"fc1", "fc2"}
    at_fork = made[made.step == 0].set_index(["start", "member", "layer", "arm"]).trap_strength.unstack()
    assert (at_fork["traps taken out"] <= at_fork["nothing done"] + 1e-9).all()
    assert (at_fork["traps taken out"] < at_fork["nothing done"] - 0.1).any(), "a trap was taken out"
    assert set(made[made.start == "last"].from_step) == {400}
    table = regrowth_table(made)
    assert len(table) == 12 and "nan" not in table.to_string()
    assert set(json.loads((copy.folder / "config.json").read_text())) == set(json.loads((source.folder / "config.json").read_text()))


def test_forks_are_of_perceptrons_that_have_weights(tmp_path):
    record = train(RunConfig.recipe("modular", p=5, d_model=8, d_mlp=8, steps=1), "m", progress=False)
    with pytest.raises(ValueError, match="the traps of a perceptron are followed; m is a transformer"):
        make_regrowth(record)
    bare = publish(train(CONFIG.replace(steps=2), "b", progress=False), tmp_path / "bare", [0])
    with pytest.raises(ValueError, match="has no saved weights to train on from"):
        make_regrowth(bare)
