"""A study is the members of one weight decay, and every table reads its phases at the same steps."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_studies import COLLAPSE, NEVER, PLATEAU, READ, SHAPES, STEPS, TRAIN, made

from grokutils import RunConfig, train
from grokutils.paper.judge.published import TABLE_STEPS
from grokutils.records.phases import PHASES
from grokutils.records.signals import NAMES
from grokutils.records.study import study

EXPRESS = RunConfig.recipe("express")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    config = EXPRESS.replace(steps=300).ensemble([0, 3], [0.0, 0.01])
    return train(config, tmp_path_factory.mktemp("runs") / "mixed", progress=False)


# -- from a record ----------------------------------------------------------------------------------------


def test_members_of_different_decays_never_stand_together(mixed):
    low = study(mixed.folder, shuffles=2, ks_draws=10, progress=False)
    high = study(mixed.folder, max, shuffles=2, ks_draws=10, progress=False)
    assert (low.weight_decay, high.weight_decay) == (0.0, 0.01)
    assert low.members == [0, 1] and high.members == [2, 3]
    for data in (low, high):
        for frame in (data.metrics, data.diagnostics, data.spectra, data.baselines):
            assert set(frame.member) == set(data.members) and len(frame)
        assert data.label == f"express recipe, weight decay {data.weight_decay:g}, 2 seeds, to step 300"
    assert low.layers == ["fc1", "fc2"] and low.shape("fc1") == (100, 64)
    # spectra are those of the weights
    step = low.kept_steps(0)[-1]
    W = low.matrix("fc2", step, 0)
    assert np.allclose(low.eigenvalues("fc2", step, 0), np.linalg.svd(W, compute_uv=False)[::-1] ** 2, rtol=1e-4)
    assert low.eigenvalues("fc2", step, 0, shuffle=None).shape == (2, 100)
    assert not low.measures[low.compared].isna().any(axis=None)
    with pytest.raises(ValueError, match="layer must be one of fc1, fc2, fc3; got 'fc9'"):
        low.matrix("fc9", step, 0)
    with pytest.raises(ValueError, match="holds no spectrum of fc1 at step 7 "):
        low.eigenvalues("fc1", 7, 0)


def test_accuracies_alone_need_no_analysis(tmp_path):
    record = train(EXPRESS.replace(steps=20), tmp_path / "x", progress=False)
    data = study(record.folder, analyse=False)
    assert data.diagnostics.empty and data.step == 20 and data.phases.memorised is None
    assert not list(record.folder.glob("diagnostics*")), "nothing was computed"


def test_no_such_run():
    with pytest.raises(FileNotFoundError, match="there is no record 'runs/nothing'"):
        study("runs/nothing")


def test_a_recipe_that_was_changed_says_so(tmp_path):
    assert made(tmp_path / "a").recipe == "express recipe"
    changed = made(tmp_path / "b", (COLLAPSE,), learning_rate=0.02, width=50)
    assert changed.recipe == "express recipe with width=50, learning_rate=0.02"
    assert "seed 10, to step 100,000" in changed.label


def test_a_record_under_way_says_how_far_it_is(tmp_path):
    data = made(tmp_path / "a", steps=1_000)
    assert data.label.endswith("to step 1,000")
    whole = made(tmp_path / "b")
    longer = replace(whole, metrics=whole.metrics[whole.metrics.step <= 10_000])
    assert longer.label.endswith("to step 10,000 of 100,000")


# -- where phases are read ------------------------------------------------------------------------------------


def test_each_member_is_read_at_its_own_steps(tmp_path):
    data = made(tmp_path / "x", (COLLAPSE, PLATEAU, NEVER))
    assert data.phase_steps.loc[0].to_dict() == READ == data.phase_steps.loc[1].to_dict()
    # what never groks is all before grokking
    assert data.phase_steps.loc[2, "pre-grokking"] == STEPS[-1]
    assert data.phase_steps.loc[2, ["grokking", "anti-grokking"]].isna().all()
    assert data.collapsed == [0]


def test_the_peak_at_the_end_leaves_no_end(tmp_path):
    data = made(tmp_path / "x", ((*COLLAPSE[:-1], 0.95),))
    assert data.phase_steps.loc[0, "grokking"] == STEPS[-1] and pd.isna(data.phase_steps.loc[0, "anti-grokking"])


def test_what_has_not_learnt_its_training_set_is_not_read(tmp_path):
    data = made(tmp_path / "x", steps=10)
    assert data.phase_steps.isna().all(axis=None) and data.phases.memorised is None
    assert len(data.after_memorisation(data.metrics)) == 0
    assert data.reading("grokking").empty


def test_rows_at_the_phases(tmp_path):
    data = made(tmp_path / "x", (COLLAPSE, PLATEAU, NEVER))
    at = data.at_phases(data.metrics)
    assert list(at.phase.cat.categories) == list(PHASES) and len(at) == 3 + 3 + 1
    for row in at[at.member < 2].itertuples():
        assert row.step == READ[row.phase]
        assert row.test_accuracy == (COLLAPSE, PLATEAU)[row.member][STEPS.index(row.step)]


def test_fixed_steps(tmp_path):
    data = made(tmp_path / "x").at_steps(TABLE_STEPS)
    assert data.phase_steps["pre-grokking"].tolist() == [100_000] * 3
    assert data.phase_steps[["grokking", "anti-grokking"]].isna().all(axis=None), "no step near 1e6 and 1e7"
    near = made(tmp_path / "y").at_steps({"grokking": 1_150, "anti-grokking": 1_300})
    assert near.phase_steps.grokking.tolist() == [1_000] * 3 and near.phase_steps["anti-grokking"].isna().all()
    with pytest.raises(ValueError, match="steps must be those of pre-grokking, grokking, anti-grokking; got 'x'"):
        data.at_steps({"x": 1})


def test_after_memorisation(tmp_path):
    data = made(tmp_path / "x")
    assert sorted(data.after_memorisation(data.metrics).step.unique()) == [s for s, a in zip(STEPS, TRAIN, strict=True) if a == 1]


# -- measures ---------------------------------------------------------------------------------------------


def test_measures_and_their_readings(tmp_path):
    data = made(tmp_path / "x", (COLLAPSE, PLATEAU))
    at = data.reading("anti-grokking")
    assert at.index.tolist() == [0, 1]
    assert at["alpha", "fc1"].tolist() == [1.5, 1.6] and at["alpha", "average"].tolist() == pytest.approx([1.85, 1.95])
    assert at["traps", "fc1"].tolist() == [4, 4]
    assert at["mean_over_std", "fc2"].tolist() == pytest.approx([0.3, 0.3]), "its sign is left out"
    assert at["circuit_complexity_text", "network"].tolist() == [7, 7]
    assert data.reading("anti-grokking", data.collapsed).index.tolist() == [0]
    assert ("alpha", "fc3") not in data.measures, "the papers follow the hidden layers"
    assert set(data.compared) <= set(data.measures) and {name for name, _ in data.compared} <= set(NAMES)


def test_an_average_is_missing_where_a_layer_is(tmp_path):
    data = made(tmp_path / "x")
    rows = (data.diagnostics.layer == "fc1") & (data.diagnostics.step == 100) & (data.diagnostics.member == 1)
    data.diagnostics.loc[rows, "alpha"] = math.nan
    average = data.measures["alpha", "average"]
    assert math.isnan(average[100, 1]) and average.notna().sum() == len(average) - 1


def test_without_progress_measures_the_rest_is_there(tmp_path):
    data = made(tmp_path / "x", baselines=False)
    assert "circuit_complexity_text" not in data.measures or data.measures["circuit_complexity_text"].isna().all(axis=None)
    assert data.measures["alpha"].notna().all(axis=None)


def test_a_row_per_network(tmp_path):
    data = made(tmp_path / "x", (COLLAPSE, PLATEAU, NEVER))
    found = data.networks
    assert found.index.tolist() == [0, 1, 2] and found.seed.tolist() == [10, 11, 12]
    assert found.learnt.eq(100).all() and found.saturated.eq(100).all() and found.rise.dropna().eq(10_000).all()
    assert found.collapsed[0] == found.fell[0] == 100_000 and found.fell[1:].isna().all()
    assert found.loc[0, ["at_learning", "best", "final"]].tolist() == [0.2, 0.9, 0.5]
    # where phases are read, and elsewhere
    assert found["alpha fc1 grokking"].tolist()[:2] == [3.0, 3.1] and np.isnan(found["alpha fc1 grokking"][2])
    for when, step in (("start", 0), ("end", 100_000)):
        own = data.measures.xs(step, level="step")
        assert (found[f"traps fc1 {when}"] == own["traps", "fc1"]).all()
    assert found["traps fc1 most"].eq(4).all() and found["traps fc1 rise"].tolist()[:2] == [1, 1]
    assert found["onset fc1 first trap"].eq(10_000).all() and found["onset fc2 alpha below 2"].isna().all()


def test_what_is_drawn_over_steps_is_what_was_measured(tmp_path):
    data = made(tmp_path / "x")
    own = data.over_steps("fc1")
    assert {"step", "member", "alpha", "traps"} <= set(own) and len(own) == 3 * len(STEPS)


def test_shapes_and_layers(tmp_path):
    data = made(tmp_path / "x")
    assert {layer: data.shape(layer) for layer in SHAPES} == SHAPES
    assert data.nearest(30) == 10 and data.nearest(40) == 100 and data.nearest(0) == 0
