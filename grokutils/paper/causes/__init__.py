"""Page 09: why it collapses, with controls and causes; names are loaded when they are first used."""

from grokutils.util.lazy import lazily

__getattr__, __dir__ = lazily(__name__, {
    "Markdown": "IPython.display",
    "plan run": "grokutils.paper.causes.conditions",
    "GENERALISED SIGNALS at_chance comparable false_alarms never_fell ranking watch": "grokutils.paper.causes.detectors",
    "areas condition_panels fall_dots false_alarm_map lead_curves": "grokutils.paper.causes.figures",
    "compare outcomes_of studies": "grokutils.paper.causes.outcomes",
    "least_p printed_detectors printed_ends printed_falls printed_traps": "grokutils.paper.causes.tables",
    "use_svg": "grokutils.paper.kit.figures",
})  # fmt: skip
