"""Small external networks for the tests of several parts, and skips where their packages are missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch

from medunet.networks.build import NetworkSettings
from medunet.networks.external import settings as external

NARROW = (4, 4, 4, 4, 8)
MONAI = (
    external.UNetPlusPlusSettings(channels=NARROW, dimensions=2),
    external.UNetPlusPlusSettings(channels=(8,) * 5, norm="group", deep_supervision=True, dimensions=2),
    external.UNetPlusPlusSettings(channels=NARROW),
    external.AttentionUNetSettings(channels=(4, 8, 16)),
    external.ResidualUNetSettings(channels=(4, 8, 16)),
    external.ResidualUNetSettings(channels=(4, 8), norm="batch", dropout=0.1, dimensions=2),
    external.SegResNetSettings(features=8, blocks=(1, 1, 1)),
    external.DynUNetSettings(channels=(4, 8, 8, 8), strides=((1, 2, 2), 2, 2), kernels=((1, 3, 3), 3, 3, 3)),
    external.DynUNetSettings(channels=(4, 8, 8, 8), deep_supervision=True, residual=True, dimensions=2),
    external.FlexibleUNetSettings(encoder="resnet10", channels=NARROW),
    external.FlexibleUNetSettings(encoder="efficientnet-b0", channels=NARROW, dimensions=2),
)
TRANSFORMERS = (
    external.UNETRSettings(features=4, hidden=24, mlp=32, heads=2, image_size=(32, 32, 32)),
    external.UNETRSettings(features=4, hidden=24, mlp=32, heads=2, image_size=(64, 64), dimensions=2),
    external.TransUNetSettings(channels=(4, 8, 8), hidden=16, mlp=24, heads=2, layers=2, image_size=(16, 24, 16)),
    external.TransUNetSettings(
        channels=(4, 6, 8), hidden=12, mlp=24, heads=3, layers=1, image_size=(64, 64), norm="group", dimensions=2
    ),
    external.SwinUNETRSettings(features=12, depths=(1, 1, 1, 1), window=4, dimensions=2),
    external.SwinUNETRSettings(features=12, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), window=4, norm="batch"),
)
SMP = (
    external.SmpSettings("smp_unet", encoder="resnet18"),
    external.SmpSettings("smp_unetplusplus", encoder="mobilenet_v2"),
    external.SmpSettings("smp_linknet", encoder="vgg11_bn"),
    external.SmpSettings("smp_fpn", encoder="efficientnet-b0", dropout=0.1),
    external.SmpSettings("smp_pspnet", encoder="inceptionv4"),
    external.SmpSettings("smp_unet", encoder="inceptionresnetv2"),
)


def name_of(settings: NetworkSettings) -> str:
    encoder = getattr(settings, "encoder", "")
    deep = "deep" if settings.deep_supervision else ""
    return "-".join(part for part in (settings.architecture, encoder, f"{settings.dimensions}d", deep) if part)


def require_packages(settings: NetworkSettings) -> None:
    """Skip, saying so, where an optional package is missing."""
    if isinstance(settings, (external.UNETRSettings, external.TransUNetSettings, external.SwinUNETRSettings)):
        pytest.importorskip("einops", reason="einops is missing: pip install 'medunet[transformers]'")
    if isinstance(settings, external.SmpSettings):
        if importlib.util.find_spec("segmentation_models_pytorch") is None:
            pytest.skip("segmentation-models-pytorch is missing: pip install 'medunet[backbones]'")
        _declare_operators()


_KEPT: list[Any] = []


def _declare_operators() -> None:
    """Let torchvision be imported beside a torch that it was not built for: its operators are not used here.

    Whether they belong together is asked in another process, as what fails to be imported leaves half of itself behind.
    """
    asked = [sys.executable, "-c", "import torchvision"]
    if not _KEPT and subprocess.run(asked, capture_output=True, check=False).returncode:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
