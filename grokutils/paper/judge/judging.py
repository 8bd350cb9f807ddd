"""From a claim and its tests to a verdict, by one stated rule.

>>> at_most_half = Range((0, 0.5), (0, 0.6))
>>> at_most_half.verdict(Finding(0.4, 0.3, 0.55, 20)), at_most_half.verdict(Finding(0.4, 0.3, 0.7, 20))
('replicates', 'partly')

What the claims are is in `grokutils.paper.claims`, and how their numbers are got in `grokutils.paper.judge.evidence` and
`grokutils.paper.judge.findings`.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

from grokutils.paper.judge.evidence import NotMeasured, Source
from grokutils.paper.judge.findings import Finding, Test
from grokutils.paper.judge.published import Number
from grokutils.paper.judge.stats import FEWEST
from grokutils.records.analysis import NotKept
from grokutils.records.study import study

__all__ = [
    "ARITHMETIC", "RULE", "VERDICTS", "Claim", "ClaimJudged", "Judged", "Part", "PartJudged", "Range", "around", "at_least",
    "at_most", "judge_claim", "judge_claims", "spreads",
]  # fmt: skip

VERDICTS = ("replicates", "partly", "does not", "not yet measured")

#: The scale of claims that need no record.
ARITHMETIC = "arithmetic"

RULE = (
    "Each part of a claim is one number, which has a range that agrees with the paper and a wider one that comes "
    "close. A part replicates if its number agrees and its 95 % interval over networks stays close; it does not if its "
    "number is not even close and the interval does not touch what agrees; otherwise it is partly so. With fewer than "
    f"{FEWEST} networks there is no interval, and the number alone decides. A claim replicates if all its judged parts "
    "do, does not if none of them does even partly, and is partly so otherwise. It is not yet measured as long as any "
    "judged part is not. A claim that says always, only or none does not replicate as soon as one part does not."
)


@dataclass(frozen=True)
class Range:
    """What agrees with the paper, and what comes close to it; both ends belong to it.

    >>> str(Range((0.25, math.inf), (0.1, math.inf)))
    '≥ 0.25 agrees, ≥ 0.1 is close'
    """

    agrees: tuple[float, float]
    close: tuple[float, float]

    def __post_init__(self) -> None:
        if not (self.close[0] <= self.agrees[0] <= self.agrees[1] <= self.close[1]):
            raise ValueError(
                f"what agrees must lie inside what is close; got {self.agrees} and {self.close}."
            )

    def verdict(self, found: Finding) -> str:
        """See `RULE`."""
        low = found.value if found.low is None else min(found.low, found.value)
        high = found.value if found.high is None else max(found.high, found.value)
        if _inside(found.value, self.agrees) and self.close[0] <= low and high <= self.close[1]:
            return "replicates"
        if not _inside(found.value, self.close) and (high < self.agrees[0] or low > self.agrees[1]):
            return "does not"
        return "partly"

    def __str__(self) -> str:
        if self.agrees == self.close:
            return f"{_span(self.agrees)} agrees"
        return f"{_span(self.agrees)} agrees, {_span(self.close)} is close"


def _inside(value: float, span: tuple[float, float]) -> bool:
    return span[0] <= value <= span[1]


def _span(span: tuple[float, float]) -> str:
    low, high = (f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}" for x in span)
    if math.isinf(span[1]):
        return f"≥ {low}"
    if math.isinf(span[0]):
        return f"≤ {high}"
    return f"{low} to {high}"


def at_least(agrees: float, close: float) -> Range:
    return Range((agrees, math.inf), (close, math.inf))


def at_most(agrees: float, close: float) -> Range:
    return Range((-math.inf, agrees), (-math.inf, close))


def around(number: SupportsFloat, agrees: float, close: float) -> Range:
    """Within so much of a printed number."""
    x = float(number)
    return Range((x - agrees, x + agrees), (x - close, x + close))


def spreads(number: Number) -> Range:
    """Within two printed standard deviations of a printed mean; within four is close."""
    return around(number, 2 * number.spread, 4 * number.spread)


@dataclass(frozen=True)
class Part:
    """One number of a claim."""

    label: str
    test: Test
    #: Where the number agrees with the paper; None for one that is shown and not judged.
    range: Range | None = None
    #: What the paper prints for it.
    paper: str = ""
    #: How the number is written.
    style: str = ".2f"
    #: The recipe whose records it is judged on, if it speaks of that recipe only.
    only: str | None = None


@dataclass(frozen=True)
class Claim:
    """One claim of the papers, in our words."""

    id: str
    topic: str
    title: str
    statement: str
    source: str
    paper: str
    #: The records it needs, by the names in `REFERENCE`; none for arithmetic.
    needs: tuple[str, ...]
    parts: tuple[Part, ...]
    remark: str = ""
    #: It says "always", "only" or "none", so that one part that fails refutes it.
    exclusive: bool = False

    @property
    def judged(self) -> list[int]:
        """Places of the parts that decide the verdict; the others (`shown`) are there for comparison."""
        return [i for i, part in enumerate(self.parts) if part.range]

    @property
    def shown(self) -> list[int]:
        return [i for i, part in enumerate(self.parts) if not part.range]


@dataclass(frozen=True)
class PartJudged:
    """A part's number, or why there is none; no verdict for a number that is only shown."""

    label: str
    paper: str
    rule: str
    style: str
    verdict: str | None
    finding: Finding | None
    reason: str = ""


@dataclass(frozen=True)
class ClaimJudged:
    verdict: str
    parts: tuple[PartJudged, ...]

    @property
    def reasons(self) -> list[str]:
        """Why it is not yet measured."""
        return list(dict.fromkeys(p.reason for p in self.parts if p.verdict == VERDICTS[3]))


@dataclass(frozen=True)
class Judged:
    """All claims, by scale and id, and the records they were judged on."""

    claims: tuple[Claim, ...]
    results: Mapping[str, Mapping[str, ClaimJudged]]
    #: By scale and need: name, label and how far, or why it is missing.
    records: Mapping[str, Mapping[str, Mapping[str, Any]]]
    notes: tuple[str, ...] = ()

    def verdict(self, claim: str, scale: str) -> str | None:
        """The verdict on a claim at a scale; None if it does not speak of that scale."""
        found = self.results[scale].get(claim)
        return found and found.verdict

    def of(self, claim: Claim) -> dict[str, ClaimJudged]:
        """What became of a claim, by the scales that it speaks of."""
        return {scale: own for scale, found in self.results.items() if (own := found.get(claim.id))}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "rule": RULE,
            "records": {scale: dict(records) for scale, records in self.records.items()},
            "claims": [self._claim(claim) for claim in self.claims],
        }

    def _claim(self, claim: Claim) -> dict[str, Any]:
        plain = {
            name: getattr(claim, name)
            for name in ("id", "topic", "title", "statement", "source", "paper", "remark", "exclusive")
        }
        results = {
            scale: {"verdict": own.verdict, "parts": [_plain_part(p) for p in own.parts]}
            for scale, own in self.of(claim).items()
        }
        return plain | {"needs": list(claim.needs), "results": results}


def _plain_part(part: PartJudged) -> dict[str, Any]:
    found = part.finding
    numbers = {} if found is None else {
        "value": _rounded(found.value), "low": _rounded(found.low), "high": _rounded(found.high), "networks": found.n,
        "note": found.note,
    }  # fmt: skip
    own = {
        "label": part.label,
        "paper": part.paper,
        "rule": part.rule,
        "verdict": part.verdict,
        "reason": part.reason,
    }
    return own | numbers


def _rounded(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else float(f"{x:.6g}")


class _Sources(dict[str, Source]):
    """The records of one scale; asking for one that is not there raises `NotMeasured`."""

    def __init__(self, sources: Mapping[str, Source], reasons: Mapping[str, str]):
        super().__init__(sources)
        self._reasons = reasons

    def __missing__(self, key: str) -> Source:
        alone = f"there is no run at weight decay {key.removeprefix('wd')} beside it"
        raise NotMeasured(self._reasons.get(key, alone))


def judge_claims(
    claims: Sequence[Claim],
    records: Mapping[str, Mapping[str, str | os.PathLike | None]],
    progress: bool = True,
) -> Judged:
    """Judge claims on records; see `grokutils.paper.claims.judge`."""
    results: dict[str, dict[str, ClaimJudged]] = {}
    described: dict[str, dict[str, dict[str, Any]]] = {}
    notes: list[str] = []
    for scale, named in records.items():
        sources, missing = _read(named, progress, notes)
        described[scale] = {key: _described(key, sources, missing) for key in named if named[key] is not None}
        everything = _Sources(sources, missing)
        wanted = [c for c in claims if c.needs and all(named.get(key, "") is not None for key in c.needs)]
        results[scale] = {claim.id: judge_claim(claim, everything) for claim in wanted}
    results[ARITHMETIC] = {c.id: judge_claim(c, _Sources({}, {})) for c in claims if not c.needs}
    return Judged(tuple(claims), results, described, tuple(dict.fromkeys(notes)))


def _read(named: Mapping, progress: bool, notes: list[str]) -> tuple[dict[str, Source], dict[str, str]]:
    sources: dict[str, Source] = {}
    missing: dict[str, str] = {}
    for key, name in named.items():
        if name is None:
            continue
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", NotKept)
                # a run of several decays serves as each
                pick = max if key == "wd0.01" else min
                sources[key] = Source(study(name, pick=pick, progress=progress), os.fspath(name))
        except FileNotFoundError:
            missing[key] = f"there is no record {os.fspath(name)}"
            continue
        for one in caught:
            if issubclass(one.category, NotKept):
                notes.append(str(one.message))
            else:  # not ours to hold back
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return sources, missing


def _described(key: str, sources: Mapping[str, Source], missing: Mapping[str, str]) -> dict[str, Any]:
    if key in missing:
        return {"missing": missing[key]}
    source = sources[key]
    return {
        "name": source.name, "recipe": source.recipe, "weight_decay": source.study.weight_decay,
        "networks": source.study.n, "step": source.study.step, "of": source.horizon, "label": source.study.label,
    }  # fmt: skip


def judge_claim(claim: Claim, sources: Mapping[str, Source]) -> ClaimJudged:
    """Judge one claim on records at hand; `_Sources` says what is missing, a plain dict will do if nothing is."""
    parts = tuple(_judge_part(part, claim, sources) for part in claim.parts)
    given = [part.verdict for part in parts if part.verdict]
    return ClaimJudged(_combined(given, claim.exclusive), parts)


def _judge_part(part: Part, claim: Claim, sources: Mapping[str, Source]) -> PartJudged:
    verdict, found, reason = None, None, ""
    rule = str(part.range) if part.range else ""
    recipes = {sources[key].recipe for key in claim.needs if key in sources}
    judged = part.range is not None and (part.only is None or recipes <= {part.only})
    try:
        found = part.test(sources)
        verdict = part.range.verdict(found) if judged else None
    except NotMeasured as why:
        reason = str(why)
        verdict = VERDICTS[3] if judged else None
    return PartJudged(part.label, part.paper, rule if judged else "", part.style, verdict, found, reason)


def _combined(verdicts: Sequence[str], exclusive: bool = False) -> str:
    """The verdict on a claim from those on its parts; see `RULE`."""
    replicates, _, does_not, unmeasured = VERDICTS
    if exclusive and does_not in verdicts:
        return does_not
    if unmeasured in verdicts:
        return unmeasured
    for all_alike in (replicates, does_not):
        if set(verdicts) == {all_alike}:
            return all_alike
    return "partly"
