"""Every hyperparameter of a run: its default, its bounds and what it means, in one place.

The defaults are the *paper* recipe: Table 3 of "Grokking and Generalization Collapse" (P1,
arXiv 2506.04434). The *express* recipe is the same experiment on the small digits that ship with
scikit-learn: all three phases in about a minute.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grokutils.experiment import registry
from grokutils.experiment.traits import data_traits, model_traits
from grokutils.util.checks import Interval, shown

__all__ = ["ConfigError", "Member", "Own", "RunConfig", "RECIPES", "hyperparameters"]


class ConfigError(ValueError):
    """A hyperparameter has no meaning; the message names the value and what is allowed."""


@dataclass(frozen=True)
class Member:
    """One network of a run: its seed (subset, initial weights, batches) and its weight decay."""

    seed: int
    weight_decay: float


@dataclass(frozen=True)
class Own:
    """What tells a run from others where parts of it are not this package's: set by `grokutils.train`.

    Of the model, the data, the loss and the optimiser a text (`grokutils.experiment.identity`), empty for a part of the
    package; the shape of an example and the number of classes; and whether another loop trained it
    (`grokutils.records.recorder`).
    """

    model: str = ""
    data: str = ""
    loss: str = ""
    optimizer: str = ""
    shape: tuple[int, ...] | None = None
    classes: int | None = None
    recorded: bool = False


def _spec(default, help, *, low=None, high=None, open_low=False, choices=None, symbol=None):
    """A field with what `RunConfig` needs to check it and the tables need to describe it."""
    meta = dict(help=help, low=low, high=high, open_low=open_low, choices=choices, symbol=symbol)
    return field(default=default, metadata=meta)


# 2**24: the optimiser counts its steps in float32 on CUDA, exact up to here.
MAX_STEPS = 2**24

# What may be a name of the user's own.
_KINDS = ("dataset", "model", "optimizer", "loss")
# What means something to every model; the other fields are those of one kind of model or data (`traits`).
_PARTIAL = (
    "per_class", "random_labels", "p", "fraction", "depth", "width", "d_model", "n_heads", "d_mlp", "loss",
    "loss_dtype",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All hyperparameters of a run, checked when it is made.

    >>> RunConfig.recipe("express", weight_decay=0.01, steps=2_000).batch
    160

    Values given as text or as whole floats are taken (``steps="1e5"``, ``steps=1e5``).

    Raises
    ------
    ConfigError : a value out of bounds, of the wrong kind, or that fits no other
        (a batch that does not divide the training set).
    """

    recipe_name: str = _spec("paper", "which recipe the defaults came from", choices=("paper", "express", "modular"))
    dataset: str = _spec("mnist", "what is learnt", choices=functools.partial(registry.names, "dataset"))
    per_class: int = _spec(100, "training images per class, drawn with the seed", low=1)
    p: int = _spec(113, "the modulus, a prime", low=5, high=257)
    fraction: float = _spec(0.3, "share of all pairs that is trained on", low=0, high=1, open_low=True)
    random_labels: float = _spec(
        0.0, "share of the training labels replaced by random ones (a control)", low=0, high=1
    )
    model: str = _spec("mlp", "architecture", choices=functools.partial(registry.names, "model"))
    depth: int = _spec(3, "linear layers", low=2, high=8)
    width: int = _spec(200, "hidden units per hidden layer", low=1, high=8192)
    d_model: int = _spec(128, "width of the residual stream", low=1, high=4096)
    n_heads: int = _spec(4, "attention heads", low=1, high=256)
    d_mlp: int = _spec(512, "hidden units of the feed-forward layer", low=1, high=16384)
    init_scale: float = _spec(
        8.0, "factor on the usual initial weights and biases", low=0, high=1000, open_low=True
    )
    learning_rate: float = _spec(5e-4, "AdamW learning rate", low=0, high=10, open_low=True, symbol="lr")
    weight_decay: float = _spec(0.0, "AdamW decoupled weight decay", low=0, high=10, symbol="wd")
    optimizer: str = _spec(
        "adamw",
        "'adamw'; 'amsgrad': its variant that divides by the largest second moment so far; 'sgd': plain "
        "momentum, of size beta 1",
        choices=functools.partial(registry.names, "optimizer"),
    )
    loss: str = _spec(
        "default",
        "'default': the perceptron's mean squared error on one-hot targets, cross-entropy for all others",
        choices=functools.partial(registry.names, "loss"),
    )
    beta1: float = _spec(0.9, "AdamW beta 1", low=0, high=0.999999)
    beta2: float = _spec(0.999, "AdamW beta 2", low=0, high=0.99999999)
    eps: float = _spec(1e-8, "AdamW epsilon", low=0, high=1, open_low=True)
    batch_size: int = _spec(200, "examples per step; 0: the whole training set", low=0)
    batch_order: str = _spec(
        "fixed",
        "'fixed': the same minibatches in the same order for ever (the authors' published loop); "
        "'reshuffle': new minibatches every epoch",
        choices=("fixed", "reshuffle"),
    )
    steps: int = _spec(10_000_000, "optimisation steps", low=1, high=MAX_STEPS)
    dtype: str = _spec("float64", "floating-point type of all arithmetic", choices=("float64", "float32"))
    loss_dtype: str = _spec(
        "float64", "floating-point type of the cross-entropy and its gradient", choices=("float64", "float32")
    )
    seed: int = _spec(0, "seed of the subset, the initial weights and the batches", low=0, high=2**32 - 1)
    intervention: str = _spec("", "hooks of the training loop and the record it was forked from; set by `train`")
    members: tuple[Member, ...] | None = field(
        default=None,
        metadata=dict(help="several (seed, weight decay) networks trained side by side"),
    )
    own: Own | None = field(
        default=None, metadata=dict(help="what identifies parts that are not of this package; set by `train`")
    )

    # -- making one ---------------------------------------------------------------------------------

    @classmethod
    def recipe(cls, name: str = "express", **overrides: Any) -> RunConfig:
        """The named recipe with any field overridden; ``wd`` and ``lr`` are accepted as short names, and
        None leaves the recipe's own value.

        >>> RunConfig.recipe("paper").steps
        10000000
        """
        if not isinstance(name, str) or name not in RECIPES:
            raise ConfigError(f"recipe must be one of {', '.join(map(repr, RECIPES))}; got {shown(name)}.")
        values = {"recipe_name": name, **RECIPES[name]}
        values.update({_LONG_NAME.get(k, k): v for k, v in overrides.items() if v is not None})
        _refuse_unknown(values)
        config = cls(**values)
        for given, value in overrides.items():
            if value is not None and not config.means(_LONG_NAME.get(given, given)):
                raise ConfigError(f"{given} means nothing to the {config.model} of this recipe; leave it out.")
        return config

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with some fields changed, checked again. With another model, data set, loss or optimiser it is no
        longer known what is the user's own (`own`), until it is trained."""
        _refuse_unknown(changes)
        if any(name in changes and changes[name] != getattr(self, name) for name in _KINDS):
            changes.setdefault("own", None)
        return dataclasses.replace(self, **changes)

    def ensemble(self, seeds: Iterable[int], weight_decays: Iterable[float] | None = None) -> RunConfig:
        """The same run with one member for each pair of seed and weight decay.

        >>> len(RunConfig.recipe("express").ensemble(range(3), (0.0, 0.01)).networks)
        6
        """
        weight_decays = [self.weight_decay] if weight_decays is None else weight_decays
        for name, values in (("seeds", seeds), ("weight_decays", weight_decays)):
            if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
                raise ConfigError(f"{name} must be several numbers, such as (0, 1); got {shown(values)}.")
        return self.replace(members=tuple((s, d) for d, s in itertools.product(weight_decays, seeds)))

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", _checked_own(self.own))
        for name, spec in _FIELDS.items():
            value = getattr(self, name)
            if name == "members":
                value = _checked_members(value)
            elif name in _KINDS and self.own is not None and _is_name(value):
                pass  # what it names may be registered in another process only
            elif name != "own":
                value = _checked(name, value, spec)
            object.__setattr__(self, name, value)
        for refusal in (model_traits(self.model).refusal(self), data_traits(self.dataset).refusal(self)):
            if refusal:
                raise ConfigError(refusal)

    # -- what follows from it -----------------------------------------------------------------------

    @property
    def train_size(self) -> int | None:
        """Examples in the training set; None if that is not known before the data are loaded."""
        return data_traits(self.dataset).train_size(self)

    @property
    def worth_threads(self) -> bool:
        """Whether its matrix products are large enough to be shared among threads.

        The paper recipe's are not: a second core makes it 1.3 times as fast at best, and on a machine that does
        something else as well, threads that wait for each other make it many times slower.
        """
        return model_traits(self.model).worth_threads(self)

    @property
    def parameters(self) -> int | None:
        """Parameters of one network; None if that is not known before it is built.

        >>> RunConfig.recipe("paper").parameters
        199210
        """
        return model_traits(self.model).parameters(self)

    @property
    def memory(self) -> int:
        """Bytes that a run holds at least: parameters, gradients and moments of all members, what a save makes of
        them, the data, and the activations of a step. What is not known before it is built or loaded counts as 0."""
        number = 8 if self.dtype == "float64" else 4
        members, copies = len(self.networks), 4 + (self.optimizer == "amsgrad")
        buffers = (2 * copies - 1) * (self.parameters or 0)  # a save holds all but the gradients once more
        activations = model_traits(self.model).activations(self) if self.train_size else 0
        return members * number * (buffers + activations)

    @property
    def work(self) -> float:
        """Floating-point operations of one step, of all members: a product forwards and two backwards for each
        parameter and example; 0 if that is not known."""
        each = model_traits(self.model).work(self) if self.train_size else 0.0
        return 6.0 * len(self.networks) * self.batch * each

    @property
    def batch(self) -> int:
        """Examples per step; 0: all, where it is not known how many those are."""
        return self.batch_size or self.train_size or 0

    def means(self, name: str) -> bool:
        """Whether a field means something to this model and data.

        >>> RunConfig.recipe("modular").means("width")
        False
        """
        if self.own is not None and self.own.recorded:
            return name in _RECORDED
        return name not in _PARTIAL or name in (*model_traits(self.model).fields, *data_traits(self.dataset).fields)

    @property
    def networks(self) -> tuple[Member, ...]:
        """The members of the run; a run of one network has one."""
        return self.members or (Member(self.seed, self.weight_decay),)

    @property
    def name(self) -> str:
        """A folder name that says what differs from the recipe; ``steps`` is left out, since a longer
        run continues a shorter one."""
        if self.members is None:
            parts = [self.recipe_name, f"wd{_short(self.weight_decay)}", f"seed{self.seed}"]
        else:
            parts = [self.recipe_name, f"{len(self.members)}members"]
        base = RunConfig.recipe(self.recipe_name)
        aside = {"recipe_name", "weight_decay", "seed", "steps", "members", "intervention", "own"}
        changed = {n: v for n in _FIELDS if n not in aside and (v := getattr(self, n)) != getattr(base, n)}
        parts += [f"{n}={_short(v)}" for n, v in changed.items()]
        if self.members is not None or self.intervention or self.own is not None:
            parts.append(self.identity[:8])
        name = "-".join(parts)
        # file systems take 255 bytes
        return name if len(name) <= 200 else f"{name[:180]}-{self.identity[:16]}"

    @property
    def identity(self) -> str:
        """SHA-256 of everything that determines the trajectory: all fields but ``steps`` and the
        recipe's name. Two runs of one identity are the same run, one perhaps longer.

        Only what differs from the defaults counts, so that a later version with more fields still knows the
        runs of an earlier one.
        """
        aside = {"steps", "recipe_name"}
        if self.members is not None:
            # a member carries its own seed and decay, so these two no longer mean anything
            aside |= {"seed", "weight_decay"}
        values = {n: v for n, v in self.to_dict().items() if n not in aside and v != _DEFAULTS[n]}
        values["batch_size"] = self.batch
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_dict`."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"a configuration must map names to values; got {shown(values)}.")
        _refuse_unknown(values)
        return cls(**values)

    def describe(self) -> list[tuple[str, Any, str]]:
        """(name, value, meaning) of every field that means something to this model, for tables."""
        return [
            (name, getattr(self, name), spec["help"])
            for name, spec in _FIELDS.items()
            if self.means(name) and (name not in _IF_GIVEN or getattr(self, name) != _DEFAULTS[name])
        ]


_FIELDS: dict[str, Mapping[str, Any]] = {f.name: f.metadata for f in dataclasses.fields(RunConfig)}
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(RunConfig)}
# Fields that are not one plain value that a user gives.
_NOT_SET = ("members", "intervention", "own")
_TYPES = {f.name: type(f.default) for f in dataclasses.fields(RunConfig) if f.name not in ("members", "own")}
# Fields that are described where they are not what they usually are.
_IF_GIVEN = ("intervention", "loss", "own")
# All that is known of a run that another loop trained.
_RECORDED = ("dataset", "model", "weight_decay", "steps", "seed", "own")
_LONG_NAME = {s["symbol"]: n for n, s in _FIELDS.items() if s.get("symbol")}

# What each recipe changes of the defaults above.
RECIPES: dict[str, dict[str, Any]] = {
    "express": dict(
        dataset="digits", per_class=16, width=100, learning_rate=1e-2, batch_size=0, steps=250_000,
        dtype="float32",
    ),
    "paper": {},
    # P2 and P3 give the network and p only; the rest is Nanda et al. 2023, as Omnigrok's notebook has it
    "modular": dict(
        dataset="modular-addition", model="transformer", init_scale=1.0, learning_rate=1e-3, weight_decay=1.0,
        beta2=0.98, batch_size=0, steps=100_000, dtype="float32",
    ),
}


def _refuse_unknown(names: Iterable[str]) -> None:
    for name in names:
        if name not in _FIELDS:
            raise ConfigError(f"there is no hyperparameter {name!r}; there are {', '.join(_FIELDS)}.")


def _short(value: Any) -> str:
    """A value as it goes into a folder's name: as short as tells it from every other."""
    if isinstance(value, float) and float(brief := f"{value:g}") == value:
        return brief
    return str(value)


def _allowed(name: str) -> str:
    """What a field may be, in words."""
    spec, kind = _FIELDS[name], _TYPES[name]
    if kind is str:
        return "one of " + ", ".join(map(repr, _choices(spec))) if spec["choices"] else "text"
    return str(_interval(kind, spec))


def _choices(spec: Mapping[str, Any]) -> tuple[str, ...]:
    return spec["choices"]() if callable(spec["choices"]) else spec["choices"]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value) is not None


def _interval(kind: type, spec: Mapping[str, Any]) -> Interval:
    return Interval(kind, spec["low"], spec["high"], spec["open_low"])


def hyperparameters() -> list[tuple[str, str, str]]:
    """(name, meaning, what it may be) of every field one may set but `members`, whatever the model.

    >>> hyperparameters()[0][0]
    'recipe_name'
    """
    return [(name, spec["help"], _allowed(name)) for name, spec in _FIELDS.items() if name not in _NOT_SET]


def _checked(name: str, value: Any, spec: Mapping[str, Any]) -> Any:
    kind = _TYPES[name]
    if kind is str:
        if not isinstance(value, str) or (spec["choices"] and value not in _choices(spec)):
            raise ConfigError(f"{name} must be {_allowed(name)}; got {shown(value)}.")
        return value
    return _interval(kind, spec).check(name, value, text=True, error=ConfigError)


def _checked_own(value: Any) -> Own | None:
    if value is None or isinstance(value, Own):
        return value
    try:
        found = Own(**value)
        return dataclasses.replace(found, shape=None if found.shape is None else tuple(map(int, found.shape)))
    except (TypeError, ValueError):
        raise ConfigError(f"own must be what `train` has set; got {shown(value)}.") from None


def _checked_members(value: Any) -> tuple[Member, ...] | None:
    if value is None:
        return None
    members = []
    try:
        for item in value:
            if isinstance(item, (str, bytes)):
                raise TypeError
            pair = (item.seed, item.weight_decay) if isinstance(item, Member) else (
                (item["seed"], item["weight_decay"]) if isinstance(item, Mapping) else tuple(item)
            )
            seed, decay = pair
            members.append(
                Member(
                    _checked("seed", seed, _FIELDS["seed"]),
                    _checked("weight_decay", decay, _FIELDS["weight_decay"]),
                )
            )
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"members must be (seed, weight_decay) pairs; got {shown(value)}.") from None
    if not members:
        raise ConfigError("members must name at least one (seed, weight_decay) pair; got none.")
    if len(set(members)) != len(members):
        raise ConfigError("members must differ from one another; a (seed, weight_decay) pair is there twice.")
    return tuple(members)
