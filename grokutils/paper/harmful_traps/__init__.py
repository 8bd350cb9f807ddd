"""Page 08: benign or harmful, what a trap does; names are loaded when they are first used."""

from grokutils.util.lazy import lazily

_HERE = "grokutils.paper.harmful_traps"
__getattr__, __dir__ = lazily(__name__, {
    "Markdown": "IPython.display",
    "class_curves confusion_panels dose_curves harm_scatter prototype_strip regrowth_curves": f"{_HERE}.figures",
    "INPUTS NEARNESS class_accuracy nearness norm_answers piling": f"{_HERE}.forgetting",
    "interventions_of": f"{_HERE}.intervention_study",
    "prototype_matches": f"{_HERE}.prototypes",
    "regrowth_of": f"{_HERE}.regrowth",
    "agreement correlates_table forgotten injections_table nearness_table norm_table piling_table prototype_table rates_table "
    "regrowth_table removals_table": f"{_HERE}.tables",
    "use_svg": "grokutils.paper.kit.figures",
    "said": "grokutils.paper.kit.tables",
    "study": "grokutils.records.study",
})  # fmt: skip
