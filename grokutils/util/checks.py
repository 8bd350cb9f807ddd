"""Which numbers an argument may be, said once and checked in one place.

>>> Interval(int, 1).check("jobs", 4)
4
>>> Interval(float, 0, 1, open_low=True).check("share", 2)
Traceback (most recent call last):
ValueError: share must be a number greater than 0 and at most 1; got 2.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

__all__ = ["Interval", "shown"]


@dataclass(frozen=True)
class Interval:
    """Numbers of a kind between two bounds, which belong to it unless ``open_low``; None: no bound.

    >>> str(Interval(int, 1, 1024)), str(Interval(float, 0, open_low=True))
    ('a whole number of at least 1 and at most 1,024', 'a number greater than 0')
    """

    kind: type[int] | type[float]
    low: float | None = None
    high: float | None = None
    open_low: bool = False

    def __str__(self) -> str:
        said = "a whole number" if self.kind is int else "a number"
        if self.low is not None:
            said += f" greater than {self.low:,}" if self.open_low else f" of at least {self.low:,}"
        if self.high is not None:
            said += f"{' and' if self.low is not None else ' of'} at most {self.high:,}"
        return said

    def check(self, name: str, value: Any, *, text: bool = False, error: type[ValueError] = ValueError) -> int | float:
        """The value as a number; a whole float will do for an integer, and with ``text`` the text of a number too.

        Raises
        ------
        ValueError : or ``error``: no such number, or one outside; the message says what is allowed and what was got.
        """
        number = _number(value, self.kind, text)
        # written so that NaN, of which no comparison holds, is refused
        above = number is not None and (self.low is None or number > self.low or (number == self.low and not self.open_low))
        if not above or not (self.high is None or number <= self.high):
            raise error(f"{name} must be {self}; got {shown(value)}.")
        return number


def _number(value: Any, kind: type, text: bool) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, str) if text else numbers.Real):
        return None
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    try:
        number = float(value)
        if kind is int:
            return int(number) if int(number) == number else None
    except (ValueError, OverflowError):
        return None
    return number + 0.0  # -0.0 is 0.0: equal configurations have one name and one identity


def shown(value: Any) -> str:
    """A value as it goes into a message: one line of its repr, never a page.

    >>> shown("a\\nb")
    "'a\\\\nb'"
    """
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python does not write out an int of thousands of digits
        text = "an int of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
