"""The streaming engine on medunet's own U-Net: its speed, its share of the convolution peak, and another checkout.

    python benchmarks/engine.py [--size 128] [--rounds 3] [--threads 2] [--dtype float32] [--beside CHECKOUT]

Each engine is measured in a process of its own, in turns; the ratio is that of the medians. The peak is that of one
3-D convolution of 64 channels on one core, in the same precision, measured in the same process on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def measure(size: int, dtype_name: str, threads: int) -> dict[str, float]:
    import torch

    from medunet.inference.execution import Execution
    from medunet.inference.streaming.streamer import Streamer
    from medunet.networks.settings import UNetSettings
    from medunet.networks.unet import UNet

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dtype = getattr(torch, dtype_name)
    network = UNet(UNetSettings(channels=(16, 32, 64, 128), classes=3)).eval()
    image = torch.randn(1, *(size,) * 3)
    started = time.perf_counter()
    streamer = Streamer(network, Execution(dtype=dtype))
    for _ in streamer.run(image[:, :16, :16, :16], 8):
        pass
    prepared, seconds = time.perf_counter() - started, []
    for _ in range(3):
        started = time.perf_counter()
        for _, _, logits in streamer.run(image, 8):
            logits.argmax(0)
        seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds), "prepared": prepared}


def peak(dtype_name: str) -> float:
    """Operations a second of one convolution on one core."""
    import torch

    torch.set_num_threads(1)
    dtype = getattr(torch, dtype_name)
    convolution = torch.nn.Conv3d(64, 64, 3, padding=1).to(dtype).to(memory_format=torch.channels_last_3d)
    image = torch.randn(1, 64, 16, 48, 48, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(8):
            started = time.perf_counter()
            convolution(image)
            best = min(best, time.perf_counter() - started)
    return 2 * 64 * 64 * 27 * 16 * 48 * 48 / best


def operations(size: int) -> int:
    from medunet.inference.streaming.trace import graph_of
    from medunet.networks.settings import UNetSettings
    from medunet.networks.unet import UNet

    return graph_of(UNet(UNetSettings(channels=(16, 32, 64, 128), classes=3)).eval()).operations((size,) * 3)


def in_process(checkout: Path, options: argparse.Namespace) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    arguments = ["--child", "--size", str(options.size), "--dtype", options.dtype, "--threads", str(options.threads)]
    answer = subprocess.run(
        [sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.size, options.dtype, options.threads)))
        return
    engines = {"this": HERE} | ({"beside": options.beside} if options.beside else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for _ in range(options.rounds):
        for name, checkout in engines.items():
            found[name].append(in_process(checkout, options))
    seconds = {name: statistics.median(one["seconds"] for one in rounds) for name, rounds in found.items()}
    prepared = {name: statistics.median(one["prepared"] for one in rounds) for name, rounds in found.items()}
    sys.path.insert(0, str(HERE))
    speed, most = operations(options.size) / seconds["this"] / options.threads, peak(options.dtype)
    print(f"{options.size}³, {options.dtype}, {options.threads} threads, {options.rounds} rounds")
    for name in engines:
        print(f"{name:7} {seconds[name]:.2f} s a scan, {prepared[name]:.2f} s to be ready and over a first small scan")
    print(f"{speed / 1e9:.0f} GFLOP a core-second, {100 * speed / most:.0f} % of a convolution's {most / 1e9:.0f}")
    if options.beside:
        print(f"speed of this engine: {seconds['beside'] / seconds['this']:.3f} of the other")


if __name__ == "__main__":
    main()
