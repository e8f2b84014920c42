"""Networks of MONAI over one volume: streamed by medunet beside MONAI's sliding windows at half overlap.

    python benchmarks/stream_networks.py [--size 128] [--window 64] [--rounds 3] [--threads 2] [--network NAME]...
    python benchmarks/stream_networks.py --every

For each network the engines take turns in one process; the ratio is that of the medians. Weights are random, batch norm
has random statistics. `difference` is that of the streamed logits to one whole pass, of the largest logit.

`--every` takes all networks of other libraries that a config can name, as they come, and prints for each whether it is
streamed, with the largest difference, or which layer refuses.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from monai.networks import nets
from torch import Tensor, nn

import medunet
from medunet.config import parse_config
from medunet.errors import ConfigError, MissingExtra
from medunet.inference.streaming.graph import NotLocal
from medunet.inference.streaming.streamer import Streamer
from medunet.networks.build import ARCHITECTURES, NetworkSettings, build_network

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: nets.UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm="batch"),
    "BasicUNet": lambda: nets.BasicUNet(3, 1, 3, (16, 16, 32, 64, 128, 16), norm="batch"),
    "DynUNet": lambda: nets.DynUNet(
        3, 1, 3, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], filters=[16, 32, 64, 128], norm_name="batch"
    ),
    "SegResNet": lambda: nets.SegResNet(3, 8, 1, 3, norm=("batch", {})),
    "VNet": lambda: nets.VNet(3, 1, 3),
}


def seasoned(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def streamed(network: nn.Module, image: Tensor) -> Tensor:
    labels = torch.empty(image.shape[1:], dtype=torch.uint8)
    for place, logits in medunet.stream(network, image):
        labels[place] = logits.argmax(0)
    return labels


def windows(network: nn.Module, image: Tensor, size: int) -> Tensor:
    with torch.inference_mode():
        logits = sliding_window_inference(image[None], (size,) * 3, 1, network, overlap=0.5, mode="gaussian")
    return logits[0].argmax(0)


def difference(network: nn.Module, image: Tensor) -> float:
    with torch.inference_mode():
        whole = network(image[None])[0]
    most = max(
        float((logits - whole[(slice(None), *place)]).abs().max()) for place, logits in medunet.stream(network, image)
    )
    return most / float(whole.abs().max())


def every() -> None:
    """One line for each network that a config can name and for each number of axes that it takes."""
    for settings in each_settings():
        title = f"{settings.architecture} {settings.dimensions}-D"
        try:
            network = seasoned(build_network(settings))
            Streamer(network)
            size = tuple(2 * n + 1 for n in network.size_for((33,) * settings.dimensions))
            image = torch.randn(1, *size)
            print(f"{title:34} streamed, difference {difference(network, image):.1e}", flush=True)
        except NotLocal as refusal:
            print(f"{title:34} {str(refusal).removeprefix('this network cannot be streamed: ').splitlines()[0]}")
        except MissingExtra as missing:
            print(f"{title:34} not tried: {str(missing).splitlines()[0]}")


def each_settings() -> Iterator[NetworkSettings]:
    """Small networks with batch norm where they can have it; a class that takes no such number of axes is left out."""
    levels = {"channels": [8, 16, 32], "strides": [2, 2]}
    needed: dict[str, dict[str, Any]] = {
        "monai.UNet": {**levels, "norm": "batch"},
        "monai.AttentionUnet": levels,
        "monai.FlexibleUNet": {"backbone": "efficientnet-b0", "norm": "batch"},
        "monai.DynUNet": {
            "strides": [1, 2, 2], "kernel_size": [3, 3, 3], "upsample_kernel_size": [2, 2], "filters": [8, 16, 32],
            "norm_name": "batch",
        },
    }  # fmt: skip
    for name, dimensions in itertools.product(sorted({*ARCHITECTURES} - {"unet"}), (2, 3)):
        network: dict[str, Any] = {"architecture": name, "dimensions": dimensions, "classes": 3}
        if name.startswith("monai."):
            network["arguments"] = needed.get(name, {})
        size = {"image_size": [64] * dimensions}
        for more in ({"norm": "batch"} | size, size, {"norm": "batch"}, {}):
            arguments = {"arguments": network["arguments"] | more} if name.startswith("monai.") else more
            try:
                yield parse_config(json.dumps({"network": network | arguments}), "this network").config.network
                break
            except ConfigError:
                continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--every", action="store_true", help="all that a config can name, and no times")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.every:
        every()
        return
    image = torch.randn(1, *(options.size,) * 3)
    print(f"{options.size}³, windows of {options.window}³, {options.threads} threads, {options.rounds} rounds, float32")
    print("network     streamed s   windows s   ratio   difference")
    for name in options.network or NETWORKS:
        network = seasoned(NETWORKS[name]())
        ways = {
            "streamed": functools.partial(streamed, network, image),
            "windows": functools.partial(windows, network, image, options.window),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, run in ways.items():
                started = time.perf_counter()
                run()
                seconds[way].append(time.perf_counter() - started)
        ours, theirs = (statistics.median(seconds[way]) for way in ways)
        print(
            f"{name:10}  {ours:10.2f}  {theirs:10.2f}  {theirs / ours:6.2f}   {difference(network, image):.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
