"""One run to turn over: a page with a slider over its steps, complete in itself.

>>> from grokutils import load_record
>>> page = explorer_html(load_record("results/express/wd0"))         # doctest: +SKIP

The page needs no network, no server and no other file. Histograms are made here, once per step, and numbers are kept
to four digits, so that it stays small. `explorer.js`, beside this file, draws it.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from grokutils.paper.kit.figures import COLORS, PHASE_COLORS, layer_color
from grokutils.records.record import Record
from grokutils.records.study import Study, study
from grokutils.spectra.alpha import CUTOFF
from grokutils.spectra.traps import count_traps
from grokutils.util.html import Html

__all__ = ["explorer_data", "explorer_html"]

_BINS = 44
# Eigenvalues further below the largest than this are left out of the picture.
_DECADES = 5.0
# More steps than this would be more than a slider can tell apart.
_STEPS = 240
_SCRIPT = Path(__file__).with_name("explorer.js")
_STYLE = Path(__file__).with_name("explorer.css")


def explorer_data(
    source: Record | Study, member: int = 0, layers: Sequence[str] | None = None
) -> dict[str, Any]:
    """What the page shows, as plain values.

    >>> explorer_data(load_record("runs/x"))["layers"][0]["name"]    # doctest: +SKIP
    'fc1'

    Parameters
    ----------
    source : a record (analysed first, where it is not) or a study of one
    member : which of its networks
    layers : which of its layers; by default the first two that have at least ten eigenvalues

    Raises
    ------
    ValueError : a member or a layer that the record does not have, or nothing to show.
    """
    data = source if isinstance(source, Study) else study(source.folder)
    if member not in data.members:
        raise ValueError(f"member must be one of {_listed(data.members)}; got {member!r}.")
    diagnostics = data.diagnostics[data.diagnostics.member == member]
    there = [name for name in dict.fromkeys(diagnostics.layer) if name in data.layers]
    layers = list(layers or _default_layers(diagnostics, there))
    if unknown := [name for name in layers if name not in set(diagnostics.layer)]:
        raise ValueError(f"layers must be among {_listed(there)}; got {unknown[0]!r}.")
    steps = np.sort(diagnostics.step.unique())
    if not layers or len(steps) < 2:
        raise ValueError(
            f"{data.name} must hold the spectra of at least two saved steps; it has {len(steps)}."
        )
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(_STEPS, len(steps))).round().astype(int))]
    metrics = data.metrics[data.metrics.member == member].sort_values("step")
    return {
        "title": f"{data.label}; member {member}, seed {int(metrics.seed.iloc[0])}",
        "steps": steps.tolist(),
        "start": _start(data, member, steps),
        "curve": {
            "step": metrics.step.tolist(),
            "train": _short(metrics.train_accuracy),
            "test": _short(metrics.test_accuracy),
        },
        "phases": _phases(data, member),
        "layers": [_layer(data, member, name, steps) for name in layers],
    }


def _listed(names: Sequence[Any]) -> str:
    shown = [str(name) for name in names[:12]]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _default_layers(diagnostics: pd.DataFrame, there: Sequence[str]) -> list[str]:
    able = diagnostics[diagnostics.alpha.notna()].layer.unique()
    return [name for name in there if name in able][:2]


def _start(data: Study, member: int, steps: np.ndarray) -> int:
    """Where the slider stands at first: at the best test accuracy."""
    peak = data.member_phases[member].peak
    return len(steps) - 1 if peak is None else int(np.argmin(np.abs(np.log1p(steps) - math.log1p(peak))))


def _phases(data: Study, member: int) -> list[dict[str, Any]]:
    found = data.member_phases[member]
    starts = zip(PHASE_COLORS, (found.memorised, found.grokking, found.collapse), strict=True)
    known = [(name, int(start)) for name, start in starts if start is not None]
    ends = [*(start for _, start in known), data.step][1:]
    return [
        {"name": name, "from": start, "to": end, "color": PHASE_COLORS[name]}
        for (name, start), end in zip(known, ends, strict=False)
    ]


def _layer(data: Study, member: int, name: str, steps: np.ndarray) -> dict[str, Any]:
    """Numbers and histograms of one layer, a value per step."""
    own = data.diagnostics[(data.diagnostics.member == member) & (data.diagnostics.layer == name)]
    own = own.set_index("step").reindex(steps)
    rows, columns = data.shape(name)
    spectra = {step: _eigenvalues(data, name, step, member) for step in steps.tolist()}
    plain = [x for x, _ in spectra.values()]
    bulk = [_against_bulk(shuffled, (rows, columns)) for _, shuffled in spectra.values()]
    return {
        "name": name,
        "label": name.upper() if name.startswith("fc") else name,
        "color": layer_color(name, data.layers),
        "rows": rows,
        "columns": columns,
        "n": min(rows, columns),
        **{column: _short(own[column]) for column in ("alpha", "xmin", "traps", "max_over_std")},
        "tail": [int(n) if n == n else 0 for n in own.n_tail],
        "largest": _short([x[-1] if len(x) else math.nan for x in plain]),
        "esd": _histograms(plain),
        "shuffled": _histograms([found["x"] for found in bulk]),
        **{key: _short([found[key] for found in bulk]) for key in ("sigma", "low", "high", "threshold")},
        "outside": [_short(found["outside"]) for found in bulk],
    }


def _eigenvalues(data: Study, layer: str, step: int, member: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Of the matrix, and of its kept shuffles (a row each); none where the layer had no spectrum."""
    try:
        x = data.eigenvalues(layer, step, member)
    except ValueError:
        return np.empty(0), None
    try:
        return x, data.eigenvalues(layer, step, member, shuffle=None)
    except ValueError:
        return x, None


def _against_bulk(shuffled: np.ndarray | None, shape: tuple[int, int]) -> dict[str, Any]:
    """Shuffled eigenvalues in units of their mean, the bulk that fits them, and those beyond the threshold."""
    if shuffled is None or not shuffled.size or not shuffled.mean() > 0:
        nan = math.nan
        return {"x": np.empty(0), "sigma": nan, "low": nan, "high": nan, "threshold": nan, "outside": []}
    unit = shuffled.mean()
    found = count_traps(shuffled, shape)
    first = found.trap_eigenvalues[0] / unit
    return {
        "x": np.sort(shuffled, axis=None) / unit,
        "sigma": float(found.sigma_mp[0]),
        "low": found.bulk_min[0] / unit,
        "high": found.bulk_max[0] / unit,
        "threshold": found.threshold[0] / unit,
        "outside": first[:40],
    }


def _histograms(spectra: Sequence[np.ndarray]) -> dict[str, Any]:
    """Counts in bins that are equal in log10 and the same at all steps; ``of`` counts what is out of the picture too."""
    kept = [x[x > CUTOFF] for x in spectra]  # what the fit counts as zero has no place on a logarithmic axis
    values = np.concatenate([x for x in kept if len(x)] or [np.ones(1)])
    high = math.log10(values.max()) + 0.06
    low = max(math.log10(values.min()) - 0.02, high - _DECADES)
    edges = np.linspace(low, high, _BINS + 1)
    counts = [np.histogram(np.log10(x), edges)[0].tolist() if len(x) else [0] * _BINS for x in kept]
    return {"low": _digits(low), "high": _digits(high), "counts": counts, "of": [len(x) for x in spectra]}


def _short(values: Any) -> list[float | None]:
    return [_digits(x) for x in values]


def _digits(x: float) -> float | None:
    """To four digits; None for what is no number, which JSON does not know."""
    return float(f"{x:.4g}") if x is not None and math.isfinite(x) else None


def explorer_html(source: Record | Study, member: int = 0, layers: Sequence[str] | None = None) -> Html:
    """The page's content: put it into any page; as the value of a notebook's cell it shows itself.

    Parameters and errors are those of `explorer_data`.
    """
    data = explorer_data(source, member, layers)
    # no text of a record can end the script
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    last = len(data["steps"]) - 1
    style = _STYLE.read_text(encoding="utf-8")
    colors = "".join(f"--gx-{name}:{color};" for name, color in COLORS.items())
    summary = html.escape(_summary(data))
    title = html.escape(data["title"])
    return Html(f"""<style>{style}</style>
<div class="grok-explorer tex2jax_ignore" style="{colors}">
<p class="gx-title">{title}</p>
<div class="gx-bar">
<label>Step <input type="range" class="gx-slider" min="0" max="{last}" value="{data["start"]}" step="1"></label>
<output class="gx-step" aria-live="off"></output>
</div>
<p class="gx-readout" role="status" aria-live="polite"></p>
<div class="gx-charts"></div>
<noscript><p>{summary} The figures of this page are drawn by a script.</p></noscript>
<script type="application/json" class="gx-data">{embedded}</script>
<script>{_SCRIPT.read_text(encoding="utf-8")}</script>
</div>""")


def _summary(data: dict[str, Any]) -> str:
    """The run in words, for those who see no figures."""
    parts = [f"{data['title']}."]
    parts += [f"{phase['name']} from step {phase['from']:,}." for phase in data["phases"]]
    for layer in data["layers"]:
        known = [x for x in layer["alpha"] if x is not None]
        if known:
            parts.append(
                f"{layer['label']}: alpha from {known[0]:.2f} at first to {known[-1]:.2f} at the end."
            )
    return " ".join(parts)
