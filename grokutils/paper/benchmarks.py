"""The page *How fast it is*: what ``python -m benchmarks.training`` recorded."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from grokutils.util.paths import project_root

__all__ = ["pd", "report"]


def report() -> dict[str, Any]:
    """The recorded numbers, by recipe.

    >>> sorted(report())
    ['express', 'modular', 'modular-grid', 'paper']
    """
    return json.loads((project_root() / "benchmarks" / "results" / "training.json").read_text())
