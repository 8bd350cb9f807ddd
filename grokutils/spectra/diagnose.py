"""From any model to one tidy table: alpha, traps and controls of every weight matrix, with a verdict.

>>> import torch
>>> net = torch.nn.Sequential(torch.nn.Linear(300, 100), torch.nn.ReLU(), torch.nn.Linear(100, 50))
>>> diagnose(net, shuffles=3)[["layer", "rows", "columns", "traps"]].values.tolist()
[['0', 100, 300, 0.0], ['2', 50, 100, 0.0]]
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from grokutils.spectra.alpha import CUTOFF
from grokutils.spectra.arrays import NotMeasured
from grokutils.spectra.harm import harm_of, probes_of
from grokutils.spectra.layers import Layer, NotALayer, Survey, is_matrix, is_module, survey
from grokutils.spectra.matrix import Options, diagnose_layer, diagnose_matrix
from grokutils.spectra.table import not_measured, too_much
from grokutils.spectra.unwrapped import plain_name
from grokutils.spectra.verdict import THRESHOLDS, Thresholds, verdict
from grokutils.util.columns import DIAGNOSTICS, HARM
from grokutils.util.progress import tqdm

__all__ = ["MuchNotMeasured", "diagnose"]


class MuchNotMeasured(UserWarning):
    """Over a tenth of a model's parameters are in no row of the table."""


def diagnose(
    source: Any,
    *,
    shuffles: int = 20,
    seed: int = 0,
    method: str = "bulk",
    bootstrap: int = 0,
    cutoff: float | str = CUTOFF,
    ks_draws: int = 400,
    exact: bool = False,
    thresholds: Thresholds = THRESHOLDS,
    progress: bool = True,
    harmful: bool = False,
    inputs: Any = None,
    layers: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A row for each weight matrix: spectrum, traps, controls, verdict.

    >>> diagnose(np.random.default_rng(0).normal(size=(200, 100))).reason[0]
    'alpha 5.7 lies between 2 and 6, but no eigenvalue stands out of the random bulk; no traps'

    Parameters
    ----------
    source : what to look at:

        - a `torch.nn.Module`, or a mapping of names to arrays such as a ``state_dict``;
        - the path of a file (.safetensors, .pt, .pth, .bin, .ckpt, .npz, .npy, .gguf, .onnx), of an index of shards, or of a
          model's folder; what cannot be read without running code is refused;
        - a matrix (rows, columns): NumPy array, tensor of any real type, or rows of numbers;
        - an object with a method ``diagnose``, such as a `grokutils.Record`: whatever that says.

        Which arrays of a model are layers, and how convolutions and fused projections become matrices, is in
        `grokutils.spectra.layers.find_layers`, which `grokutils.spectra.layers.layer_kind` extends.
    shuffles : shuffled copies of each matrix that traps are counted in; 0 leaves traps out and is fast
    seed : of the shuffles: a whole number, or a NumPy Generator or RandomState that they are drawn from
    method : "bulk", or "weightwatcher" for WeightWatcher's own fit (`grokutils.spectra.traps.count_traps`): equal to it for dense layers,
        embeddings and 1 x 1 convolutions. Larger convolutions it takes apart, recurrent layers and one-dimensional convolutions it
        does not look at
    bootstrap : resamples for an interval of alpha
    cutoff : eigenvalues up to this count as zero in the fit; "relative" for models with very small weights
        (`grokutils.spectra.alpha.fit_power_law`)
    ks_draws : random matrices behind ``ks_p``; 0 leaves the ``ks_`` columns out
    exact : count traps from all eigenvalues of every shuffle in matrices of any size. Otherwise, where both sides are at least
        2,048 and ``method`` is "bulk", the same numbers come without them (`grokutils.spectra.counting`), from other shuffles
    thresholds : where the verdicts change
    progress : show a progress bar, if it takes more than a few seconds
    harmful : of a module that can be run, also take the largest trap of each layer out and see how far the outputs
        on random inputs change, beside a random direction of the same norm (`grokutils.util.columns.HARM`)
    inputs : of that test, some training inputs (examples, ...), whose mean and standard deviation the random ones take;
        not needed if the model begins with a linear layer

    layers : names of those to look at, or patterns such as ``"blocks.*.mlp.*"``; None: all

    Returns
    -------
    DataFrame. Every column is explained in `grokutils.util.columns.DIAGNOSTICS` and in the book; eigenvalues are
    those of W^T W, in squared units of the weights. A layer that cannot be measured (NaN or infinite entries, no
    real numbers, numbers that are elsewhere) keeps its row, with NaN, the verdict "undetermined" and the
    reason. So does what one measure asks too much of: a matrix with fewer than ten eigenvalues, an empty
    tail, a constant matrix.

    ``attrs["not_measured"]`` lists every other array of the source, with its name, shape, dtype and reason: biases, masks, codes
    without their scale; and what was applied to a layer that is there (a mask, a gain). ``attrs["parameters"]`` counts those in the
    rows, ``measured``, and those in none, ``not_measured``. Over a tenth of them in none is a warning, `MuchNotMeasured`, unless
    `progress` is off.

    Raises
    ------
    ValueError, TypeError : a matrix by itself that is not two-dimensional, empty, complex, or not finite; a
        source without matrices or of another kind; a file that cannot be read, or not without running code; an option without meaning;
        `harmful` with a source that cannot be run, such as weights alone, or whose input shape is not known.
    FileNotFoundError : no such file.
    """
    options = Options(shuffles, seed, method, bootstrap, cutoff, ks_draws, exact)
    if _diagnoses_itself(source):
        aside = {"harmful": harmful, "inputs": inputs}
        given = {name: value for name, value in aside.items() if value is not False and value is not None}
        return source.diagnose(thresholds=thresholds, progress=progress, **options.as_dict(), **given)
    if harmful:
        _check_runs(source, seed, inputs)
    elif inputs is not None:
        raise ValueError("inputs are for harmful=True, which was not asked for.")
    found = survey(source)
    if layers is not None:
        found.layers = chosen(found.layers, layers)
    rows, measured = [], []
    for layer in tqdm(found.layers, desc="layers", delay=3, leave=False, disable=not progress):
        try:
            made = diagnose_matrix(source, options) if is_matrix(source) else diagnose_layer(layer, options)
        except NotALayer as why:
            found.not_measured.append(NotMeasured(layer.name, layer.shape, layer.dtype, str(why)))
            continue
        word, reason = verdict(made.row, thresholds)
        note = layer.note
        if options.method == "weightwatcher" and layer.pools:
            note += "; WeightWatcher itself pools the spectra of its slices, so that its numbers are others"
        rows.append({"layer": layer.name, "note": note} | made.row | {"verdict": word, "reason": reason})
        measured.append(layer)
    found.layers = measured
    table = pd.DataFrame({name: [row[name] for row in rows] for name in _COLUMNS})
    account(table, found)
    if progress and too_much(table):
        warnings.warn(not_measured(table), MuchNotMeasured, stacklevel=2)
    if not harmful:
        return table
    tests = [harm_of(source, layer.name, inputs=inputs, seed=int(seed)) for layer in measured]
    return table.assign(**{name: [test[name] for test in tests] for name in HARM})


def chosen(layers: list[Layer], wanted: Sequence[str]) -> list[Layer]:
    """The layers whose names match one of the patterns; ValueError if none do."""
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    found = [x for x in layers if any(fnmatch.fnmatchcase(plain_name(x.name), pattern) for pattern in patterns)]
    if not found:
        there = ", ".join(layer.name for layer in layers[:10]) + (", ..." if len(layers) > 10 else "")
        raise ValueError(f"layers must match some of {there}; got {', '.join(map(repr, patterns))}.")
    return found


def account(table: pd.DataFrame, found: Survey) -> None:
    """Say in a table's ``attrs`` what of its source is in no row."""
    table.attrs["not_measured"] = [entry.as_dict() for entry in found.not_measured]
    table.attrs["parameters"] = {"measured": found.measured, "not_measured": found.missing}
    if found.note:
        table.attrs["note"] = found.note


#: The first columns of `DIAGNOSTICS` say where in a run a row stands.
_COLUMNS = list(DIAGNOSTICS)[list(DIAGNOSTICS).index("layer") :]


def _diagnoses_itself(source: Any) -> bool:
    return not is_module(source) and not isinstance(source, Mapping) and callable(getattr(source, "diagnose", None))


def _check_runs(source: Any, seed: Any, inputs: Any) -> None:
    if not is_module(source):
        raise ValueError("harmful=True needs a model that can be run, a torch module; weights alone do not say what it does.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ValueError(f"with harmful=True the seed must be a whole number; got {seed!r}.")
    probes_of(source, inputs)
