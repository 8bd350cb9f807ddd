"""The parts of a run that are the user's own: what they are called, what tells them apart, and how they are made."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from grokutils.experiment import data as data_sets
from grokutils.experiment import registry
from grokutils.experiment.config import ConfigError, Own, RunConfig
from grokutils.experiment.data import DataError, Dataset
from grokutils.experiment.identity import identify, name_of, source_digest
from grokutils.experiment.models.transformer import ModularTransformer
from grokutils.experiment.traits import data_traits

__all__ = ["call", "factory_of", "loss_of", "made_network", "materialised", "optimizer_of", "resolve", "scaled", "why"]

_NORMS = (torch.nn.LayerNorm, torch.nn.RMSNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._NormBase)
_ARGUMENTS = ("shape", "image_shape", "classes", "config")


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
        module = made_network(factory, config, first)
    classes = sorted({type(part) for part in module.modules()}, key=name_of)
    says = [repr(module), source_digest(*(c for c in classes if not c.__module__.startswith("torch.")))]
    says += [f"{n} {tuple(p.shape) if materialised(p) else 'lazy'}" for n, p in module.named_parameters()]
    digest = hashlib.sha256("\n".join([identify(factory), *says]).encode()).hexdigest()[:16]
    return Own(f"{name_of(factory)} {digest}", own.data, own.loss, own.optimizer, own.shape, own.classes)


def materialised(p: torch.Tensor) -> bool:
    return not torch.nn.parameter.is_lazy(p)


def factory_of(config: RunConfig) -> Callable[..., torch.nn.Module]:
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


def made_network(factory: Callable, config: RunConfig, sets: Dataset | None) -> torch.nn.Module:
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
    module = call("the model", factory, **arguments)
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


def scaled(module: torch.nn.Module, factor: float) -> None:
    if factor == 1:
        return
    with torch.no_grad():
        for part in module.modules():
            if not isinstance(part, _NORMS):
                for p in part.parameters(recurse=False):
                    p.mul_(factor)


def loss_of(config: RunConfig, sets: Dataset) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
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


def optimizer_of(config: RunConfig) -> Callable[[list[torch.Tensor], float], Any]:
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

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(self._shrink)
        super().step()
        return loss


def call(what: str, function: Callable, *arguments: Any, **named: Any) -> Any:
    """Call the user's code, which may raise anything."""
    try:
        return function(*arguments, **named)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} failed with {why(error)}.") from error


def why(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
