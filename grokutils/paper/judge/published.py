"""Every number of the papers that this project sets its own beside, in one place.

P1 is "Grokking and Generalization Collapse: Insights from HTSR theory" (arXiv 2506.04434, cited here as
submitted to the conference), P2 "Late-Stage Generalization Collapse in Grokking" (arXiv 2602.02859), P3
"Detecting overfitting in Neural Networks during long-horizon grokking using Random Matrix Theory"
(arXiv 2605.12394).

>>> str(TABLE_1["fc1"]["pre-grokking"]), TABLE_1["fc2"]["anti-grokking"].mean
('4.0 ± 1.3', 1.4)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from grokutils.records.phases import PHASES

__all__ = [
    "FIGURE_1", "L2_NORM", "MODULAR_ACCURACY", "MODULAR_MATRICES", "MODULAR_TABLE", "MODULAR_TRAPS", "TABLE_1", "TABLE_1_ARXIV",
    "TABLE_2", "TABLE_2_LATER", "TABLE_4", "TABLE_STEPS", "Number", "Table",
]  # fmt: skip

#: The steps of the MNIST experiment at which every table is read.
TABLE_STEPS = dict(zip(PHASES, (1e5, 1e6, 1e7), strict=True))


@dataclass(frozen=True)
class Number:
    """A printed number; ``spread`` is what stands after its ± (None if nothing does)."""

    mean: float
    spread: float | None = None
    #: as it is printed, digits and all
    text: str = ""

    def __str__(self) -> str:
        return self.text

    def __float__(self) -> float:
        return self.mean


@dataclass(frozen=True)
class Table(Mapping):
    """Rows of printed numbers, by phase; it says where they stand and what is doubtful about them."""

    name: str
    source: str
    caveat: str
    rows: Mapping[Hashable, Mapping[str, Number]]

    def __getitem__(self, row: Hashable) -> Mapping[str, Number]:
        return self.rows[row]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def _number(text: str) -> Number:
    """The number that a printed text says: '4.0 ± 1.3', '≈ 1.0', '1.877e-5'."""
    mean, _, spread = text.partition("±")
    return Number(float(mean.strip(" ≈~")), float(spread) if spread else None, text)


def _row(*texts: str) -> dict[str, Number]:
    return {phase: _number(text) for phase, text in zip(PHASES, texts, strict=True)}


_STEPS = "read at about 1e5, at 1e6 and at 1e7 steps of the MNIST experiment"

TABLE_1 = Table(
    "Table 1",
    f"P1, Table 1: alpha at weight decay 0, {_STEPS}",
    "The estimator is always greater than 1 and a failed fit is coded -1, so that a mean of 1.0 with a "
    "spread of 0.40 is hardly possible unless it averages failure codes in. The number of seeds is not stated.",
    {
        "fc1": _row("4.0 ± 1.3", "3.2 ± 0.6", "1.0 ± 0.40"),
        "fc2": _row("4.6 ± 0.5", "2.4 ± 0.1", "1.4 ± 0.24"),
        "average": _row("4.3 ± 0.70", "2.8 ± 0.30", "1.2 ± 0.23"),
    },
)

TABLE_1_ARXIV = Table(
    "Table 1 (arXiv)",
    f"The arXiv version of P1, and P2: alpha at weight decay 0, {_STEPS}",
    "Other numbers than those of Table 1 for the same experiment; 0.9 is under the smallest value that the "
    "estimator can take.",
    {
        "fc1": _row("5.0", "3.6", "0.9"),
        "fc2": _row("2.9", "2.3", "1.3"),
    },
)

#: By weight decay and layer.
TABLE_2 = Table(
    "Table 2",
    f"P1, Table 2: mean number of correlation traps, {_STEPS}",
    "One shuffle a matrix; counts vary with the shuffle. With weight decay the last column is no collapse: the "
    "text reports a stable plateau there.",
    {
        (0.0, "fc1"): _row("0", "0", "6.33 ± 5.44"),
        (0.0, "fc2"): _row("0", "0", "1.00 ± 0.00"),
        (0.01, "fc1"): _row("0", "0", "2.00 ± 0.00"),
        (0.01, "fc2"): _row("0", "0", "1.00 ± 0.00"),
    },
)

#: What P2 and P3 print for one cell of Table 2 (their spread is over checkpoints of a phase, not over seeds).
TABLE_2_LATER = Table(
    "Table 2 (P2, P3)",
    "P2 and P3: number of correlation traps at weight decay 0",
    "P3's spread is over checkpoints of a phase, not over seeds.",
    {(0.0, "fc1"): {"anti-grokking": _number("7.5 ± 5.6")}},
)

#: By quantity, in the terms of `grokutils.util.columns`.
TABLE_4 = Table(
    "Table 4",
    f"P1, Table 4: shuffled FC1 against the Marchenko-Pastur law at weight decay 0, {_STEPS}",
    "p is the textbook's, for independent points; eigenvalues repel each other, so that it is near 1 whatever "
    "the matrix. No sample of this layer's size gives p = 1.877e-5 at a distance of 0.3044, and the text gives "
    "sigma_mp as about 2 where the table has 0.949.",
    {
        "sigma_mp": _row("≈ 1.002", "≈ 0.999", "≈ 0.949"),
        "ks_D": _row("0.0120", "0.0212", "0.3044"),
        "ks_p_textbook": _row("≈ 1.0", "≈ 1.0", "1.877e-5"),
        "traps": _row("0", "0", "9"),
    },
)

#: Levels read from the curves of Figures 1 and 6: accuracies, and steps.
FIGURE_1 = {
    "source": "P1, Figures 1 and 6 and the text about them, MNIST; read from the curves",
    "caveat": "The text says a fall 'to 0.5' and 'over 25 percentage points'; no value is tabulated.",
    "train_saturates_steps": (1e4, 1e5),
    "test_rises_steps": 1e5,
    "peak_steps": 1e6,
    "end_steps": 1e7,
    "peak_accuracy": 0.85,
    "final_accuracy": (0.45, 0.50),
    "peak_accuracy_decay": 0.88,
    "final_accuracy_decay": (0.83, 0.85),
    "final_alpha_fc2_decay": 1.2,
}

#: The l2 norm at weight decay 0, read from the curve.
L2_NORM = {
    "source": "P1, the curve of the l2 norm at weight decay 0, MNIST",
    "caveat": "Read from the curve; only the increase is stated in the text.",
    "flat": 90.0,
    "flat_until_steps": 1e5,
    "final": 420.0,
}

_MODULAR = "P2 (Appendix H) and P3 (Appendix A.3): one transformer layer on modular addition, p = 113"
_MODULAR_CAVEAT = (
    "Optimiser, weight decay, training fraction and steps are not stated; the spread is over sampled checkpoints of a phase."
)

#: The transformer's matrices as P2 and P3 name them, and as ours are called.
MODULAR_MATRICES = {
    "embed": "embed", "W_Q": "q_proj", "W_K": "k_proj", "W_V": "v_proj", "out_proj": "out_proj", "fc1": "fc1",
    "fc2": "fc2", "unembed": "unembed",
}  # fmt: skip

#: Alpha of each matrix, then the mean.
MODULAR_TABLE = Table(
    "modular addition, alpha",
    f"{_MODULAR}: alpha",
    _MODULAR_CAVEAT + " Here alpha rises at the collapse; in the MLP it falls.",
    {
        "embed": _row("2.81", "1.92", "3.57"), "W_Q": _row("4.04", "2.86", "3.17"), "W_K": _row("3.99", "2.00", "3.20"),
        "W_V": _row("4.66", "1.56", "3.87"), "out_proj": _row("3.85", "1.57", "4.04"), "fc1": _row("4.99", "1.71", "4.74"),
        "fc2": _row("5.22", "2.17", "5.03"), "unembed": _row("3.27", "2.37", "3.53"), "mean": _row("4.10", "2.02", "3.89"),
    },
)  # fmt: skip

#: Traps of each matrix, then the mean; none before the collapse.
MODULAR_TRAPS = Table(
    "modular addition, traps",
    f"{_MODULAR}: correlation traps",
    _MODULAR_CAVEAT,
    {name: _row("0", "0", text) for name, text in zip(
        (*MODULAR_MATRICES, "mean"), ("7", "3", "5", "3", "4", "5", "7", "5", "4.88 ± 1.55"), strict=True)},
)  # fmt: skip

MODULAR_ACCURACY = Table(
    "modular addition, test accuracy",
    f"{_MODULAR}: test accuracy",
    _MODULAR_CAVEAT,
    {"test_accuracy": _row("0.40 ± 0.28", "0.97 ± 0.02", "0.68 ± 0.11")},
)
