"""Records: written whole or not at all, read without pickle, found, copied compactly."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grokutils import RecordError, RunConfig, load_record, train
from grokutils.records import files
from grokutils.records import record as records
from grokutils.util import paths


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty results folder of this test's own."""
    monkeypatch.setattr(paths, "results_dir", lambda: tmp_path / "results")
    return tmp_path / "results"


def tiny(**changes) -> RunConfig:
    return RunConfig.recipe("express", **{**dict(steps=100, width=16), **changes})


@given(
    arrays=st.dictionaries(
        st.text("abc.1", min_size=1),
        hnp.arrays(st.sampled_from([np.float64, np.float32]), hnp.array_shapes(max_dims=3, max_side=4)),
        max_size=3,
    )
)
def test_tensors_come_back_as_they_went(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    files.write_tensors(path, arrays, {"step": "7"})
    back, metadata = files.read_tensors(path)
    assert metadata["step"] == "7" and set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].tobytes() == array.tobytes()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json(path, 1)

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(RecordError, match=r"x\.json could not be written: there is no space left"):
        files.write_json(path, 2)
    assert json.loads(path.read_text()) == 1 and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_every_flipped_bit_of_the_numbers_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    files.write_tensors(path, {"a": np.arange(4.0)}, {})
    content = path.read_bytes()
    for place in range(len(content) - 32, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(RecordError, match="does not match its checksum"):
            files.read_tensors(path)


def test_a_pickle_is_no_record_file(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(RecordError, match="damaged or no safetensors file"):
        files.read_tensors(tmp_path / "x.safetensors")


def test_weights_that_are_not_there(tmp_path):
    record = train(tiny(), tmp_path / "x", progress=False)
    with pytest.raises(ValueError, match="step 90 of x was not saved; the nearest saved one is 100"):
        record.weights(90)
    with pytest.raises(ValueError, match="member must be between 0 and 0; got 1"):
        record.weights(100, member=1)
    records.checkpoint_path(record.folder, 100).write_bytes(b"")
    with pytest.raises(RecordError, match="step_00000100.safetensors is damaged"):
        record.weights(100)


def test_unknown_record_names_those_there_are(results):
    train(tiny(), "known", progress=False)
    with pytest.raises(FileNotFoundError, match="no record 'unknown'. Records here: runs/known"):
        load_record("unknown")


def test_members_are_read_apart(tmp_path):
    record = train(tiny().ensemble([0, 1]), tmp_path / "x", progress=False)
    first, second = (record.weights(member=m) for m in (0, 1))
    assert set(first) == set(second) == {f"fc{k}.{p}" for k in (1, 2, 3) for p in ("weight", "bias")}
    assert not np.array_equal(first["fc1.weight"], second["fc1.weight"])
    assert torch.equal(record.model(member=1).fc1.weight, torch.from_numpy(second["fc1.weight"]))


def test_publish_keeps_what_it_should(results):
    record = train(tiny(), "x", progress=False)
    copy = records.publish(record, results / "x", steps=[0, 100])
    assert copy.steps_saved == [0, 100] and copy.complete
    assert copy.metrics.equals(record.metrics)
    assert not (results / "x" / "state.safetensors").exists(), "a finished record needs no state"
    assert load_record("results/x").folder == results / "x"
    with pytest.raises(ValueError, match="step 99 of x was not saved"):
        records.publish(record, results / "y", steps=[99])
    assert not (results / "y").exists()
    thinned = records.publish(copy, results / "x", steps=[0])
    assert thinned.steps_saved == [0] and thinned.metrics.equals(record.metrics)


def test_a_published_unfinished_run_goes_on(results, tmp_path):
    whole = train(tiny(), tmp_path / "whole", progress=False)
    half = train(tiny(steps=50), "x", progress=False)
    (half.folder / "config.json").write_text(json.dumps(tiny().to_dict()))
    files.write_json(half.folder / "provenance.json", files.sealed(half.provenance | {"complete": False}))
    records.publish(load_record("x"), results / "x", steps=[50])
    resumed = train(tiny(), results / "x", progress=False)
    for name, array in whole.weights(100).items():
        assert np.array_equal(resumed.weights(100)[name], array)
    # published again, shorter by a checkpoint: what is not wanted any more goes
    train(tiny(), "x", progress=False)
    assert records.publish(load_record("x"), results / "x", steps=[100]).steps_saved == [100]


def test_reference_of_a_run(results):
    assert records.find_reference(tiny()) is None
    train(tiny(steps=50), results / "short", progress=False)
    train(tiny().ensemble([5, 0], [0.0, 0.1]), results / "long", progress=False)
    record, member = records.find_reference(tiny(steps=10))
    assert record.name == "long" and record.config.networks[member].seed == 0
    assert record.config.networks[member].weight_decay == 0.0
    assert records.find_reference(tiny(), longer_than=100) is None
    assert records.find_reference(tiny(seed=9)) is None
    assert records.find_reference(tiny(lr=0.5)) is None
