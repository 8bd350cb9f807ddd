"""What the modular-addition transformer has learnt: its key frequencies and its attention kernels.

>>> embedding_spectrum(np.eye(7)[:, :3]).shape
(3,)
"""

from __future__ import annotations

import numpy as np

from grokutils.util.checks import Interval

__all__ = ["attention_kernels", "embedding_spectrum", "key_frequencies"]


def embedding_spectrum(embedding: np.ndarray) -> np.ndarray:
    """Share of the number embedding's variance at each frequency k = 1 ... (p - 1) / 2.

    >>> k = np.arange(7) * 2 * np.pi / 7
    >>> embedding_spectrum(np.stack([np.cos(2 * k), np.sin(2 * k)], axis=1)).round(6)
    array([0., 1., 0.])

    A network that has learnt to add modulo p keeps a few frequencies and drops the others (Nanda et al.
    2023, section 4).

    Parameters
    ----------
    embedding : (p, d_model), the rows of the numbers 0 ... p - 1, p odd

    Raises
    ------
    ValueError : not a matrix with an odd number of rows, at least 3, or one whose rows are all the same.
    """
    e = np.asarray(embedding, dtype=np.float64)
    if e.ndim != 2 or e.shape[0] < 3 or e.shape[0] % 2 == 0:
        raise ValueError(f"embedding must be a matrix with an odd number of rows; got shape {e.shape}.")
    power = np.sum(np.abs(np.fft.rfft(e, axis=0)[1:]) ** 2, axis=1)
    if not power.sum() > 0:
        raise ValueError("embedding must have rows that differ from one another.")
    return power / power.sum()


def key_frequencies(spectrum: np.ndarray, share: float = 3.0) -> np.ndarray:
    """Frequencies k that hold more than `share` times what each would hold if all held the same, largest
    first.

    >>> key_frequencies(np.array([0.05, 0.9, 0.05]), share=2.0)
    array([2])
    """
    spectrum = np.asarray(spectrum)
    Interval(float, 0, open_low=True).check("share", share)
    order = np.argsort(-spectrum, kind="stable")
    return order[spectrum[order] > share / spectrum.size] + 1


def attention_kernels(q_weight: np.ndarray, k_weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Largest singular value of each head's kernel W_Q^T W_K / sqrt(d_head), (n_heads,).

    >>> attention_kernels(2 * np.eye(4), np.eye(4), n_heads=4)
    array([2., 2., 2., 2.])

    The kernel is the bilinear form that scores are made with. It need not be symmetric, so its largest
    singular value stands for its largest eigenvalue.

    Raises
    ------
    ValueError : matrices of different shapes, or heads that do not divide their rows.
    """
    q, k = np.asarray(q_weight, dtype=np.float64), np.asarray(k_weight, dtype=np.float64)
    if q.ndim != 2 or q.shape != k.shape:
        raise ValueError(f"q_weight and k_weight must be matrices of one shape; got {q.shape} and {k.shape}.")
    if n_heads < 1 or len(q) % n_heads:
        raise ValueError(f"n_heads must divide the {len(q)} rows of q_weight; got {n_heads}.")
    d_head = len(q) // n_heads
    heads = zip(np.split(q, n_heads), np.split(k, n_heads), strict=True)
    return np.array([np.linalg.norm(a.T @ b, ord=2) for a, b in heads]) / np.sqrt(d_head)
