"""The comparison with WeightWatcher on public models: what is stored, and the page that is made of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import public_models

ROOT = Path(__file__).resolve().parent.parent


def stored() -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / "public_models.json").read_text(encoding="utf-8"))


def test_the_page_is_made_from_the_stored_result():
    assert (ROOT / "book" / "public_models.md").read_text(encoding="utf-8") == public_models.page(stored())


def test_dense_layers_are_equal_and_what_differs_has_a_reason():
    files = [file for model in stored()["models"].values() for file in model["files"]]
    assert len(stored()["models"]) >= 5 and any(file["file"].endswith(".onnx") for file in files)
    for file in files:
        assert file["numbers"] == file["measured"] + file["not_measured"] + file["beside_the_model"]
        for row in file["layers"]:
            assert row["why"] in public_models.WHY
            if row["why"] == "equal":
                assert math.isclose(row["alpha"], row["weightwatcher"], rel_tol=1e-6)
            elif row["kind"] == "dense":
                assert row["weightwatcher"] is None  # never another number for a dense layer


def test_a_difference_without_a_reason_ends_the_comparison(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    save_file({"a.weight": rng.normal(size=(30, 40)).astype("f4"), "a.bias": np.ones(30, "f4")}, tmp_path / "m.safetensors")
    found = public_models.compare(tmp_path / "m.safetensors")
    assert found["layers"][0]["why"] == "equal" and found["numbers"] == 1230 and found["reasons"] == {"a bias": 1}
    original = public_models.reference.analyze

    def off(model):
        table = original(model)
        return table.assign(alpha=table.alpha + 0.1)

    monkeypatch.setattr(public_models.reference, "analyze", off)
    with pytest.raises(SystemExit, match="a: alpha .* and no reason is known"):
        public_models.compare(tmp_path / "m.safetensors")
    monkeypatch.setattr(public_models, "_numbers", lambda path: 99)
    with pytest.raises(SystemExit, match="1,230 numbers accounted for, 99 in the file"):
        public_models.compare(tmp_path / "m.safetensors")
