"""Prediction on a quiet machine and beside one busy process, with threads that sleep at barriers and that spin.

    python benchmarks/neighbours.py MODEL SCANS [--count 20] [--rounds 3] [--threads 2]

The four conditions take turns: quiet or crowded (one process of one thread at the lowest priority, nice 19), and
OMP_WAIT_POLICY PASSIVE (what the command line chooses) or ACTIVE. Whole processes are timed, and what the command says
of the segmenting alone stands beside it; and the median step of a small training loop.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUSY = "import os\nos.nice(19)\nwhile True: pass"


def predict(model: str, scans: list[Path], policy: str, threads: int) -> tuple[float, float]:
    """Seconds of the whole process, and of the work that it reports."""
    environment = os.environ | {"OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "medunet", "predict", model, *map(str, scans), "-o", folder]
        started = time.perf_counter()
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        whole = time.perf_counter() - started
    said = re.search(r"scans segmented in ([\d.]+) s", answer.stdout)
    return whole, float(said[1]) if said else float("nan")


STEPS = """
import statistics, time, torch
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
network = UNet(UNetSettings(channels=(16, 32, 64, 128), classes=3))
image, label = torch.randn(2, 1, 40, 56, 40), torch.randint(0, 3, (2, 40, 56, 40))
optimiser, seconds = torch.optim.SGD(network.parameters(), 1e-3), []
for _ in range(14):
    started = time.perf_counter()
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(network(image), label).backward()
    optimiser.step()
    seconds.append(time.perf_counter() - started)
print(statistics.median(seconds[4:]))
"""


def step(policy: str, threads: int) -> float:
    """Seconds of a training step of two patches of 40×56×40, 16-32-64-128 channels, in float32."""
    environment = os.environ | {"OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(threads)}
    answer = subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True)
    return float(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("scans", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    scans = sorted(options.scans.iterdir())[: options.count]
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for _ in range(options.rounds):
        for machine in ("quiet", "crowded"):
            busy = subprocess.Popen([sys.executable, "-c", BUSY]) if machine == "crowded" else None
            try:
                for policy in ("PASSIVE", "ACTIVE"):
                    seconds = predict(options.model, scans, policy, options.threads)
                    found.setdefault((machine, policy), []).append((*seconds, step(policy, options.threads)))
            finally:
                if busy:
                    busy.kill()
    print(f"{len(scans)} scans, {options.threads} threads, median of {options.rounds} rounds")
    for (machine, policy), seconds in found.items():
        whole, work, learning = (statistics.median(each) for each in zip(*seconds, strict=True))
        print(f"{machine:8} {policy:8} {whole:6.1f} s the whole process, {work:6.1f} s as it says itself,", end=" ")
        print(f"{learning:5.2f} s a training step")


if __name__ == "__main__":
    main()
