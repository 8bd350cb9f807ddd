"""The weight that acts: what is stored beside its masks, gains, scales and adapters."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from grokutils import diagnose
from grokutils.spectra.arrays import decoded, small_float
from grokutils.spectra.layers import find_layers, survey

FAST = dict(shuffles=0, progress=False)
RNG = np.random.default_rng(0)


def read(source, name: str) -> np.ndarray:
    layers = {layer.name: layer for layer in find_layers(source)}
    value = layers[name].read()
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def reasons(source) -> dict[str, str]:
    return {entry.name: entry.reason for entry in survey(source).not_measured}


# -- hooks and parametrisations -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [
    lambda layer: prune.l1_unstructured(layer, "weight", 0.8), lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0), lambda layer: prune.random_structured(layer, "weight", 0.3, dim=1),
    lambda layer: prune.custom_from_mask(layer, "weight", torch.eye(30, 40)),
    lambda layer: prune.l1_unstructured(prune.ln_structured(layer, "weight", 0.2, n=2, dim=1), "weight", 0.5),
])  # fmt: skip
def test_pruning_is_measured_as_it_acts(way):
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    way(layer)
    net = nn.Sequential(layer)
    with torch.no_grad():
        layer.weight_orig.mul_(3)  # the attribute `weight` is now older than what it is computed from
    acting = (layer.weight_orig * layer.weight_mask).detach().numpy()
    for source in (net, net.state_dict()):
        assert np.array_equal(read(source, "0"), acting)
        assert not any("mask" in layer.name or "orig" in layer.name for layer in find_layers(source))
    assert reasons(net.state_dict())["0.weight_mask"] == "applied: the mask of 0.weight"


def test_a_pruned_bias_and_a_second_weight_are_left_in_peace():
    net = nn.Sequential(nn.Linear(40, 30))
    prune.l1_unstructured(net[0], "bias", 0.5)
    assert read(net, "0").shape == (30, 40) and reasons(net)["0.bias"] == "a bias"


def test_a_hook_of_ones_own():
    layer = nn.Linear(40, 30)
    raw = layer.weight
    del layer._parameters["weight"]
    layer.register_parameter("weight_raw", raw)

    def hook(module, inputs):
        module.weight = module.weight_raw * 2

    layer.register_forward_pre_hook(hook)
    layer(torch.zeros(1, 40))
    assert np.array_equal(read(nn.Sequential(layer), "0"), 2 * raw.detach().numpy())


class Symmetric(nn.Module):
    def forward(self, X):
        return X.triu() + X.triu(1).T


def test_a_parametrisation_that_a_state_dict_cannot_tell_is_not_measured_there():
    net = nn.Sequential(nn.Linear(30, 30))
    nn.utils.parametrize.register_parametrization(net[0], "weight", Symmetric())
    assert np.array_equal(read(net, "0"), net[0].weight.detach().numpy())
    (reason,) = (r for n, r in reasons(net.state_dict() | {"x": torch.ones(12, 12)}).items() if "original" in n)
    assert "its parametrisation is code" in reason


def test_weights_computed_from_fewer_numbers_count_those():
    class LowRank(nn.Module):
        def forward(self, A, B):
            return A @ B

        def right_inverse(self, W):
            return W[:, :3].clone(), W[:3].clone()

    net = nn.Sequential(nn.Linear(30, 20))
    nn.utils.parametrize.register_parametrization(net[0], "weight", LowRank(), unsafe=True)
    found = survey(net)
    assert found.layers[0].sides == (20, 30) and found.measured == 3 * 20 + 3 * 30
    assert found.measured + sum(e.size for e in found.not_measured) == sum(p.numel() for p in net.parameters())


# -- quantised ------------------------------------------------------------------------------------------------


def matrix(*shape) -> np.ndarray:
    return (RNG.normal(size=shape) * np.logspace(-1, 0, shape[-2])[:, None]).astype(np.float32)


@pytest.mark.parametrize("scale_shape", [(), (1,), (64,), (64, 1), (1, 96), (64, 3), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_codes_of_eight_bits_with_their_scale(scale_shape, dtype):
    codes = torch.from_numpy(RNG.integers(-100, 100, size=(64, 96))).to(torch.float32).to(dtype)
    scale = torch.from_numpy(RNG.uniform(0.5, 2, size=scale_shape)).float()
    full = scale.reshape(64, 1) if scale_shape == (64,) else scale.reshape(scale_shape or (1, 1))
    if full.ndim == 2:
        for axis in (0, 1):
            full = full.repeat_interleave((64, 96)[axis] // full.shape[axis], axis) if full.shape[axis] not in (1, (64, 96)[axis]) else full
    expected = (codes.float() * full).numpy()
    for name in ("weight_scale", "weight_scale_inv", "scale"):
        source = {"fc.weight": codes, f"fc.{name}": scale}
        np.testing.assert_allclose(read(source, "fc"), expected, rtol=1e-6)
        assert reasons(source) == {f"fc.{name}": "applied: the scale of fc.weight"}


def test_blocks_of_128_that_do_not_divide_the_sides():
    codes = torch.from_numpy(RNG.normal(size=(200, 576))).to(torch.float8_e4m3fn)
    scale = torch.from_numpy(RNG.uniform(0.5, 2, size=(2, 5))).float()
    full = scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :576]
    found = read({"w.weight": codes, "w.weight_scale_inv": scale}, "w")
    np.testing.assert_allclose(found, (codes.float() * full).numpy(), rtol=1e-6)


def test_codes_in_a_module_with_its_row_scales():
    W = matrix(60, 60)
    scale = np.abs(W).max(1)
    codes = np.round(W / scale[:, None] * 127).astype(np.int8)

    class Linear8(nn.Linear):
        def __init__(self):
            super().__init__(60, 60, bias=False)
            self.weight = nn.Parameter(torch.from_numpy(codes), requires_grad=False)
            self.SCB = torch.from_numpy(scale)

    expected = codes * (scale[:, None] / 127)
    np.testing.assert_allclose(read(nn.Sequential(Linear8()), "0"), expected, rtol=1e-5)
    found = diagnose({"0.weight": codes, "0.SCB": scale}, **FAST)
    assert found.alpha[0] == pytest.approx(diagnose(expected, **FAST).alpha[0], rel=1e-4)
    assert found.note[0] == "decoded from int8"


@pytest.mark.parametrize("codes", [torch.ones(128, 256, dtype=torch.uint8), torch.arange(600).view(20, 30), torch.ones(20, 30, dtype=torch.bool)])
def test_codes_without_a_scale_and_indices_are_not_measured(codes):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(codes, requires_grad=False)

    for source in (nn.Sequential(Packed()), nn.Sequential(Packed()).state_dict()):
        assert len(diagnose(source, **FAST)) == 0
        assert "integers: an index, a mask, or codes" in reasons(source)["0.weight"]


def pack(codes: np.ndarray, axis: int, order=range(8), bits=4) -> np.ndarray:
    """Codes into 32-bit words along an axis, field k of a word holding the code at place order[k]."""
    codes = np.moveaxis(codes.astype(np.int64), axis, -1)
    groups = codes.reshape(*codes.shape[:-1], -1, 32 // bits)
    words = sum(groups[..., place] << (bits * field) for field, place in enumerate(order))
    return np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq(permuted, bits):
    inputs, outputs, group = 64, 40, 16
    codes, zeros = RNG.integers(0, 2**bits, (inputs, outputs)), RNG.integers(0, 2**bits - 1, (4, outputs))
    scales = RNG.uniform(0.01, 0.1, (4, outputs)).astype(np.float16)
    order = (RNG.permutation(inputs) if permuted else np.arange(inputs)) // group
    expected = ((codes - (zeros[order] + 1)) * scales[order].astype(np.float32)).T
    source = {"a.qweight": pack(codes, 0, range(32 // bits), bits), "a.qzeros": pack(zeros, 1, range(32 // bits), bits),
              "a.scales": scales, "a.g_idx": order.astype(np.int32)}  # fmt: skip
    np.testing.assert_allclose(read(source, "a"), expected, rtol=1e-5)
    found = survey(source)
    assert found.measured == inputs * outputs and found.missing == 0
    if not permuted:
        del source["a.g_idx"]
        np.testing.assert_allclose(read(source, "a"), expected, rtol=1e-5)
    odd = diagnose(source | {"a.g_idx": np.arange(inputs).astype(np.int32)}, **FAST)
    assert odd.layer.tolist() == ["a"] and "g_idx names groups up to 63, and there are 4" in odd.alpha_reason[0]
    del source["a.qzeros"]
    assert "without the scales and zeros" in reasons(source)["a.qweight"]


def test_awq():
    codes, zeros = RNG.integers(0, 16, (64, 40)), RNG.integers(0, 16, (4, 40))
    scales = RNG.uniform(0.01, 0.1, (4, 40)).astype(np.float16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    source = {"a.qweight": pack(codes, 1, order), "a.qzeros": pack(zeros, 1, order), "a.scales": scales}
    rows = np.arange(64) // 16
    np.testing.assert_allclose(read(source, "a"), ((codes - zeros[rows]) * scales[rows].astype(np.float32)).T, rtol=1e-5)


def test_packed_codes_of_three_bits_are_refused():
    source = {"a.qweight": np.ones((12, 64), np.int32), "a.qzeros": np.ones((1, 6), np.int32), "a.scales": np.ones((1, 64), np.float16)}
    found = survey(source)
    assert not found.layers and "3 bits" in found.not_measured[0].reason


def test_mxfp4_experts_one_by_one():
    low, high = RNG.integers(0, 16, (3, 24, 2, 16)), RNG.integers(0, 16, (3, 24, 2, 16))
    scales = RNG.integers(120, 130, (3, 24, 2))
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    values = np.empty((3, 24, 2, 32))
    values[..., 0::2], values[..., 1::2] = np.take(table, low), np.take(table, high)
    expected = (values * 2.0 ** (scales[..., None] - 127)).reshape(3, 24, 64)
    source = {"m.experts.gate_up_proj_blocks": (low | high << 4).astype(np.uint8), "m.experts.gate_up_proj_scales": scales.astype(np.uint8),
              "m.experts.gate_up_proj_bias": np.ones((3, 24))}  # fmt: skip
    for expert in range(3):
        assert np.array_equal(read(source, f"m.experts.gate_up_proj[{expert}]"), expected[expert])
    found = survey(source)
    assert found.measured == 3 * 24 * 64 and found.layers[0].sides == (24, 64) and "MXFP4" in found.layers[0].note
    assert {e.reason for e in found.not_measured} == {"applied: the scales of m.experts.gate_up_proj", "a bias"}
    del source["m.experts.gate_up_proj_scales"]
    assert "without the scales" in reasons(source | {"x": np.ones((2, 2))})["m.experts.gate_up_proj_blocks"]


def test_nf4():
    codes = RNG.integers(0, 16, 40 * 64)
    table = np.sort(RNG.uniform(-1, 1, 16)).astype(np.float32)
    largest = RNG.uniform(0.5, 2, 40).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [40, 64], "dtype": "float16"}
    source = {
        "a.weight": (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)[:, None], "a.weight.quant_map": table, "a.weight.absmax": largest,
        "a.weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }  # fmt: skip
    np.testing.assert_allclose(read(source, "a"), (table[codes] * np.repeat(largest, 64)).reshape(40, 64), rtol=1e-6)
    del source["a.weight.absmax"]
    assert "without the tables" in reasons(source)["a.weight"]


def test_dynamic_and_static_quantisation_of_torch():
    import warnings

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
        expected = quantised[0].weight().dequantize().numpy()
        recurrent = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(20, 12)), {nn.LSTM}, dtype=torch.qint8)
    found = diagnose(quantised, **FAST)
    assert found.layer.tolist() == ["0", "2"] and found.note[0] == "decoded from qint8"
    state = diagnose(quantised.state_dict(), **FAST)
    assert state.layer.tolist() == ["0", "2"] and state.alpha.tolist() == pytest.approx(found.alpha.tolist())
    assert found.spectral_norm[0] == pytest.approx(np.linalg.norm(expected, 2), rel=1e-6)
    assert diagnose(recurrent, **FAST).layer.str.contains("weight_hh_l0").any()


# -- adapters -------------------------------------------------------------------------------------------------


def test_an_adapter_alone_and_on_its_base():
    A, B, W = (RNG.normal(size=shape).astype("f4") for shape in ((8, 60), (50, 8), (50, 60)))
    alone = {"q.lora_A.weight": A, "q.lora_B.weight": B}
    np.testing.assert_allclose(read(alone, "q"), B @ A, rtol=1e-4, atol=1e-5)
    assert survey(alone).measured == A.size + B.size and "alpha / r not known" in find_layers(alone)[0].note
    merged = {"q.base_layer.weight": W, "q.base_layer.bias": np.ones(50), **alone}
    np.testing.assert_allclose(read(merged, "q"), W + B @ A, rtol=1e-4, atol=1e-5)
    assert reasons(merged)["q.lora_A.weight"] == "applied: half an adapter of q.weight"
    kohya = {"unet_q.lora_down.weight": A, "unet_q.lora_up.weight": B, "unet_q.alpha": np.array(4.0)}
    np.testing.assert_allclose(read(kohya, "unet_q"), 0.5 * B @ A, rtol=1e-4, atol=1e-5)


def test_the_scaling_of_an_adapter_in_a_module_and_in_its_config(tmp_path):
    from safetensors.numpy import save_file

    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer, self.scaling = nn.Linear(60, 50, bias=False), {"default": 3.0}
            self.lora_A = nn.ModuleDict({"default": nn.Linear(60, 8, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(8, 50, bias=False)})

    net = nn.Sequential(Adapted())
    W, A, B = (p.detach().numpy() for p in (net[0].base_layer.weight, net[0].lora_A["default"].weight, net[0].lora_B["default"].weight))
    np.testing.assert_allclose(read(net, "0"), W + 3 * B @ A, rtol=1e-4, atol=1e-5)
    save_file({"q.lora_A.weight": A, "q.lora_B.weight": B}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16}))
    np.testing.assert_allclose(read(tmp_path, "q"), 2 * B @ A, rtol=1e-4, atol=1e-5)
    assert "not known" not in find_layers(tmp_path)[0].note


def test_two_adapters_and_half_an_adapter():
    parts = {f"q.lora_{half}.{name}.weight": RNG.normal(size=shape) for name in ("a", "b") for half, shape in (("A", (4, 30)), ("B", (20, 4)))}
    found = find_layers(parts | {"q.weight": np.ones((20, 30))})
    assert sorted(layer.name for layer in found) == ["q", "q[a]", "q[b]"]
    del parts["q.lora_B.b.weight"]
    assert "the other is not here" in reasons(parts)["q.lora_A.b.weight"]


# -- small floats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_small_floats_are_those_of_ml_dtypes(dtype):
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(decoded(codes, dtype, 256), codes.view(getattr(ml_dtypes, dtype)).astype(np.float32))
    torch_type = getattr(torch, dtype)
    np.testing.assert_array_equal(small_float(dtype), torch.from_numpy(codes).view(torch_type).float().numpy())


@pytest.mark.parametrize("dtype", ["float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"])
def test_smaller_floats_are_those_of_ml_dtypes(dtype):
    bits = int(dtype[5])
    expected = np.arange(2**bits, dtype=np.uint8).view(getattr(ml_dtypes, dtype)).astype(np.float32)
    np.testing.assert_array_equal(small_float(dtype), expected)
    codes = RNG.integers(0, 2**bits, 40)
    stream = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    raw = np.frombuffer(stream.to_bytes(40 * bits // 8, "little"), np.uint8)
    np.testing.assert_array_equal(decoded(raw, dtype, 40), expected[codes])


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_arrays_of_ml_dtypes(dtype):
    W = RNG.integers(-3, 4, size=(30, 40)).astype(getattr(ml_dtypes, dtype))
    expected = diagnose(W.astype(np.float64), **FAST)
    assert diagnose(W, **FAST).alpha[0] == expected.alpha[0]
    found = diagnose({"a.weight": W, "b.weight": W.astype(np.float32)}, **FAST)
    assert found.layer.tolist() == ["a", "b"] and found.alpha.nunique() == 1
    assert math.isfinite(found.alpha[0])


def test_whatever_reading_raises_is_the_reason_of_a_row():
    from grokutils.spectra.layers import Layer
    from grokutils.spectra.matrix import Options, diagnose_layer

    def broken():
        raise KeyError("gone")

    row = diagnose_layer(Layer("a", (3, 3), "", broken), Options(shuffles=0)).row
    assert math.isnan(row["alpha"]) and "gone" in row["alpha_reason"]
