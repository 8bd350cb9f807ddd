"""The diagnosis as text for a terminal."""

from __future__ import annotations

import json
import math
import textwrap
from typing import Any

import pandas as pd

from grokutils.spectra.verdict import VERDICTS
from grokutils.util.text import visible

WIDTH = 110
_NAME = 40  # longer names of layers lose their middle
_REASON = 34  # with less room than this for the last column, reasons go below their rows

# Over this share of the parameters in no row, that is said first.
_MUCH = 0.1

_LEGEND = {
    "alpha": "exponent of the eigenvalues' power-law tail, +- its standard error; '-' where there is no fit",
    "traps": "eigenvalues beyond the random bulk after the entries were shuffled: mean +- spread over shuffles",
    "max|w|": "the largest weight, in standard deviations from the mean: very large ones are what makes many traps",
}


def table(frame: pd.DataFrame, width: int = WIDTH) -> str:
    """The columns that a reader needs, the reason of each row, what the words mean, and what was not measured."""
    rows = frame.to_dict("records")
    missing = not_measured(frame)
    if not rows:
        return "No layer was measured.\n" + missing
    told_apart = [name for name in ("step", "member") if name in frame and frame[name].nunique() > 1]
    cells = {name: [f"{row[name]:,}" for row in rows] for name in told_apart}
    cells |= {
        "layer": [_short(row["layer"]) for row in rows],
        "shape": [f"{row['rows']} x {row['columns']}" for row in rows],
        "alpha": [_spread(row["alpha"], row["alpha_sigma"], 2) for row in rows],
        "traps": [_spread(row["traps"], row["traps_std"], 1) for row in rows],
        "max|w|": [_number(row["max_over_std"], 1) for row in rows],
        "verdict": [row["verdict"] for row in rows],
    }
    sizes = {name: max(map(len, [name, *column])) for name, column in cells.items()}
    indent = sum(sizes.values()) + 2 * len(sizes)
    reasons = [visible(row["reason"] + (f" [{row['note']}]" if row["note"] else "")) for row in rows]
    beside = width - indent >= _REASON
    if not beside:
        indent = 4
    lines = [_line(cells, sizes, list(cells)) + ("why" if beside else "")]
    for i, reason in enumerate(reasons):
        said = textwrap.wrap(reason, width - indent) or [""]
        row = _line(cells, sizes, [column[i] for column in cells.values()])
        lines.append(row + said.pop(0) if beside else row)
        lines += [" " * indent + more for more in said]
    meanings = _LEGEND | {name: VERDICTS[name] for name in VERDICTS if name in set(frame.verdict)}
    lines.append("")
    for name, meaning in meanings.items():
        lines += textwrap.wrap(meaning, width, initial_indent=f"{name:<17}", subsequent_indent=" " * 17)
    if note := frame.attrs.get("note"):
        lines.append(visible(f"Note: {note}."))
    if missing:
        lines = [missing, "", *lines] if too_much(frame) else [*lines, missing]
    return "\n".join(line.rstrip() for line in lines)


def too_much(frame: pd.DataFrame) -> bool:
    """Whether over a tenth of the parameters are in no row."""
    count = frame.attrs.get("parameters", {"measured": 0, "not_measured": 0})
    return count["not_measured"] > _MUCH * (count["measured"] + count["not_measured"])


def not_measured(frame: pd.DataFrame) -> str:
    """What `grokutils.diagnose` left out, as one line; empty if that is nothing."""
    entries = frame.attrs.get("not_measured", [])
    if not entries:
        return ""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        what, _, rest = entry["reason"].partition(": ")
        if what == "applied":
            what = "applied to a layer above"
        elif what == "not of the model":
            pass
        elif entry["reason"].startswith("the same numbers as"):
            what = "the same numbers as another"
        elif rest:
            what = entry["reason"]
        groups.setdefault(what, []).append(visible(entry["name"]))
    said = [f"{reason} ({_few(names)})" for reason, names in groups.items()]
    more = f"; {len(said) - 6} more reasons" if len(said) > 6 else ""
    count = frame.attrs["parameters"]
    total = count["measured"] + count["not_measured"]
    share = f"{100 * count['not_measured'] / total:.2g} %" if total else "none"
    return (
        f"Not measured: {count['not_measured']:,} of {total:,} parameters ({share}), in {len(entries)} arrays: "
        f"{'; '.join(said[:6])}{more}."
    )


def _few(names: list[str]) -> str:
    return ", ".join(map(_short, names[:2])) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def as_json(frame: pd.DataFrame) -> str:
    """Every column as JSON, with all digits: a list of rows, and last, if anything was not measured, an object that says what.

    >>> print(as_json(pd.DataFrame({"layer": ["a"], "alpha": [1 / 3], "traps": [math.nan]})))
    [
    {"layer": "a", "alpha": 0.3333333333333333, "traps": null}
    ]
    """
    rows = json_rows(frame)
    if entries := frame.attrs.get("not_measured"):
        rows.append(json.dumps({"not_measured": entries, "parameters": frame.attrs["parameters"]}))
    return "[\n" + ",\n".join(rows) + "\n]"


def json_rows(frame: pd.DataFrame) -> list[str]:
    """A line of JSON for each row; what is no finite number is null."""
    return [json.dumps({name: _plain(value) for name, value in row.items()}) for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def harm_text(frame: pd.DataFrame) -> str:
    """What the test of `diagnose(..., harmful=True)` found, a line per layer."""
    lines = ["Largest trap taken out, against a random direction of the same norm (J on random inputs, nats):"]
    for row in frame.to_dict("records"):
        where = "".join(f"{name} {row[name]}, " for name in ("member",) if name in frame and frame[name].nunique() > 1)
        if row["harm_reason"]:
            said = f"not tested: {row['harm_reason']}"
        else:
            said = f"J = {row['js']:.3g} +- {row['js_error']:.1g}, random {row['js_control']:.3g} +- {row['js_control_error']:.1g}: "
            said += "harmful" if row["harmful"] else "no more than random"
        lines.append(f"{where}{_short(row['layer'])}: {said}")
    return "\n".join(lines)


def _line(cells: dict[str, list[str]], sizes: dict[str, int], texts: list[str]) -> str:
    right = ("step", "member", "max|w|")
    parts = zip(cells, texts, strict=True)
    return "".join((t.rjust if name in right else t.ljust)(sizes[name]) + "  " for name, t in parts)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _spread(value: float, spread: float, digits: int) -> str:
    if math.isnan(value) or math.isnan(spread):
        return _number(value, digits)
    return f"{value:.{digits}f} +- {spread:.{digits}f}"


def _short(name: str) -> str:
    name = visible(name)
    if len(name) <= _NAME:
        return name
    half = (_NAME - 3) // 2
    return f"{name[:half]}...{name[len(name) - (_NAME - 3 - half) :]}"
