"""Text that a notebook shows as HTML."""

from __future__ import annotations

__all__ = ["Html"]


class Html(str):
    """HTML as text, shown as what it describes where it is the value of a notebook's cell.

    >>> Html("<b>x</b>")._repr_html_()
    '<b>x</b>'
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)
