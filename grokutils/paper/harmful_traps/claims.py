"""Claims of P2 and P3 on harmful traps, on prototypes and on forgetting, as data for `grokutils.paper.claims`.

>>> [claim.id for claim in HARM_CLAIMS][:2]
['harm-told', 'harm-undone']
"""

from __future__ import annotations

from grokutils.paper.harmful_traps import evidence as q
from grokutils.paper.judge.findings import mean, median, share
from grokutils.paper.judge.judging import Claim, Part, at_least, at_most

__all__ = ["HARM_CLAIMS", "HARM_TOPIC"]

HARM_TOPIC = {"harm": "Harmful traps, prototypes and forgetting"}

_LAYERS = {"fc1": "FC1", "fc2": "FC2"}
_STARTS = {"best": "its best kept step", "last": "the end"}


HARM_CLAIMS: tuple[Claim, ...] = (
    Claim(
        "harm-told", "harm", "Random inputs tell harmful traps from benign ones",
        "The Jensen-Shannon divergence of the outputs on random inputs, with a trap and with matched noise in its place, "
        "tells whether the trap matters to test accuracy.",
        "P3 abstract, section 6, Figure 4", "it tells; no rates printed", ("wd0",),
        (
            Part("hits minus false alarms of the divergence", q.told("wd0", "replaced by noise"), at_least(0.8, 0.3), "1"),
            Part("the same by the norm of the change, which runs no network", q.told("wd0", "replaced by noise", "norm")),
            Part("by the divergence, if nothing is put in the trap's place", q.told("wd0", "taken out")),
        ),
        "A trap matters here if the 95 % interval of the change of test accuracy lies beyond two points, up or down. The "
        "threshold is chosen on one half of the networks and judged on the other.",
    ),
    Claim(
        "harm-undone", "harm", "Traps impair generalisation",
        "In a collapsed network the traps are what impairs generalisation, so that without them it is better.",
        "P2 abstract ('predicted to impair generalization'); P3 abstract", "they impair it", ("wd0",),
        (
            Part("change of test accuracy with all traps taken out", median("wd0", q.undone), at_least(0.02, 0.0), "above 0", "+.2f"),
            Part("the same, less that with random directions of the same norms", median("wd0", q.undone_beside_random),
                 at_least(0.02, 0.0), "above 0", "+.2f"),
        ),
        "The four largest traps of each hidden layer, in one shuffle, taken off the matrix as it was trained. A network "
        "could have come to depend on what once did it harm; to take it out then is no test of how it came to collapse.",
    ),
    Claim(
        "harm-most-removals", "harm", "Most removals do not help",
        "Most removals of a single trap change little, or lower the accuracy.",
        "P3 section 6", "most", ("wd0",),
        (Part("share of removals that raise the test accuracy", median("wd0", q.raised), at_most(0.25, 0.5), "few"),),
        "With the whole 95 % interval over the test images.",
    ),
    Claim(
        "harm-planted", "harm", "Traps induce forgetting",
        "Correlation traps can induce catastrophic forgetting: put into a network that generalises, they make it lose test "
        "accuracy while it still knows its training set.",
        "P2 abstract", "they can", ("wd0",),
        (
            Part("share of planted traps that lower test accuracy by ten points with the training set still known",
                 mean("wd0", q.planted), at_least(0.25, 0.05), "some", ".4f"),
            Part("networks in which any of them did", share("wd0", q.planted_ever, known=True)),
        ),
        "One large weight, four, or the mean of all, in either hidden layer, at one, two and four times the size at which they "
        "are a trap. The papers plant none: they read forgetting off spectra. This is the test by intervention. A single case would "
        "satisfy *can*; what is judged is whether it is more than rare.",
    ),
    Claim(
        "trap-regrows", "harm", "A trap grows back",
        "When training goes on, a trap that was taken out comes back.",
        "P3 Appendix B.3", "it comes back; no numbers printed", ("wd0",),
        (
            *(Part(f"share of a network's layers that hold a trap again, trained on from {_STARTS[start]}",
                   mean("wd0", q.layers_trapped_again(start, tuple(_LAYERS))), at_least(0.9, 0.5), "all")
              for start in _STARTS),
            *(Part(f"networks with a trap in {name} again, trained on from {_STARTS[start]}",
                   share("wd0", q.trapped_again(start, layer), known=True))
              for start in _STARTS for layer, name in _LAYERS.items()),
            *(Part(f"its size over that where nothing was done, {name}, from {_STARTS[start]}",
                   median("wd0", q.regrown(start, layer)))
              for start in _STARTS for layer, name in _LAYERS.items()),
        ),
        "The largest trap of each hidden layer is taken out and the network trained on with a fresh optimiser. Only layers "
        "without another trap at that moment can show one growing.",
    ),
    Claim(
        "answers-pile", "harm", "Answers pile on one class",
        "A collapsed network gives one class (5) far too often; with the trap of FC1 replaced it does so less.",
        "P3 Appendix B", "one class; less without the trap", ("wd0",),
        (
            Part("share of the commonest answer to test images, end less best", median("wd0", q.piled), at_least(0.1, 0.03), "large", "+.2f"),
            Part("how much of it goes with the trap of FC1 replaced by noise", median("wd0", q.relieved), at_least(0.05, 0.01), "some", "+.2f"),
            Part("collapsed networks whose commonest answer is 5", share("wd0", q.answer_is(5), known=True), at_least(0.9, 0.5), "5", only="paper"),
        ),
    ),
    Claim(
        "norm-alone", "harm", "Only the norm of the input counts",
        "A collapsed network answers to the norm of its input and not to its shape.",
        "P3 Appendix B, its reading of the confusion matrices", "the norm alone", ("wd0",),
        (
            Part("images given the same answer with pixels shuffled, less that by chance", median("wd0", q.same_when_shuffled),
                 at_least(0.5, 0.1), "up to 1 less chance", "+.2f"),
            Part("answers told from the norm, less the commonest answer", median("wd0", q.answers_told_by_norm),
                 at_least(0.3, 0.1), "up to 1 less the commonest", "+.2f"),
        ),
        "Shuffling the pixels of an image keeps its norm.",
    ),
    Claim(
        "prototypes", "harm", "Prototypes are memorised",
        "With the collapse the leading directions of the layers, traced back to the pixels, become the prototype of a digit.",
        "P2 abstract, Appendix G", "noise, then a ring, then an 8", ("wd0",),
        (
            *(Part(f"likeness of v{depth} to a digit's mean image, less that of random directions through the same matrices",
                   median("wd0", q.likeness(depth)), at_least(0.2, 0.05), "a digit", "+.2f") for depth in (1, 2, 3)),
            Part("images still known nearer to v3 than those forgotten: share of pairs, less one half",
                 median("wd0", q.near_prototype), at_least(0.2, 0.05), "", "+.2f"),
        ),
        "Likeness is the correlation over pixels with the most similar of the ten mean training images.",
    ),
)  # fmt: skip
