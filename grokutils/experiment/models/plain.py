"""Any network, any loss, any optimiser, by autograd: what a reader would write first.

It is also what the gradients by hand are held against: `RunConfig` of the perceptron, `Plain` and `grokutils`' own step
end in the same weights. Members are trained one after the other. A step is a function of (weights, seed, number of the
step): before each, torch's generator is seeded with the last two, so that dropout needs no state of its own.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from grokutils.experiment import data as data_sets
from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.experiment.data import Dataset
from grokutils.experiment.models.base import BUFFER, Model, _checked_array
from grokutils.experiment.models.parts import (
    call,
    factory_of,
    loss_of,
    made_network,
    materialised,
    optimizer_of,
    scaled,
    why,
)
from grokutils.experiment.models.state import flattened, load_optimizers, restored, storable, unflattened

__all__ = ["Plain"]

# Rows evaluated at a time: bounds the memory of the hidden activations.
_EVAL_ROWS = 2_500
# Examples of the trial steps before anything is written.
_TRIAL_ROWS = 256


class Plain(Model):
    """Members that are `torch.nn.Module`, one after the other; the parameters of all lie in one tensor all the same.

    >>> model = Plain(RunConfig.recipe("express", model="cnn"), torch.device("cpu"))
    >>> model.init()
    >>> model.weights()[0]["1.weight"].shape
    (16, 1, 3, 3)

    Raises
    ------
    ConfigError : a factory that is not reproducible, outputs that do not fit the labels, a loss that is not one finite
        number, or an optimiser or a network whose state cannot be saved; all before anything is trained.
    DataError : data or code that are not at hand.
    """

    def __init__(self, config: RunConfig, device: torch.device):
        super().__init__(config, device)
        self._sets = [data_sets.load(config, member.seed) for member in config.networks]
        self._parts = [self._tensors(s) for s in self._sets]
        self._factory = factory_of(config)
        self._loss = loss_of(config, self._sets[0])
        self._make_optimizer = optimizer_of(config)
        self._steps_taken = 0
        self._epochs: dict[int, tuple[int, torch.Tensor]] = {}
        with self._as_configured():
            first, again = (self._made(config.networks[0].seed) for _ in range(2))
            if not _same(_held(first), _held(again)):
                raise ConfigError(
                    f"two networks that {config.model!r} makes under one seed differ; draw all random numbers from "
                    "torch's own generator."
                )
        self.shapes = {name: tuple(p.shape) for name, p in first.named_parameters()}
        if not self.shapes:
            raise ConfigError(f"the model {config.model!r} must have parameters to train; it has none.")
        self._allocate()
        self._modules: list[torch.nn.Module] = []
        self._optimizers: list[tuple[torch.optim.Optimizer, ...]] = []
        self._try(first)

    def _tensors(self, sets: Dataset) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        def tensor(array: np.ndarray) -> torch.Tensor:
            found = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
            return found.to(self.dtype) if found.is_floating_point() else found

        return {
            "train": (tensor(sets.x_train), tensor(sets.y_train)), "test": (tensor(sets.x_test), tensor(sets.y_test))
        }  # fmt: skip

    # -- weights ------------------------------------------------------------------------------------------------

    def init(self) -> None:
        """As the factory draws them with torch's generator at the member's seed, in the run's precision, times
        `init_scale`; normalisation layers keep theirs."""
        self._modules = []
        with self._as_configured():
            for member, network in enumerate(self.config.networks):
                module = self._made(network.seed)
                views = self.member_view(self.params, member)
                for name, parameter in module.named_parameters():
                    if tuple(parameter.shape) != self.shapes.get(name):
                        raise ConfigError(f"the networks of {self.config.model!r} differ in shape from seed to seed.")
                    views[name].copy_(parameter.data)
                    parameter.data = views[name]  # hooks see and change what the network computes with
                self._modules.append(module)
            self._optimizers = [
                self._optimizers_of(module, network.weight_decay)
                for module, network in zip(self._modules, self.config.networks, strict=True)
            ]

    def _made(self, seed: int) -> torch.nn.Module:
        """A network of this seed, in the run's precision and on its device."""
        torch.manual_seed(seed)
        module = made_network(self._factory, self.config, self._sets[0])
        module = module.to(self.device, self.dtype)
        if not all(materialised(p) for p in module.parameters()):
            with torch.no_grad():
                call("the model", module.eval(), self._parts[0]["train"][0][:2])
        for name, p in module.named_parameters():
            if p.dtype != self.dtype:
                raise ConfigError(f"parameters must be real numbers; {name} of {self.config.model!r} is {p.dtype}.")
        scaled(module, self.config.init_scale)
        return module

    def weights(self) -> list[dict[str, np.ndarray]]:
        found = []
        for member, module in enumerate(self._modules):
            arrays = {name: view.cpu().numpy().copy() for name, view in self.member_view(self.params, member).items()}
            arrays |= {BUFFER + name: b.detach().cpu().numpy().copy() for name, b in module.named_buffers()}
            found.append(arrays)
        return found

    def load_weights(self, weights: Sequence[Mapping[str, np.ndarray]]) -> None:
        super().load_weights(
            [{name: a for name, a in arrays.items() if not name.startswith(BUFFER)} for arrays in weights]
        )
        for module, arrays in zip(self._modules, weights, strict=True):
            _load_buffers(module, arrays)

    @staticmethod
    def as_module(config: RunConfig, weights: Mapping[str, np.ndarray]) -> torch.nn.Module:
        """Raises DataError where the code that makes the network is not at hand, and ValueError where it does not fit."""
        with torch.random.fork_rng(devices=[]):  # leave the caller's random state alone
            module = made_network(factory_of(config), config, None)
        dtype = next(torch.from_numpy(np.array(a)).dtype for n, a in weights.items() if not n.startswith(BUFFER))
        module = module.to(dtype)
        parameters = dict(module.named_parameters())
        given = {name for name in weights if not name.startswith(BUFFER)}
        if given != set(parameters):
            odd = ", ".join(sorted(given ^ set(parameters)))
            raise ValueError(f"weights must be named as the parameters of {config.model!r} are; {odd} differ.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.data = _checked_array(name, weights[name], tuple(parameter.shape))
        lost = [name for name, b in module.named_buffers() if BUFFER + name not in weights and b.numel()]
        if lost:
            raise ValueError(f"the network also holds {lost[0]!r}: give weights(..., buffers=True).")
        _load_buffers(module, weights)
        return module.eval()

    def data_summary(self) -> list[dict[str, Any]]:
        return [{"source": s.source, "sha256": s.sha256} for s in self._sets]

    # -- the step -----------------------------------------------------------------------------------------------

    def step(self, start: int, count: int) -> None:
        with self._as_configured():
            for member, (module, optimizers) in enumerate(zip(self._modules, self._optimizers, strict=True)):
                module.train()
                for number in range(start, start + count):
                    x, y = self._batch(member, number)
                    self._one_step(module, optimizers, x, y, self.config.networks[member].seed, number)
        self._steps_taken = start + count

    def _one_step(self, module, optimizers, x, y, seed: int, number: int) -> torch.Tensor:
        """One step of one network; the loss before it."""
        torch.manual_seed(_mixed(seed, number))

        def closure() -> torch.Tensor:
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = self._loss(module(x), y)
            loss.backward()
            return loss

        if len(optimizers) == 1:
            return optimizers[0].step(closure)
        loss = closure()
        for optimizer in optimizers:
            optimizer.step()
        return loss

    def _positions(self, number: int) -> np.ndarray:
        """Positions in the training set of the examples of step `number`, (members, batch), as the perceptron's."""
        return np.stack([self._chosen(member, number).numpy() for member in range(self.members)])

    def _chosen(self, member: int, number: int) -> torch.Tensor:
        size = len(self._parts[member]["train"][0])
        batch = self.config.batch or size
        per_epoch = math.ceil(size / batch)
        epoch, place = divmod(number, per_epoch)
        if self.config.batch_order == "fixed" or per_epoch == 1:
            epoch = 0
        if self._epochs.get(member, (None,))[0] != epoch:
            order = np.random.default_rng([self.config.networks[member].seed, 1, epoch]).permutation(size)
            self._epochs[member] = epoch, torch.from_numpy(order)
        return self._epochs[member][1][place * batch : (place + 1) * batch]

    def _batch(self, member: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self._parts[member]["train"]
        if not self.config.batch or self.config.batch >= len(x):
            return x, y
        chosen = self._chosen(member, number).to(self.device)
        return x.index_select(0, chosen), y.index_select(0, chosen)

    @contextmanager
    def _as_configured(self) -> Iterator[None]:
        """The run's precision as torch's default, and the caller's random state left alone."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                yield
        finally:
            torch.set_default_dtype(before)

    # -- before anything is written ------------------------------------------------------------------------------

    def _try(self, module: torch.nn.Module) -> None:
        """Take two steps with copies, once through and once through a saved state: what would go wrong later, or not
        resume exactly, is refused here."""
        seed, decay = self.config.networks[0].seed, self.config.networks[0].weight_decay
        x, y = (t[:_TRIAL_ROWS] for t in self._batch(0, 0))
        with self._as_configured():
            try:
                whole, cut, rest = (copy.deepcopy(module).train() for _ in range(3))
            except Exception as error:
                raise ConfigError(f"the model {self.config.model!r} cannot be copied ({why(error)}).") from error
            self._check_outputs(whole, x, y)
            optimizers = self._optimizers_of(whole, decay)
            pointers = [p.data_ptr() for p in whole.parameters()]
            for number in (0, 1):
                call("the step", self._one_step, whole, optimizers, x, y, seed, number)
            if pointers != [p.data_ptr() for p in whole.parameters()]:
                raise ConfigError(f"the optimiser {self.config.optimizer!r} must change parameters in place.")
            first = self._optimizers_of(cut, decay)
            self._one_step(cut, first, x, y, seed, 0)
            tensors: dict[str, torch.Tensor] = {}
            saved = json.loads(json.dumps(flattened([o.state_dict() for o in first], "", tensors)))
            second = self._optimizers_of(rest, decay)
            with torch.no_grad():
                for name, value in _held(cut).items():
                    _held(rest)[name].copy_(value)
            load_optimizers(second, unflattened(saved, {k: t.clone() for k, t in tensors.items()}))
            self._one_step(rest, second, x, y, seed, 1)
            same = all(torch.equal(a, b) or (a.isnan() | b.isnan()).any() for a, b in zip(
                _held(whole).values(), _held(rest).values(), strict=True
            ))  # fmt: skip
            if not same:
                raise ConfigError(
                    f"a run of {self.config.model!r} with {self.config.optimizer!r} could not be resumed exactly: two steps "
                    "in a row and two with a save between them differ, so something of its state is not in the "
                    "parameters, the buffers or the optimiser's state_dict."
                )

    def _check_outputs(self, module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        torch.manual_seed(_mixed(self.config.networks[0].seed, 0))
        with torch.no_grad():
            out = call("the model", copy.deepcopy(module), x)
            if not isinstance(out, torch.Tensor) or out.ndim == 0 or len(out) != len(x):
                got = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
                raise ConfigError(f"the model must return a tensor with a row for each of {len(x)} examples; got {got}.")
            classes = self._sets[0].classes
            if classes is not None and (out.ndim != y.ndim + 1 or out.shape[1] < classes):
                raise ConfigError(
                    f"the model's outputs do not fit the labels: {classes} classes need outputs of shape (examples, "
                    f"{classes}); got {tuple(out.shape)}."
                )
            loss = call("the loss", self._loss, out, y)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ConfigError(f"the loss must be one number, a tensor of shape (); got {got}.")
        if not torch.isfinite(loss):
            raise ConfigError(f"the loss must be finite; at the first step it is {loss.item()}.")

    # -- the optimiser -------------------------------------------------------------------------------------------

    def _optimizers_of(self, module: torch.nn.Module, decay: float) -> tuple[torch.optim.Optimizer, ...]:
        params = [p for p in module.parameters() if p.requires_grad]
        made = call("the optimiser", self._make_optimizer, params, decay)
        several = tuple(made) if isinstance(made, (list, tuple)) else (made,)
        if not several or not all(isinstance(o, torch.optim.Optimizer) for o in several):
            raise ConfigError(f"the optimiser must be a torch.optim.Optimizer, or several; got {type(made).__name__}.")
        return several

    def state_dict(self) -> dict[str, torch.Tensor]:
        tensors = {"parameters": self._flat.cpu()}
        says: list[Any] = []
        for member, (module, optimizers) in enumerate(zip(self._modules, self._optimizers, strict=True)):
            own = f"member{member}/"
            tensors |= {f"{own}{BUFFER}{name}": b.detach().cpu() for name, b in module.named_buffers()}
            says.append(flattened([o.state_dict() for o in optimizers], own + "optimizer", tensors))
        layout = {name: [str(t.dtype), list(t.shape)] for name, t in tensors.items()}
        text = json.dumps({"optimizers": says, "layout": layout}).encode()
        stored = {name: storable(t) for name, t in tensors.items()}
        return stored | {"says": torch.from_numpy(np.frombuffer(text, np.uint8).copy())}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], steps_taken: int) -> None:
        try:
            says = json.loads(bytes(state["says"].numpy()))
            tensors = {
                name: restored(state[name], dtype, shape) for name, (dtype, shape) in says["layout"].items()
            }  # fmt: skip
            optimizers = says["optimizers"]
            if tensors["parameters"].shape != self._flat.shape or len(optimizers) != self.members:
                raise ValueError("its parameters are those of another network.")
            self._flat.copy_(tensors["parameters"])
            for member, module in enumerate(self._modules):
                own = f"member{member}/"
                _load_buffers(module, {n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own + BUFFER)})
                load_optimizers(self._optimizers[member], unflattened(optimizers[member], tensors))
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(f"it does not fit this network and optimiser ({why(error)})") from None
        self._steps_taken = steps_taken

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self) -> list[dict[str, float]]:
        """In evaluation mode: dropout off, running means for batch normalisation. The accuracy is NaN where the labels
        are no classes."""
        rows = []
        with self._as_configured(), torch.no_grad():
            for member, module in enumerate(self._modules):
                module.eval()
                row = {}
                for kind, (x, y) in self._parts[member].items():
                    row[f"{kind}_accuracy"], row[f"{kind}_loss"] = self._scores(module, x, y)
                rows.append(row)
                module.train()
        return rows

    def _scores(self, module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        right, loss = 0.0, 0.0
        for start in range(0, len(x), _EVAL_ROWS):
            some, labels = x[start : start + _EVAL_ROWS], y[start : start + _EVAL_ROWS]
            out = module(some)
            loss += float(self._loss(out, labels)) * len(some)
            is_class = not labels.is_floating_point()
            right += float((out.argmax(1) == labels).double().mean()) * len(some) if is_class else math.nan
        return right / len(x), loss / len(x)


def _mixed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, 2, number]).generate_state(1, np.uint64)[0])


def _held(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, also those that a state_dict leaves out."""
    return {n: p.data for n, p in module.named_parameters()} | {BUFFER + n: b for n, b in module.named_buffers()}


def _same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def _load_buffers(module: torch.nn.Module, arrays: Mapping[str, Any]) -> None:
    for name, buffer in module.named_buffers():
        if BUFFER + name in arrays:
            value = torch.as_tensor(arrays[BUFFER + name])
            if value.shape != buffer.shape:
                raise ValueError(f"{name} must have shape {tuple(buffer.shape)}; got {tuple(value.shape)}.")
            buffer.copy_(value)
