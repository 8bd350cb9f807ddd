"""The first page: the three phases, and how far the records reach."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from grokutils.paper.kit.curves import accuracy_panels
from grokutils.paper.kit.figures import use_svg
from grokutils.records.study import Study, study

__all__ = ["Markdown", "accuracy_panels", "lost", "study", "use_svg"]


def lost(data: Study) -> pd.Series:
    """Points of test accuracy from each network's best to the end."""
    return pd.Series({m: 100 * (found.peak_accuracy - found.final_accuracy) for m, found in data.member_phases.items()})
