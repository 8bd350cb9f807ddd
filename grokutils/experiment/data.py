"""What is learnt, with its provenance: MNIST, Fashion-MNIST, the digits and a table that ship with scikit-learn, modular
addition, and the user's own.

MNIST is read from a torchvision root (``<root>/MNIST/raw/*-ubyte``) and downloaded there by torchvision
if it is absent. The files are read here rather than by torchvision, because torchvision's wheel cannot
be imported beside a CPU build of PyTorch; it is imported only to download.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from grokutils.experiment import registry
from grokutils.experiment.config import RunConfig
from grokutils.experiment.identity import identify
from grokutils.experiment.traits import data_traits
from grokutils.util import paths

__all__ = ["DataError", "Dataset", "load", "make_dataset"]


class DataError(RuntimeError):
    """The data cannot be had, or are not what they should be."""


@dataclass(frozen=True)
class Dataset:
    """What one member trains on (`make_dataset` makes one of arrays).

    Attributes
    ----------
    x_train, x_test : float64 arrays (images, pixels), pixels in [0, 1]; for modular addition int64 arrays
        (pairs, 3), the tokens [x, y, =]; of the user's own, whatever the model takes
    y_train, y_test : int64 arrays (examples,), the classes; of the user's own also numbers to be predicted
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

    @property
    def classes(self) -> int | None:
        """How many classes there are; None where the labels are no classes."""
        if self.y_train.dtype.kind != "i":
            return None
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def make_dataset(arrays: Any, source: str = "the user's own") -> Dataset:
    """A `Dataset` of ``x_train, y_train, x_test, y_test``: arrays or tensors, whatever the model takes.

    >>> make_dataset((np.eye(4), [0, 1, 0, 1], np.eye(4), [1, 0, 1, 0])).classes
    2

    Raises
    ------
    DataError : not four arrays of numbers, of unequal lengths, not finite, or labels below 0.
    """
    if isinstance(arrays, Dataset):
        return arrays
    if not isinstance(arrays, (tuple, list)) or len(arrays) != 4:
        got = f"{len(arrays)} of them" if isinstance(arrays, (tuple, list)) else type(arrays).__name__
        raise DataError(f"data must be four arrays, x_train, y_train, x_test and y_test; got {got}.")
    names = ("x_train", "y_train", "x_test", "y_test")
    x_train, y_train, x_test, y_test = (_numbers(name, a) for name, a in zip(names, arrays, strict=True))
    for kind, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if not len(x) or len(x) != len(y):
            raise DataError(f"x_{kind} and y_{kind} must have as many examples, at least one; got {len(x)} and {len(y)}.")
    for what, train, test in (("x", x_train, x_test), ("y", y_train, y_test)):
        if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
            raise DataError(
                f"{what}_train and {what}_test must be alike; got {train.dtype} {train.shape[1:]} and {test.dtype} "
                f"{test.shape[1:]} an example."
            )
    if y_train.dtype.kind == "i" and min(y_train.min(), y_test.min()) < 0:
        raise DataError(f"labels must be whole numbers from 0; got {min(y_train.min(), y_test.min())}.")
    return _dataset(x_train, y_train, x_test, y_test, None, source)


def _numbers(name: str, value: Any) -> np.ndarray:
    """Whole numbers as int64, others in their own precision."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        raise DataError(f"{name} must be an array of numbers; got {type(value).__name__}.") from None
    if array.ndim == 0 or array.dtype.kind not in "iufb":
        raise DataError(f"{name} must be an array of numbers; got {array.dtype} {array.shape}.")
    array = array.astype(np.int64) if array.dtype.kind in "iub" else array
    array = array.astype(np.float64) if array.dtype == np.float16 else array
    if array.dtype.kind == "f" and (bad := np.count_nonzero(~np.isfinite(array))):
        raise DataError(f"{name} must be finite; {bad:,} of its {array.size:,} numbers are NaN or infinite.")
    return array


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
    `fraction` of all pairs, tested on all the others. Fashion-MNIST is like MNIST; breast-cancer, a table of 30
    numbers and two classes, like the digits. What is registered says itself what it is
    (`grokutils.experiment.registry`).

    Raises
    ------
    DataError : MNIST is neither there nor to be downloaded, a file is damaged, or the user's own data are not at hand.
    ConfigError : a seed that is negative, fractional or beyond 2^32 - 1.
    """
    if config.dataset == "modular-addition":
        return _modular_addition(config, seed)
    traits = data_traits(config.dataset)
    if not registry.is_bundled("dataset", config.dataset):
        return _own(config, seed)
    if config.dataset in _FOLDERS:
        x, y, x_test, y_test, source = _mnist(paths.data_root(), _FOLDERS[config.dataset])
    else:
        x, y, source = _digits() if config.dataset == "digits" else _breast_cancer()
        x_test = None
    classes = traits.classes(config)
    rng = np.random.default_rng([config.replace(seed=seed).seed, 0])
    chosen = np.concatenate(
        [rng.choice(np.flatnonzero(y == c), config.per_class, replace=False) for c in range(classes)]
    )
    if x_test is None:
        rest = np.setdiff1d(np.arange(len(y)), chosen)
        x_test, y_test = x[rest], y[rest]
    y_train = _relabelled(y[chosen], config.random_labels, classes, rng)
    return _dataset(x[chosen], y_train, x_test, y_test, traits.image_shape, source)


def _own(config: RunConfig, seed: int) -> Dataset:
    """What the user registered, or gave to `grokutils.train` in this process."""
    if config.own is not None and config.own.recorded:
        raise DataError(f"{config.model!r} was trained by another loop, whose data are not known here.")
    wanted = "" if config.own is None else config.own.data
    found = registry.recall("dataset", wanted) if wanted else None
    if found is None:
        found = registry.find("dataset", config.dataset)
        if found is None or (wanted and identify(found) != wanted):
            what = "is not registered here" if found is None else "is another one here than the run was trained on"
            raise DataError(
                f"the data set {config.dataset!r} {what}; load the plugin that registers it (--plugin, load_plugin or "
                "GROKUTILS_PLUGINS)."
            )
    return dataset_of(found, config.dataset, seed)


def dataset_of(data: Any, name: str, seed: int) -> Dataset:
    """The data of a seed: of a function of the seed, or of what is the same for every seed.

    Raises
    ------
    DataError : the function raises, or what it returns is no data (`make_dataset`).
    """
    if callable(data) and not isinstance(data, Dataset):
        try:
            data = data(seed) if inspect.signature(data).parameters else data()
        except Exception as error:  # the user's own code may raise anything
            if isinstance(error, DataError):
                raise
            why = " ".join(str(error).split())
            raise DataError(f"the data set {name!r} cannot be made: {type(error).__name__}: {why}.") from error
    return make_dataset(data, name)


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


def _of_scikit_learn(loader: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn import datasets  # slow to import, and only these need it
    except ModuleNotFoundError:
        raise DataError(f"{what} with scikit-learn, which is not installed; `pip install 'grokutils[paper]'` brings it.") from None
    return getattr(datasets, loader)(return_X_y=True)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray, str]:
    images, labels = _of_scikit_learn("load_digits", "the small digits come")
    return images / 16.0, labels.astype(np.int64), "scikit-learn's embedded digits (8 x 8 pixels)"


@functools.cache
def _breast_cancer() -> tuple[np.ndarray, np.ndarray, str]:
    x, labels = _of_scikit_learn("load_breast_cancer", "the table of breast cancers comes")
    return (x - x.mean(0)) / x.std(0), labels.astype(np.int64), "scikit-learn's breast cancer table, standardised"


#: Folders of a torchvision root.
_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


@functools.lru_cache(maxsize=2)
def _mnist(root: Path, folder: str = "MNIST") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    raw = root / folder / "raw"
    if not all((raw / name).is_file() for name in _MD5):
        _download(root, folder)
    arrays = {name: _read_idx(raw / name) for name in _MD5}
    x, y = arrays["train-images-idx3-ubyte"][:_POOL], arrays["train-labels-idx1-ubyte"][:_POOL]
    x_test, y_test = arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"]
    return _pixels(x), y.astype(np.int64), _pixels(x_test), y_test.astype(np.int64), folder


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
    # torchvision checks the archives of either when it downloads them; those of MNIST are often copied by hand
    if path.parts[-3] == "MNIST" and hashlib.md5(content, usedforsecurity=False).hexdigest() not in _MD5[path.name]:
        raise DataError(f"{path} has been altered: its MD5 is not that of MNIST's file of this name. {_REPAIR}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


_REPAIR = "Delete it, and it is downloaded again."


def _download(root: Path, folder: str) -> None:
    """Fetch MNIST, or Fashion-MNIST, into `root` by torchvision, which verifies the archives' checksums."""
    try:
        # beside a CPU build of PyTorch this raises RuntimeError, since the wheel registers CUDA operators
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        build = "is not installed" if isinstance(error, ImportError) else (
            "cannot be imported beside this build of PyTorch (install the torch and torchvision wheels of "
            "one build, both CPU or both CUDA)"
        )
        raise DataError(_unavailable(root, folder, f"torchvision, which downloads it, {build}")) from None
    why, kind = "", getattr(datasets, folder)
    for mirror in kind.mirrors:  # torchvision tries the next one only where a server refuses, not where it garbles its reply
        try:
            type(folder, (kind,), {"mirrors": [mirror]})(str(root), train=True, download=True)
            return
        except (OSError, RuntimeError, HTTPException, EOFError, zlib.error, ValueError) as error:
            why = f"{mirror}: " + (" ".join(str(error).split()) or type(error).__name__)  # torchvision's spans lines
    raise DataError(_unavailable(root, folder, f"the download failed ({why})")) from None


def _unavailable(root: Path, folder: str, why: str) -> str:
    return (
        f"{folder} is not in {root}, and {why}. Three ways out: "
        f"set GROKUTILS_DATA to a folder that holds {folder}/raw/*-ubyte; "
        "connect to the network so that it can be downloaded; "
        "or use the express recipe, whose data ships with scikit-learn."
    )
