"""Studies whose every number is known, to test tables and figures on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from grokutils import RunConfig
from grokutils.records.record import Record
from grokutils.records.study import Study
from grokutils.util.columns import BASELINES, DIAGNOSTICS, METRICS

STEPS = (0, 1, 10, 100, 1_000, 10_000, 100_000)
TRAIN = (0.1, 0.1, 0.5, 1.0, 1.0, 1.0, 1.0)
#: Learnt at 100, begins to rise at 10,000, where it is best; then falls or stays.
COLLAPSE = (0.1, 0.1, 0.15, 0.2, 0.22, 0.9, 0.5)
PLATEAU = (0.1, 0.1, 0.15, 0.2, 0.22, 0.9, 0.89)
NEVER = (0.1, 0.1, 0.15, 0.2, 0.22, 0.21, 0.22)
#: Falls by more than five points and less than ten.
SHALLOW = (0.1, 0.1, 0.15, 0.2, 0.22, 0.9, 0.83)
#: The steps at which the phases of the first two are read.
READ = {"pre-grokking": 1_000, "grokking": 10_000, "anti-grokking": 100_000}
SHAPES = {"fc1": (100, 64), "fc2": (100, 100), "fc3": (10, 100)}
#: Alpha of a layer at each step, and traps.
ALPHA = {"fc1": (9, 8, 7, 6, 5, 3, 1.5), "fc2": (8, 7, 6, 5, 4, 2.5, 2.2), "fc3": (3, 3, 3, 3, 3, 3, 3)}
TRAPS = {"fc1": (0, 0, 0, 0, 0, 1, 4), "fc2": (0, 0, 0, 0, 0, 0, 1), "fc3": (0,) * 7}


def made(
    folder: Path,
    tests=(COLLAPSE, COLLAPSE, COLLAPSE),
    *,
    decay: float = 0.0,
    alpha=ALPHA,
    traps=TRAPS,
    shift: float = 0.1,
    steps: int = STEPS[-1],
    recipe: str = "express",
    baselines: bool = True,
    **changes,
) -> Study:
    """A study with one member for each course of the test accuracy. Member m's alphas are ``shift * m`` higher
    than the table's; the norm grows with the logarithm of the step."""
    config = RunConfig.recipe(recipe, steps=steps, **changes).ensemble(range(10, 10 + len(tests)), [decay])
    if len(tests) == 1:
        config = config.replace(members=None, seed=10, weight_decay=decay)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    metrics, diagnostics, spectra, measures = [], [], [], []
    for member, course in enumerate(tests):
        for i, step in enumerate(STEPS):
            where = {"step": step, "member": member, "seed": 10 + member, "weight_decay": decay}
            norm = 50.0 + 10 * i + member
            metrics.append(dict.fromkeys(METRICS, 0.5) | where | {
                "train_accuracy": TRAIN[i], "test_accuracy": course[i], "l2_norm": norm,
            })  # fmt: skip
            measures.append(dict.fromkeys(BASELINES, 1.0 + i) | where | {"l2_norm": norm})
            for layer, (rows, columns) in SHAPES.items():
                eigenvalues = np.geomspace(1, 100, min(rows, columns)) * (1 + 0.01 * i)
                diagnostics.append(dict.fromkeys(DIAGNOSTICS, np.nan) | where | {
                    "layer": layer, "rows": rows, "columns": columns, "alpha": alpha[layer][i] + shift * member,
                    "alpha_sigma": 0.5, "alpha_clipped": alpha[layer][i] + shift * member - 0.1,
                    "traps": float(traps[layer][i]), "n_tail": 10, "xmin": 5.0,
                    "sigma_mp": 1.0 - 0.01 * i, "ks_D": 0.01 * i, "ks_p": 0.5 / (1 + i) ** 2, "ks_p_textbook": 1.0,
                    "max_over_std": 3.0 + i, "mean_over_std": (-1) ** member * 0.05 * i, "kurtosis": 3.0 + i,
                    "l2_norm": norm, "spectral_norm": norm / 2, "stable_rank": 20.0 - i, "effective_rank": 30.0 - i,
                })  # fmt: skip
                for shuffle in (-1, 0, 1, 2):
                    spectra.append({
                        "step": step, "member": member, "layer": layer, "rows": rows, "columns": columns,
                        "shuffle": shuffle, "eigenvalues": eigenvalues.astype(np.float32),
                    })  # fmt: skip
    frames = [pd.DataFrame(rows) for rows in (metrics, diagnostics, spectra, measures)]
    frames = [frame[frame.step <= steps].reset_index(drop=True) for frame in frames]
    if not baselines:
        frames[3] = frames[3].iloc[:0]
    return Study(Record(folder), decay, *frames)
