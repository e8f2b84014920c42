"""How long medunet keeps a user waiting before it does anything.

    python benchmarks/startup.py RUN SCAN

RUN is a trained run, SCAN a small scan for it: predicting it from start to written output is an upper bound of the time
to the first tile. Each command runs five times in a process of its own; the median and the range are printed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main(run: str, scan: str) -> None:
    program = [sys.executable, "-m", "medunet"]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.nii.gz")
        commands = {
            "medunet --help": [*program, "--help"],
            "medunet train --help": [*program, "train", "--help"],
            "medunet predict RUN SCAN (whole)": [*program, "predict", run, scan, "-o", out, "--overwrite"],
        }
        for name, command in commands.items():
            times = [seconds(command) for _ in range(REPEATS)]
            print(f"{name:<36} median {statistics.median(times):.2f} s  ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:3])
