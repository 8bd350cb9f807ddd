"""The command line of a module that makes a table of records: ``python -m grokutils.<name> RUN ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import pandas as pd

from grokutils.experiment.data import DataError
from grokutils.records.record import Record, RecordError, load_record


def for_each_record(
    name: str, description: str, make: Callable[[Record], pd.DataFrame], arguments: Sequence[str] | None = None
) -> int:
    """Make the table of every record named, and say how long it is; the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m grokutils.{name}", description=description)
    parser.add_argument("records", nargs="+", metavar="RUN", help="a run's name or folder")
    try:
        for record in parser.parse_args(arguments).records:
            print(record, len(make(load_record(record))), "rows")
    except (RecordError, DataError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
