"""Networks with hand-derived gradients, all members of a run side by side.

A model is an object with `init`, `step`, `evaluate`, `weights`, `state_dict` and `load_state_dict`;
`grokutils.train` uses nothing else and names no architecture.
"""

from __future__ import annotations

import torch

from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.experiment.models.base import Model
from grokutils.experiment.models.mlp import MLP
from grokutils.experiment.models.transformer import Transformer

__all__ = ["MODELS", "Model", "build", "as_module"]

MODELS: dict[str, type[Model]] = {"mlp": MLP, "transformer": Transformer}


def build(config: RunConfig, device: str | torch.device = "cpu") -> Model:
    """The model of a run, its data loaded and its weights drawn.

    Raises
    ------
    ConfigError : a torch too old to train with.
    """
    if torch.__version__ < "2.4":
        raise ConfigError(f"training needs torch 2.4 or newer, which has a fused AdamW; this is torch {torch.__version__}.")
    return MODELS[config.model](config, torch.device(device))


def as_module(config: RunConfig, weights) -> torch.nn.Module:
    """A plain `torch.nn` module holding `weights` (names to arrays), for any other tool."""
    return MODELS[config.model].as_module(config, weights)
