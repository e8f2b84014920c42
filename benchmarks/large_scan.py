"""Peak memory and seconds of one whole `medunet predict` process on a large scan, with a network of random weights.

    python benchmarks/large_scan.py
    python benchmarks/large_scan.py --shape 512,512,400 --classes 20 --channels 16,32,64,128 --threads 2 \
        -- --memory 1500M --probabilities

What follows `--` is handed to `medunet predict`. The scan is int16 and looks like a CT to a compressor: smooth, with
noise. Model, scan and result lie in a temporary folder, on the disk of the system's temporary files; TMPDIR chooses
another. The memory is the highest resident set of the process (Linux counts pages of the scratch files, too).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import zoom

from medunet.datasets.labels import LabelTable
from medunet.formats.dispatch import read_grid, write_volume
from medunet.model import ModelCard, save_model
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from medunet.transforms.preprocess import PreprocessSettings
from medunet.volume import Volume


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def write_scan(path: Path, shape: Sequence[int]) -> None:
    random = np.random.default_rng(0)
    small = random.normal(0, 400, [max(2, n // 16) for n in shape]).astype(np.float32)
    array = zoom(
        small, [n / m for n, m in zip(shape, small.shape, strict=True)], order=1, grid_mode=True, mode="nearest"
    )
    array += random.standard_normal(array.shape, dtype=np.float32) * 8
    write_volume(Volume(array.astype(np.int16)[np.newaxis], np.diag([-0.8, -0.8, 1.5, 1.0])), path)


def write_model(folder: Path, classes: int, channels: tuple[int, ...]) -> None:
    network = UNetSettings(dimensions=3, classes=classes, channels=channels)
    card = ModelCard(
        name="random",
        network=network,
        preprocess=PreprocessSettings(),
        labels=LabelTable(("background", *(f"organ {n}" for n in range(1, classes))), tuple(range(classes))),
        channels=("CT",),
        patch=(64, 64, 64),
    )
    save_model(folder / "model.safetensors", UNet(network, 0).state_dict(), card)


def measure(command: Sequence[str], threads: int) -> tuple[float, int]:
    """Seconds and bytes of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    return time.perf_counter() - started, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=numbers, default=(512, 512, 400))
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--channels", type=numbers, default=(16, 32, 64, 128))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--suffix", default=".nii.gz", help="of the scan")
    parser.add_argument("more", nargs="*", help="for medunet predict")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scan, record = folder / f"scan{options.suffix}", folder / "record.json"
        write_scan(scan, options.shape)
        write_model(folder / "model", options.classes, options.channels)
        command = [
            sys.executable,
            "-m",
            "medunet",
            "predict",
            str(folder / "model"),
            str(scan),
            "-o",
            str(folder / "out"),
        ]
        seconds, peak = measure([*command, "--record", str(record), *options.more], options.threads)
        (result,) = (folder / "out").glob(f"scan{options.suffix}")
        assert read_grid(result).shape == read_grid(scan).shape == options.shape
        (case,) = json.loads(record.read_text())["cases"]
        print(
            f"scan {options.shape}, {options.classes} classes, channels {options.channels}, {options.threads} threads"
        )
        print(f"planned: {case['plan']['expected_bytes'] / 2**20:.0f} MiB; stages in s: {case['seconds']}")
        print(f"whole process: {seconds:.1f} s, peak {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
