"""Where a forked run begins: the weights of a saved step of another record, perhaps edited.

>>> from grokutils import RunConfig, load_record, train
>>> source = load_record("runs/x")                                             # doctest: +SKIP
>>> train(RunConfig.recipe("express"), "forked", start_from=source, step=100_000)     # doctest: +SKIP

The optimiser's moments are not taken along, so every fork has a control: the same fork without an edit.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.records.record import Record

__all__ = ["Origin", "origin"]

Weights = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Origin:
    """What a fork starts from."""

    #: Of each member of the fork, by their `torch.nn` names, edited.
    weights: list[Weights]
    #: Name and identity of the record, the steps and members, and the digest of the weights.
    provenance: dict[str, Any]

    @property
    def says(self) -> str:
        """What makes one fork another run than the next."""
        p = self.provenance
        return f"fork({p['identity'][:16]}, step={p['step']}, member={p['member']}, weights={p['sha256'][:16]})"


def origin(
    config: RunConfig,
    start_from: Record | None,
    step: int | Sequence[int] | None = None,
    member: int | Sequence[int] = 0,
    edit: Callable[[Weights], Weights] | None = None,
) -> Origin | None:
    """The origin of a run of `config` (`grokutils.train` says what the others are); None without a record.

    Raises
    ------
    ConfigError : `step`, `member` or `edit` without a record, or not one for each network.
    ValueError : a step or a member that the record has not got, or an edit that does not return weights.
    """
    if start_from is None:
        if step is not None or edit is not None or member != 0:
            raise ConfigError("step, member and edit say where a fork begins; they need start_from, a record.")
        return None
    if not isinstance(start_from, Record):
        raise ConfigError(f"start_from must be a Record, such as load_record gives; got {type(start_from).__name__}.")
    if edit is not None and not callable(edit):
        raise ConfigError(f"edit must be a function of a network's weights; got {type(edit).__name__}.")
    count = len(config.networks)
    steps = _each("step", start_from.steps_saved[-1:] * count if step is None else step, count)
    members = _each("member", member, count)
    found = []
    for number, which in zip(steps, members, strict=True):
        weights = start_from.weights(number, which, buffers=True)
        found.append(weights if edit is None else _edited(edit, weights))
    return Origin(found, {
        "record": start_from.name, "identity": start_from.config.identity, "step": steps, "member": members,
        "sha256": _digest(found),
    })  # fmt: skip


def _each(name: str, value: int | Sequence[int], count: int) -> list[int]:
    """One whole number for each network, of one for all or of a list."""
    values = [value] * count if isinstance(value, numbers.Real) else value
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != count:
        raise ConfigError(f"{name} must be a whole number, or {count} of them, one for each network; got {value!r}.")
    for one in values:
        if isinstance(one, bool) or not isinstance(one, numbers.Real) or int(one) != one:
            raise ConfigError(f"{name} must be a whole number, or {count} of them; got {one!r}.")
    return [int(one) for one in values]


def _edited(edit: Callable[[Weights], Weights], weights: Weights) -> Weights:
    edited = edit({name: array.copy() for name, array in weights.items()})
    if not isinstance(edited, dict) or not all(isinstance(a, np.ndarray) for a in edited.values()):
        raise ValueError("edit must return a dict of names to arrays, as it was given.")
    for name, array in edited.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"edit must return finite weights; {name} has others.")
    return edited


def _digest(weights: list[Weights]) -> str:
    digest = hashlib.sha256()
    for arrays in weights:
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
