"""Networks, all members of a run side by side: with hand-derived gradients, or any by autograd.

A model is a `Model` (`grokutils.experiment.models.base`); `grokutils.train` uses nothing else and names no architecture.
"""

from __future__ import annotations

import torch

from grokutils.experiment import registry
from grokutils.experiment.config import ConfigError, RunConfig
from grokutils.experiment.data import DataError
from grokutils.experiment.models.base import BUFFER, Model
from grokutils.experiment.models.mlp import MLP
from grokutils.experiment.models.parts import resolve
from grokutils.experiment.models.plain import Plain
from grokutils.experiment.models.transformer import Transformer

__all__ = ["BUFFER", "MODELS", "Model", "as_module", "build", "resolve"]

#: Those with gradients by hand; everything else is `Plain`.
MODELS: dict[str, type[Model]] = {"mlp": MLP, "transformer": Transformer}


def build(config: RunConfig, device: str | torch.device = "cpu") -> Model:
    """The model of a run, its data loaded and its weights drawn.

    Raises
    ------
    ConfigError : a torch too old to train with, or parts that do not fit each other.
    DataError : data or code that are not at hand.
    """
    if torch.__version__ < "2.4":
        raise ConfigError(f"training needs torch 2.4 or newer, which has a fused AdamW; this is torch {torch.__version__}.")
    if config.own is not None and config.own.recorded:
        raise ConfigError(f"{config.model!r} was trained by another loop, which this package cannot go on with.")
    kinds = ("dataset", "model", "optimizer", "loss")
    if config.own is None and not all(registry.is_bundled(kind, getattr(config, kind)) for kind in kinds):
        config = resolve(config)
    by_hand = config.own is None and config.loss == "default" and config.model in MODELS
    return (MODELS[config.model] if by_hand else Plain)(config, torch.device(device))


def as_module(config: RunConfig, weights) -> torch.nn.Module:
    """A plain `torch.nn` module holding `weights` (names to arrays), for any other tool.

    Raises
    ------
    DataError : the code that makes the network is not at hand.
    """
    if config.own is not None and config.own.recorded:
        raise DataError(f"{config.model!r} was trained by another loop; its code is not known here, only its weights.")
    own = config.own is not None and config.own.model
    return MODELS.get("" if own else config.model, Plain).as_module(config, weights)
