"""The `grokutils` command: a thin shell over the package.

Each command is a function that adds its arguments to a parser, called only when that command is given, and one that runs
it; both import what they need themselves, so that ``--help`` costs no second.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokutils import __version__
from grokutils.util.text import visible

if TYPE_CHECKING:
    import pandas as pd

    from grokutils.records.record import Record
    from grokutils.training.sweep import Outcome

__all__ = ["main"]

_SHORT = {"learning_rate": "--lr"}
_ASIDE = {"recipe_name", "seed", "weight_decay", "steps"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 could not be done, 2 misused, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names from files that the terminal's encoding lacks are written out
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"grokutils: {visible(str(message))}\n"
    try:
        arguments = _parser().parse_args(argv)
        if arguments.plugin:
            from grokutils.experiment.registry import load_plugin

            for plugin in arguments.plugin:
                load_plugin(plugin)
        status = arguments.function(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:  # a training says how far it came
        _say(error if error.args else "interrupted.")
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("grokutils"):
            raise
        print(f"grokutils: this needs {error.name}, which is not installed; `pip install 'grokutils[all]'` brings it.",
              file=sys.stderr)  # fmt: skip
        return 1
    except ValueError as error:  # a ConfigError is one
        _say(error)
        return 2
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, _foreseen()):
            raise
        _say(error)
        return 1


def _say(what: object) -> None:
    print(f"grokutils: {visible(str(what))}", file=sys.stderr)


def _foreseen() -> tuple[type[Exception], ...]:
    """Errors whose message says all that there is to say."""
    from grokutils import DataError, RecordError, TrainingDiverged

    return RecordError, DataError, TrainingDiverged


class _Parser(argparse.ArgumentParser):
    """A parser whose arguments are added when something is parsed, not when it is made."""

    def __init__(self, *, fill: Callable[[argparse.ArgumentParser], None] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._fill = fill

    def parse_known_args(self, args=None, namespace=None):
        fill, self._fill = self._fill, None
        if fill is not None:
            fill(self)
            self.add_argument("--plugin", action="append", default=[], metavar="FILE",
                              help="a Python file or module that registers a model, data, a loss or an optimiser of your "
                              "own; may be given several times")  # fmt: skip
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="grokutils", description="Train networks through grokking and past it, and look at their records."
    )
    parser.add_argument("--version", action="version", version=f"grokutils {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, fill: Callable[[argparse.ArgumentParser], None], help: str, description: str) -> None:
        commands.add_parser(name, help=help, description=description, fill=fill)

    command("train", _train_arguments, "train a run, or go on with it",
            "Train a run, or go on with it where it stopped. Ctrl-C saves first; the same command goes on. Any "
            "hyperparameter of the recipe can be overridden.")  # fmt: skip
    command("diagnose", _diagnose_arguments, "alpha, traps and a verdict for every layer of a model",
            "Alpha, correlation traps and a verdict for every weight matrix of a file, of a model's folder or of a run, and "
            "what in it was not measured. A trap, or an alpha below 2, is a fingerprint to look at and no proof of harm: "
            "networks that generalise have them too. What cannot be read without running code, such as a pickled module, "
            "is refused.")  # fmt: skip
    command("scan", _scan_arguments, "alpha and traps of every matrix of a large model, experts one by one",
            "Alpha and traps of every weight matrix of a model of any size, one matrix in memory at a time. With --out every row is "
            "kept as it is measured, and the same command goes on where it was stopped. What it will take is said first.")  # fmt: skip
    command("list", _list_arguments, "list the records here", "List the records here.")
    command("show", _show_arguments, "show one record", "Show one record.")
    command("report", _report_arguments, "make one page of HTML of a run",
            "Analyse a run and write its curves, spectra, traps and the explorer as one page of HTML, which opens in any "
            "browser without a network.")  # fmt: skip
    command("publish", _publish_arguments, "copy a run into results/, compactly",
            "Analyse a run (alpha, traps and controls at every saved step) and copy it into results/ with "
            "the weights of a few steps only: the start, 1e5, the edges of its phases and the end, or those named. "
            "A run that is in results/ already is thinned out in place. An unfinished run keeps what it needs to go "
            "on.")  # fmt: skip
    command("causes", _causes_arguments, "run the study of causes, or go on with it",
            "Train the same seeds under every condition of the study of causes (notebook 09), analyse them and "
            "keep them compactly: two hours on two cores. Ctrl-C saves first; the same command goes on.")  # fmt: skip
    command("mechanism", _mechanism_arguments, "follow paths through the valley of zero training loss, or go on with it",
            "From grokked weights, by optimisers and without one, until the weights have moved far enough (notebook 10): hours. "
            "Ctrl-C saves first; the same command goes on, and several may share the work.")  # fmt: skip
    command("modular-grid", _modular_grid_arguments, "train small transformers under many recipes, or go on with it",
            "Train small transformers under every precision of the loss, beta2, weight decay and learning rate that may make them "
            "forget (notebook 07), analyse them and keep them compactly: hours. Ctrl-C saves first; the same command goes on.")  # fmt: skip
    command("interventions", _interventions_arguments, "intervene on the kept networks of records",
            "Take the traps of every kept network of a run out, or put some in, against controls (notebook 08); the table "
            "is kept in the run, in reference records as well.")  # fmt: skip
    command("regrowth", _regrowth_arguments, "do traps that were taken out grow back?",
            "Train forks of a run on, with and without its largest traps (notebook 08); the table is kept in the run, in "
            "reference records as well, and the forks in runs/. Where it was interrupted it goes on.")  # fmt: skip
    command("claims", _claims_arguments, "judge the papers' claims on the records here",
            "Judge the papers' claims on the reference records, print the verdicts and write all of it as JSON.")  # fmt: skip
    return parser


# -- train, causes ----------------------------------------------------------------------------------------


def _train_arguments(t: argparse.ArgumentParser) -> None:
    from grokutils.experiment.config import RECIPES, hyperparameters
    from grokutils.records.schedule import SAVES_PER_DECADE

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
    t.set_defaults(function=_train)


def _train(arguments: argparse.Namespace) -> int:
    from grokutils.experiment.config import RunConfig, hyperparameters

    given = vars(arguments)
    overrides = {name: given[name] for name, _, _ in hyperparameters() if name in given and name != "seed"}
    overrides.update(seed=arguments.seed[0], wd=arguments.wd[0] if arguments.wd else None)
    config = RunConfig.recipe(arguments.recipe, **overrides)
    if len(arguments.seed) > 1 or len(arguments.wd or ()) > 1:
        config = config.ensemble(arguments.seed, arguments.wd)

    from grokutils.training.train import train  # torch: not before the hyperparameters are known to be good

    result = train(
        config, arguments.out, device=arguments.device, threads=arguments.threads,
        progress=not arguments.quiet, saves_per_decade=arguments.saves,
    )  # fmt: skip
    _print(result)
    return 0


def _causes_arguments(c: argparse.ArgumentParser) -> None:
    from grokutils.paper.causes.conditions import SCALES

    c.add_argument("--scale", choices=tuple(SCALES), default="full",
                   help="full (default): into results/causes; quick: fewer conditions, steps and seeds, minutes, into "
                   "runs/causes-quick")  # fmt: skip
    c.add_argument("--seeds", type=int, metavar="N",
                   help="seeds, from 0 up (default: the scale's); another number than that has a folder in runs/")  # fmt: skip
    c.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these conditions")
    c.add_argument("--jobs", type=int, metavar="N", help="processes (default: one for each core)")
    c.add_argument("--list", action="store_true", help="only print the conditions")
    c.add_argument("--quiet", action="store_true", help="no progress bar")
    c.set_defaults(function=_causes)


def _causes(arguments: argparse.Namespace) -> int:
    from grokutils.paper.causes import conditions as causes

    if arguments.list:
        for cause in causes.conditions(arguments.scale):
            print(f"{cause.name:<14} {cause.says}")
        return 0
    outcomes = causes.run(
        arguments.scale, arguments.seeds, only=arguments.only, jobs=arguments.jobs, progress=not arguments.quiet
    )
    return _print_outcomes(outcomes)


def _print_outcomes(outcomes: Sequence[Outcome]) -> int:
    for outcome in outcomes:
        if outcome.record is None:
            print(f"{outcome.name}: failed: {outcome.error}", file=sys.stderr)
            continue
        _print(outcome.record)
        if outcome.diverged:
            print(f"  diverged: seed(s) {', '.join(map(str, outcome.diverged))}")
    return int(any(outcome.record is None for outcome in outcomes))


def _mechanism_arguments(m: argparse.ArgumentParser) -> None:
    m.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these conditions")
    m.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these seeds (default: 0 to 19)")
    m.add_argument("--until", type=float, metavar="X", help="displacement and rotation at which to stop (default 0.8)")
    m.add_argument("--list", action="store_true", help="only print the conditions")
    m.add_argument("--quiet", action="store_true", help="no progress bar")
    m.set_defaults(function=_mechanism)


def _mechanism(arguments: argparse.Namespace) -> int:
    from grokutils.paper import mechanism
    from grokutils.paper.mechanism.conditions import CONDITIONS, MNIST

    if arguments.list:
        for path in (*CONDITIONS, *MNIST):
            print(f"{path.name:<18} {path.says}")
        return 0
    given = {name: value for name in ("seeds", "until") if (value := getattr(arguments, name)) is not None}
    ends = mechanism.run(arguments.only, progress=not arguments.quiet, **given)
    print("; ".join(f"{count} {end}" for end, count in ends.items()) or "nothing was left to do")
    return 0


def _modular_grid_arguments(g: argparse.ArgumentParser) -> None:
    g.add_argument("--parts", nargs="+", default=[], metavar="NAME", help="only these parts")
    g.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these conditions")
    g.add_argument("--jobs", type=int, metavar="N", help="processes (default: one for each core)")
    g.add_argument("--list", action="store_true", help="only print the parts and their conditions")
    g.add_argument("--quiet", action="store_true", help="no progress bar")
    g.set_defaults(function=_modular_grid)


def _modular_grid(arguments: argparse.Namespace) -> int:
    from grokutils.paper.modular_addition import grid

    if arguments.list:
        for part in grid.grid():
            print(part.name, *(f"  {recipe.name}" for recipe in part.conditions), sep="\n")
        return 0
    return _print_outcomes(
        grid.run(arguments.parts, only=arguments.only, jobs=arguments.jobs, progress=not arguments.quiet)
    )


# -- diagnose ---------------------------------------------------------------------------------------------


def _diagnose_arguments(d: argparse.ArgumentParser) -> None:
    from grokutils.spectra.traps import METHODS

    d.add_argument("source", metavar="FILE", help="a .safetensors, .pt, .pth, .bin, .ckpt, .npz, .npy, .gguf or .onnx file, an index "
                   "of shards or a folder as from Hugging Face; or a run's name or folder")  # fmt: skip
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
    d.add_argument("--json", action="store_true",
                   help="print every column as JSON: a list of rows, and last what was not measured")  # fmt: skip
    d.set_defaults(function=_diagnose)


def _diagnose(arguments: argparse.Namespace) -> int:
    from grokutils.spectra.table import as_json, harm_text, table

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
    import pandas as pd

    from grokutils.experiment import data
    from grokutils.records.record import load_record
    from grokutils.spectra.diagnose import diagnose
    from grokutils.spectra.sources import SUFFIXES, is_model
    from grokutils.util.columns import DIAGNOSTICS, HARM

    path = Path(arguments.source).expanduser()
    of_a_run = arguments.all_steps or arguments.step is not None
    if is_model(path) or path.suffix in SUFFIXES:
        if of_a_run:
            raise ValueError(f"--step and --all-steps are for runs; {path} is a file.")
        if arguments.harmful:
            raise ValueError(f"--harmful runs the network; {path} holds weights alone.")
        return diagnose(path, **options)
    try:
        record = load_record(arguments.source)
    except FileNotFoundError:
        if path.is_absolute() or path.exists():
            return diagnose(path, **options)  # which says what is wrong with it
        raise
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


def _scan_arguments(s: argparse.ArgumentParser) -> None:
    s.add_argument("source", metavar="FOLDER", help="a model's folder, a file of weights or an index of shards")
    s.add_argument("--out", metavar="FILE.parquet", help="keep the table here, a row a matrix")
    s.add_argument("--layers", metavar="WHICH", help="only these: numbers of blocks such as 0-3,10, or a pattern of names such as '*.self_attn.*'")
    s.add_argument("--kinds", metavar="KINDS", help="only these, such as expert,attention")
    s.add_argument("--sample", default=0, metavar="N", help="experts of each stack to measure, drawn at random (default: all)")
    s.add_argument("--shuffles", default=1, metavar="N", help="shuffles of each matrix in which traps are counted (default 1; 0: no traps)")
    s.add_argument("--seed", default=0, metavar="N", help="seed of the shuffles and of the sample (default 0)")
    s.add_argument("--exact", action="store_true", help="count traps from all eigenvalues; slower, for the same counts")
    s.add_argument("--jobs", default=1, metavar="N", help="processes, each with a matrix of its own (default 1)")
    s.add_argument("--dry-run", action="store_true", help="only say what it would take")
    s.add_argument("--quiet", action="store_true", help="no estimate and no progress bar")
    s.set_defaults(function=_scan)


def _scan(arguments: argparse.Namespace) -> int:
    from grokutils.spectra.scan import plan, scan
    from grokutils.spectra.scan_text import summary
    from grokutils.util.checks import Interval

    path = Path(arguments.source).expanduser()
    chosen: dict[str, Any] = {"layers": arguments.layers, "kinds": arguments.kinds}
    for name, least in (("sample", 0), ("shuffles", 0), ("seed", 0), ("jobs", 1)):
        chosen[name] = Interval(int, least).check(f"--{name}", getattr(arguments, name), text=True)
    if arguments.dry_run or not arguments.quiet:
        print(plan(path, **chosen), file=sys.stdout if arguments.dry_run else sys.stderr, flush=True)
    if not arguments.dry_run:
        print(summary(scan(path, arguments.out, exact=arguments.exact, progress=not arguments.quiet, **chosen)))
    return 0


# -- records --------------------------------------------------------------------------------------------


def _list_arguments(ls: argparse.ArgumentParser) -> None:
    ls.set_defaults(function=_list)


def _list(arguments: argparse.Namespace) -> int:
    from grokutils.records.record import Record, RecordError, list_records

    found = list_records()
    for folder in found:
        try:
            _print(Record(folder))
        except RecordError as error:
            print(visible(f"{folder}: {error}"))
    if not found:
        print("There are no records yet; make one with `grokutils train`.")
    return 0


def _show_arguments(s: argparse.ArgumentParser) -> None:
    s.add_argument("name", help="a run's name or folder")
    s.set_defaults(function=_show)


def _show(arguments: argparse.Namespace) -> int:
    from grokutils.records.record import load_record

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


def _report_arguments(r: argparse.ArgumentParser) -> None:
    r.add_argument("name", help="a run's name or folder")
    r.add_argument("--out", metavar="FILE", help="where to write it (default: report.html in the run's folder)")
    r.add_argument("--quiet", action="store_true", help="no progress bar")
    r.set_defaults(function=_report)


def _report(arguments: argparse.Namespace) -> int:
    from grokutils.paper.report import write_report

    path = write_report(arguments.name, arguments.out, progress=not arguments.quiet)
    print(f"Written to {path}; open {path.resolve().as_uri()} in a browser.")
    return 0


def _publish_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", help="a run's name or folder")
    p.add_argument("--to", metavar="NAME", help="name under results/ (default: the run's)")
    p.add_argument("--steps", nargs="+", type=float, metavar="N", help="steps whose weights to keep")
    p.set_defaults(function=_publish)


def _publish(arguments: argparse.Namespace) -> int:
    from grokutils.records.analysis import analyze_record
    from grokutils.records.phases import find_phases
    from grokutils.records.record import load_record, publish
    from grokutils.util import paths

    source = load_record(arguments.name)
    target = paths.reference_dir(source.name if arguments.to is None else arguments.to)
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
    _print(publish(source, target, steps))
    return 0


def _print(record: Record) -> None:
    last = record.metrics.groupby("step")[["train_accuracy", "test_accuracy"]].mean().iloc[-1]
    state = "complete" if record.complete else f"of {record.config.steps:,}, unfinished"
    print(f"{visible(str(record.folder))}: {record.step:,} steps ({state}), "
          f"train {last.train_accuracy:.3f}, test {last.test_accuracy:.3f}")  # fmt: skip


# -- the paper's tables ---------------------------------------------------------------------------------


def _records_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("records", nargs="+", metavar="RUN", help="a run's name or folder")


def _interventions_arguments(p: argparse.ArgumentParser) -> None:
    _records_arguments(p)
    p.set_defaults(function=_interventions)


def _interventions(arguments: argparse.Namespace) -> int:
    from grokutils.paper.harmful_traps.intervention_study import interventions_of

    return _for_each(arguments.records, lambda record: interventions_of(record, compute=True, store=True))


def _regrowth_arguments(p: argparse.ArgumentParser) -> None:
    _records_arguments(p)
    p.set_defaults(function=_regrowth)


def _regrowth(arguments: argparse.Namespace) -> int:
    from grokutils.paper.harmful_traps.regrowth import make_regrowth

    return _for_each(arguments.records, make_regrowth)


def _for_each(names: Sequence[str], make: Callable[[Record], pd.DataFrame]) -> int:
    """Make the table of every record named, and say how long it is."""
    from grokutils.records.record import load_record

    for name in names:
        print(f"{name}: {len(make(load_record(name))):,} rows")
    return 0


def _claims_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--run", metavar="RUN", help="judge a run of your own as well (a name in runs/, or a folder)")
    p.add_argument("--out", type=Path, metavar="FILE", help="where to write the JSON (default: for the book)")
    p.set_defaults(function=_claims)


def _claims(arguments: argparse.Namespace) -> int:
    from grokutils.paper import claims

    judged = claims.judge(claims.with_run(arguments.run))
    path = claims.write(judged, arguments.out)
    print(claims.table(judged))
    for note in judged.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"\nWritten to {path}.")
    return 0
