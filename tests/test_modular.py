"""Frequencies and attention kernels of the modular-addition transformer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokutils.paper.modular_addition.modular import attention_kernels, embedding_spectrum, key_frequencies


@given(st.sampled_from([5, 7, 13, 31, 113]), st.data())
def test_planted_frequencies_are_found(p, data):
    count = (p - 1) // 2
    chosen = data.draw(st.lists(st.integers(1, count), min_size=1, max_size=max(1, count // 8), unique=True))
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * np.outer(np.arange(p), chosen) / p
    embedding = np.hstack([np.cos(angle), np.sin(angle)]) @ rng.normal(size=(2 * len(chosen), 40)) + 3.0
    spectrum = embedding_spectrum(embedding)
    assert spectrum.shape == (count,) and spectrum.sum() == pytest.approx(1)
    assert spectrum[np.array(chosen) - 1].sum() == pytest.approx(1)
    if count >= 8:
        assert set(key_frequencies(spectrum, share=0.1)) == set(chosen)


def test_spectrum_does_not_depend_on_the_basis():
    rng = np.random.default_rng(1)
    e = rng.normal(size=(31, 12))
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    np.testing.assert_allclose(embedding_spectrum(e @ rotation * 5 + 2), embedding_spectrum(e))


def test_kernels_of_each_head():
    rng = np.random.default_rng(2)
    q, k = rng.normal(size=(8, 6)), rng.normal(size=(8, 6))
    found = attention_kernels(q, k, n_heads=2)
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        largest = np.linalg.svd(q[rows].T @ k[rows] / 2, compute_uv=False)[0]
        assert found[head] == pytest.approx(largest)


@pytest.mark.parametrize("bad", [np.ones(5), np.ones((4, 2)), np.ones((1, 2)), np.ones((5, 2))])
def test_no_embedding(bad):
    with pytest.raises(ValueError, match="embedding must"):
        embedding_spectrum(bad)


def test_bad_heads_and_shares():
    with pytest.raises(ValueError, match="n_heads must divide the 4 rows of q_weight; got 3"):
        attention_kernels(np.eye(4), np.eye(4), 3)
    with pytest.raises(ValueError, match="of one shape"):
        attention_kernels(np.eye(4), np.eye(3), 1)
    with pytest.raises(ValueError, match="share must be a number greater than 0; got 0"):
        key_frequencies(np.ones(3), share=0)
