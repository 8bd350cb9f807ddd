"""What becomes a matrix: the same from a module and its state_dict, and nothing left out without a word."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from grokutils import diagnose
from grokutils.spectra.layers import find_layers, forget, layer_kind, survey

FAST = dict(shuffles=0, progress=False)


def tensor(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def names(source) -> list[str]:
    return [layer.name for layer in find_layers(source)]


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has it, (inputs, outputs)."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(tensor(inputs, outputs)), nn.Parameter(torch.zeros(outputs))


class GPT2Block(nn.Module):
    def __init__(self, d=24):
        super().__init__()
        self.ln_1, self.attn, self.mlp = nn.LayerNorm(d), nn.Module(), nn.Module()
        self.attn.c_attn, self.attn.c_proj = Conv1D(3 * d, d), Conv1D(d, d)
        self.attn.register_buffer("bias", torch.ones(32, 32).tril().view(1, 1, 32, 32))
        self.mlp.c_fc, self.mlp.c_proj = Conv1D(4 * d, d), Conv1D(d, 4 * d)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(tensor(4, 24, 40))
        self.gate_up_proj_bias = nn.Parameter(tensor(4, 40))
        self.down_proj, self.router = nn.Parameter(tensor(4, 20, 24)), nn.Linear(24, 4)


class Heads(nn.Module):
    def __init__(self, heads=4, d=64, k=16):
        super().__init__()
        for name in "QKV":
            self.register_parameter(f"W_{name}", nn.Parameter(tensor(heads, d, k)))
            self.register_parameter(f"b_{name}", nn.Parameter(tensor(heads, k)))
        self.W_O = nn.Parameter(tensor(heads, k, d))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 12), nn.Linear(12, 30)
        self.head.weight = self.embed.weight


class OwnKernel(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(tensor(*shape))


class Halves(nn.Module):
    """A parametrisation with fewer numbers than the weight."""

    def forward(self, X):
        return X @ X.T


def pruned(layer, structured=False):
    if structured:
        prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)
    else:
        prune.l1_unstructured(layer, "weight", 0.9)
    return layer


def with_old_norms() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(
            nn.utils.weight_norm(nn.Linear(20, 30)), nn.utils.spectral_norm(nn.Conv2d(3, 12, 3)),
            nn.utils.weight_norm(nn.Linear(20, 30), dim=None), nn.utils.spectral_norm(nn.ConvTranspose2d(12, 4, 3)),
        )  # fmt: skip


ZOO = {
    "linear": lambda: nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 1)),
    "convolutions": lambda: nn.Sequential(
        nn.Conv1d(6, 12, 5), nn.Conv2d(3, 16, 7), nn.Conv3d(2, 12, 3), nn.ConvTranspose2d(16, 4, 3),
        nn.ConvTranspose1d(8, 12, 16, groups=2), nn.Conv2d(16, 32, 3, groups=4), nn.Conv2d(16, 16, 5, groups=16),
    ),
    "large kernels": lambda: nn.Sequential(
        nn.Conv1d(2, 12, 40), nn.Conv2d(1, 16, (512, 1)), nn.Conv2d(3, 16, 48), nn.Conv1d(16, 32, 128, groups=2),
        nn.Conv2d(3, 16, 33, bias=False), nn.Conv1d(1, 16, 64, bias=False), nn.Conv2d(20, 1, 1),
    ),
    "norms": lambda: nn.Sequential(nn.Linear(20, 15), nn.BatchNorm1d(15), nn.GroupNorm(3, 15), nn.InstanceNorm2d(4, affine=True)),
    "embeddings": lambda: nn.Sequential(nn.Embedding(50, 16), nn.EmbeddingBag(40, 12), nn.Bilinear(12, 13, 1)),
    "recurrent": lambda: nn.ModuleList(
        [nn.LSTM(40, 20, 2, bidirectional=True), nn.GRU(20, 12), nn.RNN(12, 15), nn.LSTMCell(12, 14), nn.LSTM(20, 24, proj_size=12)]
    ),
    "attention": lambda: nn.ModuleList([nn.MultiheadAttention(16, 4, add_bias_kv=True), nn.MultiheadAttention(16, 4, kdim=12, vdim=20)]),
    "transformer": lambda: nn.TransformerEncoderLayer(16, 2, 32),
    "GPT-2": GPT2Block,
    "experts": Experts,
    "heads": Heads,
    "tied": Tied,
    "own kernels": lambda: nn.ModuleList([OwnKernel(64, 32, 3, 3), OwnKernel(1, 32, 64, 3, 3), OwnKernel(48, 40, 7)]),
    "pruned": lambda: nn.Sequential(pruned(nn.Linear(40, 30)), pruned(nn.Conv2d(16, 32, 3), structured=True)),
    "old norms": with_old_norms,
    "parametrised": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(20, 30)), nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 12, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 12, 5)),
    ),
    "float16": lambda: nn.Sequential(nn.Linear(40, 30), nn.Conv2d(3, 16, 5)).half(),
    "bfloat16": lambda: nn.Sequential(nn.Linear(40, 30), nn.Embedding(20, 12)).bfloat16(),
}  # fmt: skip


@pytest.mark.parametrize("kind", ZOO)
def test_a_module_and_its_state_dict_give_the_same_rows_and_account_for_everything(kind):
    torch.manual_seed(0)
    net = ZOO[kind]()
    net.eval()
    of_module, of_state = survey(net), survey(net.state_dict())
    mine, theirs = diagnose(net, **FAST), diagnose(net.state_dict(), **FAST)
    a, b = (frame.sort_values("layer", ignore_index=True) for frame in (mine, theirs))
    assert a[["layer", "rows", "columns"]].equals(b[["layer", "rows", "columns"]])
    np.testing.assert_allclose(a.spectral_norm, b.spectral_norm, rtol=1e-4)
    total = sum(p.numel() for p in net.parameters())
    listed = sum(math.prod(entry["shape"]) for entry in mine.attrs["not_measured"])
    assert of_module.measured + listed == total
    assert mine.attrs["parameters"]["measured"] == of_module.measured
    held = sum(value.numel() for value in net.state_dict().values())
    assert of_state.measured + sum(entry.size for entry in of_state.not_measured) == held
    for entry in of_module.not_measured + of_state.not_measured:
        assert entry.reason and entry.name
    for layer in of_module.layers:
        assert layer.sides == tuple(layer.read().shape) and math.prod(layer.sides) == layer.size


@pytest.mark.parametrize("kind", ["linear", "convolutions", "recurrent", "embeddings"])
def test_scripted_modules_are_known_by_what_they_were(kind):
    torch.manual_seed(0)
    parts = [part for part in ZOO[kind]() if not isinstance(part, (nn.Bilinear, nn.LSTMCell))]
    net = nn.ModuleList(parts)

    class Runs(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    scripted = torch.jit.script(Runs())
    assert diagnose(scripted, **FAST)[["layer", "rows", "columns", "note"]].equals(
        diagnose(Runs(), **FAST)[["layer", "rows", "columns", "note"]]
    )


def test_traced_and_exported_modules():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.Flatten(), nn.Linear(32 * 36, 20)).eval()
    example = torch.randn(1, 16, 8, 8)
    program = torch.export.export(net, (example,))
    expected = diagnose(net, **FAST)
    for other in (torch.jit.trace(net, example), program.module(), program, torch.fx.symbolic_trace(net)):
        found = diagnose(other, **FAST)
        assert found.layer.tolist() == ["0", "2"] and found["rows"].tolist() == expected["rows"].tolist()
        assert found.alpha.tolist() == pytest.approx(expected.alpha.tolist())


def test_an_exported_graph_knows_a_kernel_that_looks_like_a_stack():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(tensor(4, 40, 48))

        def forward(self, x):
            return torch.nn.functional.conv1d(x, self.w)

    assert names(Odd()) == ["w[0]", "w[1]", "w[2]", "w[3]"]
    assert "taken for a stack" in find_layers(Odd())[0].note
    exported = torch.export.export(Odd(), (torch.randn(1, 40, 64),)).module()
    (layer,) = find_layers(exported)
    assert layer.name == "w" and layer.sides == (4, 40 * 48)


# -- kinds by name, companions, shape -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, shape, bias, sides",
    [
        ("Conv_0/kernel", (3, 3, 3, 32), None, (27, 32)),
        ("Conv_1/kernel", (3, 3, 32, 32), (32,), (288, 32)),
        ("Conv_2/kernel", (5, 64, 128), (128,), (320, 128)),
        ("query/kernel", (96, 12, 8), None, (96, 96)),
        ("attn/q/kernel", (96, 12, 8), (12, 8), (96, 96)),
        ("out/kernel", (12, 8, 96), (96,), (96, 96)),
        ("block/depthwise_kernel:0", (3, 3, 32, 1), None, (9, 32)),
        ("conv2d/kernel:0", (7, 7, 3, 64), (64,), (147, 64)),
        ("dense/kernel:0", (30, 20), (20,), (30, 20)),
        ("patch_embed.proj.weight", (32, 3, 64, 64), None, (32, 3 * 4096)),
        ("layer.weight", (64, 48, 40), (64,), (64, 1920)),
        ("upsample.weight", (64, 24, 40), (24,), (64, 960)),
        ("stem.weight", (1, 16, 16, 3, 3), None, (16, 144)),
        ("lin.weight", (1, 64, 1, 1), None, (1, 64)),
        ("final_conv.weight", (1, 128, 1), None, (1, 128)),
    ],
)
def test_kernels_are_known_by_names_and_by_the_arrays_beside_them(name, shape, bias, sides):
    source = {name: np.random.default_rng(0).normal(size=shape)}
    if bias:
        source[name.replace("kernel", "bias").replace("weight", "bias")] = np.ones(bias)
    (layer,) = find_layers(source)
    assert layer.sides == sides and "read as" in layer.note or len(shape) == 2
    assert tuple(layer.read().shape) == sides


@pytest.mark.parametrize("name, shape", [("experts.down", (8, 512, 16)), ("W_Q", (4, 128, 32)), ("W_Q", (4, 128, 33)),
                                         ("blk.0.ffn_gate_exps.weight", (4, 64, 32)), ("heads.w", (4, 64, 24))])  # fmt: skip
def test_stacks_are_known_by_their_names(name, shape):
    found = find_layers({name: np.ones(shape)})
    assert len(found) == shape[0] and found[0].sides == shape[1:] and f"one of {shape[0]} in " in found[0].note


def test_a_guess_says_that_it_is_one():
    net = nn.Bilinear(12, 13, 3)  # whose weights look like a convolution's
    assert names(net) == ["weight[0]", "weight[1]", "weight[2]"]
    (kernel,) = find_layers(net.state_dict())
    assert "taken for a convolution" in kernel.note
    (kernel,) = find_layers({"w": np.ones((64, 24, 9))})
    assert kernel.sides == (64, 216) and "taken for a convolution" in kernel.note
    assert "taken for q, k and v" in find_layers({"h.attn.c_attn.weight": np.ones((12, 36))})[0].note
    stack = find_layers({"w": np.ones((3, 40, 50))})
    assert len(stack) == 3 and "taken for a stack" in stack[0].note


@pytest.mark.parametrize(
    "name, shape, said",
    [
        ("b_Q", (12, 64), "a bias"), ("attn.b_K", (12, 64), "a bias"), ("experts.gate_up_proj_bias", (32, 64), "a bias"),
        ("fc.bias", (30, 1), "a bias"), ("bias_table", (20, 12, 64), "a bias"), ("attn.relative_position_bias_table", (169, 12), "a bias"),
        ("attn.bias", (1, 1, 128, 128), "a bias"), ("self_attn_mask", (50, 50), "a mask"), ("attn_mask", (64, 49, 49), "a mask"),
        ("position_encoding", (50, 128), "a table of positions"), ("rotary.cos_cached", (1, 1, 128, 32), "a table of positions"),
        ("pos_embed", (1, 197, 64), "a table of positions"), ("layer_scale", (1, 64, 7, 7), "a scale"),
        ("down.scales", (16, 128), "a scale"), ("norm1.weight", (15, 15), "the scale of a normalisation"),
        ("ln_f/scale", (15, 15), "the scale of a normalisation"), ("tril", (50, 50), "a mask"), ("gamma", (20, 20), "a scale"),
    ],
)  # fmt: skip
def test_what_is_no_layer_by_its_name(name, shape, said):
    found = survey({name: np.random.default_rng(0).normal(size=shape), "fc.weight": np.ones((20, 20))})
    assert [layer.name for layer in found.layers] == ["fc"]
    assert found.not_measured[0].name == name and said in found.not_measured[0].reason
    alone = diagnose({name: np.ones(shape)}, **FAST)  # nothing else in it is no error, but says so
    assert len(alone) == 0 and alone.attrs["not_measured"][0]["shape"] == list(shape)


def test_a_weight_of_the_shape_of_its_bias_scales_number_by_number():
    found = survey({"1.weight": np.ones((15, 16)), "1.bias": np.ones((15, 16)), "2.weight": np.ones((15, 16))})
    assert [layer.name for layer in found.layers] == ["2"]


@pytest.mark.parametrize("other", [1.0, -np.inf])
@pytest.mark.parametrize("shape", [np.tril, np.triu])
def test_a_mask_under_an_innocent_name_is_known_by_its_numbers(other, shape):
    ones = shape(np.ones((40, 40), bool))
    found = diagnose({"a": np.where(ones, 0.0, other), "b": np.eye(40), "c": np.sign(np.random.default_rng(0).normal(size=(40, 40)))}, **FAST)
    assert found.layer.tolist() == ["b", "c"]
    assert found.attrs["not_measured"][0]["name"] == "a" and "a mask, by its numbers" in found.attrs["not_measured"][0]["reason"]


# -- queries, keys and values ---------------------------------------------------------------------------------


def test_grouped_and_mixed_projections_by_the_heads_of_the_config(tmp_path):
    import json

    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    heads, keys, size, d = 4, 2, 12, 48
    q, k, v = (rng.normal(size=(n * size, d)).astype("f4") for n in (heads, keys, keys))
    mixed = np.concatenate([np.concatenate([q[2 * g * size : 2 * (g + 1) * size], k[g * size : (g + 1) * size],
                                            v[g * size : (g + 1) * size]]) for g in range(keys)])  # fmt: skip
    save_file({"a.qkv_proj.weight": np.concatenate([q, k, v]), "b.query_key_value.weight": mixed}, tmp_path / "model.safetensors")
    without = find_layers(tmp_path)
    assert [layer.name for layer in without] == ["a.qkv_proj", "b.query_key_value"] and "left whole" in without[1].note
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": heads, "num_key_value_heads": keys, "hidden_size": d}))
    found = {layer.name: layer for layer in find_layers(tmp_path)}
    for part, expected in zip("qkv", (q, k, v), strict=True):
        assert np.array_equal(found[f"a.qkv_proj.{part}"].read(), expected)
        assert np.array_equal(found[f"b.query_key_value.{part}"].read(), expected)


def test_a_module_tells_its_heads():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_attention_heads, self.query_key_value = 4, nn.Linear(32, 96)

    net = Attention()
    found = find_layers(net)
    assert [layer.name for layer in found] == [f"query_key_value.{part}" for part in "qkv"]
    view = net.query_key_value.weight.detach().numpy().reshape(4, 3, 8, 32)
    assert np.array_equal(found[1].read(), view[:, 1].reshape(32, 32))
    assert "left whole" in find_layers(net.state_dict())[0].note


def test_gates_are_one_matrix_that_says_so():
    notes = diagnose(nn.LSTM(40, 20), **FAST).note.tolist()
    assert notes == ["4 gates, one below the other"] * 2
    assert diagnose(nn.GRU(40, 20).state_dict(), **FAST).note.tolist() == ["3 gates, one below the other"] * 2
    assert diagnose(nn.RNN(40, 20), **FAST).note.tolist() == ["", ""]


def test_tied_by_transposition_counts_once():
    w = tensor(60, 40)
    (layer,) = find_layers({"enc.weight": w, "dec.weight": w.t()})
    assert layer.note == "also dec.weight"


# -- what somebody teaches ------------------------------------------------------------------------------------


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.table = nn.Parameter(tensor(20, 3, 30)), nn.Parameter(tensor(12, 12))


def test_a_kind_can_be_taught_by_class_and_by_name():
    assert names(Grouped()) != ["blocks.0", "blocks.1", "blocks.2"]

    @layer_kind(Grouped)
    def grouped(W):
        return {f".{i}": W[:, i] for i in range(W.shape[1])} if W.ndim == 3 else "a table of mine"

    @layer_kind(r"^odd\.")
    def odd(W):
        return W.reshape(20, -1)

    try:
        net = Grouped()
        found = survey(net)
        assert [layer.name for layer in found.layers] == ["blocks.0", "blocks.1", "blocks.2"]
        assert found.not_measured[0].reason == "a table of mine" and found.measured == 1800
        assert np.array_equal(found.layers[1].read(), net.blocks[:, 1].detach().numpy())
        (layer,) = find_layers({"odd.thing": np.ones((4, 5, 30))})
        assert layer.sides == (20, 30)
    finally:
        forget(grouped)
        forget(odd)
    assert names({"odd.thing": np.ones((4, 15, 30))})[0] == "odd.thing[0]"
    with pytest.raises(TypeError, match="must be a class or a regular expression; got 3"):
        layer_kind(3)


# -- what was not measured ------------------------------------------------------------------------------------


def test_much_that_was_not_measured_is_said_aloud():
    from grokutils.spectra.diagnose import MuchNotMeasured

    codes = {"a.weight": np.ones((40, 40), np.int8), "b.weight": np.random.default_rng(0).normal(size=(12, 12))}
    with pytest.warns(MuchNotMeasured, match=r"Not measured: 1,600 of 1,744 parameters \(92 %\), in 1 arrays: integers"):
        found = diagnose(codes, shuffles=0)
    assert found.attrs["parameters"] == {"measured": 144, "not_measured": 1600}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diagnose(nn.Linear(40, 30), shuffles=0)  # a bias is little


def test_a_source_without_two_dimensions_anywhere_is_still_an_error():
    for source in ({"bias": np.ones(3)}, nn.ReLU(), nn.LayerNorm(5)):
        with pytest.raises(ValueError, match="must hold a weight matrix"):
            survey(source)
    with pytest.raises(ValueError, match="must hold a weight matrix"):
        find_layers({"mask": np.ones((30, 30))})


def test_a_convolution_says_that_weightwatcher_has_other_numbers():
    net = nn.Sequential(nn.Conv2d(12, 16, 3), nn.Conv2d(12, 16, 1), nn.Linear(20, 30))
    notes = diagnose(net, method="weightwatcher", **FAST).note
    assert "WeightWatcher itself pools" in notes[0] and "pools" not in notes[1] + notes[2]
    assert not diagnose(net, **FAST).note.str.contains("pools").any()
