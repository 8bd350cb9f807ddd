"""The grid of small transformers: its table, what it keeps of a run, and the falls that are read off it."""

import numpy as np
import pandas as pd
import pytest

from grokutils import ConfigError, RunConfig
from grokutils.paper.modular_addition import grid, grid_figures
from grokutils.paper.modular_addition.grid_tables import by_condition, by_network, falls
from grokutils.training.sweep import check


def curve(*test, train=1.0, every=100):
    return pd.DataFrame({"step": every * np.arange(len(test)), "train_accuracy": train, "test_accuracy": test})


def test_every_condition_can_be_built_and_the_grid_is_whole():
    parts = grid.grid()
    for part in parts:
        check(part.conditions, part.base, part.seeds, f"runs/grid/{part.name}")
    full = [part for part in parts if part.base == grid.BASE]
    runs = {(c.loss_dtype, c.beta2, c.weight_decay, c.learning_rate, s) for p in full for c in p.conditions for s in p.seeds}
    assert len(runs) == 2 * 2 * 3 * 2 * 5 == sum(len(p.conditions) * len(p.seeds) for p in full), "each is run once"


@pytest.mark.parametrize("options", [dict(parts=["p31"]), dict(only=["float16-0.98-wd1-lr0.01"])])
def test_what_is_not_in_the_grid_is_refused(options):
    with pytest.raises(ConfigError, match="there is no '.+' in the grid"):
        grid.run(**options)


def test_falls():
    found = falls(curve(0.2, 0.99, 1.0, 0.7, 0.6, 0.92, 0.96, 1.0, 0.5, 0.4))
    assert found.begin.tolist() == [300, 800] and found.end.tolist() == [600, 900]
    assert found.lasting.tolist() == [False, True]
    np.testing.assert_allclose(found.depth, [0.4, 0.6])
    assert falls(curve(0.1, 0.8, 0.5, 0.2)).empty, "it never generalised"
    assert falls(curve(0.1, 1.0, 0.95, 0.91)).empty, "not deep enough"
    dips = falls(curve(0.99, 0.8, 0.99, train=np.array([1.0, 0.6, 1.0])))
    assert dips.train_accuracy.tolist() == [0.6]


def test_a_small_record_keeps_what_the_tables_and_figures_need(monkeypatch):
    base = RunConfig.recipe("modular", p=7, fraction=0.6, d_model=24, d_mlp=24, steps=260)
    part = grid.Part("p7", base, (grid.recipe("float32", 0.98, 1.0, 1e-2),), range(2))
    monkeypatch.setattr(grid, "grid", lambda: (part,))
    monkeypatch.setattr(grid, "OUT", "runs/grid")
    (outcome,) = grid.run(jobs=1, progress=False)
    record = outcome.record
    assert outcome.error == "" and record.complete and record.steps_saved == []
    metrics = record.metrics
    assert {100, 200, 260} <= set(metrics.step) and metrics.train_margin_min.notna().all()
    layers = metrics.set_index("step").fc1_kurtosis
    assert layers[[0, 1, 10, 100, 260]].notna().all() and layers.isna().any()
    assert set(metrics.weight_decay) == {1.0} and set(record.diagnose().step) >= {0, 1, 10, 100, 260}
    before = (record.folder / "metrics.parquet").read_bytes()
    grid.run(jobs=1, progress=False)
    assert (record.folder / "metrics.parquet").read_bytes() == before
    networks = by_network()
    assert networks.seed.tolist() == [0, 1] and set(networks.steps) == {260}
    table = by_condition(networks)
    assert table.networks.tolist() == [2] and table.loss_dtype.tolist() == ["float32"]
    for made in (grid_figures.accuracy_grid(7), grid_figures.course(record, member=1)):
        assert made.axes
    with pytest.raises(ValueError, match="no records of p = 11"):
        grid_figures.accuracy_grid(11)
