"""Page 07: modular addition, a transformer that groks; names are loaded when they are first used."""

from grokutils.util.lazy import lazily

__getattr__, __dir__ = lazily(__name__, {
    "Markdown": "IPython.display",
    "RunConfig": "grokutils.experiment.config",
    "embedding_panels kernel_curves matrix_curves seeds_by_decay": "grokutils.paper.modular_addition.figures",
    "LOST accuracy_grid course": "grokutils.paper.modular_addition.grid_figures",
    "KNOWN by_condition by_network printed_grid": "grokutils.paper.modular_addition.grid_tables",
    "conditions courses mean_alpha modular_accuracy modular_alpha modular_traps printed_conditions": "grokutils.paper.modular_addition.tables",
    "MODULAR_MATRICES MODULAR_TABLE": "grokutils.paper.judge.published",
    "accuracy_panels training_curves": "grokutils.paper.kit.curves",
    "use_svg": "grokutils.paper.kit.figures",
    "printed": "grokutils.paper.kit.tables",
    "load_record": "grokutils.records.record",
    "study study_each_decay": "grokutils.records.study",
    "train": "grokutils.training.train",
    "run_dir": "grokutils.util.paths",
})  # fmt: skip
