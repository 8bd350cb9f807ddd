"""What a configuration knows of data sets and models before anything is loaded or built.

A model says here, and in its class, all that the rest of the package wants to know of it; nothing asks for its name.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from grokutils.experiment import registry
from grokutils.util.checks import shown

if TYPE_CHECKING:
    from grokutils.experiment.config import RunConfig

__all__ = ["DataTraits", "ModelTraits", "data_traits", "model_traits"]

_PRIMES = [n for n in range(5, 258) if all(n % k for k in range(2, n))]


class DataTraits:
    """Of a data set of the user's own, of which nothing is known until it is loaded."""

    #: Hyperparameters that mean something to it.
    fields: tuple[str, ...] = ()
    #: Rows and columns, where the examples are images.
    image_shape: tuple[int, int] | None = None

    def classes(self, config: RunConfig) -> int | None:
        """How many classes there are."""
        return None if config.own is None else config.own.classes

    def shape(self, config: RunConfig) -> tuple[int, ...] | None:
        """Of one example."""
        return None if config.own is None else config.own.shape

    def train_size(self, config: RunConfig) -> int | None:
        """Examples in the training set."""
        return None

    def refusal(self, config: RunConfig) -> str:
        """What is wrong with a configuration; empty if nothing is."""
        return ""


class Pool(DataTraits):
    """Some examples of each class for training, drawn with the seed."""

    fields = ("per_class", "random_labels")

    def __init__(self, inputs: int, most: int, classes: int = 10, image_shape: tuple[int, int] | None = None):
        self.inputs = inputs
        #: Examples of the rarest class there are to choose from, less what the test set must keep.
        self.most = most
        self._classes = classes
        self.image_shape = image_shape

    def classes(self, config: RunConfig) -> int:
        return self._classes

    def shape(self, config: RunConfig) -> tuple[int, ...]:
        return (self.inputs,)

    def train_size(self, config: RunConfig) -> int:
        return self._classes * config.per_class

    def refusal(self, config: RunConfig) -> str:
        if config.per_class > self.most:
            return f"per_class must be between 1 and {self.most} for {config.dataset}; got {shown(config.per_class)}."
        if self.train_size(config) % config.batch:
            return (
                f"batch_size must divide the training set of {self.train_size(config)} "
                f"{'images' if self.image_shape else 'examples'}; got {shown(config.batch_size)}."
            )
        return ""


class Pairs(DataTraits):
    """All pairs of numbers below p."""

    fields = ("p", "fraction", "random_labels")

    def classes(self, config: RunConfig) -> int:
        return config.p

    def shape(self, config: RunConfig) -> tuple[int, ...]:
        return (3,)

    def train_size(self, config: RunConfig) -> int:
        return round(config.fraction * config.p**2)

    def refusal(self, config: RunConfig) -> str:
        if config.p not in _PRIMES:
            return f"p must be a prime from {_PRIMES[0]} to {_PRIMES[-1]}; got {config.p}."
        pairs = config.p**2
        if not 1 <= config.train_size < pairs:
            return (
                f"fraction must leave at least one of the {pairs} pairs to train on and one to test on; "
                f"got {config.fraction}."
            )
        if config.batch != config.train_size:
            return f"batch_size must be 0, the whole training set, here; got {config.batch_size}."
        return ""


_DATA: dict[str, DataTraits] = {
    "mnist": Pool(784, 850, image_shape=(28, 28)),
    "digits": Pool(64, 150, image_shape=(8, 8)),
    "modular-addition": Pairs(),
    "fashion-mnist": Pool(784, 850, image_shape=(28, 28)),
    "breast-cancer": Pool(30, 180, classes=2),
}


class ModelTraits:
    """Of a network that is trained by autograd: the user's own, or one of the package."""

    fields: tuple[str, ...] = ("loss", "loss_dtype")
    #: What it can be trained on; None: anything.
    datasets: tuple[str, ...] | None = None
    #: Whether the papers follow its last layer too.
    follows_last = True
    #: Whether its metrics have margins (`grokutils.util.columns.MARGINS`).
    margins = False
    #: Whether the papers' claims about perceptrons can be read from it.
    perceptron = False

    def refusal(self, config: RunConfig) -> str:
        """What is wrong with a configuration; empty if nothing is."""
        return ""

    def parameters(self, config: RunConfig) -> int | None:
        """Of one network, if that is known before it is built."""
        return None

    def activations(self, config: RunConfig) -> int:
        """Numbers that a step holds besides parameters, gradients and moments, and the data, at least."""
        return 0

    def work(self, config: RunConfig) -> float:
        """Multiplications of one example's forward pass."""
        return 0.0

    def worth_threads(self, config: RunConfig) -> bool:
        """Whether its products are large enough to be shared among threads."""
        return False


class Perceptron(ModelTraits):
    fields = ("depth", "width", "loss")
    follows_last = False
    perceptron = True

    def refusal(self, config: RunConfig) -> str:
        if config.dataset == "modular-addition":
            images = " or ".join(repr(name) for name, data in _DATA.items() if isinstance(data, Pool))
            return f"dataset must be {images} for the mlp; got {config.dataset!r}."
        return ""

    def parameters(self, config: RunConfig) -> int | None:
        data = data_traits(config.dataset)
        shape, classes = data.shape(config), data.classes(config)
        if shape is None or classes is None:
            return None
        sizes = [_product(shape), *[config.width] * (config.depth - 1), classes]
        return sum((a + 1) * b for a, b in itertools.pairwise(sizes))

    def activations(self, config: RunConfig) -> int:
        shape = data_traits(config.dataset).shape(config)
        return config.train_size * _product(shape) + 2 * config.batch * config.width * (config.depth - 1)

    def work(self, config: RunConfig) -> float:
        return float(self.parameters(config))

    def worth_threads(self, config: RunConfig) -> bool:
        return (config.batch or 0) * config.width**2 > 50_000_000


class AddingTransformer(ModelTraits):
    fields = ("d_model", "n_heads", "d_mlp", "loss", "loss_dtype")
    margins = True
    datasets = ("modular-addition",)

    def refusal(self, config: RunConfig) -> str:
        if config.dataset not in self.datasets:
            return f"dataset must be 'modular-addition' for the transformer; got {config.dataset!r}."
        if config.d_model % config.n_heads:
            return f"n_heads must divide d_model, {config.d_model}; got {config.n_heads}."
        return ""

    def parameters(self, config: RunConfig) -> int:
        d, tokens = config.d_model, config.p + 1
        return (tokens + 3 + config.p) * d + 4 * d**2 + 2 * d * config.d_mlp + config.d_mlp + d

    def activations(self, config: RunConfig) -> int:
        # sums over pairs as matrix products
        return config.train_size * (2 * config.p + 12 * config.d_model + 2 * config.d_mlp + 4 * config.p)

    def work(self, config: RunConfig) -> float:
        # what depends on one token is computed once for each token, not pair
        return float(config.d_model**2 + 2 * config.d_model * config.d_mlp + 3 * config.p * config.d_model)

    def worth_threads(self, config: RunConfig) -> bool:
        return config.batch * config.d_mlp**2 > 50_000_000


class Registered(ModelTraits):
    def __init__(self, fields: tuple[str, ...]):
        self.fields = (*fields, "loss", "loss_dtype")


_MODELS: dict[str, ModelTraits] = {"mlp": Perceptron(), "transformer": AddingTransformer()}


def data_traits(dataset: str) -> DataTraits:
    """Of a data set, by its name."""
    return _DATA.get(dataset) or DataTraits()


def model_traits(model: str) -> ModelTraits:
    """Of a model, by its name."""
    return _MODELS.get(model) or Registered(registry.fields_of(model))


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
