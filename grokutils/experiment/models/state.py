"""An optimiser's state as tensors and plain values, without pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from grokutils.experiment.config import ConfigError

__all__ = ["flattened", "load_optimizers", "restored", "storable", "unflattened"]


def flattened(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Plain values for JSON; tensors go to `tensors`, under the names of their places.

    Raises
    ------
    ConfigError : something that is neither.
    """
    if isinstance(value, torch.Tensor):
        tensors[place] = value.detach().cpu()
        return {"tensor": place}
    if isinstance(value, Mapping):
        return {"dict": [[flattened(k, "", {}), flattened(v, f"{place}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [flattened(v, f"{place}/{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"the optimiser's state holds a {type(value).__name__}, which cannot be saved without pickle.")


def unflattened(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, inner), = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {k: unflattened(v, tensors) for k, v in inner}
    return (tuple if kind == "tuple" else list)(unflattened(v, tensors) for v in inner)


def load_optimizers(optimizers: Sequence[torch.optim.Optimizer], states: Sequence[dict[str, Any]]) -> None:
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


def storable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or its bytes where NumPy has no such type."""
    tensor = tensor.contiguous()
    try:
        tensor.numpy()
        return tensor
    except TypeError:
        return tensor.reshape(-1).view(torch.uint8)


def restored(tensor: torch.Tensor, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    wanted = getattr(torch, dtype.removeprefix("torch."))
    return (tensor if tensor.dtype == wanted else tensor.view(wanted)).reshape(tuple(shape)).clone()
