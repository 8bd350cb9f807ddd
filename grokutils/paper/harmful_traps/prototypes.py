"""What a matrix would like to see: the leading direction of a layer, traced back to the pixels.

>>> rng = np.random.default_rng(0)
>>> weights = {"fc1.weight": rng.normal(size=(100, 64)), "fc2.weight": rng.normal(size=(10, 100))}
>>> prototype(weights, 1).shape, prototype(weights, 2).shape
((64,), (64,))

P2, Appendix G: v1 of W1, v2 of W2 through W1, v3 of W3 through W2 and W1, as images; v is the right singular vector of
the largest singular value. The activations between are left out, so that this is a picture and no more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import scipy.linalg

from grokutils.experiment import data as data_sets
from grokutils.records.study import Study
from grokutils.util.blas import threads_for
from grokutils.util.checks import Interval

__all__ = ["NAMES", "prototype", "prototype_matches", "similarity"]

#: What the prototypes of a perceptron are called, by depth.
NAMES = {1: "v₁ of W₁", 2: "v₂ of W₂ through W₁", 3: "v₃ of W₃ through W₂, W₁"}
_DRAWS = 100


@threads_for((1,))  # of a small matrix
def prototype(weights: Mapping[str, np.ndarray], depth: int) -> np.ndarray:
    """The leading right singular vector of a layer through the matrices before it: (inputs,), of length 1.

    >>> W = np.outer([1.0, 2.0], [0.0, 0.6, -0.8])
    >>> prototype({"fc1.weight": W}, 1).round(3) + 0
    array([ 0. , -0.6,  0.8])

    The sign of a singular vector means nothing; the largest component is made positive.

    Raises
    ------
    ValueError : no such depth.
    """
    matrices = _matrices(weights)
    depth = Interval(int, 1, len(matrices)).check("depth", depth)
    gram = matrices[depth - 1].T @ matrices[depth - 1]
    n = len(gram)
    leading = scipy.linalg.eigh(gram, subset_by_index=(n - 1, n - 1))[1][:, 0]
    image = _through(leading, matrices[: depth - 1])
    image = image / max(np.linalg.norm(image), np.finfo(float).tiny)
    return image if image[np.argmax(np.abs(image))] >= 0 else -image


def _matrices(weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(w, dtype=np.float64) for name, w in weights.items() if name.endswith(".weight")]


def _through(vectors: np.ndarray, before: list[np.ndarray]) -> np.ndarray:
    """(..., units) traced back to the inputs."""
    for matrix in reversed(before):
        vectors = vectors @ matrix
    return vectors


def similarity(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson's correlation, over the pixels, of images (..., pixels) with others (n, pixels): (..., n); 0 for a blank one.

    >>> similarity(np.array([0.0, 1.0, 2.0]), np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])).round(9)
    array([ 1., -1.,  0.])
    """
    return _standard(images) @ _standard(others).T


def _standard(images: np.ndarray) -> np.ndarray:
    """With mean 0 and length 1 along the last axis."""
    centred = images - images.mean(axis=-1, keepdims=True)
    size = np.linalg.norm(centred, axis=-1, keepdims=True)
    return np.divide(centred, size, out=np.zeros_like(centred, dtype=np.float64), where=size > 0)


@threads_for((1,))
def prototype_matches(data: Study) -> pd.DataFrame:
    """How much the prototypes of each kept network look like digits, beside random directions through the same matrices.

    >>> prototype_matches(study("results/express/wd0"))              # doctest: +SKIP

    Returns
    -------
    DataFrame: ``step``, ``member``, ``depth``; ``digit``, the class whose mean training image is most like the prototype
    (by the size of `similarity`), ``r``, how much; ``image_r``, the same of the single most similar training image;
    and ``r_random``, ``image_r_random``, the mean of both for a hundred random vectors in the place of v.
    """
    rows = []
    for member in data.members:
        sets = data_sets.load(data.config, data.config.networks[member].seed)
        labels = np.unique(sets.y_train)
        means = np.stack([sets.x_train[sets.y_train == label].mean(axis=0) for label in labels])
        rng = np.random.default_rng(member)
        for step in data.record.steps_saved:
            weights = data.record.weights(step, member)
            matrices = _matrices(weights)
            if not all(np.isfinite(matrix).all() for matrix in matrices):
                continue
            for depth in range(1, len(matrices) + 1):
                vectors = rng.normal(size=(_DRAWS, matrices[depth - 1].shape[1]))
                images = np.vstack([prototype(weights, depth), _through(vectors, matrices[: depth - 1])])
                with_means, with_images = (np.abs(similarity(images, x)) for x in (means, sets.x_train))
                r, image_r = with_means.max(axis=1), with_images.max(axis=1)
                rows.append({
                    "step": step, "member": member, "depth": depth, "digit": int(labels[with_means[0].argmax()]),
                    "r": r[0], "image_r": image_r[0], "r_random": r[1:].mean(), "image_r_random": image_r[1:].mean(),
                })  # fmt: skip
    return pd.DataFrame(rows, columns=["step", "member", "depth", "digit", "r", "image_r", "r_random", "image_r_random"])
