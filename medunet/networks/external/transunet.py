"""TransUNet: medunet's U-Net with a transformer behind its deepest level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import TransformerBlock
from torch import Tensor, nn

from medunet.networks.blocks import ConvBlock
from medunet.networks.external.settings import TransUNetSettings
from medunet.networks.unet import UNet

LINEAR = {2: "bilinear", 3: "trilinear"}
DEVIATION = 0.02
"""Of the learned positions at the start, as in vision transformers."""


class TransUNet(UNet):
    """A U-Net whose deepest map passes through a transformer before the decoder takes it (Chen et al. 2021).

    Its modules are those of the U-Net, and `transformer`.

    Args:
        settings: what it is made of. The initial weights are drawn from torch's global generator.

    Raises:
        ConfigError: no size of images was given.
    """

    def __init__(self, settings: TransUNetSettings) -> None:
        super().__init__(settings.unet, int(torch.randint(2**31, ())))
        self.transformer = Transformer(settings)

    def deepest(self, x: Tensor) -> Tensor:
        found: Tensor = self.transformer(super().deepest(x))
        return found


class Transformer(nn.Module):
    """Attention between all places of a map ``(batch, channel, *spatial)``; the answer has the same shape.

    The modules: `inward` (pointwise, to tokens), `positions` ``(1, hidden, *spatial)``, `blocks`, `norm` and `outward`
    (a convolution back to the map's channels).
    """

    def __init__(self, settings: TransUNetSettings) -> None:
        super().__init__()
        width, layer = settings.channels[-1], settings.unet.layer
        self.inward = layer.pointwise((width, settings.hidden))
        self.positions = nn.Parameter(torch.randn(1, settings.hidden, *settings.positions) * DEVIATION)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(_block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.hidden)
        self.outward = ConvBlock(layer, (settings.hidden, width), settings.unet.shape.kernels[-1])

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        tokens = self.dropout(self.inward(x) + resized_positions(self.positions, size)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        found: Tensor = self.outward(self.norm(tokens).transpose(1, 2).unflatten(2, size))
        return found


def resized_positions(positions: Tensor, size: Sequence[int]) -> Tensor:
    """Positions ``(1, hidden, *spatial)`` for a map of another size, by linear interpolation; of their own, as is."""
    if tuple(positions.shape[2:]) == tuple(size):
        return positions
    return nn.functional.interpolate(positions, size=tuple(size), mode=LINEAR[len(size)], align_corners=False)


def _block(settings: TransUNetSettings) -> TransformerBlock:
    block = TransformerBlock(
        settings.hidden,
        settings.mlp,
        settings.heads,
        settings.dropout,
        qkv_bias=True,
        # The fused attention keeps no map of all pairs, but MONAI hands it the dropout in evaluation, too.
        use_flash_attention=not settings.dropout,
    )
    # A norm for another attention that is not there: no gradient would reach it.
    block.norm_cross_attn = nn.Identity()
    return block
