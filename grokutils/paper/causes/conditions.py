"""The conditions of the study of causes: what may prevent the collapse, hasten it, or set off a false alarm.

>>> [condition.name for condition in conditions() if condition.topic == "norm"][:2]
['hold-norm', 'only-fc1']

``grokutils causes`` runs them (`grokutils.training.sweep`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.training.hooks import CenterRows, ClipWeights, FreeOnly, HoldNorm, ScaleSteps
from grokutils.training.sweep import Condition, Fork, Outcome, sweep
from grokutils.util.checks import Interval

__all__ = ["CONTROL", "SCALES", "TOPICS", "Cause", "Plan", "Scale", "conditions", "plan", "run"]

#: What the conditions are about, in the order of the page.
TOPICS = {
    "control": "As it is",
    "optimiser": "Optimiser",
    "norm": "Norm",
    "traps": "What traps need",
    "negative": "Negative controls",
}

#: What each condition is compared with, seed by seed: by whether it is forked.
CONTROL = {True: "fork", False: "plain"}

_GROKKED = "results/express/wd0"
_GROKKED_STEP = 79_433


@dataclass(frozen=True)
class Cause(Condition):
    """A condition, with what the tables say of it."""

    topic: str = ""
    #: What is changed, in words.
    says: str = ""
    #: Whether the quick scale has it too.
    quick: bool = False


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    #: From initial weights, and from the grokked ones.
    steps: int
    forked_steps: int
    seeds: int
    out: str


SCALES = {
    "full": Scale(steps=200_000, forked_steps=200_000 - _GROKKED_STEP, seeds=10, out="results/causes"),
    "quick": Scale(steps=40_000, forked_steps=30_000, seeds=2, out="runs/causes-quick"),
}

# Traps of 100 x 64 and 100 x 100 need weights of well over ten standard deviations or a shift of all; initial weights
# end at 1.7.
_CLIP = ClipWeights(k=4.0, every=10)
_CENTER = CenterRows(every=10)


def conditions(scale: str = "full") -> tuple[Cause, ...]:
    """The table of a scale.

    Raises
    ------
    ConfigError : no such scale.
    """
    size = _scale(scale)
    # records that are there already are at least as long as the full study
    there = "results/express/{}".format if scale == "full" else lambda _: None
    forks = dict(forked=True)
    every = (
        Cause("plain", topic="control", says="AdamW from the initial weights", record=there("wd0"), quick=True),
        Cause("fork", **forks, topic="control", says="AdamW from the grokked weights", quick=True),
        # -- optimiser
        Cause("lr-cosine", hooks=(ScaleSteps(factor=0.0, end=size.forked_steps),), **forks, topic="optimiser",
              says="learning rate to 0 along a cosine"),
        Cause("lr-tenth", {"learning_rate": 1e-3}, **forks, topic="optimiser", says="a tenth of the learning rate",
              quick=True),
        Cause("eps-1e-4", {"eps": 1e-4}, **forks, topic="optimiser", says="eps 1e-4 for 1e-8"),
        Cause("eps-1e-2", {"eps": 1e-2}, **forks, topic="optimiser", says="eps 1e-2 for 1e-8", quick=True),
        Cause("beta2-0.99", {"beta2": 0.99}, **forks, topic="optimiser", says="beta2 0.99 for 0.999"),
        Cause("amsgrad", {"optimizer": "amsgrad"}, **forks, topic="optimiser", says="AMSGrad"),
        Cause("sgd", {"optimizer": "sgd", "learning_rate": 1.0}, **forks, topic="optimiser",
              says="SGD with momentum 0.9, learning rate 1", quick=True),
        Cause("batches-fixed", {"batch_size": 40}, **forks, topic="optimiser", says="minibatches of 40, always the same"),
        Cause("batches-new", {"batch_size": 40, "batch_order": "reshuffle"}, **forks, topic="optimiser",
              says="minibatches of 40, reshuffled"),
        Cause("float64", {"dtype": "float64"}, **forks, topic="optimiser", says="float64 for float32"),
        # -- norm
        Cause("hold-norm", hooks=(HoldNorm(),), **forks, topic="norm", says="each matrix held at its norm", quick=True),
        *(
            Cause(f"only-{layer}", hooks=(FreeOnly(names=(f"{layer}.weight", f"{layer}.bias")),), **forks,
                  topic="norm", says=f"only {layer.upper()} may move", quick=layer == "fc1")
            for layer in ("fc1", "fc2", "fc3")
        ),
        Cause("wd-1e-4", {"weight_decay": 1e-4}, topic="norm", says="weight decay 0.0001"),
        *(
            Cause(f"wd-{decay}", {"weight_decay": decay}, topic="norm", says=f"weight decay {decay:g}",
                  record=there(f"wd{decay:g}"), quick=decay == 0.01)
            for decay in (1e-3, 1e-2, 1e-1)
        ),
        # -- what traps need
        Cause("clip", hooks=(_CLIP,), topic="traps", says="weights clipped at 4 standard deviations", quick=True),
        Cause("center", hooks=(_CENTER,), topic="traps", says="row means subtracted"),
        Cause("clip-center", hooks=(_CENTER, _CLIP), topic="traps", says="clipped, and row means subtracted"),
        # -- negative controls
        Cause("random-labels", {"random_labels": 1.0}, topic="negative", says="random labels", quick=True),
        Cause("small-init", {"init_scale": 1.0}, topic="negative", says="ordinary initial scale", quick=True),
        Cause("never", {"random_labels": 1.0, "per_class": 150, "width": 20}, topic="negative",
              says="1,500 random labels, 20 units wide"),
    )  # fmt: skip
    return tuple(cause for cause in every if cause.quick or scale == "full")


@dataclass(frozen=True)
class Plan:
    """All that `grokutils.training.sweep.sweep` is told."""

    causes: tuple[Cause, ...]
    base: RunConfig
    seeds: range
    out: str
    fork: Fork


def _scale(name: str) -> Scale:
    if name not in SCALES:
        raise ConfigError(f"scale must be one of {', '.join(SCALES)}; got {name!r}.")
    return SCALES[name]


def plan(scale: str = "full", seeds: int | None = None) -> Plan:
    """What is run at a scale, and where.

    >>> plan("quick", seeds=3).out
    'runs/causes-quick-3'

    Parameters
    ----------
    scale : ``"full"``, in ``results/causes/``: two hours on two cores; ``"quick"``, in ``runs/``: minutes
    seeds : how many, from 0 up; None: the scale's own number. Another number has a folder of its own in ``runs/``.

    Raises
    ------
    ConfigError : no such scale, or no seeds.
    """
    size, table = _scale(scale), conditions(scale)
    count = size.seeds if seeds is None else seeds
    count = Interval(int, 1).check("seeds", count, error=ConfigError)
    out = size.out if count == size.seeds else f"runs/causes-{scale}-{count}"
    base = RunConfig.recipe("express", steps=size.steps, weight_decay=0.0)
    return Plan(table, base, range(count), out, Fork(_GROKKED, _GROKKED_STEP, size.forked_steps))


def run(
    scale: str = "full", seeds: int | None = None, *, only: Sequence[str] = (), jobs: int | None = None,
    progress: bool = True,
) -> list[Outcome]:  # fmt: skip
    """Run the study, or go on with it; what is done already is only read.

    >>> run("quick", seeds=2)                                                     # doctest: +SKIP

    Parameters
    ----------
    scale, seeds : as in `plan`
    only : names of conditions; all by default
    jobs, progress : of `grokutils.training.sweep.sweep`

    Raises
    ------
    ConfigError : no such scale or condition, or no seeds; and as `grokutils.training.sweep.sweep`.
    """
    chosen = plan(scale, seeds)
    names = [cause.name for cause in chosen.causes]
    if unknown := [name for name in only if name not in names]:
        raise ConfigError(f"there is no condition {unknown[0]!r} at the {scale} scale; there are {', '.join(names)}.")
    wanted = [cause for cause in chosen.causes if not only or cause.name in only]
    return sweep(wanted, chosen.base, chosen.seeds, chosen.out, chosen.fork, jobs=jobs, progress=progress)
