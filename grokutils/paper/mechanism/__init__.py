"""Why does it collapse? Paths through the valley of zero training loss, by Adam and without an optimiser.

>>> run(["adam", "walk"], seeds=range(2), until=0.5)                            # doctest: +SKIP

The paths are followed under ``runs/mechanism/`` and gathered in ``results/mechanism/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from grokutils.experiment.config import ConfigError
from grokutils.paper.mechanism import study
from grokutils.paper.mechanism.conditions import CONDITIONS, MNIST, SEEDS, UNTIL, condition
from grokutils.paper.mechanism.paths import Interrupts, follow
from grokutils.records.record import RecordError
from grokutils.training.train import TrainingInterrupted
from grokutils.util.progress import tqdm

__all__ = ["run"]


def run(
    only: Sequence[str] = (), seeds: Iterable[int] = SEEDS, until: float = UNTIL, progress: bool = True
) -> dict[str, int]:
    """Follow the paths that are not there yet, one after another, and gather them.

    >>> run(["walk"], seeds=[0], until=0.1)                                     # doctest: +SKIP
    {'reached': 1}

    Several processes may share the work: a path that another one follows is passed over.

    Parameters
    ----------
    only : names of conditions; all by default
    seeds : of 0 to 19
    until : displacement
    progress : show a progress bar

    Returns
    -------
    How many paths ended in which way.

    Raises
    ------
    ConfigError : no such condition or seed, or a displacement that is not measured.
    TrainingInterrupted : SIGINT or SIGTERM; the state is saved, and the same call goes on.
    """
    chosen = [condition(name) for name in only] or [*CONDITIONS, *MNIST]
    seeds = list(seeds)
    if odd := [seed for seed in seeds if seed not in SEEDS]:
        raise ConfigError(f"seeds must be of 0 to {SEEDS[-1]}; got {odd[0]!r}.")
    if not 0 < until <= 1:
        raise ConfigError(f"until must be above 0 and at most 1; got {until!r}.")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    ends: dict[str, int] = {}
    work = [(path, seed) for path in chosen for seed in seeds
            if not study.done(path, seed, until) and (path in CONDITIONS or seed == 0)]
    with Interrupts() as stop, tqdm(work, desc="paths", disable=not progress, dynamic_ncols=True) as bar:
        for path, seed in bar:
            bar.set_postfix_str(f"{path.name} {seed}")
            try:
                end = follow(path, seed, until, stop)
            except RecordError as error:
                end = "passed over"
                bar.write(str(error))
            ends[end] = ends.get(end, 0) + 1
            if stop():
                raise TrainingInterrupted("interrupted: the state is saved; run the same command to go on.")
    study.gather()
    return ends


