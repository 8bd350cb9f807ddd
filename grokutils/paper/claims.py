"""The papers' claims as data, each with the test that judges it. No verdict is typed: all are computed from records.

>>> judged = judge()                                                 # doctest: +SKIP
>>> judged.verdict("three-phases", "express")                        # doctest: +SKIP
'replicates'

``grokutils claims`` prints the verdicts and writes all of it as JSON.

P1, P2 and P3 are the papers that `grokutils.paper.judge.published` names; S is SETOL (arXiv 2507.17912).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from grokutils.paper.causes.claims import CAUSE_CLAIMS, CAUSE_RECORDS, CAUSE_TOPIC
from grokutils.paper.harmful_traps.claims import HARM_CLAIMS, HARM_TOPIC
from grokutils.paper.judge import evidence as q
from grokutils.paper.judge import impossible
from grokutils.paper.judge import published as printed
from grokutils.paper.judge.findings import informedness, mean, median, phase_accuracy, separation, share
from grokutils.paper.judge.judging import (
    Claim,
    Judged,
    Part,
    Range,
    around,
    at_least,
    at_most,
    judge_claims,
    spreads,
)
from grokutils.records.files import write_json
from grokutils.records.phases import PHASES
from grokutils.records.record import load_record
from grokutils.records.signals import ALPHA_LOW, LAYER_CONTROLS, NETWORK_CONTROLS, TRAPPED_FROM
from grokutils.util import paths

__all__ = ["CLAIMS", "REFERENCE", "TOPICS", "judge", "table", "with_run", "write"]

#: What a claim needs, by scale and by what it needs it as; None where a scale has no such experiment.
REFERENCE: dict[str, dict[str, str | None]] = {
    "express": {
        "wd0": "results/express/wd0", "wd0.01": "results/express/wd0.01", "modular": None, **CAUSE_RECORDS,
    },
    "paper": {
        "wd0": "results/mnist-wd0", "wd0.01": "results/mnist-wd0.01", "modular": "results/modular-wd1",
        **dict.fromkeys(CAUSE_RECORDS),
    },
}


#: Of shares of networks: what is said of all of them, and of none.
ALWAYS, NEVER = at_least(0.9, 0.5), at_most(0.1, 0.5)
#: Of Youden's J: a signal that identifies something, and one that does not.
IDENTIFIES, IGNORES = at_least(0.8, 0.3), at_most(0.3, 0.6)


#: Topics, in the order of the page.
TOPICS = {
    "phases": "Accuracies and norms",
    "alpha": "Alpha",
    "traps": "Correlation traps",
    "measures": "Other measures",
    "modular": "Modular addition",
    **HARM_TOPIC,
    **CAUSE_TOPIC,
    "arithmetic": "Printed numbers",
}

PRE, PEAK, END = PHASES
FC = ("fc1", "fc2")
EIGHT = tuple(printed.MODULAR_MATRICES.values())
WHERE = {"fc1": "FC1", "fc2": "FC2", "average": "the average of FC1 and FC2", "network": "the network"}
LASTS = "for three measurements in a row (fewer at the end of a record)"
WHERE_ALPHA = {where: WHERE[where] for where in (*FC, "average")}
#: Alpha as the authors' published notebook computes it, which their text does not say.
CLIPPED = {where: f"{WHERE[where]}, clipped" for where in (*FC, "average")}
BELOW_2, CLIPPED_BELOW_2 = "alpha below 2", "alpha_clipped below 2"
#: The papers' other measures, each in both definitions.
RIVALS = {name.replace("_", " "): ("network", name) for name in NETWORK_CONTROLS}
#: Of a measure that is computed in two ways.
TWO = ", the better of its definitions"
ALPHAS = {f"alpha of {WHERE[where]}": (where, "alpha") for where in (*FC, "average")}


def _table_1(where: str) -> tuple[Part, ...]:
    judged = (
        Part(
            f"alpha of {WHERE[where]}, {phase}", median("wd0", q.at(phase, where, "alpha_clipped")),
            spreads(printed.TABLE_1[where][phase]), str(printed.TABLE_1[where][phase]),
        )
        for phase in PHASES
    )  # fmt: skip
    plain = (
        Part(f"... nothing clipped, {phase}", median("wd0", q.at(phase, where, "alpha"))) for phase in PHASES
    )
    return (*judged, *plain)


def _rival(name: str) -> dict[str, tuple[str, str]]:
    """A measure in both definitions."""
    return {label: where for label, where in RIVALS.items() if label.startswith(name)}


def _warnings(names: Sequence[str], where: str) -> tuple[Part, ...]:
    """How well each control would have warned; shown, not judged."""
    return tuple(
        Part(
            f"Youden's J of a warning by {name.replace('_', ' ')} of {WHERE[where]}",
            informedness({name: q.warned(where, name)}),
        )
        for name in names
    )


CLAIMS: tuple[Claim, ...] = (
    # -- accuracies and norms --------------------------------------------------------------------------
    Claim(
        "three-phases", "phases", "There are three phases",
        "Without weight decay a network first learns its training set while test accuracy stays low, then "
        "generalises, and then loses more than 25 points of test accuracy while every training image is "
        "still classified correctly.",
        "P1 abstract, section 1, Figure 1; P2 and P3 abstracts",
        "a fall of over 25 points; training accuracy 1",
        ("wd0",),
        (
            Part("test accuracy where the training set is learnt", median("wd0", "at_learning"),
                 at_most(0.3, 0.5), "low"),
            Part("rise from there to the best", median("wd0", q.less("best", "at_learning")), at_least(0.25, 0.1), "to 0.85"),
            Part("fall from the best to the end", median("wd0", q.lost()), at_least(0.25, 0.1), "over 0.25"),
            Part("networks that fell by 0.25 or more", share("wd0", q.reaches(0.25, q.lost(0.25))), ALWAYS, "all"),
            Part("training accuracy at the end", median("wd0", q.at_fall("train_final")), at_least(0.999, 0.98),
                 "1", ".3f"),
            Part("networks that fell by 0.10 or more", share("wd0", q.reaches(0.10, q.lost(0.10)))),
        ),
        "How far accuracy falls depends on how long one trains; where each record ends is said above.",
    ),
    Claim(
        "memorisation", "phases", "When the training set is learnt",
        "Training accuracy saturates between ten thousand and a hundred thousand steps, with test accuracy "
        "between 0.1 and 0.2.",
        "P1 Figure 1", "1e4 to 1e5 steps, test accuracy 0.1 to 0.2", ("wd0",),
        (
            Part("test accuracy where the training set is learnt", median("wd0", "at_learning"),
                 Range((0.1, 0.2), (0.05, 0.35)), "0.1 to 0.2"),
            Part("step at which all training images are right", median("wd0", "saturated"),
                 Range(printed.FIGURE_1["train_saturates_steps"], (1e3, 1e6)), "1e4 to 1e5", ",.0f", only="paper"),
            Part("step at which 99 % of them are", median("wd0", "learnt"), style=",.0f"),
        ),
    ),
    Claim(
        "peak", "phases", "The peak",
        "Test accuracy is best, at about 0.85, near a million steps: long after the training set was learnt.",
        "P1 Figure 1", "0.85 near 1e6 steps", ("wd0",),
        (
            Part("best test accuracy", median("wd0", "best"),
                 around(printed.FIGURE_1["peak_accuracy"], 0.05, 0.10), str(printed.FIGURE_1["peak_accuracy"])),
            Part("its step over that at which the training set was learnt",
                 median("wd0", q.over("peak", "learnt")), at_least(10, 3), "10 to 100", ".3g"),
            Part("its step", median("wd0", "peak"), Range((5e5, 2e6), (1e5, 1e7)), "1e6", ",.0f",
                 only="paper"),
        ),
    ),
    Claim(
        "back-to-chance", "phases", "The fall ends at chance",
        "The collapse takes test accuracy all the way back to chance.",
        "P2 abstract (P1 Figure 1 shows 0.45 to 0.5)", "back to chance", ("wd0",),
        (
            Part("share of the way from the best test accuracy down to chance", median("wd0", q.way_to_chance),
                 at_least(0.9, 0.5), "1 (0.5 in P1)"),
            Part("test accuracy at the end", median("wd0", "final"), paper="0.45 to 0.5 in P1"),
        ),
        "How far accuracy falls depends on how long one trains; where each record ends is said above.",
    ),
    Claim(
        "norm-grows", "phases", "The norm grows",
        "Without weight decay the l2 norm of the weights is flat until test accuracy rises, and several "
        "times as large at the end: grokking needs no shrinking norm.",
        "P1 sections 1 and 4.1, the curve of the norm; after Golechha", "90 until 1e5 steps, 420 at 1e7",
        ("wd0",),
        (
            Part("norm before the network's own rise over that at the start",
                 median("wd0", q.over("norm_rise", "norm_start")),
                 around(1, 0.1, 0.25), "1"),
            Part("norm at the end over that at the start", median("wd0", q.over(q.at(END, "network", "l2_norm"), "norm_start")),
                 at_least(3, 1.5), f"{printed.L2_NORM['final'] / printed.L2_NORM['flat']:.1f}"),
            Part("norm at the end", median("wd0", q.at(END, "network", "l2_norm")),
                 around(printed.L2_NORM["final"], 84, 210), f"{printed.L2_NORM['final']:.0f}", ".0f", only="paper"),
        ),
    ),
    Claim(
        "decay-prevents", "phases", "Weight decay prevents the collapse",
        "With a weight decay of 0.01 test accuracy reaches as high a peak and then stays on a plateau near "
        "it, while the norm shrinks.",
        "P1 Appendix C, Figures 6 and 7", "0.88, then 0.83 to 0.85; no collapse", ("wd0.01",),
        (
            Part("networks that collapsed (by 0.10 for good)", share("wd0.01", q.collapsed), NEVER, "none"),
            Part("fall from the best to the end",
                 median("wd0.01", q.less("best", "final")), at_most(0.05, 0.10), "0.03 to 0.05"),
            Part("norm at the end over that at the start",
                 median("wd0.01", q.over(q.at(END, "network", "l2_norm"), "norm_start")), at_most(1, 1.2), "under 1"),
            Part("best test accuracy", median("wd0.01", "best"),
                 around(printed.FIGURE_1["peak_accuracy_decay"], 0.05, 0.10), str(printed.FIGURE_1["peak_accuracy_decay"]),
                 only="paper"),
        ),
        exclusive=True,
    ),
    # -- alpha -----------------------------------------------------------------------------------------
    Claim(
        "alpha-falls", "alpha", "Alpha falls from phase to phase",
        "In both hidden layers, and in their average, alpha is lower at the peak than before grokking, and "
        "lower still after the collapse.",
        "P1 Table 1, Figure 4", "4.3, 2.8, 1.2 on average", ("wd0",),
        tuple(
            Part(f"networks in which alpha of {WHERE[where]} falls twice", share("wd0", q.falls(where)),
                 ALWAYS, "all")
            for where in (*FC, "average")
        ),
        "Alpha of one matrix at one step is uncertain by several tenths, and by several units in a random "
        "matrix.",
    ),
    Claim(
        "alpha-values", "alpha", "The values of alpha",
        "The mean alphas of the two hidden layers at the right edges of the three phases.",
        "P1 Table 1", "Table 1", ("wd0",), (*_table_1("fc1"), *_table_1("fc2"), *_table_1("average")),
        "Judged within two of the spreads that the table prints, and with up to nine of the largest "
        "eigenvalues clipped, as the authors' published notebook does and the text does not say. P2 and "
        f"the arXiv version of P1 print {', '.join(map(str, printed.TABLE_1_ARXIV['fc1'].values()))} for FC1 and "
        f"{', '.join(map(str, printed.TABLE_1_ARXIV['fc2'].values()))} for FC2. Alpha depends on a layer's size, which differs "
        "between the recipes. A range that reaches below 1 reaches below what alpha can be.",
    ),
    Claim(
        "alpha-identifies", "alpha", "Alpha below 2 identifies the collapse",
        "A network is in collapse where alpha of one of its layers is below 2.",
        "P1 section 1 (fourth contribution), section 3.1", "always, and only then", ("wd0", "wd0.01"),
        (
            *(Part(f"Youden's J of alpha below 2 in {WHERE[where]}", informedness({where: q.alarmed(where, BELOW_2)}),
                   IDENTIFIES, "1") for where in (*FC, "average")),
            Part("Youden's J of alpha below 2 in FC1 or FC2",
                 informedness({"either": q.any_of(*(q.alarmed(where, BELOW_2) for where in FC))}), IDENTIFIES, "1"),
            *(Part(f"Youden's J of alpha below 2 in {name}", informedness({where: q.alarmed(where, CLIPPED_BELOW_2)}),
                   IDENTIFIES, "1") for where, name in CLIPPED.items()),
        ),
        f"J is the share of collapsed networks with alpha below 2 {LASTS}, less the share of the others, nearly all of "
        "weight decay 0.01. Alpha both as fitted and clipped as the authors' notebook has it.",
        exclusive=True,
    ),
    Claim(
        "alpha-warns", "alpha", "Alpha below 2 comes before the fall",
        "Alpha gives an early warning: it is below 2 before test accuracy falls.",
        "P1 abstract, section 4.1; the abstract of its workshop version", "invariably", ("wd0",),
        (
            *(Part(f"networks in which alpha of {WHERE[where]} was below 2 before the fall",
                   share("wd0", q.warned_of_collapse(where, BELOW_2)), ALWAYS, "all") for where in FC),
            *(Part(f"networks in which alpha of {name} was below 2 before the fall",
                   share("wd0", q.warned_of_collapse(where, CLIPPED_BELOW_2)), ALWAYS, "all") for where, name in CLIPPED.items()),
            *(Part(f"decades of steps from alpha below 2 in {WHERE[where]} to the fall",
                   median("wd0", q.lead_decades(where, BELOW_2))) for where in (*FC, "average")),
            *(Part(f"decades of steps from alpha below 2 in {name} to the fall",
                   median("wd0", q.lead_decades(where, CLIPPED_BELOW_2))) for where, name in CLIPPED.items()),
            *(Part(f"decades from the first trap in {WHERE[where]} to the fall",
                   median("wd0", q.lead_decades(where, "first trap"))) for where in FC),
            *(Part(f"decades from {name.replace('_', ' ')} of {WHERE[where]} to the fall",
                   median("wd0", q.lead_decades(where, name))) for where in FC for name in LAYER_CONTROLS),
            *(Part(f"decades from {name.replace('_', ' ')} to the fall",
                   median("wd0", q.lead_decades("network", name))) for name in NETWORK_CONTROLS),
        ),
        "The fall is where test accuracy is 5 points under its best for good. A control goes off when it "
        "leaves the range of its values before grokking by more than the width of that range; a lead in "
        "decades is negative if the signal came after the fall.",
    ),
    Claim(
        "alpha-warns-alone", "alpha", "Only alpha warns",
        "No other measure gives an early warning of the collapse.",
        "P1 abstract, sections 4.1 and 5", "uniquely alpha", ("wd0", "wd0.01"),
        (
            Part("Youden's J of a warning by alpha below 2, the best of FC1, FC2 and their average, clipped or not",
                 informedness({name: q.warned(w, signal) for signal, names in ((BELOW_2, WHERE_ALPHA), (CLIPPED_BELOW_2, CLIPPED))
                               for w, name in names.items()}), IDENTIFIES, "1"),
            Part("Youden's J of a warning by the best of the papers' other measures",
                 informedness({name: q.warned(*place) for name, place in RIVALS.items()}), IGNORES, "0"),
            *_warnings(NETWORK_CONTROLS, "network"), *_warnings(LAYER_CONTROLS, "fc1"),
            *_warnings(LAYER_CONTROLS, "fc2"),
        ),
        "J is the share of collapsed networks warned before the fall, less the share of the others alarmed "
        "at any time, and so for longer. The best of several measures is flattered by having been chosen.",
        exclusive=True,
    ),
    Claim(
        "alpha-alone-three", "alpha", "Only alpha tells all three phases apart",
        "From alpha one can tell which of the three phases a network is in; from no other measure.",
        "P1 section 1 (second contribution); the abstract of its workshop version", "alpha alone", ("wd0",),
        (
            Part("phases told rightly from alpha, the best of FC1, FC2 and their average",
                 phase_accuracy("wd0", ALPHAS), at_least(0.9, 0.6), "1"),
            Part("phases told rightly from the best of the other measures", phase_accuracy("wd0", RIVALS),
                 at_most(0.75, 0.9), "2 of 3"),
            *(Part(f"phases told rightly from {name}", phase_accuracy("wd0", {name: place}))
              for name, place in (ALPHAS | RIVALS).items()),
        ),
        "Each network's phases are told by the two thresholds that tell the other networks' best; a third is chance.",
        exclusive=True,
    ),
    Claim(
        "setol-alignment", "alpha", "Alpha and the ERG condition agree",
        "A layer's alpha is nearest to 2 where the tail that the fit chooses is nearest to the one that the "
        "ERG condition chooses.",
        "S abstract", "they align remarkably well", ("wd0",),
        tuple(
            Part(f"rank correlation of |alpha - 2| with |ERG gap| in {WHERE[where]}",
                 median("wd0", q.alpha_against_erg(where)), at_least(0.5, 0.2), "positive")
            for where in FC
        ),
        "S tests it on a perceptron that does not grok. Over the steps of each run from memorisation on, where both "
        "move one way for much of the time and share the eigenvalue at which the tail begins: they would correlate in any case.",
    ),
    # -- traps -----------------------------------------------------------------------------------------
    Claim(
        "no-traps-before", "traps", "No traps before the collapse",
        "Neither before grokking nor at the best test accuracy does either hidden layer hold a correlation "
        "trap.",
        "P1 Table 2, section 4.2", "0", ("wd0",),
        tuple(
            Part(f"networks without traps in {WHERE[where]}, {phase}",
                 share("wd0", q.under(TRAPPED_FROM, q.at(phase, where, "traps"))), ALWAYS,
                 f"all ({printed.TABLE_2[0.0, where][phase]} traps)")
            for where in FC for phase in (PRE, PEAK)
        ) + tuple(
            Part(f"traps in {WHERE[where]} before the network's own rise", mean("wd0", q.at("rise", where, "traps")))
            for where in FC
        ),
        "A network counts as without traps if fewer than half of the shuffles show one. A record of the paper's recipe is read "
        "at the paper's steps, though its test accuracy may rise earlier than the paper's did; its own rise is shown as well.",
        exclusive=True,
    ),
    Claim(
        "traps-at-collapse", "traps", "Traps at the collapse",
        "After the collapse both hidden layers hold traps.",
        "P1 Table 2, section 4.2; P2 abstract", "6.33 and 1.00", ("wd0",),
        tuple(
            Part(f"networks with traps in {WHERE[where]}, {END}",
                 share("wd0", q.reaches(TRAPPED_FROM, q.at(END, where, "traps"))), ALWAYS, "all")
            for where in FC
        ),
    ),
    Claim(
        "many-and-one", "traps", "Many traps in FC1, one in FC2",
        "After the collapse the first layer holds several traps and the second exactly one.",
        "P1 Table 2; P2 and P3", f"{printed.TABLE_2[0.0, 'fc1'][END]} and {printed.TABLE_2[0.0, 'fc2'][END]}", ("wd0",),
        (
            Part("mean number of traps in FC1", mean("wd0", q.at(END, "fc1", "traps")),
                 Range((2, 12), (1, 25)), f"{printed.TABLE_2[0.0, 'fc1'][END]}, {printed.TABLE_2_LATER[0.0, 'fc1'][END]}"),
            Part("mean number of traps in FC2", mean("wd0", q.at(END, "fc2", "traps")),
                 around(printed.TABLE_2[0.0, "fc2"][END], 0.25, 0.75), str(printed.TABLE_2[0.0, "fc2"][END])),
            Part("networks with at least one trap more in FC1 than in FC2",
                 share("wd0", q.outnumber(END, "fc1", "fc2"))),
            Part("largest weight of FC1 in standard deviations",
                 median("wd0", q.at(END, "fc1", "max_over_std")), style=".1f"),
            Part("mean weight of FC2 in standard deviations",
                 median("wd0", q.at(END, "fc2", "mean_over_std"))),
        ),
        "A mean that is not zero makes one trap at most; more need outlying single weights.",
    ),
    Claim(
        "decay-awkward", "traps", "Low alpha and traps without a collapse",
        "With a weight decay of 0.01, where nothing collapses, alpha of FC2 nevertheless ends below 2, and "
        "both layers hold traps.",
        "P1 Table 2, Figure 6", f"FC2 alpha {printed.FIGURE_1['final_alpha_fc2_decay']}; 2.00 and 1.00 traps",
        ("wd0.01",),
        (
            Part("networks that collapsed (by 0.10 for good)", share("wd0.01", q.collapsed), NEVER, "none"),
            Part("networks with alpha of FC2 below 2 at the end",
                 share("wd0.01", q.under(ALPHA_LOW, q.at(END, "fc2", "alpha"))), ALWAYS, "all"),
            Part("the same with alpha clipped", share("wd0.01", q.under(ALPHA_LOW, q.at(END, "fc2", "alpha_clipped")))),
            Part(f"networks with alpha of FC2 below 2 at any time, {LASTS}", share("wd0.01", q.alarmed("fc2", BELOW_2))),
            *(Part(f"networks with traps in {WHERE[where]} at the end",
                   share("wd0.01", q.reaches(TRAPPED_FROM, q.at(END, where, "traps"))), ALWAYS, "all") for where in FC),
            Part("alpha of FC2 at the end", median("wd0.01", q.at(END, "fc2", "alpha")),
                 paper=str(printed.FIGURE_1["final_alpha_fc2_decay"])),
            *(Part(f"mean number of traps in {WHERE[where]} at the end",
                   mean("wd0.01", q.at(END, where, "traps")), paper=str(printed.TABLE_2[0.01, where][END]))
              for where in FC),
        ),
        "That it replicates counts against the claim that either signal identifies the collapse.",
    ),
    Claim(
        "traps-definitive", "traps", "Traps with alpha below 2 are definitive",
        "A layer that holds traps and has alpha below 2 shows definitively that the network is in collapse.",
        "P1 section 4.2", "definitive", ("wd0", "wd0.01"),
        (
            *(Part(f"Youden's J of a trap and alpha below 2 in {WHERE[where]}",
                   informedness({where: q.alarmed(where, "first trap", BELOW_2)}), IDENTIFIES, "1")
              for where in FC),
            *(Part(f"Youden's J of a trap in {WHERE[where]}", informedness({where: q.alarmed(where, "first trap")}))
              for where in FC),
        ),
        exclusive=True,
    ),
    Claim(
        "traps-detect", "traps", "Traps detect the onset of overfitting",
        "Traps appear when the network begins to overfit, and so tell of it without any data.",
        "P2 and P3 abstracts", "at the onset", ("wd0", "wd0.01"),
        (
            Part("Youden's J of a warning by the first trap, the better of FC1 and FC2",
                 informedness({WHERE[w]: q.warned(w, "first trap") for w in FC}), IDENTIFIES, "1"),
            Part("Youden's J of a warning by one trap more, the better of FC1 and FC2",
                 informedness({WHERE[w]: q.warned(w, "trap growth") for w in FC}), IDENTIFIES, "1"),
            Part("Youden's J of a warning by the largest weight in standard deviations, the better of FC1 and FC2",
                 informedness({WHERE[w]: q.warned(w, "max_over_std") for w in FC})),
        ),
    ),
    Claim(
        "traps-grow", "traps", "Traps grow as test accuracy falls",
        "From the best test accuracy on, traps become more, and larger, as test accuracy goes down.",
        "P3 abstract", "in number and scale", ("wd0",),
        (
            *(Part(f"rank correlation of the number of traps in {WHERE[w]} with test accuracy",
                   median("wd0", q.rank_correlation(w, "traps")), at_most(-0.5, -0.2),
                   "negative") for w in FC),
            *(Part(f"rank correlation of the largest trap in {WHERE[w]} with test accuracy",
                   median("wd0", q.rank_correlation(w, "trap_strength")), at_most(-0.5, -0.2),
                   "negative") for w in FC),
            Part("the same of the largest weight of FC1 over the standard deviation",
                 median("wd0", q.rank_correlation("fc1", "max_over_std"))),
            Part("the same of the l2 norm",
                 median("wd0", q.rank_correlation("network", "l2_norm"))),
        ),
        "Whatever grows with time correlates with a fall: compare the last two numbers.",
    ),
    Claim(
        "random-before", "traps", "Shuffled FC1 is random before the collapse",
        "Before grokking and at the peak, shuffled FC1 follows the Marchenko-Pastur law: a "
        "Kolmogorov-Smirnov test finds nothing.",
        "P1 Table 4, Appendix D", "p ≈ 1", ("wd0",),
        (
            *(Part(f"networks with a Monte-Carlo p of 0.05 or more, {phase}",
                   share("wd0", q.reaches(0.05, q.at(phase, "fc1", "ks_p"))), ALWAYS, "all") for phase in (PRE, PEAK)),
            *(Part(f"the textbook's p, {phase}", median("wd0", q.at(phase, "fc1", "ks_p_textbook")),
                   paper=str(printed.TABLE_4["ks_p_textbook"][phase]), style=".2g") for phase in PHASES),
            *(Part(f"KS distance, {phase}", median("wd0", q.at(phase, "fc1", "ks_D")),
                   paper=str(printed.TABLE_4["ks_D"][phase]), style=".4f") for phase in (PRE, PEAK)),
        ),
        "Eigenvalues repel each other, so that the textbook's p is near 1 for any spectrum; the Monte-Carlo "
        "p compares with random matrices of the same shape. Every p is of one shuffle, and shuffles of one matrix differ: "
        "of a record with a single network it is weak evidence.",
    ),
    Claim(
        "deviates-after", "traps", "Shuffled FC1 deviates after the collapse",
        "After the collapse shuffled FC1 is far from the Marchenko-Pastur law.",
        "P1 Table 4, Figure 3", "D = 0.3044, p = 1.877e-5", ("wd0",),
        (
            Part("networks with a Monte-Carlo p under 0.05",
                 share("wd0", q.under(0.05, q.at(END, "fc1", "ks_p"))), ALWAYS, "all"),
            Part("KS distance", median("wd0", q.at(END, "fc1", "ks_D")), Range((0.15, 0.45), (0.05, 0.6)),
                 str(printed.TABLE_4["ks_D"][END]), ".4f", only="paper"),
        ),
        "A distance depends on the size of the matrix.",
    ),
    # -- other measures --------------------------------------------------------------------------------
    *(
        Claim(
            f"{name.replace(' ', '-')}-blind", "measures",
            f"{name[0].upper() + name[1:]} does not show the collapse",
            f"{name[0].upper() + name[1:]} does not distinguish a network after the collapse from one at "
            "its best test accuracy.",
            "P1 section 4.1, Figure 5; the abstract of its workshop version", "not distinguished", ("wd0",),
            (
                Part(f"separation of the two phases{best}", separation("wd0", _rival(key)), at_most(0.4, 0.8), "0"),
                Part("separation by alpha, the best of FC1, FC2 and their average", separation("wd0", ALPHAS)),
            ),
            "0: the values of the two phases overlap wholly; 1: one threshold tells them apart in all "
            "networks. A separation between two times says nothing about warning, nor that the measure "
            "would know a collapse from mere age. P1 says in section 4.1 that some of these do change at the "
            "transition; that none tells of it is said in the abstract of the workshop version.",
        )
        for name, key, best in (
            ("activation sparsity", "activation sparsity", TWO), ("weight entropy", "absolute weight entropy", TWO),
            ("circuit complexity", "circuit complexity", TWO), ("l2 norm", "l2 norm", ""),
        )
    ),
    # -- modular addition ------------------------------------------------------------------------------
    Claim(
        "modular-phases", "modular", "Modular addition has the three phases too",
        "A one-layer transformer on addition modulo 113 generalises long after memorising, and then loses "
        "it again.",
        "P2 Appendix H, P3 A.3",
        ", ".join(str(printed.MODULAR_ACCURACY["test_accuracy"][phase]) for phase in PHASES), ("modular",),
        (
            Part("best test accuracy", median("modular", "best"), at_least(0.95, 0.9),
                 str(printed.MODULAR_ACCURACY["test_accuracy"][PEAK])),
            Part("its step over that at which the training set was learnt",
                 median("modular", q.over("peak", "learnt")), at_least(3, 1.5), "later"),
            Part("fall from the best to the end", median("modular", q.lost()), at_least(0.25, 0.1), "0.29"),
            Part("training accuracy at the end", median("modular", q.at_fall("train_final")),
                 at_least(0.999, 0.98), "1", ".3f"),
        ),
    ),
    Claim(
        "modular-alpha", "modular", "There alpha falls to 2 and rises again",
        "In the transformer the mean alpha of the eight matrices is near 2 while it generalises and far "
        "above before and after.",
        "P2 Appendix H, P3 A.3", ", ".join(str(printed.MODULAR_TABLE["mean"][phase]) for phase in PHASES),
        ("modular",),
        (
            *(Part(f"mean alpha of the eight matrices, {phase}",
                   median("modular", q.mean_over(phase, EIGHT, "alpha")),
                   around(printed.MODULAR_TABLE["mean"][phase], 0.5, 1), str(printed.MODULAR_TABLE["mean"][phase]))
              for phase in PHASES),
            *(Part(f"alpha of {ours}, {phase}", median("modular", q.at(phase, ours, "alpha")),
                   paper=str(printed.MODULAR_TABLE[theirs][phase]))
              for theirs, ours in printed.MODULAR_MATRICES.items() for phase in PHASES),
        ),
    ),
    Claim(
        "modular-opposite", "modular", "One collapse, two directions",
        "At the collapse alpha falls below 2 in the perceptron, and rises away from 2 in the transformer.",
        "P1 Table 1; P2 Appendix H, P3 A.3",
        f"{printed.TABLE_1['average'][END]} in the one, {printed.MODULAR_TABLE['mean'][END]} in the other", ("wd0", "modular"),
        (
            Part("perceptrons whose average alpha of FC1 and FC2 is below 2 at the end",
                 share("wd0", q.under(ALPHA_LOW, q.at(END, "average", "alpha"))), ALWAYS, "all"),
            Part("rise of the transformer's mean alpha from its best test accuracy to the end",
                 median("modular", q.less(q.mean_over(END, EIGHT, "alpha"), q.mean_over(PEAK, EIGHT, "alpha"))),
                 at_least(1, 0.25), f"{float(printed.MODULAR_TABLE['mean'][END]) - float(printed.MODULAR_TABLE['mean'][PEAK]):.2f}"),
        ),
        "If both hold, no single threshold for alpha can tell of both collapses.",
    ),
    Claim(
        "modular-traps", "modular", "There, too, traps come with the collapse",
        "None of the eight matrices holds a trap before the collapse; afterwards all of them hold several.",
        "P2 Appendix H, P3 A.3", f"0, then {printed.MODULAR_TRAPS['mean'][END]}", ("modular",),
        (
            Part("networks without traps in any matrix before",
                 share("modular", q.under(TRAPPED_FROM, *(q.at(phase, x, "traps") for x in EIGHT for phase in (PRE, PEAK)))), ALWAYS, "all"),
            Part("mean number of traps of the eight matrices at the end",
                 mean("modular", q.mean_over(END, EIGHT, "traps")), Range((2, 8), (0.5, 12)),
                 str(printed.MODULAR_TRAPS["mean"][END])),
            *(Part(f"traps in {ours} at the end", mean("modular", q.at(END, ours, "traps")),
                   paper=str(printed.MODULAR_TRAPS[theirs][END])) for theirs, ours in printed.MODULAR_MATRICES.items()),
        ),
    ),
    *HARM_CLAIMS,
    *CAUSE_CLAIMS,
    # -- what needs no record --------------------------------------------------------------------------
    Claim(
        "alpha-at-most-1", "arithmetic", "A mean alpha of 1.0",
        "Alpha of FC1 after the collapse is 1.0 in the mean over seeds (0.9 in another version).",
        "P1 Table 1; its arXiv version and P2", f"{printed.TABLE_1['fc1'][END]}; {printed.TABLE_1_ARXIV['fc1'][END]}", (),
        (
            Part("largest mean that is printed so, less the smallest alpha that the estimator can give",
                 impossible.excess_after_rounding(printed.TABLE_1["fc1"][END]), at_least(0, 0), "1.0", ".4f"),
            Part("the same of the other version",
                 impossible.excess_after_rounding(printed.TABLE_1_ARXIV["fc1"][END]), at_least(0, 0), "0.9", ".4f"),
            Part("networks that a mean and a spread printed so take at least",
                 impossible.networks_for_spread(printed.TABLE_1["fc1"][END], str(printed.TABLE_1["fc1"][END]).partition("± ")[2]),
                 paper=str(printed.TABLE_1["fc1"][END]), style=".0f"),
        ),
        "The estimator, 1 + n / sum of ln(x / xmin), exceeds 1 on any float32 weights. A mean at or below 1 "
        "needs failed fits, which WeightWatcher codes as -1, averaged in; so, unless there were very many networks, does a "
        "mean of 1.0 with a spread as large as the printed one.",
    ),
    Claim(
        "ks-pair", "arithmetic", "D = 0.3044 with p = 1.877e-5",
        "The Kolmogorov-Smirnov distance 0.3044 of shuffled FC1, of 200 eigenvalues, has the p-value "
        "1.877e-5.",
        "P1 Table 4, Appendix D, Figure 3", "1.877e-5", (),
        (
            Part("decades between the printed p and that of 0.3044 with 200 points",
                 impossible.decades_off(printed.TABLE_4["ks_D"][END], printed.TABLE_4["ks_p_textbook"][END], 200),
                 at_most(0.5, 1), "0", ".1f"),
            Part("points that would give the printed p",
                 impossible.points_for(printed.TABLE_4["ks_D"][END], printed.TABLE_4["ks_p_textbook"][END]), paper="200",
                 style=".0f"),
        ),
        "By the textbook's own formula for independent points.",
    ),
    Claim(
        "ks-peak-random", "arithmetic", "D = 0.0212 is random",
        "At the peak, the distance 0.0212 of shuffled FC1 from the Marchenko-Pastur law shows it to be "
        "random.",
        "P1 Table 4, Appendix D", "p ≈ 1", (),
        (
            Part("share of random matrices at least as far from the law",
                 impossible.random_share(printed.TABLE_4["ks_D"][PEAK]), at_least(0.05, 0.01), "≈ 1", ".3f"),
            Part("the same for the distance 0.0120 before grokking",
                 impossible.random_share(printed.TABLE_4["ks_D"][PRE]), paper="≈ 1", style=".3f"),
        ),
        "Of 400 Gaussian matrices of 200 x 784, sigma fitted to each as to the layer.",
    ),
    Claim(
        "trap-size", "arithmetic", "A trap at ten to the 6.5",
        "Right before the collapse shuffled FC2 has an eigenvalue of about 10^6.5.",
        "P1 Figure 3", "10^6.5", (),
        (
            Part("its decimal logarithm, less that of the squared l2 norm of all weights at the end",
                 impossible.trap_over_norm(6.5, printed.L2_NORM["final"]), at_most(0, 0.1), "6.5"),
            Part("less that of the number of eigenvalues, their sum after rescaling",
                 impossible.trap_over_count(6.5, 200)),
        ),
        "No eigenvalue exceeds the sum of all, which is the squared norm of the layer, and in rescaled "
        "units their number. As a natural logarithm, 6.5 would be possible.",
    ),
)  # fmt: skip


# -- judging ---------------------------------------------------------------------------------------


def judge(
    records: Mapping[str, Mapping[str, str | os.PathLike | None]] = REFERENCE,
    claims: Sequence[Claim] = CLAIMS,
    progress: bool = True,
) -> Judged:
    """Judge all claims on records, by the rule `grokutils.paper.judge.judging.RULE`.

    >>> judge({"mine": {"wd0": "runs/x"}}).verdict("three-phases", "mine")      # doctest: +SKIP
    'not yet measured'

    Parameters
    ----------
    records : by scale (any name) and need ("wd0", "wd0.01", "modular"): names or folders, None for a need that
        the scale has nothing to do with
    claims : those to judge
    progress : of analyses that the records do not hold yet

    Raises
    ------
    RecordError : a damaged record. One that is not there is no error: what needs it is not yet measured.
    """
    return judge_claims(claims, records, progress)


def with_run(run: str | os.PathLike | None) -> dict[str, Mapping[str, str | os.PathLike | None]]:
    """The reference records, and a run of the reader's own as a scale of its own.

    >>> list(with_run(None))
    ['express', 'paper']

    Raises
    ------
    FileNotFoundError : no such run.
    """
    records: dict[str, Mapping[str, str | os.PathLike | None]] = dict(REFERENCE)
    if run is None:
        return records
    config = load_record(run).config
    decays = [network.weight_decay for network in config.networks]
    if config.dataset == "modular-addition":
        return records | {"your run": {"wd0": None, "wd0.01": None, "modular": run, **dict.fromkeys(CAUSE_RECORDS)}}
    needs: dict[str, str | os.PathLike | None] = {"modular": None, **dict.fromkeys(CAUSE_RECORDS)}
    if min(decays) == 0:
        needs["wd0"] = run
    if max(decays) > 0:
        needs["wd0.01"] = run
    return records | {"your run": needs}


# -- writing ---------------------------------------------------------------------------------------


def default_file() -> Path:
    """Where the book takes the JSON from: among the files that a build copies beside the pages; git ignores it."""
    return paths.book_assets() / "claims.json"


def write(judged: Judged, file: str | os.PathLike | None = None) -> Path:
    """Write all of it as JSON, for the book if no file is named.

    Raises
    ------
    ValueError : there is no book here to write it for.
    RecordError : the file cannot be written.
    """
    path = default_file() if file is None else Path(file)
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} must exist; name another file.")
    write_json(path, judged.as_dict())
    return path


def table(judged: Judged) -> str:
    """The verdicts as text."""
    lines = []
    for claim in judged.claims:
        lines.append(f"{claim.title} [{claim.id}]")
        for scale, own in judged.of(claim).items():
            why = f" ({'; '.join(own.reasons)})" if own.reasons else ""
            lines.append(f"    {scale + ':':<12}{own.verdict}{why}")
    return "\n".join(lines)
