"""What holds arrays, and how to read them one by one: files, folders of a model, mappings.

Nothing that can run code is opened, and no file is mapped into memory by this module: a file that is cut while it is read is
an error, not the end of the process.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grokutils.spectra.arrays import EXPONENTS, SMALL_FLOATS, Array, NotMeasured, decoded, from_value

__all__ = ["SUFFIXES", "Contents", "from_file", "from_mapping", "is_model"]


@dataclass
class Contents:
    """The arrays of a source, and what stands beside them."""

    arrays: list[Array]
    #: The model's own description (``config.json`` and the like), if there is one.
    config: Mapping[str, Any] = field(default_factory=dict)
    #: What belongs to no layer: an optimiser's moments.
    aside: list[NotMeasured] = field(default_factory=list)
    #: What a reader should know of the source: that it is one of several shards.
    note: str = ""


# -- mappings -------------------------------------------------------------------------------------------------


def from_mapping(mapping: Mapping[Any, Any], check: Callable[[], None] | None = None) -> Contents:
    arrays = []
    for name, value in mapping.items():
        if isinstance(value, tuple) and value and hasattr(value[0], "dequantize"):
            # torch.ao keeps a weight and its bias, packed, as a pair
            short = re.sub(r"_packed_params\._packed_params$", "weight", str(name))
            bias = re.sub(r"weight$", "bias", short)
            pairs = [(short, value[0]), (bias, value[1] if len(value) > 1 else None)]
        else:
            pairs = [(str(name), value)]
        arrays += [array for n, v in pairs if (array := from_value(n, v, check)) is not None]
    return Contents(arrays)


# -- files ----------------------------------------------------------------------------------------------------

# A folder of a model holds one of these.
_MAIN = (
    "model.safetensors.index.json", "model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors", "adapter_model.safetensors", "pytorch_model.bin.index.json",
    "pytorch_model.bin", "adapter_model.bin", "model.onnx",
)  # fmt: skip
_SHARD = re.compile(r"^(.+)-(\d+)-of-(\d+)(\.\w+)$")
_CONFIGS = ("config.json", "adapter_config.json", "quantize_config.json", "quant_config.json")
_RUNS_CODE = (".pkl", ".pickle", ".joblib", ".dill")
_OTHERS = {
    ".h5": "h5py", ".hdf5": "h5py", ".keras": "keras", ".pb": "tensorflow", ".tflite": "tensorflow",
    ".msgpack": "flax", ".orbax": "orbax",
}  # fmt: skip


def is_model(path: Path) -> bool:
    """Whether a path names weights: a file, or a folder such as those of Hugging Face."""
    try:
        return path.is_file() or path.is_dir() and bool(_main(path))
    except ValueError:  # shards are missing, which reading it will say
        return True
    except OSError:
        return False


def from_file(path: Path) -> Contents:
    """The arrays in a file or in the folder of a model.

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : a kind of file that is not read, with the way out; a damaged one.
    """
    try:
        return _from_path(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:
            raise
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from None


def _from_path(path: Path) -> Contents:
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}.")
        main = [path]
    elif not (main := _main(path)):
        inside = sorted(p.name for p in path.iterdir() if p.suffix in _READERS)
        held = f" ({_few(inside)})" if inside else ""
        raise ValueError(
            f"{path} is a folder; name a .safetensors file in it{held}, or load_record() it if it is a run."
        )
    contents = _together([_from_index(p) if p.name.endswith(".index.json") else _reader(p)(p) for p in main])
    contents.config = _config(main[0].parent) | dict(contents.config)
    shard = _SHARD.match(path.name)
    if shard and int(shard[3]) > 1:
        contents.note = (
            f"{path.name} is one of {int(shard[3])} files of a model; name their folder or index to read them all"
        )
    return contents


def _main(folder: Path) -> list[Path]:
    """What a folder's model is in: one file or index, or shards without an index; nothing if it is none."""
    for name in _MAIN:
        if (folder / name).is_file():
            return [folder / name]
    for name in sorted(path.name for path in folder.iterdir()):
        if (shard := _SHARD.match(name)) and shard[4] in (".safetensors", ".bin"):
            stem, number, count, suffix = shard.groups()
            names = [f"{stem}-{k:0{len(number)}d}-of-{count}{suffix}" for k in range(1, int(count) + 1)]
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise ValueError(f"{folder} lacks {len(missing)} of {int(count)} shards: {_few(missing)}.")
            return [folder / name for name in names]
    return []


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _CONFIGS:
        try:
            with open(folder / name, encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError):  # a model can be read without
            continue
        if isinstance(content, dict):
            found |= content.get("text_config", {}) if isinstance(content.get("text_config"), dict) else {}
            found |= content
    return found


def _reader(path: Path) -> Callable[[Path], Contents]:
    """By what the file begins with, and by its name where that says nothing."""
    with open(path, "rb") as file:
        start = file.read(16)
    if path.suffix == ".safetensors":
        packed = start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04"))
        if packed and len(start) > 8 and struct.unpack("<Q", start[:8])[0] > _LARGEST_HEADER:
            raise _code(path, "an archive or a pickle under the name of one")
        return _from_safetensors
    if start.startswith(b"GGUF"):
        return _from_gguf
    if start.startswith(b"\x93NUMPY"):
        return _from_npy
    if path.suffix in _RUNS_CODE or start.startswith(b"\x80") and path.suffix not in _READERS:
        raise _code(path, "a pickle")
    if start.startswith(b"PK\x03\x04") and path.suffix not in (".keras",):
        with _archive(path) as archive:
            names = archive.namelist()
        if any(re.search(r"(^|/)constants\.pkl$", name) for name in names):
            raise _code(path, "a TorchScript archive", "torch.jit.load(path)")
        return _from_torch if any(name.endswith("data.pkl") for name in names) else _from_npz
    if start.startswith(b"\x89HDF") or path.suffix in _OTHERS:
        package = _OTHERS.get(path.suffix, "h5py")
        raise ValueError(
            f"{path} is no safetensors file, and a kind that is not read here; load it with {package} and give diagnose a mapping "
            "of names to arrays."
        )
    return _READERS.get(path.suffix, _from_safetensors)


def _code(path: Path, what: str, load: str = "torch.load(path, weights_only=False)") -> ValueError:
    return ValueError(
        f"{path} is no safetensors file but {what}: reading it can run code; save yours with "
        f"safetensors.torch.save_model(model, path), which knows tied weights, or, if you trust it, diagnose({load})."
    )


def _from_index(path: Path) -> Contents:
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)["weight_map"]
        files = {str(name): str(shard) for name, shard in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no index of shards ({type(error).__name__}: {error}).") from None
    shards = list(dict.fromkeys(files.values()))
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise ValueError(f"{path} names shards outside its folder: {', '.join(outside[:3])}.")
    if missing := [shard for shard in shards if not (path.parent / shard).is_file()]:
        raise ValueError(f"{path} names {len(shards)} shards, of which {len(missing)} are missing: {_few(missing)}.")
    found = {shard: _reader(path.parent / shard)(path.parent / shard) for shard in shards}
    held = {array.name for contents in found.values() for array in contents.arrays}
    if absent := [name for name in files if name not in held]:
        raise ValueError(f"{path} names arrays that no shard holds: {_few(absent)}.")
    contents = _together(list(found.values()))
    contents.arrays.sort(key=lambda array: _in_order(array.name))
    return contents


def _together(parts: list[Contents]) -> Contents:
    return Contents(
        [array for part in parts for array in part.arrays],
        {name: value for part in parts for name, value in part.config.items()},
        [entry for part in parts for entry in part.aside],
    )


def _in_order(name: str) -> list[Any]:
    """A key that sorts layer 2 before layer 10: a file does not keep the model's own order."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# -- reading bytes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file as it was when its names were listed."""

    path: Path
    stamp: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> _File:
        return cls(path, _stamp(os.stat(path)))

    def check(self) -> None:
        try:
            now = _stamp(os.stat(self.path))
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read any more: {error.strerror}.") from None
        if now != self.stamp:
            raise ValueError(f"{self.path} has changed while it was read.")

    def bytes(self, start: int, size: int) -> np.ndarray:
        out = np.empty(size, np.uint8)
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(start)
                view, done = out.data, 0
                while done < size and (got := file.readinto(view[done : done + 2**30])):
                    done += got
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read any more: {error.strerror}.") from None
        self.check()
        if done < size:
            raise ValueError(f"{self.path} has changed while it was read.")
        return out


def _stamp(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


# -- safetensors ----------------------------------------------------------------------------------------------

# Bits of each type, and what NumPy or torch calls it.
_TYPES = {
    "BOOL": (8, "bool"), "U8": (8, "uint8"), "I8": (8, "int8"), "U16": (16, "uint16"), "I16": (16, "int16"),
    "U32": (32, "uint32"), "I32": (32, "int32"), "U64": (64, "uint64"), "I64": (64, "int64"),
    "F64": (64, "float64"), "F32": (32, "float32"), "F16": (16, "float16"), "BF16": (16, "bfloat16"),
    "C64": (64, "complex64"), "F8_E4M3": (8, "float8_e4m3fn"), "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"), "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"), "F8_E8M0": (8, "float8_e8m0fnu"),
    "F6_E2M3": (6, "float6_e2m3fn"), "F6_E3M2": (6, "float6_e3m2fn"), "F4": (4, "float4_e2m1fn"),
}  # fmt: skip
_LARGEST_HEADER = 100_000_000


def _from_safetensors(path: Path) -> Contents:
    file = _File.of(path)
    header, begin = _header(path)
    arrays = []
    for name, entry in sorted(header.items(), key=lambda item: _in_order(item[0])):
        bits, dtype = _TYPES[entry["dtype"]]
        arrays.append(Array(name, tuple(entry["shape"]), dtype, _slice(file, entry, begin, bits, dtype)))
    return Contents(arrays)


def _slice(file: _File, entry: dict, begin: int, bits: int, dtype: str) -> Callable[..., np.ndarray]:
    shape, start = tuple(entry["shape"]), begin + entry["data_offsets"][0]

    def read(at: tuple[int, ...] = ()) -> np.ndarray:
        block = shape[len(at) :]
        count = math.prod(block)
        first = int(np.ravel_multi_index(at, shape[: len(at)])) * count if at else 0
        if first * bits % 8 or count * bits % 8:  # codes that share a byte with the next block
            return read()[at]
        raw = file.bytes(start + first * bits // 8, count * bits // 8)
        if dtype in (*SMALL_FLOATS, EXPONENTS, "bfloat16"):
            return decoded(raw, dtype, count).reshape(block)
        return raw.view(np.dtype(dtype).newbyteorder("<")).reshape(block)

    return read


def _header(path: Path) -> tuple[dict[str, dict], int]:
    """What a file says of its arrays, checked: types, sizes, and that they fill the file without gaps."""

    def wrong(why: str) -> ValueError:
        return ValueError(
            f"{path} is no safetensors file ({why}). Of others .pt, .bin, .npz, .npy, .gguf and .onnx files are read by their names."
        )

    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise wrong("a name stands twice in its header")
        return dict(pairs)

    size = os.stat(path).st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if len(start) < 8:
            raise wrong("it is too short for a header")
        if length > min(_LARGEST_HEADER, size - 8):
            raise wrong("its header is longer than the file" if length > size - 8 else "its header is too long")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise wrong("its header is no JSON") from None
    if not isinstance(header, dict):
        raise wrong("its header is no list of arrays")
    header.pop("__metadata__", None)
    spans = []
    for name, entry in header.items():
        try:
            bits, _ = _TYPES[entry["dtype"]]
            shape, (first, last) = entry["shape"], entry["data_offsets"]
            whole = all(isinstance(n, int) and n >= 0 for n in (*shape, first, last))
        except KeyError as error:
            raise wrong(f"array {name!r} has the type or lacks the entry {error}") from None
        except (TypeError, ValueError):
            raise wrong(f"the entry of array {name!r} makes no sense") from None
        if not whole or math.prod(shape) * bits != 8 * (last - first):
            raise wrong(f"the size of array {name!r} is not that of its shape")
        spans.append((first, last))
    at = 0
    for first, last in sorted(spans):
        if first != at:
            raise wrong("its arrays overlap or leave gaps")
        at = last
    if at != size - 8 - length:
        raise wrong(f"{size - 8 - length:,} bytes of numbers where its header says {at:,}")
    return header, 8 + length


# -- PyTorch's checkpoints ------------------------------------------------------------------------------------

_ASIDE = re.compile(r"optim|sched|scaler|rng|random|loss|amp|hparam|hyper|config|args|ema_state|callbacks|loops", re.I)


def _from_torch(path: Path) -> Contents:
    try:
        import torch
    except ImportError:
        raise ValueError(f"{path} is a PyTorch checkpoint; reading it needs torch (pip install torch).") from None
    file = _File.of(path)
    try:
        try:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError, TypeError) as error:  # an old file, or a torch before 2.1
            if "mmap" not in str(error):
                raise
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an archive cut short, objects instead of arrays: torch names each in its own way
        with open(path, "rb") as opened:
            pickled = opened.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if pickled and re.search("weights_only|unpickl|unsupported", f"{type(error).__name__} {error}", re.I):
            what = re.search(r"(?:GLOBAL|[Uu]nsupported class|function) ([\w.]+\w)", str(error))
            raise _code(path, f"a PyTorch file of objects{f' ({what[1]})' if what else ''}") from None
        raise ValueError(f"{path} is no safetensors file, nor a checkpoint that PyTorch reads.") from None
    if not isinstance(held, Mapping):
        if hasattr(held, "shape"):
            held = {path.stem: held}
        else:
            raise ValueError(f"{path} holds no arrays by name but a {type(held).__name__}.")
    model, rest = _model_in(held)
    contents = from_mapping(model, file.check)
    contents.aside = [
        array.left_out(f"not of the model: it stands in {where!r}", missing=False)
        for where, name, value in rest
        if (array := from_value(name, value)) is not None
    ]
    return contents


def _model_in(held: Mapping) -> tuple[dict[str, Any], list[tuple[str, str, Any]]]:
    """The weights in a checkpoint, and what stands beside them: (where, name, array)."""
    groups: dict[str, dict[str, Any]] = {}
    for place, name, value in _walk(held):
        groups.setdefault(place, {})[name] = value
    model = [place for place in groups if not _ASIDE.search(place)] or list(groups)[:1]
    if any(place == "" for place in model):
        model = [""]
    several = len(model) > 1
    weights = {(f"{place}.{name}" if several else name): v for place in model for name, v in groups[place].items()}
    rest = [(p, f"{p}.{n}", v) for p, group in groups.items() if p not in model for n, v in group.items()]
    return weights, rest


def _walk(held: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """(mapping it stands in, its name there, array) of everything, to the depth that checkpoints have."""
    pairs = held.items() if isinstance(held, Mapping) else enumerate(held)
    for key, value in pairs:
        if isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and not _packed(value)):
            if depth < 6:
                yield from _walk(value, f"{place}.{key}" if place else str(key), depth + 1)
        elif hasattr(value, "shape") or _packed(value):
            yield place, str(key), value


def _packed(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and hasattr(value[0], "dequantize")


# -- NumPy's files --------------------------------------------------------------------------------------------


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is no safetensors file, and damaged as an archive of arrays or a checkpoint.") from None


def _from_npz(path: Path) -> Contents:
    file = _File.of(path)
    with _archive(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        heads = {name: _npy_head(archive.open(name), path) for name in members}
    if not members:
        raise ValueError(f"{path} holds neither arrays of NumPy nor a checkpoint of PyTorch.")

    def reader(member: str) -> Callable[..., np.ndarray]:
        def read(at: tuple[int, ...] = ()) -> np.ndarray:
            file.check()
            try:
                with zipfile.ZipFile(path) as archive:
                    array = np.load(io.BytesIO(archive.read(member)), allow_pickle=False)
            except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
                raise ValueError(f"{member} in {path} cannot be read: {error}.") from None
            return array[at] if at else array

        return read

    return Contents([Array(m.removesuffix(".npy"), *heads[m], reader(m)) for m in members])


def _npy_head(file: Any, path: Path) -> tuple[tuple[int, ...], str]:
    try:
        with file:
            version = np.lib.format.read_magic(file)
            head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = head(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    return shape, dtype.name


def _from_npy(path: Path) -> Contents:
    file = _File.of(path)
    shape, dtype = _npy_head(open(path, "rb"), path)

    def read(at: tuple[int, ...] = ()) -> np.ndarray:
        file.check()
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read: {error}.") from None
        return array[at] if at else array

    return Contents([Array(path.stem, shape, dtype, read)])


# -- formats that other packages read -------------------------------------------------------------------------


def _needs(path: Path, package: str, what: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError:
        raise ValueError(
            f"{path} is {what}; reading it needs the package {package}: pip install 'grokutils[formats]'."
        ) from None


def _from_gguf(path: Path) -> Contents:
    gguf = _needs(path, "gguf", "a GGUF file")
    file = _File.of(path)
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # the package has no error of its own for a damaged file
        raise ValueError(f"{path} is damaged as a GGUF file ({' '.join(str(error).split())}).") from None
    plain = {"F32": "float32", "F16": "float16", "F64": "float64", "BF16": "bfloat16"}
    plain |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}

    def read_of(tensor: Any, shape: tuple[int, ...]) -> Callable[..., np.ndarray]:
        def read(at: tuple[int, ...] = ()) -> np.ndarray:
            file.check()
            data = tensor.data
            if at:  # rows are stored one after the other, each in whole blocks
                data = data[at]
            if tensor.tensor_type.name in plain and tensor.tensor_type.name != "BF16":
                return np.array(data)
            try:
                return gguf.quants.dequantize(np.ascontiguousarray(data), tensor.tensor_type).reshape(shape[len(at) :])
            except NotImplementedError:
                raise ValueError(f"{tensor.name} is of the type {tensor.tensor_type.name}, which gguf cannot decode.") from None

        return read

    arrays = []
    for tensor in reader.tensors:
        shape = tuple(int(side) for side in reversed(tensor.shape))
        kind = tensor.tensor_type.name
        arrays.append(
            Array(
                tensor.name, shape, plain.get(kind, "float32"), read_of(tensor, shape),
                note="" if kind in plain else f"decoded from {kind}",
            )
        )  # fmt: skip
    return Contents(arrays)


def _from_onnx(path: Path) -> Contents:
    onnx = _needs(path, "onnx", "an ONNX file")
    from grokutils.spectra.onnx_graph import arrays_of

    file = _File.of(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, which is no ValueError in every version
        raise ValueError(f"{path} is damaged as an ONNX file ({' '.join(str(error).split())[:100]}).") from None
    return Contents(arrays_of(onnx, model, path, file.check))


_READERS: dict[str, Callable[[Path], Contents]] = {
    ".safetensors": _from_safetensors,
    ".pt": _from_torch, ".pth": _from_torch, ".bin": _from_torch, ".ckpt": _from_torch, ".tar": _from_torch,
    ".npz": _from_npz, ".npy": _from_npy, ".gguf": _from_gguf, ".onnx": _from_onnx,
}  # fmt: skip
#: What names of files with weights end in, those that are refused with the way out among them.
SUFFIXES = (*_READERS, *_RUNS_CODE, *_OTHERS, ".json")
