"""Numbers that pages state in prose are those of the package and of the recorded benchmarks."""

import json
import re
from pathlib import Path

from grokutils import RunConfig
from grokutils.spectra.trap_makers import lone_weight

ROOT = Path(__file__).resolve().parent.parent


def page(name: str) -> str:
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_how_large_a_lone_weight_makes_a_trap():
    said = page("book/howto_diagnose.md")
    first = re.search(r"([\d.]+) standard deviations in a matrix of (\d+) × (\d+)", said)
    others = re.findall(r"([\d.]+) of (\d+) × (\d+)", said)
    assert len(others) == 3
    for size, rows, columns in (first.groups(), *others):
        assert size == f"{lone_weight((int(rows), int(columns))):.1f}"


def test_what_a_measurement_costs():
    results = {
        name: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for name in ("diagnostics", "training")
    }
    name = "Monitor, one measurement (5 shuffles)"
    measured = sorted(results["diagnostics"][kind]["milliseconds"][name] for kind in ("mlp", "mlp with traps"))
    ours = [v for k, v in results["training"]["paper"]["microseconds"].items() if k.startswith("grokutils")]
    step = min(ours) / 1000, max(ours) / 1000
    said = page("book/howto_monitor.md")
    assert f"takes {measured[0]:.0f} to {measured[1]:.0f} ms of one core" in said
    assert f"takes {step[0]:.2f} to {step[1]:.2f} ms there" in said
    share = measured[0] / step[1] / 10, measured[1] / step[0] / 10
    assert f"it costs {share[0]:.0f} to {share[1]:.0f} % of the time" in said


def test_how_many_digits_are_learnt():
    images = [10 * RunConfig.recipe(name).per_class for name in ("express", "paper")]
    assert "between a hundred and a thousand labelled digits" in page("notebooks/01_setup.ipynb").replace('\\n", "', "")
    assert 100 <= min(images) and max(images) <= 1000
