"""The records of the study of the mechanism, and what they say.

>>> rows = paths_frame()
>>> {"name", "seed", "displacement", "test_accuracy"} <= set(rows)
True
"""

from __future__ import annotations

from pathlib import Path as Folder

import numpy as np
import pandas as pd

from grokutils.paper.mechanism.conditions import CONDITIONS, Path
from grokutils.records import record
from grokutils.util import paths

__all__ = ["done", "gather", "paths_frame"]

OUT = "results/mechanism"
FRAMES = ("rows", "lines", "losses")


def done(path: Path, seed: int, until: float) -> bool:
    """Whether a path has been gathered as far as this, or has used up its steps."""
    rows = _stored("rows")
    own = rows[(rows.name == path.name) & (rows.seed == seed)] if len(rows) else rows
    return bool(len(own) and (own.level.max() >= until or own.step.max() >= path.most))


def _stored(kind: str) -> pd.DataFrame:
    file = paths.run_dir(OUT) / f"{kind}.parquet"
    return record.read_parquet(file) if file.is_file() else pd.DataFrame()


def gather() -> None:
    """Put what lies under ``runs/mechanism/`` into the records: whichever of two of one path reaches further."""
    root: Folder = paths.run_dir("mechanism")
    target = paths.run_dir(OUT)
    with record.locked(target):
        stored = {kind: _stored(kind) for kind in FRAMES}
        for path in CONDITIONS:
            for folder in sorted((root / path.name).glob("*")):
                _take(stored, path.name, int(folder.name), folder)
        for kind, frame in stored.items():
            if len(frame):
                order = [c for c in ("name", "seed", "until", "step", "share", "loss_below") if c in frame]
                record.write_parquet(target / f"{kind}.parquet", _small(frame.sort_values(order)))


def _take(stored: dict[str, pd.DataFrame], name: str, seed: int, folder: Folder) -> None:
    if not (folder / "rows.parquet").is_file():
        return
    new = {kind: record.read_parquet(folder / f"{kind}.parquet") for kind in FRAMES
           if (folder / f"{kind}.parquet").is_file()}  # fmt: skip
    old = stored["rows"]
    if len(old) and new["rows"].step.max() < old[(old.name == name) & (old.seed == seed)].step.max():
        return
    for kind, frame in new.items():
        old = stored[kind]
        others = old[(old.name != name) | (old.seed != seed)] if len(old) else old
        stored[kind] = pd.concat([others, frame], ignore_index=True) if len(others) else frame


def _small(frame: pd.DataFrame) -> pd.DataFrame:
    """Measurements to single precision, which is more than they mean."""
    floats = frame.select_dtypes(np.float64).columns.difference(["level", "until", "share"])
    return frame.astype({name: np.float32 for name in floats}).reset_index(drop=True)


def paths_frame() -> pd.DataFrame:
    """A row for each measurement on each path."""
    return _stored("rows")
