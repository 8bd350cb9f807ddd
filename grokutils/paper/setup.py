"""Page 01: the data, the network, its hyperparameters, and when a run is measured."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from grokutils.experiment import data
from grokutils.experiment.config import RunConfig
from grokutils.experiment.models import build
from grokutils.paper.kit.figures import figure, use_svg
from grokutils.records.schedule import MEASURES_PER_DECADE, SAVES_PER_DECADE, log_spaced
from grokutils.util.checks import Interval

__all__ = [
    "MEASURES_PER_DECADE", "SAVES_PER_DECADE", "RunConfig", "build", "hyperparameters", "layers", "log_spaced",
    "training_images", "use_svg",
]  # fmt: skip


def hyperparameters(*recipes: str) -> pd.DataFrame:
    """What each recipe has, and what it means.

    >>> hyperparameters("paper", "express").loc["width"].tolist()
    [200, 100, 'hidden units per hidden layer']
    """
    described = {name: RunConfig.recipe(name).describe() for name in recipes}
    columns = {name: {key: value for key, value, _ in rows} for name, rows in described.items()}
    table = pd.DataFrame(columns, dtype=object).assign(meaning={key: said for rows in described.values() for key, _, said in rows})
    return table.drop(index="recipe_name").rename_axis(index="hyperparameter")


def layers(config: RunConfig) -> pd.DataFrame:
    """The weight matrices of a new network.

    >>> layers(RunConfig.recipe("express")).outputs.tolist()
    [100, 100, 10]
    """
    model = build(config)
    model.init()
    weights = {name: w for name, w in model.weights()[0].items() if name.endswith(".weight")}
    return pd.DataFrame({
        "outputs": {name: w.shape[0] for name, w in weights.items()}, "inputs": {name: w.shape[1] for name, w in weights.items()},
        "weights": {name: w.size for name, w in weights.items()}, "std": {name: w.std() for name, w in weights.items()},
    }).rename(index=lambda name: name.removesuffix(".weight"))  # fmt: skip


@figure
def training_images(config: RunConfig, columns: int = 10) -> Figure:
    """The first training images of each class: one row a class."""
    columns = min(Interval(int, 1).check("columns", columns), config.per_class)
    dataset = data.load(config, config.networks[0].seed)
    if dataset.image_shape is None:
        raise ValueError(f"the data of this run, {config.dataset}, are no images.")
    made, grid = plt.subplots(
        10, columns, figsize=(0.42 * columns + 0.5, 4.6), squeeze=False,
        gridspec_kw=dict(wspace=0.08, hspace=0.08), layout="none",
    )  # fmt: skip
    for label in range(10):
        images = dataset.x_train[dataset.y_train == label]
        for axes, image in zip(grid[label], images, strict=False):
            axes.imshow(image.reshape(dataset.image_shape), cmap="gray_r", vmin=0, vmax=1)
        grid[label, 0].set_ylabel(str(label), rotation=0, ha="right", va="center")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return made
