"""Names that somebody else chose, as they may be shown."""

from __future__ import annotations

__all__ = ["safe_name", "visible"]

_SAFE = frozenset(" -_.,=+/()@%")


def visible(text: str) -> str:
    """One line for a terminal: control characters, line breaks and marks of direction as their escapes.

    >>> print(visible("a\\x1b[31mb"))
    a\\x1b[31mb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def safe_name(text: str) -> str:
    """A name that is no markup, in HTML, Markdown, TeX, a figure or a terminal: letters, digits and a few signs are
    kept, and ``?`` stands for all else.

    >>> safe_name("wd=0.1/<b>*x*")
    'wd=0.1/?b??x?'
    """
    return "".join(c if c.isalnum() or c in _SAFE else "?" for c in text)
