"""The published figures of the two papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medunet.networks.presets import unet3d2016, unet2015


@pytest.mark.slow
def test_unet2015() -> None:
    network = unet2015()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(layers) == 23
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in layers) == 4
    assert sum(p.numel() for p in network.parameters()) == 31_030_658
    assert network.settings.shape.output_size((572, 572)) == (388, 388)
    dropouts = [name for name, module in network.named_modules() if isinstance(module, nn.Dropout)]
    assert dropouts == ["encoder.3.dropout", "encoder.4.dropout"]


def test_unet2015_turns_572_into_388() -> None:
    """On the meta device: real shapes, no arithmetic."""
    network = unet2015(in_channels=3, classes=5).to("meta").eval()
    assert network(torch.empty(1, 3, 572, 572, device="meta")).shape == (1, 5, 388, 388)


def test_unet3d2016() -> None:
    network = unet3d2016()
    norms = sum(p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters())
    assert norms == 4_672
    assert sum(p.numel() for p in network.parameters()) - norms == 19_069_955
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.ConvTranspose3d))
    widths = [[b.convolution.out_channels for b in level.convolutions] for level in network.encoder]
    assert widths == [[32, 64], [64, 128], [128, 256], [256, 512]]


def test_unet3d2016_turns_132_132_116_into_44_44_28() -> None:
    network = unet3d2016(in_channels=4, classes=2).to("meta").eval()
    assert network(torch.empty(1, 4, 132, 132, 116, device="meta")).shape == (1, 2, 44, 44, 28)


@pytest.mark.slow
def test_the_original_runs_on_a_small_image() -> None:
    with torch.inference_mode():
        logits = unet2015().eval()(torch.randn(1, 1, 188, 188))
    assert logits.shape == (1, 2, 4, 4)
    assert 0.1 < logits.std() < 10  # the initialisation keeps the scale through 23 layers
