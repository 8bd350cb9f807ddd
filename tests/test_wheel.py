"""A wheel of the package works in anyone's environment: at the lower bounds it declares, and beside an old torch."""

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SYSTEM_PYTHON = "/usr/bin/python3"

#: Run by each environment's Python: what does not need torch to be new, and with "train" the rest of the core.
PROBE = """
import json, sys, warnings
warnings.simplefilter("error")
import numpy as np, torch
from safetensors.numpy import save_file
from grokutils import Monitor, diagnose
from grokutils.spectra.monitor import SpectralWarning

rng = np.random.default_rng(0)
linear, other = torch.nn.Linear(60, 50), torch.nn.Linear(50, 40)
weights = {"0.weight": rng.standard_t(3, size=(50, 60)), "2.weight": rng.normal(size=(40, 50)) / 7}
weights["2.weight"][3, 4] = 9
model = torch.nn.Sequential(linear, torch.nn.ReLU(), other)
with torch.no_grad():
    linear.weight.copy_(torch.from_numpy(weights["0.weight"]))
    other.weight.copy_(torch.from_numpy(weights["2.weight"]))
    linear.bias.zero_(), other.bias.zero_()
save_file(weights, "x.safetensors")
inputs = torch.from_numpy(rng.normal(size=(100, 60)).astype(np.float32))
frames = [diagnose(model, shuffles=3, harmful=True, inputs=inputs), diagnose("x.safetensors", shuffles=3)]
monitor = Monitor(model, every=2, log="x.jsonl", alarms="traps")
try:
    for _ in range(4):
        monitor.step()
    raise AssertionError("nobody was warned")
except SpectralWarning:
    pass
frames.append(monitor.history)
if "train" in sys.argv:
    from grokutils import RunConfig, load_record, train

    train(RunConfig.recipe("modular", p=5, d_model=8, d_mlp=8, n_heads=2, steps=30), "runs/x", progress=False)
    record = load_record("x")
    assert record.complete and len(record.diagnose())
columns = ["layer", "alpha", "traps", "trap_strength", "js", "verdict"]
found = [frame[[c for c in columns if c in frame]].to_dict("records") for frame in frames]
print(json.dumps({"versions": {m.__name__: m.__version__ for m in (np, torch)}, "found": found}, default=float))
"""


def run(*command, folder: Path, **more) -> subprocess.CompletedProcess:
    """A command that sees nothing of this environment or checkout."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "GROKUTILS_RUNS")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"GROKUTILS_HOME": str(folder)} | more
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, since a build leaves files
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for path in (ROOT / "grokutils").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = source / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    done = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source,
               folder=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list:
    """What this environment finds."""
    return probed(sys.executable, tmp_path_factory.mktemp("here"), PYTHONPATH=str(ROOT))["found"]


def probed(python, folder: Path, *arguments: str, **more) -> dict:
    done = run(python, "-c", PROBE, *arguments, folder=folder, OMP_NUM_THREADS="1", **more)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def install(python, wheel: Path, constraints: dict[str, str], folder: Path) -> None:
    """Install the wheel and what it needs, as anyone would, at these versions."""
    pins = folder / "constraints.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()))
    done = run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", pins, wheel, folder=folder)
    if done.returncode and "ResolutionImpossible" not in done.stderr:
        pytest.skip(f"the packages cannot be had here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def same(found: list, expected: list) -> bool:
    """Words and numbers, to six digits: eigenvalues and fits of another SciPy and another BLAS."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[k], v) for k, v in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float):
        return math.isnan(expected) and math.isnan(found) or math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9)
    return found == expected


def test_at_the_lower_bounds_that_it_declares(wheel, expected, tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {}
    for text in project["dependencies"]:
        requirement = Requirement(text)
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{text}: a lower bound and nothing else"
        bounds[requirement.name] = bound.version
    bounds["torch"] = metadata.version("torch").split("+")[0]  # today's
    environment = tmp_path / "environment"
    assert run(sys.executable, "-m", "venv", environment, folder=tmp_path).returncode == 0
    python = environment / "bin" / "python"
    install(python, wheel, bounds, tmp_path)
    found = probed(python, tmp_path, "train")
    assert Version(found["versions"]["numpy"]) == Version(bounds["numpy"]) and same(found["found"], expected)
    # the command, with the core alone
    command = environment / "bin" / "grokutils"
    assert run(command, "--version", folder=tmp_path).stdout.split()[0] == "grokutils"
    done = run(command, "diagnose", "x.safetensors", "--shuffles", "1", folder=tmp_path)
    assert done.returncode == 0 and "0" in done.stdout and done.stderr == ""
    done = run(command, "train", "--steps", "10", folder=tmp_path)
    assert done.returncode == 1 and re.fullmatch(r"grokutils: .*scikit-learn.*\n", done.stderr)


def test_beside_debians_torch(wheel, expected, tmp_path):
    asked = "import torch, pandas, scipy; from importlib.metadata import version; print(version('torch'))"
    done = run(SYSTEM_PYTHON, "-c", asked, folder=tmp_path) if Path(SYSTEM_PYTHON).exists() else None
    if done is None or done.returncode:
        pytest.skip(f"{SYSTEM_PYTHON} has no torch: apt-get install python3-torch python3-pandas python3-venv brings one")
    environment = tmp_path / "environment"
    done_venv = run(SYSTEM_PYTHON, "-m", "venv", "--system-site-packages", environment, folder=tmp_path)
    if done_venv.returncode:
        pytest.skip(f"{SYSTEM_PYTHON} makes no environments: apt-get install python3-venv")
    version = done.stdout.strip()
    python = environment / "bin" / "python"
    install(python, wheel, {"torch": version}, tmp_path)
    found = probed(python, tmp_path)
    assert version.startswith(found["versions"]["torch"].split("+")[0]) and same(found["found"], expected)
