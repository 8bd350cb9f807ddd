"""What is done to a network between its training steps: hooks that any user could write, and a few of them.

>>> from grokutils import RunConfig, train
>>> config = RunConfig.recipe("express", steps=2_000)
>>> train(config, "clipped", hooks=[ClipWeights(k=4.0)])                       # doctest: +SKIP

A hook changes ``model.params`` in place; the loop knows nothing of what it does. With hooks, the run is another
run: their `identity` becomes part of its configuration, and to go on with it one needs the same hooks.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from grokutils.experiment.config import ConfigError
from grokutils.experiment.models import Model

__all__ = ["CenterRows", "ClipWeights", "FreeOnly", "Hook", "HoldNorm", "ScaleSteps", "check_hooks"]


class Hook:
    """Called around the steps; all methods may be left as they are.

    >>> class Halve(Hook):
    ...     "Halve every parameter after a thousand steps, once in a thousand."
    ...     identity, first, every = "halve(1000)", 0, 1000
    ...     def after(self, step, model):
    ...         model.flat.mul_(0.5)

    Attributes
    ----------
    identity : a text that says all of what it does, always the same
    first, every : `before` is called when ``first``, ``first + every``, ... steps have been taken, and `after`
        at the same numbers but ``first``. With ``every=1`` the two enclose each step from there on.
    """

    identity: str = ""
    first: int = 0
    every: int = 1

    def begin(self, model: Model) -> None:
        """Called once, before anything runs, new or resumed: make buffers, refuse what cannot be (ValueError)."""

    def before(self, step: int, model: Model) -> None:
        """`step` steps have been taken, and another one follows."""

    def after(self, step: int, model: Model) -> None:
        """`step` steps have been taken, the last of them just now."""

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs of it."""
        return {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`, after `begin`."""

    def next_call(self, step: int) -> int:
        """The first step after this one at which it is called."""
        if step < self.first:
            return self.first
        return step + self.every - (step - self.first) % self.every

    def is_due(self, step: int) -> bool:
        return step >= self.first and (step - self.first) % self.every == 0


def check_hooks(hooks: Sequence[Hook]) -> tuple[Hook, ...]:
    """The hooks, if they are.

    Raises
    ------
    ConfigError : something else, or a hook without an identity or with a period that is none.
    """
    if isinstance(hooks, (str, Hook)) or not isinstance(hooks, Sequence):
        raise ConfigError(f"hooks must be a list of hooks; got {type(hooks).__name__}.")
    for hook in hooks:
        if not isinstance(hook, Hook):
            raise ConfigError(f"hooks must be a list of hooks; one of them is a {type(hook).__name__}.")
        if not isinstance(hook.identity, str) or not hook.identity.isprintable() or not hook.identity:
            raise ConfigError(f"a {type(hook).__name__} needs an identity, a text of one line; got {hook.identity!r}.")
        for name, low in (("first", 0), ("every", 1)):
            value = getattr(hook, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
                raise ConfigError(f"{name} of {hook.identity} must be a whole number of at least {low}; got {value!r}.")
    return tuple(hooks)


# -- hooks of this project ----------------------------------------------------------------------------------------

Steps = int | Sequence[int]


@dataclass(kw_only=True)
class _BuiltIn(Hook):
    """Its repr is its identity."""

    @property
    def identity(self) -> str:
        return repr(self)

    def _fail(self, what: str) -> ConfigError:
        return ConfigError(f"{type(self).__name__}: {what}.")


@dataclass(kw_only=True)
class _From(_BuiltIn):
    """From a step on, which may be another one for each member."""

    start: Steps = 0

    def __post_init__(self) -> None:
        several = isinstance(self.start, Sequence) and not isinstance(self.start, str)
        values = list(self.start) if several else [self.start]
        if not values or any(
            isinstance(v, bool) or not isinstance(v, numbers.Real) or v < 0 or int(v) != v for v in values
        ):
            raise self._fail(f"start must be a step, or one for each member; got {self.start!r}")
        self.start = tuple(int(v) for v in values) if several else int(values[0])

    @property
    def first(self) -> int:
        return min(self.start) if isinstance(self.start, tuple) else self.start

    def begin(self, model: Model) -> None:
        if isinstance(self.start, tuple) and len(self.start) != model.members:
            raise self._fail(f"start must have a step for each of {model.members} member(s); got {len(self.start)}")
        self._starts = np.broadcast_to(np.asarray(self.start), model.members)


class _Blend(_From):
    """Takes only a share of each step: the weights end between those before it and those after it."""

    def begin(self, model: Model) -> None:
        super().begin(model)
        self._before = torch.empty_like(model.flat)

    def before(self, step: int, model: Model) -> None:
        self._before.copy_(model.flat)

    def after(self, step: int, model: Model) -> None:
        # exact at both ends: 0 keeps the bits from before the step and 1 those from after it
        torch.lerp(self._before, model.flat, self.share(step - 1, model), out=model.flat)

    def share(self, step: int, model: Model) -> torch.Tensor:
        """Of the step with number `step`, counted from 0; broadcast to ``model.flat``."""
        raise NotImplementedError


@dataclass(kw_only=True)
class ScaleSteps(_Blend):
    """Multiply the learning rate by a factor from a step on: a schedule.

    >>> ScaleSteps(start=50_000, factor=0.1).identity
    'ScaleSteps(start=50000, factor=0.1, end=None)'

    All optimisers here move the weights in proportion to the learning rate, decoupled decay included, so a share
    of the whole step is what a smaller learning rate would have done.

    Parameters
    ----------
    start : the first step scaled, counted from 0; for several members one each
    factor : what the learning rate comes to
    end : where it comes to it, along half a cosine (Loshchilov and Hutter 2017); None: at once
    """

    factor: float = 0.0
    end: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.factor <= 1:
            raise self._fail(f"factor must be between 0 and 1; got {self.factor!r}")
        latest = max(self.start) if isinstance(self.start, tuple) else self.start
        if self.end is not None and not self.end > latest:
            raise self._fail(f"end must come after start; got {self.end!r}")

    def share(self, step: int, model: Model) -> torch.Tensor:
        shares = []
        for start in self._starts:
            if step < start:
                shares.append(1.0)
            elif self.end is None:
                shares.append(self.factor)
            else:
                way = min(1.0, (step - start) / (self.end - start))
                shares.append(self.factor + (1.0 - self.factor) * 0.5 * (1.0 + math.cos(math.pi * way)))
        return torch.tensor(shares, dtype=model.flat.dtype, device=model.flat.device)[:, None]


@dataclass(kw_only=True)
class FreeOnly(_Blend):
    """Let only the named parameters move from a step on; the others keep their bits.

    >>> FreeOnly(names=("fc1.weight", "fc1.bias"), start=50_000).first
    50000

    Parameters
    ----------
    names : of the parameters, as `torch.nn` has them; all others are put back after every step, whatever momentum,
        decay or gradient would do to them
    start : the first step, counted from 0; for several members one each
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.names = _names(self, self.names)

    def begin(self, model: Model) -> None:
        super().begin(model)
        _known(self, self.names, model)
        self._free = torch.zeros_like(model.flat)
        for name, view in model.views(self._free).items():
            if name in self.names:
                view.fill_(1)
        self._shares: dict[bytes, torch.Tensor] = {}

    def share(self, step: int, model: Model) -> torch.Tensor:
        free = step < self._starts
        key = free.tobytes()
        if key not in self._shares:
            all_free = torch.from_numpy(free).to(self._free.device)[:, None]
            self._shares = {key: torch.where(all_free, torch.ones_like(self._free), self._free)}
        return self._shares[key]


@dataclass(kw_only=True)
class HoldNorm(_From):
    """Scale matrices back to a given Frobenius norm after every step, from a step on.

    >>> HoldNorm(start=50_000).identity
    'HoldNorm(start=50000, names=None, to=None)'

    Parameters
    ----------
    start : the first step after which it is done; for several members one each
    names : of the matrices; None: all matrices, each to its own norm. Biases are left alone.
    to : the norm; None: the one it has when `start` steps have been taken
    """

    names: tuple[str, ...] | None = None
    to: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.names = None if self.names is None else _names(self, self.names)
        if self.to is not None and not 0 < self.to < math.inf:
            raise self._fail(f"to must be a positive number; got {self.to!r}")

    def begin(self, model: Model) -> None:
        super().begin(model)
        self._matrices = _matrices(self, self.names, model)
        self._norms = {
            name: torch.full((model.members, 1, 1), math.nan if self.to is None else self.to, dtype=torch.float64)
            for name in self._matrices
        }

    def before(self, step: int, model: Model) -> None:
        for member in np.flatnonzero(self._starts == step) if self.to is None else ():
            for name, matrix in self._matrices.items():
                self._norms[name][member] = torch.linalg.vector_norm(matrix[member].double()).cpu()

    def after(self, step: int, model: Model) -> None:
        held = torch.from_numpy(self._starts < step)[:, None, None]
        for name, matrix in self._matrices.items():
            now = torch.linalg.vector_norm(matrix, dim=(1, 2), keepdim=True, dtype=torch.float64).cpu()
            factor = torch.where(held & (now > 0), self._norms[name] / now, torch.ones_like(now))
            matrix.mul_(factor.to(matrix.device, matrix.dtype))

    def state(self) -> dict[str, np.ndarray]:
        return {name: norms.numpy().copy() for name, norms in self._norms.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        for name, norms in self._norms.items():
            norms.copy_(torch.from_numpy(np.array(state[name])))


@dataclass(kw_only=True)
class ClipWeights(_BuiltIn):
    """Bring weights that lie further than `k` standard deviations from the mean of their matrix back to there.

    >>> ClipWeights(k=4.0).identity
    'ClipWeights(k=4.0, names=None, first=0, every=1)'

    Mean and standard deviation are those of the matrix before, so after one clipping a few entries may lie a
    little further than k of the new, smaller deviation.

    Parameters
    ----------
    k : standard deviations
    names : of the matrices; None: all
    first, every : when (`Hook`)
    """

    k: float
    names: tuple[str, ...] | None = None
    first: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.k < math.inf:
            raise self._fail(f"k must be a positive number; got {self.k!r}")
        self.names = None if self.names is None else _names(self, self.names)

    def begin(self, model: Model) -> None:
        self._matrices = _matrices(self, self.names, model)

    def after(self, step: int, model: Model) -> None:
        for matrix in self._matrices.values():
            std, mean = torch.std_mean(matrix, dim=(1, 2), keepdim=True, correction=0)
            reach = std.mul_(self.k)
            torch.clamp(matrix, min=mean - reach, max=mean + reach, out=matrix)


@dataclass(kw_only=True)
class CenterRows(_BuiltIn):
    """Subtract its mean from every row of the matrices: no row has a shift.

    >>> CenterRows(every=10).identity
    'CenterRows(names=None, first=0, every=10)'

    Parameters
    ----------
    names : of the matrices; None: all
    first, every : when (`Hook`)
    """

    names: tuple[str, ...] | None = None
    first: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        self.names = None if self.names is None else _names(self, self.names)

    def begin(self, model: Model) -> None:
        self._matrices = _matrices(self, self.names, model)

    def after(self, step: int, model: Model) -> None:
        for matrix in self._matrices.values():
            matrix.sub_(matrix.mean(dim=2, keepdim=True))


def _names(hook: _BuiltIn, names: Sequence[str]) -> tuple[str, ...]:
    several = isinstance(names, Sequence) and not isinstance(names, str)
    if not several or not names or not all(isinstance(name, str) for name in names):
        raise hook._fail(f"names must be names of parameters, such as ('fc1.weight',); got {names!r}")
    return tuple(names)


def _known(hook: _BuiltIn, names: Sequence[str], model: Model) -> None:
    if unknown := sorted(set(names) - set(model.params)):
        raise hook._fail(f"there is no parameter {unknown[0]!r}; there are {', '.join(model.params)}")


def _matrices(hook: _BuiltIn, names: Sequence[str] | None, model: Model) -> dict[str, torch.Tensor]:
    """Views of the named matrices, (members, rows, columns)."""
    if names is None:
        names = [name for name, shape in model.shapes.items() if len(shape) == 2]
    _known(hook, names, model)
    if odd := [name for name in names if len(model.shapes[name]) != 2]:
        raise hook._fail(f"{odd[0]!r} is no matrix")
    return {name: model.params[name].view(model.members, *model.shapes[name]) for name in names}
