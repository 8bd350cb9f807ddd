"""A scan measures every matrix of a model, keeps what it has measured, and goes on where it was stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from grokutils.cli import main
from grokutils.paper.llm.generator import Planted, from_mxfp4, to_mxfp4, write_gpt_oss
from grokutils.spectra import scan as scan_module
from grokutils.spectra.diagnose import diagnose
from grokutils.spectra.layers import find_layers
from grokutils.spectra.scan import ScanStopped, kind_of, plan, read_scan, scan
from grokutils.spectra.scan_text import experts, summary

PLANTED = (
    Planted(0, "gate_up_proj", 1, traps=3),
    Planted(1, "down_proj", 2, traps=1, size=80),
    Planted(1, "gate_up_proj", 0, alpha=2.5),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small GPT-OSS in several shards."""
    folder = tmp_path_factory.mktemp("gpt-oss")
    write_gpt_oss(folder, hidden=256, intermediate=256, planted=PLANTED, shard_bytes=200_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.fixture(scope="module")
def table(folder):
    return scan(folder, progress=False)


def copy_of(folder, tmp_path):
    other = tmp_path / "model"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    return other


# -- what is measured -----------------------------------------------------------------------------------------


def test_every_matrix_has_a_row_and_experts_have_numbers(folder, table):
    assert table["layer"].tolist() == [layer.name for layer in find_layers(folder)]
    counts = table["kind"].value_counts().to_dict()
    assert counts == {"expert": 16, "attention": 8, "router": 2, "head": 1, "embedding": 1}
    chosen = table[table["kind"] == "expert"]
    assert (chosen["experts"] == 4).all() and chosen["expert"].tolist() == 4 * [0, 1, 2, 3]
    assert chosen["block"].tolist() == 8 * [0] + 8 * [1]
    assert (table.loc[table["kind"] != "expert", ["expert", "experts"]] == [-1, 0]).all(axis=None)
    stored = json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    parameters = table.attrs["parameters"]
    assert parameters["measured"] == int((table["rows"] * table["columns"]).sum())
    assert parameters["measured"] + parameters["not_measured"] > stored / 2


def test_planted_traps_and_tails_are_found_and_no_others(table):
    traps = {row.layer: row.traps for row in table[table["traps"] > 0].itertuples()}
    assert traps == {
        "model.layers.0.mlp.experts.gate_up_proj[1]": 3.0,
        "model.layers.1.mlp.experts.down_proj[2]": 1.0,
    }
    alpha = table.set_index("layer")["alpha"]
    assert 2.2 < alpha["model.layers.1.mlp.experts.gate_up_proj[0]"] < 3.2
    others = [f"model.layers.{b}.mlp.experts.{m}[3]" for b in (0, 1) for m in ("down_proj", "gate_up_proj")]
    assert alpha[others].min() > 4


def test_what_a_wrong_reading_of_codes_would_show():
    """The wrong order of two codes in a byte swaps columns, the same in every row, and no spectrum can show that; the wrong table of
    numbers shows in alpha."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(256, 60)), rng.normal(size=(60, 256))
    W = (left * np.arange(1, 61) ** -0.5) @ right + rng.normal(size=(256, 256))
    blocks, scales = to_mxfp4(W.astype(np.float32))
    right_way, swapped = from_mxfp4(blocks, scales), from_mxfp4(blocks >> 4 | blocks << 4, scales)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(256, 8, 32).astype(np.int8)
    as_integers = (np.where(codes > 7, codes - 16, codes) * np.ldexp(1.0, scales.astype(int) - 127)[..., None]).reshape(256, 256)
    original, a, b, c = (scan({"w": V}, progress=False).iloc[0] for V in (W, right_way, swapped, as_integers))
    assert abs(a.alpha - original.alpha) < 0.05
    assert not np.array_equal(right_way, swapped) and a.alpha == pytest.approx(b.alpha, abs=1e-9)
    assert abs(a.alpha - c.alpha) > 0.3


def test_numbers_are_those_of_diagnose(folder, table):
    slow = diagnose(folder, shuffles=1, ks_draws=0, progress=False)
    assert table["layer"].tolist() == slow["layer"].tolist()
    for name in ("alpha", "xmin", "D", "alpha_clipped", "kurtosis", "max_over_std", "mean_over_std", "zeros", "l2_norm",
                 "effective_rank", "spectral_norm", "stable_rank", "spikes"):  # fmt: skip
        np.testing.assert_allclose(table[name], slow[name], rtol=1e-6, atol=1e-9, err_msg=name)
    assert (table["alpha_reason"] == slow["alpha_reason"]).all()
    assert np.nanmax(np.abs(table["traps"] - slow["traps"])) <= 1  # another shuffle


def test_mxfp4_is_the_nearest_number():
    rng = np.random.default_rng(0)
    W = (rng.normal(size=(40, 320)) * np.exp(3 * rng.normal(size=(40, 1)))).astype(np.float32)
    W[3] = 0
    V = from_mxfp4(*to_mxfp4(W))
    scale = np.ldexp(1.0, to_mxfp4(W)[1].astype(int) - 127).repeat(32, axis=1)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    distance = np.abs(np.abs(W / scale)[..., None] - table).min(axis=-1)
    np.testing.assert_allclose(np.abs(W - V) / scale, distance, atol=1e-6)
    np.testing.assert_array_equal(from_mxfp4(*to_mxfp4(V)), V)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.mlp.experts.gate_up_proj[7]", "expert"),
        ("model.layers.0.block_sparse_moe.experts.5.w2", "expert"),
        ("model.layers.0.block_sparse_moe.gate", "router"),
        ("model.layers.0.mlp.router", "router"),
        ("blk.3.ffn_gate_inp", "mlp"),
        ("model.layers.11.mlp.gate_proj", "mlp"),
        ("transformer.h.0.attn.c_attn.q", "attention"),
        ("model.layers.0.self_attn.o_proj", "attention"),
        ("transformer.wte", "embedding"),
        ("token_embd", "embedding"),
        ("output", "head"),
        ("lm_head", "head"),
        ("fc1", "mlp"),
        ("something", "other"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


def test_selections(folder):
    def names(**chosen):
        return scan(folder, shuffles=0, progress=False, **chosen)["layer"].tolist()

    assert len(names(kinds="router,head")) == 3
    assert all(".1." in name for name in names(layers="1", kinds="attention"))
    assert names(layers="*.q_proj") == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert len(names(layers="0-1")) == 26
    sampled = scan(folder, sample=2, kinds="expert", shuffles=0, progress=False)
    assert len(sampled) == 8 and (sampled.groupby(["block", "rows"]).size() == 2).all()
    assert sampled["layer"].tolist() != scan(folder, sample=2, seed=1, kinds="expert", shuffles=0, progress=False)["layer"].tolist()
    assert sampled.attrs["not_asked_for"] == 20


def test_tied_arrays_are_measured_once():
    W = np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32)
    table = scan({"model.embed_tokens.weight": W, "lm_head.weight": W}, progress=False)
    assert len(table) == 1 and "also lm_head.weight" in table["note"][0]


def test_a_matrix_without_numbers_keeps_its_row(tmp_path):
    W = np.random.default_rng(0).normal(size=(3, 60, 50)).astype(np.float32)
    W[1, 4, 4] = np.nan
    save_file({"experts.up": W}, tmp_path / "model.safetensors")
    table = scan(tmp_path, progress=False)
    assert table["alpha"].isna().tolist() == [False, True, False]
    assert "1 of its 3000 entries are NaN" in table["alpha_reason"][1] and table["verdict"][1] == "undetermined"


def test_blocks_without_scales_are_said_to_be_missing(tmp_path):
    W = np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32)
    codes = np.zeros((2, 64, 4, 16), dtype=np.uint8)
    save_file({"model.layers.0.mlp.experts.down_proj_blocks": codes, "lm_head.weight": W}, tmp_path / "model.safetensors")
    table = scan(tmp_path, progress=False)
    assert table["layer"].tolist() == ["lm_head"]
    assert "without the scales" in table.attrs["not_measured"][0]["reason"]
    assert "without the scales" in summary(table)


# -- what is kept ---------------------------------------------------------------------------------------------

SCAN = [sys.executable, "-c", "import sys; from grokutils.spectra.scan import scan; scan(sys.argv[1], sys.argv[2], shuffles=3, progress=False)"]


def same(a, b):
    assert a.read_bytes() == b.read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(a), pd.read_parquet(b))


def test_the_parquet_holds_the_table(folder, table, tmp_path):
    out = tmp_path / "scan.parquet"
    kept = scan(folder, out, progress=False)
    pd.testing.assert_frame_equal(kept, table)
    pd.testing.assert_frame_equal(pd.read_parquet(out), table)
    assert read_scan(out).attrs == table.attrs
    assert [file.name for file in tmp_path.iterdir()] == ["scan.parquet"]
    before = out.stat().st_mtime_ns
    pd.testing.assert_frame_equal(scan(folder, out, progress=False), table)  # done: nothing is measured again
    assert out.stat().st_mtime_ns == before


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_parquet(folder, tmp_path):
    out, whole = tmp_path / "killed.parquet", tmp_path / "whole.parquet"
    scan(folder, whole, shuffles=3, progress=False)
    journal = tmp_path / "killed.parquet.journal"
    kills, last = 0, 0
    while kills < 4:
        process = subprocess.Popen([*SCAN, str(folder), str(out)])
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > last + 1:
                break
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        lines = journal.read_bytes().count(b"\n")
        assert lines > last  # what was measured before the last kill is there
        last = lines
        if kills == 2:
            with open(journal, "ab") as file:
                file.write(b'{"place": 5, "lay')  # a line that the kill has cut
    assert kills == 4
    subprocess.run([*SCAN, str(folder), str(out)], check=True)
    same(out, whole)
    assert not journal.exists()


def test_several_processes_give_the_same_parquet(folder, tmp_path):
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    scan(folder, one, kinds="attention,router", progress=False)
    scan(folder, two, kinds="attention,router", jobs=2, progress=False)
    same(one, two)


def test_a_process_that_dies_ends_in_a_sentence_and_what_was_done_is_kept(folder, tmp_path, monkeypatch):
    def dying(source, tasks, settings, jobs):
        for k, answer in enumerate(scan_module._in_turn(tasks, settings)):
            if k == 3:
                raise scan_module.ScanStopped("one of the processes has died, perhaps for want of memory; try fewer jobs.")
            yield answer

    monkeypatch.setattr(scan_module, "_side_by_side", dying)
    out = tmp_path / "scan.parquet"
    with pytest.raises(ScanStopped, match=r"try fewer jobs; 3 matrices are kept in scan.parquet.journal, and the same command"):
        scan(folder, out, kinds="attention", jobs=2, progress=False)
    monkeypatch.undo()
    assert len(scan(folder, out, kinds="attention", progress=False)) == 8


def test_a_real_process_that_dies_is_noticed(folder, monkeypatch):
    monkeypatch.setattr(scan_module, "_work", _die)
    with pytest.raises(ScanStopped, match="one of the processes has died"):
        scan(folder, kinds="router", jobs=2, progress=False)


def _die(place, settings):
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_interrupt_says_what_is_kept(folder, tmp_path, monkeypatch):
    def interrupted(tasks, settings):
        yield tasks[0], scan_module._row(tasks[0], settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(scan_module, "_in_turn", interrupted)
    with pytest.raises(KeyboardInterrupt, match="interrupted; 1 matrices are kept"):
        scan(folder, tmp_path / "scan.parquet", progress=False)


def test_another_scan_is_not_mixed_in(folder, tmp_path):
    out = tmp_path / "scan.parquet"
    scan(folder, out, kinds="router", progress=False)
    with pytest.raises(ValueError, match="holds a scan with shuffles=1, not 2"):
        scan(folder, out, kinds="router", shuffles=2, progress=False)
    with pytest.raises(ValueError, match="with kinds='router', not None"):
        scan(folder, out, progress=False)
    other = tmp_path / "other.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(other)
    with pytest.raises(ValueError, match="is no table of a scan, but another"):
        scan(folder, other, progress=False)
    other.write_text("no parquet")
    with pytest.raises(ValueError, match="is no table of a scan"):
        scan(folder, other, progress=False)
    (tmp_path / "new.parquet.journal").write_text("no journal\n")
    with pytest.raises(ValueError, match="is no journal of a scan"):
        scan(folder, tmp_path / "new.parquet", progress=False)
    with pytest.raises(ValueError, match="must exist"):
        scan(folder, tmp_path / "absent" / "new.parquet", progress=False)


def test_two_scans_do_not_write_the_same_file(folder, tmp_path):
    out = tmp_path / "scan.parquet"
    process = subprocess.Popen([*SCAN, str(folder), str(out)])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "scan.parquet.journal").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(ScanStopped, match="another scan is writing"):
            scan(folder, out, shuffles=3, progress=False)
    finally:
        process.kill()
        process.wait()


# -- files that are not as they should be ---------------------------------------------------------------------


def test_a_shard_that_changes_while_it_is_read(folder, tmp_path, monkeypatch):
    model, out = copy_of(folder, tmp_path), tmp_path / "scan.parquet"
    in_turn = scan_module._in_turn

    def meddling(tasks, settings):
        for k, answer in enumerate(in_turn(tasks, settings)):
            yield answer
            if k == 2:
                for shard in model.glob("*.safetensors"):
                    shard.write_bytes(shard.read_bytes()[:-1000])

    monkeypatch.setattr(scan_module, "_in_turn", meddling)
    with pytest.raises(ScanStopped, match=r"have changed while they were read.*; 3 matrices are kept"):
        scan(model, out, progress=False)


def test_a_shard_that_is_cut_or_missing(folder, tmp_path):
    model = copy_of(folder, tmp_path)
    shard = sorted(model.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=shard.name):
        scan(model, progress=False)
    shard.unlink()
    with pytest.raises(ValueError, match="1 are missing"):
        scan(model, progress=False)


def test_an_index_that_names_absent_tensors(folder, tmp_path):
    model = copy_of(folder, tmp_path)
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"no shard holds: model\.extra\.weight"):
        scan(model, progress=False)


LIMITED = """
import resource, signal, sys
from grokutils.spectra.scan import scan, ScanStopped
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    scan(sys.argv[1], sys.argv[2], shuffles=0, progress=False)
except ScanStopped as error:
    print(error)
"""


def test_a_full_disk_keeps_what_is_on_it(folder, tmp_path):
    out = tmp_path / "scan.parquet"
    said = subprocess.run([sys.executable, "-c", LIMITED, str(folder), str(out)], capture_output=True, text=True, check=True).stdout
    assert "cannot be written" in said and "matrices are kept in scan.parquet.journal, and the same command goes on" in said
    kept = (tmp_path / "scan.parquet.journal").read_text().splitlines()
    assert len(kept) > 2 and json.loads(kept[-1])
    whole = tmp_path / "whole.parquet"
    scan(folder, out, shuffles=0, progress=False)
    scan(folder, whole, shuffles=0, progress=False)
    same(out, whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(kinds="experts"), "kinds must be some of attention, embedding, expert, head, router.*got experts"),
        (dict(layers="7"), "layers='7' is none of the 28 layers"),
        (dict(layers="3-"), "layers must be numbers of blocks such as 0-3,10"),
        (dict(sample=-1), "sample must be a whole number of at least 0; got -1"),
        (dict(jobs=0), "jobs must be a whole number of at least 1; got 0"),
        (dict(shuffles=1.5), "shuffles must be a whole number of at least 0; got 1.5"),
        (dict(cutoff="none"), "cutoff must be"),
    ],
)
def test_options_without_meaning(folder, options, said):
    with pytest.raises(ValueError, match=said):
        scan(folder, progress=False, **options)


def test_jobs_need_a_file():
    with pytest.raises(ValueError, match="jobs must be 1 for a model that is in memory"):
        scan({"w": np.ones((20, 20))}, jobs=2)


# -- estimates and summaries ----------------------------------------------------------------------------------


def test_the_plan_counts_what_the_scan_measures(folder, table):
    planned = plan(folder)
    assert planned.matrices == len(table) and planned.by_kind == table["kind"].value_counts().to_dict()
    assert planned.parameters == table.attrs["parameters"]["measured"]
    assert 0 < planned.seconds < 600 and planned.bytes > 1 << 28
    assert plan(folder, sample=1).matrices == len(table) - 12
    assert plan(folder, jobs=4).seconds < planned.seconds < plan(folder, shuffles=50).seconds
    assert str(planned).startswith("28 matrices of ")


def test_intervals_of_samples_cover_the_mean():
    rng = np.random.default_rng(0)
    hits, draws, of, n = 0, 400, 32, 8
    for _ in range(draws):
        alpha = rng.normal(4, 1, size=of)
        chosen = rng.choice(of, n, replace=False)
        frame = pd.DataFrame({"layer": [f"e.experts[{i}]" for i in chosen], "block": 0, "expert": chosen, "experts": of,
                              "alpha": alpha[chosen], "traps": 0.0})  # fmt: skip
        row = experts(frame).iloc[0]
        hits += row.alpha_low <= alpha.mean() <= row.alpha_high
    assert abs(hits / draws - 0.95) < 3 * np.sqrt(0.95 * 0.05 / draws)


def test_the_summary_names_what_stands_out(folder, table):
    said = summary(table)
    first = said.index("gate_up_proj[1]: 3, the largest")
    assert first < said.index("down_proj[2]: 1, the largest")
    assert "Traps: in 2 of 26 matrices" in said and "a bias" in said and "2: 4 eigenvalues; at least 10 are needed" in said
    sampled = summary(scan(folder, sample=2, shuffles=0, progress=False))
    assert "95 % intervals" in sampled and "Not asked for: 8 matrices" in sampled


# -- the command ----------------------------------------------------------------------------------------------


def test_the_command_says_what_it_will_take_keeps_and_sums_up(folder, tmp_path, capsys):
    out = tmp_path / "scan.parquet"
    assert main(["scan", str(folder), "--kinds", "expert", "--sample", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("8 matrices of ") and not out.exists()
    assert main(["scan", str(folder), "--out", str(out), "--kinds", "expert"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("16 matrices of ") and "Traps: in 2 of 16 matrices" in said.out
    assert len(read_scan(out)) == 16
    assert main(["scan", str(folder), "--out", str(out), "--kinds", "expert", "--quiet"]) == 0
    again = capsys.readouterr()
    assert again.out == said.out and again.err == ""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["absent"], 1, "absent"),
        (["--sample", "two"], 2, "--sample must be a whole number of at least 0; got 'two'"),
        (["--jobs", "0"], 2, "--jobs must be a whole number of at least 1; got '0'"),
        (["--kinds", "experts"], 2, "kinds must be some of"),
    ],
)
def test_the_command_fails_in_a_sentence(folder, capsys, arguments, status, said):
    source = [] if arguments == ["absent"] else [str(folder)]
    assert main(["scan", *source, *arguments]) == status
    error = capsys.readouterr().err
    assert said in error and error.startswith("grokutils: ") and error.count("\n") == 1


def test_the_command_keeps_what_was_done(folder, tmp_path, capsys, monkeypatch):
    def dying(tasks, settings):
        yield tasks[0], scan_module._row(tasks[0], settings)
        raise ScanStopped("the memory is too small.")

    monkeypatch.setattr(scan_module, "_in_turn", dying)
    assert main(["scan", str(folder), "--out", str(tmp_path / "scan.parquet"), "--quiet"]) == 1
    assert "the memory is too small; 1 matrices are kept in scan.parquet.journal" in capsys.readouterr().err
