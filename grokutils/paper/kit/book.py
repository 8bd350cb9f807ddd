"""A Sphinx extension that tells the notebooks of the book that they are read, not run by hand.

A page that trains when a reader runs it shows the reference record instead while the book is being built, so
that a build takes seconds. Several pages are run at once, each in one thread: the matrices are small, and threads that
wait for each other on a busy machine take many times as long.
"""

from __future__ import annotations

import os
from typing import Any

BUILDING = "GROKUTILS_BOOK"


def being_built() -> bool:
    """Whether this process belongs to a build of the book."""
    return bool(os.environ.get(BUILDING))


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx; the notebooks' kernels inherit the variable."""
    os.environ[BUILDING] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # `jupyter-book build` has no option for it. More than there are cores, since pages are dealt out in batches.
    app.parallel = 2 * (os.cpu_count() or 1)
    app.connect("config-inited", _read_in_parallel)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _read_in_parallel(app: Any, config: Any) -> None:
    """Jupyter Book brings an extension that does not say whether pages may be read at once, which would forbid it. All
    it does comes after the reading: it numbers sections over several tables of contents."""
    if numbering := app.extensions.get("sphinx_multitoc_numbering"):
        numbering.parallel_read_safe = True
