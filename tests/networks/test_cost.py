"""Counted costs against what PyTorch counts while the network runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medunet.networks.cost import step_cost
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet


@pytest.mark.parametrize(
    ("settings", "patch"),
    [
        (UNetSettings(dimensions=2, channels=(4, 8, 12), classes=3, in_channels=2), (16, 24)),
        (UNetSettings(channels=(4, 8), kernels=((3, 3, 1), (3, 3, 3)), strides=((2, 2, 1),), norm="none"), (8, 8, 5)),
        (UNetSettings(channels=(4, 8, 16), early_doubling=True, narrowing_up=False), (16, 16, 16)),
    ],
)
def test_operations_are_torchs_and_bytes_are_the_modules_outputs(
    settings: UNetSettings, patch: tuple[int, ...]
) -> None:
    kept = 0

    def count(_module: object, _inputs: object, output: torch.Tensor) -> None:
        nonlocal kept
        kept += output.numel()

    with torch.device("meta"):
        network = UNet(settings).train()
        for module in network.modules():
            if not list(module.children()) and not isinstance(module, torch.nn.Identity):
                module.register_forward_hook(count)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, settings.in_channels, *patch))
    cost = step_cost(settings, patch)
    assert cost.operations == 3 * counter.get_total_flops()
    # Joining skip and upsampled map is no module, so the hooks miss it.
    assert 8 * kept < cost.bytes < 8 * kept * 1.3
