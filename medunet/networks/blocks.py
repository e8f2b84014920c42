"""The pieces of a U-Net, for 2-D and 3-D, padded and unpadded, every kernel and stride per axis.

All tensors are ``(batch, channel, *spatial)``. Nothing here takes a statistic over space except batch norm while
training, and instance and group norm; everything else gives a voxel the same value wherever a tile begins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Norm = Literal["none", "batch", "instance", "group", "voxel"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "prelu"]

CONVOLUTION: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
GROUPS = 8


@dataclass(frozen=True)
class Layer:
    """Settings that all convolutions of a network share."""

    dimensions: int
    norm: Norm
    activation: Activation
    padded: bool
    bias: bool

    def convolution(self, channels: tuple[int, int], kernel: Sequence[int], bias: bool | None = None) -> nn.Module:
        """A convolution from ``channels[0]`` to ``channels[1]``; padded networks keep the size."""
        return CONVOLUTION[self.dimensions](
            *channels,
            kernel_size=tuple(kernel),
            padding=tuple(k // 2 for k in kernel) if self.padded else 0,
            bias=self.bias if bias is None else bias,
        )

    def pointwise(self, channels: tuple[int, int], bias: bool = True) -> nn.Module:
        """A convolution with a kernel of one voxel."""
        return self.convolution(channels, (1,) * self.dimensions, bias)


class VoxelNorm(nn.Module):
    """Layer normalisation over the channels of each voxel alone (as in ConvNeXt), so no tiling can change it."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        along_channels = (1, -1) + (1,) * (x.ndim - 2)
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        normal = (x - mean) * torch.rsqrt(variance + self.eps)
        return normal * self.weight.view(along_channels) + self.bias.view(along_channels)


def norm_layer(kind: Norm, channels: int, dimensions: int) -> nn.Module:
    """A normalisation with a learned scale and shift per channel, or nothing.

    Group norm makes eight groups, or as many as divide the channels evenly.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels) if dimensions == 2 else nn.BatchNorm3d(channels)
    if kind == "instance":
        instance = nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d
        return instance(channels, affine=True)
    if kind == "group":
        return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
    return VoxelNorm(channels) if kind == "voxel" else nn.Identity()


def activation_layer(kind: Activation) -> nn.Module:
    """A non-linearity; the piecewise linear ones work in place, which changes no value and saves a map."""
    layers: dict[Activation, nn.Module] = {
        "relu": nn.ReLU(inplace=True),
        "leaky_relu": nn.LeakyReLU(0.01, inplace=True),
        "elu": nn.ELU(),
        "gelu": nn.GELU(),
        "silu": nn.SiLU(),
        "prelu": nn.PReLU(),
    }
    return layers[kind]


class ConvBlock(nn.Module):
    """Convolution, normalisation, activation, in this order."""

    def __init__(self, layer: Layer, channels: tuple[int, int], kernel: Sequence[int], activated: bool = True) -> None:
        super().__init__()
        self.convolution = layer.convolution(channels, kernel)
        self.norm = norm_layer(layer.norm, channels[1], layer.dimensions)
        self.activation = activation_layer(layer.activation) if activated else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.activation(self.norm(self.convolution(x)))
        return found


class LevelBlock(nn.Module):
    """The convolutions of one level, then dropout."""

    def __init__(self, layer: Layer, channels: Sequence[int], kernel: Sequence[int], dropout: float) -> None:
        """Channels go in, then out of each convolution: three numbers for two convolutions."""
        super().__init__()
        pairs = itertools.pairwise(channels)
        self.convolutions = nn.ModuleList(ConvBlock(layer, pair, kernel) for pair in pairs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.convolutions:
            x = block(x)
        found: torch.Tensor = self.dropout(x)
        return found


class ResidualBlock(nn.Module):
    """The convolutions of one level beside a shortcut, added before the last activation (He et al. 2016).

    The shortcut is the input itself, or a pointwise convolution where the number of channels changes; in an unpadded
    network it is the input's centre.
    """

    def __init__(self, layer: Layer, channels: Sequence[int], kernel: Sequence[int], dropout: float) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.convolutions = nn.ModuleList(
            ConvBlock(layer, pair, kernel, activated=i < len(pairs) - 1) for i, pair in enumerate(pairs)
        )
        same = channels[0] == channels[-1]
        self.shortcut = nn.Identity() if same else layer.pointwise((channels[0], channels[-1]))
        self.activation = activation_layer(layer.activation)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for block in self.convolutions:
            y = block(y)
        y = y + self.shortcut(centre_crop(x, y.shape[2:]))
        found: torch.Tensor = self.dropout(self.activation(y))
        return found


class AttentionGate(nn.Module):
    """Weigh each voxel of a skip connection by what the decoder asks for (Attention U-Net, Oktay et al. 2018).

    The paper compares on the coarser grid and enlarges the weights linearly. Here both sides are compared after the
    decoder's map has been enlarged, by pointwise convolutions only, so a voxel's weight depends on no neighbour.
    """

    def __init__(self, layer: Layer, skip: int, gate: int) -> None:
        super().__init__()
        inner = max(skip // 2, 1)
        self.of_skip = layer.pointwise((skip, inner), bias=False)
        self.of_gate = layer.pointwise((gate, inner))
        self.to_weight = layer.pointwise((inner, 1))

    def forward(self, skip: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        asked = torch.relu(self.of_skip(skip) + self.of_gate(gate))
        return skip * torch.sigmoid(self.to_weight(asked))


class StridedDown(ConvBlock):
    """Downsampling by a learned convolution whose kernel is its stride (as in V-Net), so it needs no padding."""

    def __init__(self, layer: Layer, channels: int, stride: Sequence[int]) -> None:
        super().__init__(layer, (channels, channels), (1,) * layer.dimensions)
        self.convolution = CONVOLUTION[layer.dimensions](
            channels,
            channels,
            kernel_size=tuple(stride),
            stride=tuple(stride),
            bias=layer.bias,
        )


def max_pool(dimensions: int, stride: Sequence[int]) -> nn.Module:
    """The maximum of each box of `stride` voxels."""
    pool = nn.MaxPool2d if dimensions == 2 else nn.MaxPool3d
    return pool(kernel_size=tuple(stride), stride=tuple(stride))


def transposed_up(layer: Layer, channels: tuple[int, int], stride: Sequence[int], bias: bool) -> nn.Module:
    """The up-convolution of the U-Net papers: its kernel is its stride, so each output voxel has one source."""
    up = TRANSPOSED[layer.dimensions]
    return up(*channels, kernel_size=tuple(stride), stride=tuple(stride), bias=bias)


class InterpolatedUp(nn.Module):
    """Repeat each voxel `stride` times, after a pointwise convolution.

    Nearest neighbour, not linear: a linear value at a tile's border would need the neighbour beyond it. The convolution
    comes first because it gives the same values there at a fraction of the work; the decoder's own convolutions smooth.
    """

    def __init__(self, layer: Layer, channels: tuple[int, int], stride: Sequence[int], bias: bool) -> None:
        super().__init__()
        self.convolution = layer.pointwise(channels, bias)
        self.stride = tuple(stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolution(x)
        size = [n * s for n, s in zip(x.shape[2:], self.stride, strict=True)]
        return nn.functional.interpolate(x, size=size, mode="nearest-exact")


def centre_crop(x: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
    """The centre of a map, a view; legal sizes always leave as much on one side as on the other."""
    slices = [
        slice((have - want) // 2, (have - want) // 2 + want) for have, want in zip(x.shape[2:], spatial, strict=True)
    ]
    return x[(slice(None), slice(None), *slices)]


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw weights as the 2015 paper does: normal with deviation sqrt(2 / N), N the incoming nodes; biases zero.

    N counts what really enters one output voxel (He et al. 2015): kernel voxels times input channels for a
    convolution, and input channels alone for an up-convolution whose kernel is its stride.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            transposed = isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d)
            incoming = module.in_channels * (1 if transposed else math.prod(module.kernel_size))
            with torch.no_grad():
                module.weight.normal_(0.0, math.sqrt(2.0 / incoming), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
