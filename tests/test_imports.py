"""The house rule: rooms import downwards only, and whoever needs one room alone gets it alone."""

import ast
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "grokutils"
#: A room may import those on floors below its own, and itself.
FLOORS = (("util",), ("spectra", "experiment"), ("records", "integrations"), ("training",), ("paper",), ("cli",), ("__main__",))
#: The same inside paper/; what is not named is a chapter, and no chapter imports another.
PAPER_FLOORS = (("judge",), ("kit",), ("CHAPTER",), ("claims",), ("claims_page", "explorer"), ("report",))


def imports_of(file: Path) -> set[tuple[str, ...]]:
    """All modules of the package that a file imports, wherever in it: ('spectra', 'traps', ...)."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports of the package are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {tuple(name.split(".")[1:]) for name in found if name.split(".")[0] == "grokutils"}


def wrong_arrows(package: Path) -> list[str]:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    inner = {room: number for number, rooms in enumerate(PAPER_FLOORS) for room in rooms}
    wrong = []
    for file in sorted(package.rglob("*.py")):
        here = file.relative_to(package).with_suffix("").parts
        if here == ("__init__",):
            continue
        for there in imports_of(file):
            if there[0] not in floor:  # a public name of the package
                wrong += [f"{file}: import it from its room: {there}"] if here[0] not in ("cli", "__main__") else []
            elif here[0] != there[0]:
                if floor[there[0]] >= floor[here[0]]:
                    wrong.append(f"{file} imports {'.'.join(there)}, which is not below it")
            elif here[0] == "paper" and len(there) > 1 and here[1] != there[1]:
                low, high = inner.get(there[1], inner["CHAPTER"]), inner.get(here[1], inner["CHAPTER"])
                if low >= high:
                    wrong.append(f"{file} imports {'.'.join(there)}, which is not below it")
    return wrong


def test_rooms_import_downwards_only():
    assert wrong_arrows(PACKAGE) == []


def test_every_room_is_on_a_floor():
    rooms = {p.stem for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists() or p.suffix == ".py"}
    assert rooms - {"__init__"} == {room for rooms in FLOORS for room in rooms}


@pytest.mark.parametrize(("lower", "upper"), list(pairwise([rooms[0] for rooms in FLOORS])))
def test_an_arrow_turned_round_is_noticed(tmp_path, lower, upper):
    for room in (lower, upper):
        (tmp_path / room).mkdir()
        (tmp_path / room / "x.py").write_text("")
    assert wrong_arrows(tmp_path) == []
    (tmp_path / lower / "x.py").write_text(f"def f():\n    from grokutils.{upper} import x\n")
    assert len(wrong_arrows(tmp_path)) == 1


def test_spectra_works_alone():
    """Whoever has only a checkpoint loads no training, no records, no plotting."""
    code = (
        "import sys, numpy as np; from grokutils.spectra.diagnose import diagnose;"
        "print(len(diagnose(np.random.default_rng(0).normal(size=(40, 30)), shuffles=1)));"
        "print([m for m in sys.modules if m.startswith(('grokutils.', 'matplotlib', 'seaborn', 'sklearn', 'torchvision'))"
        " and m.split('.')[:2] not in (['grokutils', 'spectra'], ['grokutils', 'util'])])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["1", "[]"]
