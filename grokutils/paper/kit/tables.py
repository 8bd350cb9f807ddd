"""The table kit: the paper's numbers beside ours, a row per quantity and source, a column per phase; and numbers as text.

>>> from grokutils.records.study import study
>>> printed(readings(study("results/express/wd0")))                  # doctest: +SKIP

Tables are tidy frames, a row per number, from which `printed` makes the table that a reader sees.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from grokutils.paper.judge.published import Table
from grokutils.paper.judge.stats import bootstrap, has_width
from grokutils.records.phases import PHASES
from grokutils.records.signals import NAMES
from grokutils.records.study import Study

__all__ = [
    "course", "counted", "interval", "layers_of", "number", "of_layer", "over_phases", "printed", "published", "readings",
    "said", "spread", "tidy",
]  # fmt: skip

NONE = "–"


# -- numbers as text ------------------------------------------------------------------------------------------------


def number(x: float, style: str = ".2f") -> str:
    """
    >>> number(0.5), number(float("nan"))
    ('0.50', '–')
    """
    return f"{x:{style}}" if np.isfinite(x) else NONE


def interval(x: float, low: float, high: float, style: str = ".2f") -> str:
    """A number with its 95 % interval; one without width is left out, since it says only that all resamples agree.

    >>> interval(0.5, 0.4, 0.7), interval(1.0, 1.0, 1.0)
    ('0.50\\xa0[0.40,\\xa00.70]', '1.00')
    """
    return number(x, style) + (f"\u00a0[{low:{style}},\u00a0{high:{style}}]" if np.isfinite(x) and has_width(low, high) else "")


def said(values, style: str = ".2f") -> str:
    """A median over networks with its interval.

    >>> said([0.1, 0.2, 0.3]), said([0.2] * 20), said([])
    ('0.20', '0.20', '–')
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return NONE
    return interval(np.median(values), *bootstrap(lambda drawn: np.median(values[drawn], axis=1), len(values)), style)


def counted(holds: pd.Series) -> str:
    """Of how many networks something holds.

    >>> counted(pd.Series([True, False])), counted(pd.Series([], dtype=bool))
    ('1 of 2', 'no network has come so far')
    """
    return f"{int(holds.sum())} of {len(holds)}" if len(holds) else "no network has come so far"


def spread(values: pd.Series) -> str:
    """A number in some networks: the median, and the smallest and largest.

    >>> spread(pd.Series([2.4, 5.0, 13.7])), spread(pd.Series([2.4]))
    ('5.0 (2.4 to 13.7)', '2.4')
    """
    found = values.dropna()
    return number(found.median(), ".1f") + (f" ({found.min():.1f} to {found.max():.1f})" if len(found) > 1 else "")


# -- the paper's numbers beside ours --------------------------------------------------------------------------------


def readings(*studies: Study) -> pd.DataFrame:
    """Where the phases are read, and what the accuracies are there.

    >>> readings(study("results/express/wd0"))                       # doctest: +SKIP

    Returns
    -------
    Tidy frame with the quantities ``step`` (median over the seeds), ``train_accuracy``, ``test_accuracy`` and
    ``collapsed`` (of how many seeds by the end); columns as in `over_phases`.
    """
    rows = []
    for quantity in ("step", "train_accuracy", "test_accuracy", "collapsed by then"):
        for data in studies:
            at = data.at_phases(data.metrics[["step", "member", "train_accuracy", "test_accuracy"]])
            for phase in PHASES:
                own = at[at.phase == phase]
                own["collapsed by then"] = own.member.isin(data.collapsed)
                row = _row(quantity, data, phase, own[quantity], 2)
                if quantity == "step":
                    row["text"] = f"{int(own.step.median()):,}" if len(own) else NONE
                if quantity == "collapsed by then":
                    row["text"] = f"{len(data.collapsed)} of {data.n}" if phase == PHASES[-1] and len(own) else ""
                rows.append(row)
    return tidy(rows)


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """A tidy frame as a reader sees it: a row per quantity and source, a column per phase.

    What is read at the end of a run is headed so: whether it has collapsed by then is for `readings` to say.
    """
    keys = list(dict.fromkeys(zip(frame.quantity, frame.source, strict=True)))
    frame = frame.drop_duplicates(["quantity", "source", "phase"])  # a record may stand beside itself
    table = frame.pivot(index=["quantity", "source"], columns="phase", values="text")
    table = table.reindex(pd.MultiIndex.from_tuples(keys), columns=list(PHASES)).fillna("")
    table = table.map(lambda text: text.replace(" ± ", "\u00a0±\u00a0"))  # no line breaks inside a number
    return table.rename(columns=_HEADINGS).rename_axis(columns=None)


_HEADINGS = dict(zip(PHASES, ("before grokking", "at the best test accuracy", "at the end"), strict=True))


def layers_of(studies: Iterable[Study]) -> list[str]:
    return list(dict.fromkeys(layer for data in studies for layer in data.layers))


def of_layer(data: Study, layer: str) -> pd.DataFrame:
    return data.diagnostics[data.diagnostics.layer == layer]


def published(table: Table, key, quantity: str) -> list[dict]:
    """A row of the paper's table, as tidy rows."""
    return [
        {"quantity": quantity, "source": f"paper, {table.name}", "phase": phase, "mean": one.mean,
         "spread": np.nan if one.spread is None else one.spread, "n": pd.NA, "of": pd.NA, "text": one.text}
        for phase, one in table.rows.get(key, {}).items()
    ]  # fmt: skip


def over_phases(quantity: str, data: Study, frame: pd.DataFrame, column: str, digits: int) -> list[dict]:
    """A column of ours where the phases are read, as tidy rows: ``quantity``, ``source``, ``phase``, ``mean``, ``spread``
    (standard deviation over seeds, n - 1 in the denominator), ``n`` (seeds with a number), ``of`` (seeds read at that
    phase) and ``text``."""
    at = data.at_phases(frame[["step", "member", column]])
    return [_row(quantity, data, phase, at[at.phase == phase][column], digits) for phase in PHASES]


def _row(quantity: str, data: Study, phase: str, values: pd.Series, digits: int) -> dict:
    found = values.dropna().astype(float)
    mean, deviation = found.mean(), found.std(ddof=1)
    text = number(mean, f".{digits}f")
    if len(found) > 1:
        text += f" ± {deviation:.{digits}f}"
    if len(found) < len(values):
        text += f" ({len(found)} of {len(values)})"
    recorded = data.config.own is not None and data.config.own.recorded
    recipe = data.recipe if recorded else data.config.recipe_name + (" (changed)" if data.recipe_changes else "")
    source = f"{data.place} at the paper's steps" if data.fixed_steps is not None else (
        f"{data.place}: {recipe}, {data.seeds}"
    )  # fmt: skip
    return {
        "quantity": NAMES.get(quantity, quantity), "source": source, "phase": phase, "mean": mean, "spread": deviation,
        "n": len(found), "of": len(values), "text": text,
    }  # fmt: skip


def tidy(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["quantity", "source", "phase", "mean", "spread", "n", "of", "text"])


# -- one network's story --------------------------------------------------------------------------------------------


def course(*studies: Study) -> pd.DataFrame:
    """What became of the first network of each run: its accuracies, and alpha and the traps of its layers at its fall.

    >>> course(study("results/mnist-wd0"))                           # doctest: +SKIP
    """
    columns = {}
    for data in studies:
        own = data.networks.loc[data.members[0]]
        rows = {
            "training set learnt, step": number(own.learnt, ",.0f"), "best test accuracy": number(own.best, ".3f"),
            "... at step": number(own.peak, ",.0f"), "fell by five points, step": number(own.fell, ",.0f"),
            "collapsed by ten points, step": number(own.collapsed, ",.0f"), "test accuracy at the last": number(own.final, ".3f"),
        }  # fmt: skip
        table = data.measures.xs(data.members[0], level="member").sort_index()
        until = table[table.index <= own.fell]
        for layer in data.layers:
            at_fall = until["alpha", layer].iloc[-1] if len(until) else np.nan
            rows |= {
                f"α of {layer.upper()} at the fall": number(at_fall), f"α of {layer.upper()} at the last": number(own[f"alpha {layer} end"]),
                f"α of {layer.upper()} below 2 from step": number(own[f"onset {layer} alpha below 2"], ",.0f"),
                f"a trap in {layer.upper()} from step": number(own[f"onset {layer} first trap"], ",.0f"),
            }  # fmt: skip
        columns[data.label] = rows
    return pd.DataFrame(columns).fillna(NONE)
