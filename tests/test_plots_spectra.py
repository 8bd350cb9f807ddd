"""Figures of spectra and of series show the numbers they are made from, and say what they stand on."""

import io
import json
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_studies import ALPHA, COLLAPSE, NEVER, PLATEAU, STEPS, made

from grokutils.paper.alpha import esd_with_fit
from grokutils.paper.baselines import lead_dots, leads
from grokutils.paper.kit.curves import accuracy_panels, alpha_curves, progress_curves
from grokutils.paper.kit.figures import COLORS, PHASE_COLORS, layer_color, style
from grokutils.paper.traps import shuffled_esds, trap_curves, traps_against_weights
from grokutils.paper.weight_decay import decay_contrast
from grokutils.spectra.alpha import fit_power_law

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return made(folder / "wd0"), made(folder / "wd0.01", (PLATEAU, PLATEAU), decay=0.01)


FIGURES = {
    "esd_with_fit": lambda a, b: esd_with_fit(a),
    "shuffled_esds": lambda a, b: shuffled_esds(a),
    "shuffled_esds_start": lambda a, b: shuffled_esds(a, "fc1", ["start"]),
    "alpha_curves": lambda a, b: alpha_curves(a),
    "trap_curves": lambda a, b: trap_curves(a),
    "progress_curves": lambda a, b: progress_curves(a),
    "decay_contrast": decay_contrast,
    "accuracy_panels": accuracy_panels,
    "traps_against_weights": traps_against_weights,
    "lead_dots": lambda a, b: lead_dots(leads(a), a),
}
OVER_STEPS = ("alpha_curves", "trap_curves", "progress_curves", "decay_contrast", "accuracy_panels")


def svg(figure) -> bytes:
    content = io.BytesIO()
    with style():
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def words(figure) -> str:
    own = [figure.get_suptitle(), *(a.get_title() for a in figure.axes)]
    return " | ".join([*own, *(t.get_text() for a in figure.axes for t in a.texts)])


def line(axes, color):
    (found,) = [x for x in axes.lines if mpl.colors.same_color(x.get_color(), color) and len(x.get_xdata()) > 2]
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_stands_on_and_is_the_same_file_twice(name, studies):
    figure = FIGURES[name](*studies)
    said = words(figure)
    assert "express recipe" in said and "100,000" in said, "recipe and reach"
    assert "3 seeds" in said and "weight decay 0" in said, "seeds and decay"
    assert not plt.get_fignums(), "a figure is left to whoever asked for it"
    first = svg(figure)
    assert first == svg(FIGURES[name](*studies)) and b"<dc:date>" not in first
    assert len(first) < 400_000


@pytest.mark.parametrize("name", OVER_STEPS)
def test_steps_are_logarithmic_and_phases_tinted(name, studies):
    figure = FIGURES[name](*studies)
    for axes in figure.axes:
        assert axes.get_xscale() == "log" and axes.get_xlim() == (1, STEPS[-1])
    tinted = [
        {mpl.colors.to_hex(patch.get_facecolor()) for patch in axes.patches} for axes in figure.axes
    ]
    assert set().union(*tinted) == set(PHASE_COLORS.values())
    assert all({PHASE_COLORS["pre-grokking"], PHASE_COLORS["grokking"]} <= found for found in tinted)


def test_alpha_is_the_median_and_the_line_at_2_is_always_there(studies):
    figure = alpha_curves(studies[0])
    _, average, fc1, fc2 = figure.axes
    for axes, layer in ((fc1, "fc1"), (fc2, "fc2")):
        drawn = line(axes, layer_color(layer))
        assert drawn.get_xdata() == pytest.approx(STEPS[1:])
        assert drawn.get_ydata() == pytest.approx([a + 0.1 for a in ALPHA[layer][1:]])
    mean = [(a + b) / 2 + 0.1 for a, b in zip(ALPHA["fc1"][1:], ALPHA["fc2"][1:], strict=True)]
    assert line(average, layer_color("average")).get_ydata() == pytest.approx(mean)
    for axes in (average, fc1, fc2):
        assert any(list(x.get_ydata()) == [2, 2] and x.get_linestyle() == "--" for x in axes.lines)
        assert axes.get_ylim()[0] == 1
    assert words(figure).count("α = 2") == 3


def test_the_line_at_2_is_there_whatever_is_compared(studies):
    top, bottom = decay_contrast(*studies).axes[2:4]
    for axes in (top, bottom):
        assert any(list(x.get_ydata()) == [2, 2] for x in axes.lines)


def test_bands_are_the_central_80_percent_or_a_standard_error(studies, tmp_path):
    def band(axes):
        (found,) = axes.collections
        return found.get_paths()[0].vertices

    many = band(alpha_curves(studies[0]).axes[2])
    values = np.array([1.5, 1.6, 1.7])
    assert many[:, 1].min() == pytest.approx(np.quantile(values, 0.1)), "at the end, where alpha is lowest"
    one = band(alpha_curves(made(tmp_path / "one", (COLLAPSE,))).axes[2])
    assert one[:, 1].min() == pytest.approx(1.5 - 0.5) and one[:, 1].max() == pytest.approx(8 + 0.5)


def test_the_axis_follows_an_alpha_that_jumps(tmp_path):
    high = {layer: tuple(3 * a for a in values) for layer, values in ALPHA.items()}
    axes = alpha_curves(made(tmp_path / "x", alpha=high)).axes[2]
    assert axes.get_yscale() == "log" and 24 < axes.get_ylim()[1] <= 32


def test_the_fit_that_is_drawn_is_the_fit(studies):
    figure = esd_with_fit(studies[0], "fc2")
    left, right = figure.axes
    x = studies[0].eigenvalues("fc2", 10_000, 0)
    fit = fit_power_law(x)
    entries = [t.get_text() for t in left.get_legend().get_texts()]
    assert f"fit: α = {fit.alpha:.2f} from {fit.n_tail}" in entries
    assert f"ESD, {x.size} eigenvalues" in entries and "xmax" in entries
    left_in = {e.split(":")[0]: int(e.split()[-1]) for e in entries if " from " in e}
    assert left_in["too large"] < left_in["fit"] and left_in["too small"] == x.size // 2
    for axes in (left, right):
        assert any(np.allclose(v.get_xdata(), fit.xmin) for v in axes.lines)
        assert axes.get_xscale() == axes.get_yscale() == "log"
    assert "fc2, seed 10, step 10,000" in words(figure), "where the test accuracy is best"
    area = sum(p.get_width() * p.get_height() for p in left.patches)
    assert area == pytest.approx(1, abs=0.01), "a density"


def test_traps_are_marked_where_they_are(tmp_path):
    data = made(tmp_path / "x")
    rng = np.random.default_rng(0)
    spectra = [np.linalg.svd(rng.normal(size=(100, 100)), compute_uv=False)[::-1] ** 2 for _ in range(3)]
    for x in spectra:
        x[-1] = 4_000.0
    at = (data.spectra.layer == "fc2") & (data.spectra.member == 0) & (data.spectra.step == 100_000) & (data.spectra.shuffle >= 0)
    data.spectra.loc[at, "eigenvalues"] = np.array([*spectra, None], dtype=object)[:3]
    figure = shuffled_esds(data)
    before, after = figure.axes
    assert before.get_title() == "at the best test accuracy: step 10,000, test 0.90"
    assert after.get_title() == "at the end: step 100,000, test 0.50" and "1 trap\n" in words(figure)
    (mark,) = [x for x in after.lines if x.get_marker() == "v"]
    assert mark.get_xdata() == pytest.approx(np.log10(4_000 / spectra[0].mean()), rel=1e-4)


def test_a_phase_that_was_not_reached_has_no_panel(tmp_path):
    never = made(tmp_path / "x", (NEVER,))
    assert [a.get_title() for a in shuffled_esds(never).axes] == ["at the end: step 100,000, test 0.22"]
    assert len(shuffled_esds(made(tmp_path / "y", (PLATEAU,)), "fc1", ["start", "pre-grokking", "grokking"]).axes) == 3
    assert "step 100,000" in words(esd_with_fit(never))


def test_the_papers_levels_stand_beside_the_papers_recipe_alone(studies, tmp_path):
    paper = made(tmp_path / "p", (COLLAPSE,), recipe="paper")
    changed = made(tmp_path / "q", (COLLAPSE,), recipe="paper", width=50)
    figure = accuracy_panels(paper, studies[0], changed)
    limits = [axes.get_xlim()[1] for axes in figure.axes]
    assert limits == [1e7, STEPS[-1], STEPS[-1]]
    assert words(figure).count("the paper's") == 1
    test = line(figure.axes[1], COLORS["test"])
    assert test.get_ydata().tolist() == list(COLLAPSE[1:])


def test_progress_measures_come_in_both_definitions(studies):
    figure = progress_curves(studies[0])
    titles = [axes.get_title() for axes in figure.axes]
    for name in ("activation sparsity", "absolute weight entropy", "circuit complexity"):
        assert [f"{kind} has it" for kind in ("text", "notebook")] == [
            title.partition("\nas the ")[2] for title in titles if title.startswith(name)
        ]
    assert "ℓ² norm of the weights" in titles


def test_what_was_not_measured_is_said(tmp_path):
    figure = progress_curves(made(tmp_path / "x", baselines=False))
    assert words(figure).count("not measured") == 6


def test_every_signal_has_its_dots(studies, tmp_path):
    found = leads(studies[0])
    (axes,) = lead_dots(found, studies[0]).axes
    names = [t.get_text() for t in axes.get_yticklabels()]
    assert "first trap, fc1" in names and "α below 2, fc2" not in names, "that one never came"
    (axes,) = lead_dots(leads(made(tmp_path / "x", (PLATEAU,))), studies[1]).axes
    assert axes.texts[0].get_text() == "the test accuracy of none has fallen for good"


def test_a_run_that_has_only_begun_is_drawn(tmp_path):
    short = made(tmp_path / "x", (COLLAPSE,), steps=10)
    for draw in FIGURES.values():
        assert draw(short, short).axes


def test_layers_of_other_models_have_colours():
    layers = ["embed", "attn.q", "attn.k", "out"]
    assert len({layer_color(layer, layers) for layer in layers}) == 4 and layer_color("fc1", layers) == layer_color("fc1")
    assert not {layer_color(layer) for layer in ("fc1", "fc2", "fc3")} & set(COLORS.values())


# -- the list of the paper's figures and tables ---------------------------------------------------------------


def named_in_the_book() -> set[str]:
    """Names of figures and labels of headings in notebooks and pages."""
    names = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            names |= {cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")}
            names |= set(re.findall(r"^\(([\w-]+)\)=$", "".join(cell["source"]), re.M))
    for path in (ROOT / "book").glob("*.md"):
        names |= set(re.findall(r"^ +name: ([\w-]+)$", path.read_text(), re.M))
    return names


def test_every_figure_and_table_of_the_paper_has_a_counterpart_that_exists():
    page = (ROOT / "book" / "figures.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| ")]
    listed = {name for row in rows for name in re.findall(r"^\| ((?:Figure|Table) \d)", row)}
    assert listed == {f"Figure {i}" for i in range(1, 8)} | {f"Table {i}" for i in range(1, 5)}
    exists = named_in_the_book()
    for row in rows:
        references = re.findall(r"\{(?:numref|ref)\}`([\w-]+)`", row)
        assert set(references) <= exists, row
        assert references or not re.match(r"\| (Figure|Table)", row), row
    assert "{numref}`" in page and "\n  - file: figures" in (ROOT / "_toc.yml").read_text().replace("      -", "  -")


def test_every_figure_of_the_book_has_a_caption_and_a_text_for_who_cannot_see_it():
    seen = set()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if not (figure := cell["metadata"].get("mystnb", {}).get("figure")):
                continue
            assert figure["name"] not in seen, "a name twice"
            seen.add(figure["name"])
            assert len(figure["caption"]) > 40 and len(cell["metadata"]["mystnb"]["image"]["alt"]) > 40
    assert len(seen) >= 18
