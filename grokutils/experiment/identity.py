"""What tells one piece of code from another: where it is imported from, or what its source says.

>>> import math
>>> identify(math.sqrt)
'math.sqrt'
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import site
import sys
import sysconfig
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["identify", "name_of", "source_digest"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def name_of(thing: Any) -> str:
    """What a function, class or object is called.

    >>> name_of(functools.partial(int, base=2))
    'int'
    """
    while isinstance(thing, functools.partial):
        thing = thing.func
    name = getattr(thing, "__qualname__", None) or type(thing).__qualname__
    return name.replace("<locals>.", "")


def identify(thing: Any) -> str:
    """A text that is equal for equal code: the import path of what is installed; of the user's own the name and the
    first sixteen digits of the SHA-256 of its source, of the functions, classes and numbers that it refers to, and of
    what a closure, a `functools.partial` or an object holds.

    >>> identify(functools.partial(int, base=2))
    'int(base=2)'
    """
    if isinstance(thing, functools.partial):
        given = [_value(a, set()) for a in thing.args] + [f"{k}={_value(v, set())}" for k, v in sorted(thing.keywords.items())]
        return f"{identify(thing.func)}({', '.join(given)})"
    if not isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return f"{identify(type(thing))}({_value(vars(thing), set()) if hasattr(thing, '__dict__') else repr(thing)})"
    if _is_installed(thing):
        module = getattr(thing, "__module__", None) or "builtins"
        return name_of(thing) if module == "builtins" else f"{module}.{name_of(thing)}"
    return f"{name_of(thing)} {source_digest(thing)}"


def source_digest(*things: Any) -> str:
    """The first sixteen digits of the SHA-256 of what functions and classes say, and what they refer to."""
    seen: set[int] = set()
    return hashlib.sha256("\n".join(_says(thing, seen) for thing in things).encode()).hexdigest()[:16]


def _is_installed(thing: Any) -> bool:
    """Whether it belongs to a package, whose import path says what it is, and not to a file of the user's."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "builtins")
    file = getattr(module, "__file__", None)
    if file is None:
        return module is not None and module.__name__ != "__main__"
    here = Path(file).resolve()
    own = Path(__file__).resolve().parents[1]
    return any(here.is_relative_to(folder) for folder in (own, *_package_folders()))


@functools.cache
def _package_folders() -> tuple[Path, ...]:
    known = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(folder).resolve() for folder in {*known, *site.getsitepackages(), site.getusersitepackages()})


def _says(thing: Any, seen: set[int]) -> str:
    """The text of a function or class, and of what it refers to."""
    if id(thing) in seen:
        return name_of(thing)
    seen.add(id(thing))
    if isinstance(thing, types.MethodType):
        return _says(thing.__func__, seen) + _value(vars(thing.__self__), seen)
    if isinstance(thing, type):
        parts = [_text(thing)]
        for base in thing.__bases__:
            parts.append(_value(base, seen))
        for method in vars(thing).values():
            if isinstance(method, types.FunctionType):
                parts.append(_references(method, seen))
        return "\n".join(parts)
    return _text(thing) + "\n" + _references(thing, seen)


def _text(thing: Any) -> str:
    # the source of a lambda is the whole statement that it stands in
    if name_of(thing).endswith("<lambda>"):
        return _code(thing.__code__)
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):  # typed into an interpreter
        functions = [thing] if hasattr(thing, "__code__") else [f for f in vars(thing).values() if hasattr(f, "__code__")]
        return "\n".join(_code(f.__code__) for f in functions)


def _code(code: types.CodeType) -> str:
    """What a code object says, in terms that do not change with the version of Python."""
    inner = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_name}({', '.join(code.co_varnames)}): {' '.join(code.co_names)} {' '.join(inner)}"


def _references(function: types.FunctionType, seen: set[int]) -> str:
    """What a function's defaults, its closure and the globals that it names hold."""
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not yet filled
            continue
    names = _names(function.__code__)
    held += [function.__globals__[name] for name in names if name in function.__globals__]
    return "\n".join(_value(value, seen) for value in held)


def _names(code: types.CodeType) -> list[str]:
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
    return sorted({*code.co_names, *inner})


def _value(value: Any, seen: set[int]) -> str:
    """Plain values as they are, arrays by their digest, code by what it says; of anything else its type."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_value(v, seen)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [_value(v, seen) for v in value]
        return "[" + ", ".join(sorted(parts) if isinstance(value, (set, frozenset)) else parts) + "]"
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, functools.partial):
        return f"{_value(value.func, seen)}({_value(value.args, seen)}, {_value(value.keywords, seen)})"
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return identify(value) if _is_installed(value) else _says(value, seen)
    if hasattr(value, "__array__"):
        return f"{type(value).__name__} {hashlib.sha256(_bytes(value)).hexdigest()[:16]}"
    return type(value).__qualname__


def _bytes(value: Any) -> bytes:
    import numpy as np

    value = value.detach().cpu() if hasattr(value, "detach") else value
    array = np.ascontiguousarray(value)
    return f"{array.dtype} {array.shape}".encode() + array.tobytes()
