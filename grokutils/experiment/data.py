"""What is learnt, with its provenance: MNIST, the digits that ship with scikit-learn, modular addition.

MNIST is read from a torchvision root (``<root>/MNIST/raw/*-ubyte``) and downloaded there by torchvision
if it is absent. The files are read here rather than by torchvision, because torchvision's wheel cannot
be imported beside a CPU build of PyTorch; it is imported only to download.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grokutils.experiment.config import RunConfig
from grokutils.util import paths

__all__ = ["DataError", "Dataset", "load"]


class DataError(RuntimeError):
    """The images cannot be had, or are not what they should be."""


@dataclass(frozen=True)
class Dataset:
    """What one member trains on.

    Attributes
    ----------
    x_train, x_test : float64 arrays (images, pixels), pixels in [0, 1]; for modular addition int64 arrays
        (pairs, 3), the tokens [x, y, =]
    y_train, y_test : int64 arrays (examples,), the classes
    image_shape : rows and columns of an image; None where there are no images
    source : where the data came from, in words
    sha256 : digest of all four arrays
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    image_shape: tuple[int, int] | None
    source: str
    sha256: str


# MD5 of the unpacked files: the canonical ones, and for the training set also the first 10,000 images
# alone (a smaller root that serves just as well, since the subset is drawn from those).
_MD5 = {
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", "63a563d3843dba5073e604e3a7990e87"),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", "e6ef65212ddc6f9010e22d95b5269050"),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea",),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637",),
}

# The training subset comes from the first 10,000 training images, so that every source gives the same.
_POOL = 10_000


def load(config: RunConfig, seed: int) -> Dataset:
    """The training subset of `seed` and the test set.

    >>> load(RunConfig.recipe("express"), seed=0).x_train.shape
    (160, 64)

    MNIST: `per_class` images of each class from the first 10,000 training images, and the whole test
    set of 10,000. Digits: `per_class` of each class, tested on all the others. Modular addition: a random
    `fraction` of all pairs, tested on all the others.

    Raises
    ------
    DataError : MNIST is neither there nor to be downloaded, or a file is damaged.
    ConfigError : a seed that is negative, fractional or beyond 2^32 - 1.
    """
    if config.dataset == "modular-addition":
        return _modular_addition(config, seed)
    if config.dataset == "mnist":
        x, y, x_test, y_test, source = _mnist(paths.data_root())
        image_shape = (28, 28)
    else:
        x, y, source = _digits()
        image_shape = (8, 8)
    rng = np.random.default_rng([config.replace(seed=seed).seed, 0])
    chosen = np.concatenate(
        [rng.choice(np.flatnonzero(y == c), config.per_class, replace=False) for c in range(10)]
    )
    if config.dataset == "digits":
        rest = np.setdiff1d(np.arange(len(y)), chosen)
        x_test, y_test = x[rest], y[rest]
    y_train = _relabelled(y[chosen], config.random_labels, 10, rng)
    return _dataset(x[chosen], y_train, x_test, y_test, image_shape, source)


def _relabelled(labels: np.ndarray, share: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """The labels with about this share of them drawn anew, at random."""
    if not share:
        return labels
    return np.where(rng.random(len(labels)) < share, rng.integers(0, classes, len(labels)), labels)


def _dataset(x_train, y_train, x_test, y_test, image_shape, source: str) -> Dataset:
    digest = hashlib.sha256()
    for array in (x_train, y_train, x_test, y_test):
        digest.update(np.ascontiguousarray(array).tobytes())
    return Dataset(x_train, y_train, x_test, y_test, image_shape, source, digest.hexdigest())


def _modular_addition(config: RunConfig, seed: int) -> Dataset:
    """All pairs [x, y, =] of numbers below p, split at random; the answers are x + y mod p."""
    rng = np.random.default_rng([config.replace(seed=seed).seed, 0])
    x, y = np.divmod(np.arange(config.p**2), config.p)
    tokens = np.stack([x, y, np.full_like(x, config.p)], axis=1)
    answers = (x + y) % config.p
    order = rng.permutation(len(tokens))
    chosen, rest = np.sort(order[: config.train_size]), np.sort(order[config.train_size :])
    y_train = _relabelled(answers[chosen], config.random_labels, config.p, rng)
    return _dataset(
        tokens[chosen], y_train, tokens[rest], answers[rest], None, f"addition modulo {config.p}"
    )


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray, str]:
    try:
        from sklearn.datasets import load_digits  # slow to import, and only this recipe needs it
    except ModuleNotFoundError:
        raise DataError("the small digits come with scikit-learn, which is not installed; `pip install "
                        "'grokutils[paper]'` brings it.") from None  # fmt: skip

    images, labels = load_digits(return_X_y=True)
    return images / 16.0, labels.astype(np.int64), "scikit-learn's embedded digits (8 x 8 pixels)"


@functools.lru_cache(maxsize=2)
def _mnist(root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    raw = root / "MNIST" / "raw"
    if not all((raw / name).is_file() for name in _MD5):
        _download(root)
    arrays = {name: _read_idx(raw / name) for name in _MD5}
    x, y = arrays["train-images-idx3-ubyte"][:_POOL], arrays["train-labels-idx1-ubyte"][:_POOL]
    x_test, y_test = arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"]
    return _pixels(x), y.astype(np.int64), _pixels(x_test), y_test.astype(np.int64), "MNIST"


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0


def _read_idx(path: Path) -> np.ndarray:
    """An array from an IDX file (LeCun's format: a magic number, big-endian sizes, unsigned bytes)."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    rank = content[3] if len(content) >= 4 else 0
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    expected = 4 + 4 * rank + math.prod(shape)
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * rank:
        raise DataError(f"{path} is not an IDX file of bytes. {_REPAIR}")
    if len(content) != expected:
        how = "truncated" if len(content) < expected else "too long"
        raise DataError(f"{path} is {how}: {len(content):,} bytes, its header says {expected:,}. {_REPAIR}")
    if hashlib.md5(content, usedforsecurity=False).hexdigest() not in _MD5[path.name]:
        raise DataError(f"{path} has been altered: its MD5 is not that of MNIST's file of this name. {_REPAIR}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


_REPAIR = "Delete it, and it is downloaded again."


def _download(root: Path) -> None:
    """Fetch MNIST into `root` by torchvision, which verifies the archives' checksums."""
    try:
        # beside a CPU build of PyTorch this raises RuntimeError, since the wheel registers CUDA operators
        from torchvision.datasets import MNIST
    except (ImportError, RuntimeError) as error:
        build = "is not installed" if isinstance(error, ImportError) else (
            "cannot be imported beside this build of PyTorch (install the torch and torchvision wheels of "
            "one build, both CPU or both CUDA)"
        )
        raise DataError(_unavailable(root, f"torchvision, which downloads it, {build}")) from None
    try:
        MNIST(str(root), train=True, download=True)
    except (OSError, RuntimeError) as error:
        why = " ".join(str(error).split())  # torchvision's spans lines
        raise DataError(_unavailable(root, f"the download failed ({why})")) from None


def _unavailable(root: Path, why: str) -> str:
    return (
        f"MNIST is not in {root}, and {why}. Three ways out: "
        "set GROKUTILS_DATA to a folder that holds MNIST/raw/*-ubyte; "
        "connect to the network so that it can be downloaded; "
        "or use the express recipe, whose data ships with scikit-learn."
    )
