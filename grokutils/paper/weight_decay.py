"""Page 06: weight decay: the signals without the collapse, and what they are worth as rules.

>>> rules(study("results/express/wd0"), study("results/express/wd0.01"))     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from grokutils.paper.judge.published import FIGURE_1
from grokutils.paper.judge.stats import best_threshold
from grokutils.paper.kit import figures as kit
from grokutils.paper.kit.curves import alpha_curves, progress_curves
from grokutils.paper.kit.figures import layer_color, use_svg
from grokutils.paper.kit.tables import NONE, counted, course, printed, readings
from grokutils.records.phases import PHASES
from grokutils.records.signals import ALPHA_LOW, NAMES, TRAPPED_FROM
from grokutils.records.study import Study, study

__all__ = [
    "FIGURE_1", "Markdown", "alpha_curves", "counted", "course", "decay_contrast", "display", "early", "faultless",
    "fitted_rules", "printed", "printed_rules", "progress_curves", "readings", "rising", "rules", "study", "use_svg", "without_collapse",
]  # fmt: skip

Rule = Callable[[pd.DataFrame], pd.Series]


@kit.figure
def decay_contrast(*studies: Study) -> Figure:
    """Test accuracy, alpha and traps of runs side by side, on the same axes.

    >>> decay_contrast(study("results/express/wd0"), study("results/express/wd0.01"))    # doctest: +SKIP
    """
    made, grid = plt.subplots(3, len(studies), figsize=(kit.WIDTH, 6.2), sharex=True, sharey="row", squeeze=False)
    for column, data in zip(grid.T, studies, strict=True):
        kit.accuracies(column[0], data, labels=data is studies[-1])
        for layer in data.layers:
            for axes, name in zip(column[1:], ("alpha", "traps"), strict=True):
                kit.bands(axes, data.over_steps(layer), name, layer_color(layer, data.layers), layer)
        for axes in column:
            kit.phase_tints(axes, data.phases, data.step)
        kit.steps_axis(column, *(one.step for one in studies))
        column[0].set_title(f"weight decay {data.weight_decay:g}\n{data.seeds},\nto step {data.step:,}", fontsize=9)
        column[0].set_ylabel("")
    kit.alpha_axis(*grid[1])
    kit.trap_axis(*grid[2])
    for axes, name in zip(grid[:, 0], ("accuracy", "α", "traps"), strict=True):
        axes.set_ylabel(name)
    kit.direct_labels(grid[1:, -1])
    made.suptitle(" | ".join(dict.fromkeys(data.recipe for data in studies)), fontsize=9, color="0.25")
    return made


def without_collapse(data: Study) -> dict[str, str]:
    """Of the networks that have not collapsed at the end, how many have a layer with a low alpha, a trap, and both; and how
    many ever had a low alpha since memorisation, with the median share of the eigenvalues that the fit then stands on."""
    end = data.reading(PHASES[2], set(data.members) - set(data.collapsed))
    low, trap = (end["alpha"][data.layers] < ALPHA_LOW).any(axis=1), (end["traps"] >= TRAPPED_FROM).any(axis=1)
    tails = data.after_memorisation(data.diagnostics)
    tails = tails[tails.layer.isin(data.layers) & (tails.alpha < ALPHA_LOW)]
    share = (tails.n_tail / tails[["rows", "columns"]].min(axis=1)).median() if len(tails) else 0
    return {
        "low": counted(low), "trapped": counted(trap), "both": counted(low & trap),
        "ever": f"{tails.member.nunique()} of {data.n}", "share": f"{share:.0%}",
    }  # fmt: skip


def early(data: Study) -> str:
    """In how many networks the test accuracy is 0.5 or below where "before grokking" is read."""
    return counted(data.reading(PHASES[0])["test_accuracy", "network"] <= 0.5)


def rising(data: Study, measure: str) -> str:
    """In how many networks a measure of the network rises from the best test accuracy to the end."""
    best, end = (data.reading(phase).get((measure, "network"), pd.Series(dtype=float)) for phase in PHASES[1:])
    return f"{counted((end - best).dropna() > 0)} ({data.place})"


# -- as rules -------------------------------------------------------------------------------------------------------


def rules(data: Study, control: Study) -> pd.DataFrame:
    """The paper's own thresholds as rules that call a network collapsed, and how often they are right.

    >>> rules(study("results/express/wd0"), study("results/express/wd0.01"))    # doctest: +SKIP

    Rules: alpha below 2, one trap or more (half of the shuffles show one), and both, in a layer, in any of them, in all.
    They are put to members of both studies in four situations; only in the second is there anything to call.

    Returns
    -------
    Tidy frame: ``rule``, ``situation``, ``called`` members out of ``n``, ``right`` (how many it should have called: n or
    0).
    """
    low = {where: lambda at, where=where: at["alpha", where] < ALPHA_LOW for where in (*data.layers, "average")}
    trap = {layer: lambda at, layer=layer: at["traps", layer] >= TRAPPED_FROM for layer in data.layers}
    found: dict[str, Rule] = {f"α < {ALPHA_LOW:g}, {where}": test for where, test in low.items()}
    found |= {f"a trap, {layer}": test for layer, test in trap.items()}
    for word, join in (("any layer", _any), ("all layers", _all)) if len(data.layers) > 1 else ():
        found[f"α < {ALPHA_LOW:g}, {word}"] = join([low[layer] for layer in data.layers])
        found[f"a trap, {word}"] = join(trap.values())
    either = _any([low[layer] for layer in data.layers]), _any(trap.values())
    return _judged(found | {f"α < {ALPHA_LOW:g} and a trap, anywhere": _all(either)}, _situations(data, control))


def fitted_rules(data: Study, control: Study) -> pd.DataFrame:
    """The same for every measure, each with the one threshold that suits it best.

    The threshold parts the best test accuracy from the end, among the collapsed members of `data`, with the fewest
    errors on both sides (the middle of the widest gap); it is chosen on the very numbers of the first two situations,
    for every measure alike, so that the other two are the test.
    """
    at = _situations(data, control)
    healthy, fallen = list(at.values())[:2]
    found: dict[str, Rule] = {}
    for key in [key for key in data.compared if key in healthy]:
        a, b = (group[key].dropna().to_numpy() for group in (healthy, fallen))
        # above a threshold or, of the values negated, below one
        cuts = {sign: best_threshold(sign * a, sign * b) for sign in (1, -1)}
        sign = max(cuts, key=lambda sign: np.mean(sign * b > cuts[sign]) - np.mean(sign * a > cuts[sign]) if len(a) and len(b) else 0)
        if min(len(a), len(b)) < 2 or not np.isfinite(cuts[sign]):
            continue
        limit = sign * cuts[sign]
        name = f"{NAMES[key[0]]}, {key[1]} {'>' if sign > 0 else '<'} {limit:.3g}"
        found[name] = lambda at, key=key, limit=limit, sign=sign: sign * (at[key] - limit) > 0
    return _judged(found, at)


def printed_rules(judged: pd.DataFrame) -> pd.DataFrame:
    """`rules` as a reader sees them: a row per rule, a column per situation."""
    texts = judged.assign(text=[f"{k} of {n}" if n else NONE for k, n in zip(judged.called, judged.n, strict=True)])
    table = texts.pivot(index="rule", columns="situation", values="text")
    return table.reindex(index=judged.rule.unique(), columns=judged.situation.unique()).rename_axis(index=None, columns=None)


def faultless(judged: pd.DataFrame) -> list[str]:
    """The rules of `rules` or `fitted_rules` that are right in every situation that has a network in it."""
    wrong = (judged.called - judged.right).abs().groupby(judged.rule, sort=False).sum()
    return wrong.index[wrong == 0].tolist()


def _any(tests) -> Rule:
    return lambda at: pd.concat([test(at) for test in tests], axis=1).any(axis=1)


def _all(tests) -> Rule:
    return lambda at: pd.concat([test(at) for test in tests], axis=1).all(axis=1)


def _situations(data: Study, control: Study) -> dict[str, pd.DataFrame]:
    """All measures of the members that are in a situation."""
    one, other = (
        f"weight decay {some.weight_decay:g}" if data.weight_decay != control.weight_decay else some.name for some in (data, control)
    )
    return {
        f"{one}, at its best (collapsed later)": data.reading(PHASES[1], data.collapsed),
        f"{one}, collapsed": data.reading(PHASES[2], data.collapsed),
        f"{other}, at its best": control.reading(PHASES[1]),
        f"{other}, at the end, not collapsed": control.reading(PHASES[2], set(control.members) - set(control.collapsed)),
    }


def _judged(tests: Mapping[str, Rule], situations: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    rows = []
    for name, test in tests.items():
        for i, (situation, at) in enumerate(situations.items()):
            try:
                called, n = int(test(at).sum()) if len(at) else 0, len(at)
            except KeyError:  # networks of another kind, without such a layer
                called, n = 0, 0
            rows.append((name, situation, called, n, n if i == 1 else 0))
    return pd.DataFrame(rows, columns=["rule", "situation", "called", "n", "right"])
