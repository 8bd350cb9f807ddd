"""Files and folders of weights: every kind is read array by array, or refused in one sentence."""

from __future__ import annotations

import json
import os
import struct
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import save_file
from torch import nn

from grokutils import diagnose
from grokutils.spectra.layers import find_layers, survey
from grokutils.spectra.matrix import Options, diagnose_layer

FAST = dict(shuffles=0, progress=False)


def gaussian(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    return {"fc1.weight": gaussian(30, 40), "fc1.bias": np.ones(30, np.float32), "fc2.weight": gaussian(20, 30, seed=1)}


def alphas(source) -> dict[str, float]:
    found = diagnose(source, **FAST)
    return dict(zip(found.layer, found.alpha, strict=True))


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    return alphas(weights())


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in weights().items()}


# -- each kind of file ----------------------------------------------------------------------------------------


def write(kind: str, path: Path) -> None:
    if kind == "safetensors":
        save_file(weights(), path)
    elif kind == "npz":
        np.savez(path, **weights())
    elif kind == "npz compressed":
        np.savez_compressed(path, **weights())
    elif kind == "torch":
        torch.save(tensors(), path)
    elif kind == "torch, old":
        torch.save(tensors(), path, _use_new_zipfile_serialization=False)
    elif kind == "torch, nested":
        moments = {0: {"exp_avg": torch.ones(30, 40), "step": torch.tensor(3.0)}}
        torch.save({"epoch": 3, "state_dict": tensors(), "optimizer": {"state": moments, "param_groups": []}}, path)
    elif kind == "torch, model":
        torch.save({"model": {"state_dict": tensors(), "args": {"lr": 0.1}}, "optimizer_state": [{"m": torch.ones(20, 30)}]}, path)
    elif kind == "torch, half":
        torch.save({name: tensor.half() for name, tensor in tensors().items()}, path)
    elif kind == "onnx":
        onnx_model(path)
    elif kind == "onnx, weights apart":
        onnx_model(path, apart=True)
    elif kind == "gguf":
        import gguf

        writer = gguf.GGUFWriter(path, "test")
        for name, array in weights().items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def onnx_model(path: Path, apart: bool = False) -> None:
    import onnx
    from onnx import helper, numpy_helper

    nodes = [helper.make_node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["h"], transB=1),
             helper.make_node("MatMul", ["h", "fc2.weight"], ["z"]),
             helper.make_node("Add", ["z", "table"], ["y"])]  # fmt: skip
    held = weights() | {"table": gaussian(12, 30), "shape": np.array([3, 4])}
    held["fc2.weight"] = held["fc2.weight"].T.copy()
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [12, 40])], [helper.make_tensor_value_info("y", 1, [12, 20])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), path, save_as_external_data=apart, location="weights.data", size_threshold=0)


FILES = {
    "safetensors": "m.safetensors", "npz": "m.npz", "npz compressed": "m.npz", "torch": "m.pt", "torch, old": "m.pth",
    "torch, nested": "m.ckpt", "torch, model": "m.pth.tar", "gguf": "m.gguf", "onnx": "m.onnx", "onnx, weights apart": "m.onnx",
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_the_same_numbers(kind, tmp_path, expected):
    path = tmp_path / FILES[kind]
    write(kind, path)
    assert alphas(path) == pytest.approx(expected)
    found = survey(path)
    assert found.measured == 1800 and {layer.sides for layer in found.layers} in ({(30, 40), (20, 30)}, {(30, 40), (30, 20)})
    listed = {entry.name: entry for entry in found.not_measured}
    assert listed["fc1.bias"].reason and listed["fc1.bias"].missing
    if "nested" in kind or "model" in kind:
        moments = [entry for entry in listed.values() if "not of the model" in entry.reason]
        assert moments and not any(entry.missing for entry in moments)
    if "onnx" in kind:
        assert "added to the activations" in listed["table"].reason


def test_an_array_alone_in_a_file(tmp_path):
    np.save(tmp_path / "w.npy", gaussian(30, 40))
    assert alphas(tmp_path / "w.npy") == {"w": alphas({"w": gaussian(30, 40)})["w"]}
    torch.save(torch.from_numpy(gaussian(30, 40)), tmp_path / "w.pt")
    assert list(alphas(tmp_path / "w.pt")) == ["w"]


def test_objects_in_an_archive_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "m.npz", w=gaussian(20, 30), o=np.array([[{"a": 1}] * 2] * 2, dtype=object))
    found = survey(tmp_path / "m.npz")
    assert [layer.name for layer in found.layers] == ["w"] and "no numbers (object)" in found.not_measured[0].reason


def test_generator_and_discriminator_in_one_checkpoint(tmp_path):
    torch.save({"generator": tensors(), "discriminator": tensors(), "optim_g": {"m": torch.ones(3, 3)}}, tmp_path / "m.pt")
    assert list(alphas(tmp_path / "m.pt")) == ["generator.fc1", "generator.fc2", "discriminator.fc1", "discriminator.fc2"]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "MXFP4", "BF16"])
def test_quantised_gguf(kind, tmp_path):
    import gguf

    if kind == "MXFP4":  # 32 numbers in 17 bytes: the power of two, then the codes i and i + 16 in one byte
        raw = np.random.default_rng(0).integers(0, 256, (2, 24, 2, 17)).astype(np.uint8)
        raw[..., 0] = np.random.default_rng(1).integers(120, 130, (2, 24, 2))
        data = raw.reshape(2, 24, -1)
        table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
        values = np.concatenate([table[raw[..., 1:] & 15], table[raw[..., 1:] >> 4]], axis=-1)
        expected = (values * 2.0 ** (raw[..., :1].astype(float) - 127)).reshape(2, 24, 64)
    else:
        data = gguf.quants.quantize(gaussian(2, 24, 64), gguf.GGMLQuantizationType[kind])
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "test")
    writer.add_tensor("blk.0.ffn_up_exps.weight", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = find_layers(tmp_path / "m.gguf")
    assert [layer.name for layer in found] == ["blk.0.ffn_up_exps[0]", "blk.0.ffn_up_exps[1]"]
    for k, layer in enumerate(found):
        np.testing.assert_allclose(layer.read(), expected[k], rtol=1e-6)
        assert kind == "BF16" or f"decoded from {kind}" in layer.note


def test_onnx_operators_say_what_arrays_are(tmp_path):
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    held = {
        "k": rng.normal(size=(4, 40, 48)).astype("f4"), "codes": rng.integers(-100, 100, (20, 30)).astype(np.int8),
        "s": rng.uniform(0.1, 1, 30).astype("f4"), "zp": np.zeros(30, np.int8), "scale": rng.normal(size=(20, 20)).astype("f4"),
        "rec": rng.normal(size=(1, 48, 12)).astype("f4"), "rec_b": rng.normal(size=(1, 96)).astype("f4"),
        "r": rng.normal(size=(1, 48, 12)).astype("f4"),
    }  # fmt: skip
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(rng.normal(size=(30, 24)).astype("f4")))
    nodes = [helper.make_node("Conv", ["x", "k"], ["a"]), helper.make_node("DequantizeLinear", ["codes", "s", "zp"], ["w"], axis=1),
             helper.make_node("MatMul", ["a", "w"], ["b"]), helper.make_node("Mul", ["b", "scale"], ["d"]), constant,
             helper.make_node("MatMul", ["d", "c"], ["e"]), helper.make_node("LSTM", ["e", "rec", "r", "rec_b"], ["y"], hidden_size=12)]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(a, n) for n, a in held.items()])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    found = {layer.name: layer for layer in find_layers(tmp_path / "m.onnx")}
    assert {name: layer.sides for name, layer in found.items()} == {
        "k": (4, 1920), "codes": (20, 30), "c": (30, 24), "rec": (48, 12), "r": (48, 12)
    }
    np.testing.assert_allclose(found["codes"].read(), held["codes"] * held["s"], rtol=1e-6)
    reasons = {entry.name: entry.reason for entry in survey(tmp_path / "m.onnx").not_measured}
    assert "a scale" in reasons["scale"] and reasons["rec_b"] == "a bias"


@pytest.mark.parametrize("package, name", [("gguf", "m.gguf"), ("onnx", "m.onnx")])
def test_without_its_package_a_sentence_says_what_to_install(package, name, tmp_path, monkeypatch):
    import sys

    (tmp_path / name).write_bytes((b"GGUF" if package == "gguf" else b"\x08\x0a") + bytes(60))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs the package {package}: pip install 'grokutils\[formats\]'\.$"):
        diagnose(tmp_path / name)


# -- types of safetensors -------------------------------------------------------------------------------------


def raw_file(path: Path, entries: dict[str, tuple[str, tuple, bytes]]) -> Path:
    header, data = {}, b""
    for name, (dtype, shape, content) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "dtype, kind",
    [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), ("F8_E4M3FNUZ", "float8_e4m3fnuz"), ("BF16", "bfloat16"),
     ("F16", "float16"), ("F64", "float64")],
)  # fmt: skip
def test_types_as_ml_dtypes_has_them(dtype, kind, tmp_path):
    numbers = gaussian(20, 30).astype(getattr(ml_dtypes, kind, getattr(np, kind, None)))
    path = raw_file(tmp_path / "m.safetensors", {"w": (dtype, (20, 30), numbers.tobytes())})
    (layer,) = find_layers(path)
    np.testing.assert_array_equal(layer.read(), numbers.astype(np.float64))
    assert layer.dtype == kind


@pytest.mark.parametrize("dtype, bits", [("F6_E2M3", 6), ("F6_E3M2", 6), ("F4", 4), ("F8_E8M0", 8)])
def test_types_that_torch_does_not_read(dtype, bits, tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 20 * 30 * bits // 8).astype(np.uint8).tobytes()
    path = raw_file(tmp_path / "m.safetensors", {"good.weight": ("F32", (20, 30), gaussian(20, 30).tobytes()),
                                                 "odd.weight": (dtype, (20, 30), content)})  # fmt: skip
    found = diagnose(path, **FAST)
    if dtype == "F8_E8M0":
        assert found.layer.tolist() == ["good"] and "powers of two" in found.attrs["not_measured"][0]["reason"]
    else:
        assert found.layer.tolist() == ["good", "odd"] and found.alpha.notna().all()


def test_a_stack_is_read_one_matrix_at_a_time(tmp_path, monkeypatch):
    from grokutils.spectra import sources

    stack = gaussian(5, 24, 30)
    save_file({"m.experts.w": stack, "odd.experts.w": gaussian(3, 21, 11).astype(np.float16)}, tmp_path / "m.safetensors")
    read: list[int] = []
    original = sources._File.bytes

    def spy(self, start, size):
        read.append(size)
        return original(self, start, size)

    monkeypatch.setattr(sources._File, "bytes", spy)
    found = find_layers(tmp_path / "m.safetensors")
    assert not read
    assert np.array_equal(found[3].read(), stack[3]) and read == [24 * 30 * 4]


# -- folders and shards ---------------------------------------------------------------------------------------


def shards(folder: Path, index: bool = True) -> None:
    parts = {f"model-0000{i}-of-00002.safetensors": {f"layers.{i}.weight": gaussian(30, 20 + i)} for i in (1, 2)}
    for name, held in parts.items():
        save_file(held, folder / name)
    if index:
        files = {array: name for name, held in parts.items() for array in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


@pytest.mark.parametrize("index", [True, False])
def test_shards(index, tmp_path):
    shards(tmp_path, index)
    for source in (tmp_path, tmp_path / "model.safetensors.index.json") if index else (tmp_path,):
        assert list(alphas(source)) == ["layers.1", "layers.2"]
    one = diagnose(tmp_path / "model-00001-of-00002.safetensors", **FAST)
    assert one.layer.tolist() == ["layers.1"] and "one of 2 files of a model" in one.attrs["note"]
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="(1 are missing|lacks 1 of 2 shards): model-00002-of-00002.safetensors"):
        diagnose(tmp_path)


def test_indices_that_make_no_sense(tmp_path):
    shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content, said in {
        "{": "is no index of shards", '{"weight_map": 3}': "is no index of shards", "[]": "is no index of shards",
        '{"weight_map": {"x": "../../etc/passwd"}}': "outside its folder",
        '{"weight_map": {"nowhere.weight": "model-00001-of-00002.safetensors"}}': "names arrays that no shard holds: nowhere.weight",
    }.items():  # fmt: skip
        index.write_text(content)
        with pytest.raises(ValueError, match=said):
            diagnose(tmp_path)


def test_pytorch_shards_and_layers_in_order(tmp_path):
    torch.save({"layers.10.weight": torch.ones(12, 12)}, tmp_path / "pytorch_model-00001-of-00001.bin")
    assert list(alphas(tmp_path)) == ["layers.10"]
    save_file({f"layers.{k}.weight": gaussian(12, 12) for k in (10, 9, 2)}, tmp_path / "model.safetensors")
    assert list(alphas(tmp_path)) == ["layers.2", "layers.9", "layers.10"]


# -- files that are damaged, change, or would run code --------------------------------------------------------


def test_a_file_that_changes_while_it_is_read(tmp_path):
    for name, save in {"m.safetensors": lambda p: save_file({f"l{i}": gaussian(100, 100) for i in range(4)}, p),
                       "m.pt": lambda p: torch.save({f"l{i}": torch.ones(100, 100) for i in range(4)}, p),
                       "m.npz": lambda p: np.savez(p, **{f"l{i}": gaussian(100, 100) for i in range(4)})}.items():  # fmt: skip
        save(tmp_path / name)
        layers = find_layers(tmp_path / name)
        assert diagnose_layer(layers[0], Options(shuffles=0)).row["rows"] == 100
        os.truncate(tmp_path / name, 4096)
        row = diagnose_layer(layers[3], Options(shuffles=0)).row
        assert "has changed while it was read" in row["alpha_reason"]


HEADER = {"dtype": "F32", "shape": [20, 20], "data_offsets": [0, 1600]}


@pytest.mark.parametrize(
    "header, said",
    [
        (b"{", "its header is no JSON"), (b"[]", "no list of arrays"), (b'{"a": 3}', "makes no sense"),
        (json.dumps({"a": HEADER | {"dtype": "F99"}}).encode(), "'F99'"), (json.dumps({"a": HEADER | {"shape": [2**40, 2**40]}}).encode(), "size of array 'a'"),
        (json.dumps({"a": HEADER, "b": HEADER}).encode(), "overlap or leave gaps"),
        (json.dumps({"a": HEADER | {"shape": [-20, -20]}}).encode(), "size of array 'a'"),
        (b'{"a":%b,"a":%b}' % ((json.dumps(HEADER).encode(),) * 2), "stands twice"),
        (json.dumps({"a": HEADER | {"data_offsets": [8, 1608]}}).encode(), "overlap or leave gaps"), (b"\xff\xfe", "no JSON"),
    ],
)  # fmt: skip
def test_headers_that_lie(header, said, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(1600))
    with pytest.raises(ValueError, match="is no safetensors file") as caught:
        diagnose(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.bin", "m.ckpt", "m.npz", "m.npy", "m.gguf", "m.onnx", "m.safetensors", "m.h5", "m.pkl", "m.json", "m"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"PK\x03\x04" + bytes(40), b"\x93NUMPY\x01\0v\0{", os.urandom(300), b"\x89HDF\r\n\x1a\n"])  # fmt: skip
def test_no_file_is_a_traceback(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ValueError, TypeError)) as caught:
            diagnose(path)
    assert str(path) in str(caught.value) or "must hold a weight matrix" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_modules_scripts_and_pickles_are_refused_with_the_way_out(tmp_path):
    torch.save(nn.Sequential(nn.Linear(12, 12)), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"can run code; .*diagnose\(torch.load\(path, weights_only=False\)\)"):
        diagnose(tmp_path / "module.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(12, 12)), tmp_path / "script.pt")
    with pytest.raises(ValueError, match=r"TorchScript archive: .*diagnose\(torch.jit.load\(path\)\)"):
        diagnose(tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ValueError, match="holds neither arrays"):
        diagnose(tmp_path / "other.npz")
    (tmp_path / "m.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match="load it with h5py and give diagnose a mapping"):
        diagnose(tmp_path / "m.h5")


def test_the_advice_of_a_refusal_works_with_tied_weights(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 12), nn.Linear(12, 30, bias=False)
            self.head.weight = self.embed.weight

    net = Tied()
    torch.save(net.state_dict(), tmp_path / "m.pt")
    found = diagnose(tmp_path / "m.pt", **FAST)
    assert found.layer.tolist() == ["embed"] and found.note.tolist() == ["also head.weight"]
    safetensors.torch.save_model(net, str(tmp_path / "m.safetensors"))
    assert len(diagnose(tmp_path / "m.safetensors", **FAST)) == 1


def test_safetensors_are_read_without_torch(tmp_path):
    import subprocess
    import sys

    save_file(weights(), tmp_path / "m.safetensors")
    code = (
        "import sys\nfrom grokutils.spectra.layers import find_layers\n"
        "print([layer.read().shape for layer in find_layers(sys.argv[1])], 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code, tmp_path / "m.safetensors"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[(30, 40), (20, 30)] False"
