"""What all models share: one flat parameter vector; and for gradients by hand the optimiser over it and the CUDA graph.

All parameters of all members lie in one tensor, so that hooks see every model alike, and an optimiser by hand is a single
kernel and a resumable state three vectors.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from grokutils.experiment.config import RunConfig

__all__ = ["BUFFER", "ByHand", "Model"]

#: Before the name of what a network holds besides parameters (running means, for one) among its weights.
BUFFER = "buffer/"

# Parameters start at multiples of this many entries: aligned for every vector unit, so that the
# arithmetic does not depend on where the allocator put the buffer.
_ALIGN = 16

# Steps captured in one CUDA graph: long enough to hide the launch, short enough to capture quickly.
_GRAPH_STEPS = 50


class Model(abc.ABC):
    """A set of member networks trained side by side: all that training and hooks know of them.

    Subclasses set ``shapes`` (parameter name to shape, without the leading member axis) before calling `_allocate`.

    Parameters have shape (members, size) and are viewed as (members, \\*shape); with one member the views
    drop the member axis, since plain matrix products are faster than batched ones.
    """

    shapes: dict[str, tuple[int, ...]]

    def __init__(self, config: RunConfig, device: torch.device):
        self.config = config
        self.device = device
        self.dtype = getattr(torch, config.dtype)
        self.members = len(config.networks)

    @abc.abstractmethod
    def init(self) -> None:
        """Draw the initial weights of every member from its seed."""

    @abc.abstractmethod
    def step(self, start: int, count: int) -> None:
        """Take `count` optimisation steps, the first of which has number `start` (counted from 0)."""

    @abc.abstractmethod
    def evaluate(self) -> list[dict[str, float]]:
        """Accuracy and loss of each member: ``train_accuracy``, ``train_loss``, ``test_accuracy``,
        ``test_loss``."""

    @abc.abstractmethod
    def weights(self) -> list[dict[str, np.ndarray]]:
        """All parameters of each member by their `torch.nn` names, in full; and what else it holds, after `BUFFER`."""

    @staticmethod
    @abc.abstractmethod
    def as_module(config: RunConfig, weights: Mapping[str, np.ndarray]) -> torch.nn.Module:
        """A plain module that computes the same function."""

    @abc.abstractmethod
    def data_summary(self) -> list[dict[str, Any]]:
        """Source and digest of each member's data, for the provenance."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything a later process needs to go on bit for bit, but the number of steps taken."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, torch.Tensor], steps_taken: int) -> None:
        """The inverse of `state_dict`.

        Raises
        ------
        ValueError : names, shapes or types that are not this model's.
        """

    def finite(self) -> np.ndarray:
        """Which members hold no NaN or infinity: bool, (members,)."""
        return torch.isfinite(self._flat).all(dim=1).cpu().numpy()

    def load_weights(self, weights: Sequence[Mapping[str, np.ndarray]]) -> None:
        """The inverse of `weights`: start every member from parameters by their `torch.nn` names. The
        optimiser's moments are left as they are.

        Raises
        ------
        ValueError : not as many members, or names or shapes that are not this model's.
        """
        if len(weights) != self.members:
            raise ValueError(f"weights must be those of {self.members} member(s); got {len(weights)}.")
        for member, arrays in enumerate(weights):
            views = self.member_view(self.params, member)
            if set(arrays) != set(views):
                odd = ", ".join(sorted(set(arrays) ^ set(views)))
                raise ValueError(f"weights must be named as this model's parameters are; {odd} differ.")
            for name, view in views.items():
                view.copy_(_checked_array(name, arrays[name], tuple(view.shape)))

    def without_shortcuts(self) -> None:  # noqa: B027  (most models have none)
        """Make every parameter take part in the arithmetic, before `init`: somebody is going to change them
        between the steps. Models that leave parameters out override this."""

    # -- the parameters -------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        offsets, size = {}, 0
        for name, shape in self.shapes.items():
            offsets[name] = size
            size += math.ceil(math.prod(shape) / _ALIGN) * _ALIGN
        self._offsets = offsets
        self._flat = self._zeros(size)
        self.params = self.views(self._flat)

    def _zeros(self, size: int) -> torch.Tensor:
        return torch.zeros(self.members, size, dtype=self.dtype, device=self.device)

    @property
    def flat(self) -> torch.Tensor:
        """All parameters, (members, size), with some unused entries between them; `params` are its views."""
        return self._flat

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts of a tensor shaped like `flat` that belong to the parameters, as `params` has them."""
        out = {}
        for name, shape in self.shapes.items():
            part = flat[:, self._offsets[name] : self._offsets[name] + math.prod(shape)]
            out[name] = part.view(self.members, *shape) if self.members > 1 else part.view(*shape)
        return out

    def member_view(self, tensors: Mapping[str, torch.Tensor], member: int) -> dict[str, torch.Tensor]:
        """The tensors of one member, without the member axis."""
        return {k: (t[member] if self.members > 1 else t) for k, t in tensors.items()}

class ByHand(Model):
    """Members whose gradients a subclass writes down.

    Subclasses implement `init`, `gradients`, `batch`, `evaluate`, `weights` and `as_module`, and for CUDA `batch_indices`
    and `gathered`.
    """

    def step(self, start: int, count: int) -> None:
        if self.device.type == "cuda":
            self._step_cuda(start, count)
        else:
            for number in range(start, start + count):
                self.gradients(self.batch(number))
                self._update()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: tensor.cpu() for name, tensor in self._state.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], steps_taken: int) -> None:
        mine = self._state
        for name, tensor in mine.items():
            found = state.get(name)
            if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
                got = "nothing" if found is None else f"{tuple(found.shape)} of {found.dtype}"
                raise ValueError(f"{name} must be {tuple(tensor.shape)} of {tensor.dtype}; the state has {got}.")
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        self._steps_taken.fill_(steps_taken)

    # -- what a subclass provides -------------------------------------------------------------------

    @abc.abstractmethod
    def batch(self, number: int) -> Any:
        """The minibatch of step `number`, in whatever form `gradients` wants (CPU)."""

    @abc.abstractmethod
    def gradients(self, batch: Any) -> None:
        """Write the loss's gradient at the current parameters to ``self.grads``."""

    def batch_indices(self, number: int) -> torch.Tensor | None:
        """Positions of the images of step `number`, int64 (members, batch), for the CUDA graph to gather
        from; None where every step takes the whole set."""
        return None

    def gathered(self, indices: torch.Tensor | None) -> Any:
        """The minibatch at `indices` (on the device), made by operations a CUDA graph can capture."""
        raise NotImplementedError

    # -- buffers and optimiser ------------------------------------------------------------------------

    def _allocate(self) -> None:
        super()._allocate()
        size = self._flat.shape[1]
        self._grad, self._exp_avg, self._exp_avg_sq = self._zeros(size), self._zeros(size), self._zeros(size)
        self._state = {"parameters": self._flat, "exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq}
        if self.config.optimizer == "amsgrad":
            self._state["max_exp_avg_sq"] = self._zeros(size)
        # the optimiser's kernel wants float32 on CUDA: exact up to the largest `steps` allowed
        self._steps_taken = torch.zeros((), dtype=torch.float32, device=self.device)

        self.grads = self.views(self._grad)
        decays = [m.weight_decay for m in self.config.networks]
        same = len(set(decays)) == 1
        self._fused_decay = decays[0] if same else 0.0
        shrink = [[1.0 - self.config.learning_rate * d] for d in decays]
        self._shrink = None if same else torch.tensor(shrink, dtype=self.dtype, device=self.device)

    def _update(self) -> None:
        """One step of the optimiser on everything: AdamW (Loshchilov and Hutter 2019) with or without AMSGrad
        (Reddi, Kale and Kumar 2018), as `torch.optim.AdamW` computes them, or momentum as `torch.optim.SGD`
        does. Decay is decoupled from the gradient in all three."""
        c = self.config
        if self._shrink is not None:  # decays differ between members: shrink first, then plain Adam
            self._flat.mul_(self._shrink)
        self._steps_taken.add_(1)
        if c.optimizer == "sgd":
            if self._fused_decay:
                self._flat.mul_(1.0 - c.learning_rate * self._fused_decay)
            self._exp_avg.mul_(c.beta1).add_(self._grad)
            self._flat.add_(self._exp_avg, alpha=-c.learning_rate)
            return
        amsgrad = c.optimizer == "amsgrad"
        torch._fused_adamw_(
            [self._flat], [self._grad], [self._exp_avg], [self._exp_avg_sq],
            [self._state["max_exp_avg_sq"]] if amsgrad else [], [self._steps_taken],
            lr=c.learning_rate, beta1=c.beta1, beta2=c.beta2, weight_decay=self._fused_decay, eps=c.eps,
            amsgrad=amsgrad, maximize=False,
        )  # fmt: skip

    # -- CUDA: many steps in one graph ------------------------------------------------------------------

    def _step_cuda(self, start: int, count: int) -> None:
        done = 0
        while done < count:
            size = _GRAPH_STEPS if count - done >= _GRAPH_STEPS else 1
            graph, indices = self._graph(size)
            if indices is not None:
                chosen = [self.batch_indices(start + done + k) for k in range(size)]
                indices.copy_(torch.stack(chosen), non_blocking=True)
            graph.replay()
            done += size
        torch.cuda.synchronize(self.device)

    def _graph(self, size: int):
        """The captured graph of `size` steps and the buffer its batches' positions are copied to."""
        graphs = self.__dict__.setdefault("_graphs", {})
        if size not in graphs:
            first = self.batch_indices(0)
            indices = None
            if first is not None:
                indices = torch.stack([first] * size).to(self.device)

            def steps() -> None:
                for k in range(size):
                    self.gradients(self.gathered(None if indices is None else indices[k]))
                    self._update()

            # a few steps outside the graph make the libraries allocate what they need; then undo them
            before = {k: v.clone() for k, v in self.state_dict().items()}
            taken = int(self._steps_taken.item())
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                steps()
            torch.cuda.current_stream(self.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                steps()
            self.load_state_dict({k: v.to(self.device) for k, v in before.items()}, taken)
            graphs[size] = graph, indices
        return graphs[size]


def _checked_array(name: str, array: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    array = np.asarray(array)
    if array.shape != shape or array.dtype.kind != "f":
        raise ValueError(f"{name} must be floating-point numbers of shape {shape}; got {array.dtype} {array.shape}.")
    return torch.from_numpy(np.ascontiguousarray(array))
