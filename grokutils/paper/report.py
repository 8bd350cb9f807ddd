"""A run as one page of HTML, complete in itself: what it is, its curves, spectra, traps and the explorer.

>>> write_report("runs/x")                                           # doctest: +SKIP
PosixPath('runs/x/report.html')

``grokutils report RUN`` does the same. The page needs no network and no other file.
"""

from __future__ import annotations

import base64
import html
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from grokutils.paper.alpha import alpha_curves, esd_with_fit
from grokutils.paper.baselines import progress_curves
from grokutils.paper.explorer.page import explorer_html
from grokutils.paper.kit.curves import training_curves
from grokutils.paper.kit.tables import printed, readings
from grokutils.paper.train import phases_table
from grokutils.paper.traps import shuffled_esds, trap_curves
from grokutils.records.files import write_atomic
from grokutils.records.record import Record
from grokutils.records.study import Study, study
from grokutils.util.html import Html
from grokutils.util.paths import results_dir

__all__ = ["left_behind", "report_html", "write_report"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 58rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
figure { margin: 1rem 0; overflow-x: auto; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #eee; } .why { color: #555; }
"""


def report_html(data: Study) -> str:
    """The page.

    >>> report_html(study("results/express/wd0"))[:15]               # doctest: +SKIP
    '<!doctype html>'

    What a run has not got (phases without accuracies, say) is said in the place of it.
    """
    record = data.record
    state = "complete" if record.complete else f"unfinished, at step {record.step:,} of {record.config.steps:,}"
    parts = [
        f"<h1>{html.escape(data.place)}</h1><p>{html.escape(data.label)}; {state}. Made by <code>grokutils report</code>. "
        "Alpha is the exponent of a layer's eigenvalues; a trap, an eigenvalue that stands out of the random bulk although the "
        "entries were shuffled. Both are fingerprints to look at and no proof of harm.</p>",
        *_sections(data),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(data.place)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>\n'
    )


def _sections(data: Study) -> Iterator[str]:
    first = data.members[0]
    yield _part("The course of training", lambda: training_curves(data.record), "Accuracies and the norm of all weights over steps.")
    yield _part("Phases", lambda: phases_table(data.record, first), f"Of the network of seed {data.config.networks[first].seed}.")
    yield _part("Where its phases are read", lambda: printed(readings(data)), "")
    yield _part("Alpha", lambda: alpha_curves(data), "Alpha of each layer over steps; below the line at 2 the tail is very heavy.")
    for layer in data.layers[:3]:
        yield _part(f"Spectrum of {layer}", lambda layer=layer: esd_with_fit(data, layer), "Eigenvalues and the power law that fits their tail.")
    yield _part("Traps", lambda: trap_curves(data), "Eigenvalues beyond the random bulk after the entries were shuffled.")
    yield _part("A shuffled layer", lambda: shuffled_esds(data, data.layers[0], ["start", "anti-grokking"]),
                "At the start and at the end: what is left of the spectrum when the entries change places.")  # fmt: skip
    yield _part("The other measures", lambda: progress_curves(data), "Activation sparsity, weight entropy and circuit complexity, where they were measured.")
    yield _part("To turn over", lambda: Html(explorer_html(data, first)), "Move the slider.")
    yield _part("What it is", lambda: _config_table(data.record), "")
    yield _part("Where it was made", lambda: pd.DataFrame(data.record.provenance["sessions"]), "")


def _part(title: str, make: Callable[[], Figure | pd.DataFrame | Html], caption: str) -> str:
    """A section; where it cannot be had, the reason."""
    try:
        made = make()
    except ValueError as error:
        return f'<h2>{html.escape(title)}</h2><p class="why">{html.escape(str(error))}</p>'
    if isinstance(made, Figure):
        body = _svg(made, title)
    elif isinstance(made, pd.DataFrame):
        body = made.to_html(na_rep="–", border=0)
    else:
        body = str(made)
    return f"<h2>{html.escape(title)}</h2><figure>{body}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _svg(made: Figure, alt: str) -> str:
    # as an image of its own: ids inside one figure are those of another
    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "grokutils"}):
        made.savefig(content, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{base64.b64encode(content.getvalue()).decode()}">'


def _config_table(record: Record) -> pd.DataFrame:
    rows = [(name, value, meaning) for name, value, meaning in record.config.describe() if value is not None]
    return pd.DataFrame(rows, columns=["name", "value", "meaning"]).astype(str).set_index("name")


def write_report(run: str | os.PathLike, out: str | os.PathLike | None = None, *, progress: bool = True) -> Path:
    """Analyse a run, where that is not done, and write its page: by default ``report.html`` in its folder, of a reference
    record ``<name>-report.html`` in the working folder.

    >>> write_report("results/express/wd0", "wd0.html")              # doctest: +SKIP
    PosixPath('wd0.html')

    Raises
    ------
    FileNotFoundError : no such run.
    RecordError : a damaged record, or a file that cannot be written.
    ValueError : a run without saved weights.
    """
    data = study(run, progress=progress)
    if not len(data.diagnostics):
        raise ValueError(f"{data.place} holds no weights and no spectra to report on.")
    folder = data.record.folder
    if out is None:
        is_reference = folder.resolve().is_relative_to(results_dir().resolve())
        out = Path(f"{folder.name}-report.html") if is_reference else folder / "report.html"
    path = Path(out)
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} must exist; name another file.")
    write_atomic(path, report_html(data).encode())
    return path


def left_behind(record: Record) -> Html:
    """What a notebook that trained a run leaves to open: the run's page, linked in the notebook and named in the terminal.

    >>> left_behind(load_record("runs/x"))                           # doctest: +SKIP
    """
    path = write_report(record.folder).resolve()
    _say(f"\nThe run is in {record.folder}; open {path.as_uri()} to see it.\n")
    return Html(f'The run, its spectra and traps on one page: <a href="{path.as_uri()}">{html.escape(str(path))}</a>')


def _say(text: str) -> None:
    """To the terminal that papermill was started from: a kernel sends what it prints to the notebook and keeps the
    terminal's own stream aside."""
    with suppress(AttributeError, OSError, TypeError):
        os.write(sys.stderr._original_stdstream_copy, text.encode())
