"""How much memory there is to be had."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_memory", "is_out_of_memory", "size_in_words"]


def available_memory() -> int | None:
    """Bytes this process may still take: what the machine has free, its container allows, and its own limit. None
    where nothing says so.

    >>> available_memory() > 0
    True
    """
    limits = [limit for limit in (_machine(), _container(), _own()) if limit is not None]
    return max(0, min(limits)) if limits else None


def _machine() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _container() -> int | None:
    """What is left of a control group's limit (version 2, else 1)."""
    for folder, most, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        texts = [line for name in (most, used) for line in _lines(f"{folder}/{name}")[:1]]
        if len(texts) == 2 and all(text.isdigit() for text in texts):
            reclaimable = sum(
                int(line.split()[1]) for line in _lines(f"{folder}/memory.stat") if line.startswith("inactive_file ")
            )
            return int(texts[0]) - int(texts[1]) + reclaimable
    return None


def _own() -> int | None:
    """What is left of the limit on this process's address space."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _lines("/proc/self/statm")
    if most == resource.RLIM_INFINITY or not used:
        return None
    return most - int(used[0].split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had; PyTorch has no class of its own for it on a CPU.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text


def size_in_words(count: float) -> str:
    """Bytes as a reader takes them in.

    >>> size_in_words(5.4e9)
    '5.0 GiB'
    """
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
