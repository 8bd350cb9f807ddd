"""Any network, any loss, any optimiser, by autograd: what a reader would write first.

It is also what the gradients by hand are held against: `RunConfig` of the perceptron, `Plain` and `grokutils`' own step
end in the same weights. Members are trained one after the other. A step is a function of (weights, seed, number of the
step): before each, torch's generator is seeded with the last two, so that dropout needs no state of its own.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from grokutils.experiment import data as data_sets
from grokutils.experiment import registry
from grokutils.experiment.config import ConfigError, Own, RunConfig
from grokutils.experiment.data import DataError, Dataset
from grokutils.experiment.identity import identify, name_of, source_digest
from grokutils.experiment.models.base import BUFFER, Model, _checked_array
from grokutils.experiment.models.transformer import ModularTransformer
from grokutils.experiment.traits import data_traits

__all__ = ["Plain", "resolve"]

# Rows evaluated at a time: bounds the memory of the hidden activations.
_EVAL_ROWS = 2_500
# Examples of the trial steps before anything is written.
_TRIAL_ROWS = 256
_NORMS = (torch.nn.LayerNorm, torch.nn.RMSNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._NormBase)
_ARGUMENTS = ("shape", "image_shape", "classes", "config")


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
        self._factory = _factory_of(config)
        self._loss = _loss_of(config, self._sets[0])
        self._make_optimizer = _optimizer_of(config)
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
        module = _called_factory(self._factory, self.config, self._sets[0])
        module = module.to(self.device, self.dtype)
        if any(isinstance(p, torch.nn.parameter.UninitializedTensorMixin) for p in module.parameters()):
            with torch.no_grad():
                _called("the model", module.eval(), self._parts[0]["train"][0][:2])
        for name, p in module.named_parameters():
            if p.dtype != self.dtype:
                raise ConfigError(f"parameters must be real numbers; {name} of {self.config.model!r} is {p.dtype}.")
        _scale(module, self.config.init_scale)
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
            module = _called_factory(_factory_of(config), config, None)
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
                raise ConfigError(f"the model {self.config.model!r} cannot be copied ({_why(error)}).") from error
            self._check_outputs(whole, x, y)
            optimizers = self._optimizers_of(whole, decay)
            pointers = [p.data_ptr() for p in whole.parameters()]
            for number in (0, 1):
                _called("the step", self._one_step, whole, optimizers, x, y, seed, number)
            if pointers != [p.data_ptr() for p in whole.parameters()]:
                raise ConfigError(f"the optimiser {self.config.optimizer!r} must change parameters in place.")
            first = self._optimizers_of(cut, decay)
            self._one_step(cut, first, x, y, seed, 0)
            tensors: dict[str, torch.Tensor] = {}
            saved = json.loads(json.dumps(_flattened([o.state_dict() for o in first], "", tensors)))
            second = self._optimizers_of(rest, decay)
            with torch.no_grad():
                for name, value in _held(cut).items():
                    _held(rest)[name].copy_(value)
            _load_optimizers(second, _unflattened(saved, {k: t.clone() for k, t in tensors.items()}))
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
            out = _called("the model", copy.deepcopy(module), x)
            if not isinstance(out, torch.Tensor) or out.ndim == 0 or len(out) != len(x):
                got = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
                raise ConfigError(f"the model must return a tensor with a row for each of {len(x)} examples; got {got}.")
            classes = self._sets[0].classes
            if classes is not None and (out.ndim != y.ndim + 1 or out.shape[1] < classes):
                raise ConfigError(
                    f"the model's outputs do not fit the labels: {classes} classes need outputs of shape (examples, "
                    f"{classes}); got {tuple(out.shape)}."
                )
            loss = _called("the loss", self._loss, out, y)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ConfigError(f"the loss must be one number, a tensor of shape (); got {got}.")
        if not torch.isfinite(loss):
            raise ConfigError(f"the loss must be finite; at the first step it is {loss.item()}.")

    # -- the optimiser -------------------------------------------------------------------------------------------

    def _optimizers_of(self, module: torch.nn.Module, decay: float) -> tuple[torch.optim.Optimizer, ...]:
        params = [p for p in module.parameters() if p.requires_grad]
        made = _called("the optimiser", self._make_optimizer, params, decay)
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
            says.append(_flattened([o.state_dict() for o in optimizers], own + "optimizer", tensors))
        layout = {name: [str(t.dtype), list(t.shape)] for name, t in tensors.items()}
        text = json.dumps({"optimizers": says, "layout": layout}).encode()
        stored = {name: _storable(t) for name, t in tensors.items()}
        return stored | {"says": torch.from_numpy(np.frombuffer(text, np.uint8).copy())}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], steps_taken: int) -> None:
        try:
            says = json.loads(bytes(state["says"].numpy()))
            tensors = {
                name: _restored(state[name], dtype, shape) for name, (dtype, shape) in says["layout"].items()
            }  # fmt: skip
            optimizers = says["optimizers"]
            if tensors["parameters"].shape != self._flat.shape or len(optimizers) != self.members:
                raise ValueError("its parameters are those of another network.")
            self._flat.copy_(tensors["parameters"])
            for member, module in enumerate(self._modules):
                own = f"member{member}/"
                _load_buffers(module, {n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own + BUFFER)})
                _load_optimizers(self._optimizers[member], _unflattened(optimizers[member], tensors))
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(f"it does not fit this network and optimiser ({_why(error)})") from None
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


# -- the user's parts ---------------------------------------------------------------------------------------------


def resolve(
    config: RunConfig,
    *,
    model: Any = None,
    data: Any = None,
    loss: Any = None,
    optimizer: Any = None,
) -> RunConfig:
    """The configuration with what identifies the parts that are not of this package, and their names (`RunConfig.own`).

    >>> resolve(RunConfig.recipe("express"), loss=torch.nn.functional.cross_entropy).own.loss
    'torch.nn.functional.cross_entropy'

    Parameters
    ----------
    config : as made by the user; what it names may be registered (`grokutils.experiment.registry`)
    model : a function or class that makes a network
    data : ``x_train, y_train, x_test, y_test``, a `Dataset`, or a function of the seed that returns either
    loss, optimizer : as in `grokutils.experiment.registry`

    Raises
    ------
    ConfigError : a part that cannot be called, or cannot be made.
    DataError : bad data, or a name that is not registered here.
    """
    given = {"dataset": data, "model": model, "loss": loss, "optimizer": optimizer}
    texts = {kind: config.own for kind in given} if config.own else {}
    identities, things = {}, {}
    for kind, thing in given.items():
        if isinstance(thing, str):
            config, thing = config.replace(**{kind: thing}), None
        if thing is None:
            name = getattr(config, kind)
            if registry.is_bundled(kind, name):
                identities[kind] = ""
                continue
            before = getattr(texts[kind], "data" if kind == "dataset" else kind) if kind in texts else ""
            thing = registry.find(kind, name) or registry.recall(kind, before)
            if thing is None:
                raise DataError(f"the {kind} {name!r} is not registered here; load its plugin, or give it to train again.")
        elif kind != "dataset" and (not callable(thing) or (kind == "model" and isinstance(thing, torch.nn.Module))):
            raise ConfigError(_CALLABLE[kind].format(type(thing).__name__))
        if kind == "dataset" and not (callable(thing) and not isinstance(thing, Dataset)):
            thing = data_sets.make_dataset(thing)
            identities[kind] = f"sha256 {thing.sha256[:16]}"
        else:
            identities[kind] = identify(thing)
        things[kind] = thing
    if not any(identities.values()):
        return config.replace(own=None)
    for kind, thing in things.items():
        if kind != "model":
            registry.remember(kind, identities[kind], thing)
    names = {kind: _name(kind, config, given[kind]) for kind in things}
    first = (
        data_sets.dataset_of(things["dataset"], names["dataset"], config.networks[0].seed)
        if "dataset" in things else data_sets.load(config, config.networks[0].seed)
    )  # fmt: skip
    own = Own(
        data=identities["dataset"], loss=identities["loss"], optimizer=identities["optimizer"],
        shape=tuple(first.x_train.shape[1:]), classes=first.classes,
    )  # fmt: skip
    config = config.replace(**names, own=own)
    if "model" in things:
        own = _with_model(own, things["model"], config, first)
        registry.remember("model", own.model, things["model"])
    return config.replace(own=own)


_CALLABLE = {
    "model": "model must be a function or class that makes a new network, such as `lambda: Net(64)`; got a {}.",
    "loss": "loss must be a function of outputs and labels; got a {}.",
    "optimizer": "optimizer must be a torch.optim class, or a function of the parameters that makes one; got a {}.",
}  # fmt: skip


def _name(kind: str, config: RunConfig, given: Any) -> str:
    """What the configuration calls a part."""
    if given is None or isinstance(given, str):
        return getattr(config, kind)
    name = "data" if kind == "dataset" and not callable(given) else name_of(given)
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "" for c in name).strip("._-")[:40] or kind
    name = "function" if name == "lambda" else name
    return f"own-{name}" if registry.is_bundled(kind, name) else name


def _with_model(own: Own, factory: Callable, config: RunConfig, first: Dataset) -> Own:
    """The same with the identity of the network that a factory makes: what it and its classes say, and its structure."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _called_factory(factory, config, first)
    classes = sorted({type(part) for part in module.modules()}, key=name_of)
    says = [repr(module), source_digest(*(c for c in classes if not c.__module__.startswith("torch.")))]
    says += [f"{n} {tuple(p.shape) if _has_shape(p) else 'lazy'}" for n, p in module.named_parameters()]
    digest = hashlib.sha256("\n".join([identify(factory), *says]).encode()).hexdigest()[:16]
    return Own(f"{name_of(factory)} {digest}", own.data, own.loss, own.optimizer, own.shape, own.classes)


def _has_shape(p: torch.Tensor) -> bool:
    return not isinstance(p, torch.nn.parameter.UninitializedTensorMixin)


def _factory_of(config: RunConfig) -> Callable[..., torch.nn.Module]:
    """What makes the network of a configuration.

    Raises
    ------
    DataError : it is not at hand, or is another one here.
    """
    wanted = "" if config.own is None else config.own.model
    if not wanted:
        return _BY_HAND.get(config.model) or registry.find("model", config.model)
    factory = registry.recall("model", wanted)
    if factory is not None:
        return factory
    factory = registry.find("model", config.model)
    if factory is None:
        raise DataError(
            f"the code of the network {config.model!r} is not at hand; load the plugin that registers it (--plugin, "
            "load_plugin or GROKUTILS_PLUGINS)."
        )
    here = _with_model(Own(), factory, config, None).model
    if here != wanted:
        raise DataError(f"the network {config.model!r} that is registered here ({here}) is not that of the run ({wanted}).")
    registry.remember("model", wanted, factory)
    return factory


def _called_factory(factory: Callable, config: RunConfig, sets: Dataset | None) -> torch.nn.Module:
    """A new network. What the factory asks for by name comes from the data, or from what the configuration knows."""
    traits = data_traits(config.dataset)
    known = {
        "config": config, "image_shape": traits.image_shape if sets is None else sets.image_shape,
        "shape": traits.shape(config) if sets is None else tuple(sets.x_train.shape[1:]),
        "classes": traits.classes(config) if sets is None else sets.classes,
    }  # fmt: skip
    arguments = {}
    for name, parameter in _signature(factory).items():
        if name in _ARGUMENTS:
            if known[name] is None and parameter.default is inspect.Parameter.empty:
                raise ConfigError(f"the model {config.model!r} asks for the {name}, which {config.dataset!r} has not got.")
            arguments[name] = known[name]
        elif parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        ):  # fmt: skip
            raise ConfigError(f"a model may ask for {', '.join(_ARGUMENTS)}; {config.model!r} asks for {name!r}.")
    module = _called("the model", factory, **arguments)
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"the model {config.model!r} must be a torch.nn.Module; it makes a {type(module).__name__}.")
    return module


def _signature(thing: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(thing).parameters
    except (TypeError, ValueError):  # written in C
        return {}


def _perceptron(shape: tuple[int, ...], classes: int, config: RunConfig) -> torch.nn.Module:
    sizes = [math.prod(shape), *[config.width] * (config.depth - 1), classes]
    net = torch.nn.Sequential()
    if len(shape) > 1:
        net.append(torch.nn.Flatten())
    for layer in range(1, config.depth + 1):
        if layer > 1:
            net.add_module(f"relu{layer - 1}", torch.nn.ReLU())
        net.add_module(f"fc{layer}", torch.nn.Linear(sizes[layer - 1], sizes[layer]))
    return net


def _transformer(config: RunConfig) -> torch.nn.Module:
    """Drawn as the one by hand is."""
    with torch.device("meta"):
        net = ModularTransformer(config.p, config.d_model, config.n_heads, config.d_mlp)
    net = net.to_empty(device="cpu")
    with torch.no_grad():
        for name, p in net.named_parameters():
            drawn = torch.zeros(()) if name.endswith(".bias") else torch.randn(p.shape, dtype=torch.float64)
            p.copy_(drawn / math.sqrt(config.d_model))
    return net


#: The networks of the gradients by hand, for losses and optimisers that those have not got.
_BY_HAND: dict[str, Callable[..., torch.nn.Module]] = {"mlp": _perceptron, "transformer": _transformer}


def _scale(module: torch.nn.Module, factor: float) -> None:
    if factor == 1:
        return
    with torch.no_grad():
        for part in module.modules():
            if not isinstance(part, _NORMS):
                for p in part.parameters(recurse=False):
                    p.mul_(factor)


def _loss_of(config: RunConfig, sets: Dataset) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    wanted = "" if config.own is None else config.own.loss
    if wanted:
        return _at_hand("loss", config.loss, wanted)
    name = config.loss
    if name == "default":
        name = "mse" if config.model == "mlp" or sets.classes is None else "cross-entropy"
    if name == "cross-entropy":
        if sets.classes is None:
            raise ConfigError("cross-entropy needs labels that are classes, whole numbers from 0; these are numbers.")
        precision = getattr(torch, config.loss_dtype)
        return lambda out, y: torch.nn.functional.cross_entropy(out.to(precision), y)
    if sets.classes is None:
        return torch.nn.functional.mse_loss
    classes = sets.classes
    return lambda out, y: torch.nn.functional.mse_loss(out, torch.nn.functional.one_hot(y, classes).to(out.dtype))


def _at_hand(kind: str, name: str, wanted: str) -> Any:
    found = registry.recall(kind, wanted) or registry.find(kind, name)
    if found is None or identify(found) != wanted:
        raise DataError(f"the {kind} {name!r} of this run is not at hand; load its plugin, or give it to train again.")
    return found


def _optimizer_of(config: RunConfig) -> Callable[[list[torch.Tensor], float], Any]:
    """A function of parameters and weight decay."""
    c = config
    wanted = "" if c.own is None else c.own.optimizer
    if not wanted:
        if c.optimizer == "sgd":
            return lambda params, decay: _SGD(params, lr=c.learning_rate, momentum=c.beta1, decay=decay)
        return lambda params, decay: torch.optim.AdamW(
            params, lr=c.learning_rate, betas=(c.beta1, c.beta2), eps=c.eps, weight_decay=decay,
            amsgrad=c.optimizer == "amsgrad",
        )  # fmt: skip
    make = _at_hand("optimizer", c.optimizer, wanted)
    bound = make.keywords if isinstance(make, functools.partial) else {}
    takes = {name for name in _signature(make) if name not in bound}

    def made(params: list[torch.Tensor], decay: float) -> Any:
        given = {"lr": c.learning_rate, "weight_decay": decay}
        if decay and "weight_decay" not in takes:
            raise ConfigError(f"weight_decay must be 0 for {c.optimizer!r}, which takes none; got {decay:g}.")
        return make(params, **{name: value for name, value in given.items() if name in takes})

    return made


class _SGD(torch.optim.SGD):
    """Momentum with decoupled decay, which torch's has not got."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float, decay: float):
        super().__init__(params, lr=lr, momentum=momentum)
        self._shrink = 1.0 - lr * decay

    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(self._shrink)
        super().step()
        return loss


def _called(what: str, function: Callable, *arguments: Any, **named: Any) -> Any:
    """Call the user's code, which may raise anything."""
    try:
        return function(*arguments, **named)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} failed with {_why(error)}.") from error


def _why(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


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
            value = torch.as_tensor(np.array(arrays[BUFFER + name]) if isinstance(arrays[BUFFER + name], np.ndarray) else arrays[BUFFER + name])
            if value.shape != buffer.shape:
                raise ValueError(f"{name} must have shape {tuple(buffer.shape)}; got {tuple(value.shape)}.")
            buffer.copy_(value)


# -- an optimiser's state without pickle ----------------------------------------------------------------------------


def _flattened(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Plain values for JSON; tensors go to `tensors`, under the names of their places.

    Raises
    ------
    ConfigError : something that is neither.
    """
    if isinstance(value, torch.Tensor):
        tensors[place] = value.detach().cpu()
        return {"tensor": place}
    if isinstance(value, Mapping):
        return {"dict": [[_flattened(k, "", {}), _flattened(v, f"{place}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flattened(v, f"{place}/{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"the optimiser's state holds a {type(value).__name__}, which cannot be saved without pickle.")


def _unflattened(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, inner), = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {k: _unflattened(v, tensors) for k, v in inner}
    return (tuple if kind == "tuple" else list)(_unflattened(v, tensors) for v in inner)


def _load_optimizers(optimizers: Sequence[torch.optim.Optimizer], states: Sequence[dict[str, Any]]) -> None:
    if len(optimizers) != len(states):
        raise ValueError("it is the state of another number of optimisers.")
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for index, own in state["state"].items():  # torch casts them to the parameter's type
            for name, value in own.items() if isinstance(own, dict) else ():
                loaded = optimizer.state[params[index]].get(name)
                if isinstance(value, torch.Tensor) and (loaded is None or loaded.dtype != value.dtype):
                    optimizer.state[params[index]][name] = value.to(params[index].device)


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or its bytes where NumPy has no such type."""
    tensor = tensor.contiguous()
    try:
        tensor.numpy()
        return tensor
    except TypeError:
        return tensor.reshape(-1).view(torch.uint8)


def _restored(tensor: torch.Tensor, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    wanted = getattr(torch, dtype.removeprefix("torch."))
    return (tensor if tensor.dtype == wanted else tensor.view(wanted)).reshape(tuple(shape)).clone()
