"""Parameters, and CPU seconds of a training step and of a prediction, of every network that a config can name.

    python benchmarks/other_networks.py

One thread; 3-D: two patches of 64×32×32, 2-D: four of 128×128; one channel, two classes, AdamW, Dice and cross-entropy.
The step is the fastest of three. Networks whose library is missing are left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from medunet.errors import MedunetError
from medunet.losses.build import LossSettings, make_loss
from medunet.networks.build import build_network
from medunet.networks.external import settings as external
from medunet.networks.settings import UNetSettings

PATCH = {2: (4, 1, 128, 128), 3: (2, 1, 64, 32, 32)}


def networks() -> Iterator[tuple[str, object]]:
    yield "unet", UNetSettings(channels=(32, 64, 128, 256))
    yield "unet, residual", UNetSettings(channels=(32, 64, 128, 256), residual=True)
    yield "unet, attention", UNetSettings(channels=(32, 64, 128, 256), attention=True)
    yield "attention_unet", external.AttentionUNetSettings()
    yield "residual_unet", external.ResidualUNetSettings()
    yield "segresnet", external.SegResNetSettings()
    yield "dynunet", external.DynUNetSettings()
    yield "unetr", external.UNETRSettings(image_size=(64, 32, 32))
    yield "transunet", external.TransUNetSettings(image_size=(64, 32, 32))
    yield "swin_unetr", external.SwinUNETRSettings()
    yield "unetplusplus", external.UNetPlusPlusSettings()
    for encoder in ("resnet18", "efficientnet-b0"):
        yield f"flexible_unet, {encoder}", external.FlexibleUNetSettings(encoder=encoder)
    yield "unet", UNetSettings(dimensions=2, channels=(32, 64, 128, 256, 512))
    yield "unetplusplus", external.UNetPlusPlusSettings(dimensions=2)
    yield "flexible_unet, efficientnet-b0", external.FlexibleUNetSettings(encoder="efficientnet-b0", dimensions=2)
    for name in ("smp_unet", "smp_unetplusplus", "smp_linknet", "smp_fpn", "smp_pspnet"):
        yield f"{name}, resnet34", external.SmpSettings(name)  # type: ignore[arg-type]
    for encoder in ("vgg16_bn", "inceptionv4", "efficientnet-b0", "mobilenet_v2"):
        yield f"smp_unet, {encoder}", external.SmpSettings("smp_unet", encoder=encoder)


def measure(settings: object) -> tuple[int, int, float, float]:
    """Dimensions, parameters, seconds of a step, seconds of a prediction."""
    network = build_network(settings)  # type: ignore[arg-type]
    image = torch.randn(PATCH[settings.dimensions])  # type: ignore[attr-defined]
    target = (image > 0).long()
    loss, optimiser = make_loss(LossSettings(), 2), torch.optim.AdamW(network.parameters(), lr=1e-4)
    network.train()
    steps = []
    for _ in range(4):
        started = time.process_time()
        optimiser.zero_grad()
        loss(network(image), target).backward()
        optimiser.step()
        steps.append(time.process_time() - started)
    network.eval()
    with torch.inference_mode():
        started = time.process_time()
        network(image)
        predicting = time.process_time() - started
    count = sum(parameter.numel() for parameter in network.parameters())
    return settings.dimensions, count, min(steps[1:]), predicting  # type: ignore[attr-defined]


def main() -> None:
    torch.set_num_threads(1)
    print("| network | dimensions | parameters, millions | s a step | s to predict |\n|---|--:|--:|--:|--:|")
    for name, settings in networks():
        try:
            dimensions, count, step, predicting = measure(settings)
        except MedunetError as error:
            print(f"| {name} | left out: {str(error).splitlines()[0]} | | | |", flush=True)
            continue
        print(f"| {name} | {dimensions} | {count / 1e6:.2f} | {step:.2f} | {predicting:.2f} |", flush=True)


if __name__ == "__main__":
    main()
