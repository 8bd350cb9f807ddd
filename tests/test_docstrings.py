"""The examples in the docstrings of every module."""

import doctest
import importlib
import pkgutil

import numpy as np
import pandas as pd
import pytest
import torch

import grokutils

MODULES = [found.name for found in pkgutil.walk_packages(grokutils.__path__, "grokutils.") if "__main__" not in found.name]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    names = {"np": np, "pd": pd, "torch": torch}
    try:
        module = importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        if not name.startswith("grokutils.integrations."):
            raise
        pytest.skip(f"the library it goes with cannot be imported here: {error}")
    assert doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS).failed == 0
