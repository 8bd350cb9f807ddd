"""Where things are. No other module builds a path.

A run is *named* and lives under the project's ``runs/`` (what you train) or ``results/`` (the
reference records that come with the project), whatever folder the process was started in: papermill
runs a notebook from the caller's folder, Jupyter from ``notebooks/``, the book from its own.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from pathlib import Path

__all__ = ["book_assets", "data_root", "find_run", "project_root", "reference_dir", "results_dir", "run_dir", "runs_dir"]


def project_root() -> Path:
    """The project's folder: ``$GROKUTILS_HOME``, else the checkout this package or the caller is in.

    An installed copy used outside any checkout has no project folder; the working folder serves.
    """
    if home := _from_variable("GROKUTILS_HOME"):
        return home
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parents[2], here, *here.parents):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def runs_dir() -> Path:
    """Where a user's runs go: ``$GROKUTILS_RUNS``, else the project's ``runs/`` (ignored by git)."""
    if folder := _from_variable("GROKUTILS_RUNS"):
        return folder
    return project_root() / "runs"


def results_dir() -> Path:
    """Where the versioned reference records are."""
    return project_root() / "results"


def book_assets() -> Path:
    """The folder whose files a build of the book copies beside its pages."""
    return project_root() / "book" / "_assets"


def data_root() -> Path:
    """The torchvision root that holds ``MNIST/raw``: ``$GROKUTILS_DATA``, else the project's ``data/``."""
    if root := _from_variable("GROKUTILS_DATA"):
        return root
    return project_root() / "data"


def _from_variable(name: str) -> Path | None:
    """The folder that a variable of the environment names; None if it is not set, or empty.

    Raises
    ------
    ValueError : no folder, or one to be made in a folder that is not there.
    """
    if not (value := os.environ.get(name)):
        return None
    try:
        folder = Path(value).expanduser().resolve()
        if folder.is_dir() or (not folder.exists() and folder.parent.is_dir()):
            return folder
    except (RuntimeError, OSError, ValueError):  # the home of a user there is not, or no path at all
        pass
    raise ValueError(f"{name} must name a folder, or a new one in a folder that is there; got {value!r}.")


def run_dir(out: str | os.PathLike, *, confined: bool = False) -> Path:
    """The folder of a run to be written.

    >>> run_dir("x") == run_dir("runs/x") == runs_dir() / "x"
    True

    Parameters
    ----------
    out : a name (``"x"`` or ``"runs/x"``: under ``runs/``), ``"results/x"`` (under ``results/``), or an
        absolute path.
    confined : refuse everything outside the project's ``runs/`` and ``results/``, absolute paths too
        (for names that arrive as notebook parameters).

    Raises
    ------
    ValueError : an empty name, or one that leaves its folder; a folder that all runs or one's home are in.
    """
    path = _path("out", out)
    text = os.fspath(out)
    if path.is_absolute():
        if not confined:
            home = Path(os.path.expanduser("~"))
            if any(base.resolve().is_relative_to(path.resolve()) for base in (home, runs_dir(), results_dir())):
                raise ValueError(f"out must be a folder of this run alone; got {text!r}.")
            return path
        for base in (runs_dir(), results_dir()):
            if path.resolve().is_relative_to(base.resolve()) and path.resolve() != base.resolve():
                return path
        raise ValueError(f"out must be a name under runs/; the absolute path {text!r} lies outside it.")
    base = runs_dir()
    if path.parts and path.parts[0] in ("runs", "results"):
        base = runs_dir() if path.parts[0] == "runs" else results_dir()
        path = Path(*path.parts[1:])
    target = base / path
    if ".." in path.parts or not target.resolve().is_relative_to(base.resolve()):
        raise ValueError(f"out must stay inside {base.name}/; got {text!r}.")
    if not path.parts:
        raise ValueError(f"out must name a run, such as 'my-run' or 'runs/my-run'; got {text!r}.")
    return target


def reference_dir(name: str) -> Path:
    """The folder of a reference record to be written.

    >>> reference_dir("a/b") == results_dir() / "a" / "b"
    True

    Raises
    ------
    ValueError : an empty name, an absolute path, or one that leaves ``results/``.
    """
    path = _path("name", name)
    if path.is_absolute():
        raise ValueError(f"name must be one under results/; got the absolute path {os.fspath(name)!r}.")
    return run_dir(path if path.parts[:1] == ("results",) else Path("results") / path, confined=True)


def _path(what: str, value: str | os.PathLike) -> Path:
    """A parameter's value as a path, ``~`` expanded, but no other user's home."""
    try:
        text = os.fspath(value).strip()
        path = Path(text)
        if path.parts[:1] == ("~",):
            path = path.expanduser()
        foreign = path.parts[:1] and path.parts[0].startswith("~")
        # no NUL, no line break, and no longer than file systems take
        if text and not foreign and text.isprintable() and all(len(os.fsencode(part)) <= 255 for part in path.parts):
            return path
    except (TypeError, RuntimeError):  # no path at all, or no home
        pass
    raise ValueError(f"{what} must name a run, such as 'my-run' or 'runs/my-run'; got {value!r}.")


_MOST_NAMED = 8


def find_run(name: str | os.PathLike) -> Path:
    """The folder of an existing run: the run of that name in ``runs/``, else in ``results/``, else the folder
    of that name, absolute or seen from the working folder.

    Raises
    ------
    FileNotFoundError : no such record; the message lists those there are, of many those with similar names.
    """
    given = _path("name", name)
    candidates = [Path.cwd() / given]
    if not given.is_absolute():
        with contextlib.suppress(ValueError):  # what is no name under runs/ may still be a folder
            candidates = [run_dir(name), results_dir() / given, *candidates]
    for folder in candidates:
        with contextlib.suppress(OSError):  # a folder that one may not look into
            if (folder / "config.json").is_file():
                return folder
    known = sorted(
        f"{kind}/{found.parent.relative_to(base)}"
        for kind, base in (("runs", runs_dir()), ("results", results_dir()))
        for found in base.glob("**/config.json")
    )
    there = ", ".join(known) if known else "none yet; make one with `grokutils train`"
    if len(known) > _MOST_NAMED:
        near = difflib.get_close_matches(os.fspath(name), known, n=3, cutoff=0.4)
        there = f"{len(known)}, which `grokutils list` shows" + (f"; of similar names {', '.join(near)}" if near else "")
    raise FileNotFoundError(f"there is no record {os.fspath(name)!r}. Records here: {there}.")
