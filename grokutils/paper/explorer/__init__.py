"""The explorer: one run to turn over; names are loaded when they are first used."""

from grokutils.util.lazy import lazily

__getattr__, __dir__ = lazily(__name__, {
    "explorer_data explorer_html": "grokutils.paper.explorer.page", "load_record": "grokutils.records.record",
})  # fmt: skip
