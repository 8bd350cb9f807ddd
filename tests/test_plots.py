"""Figures say what they show, and an unchanged figure is an unchanged file."""

import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from grokutils import RunConfig, train
from grokutils.paper.kit.curves import training_curves
from grokutils.paper.kit.figures import COLORS, PHASE_COLORS, phase_tints, style, use_svg
from grokutils.paper.setup import training_images
from grokutils.records.phases import Phases, find_phases

EXPRESS = RunConfig.recipe("express")
LONG = 2_000  # steps: the training set is learnt by then


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return train(EXPRESS.replace(steps=LONG), tmp_path_factory.mktemp("runs") / "one", progress=False)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    config = EXPRESS.replace(steps=300).ensemble([0, 1], [0.0, 0.01])
    return train(config, tmp_path_factory.mktemp("runs") / "many", progress=False)


def svg(draw) -> bytes:
    """The file of a figure."""
    content = io.BytesIO()
    with style():
        draw().savefig(content, format="svg", metadata={"Date": None})
    plt.close("all")
    return content.getvalue()


def line(axes, color: str):
    """The solid line of a colour."""
    (found,) = [
        x for x in axes.lines if mpl.colors.same_color(x.get_color(), color) and x.get_linestyle() == "-"
    ]
    return found


def texts(figure) -> list[str]:
    return [t.get_text() for axes in figure.axes for t in axes.texts]


@pytest.mark.parametrize("record", ["one", "many"])
def test_every_axis_is_labelled(record, request):
    figure = training_curves(request.getfixturevalue(record))
    top, bottom = figure.axes
    assert top.get_ylabel() == "accuracy" and "norm" in bottom.get_ylabel()
    assert bottom.get_xlabel() == "optimisation step" and bottom in top.get_shared_x_axes().get_siblings(top)
    assert top.get_xscale() == bottom.get_xscale() == "log"
    assert {"train", "test"} <= set(texts(figure))


def test_the_curves_are_the_measurements(one):
    top, bottom = training_curves(one).axes
    shown = one.metrics[one.metrics.step >= 1]
    for axes, column in ((top, "train_accuracy"), (top, "test_accuracy"), (bottom, "l2_norm")):
        drawn = line(axes, COLORS[column.split("_")[0].replace("l2", "norm")])
        np.testing.assert_allclose(drawn.get_xdata(), shown.step)
        np.testing.assert_allclose(drawn.get_ydata(), shown[column])
    assert top.get_xlim() == (1, LONG) and top.get_ylim()[1] >= 1


def test_members_are_shown_as_median_and_range(many):
    top, bottom = training_curves(many).axes
    over = many.metrics[many.metrics.step >= 1].groupby("step")
    assert np.array_equal(line(top, COLORS["test"]).get_ydata(), over.test_accuracy.median())
    for axes, columns in ((top, ("train_accuracy", "test_accuracy")), (bottom, ("l2_norm",))):
        bands = [c for c in axes.collections if c.get_paths()[0].vertices.shape[0] > 10]
        assert len(bands) == len(columns)
        for band, column in zip(bands, columns, strict=True):
            heights = band.get_paths()[0].vertices[:, 1]
            assert heights.min() == over[column].min().min() and heights.max() == over[column].max().max()


@pytest.mark.parametrize("record", ["one", "many"])
def test_an_unchanged_figure_is_an_unchanged_file(record, request):
    record = request.getfixturevalue(record)
    first, second = svg(lambda: training_curves(record)), svg(lambda: training_curves(record))
    assert first == second
    assert b"<dc:date>" not in first and b"optimisation step" in first, "no date, and text is text"
    assert svg(lambda: training_images(EXPRESS)) == svg(lambda: training_images(EXPRESS))


def test_a_figure_is_left_to_whoever_asked_for_it(one):
    """A notebook draws every open figure at the end of a cell, besides the cell's value."""
    training_curves(one), training_images(EXPRESS, 1)
    assert not plt.get_fignums()


def test_another_figure_is_another_file(one, many):
    assert svg(lambda: training_curves(one)) != svg(lambda: training_curves(many))


def test_style_is_put_back():
    before = mpl.rcParams.copy()
    with style():
        assert mpl.rcParams["svg.hashsalt"] == "grokutils" and mpl.rcParams["svg.fonttype"] == "none"
    assert mpl.rcParams == before


def test_a_reference_record_is_drawn_behind_and_named(one, many):
    figure = training_curves(many, one)
    top, bottom = figure.axes
    assert top.get_legend().get_texts()[0].get_text() == "reference record one"
    assert top.get_xlim() == (1, LONG), "as far as the longer one"
    dashed = [
        x for axes in (top, bottom) for x in axes.lines if x.get_linestyle() == "--" and len(x.get_xdata())
    ]
    assert len(dashed) == 3
    assert all(x.get_xdata()[-1] == LONG and x.get_zorder() < 2 for x in dashed)
    # one member of an ensemble as a reference: its own curve
    top, _ = training_curves(one, many, 3).axes
    third = many.metrics[(many.metrics.member == 3) & (many.metrics.step >= 1)]
    drawn = [x.get_ydata() for x in top.lines if x.get_linestyle() == "--"]
    assert any(np.array_equal(y, third.test_accuracy) for y in drawn)


def test_a_run_that_has_only_begun(tmp_path):
    train(EXPRESS.replace(steps=1), tmp_path / "x", progress=False)
    record = train(EXPRESS.replace(steps=1), tmp_path / "x", progress=False)
    assert training_curves(record).axes[0].get_xlim()[0] == 1
    begun = training_curves(type(record)(record.folder, until=0))
    assert begun.axes[0].get_ylabel() == "accuracy"


# -- phases -----------------------------------------------------------------------------------------------


def tints(axes) -> dict[str, tuple[float, float]]:
    names = {mpl.colors.to_hex(color): name for name, color in PHASE_COLORS.items()}
    found = {}
    for patch in axes.patches:
        x = patch.get_path().get_extents(patch.get_patch_transform())
        found[names[mpl.colors.to_hex(patch.get_facecolor())]] = (x.x0, x.x1)
    return found


@pytest.mark.parametrize(
    "begins, expected",
    [
        (
            (10, 100, 500, 1000),
            {"pre-grokking": (10, 100), "grokking": (100, 1000), "anti-grokking": (1000, 5000)},
        ),
        ((10, 100, 500, None), {"pre-grokking": (10, 100), "grokking": (100, 5000)}),
        ((10, None, 10, 1000), {"pre-grokking": (10, 1000), "anti-grokking": (1000, 5000)}),
        ((0, None, 0, None), {"pre-grokking": (1, 5000)}),
        ((None, None, None, None), {}),
    ],
)
def test_tints_lie_where_the_phases_are(begins, expected):
    _, axes = plt.subplots()
    axes.set(xscale="log", xlim=(1, 5000))
    phase_tints(axes, Phases(*begins, 0.9, 0.5), 5000, labels=True)
    assert tints(axes) == expected
    assert [t.get_text() for t in axes.texts] == list(expected)
    for text, (start, stop) in zip(axes.texts, expected.values(), strict=True):
        assert start <= text.get_position()[0] <= stop


def test_tints_of_a_run_are_its_phases(one):
    begins = find_phases(one.metrics)
    assert begins.memorised is not None
    for axes in training_curves(one).axes:
        assert tints(axes)["pre-grokking"] == (begins.memorised, LONG)


# -- images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns, drawn", [(10, 10), (3, 3), (50, EXPRESS.per_class)])
def test_training_images_are_those_of_each_class(columns, drawn):
    figure = training_images(EXPRESS, columns)
    assert len(figure.axes) == 10 * drawn
    assert [axes.get_ylabel() for axes in figure.axes[::drawn]] == list("0123456789")
    assert all(len(axes.images) == 1 and axes.images[0].get_array().shape == (8, 8) for axes in figure.axes)
    distinct = {axes.images[0].get_array().tobytes() for axes in figure.axes}
    assert len(distinct) == 10 * drawn


def test_images_of_fewer_than_asked_for():
    figure = training_images(EXPRESS.replace(per_class=1, batch_size=10))
    assert len(figure.axes) == 10


@pytest.mark.parametrize("columns", [0, -1])
def test_no_columns_is_refused(columns):
    with pytest.raises(ValueError, match=f"columns must be a whole number of at least 1; got {columns}"):
        training_images(EXPRESS, columns)


def test_notebook_figures_are_svg_without_a_date():
    with mpl.rc_context():
        use_svg()
        assert mpl.rcParams["svg.hashsalt"] == "grokutils" and mpl.rcParams["svg.fonttype"] == "none"
