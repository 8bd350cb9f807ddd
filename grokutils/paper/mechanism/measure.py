"""What is measured of a network on its path, beside how far it has come.

>>> displacement({"fc1.weight": np.array([[3.0, 4.0]])}, {"fc1.weight": np.array([[3.0, 5.0]])})
0.2
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from grokutils.experiment.data import Dataset
from grokutils.spectra.alpha import esd, fit_power_law
from grokutils.spectra.traps import find_traps

__all__ = ["Ruler", "displacement", "scores"]

Weights = Mapping[str, np.ndarray]

#: Layers whose spectra are followed, and shuffles for their traps.
LAYERS, SHUFFLES = ("fc1", "fc2"), 10
#: A pixel is rare if at most this share of the training images use it.
RARE = 0.1
#: Of the least squares that read classes from a layer, as a share of the mean square.
_RIDGE = 1e-3


def matrices(weights: Weights) -> np.ndarray:
    """All matrices as one vector."""
    return np.concatenate([np.ravel(w).astype(np.float64) for n, w in weights.items() if n.endswith(".weight")])


def displacement(start: Weights, now: Weights) -> float:
    """Norm of the change of all matrices over their norm at the start."""
    before = matrices(start)
    return float(np.linalg.norm(matrices(now) - before) / np.linalg.norm(before))


def forward(weights: Weights, x: np.ndarray) -> list[np.ndarray]:
    """What each layer gives: the hidden ones after the ReLU, and last the outputs."""
    found, depth = [], sum(name.endswith(".weight") for name in weights)
    for k in range(1, depth + 1):
        x = x @ weights[f"fc{k}.weight"].T + weights[f"fc{k}.bias"]
        x = np.maximum(x, 0) if k < depth else x
        found.append(x)
    return found


def scores(weights: Weights, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Accuracy and mean squared error on one-hot targets."""
    out = forward(weights, x)[-1]
    return _accuracy(out, y), float(np.square(out - np.eye(out.shape[1])[y]).mean())


def _accuracy(out: np.ndarray, y: np.ndarray) -> float:
    return float((out.argmax(1) == y).mean()) if len(y) else np.nan


class Ruler:
    """Measures the networks of one path against the one that it began with.

    Parameters
    ----------
    start : the weights at the fork
    data : of the seed
    """

    def __init__(self, start: Weights, data: Dataset):
        self.start = {name: np.asarray(w, np.float64) for name, w in start.items()}
        self.data = data
        self._start = matrices(self.start)
        used = (data.x_train != 0).mean(0)
        self.unused, self.rare = used == 0, (used > 0) & (used <= RARE)
        odd = self.unused | self.rare
        #: Test images that no rare or unused pixel is part of.
        self._plain = ~(data.x_test[:, odd] != 0).any(1)
        self._blanked = np.where(odd, 0.0, data.x_test)
        self._half = np.random.default_rng(0).random(len(data.x_test)) < 0.5
        self._begun = forward(self.start, data.x_test)

    def measure(self, weights: Weights) -> dict[str, float]:
        """A row of the record.

        ``displacement``, that of each layer, its part orthogonal to the start, the angle to it and its tangent, the
        ``rotation``; ``norm`` over that at the fork; accuracies and losses; alpha, traps and the largest entry over the standard deviation;
        test accuracy as read anew from each hidden layer by least squares on the training images (``probe``) and
        on half of the test images, scored on the other half (``known``); linear CKA of each hidden layer
        with itself at the fork; shares of the first layer's squared change, and test accuracies, that have to do with
        rare and unused pixels.
        """
        w = {name: np.asarray(a, np.float64) for name, a in weights.items()}
        row = self._where(w)
        if not np.isfinite(row["displacement"]):
            return row
        d = self.data
        row["train_accuracy"], row["train_loss"] = scores(w, d.x_train, d.y_train)
        layers, train = forward(w, d.x_test), forward(w, d.x_train)
        row["test_accuracy"] = _accuracy(layers[-1], d.y_test)
        row["test_loss"] = float(np.square(layers[-1] - np.eye(10)[d.y_test]).mean())
        row["agreement"] = float((layers[-1].argmax(1) == self._begun[-1].argmax(1)).mean())
        for k in range(1, len(layers)):
            read = lambda a, b, c, y: _accuracy(_readout(a, b, c), y)  # noqa: E731
            row[f"probe_fc{k}"] = read(train[k - 1], d.y_train, layers[k - 1], d.y_test)
            half = self._half
            row[f"known_fc{k}"] = read(layers[k - 1][half], d.y_test[half], layers[k - 1][~half], d.y_test[~half])
            row[f"cka_fc{k}"] = _cka(layers[k - 1], self._begun[k - 1])
        row |= self._pixels(w, layers[-1])
        for layer in LAYERS:
            W = w[f"{layer}.weight"]
            row[f"alpha_{layer}"] = fit_power_law(esd(W)).alpha
            row[f"traps_{layer}"] = find_traps(W, shuffles=SHUFFLES).mean
            row[f"max_over_std_{layer}"] = float(np.abs(W - W.mean()).max() / W.std())
        return row

    def _where(self, w: Weights) -> dict[str, float]:
        now, before = matrices(w), self._start
        size = np.linalg.norm(before)
        along = now @ before / size
        row = {
            "displacement": np.linalg.norm(now - before) / size,
            "orthogonal": np.sqrt(max(now @ now - along**2, 0.0)) / size,
            "rotation": np.sqrt(max(now @ now - along**2, 0.0)) / along if along > 0 else np.inf,
            "angle": np.degrees(np.arccos(np.clip(along / np.linalg.norm(now), -1, 1))),
            "norm": np.linalg.norm(now) / size,
        }
        for name, start in self.start.items():
            layer, _, kind = name.partition(".")
            key = f"displacement_{layer}" + ("" if kind == "weight" else "_bias")
            row[key] = np.linalg.norm(w[name] - start) / np.linalg.norm(start)
            if kind == "weight":
                row[f"norm_{layer}"] = np.linalg.norm(w[name]) / np.linalg.norm(start)
        return {key: float(value) for key, value in row.items()}

    def _pixels(self, w: Weights, out: np.ndarray) -> dict[str, float]:
        d, first = self.data, "fc1.weight"
        change = np.square(w[first] - self.start[first]).sum(0)
        total = max(change.sum(), 1e-300)
        right = out.argmax(1) == d.y_test
        back = np.where(self.rare, self.start[first], w[first])
        none = np.where(self.unused, 0.0, w[first])
        return {
            "change_rare": float(change[self.rare].sum() / total),
            "change_unused": float(change[self.unused].sum() / total),
            "test_plain": float(right[self._plain].mean()) if self._plain.any() else np.nan,
            "test_others": float(right[~self._plain].mean()) if (~self._plain).any() else np.nan,
            "test_blanked": _accuracy(forward(w, self._blanked)[-1], d.y_test),
            "test_rare_back": scores({**w, first: back}, d.x_test, d.y_test)[0],
            "test_unused_off": scores({**w, first: none}, d.x_test, d.y_test)[0],
        }


def _readout(features: np.ndarray, y: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What ridge regression of one-hot classes on some features says of others."""
    mean, target = features.mean(0), np.eye(10)[y]
    centred = features - mean
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += _RIDGE * max(np.trace(gram) / len(gram), 1e-12)
    coefficients = np.linalg.solve(gram, centred.T @ (target - target.mean(0)))
    return (others - mean) @ coefficients + target.mean(0)


def _cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019)."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float(np.square(a.T @ b).sum() / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))
