"""Names lead where they should, and never out of it."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grokutils.util import paths

ROOT = Path(__file__).resolve().parent.parent


def test_the_project_is_found_from_any_folder(tmp_path, monkeypatch):
    for folder in (ROOT, ROOT / "notebooks", tmp_path):
        monkeypatch.chdir(folder)
        assert paths.project_root() == ROOT
    assert paths.results_dir() == ROOT / "results"


@pytest.mark.parametrize(
    "variable, function, below",
    [
        ("GROKUTILS_HOME", paths.project_root, ""),
        ("GROKUTILS_RUNS", paths.runs_dir, "runs"),
        ("GROKUTILS_DATA", paths.data_root, "data"),
    ],
)
def test_folders_can_be_set_by_variables(variable, function, below, tmp_path, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    assert function() == ROOT / below
    monkeypatch.setenv(variable, "")  # set but empty is not set
    assert function() == ROOT / below
    monkeypatch.setenv(variable, str(tmp_path / "a" / ".." / "b"))
    assert function() == tmp_path / "b"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/b")
    assert function() == tmp_path / "b"


@pytest.mark.parametrize("out", ["x", "runs/x", "./x", "runs/./x/", " x ", Path("x"), Path("runs/x")])
def test_a_name_is_a_run_under_runs(out, runs):
    assert paths.run_dir(out) == paths.run_dir(out, confined=True) == runs / "x"


def test_names_of_reference_records_and_absolute_paths(tmp_path, runs):
    assert paths.run_dir("results/a/b", confined=True) == ROOT / "results" / "a" / "b"
    assert paths.run_dir("runs/results") == runs / "results"
    elsewhere = tmp_path / "elsewhere"
    assert paths.run_dir(elsewhere) == paths.run_dir(str(elsewhere)) == elsewhere
    assert paths.run_dir(runs / "x", confined=True) == runs / "x"
    for outside in (elsewhere, runs, ROOT, tmp_path / "runs-2" / "x", f"{runs}/../x"):
        with pytest.raises(ValueError, match="out must be a name under runs/; the absolute path"):
            paths.run_dir(outside, confined=True)


@pytest.mark.parametrize(
    "out",
    [
        "",
        " ",
        ".",
        "./",
        "runs",
        "runs/",
        "./runs",
        "results",
        "results/",
        "a\0b",
        "a\nb",
        5,
        None,
        True,
        1.5,
        b"x",
        ["x"],
        "~nobody-of-this-name/x",
        "x" * 256,
    ],
)
@pytest.mark.parametrize("confined", [False, True])
def test_what_is_no_name_is_refused(out, confined):
    with pytest.raises(ValueError, match=r"out must name a run, such as 'my-run' or 'runs/my-run'; got "):
        paths.run_dir(out, confined=confined)


@pytest.mark.parametrize("out", ["..", "../x", "runs/../x", "runs/../../etc", "a/../b", "results/../runs/x"])
@pytest.mark.parametrize("confined", [False, True])
def test_a_name_that_leaves_its_folder_is_refused(out, confined):
    with pytest.raises(ValueError, match=r"out must stay inside (runs|results)/; got '"):
        paths.run_dir(out, confined=confined)


def test_a_link_does_not_lead_out(runs, tmp_path):
    runs.mkdir()
    (runs / "link").symlink_to(tmp_path)
    for out in ("link/x", "runs/link"):
        with pytest.raises(ValueError, match="out must stay inside runs/"):
            paths.run_dir(out)
    with pytest.raises(ValueError, match="lies outside"):
        paths.run_dir(runs / "link" / "x", confined=True)


@given(
    st.one_of(
        st.text(max_size=20),
        st.lists(st.sampled_from(["..", ".", "", "runs", "results", "x", "~", "\\"])).map("/".join),
    )
)
@example("~")
@example("/")
@example("//x")
def test_a_confined_name_never_escapes(out):
    bases = [folder.resolve() for folder in (paths.runs_dir(), paths.results_dir())]
    try:
        found = paths.run_dir(out, confined=True)
    except ValueError as error:
        assert str(error).startswith("out must") and str(error).endswith(".")
    else:
        assert any(base in found.resolve().parents for base in bases)


# -- finding a run ----------------------------------------------------------------------------------------


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    return folder


def test_a_run_is_found_by_name_and_by_folder(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("GROKUTILS_HOME", str(tmp_path / "home"))
    mine = make(runs / "x")
    reference = make(tmp_path / "home" / "results" / "y")
    elsewhere = make(tmp_path / "elsewhere" / "z")
    assert paths.find_run("x") == paths.find_run("runs/x") == paths.find_run(mine) == mine
    assert paths.find_run("y") == paths.find_run("results/y") == reference
    monkeypatch.chdir(elsewhere.parent)
    assert os.path.samefile(paths.find_run("z"), elsewhere)
    monkeypatch.chdir(elsewhere)
    assert os.path.samefile(paths.find_run("../z"), elsewhere)
    assert os.path.samefile(paths.find_run("."), elsewhere)


def test_what_was_trained_here_goes_before_reference_records_and_other_folders(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("GROKUTILS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x")
    reference = make(tmp_path / "home" / "results" / "x")
    assert paths.find_run("x") == reference
    mine = make(runs / "x")
    assert paths.find_run("x") == mine


def test_a_run_that_is_not_there(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("GROKUTILS_HOME", str(tmp_path / "home"))
    with pytest.raises(
        FileNotFoundError, match=r"there is no record 'x'\. Records here: none yet; make one with"
    ):
        paths.find_run("x")
    make(runs / "b")
    make(runs / "group" / "a")
    make(tmp_path / "home" / "results" / "c")
    for name in ("x", "../x", "runs", tmp_path / "x"):
        with pytest.raises(FileNotFoundError) as caught:
            paths.find_run(name)
        assert str(caught.value).endswith("Records here: results/c, runs/b, runs/group/a.")


@pytest.mark.parametrize("name", ["", None, 5, "a\0b", "x" * 5_000])
def test_what_is_no_name_of_a_record_is_refused(name):
    with pytest.raises(ValueError, match="name must name a run"):
        paths.find_run(name)
