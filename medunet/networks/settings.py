"""Settings of a U-Net and their checks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, get_args

from medunet.errors import ConfigError
from medunet.geometry.shapes import Size, UNetShape
from medunet.networks.blocks import Activation, Layer, Norm

PerAxis = int | tuple[int, ...]
Downsampling = Literal["pool", "stride"]
Upsampling = Literal["transposed", "interpolated"]
CHOICES: dict[str, Any] = {
    "architecture": ("unet",),
    "dimensions": (2, 3),
    "norm": get_args(Norm),
    "activation": get_args(Activation),
    "downsampling": get_args(Downsampling),
    "upsampling": get_args(Upsampling),
}


@dataclass(frozen=True)
class UNetSettings:
    """One U-Net. Level 0 is the finest; a number stands for the same number at every level or axis.

    Attributes:
        architecture: says that it is this one, see `others.py` for those of others.
        dimensions: 2 or 3.
        in_channels: channels of the image.
        classes: channels of the logits, background included.
        channels: of each level; their count is the number of levels, at least two.
        convolutions: per encoder level.
        finest_convolutions: of the encoder's finest level, where it has others than `convolutions` says; None does not.
        decoder_convolutions: per decoder level (without the deepest); None takes the encoder's.
        kernels: per level, per axis: ``3``, ``(3, 3, 5)`` (levels) or ``((3, 3, 1), (3, 3, 3))``; odd.
        strides: between level l and l+1, per axis; one entry less than levels.
        padded: keep the size (zeros at the border), or convolve only what is there and crop the skips' centre.
        norm: ``voxel`` normalises the channels of each voxel; see `inexact_reason` for instance and group.
        activation: after each normalisation.
        dropout: the rate; 0 for none.
        dropout_levels: encoder levels whose block ends with dropout; None means the two deepest.
        dropout_decoder_levels: decoder levels whose block ends with dropout.
        downsampling: ``pool`` (maximum) or ``stride`` (a convolution whose kernel is its stride).
        upsampling: ``transposed`` (up-convolution) or ``interpolated`` (nearest neighbour after a pointwise one).
        residual: a shortcut around each level's convolutions.
        attention: attention gates on the skip connections.
        deep_supervision: while training, logits of every decoder level.
        early_doubling: all convolutions of an encoder level but the last have half its channels (3D U-Net, 2016).
        narrowing_up: the up-convolution goes to the finer level's channels (2015), or keeps the coarser's (2016).
        bias: of the convolutions.
        up_bias: of the up-convolutions.

    Raises:
        ConfigError: a value is impossible, or lists of different lengths do not belong together.
    """

    architecture: Literal["unet"] = "unet"
    dimensions: Literal[2, 3] = 3
    in_channels: int = 1
    classes: int = 2
    channels: tuple[int, ...] = (32, 64, 128, 256)
    convolutions: int | tuple[int, ...] = 2
    finest_convolutions: int | None = None
    decoder_convolutions: int | tuple[int, ...] | None = None
    kernels: int | tuple[PerAxis, ...] = 3
    strides: int | tuple[PerAxis, ...] = 2
    padded: bool = True
    norm: Norm = "batch"
    activation: Activation = "leaky_relu"
    dropout: float = 0.0
    dropout_levels: tuple[int, ...] | None = None
    dropout_decoder_levels: tuple[int, ...] = ()
    downsampling: Downsampling = "pool"
    upsampling: Upsampling = "transposed"
    residual: bool = False
    attention: bool = False
    deep_supervision: bool = False
    early_doubling: bool = False
    narrowing_up: bool = True
    bias: bool = True
    up_bias: bool = True

    def __post_init__(self) -> None:
        self._check_types()
        self._check_channels()
        self._check_dropout()
        _ = self.shape

    @property
    def levels(self) -> int:
        return len(self.channels)

    @property
    def layer(self) -> Layer:
        """The settings that all convolutions share."""
        return Layer(self.dimensions, self.norm, self.activation, self.padded, self.bias)

    @cached_property
    def shape(self) -> UNetShape:
        """The size arithmetic: legal inputs, outputs, stride and margin."""
        levels = self.levels
        encoder = _per_level("convolutions", self.convolutions, levels)
        if self.finest_convolutions is not None:
            encoder = (self.finest_convolutions, *encoder[1:])
        decoder = encoder[:-1]
        if self.decoder_convolutions is not None:
            decoder = _per_level("decoder_convolutions", self.decoder_convolutions, levels - 1)
        return UNetShape(
            kernels=per_axis("kernels", self.kernels, levels, self.dimensions),
            strides=per_axis("strides", self.strides, levels - 1, self.dimensions),
            encoder_convolutions=encoder,
            decoder_convolutions=decoder,
            padded=self.padded,
        )

    @property
    def inexact_reason(self) -> str | None:
        """The reason why tiles cannot repeat one pass over the whole scan; None if they can."""
        if self.norm in ("instance", "group"):
            return f"{self.norm} norm takes its statistics over the tile, so the result depends on the tiling"
        return None

    @property
    def exact(self) -> bool:
        """True if a tiling on the network's grid can repeat one pass over the whole scan exactly."""
        return self.inexact_reason is None

    @property
    def pretrained(self) -> bool:
        """True if a training starts with weights that are downloaded."""
        return False

    def settled(self, in_channels: int, classes: int, patch: Size) -> UNetSettings:
        """With what the data set decides; the patch decides nothing here."""
        return replace(self, in_channels=in_channels, classes=classes)

    def encoder_channels(self, level: int) -> tuple[int, ...]:
        """Into the first and out of each convolution of an encoder level."""
        wide = self.channels[level]
        count = self.shape.encoder_convolutions[level]
        source = self.in_channels if level == 0 else self.channels[level - 1]
        narrow = wide // 2 if self.early_doubling else wide
        return (source, *(narrow,) * (count - 1), wide)

    def up_channels(self, level: int) -> tuple[int, int]:
        """Into and out of the upsampling from level + 1 to level."""
        coarse = self.channels[level + 1]
        return coarse, self.channels[level] if self.narrowing_up else coarse

    def decoder_channels(self, level: int) -> tuple[int, ...]:
        """Into the first (skip and upsampled map together) and out of each convolution of a decoder level."""
        own = self.channels[level]
        return (own + self.up_channels(level)[1], *(own,) * self.shape.decoder_convolutions[level])

    def encoder_dropout(self, level: int) -> float:
        """The dropout rate at the end of an encoder level."""
        chosen = self.dropout_levels if self.dropout_levels is not None else (self.levels - 2, self.levels - 1)
        return self.dropout if level in chosen else 0.0

    def decoder_dropout(self, level: int) -> float:
        """The dropout rate at the end of a decoder level."""
        return self.dropout if level in self.dropout_decoder_levels else 0.0

    def _check_types(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                expected = ", ".join(str(choice) for choice in allowed)
                raise ConfigError(f"{name}: found {getattr(self, name)!r}, expected one of {expected}")
        for record in fields(self):
            value = getattr(self, record.name)
            if isinstance(value, list):
                raise ConfigError(f"{record.name}: found the list {value}, expected a tuple")
            if isinstance(record.default, bool) and not isinstance(value, bool):
                raise ConfigError(f"{record.name}: found {value!r}, expected true or false")

    def _check_channels(self) -> None:
        if self.levels < 2:
            raise ConfigError(f"channels: found {self.channels}, expected those of two levels or more")
        smallest = 2 if self.early_doubling or self.norm == "voxel" else 1
        if min(self.channels) < smallest:
            why = " (a norm over one channel, or half of it, leaves nothing)" if smallest == 2 else ""
            raise ConfigError(f"channels: found {self.channels}, expected at least {smallest} at each level{why}")
        if self.early_doubling and self.norm == "voxel" and min(self.channels) < 4:
            raise ConfigError(f"channels: found {self.channels}, expected at least 4, as early_doubling halves them")
        if self.in_channels < 1 or self.classes < 1:
            raise ConfigError(f"found {self.in_channels} input channels and {self.classes} classes, expected 1 or more")

    def _check_dropout(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout: found {self.dropout}, expected a rate from 0 to below 1")
        for name, levels, count in (
            ("dropout_levels", self.dropout_levels or (), self.levels),
            ("dropout_decoder_levels", self.dropout_decoder_levels, self.levels - 1),
        ):
            if any(level not in range(count) for level in levels):
                raise ConfigError(f"{name}: found {levels}, expected levels from 0 to {count - 1}")


def _per_level(name: str, value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    numbers = (value,) * levels if isinstance(value, int) else value
    if len(numbers) != levels:
        raise ConfigError(f"{name}: found {len(numbers)} entries {value}, expected {levels}, one per level")
    return numbers


def per_axis(name: str, value: int | tuple[PerAxis, ...], levels: int, dimensions: int) -> tuple[Size, ...]:
    """One size for each level, from a number for all levels or from one entry for each level.

    Raises:
        ConfigError: too many or too few of them.
    """
    entries: tuple[PerAxis, ...] = (value,) * levels if isinstance(value, int) else value
    if len(entries) != levels:
        raise ConfigError(f"{name}: found {len(entries)} entries {value}, expected {levels}, one per level")
    sizes = tuple((entry,) * dimensions if isinstance(entry, int) else tuple(entry) for entry in entries)
    if any(len(size) != dimensions for size in sizes):
        raise ConfigError(f"{name}: found {value}, expected a number or {dimensions} numbers for each level")
    return sizes
