"""A `grokutils.Monitor` in Hugging Face's `Trainer`.

>>> from grokutils.integrations.huggingface import MonitorCallback               # doctest: +SKIP
>>> callback = MonitorCallback(every=500, log="alpha.jsonl")                     # doctest: +SKIP
>>> trainer = transformers.Trainer(model, arguments, callbacks=[callback], ...)  # doctest: +SKIP
>>> trainer.train()                                                              # doctest: +SKIP
>>> callback.monitor.history                                                     # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from grokutils.spectra.monitor import Monitor

__all__ = ["MonitorCallback"]


class MonitorCallback(TrainerCallback):
    """Measures as training goes on, by the trainer's own steps; a resumed run goes on with its log. ``stop_when`` ends
    the training.

    Parameters
    ----------
    **options : of `grokutils.Monitor`

    Raises
    ------
    TypeError, ValueError : as `Monitor`, when training begins.
    """

    def __init__(self, **options: Any):
        self._options = options
        #: The `Monitor`, once training has begun.
        self.monitor: Monitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.monitor = Monitor(kwargs["model"], **self._options)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.monitor.step(state.global_step)
        control.should_training_stop |= self.monitor.should_stop
