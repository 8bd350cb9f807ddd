"""From any model to one tidy table: alpha, traps and controls of every weight matrix, with a verdict.

>>> import torch
>>> torch.manual_seed(0)                                                  # doctest: +SKIP
>>> net = torch.nn.Sequential(torch.nn.Linear(300, 100), torch.nn.ReLU(), torch.nn.Linear(100, 50))
>>> diagnose(net)[["layer", "alpha", "traps", "verdict"]]                 # doctest: +SKIP
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import torch
from tqdm.auto import tqdm

from . import baselines, data, record
from .measure import l2_norm
from .record import Record
from .spectra import MIN_EIGENVALUES, alpha_hat, as_matrix, erg_tail, esd, fit_power_law, stable_rank
from .traps import TrapResult, find_traps, mp_ks

__all__ = ["THRESHOLDS", "Thresholds", "diagnose", "diagnose_matrix", "matrices", "verdict"]


@dataclass(frozen=True)
class Thresholds:
    """Where one verdict ends and the next begins; the only place.

    P1 (section 3.1) calls alpha between 2 and 5 or 6 well trained, below 2 very heavy-tailed, above random-like.
    """

    over_correlated_below: float = 2.0
    under_trained_above: float = 6.0
    #: Mean number of traps over the shuffles; half a trap means that most shuffles show one.
    trapped_from: float = 0.5


THRESHOLDS = Thresholds()


def diagnose(
    source: Any,
    *,
    shuffles: int = 20,
    seed: int = 0,
    method: str = "bulk",
    bootstrap: int = 0,
    thresholds: Thresholds = THRESHOLDS,
    progress: bool = True,
) -> pd.DataFrame:
    """A row for each weight matrix: spectrum, traps, controls, verdict.

    >>> diagnose(np.random.default_rng(0).normal(size=(200, 100))).verdict[0]
    'under-trained'

    Parameters
    ----------
    source : what to look at:

        - a matrix (NumPy array or tensor);
        - a `torch.nn.Module`, or a mapping of names to arrays such as a ``state_dict``;
        - the path of a ``.safetensors`` file (pickled checkpoints are refused: reading one can run code);
        - a `Record`: all saved steps and members, kept in the record so that a second call is instant.

    shuffles, seed, method : of the trap search, see `grokutils.traps.find_traps`
    bootstrap : resamples for an interval of alpha (`grokutils.spectra.fit_power_law`)
    thresholds : where the verdicts change

    Returns
    -------
    DataFrame with ``layer``, ``rows``, ``columns``; ``alpha`` with ``alpha_sigma`` (standard error), ``xmin``,
    ``D``, ``n_tail``, and ``alpha_clipped`` (with WeightWatcher's ``clip_xmax``); ``alpha_hat``,
    ``stable_rank``, ``erg_count``, ``erg_gap``; ``traps`` (mean over shuffles), ``traps_std``, ``sigma_mp``,
    ``trap_strength`` (largest shuffled eigenvalue over the threshold, mean over shuffles), ``ks_D`` and
    ``ks_p`` (Monte-Carlo, first shuffle); the controls of `grokutils.baselines.weight_controls` and
    ``l2_norm``; ``verdict`` and ``reason``. For a record ``step``, ``member``, ``seed`` and
    ``weight_decay`` come first. Convolutions are read as (out channels) x (everything else), a fused
    attention projection as its three matrices; biases and other vectors are left out.

    Raises
    ------
    TypeError, ValueError : a source of another kind, one without matrices, or with NaN or infinite entries.
    FileNotFoundError : no such file.
    """
    options = dict(shuffles=shuffles, seed=seed, method=method, bootstrap=bootstrap)
    if isinstance(source, Record):
        return _with_verdicts(_diagnose_record(source, options, progress), thresholds)
    found = matrices(source)
    bar = tqdm(found.items(), desc="layers", delay=3, disable=not progress)
    rows = [{"layer": name, **diagnose_matrix(matrix, **options)[0]} for name, matrix in bar]
    return _with_verdicts(pd.DataFrame(rows), thresholds)


def diagnose_matrix(
    W: Any, *, shuffles: int = 20, seed: int = 0, method: str = "bulk", bootstrap: int = 0
) -> tuple[dict[str, Any], np.ndarray, TrapResult]:
    """The numbers of one matrix, its eigenvalues and its shuffles; see `diagnose`.

    A matrix too small or too degenerate for a fit or a trap search has NaN there and says why in
    ``alpha_reason`` and ``traps_reason``.
    """
    matrix = as_matrix(W)
    eigenvalues = esd(matrix)
    fit = fit_power_law(eigenvalues, bootstrap=bootstrap, seed=seed)
    clipped = fit_power_law(eigenvalues, fix_fingers="clip_xmax")
    erg = erg_tail(eigenvalues, fit.xmin)
    traps = find_traps(matrix, seed=seed, shuffles=shuffles, method=method)
    ok = traps.status == "ok"
    ks = mp_ks(traps.eigenvalues[:1], matrix.shape) if ok else None
    row = {
        "rows": matrix.shape[0],
        "columns": matrix.shape[1],
        "alpha": fit.alpha,
        "alpha_sigma": fit.sigma,
        "xmin": fit.xmin,
        "D": fit.D,
        "n_tail": fit.n_tail,
        "alpha_clipped": clipped.alpha,
        "alpha_hat": alpha_hat(fit.alpha, eigenvalues),
        "stable_rank": stable_rank(eigenvalues),
        "erg_count": erg.count,
        "erg_gap": erg.relative_gap,
        "traps": traps.mean,
        "traps_std": traps.std,
        "sigma_mp": float(np.nanmean(traps.sigma_mp)) if ok else math.nan,
        "trap_strength": float(np.mean(traps.eigenvalues[:, -1] / traps.threshold)) if ok else math.nan,
        "ks_D": float(ks.D[0]) if ks else math.nan,
        "ks_p": float(ks.p_monte_carlo[0]) if ks else math.nan,
        **baselines.weight_controls(matrix, np.sqrt(eigenvalues)),
        "l2_norm": l2_norm({".weight": matrix}),
        "alpha_reason": fit.reason,
        "traps_reason": traps.reason,
    }
    if fit.interval:
        row["alpha_low"], row["alpha_high"] = fit.interval
    return row, eigenvalues, traps


def verdict(row: Mapping[str, Any], thresholds: Thresholds = THRESHOLDS) -> tuple[str, str]:
    """What one row of the table says of its matrix, and why.

    >>> verdict({"alpha": 3.1, "traps": 0.0})
    ('well-trained', 'alpha 3.1 lies between 2 and 6, and no traps')

    Traps come first, then alpha; "undetermined" where neither could be measured.
    """
    t, alpha, traps = thresholds, row["alpha"], row["traps"]
    low, high = t.over_correlated_below, t.under_trained_above
    if traps >= t.trapped_from:
        also = f", and alpha {alpha:.1f} is below {low:g}" if alpha < low else ""
        return "trapped", f"{traps:.1f} eigenvalues of the shuffled matrix stand out of its random bulk{also}"
    if math.isnan(alpha):
        return "undetermined", f"no power law could be fitted: {row.get('alpha_reason') or 'unknown'}"
    if alpha < low:
        return "over-correlated", f"alpha {alpha:.1f} is below {low:g}, and no traps"
    if alpha > high:
        return "under-trained", f"alpha {alpha:.1f} is above {high:g}: close to random"
    return "well-trained", f"alpha {alpha:.1f} lies between {low:g} and {high:g}, and no traps"


def matrices(source: Any) -> dict[str, np.ndarray]:
    """The weight matrices in a matrix, module, mapping or safetensors file, by layer name.

    >>> list(matrices({"fc1.weight": np.ones((3, 4)), "fc1.bias": np.ones(3)}))
    ['fc1']

    Raises as `diagnose` does.
    """
    if isinstance(source, torch.nn.Module):
        arrays: Iterable[tuple[str, Any]] = source.named_parameters()
    elif isinstance(source, Mapping):
        arrays = source.items()
    elif isinstance(source, (str, os.PathLike)):
        arrays = _read_file(Path(source)).items()
    elif isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        return {"matrix": as_matrix(source)}
    else:
        raise TypeError(
            "source must be a matrix, a torch module, a mapping of names to arrays, the path of a safetensors "
            f"file or a Record; got {type(source).__name__}."
        )
    found: dict[str, np.ndarray] = {}
    for name, array in arrays:
        shape = getattr(array, "shape", ())
        if len(shape) < 2 or 0 in shape:
            continue
        layer = str(name).removesuffix(".weight").removesuffix("_weight")
        flat = array.reshape(shape[0], -1)
        if layer.endswith("in_proj") and shape[0] == 3 * shape[1]:
            third = shape[1]
            for k, part in enumerate("qkv"):
                found[f"{layer}.{part}"] = as_matrix(flat[k * third : (k + 1) * third], name)
        else:
            found[layer] = as_matrix(flat, name)
    if not found:
        raise ValueError("the source holds no weight matrix: nothing in it has two dimensions or more.")
    return found


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        # as tensors, since NumPy has no bfloat16
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no safetensors file ({error}). Pickled checkpoints are not read, since reading one "
            "can run code; save yours with safetensors.torch.save_file(model.state_dict(), path)."
        ) from None


def _with_verdicts(frame: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    words = [verdict(row, thresholds) for row in frame.to_dict("records")]
    return frame.assign(verdict=[w for w, _ in words], reason=[r for _, r in words])


# -- records --------------------------------------------------------------------------------------------------

# How many of the shuffled spectra a record keeps, so that figures can be redrawn without weights.
_KEPT_SHUFFLES = 3


def _diagnose_record(source: Record, options: dict[str, Any], progress: bool) -> pd.DataFrame:
    """Rows of all saved steps; those the record holds already, made with the same options, are kept."""
    diagnostics, spectra, measures = _stored(source, options)
    done = set(zip(diagnostics.step, diagnostics.member, strict=True)) if len(diagnostics) else set()
    networks = source.config.networks
    todo = [(s, m) for s in source.steps_saved for m in range(len(networks)) if (s, m) not in done]
    if todo:
        rows, eigenvalues, scores = [], [], []
        datasets = {m: data.load(source.config, network.seed) for m, network in enumerate(networks)}
        for step, member in tqdm(todo, desc=f"spectra of {source.name}", disable=not progress):
            weights = source.weights(step, member)
            if not all(np.isfinite(w).all() for w in weights.values()):
                continue  # a diverged member has no spectrum
            where = {"step": step, "member": member}
            where |= {"seed": networks[member].seed, "weight_decay": networks[member].weight_decay}
            scores.append(where | _baselines(source, weights, datasets[member]))
            for layer, matrix in matrices(weights).items():
                row, own, traps = diagnose_matrix(matrix, **options)
                rows.append({**where, "layer": layer, **row})
                if min(matrix.shape) >= MIN_EIGENVALUES:
                    kept = traps.eigenvalues[:_KEPT_SHUFFLES]
                    for shuffle, values in enumerate([own, *kept], start=-1):
                        place = {"step": step, "member": member, "layer": layer, "shuffle": shuffle}
                        eigenvalues.append(place | {"eigenvalues": values.astype(np.float32)})
        diagnostics = _joined(diagnostics, rows)
        spectra = _joined(spectra, eigenvalues)
        measures = _joined(measures, scores)
        with record.locked(source.folder):
            record.write_parquet(source.folder / "spectra.parquet", spectra)
            record.write_parquet(source.folder / "baselines.parquet", measures)
            record.write_parquet(source.folder / "diagnostics.parquet", diagnostics.assign(**options))
    return diagnostics[diagnostics.step <= source.step].reset_index(drop=True)


def _stored(source: Record, options: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    names = ("diagnostics", "spectra", "baselines")
    if not all((source.folder / f"{name}.parquet").is_file() for name in names):
        return pd.DataFrame(), pd.DataFrame(), pd.DataFrame()
    frames = [record.read_parquet(source.folder / f"{name}.parquet") for name in names]
    same = all((frames[0][key] == value).all() for key, value in options.items())
    if not same:
        return pd.DataFrame(), pd.DataFrame(), pd.DataFrame()
    return frames[0].drop(columns=list(options)), frames[1], frames[2]


def _joined(frame: pd.DataFrame, rows: list[dict[str, Any]]) -> pd.DataFrame:
    new = pd.DataFrame(rows)
    both = new if frame.empty else pd.concat([frame, new], ignore_index=True)
    return both.sort_values(["step", "member"], kind="stable", ignore_index=True) if len(both) else both


def _baselines(source: Record, weights: Mapping[str, np.ndarray], dataset: data.Dataset) -> dict[str, float]:
    """The progress measures of one network, by both definitions."""
    module = source.as_module(weights)
    x = torch.from_numpy(dataset.x_train).to(next(module.parameters()).dtype)
    return {
        "activation_sparsity_text": baselines.activation_sparsity_text(module, x),
        "activation_sparsity_notebook": baselines.activation_sparsity_notebook(module, x),
        "absolute_weight_entropy_text": baselines.absolute_weight_entropy_text(weights),
        "absolute_weight_entropy_notebook": baselines.absolute_weight_entropy_notebook(weights),
        "circuit_complexity_text": baselines.circuit_complexity_text(module, x),
        "circuit_complexity_notebook": baselines.circuit_complexity_notebook(module, x),
        "l2_norm": l2_norm(weights),
    }
