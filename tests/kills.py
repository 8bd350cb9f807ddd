"""Killing a process once its record has come far enough."""

import signal
import subprocess
import time
from pathlib import Path

from grokutils import load_record


def killed_after(process: subprocess.Popen, folder: Path, step: int) -> None:
    """SIGKILL once the record in `folder` is past `step`, or at the latest after two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "provenance.json").is_file() and load_record(folder).step > step:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
