"""The plan of the study of the mechanism, as data: what each path changes, and how far it is followed.

>>> [condition.name for condition in CONDITIONS if condition.topic == "walk"][0]
'walk'

Every path begins at the grokked weights of one seed of the plain express record and is followed until its weights have
moved and turned by `UNTIL`, or until its steps are used up, in which case it is censored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from grokutils.experiment.config import ConfigError
from grokutils.paper.mechanism.hooks import (
    CapSteps,
    ClipSingularValues,
    Jitter,
    OnlyPixels,
    OrthogonalSteps,
    PullAlpha,
    PullNorm,
)
from grokutils.training.hooks import FreeOnly, HoldNorm, Hook

__all__ = [
    "AMENDED", "CONDITIONS", "CONTROL", "LEVELS", "MNIST", "PLANNED", "PRIMARY", "SEEDS", "SOURCE", "SOURCE_LATER", "SOURCE_STEP",
    "TOLERANCE", "TOPICS", "UNTIL", "Path", "Walk", "condition",
]  # fmt: skip

#: When the plan was written, before any of its paths was run. What came later says its own date.
PLANNED = "2026-11-25"
SOURCE, SOURCE_STEP = "results/express/wd0", 79_433
#: "Adam's shares" are those of the plain record's own change from the fork to this step.
SOURCE_LATER = 158_489
#: The same on MNIST.
MNIST_LATER = 2_238_721
SEEDS = tuple(range(20))
CONTROL = "adam"
#: Conditions are compared where their weights have moved by this much: the norm of the change of all matrices over
#: their norm at the fork. The control's median after the 120,567 steps of the causes page is 0.84.
PRIMARY = 0.5
UNTIL = 0.8
#: Amended on the same day, once two paths of the control and three with decay had been seen to 0.5: decay moves weights
#: by shrinking them, which turns them little. So paths are compared at equal *rotation* as well, the tangent of the
#: angle to the start, which is the displacement of a path that neither shrinks nor grows. Before the plan a random walk
#: and a line had been tried on seeds 0 and 3, while the return to the valley was being written.
AMENDED = "2026-11-25"
#: Displacements and rotations at which a path is measured when it first reaches them.
LEVELS = tuple(round(0.02 * k, 2) for k in range(51))
#: Of the training loss, for a return to the valley.
TOLERANCE = 1e-8

TOPICS = {
    "control": "As it is",
    "adam": "Adam's step",
    "walk": "No optimiser: random walks",
    "contraction": "Contraction and norm",
    "repair": "Contraction after the fall",
    "layers": "Layers",
    "spectrum": "Spectrum",
    "mnist": "Once on MNIST",
}


@dataclass(frozen=True)
class Walk:
    """A path without an optimiser: small random changes, each followed by a return to the valley."""

    #: Norm of each change over the norm at the fork.
    step: float
    #: Whether one direction is drawn for all of the path, not a new one for each change.
    fixed: bool = False
    #: "isotropic"; "layers": as much in each parameter tensor as Adam has; and with one direction, "adam": the
    #: plain record's own change, "permuted": within each tensor, "signs": with random signs.
    direction: str = "isotropic"
    #: Share by which all matrices shrink before each return.
    shrink: float = 0.0
    #: After so many changes the walk is over and the rest is shrinking alone, which waits until then; 0: both at once.
    first: int = 0
    #: Share of the norm at the fork that matrices are pulled to, by `shrink` of what is left; None: to nothing.
    pull: float | None = None
    #: Whether each matrix is scaled to its norm at the fork before each return.
    hold: bool = False


@dataclass(frozen=True)
class Path:
    """One condition."""

    name: str
    topic: str
    #: What is changed, in words.
    says: str
    #: Fields of the `RunConfig`, and hooks; or a walk.
    changes: Mapping[str, Any] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    walk: Walk | None = None
    #: Steps after which it is given up.
    most: int = 300_000
    #: The record that it begins with, and the step of it.
    source: str = SOURCE
    begin: int = SOURCE_STEP
    #: Which of several draws of a walk of the same seed.
    draw: int = 0
    #: Whether it is followed until its steps are used up, however far it has come.
    whole: bool = False
    #: Whether it is only read off the weights that its record has saved.
    saved: bool = False
    #: When it was added, and after what had been seen, if after the plan.
    added: str = ""

    @property
    def identity(self) -> str:
        """What makes it another path than the next: all that is not as usual, but its names and when it is given up."""
        said = _unusual(self, aside=("name", "topic", "says", "most", "whole", "added"))
        return repr(said | ({"walk": _unusual(self.walk)} if self.walk else {}))


def _unusual(one: Path | Walk, aside: tuple[str, ...] = ()) -> dict[str, Any]:
    found = {f.name: getattr(one, f.name) for f in fields(one) if f.name not in aside}
    defaults = {f.name: f.default for f in fields(one)}
    return {name: value for name, value in found.items() if value != defaults[name] and value != {}}


def _layers(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))


_WALKS = 4_000
_SMALL = 0.04

#: Where the plain record ends, collapsed.
_COLLAPSED = 250_000
_SEEN_REPAIR = "2026-11-25, when shrinking from collapsed weights had been seen on two seeds, and a walk that shrinks on one"

CONDITIONS = (
    Path("adam", "control", "AdamW of the recipe"),
    # -- no optimiser
    Path("walk", "walk", "random walk, isotropic", walk=Walk(_SMALL), most=_WALKS),
    Path("walk-layers", "walk", "random walk, Adam's shares of the tensors",
         walk=Walk(_SMALL, direction="layers"), most=_WALKS),
    Path("line", "walk", "one random direction, isotropic", walk=Walk(_SMALL, fixed=True), most=_WALKS),
    Path("line-layers", "walk", "one random direction, Adam's shares",
         walk=Walk(_SMALL, fixed=True, direction="layers"), most=_WALKS),
    Path("line-permuted", "walk", "Adam's own change, permuted in each tensor",
         walk=Walk(_SMALL, fixed=True, direction="permuted"), most=_WALKS),
    Path("line-signs", "walk", "Adam's own change with random signs",
         walk=Walk(_SMALL, fixed=True, direction="signs"), most=_WALKS),
    Path("line-adam", "walk", "straight along Adam's own change",
         walk=Walk(_SMALL, fixed=True, direction="adam"), most=_WALKS),
    Path("walk-small", "walk", "random walk, isotropic, half the step", walk=Walk(_SMALL / 2), most=_WALKS),
    Path("walk-large", "walk", "random walk, isotropic, twice the step", walk=Walk(2 * _SMALL), most=_WALKS),
    # -- contraction
    Path("adam-decay", "contraction", "Adam, weight decay 0.01", {"weight_decay": 0.01}),
    Path("walk-shrink", "contraction", "random walk, shrunk by 0.2 % a step",
         walk=Walk(_SMALL, shrink=0.002), most=_WALKS),
    Path("walk-shrink-more", "contraction", "random walk, shrunk by 1 % a step",
         walk=Walk(_SMALL, shrink=0.01), most=_WALKS),
    Path("shrink", "contraction", "no walk, shrunk by 1 % a step", walk=Walk(0.0, shrink=0.01), most=120),
    Path("walk-shrink-most", "contraction", "random walk, half the step, shrunk by 1 % a step",
         walk=Walk(_SMALL / 2, shrink=0.01), most=600, added=_SEEN_REPAIR),
    Path("adam-pull", "contraction", "Adam, pulled to 0.7 of the norm", hooks=(PullNorm(to=0.7, rate=1e-4),)),
    Path("walk-pull", "contraction", "random walk, pulled to 0.7 of the norm",
         walk=Walk(_SMALL, shrink=0.01, pull=0.7), most=_WALKS),
    Path("hold-norm", "contraction", "Adam, each matrix held at its norm", hooks=(HoldNorm(),)),
    Path("walk-hold", "contraction", "random walk, each matrix held at its norm",
         walk=Walk(_SMALL, hold=True), most=_WALKS),
    Path("adam-decay-used", "contraction", "decay 0.01, not on pixels that are never used",
         {"weight_decay": 0.01}, (OnlyPixels(unused="kept"),)),
    Path("adam-decay-unused", "contraction", "decay 0.01 on pixels that are never used alone",
         hooks=(OnlyPixels(unused="shrunk", rate=1e-4),)),
    # -- what was lost, and contraction from there
    Path("repair", "repair", "from collapsed weights: no walk, shrunk by 1 % a step",
         walk=Walk(0.0, shrink=0.01), most=120, whole=True, begin=_COLLAPSED,
         added="2026-11-25, when the control and decay had been seen on one seed"),
    Path("line-repair", "repair", "one random direction to 0.5, then shrunk by 1 % a step",
         walk=Walk(_SMALL, fixed=True, shrink=0.01, first=13), most=120, whole=True, added=_SEEN_REPAIR),
    Path("adam-repair", "repair", "from collapsed weights: Adam with weight decay 0.01", {"weight_decay": 0.01},
         most=30_000, whole=True, begin=_COLLAPSED, added=_SEEN_REPAIR),
    # -- Adam's step
    Path("cap", "adam", "update's RMS capped at 3 % of the rate", hooks=(CapSteps(rms=3e-4),)),
    Path("lr-double", "adam", "twice the learning rate", {"learning_rate": 2e-2}),
    Path("lr-half", "adam", "half the learning rate", {"learning_rate": 5e-3}, most=600_000),
    Path("lr-quarter", "adam", "a quarter of the learning rate", {"learning_rate": 2.5e-3}, most=600_000),
    Path("sgd", "adam", "SGD with momentum 0.9, learning rate 10",
         {"optimizer": "sgd", "learning_rate": 10.0}, most=30_000),
    Path("sgd-jitter", "adam", "SGD, learning rate 1, with Gaussian jitter of the weights",
         {"optimizer": "sgd", "learning_rate": 1.0}, (Jitter(std=1.5e-3),)),
    Path("eps", "adam", "eps 1e-4 and ten times the rate", {"eps": 1e-4, "learning_rate": 0.1}),
    Path("orthogonal", "adam", "each step orthogonal to its matrix", hooks=(OrthogonalSteps(),)),
    # -- layers
    Path("freeze-fc1", "layers", "FC1 frozen", hooks=(FreeOnly(names=_layers("fc2", "fc3")),)),
    Path("freeze-fc3", "layers", "FC3 frozen", hooks=(FreeOnly(names=_layers("fc1", "fc2")),)),
    # -- spectrum
    Path("alpha-two", "spectrum", "α of FC1 and FC2 pulled to 2", hooks=(PullAlpha(to=2.0, rate=0.05, every=100),)),
    Path("clip-singular", "spectrum", "singular values clipped at the largest at the fork",
         hooks=(ClipSingularValues(every=100),)),
)  # fmt: skip

#: The two that decide, once on MNIST: one network, from its weights near 6e5 steps, and draws in place of seeds. Added on
#: the day of the plan. A random walk of many small changes would take a day there; a line takes minutes.
_MNIST = dict(source="results/mnist-wd0", begin=630_957, topic="mnist")
MNIST = (
    Path("mnist-adam", says="MNIST: AdamW of the paper", saved=True, **_MNIST),
    *(
        Path(f"mnist-line-{draw}", says=f"MNIST: one random direction, isotropic, draw {draw}",
             walk=Walk(_SMALL, fixed=True), most=40, draw=draw, **_MNIST)
        for draw in (0, 1)
    ),
    Path("mnist-line-layers", says="MNIST: one random direction, Adam's shares",
         walk=Walk(_SMALL, fixed=True, direction="layers"), most=40, **_MNIST),
    Path("mnist-repair", says="MNIST: from collapsed weights, no walk, shrunk by 2 % a step",
         walk=Walk(0.0, shrink=0.02), most=60, whole=True, **_MNIST | {"begin": 3_758_374}),
)  # fmt: skip


def condition(name: str) -> Path:
    """The condition of a name.

    Raises
    ------
    ConfigError : there is none.
    """
    every = (*CONDITIONS, *MNIST)
    for one in every:
        if one.name == name:
            return one
    raise ConfigError(f"there is no condition {name!r}; there are {', '.join(c.name for c in every)}.")
