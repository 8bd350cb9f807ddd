"""What is done between the training steps of the study of the mechanism.

>>> CapSteps(rms=3e-4).identity
'CapSteps(rms=0.0003)'
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from grokutils.experiment.config import ConfigError
from grokutils.experiment.models import Model
from grokutils.spectra.alpha import fit_power_law
from grokutils.training.hooks import Hook

__all__ = ["CapSteps", "ClipSingularValues", "Jitter", "OnlyPixels", "OrthogonalSteps", "PullAlpha", "PullNorm"]


@dataclass(kw_only=True)
class _Named(Hook):
    """Its repr is its identity."""

    @property
    def identity(self) -> str:
        return repr(self)

    def _positive(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{type(self).__name__}: {name} must be a positive number; got {getattr(self, name)!r}."
                )


@dataclass(kw_only=True)
class _OfSteps(_Named):
    """Looks at each step, the weights after it less those before it."""

    def begin(self, model: Model) -> None:
        self._before = torch.empty_like(model.flat)

    def before(self, step: int, model: Model) -> None:
        self._before.copy_(model.flat)


@dataclass(kw_only=True)
class CapSteps(_OfSteps):
    """Shorten every step whose root mean square over a member's parameters is larger.

    >>> CapSteps(rms=1e-4).rms
    0.0001

    Parameters
    ----------
    rms : the largest that is left as it is, in the units of the weights
    """

    rms: float

    def __post_init__(self) -> None:
        self._positive("rms")

    def begin(self, model: Model) -> None:
        super().begin(model)
        self._count = sum(math.prod(shape) for shape in model.shapes.values())

    def after(self, step: int, model: Model) -> None:
        change = model.flat - self._before
        size = torch.linalg.vector_norm(change, dim=1, keepdim=True) / math.sqrt(self._count)
        model.flat.copy_(torch.addcmul(self._before, change, (self.rms / size).clamp_(max=1.0)))


@dataclass(kw_only=True)
class OrthogonalSteps(_OfSteps):
    """Take from every step of every matrix the part along the matrix itself (after Prieto et al. 2025, 2501.04697).

    >>> OrthogonalSteps().identity
    'OrthogonalSteps()'
    """

    def begin(self, model: Model) -> None:
        super().begin(model)
        before = model.views(self._before)
        self._pairs = [
            (model.params[name].view(model.members, -1), before[name].view(model.members, -1))
            for name, shape in model.shapes.items() if len(shape) == 2
        ]  # fmt: skip

    def after(self, step: int, model: Model) -> None:
        for now, before in self._pairs:
            along = ((now - before) * before).sum(1, keepdim=True) / before.square().sum(1, keepdim=True)
            now.addcmul_(before, along, value=-1)


@dataclass(kw_only=True)
class PullNorm(_Named):
    """Scale every matrix a little towards a share of the norm it began with, after each step.

    >>> PullNorm(to=0.7, rate=1e-4).identity
    'PullNorm(to=0.7, rate=0.0001)'

    Parameters
    ----------
    to : share of the norm at the start
    rate : of the way that is left, at each step
    """

    to: float
    rate: float

    def __post_init__(self) -> None:
        self._positive("to", "rate")

    def begin(self, model: Model) -> None:
        self._matrices = _matrices(model)
        self._targets = {name: self.to * _norm(matrix) for name, matrix in self._matrices.items()}

    def after(self, step: int, model: Model) -> None:
        for name, matrix in self._matrices.items():
            matrix.mul_(1.0 + self.rate * (self._targets[name] / _norm(matrix) - 1.0))

    def state(self) -> dict[str, np.ndarray]:
        return {name: norm.numpy().copy() for name, norm in self._targets.items()}

    def load_state(self, state) -> None:
        for name, norm in self._targets.items():
            norm.copy_(torch.from_numpy(np.array(state[name])))


@dataclass(kw_only=True)
class OnlyPixels(_Named):
    """Let decay act on the first layer's weights of some pixels only, or spare them.

    Weights of pixels that are zero in every training image have no gradient: decay alone moves them.

    >>> OnlyPixels(unused="kept").identity
    "OnlyPixels(unused='kept', rate=0.0)"

    Parameters
    ----------
    unused : "kept": these weights are put back after every step; "shrunk": they alone shrink, by `rate` a step
    rate : of shrinking
    """

    unused: str
    rate: float = 0.0

    def __post_init__(self) -> None:
        if self.unused not in ("kept", "shrunk"):
            raise ConfigError(f"OnlyPixels: unused must be 'kept' or 'shrunk'; got {self.unused!r}.")

    def begin(self, model: Model) -> None:
        first = model.params["fc1.weight"].view(model.members, *model.shapes["fc1.weight"])
        x = model.batch(0).x
        if model.members != 1:
            raise ConfigError("OnlyPixels: the model must have one member.")
        self._first, self._unused = first[0], torch.nonzero(~(x != 0).any(0)).flatten()
        self._start = self._first[:, self._unused].clone()

    def after(self, step: int, model: Model) -> None:
        if self.unused == "kept":
            self._first[:, self._unused] = self._start
        else:
            self._first[:, self._unused] *= 1.0 - self.rate

    def state(self) -> dict[str, np.ndarray]:
        return {"start": self._start.numpy().copy()}

    def load_state(self, state) -> None:
        self._start.copy_(torch.from_numpy(np.array(state["start"])))


@dataclass(kw_only=True)
class Jitter(_Named):
    """Add Gaussian noise to every parameter that a gradient can reach, after each step.

    >>> Jitter(std=1e-3).identity
    'Jitter(std=0.001)'

    Parameters
    ----------
    std : in the units of the weights
    """

    std: float

    def __post_init__(self) -> None:
        self._positive("std")

    def begin(self, model: Model) -> None:
        self._mask = torch.zeros_like(model.flat)
        for name, view in model.views(self._mask).items():
            view.fill_(1)
            if name == "fc1.weight":
                view.mul_((model.batch(0).x != 0).any(-2).to(view.dtype).unsqueeze(-2))
        self._seeds = [network.seed for network in model.config.networks]

    def after(self, step: int, model: Model) -> None:
        for member, seed in enumerate(self._seeds):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            noise = torch.randn(model.flat.shape[1], generator=generator, dtype=model.flat.dtype)
            model.flat[member].addcmul_(noise, self._mask[member], value=self.std)


@dataclass(kw_only=True)
class ClipSingularValues(_Named):
    """Bring singular values above the largest at the start back to it, every so many steps.

    >>> ClipSingularValues(every=100).every
    100

    Parameters
    ----------
    every : steps
    names : of the matrices
    """

    every: int
    names: tuple[str, ...] = ("fc1.weight", "fc2.weight")

    def begin(self, model: Model) -> None:
        self._matrices = {name: matrix for name, matrix in _matrices(model).items() if name in self.names}
        self._largest = {
            name: torch.linalg.matrix_norm(matrix.double(), 2) for name, matrix in self._matrices.items()
        }

    def after(self, step: int, model: Model) -> None:
        for name, matrix in self._matrices.items():
            u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
            clipped = torch.minimum(s, self._largest[name][:, None])
            matrix.copy_((u * clipped[:, None, :]) @ vt)

    def state(self) -> dict[str, np.ndarray]:
        return {name: value.numpy().copy() for name, value in self._largest.items()}

    def load_state(self, state) -> None:
        self._largest = {name: torch.from_numpy(np.array(state[name])) for name in self._largest}


@dataclass(kw_only=True)
class PullAlpha(_Named):
    """Reshape the fitted tail of the eigenvalues so that its alpha comes nearer to a target, norms kept.

    An eigenvalue of y times xmin becomes y^k times xmin, which turns an exponent alpha into 1 + (alpha - 1) / k.

    >>> PullAlpha(to=2.0, rate=0.1, every=100).identity
    "PullAlpha(to=2.0, rate=0.1, every=100, names=('fc1.weight', 'fc2.weight'))"

    Parameters
    ----------
    to : target of alpha
    rate : of the way that is left, each time
    every : steps
    names : of the matrices
    """

    to: float
    rate: float
    every: int
    names: tuple[str, ...] = ("fc1.weight", "fc2.weight")

    def __post_init__(self) -> None:
        self._positive("rate")
        if not self.to > 1:
            raise ConfigError(f"PullAlpha: to must be above 1; got {self.to!r}.")

    def begin(self, model: Model) -> None:
        self._matrices = {name: matrix for name, matrix in _matrices(model).items() if name in self.names}

    def after(self, step: int, model: Model) -> None:
        for matrices in self._matrices.values():
            for matrix in matrices:
                u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
                eigenvalues = s.numpy() ** 2
                fit = fit_power_law(np.sort(eigenvalues))
                if fit.status != "ok":
                    continue
                aim = fit.alpha + self.rate * (self.to - fit.alpha)
                power = (fit.alpha - 1) / (aim - 1)
                tail = eigenvalues >= fit.xmin
                new = np.where(tail, fit.xmin * (eigenvalues / fit.xmin) ** power, eigenvalues)
                new *= eigenvalues.sum() / new.sum()
                matrix.copy_((u * torch.from_numpy(np.sqrt(new))) @ vt)


def _matrices(model: Model) -> dict[str, torch.Tensor]:
    return {
        name: model.params[name].view(model.members, *shape)
        for name, shape in model.shapes.items() if len(shape) == 2
    }  # fmt: skip


def _norm(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(matrix, dim=(1, 2), keepdim=True)
