"""``python -m benchmarks.scan FOLDER``: a checkpoint of GPT-OSS 20b's true sizes, scanned in bounded memory, killed, and scanned again.

The folder is made first if it is not there: by default five of the 24 blocks, 4.4 GiB. One scan runs to its end, and the
memory that its process held at most is compared with the largest matrix in float32. Another is killed several times, each time after some
more matrices, and must end in the same file.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from grokutils.paper.llm.generator import GPT_OSS_20B, Planted, write_gpt_oss
from grokutils.spectra.layers import survey
from grokutils.spectra.scan import plan

from . import _bench

PLANTED = (
    Planted(0, "gate_up_proj", 3, traps=5),
    Planted(0, "down_proj", 5, traps=2),
    Planted(1, "gate_up_proj", 7, alpha=2.5),
)
CALL = "import sys; from grokutils.spectra.scan import scan; scan(sys.argv[1], sys.argv[2], sample=int(sys.argv[3]), progress=False)"


def started(folder: Path, out: Path, sample: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CALL, str(folder), str(out), str(sample)])


def peak_of(process: subprocess.Popen) -> int:
    """Wait for a process; the most memory it held, in bytes."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the scan ended with status {process.returncode}.")
    return used.ru_maxrss * 1024


def killed_scan(folder: Path, out: Path, sample: int, kills: int, matrices: int) -> None:
    journal = out.with_name(f"{out.name}.journal")
    for kill in range(1, kills + 1):
        process = started(folder, out, sample)
        while process.poll() is None:
            time.sleep(0.2)
            if journal.exists() and journal.read_bytes().count(b"\n") > kill * matrices // (kills + 1):
                process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"kill {kill}: {journal.read_bytes().count(bytes([10])) - 1} of {matrices} matrices kept", flush=True)
    peak_of(started(folder, out, sample))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--sample", type=int, default=2, help="experts of each stack; 0 for all")
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    if not (given.folder / "config.json").exists():
        write_gpt_oss(given.folder, blocks=given.blocks, planted=PLANTED, **GPT_OSS_20B)
    whole, killed = given.folder.with_suffix(".whole.parquet"), given.folder.with_suffix(".killed.parquet")
    for path in (whole, killed):
        path.unlink(missing_ok=True)
    empty = subprocess.Popen([sys.executable, "-c", "import grokutils.spectra.scan"])
    base = peak_of(empty)
    planned = plan(given.folder, sample=given.sample)
    print(planned, flush=True)
    largest = max(4 * layer.sides[0] * layer.sides[1] for layer in survey(given.folder).layers)
    began = time.perf_counter()
    peak = peak_of(started(given.folder, whole, given.sample))
    seconds = time.perf_counter() - began
    report = {
        "machine": _bench.machine(),
        "folder, bytes": sum(file.stat().st_size for file in given.folder.iterdir()),
        "matrices": planned.matrices,
        "parameters": planned.parameters,
        "seconds": seconds,
        "seconds, estimated": planned.seconds,
        "largest matrix in float32, bytes": largest,
        "peak memory, bytes": peak,
        "of that before any weights, bytes": base,
        "peak above that, in largest matrices": (peak - base) / largest,
    }
    print(report, flush=True)
    if given.kills:
        killed_scan(given.folder, killed, given.sample, given.kills, planned.matrices)
        report["kills"] = given.kills
        report["the same file after all kills"] = whole.read_bytes() == killed.read_bytes()
    print(_bench.save("scan", report))


if __name__ == "__main__":
    main()
