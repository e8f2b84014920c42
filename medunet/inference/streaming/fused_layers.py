"""Fused layers of a U-Net for streaming: private copies, streamed axis first, batch norm in the convolution."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medunet.errors import ConfigError
from medunet.inference.streaming.buffer_sizes import HeldMap, UNetDescription

CONVOLVE: dict[int, Callable[..., Tensor]] = {2: functional.conv2d, 3: functional.conv3d}
CHANNELS_INNERMOST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Target:
    """Type, device and axis that layers are made for.

    Attributes:
        dtype: in which they compute.
        device: on which.
        axis: the spatial axis that is streamed; it becomes the first.
        backwards: kernels are mirrored along that axis, which makes of a scan in its own order what the network makes
            of the mirrored scan, in the scan's order.
    """

    dtype: torch.dtype
    device: torch.device
    axis: int = 0
    backwards: bool = False

    def weights(self, weight: Tensor) -> Tensor:
        """A kernel ``(channel, channel, *spatial)`` with the streamed axis first, channels innermost in memory."""
        moved = weight.detach().movedim(2 + self.axis, 2).to(self.device, self.dtype, copy=True)
        moved = moved.flip(2) if self.backwards else moved
        return moved.contiguous(memory_format=CHANNELS_INNERMOST[moved.ndim - 2])

    def vector(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values.detach().to(self.device, self.dtype, copy=True)

    def module(self, module: nn.Module) -> nn.Module:
        """A copy of a module that treats each voxel for itself."""
        return copy.deepcopy(module).to(self.device, self.dtype)

    def rows(self, held: HeldMap) -> Tensor:
        """An uninitialised buffer ``(1, channel, row, *plane)``, channels innermost in memory.

        So neighbouring rows are one block of memory, and any number of rows is a contiguous tensor for a convolution.
        """
        stored = torch.empty((1, held.held, *held.plane, held.channels), dtype=self.dtype, device=self.device)
        return stored.movedim(-1, 1)

    def size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Numbers per axis, that of the streamed axis first."""
        return (spatial[self.axis], *spatial[: self.axis], *spatial[self.axis + 1 :])


def centre(rows: Tensor, plane: Sequence[int]) -> Tensor:
    """The centre of each row's plane, a view; sizes of unpadded networks leave as much on either side."""
    for axis, (have, want) in enumerate(zip(rows.shape[3:], plane, strict=True), start=3):
        rows = rows.narrow(axis, (have - want) // 2, want)
    return rows


class Pointwise:
    """The steps after a convolution, voxel by voxel: a norm over channels, which cannot be fused, and an activation."""

    def __init__(self, norm: Any, activation: nn.Module, target: Target) -> None:
        self._weight: Tensor | None = None
        if not isinstance(norm, nn.Identity | nn.BatchNorm2d | nn.BatchNorm3d):
            self._weight, self._bias, self._eps = target.vector(norm.weight), target.vector(norm.bias), norm.eps
        self._activation = None if isinstance(activation, nn.Identity) else target.module(activation)

    def normalise(self, rows: Tensor) -> Tensor:
        if self._weight is None:
            return rows
        voxels = rows.movedim(1, -1)  # a view, as channels are innermost
        return functional.layer_norm(voxels, self._weight.shape, self._weight, self._bias, self._eps).movedim(-1, 1)

    def activate(self, rows: Tensor) -> Tensor:
        """May work in place."""
        return rows if self._activation is None else self._activation(rows)

    def activate_into(self, out: Tensor, rows: Tensor) -> None:
        """Write where the next layer reads, without a map in between where the activation can."""
        if isinstance(self._activation, nn.LeakyReLU):
            torch.ops.aten.leaky_relu.out(rows, self._activation.negative_slope, out=out)
        elif isinstance(self._activation, nn.ReLU):
            torch.clamp_min(rows, 0, out=out)
        else:
            out.copy_(self.activate(rows))


class Convolution:
    """A convolution with its batch norm folded in; the other norms and the activation are `after`.

    Along the streamed axis it takes what it is given; its zeros there are rows of its input.

    Attributes:
        crop: rows by which its results start later than its input.
    """

    def __init__(self, layer: Any, norm: nn.Module, target: Target) -> None:
        weight, bias = layer.weight, layer.bias
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
            weight, bias = _fused_weights(weight, bias, norm)
        self.weight, self.bias = target.weights(weight), target.vector(bias)
        self._stride = target.size(layer.stride)
        self._padding = (0, *target.size(layer.padding)[1:])
        self.crop = self.weight.shape[2] // 2 - target.size(layer.padding)[0]
        self._convolve = CONVOLVE[weight.ndim - 2]
        self._direct = _needs_onednn(self.weight)

    @property
    def rows(self) -> int:
        """Rows that one row of the result needs."""
        return self.weight.shape[2]

    def __call__(self, rows: Tensor) -> Tensor:
        if self._direct:
            dilation = (1,) * len(self._stride)
            return torch.mkldnn_convolution(rows, self.weight, self.bias, self._padding, self._stride, dilation, 1)
        return self._convolve(rows, self.weight, self.bias, self._stride, self._padding)


def _fused_weights(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d | nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Weights and bias of a convolution that normalises by itself, in float64."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None, "medunet's batch norm keeps statistics"
    scale = norm.weight.double() * torch.rsqrt(variance.double() + norm.eps)
    before = 0.0 if bias is None else bias.double()
    shift = norm.bias.double() + (before - mean.double()) * scale
    return weight.double() * scale.view(-1, *(1,) * (weight.ndim - 1)), shift


def _needs_onednn(weight: Tensor) -> bool:
    """True where oneDNN must be asked by name.

    On one thread, torch gives thin float32 slabs to a convolution of its own that took seven times as long.
    """
    named = torch.backends.mkldnn.is_available() and hasattr(torch, "mkldnn_convolution")
    return named and weight.device.type == "cpu" and weight.dtype == torch.float32


class Block:
    """The layers of one level's block, with its shortcut if it is residual.

    Attributes:
        convolutions: in order.
        after: what follows each; in a residual block the last one's activation follows the sum.
        residual: whether the block's input is added.
        crop: rows by which the results of an unpadded block start later than its input.
    """

    def __init__(self, block: Any, target: Target) -> None:
        parts = list(block.convolutions)
        self.convolutions = [Convolution(part.convolution, part.norm, target) for part in parts]
        self.after = [Pointwise(part.norm, part.activation, target) for part in parts]
        self.crop = sum(conv.crop for conv in self.convolutions)
        self.residual = hasattr(block, "shortcut")
        self._shortcut: Callable[[Tensor], Tensor] | None = None
        if self.residual:
            self.after[-1] = Pointwise(parts[-1].norm, block.activation, target)
            if not isinstance(block.shortcut, nn.Identity):
                self._shortcut = Convolution(block.shortcut, nn.Identity(), target)

    def add_shortcut(self, rows: Tensor, source: Tensor) -> Tensor:
        """Add the block's input, which may be larger in plane, to the rows of its last convolution, in place."""
        source = centre(source, rows.shape[3:])
        return rows.add_(source if self._shortcut is None else self._shortcut(source))


class Down:
    """From one level to the next deeper one, whole strides at a time."""

    def __init__(self, down: Any, target: Target) -> None:
        self._convolution: Convolution | None = None
        if hasattr(down, "convolution"):
            self._convolution = Convolution(down.convolution, down.norm, target)
            self._after = Pointwise(down.norm, down.activation, target)
        else:
            self._stride = target.size(down.kernel_size)

    def __call__(self, out: Tensor, rows: Tensor) -> None:
        """Fill `out` with the downsampled rows."""
        if self._convolution is not None:
            self._after.activate_into(out, self._after.normalise(self._convolution(rows)))
        else:
            pool = functional.max_pool2d if rows.ndim == 4 else functional.max_pool3d
            out.copy_(pool(rows, self._stride, self._stride))


class Up:
    """From one level to the next finer one.

    Both ways are one matrix product over the channels of each voxel, because no two kernels of an up-convolution whose
    kernel is its stride overlap; the product is written where it belongs.
    """

    def __init__(self, up: Any, target: Target) -> None:
        self._interpolated = hasattr(up, "convolution")
        layer = up.convolution if self._interpolated else up
        self._stride = target.size(up.stride)
        weight = target.weights(layer.weight)
        # A convolution's weights are (out, in, 1, …), an up-convolution's (in, out, *kernel); the matrix (product, in).
        matrix = weight.flatten(1) if self._interpolated else weight.movedim(1, -1).flatten(1).t()
        self._matrix = matrix.contiguous()
        bias = target.vector(layer.bias)
        self._bias = None if bias is None else bias.repeat(len(matrix) // len(bias))

    def __call__(self, out: Tensor, rows: Tensor) -> None:
        """Fill `out` with the enlarged rows."""
        size = rows.shape[2:]
        voxels = rows.movedim(1, -1).reshape(-1, rows.shape[1])
        product = functional.linear(voxels, self._matrix, self._bias)
        source = product.view(*size, *self._kernel, -1)
        to = out.movedim(1, -1)[0]
        for axis, (n, s) in enumerate(zip(size, self._stride, strict=True)):
            to = to.unflatten(2 * axis, (n, s))
            source = source.movedim(len(size) + axis, 2 * axis + 1)
        to.copy_(source)

    @property
    def _kernel(self) -> tuple[int, ...]:
        return (1,) * len(self._stride) if self._interpolated else self._stride


class FusedUNet:
    """All layers of a U-Net, made ready once for any number of scans; the network itself does not change.

    Args:
        network: a `medunet.UNet` in evaluation mode, see `check_streamable`.
        target: what for.
    """

    def __init__(self, network: Any, target: Target) -> None:
        self.settings: UNetDescription = network.settings
        self.target = target
        self.encoder = [Block(block, target) for block in network.encoder]
        self.decoder = [Block(block, target) for block in network.decoder]
        self.downs = [Down(down, target) for down in network.downs]
        self.ups = [Up(up, target) for up in network.ups]
        self.gates = [target.module(gate) for gate in network.gates]
        self.head = Convolution(network.head, nn.Identity(), target)


def check_streamable(network: Any) -> None:
    """Refuse a network whose layers are unknown, or whose result would depend on the slabs.

    Raises:
        ConfigError: not a U-Net of medunet, training mode, or a norm that takes statistics over space.
    """
    parts = ("settings", "encoder", "downs", "ups", "gates", "decoder", "head")
    if not all(hasattr(network, part) for part in parts):
        raise ConfigError(
            f"found a {type(network).__name__}, expected a medunet.UNet; streaming must know the layers.\n"
            "Run other networks by blended windows"
        )
    if any(module.training for module in network.modules()):
        raise ConfigError("the network is in training mode, with dropout and batch statistics; call network.eval()")
    if network.settings.inexact_reason is not None:
        raise ConfigError(f"this network cannot be streamed: {network.settings.inexact_reason}; use --method auto")
