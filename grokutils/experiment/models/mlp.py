"""The paper's multilayer perceptron with mean squared error on one-hot targets, gradients by hand.

Two savings that change nothing but the time:

* A pixel that is zero in every training image has zero gradient for ever; AdamW only shrinks its
  weights, by (1 - lr * wd) a step. Those columns of the first matrix are not trained but put back in
  closed form.
* On a CPU the images of a batch are sorted by the rarest pixel they use and the pixels by how often
  they are used, so that the batch's zeros gather in a corner. The first layer's two products leave
  that corner out, block by block (`_blocks`).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grokutils.experiment import data
from grokutils.experiment.config import RunConfig
from grokutils.experiment.models.base import ByHand, _checked_array
from grokutils.experiment.traits import data_traits

__all__ = ["MLP"]


# Columns of the first layer are left out in blocks of this many: narrower ones cost more in calls than
# they save in arithmetic.
_BLOCK = 75

# Rows evaluated at a time: bounds the memory of the hidden activations.
_EVAL_ROWS = 2_500


@dataclass(frozen=True)
class _Batch:
    x: torch.Tensor  # (members, batch, trained pixels), or (batch, trained pixels) for one member
    y: torch.Tensor  # one-hot, (members, batch, 10) or (batch, 10)
    blocks: tuple[tuple[int, int, int], ...]  # (first column, end column, rows that may be non-zero there)


class MLP(ByHand):
    """``fc1 -> ReLU -> fc2 -> ReLU -> ... -> fcL``, all members side by side.

    >>> model = MLP(RunConfig.recipe("express"), torch.device("cpu"))
    >>> model.init()
    >>> model.weights()[0]["fc1.weight"].shape
    (100, 64)
    """

    def __init__(self, config: RunConfig, device: torch.device):
        super().__init__(config, device)
        self._prepare(all_pixels=False)

    def without_shortcuts(self) -> None:
        self._prepare(all_pixels=True)

    def _prepare(self, all_pixels: bool) -> None:
        config, device = self.config, self.device
        self._classes = data_traits(config.dataset).classes(config)
        self._data = [data.load(config, member.seed) for member in config.networks]
        x = np.stack([d.x_train for d in self._data])
        used = (x != 0).sum(axis=(0, 1))
        # most used first; ties by position, so that the order is the same everywhere
        self._columns = np.argsort(-used, kind="stable")[: None if all_pixels else np.count_nonzero(used)]
        self._pixels = x.shape[2]
        self._untrained_columns = np.setdiff1d(np.arange(self._pixels), self._columns)
        self._x = self._tensor(x[:, :, self._columns])
        self._labels = torch.from_numpy(np.stack([d.y_train for d in self._data])).to(device)
        self._y = torch.nn.functional.one_hot(self._labels, self._classes).to(self.dtype)
        shared_test = all(d.x_test is self._data[0].x_test for d in self._data)
        tests = self._data[:1] if shared_test else self._data
        self._x_test = self._tensor(np.stack([d.x_test for d in tests]))
        self._y_test = torch.from_numpy(np.stack([d.y_test for d in tests])).to(device)

        trained = len(self._columns)
        sizes = [trained] + [config.width] * (config.depth - 1) + [self._classes]
        self.shapes = {}
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
            self.shapes[f"fc{layer}.weight"] = (fan_out, fan_in)
            self.shapes[f"fc{layer}.bias"] = (fan_out,)
        self._allocate()
        self._make_buffers()
        self._make_batches()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)

    # -- weights -----------------------------------------------------------------------------------------

    def init(self) -> None:
        """PyTorch's default (uniform in +-1/sqrt(fan_in)), drawn in float64 in the order in which
        `torch.nn.Linear` draws it, times `init_scale`."""
        c = self.config
        untrained = self._untrained_columns
        self._untrained_start = []
        for member, network in enumerate(c.networks):
            generator = torch.Generator().manual_seed(network.seed)
            views = self.member_view(self.params, member)
            fan_in = self._pixels
            for layer in range(1, c.depth + 1):
                fan_out = views[f"fc{layer}.bias"].shape[0]
                bound = 1.0 / fan_in**0.5
                weight = torch.empty(fan_out, fan_in, dtype=torch.float64)
                weight.uniform_(-bound, bound, generator=generator).mul_(c.init_scale)
                bias = torch.empty(fan_out, dtype=torch.float64)
                bias.uniform_(-bound, bound, generator=generator).mul_(c.init_scale)
                if layer == 1:
                    self._untrained_start.append(weight[:, untrained].numpy())
                    weight = weight[:, self._columns]
                views[f"fc{layer}.weight"].copy_(weight)
                views[f"fc{layer}.bias"].copy_(bias)
                fan_in = fan_out

    def load_weights(self, weights: Sequence[Mapping[str, np.ndarray]]) -> None:
        full = (self.shapes["fc1.weight"][0], self._pixels)
        firsts = [_checked_array("fc1.weight", w["fc1.weight"], full).numpy() for w in weights if "fc1.weight" in w]
        if len(firsts) == len(weights):  # otherwise what is missing is said below
            weights = [{**w, "fc1.weight": f[:, self._columns]} for w, f in zip(weights, firsts, strict=True)]
        super().load_weights(weights)
        self._untrained_start = [first[:, self._untrained_columns] for first in firsts]

    def weights(self) -> list[dict[str, np.ndarray]]:
        taken = int(self._steps_taken.item())
        out = []
        for member, network in enumerate(self.config.networks):
            views = self.member_view(self.params, member)
            arrays = {name: view.cpu().numpy().copy() for name, view in views.items()}
            trained = arrays["fc1.weight"]
            full = np.empty((trained.shape[0], self._pixels), dtype=trained.dtype)
            full[:, self._columns] = trained
            shrunk = (1.0 - self.config.learning_rate * network.weight_decay) ** taken
            full[:, self._untrained_columns] = self._untrained_start[member] * shrunk
            arrays["fc1.weight"] = full
            out.append(arrays)
        return out

    @staticmethod
    def as_module(config: RunConfig, weights: Mapping[str, np.ndarray]) -> torch.nn.Sequential:
        modules: OrderedDict[str, torch.nn.Module] = OrderedDict()
        for layer in range(1, config.depth + 1):
            fan_out, fan_in = weights[f"fc{layer}.weight"].shape
            if layer > 1:
                modules[f"relu{layer - 1}"] = torch.nn.ReLU()
            # built empty: the weights come next, and the caller's random state is left alone
            modules[f"fc{layer}"] = torch.nn.utils.skip_init(torch.nn.Linear, fan_in, fan_out)
        module = torch.nn.Sequential(modules)
        state = {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
        module = module.to(state["fc1.weight"].dtype)
        module.load_state_dict(state)
        return module

    def data_summary(self) -> list[dict[str, Any]]:
        return [{"source": d.source, "sha256": d.sha256} for d in self._data]

    # -- batches -----------------------------------------------------------------------------------------

    def _make_batches(self) -> None:
        c = self.config
        self._per_epoch = c.train_size // c.batch
        # a whole-set batch is the same batch in whatever order
        self._repeats = c.batch_order == "fixed" or self._per_epoch == 1
        self._cache: dict[int, _Batch] = {}
        self._epoch: tuple[int, np.ndarray] | None = None
        # for each image the rank of the rarest pixel it uses, and the columns where blocks begin
        self._rarest = np.array([[_last_nonzero(row) for row in x] for x in self._x.cpu().numpy()])
        self._edges = [*range(0, len(self._columns), _BLOCK), len(self._columns)]

    def _positions(self, number: int) -> np.ndarray:
        """Positions in the training set of the images of step `number`, (members, batch)."""
        epoch, place = divmod(number, self._per_epoch)
        if self._repeats:
            epoch = 0
        if self._epoch is None or self._epoch[0] != epoch:
            orders = [
                np.random.default_rng([m.seed, 1, epoch]).permutation(self.config.train_size)
                for m in self.config.networks
            ]
            self._epoch = epoch, np.stack(orders)
        size = self.config.batch
        return self._epoch[1][:, place * size : (place + 1) * size]

    def batch(self, number: int) -> _Batch:
        key = number % self._per_epoch
        if self._repeats and key in self._cache:
            return self._cache[key]
        positions = self._positions(number)
        if self.members == 1:
            rarest = self._rarest[0, positions[0]]
            order = np.argsort(-rarest, kind="stable")  # the sum over a batch has no order of its own
            chosen = torch.from_numpy(positions[0][order])
            batch = _Batch(
                self._x[0].index_select(0, chosen),
                self._y[0].index_select(0, chosen),
                _blocks(self._edges, rarest[order]),
            )
        else:
            batch = self.gathered(torch.from_numpy(positions))
        if self._repeats:
            self._cache[key] = batch
        return batch

    def batch_indices(self, number: int) -> torch.Tensor | None:
        return None if self._per_epoch == 1 else torch.from_numpy(self._positions(number))

    def gathered(self, indices: torch.Tensor | None) -> _Batch:
        x, y = self._x, self._y
        if indices is not None:
            size = indices.shape[1]
            first = torch.arange(self.members, device=self.device).mul_(self.config.train_size)
            flat = (indices + first[:, None]).reshape(-1)
            x = x.flatten(0, 1).index_select(0, flat).view(self.members, size, -1)
            y = y.flatten(0, 1).index_select(0, flat).view(self.members, size, -1)
        rows = x.shape[1]
        if self.members == 1:
            x, y = x[0], y[0]
        return _Batch(x, y, ((0, len(self._columns), rows),))

    # -- the step ----------------------------------------------------------------------------------------

    def _make_buffers(self) -> None:
        c = self.config
        lead = (self.members,) if self.members > 1 else ()

        def new(width: int) -> torch.Tensor:
            return torch.empty(*lead, c.batch, width, dtype=self.dtype, device=self.device)

        self._hidden = [new(c.width) for _ in range(c.depth - 1)]  # after the ReLU
        self._error = [new(c.width) for _ in range(c.depth - 1)] + [new(self._classes)]  # d loss / d before it
        self._ones = torch.ones(*lead, c.batch, 1, dtype=self.dtype, device=self.device)
        # how the operations are called: plain products for one member, batched ones for several
        one = self.members == 1
        self._mm = torch.mm if one else torch.bmm
        self._addmm = torch.addmm if one else torch.baddbmm
        depth = range(1, c.depth + 1)
        weights = [self.params[f"fc{k}.weight"] for k in depth]
        self._w, self._wt = weights, [w.mT for w in weights]
        self._b = [self.params[f"fc{k}.bias"].unsqueeze(-2) for k in depth]
        self._gw = [self.grads[f"fc{k}.weight"] for k in depth]
        self._gb = [self.grads[f"fc{k}.bias"].unsqueeze(-1) for k in depth]

    def gradients(self, batch: _Batch) -> None:
        """Gradient of mean((output - one_hot)^2) over all batch x 10 entries (`torch.nn.MSELoss`)."""
        mm, addmm, hidden, error = self._mm, self._addmm, self._hidden, self._error
        last = self.config.depth - 1

        z = hidden[0]
        first, *more = batch.blocks
        addmm(self._b[0], batch.x[..., : first[1]], self._wt[0][..., : first[1], :], out=z)
        for start, end, rows in more:
            top = z[:rows]
            addmm(top, batch.x[:rows, start:end], self._wt[0][start:end], out=top)
        z.relu_()
        for k in range(1, last):
            addmm(self._b[k], hidden[k - 1], self._wt[k], out=hidden[k]).relu_()
        out = addmm(self._b[last], hidden[last - 1], self._wt[last], out=error[last])

        out.sub_(batch.y).mul_(2.0 / (batch.y.shape[-2] * self._classes))
        for k in range(last, 0, -1):
            dz = error[k]
            mm(dz.mT, hidden[k - 1], out=self._gw[k])
            mm(dz.mT, self._ones, out=self._gb[k])
            back = mm(dz, self._w[k], out=error[k - 1])
            # zero where the ReLU was: its output says so
            torch.ops.aten.threshold_backward.grad_input(back, hidden[k - 1], 0, grad_input=back)
        dz = error[0]
        mm(dz.mT, batch.x[..., : first[1]], out=self._gw[0][..., : first[1]])
        for start, end, rows in more:
            mm(dz[:rows].mT, batch.x[:rows, start:end], out=self._gw[0][:, start:end])
        mm(dz.mT, self._ones, out=self._gb[0])

    # -- evaluation --------------------------------------------------------------------------------------

    def evaluate(self) -> list[dict[str, float]]:
        full = torch.stack([torch.from_numpy(w["fc1.weight"]) for w in self.weights()]).to(self.device)
        train = self._scores(self._x, self._labels, full[:, :, torch.from_numpy(self._columns).to(self.device)])
        test = self._scores(self._x_test, self._y_test, full)
        return [
            {"train_accuracy": a, "train_loss": b, "test_accuracy": c, "test_loss": d}
            for (a, b), (c, d) in zip(train, test, strict=True)
        ]

    def _scores(self, x: torch.Tensor, labels: torch.Tensor, first: torch.Tensor) -> list[tuple[float, float]]:
        """(accuracy, loss) of each member on (members or 1, images, pixels)."""
        depth = self.config.depth
        layers = [
            [self.member_view(self.params, m)[f"fc{k}.{part}"] for m in range(self.members)]
            for k in range(1, depth + 1)
            for part in ("weight", "bias")
        ]
        w = [first] + [torch.stack(layers[2 * k]) for k in range(1, depth)]
        b = [torch.stack(layers[2 * k + 1]).unsqueeze(1) for k in range(depth)]
        images = x.shape[1]
        right = torch.zeros(self.members, device=self.device, dtype=torch.float64)
        loss = torch.zeros_like(right)
        for start in range(0, images, _EVAL_ROWS):
            h = x[:, start : start + _EVAL_ROWS]
            for k in range(depth):
                h = torch.matmul(h, w[k].mT) + b[k]
                if k < depth - 1:
                    h.relu_()
            y = labels[:, start : start + _EVAL_ROWS]
            right += (h.argmax(-1) == y).sum(-1)
            target = torch.nn.functional.one_hot(y, self._classes).to(self.dtype)
            loss += (h - target).square_().sum((-2, -1), dtype=torch.float64)
        accuracy, loss = right / images, loss / (images * self._classes)
        return list(zip(accuracy.tolist(), loss.tolist(), strict=True))


def _last_nonzero(row: np.ndarray) -> int:
    found = np.flatnonzero(row)
    return int(found[-1]) if found.size else -1


def _blocks(edges: list[int], rarest: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """Column blocks and how many of the (sorted) rows reach into each; neighbours that all or nearly all
    rows reach into are one block, since splitting them would save nothing."""
    blocks: list[tuple[int, int, int]] = []
    size = len(rarest)
    for start, end in itertools.pairwise(edges):
        rows = int(np.count_nonzero(rarest >= start))
        if not blocks or (rows > 0.95 * size and blocks[-1][2] == size):
            blocks = [(0, end, size)]
        else:  # one that no row reaches stays: its gradient has to be written as zero
            blocks.append((start, end, rows))
    return tuple(blocks)
