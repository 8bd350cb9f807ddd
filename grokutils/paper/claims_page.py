"""The verdicts as a reader sees them: an overview, and for each claim what was measured.

>>> from grokutils.paper.claims import judge
>>> judged = judge()                                                 # doctest: +SKIP
>>> overview(judged), details(judged, "phases")                      # doctest: +SKIP

All are pieces of HTML that a notebook shows as such.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping

from grokutils.paper.claims import TOPICS, judge, with_run, write
from grokutils.paper.judge.judging import ARITHMETIC, RULE, VERDICTS, Claim, ClaimJudged, Judged, PartJudged
from grokutils.util.html import Html

__all__ = ["details", "judge", "overview", "records", "rule", "with_run", "write"]

#: What the columns are called.
SCALES = {"express": "express ensemble", "paper": "paper's recipe", ARITHMETIC: "arithmetic"}
_CLASSES = dict(zip(VERDICTS, ("yes", "partly", "no", "not-yet"), strict=True))

# Verdicts are words on their own paper, legible on a light and on a dark page; colour only repeats them.
_STYLE = """<style>
.claims .verdict { display: inline-block; padding: 0 0.5em; border-radius: 0.25em; white-space: nowrap;
  color: #1b1b1b; font-weight: 600; }
.claims .yes { background: #a9dcb3; } .claims .partly { background: #f7dd85; }
.claims .no { background: #f3b0a8; } .claims .not-yet { background: #d4d4d4; font-weight: 400; }
.claims table { border-collapse: collapse; margin: 0.3em 0 0.6em; width: 100%; display: table !important; }
.claims th, .claims td { padding: 0.25em 0.6em; border-bottom: 1px solid rgb(128 128 128 / 35%); text-align: left;
  vertical-align: top; }
.claims thead th { font-weight: 600; } .claims tbody th { font-weight: 400; }
.claims .of { white-space: nowrap; }
.claims .number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.claims .small { font-size: 0.88em; opacity: 0.85; }
.claims details > summary { cursor: pointer; padding: 0.2em 0; }
.claims .claim { border-left: 4px solid rgb(128 128 128 / 40%); padding: 0.1em 0 0.1em 1em; margin: 1.3em 0 1.8em; }
.claims .claim p { margin: 0.25em 0; } .claims .claim .title { font-weight: 700; font-size: 1.06em; }
html[data-theme="dark"] .bd-content div.cell_output .text_html:not(:has(table.dataframe)):has(.claims) {
  background: transparent; color: inherit; padding: 0; }
@media (max-width: 640px) {
  .claims thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  .claims table, .claims tbody, .claims tr, .claims td, .claims tbody th { display: block !important; border: 0; }
  .claims tr { border-bottom: 1px solid rgb(128 128 128 / 35%); padding: 0.35em 0; }
  .claims td, .claims tbody th { padding: 0.1em 0; }
  .claims td[data-of]::before { content: attr(data-of) ": "; opacity: 0.85; font-size: 0.88em; }
  .claims .number { white-space: normal; }
}
</style>"""


def rule() -> Html:
    """How a verdict comes about."""
    return Html(f"{_STYLE}<div class='claims tex2jax_ignore'><p>{html.escape(RULE)}</p></div>")


def overview(judged: Judged) -> Html:
    """How many claims got each verdict, and a table of all of them with links to what was measured."""
    columns = [scale for scale in judged.results if scale != ARITHMETIC]
    counts = "".join(
        f"<p>{_name(scale)}: {_counted(found)}</p>" for scale, found in judged.results.items() if found
    )
    head = "".join(f"<th scope='col'>{_name(scale)}</th>" for scale in columns)
    rows = "".join(_overview_row(judged, claim, columns) for claim in judged.claims)
    return Html(
        f"{_STYLE}<div class='claims tex2jax_ignore'>{counts}"
        f"<table><thead><tr><th scope='col'>Claim</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _name(scale: str) -> str:
    return html.escape(SCALES.get(scale, scale).capitalize())


def _counted(found: Mapping[str, ClaimJudged]) -> str:
    counts = Counter(one.verdict for one in found.values())
    return ", ".join(f"{counts[verdict]} {_badge(verdict)}" for verdict in VERDICTS if counts[verdict])


def _badge(verdict: str) -> str:
    return f"<span class='verdict {_CLASSES[verdict]}'>{verdict}</span>"


def _overview_row(judged: Judged, claim: Claim, columns: list[str]) -> str:
    title = f"<th scope='row'><a href='#claim-{claim.id}'>{html.escape(claim.title)}</a></th>"
    if not claim.needs:
        badge = _badge(judged.results[ARITHMETIC][claim.id].verdict)
        return f"<tr>{title}<td colspan='{len(columns)}' data-of='{_name(ARITHMETIC)}'>{badge} (by arithmetic)</td></tr>"
    cells = (
        f"<td data-of='{_name(scale)}'>{_badge(own.verdict) if (own := judged.results[scale].get(claim.id)) else '–'}</td>"
        for scale in columns
    )
    return f"<tr>{title}{''.join(cells)}</tr>"


def records(judged: Judged) -> Html:
    """The records that the claims are judged on, and how far they reach."""
    rows = []
    for scale, found in judged.records.items():
        for need, one in found.items():
            text = one.get("missing") or f"{one['name']}: {one['label']}"
            rows.append(
                f"<tr><th scope='row'>{_name(scale)}</th><td>{html.escape(need)}</td><td>{html.escape(text)}</td></tr>"
            )
    # what a note says after its colon is for whoever can mend it: paths of this machine
    notes = "".join(f"<p class='small'>Note: {html.escape(note.split(':')[0])}.</p>" for note in judged.notes)
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("Scale", "Needed as", "Record"))
    return Html(
        f"{_STYLE}<div class='claims tex2jax_ignore'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{notes}</div>"
    )


def details(judged: Judged, topic: str) -> Html:
    """All claims of a topic: what was measured, on which records, and what follows.

    Raises
    ------
    ValueError : no such topic.
    """
    if topic not in TOPICS:
        raise ValueError(f"topic must be one of {', '.join(map(repr, TOPICS))}; got {topic!r}.")
    shown = "".join(_claim(judged, claim) for claim in judged.claims if claim.topic == topic)
    return Html(f"{_STYLE}<div class='claims tex2jax_ignore'>{shown}</div>")


def _claim(judged: Judged, claim: Claim) -> str:
    found = {scale: own for scale, results in judged.results.items() if (own := results.get(claim.id))}
    verdicts = " ".join(
        f"<span>{_name(scale)}: {_badge(own.verdict)}</span> " for scale, own in found.items()
    )
    why = "".join(
        f"<p class='small'>{_name(scale)}, not yet measured: {html.escape('; '.join(own.reasons))}.</p>"
        for scale, own in found.items()
        if own.reasons
    )
    remarks = ["One part that fails refutes this claim."] * claim.exclusive + [claim.remark] * bool(claim.remark)
    remark = f"<p class='small'>{html.escape(' '.join(remarks))}</p>" if remarks else ""
    return (
        f"<div class='claim' id='claim-{claim.id}'><p class='title'>{html.escape(claim.title)}</p>"
        f"<p>{html.escape(claim.statement)}</p>"
        f"<p class='small'>{html.escape(claim.source)}: {html.escape(claim.paper)}</p>"
        f"<p>{verdicts}</p>{why}{_parts(claim, found)}{remark}</div>"
    )


def _parts(claim: Claim, found: Mapping[str, ClaimJudged]) -> str:
    judged = [i for i, part in enumerate(claim.parts) if part.range]
    others = [i for i in range(len(claim.parts)) if i not in judged]
    hidden = ""
    if others:
        hidden = f"<details><summary>Also measured, not judged</summary>{_part_table(claim, others, found)}</details>"
    return _part_table(claim, judged, found) + hidden


def _part_table(claim: Claim, which: list[int], found: Mapping[str, ClaimJudged]) -> str:
    head = "".join(f"<th scope='col'>{_name(scale)}</th>" for scale in found)
    rows = []
    for i in which:
        part = claim.parts[i]
        only = f", on the {part.only} recipe only" if part.only else ""
        rule = f"<br><span class='small'>{html.escape(f'{part.range}{only}')}</span>" if part.range else ""
        cells = "".join(
            f"<td data-of='{_name(scale)}'>{_number(own.parts[i])}</td>" for scale, own in found.items()
        )
        printed = html.escape(part.paper) or "–"
        rows.append(
            f"<tr><th scope='row'>{html.escape(part.label)}{rule}</th><td data-of='Papers'>{printed}</td>{cells}</tr>"
        )
    return (
        f"<table><thead><tr><th scope='col'>What is measured</th><th scope='col'>Papers</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _number(part: PartJudged) -> str:
    badge = f"<br>{_badge(part.verdict)}" if part.verdict else ""
    if part.finding is None:
        return _badge(part.verdict) if part.verdict else "–"
    found = part.finding
    text = _written(found.value, part.style)
    if found.low is not None:
        text += f" ({_written(found.low, part.style)} to {_written(found.high, part.style)})"
    of = f"<span class='of'>n = {found.n}</span>" if found.n else ""
    small = "; ".join(x for x in (of, html.escape(found.note)) if x)
    return f"<span class='number'>{text}</span> <span class='small'>{small}</span>{badge}"


def _written(value: float, style: str) -> str:
    return f"{value + 0.0:{style}}".replace("-", "−")
