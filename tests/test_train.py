"""Runs end the same however they are interrupted, and every fault leaves the last good state."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from grokutils import ConfigError, RecordError, RunConfig, TrainingDiverged, load_record, train
from grokutils.records import files
from grokutils.records.schedule import log_spaced


def tiny(**changes) -> RunConfig:
    values = dict(steps=400, batch_size=40, batch_order="reshuffle", wd=0.01, width=32)
    return RunConfig.recipe("express", **{**values, **changes})


def bits(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on how a run was cut up."""
    arrays, metadata = files.read_tensors(folder / "state.safetensors")
    return {name: a.tobytes() for name, a in arrays.items()} | {"step": metadata["step"].encode()}


@pytest.fixture
def whole(tmp_path):
    """An uninterrupted run."""
    return train(tiny(), tmp_path / "whole", progress=False)


def test_record_of_a_run(whole):
    assert whole.complete and whole.step == 400
    metrics = whole.metrics
    assert metrics.step.tolist() == log_spaced(400, 40)
    assert whole.steps_saved == log_spaced(400, 10)
    assert metrics.train_loss.iloc[-1] < metrics.train_loss.iloc[0] / 100
    for layer, shape in (("fc1", (32, 64)), ("fc2", (32, 32)), ("fc3", (10, 32))):
        weight = whole.weights(400)[f"{layer}.weight"]
        assert weight.shape == shape
        last = metrics.iloc[-1]
        assert last[f"{layer}_l2_norm"] == pytest.approx(np.linalg.norm(weight.astype(float)))
        assert last[f"{layer}_max_abs"] == pytest.approx(np.abs(weight).max())
        assert last[f"{layer}_std"] == pytest.approx(weight.std(), rel=1e-5)
        assert {f"{layer}_mean", f"{layer}_kurtosis"} <= set(metrics.columns)
    assert not np.array_equal(whole.weights(0)["fc1.weight"], whole.weights(400)["fc1.weight"])
    assert isinstance(whole.model(400), torch.nn.Sequential)
    session = whole.provenance["sessions"][0]
    assert session["versions"]["torch"] == torch.__version__ and session["wall_s"] > 0


def test_same_seed_same_bits_and_another_seed_others(whole, tmp_path):
    again = train(tiny(), tmp_path / "again", progress=False)
    other = train(tiny(seed=1), tmp_path / "other", progress=False)
    assert bits(again.folder) == bits(whole.folder) != bits(other.folder)
    pd.testing.assert_frame_equal(again.metrics, whole.metrics)


def test_extending_a_finished_run_continues_it(whole, tmp_path):
    short = train(tiny(steps=100), tmp_path / "x", progress=False)
    assert short.complete
    longer = train(tiny(steps=400), tmp_path / "x", progress=False)
    assert bits(longer.folder) == bits(whole.folder)
    pd.testing.assert_frame_equal(longer.metrics, whole.metrics)
    sessions = longer.provenance["sessions"]
    assert [(s["from_step"], s["to_step"]) for s in sessions] == [(0, 100), (100, 400)]


def test_a_shorter_run_is_the_start_of_a_longer_one(whole):
    before = (whole.folder / "state.safetensors").stat().st_mtime_ns
    start = train(tiny(steps=100), whole.folder, progress=False)
    assert start.step == 100 == start.metrics.step.max() == start.steps_saved[-1]
    assert (whole.folder / "state.safetensors").stat().st_mtime_ns == before, "nothing was trained"


SCRIPT = """
    import sys
    from grokutils import RunConfig, train, TrainingInterrupted
    config = RunConfig.recipe("express", steps={steps}, batch_size=40, batch_order="reshuffle", wd=0.01, width=32)
    try:
        train(config, sys.argv[1], progress=False, autosave=0.02)
    except TrainingInterrupted as error:
        sys.exit(f"interrupted: {{error}}")
"""


def start(folder: Path, steps: int = 12_000) -> subprocess.Popen:
    code = textwrap.dedent(SCRIPT.format(steps=steps))
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if json.loads((folder / "provenance.json").read_text())["step"] >= step:
                return
        except FileNotFoundError:
            pass
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached in a minute")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_bits(tmp_path):
    """SIGKILL at arbitrary moments, in the middle of saves included (it saves every 20 ms)."""
    folder = tmp_path / "killed"
    rng = np.random.default_rng(0)
    reached = []
    for goal in (1, 900, 2_500):
        process = start(folder)
        wait_for_step(process, folder, goal)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        reached.append(load_record(folder).step)
    assert reached == sorted(reached) and not load_record(folder).complete
    config = load_record(folder).config
    resumed = train(config, folder, progress=False)
    straight = train(config, tmp_path / "straight", progress=False)
    assert bits(resumed.folder) == bits(straight.folder)
    pd.testing.assert_frame_equal(resumed.metrics, straight.metrics)
    for step in straight.steps_saved:
        for name, array in straight.weights(step).items():
            assert np.array_equal(resumed.weights(step)[name], array)


@pytest.mark.parametrize("kind", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signals_save_first(tmp_path, kind):
    process = start(tmp_path / "x", steps=10_000_000)
    wait_for_step(process, tmp_path / "x", 100)
    process.send_signal(kind)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and f"interrupted: {kind.name} at step" in err
    record = load_record(tmp_path / "x")
    _, metadata = files.read_tensors(record.folder / "state.safetensors")
    assert int(metadata["step"]) == record.step >= 100 and not record.complete


def test_two_processes_on_one_run(tmp_path):
    process = start(tmp_path / "x", steps=10_000_000)
    try:
        wait_for_step(process, tmp_path / "x", 1)
        with pytest.raises(RecordError, match="in use"):
            train(tiny(), tmp_path / "x", progress=False)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_two_threads_end_in_the_same_bits_each_time(tmp_path):
    config = tiny(width=200, steps=40)
    first = train(config, tmp_path / "a", threads=2, progress=False)
    train(config.replace(steps=17), tmp_path / "b", threads=2, progress=False)
    second = train(config, tmp_path / "b", progress=False)  # goes on with the threads it began with
    assert second.provenance["sessions"][-1]["threads"] == 2
    assert bits(first.folder) == bits(second.folder)


def test_settings_of_torch_are_put_back(tmp_path):
    before = torch.get_num_threads()
    train(tiny(steps=10), tmp_path / "x", threads=before + 1, progress=False)
    assert torch.get_num_threads() == before
    assert torch.tensor(1e-310, dtype=torch.float64).mul(0.5).item() > 0, "denormals are flushed only while training"


# -- faults ---------------------------------------------------------------------------------------------------


def test_another_run_in_the_folder_is_refused_and_left_alone(whole):
    before = bits(whole.folder)
    with pytest.raises(RecordError, match=r"holds another run \(weight_decay 0.01 instead of 0.5\)"):
        train(tiny(wd=0.5), whole.folder, progress=False)
    assert bits(whole.folder) == before


@pytest.mark.parametrize("fault", ["truncated", "altered", "foreign", "pickle", "empty"])
def test_corrupt_or_foreign_state_is_refused_by_name(whole, tmp_path, fault):
    path = whole.folder / "state.safetensors"
    content = path.read_bytes()
    if fault == "foreign":
        other = train(tiny(seed=5), tmp_path / "other", progress=False)
        content = (other.folder / path.name).read_bytes()
    elif fault == "truncated":
        content = content[: len(content) // 2]
    elif fault == "altered":
        content = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    elif fault == "pickle":
        torch.save({"parameters": torch.zeros(3)}, path)
        content = path.read_bytes()
    else:
        content = b""
    path.write_bytes(content)
    checkpoints = {p: p.read_bytes() for p in (whole.folder / "checkpoints").iterdir()}
    with pytest.raises(RecordError, match=r"state\.safetensors (is damaged|belongs to another run)"):
        train(tiny(steps=800), whole.folder, progress=False)
    assert path.read_bytes() == content
    assert all(p.read_bytes() == b for p, b in checkpoints.items())
    assert load_record(whole.folder).metrics.step.max() == 400, "the record can still be read"


@pytest.mark.parametrize("name", ["config.json", "provenance.json", "metrics.parquet"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]"])
def test_other_damaged_files_are_refused_by_name(whole, name, content):
    (whole.folder / name).write_bytes(content)
    with pytest.raises(RecordError, match=name.replace(".", r"\.")):
        train(tiny(steps=800), whole.folder, progress=False)


def test_a_finished_record_without_state_cannot_go_on(whole):
    (whole.folder / "state.safetensors").unlink()
    with pytest.raises(RecordError, match="without a state"):
        train(tiny(steps=800), whole.folder, progress=False)
    assert train(tiny(), whole.folder, progress=False).step == 400


def test_divergence_keeps_the_last_good_state(tmp_path):
    folder = tmp_path / "x"
    config = tiny(lr=10.0, init_scale=1000.0, beta2=0.0, eps=1.0, wd=10.0, steps=5_000, depth=8)
    with pytest.raises(TrainingDiverged, match=r"no longer finite at step .* the last good state, step [\d,]+, is kept"):
        train(config, folder, progress=False)
    record = load_record(folder)
    assert not record.complete
    arrays, metadata = files.read_tensors(folder / "state.safetensors")
    assert all(np.isfinite(a).all() for a in arrays.values()) and int(metadata["step"]) == record.step


def test_a_diverged_member_is_reported_and_the_others_go_on(tmp_path):
    """The factor 1 - lr * wd = -99 makes the second member blow up and leaves the first alone."""
    config = tiny(lr=10.0, steps=60).ensemble([0], [0.0, 10.0])
    record = train(config, tmp_path / "x", progress=False)
    assert record.complete and list(record.provenance["diverged"]) == ["1"]
    last = record.metrics[record.metrics.step == 60].set_index("member")
    assert np.isfinite(last.train_loss[0]) and np.isnan(last.train_loss[1])


def test_full_disk(tmp_path):
    """A real file system of one megabyte where we may mount one, else a limit on the size of a file."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True
    ).returncode == 0
    code = textwrap.dedent("""
        import resource, sys
        from grokutils import RunConfig, RecordError, train
        config = RunConfig.recipe("express", steps={steps})
        try:
            if {limit}:
                resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
            train(config, sys.argv[1], progress=False)
        except RecordError as error:
            sys.exit(f"refused: {{error}}")
    """)
    try:
        # metrics.parquet grows past the limit some way into the run; on the tiny disk the checkpoints fill it
        limit = 0 if mounted else 120_000
        run = subprocess.run(
            [sys.executable, "-c", code.format(steps=20_000, limit=limit), str(folder / "x")],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert run.returncode == 1 and "refused: " in run.stderr, run.stderr
        assert "could not be written: there is no space left" in run.stderr
        assert not list((folder / "x").rglob("*.tmp"))
        if mounted:
            arrays, metadata = files.read_tensors(folder / "x" / "state.safetensors")
            good = int(metadata["step"])
            straight = train(RunConfig.recipe("express", steps=max(good, 1)), tmp_path / "y", progress=False)
            theirs, _ = files.read_tensors(straight.folder / "state.safetensors")
            assert all(np.array_equal(arrays[k], theirs[k]) for k in arrays), "the last good state is intact"
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RecordError, match="cannot be made"):
        train(tiny(), tmp_path / "x", progress=False)


def test_out_that_is_a_file(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(RecordError, match="cannot be made"):
        train(tiny(), tmp_path / "x", progress=False)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, 10**6])
def test_bad_threads(tmp_path, threads):
    with pytest.raises(ConfigError, match="threads must be a whole number from 1 to 1024"):
        train(tiny(), tmp_path / "x", threads=threads)
    assert not (tmp_path / "x" / "config.json").exists()


@pytest.mark.parametrize("device", ["tpu!", "meta", "", "cuda:99" if torch.cuda.is_available() else "cuda"])
def test_bad_device(tmp_path, device):
    with pytest.raises(ConfigError, match="device"):
        train(tiny(), tmp_path / "x", device=device)
    assert not (tmp_path / "x").exists()


def test_a_config_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="config must be a RunConfig; got dict"):
        train({}, tmp_path / "x")


# -- several members ------------------------------------------------------------------------------------------


def test_members_side_by_side_are_the_same_networks(tmp_path):
    together = train(tiny(steps=100, dtype="float64").ensemble([0, 1], [0.0, 0.1]), tmp_path / "t", progress=False)
    assert len(together.metrics) == 4 * len(log_spaced(100, 40))
    for index, member in enumerate(together.config.networks):
        alone = train(
            tiny(steps=100, dtype="float64", seed=member.seed, wd=member.weight_decay),
            tmp_path / f"{index}", progress=False,
        )  # fmt: skip
        for name, array in alone.weights(100).items():
            np.testing.assert_allclose(together.weights(100, index)[name], array, rtol=0, atol=1e-10)
        mine = together.metrics[together.metrics.member == index].reset_index(drop=True)
        np.testing.assert_allclose(mine.test_loss, alone.metrics.test_loss, rtol=1e-7)


def test_ensemble_resumes_exactly(tmp_path):
    config = tiny(steps=200).ensemble([0, 1], [0.0, 0.1])
    whole = train(config, tmp_path / "whole", progress=False)
    train(config.replace(steps=83), tmp_path / "cut", progress=False)
    cut = train(config, tmp_path / "cut", progress=False)
    assert bits(cut.folder) == bits(whole.folder)


def test_the_loop_names_no_architecture():
    source = Path(sys.modules["grokutils.training.train"].__file__).read_text().lower()
    for word in ("mlp", "fc1", "relu", "transformer", "linear", "mse", "mnist", "digits", "adam("):
        assert word not in source, word
