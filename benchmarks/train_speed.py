"""Seconds of a training step: medunet's and nnU-Net's, on networks of the same widths and the same random patches.

    python benchmarks/train_speed.py --nnunet ENV/bin/python
    python benchmarks/train_speed.py --channels 32,64,128,256 --patch 40,56,40 --batch 2 --threads 2

Every engine has a process of its own, which is warmed up by two steps; then they are asked in turn (A B C A B C ...),
so that only one computes at any moment. Run it alone on the machine; `compare_predictors.py` says how ENV is made.

    medunet, medunet-bf16   `train_step` as `medunet train` calls it, with the network of plans: padded U-Net, one
                            convolution at the encoder's finest level, two at its others, one at each of the decoder's,
                            batch norm, Dice and cross-entropy, Muon, gradient clipping, averaged weights
    full, full-bf16         the same with two convolutions everywhere, as nnU-Net has them
    nnunet                  what nnUNetTrainer.train_step does on a CPU: PlainConvUNet, instance norm, deep supervision,
                            Dice and cross-entropy, SGD with Nesterov momentum, gradient clipping, float32

Patches are ready in memory on both sides, so neither reading nor augmentation is in the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], None]


def patches(task: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (task["batch"], 1, *task["patch"])
    return torch.randn(size, generator=generator), torch.randint(0, 3, size, generator=generator)


def medunet(task: dict[str, Any], dtype: torch.dtype | None, thin: bool = True) -> Step:
    from medunet.learning.averaging import Ema
    from medunet.learning.loop import Recipe, TrainState, placed, train_step
    from medunet.learning.optimisers import OptimiserSettings, make_optimiser
    from medunet.learning.schedules import ScheduleSettings
    from medunet.losses.build import LossSettings, make_loss
    from medunet.networks.settings import UNetSettings
    from medunet.networks.unet import UNet
    from medunet.patches.dataset import PatchBatch
    from medunet.planning.rules import CONVOLUTIONS, DECODER_CONVOLUTIONS, FINEST_CONVOLUTIONS

    settings = UNetSettings(channels=tuple(task["channels"]), classes=3, convolutions=CONVOLUTIONS)
    if thin:
        settings = replace(settings, finest_convolutions=FINEST_CONVOLUTIONS, decoder_convolutions=DECODER_CONVOLUTIONS)
    network = UNet(settings, 0)
    network = placed(network, 3, torch.device("cpu")).train()
    recipe = Recipe(
        make_loss(LossSettings(), 3, None), ScheduleSettings(), 2e-3, 12.0, torch.device("cpu"), dtype, seed=0
    )
    state = TrainState(network, make_optimiser(OptimiserSettings(), network), Ema(network, 0.99))
    image, label = patches(task)
    batch = PatchBatch(image, label.to(torch.uint8), ["made"] * len(image))
    return lambda: train_step(state, batch, recipe, 0.5) and None


def nnunet(task: dict[str, Any]) -> Step:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    levels = len(task["channels"])
    network = PlainConvUNet(
        1, levels, tuple(task["channels"]), torch.nn.Conv3d, 3, (1,) + (2,) * (levels - 1), (2,) * levels, 3,
        (2,) * (levels - 1), conv_bias=True, norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    ).train()  # fmt: skip
    plain = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    weights = [0.5**level for level in range(levels - 1)]
    weights[-1] = 0.0
    loss = DeepSupervisionWrapper(plain, [w / sum(weights) for w in weights])
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
    image, label = patches(task)
    targets = [label[(slice(None), slice(None), *(slice(None, None, 2**n),) * 3)].float() for n in range(levels - 1)]

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss(network(image), targets).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimiser.step()

    return step


ENGINES: dict[str, Callable[[dict[str, Any]], Step]] = {
    "medunet": lambda task: medunet(task, None),
    "medunet-bf16": lambda task: medunet(task, torch.bfloat16),
    "full": lambda task: medunet(task, None, thin=False),
    "full-bf16": lambda task: medunet(task, torch.bfloat16, thin=False),
    "nnunet": nnunet,
}


def work(name: str, task: dict[str, Any]) -> None:
    """Seconds a step, once for each line that comes."""
    torch.set_num_threads(task["threads"])
    step = ENGINES[name](task)
    step()
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(task["steps"]):
            step()
        taken = [(time.perf_counter() - wall) / task["steps"], (time.process_time() - cpu) / task["steps"]]
        print(json.dumps(taken), flush=True)


def start(name: str, task: dict[str, Any], interpreter: str) -> subprocess.Popen[str]:
    command = [interpreter, str(Path(__file__)), "--work", name, "--task", json.dumps(task)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    answer(process)
    return process


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(map(str, process.args))[:200]} ended; its message stands above")  # type: ignore[arg-type]
    return line


def ask(process: subprocess.Popen[str]) -> list[float]:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(answer(process))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", default="32,64,128,256")
    parser.add_argument("--patch", default="40,56,40")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="per round")
    parser.add_argument("--nnunet", help="the interpreter of an environment with nnunetv2")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(options.work, json.loads(options.task))
        return
    task = {
        "channels": [int(n) for n in options.channels.split(",")],
        "patch": [int(n) for n in options.patch.split(",")],
        **{key: getattr(options, key) for key in ("batch", "threads", "steps")},
    }
    names = [name for name in ENGINES if name != "nnunet" or options.nnunet]
    engines = {name: start(name, task, options.nnunet if name == "nnunet" else sys.executable) for name in names}
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, process in engines.items():
            found[name].append(ask(process))
    walls = {name: statistics.median(wall for wall, _ in taken) for name, taken in found.items()}
    print(f"torch {torch.__version__}, {task}")
    print("| engine | wall s a step | CPU s | wall, times medunet's |\n|---|--:|--:|--:|")
    for name, taken in found.items():
        cpu = statistics.median(cpu for _, cpu in taken)
        print(f"| {name} | {walls[name]:.3f} | {cpu:.3f} | {walls[name] / walls['medunet']:.2f} |")


if __name__ == "__main__":
    main()
