"""A Sphinx extension that tells the notebooks of the book that they are read, not run by hand.

A page that trains when a reader runs it shows the reference record instead while the book is being built, so
that a build takes seconds. Pages are run in one thread: the matrices are small, and threads that wait for each other
on a busy machine take many times as long.
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
    return {"parallel_read_safe": True, "parallel_write_safe": True}
