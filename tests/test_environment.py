"""The files that make the environment agree with one another, and what the project shows is what is run."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def lock() -> dict[str, Requirement]:
    """Name -> requirement, for every line of requirements.lock."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    by_name = {canonicalize_name(r.name): r for r in requirements}
    assert len(by_name) == len(requirements), "a package is in requirements.lock twice"
    return by_name


def declared() -> list[Requirement]:
    """All that pyproject.toml asks for: to use, test, document and build the package."""
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in [*groups, PROJECT["build-system"]["requires"]] for text in group]
    return [r for r in requirements if r.name != project["name"]]  # an extra that takes in another


def pinned(requirement: Requirement) -> str:
    """The one version a line of the lock allows."""
    (specifier,) = requirement.specifier
    return specifier.version


# -- the lock -------------------------------------------------------------------------------------------


def test_every_line_of_the_lock_pins_one_version():
    for requirement in lock().values():
        operators = [s.operator for s in requirement.specifier]
        assert operators == ["=="] and "*" not in pinned(requirement), f"not exact: {requirement}"
        assert requirement.url is None


@pytest.mark.parametrize(
    "name, version",
    {
        "torch": "2.13.0",
        "torchvision": "0.28.0",
        "weightwatcher": "0.7.5.5",
        "jupyter-book": "1.0.4.post1",
    }.items(),
)
def test_versions_that_results_rest_on_are_the_same_everywhere(name, version):
    assert pinned(lock()[name]) == version


def test_exact_versions_are_in_the_lock_alone():
    """A pin elsewhere would keep the package out of somebody's environment."""
    for requirement in declared():
        assert not {s.operator for s in requirement.specifier} & {"==", "===", "~="}, requirement
    for text in PROJECT["project"]["dependencies"]:
        assert [s.operator for s in Requirement(text).specifier] == [">="], text


def test_the_core_needs_what_it_imports_and_no_more():
    """The core is all but `paper` and `integrations`; what it takes from an extra is imported where it is used."""
    core = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    distributions = metadata.packages_distributions()
    used = set()
    for path in (ROOT / "grokutils").rglob("*.py"):
        if not {"paper", "integrations"} & set(path.parts):
            tree = ast.parse(path.read_text())
            top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
            for module in _imports(ast.unparse(top)) - {"grokutils"} - set(sys.stdlib_module_names):
                providers = {canonicalize_name(name) for name in distributions[module]}
                assert providers & core, f"{path.relative_to(ROOT)} imports {module}, which the core does not bring"
                used |= providers & core
    # pandas reads and writes Parquet with pyarrow
    assert used | {"pyarrow"} == core


def test_lock_stays_below_the_versions_known_to_break():
    assert pinned(lock()["sphinx"]) in SpecifierSet("<8")
    assert pinned(lock()["pandas"]) in SpecifierSet("<4")


def test_lock_fulfils_pyproject():
    have = lock()
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        assert name in have, f"{name} is in pyproject.toml but not in requirements.lock: run `make lock`"
        assert pinned(have[name]) in requirement.specifier, f"{have[name]} against {requirement}"
        assert have[name].marker is None, f"{have[name]} is not installed everywhere"


def test_lock_leaves_the_cuda_packages_to_torch():
    cuda = [name for name in lock() if re.match(r"nvidia-|cuda-|triton$", name)]
    assert not cuda, f"{cuda} would be installed beside a CPU build too: add them to no-emit-package"


def test_lock_is_complete_for_this_environment():
    """What the locked packages need is locked as well, but for what torch alone pins."""
    have = lock()
    left_out = set(PROJECT["tool"]["uv"]["pip"]["no-emit-package"])
    for name, requirement in have.items():
        if requirement.marker and not requirement.marker.evaluate():
            continue
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            key = canonicalize_name(needed.name)
            assert key in have or key in left_out, f"{name} needs {key}, which is not locked"


def test_this_environment_is_the_locked_one():
    differ = []
    for name, requirement in lock().items():
        if requirement.marker and not requirement.marker.evaluate():
            continue
        # a local label such as +cpu names a build, not a version
        installed = metadata.version(name).split("+")[0]
        if installed != pinned(requirement):
            differ.append(f"{name} {installed}, locked {pinned(requirement)}")
    assert not differ, "run `make setup`: " + "; ".join(differ)


def test_environment_yml_agrees_with_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["project"]["name"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    # Conda brings the interpreter only; any other version named here could contradict the lock.
    assert [re.split(r"[=<>~ ]", entry)[0] for entry in conda] == ["python", "pip"]
    assert pip == ["-r requirements.lock", "-e ."]
    (python,) = [entry.split("=")[-1] for entry in conda if entry.startswith("python=")]
    assert f"{python}.0" in SpecifierSet(PROJECT["project"]["requires-python"])
    assert f"Programming Language :: Python :: {python}" in PROJECT["project"]["classifiers"]


def _imports(source: str) -> set[str]:
    """Top-level names of the modules a piece of Python imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def _sources() -> dict[str, str]:
    files = {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in ("grokutils", "tests", "benchmarks", "notebooks")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        lines = (line for text in code for line in text.splitlines() if not re.match(r"\s*[%!]", line))
        files[str(path.relative_to(ROOT))] = "\n".join(lines)
    return files


# Whoever trains with these has them; this package works with them and installs none of them.
PARTNERS = {"lightning", "pytorch_lightning", "tensorboard", "transformers"}


def test_everything_imported_is_declared():
    own = {"grokutils", "benchmarks", "tests", "conftest"} | {p.stem for p in (ROOT / "tests").glob("*.py")}
    distributions = metadata.packages_distributions()
    allowed = {canonicalize_name(r.name) for r in declared()}
    # packaging comes with pytest, whose own interface it is part of
    allowed.add("packaging")
    for file, source in _sources().items():
        partners = PARTNERS if file.startswith(("grokutils/integrations/", "tests/")) else set()
        for module in _imports(source) - own - partners - set(sys.stdlib_module_names):
            providers = {canonicalize_name(name) for name in distributions.get(module, [])}
            assert providers & allowed, f"{file} imports {module}, which pyproject.toml does not declare"


# -- make -----------------------------------------------------------------------------------------------

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        if not (folder / name).exists():
            shutil.copy(ROOT / name, folder)
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )


@needs_make
def test_make_alone_prints_what_it_can_do(tmp_path):
    result = _make(tmp_path)
    assert result.returncode == 0
    for target in ("make book", "make test", "make lint", "make lock", "make clean"):
        assert target in result.stdout
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_refuses_an_old_python_in_one_sentence(tmp_path):
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo "Python 3.8.20";; *) exit 1;; esac\n')
    old.chmod(0o755)
    result = _make(tmp_path, "test", f"PYTHON={old}")
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr and "is Python 3.8.20" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_reuses_the_environment_until_its_inputs_change(tmp_path):
    inputs = ["pyproject.toml", "requirements.lock"]
    stamps = [".venv/.lock-installed", ".venv/.package-installed"]

    def up_to_date() -> bool:
        return _make(tmp_path, "--question", stamps[-1]).returncode == 0

    def set_times(names, seconds):
        for name in names:
            os.utime(tmp_path / name, (seconds, seconds))

    assert not up_to_date()
    (tmp_path / ".venv").mkdir()
    for stamp in stamps:
        (tmp_path / stamp).touch()
    set_times(inputs, 1_000)
    set_times(stamps, 2_000)
    assert up_to_date()
    for name in inputs:
        set_times([name], 3_000)
        assert not up_to_date(), f"a newer {name} must renew the environment"
        set_times([name], 1_000)


# -- the book's sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_config.yml", "_toc.yml", "notebooks"])
def test_links_in_book_lead_to_the_only_copies(name):
    link = ROOT / "book" / name
    assert link.is_symlink(), f"book/{name} must be a symbolic link"
    assert not link.readlink().is_absolute(), f"book/{name} must work in any clone"
    assert link.resolve(strict=True) == (ROOT / name).resolve()


def _toc_files(entry) -> list[str]:
    if isinstance(entry, list):
        return [file for item in entry for file in _toc_files(item)]
    found = [entry[key] for key in ("root", "file") if key in entry]
    return found + [f for key in ("parts", "chapters", "sections") for f in _toc_files(entry.get(key, []))]


def test_toc_and_files_agree():
    files = _toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    assert len(files) == len(set(files))
    for file in files:
        found = [path for path in (ROOT / "book").glob(f"{file}.*") if path.suffix in (".md", ".ipynb")]
        assert len(found) == 1, f"_toc.yml names {file}; found {found}"
    pages = {f"notebooks/{path.stem}" for path in NOTEBOOKS}
    pages |= {path.stem for path in (ROOT / "book").glob("*.md")}
    assert pages <= set(files), f"in no table of contents: {sorted(pages - set(files))}"


def test_there_are_notebooks():
    assert NOTEBOOKS, "the tests below would check nothing"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["outputs"] == [] and cell["execution_count"] is None, "clear the outputs first"
    assert "widgets" not in notebook["metadata"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_numbered_notebook_has_one_parameters_cell(path):
    if not re.match(r"\d\d_", path.stem):
        pytest.skip("not numbered")
    cells = json.loads(path.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", ())]
    assert len(tagged) == 1 and tagged[0]["cell_type"] == "code"


# -- what is documented is run ----------------------------------------------------------------------------

# Every command shown to a reader -> the file whose given line runs it (or, for what cannot be run where
# the tests run, checks it). Add the command here together with what runs it.
_HOWTO = ("tests/test_howto_train.py", "def test_the_commands_on_the_page_run")
RUN_BY = {
    "grokutils train --model cnn --init-scale 1 --lr 1e-3 --steps 2000 --out runs/cnn": _HOWTO,
    "grokutils diagnose runs/cnn --all-steps": _HOWTO,
    "papermill notebooks/03_alpha.ipynb runs/cnn-alpha.ipynb -p run runs/cnn": (
        "tests/test_howto_train.py", "def test_papermill_draws_the_convolutional_network"
    ),
    "grokutils report runs/cnn": _HOWTO,
    "grokutils train --plugin mine.py --dataset stripes --model bottle --width 50 --optimizer nadam --init-scale 1 --steps 500 "
    "--out runs/stripes": _HOWTO,
    "grokutils diagnose runs/stripes --all-steps --plugin mine.py": _HOWTO,
    "grokutils scan gpt-oss-20b --dry-run": ("tests/test_scan.py", "\"--dry-run\""),
    "grokutils scan gpt-oss-20b --out gpt-oss-20b.parquet --jobs 4": ("tests/test_scan.py", "\"--out\""),
    "make book": (".ci/run", "make book"),
    "make test": (".ci/run", "make test"),
    "make lint": (".ci/run", "make lint"),
    "make slow": (".ci/run", "make slow"),
    ".ci/run": (".ci/run", "make test"),
    "make help": ("tests/test_environment.py", "def test_make_alone_prints_what_it_can_do"),
    "make": ("tests/test_environment.py", "def test_make_alone_prints_what_it_can_do"),
    # The plain pip way is, line by line, what make does to set up.
    "python3 -m venv .venv": ("Makefile", "-m venv --clear $(venv)"),
    "python3 -m venv --clear .venv": ("Makefile", "-m venv --clear $(venv)"),
    ". .venv/bin/activate": ("Makefile", 'PATH="$(CURDIR)/$(venv)/bin:$$PATH"'),
    "source .venv/bin/activate": ("Makefile", 'PATH="$(CURDIR)/$(venv)/bin:$$PATH"'),
    "pip install -r requirements.lock": ("Makefile", "-r requirements.lock"),
    "pip install --no-deps --no-build-isolation -e .": ("Makefile", "--no-deps --no-build-isolation -e ."),
    "pytest --nbval-lax": ("Makefile", "-m pytest --nbval-lax"),
    # ... and to build; make adds options to these two.
    "jupyter-book build book": ("Makefile", "jupyter-book build"),
    "conda env create -f environment.yml": (
        "tests/test_environment.py",
        "def test_environment_yml_agrees_with_the_lock",
    ),
    "conda activate grokutils": (
        "tests/test_environment.py",
        "def test_environment_yml_agrees_with_the_lock",
    ),
    # Training, as shown.
    "grokutils train --recipe express --wd 0 --out runs/x": (".ci/run", "grokutils train --recipe express"),
    "grokutils train --recipe paper --wd 0 --steps 1e4 --out runs/mnist": (
        ".ci/run",
        "grokutils train --recipe paper",
    ),
    "grokutils list": (".ci/run", "grokutils list"),
    # The package without the lock.
    "pip install .": ("tests/test_wheel.py", "def test_at_the_lower_bounds_that_it_declares"),
    "grokutils diagnose model.safetensors": ("tests/test_wheel.py", "def test_at_the_lower_bounds_that_it_declares"),
    # Diagnosing, as shown.
    "grokutils diagnose runs/y/checkpoints/step_00002000.safetensors": (
        "tests/test_diagnose.py",
        "def test_a_freshly_trained_checkpoint_in_a_process",
    ),
    "grokutils diagnose x": ("tests/test_diagnose.py", "def test_a_run_by_its_name"),
    "grokutils diagnose x --harmful": ("tests/test_harm.py", "def test_from_a_shell"),
    "grokutils diagnose x --all-steps --json": ("tests/test_diagnose.py", "def test_a_run_by_its_name"),
    "papermill notebooks/02_train.ipynb runs/wd0.ipynb -p wd 0": (".ci/run", "runs/wd0.ipynb -p wd 0"),
    "papermill notebooks/02_train.ipynb -p wd 0.01 > out.ipynb": (".ci/run", "-p wd 0.01 > out.ipynb"),
    "papermill notebooks/09_causes.ipynb runs/09_causes.ipynb -p seeds 2 -p scale quick": (
        ".ci/run",
        "runs/09_causes.ipynb -p seeds 2 -p scale quick",
    ),
}
# Where a reader already is when the commands begin: CI starts from a fresh clone.
GETTING_HERE = re.compile(r"git clone \S+( \S+)?|cd \S+")


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]


def commands(markdown: str) -> list[str]:
    """The commands in the fenced shell blocks of a Markdown text, prompts and comments taken off.

    >>> commands("```bash\\n$ make book  # opens it\\npip install \\\\\\n  x\\n```")
    ['make book', 'pip install x']
    """
    found = []
    fence = r"^ *(?:```|~~~)"
    for block in re.findall(rf"{fence}(?:bash|sh|shell|console)[^\n]*\n(.*?){fence}", markdown, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^|\s)#.*", "", line)
            line = " ".join(line.removeprefix("$ ").split())
            if line:
                found.append(line)
    return found


def unlisted(markdown: str) -> list[str]:
    return [c for c in commands(markdown) if c not in RUN_BY and not GETTING_HERE.fullmatch(c)]


def test_the_check_below_would_notice():
    assert commands("text\n```bash\n$ make book  # c\npip install \\\n  -r x\n```\n```python\nmake\n```") == [
        "make book",
        "pip install -r x",
    ]
    assert unlisted("```sh\ncd grok\nmake test\nmake coffee\n```") == ["make coffee"]


def test_every_documented_command_is_run():
    readme = (ROOT / "README.md").read_text()
    assert {"make book", "make test"} <= set(commands(readme))
    for path in documents():
        missing = unlisted(path.read_text())
        assert not missing, f"{path.name} shows {missing}; say in RUN_BY what runs it"


def test_the_places_that_contributing_names_exist():
    """Files and folders, from the root or from the package."""
    table = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| a ")]
    assert len(table) >= 10
    for line in table:
        places = re.findall(r"`([\w/]+(?:/|\.(?:py|md|toml|yml|ipynb)))`", line)
        missing = [name for name in places if not (ROOT / name).exists() and not (ROOT / "grokutils" / name).exists()]
        assert places and not missing, f"{missing} of: {line}"


@pytest.mark.parametrize("command", RUN_BY)
def test_what_is_said_to_run_a_command_exists(command):
    file, text = RUN_BY[command]
    lines = [line.strip() for line in (ROOT / file).read_text().splitlines()]
    if text.startswith("def "):
        # a definition, not this table's mention of it
        assert any(line.startswith(f"{text}(") for line in lines), f"{file} has no {text!r}"
    else:
        assert any(text in line for line in lines if not line.startswith("#")), f"{file} has no {text!r}"


# -- nothing of this machine ------------------------------------------------------------------------------

# In pieces, so that this file does not contain what it looks for.
FORBIDDEN = {
    "a registry's address": r"py" r"pi\.(?:org|python)|python" r"hosted\.org|registry\." r"npmjs|"
    r"(?:download|deb)\." r"(?:pytorch|debian)\.org",
    "a path of one machine": r"(?<![\w.~$}-])/(?:work|root|opt/(?:wheels|pypi)|tmp/w|Users/\w+|home/\w+)/",
    "a folder beside the checkout": r"\.\./" r"shared",
}
MAY = {(".ci/run", "a folder beside the checkout")}


def tracked() -> list[Path]:
    """What git tracks or would, less what is vendored."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")
    vendored = ROOT / "book" / "_assets" / "mathjax"
    files = [ROOT / name for name in listing if name]
    return [f for f in files if f.is_file() and not f.is_symlink() and not f.is_relative_to(vendored)]


def test_no_file_names_a_registry_or_a_machine():
    files = tracked()
    assert ROOT / "pyproject.toml" in files
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        name = str(path.relative_to(ROOT))
        for what, pattern in FORBIDDEN.items():
            match = re.search(pattern, text)
            assert match is None or (name, what) in MAY, f"{name} names {what}: {match.group()!r}"


@pytest.mark.parametrize(
    "text", ["https://py" "pi.org/simple", "open('/wor" "k/main/x')", "ls ../" "shared/data", "/ro" "ot/x"]
)
def test_the_search_finds_what_it_should(text):
    assert any(re.search(pattern, text) for pattern in FORBIDDEN.values())


@pytest.mark.parametrize("text", ["see homework/x", "runs/work/x", "a/root/x", "$HOME/work/x"])
def test_the_search_lets_ordinary_text_pass(text):
    assert not any(re.search(pattern, text) for pattern in FORBIDDEN.values())
