"""Back to the valley: the smallest change of the weights after which the training set is fitted again.

>>> from grokutils import RunConfig
>>> valley = Valley(RunConfig.recipe("express"), seed=0)
>>> valley.loss(valley.zeros()) > 0.09
True

Gauss-Newton with the least norm: the change is J^T (J J^T + mu)^-1 (-r) with r the residuals of all outputs of all
training images and J their Jacobian, and mu as in Levenberg (1944), raised where a step does not help. J J^T needs no J: for
images i, j and outputs a, b it is the sum over layers of (h_i . h_j + 1) (d_ia . d_jb), with h what the layer reads and
d_ia the derivative of output a by what the layer gives. One Cholesky factor, in single precision, serves as long as it cuts the loss well; outputs and loss are in double precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from grokutils.experiment import data
from grokutils.experiment.config import RunConfig

__all__ = ["Settled", "Valley", "weight_names"]

#: mu starts at this share of the mean of J J^T's diagonal.
_DAMPING = 1e-3
#: A factor is used again while each step cuts the loss by at least this.
_GOOD = 3.0
_MOST_FACTORS = 40


@dataclass(frozen=True)
class Settled:
    """Where a return ended."""

    weights: torch.Tensor
    loss: float
    #: Cholesky factors that it took.
    factors: int
    #: Whether the loss is below the tolerance.
    found: bool


def weight_names(depth: int) -> list[str]:
    """Names of the matrices, first to last.

    >>> weight_names(2)
    ['fc1.weight', 'fc2.weight']
    """
    return [f"fc{k}.weight" for k in range(1, depth + 1)]


class Valley:
    """The training set of one network, as equations for its weights. Weights are one float64 vector.

    Parameters
    ----------
    config : of the run, an MLP
    seed : of the member, which chooses its training images
    """

    def __init__(self, config: RunConfig, seed: int):
        self.data = data.load(config, seed)
        self.x = torch.from_numpy(self.data.x_train)
        self.y = torch.nn.functional.one_hot(torch.from_numpy(self.data.y_train), 10).double()
        self.depth = config.depth
        sizes = [self.x.shape[1]] + [config.width] * (config.depth - 1) + [10]
        self.shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
            self.shapes[f"fc{layer}.weight"] = (fan_out, fan_in)
            self.shapes[f"fc{layer}.bias"] = (fan_out,)
        self.size = sum(int(np.prod(shape)) for shape in self.shapes.values())

    # -- the weights as a vector ----------------------------------------------------------------------

    def zeros(self) -> torch.Tensor:
        return torch.zeros(self.size, dtype=torch.float64)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts of a vector, by name; writing to one writes to the vector."""
        out, start = {}, 0
        for name, shape in self.shapes.items():
            end = start + int(np.prod(shape))
            out[name] = flat[start:end].view(shape)
            start = end
        return out

    def vector(self, weights: Mapping[str, np.ndarray]) -> torch.Tensor:
        """The inverse of `views`."""
        return torch.cat([torch.as_tensor(weights[name]).double().reshape(-1) for name in self.shapes])

    def trained(self) -> torch.Tensor:
        """Which weights a gradient can reach: all but those of pixels that are zero in every training image."""
        mask = torch.ones(self.size, dtype=torch.bool)
        self.views(mask)["fc1.weight"][:, ~(self.x != 0).any(0)] = False
        return mask

    # -- the function ---------------------------------------------------------------------------------

    def activations(self, flat: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        """What each layer reads, and last the outputs."""
        w = self.views(flat)
        found = [x]
        for k in range(1, self.depth + 1):
            z = torch.addmm(w[f"fc{k}.bias"], found[-1], w[f"fc{k}.weight"].T)
            found.append(z.relu_() if k < self.depth else z)
        return found

    def loss(self, flat: torch.Tensor) -> float:
        """Mean squared error on the training set, as in training."""
        return float((self.activations(flat, self.x)[-1] - self.y).square().mean())

    def jacobian_t(self, lam: torch.Tensor, reads: list[torch.Tensor], backs: list[torch.Tensor]) -> torch.Tensor:
        """J^T lam, for lam of one number for each image and output."""
        out = self.zeros()
        parts = self.views(out)
        for k in range(1, self.depth + 1):
            error = lam if k == self.depth else torch.einsum("na,nau->nu", lam, backs[k - 1])
            parts[f"fc{k}.weight"].copy_(error.T @ reads[k - 1])
            parts[f"fc{k}.bias"].copy_(error.sum(0))
        return out

    def gram(self, flat: torch.Tensor, reads: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """J J^T in single precision, and of each layer but the last the derivatives of the outputs by what it gives."""
        w, images, outputs = self.views(flat), len(self.x), self.y.shape[1]
        backs: list[torch.Tensor] = [None] * (self.depth - 1)
        onward = w[f"fc{self.depth}.weight"].expand(images, -1, -1)
        for k in range(self.depth - 1, 0, -1):
            backs[k - 1] = onward * (reads[k] > 0)[:, None, :]
            onward = backs[k - 1] @ w[f"fc{k}.weight"]
        total = torch.zeros(images * outputs, images * outputs)
        by_image = total.view(images, outputs, images, outputs)
        for read, back in zip(reads, backs, strict=False):
            d, r = back.reshape(images * outputs, -1).float(), read.float()
            by_image.add_((d @ d.T).view_as(by_image).mul_((r @ r.T + 1)[:, None, :, None]))
        last = reads[self.depth - 1].float()
        by_image.diagonal(dim1=1, dim2=3).add_((last @ last.T + 1)[:, :, None])
        return total, backs

    def settle(self, flat: torch.Tensor, tolerance: float) -> Settled:
        """The nearest point of the valley, as far as Gauss-Newton finds it.

        Parameters
        ----------
        flat : where to begin; it is not changed
        tolerance : of the training loss
        """
        reads = self.activations(flat, self.x)
        residual = reads[-1] - self.y
        loss, factors, mu = float(residual.square().mean()), 0, _DAMPING
        kernel = None
        while loss > tolerance and factors < _MOST_FACTORS:
            if kernel is None:
                kernel, backs = self.gram(flat, reads)
                base = reads
            damped = kernel.clone()
            damped.diagonal().add_(mu * float(kernel.diagonal().mean()))
            factor, failed = torch.linalg.cholesky_ex(damped)
            factors += 1
            moved = False
            while not failed and loss > tolerance:
                lam = torch.cholesky_solve(-residual.reshape(-1, 1).float(), factor).view_as(residual).double()
                there = flat + self.jacobian_t(lam, base, backs)
                new_reads = self.activations(there, self.x)
                new_residual = new_reads[-1] - self.y
                new = float(new_residual.square().mean())
                if not new < loss:
                    break
                cut = loss / max(new, 1e-300)
                flat, reads, residual, loss, moved = there, new_reads, new_residual, new, True
                if cut < _GOOD:
                    break
            if moved:
                kernel, mu = None, max(mu / 10, _DAMPING)
            else:
                mu = min(mu * 30, 1e3)
        return Settled(flat, loss, factors, loss <= tolerance)
