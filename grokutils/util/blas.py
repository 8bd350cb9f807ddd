"""How many threads the linear algebra of small matrices gets: one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from threadpoolctl import ThreadpoolController

# Below this many eigenvalues a second thread gains little on an idle machine and costs 5 to 10 times the
# time on a busy one, where each of a decomposition's thousands of hand-overs waits for a core.
LARGE = 2048


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: once is enough


@contextlib.contextmanager
def threads_for(shape: tuple[int, ...]) -> Iterator[None]:
    """One BLAS thread for a matrix whose shorter side is small, all of them otherwise.

    The setting is the process's, and is put back on leaving.
    """
    if min(shape, default=0) >= LARGE:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """The same for torch, whose threads wait for each other just as badly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
