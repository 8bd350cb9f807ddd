"""The measures that the papers hold alpha against, and the cheap controls that readers asked for.

Three of the four measures are defined in one way in the text of P1 (arXiv 2506.04434, Appendix B) and
computed in another way in the authors' published notebook. Both are here: ``..._text`` and
``..._notebook``. The fourth, the l2 norm, is `grokutils.spectra.measure.l2_norm`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from grokutils.spectra.alpha import as_matrix
from grokutils.spectra.measure import l2_norm, matrices

try:
    from torch.func import functional_call
except ModuleNotFoundError:  # before torch 2.0
    from torch.nn.utils.stateless import functional_call  # type: ignore[assignment]

__all__ = [
    "absolute_weight_entropy_notebook",
    "absolute_weight_entropy_text",
    "activation_sparsity_notebook",
    "activation_sparsity_text",
    "circuit_complexity_notebook",
    "circuit_complexity_text",
    "effective_rank",
    "hidden_activations",
    "progress_measures",
    "weight_controls",
]

# Images in the one fixed batch that the published notebook evaluates circuit complexity on.
NOTEBOOK_BATCH = 200


def hidden_activations(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of a module's ReLUs, in the order in which they run, each (images, units).

    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> [tuple(a.shape) for a in hidden_activations(net, torch.zeros(5, 2))]
    [(5, 3)]

    Raises
    ------
    ValueError : a module without a ReLU module.
    """
    found = _run(module, x)[0]
    if not found:
        raise ValueError(f"the module must contain torch.nn.ReLU modules; {type(module).__name__} has none.")
    return found


def _run(module: torch.nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Outputs of the ReLUs, and of the module."""
    found: list[torch.Tensor] = []
    hooks = [
        m.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        for m in module.modules()
        if isinstance(m, torch.nn.ReLU)
    ]
    try:
        with torch.no_grad():
            return found, module(x)
    finally:
        for hook in hooks:
            hook.remove()


def progress_measures(
    module: torch.nn.Module,
    weights: Mapping[str, np.ndarray],
    x: torch.Tensor,
    *,
    draws: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """All measures of this module, by both definitions, and the l2 norm; from one pass over the images.

    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
    >>> list(progress_measures(net, weights, torch.rand(5, 2)))[:2]
    ['activation_sparsity_text', 'activation_sparsity_notebook']

    Parameters
    ----------
    module : the network; its ReLUs must be modules, otherwise the sparsity is NaN
    weights : the same network's, by their `torch.nn` names
    x : the training images, as the module takes them
    draws, seed : of the circuit complexity
    """
    activations, output = _run(module, x)
    before = torch.log_softmax(output, dim=-1)
    batch = _fixed_batch(x)
    text = _divergence(module, x, 0.1, 1.0, draws, seed, before).sum(dim=1).mean()
    notebook = _divergence(module, x[batch], 0.5, 2.0, draws, seed, before[batch]).mean()
    nan = float("nan")
    return {
        "activation_sparsity_text": _sparsity(activations, 1.0) if activations else nan,
        "activation_sparsity_notebook": _sparsity(activations[:1], 1.0) if activations else nan,
        "absolute_weight_entropy_text": absolute_weight_entropy_text(weights),
        "absolute_weight_entropy_notebook": absolute_weight_entropy_notebook(weights),
        "circuit_complexity_text": float(text),
        "circuit_complexity_notebook": float(notebook),
        "l2_norm": l2_norm(weights),
    }


def _sparsity(activations: list[torch.Tensor], tau: float) -> float:
    return float(np.mean([(a < tau).double().mean().item() for a in activations]))


def _fixed_batch(x: torch.Tensor) -> torch.Tensor:
    """Which images make the one fixed batch: spread evenly, since a training set is in the order of its
    classes."""
    size = min(NOTEBOOK_BATCH, len(x))
    return torch.arange(size) * len(x) // size


def activation_sparsity_text(module: torch.nn.Module, x: torch.Tensor, tau: float = 1.0) -> float:
    """Share of hidden activations below `tau`, averaged over layers (P1, equation 8, for each layer).

    The text leaves `tau` open; 1 is what the notebook uses.
    """
    return _sparsity(hidden_activations(module, x), tau)


def activation_sparsity_notebook(module: torch.nn.Module, x: torch.Tensor) -> float:
    """Share of the *first* hidden layer's activations below 1, as the published notebook computes it."""
    return _sparsity(hidden_activations(module, x)[:1], 1.0)


def absolute_weight_entropy_text(weights: Mapping[str, np.ndarray]) -> float:
    """-sum |w| log |w| over all weight matrices, natural logarithm (P1, equation 9), with 0 log 0 = 0.

    >>> absolute_weight_entropy_text({"fc1.weight": np.array([[1.0, 0.0]])})
    0.0
    """
    total = 0.0
    for matrix in _matrices(weights):
        size = np.abs(matrix[matrix != 0]).astype(np.float64)
        total -= float(np.sum(size * np.log(size)))
    return total + 0.0  # not -0.0


def absolute_weight_entropy_notebook(weights: Mapping[str, np.ndarray]) -> float:
    """-sum |w| log(|w| + 1e-8) over the *first* matrix, as the published notebook computes it."""
    size = np.abs(_matrices(weights)[0]).astype(np.float64)
    return float(-np.sum(size * np.log(size + 1e-8)))


def circuit_complexity_text(
    module: torch.nn.Module, x: torch.Tensor, *, share: float = 0.1, draws: int = 8, seed: int = 0
) -> float:
    """Kullback-Leibler divergence, in nats, between the outputs before and after a tenth of the weights is
    set to zero, *summed* over all images (P1, equation 10) and averaged over `draws` random choices.

    Raises
    ------
    ValueError : a share outside 0 to 1, or no draws.
    """
    return float(_divergence(module, x, share, 1.0, draws, seed).sum(dim=1).mean())


def circuit_complexity_notebook(
    module: torch.nn.Module, x: torch.Tensor, *, draws: int = 8, seed: int = 0
) -> float:
    """The same with *half* of the weights dropped and the rest doubled, *averaged* over one batch of 200
    images, as the published notebook computes it (dropout on the weights); averaged over `draws`. The images
    are spread evenly over `x`."""
    return float(_divergence(module, x[_fixed_batch(x)], 0.5, 2.0, draws, seed).mean())


def _divergence(
    module: torch.nn.Module,
    x: torch.Tensor,
    share: float,
    scale: float,
    draws: int,
    seed: int,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """KL(softmax of the outputs || softmax with weights dropped), (draws, images). ``before`` is the
    logarithm of the first softmax, if it is at hand."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1; got {share!r}.")
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws!r}.")
    generator = torch.Generator().manual_seed(seed)
    state = {name: p.detach() for name, p in module.named_parameters()}
    rows = []
    with torch.no_grad():
        if before is None:
            before = torch.log_softmax(module(x), dim=-1)
        for _ in range(draws):
            dropped = dict(state)
            for name, w in state.items():
                if w.ndim >= 2:
                    keep = torch.rand(w.shape, generator=generator) >= share
                    dropped[name] = w * keep.to(w) * scale
            after = torch.log_softmax(functional_call(module, dropped, (x,)), dim=-1)
            rows.append((before.exp() * (before - after)).sum(-1))
    return torch.stack(rows)


def effective_rank(singular_values: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007).

    >>> effective_rank(np.array([2.0, 2.0, 0.0]))
    2.0

    NaN if all are zero.
    """
    s = np.asarray(singular_values, dtype=np.float64)
    if s.ndim != 1 or s.size == 0 or not np.all(np.isfinite(s)) or np.any(s < 0):
        raise ValueError(
            f"singular_values must be a vector of finite numbers of at least 0; got shape {s.shape}."
        )
    if s.max() == 0:
        return float("nan")
    p = s[s > 0] / s.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def weight_controls(weight: np.ndarray, singular_values: np.ndarray | None = None) -> dict[str, float]:
    """What a trap count or an alpha has to beat, for one matrix.

    >>> round(weight_controls(np.eye(3))["effective_rank"], 3)
    3.0

    Parameters
    ----------
    weight : matrix (rows, columns); see `grokutils.spectra.alpha.as_matrix` for what is accepted and what raises
    singular_values : if they are at hand already

    Returns
    -------
    dict with ``max_over_std`` (largest |w - mean| in standard deviations), ``kurtosis`` (3 for a Gaussian),
    ``mean_over_std``, ``spectral_norm`` and ``effective_rank``. Ratios of a constant matrix are NaN.
    """
    w = as_matrix(weight, "weight")
    s = np.linalg.svd(w, compute_uv=False) if singular_values is None else np.asarray(singular_values)
    return {**_shape_of_entries(w), "spectral_norm": float(s.max()), "effective_rank": effective_rank(s)}


def _shape_of_entries(w: np.ndarray) -> dict[str, float]:
    """The three controls that depend neither on the scale nor on the places of the entries."""
    mean = w.mean()
    centred = w - mean
    largest = max(centred.max(), -centred.min())
    if w.min() == w.max() or not largest > 0:  # the mean of equal numbers is off by rounding
        return dict.fromkeys(("max_over_std", "kurtosis", "mean_over_std"), float("nan"))
    centred /= largest  # no power overflows
    squares = np.square(centred).ravel()
    variance = squares.mean()
    return {
        "max_over_std": float(1.0 / np.sqrt(variance)),
        "kurtosis": float(np.dot(squares, squares) / squares.size / variance**2),
        "mean_over_std": float(mean / largest / np.sqrt(variance)),
    }


def _matrices(weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    found = [np.asarray(w) for w in matrices(weights).values()]
    if not found:
        raise ValueError("weights must hold at least one matrix; got none.")
    return found
