"""What a collapsed network still knows, and what it answers to: digits lost, nearness to a prototype, the norm alone.

>>> from grokutils.records.study import study
>>> class_accuracy(study("results/express/wd0")).groupby(["step", "digit"]).accuracy.median()      # doctest: +SKIP

All are measured on the weights that a record keeps, at each network's best kept step and at the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats

from grokutils.experiment import data as data_sets
from grokutils.experiment.traits import data_traits
from grokutils.paper.harmful_traps.prototypes import prototype, similarity
from grokutils.records.study import Study
from grokutils.spectra.harm import probes_like
from grokutils.spectra.interventions import Edit, control, edited, layer_matrix, remove_trap, traps_in
from grokutils.util.blas import one_torch_thread

__all__ = [
    "INPUTS", "NEARNESS", "Network", "class_accuracy", "confusion", "first_layer_edits", "inputs_of", "kept_networks",
    "nearness", "norm_answers", "piling",
]  # fmt: skip

#: What a network is shown: the test images, the same with their pixels shuffled, and noise.
INPUTS = ("test images", "pixels shuffled", "Gaussian noise")
#: What an image may be near to.
NEARNESS = (
    "prototype v₁ of W₁", "prototype v₂ of W₂ through W₁", "prototype v₃ of W₃ through W₂, W₁", "mean image of its class",
    "norm of the image", "a random direction",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Network:
    """One kept network with its images."""

    member: int
    step: int
    weights: dict[str, np.ndarray]
    module: torch.nn.Module
    sets: data_sets.Dataset

    @one_torch_thread()
    def answers(self, x: np.ndarray, *edits: Edit) -> np.ndarray:
        """The class it gives to each of (n, inputs), perhaps after edits: (n,)."""
        module = edited(self.module, *edits) if edits else self.module
        with torch.no_grad():
            return module(torch.from_numpy(x).to(next(module.parameters()).dtype)).argmax(dim=1).numpy()

    @property
    def right(self) -> np.ndarray:
        """(test images,) of bool."""
        return self.answers(self.sets.x_test) == self.sets.y_test


def kept_networks(data: Study, member: int, steps=None) -> list[Network]:
    """A member's networks, finite ones, at the steps given; by default at its best kept step and at the last.

    Raises
    ------
    ValueError : the network has not learnt images, or the study holds no weights.
    DataError : the images cannot be had.
    """
    if data_traits(data.config.dataset).image_shape is None:
        raise ValueError(f"{data.name} has learnt no images that could be shown: its data are {data.config.dataset}.")
    saved = data.record.steps_saved
    if not saved:
        raise ValueError(f"{data.name} holds no weights.")
    if steps is None:
        own = data.metrics[(data.metrics.member == member) & data.metrics.step.isin(saved)]
        steps = (int(own.loc[own.test_accuracy.idxmax(), "step"]), saved[-1])
    sets = data_sets.load(data.config, data.config.networks[member].seed)
    found = []
    for step in steps:
        weights = data.record.weights(step, member)
        if all(np.isfinite(w).all() for w in weights.values()):
            found.append(Network(member, step, weights, data.record.model(step, member), sets))
    return found


def _pairs(data: Study) -> Iterator[tuple[Network, Network]]:
    for member in data.members:
        found = kept_networks(data, member)
        if len(found) == 2:
            yield found[0], found[1]


def inputs_of(network: Network, kind: str) -> np.ndarray:
    """`INPUTS`, as many as there are test images; the same for every network of one data set and member.

    Raises
    ------
    ValueError : another kind.
    """
    x, rng = network.sets.x_test, np.random.default_rng(network.member)
    if kind not in INPUTS:
        raise ValueError(f"kind must be one of {', '.join(INPUTS)}; got {kind!r}.")
    if kind == INPUTS[0]:
        return x
    if kind == INPUTS[1]:
        return rng.permuted(x, axis=1)
    return probes_like(network.sets.x_train).draw(len(x), rng)


def confusion(network: Network, kind: str, *edits: Edit) -> np.ndarray:
    """(10, 10): of the images of a class (rows), the share that is given each answer (columns). Noise has no
    class, and one row."""
    answers, y = network.answers(inputs_of(network, kind), *edits), network.sets.y_test
    if kind == INPUTS[2]:
        return np.bincount(answers, minlength=10)[None, :] / len(answers)
    return np.stack([np.bincount(answers[y == c], minlength=10) / max((y == c).sum(), 1) for c in range(10)])


def class_accuracy(data: Study) -> pd.DataFrame:
    """``step``, ``member``, ``digit``, ``accuracy`` on the test images of that digit, at every kept step but 0."""
    rows = []
    for member in data.members:
        for network in kept_networks(data, member, [step for step in data.record.steps_saved if step > 0]):
            right, y = network.right, network.sets.y_test
            rows += [
                {"step": network.step, "member": member, "digit": c, "accuracy": float(right[y == c].mean())}
                for c in np.unique(y)
            ]
    return pd.DataFrame(rows, columns=["step", "member", "digit", "accuracy"])


def nearness(data: Study) -> pd.DataFrame:
    """Of the test images known at the best kept step: do those still known at the last one lie nearer to `NEARNESS`
    than those forgotten?

    >>> nearness(study("results/express/wd0")).groupby("near").auc.median()      # doctest: +SKIP

    Returns
    -------
    DataFrame: ``member``, ``near`` and ``auc``, the share of pairs (one still known, one forgotten) in which the known one
    is nearer: 0.5 says nothing, 1 everything. Nearer to an image is a larger correlation with it; the sign of a
    prototype is that of its correlation with the mean training image. A network that forgot nothing has no rows.
    """
    rows = []
    for best, last in _pairs(data):
        x, y = best.sets.x_test, best.sets.y_test
        known, kept = best.right, last.right
        still, lost = known & kept, known & ~kept
        if not (still.any() and lost.any()):
            continue
        for name, near in zip(NEARNESS, _nearness(last, x, y), strict=True):
            auc = stats.mannwhitneyu(near[still], near[lost]).statistic / (still.sum() * lost.sum())
            rows.append({"member": best.member, "near": name, "auc": float(auc)})
    return pd.DataFrame(rows, columns=["member", "near", "auc"])


def _nearness(network: Network, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    sets = network.sets
    mean = sets.x_train.mean(axis=0)
    depth = sum(name.endswith(".weight") for name in network.weights)
    images = [prototype(network.weights, min(k, depth)) for k in (1, 2, 3)]
    images.append(np.random.default_rng(network.member).normal(size=x.shape[1]))
    near = [np.sign(similarity(image, mean[None])[0]) * similarity(image, x) for image in images]
    classes = np.zeros(len(x))
    for c in np.unique(y):
        own = sets.x_train[sets.y_train == c]
        if len(own):
            classes[y == c] = similarity(own.mean(axis=0), x[y == c])
    return [*near[:3], classes, np.linalg.norm(x, axis=1), near[3]]


def first_layer_edits(network: Network) -> dict[str, list[Edit]]:
    """Nothing; the largest trap of the first layer replaced by noise (P3, Appendix B), taken out; and random directions
    of the same norms. Without a trap all do nothing."""
    layer = next(name.removesuffix(".weight") for name in network.weights if name.endswith(".weight"))
    W = layer_matrix(network.weights, layer)
    found: dict[str, list[Edit]] = {"as it is": []}
    traps = traps_in(W, layer)
    for name, how in (("first trap of FC1 replaced by noise", "matched"), ("... taken out", "nothing")):
        edit = remove_trap(W, traps[0], replace=how, seed=network.member) if traps else None
        found[name] = [edit] if edit else []
        found[f"control of this: random direction ({how})"] = [control(edit, seed=network.member)] if edit else []
    return found


def piling(data: Study) -> pd.DataFrame:
    """How much answers pile on one class: ``member``, ``when`` (best, last), ``edit`` (of `first_layer_edits`), ``kind`` of
    inputs, ``share`` of them given the commonest answer, and which ``answer`` that is."""
    rows = []
    for pair in _pairs(data):
        for when, network in zip(("best", "last"), pair, strict=True):
            edits = first_layer_edits(network) if when == "last" else {"as it is": []}
            for name, done in edits.items():
                for kind in INPUTS:
                    counts = np.bincount(network.answers(inputs_of(network, kind), *done), minlength=10)
                    rows.append({
                        "member": network.member, "when": when, "edit": name, "kind": kind,
                        "share": counts.max() / counts.sum(), "answer": int(counts.argmax()),
                    })  # fmt: skip
    return pd.DataFrame(rows, columns=["member", "when", "edit", "kind", "share", "answer"])


def norm_answers(data: Study, bins: int = 20) -> pd.DataFrame:
    """Does a network answer to the norm of its input alone? If it did, shuffling pixels would change no answer, and
    its answers could be told from the norm.

    >>> norm_answers(study("results/express/wd0")).groupby("when").median()      # doctest: +SKIP

    Returns
    -------
    DataFrame: ``member``, ``when`` (best, last) and shares of the test images: ``same``, given the same answer with
    shuffled pixels; ``same_by_chance``, what two independent draws of its answers would give; ``from_norm``, whose
    answer is the commonest at norms like theirs (`bins` quantiles; chosen on one half of the images, judged on the
    other); ``from_random``, the same with a random projection of the image; ``commonest``, the commonest of all.
    """
    rows = []
    for pair in _pairs(data):
        for when, network in zip(("best", "last"), pair, strict=True):
            x, rng = network.sets.x_test, np.random.default_rng(network.member)
            answers, shuffled = (network.answers(inputs_of(network, kind)) for kind in INPUTS[:2])
            a, b = (np.bincount(each, minlength=10) / len(x) for each in (answers, shuffled))
            half = rng.permutation(len(x)) < len(x) // 2
            told = [
                _told(value, answers, half, bins)
                for value in (np.linalg.norm(x, axis=1), x @ rng.normal(size=x.shape[1]), np.zeros(len(x)))
            ]
            rows.append({
                "member": network.member, "when": when, "same": float((answers == shuffled).mean()),
                "same_by_chance": float(a @ b), "from_norm": told[0], "from_random": told[1], "commonest": told[2],
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["member", "when", "same", "same_by_chance", "from_norm", "from_random", "commonest"])


def _told(value: np.ndarray, answers: np.ndarray, half: np.ndarray, bins: int) -> float:
    """How often the commonest answer of a bin, chosen on one half, is that of the other."""
    edges = np.unique(np.quantile(value[half], np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, value)
    counts = np.zeros((len(edges) + 1, 10))
    np.add.at(counts, (place[half], answers[half]), 1)
    counts += 1e-6 * counts.sum(axis=0)  # an empty bin says what is commonest of all
    return float((counts.argmax(axis=1)[place[~half]] == answers[~half]).mean())
