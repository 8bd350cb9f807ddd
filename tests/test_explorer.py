"""The explorer: what it shows is what the record holds, and in a browser the slider changes it."""

from __future__ import annotations

import base64
import html
import json
import re
import subprocess
from html.parser import HTMLParser

import check_book
import numpy as np
import pandas as pd
import pytest

from grokutils import RunConfig, train
from grokutils.paper.explorer.page import explorer_data, explorer_html
from grokutils.paper.kit.figures import PHASE_COLORS
from grokutils.records.files import write_parquet
from grokutils.records.study import study

BROWSER = check_book.find_browser()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A small run of two networks that learns its training set."""
    folder = tmp_path_factory.mktemp("explorer") / "small"
    config = RunConfig.recipe(
        "express", steps=600, width=24, per_class=2, init_scale=2, learning_rate=0.02
    ).ensemble((0, 1))
    made = train(config, out=folder, progress=False)
    study(folder, progress=False)
    return made


@pytest.fixture(scope="module")
def data(record):
    return explorer_data(record, member=1)


# -- what is embedded -------------------------------------------------------------------------------------


def test_numbers_are_the_records(record, data):
    found = study(record.folder, progress=False)
    assert data["steps"] == record.steps_saved
    metrics = found.metrics[found.metrics.member == 1]
    assert data["curve"]["step"] == metrics.step.tolist()
    np.testing.assert_allclose(data["curve"]["test"], metrics.test_accuracy, rtol=1e-3)
    assert [layer["name"] for layer in data["layers"]] == ["fc1", "fc2"]
    for layer in data["layers"]:
        own = found.diagnostics[(found.diagnostics.member == 1) & (found.diagnostics.layer == layer["name"])]
        for column in ("alpha", "traps", "xmin"):
            np.testing.assert_allclose(np.array(layer[column], float), own[column], rtol=1e-3)
        assert layer["tail"] == own.n_tail.tolist()
        last = found.eigenvalues(layer["name"], 600, 1)
        assert layer["largest"][-1] == pytest.approx(last[-1], rel=1e-3)


def test_histograms_hold_every_eigenvalue_that_is_in_the_picture(record, data):
    found = study(record.folder, progress=False)
    for layer in data["layers"]:
        for name, shuffle in (("esd", -1), ("shuffled", None)):
            drawn = layer[name]
            assert {len(row) for row in drawn["counts"]} == {len(drawn["counts"][0])}
            for row, total, step in zip(drawn["counts"], drawn["of"], data["steps"], strict=True):
                x = found.eigenvalues(layer["name"], step, 1, shuffle)
                x = x / x.mean() if shuffle is None else x
                kept = x[x > 1e-5]
                assert total == x.size
                inside = np.sum((np.log10(kept) >= drawn["low"]) & (np.log10(kept) <= drawn["high"]))
                assert sum(row) == pytest.approx(inside, abs=1)  # an edge is rounded to four digits


def test_the_bulk_is_in_units_of_the_mean(data):
    for layer in data["layers"]:
        Q = max(layer["rows"], layer["columns"]) / layer["n"]
        for sigma, low, high, threshold in zip(
            *(layer[key] for key in ("sigma", "low", "high", "threshold")), strict=True
        ):
            assert high == pytest.approx(sigma**2 * (1 + Q**-0.5) ** 2, rel=2e-3)
            assert low == pytest.approx(sigma**2 * (1 - Q**-0.5) ** 2, rel=2e-3, abs=1e-9)
            assert threshold > high


def test_the_slider_starts_at_the_best_test_accuracy(record, data):
    best = study(record.folder, progress=False).member_phases[1].peak
    assert data["steps"][data["start"]] == pytest.approx(best, rel=0.2)
    assert data["phases"][0]["name"] == "pre-grokking"
    assert {phase["name"]: phase["color"] for phase in data["phases"]}.items() <= PHASE_COLORS.items()


def test_a_layer_without_numbers_is_shown_as_such(record, tmp_path):
    found = study(record.folder, progress=False)
    lost = found.diagnostics.copy()
    lost.loc[lost.step == 600, ["alpha", "xmin", "traps"]] = np.nan
    kept = found.spectra[(found.spectra.step != 600) | (found.spectra.layer != "fc1")]
    broken = type(found)(found.record, 0.0, found.metrics, lost, kept.reset_index(drop=True), found.baselines)
    data = explorer_data(broken)
    assert data["layers"][0]["alpha"][-1] is None and data["layers"][0]["esd"]["of"][-1] == 0
    assert data["layers"][0]["sigma"][-1] is None and data["layers"][1]["sigma"][-1] is not None
    json.loads(embedded(explorer_html(broken)))  # no NaN, which is no JSON


def test_many_steps_are_thinned_and_the_page_stays_small(record):
    found = study(record.folder, progress=False)
    many = 250
    parts = {"diagnostics": [], "spectra": [], "metrics": []}
    for name, frames in parts.items():
        one = getattr(found, name)
        one = one[(one.step == 600) & (one.member == 0)]
        frames += [one.assign(step=step) for step in range(1, many + 1)]
    joined = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    long = type(found)(
        found.record, 0.0, joined["metrics"], joined["diagnostics"], joined["spectra"], found.baselines
    )
    data = explorer_data(long)
    assert len(data["steps"]) == 240 and data["steps"][0] == 1 and data["steps"][-1] == many
    assert len(explorer_html(long)) < 3_000_000


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(member=2), r"member must be one of 0, 1; got 2\."),
        (dict(layers=["fc9"]), r"layers must be among fc1, fc2; got 'fc9'\."),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(record, options, said):
    with pytest.raises(ValueError, match=said):
        explorer_html(record, **options)


# -- the page ---------------------------------------------------------------------------------------------


def embedded(page: str) -> str:
    return re.search(r'class="gx-data">(.*?)</script>', page, re.S)[1]


class Elements(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_is_complete_in_itself_and_can_be_used_without_a_mouse(record, data):
    page = explorer_html(record, member=1)
    assert len(page) < 3_000_000 and page._repr_html_() == page
    elements = Elements(page).found
    assert not [a for _, a in elements if {"src", "href"} & set(a)]
    assert (
        not re.search(r"https?://(?!www\.w3\.org)", page) and "import(" not in page and "fetch(" not in page
    )
    (slider,) = [a for tag, a in elements if tag == "input"]
    assert slider["type"] == "range" and slider["max"] == str(len(data["steps"]) - 1)
    assert [a for tag, a in elements if tag == "p" and a.get("aria-live") == "polite"]
    assert "noscript" in [tag for tag, _ in elements]
    assert json.loads(embedded(page)) == data


def test_no_text_of_a_record_can_end_the_script(record):
    found = study(record.folder, progress=False)
    odd = found.diagnostics.replace({"layer": {"fc1": "</script><b>"}})
    spectra = found.spectra.replace({"layer": {"fc1": "</script><b>"}})
    other = type(found)(found.record, 0.0, found.metrics, odd, spectra, found.baselines)
    page = explorer_html(other)
    assert "<b>" not in page
    assert json.loads(embedded(page))["layers"][0]["name"] == "</script><b>"


# -- in a browser -----------------------------------------------------------------------------------------

DRIVER = """<script>
const seen = [];
function look() {
  const charts = [...document.querySelectorAll(".grok-explorer svg")];
  seen.push({
    step: document.querySelector(".gx-step").textContent,
    readout: document.querySelector(".gx-readout").textContent,
    spoken: document.querySelector(".gx-slider").getAttribute("aria-valuetext"),
    labels: charts.map(c => c.getAttribute("aria-label")),
    bars: charts.map(c => [...c.querySelectorAll(".bar")].map(b => b.getAttribute("height"))),
    soFar: charts.map(c => [...c.querySelectorAll(".so-far")].map(p => p.getAttribute("d"))),
    cursor: charts.map(c => c.querySelector(".cursor")?.getAttribute("x1")),
    texts: charts.map(c => [...c.querySelectorAll("text")].map(t => t.textContent)),
    odd: charts.filter(c => /NaN|Infinity|undefined/.test(c.outerHTML)).length,
    wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  });
}
const slider = document.querySelector(".gx-slider");
for (const place of PLACES) {
  if (place !== null) {
    slider.value = place;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }
  look();
}
const result = document.createElement("pre");
result.textContent = "FOUND" + btoa(unescape(encodeURIComponent(JSON.stringify(seen)))) + "END";
document.body.append(result);
</script>"""


def drive(page: str, places: list, folder, width: int = 1000):
    """What the page shows with the slider as it is (None) and at each place, and the console's messages."""
    file = folder / "page.html"
    driver = DRIVER.replace("PLACES", json.dumps(places))
    file.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>x</title>'
        f'<body style="width:{width}px;margin:0">{page}{driver}</body></html>',
        encoding="utf-8",
    )
    result = subprocess.run(
        [BROWSER, *check_book.FLAGS, f"--user-data-dir={folder}/profile", "--enable-logging=stderr", "--v=0",
         "--virtual-time-budget=5000", f"--window-size={max(width, 500)},900", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, errors="replace", timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    messages = re.findall(r'CONSOLE[^\]]*\] "(.*?)", source:', result.stderr, re.S)
    answer = re.search(r"FOUND([\w+/=]+)END</pre>", html.unescape(result.stdout))
    assert answer, (messages, result.stderr[-500:])
    return json.loads(base64.b64decode(answer[1])), messages


@needs_browser
def test_moving_the_slider_changes_what_is_shown(record, data, tmp_path):
    last = len(data["steps"]) - 1
    (first, early, late), messages = drive(explorer_html(record, member=1), [None, 0, last], tmp_path)
    assert messages == []
    assert first["step"] == f"{data['steps'][data['start']]:,}"
    for view, i in ((early, 0), (late, last)):
        step = f"{data['steps'][i]:,}"
        assert view["step"] == step and view["spoken"] == f"step {step}"
        assert view["readout"].startswith(
            f"Step {step}: training accuracy {data['curve']['train'][-1 if i else 0]:.3f}"
        )
        for layer in data["layers"]:
            alpha = layer["alpha"][i]
            assert f"{layer['label']}: alpha {'none' if alpha is None else f'{alpha:.2f}'}" in view["readout"]
        assert view["odd"] == 0 and view["wider"] <= 0
        assert len(view["labels"]) == 7 and all(view["labels"])
    # one panel of accuracies, two of each layer's spectra, alpha, traps
    assert [bool(bars) for bars in late["bars"]] == [False, True, True, True, True, False, False]
    assert all(a != b for a, b in zip(early["bars"][1:5], late["bars"][1:5], strict=True))
    assert [len(lines) for lines in late["soFar"]] == [0, 0, 0, 0, 0, 2, 2]
    for a, b in zip(early["soFar"][5:], late["soFar"][5:], strict=True):
        assert all(len(y) > len(x) for x, y in zip(a, b, strict=True)), "later there is more to see"
    assert float(early["cursor"][0]) < float(late["cursor"][0])
    assert early["labels"] != late["labels"]


@needs_browser
def test_axes_are_labelled_and_the_page_fits_a_telephone(record, tmp_path):
    (view,), messages = drive(explorer_html(record, member=1), [None], tmp_path, width=400)
    assert messages == [] and view["odd"] == 0 and view["wider"] <= 0
    wanted = ["optimisation step (log scale)", "accuracy", "eigenvalue of WᵀW (log scale)", "density (log scale)",
              "eigenvalue over the mean (log scale)", "share per decade", "alpha"]  # fmt: skip
    shown = [text for chart in view["texts"] for text in chart]
    assert all(any(text.startswith(want) for text in shown) for want in wanted), shown
    for texts in view["texts"]:
        numbers = [t for t in texts if re.fullmatch(r"[\d.]+|10[⁻⁰¹²³⁴-⁹]+", t)]
        assert len(numbers) >= 4, texts


@needs_browser
def test_a_layer_without_numbers_is_no_error(record, tmp_path):
    found = study(record.folder, progress=False)
    lost = found.diagnostics.copy()
    lost.loc[lost.step == 600, ["alpha", "xmin", "traps", "max_over_std"]] = np.nan
    kept = found.spectra[(found.spectra.step != 600) | (found.spectra.layer != "fc1")].reset_index(drop=True)
    broken = type(found)(found.record, 0.0, found.metrics, lost, kept, found.baselines)
    places = [len(found.diagnostics.step.unique()) - 1]
    (view,), messages = drive(explorer_html(broken), places, tmp_path)
    assert messages == [] and view["odd"] == 0
    assert "alpha none, traps none" in view["readout"]
    assert "No power law could be fitted." in view["labels"][1] and not view["bars"][1]


@needs_browser
def test_the_driver_would_see_an_error(record, tmp_path):
    page = explorer_html(record).replace(
        "const { steps, curve, layers } = data;", "const { steps, curve, layers } = data; panelz();"
    )
    with pytest.raises(AssertionError, match="panelz"):
        _, messages = drive(page, [0], tmp_path)
        assert messages == []


def test_a_record_that_was_never_analysed_is_analysed_first(record, tmp_path):
    folder = tmp_path / "copy"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "provenance.json", "metrics.parquet"):
        (folder / name).write_bytes((record.folder / name).read_bytes())
    for step in (0, 600):
        name = f"checkpoints/step_{step:08d}.safetensors"
        (folder / name).write_bytes((record.folder / name).read_bytes())
    metrics = record.metrics
    write_parquet(folder / "metrics.parquet", metrics[metrics.step.isin([0, 600])])
    data = explorer_data(type(record)(folder))
    assert data["steps"] == [0, 600]
    assert (folder / "diagnostics.parquet").is_file()
