"""``python -m grokutils.paper.mechanism``: follow the paths."""

import argparse
import sys

from grokutils.paper.mechanism import run
from grokutils.paper.mechanism.conditions import CONDITIONS, MNIST, SEEDS, UNTIL
from grokutils.training.train import TrainingInterrupted

parser = argparse.ArgumentParser(prog="python -m grokutils.paper.mechanism", description=run.__doc__.split("\n")[0])
parser.add_argument("--only", nargs="+", default=[], choices=[c.name for c in (*CONDITIONS, *MNIST)], metavar="NAME")
parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), choices=SEEDS, metavar="SEED")
parser.add_argument("--until", type=float, default=UNTIL, help="displacement at which to stop")
parser.add_argument("--quiet", action="store_true", help="no progress bar")
args = parser.parse_args()
try:
    print(run(args.only, args.seeds, args.until, not args.quiet))
except TrainingInterrupted as interrupt:
    sys.exit(str(interrupt))
