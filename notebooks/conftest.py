"""Run the notebooks quickly under nbval: overrides go into the cell tagged `parameters`, as papermill's do."""

import os
import tempfile

import pytest

OVERRIDES = {
    "01_setup.ipynb": "",
    "02_train.ipynb": "steps = 1_000",
    "03_alpha.ipynb": "",
    "04_traps.ipynb": "",
    "05_baselines.ipynb": "",
    "06_weight_decay.ipynb": "",
    "07_modular_addition.ipynb": "steps = 300",
    "08_harmful_traps.ipynb": "",
    "09_causes.ipynb": "",
    "10_mechanism.ipynb": "",
    "claims.ipynb": "",
    "explorer.ipynb": "",
}

# what the notebooks train goes to a folder of its own, so that nothing is found there from last time
_runs = tempfile.TemporaryDirectory(prefix="grokutils-runs-")
os.environ["GROKUTILS_RUNS"] = _runs.name
# as when the book is built: threads of small matrices only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    notebooks = {}
    for item in items:
        if item.path.suffix == ".ipynb":
            notebooks.setdefault(item.path.name, []).append(item)
    for name, cells in notebooks.items():
        tagged = [c for c in cells if "parameters" in c.cell.metadata.get("tags", [])]
        if len(tagged) != (name in OVERRIDES):
            raise pytest.UsageError(
                f"{name} has {len(tagged)} cells tagged 'parameters', and notebooks/conftest.py expects "
                f"{int(name in OVERRIDES)}."
            )
        if tagged:
            tagged[0].cell.source += "\n" + OVERRIDES[name]
