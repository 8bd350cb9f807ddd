"""The records of the study of the mechanism, and what they say.

>>> rows = paths_frame()
>>> {"name", "seed", "displacement", "test_accuracy"} <= set(rows)
True
"""

from __future__ import annotations

from pathlib import Path as Folder

import numpy as np
import pandas as pd

from grokutils.paper.judge.findings import over_networks
from grokutils.paper.judge.stats import holm, sign_flip_p
from grokutils.paper.mechanism.conditions import CONDITIONS, CONTROL, MNIST, PRIMARY, Path
from grokutils.records import files
from grokutils.util import paths

__all__ = ["SAME", "SPAN", "VERDICTS", "at", "compare", "done", "gather", "paths_frame", "shapes", "when_fallen"]

OUT = "results/mechanism"
#: A path is read as the median of its measurements over this much displacement.
SPAN = 0.08
#: Two falls are the same if the interval of their difference lies within this much.
SAME = 0.02
VERDICTS = ("control", "did not come so far", "falls less", "falls more", "falls the same", "no difference shown")
FRAMES = ("rows", "lines", "losses")


def done(path: Path, seed: int, until: float) -> bool:
    """Whether a path has been gathered as far as this, or has used up its steps."""
    rows = _stored("rows")
    own = rows[(rows.name == path.name) & (rows.seed == seed)] if len(rows) else rows
    reached = len(own) and not path.whole and own.reached.max() >= until - 1e-6
    return bool(reached or len(own) and own.step.max() >= path.most)


def _stored(kind: str) -> pd.DataFrame:
    file = paths.run_dir(OUT) / f"{kind}.parquet"
    return files.read_parquet(file) if file.is_file() else pd.DataFrame()


def gather() -> None:
    """Put what lies under ``runs/mechanism/`` into the records: whichever of two of one path reaches further."""
    root: Folder = paths.run_dir("mechanism")
    target = paths.run_dir(OUT)
    with files.locked(target):
        stored = {kind: _stored(kind) for kind in FRAMES}
        for path in (*CONDITIONS, *MNIST):
            for folder in sorted((root / path.name).glob("*")):
                _take(stored, path.name, int(folder.name), folder)
            rows = stored["rows"]  # a path may have been followed further under an earlier plan
            if len(rows) and not path.saved:
                stored["rows"] = rows[(rows.name != path.name) | (rows.step <= path.most)]
        for kind, frame in stored.items():
            if len(frame):
                order = [c for c in ("name", "seed", "until", "step", "share", "loss_below") if c in frame]
                files.write_parquet(target / f"{kind}.parquet", _small(frame.sort_values(order)))


def _take(stored: dict[str, pd.DataFrame], name: str, seed: int, folder: Folder) -> None:
    if not (folder / "rows.parquet").is_file():
        return
    new = {kind: files.read_parquet(folder / f"{kind}.parquet") for kind in FRAMES
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
    floats = frame.select_dtypes(np.float64).columns.difference(["reached", "until", "share"])
    return frame.astype({name: np.float32 for name in floats}).reset_index(drop=True)


def paths_frame(kind: str = "rows") -> pd.DataFrame:
    """The records: a row for each measurement on each path (``"rows"``), for each point of a line from the fork to where
    a path ended (``"lines"``), or for each class of loss (``"losses"``)."""
    return _stored(kind)


def at(rows: pd.DataFrame, displacement: float = PRIMARY, by: str = "displacement") -> pd.DataFrame:
    """Each path where it has come to a displacement: a row for each condition and seed.

    Every column is the median over the measurements of the last `SPAN` before it. ``fall`` is the test accuracy at the
    fork less the one here, both of weights brought back to the valley. The paths that have not come so far have
    ``reached`` False and are read where they have come to.

    Parameters
    ----------
    rows : of `paths_frame`
    displacement : how far
    by : what is to be equal: "displacement"; or "rotation", the tangent of the angle to the start, which growing and
        shrinking leave alone
    """
    found = []
    for (name, seed), own in rows.groupby(["name", "seed"], sort=False):
        own = own.sort_values("step", kind="stable")
        start, way = own.iloc[0], own[by].to_numpy(float)
        far = way >= displacement - 1e-6
        end = int(far.argmax()) if far.any() else len(own) - 1
        here = own.iloc[: end + 1]
        near = here[here[by] >= way[end] - SPAN - 1e-6]
        row = near.select_dtypes("number").median()
        row["fall"] = start.test_settled - row.test_settled
        # such a path has no row between its first and its last: it is read where it is
        row["step"], row["seed"] = float(own.step.iloc[end]), seed
        row["most"] = float(way.max())
        found.append({**row, "name": name, "reached": bool(far.any())})
    return pd.DataFrame(found)


def compare(here: pd.DataFrame, control: str = CONTROL) -> pd.DataFrame:
    """Each condition against the control, seed by seed, where both have come as far.

    Parameters
    ----------
    here : of `at`
    control : name of the condition that the others are compared with

    Returns
    -------
    A row for each condition that is a walk from where the control begins, with ``seeds``, how many of them ``reached`` the displacement and the median ``most`` that
    they came to; over those that reached it the mean ``fall`` and the mean ``difference`` to the control's, each with
    its 95 % bootstrap interval over seeds (``_low``, ``_high``), ``n`` pairs, ``p`` (`sign_flip_p`), ``p_holm`` over
    all conditions, and ``verdict``, one of `VERDICTS`.
    """
    table, controls = [], here[(here.name == control) & here.reached].set_index("seed").fall
    for path in CONDITIONS:
        own = here[here.name == path.name]
        if not len(own) or path.topic == "repair":
            continue
        reached = own[own.reached].set_index("seed").fall
        row = {
            "name": path.name, "topic": path.topic, "says": path.says, "seeds": len(own), "reached": len(reached),
            "most": float(own.most.median()), "steps": float(own.step.median()), **_mean("fall", reached),
        }  # fmt: skip
        difference = (reached - controls).dropna() if path.name != control else pd.Series(dtype=float)
        row |= _mean("difference", difference) | {"n": len(difference)}
        row["p"] = sign_flip_p(difference) if len(difference) else np.nan
        table.append(row)
    frame = pd.DataFrame(table)
    if len(frame):
        tested = frame.p.notna()
        frame["p_holm"] = np.nan
        frame.loc[tested, "p_holm"] = holm(frame.p[tested])
        frame["verdict"] = [_verdict(row) for row in frame.to_dict("records")]
    return frame


def _mean(name: str, values: pd.Series) -> dict[str, float]:
    if not len(values):
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    found = over_networks(values.to_numpy(float), np.mean)
    low, high = (np.nan if bound is None else bound for bound in (found.low, found.high))
    return {name: found.value, f"{name}_low": low, f"{name}_high": high}


def _verdict(row: dict) -> str:
    control, censored, less, more, same, open_ = VERDICTS
    if row["name"] == CONTROL:
        return control
    if not row["n"]:
        return censored
    if row["p_holm"] < 0.05:
        return less if row["difference"] < 0 else more
    return same if max(abs(row["difference_low"]), abs(row["difference_high"])) <= SAME else open_


def when_fallen(rows: pd.DataFrame, fall: float) -> pd.DataFrame:
    """Each path where it has first lost so much test accuracy: a row for each that has.

    The test accuracy is the running median of five measurements; all columns are those of that measurement.
    """
    found = []
    for (name, seed), own in rows.groupby(["name", "seed"], sort=False):
        own = own.sort_values("step", kind="stable")
        lost = own.test_settled.iloc[0] - own.test_settled.rolling(5, min_periods=1).median()
        if (lost >= fall).any():
            found.append({**own.iloc[int((lost >= fall).to_numpy().argmax())], "name": name, "seed": seed})
    return pd.DataFrame(found)


def shapes(rows: pd.DataFrame, losses: pd.DataFrame, lines: pd.DataFrame, burst: int = -5) -> pd.DataFrame:
    """How straight the paths are: a row for each condition and seed.

    ``length``, that of the path over the displacement where it ends (windows of ten training steps, or one change of a
    walk); ``turn``, the mean cosine between successive chords of a tenth of displacement; ``bursts`` and
    ``burst_time``, the shares of the squared displacement and of the windows with a training loss above 10^`burst`;
    ``barrier``, the lowest training accuracy, and ``highest``, the highest training loss, on the straight line from the
    fork to the end.
    """
    found = []
    for (name, seed), own in rows.groupby(["name", "seed"], sort=False):
        bins = losses[(losses.name == name) & (losses.seed == seed)]
        line = lines[(lines.name == name) & (lines.seed == seed)]
        high = bins.loss_below > burst
        row = {"name": name, "seed": seed, "end": float(own.displacement.iloc[-1])}
        row["length"] = float(bins.length.sum() / row["end"]) if row["end"] else np.nan
        row["turn"] = float(own.turn.mean())
        row["bursts"] = float(bins.gain[high].sum() / bins.gain.sum()) if bins.gain.sum() else np.nan
        row["burst_time"] = float(bins.windows[high].sum() / bins.windows.sum()) if len(bins) else np.nan
        if len(line):
            line = line[(line["until"] == line["until"].max()) & (line.share <= 1)]
            row["barrier"], row["highest"] = float(line.train_accuracy.min()), float(line.train_loss.max())
        found.append(row)
    return pd.DataFrame(found)
