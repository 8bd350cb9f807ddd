"""Interventions on one weight matrix: take a trap out, put one in, or do the same in a direction of no meaning.

>>> W = np.random.default_rng(0).normal(size=(100, 80))
>>> W[3, 5] = 40.0                                   # one weight of 40 standard deviations is a trap
>>> edit = remove_trap(W, 0, replace="nothing")
>>> bool(abs(edit.after[3, 5]) < 1), round(edit.norm), round(control(edit).norm)
(True, 42, 42)

A trap belongs to a *shuffled* matrix (`grokutils.spectra.traps`). Its rank-one part sigma u v^T is therefore put back to the
places from which the entries had been shuffled, and taken off the matrix as it was trained. Every operation is an
`Edit`, which knows exactly which weights it moves; at strength 0 it moves none, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from grokutils.spectra.alpha import as_matrix
from grokutils.spectra.layers import Layer, find_layers
from grokutils.spectra.modules import copied
from grokutils.spectra.trap_makers import lone_weight
from grokutils.spectra.traps import TrapEntry, trap_vectors

__all__ = [
    "CONTROLS", "INJECTIONS", "REPLACEMENTS", "Edit", "Trap", "control", "edited", "edited_weights", "inject",
    "layer_matrix", "remove_trap", "traps_in",
]  # fmt: skip

#: What can be put in, what can take a trap's place, and what an edit is held against.
INJECTIONS = ("entry", "entries", "mean", "rank-one")
REPLACEMENTS = ("matched", "nothing")
CONTROLS = ("direction", "places")


@dataclass(frozen=True, eq=False)
class Edit:
    """A changed weight matrix."""

    #: Name of the layer, as `grokutils.spectra.layers.find_layers` has it; empty for a matrix by itself.
    layer: str
    #: What was done, in words.
    what: str
    #: (rows, columns) as it was and as it is now.
    before: np.ndarray
    after: np.ndarray

    @property
    def change(self) -> np.ndarray:
        """after - before."""
        return self.after - self.before

    @property
    def moved(self) -> np.ndarray:
        """(rows, columns) of bool: the weights that are not what they were."""
        return self.after != self.before

    @property
    def norm(self) -> float:
        """Frobenius norm of the change, in units of the weights."""
        return float(np.linalg.norm(self.change))


@dataclass(frozen=True, eq=False)
class Trap:
    """One trap of a matrix, in the places of the matrix as it was trained."""

    layer: str
    #: From 0, the largest, in this shuffle.
    number: int
    matrix: np.ndarray
    #: Its singular value, and its unit vectors in the shuffled matrix, (rows,) and (columns,).
    sigma: float
    left: np.ndarray
    right: np.ndarray
    #: (rows * columns,) where in matrix.flat each shuffled entry came from.
    permutation: np.ndarray
    #: The weights that carry most of it.
    entries: tuple[TrapEntry, ...]

    def in_place(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """sigma left right^T with every number put where its shuffled entry came from."""
        out = np.empty_like(self.matrix)
        out.reshape(-1)[self.permutation] = (self.sigma * np.outer(left, right)).reshape(-1)
        return out


def traps_in(W, layer: str = "", *, seed: int = 0, shuffle: int = 0) -> tuple[Trap, ...]:
    """The traps of one shuffle of a matrix, largest first; perhaps none.

    >>> W = np.random.default_rng(0).normal(size=(100, 80)); W[3, 5] = 40.0
    >>> [(trap.number, trap.entries[0].row, trap.entries[0].col) for trap in traps_in(W)]
    [(0, 3, 5)]

    Parameters
    ----------
    W : matrix (rows, columns), not shuffled
    layer : what messages and edits call it
    seed, shuffle : number ``shuffle`` of ``grokutils.spectra.traps.find_traps(W, seed)``

    Raises
    ------
    TypeError, ValueError : as `grokutils.spectra.traps.trap_vectors`.
    """
    A = as_matrix(W)
    found = trap_vectors(A, seed=seed, shuffle=shuffle)
    return tuple(
        Trap(layer, k, A, math.sqrt(value), found.left[k], found.right[k], found.permutation, found.entries[k])
        for k, value in enumerate(found.eigenvalues)
    )


def _trap(W, trap: int | Trap, layer: str, seed: int, shuffle: int) -> Trap:
    if isinstance(trap, Trap):
        return trap
    if isinstance(trap, bool) or not isinstance(trap, (int, np.integer)):
        raise ValueError(f"trap must be a whole number, 0 for the largest; got {trap!r}.")
    found = traps_in(W, layer, seed=seed, shuffle=shuffle)
    if not found:
        raise ValueError(f"{layer or 'the matrix'} has no trap in shuffle {shuffle}, so none can be taken out.")
    if not 0 <= trap < len(found):
        raise ValueError(f"trap must be between 0 and {len(found) - 1} in {layer or 'the matrix'}; got {trap}.")
    return found[trap]


def remove_trap(
    W, trap: int | Trap = 0, *, replace: str = "matched", strength: float = 1.0, layer: str = "", seed: int = 0,
    shuffle: int = 0,
) -> Edit:  # fmt: skip
    """Take a trap out of the matrix as it was trained: W - strength (sigma u v^T - sigma u' v'^T).

    >>> W = np.random.default_rng(0).normal(size=(100, 80)); W[3, 5] = 40.0
    >>> bool(abs(remove_trap(W).after[3, 5]) < 5), remove_trap(W, strength=0).moved.any()
    (True, np.False_)

    Both rank-one parts are in the places that the shuffle took the entries from (P3, section 6).

    Parameters
    ----------
    W : matrix (rows, columns), not shuffled
    trap : its number in that shuffle, 0 for the largest, or a `Trap` of `traps_in`
    replace : ``"matched"``, as P3 has it: u' and v' are random vectors with exactly the mean and the standard deviation
        of u and v, so that they have their length as well. A trap that is the mean of all weights then stays, since
        its vectors *are* their means. ``"nothing"``: no u', v'.
    strength : share of the trap that is taken out, 0 for none of it
    layer : what the edit and messages call the matrix
    seed, shuffle : which shuffle, as in `traps_in`; the seed is that of u', v' as well

    Raises
    ------
    ValueError : no trap there, a number out of range, an unknown replacement, a strength that is not finite.
    """
    if replace not in REPLACEMENTS:
        raise ValueError(f"replace must be one of {', '.join(REPLACEMENTS)}; got {replace!r}.")
    strength = _finite("strength", strength)
    found = _trap(W, trap, layer, seed, shuffle)
    part = found.in_place(found.left, found.right)
    if replace == "matched":
        rng = np.random.default_rng([_whole("seed", seed), found.number, 1])
        part = part - found.in_place(_matched(found.left, rng), _matched(found.right, rng))
    what = f"trap {found.number} taken out" + (", matched noise in its place" if replace == "matched" else "")
    return _edit(found.layer or layer, what, found.matrix, -strength, part)


def _matched(vector: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random vector with exactly the mean and standard deviation of another."""
    noise = rng.normal(size=vector.size)
    spread = noise.std()
    noise = (noise - noise.mean()) / spread if spread > 0 else np.zeros_like(noise)
    return vector.mean() + vector.std() * noise


def inject(
    W, kind: str, strength: float = 1.0, *, count: int = 4, direction=None, layer: str = "", seed: int = 0
) -> Edit:
    """Put a trap in, with strength 1 where random-matrix theory has it appear.

    >>> W = np.random.default_rng(0).normal(size=(100, 80))
    >>> [int(inject(W, kind, 1.5).moved.sum()) for kind in INJECTIONS]
    [1, 4, 8000, 8000]
    >>> {round(inject(W, kind, 2).norm, 6) for kind in INJECTIONS} == {round(2 * lone_weight(W.shape) * W.std(), 6)}
    True

    Whatever its kind, the change has Frobenius norm strength x `grokutils.spectra.trap_makers.lone_weight` x the standard
    deviation of W, so that kinds of one strength can be compared.

    Parameters
    ----------
    W : matrix (rows, columns)
    kind : ``"entry"``: added to one weight, away from zero, at a random place; ``"entries"``: the same on `count` of
        them, each by 1/sqrt(count) of it; ``"mean"``: the same number added to all weights, with
        the sign of their mean, so that the mean grows; ``"rank-one"``: sigma u v^T. A rank-one part whose vectors are
        random is *no* trap, since its shuffle is noise.
    strength : 0 for nothing at all; a negative one goes the other way
    count : how many entries, for ``"entries"``
    direction : u and v for ``"rank-one"``, of any length but 0; random ones by default
    layer, seed : name of the matrix; seed of places and directions

    Raises
    ------
    ValueError : an unknown kind; a strength that is not finite; a count, direction or seed without meaning; a
        constant matrix, or one too small for traps (fewer than ten eigenvalues).
    """
    A = as_matrix(W)
    strength = _finite("strength", strength)
    if kind not in INJECTIONS:
        raise ValueError(f"kind must be one of {', '.join(INJECTIONS)}; got {kind!r}.")
    if A.std() == 0:
        raise ValueError(f"{layer or 'the matrix'} is constant: there is no standard deviation to measure a trap by.")
    unit = lone_weight(A.shape) * A.std()
    if not math.isfinite(unit):
        raise ValueError(f"{layer or 'the matrix'} is {A.shape[0]} x {A.shape[1]}, too small for traps.")
    rng = np.random.default_rng([_whole("seed", seed), 2])
    part = np.zeros(A.size)
    if kind == "mean":
        part[:] = math.copysign(1 / math.sqrt(A.size), A.mean())
    elif kind == "rank-one":
        part = _unit_rank_one(A.shape, direction, rng).reshape(-1)
    else:
        count = 1 if kind == "entry" else _whole("count", count)
        if not 1 <= count <= A.size:
            raise ValueError(f"count must be between 1 and {A.size}, the number of weights; got {count}.")
        places = rng.choice(A.size, count, replace=False)
        part[places] = np.where(A.reshape(-1)[places] < 0, -1.0, 1.0) / math.sqrt(count)
    return _edit(layer, f"{kind} put in at strength {strength:g}", A, strength * unit, part.reshape(A.shape))


def _unit_rank_one(shape: tuple[int, int], direction, rng: np.random.Generator) -> np.ndarray:
    if direction is None:
        u, v = rng.normal(size=shape[0]), rng.normal(size=shape[1])
    else:
        try:
            u, v = (np.asarray(x, dtype=np.float64) for x in direction)
        except (TypeError, ValueError):
            raise ValueError("direction must be two vectors, one of a number for each row and column.") from None
        if (u.shape, v.shape) != ((shape[0],), (shape[1],)):
            raise ValueError(f"direction must be vectors of {shape[0]} and {shape[1]} numbers.")
    sizes = np.linalg.norm(u), np.linalg.norm(v)
    if not (np.isfinite(sizes).all() and min(sizes) > 0):
        raise ValueError("direction must be vectors of finite numbers that are not all zero.")
    return np.outer(u / sizes[0], v / sizes[1])


def control(edit: Edit, kind: str = "direction", seed: int = 0) -> Edit:
    """The same amount of change in a direction of no meaning.

    >>> edit = inject(np.random.default_rng(0).normal(size=(100, 80)), "entry")
    >>> int(control(edit, "places").moved.sum()), int(control(edit, "direction").moved.sum())
    (1, 8000)

    Parameters
    ----------
    edit : what it is a control for
    kind : ``"direction"``: a random rank-one part u v^T of the same Frobenius norm; ``"places"``: the very numbers of
        the change, added to other weights, drawn at random

    Raises
    ------
    ValueError : an unknown kind or a seed without meaning.
    """
    if kind not in CONTROLS:
        raise ValueError(f"kind must be one of {', '.join(CONTROLS)}; got {kind!r}.")
    rng = np.random.default_rng([_whole("seed", seed), 3])
    what = f"control ({kind}) for: {edit.what}"
    change = edit.change
    if kind == "places":
        other = rng.permutation(change.reshape(-1)).reshape(change.shape)
        return _edit(edit.layer, what, edit.before, 1.0, other)
    return _edit(edit.layer, what, edit.before, edit.norm, _unit_rank_one(change.shape, None, rng))


def _edit(layer: str, what: str, before: np.ndarray, size: float, part: np.ndarray) -> Edit:
    step = size * part
    # adding zero would turn -0.0 into 0.0
    return Edit(layer, what, before, np.where(step != 0, before + step, before))


# -- in a network -------------------------------------------------------------------------------------------


def _find(model, layer: str) -> Layer:
    layers = {found.name: found for found in find_layers(model)}
    if layer not in layers:
        raise ValueError(f"layer must be one of {', '.join(layers)}; got {layer!r}.")
    return layers[layer]


def layer_matrix(model: torch.nn.Module | Mapping[str, np.ndarray], layer: str) -> np.ndarray:
    """A layer's weights as a float64 matrix (rows, columns).

    >>> layer_matrix({"fc1.weight": np.ones((2, 3))}, "fc1").shape
    (2, 3)

    Raises
    ------
    ValueError : no such layer, or one that is no matrix of finite real numbers.
    """
    return as_matrix(_find(model, layer).read(), layer)


def edited(model: torch.nn.Module, *edits: Edit) -> torch.nn.Module:
    """A copy of a model with layers changed; weights that no edit moves keep every bit.

    >>> net = torch.nn.Sequential(torch.nn.Linear(80, 100))
    >>> other = edited(net, inject(layer_matrix(net, "0"), "entry", layer="0"))
    >>> int((other[0].weight != net[0].weight).sum())
    1

    Raises
    ------
    ValueError : no such layer; a matrix of another shape; a layer whose weights are computed from others
        (a parametrisation) and cannot be set.
    """
    other = copied(model)
    for edit in edits:
        layer = _find(other, edit.layer)
        if layer.computed:
            raise ValueError(f"{edit.layer} cannot be edited: its weights are computed from others.")
        weights = layer.read()  # a view of the copy's memory
        if tuple(weights.shape) != edit.after.shape:
            raise ValueError(f"{edit.layer} is {tuple(weights.shape)}, and the edit is of {edit.after.shape}.")
        moved = torch.from_numpy(edit.moved).to(weights.device)
        new = torch.from_numpy(edit.after).to(weights)
        with torch.no_grad():
            weights.copy_(torch.where(moved, new, weights))
            if not torch.equal(torch.where(moved, _find(other, edit.layer).read(), new), new):
                raise ValueError(f"{edit.layer} cannot be edited: its weights are computed from others.")
    return other


def edited_weights(weights: Mapping[str, np.ndarray], *edits: Edit) -> dict[str, np.ndarray]:
    """The same for weights by their names, as `grokutils.records.record.Record.weights` gives them.

    >>> W = np.random.default_rng(0).normal(size=(100, 80))
    >>> changed = edited_weights({"fc1.weight": W, "fc1.bias": np.zeros(100)}, inject(W, "entry", layer="fc1"))
    >>> int((changed["fc1.weight"] != W).sum())
    1
    """
    new = {name: np.array(array) for name, array in weights.items()}
    for edit in edits:
        target = _find(new, edit.layer).read()
        if target.shape != edit.after.shape:
            raise ValueError(f"{edit.layer} is {target.shape}, and the edit is of {edit.after.shape}.")
        target[edit.moved] = edit.after[edit.moved]
    return new


def _finite(name: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; got {value!r}.")
    return float(value)


def _whole(name: str, value) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be a whole number of at least 0; got {value!r}.")
    return int(value)
