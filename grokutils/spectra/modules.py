"""The arrays of a torch module, as they act in its forward pass, and what its classes say they are."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from grokutils.spectra.arrays import Array, NotMeasured, from_value, knows_its_scale
from grokutils.spectra.sources import Contents

__all__ = ["from_module"]

_NORMS = (
    torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._NormBase,
    *([torch.nn.RMSNorm] if hasattr(torch.nn, "RMSNorm") else []),  # since torch 2.4
)  # fmt: skip
_KINDS = (
    (_NORMS, "norm"),
    ((torch.nn.modules.conv._ConvNd,), "convolution"),
    ((torch.nn.Linear, torch.nn.Embedding, torch.nn.EmbeddingBag), "matrix"),
    ((torch.nn.RNNBase, torch.nn.modules.rnn.RNNCellBase), "matrix"),
    ((torch.nn.Bilinear,), "stack"),
)


def _descendants(base: Any) -> Iterator[Any]:
    yield base
    for child in base.__subclasses__():
        yield from _descendants(child)


# Scripted and traced modules are of one class, and only know what they were called.
_CALLED = {
    known.__name__: kind
    for bases, kind in _KINDS
    for base in bases
    for known in _descendants(base)
    if known.__module__.startswith("torch.nn")
}
# What an exported graph does with a parameter: the operator's name, the place of the argument.
_OPERATORS = (("conv", 1, "convolution"), ("embedding", 0, "matrix"), ("linear", 1, "matrix"),
              ("layer_norm", 2, "norm"), ("batch_norm", 1, "norm"), ("group_norm", 2, "norm"))  # fmt: skip
_HEADS = {
    "heads": ("num_attention_heads", "num_heads", "n_head", "n_heads", "nhead"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads"),
    "head_dim": ("head_dim", "head_size"),
}


def from_module(source: Any) -> Contents:
    """The arrays of a module, or of the module in an exported program."""
    module: torch.nn.Module = source
    if hasattr(module, "graph_signature") and callable(getattr(module, "module", None)):
        module = source.module()  # torch.export's program, which holds one
    kinds, owners = _kinds(module)
    acting, taken = _computed(module)
    arrays: list[Array] = []
    aside: list[NotMeasured] = []
    placed = {array.name: array for array in acting}
    for name, parameter in _held(module, "_parameters"):
        if name in taken:
            target, part = taken[name]
            if target in placed:
                arrays.append(placed.pop(target))
            if part:
                aside.append(NotMeasured(name, tuple(parameter.shape), _dtype(parameter), part, missing=False))
            continue
        owner = owners.get(name)
        known: dict[str, Any] = {"kind": kinds.get(name, ""), "owner": owner, "facts": _facts(module, name)}
        if torch.nn.parameter.is_lazy(parameter):
            if name.rpartition(".")[2] != "bias":  # which it will be has no shape yet
                arrays.append(Array(name, (), "float32", _uninitialised, "uninitialised"))
            continue
        array = from_value(name, parameter, **known)
        if knows_its_scale(parameter):
            array.read, array.computed = _decoding(parameter), True
            array.dtype, array.note = "float32", f"decoded from {type(parameter).__name__}"
        arrays.append(array)
    arrays += placed.values()
    arrays += _packed(module)
    # buffers and bare tensors are no parameters, but may be the scales and codes that others need
    known_names = {array.name for array in arrays} | set(taken)
    helpers = [
        array
        for name, value in _beside(module)
        if name not in known_names and (array := from_value(name, value, kind="buffer")) is not None
    ]
    return Contents(arrays + helpers, _config(module), aside)


def _held(module: torch.nn.Module, what: str) -> Iterator[tuple[str, torch.Tensor]]:
    """As ``named_parameters(remove_duplicate=False)`` and the like, which torch has since 2.0."""
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, tensor in getattr(part, what).items():
            if tensor is not None:
                yield f"{prefix}.{name}" if prefix else name, tensor


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _uninitialised(at: tuple[int, ...] = ()) -> Any:
    raise ValueError("it has no numbers yet: run the lazy module once.")


def _decoding(parameter: Any) -> Callable[..., Any]:
    def read(at: tuple[int, ...] = ()) -> Any:
        value = parameter.detach().dequantize()
        return value[at] if at else value

    return read


def _kind_of(part: torch.nn.Module) -> str:
    for classes, kind in _KINDS:
        if isinstance(part, classes):
            return kind
    return _CALLED.get(getattr(part, "original_name", ""), "")


def _kinds(module: torch.nn.Module) -> tuple[dict[str, str], dict[str, type]]:
    """What each parameter is, by its name, as far as classes and graphs say; and the class that holds it."""
    kinds: dict[str, str] = {}
    owners: dict[str, type] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        at = f"{prefix}." if prefix else ""
        kind = _kind_of(part)
        for name, _ in part.named_parameters(recurse=False):
            owners[at + name] = type(part)
            if isinstance(part, torch.nn.MultiheadAttention):
                kinds[at + name] = "matrix" if name.endswith("proj_weight") else "bias"
            elif kind:
                kinds[at + name] = "bias" if name.startswith("bias") and kind != "norm" else kind
        if isinstance(part, torch.fx.GraphModule):
            kinds |= {at + target: kind for target, kind in _graph_kinds(part.graph)}
    return kinds, owners


def _graph_kinds(graph: torch.fx.Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        called = str(node.target)
        for word, place, kind in _OPERATORS:
            if word in called and len(node.args) > place:
                argument = node.args[place]
                if isinstance(argument, torch.fx.Node) and argument.op == "get_attr":
                    yield argument.target, kind
                break


def _at(part: Any, target: str) -> Any:
    for step in target.split("."):
        part = getattr(part, step, None)
    return part


def _computed(module: torch.nn.Module) -> tuple[list[Array], dict[str, tuple[str, str]]]:
    """Weights that are computed in the forward pass: from parametrisations, and by hooks such as those of
    pruning and weight_norm. With them the parameters that they are computed from, by name:
    (the weight, what the parameter is to it; empty for the one that it stands for)."""
    acting: list[Array] = []
    taken: dict[str, tuple[str, str]] = {}
    for prefix, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        at = f"{prefix}." if prefix else ""
        kind = _kind_of(part)
        if parametrize.is_parametrized(part):
            for name, chain in part.parametrizations.items():
                value = _effective(chain)
                sources = {f"{at}parametrizations.{name}.{n}": p for n, p in chain.named_parameters()}
                _take(at + name, value, kind, sources, acting, taken, type(part))
        if not part._forward_pre_hooks:
            continue
        for hook in part._forward_pre_hooks.values():
            name = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)
            compute = _hooked(hook, part)
            if isinstance(name, str) and compute is not None and f"{at}{name}" not in taken.values():
                sources = {
                    f"{at}{name}{end}": p
                    for end in ("_orig", "_v", "_g")
                    if isinstance(p := part._parameters.get(name + end), torch.Tensor)
                }
                if sources:
                    _take(at + name, compute, kind, sources, acting, taken, type(part))
        for name, value in vars(part).items():
            # what a hook of somebody's own leaves behind: a tensor under the name that the forward pass uses
            own = {f"{at}{n}": p for n, p in part._parameters.items() if p is not None and n.startswith(f"{name}_")}
            if isinstance(value, torch.Tensor) and own and not set(own) & set(taken):
                _take(at + name, value, kind, own, acting, taken, type(part))
    return acting, taken


def _take(weight, value, kind, sources, acting, taken, owner) -> None:
    bias = weight.rpartition(".")[2].startswith("bias")
    computed = callable(value) and not isinstance(value, torch.Tensor)
    shape = tuple(value().shape) if computed else tuple(value.shape)
    size = torch.Size(shape).numel()
    # the parameter that the weight stands for, and the gains, masks and directions beside it
    main = max(sources, key=lambda name: (sources[name].numel() == size, sources[name].numel()), default=None)

    def read(at: tuple[int, ...] = ()) -> Any:
        found = (value() if computed else value).detach()
        return found[at] if at else found

    whole = main is not None and sources[main].numel() == size
    count = None if whole or main is None else sum(p.numel() for p in sources.values())
    dtype = _dtype(sources[main]) if main is not None else "float32"
    acting.append(
        Array(weight, shape, dtype, read, "bias" if bias else kind, computed=True, parameters=count, owner=owner)
    )
    for name in sources:
        taken[name] = (weight, "" if name == main or not whole else f"applied: part of {weight}")


def _hooked(hook: Any, part: torch.nn.Module) -> Callable[[], torch.Tensor] | None:
    """How one of torch's own hooks computes the weight, without changing the module."""

    def quietly(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.no_grad():
                return work().detach()

        return run

    if hasattr(hook, "apply_mask"):
        return quietly(lambda: hook.apply_mask(part))
    if isinstance(hook, SpectralNorm):
        return quietly(lambda: hook.compute_weight(part, do_power_iteration=False))
    if isinstance(hook, WeightNorm):
        return quietly(lambda: hook.compute_weight(part))
    return None


def _effective(chain: torch.nn.Module) -> torch.Tensor:
    """What a parametrisation makes of its parameters. A copy computes it, in evaluation mode: some of them
    (spectral_norm) change their own buffers each time they are asked."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return copied(chain).eval()()


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """A deep copy, of modules too whose hooks have left computed tensors in them, which torch refuses to copy."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def _packed(module: torch.nn.Module) -> list[Array]:
    """Weights of torch.ao's quantised modules, which are no parameters: methods give them."""
    found = []
    for prefix, part in module.named_modules():
        at = f"{prefix}." if prefix else ""
        weights: dict[str, Any] = {}
        if ".quantized" in type(part).__module__ or "quantized" in getattr(type(part), "__module__", ""):
            if callable(getattr(part, "get_weight", None)):
                held = part.get_weight()
                weights = held if isinstance(held, dict) else {"weight": held}
            elif callable(getattr(part, "weight", None)):
                weights = {"weight": part.weight()}
        kind = "convolution" if "Conv" in type(part).__name__ else "matrix"
        for name, value in weights.items():
            if isinstance(value, torch.Tensor):
                array = from_value(at + name, value, kind=kind)
                array.note = f"decoded from {array.dtype}"
                found.append(array)
    return found


def _beside(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from _held(module, "_buffers")
    for prefix, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                yield (f"{prefix}.{name}" if prefix else name), value


def _config(module: torch.nn.Module) -> dict[str, Any]:
    config = getattr(module, "config", None)
    held = config if isinstance(config, dict) else getattr(config, "__dict__", None)
    return dict(held) if isinstance(held, dict) else {}


def _facts(module: torch.nn.Module, name: str) -> dict[str, Any]:
    """Numbers of heads, and an adapter's scaling, as the modules around a parameter have them."""
    facts: dict[str, Any] = {}
    adapter = re.match(r"(.*?)\.?lora_[AB](?:\.([^.]+))?(?:\.|$)", name)
    if adapter:
        scaling = getattr(_at(module, adapter[1]) if adapter[1] else module, "scaling", None)
        scaling = scaling.get(adapter[2]) if isinstance(scaling, dict) else scaling
        if isinstance(scaling, (int, float)):
            facts["scaling"] = float(scaling)
    if not re.search(r"qkv|query_key_value|c_attn|in_proj", name, re.I):
        return facts
    steps = name.split(".")[:-1]
    for depth in range(len(steps), -1, -1):
        part = _at(module, ".".join(steps[:depth])) if depth else module
        for fact, names in _HEADS.items():
            for attribute in names:
                value = getattr(part, attribute, None)
                if isinstance(value, int) and not isinstance(value, bool):
                    facts.setdefault(fact, value)
        if "heads" in facts:
            break
    return facts
