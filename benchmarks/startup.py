"""``python -m benchmarks.startup``: how long a fresh process takes before the package can be used."""

from __future__ import annotations

import argparse
import subprocess
import sys

from . import _bench

WAYS = {
    "python": ["-c", "pass"],
    "import grokutils": ["-c", "import grokutils"],
    "grokutils --help": ["-m", "grokutils", "--help"],
    "grokutils train --help": ["-m", "grokutils", "train", "--help"],
    "from grokutils import diagnose": ["-c", "from grokutils import diagnose"],
    "from grokutils import train": ["-c", "from grokutils import train"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="rounds, of which the median counts (default 9)")
    rounds = parser.parse_args().rounds

    def start(arguments: list[str]) -> float:
        command = [sys.executable, *arguments]
        return _bench.timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), 1)

    times = _bench.interleaved({name: lambda a=arguments: start(a) for name, arguments in WAYS.items()}, rounds)
    seconds = {name: round(median, 3) for name, median in _bench.medians(times).items()}
    for name, median in seconds.items():
        print(f"{name:<32} {median:6.3f} s")
    print(f"\nwritten to {_bench.save('startup', {'machine': _bench.machine(), 'seconds': seconds})}")


if __name__ == "__main__":
    main()
