"""Every claim on harmful traps can get every verdict, from frames whose verdict is known."""

from __future__ import annotations

import pandas as pd
import pytest
from test_claims import KEPT, S, run

from grokutils.paper.claims import CLAIMS, TOPICS
from grokutils.paper.harmful_traps import evidence as evidence_harm
from grokutils.paper.harmful_traps.claims import HARM_CLAIMS, HARM_TOPIC
from grokutils.paper.harmful_traps.forgetting import INPUTS, NEARNESS
from grokutils.paper.harmful_traps.intervention_study import ALL
from grokutils.paper.harmful_traps.regrowth import ARMS
from grokutils.paper.judge.judging import VERDICTS, judge_claim

YES, PARTLY, NO, UNMEASURED = VERDICTS
BY_ID = {claim.id: claim for claim in HARM_CLAIMS}
N = 12

#: What is measured: for each claim the numbers that replicate it, do partly, and do not.
CASES = {
    "harm-told": [dict(js=(0.01, 0.5)), dict(js=(0.01, 0.5), wrong=3), dict(js=(0.5, 0.5))],
    "harm-undone": [dict(removed=0.1, random=-0.1), dict(removed=0.01, random=0.0), dict(removed=-0.5, random=-0.3)],
    "harm-most-removals": [dict(raises=0.0), dict(raises=0.4), dict(raises=0.9)],
    "harm-planted": [dict(planted=0.5), dict(planted=0.1), dict(planted=0.0)],
    "trap-regrows": [dict(traps=(1.0, 1.0)), dict(traps=(1.0, 0.0)), dict(traps=(0.0, 0.0))],
    "answers-pile": [dict(pile=0.3, replaced=0.1), dict(pile=0.3, replaced=0.0), dict(pile=0.0, replaced=0.0)],
    "norm-alone": [dict(same=0.9, norm=0.8), dict(same=0.9, norm=0.2), dict(same=0.1, norm=0.2)],
    "prototypes": [dict(like=0.5, near=0.9), dict(like=0.5, near=0.5), dict(like=0.0, near=0.5)],
}  # fmt: skip


def source(js=(0.01, 0.5), wrong=0, removed=-0.5, random=-0.3, raises=0.0, planted=0.0, traps=(1.0, 1.0), left=0.0, pile=0.1,
           replaced=0.1, same=0.1, norm=0.2, like=0.0, near=0.5, story=S):  # fmt: skip
    found = run(*(story,) * N)
    rows, forks, piled, norms, shapes, nears = [], [], [], [], [], []
    for m in range(N):
        for step in (1, 2):
            at = {"step": step, "member": m, "strength": 1.0, "norm": 1.0, "train_accuracy": 1.0, "train_change": 0.0,
                  "test_accuracy": 0.9 if step == 1 else 0.5}  # fmt: skip
            for i in range(10):  # half of the traps are harmless
                low = 0.01 if i < 10 * raises else -0.01 if i % 2 else -0.5
                high = 0.015 if i < 10 * raises else 0.01 if i % 2 else -0.4
                j = js[0] if i % 2 else js[1]
                if i < wrong:
                    j = js[1] if j == js[0] else js[0]
                for how in ("taken out", "replaced by noise"):
                    rows.append(at | {"layer": "fc1", "operation": how, "control": "", "js": j, "test_low": low,
                                      "test_high": high, "test_change": (low + high) / 2})  # fmt: skip
            for control, change in (("", removed), ("direction", random)):
                rows.append(at | {"layer": ALL, "operation": "taken out", "control": control, "js": 0.1, "test_low": change,
                                  "test_high": change, "test_change": change})  # fmt: skip
            for i in range(10):
                rows.append(at | {"layer": "fc1", "operation": "mean", "control": "", "js": 0.1, "test_low": 0, "test_high": 0,
                                  "test_change": -0.2, "train_change": 0.0 if i < 10 * planted else -0.5})  # fmt: skip
        for start in ("best", "last"):
            for layer, count in zip(("fc1", "fc2"), traps, strict=True):
                forks += [
                    {"step": step, "member": m, "start": start, "arm": arm, "layer": layer, "traps": traps_then,
                     "trap_strength": 2.0}
                    for step, traps_then in ((0, left), (9, count)) for arm in ARMS
                ]  # fmt: skip
        for when, edit, share in (("best", "as it is", 0.1), ("last", "as it is", 0.1 + pile),
                                  ("last", "first trap of FC1 replaced by noise", 0.1 + pile - replaced)):  # fmt: skip
            piled.append({"member": m, "when": when, "edit": edit, "kind": INPUTS[0], "share": share, "answer": 5})
        norms.append({"member": m, "when": "last", "same": same, "same_by_chance": 0.1, "from_norm": norm, "commonest": 0.2})
        shapes += [{"step": 9, "member": m, "depth": d, "r": 0.2 + like, "r_random": 0.2} for d in (1, 2, 3)]
        nears.append({"member": m, "near": NEARNESS[2], "auc": near})
    frames = dict(interventions=rows, regrowth=forks, piling=piled, norms=norms, prototypes=shapes, nearness=nears)
    evidence_harm._seen[found] = {name: pd.DataFrame(own) for name, own in frames.items()}
    return found


def test_every_claim_has_a_case_for_each_verdict_and_is_on_the_page():
    assert set(CASES) == set(BY_ID) and len(BY_ID) == len(HARM_CLAIMS)
    assert {claim.topic for claim in HARM_CLAIMS} == set(HARM_TOPIC) <= set(TOPICS)
    assert [claim for claim in CLAIMS if claim.topic in HARM_TOPIC] == list(HARM_CLAIMS)


@pytest.mark.parametrize(
    "claim, verdict, numbers",
    [(claim, verdict, case) for claim, cases in CASES.items() for verdict, case in zip(VERDICTS, cases, strict=False)],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_claim_gets_the_verdict_of_the_numbers(claim, verdict, numbers):
    found = judge_claim(BY_ID[claim], {"wd0": source(**numbers)})
    parts = [(p.label, p.verdict, p.finding, p.reason) for p in found.parts if p.verdict]
    assert found.verdict == verdict, "\n".join(map(str, parts))


@pytest.mark.parametrize("claim", BY_ID)
def test_a_record_that_stops_short_or_holds_nothing_is_not_yet_measured(claim):
    short = judge_claim(BY_ID[claim], {"wd0": run(S, S, until=0.01)})
    assert short.verdict == UNMEASURED and all("reaches step" in reason for reason in short.reasons)
    bare = judge_claim(BY_ID[claim], {"wd0": run(S, S)})
    assert bare.verdict == UNMEASURED and all("express-test" in reason for reason in bare.reasons)


@pytest.mark.parametrize("claim", ["harm-undone", "answers-pile", "norm-alone", "prototypes"])
def test_what_is_said_of_collapsed_networks_is_judged_on_them_alone(claim):
    found = judge_claim(BY_ID[claim], {"wd0": source(story=KEPT)})
    assert found.verdict == UNMEASURED and all("no network of express-test has a value" in why for why in found.reasons)


def test_a_threshold_needs_networks_to_judge_it_on():
    found = source()
    own = evidence_harm._seen[found]["interventions"]
    evidence_harm._seen[found]["interventions"] = own[own.member < 5]
    (part, *_) = judge_claim(BY_ID["harm-told"], {"wd0": found}).parts
    assert part.verdict == UNMEASURED and "has 2 networks to judge a threshold on" in part.reason


def test_only_forked_networks_count():
    found = source()
    own = evidence_harm._seen[found]["regrowth"]
    evidence_harm._seen[found]["regrowth"] = own[own.member < 6]
    parts = judge_claim(BY_ID["trap-regrows"], {"wd0": found}).parts
    assert parts[0].finding.n == 6 and parts[-1].finding.value == 1.0


def test_a_layer_with_another_trap_left_says_nothing_of_regrowth():
    found = judge_claim(BY_ID["trap-regrows"], {"wd0": source(left=1.0)})
    assert found.verdict == UNMEASURED and all("no network" in why for why in found.reasons)
