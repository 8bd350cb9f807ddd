"""A model's own names, whatever wraps it: `torch.compile`, data parallelism, sharding.

>>> plain_name("_orig_mod.blocks.0._fsdp_wrapped_module.fc.weight")
'blocks.0.fc.weight'
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["plain_name", "plain_names", "unwrap"]

#: Parts of names that wrappers add, wherever in a name.
_ADDED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")


def unwrap(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside wrappers.

    >>> import torch
    >>> net = torch.nn.Linear(3, 2)
    >>> unwrap(torch.nn.DataParallel(net)) is net, unwrap(net) is net
    (True, True)
    """
    while True:
        inner: Any = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in _WRAPPERS:
            inner = module.module
        if inner is None:
            return module
        module = inner


def plain_name(name: str) -> str:
    """A name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _ADDED)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names of a state_dict, and what they are without wrappers; a ``module.`` that all begin with is one's, too.

    >>> plain_names(["module.fc.weight", "module.fc.bias"])
    {'module.fc.weight': 'fc.weight', 'module.fc.bias': 'fc.bias'}
    """
    found = {name: plain_name(name) for name in names}
    while found and all(short.startswith("module.") for short in found.values()):
        found = {name: short.removeprefix("module.") for name, short in found.items()}
    return found
