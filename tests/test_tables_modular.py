"""The transformer's tables and figures, on studies whose numbers are known and on runs just begun."""

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from made_studies import made

from grokutils import RunConfig, train
from grokutils.paper.judge.published import MODULAR_MATRICES
from grokutils.paper.kit.figures import PHASE_COLORS
from grokutils.paper.modular_addition.figures import matrix_curves, seeds_by_decay
from grokutils.paper.modular_addition.tables import (
    conditions,
    courses,
    mean_alpha,
    mean_over_matrices,
    printed_conditions,
)
from grokutils.records.record import Record
from grokutils.records.study import Study, study, study_each_decay
from grokutils.util.columns import BASELINES, DIAGNOSTICS, METRICS, SPECTRA

ROOT = Path(__file__).resolve().parent.parent
STEPS = (0, 1, 10, 100, 1_000, 10_000)
TRAIN = (0.1, 0.5, 1, 1, 1, 1)
COLLAPSED = (0.1, 0.1, 0.1, 0.2, 1.0, 0.6)
DIPPED = (0.1, 0.1, 0.1, 0.96, 0.8, 1.0)
NEVER = (0.1,) * 6


def transformer(folder, tests, alpha=(5, 4, 4, 4, 2, 4), traps=(0, 0, 0, 0, 0, 5)) -> Study:
    """One member for each course of the test accuracy; all matrices have the same alpha and traps."""
    config = RunConfig.recipe("modular", steps=STEPS[-1]).ensemble(range(len(tests)), [1.0])
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    metrics, diagnostics = [], []
    for member, course in enumerate(tests):
        for i, step in enumerate(STEPS):
            where = {"step": step, "member": member, "seed": member, "weight_decay": 1.0}
            metrics.append(dict.fromkeys(METRICS, 0.5) | where | {"train_accuracy": TRAIN[i], "test_accuracy": course[i]})
            diagnostics += [
                dict.fromkeys(DIAGNOSTICS, np.nan) | where
                | {"layer": layer, "rows": 20, "columns": 20, "alpha": float(alpha[i]), "traps": float(traps[i])}
                for layer in MODULAR_MATRICES.values()
            ]  # fmt: skip
    empty = [pd.DataFrame(columns=list(columns)) for columns in (SPECTRA, BASELINES)]
    return Study(Record(folder), 1.0, pd.DataFrame(metrics), pd.DataFrame(diagnostics), *empty)


def test_what_each_network_does(tmp_path):
    data = transformer(tmp_path / "x", (COLLAPSED, DIPPED, NEVER))
    found = conditions(data)
    assert found.generalises.tolist() == [True, True, False]
    assert found.collapses.tolist() == [True, False, False]
    # the second has its best value last, so nothing comes after it
    assert found["alpha rises"].tolist() == [True, False, False]
    assert found.traps.tolist() == [True, False, False]
    assert found.lowest.tolist()[:2] == [0.6, 0.8] and found.lowest_at.tolist()[:2] == [10_000, 1_000]
    assert pd.isna(found.lowest[2])
    printed = printed_conditions(found)
    assert printed.iloc[0].tolist() == ["2 of 3", "1 of 3", "1 of 3", "1 of 3"]


@pytest.mark.parametrize(
    "changed", [dict(alpha=(5, 4, 4, 4, 2, 2.5)), dict(traps=(0,) * 6), dict(tests=(DIPPED,)), dict(tests=(NEVER,))]
)
def test_each_condition_is_needed(changed, tmp_path):
    data = transformer(tmp_path / "x", **{"tests": (COLLAPSED,), **changed})
    asked = ["generalises", "collapses", "alpha rises", "traps"]
    assert not conditions(data)[asked].all(axis=1).any()
    assert conditions(transformer(tmp_path / "y", (COLLAPSED,)))[asked].all(axis=1).all()


def test_means_leave_out_what_has_no_fit(tmp_path):
    data = transformer(tmp_path / "x", (COLLAPSED,))
    data.diagnostics.loc[(data.diagnostics.layer == "fc1") & (data.diagnostics.step == 1_000), "alpha"] = np.nan
    data.diagnostics.loc[(data.diagnostics.layer == "fc2") & (data.diagnostics.step == 1_000), "alpha"] = 9.0
    assert mean_over_matrices(data).set_index("step").alpha[1_000] == pytest.approx((6 * 2 + 9) / 7)
    means, count = mean_alpha(data)
    assert count == 7 and means["anti-grokking"] == pytest.approx(4)
    assert means["grokking"] == pytest.approx(3), "the one without a fit there is left out everywhere: (6 x 2 + 9) / 7"
    # the same for the rise: of the matrices that have an alpha at both, it is 1
    assert conditions(data)["alpha rises"].tolist() == [True]
    data.diagnostics.loc[(data.diagnostics.layer == "fc1") & (data.diagnostics.step == 10_000), "alpha"] = 99.0
    assert conditions(data)["alpha rises"].tolist() == [True]
    data.diagnostics.loc[(data.diagnostics.layer == "fc2") & (data.diagnostics.step == 10_000), "alpha"] = 3.0
    assert conditions(data)["alpha rises"].tolist() == [False], "what has no alpha at the best counts for nothing"


def test_each_matrix_has_a_fit_or_none_has(tmp_path):
    data = transformer(tmp_path / "x", (COLLAPSED,))
    assert mean_alpha(data)[1] == 8
    at = data.phase_steps.loc[0].astype(int)
    first = data.diagnostics.layer.isin(list(MODULAR_MATRICES.values())[:4])
    data.diagnostics.loc[first & (data.diagnostics.step == at.iloc[1]), "alpha"] = np.nan
    data.diagnostics.loc[~first & (data.diagnostics.step == at.iloc[2]), "alpha"] = np.nan
    assert mean_alpha(data)[1] == 0


def test_a_test_accuracy_that_stays_low_is_not_tinted_as_grokking(tmp_path):
    low = transformer(tmp_path / "low", ((0.1, 0.1, 0.1, 0.2, 0.3, 0.4),))
    high = transformer(tmp_path / "high", ((0.1, 0.1, 0.1, 0.2, 0.3, 0.6),))
    assert low.phases.grokking is not None
    figure = seeds_by_decay(low, high)

    def tints(axes):
        return {mpl.colors.to_hex(patch.get_facecolor()) for patch in axes.patches}

    assert tints(figure.axes[0]) == {PHASE_COLORS["pre-grokking"]}
    assert tints(figure.axes[1]) == {PHASE_COLORS["pre-grokking"], PHASE_COLORS["grokking"]}


def test_runs_just_begun_of_several_decays(tmp_path):
    config = RunConfig.recipe("modular", p=11, fraction=0.5, d_model=16, d_mlp=16, steps=5)
    train(config.ensemble([0, 1], [0.0, 1.0]), tmp_path / "x", progress=False)
    studies = study_each_decay(tmp_path / "x", progress=False)
    assert [data.weight_decay for data in studies] == [0.0, 1.0] and [data.n for data in studies] == [2, 2]
    assert (courses(*studies)["learnt at step"] == "–").all()
    found = conditions(*studies)
    assert len(found) == 4 and not found[["generalises", "collapses", "alpha rises", "traps"]].any(axis=None)
    assert mean_alpha(studies[0]) == ({}, 0)
    figure = seeds_by_decay(*studies)
    assert len(figure.axes) == 6
    assert figure.axes[4].get_ylim()[1] >= 1, "no axis of traps that blows up a zero"
    assert matrix_curves("traps", *studies).axes[0].get_ylim() == (0, 1)


def test_another_architecture_is_said_in_a_sentence(tmp_path):
    data = made(tmp_path / "x")
    for function in (courses, mean_over_matrices, conditions, mean_alpha):
        with pytest.raises(ValueError, match="must be a run of the transformer .*; it is one of the mlp"):
            function(data)


@pytest.mark.slow
def test_the_small_instance_of_the_notebook_groks(tmp_path):
    """The parameters of notebooks/07_modular_addition.ipynb."""
    notebook = json.loads((ROOT / "notebooks" / "07_modular_addition.ipynb").read_text())
    cell = next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    space = {}
    exec("".join(cell["source"]), space)
    names = ("p", "fraction", "wd", "steps", "seed", "lr")
    config = RunConfig.recipe("modular", d_model=64, d_mlp=256, **{name: space[name] for name in names})
    record = train(config, tmp_path / "x", progress=False, threads=1)
    assert record.metrics.test_accuracy.iloc[-1] > 0.95
    assert courses(study(record.folder, progress=False))["test accuracy 0.95 at"].iloc[0] != "–"
