"""Names of a package that are loaded when they are first used (PEP 562), so that importing it costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package.

    >>> getattr_, dir_ = lazily(__name__, {"sqrt tau": "math"})
    >>> dir_(), round(getattr_("tau"), 2)
    (['sqrt', 'tau'], 6.28)

    Parameters
    ----------
    package : its name
    names : names, separated by spaces, and the module that each group is from
    """
    of = {name: module for group, module in names.items() for name in group.split()}

    def load(name: str) -> Any:
        if name not in of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(of)
