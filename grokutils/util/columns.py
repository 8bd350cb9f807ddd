"""What every column of every table means, as data: the page in the book is made from this.

``python -c "from grokutils.util.columns import page; print(page(), end='')" > book/columns.md``
"""

from __future__ import annotations

__all__ = [
    "BASELINES", "DIAGNOSTICS", "HARM", "INTERVENTIONS", "LEAD_TIMES", "MARGINS", "METRICS", "METRICS_PER_LAYER", "REGROWTH",
    "SPECTRA", "page", "stored",
]  # fmt: skip

_WHERE = {
    "step": "optimisation steps taken",
    "member": "number of the network in its run, from 0",
    "seed": "seed of that network",
    "weight_decay": "its weight decay",
}

#: Of `grokutils.diagnose`; the first four only for a record (a `Monitor` puts ``step`` first).
DIAGNOSTICS = {
    **_WHERE,
    "layer": "name of the layer, without a final `.weight`; `.q`, `.k`, `.v` are the thirds of a fused projection",
    "rows": "rows of the matrix",
    "columns": "columns of the matrix",
    "note": "how the array was made a matrix, and other names it goes by; empty for a plain matrix",
    "alpha": "exponent of the power law that fits the tail of the eigenvalues best",
    "alpha_sigma": "its standard error for a known `xmin`, (alpha - 1) / sqrt(`n_tail`)",
    "alpha_low": "lower end of alpha's 95 % bootstrap interval, if `bootstrap` resamples were asked for",
    "alpha_high": "upper end of it",
    "xmin": "eigenvalue at which the tail starts, in squared units of the weights",
    "D": "Kolmogorov–Smirnov distance between the tail and its fit",
    "n_tail": "eigenvalues in the tail; 0 where there is no fit",
    "alpha_clipped": "alpha after WeightWatcher's `clip_xmax`, which leaves out up to nine of the largest eigenvalues",
    "alpha_hat": "alpha times log10 of the largest eigenvalue (WeightWatcher's `alpha_weighted`)",
    "stable_rank": "sum of the eigenvalues over the largest one",
    "erg_count": "largest eigenvalues whose logarithms, in units of the mean, add up to zero (`detX_num`)",
    "erg_gap": "`xmin` minus the smallest of those, in units of the mean eigenvalue; 0 is SETOL's ideal",
    "traps": "eigenvalues of the shuffled matrix beyond the threshold, mean over the shuffles",
    "traps_std": "standard deviation of that number over the shuffles",
    "trap_strength": "largest eigenvalue of the shuffled matrix over the threshold, mean over the shuffles",
    "trap_ipr": "inverse participation ratio of the first shuffle's largest trap, the larger of its two vectors': "
    "1 if one entry of a vector is all of it; NaN without a trap",
    "trap_share": "share of that trap's singular value that its heaviest single weight makes",
    "trap_z": "that weight's distance from the mean, in standard deviations",
    "sigma_mp": "standard deviation of the shuffled matrix's random bulk, in units of the entries' root mean square; "
    "mean over the shuffles",
    "spikes": "eigenvalues of the matrix itself, not shuffled, beyond the threshold of its own random bulk",
    "spikes_sigma_mp": "`sigma_mp` of the matrix itself",
    "ks_D": "Kolmogorov–Smirnov distance of the first shuffle from the Marchenko–Pastur law",
    "ks_p_textbook": "the textbook's p-value of it, for independent points: far too large, as eigenvalues repel",
    "ks_p": "its Monte-Carlo p-value; these three are NaN beyond 512 eigenvalues",
    "max_over_std": "largest distance of a weight from the mean, in standard deviations",
    "kurtosis": "kurtosis of the weights (3 for a Gaussian)",
    "mean_over_std": "mean of the weights over their standard deviation",
    "zeros": "share of the weights that are exactly zero",
    "spectral_norm": "largest singular value",
    "effective_rank": "exp of the entropy of the normalised singular values",
    "l2_norm": "root of the summed squares of the weights",
    "alpha_reason": "why there is no alpha; empty if there is one",
    "traps_reason": "why there is no number of traps; empty if there is one",
    "verdict": "what the numbers say of the layer",
    "reason": "in words, with the numbers",
}

#: ... and with ``harmful=True``.
HARM = {
    "js": "Jensen–Shannon divergence of the outputs with and without the layer's largest trap, over random inputs, in nats "
    "(0 to ln 2); nothing is put in the trap's place. NaN without a trap",
    "js_error": "standard error of it over the inputs",
    "js_control": "the same divergence for a random direction of the same norm",
    "js_control_error": "standard error of that",
    "harmful": "whether taking the trap out does more than the random direction: its 95 % interval lies above the other's; "
    "empty where it could not be tested",
    "harm_reason": "why not; empty if it could",
}

#: Of a record's ``metrics.parquet``, one row per measured step and member.
METRICS = {
    **_WHERE,
    "train_accuracy": "share of the training images that are classified correctly",
    "train_loss": "mean squared error on the training set, over images and classes",
    "test_accuracy": "share of the test images that are classified correctly",
    "test_loss": "mean squared error on the test set",
    "l2_norm": "root of the summed squares of all weight matrices; biases do not count",
}

#: ... of the transformer, in records made since it has them; NaN in older ones. A margin is the right logit less the
#: largest other, of one pair: negative where the answer is wrong.
MARGINS = {
    "train_margin_min": "smallest margin on the training set",
    "train_margin_median": "median margin on the training set",
    "test_margin_min": "smallest margin on the test set",
    "test_margin_median": "median margin on the test set",
}

#: ... and of each layer, after its name and an underscore.
METRICS_PER_LAYER = {
    "l2_norm": "root of the summed squares of the layer's weights",
    "max_abs": "largest size of a weight",
    "mean": "mean of the weights",
    "std": "their standard deviation",
    "kurtosis": "their kurtosis (3 for a Gaussian)",
}

#: Of a record's ``spectra.parquet``, one row per saved step, member, layer and shuffle.
SPECTRA = {
    "step": _WHERE["step"],
    "member": _WHERE["member"],
    "layer": "name of the layer",
    "rows": "rows of the matrix",
    "columns": "columns of the matrix",
    "shuffle": "-1 for the matrix itself, otherwise the number of the shuffle; the first three are kept",
    "eigenvalues": "all eigenvalues of $W^\\top W$, ascending, not rescaled",
}

_TWO = "as the text defines it", "as the published notebook computes it"
#: Of a record's ``baselines.parquet``, one row per saved step and member.
BASELINES = {
    **_WHERE,
    "activation_sparsity_text": f"share of hidden activations below 1 on the training set, {_TWO[0]}: mean over "
    "the hidden layers",
    "activation_sparsity_notebook": f"{_TWO[1]}: first hidden layer only",
    "absolute_weight_entropy_text": f"minus the sum of |w| log |w|, {_TWO[0]}: all weight matrices",
    "absolute_weight_entropy_notebook": f"{_TWO[1]}: first matrix only, log(|w| + 1e-8)",
    "circuit_complexity_text": f"divergence of the outputs when weights are zeroed, in nats, {_TWO[0]}: a tenth of "
    "them, summed over the training set; mean of 4 random choices",
    "circuit_complexity_notebook": f"{_TWO[1]}: dropout of one half, mean over 200 images; mean of 4 random choices",
    "l2_norm": METRICS["l2_norm"],
}

#: Of `grokutils.records.signals.lead_times`.
LEAD_TIMES = {
    "member": _WHERE["member"],
    "layer": "name of the layer, `average` for the mean alpha of all, or `network` for a signal of all layers together",
    "signal": "what went off",
    "onset": "step at which it did",
    "fall": "step from which the test accuracy was 5 points below its best, for good",
    "lead_steps": "`fall` minus `onset`; negative if the signal came after the fall",
    "lead_decades": "log10 of `fall` over `onset`",
    "low": "a control goes off when it leaves the range from this ...",
    "high": "... to this",
}

#: Of a record's ``interventions.parquet``, one row per kept step, member and intervention.
INTERVENTIONS = {
    **_WHERE,
    "layer": "name of the layer, or `all layers`",
    "operation": "what was done: a trap `replaced by noise` or `taken out`; or what was put in: `entry`, `entries`, "
    "`mean`, `rank-one`",
    "trap": "number of the trap in the first shuffle, 0 for the largest; -1 where all were taken out, or something put in",
    "strength": "of what was put in: 1 where it would just be a trap",
    "control": "empty for the intervention itself; `direction`: a random rank-one part of the same norm; `places`: the "
    "same numbers added to other weights",
    "norm": "Frobenius norm of the change",
    "js": "Jensen–Shannon divergence of the outputs before and after, over random inputs, in nats",
    "js_error": "its standard error",
    "js_probes": "how many inputs it is the mean of",
    "js_reached": "whether the error is below 2 % of the value",
    "train_accuracy": "before the intervention, on the training set",
    "train_change": "change of it by the intervention",
    "train_low": "lower end of that change's 95 % bootstrap interval over the examples",
    "train_high": "upper end of it",
    "test_accuracy": "before the intervention, on the test set",
    "test_change": "change of it by the intervention",
    "test_low": "lower end of that change's 95 % bootstrap interval over the examples",
    "test_high": "upper end of it",
}

#: Of a record's ``regrowth.parquet``, one row per saved step of a fork, member and hidden layer.
REGROWTH = {
    "start": "what the fork began with: the weights of each network's `best` kept step, or of the record's `last`",
    "from_step": "that step",
    "arm": "`nothing done`; `traps taken out`: the largest of each hidden layer; `random direction`: a rank-one part of the "
    "same norm instead",
    "step": "optimisation steps since the fork; 0 is the edited network",
    **{name: _WHERE[name] for name in ("member", "seed", "weight_decay")},
    "layer": "name of the layer",
    "traps": DIAGNOSTICS["traps"],
    "trap_strength": DIAGNOSTICS["trap_strength"],
    "mean_over_std": DIAGNOSTICS["mean_over_std"],
    "train_accuracy": "share of training examples classified correctly",
    "test_accuracy": "share of test examples classified correctly",
}

#: Of the tables that a record stores, by the names of their files.
_STORED = {
    "metrics": METRICS,
    "diagnostics": DIAGNOSTICS,
    "spectra": SPECTRA,
    "baselines": BASELINES,
    "interventions": INTERVENTIONS,
    "regrowth": REGROWTH,
}


def stored(table: str) -> list[str]:
    """Columns of a table that a record keeps, by the name of its file.

    >>> stored("spectra")[:3]
    ['step', 'member', 'layer']
    """
    # verdicts are made from the numbers each time, by the thresholds of whoever asks
    return [name for name in _STORED[table] if table != "diagnostics" or name not in ("verdict", "reason")]


_INTRODUCTION = """\
<!-- Made from grokutils/util/columns.py, which says how; edit that. -->
# What every column means

Eigenvalues are those of $W^\\top W$ (squared singular values), neither centred nor divided by anything. Numbers that
could not be had are NaN, never a code, and a column says why.
"""


def page() -> str:
    """The book's page about columns, as Markdown."""
    parts = {
        "`diagnose`": (
            "A row per layer of `grokutils.diagnose(...)` and of `Monitor.history`; kept in a record as "
            "`diagnostics.parquet`, without the last two. The first four columns are there for a record only "
            "(`Monitor.history` has `step`).",
            DIAGNOSTICS,
        ),
        "`diagnose`, with `harmful=True`": ("The columns that this adds.", HARM),
        "`metrics.parquet`": ("A row per measured step and member: `Record.metrics`.", METRICS),
        "`metrics.parquet` of the transformer": (
            "A margin is the right logit less the largest other, of one pair of numbers: negative where the answer is "
            "wrong. NaN in records that were made without.", MARGINS,
        ),
        "`metrics.parquet`, each layer": (
            "Columns of one layer start with its name and an underscore: `fc1_max_abs`.", METRICS_PER_LAYER,
        ),
        "`spectra.parquet`": (
            "A row per saved step, member, layer and shuffle, so that spectra can be drawn without the weights.",
            SPECTRA,
        ),
        "`baselines.parquet`": ("A row per saved step and member.", BASELINES),
        "`interventions.parquet`": (
            "A row per kept step, member and intervention: `grokutils.paper.harmful_traps.intervention_study.interventions_of`.",
            INTERVENTIONS,
        ),
        "`regrowth.parquet`": (
            "A row per fork, saved step, member and hidden layer: `grokutils.paper.harmful_traps.regrowth.regrowth_of`.", REGROWTH,
        ),
        "`lead_times`": ("A row per layer and signal of `Study.leads` (`grokutils.records.signals.lead_times`).", LEAD_TIMES),
    }  # fmt: skip
    text = _INTRODUCTION
    for title, (about, columns) in parts.items():
        text += f"\n## {title}\n\n{about}\n\n| column | meaning |\n|---|---|\n"
        text += "".join(
            f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |\n" for name, meaning in columns.items()
        )
    return text
