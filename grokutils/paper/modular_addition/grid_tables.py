"""What became of the grid's networks: falls of the test accuracy after grokking, and what went with them.

>>> import pandas as pd
>>> frame = pd.DataFrame({"step": range(0, 700, 100), "train_accuracy": 1.0,
...     "test_accuracy": [0.2, 0.99, 1, 0.7, 0.6, 0.99, 1]})
>>> falls(frame)[["begin", "end", "depth", "lasting"]]
   begin  end  depth  lasting
0    300  500    0.4    False
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from grokutils.paper.modular_addition import grid
from grokutils.records.files import RecordError
from grokutils.records.record import Record
from grokutils.util import paths

__all__ = ["by_condition", "by_network", "falls", "printed_grid", "records"]

#: A network has generalised at this test accuracy; has fallen so far below its best; is back so near to it; and
#: knows its training set at this training accuracy.
GENERALISES, FALL, BACK, KNOWN = 0.95, 0.10, 0.05, 0.99


def falls(metrics: pd.DataFrame) -> pd.DataFrame:
    """Falls of one network's test accuracy after it has generalised.

    A fall begins at the first measured step at which the accuracy lies `FALL` below the best so far, and ends when it
    is back within `BACK` of it.

    Parameters
    ----------
    metrics : rows of one network with ``step``, ``train_accuracy``, ``test_accuracy``; a fall shorter than the
        distance of its measurements may be missed

    Returns
    -------
    A row for each: ``begin``; ``end`` (the step at which it was back, or the last); ``lasting``: whether it was not back
    at the last; ``depth``: the best accuracy before less the worst in it; ``train_accuracy``: the worst in it; and, where
    there are margins, ``margin``: the smallest on the training set in it, and ``margin_before``: at the last measured step before it.
    """
    frame = metrics.sort_values("step").reset_index(drop=True)
    step, train, test = (frame[name].to_numpy() for name in ("step", "train_accuracy", "test_accuracy"))
    margin = frame["train_margin_min"].to_numpy() if "train_margin_min" in frame else np.full(len(frame), np.nan)
    best = np.maximum.accumulate(np.nan_to_num(test))
    rows, begin = [], None
    for i in range(len(frame)):
        if begin is None and best[i] >= GENERALISES and not test[i] > best[i] - FALL:
            begin = i
        back = begin is not None and test[i] >= best[begin] - BACK
        if begin is not None and (back or i == len(frame) - 1):
            within = slice(begin, i if back else i + 1)
            rows.append({
                "begin": int(step[begin]), "end": int(step[i]), "lasting": not back,
                "depth": float(best[begin] - np.min(test[within])), "train_accuracy": float(np.min(train[within])),
                "margin_before": float(margin[begin - 1]), "margin": float(np.min(margin[within])),
            })  # fmt: skip
            begin = None
    names = ["begin", "end", "lasting", "depth", "train_accuracy", "margin_before", "margin"]
    return pd.DataFrame(rows, columns=names)


def records() -> Iterator[tuple[grid.Part, grid.Recipe, Record]]:
    """The conditions that are there, also those that are still running."""
    for part in grid.grid():
        for recipe in part.conditions:
            try:
                found = Record(paths.run_dir(f"{part.out}/{recipe.name}"))
                found.provenance  # noqa: B018  (a run may be cut off before its first save)
            except RecordError:
                continue
            yield part, recipe, found


def by_network(found: Iterable[tuple[grid.Part, grid.Recipe, Record]] | None = None) -> pd.DataFrame:
    """A row for each network of the grid.

    Columns: ``p`` and the recipe (``loss_dtype, beta2, weight_decay, learning_rate``), ``run``, ``member``, ``seed``,
    ``steps`` (taken so far);
    ``generalised`` (the first step at 0.95, NaN: never) and ``best``; of the `falls` their number ``falls``,
    how many ``known`` (the training accuracy stayed at 0.99 at all measured steps), ``lasting``, the median ``depth`` and
    ``duration``, the ``deepest``; ``below``: share of the time since it generalised spent in falls; mean and standard deviation ``test_mean``,
    ``test_sd`` of the test accuracy at even steps since; ``margin``, the median over even steps in the run's last tenth of the smallest training
    margin; ``alpha_then``, ``alpha_now``: the mean over the matrices at the first saved step since it generalised and at the
    last; ``traps``: the mean number per matrix over the saved steps since; NaN before a run is complete.
    """
    rows = []
    for part, recipe, record in records() if found is None else found:
        metrics = record.metrics
        analysed = (record.folder / "diagnostics.parquet").is_file()
        diagnostics = record.table("diagnostics") if analysed else pd.DataFrame()
        for (member, seed), own in metrics.groupby(["member", "seed"]):
            values = {name: getattr(recipe, name) for name in ("loss_dtype", "beta2", "weight_decay", "learning_rate")}
            where = {"run": f"{part.out}/{recipe.name}", "member": member, "seed": seed}
            rows.append({"p": part.base.p} | values | where | _network(own) | _spectra(diagnostics, member, own))
    return pd.DataFrame(rows)


def _network(own: pd.DataFrame) -> dict[str, float]:
    there = own.step[own.test_accuracy >= GENERALISES].min()  # NaN if there is none
    since = own[own.step >= there]
    fell = falls(own)
    even, duration = own[own.step % grid.EVERY == 0], fell.end - fell.begin
    return {
        "steps": own.step.max(), "generalised": there, "best": own.test_accuracy.max(),
        "final": own.test_accuracy.iloc[-1], "train_worst": since.train_accuracy.min(), "falls": len(fell),
        "known": int((fell.train_accuracy >= KNOWN).sum()), "lasting": int(fell.lasting.sum()),
        "depth": fell.depth.median(), "deepest": fell.depth.max(), "duration": duration.median(),
        "below": duration.sum() / max(own.step.max() - there, 1) if len(since) else np.nan,
        "test_mean": even[even.step >= there].test_accuracy.mean(), "test_sd": even[even.step >= there].test_accuracy.std(),
        "margin": even[even.step >= 0.9 * own.step.max()].train_margin_min.median(),
    }  # fmt: skip


def _spectra(diagnostics: pd.DataFrame, member: int, own: pd.DataFrame) -> dict[str, float]:
    there = own.step[own.test_accuracy >= GENERALISES].min()
    if diagnostics.empty or np.isnan(there):
        return {"alpha_then": np.nan, "alpha_now": np.nan, "traps": np.nan}
    matrices = diagnostics[(diagnostics.member == member) & (diagnostics.step >= there)]
    mean = matrices[matrices.layer != "position"].groupby("step")[["alpha", "traps"]].mean()
    return {"alpha_then": mean.alpha.iloc[0], "alpha_now": mean.alpha.iloc[-1], "traps": mean.traps.mean()}


def by_condition(networks: pd.DataFrame) -> pd.DataFrame:
    """`by_network` in numbers of networks, sums of falls and medians over seeds: a row for each recipe."""
    recipe = ["p", "loss_dtype", "beta2", "weight_decay", "learning_rate"]
    groups = networks.assign(generalising=networks.generalised.notna()).groupby(recipe, sort=False)
    median = lambda name: pd.NamedAgg(name, "median")  # noqa: E731
    total = lambda name: pd.NamedAgg(name, "sum")  # noqa: E731
    return groups.agg(
        networks=pd.NamedAgg("seed", "size"), generalising=total("generalising"), generalised=median("generalised"),
        steps=median("steps"), falls=total("falls"), known=total("known"), lasting=total("lasting"),
        depth=median("depth"), deepest=pd.NamedAgg("deepest", "max"), duration=median("duration"), below=median("below"),
        test_mean=median("test_mean"), test_sd=median("test_sd"), final=median("final"),
        train_worst=pd.NamedAgg("train_worst", "min"), margin=median("margin"),
        alpha_then=median("alpha_then"), alpha_now=median("alpha_now"), traps=median("traps"),
    ).reset_index()  # fmt: skip


def printed_grid(table: pd.DataFrame) -> pd.DataFrame:
    """`by_condition` as a reader sees it."""

    def arrow(row: pd.Series) -> str:
        return "" if np.isnan(row.alpha_then) else f"{row.alpha_then:.2f} → {row.alpha_now:.2f}"

    def number(values: pd.Series, style: str) -> pd.Series:
        return values.map(lambda x: "" if np.isnan(x) else format(x, style))

    return pd.DataFrame({
        "p": table.p, "loss in": table.loss_dtype, "β₂": table.beta2.map("{:g}".format),
        "weight decay": table.weight_decay.map("{:g}".format), "learning rate": table.learning_rate.map("{:g}".format),
        "steps": table.steps.map("{:,.0f}".format),
        "generalise": [f"{a} of {b}" for a, b in zip(table.generalising, table.networks, strict=True)],
        "falls": table.falls, "training set known": table.known, "lasting": table.lasting,
        "deepest": number(table.deepest, ".2f"), "steps a fall": number(table.duration, ".0f"),
        "worst training accuracy": number(table.train_worst, ".2f"),
        "α": table.apply(arrow, axis=1), "traps": number(table.traps, ".1f"),
    })  # fmt: skip
