"""A `grokutils.Monitor` in Lightning's `Trainer`.

>>> from grokutils.integrations.lightning import MonitorCallback                 # doctest: +SKIP
>>> callback = MonitorCallback(every=500, log="alpha.jsonl")                     # doctest: +SKIP
>>> lightning.Trainer(callbacks=[callback]).fit(module, loader)                  # doctest: +SKIP
>>> callback.monitor.history                                                     # doctest: +SKIP
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from grokutils.spectra.monitor import Monitor

if TYPE_CHECKING or "pytorch_lightning" not in sys.modules:
    from lightning.pytorch import Callback
else:  # the same library under its other name
    from pytorch_lightning import Callback

__all__ = ["MonitorCallback"]


class MonitorCallback(Callback):
    """Measures as training goes on, by the trainer's own steps; a resumed run goes on with its log. ``stop_when`` ends
    the training.

    Parameters
    ----------
    loggers : whether the trainer's loggers are sent the ``scalars`` too
    **options : of `grokutils.Monitor`

    Raises
    ------
    TypeError, ValueError : as `Monitor`, when training begins.
    """

    def __init__(self, *, loggers: bool = True, **options: Any):
        super().__init__()
        self._loggers, self._options = loggers, options
        #: The `Monitor`, once training has begun.
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        options = dict(self._options)
        if self._loggers:
            given = options.pop("sinks", ())
            given = list(given) if isinstance(given, (list, tuple)) else [given]
            options["sinks"] = [*given, *trainer.loggers]
        self.monitor = Monitor(trainer.strategy.model or pl_module, **options)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.monitor.step(trainer.global_step)
        trainer.should_stop |= self.monitor.should_stop
