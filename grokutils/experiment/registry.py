"""Data sets, models, optimisers and losses of your own, under names that work wherever a name does.

A file of yours, say ``mine.py``::

    import torch
    from grokutils.experiment.registry import register_dataset, register_model, register_optimizer

    @register_dataset("two-moons")
    def two_moons(seed):
        ...
        return x_train, y_train, x_test, y_test

    @register_model("my-net")
    def my_net(shape, classes):
        return torch.nn.Sequential(torch.nn.Linear(shape[0], 64), torch.nn.ReLU(), torch.nn.Linear(64, classes))

    @register_optimizer("rmsprop")
    def rmsprop(params, lr):
        return torch.optim.RMSprop(params, lr=lr)

Then ``grokutils train --plugin mine.py --model my-net --dataset two-moons --optimizer rmsprop``, or in Python and in a
notebook ``load_plugin("mine.py")`` and ``RunConfig.recipe("express", model="my-net", ...)``. The environment variable
``GROKUTILS_PLUGINS`` names such files too, for papermill. A record never brings code along: what it was made with
is only looked for among what is registered here, and its source must be the same.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = [
    "PluginError", "fields_of", "find", "is_bundled", "load_plugin", "names", "recall", "register_dataset",
    "register_loss", "register_model", "register_optimizer", "remember",
]  # fmt: skip

_VARIABLE = "GROKUTILS_PLUGINS"
#: What the package itself brings, by hand or by autograd; where a function is named, it is imported when it is wanted.
_BUNDLED: dict[str, dict[str, str]] = {
    "dataset": dict.fromkeys(("mnist", "digits", "modular-addition", "fashion-mnist", "breast-cancer"), ""),
    "model": {"mlp": "", "transformer": "", "cnn": "grokutils.experiment.models.cnn:cnn"},
    "optimizer": dict.fromkeys(("adamw", "amsgrad", "sgd"), ""),
    "loss": dict.fromkeys(("default", "cross-entropy", "mse"), ""),
}
_registered: dict[str, dict[str, Any]] = {kind: {} for kind in _BUNDLED}
_fields: dict[str, tuple[str, ...]] = {"cnn": ("width",)}
#: What this process has trained with, by what tells it from others.
_remembered: dict[tuple[str, str], Any] = {}
_loaded: set[str] = set()


class PluginError(ValueError):
    """A plugin cannot be loaded, or registers something that cannot be; the message says what."""


def register_dataset(name: str, load: Callable | None = None) -> Any:
    """Register a data set: a function of the seed that returns ``x_train, y_train, x_test, y_test`` (or takes nothing,
    if they are the same for every seed). Arrays or tensors; labels are whole numbers from 0.

    >>> @register_dataset("parity")                                              # doctest: +SKIP
    ... def parity(seed): ...

    Raises
    ------
    PluginError : a name that is taken by the package or no name, or something that cannot be called.
    """
    return _register("dataset", name, load)


def register_model(name: str, factory: Callable | None = None, *, fields: Iterable[str] = ()) -> Any:
    """Register a model: a function or class that returns a `torch.nn.Module`. It may take, by these names, any of
    ``shape`` (of one example), ``image_shape``, ``classes`` (how many), and ``config`` (the `RunConfig`).

    >>> @register_model("my-net", fields=("width",))                             # doctest: +SKIP
    ... def my_net(shape, classes, config): ...

    Parameters
    ----------
    name, factory : as above
    fields : hyperparameters of `RunConfig` that mean something to it, such as ``width`` and ``depth``

    Raises
    ------
    PluginError : as `register_dataset`.
    """
    registered = _register("model", name, factory)
    _fields[name] = tuple(fields)
    return registered


def register_optimizer(name: str, make: Callable | None = None) -> Any:
    """Register an optimiser: a `torch.optim.Optimizer` class, or a function that takes parameters and returns one, or
    several that share the parameters among them. ``lr`` and ``weight_decay`` are passed if it has arguments of these names.

    >>> register_optimizer("rmsprop", torch.optim.RMSprop)                       # doctest: +SKIP

    Raises
    ------
    PluginError : as `register_dataset`.
    """
    return _register("optimizer", name, make)


def register_loss(name: str, function: Callable | None = None) -> Any:
    """Register a loss: a function of outputs and labels that returns one number, a mean over the examples.

    >>> register_loss("smoothed", torch.nn.CrossEntropyLoss(label_smoothing=0.1))        # doctest: +SKIP

    Raises
    ------
    PluginError : as `register_dataset`.
    """
    return _register("loss", name, function)


def _register(kind: str, name: str, thing: Any) -> Any:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", name):
        raise PluginError(f"a {kind}'s name must be up to 40 letters, digits, '-', '_' and '.'; got {name!r}.")
    if name in _BUNDLED[kind]:
        raise PluginError(f"the {kind} {name!r} comes with the package; choose another name.")

    def keep(thing: Any) -> Any:
        if not callable(thing):
            raise PluginError(f"the {kind} {name!r} must be a function or a class; got {type(thing).__name__}.")
        _registered[kind][name] = thing
        return thing

    return keep if thing is None else keep(thing)


# -- what is asked of it ------------------------------------------------------------------------------------------


def names(kind: str) -> tuple[str, ...]:
    """Names of a kind (``dataset``, ``model``, ``optimizer``, ``loss``): those of the package, then those registered.

    >>> names("optimizer")[:3]
    ('adamw', 'amsgrad', 'sgd')
    """
    _load_named()
    return (*_BUNDLED[kind], *_registered[kind])


def is_bundled(kind: str, name: str) -> bool:
    """Whether the package itself brings it."""
    return name in _BUNDLED[kind]


def fields_of(model: str) -> tuple[str, ...]:
    """Hyperparameters that mean something to a registered model."""
    return _fields.get(model, ())


def find(kind: str, name: str) -> Any:
    """What is registered under a name, None if nothing is, or only something of the package that is no function."""
    if name in _BUNDLED[kind]:
        module, _, attribute = _BUNDLED[kind][name].partition(":")
        return getattr(importlib.import_module(module), attribute) if module else None
    _load_named()
    return _registered[kind].get(name)


def remember(kind: str, identity: str, thing: Any) -> None:
    """Keep what a run of this process was made with, so that its record can be worked with here."""
    _remembered[kind, identity] = thing


def recall(kind: str, identity: str) -> Any:
    """What `remember` was given, or None."""
    return _remembered.get((kind, identity))


# -- plugins ------------------------------------------------------------------------------------------------------


def load_plugin(source: str | os.PathLike) -> None:
    """Run a Python file, or import a module, that registers things; once. Processes started from this one load it too.

    >>> load_plugin("mine.py")                                                   # doctest: +SKIP

    Raises
    ------
    PluginError : no such file or module, or it raises; the message says what.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    is_file = path.suffix == ".py" or os.sep in text
    key = str(path.resolve()) if is_file else text
    if key in _loaded:
        return
    _loaded.add(key)
    try:
        if is_file:
            if not path.is_file():
                raise PluginError(f"there is no plugin {text!r}; name a Python file or a module that can be imported.")
            _run_file(path.resolve())
        else:
            importlib.import_module(text)
    except PluginError:
        _loaded.discard(key)
        raise
    except Exception as error:  # a file of the user's may raise anything
        _loaded.discard(key)
        why = " ".join(str(error).split())
        raise PluginError(f"the plugin {text!r} cannot be loaded: {type(error).__name__}: {why}.") from error
    known = [part for part in os.environ.get(_VARIABLE, "").split(os.pathsep) if part]
    if key not in known:
        os.environ[_VARIABLE] = os.pathsep.join([*known, key])


def _run_file(path: Path) -> None:
    # by its place, so that two files of one name are two modules, here and in every other process
    name = f"grokutils_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _load_named() -> None:
    """Load what ``GROKUTILS_PLUGINS`` names, a list with the separator of ``PATH``."""
    for part in os.environ.get(_VARIABLE, "").split(os.pathsep):
        if part:
            load_plugin(part)
