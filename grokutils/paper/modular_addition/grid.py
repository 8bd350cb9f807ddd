"""Small transformers under every recipe that may make them forget: precision of the loss, beta2, decay, learning rate.

>>> [condition.name for condition in grid()[0].conditions[:2]]
['float32-0.98-wd1-lr0.01', 'float32-0.999-wd1-lr0.01']

``grokutils modular-grid`` runs them, the parts in order, and goes on where it stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.records import files, schedule
from grokutils.records.record import Record, publish
from grokutils.training.sweep import Condition, Outcome, sweep

__all__ = ["BASE", "OUT", "SMALL", "Part", "Recipe", "grid", "run"]

OUT = "results/modular-grid"

#: Addition modulo 29, half of the pairs; and a smaller one, which shows in minutes what there is to see early.
BASE = RunConfig.recipe("modular", p=29, fraction=0.5, d_model=48, n_heads=4, d_mlp=128, steps=100_000)
SMALL = RunConfig.recipe("modular", p=23, fraction=0.6, d_model=32, n_heads=4, d_mlp=64, steps=20_000)

LOSS_DTYPES = ("float32", "float64")
BETA2S = (0.98, 0.999)
DECAYS = (1.0, 0.1, 0.0)

#: Steps between measurements: a fall may last a few hundred.
EVERY = 100
_SAVES_PER_DECADE = 5
_LAYERS_PER_DECADE = 10


@dataclass(frozen=True)
class Recipe(Condition):
    """A condition by its four values."""

    loss_dtype: str = ""
    beta2: float = np.nan
    weight_decay: float = np.nan
    learning_rate: float = np.nan


@dataclass(frozen=True)
class Part:
    """Conditions that are run one after another, with the same seeds."""

    name: str
    base: RunConfig
    conditions: tuple[Recipe, ...]
    seeds: range

    @property
    def out(self) -> str:
        """The folder of its records."""
        return f"{OUT}/{self.name}"


def recipe(loss_dtype: str, beta2: float, weight_decay: float, learning_rate: float) -> Recipe:
    """One condition."""
    values = dict(loss_dtype=loss_dtype, beta2=beta2, weight_decay=weight_decay, learning_rate=learning_rate)
    return Recipe(f"{loss_dtype}-{beta2:g}-wd{weight_decay:g}-lr{learning_rate:g}", values, **values)


def grid() -> tuple[Part, ...]:
    """All parts, the most telling first."""

    def conditions(learning_rate: float) -> tuple[Recipe, ...]:
        return tuple(
            recipe(loss_dtype, beta2, decay, learning_rate)
            for loss_dtype, decay, beta2 in itertools.product(LOSS_DTYPES, DECAYS, BETA2S)
        )

    sizes = [(SMALL, range(2), 1e-2)]
    sizes += [(BASE, seeds, rate) for seeds, rate in itertools.product((range(3), range(3, 5)), (1e-2, 1e-3))]
    return tuple(
        Part(f"p{base.p}-lr{rate:g}-seeds{seeds[0]}to{seeds[-1]}", base, conditions(rate), seeds)
        for base, seeds, rate in sizes
    )


def run(
    parts: Sequence[str] = (), *, only: Sequence[str] = (), jobs: int | None = None, progress: bool = True
) -> list[Outcome]:
    """Run the grid, or go on with it; what is done already is only read.

    >>> run(["p29-lr0.01-seeds0to2"], jobs=1)                                      # doctest: +SKIP

    Parameters
    ----------
    parts : names of parts; all by default
    only : names of conditions; all by default
    jobs, progress : of `grokutils.training.sweep.sweep`

    Raises
    ------
    ConfigError : no such part or condition; and as `grokutils.training.sweep.sweep`.
    """
    everything = grid()
    names = [c.name for part in everything for c in part.conditions]
    for given, there in ((parts, [part.name for part in everything]), (only, list(dict.fromkeys(names)))):
        if unknown := [name for name in given if name not in there]:
            raise ConfigError(f"there is no {unknown[0]!r} in the grid; there are {', '.join(there)}.")
    found: list[Outcome] = []
    for part in everything:
        wanted = [c for c in part.conditions if not only or c.name in only]
        if wanted and (not parts or part.name in parts):
            found += sweep(
                wanted, part.base, part.seeds, part.out, thin_out=thin_out, jobs=jobs, progress=progress,
                training=dict(measure_every=EVERY, saves_per_decade=_SAVES_PER_DECADE),
            )  # fmt: skip
    return found


def thin_out(done: Record) -> None:
    """Make a record small: no weights, spectra without shuffles, numbers in float32, and the layers' statistics
    at log-spaced steps alone (NaN at the others)."""
    publish(done, done.folder, ())
    spectra, metrics = done.table("spectra"), done.metrics
    kept = spectra[spectra.shuffle < 0].reset_index(drop=True)
    layers = tuple(name.removesuffix("kurtosis") for name in metrics if name.endswith("_kurtosis"))
    between = ~metrics.step.isin(schedule.log_spaced(done.config.steps, _LAYERS_PER_DECADE))
    metrics.loc[between, [name for name in metrics if name.startswith(layers)]] = np.nan
    numbers = [name for name in metrics.select_dtypes("float64") if name != "weight_decay"]
    rounded = metrics.astype(dict.fromkeys(numbers, "float32"))
    kept.attrs, rounded.attrs = spectra.attrs, metrics.attrs
    with files.locked(done.folder):
        files.write_parquet(done.folder / "spectra.parquet", kept)
        files.write_parquet(done.folder / "metrics.parquet", rounded)
