"""A small convolutional network: the example of a model that is not the papers'."""

from __future__ import annotations

import torch

from grokutils.experiment.config import RunConfig

__all__ = ["cnn"]


def cnn(image_shape: tuple[int, int], classes: int, config: RunConfig) -> torch.nn.Module:
    """Two convolutions of 3 x 3 with 16 and 32 channels, each halved by max-pooling, and two linear layers.

    >>> net = cnn((8, 8), 10, RunConfig.recipe("express"))
    >>> net(torch.zeros(5, 64)).shape
    torch.Size([5, 10])

    Parameters
    ----------
    image_shape : rows and columns; the examples are flat
    classes : outputs
    config : its ``width`` is that of the hidden linear layer
    """
    rows, columns = image_shape
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, rows, columns)),
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * (rows // 4) * (columns // 4), config.width), torch.nn.ReLU(),
        torch.nn.Linear(config.width, classes),
    )  # fmt: skip
