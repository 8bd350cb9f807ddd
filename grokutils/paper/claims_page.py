"""The verdicts as a reader sees them: an overview, and for each claim what was measured.

>>> judged = judge()                                                 # doctest: +SKIP
>>> overview(judged), details(judged, "phases")                      # doctest: +SKIP

All are pieces of HTML that a notebook shows as such, made from `claims_page.html`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from grokutils.paper.claims import TOPICS, judge, with_run, write
from grokutils.paper.judge.judging import ARITHMETIC, RULE, VERDICTS, Judged
from grokutils.util.html import Html

__all__ = ["details", "judge", "overview", "records", "rule", "with_run", "write"]

#: What the columns are called.
SCALES = {"express": "express ensemble", "paper": "paper's recipe", ARITHMETIC: "arithmetic"}
_CLASSES = dict(zip(VERDICTS, ("yes", "partly", "no", "not-yet"), strict=True))


@cache
def _template() -> Template:
    folder = Path(__file__).parent
    made = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    made.filters["named"] = lambda scale: SCALES.get(scale, scale).capitalize()
    made.filters["written"] = lambda value, style: f"{value + 0.0:{style}}".replace("-", "−")
    return made.get_template("claims_page.html")


def _filled(what: str, judged: Judged | None = None, **more: str) -> Html:
    return Html(_template().render(what=what, judged=judged, rule=RULE, classes=_CLASSES, arithmetic=ARITHMETIC, **more))


def rule() -> Html:
    """How a verdict comes about."""
    return _filled("rule")


def overview(judged: Judged) -> Html:
    """How many claims got each verdict, and a table of all of them with links to what was measured."""
    return _filled("overview", judged)


def records(judged: Judged) -> Html:
    """The records that the claims are judged on, and how far they reach."""
    return _filled("records", judged)


def details(judged: Judged, topic: str) -> Html:
    """All claims of a topic: what was measured, on which records, and what follows.

    Raises
    ------
    ValueError : no such topic.
    """
    if topic not in TOPICS:
        raise ValueError(f"topic must be one of {', '.join(map(repr, TOPICS))}; got {topic!r}.")
    return _filled("details", judged, topic=topic)
