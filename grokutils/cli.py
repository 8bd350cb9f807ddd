"""The `grokutils` command: a thin shell over the package."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from grokutils.experiment import data
from grokutils.experiment.config import RECIPES, ConfigError, RunConfig, hyperparameters
from grokutils.experiment.data import DataError
from grokutils.paper.causes import conditions as causes
from grokutils.records.analysis import analyze_record
from grokutils.records.phases import find_phases
from grokutils.records.record import Record, RecordError, list_records, load_record, publish
from grokutils.spectra.diagnose import diagnose
from grokutils.spectra.table import as_json, harm_text, table
from grokutils.spectra.traps import METHODS
from grokutils.training.schedule import SAVES_PER_DECADE
from grokutils.training.train import TrainingDiverged, TrainingInterrupted, train
from grokutils.util import paths
from grokutils.util.columns import DIAGNOSTICS, HARM

__all__ = ["main"]

_SHORT = {"learning_rate": "--lr"}
_ASIDE = {"recipe_name", "seed", "weight_decay", "steps"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 could not be done, 2 misused, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names from files that the terminal's encoding lacks are written out
            stream.reconfigure(errors="backslashreplace")
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TrainingInterrupted as error:
        print(f"grokutils: {error}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("grokutils: interrupted.", file=sys.stderr)
        return 130
    except (ConfigError, ValueError) as error:
        print(f"grokutils: {error}", file=sys.stderr)
        return 2
    except (RecordError, DataError, TrainingDiverged, FileNotFoundError) as error:
        print(f"grokutils: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="grokutils", description="Train networks through grokking and past it, and look at their records."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    t = commands.add_parser(
        "train",
        help="train a run, or go on with it",
        description="Train a run, or go on with it where it stopped. Ctrl-C saves first; the same command "
        "goes on. Any hyperparameter of the recipe can be overridden.",
    )
    t.add_argument("--recipe", choices=tuple(RECIPES), default="express",
                   help="express (default): small digits, a minute; paper: MNIST, up to 1e7 steps; "
                   "modular: a transformer that adds modulo p")  # fmt: skip
    t.add_argument("--wd", nargs="+", metavar="WD",
                   help="weight decay (default: the recipe's); several are trained side by side")  # fmt: skip
    t.add_argument("--seed", nargs="+", default=["0"], metavar="N",
                   help="seed (default 0); several are trained side by side")  # fmt: skip
    t.add_argument("--steps", metavar="N", default=argparse.SUPPRESS,
                   help="optimisation steps, such as 1e5 (default: the recipe's)")  # fmt: skip
    t.add_argument("--out", metavar="NAME", help="name of the run under runs/, or an absolute path "
                   "(default: made from the hyperparameters)")  # fmt: skip
    t.add_argument("--threads", type=int, metavar="N", help="threads (default: one, unless the matrices are large)")
    t.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    t.add_argument("--saves", type=int, default=SAVES_PER_DECADE, metavar="N",
                   help=f"steps per decade at which weights are saved (default {SAVES_PER_DECADE})")  # fmt: skip
    t.add_argument("--quiet", action="store_true", help="no progress bar")
    group = t.add_argument_group("hyperparameters (defaults: the recipe's)")
    for name, meaning, allowed in hyperparameters():
        if name not in _ASIDE:
            flag = _SHORT.get(name, "--" + name.replace("_", "-"))
            group.add_argument(flag, dest=name, metavar="X", default=argparse.SUPPRESS,
                               help=f"{meaning}: {allowed}")  # fmt: skip
    t.set_defaults(run=_train)

    d = commands.add_parser(
        "diagnose",
        help="alpha, traps and a verdict for every layer of a model",
        description="Alpha, correlation traps and a verdict for every weight matrix of a .safetensors file or of "
        "a run. Pickled checkpoints are refused, since reading one can run code.",
    )
    d.add_argument("source", metavar="FILE", help="a .safetensors file, or a run's name or folder")
    d.add_argument("--step", type=int, metavar="N", help="of a run: this saved step (default: the last)")
    d.add_argument("--all-steps", action="store_true",
                   help="of a run: all saved steps; the result is kept in the run")  # fmt: skip
    d.add_argument("--shuffles", type=int, default=20, metavar="N",
                   help="shuffles of each matrix (default 20; 0: no traps, fast)")  # fmt: skip
    d.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the shuffles (default 0)")
    d.add_argument("--method", choices=METHODS, default="bulk",
                   help="how the random bulk is fitted (default: bulk)")  # fmt: skip
    d.add_argument("--harmful", action="store_true",
                   help="of a run: also test what its largest traps do to the outputs, on random inputs")  # fmt: skip
    d.add_argument("--json", action="store_true", help="print every column as JSON instead of a table")
    d.set_defaults(run=_diagnose)

    c = commands.add_parser(
        "causes",
        help="run the study of causes, or go on with it",
        description="Train the same seeds under every condition of the study of causes (notebook 09), analyse them and "
        "keep them compactly: two hours on two cores. Ctrl-C saves first; the same command goes on.",
    )
    c.add_argument("--scale", choices=tuple(causes.SCALES), default="full",
                   help="full (default): into results/causes; quick: fewer conditions, steps and seeds, minutes, into "
                   "runs/causes-quick")  # fmt: skip
    c.add_argument("--seeds", type=int, metavar="N",
                   help="seeds, from 0 up (default: the scale's); another number than that has a folder in runs/")  # fmt: skip
    c.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these conditions")
    c.add_argument("--jobs", type=int, metavar="N", help="processes (default: one for each core)")
    c.add_argument("--list", action="store_true", help="only print the conditions")
    c.add_argument("--quiet", action="store_true", help="no progress bar")
    c.set_defaults(run=_causes)

    ls = commands.add_parser("list", help="list the records here", description="List the records here.")
    ls.set_defaults(run=_list)

    show = commands.add_parser("show", help="show one record", description="Show one record.")
    show.add_argument("name", help="a run's name or folder")
    show.set_defaults(run=_show)

    publish = commands.add_parser(
        "publish",
        help="copy a run into results/, compactly",
        description="Analyse a run (alpha, traps and controls at every saved step) and copy it into results/ with "
        "the weights of a few steps only: the start, 1e5, the edges of its phases and the end, or those named. "
        "A run that is in results/ already is thinned out in place. An unfinished run keeps what it needs to go on.",
    )
    publish.add_argument("name", help="a run's name or folder")
    publish.add_argument("--to", metavar="NAME", help="name under results/ (default: the run's)")
    publish.add_argument("--steps", nargs="+", type=float, metavar="N", help="steps whose weights to keep")
    publish.set_defaults(run=_publish)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    overrides = {name: given[name] for name, _, _ in hyperparameters() if name in given and name != "seed"}
    overrides.update(seed=arguments.seed[0], wd=arguments.wd[0] if arguments.wd else None)
    config = RunConfig.recipe(arguments.recipe, **overrides)
    if len(arguments.seed) > 1 or len(arguments.wd or ()) > 1:
        config = config.ensemble(arguments.seed, arguments.wd)
    result = train(
        config, arguments.out, device=arguments.device, threads=arguments.threads,
        progress=not arguments.quiet, saves_per_decade=arguments.saves,
    )  # fmt: skip
    _print(result)
    return 0


def _causes(arguments: argparse.Namespace) -> int:
    if arguments.list:
        for cause in causes.conditions(arguments.scale):
            print(f"{cause.name:<14} {cause.says}")
        return 0
    outcomes = causes.run(
        arguments.scale, arguments.seeds, only=arguments.only, jobs=arguments.jobs, progress=not arguments.quiet
    )
    for outcome in outcomes:
        if outcome.record is None:
            print(f"{outcome.name}: failed: {outcome.error}", file=sys.stderr)
            continue
        _print(outcome.record)
        if outcome.diverged:
            print(f"  diverged: seed(s) {', '.join(map(str, outcome.diverged))}")
    return int(any(outcome.record is None for outcome in outcomes))


def _diagnose(arguments: argparse.Namespace) -> int:
    frame = _diagnosed(
        arguments,
        shuffles=arguments.shuffles,
        seed=arguments.seed,
        method=arguments.method,
        ks_draws=400 if arguments.json or arguments.all_steps else 0,  # the table does not show them
    )
    text = as_json(frame) if arguments.json else table(frame)
    if arguments.harmful and not arguments.json:
        text += "\n\n" + harm_text(frame)
    print(text)
    return 0


def _diagnosed(arguments: argparse.Namespace, **options) -> pd.DataFrame:
    path = Path(arguments.source).expanduser()
    of_a_run = arguments.all_steps or arguments.step is not None
    if path.is_file() or path.suffix == ".safetensors":
        if of_a_run:
            raise ValueError(f"--step and --all-steps are for runs; {path} is a file.")
        if arguments.harmful:
            raise ValueError(f"--harmful runs the network; {path} holds weights alone.")
        return diagnose(path, **options)
    record = load_record(arguments.source)
    if arguments.all_steps:
        if arguments.step is not None:
            raise ValueError("give --step or --all-steps, not both.")
        if arguments.harmful:
            raise ValueError("--harmful tests one step of a run, --step N or the last; not --all-steps.")
        return diagnose(record, **options)
    parts = []
    for member, network in enumerate(record.config.networks):
        if arguments.harmful:
            shown = data.load(record.config, network.seed).x_train
            frame = diagnose(record.model(arguments.step, member), harmful=True, inputs=shown, **options)
        else:
            frame = diagnose(record.weights(arguments.step, member), **options)
        step = record.steps_saved[-1] if arguments.step is None else arguments.step
        where = {"step": step, "member": member, "seed": network.seed, "weight_decay": network.weight_decay}
        parts.append(frame.assign(**where)[[*DIAGNOSTICS, *(HARM if arguments.harmful else ())]])
    return pd.concat(parts, ignore_index=True)


def _print(record: Record) -> None:
    last = record.metrics.groupby("step")[["train_accuracy", "test_accuracy"]].mean().iloc[-1]
    state = "complete" if record.complete else f"of {record.config.steps:,}, unfinished"
    print(f"{record.folder}: {record.step:,} steps ({state}), "
          f"train {last.train_accuracy:.3f}, test {last.test_accuracy:.3f}")  # fmt: skip


def _publish(arguments: argparse.Namespace) -> int:
    source = load_record(arguments.name)
    target = paths.run_dir(f"results/{arguments.to or source.name}", confined=True)
    if arguments.to is None and source.folder.is_relative_to(paths.results_dir()):
        target = source.folder
    analyze_record(source, store=True)
    steps = arguments.steps
    if steps is None:
        first = source.metrics[source.metrics.member == 0]
        edges = find_phases(first)
        wanted = [0, 1e5, edges.memorised, edges.grokking, edges.peak, edges.collapse, source.step]
        saved = source.steps_saved
        steps = {min(saved, key=lambda s: abs(s - w)) for w in wanted if w is not None}
    _print(publish(source, target, (int(s) for s in steps)))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    found = list_records()
    for folder in found:
        try:
            _print(Record(folder))
        except RecordError as error:
            print(f"{folder}: {error}")
    if not found:
        print("There are no records yet; make one with `grokutils train`.")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    record = load_record(arguments.name)
    _print(record)
    for name, value, meaning in record.config.describe():
        if value is not None:
            print(f"  {name:<14} {value!s:<12} {meaning}")
    for session in record.provenance["sessions"]:
        print(f"  trained {session['from_step']:,} to {session['to_step']:,} in {session['wall_s']:,.0f} s "
              f"on {session['device']}, {session['threads']} thread(s), torch {session['versions']['torch']}")  # fmt: skip
    saved = record.steps_saved
    print(f"  weights saved at {len(saved)} steps" + (f", {saved[0]:,} to {saved[-1]:,}" if saved else ""))
    return 0
