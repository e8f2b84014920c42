"""The U-Net: 2-D and 3-D, padded and original unpadded, as one module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.networks.blocks import (
    AttentionGate,
    InterpolatedUp,
    LevelBlock,
    ResidualBlock,
    StridedDown,
    centre_crop,
    initialise,
    max_pool,
    transposed_up,
)
from medunet.networks.settings import UNetSettings


class UNet(nn.Module):
    """Encoder, decoder and skip connections (Ronneberger et al. 2015; Çiçek et al. 2016).

    The modules, finest level first: `encoder` (one block per level), `downs[l]` (level l to l+1), `ups[l]` (level l+1
    to l), `gates[l]` (attention, else empty), `decoder[l]` (without the deepest), `head` (pointwise, to the classes)
    and `deep_heads[l-1]` (deep supervision, for decoder levels l > 0, else empty).

    Args:
        settings: what it is made of.
        seed: of the initial weights, which depend on the settings and this number alone.
    """

    def __init__(self, settings: UNetSettings, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global generator when they are made
            self._build(settings)
        initialise(self, torch.Generator().manual_seed(seed))

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """The convolutions that give the logits, finest first."""
        return (self.head, *self.deep_heads)

    def _build(self, settings: UNetSettings) -> None:
        layer, shape = settings.layer, settings.shape
        block = ResidualBlock if settings.residual else LevelBlock
        joints = range(settings.levels - 1)
        self.encoder = nn.ModuleList(
            block(layer, settings.encoder_channels(level), shape.kernels[level], settings.encoder_dropout(level))
            for level in range(settings.levels)
        )
        self.downs = nn.ModuleList(_down(settings, level) for level in joints)
        self.ups = nn.ModuleList(_up(settings, level) for level in joints)
        self.gates = nn.ModuleList(
            AttentionGate(layer, settings.channels[level], settings.up_channels(level)[1])
            for level in (joints if settings.attention else ())
        )
        self.decoder = nn.ModuleList(
            block(layer, settings.decoder_channels(level), shape.kernels[level], settings.decoder_dropout(level))
            for level in joints
        )
        self.head = layer.pointwise((settings.channels[0], settings.classes))
        self.deep_heads = nn.ModuleList(
            layer.pointwise((settings.channels[level], settings.classes))
            for level in (joints[1:] if settings.deep_supervision else ())
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Logits ``(batch, class, *spatial)`` of an image ``(batch, channel, *spatial)``.

        While training with deep supervision a tuple, finest first, one entry per decoder level; the spatial sizes are
        `UNetShape.decoder_sizes`. Otherwise always one tensor.

        Raises:
            ConfigError: the channels or the spatial size do not fit the network.
        """
        self._check(image)
        skips = []
        x = image
        for block, down in zip(self.encoder, self.downs, strict=False):  # the deepest level has no way down
            x = block(x)
            skips.append(x)
            x = down(x)
        x = self.deepest(x)
        deep = []
        for level in reversed(range(self.settings.levels - 1)):
            x = self.decoder[level](self._join(level, skips.pop(), x))
            if level > 0 and self.training and self.settings.deep_supervision:
                deep.append(self.deep_heads[level - 1](x))
        logits = self.head(x)
        return (logits, *reversed(deep)) if self.training and self.settings.deep_supervision else logits

    def deepest(self, x: torch.Tensor) -> torch.Tensor:
        """The deepest level's map, from what the way down gives."""
        found: torch.Tensor = self.encoder[-1](x)
        return found

    def _join(self, level: int, skip: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """A skip connection's centre and the enlarged coarser map, channels side by side, skip first."""
        enlarged = self.ups[level](coarse)
        skip = centre_crop(skip, enlarged.shape[2:])
        if self.settings.attention:
            skip = self.gates[level](skip, enlarged)
        return torch.cat([skip, enlarged], dim=1)

    def _check(self, image: torch.Tensor) -> None:
        settings = self.settings
        if image.ndim != settings.dimensions + 2 or image.shape[1] != settings.in_channels:
            raise ConfigError(
                f"found an input of shape {tuple(image.shape)}, expected (batch, {settings.in_channels}, *spatial) "
                f"with {settings.dimensions} spatial axes"
            )
        size = tuple(int(n) for n in image.shape[2:])
        try:
            settings.shape.check(size)
        except ConfigError as error:
            advice = "zero-pad the image" if settings.padded else "mirror the image at its border"
            raise ConfigError(f"{error}\n{advice} to a legal size first (prediction does so by itself)") from None


class Headed(Protocol):
    """A network that knows the layers that give its logits."""

    @property
    def heads(self) -> tuple[nn.Module, ...]: ...


RARE = 0.05
"""The share of voxels that an untrained network with sigmoid outputs expects of each."""


def bias_for_rare(network: Headed, share: float = RARE) -> None:
    """Let an untrained network with sigmoid outputs start from structures that are rare, not from a half everywhere.

    By the bias of its heads (Lin et al. 2017, section 4.1). After 160 steps on 11 hippocampus cases, union of both
    labels: Dice 0.592 with it and 0.289 without; a softmax, which starts from an equal share per class, had 0.597.

    Args:
        network: whose heads are convolutions with a bias.
        share: of the voxels.
    """
    for head in network.heads:
        with torch.no_grad():
            head.bias.fill_(math.log(share / (1 - share)))  # type: ignore[operator]


LEAST = 1e-3
"""The share of voxels that an untrained network with a softmax expects of any class at least.

A class that is all but impossible to begin with has next to no gradient by Dice.
"""


def bias_from_frequencies(network: Headed, frequencies: Sequence[float]) -> None:
    """Set the output bias of an untrained network with a softmax from the class frequencies.

    By the bias of its heads, as `bias_for_rare`: otherwise the first hundreds of steps are spent on learning that most
    voxels are background. The table is in benchmarks/README.md.

    Args:
        network: whose heads are convolutions with a bias, one output for each class.
        frequencies: shares of the voxels, by class; those below `LEAST` count as `LEAST`.
    """
    logits = torch.tensor(frequencies, dtype=torch.float32).clamp(min=LEAST).log()
    for head in network.heads:
        with torch.no_grad():
            head.bias.copy_(logits - logits.mean())  # type: ignore[operator]


def _down(settings: UNetSettings, level: int) -> nn.Module:
    stride = settings.shape.strides[level]
    if settings.downsampling == "pool":
        return max_pool(settings.dimensions, stride)
    return StridedDown(settings.layer, settings.channels[level], stride)


def _up(settings: UNetSettings, level: int) -> nn.Module:
    stride, channels = settings.shape.strides[level], settings.up_channels(level)
    if settings.upsampling == "transposed":
        return transposed_up(settings.layer, channels, stride, settings.up_bias)
    return InterpolatedUp(settings.layer, channels, stride, settings.up_bias)
