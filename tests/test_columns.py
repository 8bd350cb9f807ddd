"""The schema of the tables can grow: what was stored before is read all the same."""

import pandas as pd
import pytest

from grokutils import RecordError, RunConfig, load_record, train
from grokutils.records import files
from grokutils.records.analysis import analyze_record
from grokutils.records.record import list_records
from grokutils.util import columns, paths

RECORDS = [path for path in list_records() if path.is_relative_to(paths.results_dir())]
TABLES = {
    "metrics": columns.METRICS, "diagnostics": columns.DIAGNOSTICS, "spectra": columns.SPECTRA,
    "baselines": columns.BASELINES, "interventions": columns.INTERVENTIONS, "regrowth": columns.REGROWTH,
}  # fmt: skip


@pytest.fixture
def grown(monkeypatch):
    """Every schema has one column more."""
    for schema in TABLES.values():
        monkeypatch.setitem(schema, "newer", "what nobody measured before")


def test_the_reference_records_are_there():
    kept = {path.stem for folder in RECORDS for path in folder.glob("*.parquet")}
    assert kept == set(TABLES), "a table without a schema, or a schema that the test below tries on nothing"


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.relative_to(paths.results_dir()).as_posix())
def test_a_record_older_than_a_column_is_read(folder, grown):
    record = load_record(folder)
    for path in sorted(folder.glob("*.parquet")):
        frame = record.metrics if path.stem == "metrics" else record.table(path.stem)
        old = files.read_parquet(path)
        assert frame.newer.isna().all() and len(frame) == len(old) > 0
        pd.testing.assert_frame_equal(frame[old.columns], old)
    analysed = analyze_record(record, progress=False)
    assert set(analysed.diagnostics) >= {"newer", "verdict"} and analysed.diagnostics.newer.isna().all()
    assert len(analysed.diagnostics) == len(record.table("diagnostics"))


@pytest.fixture
def analysed(runs):
    record = train(RunConfig.recipe("express", steps=10, width=8), "x", progress=False)
    analyze_record(record, progress=False, shuffles=2)
    return record


def rewritten(record, change) -> list[int]:
    """When each table of an analysis was written, after a change of all of them."""
    for name in ("spectra", "baselines", "diagnostics"):
        frame = record.table(name)
        files.write_parquet(record.folder / f"{name}.parquet", change(frame))
    return times(record)


def times(record) -> list[int]:
    return [path.stat().st_mtime_ns for path in sorted(record.folder.glob("*.parquet"))]


def test_an_analysis_older_than_an_option_stands_if_the_option_is_left_at_its_default(analysed):
    def without_an_option(frame):
        frame.attrs["grokutils"] = {k: v for k, v in frame.attrs["grokutils"].items() if k != "bootstrap"}
        return frame

    before = rewritten(analysed, without_an_option)
    analyze_record(analysed, progress=False, shuffles=2)
    assert times(analysed) == before
    analyze_record(analysed, progress=False, shuffles=2, bootstrap=5)
    assert times(analysed) != before


def test_a_table_that_does_not_say_whose_its_rows_are_is_damaged(analysed):
    rewritten(analysed, lambda frame: frame.drop(columns="member"))
    with pytest.raises(RecordError, match="is damaged: it has no column 'member'"):
        analyze_record(analysed, progress=False, shuffles=2)
