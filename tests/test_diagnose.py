"""diagnose: the same numbers from every source, a stated answer to every input, nothing lost in a record."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import pickle
import random
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from benchmarks import diagnostics as benchmark
from grokutils import DataError, Record, RecordError, RunConfig, diagnose, load_record, train
from grokutils.cli import main
from grokutils.experiment import data
from grokutils.records import files as record_files
from grokutils.records import record as record_module
from grokutils.records.analysis import NotKept, analyze_record
from grokutils.records.study import study
from grokutils.spectra.alpha import esd, fit_power_law
from grokutils.spectra.layers import find_layers
from grokutils.spectra.matrix import Options, diagnose_matrix
from grokutils.spectra.table import table
from grokutils.spectra.traps import find_traps, mp_ks, trap_vectors
from grokutils.spectra.verdict import THRESHOLDS, VERDICTS, Thresholds, verdict
from grokutils.util import columns, paths
from grokutils.util.blas import threads_for

ROOT = Path(__file__).resolve().parent.parent
FAST = dict(shuffles=2, ks_draws=0, progress=False)
WORDS = ["layer", "note", "alpha_reason", "traps_reason", "verdict", "reason"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The matrices are small, and two threads on a busy machine spend their time waiting for each other."""
    with threadpool_limits(1):
        yield


def gaussian(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def tensor(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(gaussian(*shape, seed=seed))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))


def one(matrix, **options) -> pd.Series:
    return diagnose(matrix, **{**FAST, **options}).iloc[0]


def same(a: pd.DataFrame, b: pd.DataFrame, rtol=1e-9) -> None:
    pd.testing.assert_frame_equal(a, b, rtol=rtol, check_dtype=False)


@pytest.mark.parametrize("page", ["howto_diagnose", "howto_monitor"])
def test_the_code_in_the_book_runs(page, trained, runs, tmp_path, monkeypatch):
    shutil.copytree(trained, runs / "x")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert len(blocks) >= 3
    names: dict = {}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            exec(compile(block, page, "exec"), names)
    if page == "howto_monitor":
        assert monitor_rows(names["monitor"].history) == monitor_rows(pd.read_json("alpha.jsonl", lines=True))
    else:
        assert set(names["data"].leads.layer) == {"fc1", "fc2", "average", "network"}


def monitor_rows(frame: pd.DataFrame) -> list[tuple[int, str]]:
    assert len(frame) == 6
    return [(int(step), str(layer)) for step, layer in zip(frame.step, frame.layer, strict=True)]


# -- every source ---------------------------------------------------------------------------------------------


def test_all_sources_give_the_same_table(tmp_path):
    net = mlp()
    expected = diagnose(net, **FAST)
    assert expected.layer.tolist() == ["0", "2", "4"]
    assert expected[["rows", "columns"]].values.tolist() == [[30, 40], [20, 30], [10, 20]]
    state = net.state_dict()
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(state, path)
    arrays = {name: value.numpy() for name, value in state.items()}
    for source in (state, arrays, path, str(path)):
        same(diagnose(source, **FAST), expected)
    for place, layer in zip(range(3), ("0", "2", "4"), strict=True):
        alone = diagnose(state[f"{layer}.weight"], **FAST)
        assert alone.layer.tolist() == ["matrix"]
        same(alone.drop(columns="layer"), expected.iloc[[place]].drop(columns="layer").reset_index(drop=True))


def test_the_columns_are_those_that_are_documented(record):
    names = list(columns.DIAGNOSTICS)
    assert list(diagnose(mlp(), **FAST).columns) == names[4:]
    found = analyze_record(record, **FAST)
    assert list(found.diagnostics.columns) == names
    assert list(found.spectra.columns) == list(columns.SPECTRA)
    assert list(found.baselines.columns) == list(columns.BASELINES)
    per_layer = [f"{layer}_{name}" for layer in ("fc1", "fc2", "fc3") for name in columns.METRICS_PER_LAYER]
    assert sorted(record.metrics.columns) == sorted([*columns.METRICS, *per_layer])
    assert list(study(record.folder).leads.columns) == list(columns.LEAD_TIMES)


def test_the_page_about_columns_is_made_from_them():
    assert (ROOT / "book" / "columns.md").read_text(encoding="utf-8") == columns.page()


def test_numbers_against_their_definitions():
    W = gaussian(60, 90)
    W[4, 7] = 25.0
    row = diagnose(W, shuffles=4, bootstrap=20, progress=False).iloc[0]
    x = esd(W)
    fit = fit_power_law(x, bootstrap=20)
    assert row.alpha == fit.alpha and row.xmin == fit.xmin and row.D == fit.D and row.n_tail == fit.n_tail
    assert (row.alpha_low, row.alpha_high) == fit.interval and row.alpha_sigma == fit.sigma
    assert row.alpha_clipped == fit_power_law(x, fix_fingers="clip_xmax").alpha
    assert row.alpha_hat == pytest.approx(fit.alpha * np.log10(x[-1]))
    assert row.stable_rank == pytest.approx(x.sum() / x[-1])
    assert row.spectral_norm == pytest.approx(np.linalg.norm(W, 2))
    assert row.l2_norm == pytest.approx(np.linalg.norm(W))
    assert row.max_over_std == pytest.approx((25 - W.mean()) / W.std())
    assert row.traps == 1.0 and row.traps_std == 0.0 and row.trap_strength > 1
    assert row.trap_z == pytest.approx(row.max_over_std) and row.trap_share > 0.5 and row.trap_ipr > 0.5
    assert 0.8 < row.sigma_mp < 1 and row.spikes == 1.0
    ks = mp_ks(find_traps(W, shuffles=1).eigenvalues, W.shape)
    assert (row.ks_D, row.ks_p_textbook, row.ks_p) == (ks.D[0], ks.p_textbook[0], ks.p_monte_carlo[0])
    assert row.ks_p_textbook > 0.99 > row.ks_p
    assert math.isnan(one(W).alpha_low) and math.isnan(one(W).ks_D)


def test_equal_to_weightwatcher_where_that_is_asked_for(monkeypatch):
    """By the check that the benchmark makes before it times: a whole model, each layer on the same shuffles; five
    are pooled for the small one."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(130, 110), nn.ReLU(), nn.Linear(110, 110), nn.ReLU(), nn.Linear(110, 20))
    with torch.no_grad():
        net[0].weight[3, 4] = 5.0
        net[2].weight.add_(0.05)
    with threadpool_limits(1):
        assert benchmark.check_equal(net, seed=7) < 1e-6
        monkeypatch.setitem(benchmark.SAME, "seed", 0)  # other shuffles are noticed
        monkeypatch.setattr(benchmark, "on_its_shuffles", lambda net, seed: diagnose(net, **benchmark.SAME))
        with pytest.raises(SystemExit, match="not the same "):
            benchmark.check_equal(net, seed=7)


def test_the_benchmark_reports_and_refuses_what_is_not_equal(monkeypatch, tmp_path, capsys):
    def small(traps):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 12))

    seen = {}  # WeightWatcher is slow, and says the same each time

    def analyze(net, seed, **options):
        key = str(net)
        if key not in seen:
            seen[key] = original(net, seed, **options)
        return seen[key]

    original = benchmark.reference.analyze
    monkeypatch.setattr(benchmark.reference, "analyze", analyze)
    monkeypatch.setattr(benchmark, "network", small)
    monkeypatch.setattr(benchmark._bench, "RESULTS", tmp_path)
    threads = torch.get_num_threads()
    benchmark.main(["--rounds", "1", "--size", "40"])
    assert torch.get_num_threads() == threads
    report = json.loads((tmp_path / "diagnostics.json").read_text())
    assert set(report) == {"machine", "threads", "mlp", "mlp with traps", "large"}
    assert report["mlp"]["largest_relative_difference"] < 1e-6 and report["large"]["size"] == 40
    assert "equal to WeightWatcher, times faster" in capsys.readouterr().out
    theirs = pd.DataFrame({"alpha": [2.0, 3.0]})
    with pytest.raises(SystemExit, match=r"not the same alpha: \[2.0, 3.1\] here, \[2.0, 3.0\] from WeightWatcher"):
        benchmark.difference(pd.DataFrame({"alpha": [2.0, 3.1]}), theirs, {"alpha": "alpha"})
    with pytest.raises(SystemExit, match="not the same alpha"):
        benchmark.difference(pd.DataFrame({"alpha": [2.0, math.nan]}), theirs, {"alpha": "alpha"})


def test_large_matrices_by_their_product_and_small_ones_directly(monkeypatch):
    low = gaussian(60, 15) @ gaussian(15, 80)
    trapped = np.random.default_rng(1).standard_t(2, size=(60, 80))
    for W in (gaussian(60, 80), gaussian(60, 60), low, gaussian(80, 60) * 100, trapped, trapped.T + 1):
        expected = one(W)
        with monkeypatch.context() as patched:
            patched.setattr(sys.modules["grokutils.spectra.matrix"], "LARGE", 50)
            got = one(W, exact=True)  # counting without spectra places the entries anew
            for name in set(expected.index) - set(WORDS):
                assert got[name] == pytest.approx(expected[name], rel=1e-7, abs=1e-9, nan_ok=True), name
            # where rounding would come near the cutoff it is done directly, to the last digit
            tiny = one(W * 1e6, cutoff=1e-3)
        assert tiny.xmin == one(W * 1e6, cutoff=1e-3).xmin
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="must have eigenvalues under 1e308"):
        patched.setattr(sys.modules["grokutils.spectra.matrix"], "LARGE", 50)
        one(gaussian(60, 60) * 1e200)


def test_the_same_seed_gives_the_same_table_and_nothing_else_is_touched():
    net = mlp()
    before = copy.deepcopy(net.state_dict())
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, again, other = (diagnose(net, seed=s, **FAST) for s in (0, 0, 1))
    same(first, again, rtol=0)
    assert (first.trap_strength != other.trap_strength).all() and (first.alpha == other.alpha).all()
    assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 3.0, 1e4]), st.booleans())
def test_scale_transposition_and_order_change_nothing_that_has_no_unit(seed, factor, transposed):
    rng = np.random.default_rng(seed)
    W = rng.standard_t(3, size=(30, 45)) + rng.normal() * 0.3
    other = (W.T if transposed else W)[rng.permutation(45 if transposed else 30)] * factor
    mine, theirs = (one(matrix, cutoff="relative") for matrix in (W, other))
    for name in ("alpha", "D", "n_tail", "stable_rank", "effective_rank", "kurtosis", "max_over_std", "spikes"):
        assert theirs[name] == pytest.approx(mine[name], rel=1e-6, abs=1e-9), name
    if not transposed:
        scaled = one(W * factor, cutoff="relative")
        assert scaled.traps == mine.traps and scaled.sigma_mp == pytest.approx(mine.sigma_mp, rel=1e-9)
        assert scaled.verdict == mine.verdict


def test_without_shuffles_there_is_alpha_alone():
    row = one(gaussian(40, 60), shuffles=0)
    assert row.alpha > 1 and math.isnan(row.traps) and row.traps_reason == "shuffles=0"
    assert row.reason.endswith("traps not counted: shuffles=0")


# -- what is a layer ------------------------------------------------------------------------------------------


def names(source) -> list[str]:
    return [layer.name for layer in find_layers(source)]


@pytest.mark.parametrize(
    "module, rows, cols, note",
    [
        (nn.Conv1d(6, 12, 5), 12, 30, "12 x 6 x 5 read as 12 x 30"),
        (nn.Conv2d(3, 64, 7), 64, 147, "64 x 3 x 7 x 7 read as 64 x 147"),
        (nn.Conv1d(2, 12, 40), 12, 80, "12 x 2 x 40 read as 12 x 80"),
        (nn.ConvTranspose2d(16, 4, 3), 16, 36, "16 x 4 x 3 x 3 read as 16 x 36"),
        (nn.Embedding(50, 16), 50, 16, ""),
        (nn.Bilinear(12, 13, 1), 12, 13, ""),
    ],
)
def test_kinds_of_layers(module, rows, cols, note):
    (row,) = diagnose(nn.Sequential(module), **FAST).to_dict("records")
    assert (row["layer"], row["rows"], row["columns"], row["note"]) == ("0", rows, cols, note)
    weight = module.weight.detach().numpy().reshape(rows, cols)
    assert row["spectral_norm"] == pytest.approx(np.linalg.norm(weight, 2), rel=1e-5)
    if isinstance(module, nn.Embedding) or 1 < module.weight.shape[-1] < 32 and rows > 12:  # a file says no types
        same(diagnose({"0.weight": module.weight}, **FAST), diagnose(nn.Sequential(module), **FAST))


def test_attention():
    fused = nn.MultiheadAttention(16, 4, add_bias_kv=True)
    found = diagnose(fused, **FAST)
    assert found.layer.tolist() == ["in_proj.q", "in_proj.k", "in_proj.v", "out_proj"]
    assert (found["rows"] == 16).all() and (found["columns"] == 16).all()
    assert found.note.tolist() == ["a third of in_proj_weight"] * 3 + [""]
    for k in range(3):
        part = fused.in_proj_weight[16 * k : 16 * (k + 1)]
        assert found.spectral_norm[k] == pytest.approx(torch.linalg.matrix_norm(part, 2).item(), rel=1e-5)
    apart = nn.MultiheadAttention(16, 4, kdim=12, vdim=20)
    assert names(apart) == ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert diagnose(apart, **FAST)["columns"].tolist() == [16, 12, 20, 16]
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    assert names(layer) == ["self_attn.in_proj." + k for k in "qkv"] + ["self_attn.out_proj", "linear1", "linear2"]


@pytest.mark.parametrize("name", ["h.0.attn.c_attn.weight", "blocks.1.attn.qkv.weight", "attn.Wqkv.weight"])
def test_fused_projections_of_other_libraries(name):
    tall = {name: tensor(36, 12)}
    wide = {name: tall[name].T.contiguous()}  # GPT-2 stores it the other way round
    a, b = diagnose(tall, **FAST), diagnose(wide, **FAST)
    assert [layer[-2:] for layer in a.layer] == [".q", ".k", ".v"] and a.layer.equals(b.layer)
    assert a.alpha.to_numpy() == pytest.approx(b.alpha.to_numpy())
    assert names({name: tensor(30, 12)}) == [name.removesuffix(".weight")]  # fewer keys than queries
    assert names({"attention.query_key_value.weight": tensor(36, 12)}) == ["attention.query_key_value"]


def test_tied_weights_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(30, 12), nn.Linear(12, 12), nn.Linear(12, 30)
            self.head.weight = self.embed.weight

    net = Tied()
    for source in (net, net.state_dict()):
        found = diagnose(source, **FAST)
        assert found.layer.tolist() == ["embed", "body"]
        assert found.note.tolist() == ["also head.weight", ""]
    shared = gaussian(12, 12)
    assert names({"a": shared, "b": shared, "c": shared.copy(), "d": shared[:11]}) == ["a", "c", "d"]


def test_normalisation_vectors_buffers_and_masks_are_left_out():
    net = nn.Sequential(
        nn.Linear(12, 15), nn.LayerNorm((15, 15)), nn.BatchNorm1d(15), nn.GroupNorm(3, 15), nn.RMSNorm((2, 15))
    )
    net.register_buffer("mask", torch.ones(12, 12, dtype=torch.bool))
    net.register_buffer("positions", torch.arange(24).reshape(2, 12))
    net.cls_token = nn.Parameter(torch.zeros(1, 1, 12))
    assert names(net) == ["0"]
    assert "mask" not in names(net.state_dict()) and "positions" not in names(net.state_dict())
    assert names({"w": gaussian(3, 4), "epoch": 3, "list": [[1, 2]], "scalar": np.float64(2), "b": np.ones(3)}) == ["w"]


def test_stacks_of_matrices():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(tensor(3, 20, 40).float())
            self.position = nn.Parameter(tensor(1, 20, 40).float())
            self.bias = nn.Parameter(tensor(3, 1, 40).float())

    net = Experts()
    for source in (net, net.state_dict()):
        found = diagnose(source, **FAST)
        assert found.layer.tolist() == ["experts[0]", "experts[1]", "experts[2]", "position"]
        assert found.note.tolist() == ["one of 3 in experts"] * 3 + [""]
        second = torch.linalg.matrix_norm(net.experts[1], 2).item()
        assert found.spectral_norm[1] == pytest.approx(second, rel=1e-5)


def test_a_parametrised_weight_is_its_value_and_is_not_disturbed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 15), nn.Conv1d(12, 11, 3))
    nn.utils.parametrizations.spectral_norm(net[0])
    nn.utils.parametrizations.weight_norm(net[1])
    with torch.no_grad():
        net[1].parametrizations.weight.original0.mul_(7)
    net.train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    found = diagnose(net, **FAST)
    assert found.layer.tolist() == ["0", "1"] and found.note.tolist() == ["", "11 x 12 x 3 read as 11 x 36"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and net.training
    net.eval()
    expected = [torch.linalg.matrix_norm(part.weight.reshape(len(part.weight), -1), 2).item() for part in net]
    assert found.spectral_norm.tolist() == pytest.approx(expected, rel=1e-5)


def test_names_do_not_collide():
    assert names({"a": gaussian(3, 3), "a.weight": gaussian(4, 4), "b.weight": gaussian(5, 5)}) == ["a", "a.weight", "b"]
    assert names(nn.Linear(12, 12)) == ["weight"]


# -- one bad layer among good ones ----------------------------------------------------------------------------


def bad_layers() -> dict[str, tuple[torch.Tensor, str]]:
    nan, inf = tensor(20, 30), tensor(20, 30)
    nan[3, 4], inf[5, 6] = float("nan"), float("inf")
    return {
        "nan": (nan, "nan must hold finite numbers; 1 of its 600 entries are NaN or infinite."),
        "inf": (inf, "inf must hold finite numbers; 1 of its 600 entries are NaN or infinite."),
        "complex": (tensor(20, 30) * 1j, "complex must hold real numbers; got a tensor of torch.complex128."),
        "meta": (torch.empty(20, 30, device="meta"), "meta must hold numbers; got a tensor on the meta device"),
        "huge": (tensor(20, 30) * 1e200, "must have eigenvalues under 1e308"),
    }


@pytest.mark.parametrize("name", bad_layers())
def test_a_bad_layer_is_a_row_and_the_others_stand(name):
    tensor_, said = bad_layers()[name]
    source = {"good": tensor(20, 30, seed=1), name: tensor_, "last": tensor(12, 30, seed=2)}
    found = diagnose(source, **FAST)
    assert found.layer.tolist() == ["good", name, "last"]
    same(
        found.iloc[[0, 2]].reset_index(drop=True),
        diagnose({k: source[k] for k in ("good", "last")}, **FAST),
    )
    row = found.iloc[1]
    assert row.verdict == "undetermined" and row.reason.startswith("no alpha: ") and said in row.reason
    assert said in row.alpha_reason and said in row.traps_reason
    assert (row["rows"], row["columns"]) == (20, 30) and row.n_tail == 0
    floats = [c for c in found if c not in [*WORDS, "rows", "columns", "n_tail", "erg_count"]]
    assert row[floats].isna().all()


def test_lazy_layers_say_what_to_do():
    found = diagnose(nn.Sequential(nn.LazyLinear(20), nn.Linear(20, 12)), **FAST)
    assert found.verdict[0] == "undetermined" and "run the lazy module once" in found.reason[0]
    assert found.layer.tolist() == ["0", "1"] and found.alpha[1] > 1


# -- a matrix by itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, error, said",
    [
        (np.array([[1.0, np.nan], [2, 3]]), ValueError, "1 of its 4 entries are NaN or infinite"),
        (np.array([[1.0, -np.inf], [2, np.inf]]), ValueError, "2 of its 4 entries are NaN or infinite"),
        (torch.full((3, 3), torch.nan), ValueError, "9 of its 9 entries"),
        (np.ones((0, 5)), ValueError, "must have at least one entry; got shape (0, 5)"),
        (torch.ones(5, 0), ValueError, "must have at least one entry; got shape (5, 0)"),
        ([], ValueError, "must be a matrix with two dimensions; got shape (0,)"),
        (np.ones(5), ValueError, "must be a matrix with two dimensions; got shape (5,)"),
        (torch.tensor(3.0), ValueError, "must be a matrix with two dimensions; got shape ()"),
        (np.ones((2, 3, 4)), ValueError, "must be a matrix with two dimensions; got shape (2, 3, 4)"),
        ([[1, 2], [3]], ValueError, "must be rectangular"),
        (np.ones((2, 2)) * 1j, TypeError, "must hold real numbers; got complex numbers"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "must hold real numbers; got a tensor of torch.complex64"),
        (np.array([["a", "b"]]), TypeError, "must hold real numbers; got entries of type"),
        ([[object()]], TypeError, "must hold real numbers; got entries of type object"),
        (1e200 * gaussian(12, 12), ValueError, "must have eigenvalues under 1e308"),
    ],
)
def test_what_is_no_matrix_is_refused_in_one_sentence(bad, error, said):
    with pytest.raises(error) as caught:
        diagnose(bad, **FAST)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [None, 3, 2.5, {1, 2}, object(), b"x", iter([])])
def test_other_kinds_of_sources_are_refused(bad):
    with pytest.raises(TypeError, match="source must be a matrix, a torch module, .* or a Record; got"):
        diagnose(bad)


@pytest.mark.parametrize(
    "convert",
    [
        lambda w: w.tolist(),
        np.asfortranarray,
        lambda w: np.repeat(np.repeat(w, 2, axis=0), 3, axis=1)[::2, ::3],
        lambda w: w.astype(np.int64),
        lambda w: w.astype(np.int8),
        lambda w: w.astype(np.float16),
        lambda w: w.astype(np.longdouble),
        lambda w: torch.from_numpy(w).half(),
        lambda w: torch.from_numpy(w).to(torch.bfloat16),
        lambda w: torch.from_numpy(w).to(torch.int32),
        lambda w: torch.from_numpy(w).float().requires_grad_(),
        lambda w: torch.from_numpy(w.T.copy()).T,
        lambda w: torch.from_numpy(w).to_sparse(),
        lambda w: nn.Parameter(torch.from_numpy(w)),
        pd.DataFrame,
    ],
)
def test_every_type_and_memory_order_gives_the_same_numbers(convert):
    W = np.random.default_rng(0).integers(-100, 100, size=(20, 30)).astype(float)  # exact even in bfloat16
    same(diagnose(convert(W), **FAST), diagnose(W, **FAST), rtol=1e-12)


@pytest.mark.parametrize(
    "matrix, alpha_reason, traps_reason",
    [
        (np.full((20, 30), 0.1), "1 of 20 eigenvalues above the cutoff", "no bulk: half"),
        (np.zeros((20, 30)), "0 of 20 eigenvalues above the cutoff", "no bulk: half"),
        (np.eye(20), "all 20 eigenvalues above the cutoff are equal", ""),
        (np.outer(np.arange(1, 21), np.arange(1, 31)), "1 of 20 eigenvalues above the cutoff", ""),
        (gaussian(3, 3), "3 eigenvalues; at least 10 are needed", "3 eigenvalues; at least 10 are needed"),
        (gaussian(9, 200), "9 eigenvalues; at least 10 are needed", "9 eigenvalues; at least 10 are needed"),
        (gaussian(200, 1), "1 eigenvalues; at least 10 are needed", "1 eigenvalues; at least 10 are needed"),
        (1e-6 * gaussian(20, 30), "0 of 20 eigenvalues above the cutoff (1e-05)", ""),
    ],
)
def test_degenerate_matrices_are_undetermined_with_a_reason(matrix, alpha_reason, traps_reason):
    for row in (one(matrix), diagnose({"layer": torch.from_numpy(matrix.astype(float))}, **FAST).iloc[0]):
        assert math.isnan(row.alpha) and math.isnan(row.alpha_clipped) and row.n_tail == 0
        assert alpha_reason in row.alpha_reason
        assert math.isnan(row.traps) == bool(traps_reason) and traps_reason in row.traps_reason
        if row.traps >= 0.5:  # which need no alpha
            assert row.verdict == "trapped"
        else:
            assert row.verdict == "undetermined" and alpha_reason in row.reason
        assert row.l2_norm == pytest.approx(np.linalg.norm(matrix)), "what can be measured is"


def test_low_rank_and_few_eigenvalues_are_still_fitted():
    low = one(gaussian(60, 15) @ gaussian(15, 80, seed=1))
    assert low.alpha > 1 and low.n_tail <= 15 and low.alpha_reason == ""
    few = one(gaussian(10, 200))
    assert few.alpha > 1 and few.traps == 0
    tiny = one(1e-6 * gaussian(20, 30), cutoff="relative")
    assert tiny.alpha == pytest.approx(one(gaussian(20, 30)).alpha)


def test_a_source_without_matrices_says_so():
    with pytest.raises(ValueError, match="must hold a weight matrix: .* it has none.$"):
        diagnose({"bias": np.ones(3)})
    with pytest.raises(ValueError, match="must hold a weight matrix"):
        diagnose(nn.ReLU())
    with pytest.raises(ValueError, match="It holds mappings: look into 'model' or 'optimizer'"):
        diagnose({"model": {"w": np.ones((3, 3))}, "optimizer": {}, "epoch": 3})


# -- files ----------------------------------------------------------------------------------------------------


class Tripwire:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("suffix", ["pt", "pth", "pkl", "safetensors"])
def test_a_pickle_is_refused_and_not_opened(tmp_path, suffix):
    mark, path = tmp_path / "mark", tmp_path / f"model.{suffix}"
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(Tripwire(mark)))
    else:
        torch.save({"w": torch.ones(20, 20), "x": Tripwire(mark)}, path)
    with pytest.raises(ValueError, match="is no safetensors file .* can run code; save yours with safetensors.torch.save_model") as said:
        diagnose(path)
    assert "if you trust it, diagnose(torch.load(path, weights_only=False))" in str(said.value)
    assert not mark.exists()


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"w": tensor(20, 20)}, path)
    whole = path.read_bytes()
    for content in (b"", b"{}", whole[:100], whole[:-8], b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no safetensors file"):
            diagnose(path)
    with pytest.raises(ValueError, match="is a folder; name a .safetensors file in it"):
        diagnose(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file .*gone.safetensors"):
        diagnose(str(tmp_path / "gone.safetensors"))


def test_types_in_a_file(tmp_path):
    path = tmp_path / "x.safetensors"
    W = torch.from_numpy(np.random.default_rng(0).integers(-7, 8, size=(20, 30)).astype(np.float32))
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
    content = {f"w{k}": W.to(kind) for k, kind in enumerate(types)}
    content |= {"ids": torch.ones(20, 20, dtype=torch.int64), "mask": torch.ones(20, 20, dtype=torch.bool)}
    content |= {"packed": torch.ones(20, 20, dtype=torch.uint8), "scalar": torch.tensor(1.0)}
    safetensors.torch.save_file(content, path)
    found = diagnose(path, **FAST)
    assert found.layer.tolist() == [f"w{k}" for k in range(5)]
    assert found.alpha.nunique() == 1 and found.traps.nunique() == 1


def test_stacks_and_thirds_in_a_file(tmp_path):
    path = tmp_path / "x.safetensors"
    content = {"experts": tensor(2, 40, 50), "attn.qkv.weight": tensor(36, 12), "conv.weight": tensor(12, 3, 3, 3)}
    safetensors.torch.save_file(content, path)
    found = diagnose(path, **FAST).sort_values("layer", ignore_index=True)
    same(found, diagnose(content, **FAST).sort_values("layer", ignore_index=True))
    assert len(found) == 6


# -- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, value",
    [
        ("shuffles", -1), ("shuffles", 1.5), ("shuffles", True), ("bootstrap", -1), ("bootstrap", "3"),
        ("ks_draws", -1), ("seed", -1), ("seed", 0.5), ("seed", None), ("method", "mp"), ("method", None),
        ("cutoff", -1.0), ("cutoff", math.nan), ("cutoff", "absolute"),
    ],
)  # fmt: skip
def test_options_without_meaning_are_refused_for_every_source(option, value, record):
    for source in (gaussian(12, 12), mlp(), record):
        with pytest.raises(ValueError, match=f"^{option} must be .*; got "):
            diagnose(source, **{option: value})
    with pytest.raises(TypeError):
        diagnose(mlp(), shuffle=3)


@pytest.mark.parametrize("shape", [(30, 45), (45, 30), (20, 20)])
@pytest.mark.parametrize("method", ["bulk", "weightwatcher"])
def test_the_largest_trap_is_that_of_trap_vectors(shape, method):
    for W in (np.random.default_rng(1).standard_t(1.5, size=shape), gaussian(*shape) + 1.0):
        row, expected = one(W, seed=4, method=method), trap_vectors(W, seed=4, k=1)
        assert row.traps > 0
        assert row.trap_ipr == pytest.approx(max(expected.ipr_left[0], expected.ipr_right[0]))
        assert row.trap_share == pytest.approx(expected.entries[0][0].share)
        assert row.trap_z == pytest.approx(expected.entries[0][0].z)


def test_a_generator_can_draw_the_shuffles():
    W = gaussian(20, 30)
    W[0, 0] = 30
    for make in (np.random.default_rng, np.random.RandomState):
        a, b = (one(W, seed=make(3), bootstrap=5) for _ in range(2))
        assert a.trap_strength == b.trap_strength and a.trap_z == b.trap_z > 15
        assert a.trap_strength != one(W, seed=make(4)).trap_strength
        assert a.trap_share == pytest.approx(trap_vectors(W, seed=make(3), k=1).entries[0][0].share)


# -- verdicts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(100, 200), (64, 64), (10, 200)])
def test_random_matrices_are_under_trained_whatever_their_alpha(shape, seed):
    rng = np.random.default_rng(seed)
    for matrix in (rng.normal(size=shape), rng.uniform(-0.1, 0.1, size=shape)):
        assert one(matrix, shuffles=5).verdict == "under-trained"


def test_what_makes_a_trap_is_named():
    W = gaussian(100, 200)
    W[3, 4] = 40.0
    assert one(W).verdict == "trapped"
    assert one(W).reason == "1.0 traps, the largest carried by one weight of 39 standard deviations"
    shifted = one(gaussian(100, 200) + 0.3)
    assert shifted.verdict == "trapped" and shifted.reason == "1.0 traps; the weights' mean is 0.31 standard deviations"
    sparse = one(gaussian(100, 64) * (np.random.default_rng(1).random((100, 64)) < 0.05), shuffles=5)
    assert sparse.verdict == "trapped" and sparse.zeros == pytest.approx(0.95, abs=0.02)
    assert "95 % of the weights are exactly zero" in sparse.reason
    heavy = one(np.random.default_rng(0).standard_t(1.2, size=(100, 200)), cutoff="relative")
    assert heavy.verdict == "trapped" and heavy.traps > 2 and "; alpha 1." in heavy.reason


def test_planted_power_laws_get_the_verdict_of_their_alpha():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 200)))[0] for n in (200, 400))
    for alpha, word in ((1.6, "over-correlated"), (3.0, "well-trained")):
        tail = (1 - np.arange(0.5, 200) / 200) ** (-1 / (alpha - 1))
        row = one(left * np.sqrt(tail) @ right.T)
        assert row.alpha == pytest.approx(alpha, rel=0.1) and row.traps == 0 and row.verdict == word


def row_of(alpha, traps=0.0, **more) -> dict:
    return {"alpha": alpha, "traps": traps, "alpha_reason": "why a", "traps_reason": "why t", **more}


@pytest.mark.parametrize(
    "row, word, reason",
    [
        (row_of(2.0), "well-trained", "alpha 2.0 lies between 2 and 6; no traps"),
        (row_of(6.0, spikes=1.0), "well-trained", "alpha 6.0 lies between 2 and 6; no traps"),
        (row_of(1.99), "over-correlated", "alpha 1.99 is below 2; no traps"),
        (row_of(1.9996), "over-correlated", "alpha 1.9996 is below 2; no traps"),
        (row_of(6.01), "under-trained", "alpha 6.01 is above 6: close to random; no traps"),
        (row_of(3.0, spikes=0.0), "under-trained",
         "alpha 3.0 lies between 2 and 6, but no eigenvalue stands out of the random bulk; no traps"),
        (row_of(3.0, 0.4), "well-trained", "alpha 3.0 lies between 2 and 6; a trap in few shuffles (0.4 on average)"),
        (row_of(3.0, 0.5), "trapped", "0.5 traps"),
        (row_of(1.3, 4.26), "trapped", "4.3 traps; alpha 1.3 is below 2"),
        (row_of(math.nan, 1.0), "trapped", "1.0 traps"),
        (row_of(math.nan), "undetermined", "no alpha: why a"),
        (row_of(math.nan, math.nan), "undetermined", "no alpha: why a"),
        (row_of(3.0, math.nan), "well-trained", "alpha 3.0 lies between 2 and 6; traps not counted: why t"),
        (row_of(3.0, 1.0, mean_over_std=-0.25), "trapped", "1.0 traps; the weights' mean is -0.25 standard deviations"),
        (row_of(3.0, 1.0, mean_over_std=0.01), "trapped", "1.0 traps"),
        (row_of(3.0, 2.0, mean_over_std=0.5, max_over_std=17.2), "trapped",
         "2.0 traps; weights lie up to 17 standard deviations from the mean"),
        (row_of(3.0, 2.0, trap_share=0.6, trap_z=-31.4), "trapped",
         "2.0 traps, the largest carried by one weight of -31 standard deviations"),
    ],
)  # fmt: skip
def test_every_verdict_and_its_words(row, word, reason):
    assert verdict(row) == (word, reason)


@given(st.floats(1, 20) | st.just(math.nan), st.floats(0, 30) | st.just(math.nan), st.sampled_from([0.0, 2.0, math.nan]))
def test_verdicts_follow_the_thresholds(alpha, traps, spikes):
    word, reason = verdict(row_of(alpha, traps, spikes=spikes))
    assert word in VERDICTS and reason
    assert (word == "trapped") == (traps >= 0.5)
    assert word != "undetermined" or math.isnan(alpha)
    if word in ("over-correlated", "well-trained"):
        assert (word == "over-correlated") == (alpha < 2)
    lenient = Thresholds(over_correlated_below=1.0, under_trained_above=99.0, trapped_from=99.0)
    assert verdict(row_of(alpha, traps), lenient)[0] in ("well-trained", "undetermined")


def test_thresholds_reach_the_table():
    frame = diagnose(gaussian(40, 50), thresholds=dataclasses.replace(THRESHOLDS, over_correlated_below=50.0), **FAST)
    assert frame.verdict[0] == "over-correlated" and "below 50" in frame.reason[0]


# -- records --------------------------------------------------------------------------------------------------

TINY = dict(width=12, batch_size=160)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    train(RunConfig.recipe("express", steps=8, **TINY), folder, progress=False)
    return folder


@pytest.fixture
def record(trained, tmp_path) -> Record:
    shutil.copytree(trained, tmp_path / "tiny")
    return load_record(tmp_path / "tiny")


def files(record: Record) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in record.folder.glob("*.parquet") if path.stem != "metrics"}


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """Names of the layers whose spectra are computed."""
    module, seen = sys.modules["grokutils.records.analysis"], []
    original = module.diagnose_layer

    def spy(layer, options):
        seen.append(layer.name)
        return original(layer, options)

    monkeypatch.setattr(module, "diagnose_layer", spy)
    return seen


def test_a_record_is_analysed_once_and_keeps_it(record, computed):
    found = analyze_record(record, **FAST)
    steps = record.steps_saved
    assert computed == ["fc1", "fc2", "fc3"] * len(steps)
    assert found.diagnostics.step.tolist() == [s for s in steps for _ in range(3)]
    assert found.baselines.step.tolist() == steps
    assert set(files(record)) == {"diagnostics.parquet", "spectra.parquet", "baselines.parquet"}
    last = diagnose(record.weights(), **FAST)
    same(found.diagnostics.tail(3)[last.columns].reset_index(drop=True), last)
    before = files(record)
    computed.clear()
    for again in (analyze_record(record, **FAST), analyze_record(load_record(record.folder), **FAST)):
        same(again.diagnostics, found.diagnostics)
        same(again.baselines, found.baselines)
    same(diagnose(record, **FAST), found.diagnostics)
    assert not computed and files(record) == before


def test_spectra_can_be_drawn_from_what_is_kept(record):
    found = analyze_record(record, shuffles=5, ks_draws=0, progress=False)
    own = found.spectra[(found.spectra.layer == "fc2") & (found.spectra.step == 8)]
    assert own["shuffle"].tolist() == [-1, 0, 1, 2]
    assert own["rows"].eq(12).all() and own["columns"].eq(12).all()
    W = record.weights(8)["fc2.weight"]
    np.testing.assert_allclose(own.eigenvalues.iloc[0], esd(W), rtol=1e-5, atol=1e-5)
    direct = diagnose_matrix(W, Options(shuffles=5, ks_draws=0)).traps
    np.testing.assert_allclose(np.stack(own.eigenvalues.iloc[1:]), direct.eigenvalues[:3], rtol=1e-5, atol=1e-5)


def test_baselines_are_those_of_the_definitions(record):
    from grokutils.spectra import baselines as b
    from grokutils.spectra.measure import l2_norm

    row = analyze_record(record, **FAST).baselines.iloc[-1]
    weights, module = record.weights(), record.model()
    x = torch.from_numpy(data.load(record.config, 0).x_train).float()
    assert row.activation_sparsity_text == pytest.approx(b.activation_sparsity_text(module, x))
    assert row.activation_sparsity_notebook == pytest.approx(b.activation_sparsity_notebook(module, x))
    assert row.absolute_weight_entropy_text == pytest.approx(b.absolute_weight_entropy_text(weights))
    assert row.absolute_weight_entropy_notebook == pytest.approx(b.absolute_weight_entropy_notebook(weights))
    assert row.circuit_complexity_text == pytest.approx(b.circuit_complexity_text(module, x, draws=4))
    assert row.circuit_complexity_notebook == pytest.approx(b.circuit_complexity_notebook(module, x, draws=4))
    assert row.l2_norm == pytest.approx(l2_norm(weights))


def test_a_continued_run_is_analysed_from_where_it_was(record, computed):
    first = analyze_record(record, **FAST)
    computed.clear()
    longer = train(RunConfig.recipe("express", steps=11, **TINY), record.folder, progress=False)
    both = analyze_record(longer, **FAST)
    new = [s for s in longer.steps_saved if s > 8]
    assert new and len(computed) == 3 * len(new)
    same(both.diagnostics[both.diagnostics.step <= 8].reset_index(drop=True), first.diagnostics)
    shutil.rmtree(longer.folder)
    fresh = train(RunConfig.recipe("express", steps=11, **TINY), record.folder, progress=False)
    whole = analyze_record(fresh, **FAST)
    shorter = analyze_record(load_record(record.folder, until=8), **FAST)
    kept = both.diagnostics[both.diagnostics.step.isin(fresh.steps_saved)].reset_index(drop=True)
    same(kept, whole.diagnostics)
    assert shorter.diagnostics.step.max() <= 8 and shorter.spectra.step.max() <= 8 and shorter.baselines.step.max() <= 8


@pytest.mark.parametrize("change", [dict(shuffles=3), dict(seed=1), dict(method="weightwatcher"), dict(cutoff=1e-6),
                                    dict(bootstrap=2), dict(ks_draws=10)])  # fmt: skip
def test_other_options_are_computed_again(record, computed, change):
    analyze_record(record, **FAST)
    before = files(record)
    computed.clear()
    other = analyze_record(record, **{**FAST, **change})
    assert len(computed) == 3 * len(record.steps_saved) and files(record) != before
    computed.clear()
    same(analyze_record(record, **{**FAST, **change}).diagnostics, other.diagnostics)
    assert not computed


def test_thresholds_are_not_an_option_of_the_numbers(record, computed):
    analyze_record(record, **FAST)
    computed.clear()
    strict = analyze_record(record, thresholds=Thresholds(over_correlated_below=50.0), **FAST)
    assert not computed and strict.diagnostics.verdict.isin(["over-correlated", "undetermined", "trapped"]).all()


def test_several_members(tmp_path):
    config = RunConfig.recipe("express", steps=2, **TINY).ensemble((0, 1), (0.0, 0.1))
    record = train(config, tmp_path / "four", progress=False)
    found = analyze_record(record, **FAST)
    networks = found.diagnostics.groupby("member")[["seed", "weight_decay"]].first()
    assert networks.values.tolist() == [[0, 0.0], [1, 0.0], [0, 0.1], [1, 0.1]]
    assert len(found.diagnostics) == 4 * 3 * len(record.steps_saved)
    assert len(found.baselines) == 4 * len(record.steps_saved)
    last = diagnose(record.weights(2, member=3), **FAST)
    same(found.diagnostics.tail(3)[last.columns].reset_index(drop=True), last)


def test_a_record_keeps_whole_seeds_only(record):
    with pytest.raises(ValueError, match="seed must be a whole number for a record"):
        diagnose(record, seed=np.random.default_rng(0))
    numpy_seed = diagnose(record, **{**FAST, "seed": np.int64(3), "shuffles": np.int32(1)})
    same(diagnose(record, **{**FAST, "seed": 3, "shuffles": 1}), numpy_seed)


def test_a_record_in_use_is_analysed_without_keeping_it(record):
    with record_files.locked(record.folder), pytest.warns(NotKept, match="is not stored: .*is in use") as said:
        found = analyze_record(record, **FAST)
    assert len(said) == 1 and len(found.diagnostics) == 3 * len(record.steps_saved) and not files(record)
    same(analyze_record(record, **FAST).diagnostics, found.diagnostics)


def test_reading_a_reference_record_does_not_change_it(record, monkeypatch):
    monkeypatch.setattr(paths, "results_dir", lambda: record.folder.parent)
    with pytest.warns(NotKept, match="is not stored: a reference record is changed only by .grokutils publish.") as said:
        found = analyze_record(record, **FAST)
    assert len(said) == 1 and len(found.baselines) == len(record.steps_saved) and not files(record)
    same(analyze_record(record, store=True, **FAST).diagnostics, found.diagnostics)
    assert files(record)
    same(analyze_record(record, **FAST).diagnostics, found.diagnostics)  # nothing to store, nothing to say


@contextlib.contextmanager
def read_only(folder: Path):
    """A folder that nothing can be written to, for root either."""
    if os.getuid() == 0:
        if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
            pytest.skip("root may not mount here, and to root nothing else is read-only")
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
            yield
        finally:
            subprocess.run(["umount", folder], check=True)
        return
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


def test_a_read_only_record_is_analysed_without_keeping_it(record):
    for lock in record.folder.glob(".lock"):
        lock.unlink()
    with read_only(record.folder), pytest.warns(NotKept, match="^the analysis of tiny is not stored: .* cannot be") as said:
        found = analyze_record(record, **FAST)
    assert len(said) == 1 and len(found.diagnostics) == 3 * len(record.steps_saved) and not files(record)
    same(analyze_record(record, **FAST).diagnostics, found.diagnostics)
    with read_only(record.folder):  # nothing to store, nothing to say
        same(analyze_record(record, **FAST).diagnostics, found.diagnostics)


@pytest.mark.parametrize("broken", ["spectra", "baselines", "diagnostics"])
@pytest.mark.parametrize("before", ["nothing", "part", "other options"])
def test_a_crash_while_writing_loses_nothing_and_lies_about_nothing(record, monkeypatch, broken, before):
    expected = analyze_record(record, **FAST)
    for name in files(record):
        (record.folder / name).unlink()
    if before == "part":
        analyze_record(load_record(record.folder, until=3), **FAST)
    if before == "other options":
        analyze_record(record, **{**FAST, "seed": 9})
    write = record_files.write_parquet

    def crash(path, frame):
        if path.stem == broken:
            raise KeyboardInterrupt
        write(path, frame)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(record_files, "write_parquet", crash)
        analyze_record(record, **FAST)
    again = analyze_record(record, **FAST)
    for name in ("diagnostics", "spectra", "baselines"):
        same(getattr(again, name), getattr(expected, name))


def test_what_was_done_before_an_interruption_is_kept(record, monkeypatch, computed):
    module = sys.modules["grokutils.records.analysis"]
    progress_measures = module.baselines.progress_measures
    calls = []

    def interrupt(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return progress_measures(*arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module.baselines, "progress_measures", interrupt)
        analyze_record(record, **FAST)
    kept = pd.read_parquet(record.folder / "diagnostics.parquet")
    assert sorted(set(kept.step)) == record.steps_saved[:2]
    computed.clear()
    found = analyze_record(record, **FAST)
    assert len(computed) == 3 * (len(record.steps_saved) - 2)
    assert sorted(set(found.baselines.step)) == record.steps_saved


@pytest.mark.parametrize("name", ["diagnostics", "spectra", "baselines"])
def test_a_damaged_file_is_named(record, name):
    analyze_record(record, **FAST)
    path = record.folder / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordError, match=f"{re.escape(str(path))} is damaged .* Delete it, and it is made again."):
        analyze_record(record, **FAST)
    path.unlink()
    assert len(analyze_record(record, **FAST).diagnostics) == 3 * len(record.steps_saved)


def test_files_of_another_origin_are_not_believed(record, computed):
    analyze_record(record, **FAST)
    path = record.folder / "spectra.parquet"
    pd.DataFrame({"x": [1]}).to_parquet(path)
    with pytest.raises(RecordError, match="spectra.parquet does not say which run it belongs to"):
        analyze_record(record, **FAST)
    path.unlink()
    computed.clear()
    found = analyze_record(record, **FAST)
    assert len(computed) == 3 * len(record.steps_saved) == len(found.diagnostics)


def test_rows_whose_weights_are_gone_are_kept(record, computed):
    """As in a published record, which has the weights of a few steps only."""
    everything = analyze_record(record, **FAST)
    for step in record.steps_saved[1:-1]:
        record_module.checkpoint_path(record.folder, step).unlink()
    before = files(record)
    computed.clear()
    same(analyze_record(record, **FAST).diagnostics, everything.diagnostics)
    assert not computed
    with pytest.warns(NotKept, match="not stored: with these options it would replace rows of steps whose weights") as said:
        few = analyze_record(record, **{**FAST, "shuffles": 3})
    assert len(said) == 1 and sorted(set(few.diagnostics.step)) == record.steps_saved and files(record) == before


def test_a_diverged_member_is_undetermined(record):
    weights = record.weights(8)
    weights["fc2.weight"][0, 0] = np.nan
    marks = {"identity": record.config.identity, "step": "8"}
    record_files.write_tensors(record_module.checkpoint_path(record.folder, 8), weights, marks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = analyze_record(record, **FAST)
    last = found.diagnostics[found.diagnostics.step == 8].set_index("layer")
    assert last.verdict["fc2"] == "undetermined" and "1 of its 144 entries are NaN" in last.reason["fc2"]
    assert last.alpha["fc1"] > 1
    assert found.baselines.iloc[-1].drop(["step", "member", "seed", "weight_decay"]).isna().all()
    same(analyze_record(record, **FAST).diagnostics, found.diagnostics)


def test_without_the_images_there_are_spectra_and_later_the_rest(record, monkeypatch, computed):
    def missing(config, seed):
        raise DataError("MNIST is not here.")

    with monkeypatch.context() as patched:
        patched.setattr(data, "load", missing)
        for _ in range(2):
            with pytest.warns(NotKept, match="no baselines of tiny: MNIST is not here.") as said:
                found = analyze_record(record, **FAST)
            assert len(said) == 1 and len(found.baselines) == 0
            assert list(found.baselines.columns) == list(columns.BASELINES)
    assert len(computed) == len(found.diagnostics) == 3 * len(record.steps_saved)
    later = analyze_record(record, **FAST)
    assert later.baselines.step.tolist() == record.steps_saved and len(computed) == len(found.diagnostics)


def test_a_record_without_weights_and_a_damaged_checkpoint(record):
    path = record_module.checkpoint_path(record.folder, 8)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RecordError, match="step_00000008.safetensors is damaged"):
        analyze_record(record, **FAST)
    assert 8 not in set(pd.read_parquet(record.folder / "diagnostics.parquet").step)  # the rest is kept
    for file in (record.folder / "checkpoints").glob("*"):
        file.unlink()
    for name in files(record):
        (record.folder / name).unlink()
    empty = analyze_record(record, **FAST)
    assert len(empty.diagnostics) == 0 and list(empty.diagnostics.columns) == list(columns.DIAGNOSTICS)


def test_progress_is_shown_unless_it_is_not_wanted(record, capfd):
    analyze_record(record, **{**FAST, "progress": True})
    assert "spectra of tiny: 100%" in capfd.readouterr().err
    analyze_record(record, **{**FAST, "progress": True})  # nothing to do
    analyze_record(record, **{**FAST, "seed": 5})
    assert capfd.readouterr().err == ""


# -- threads --------------------------------------------------------------------------------------------------


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_small_matrices_get_one_thread_and_large_ones_all():
    with threadpool_limits(3, user_api="blas"):
        with threads_for((200, 784)):
            assert blas_threads() == {1}
        with threads_for((4096, 4096)):
            assert blas_threads() == {3}
        diagnose(gaussian(12, 12), **FAST)
        with pytest.raises(ValueError):
            diagnose(np.full((3, 3), np.nan), **FAST)
        assert blas_threads() == {3}


# -- the command ----------------------------------------------------------------------------------------------


def run(capsys, *arguments) -> tuple[int, str, str]:
    try:
        status = main(["diagnose", *map(str, arguments)])
    except SystemExit as error:
        status = error.code
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_table_of_a_checkpoint(record, capsys):
    path = record_module.checkpoint_path(record.folder, 8)
    status, out, complaint = run(capsys, path, "--shuffles", 2)
    assert (status, complaint) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["layer", "shape", "alpha", "traps", "max|w|", "verdict", "why"]
    assert [line.split()[0] for line in lines if re.match(r"fc\d ", line)] == ["fc1", "fc2", "fc3"]
    assert max(map(len, lines)) <= 110
    for word in ("alpha ", "traps ", "max|w| "):  # what they mean
        assert sum(line.startswith(word) for line in lines) == 1
    for word in set(diagnose(path, **FAST).verdict):
        assert sum(line.startswith(f"{word} ") for line in lines) == 1


def test_long_names_and_long_reasons_fit():
    weights = {f"model.layers.{k}.self_attn.a_name_of_many_words.weight": tensor(12, 30 + k) for k in range(2)}
    weights["conv.weight"] = tensor(64, 3, 7, 7)
    weights["bad"] = tensor(4, 4) * math.nan
    text = table(diagnose(weights, **FAST))
    assert max(map(len, text.splitlines())) <= 110
    assert "model.layers.0.sel..._name_of_many_words  12 x 30" in text
    assert "[64 x 3 x 7 x 7" in re.sub(r"\s+", " ", text) and "undetermined" in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_json_is_json(record, capsys, tmp_path):
    path = tmp_path / "x.safetensors"
    bad = tensor(20, 30)
    bad[0, 0] = math.inf
    safetensors.torch.save_file({"good": tensor(20, 30), "bad": bad}, path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    status, out, complaint = run(capsys, path, "--json", "--shuffles", 2)
    assert (status, complaint) == (0, "")
    rows = {row["layer"]: row for row in json.loads(out, parse_constant=refuse)}
    assert list(rows["good"]) == list(columns.DIAGNOSTICS)[4:]
    assert rows["bad"]["alpha"] is None and rows["bad"]["verdict"] == "undetermined"
    expected = diagnose(path, shuffles=2, progress=False).set_index("layer").loc["good"]
    assert rows["good"]["alpha"] == pytest.approx(expected.alpha) and rows["good"]["ks_p"] == pytest.approx(expected.ks_p)


def test_json_keeps_all_digits_and_says_what_was_not_measured(capsys, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"w.weight": tensor(60, 50) * 1e-12, "w.bias": tensor(60), "mask": torch.ones(9, 9)}, path)
    status, out, _ = run(capsys, path, "--json", "--shuffles", 0)
    row, last = json.loads(out)
    assert row["spectral_norm"] == diagnose(path, **FAST).spectral_norm[0]
    assert {(entry["name"], entry["reason"]) for entry in last["not_measured"]} == {("w.bias", "a bias"), ("mask", "a mask")}
    assert last["parameters"] == {"measured": 3000, "not_measured": 141}


def test_what_was_not_measured_is_one_line_first_if_it_is_much(capsys, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"w.weight": tensor(40, 50), "w.bias": tensor(40)}, path)
    *_, last = run(capsys, path, "--shuffles", 0)[1].splitlines()
    assert last == "Not measured: 40 of 2,040 parameters (2 %), in 1 arrays: a bias (w.bias)."
    safetensors.torch.save_file({"w.weight": tensor(40, 50), "q.weight": torch.ones(40, 50, dtype=torch.int8)}, path)
    first = run(capsys, path, "--shuffles", 0)[1].splitlines()[0]
    assert first.startswith("Not measured: 2,000 of 4,000 parameters (50 %), in 1 arrays: integers: ")


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_any_name_on_any_terminal(encoding, tmp_path):
    path = tmp_path / "n.safetensors"
    names = ("编码器.weight", "\x1b[2J\x1b[31mgone.weight", "two\nlines.weight", ".weight", "x" * 300)
    safetensors.torch.save_file({name: tensor(12, 11) for name in names}, path)
    command = [sys.executable, "-m", "grokutils", "diagnose", str(path), "--shuffles", "0"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, env=dict(os.environ, PYTHONIOENCODING=encoding, PYTHONUTF8="0"))
    assert made.returncode == 0 and made.stderr == b""
    assert b"\x1b" not in made.stdout and b"two\\nlines" in made.stdout
    rows = [line for line in made.stdout.splitlines() if b"12 x 11" in line]
    assert len(rows) == 5 and not any(row.startswith(b" ") for row in rows)


def test_a_run_by_its_name(trained, runs, capsys):
    shutil.copytree(trained, runs / "tiny")
    record = load_record("tiny")
    rows = {}
    for arguments in ((), ("--step", 3), ("--all-steps",)):
        status, out, complaint = run(capsys, "tiny", "--json", "--shuffles", 2, *arguments)
        assert status == 0 and (not complaint or "spectra of tiny" in complaint)
        rows[arguments] = json.loads(out)
    biases = {"fc1.bias", "fc2.bias", "fc3.bias"}
    for found in rows.values():  # what was not measured comes last
        assert {entry["name"] for entry in found.pop()["not_measured"]} == biases
    assert [row["step"] for row in rows[()]] == [8] * 3 and [row["step"] for row in rows[("--step", 3)]] == [3] * 3
    assert [row["step"] for row in rows[("--all-steps",)]] == [s for s in record.steps_saved for _ in range(3)]
    assert rows[("--all-steps",)][-3:] == rows[()]
    assert set(files(record)) == {"diagnostics.parquet", "spectra.parquet", "baselines.parquet"}
    status, out, _ = run(capsys, "tiny", "--all-steps", "--shuffles", 2)
    assert out.splitlines()[0].split()[:2] == ["step", "layer"]


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["nowhere"], 1, "there is no record 'nowhere'"),
        (["nowhere.safetensors"], 1, "there is no file nowhere.safetensors."),
        (["{pickle}"], 2, "is no safetensors file but a PyTorch file of objects"),
        (["{folder}/nowhere"], 1, "there is no file "),
        (["{folder}"], 2, "is a folder; name a .safetensors file in it"),
        (["tiny", "--step", "7"], 2, "step 7 of tiny was not saved; the nearest saved one is"),
        (["tiny", "--shuffles", "-1"], 2, "shuffles must be a whole number of at least 0 and at most 100,000; got -1."),
        (["tiny", "--step", "3", "--all-steps"], 2, "give --step or --all-steps, not both."),
        (["{file}", "--step", "3"], 2, "--step and --all-steps are for runs"),
        (["tiny", "--method", "mp"], 2, "invalid choice"),
        ([], 2, "usage"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, status, said, trained, runs, tmp_path, capsys):
    shutil.copytree(trained, runs / "tiny")
    torch.save({"w": torch.ones(3, 3), "x": Tripwire(tmp_path / "mark")}, tmp_path / "x.pt")
    places = {"pickle": tmp_path / "x.pt", "folder": tmp_path, "file": record_module.checkpoint_path(runs / "tiny", 8)}
    got, out, complaint = run(capsys, *(argument.format(**places) for argument in arguments))
    assert got == status and out == "" and said in complaint and "Traceback" not in complaint
    if "usage" not in complaint:
        assert complaint.startswith("grokutils: ") and complaint.count("\n") == 1


def test_a_freshly_trained_checkpoint_in_a_process(trained):
    """`grokutils diagnose` as it is typed, and piped into a reader that stops early."""
    path = record_module.checkpoint_path(trained, 8)
    command = [sys.executable, "-m", "grokutils", "diagnose", str(path)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stderr == "" and re.search(r"^fc1 +12 x 64 +[\d.]+ \+- [\d.]+ ", made.stdout, re.M)
    reader = f"{shlex.join(command)} --shuffles 0 --json | head -n 1"
    made = subprocess.run(reader, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert made.stdout == "[\n" and made.stderr == ""
