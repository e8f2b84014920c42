"""The two published U-Nets, tested by their published figures."""

from __future__ import annotations

from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet


def unet2015_settings(in_channels: int = 1, classes: int = 2) -> UNetSettings:
    """The original U-Net (Ronneberger et al., arXiv 1505.04597): unpadded, 572x572 to 388x388.

    The paper asks for dropout "at the end of the contracting path" without a rate; one half, after the two deepest
    blocks, is what the common re-implementations use.
    """
    return UNetSettings(
        dimensions=2,
        in_channels=in_channels,
        classes=classes,
        channels=(64, 128, 256, 512, 1024),
        padded=False,
        norm="none",
        activation="relu",
        dropout=0.5,
    )


def unet3d2016_settings(in_channels: int = 3, classes: int = 3) -> UNetSettings:
    """The original 3D U-Net (Çiçek et al., arXiv 1606.06650): unpadded, 132x132x116 to 44x44x28.

    Channels double before each pooling, up-convolutions keep them and have no bias, and batch norm stands before each
    activation.
    """
    return UNetSettings(
        dimensions=3,
        in_channels=in_channels,
        classes=classes,
        channels=(64, 128, 256, 512),
        padded=False,
        norm="batch",
        activation="relu",
        early_doubling=True,
        narrowing_up=False,
        up_bias=False,
    )


def unet2015(in_channels: int = 1, classes: int = 2, seed: int = 0) -> UNet:
    """The original U-Net with fresh weights: ``(batch, in_channels, y, x)`` to logits, 92 pixels less on each side."""
    return UNet(unet2015_settings(in_channels, classes), seed)


def unet3d2016(in_channels: int = 3, classes: int = 3, seed: int = 0) -> UNet:
    """The original 3D U-Net with fresh weights: logits with 44 voxels less on each side."""
    return UNet(unet3d2016_settings(in_channels, classes), seed)
