"""The claims that need controls: every verdict can come out, and what is missing is said."""

from dataclasses import replace

import pytest
from made_studies import COLLAPSE, NEVER, PLATEAU, SHALLOW, made

from grokutils.paper.causes import claims as claims_causes
from grokutils.paper.causes.claims import CAUSE_CLAIMS, CAUSE_RECORDS
from grokutils.paper.claims import REFERENCE
from grokutils.paper.judge.judging import VERDICTS, _Sources, judge_claim

BY_ID = {claim.id: claim for claim in CAUSE_CLAIMS}
REPLICATES, PARTLY, DOES_NOT, UNMEASURED = VERDICTS
FREE = ("clip", "center", "clip-center")
NAMES = [key.removeprefix("causes/") for key in CAUSE_RECORDS]
# known at the third of three measurements, before the fall at the last step
EARLY, NONE = (0, 0, 0, 1, 3, 9, 9), (0,) * 7
LOW, HIGH = (9, 9, 9, 1.5, 1.5, 1.5, 1.5), (9, 9, 9, 5, 5, 5, 5)


def judged(
    monkeypatch, tmp_path, claim, *, falls, traps=lambda name: NONE, alpha=lambda name: HIGH, norm=None,
    fall=COLLAPSE, stay=lambda name: PLATEAU,
):  # fmt: skip
    """Judge a claim on ten networks of each condition: which conditions fall, and what layers do in each."""
    made_ones = {}
    for name in NAMES:
        layers = ("fc1", "fc2", "fc3")
        study = made(
            tmp_path / name, (fall if falls(name) else stay(name),) * 10, shift=0.0,
            traps=dict.fromkeys(layers, traps(name)), alpha=dict.fromkeys(layers, alpha(name)),
        )  # fmt: skip
        provenance = '{"step": 100000, "complete": true, "data": [], "sessions": [], "diverged": {}}'
        (study.record.folder / "provenance.json").write_text(provenance)
        if norm is not None:
            study = replace(study, baselines=study.baselines.assign(l2_norm=norm(name, study.baselines.step)))
        made_ones[name] = study
    monkeypatch.setattr(claims_causes, "_study", lambda sources, name: made_ones[name])
    claims_causes._watched.cache_clear()
    return judge_claim(BY_ID[claim], {})


def of(*names):
    return lambda name: name in names


@pytest.mark.parametrize("falls, verdict", [
    (of("plain"), REPLICATES), (of("plain", "clip"), PARTLY), (of("plain", *FREE), DOES_NOT),
])  # fmt: skip
def test_whether_a_collapse_needs_traps(monkeypatch, tmp_path, falls, verdict):
    found = judged(monkeypatch, tmp_path, "collapse-needs-traps", falls=falls)
    assert found.verdict == verdict and found.parts[0].finding.n == 30


def test_five_points_and_ten_are_judged_each(monkeypatch, tmp_path):
    found = judged(monkeypatch, tmp_path, "collapse-needs-traps", falls=of("plain", *FREE), fall=SHALLOW)
    assert [part.verdict for part in found.parts[:2]] == [DOES_NOT, REPLICATES] and found.verdict == PARTLY
    # the median of five measurements does not see a fall at the last one
    assert found.parts[2].verdict is None and "does not fall" in found.parts[2].reason


def test_networks_that_hold_traps_say_nothing_of_it(monkeypatch, tmp_path):
    found = judged(monkeypatch, tmp_path, "collapse-needs-traps", falls=of("plain"), traps=lambda name: EARLY)
    assert found.verdict == UNMEASURED and found.reasons == ["no network stayed free of traps"]


@pytest.mark.parametrize("centred, verdict", [
    (NONE, REPLICATES), ((0, 0, 0, 0, 0, 4.5, 4.5), PARTLY), (EARLY, DOES_NOT),
])  # fmt: skip
def test_whether_traps_are_shifts(monkeypatch, tmp_path, centred, verdict):
    traps = {"plain": EARLY, "center": centred}
    found = judged(monkeypatch, tmp_path, "traps-are-shifts", falls=of("plain"), traps=lambda name: traps.get(name, NONE))
    assert found.verdict == verdict


DETECTORS = {
    "traps-warn-of-falls": dict(traps=(EARLY, NONE)),
    "alpha-warns-of-falls": dict(alpha=(LOW, HIGH)),
}


@pytest.mark.parametrize("claim", DETECTORS)
@pytest.mark.parametrize("falling, verdict", [(0, REPLICATES), (1, DOES_NOT)])
def test_a_signal_must_be_there_before_a_fall_and_nowhere_else(monkeypatch, tmp_path, claim, falling, verdict):
    falls = of("plain", "clip", "small-init")
    courses = {
        name: lambda condition, pair=pair: pair[falling if falls(condition) else 1 - falling]
        for name, pair in DETECTORS[claim].items()
    }
    found = judged(monkeypatch, tmp_path, claim, falls=falls, **courses)
    assert found.verdict == verdict, found.parts[0].finding
    networks = 10 * len(NAMES)
    assert f"{networks} networks of 10 seeds, 30 of them fell" in found.parts[0].finding.note


def test_networks_near_chance_are_shown_and_not_judged_on(monkeypatch, tmp_path):
    chance = ("random-labels", "never")
    falls = of("plain")
    found = judged(
        monkeypatch, tmp_path, "traps-warn-of-falls", falls=falls, stay=lambda n: NEVER if n in chance else PLATEAU,
        traps=lambda name: EARLY if falls(name) or name in chance else NONE,
    )  # fmt: skip
    own, every = found.parts[:2]
    assert own.verdict == found.verdict == REPLICATES and own.finding.value == 1.0 and own.finding.n == 10 * (len(NAMES) - 2)
    assert every.verdict is None and every.finding.value < 1.0 and every.finding.n == 10 * len(NAMES)


def test_a_rival_that_tells_speaks_against_the_claim(monkeypatch, tmp_path):
    falls = of("plain")
    # of the five measurements from where the set is known all make its range, so that nothing can go off in these
    found = judged(monkeypatch, tmp_path, "rivals-do-not-detect", falls=falls, norm=lambda name, step: 1.0)
    assert found.verdict == REPLICATES and found.parts[0].finding.value == 0.5


def test_what_is_not_there_is_not_yet_measured():
    missing = _Sources({}, {f"causes/{name}": f"there is no record results/causes/{name}" for name in NAMES})
    for claim in CAUSE_CLAIMS:
        found = judge_claim(claim, missing)
        assert found.verdict == UNMEASURED and "there is no record" in found.reasons[0]


def test_the_study_is_of_one_scale_alone():
    assert set(CAUSE_RECORDS) <= set(REFERENCE["express"]) and all(REFERENCE["paper"][key] is None for key in CAUSE_RECORDS)
    assert all(claim.needs == tuple(CAUSE_RECORDS) and claim.topic == "causes" for claim in CAUSE_CLAIMS)
