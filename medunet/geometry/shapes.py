"""Sizes of a U-Net: the inputs that it takes and the outputs that it gives, from plain integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box

Size = tuple[int, ...]


@dataclass(frozen=True)
class UNetShape:
    """The size arithmetic of a U-Net with odd kernels, level 0 being the finest.

    Each encoder level convolves, then hands on every `strides`-th position; each decoder level enlarges by the same
    strides, joins the encoder's output of its level (its centre, in an unpadded network) and convolves.

    An unpadded convolution of kernel k costs k-1 voxels. A size is legal when every downsampling divides exactly and
    every decoder level keeps at least one voxel. As kernels are odd, all losses are even, so every centre crop is
    symmetric; and exact division fixes one residue per axis. So the legal sizes of an axis are `smallest`,
    `smallest` + `stride`, `smallest` + 2 `stride`, …, and the output is always the input less `margin` on both sides.
    Padded networks take the multiples of `stride` and keep the size.

    Attributes:
        kernels: per level, per axis; odd.
        strides: between level l and l+1, per axis; one entry less than levels.
        encoder_convolutions: per level.
        decoder_convolutions: per level, without the deepest.
        padded: whether convolutions keep the size.

    Raises:
        ConfigError: the entries do not belong together, a kernel is even, or a number is below 1.
    """

    kernels: tuple[Size, ...]
    strides: tuple[Size, ...]
    encoder_convolutions: tuple[int, ...]
    decoder_convolutions: tuple[int, ...]
    padded: bool = False

    def __post_init__(self) -> None:
        levels = len(self.kernels)
        counts = (len(self.encoder_convolutions), len(self.strides) + 1, len(self.decoder_convolutions) + 1)
        if levels < 1 or any(count != levels for count in counts):
            raise ConfigError(
                f"{levels} levels of kernels need {levels} counts of encoder convolutions and {max(levels - 1, 0)} "
                f"strides and counts of decoder convolutions; found {len(self.encoder_convolutions)}, "
                f"{len(self.strides)} and {len(self.decoder_convolutions)}"
            )
        if len({len(size) for size in (*self.kernels, *self.strides)}) != 1:
            raise ConfigError(f"kernels {self.kernels} and strides {self.strides} must have the same number of axes")
        if any(k < 1 or k % 2 == 0 for kernel in self.kernels for k in kernel):
            raise ConfigError(f"kernels must be odd and at least 1, found {self.kernels}")
        numbers = (*(s for stride in self.strides for s in stride), *self.encoder_convolutions)
        if min(numbers, default=1) < 1 or min(self.decoder_convolutions, default=1) < 1:
            raise ConfigError("strides and numbers of convolutions must be at least 1")

    @property
    def levels(self) -> int:
        return len(self.kernels)

    @property
    def dimensions(self) -> int:
        return len(self.kernels[0])

    @cached_property
    def stride(self) -> Size:
        """The product of all strides, per axis: the distance of legal sizes and of exact tile positions."""
        return tuple(math.prod(s[axis] for s in self.strides) for axis in range(self.dimensions))

    @cached_property
    def margin(self) -> Size:
        """Voxels of context that the output lacks on each side, per axis; 0 for padded networks."""
        return tuple((self._input_of(1, axis) - self._output_of(1, axis)) // 2 for axis in range(self.dimensions))

    @cached_property
    def smallest(self) -> Size:
        """The smallest legal input, per axis."""
        return tuple(self._input_of(self._smallest_bottleneck(axis), axis) for axis in range(self.dimensions))

    def is_legal(self, size: Sequence[int]) -> bool:
        """True if the network takes inputs of this spatial size."""
        return len(size) == self.dimensions and all(
            n >= first and (n - first) % step == 0
            for n, first, step in zip(size, self.smallest, self.stride, strict=True)
        )

    def output_size(self, size: Sequence[int]) -> Size:
        """The spatial size of the output for a legal input.

        Raises:
            ConfigError: the size is not legal; the message names the nearest legal sizes below and above.
        """
        self.check(size)
        return tuple(n - 2 * m for n, m in zip(size, self.margin, strict=True))

    def encoder_sizes(self, size: Sequence[int]) -> tuple[Size, ...]:
        """The spatial size after each encoder level's convolutions, finest first, for a legal input.

        Raises:
            ConfigError: the size is not legal.
        """
        self.check(size)
        sizes: list[Size] = []
        current = tuple(size)
        for level in range(self.levels):
            current = tuple(n - self._loss(level, axis, self.encoder_convolutions) for axis, n in enumerate(current))
            sizes.append(current)
            if level < self.levels - 1:
                current = tuple(n // s for n, s in zip(current, self.strides[level], strict=True))
        return tuple(sizes)

    def decoder_sizes(self, size: Sequence[int]) -> tuple[Size, ...]:
        """The spatial size after each decoder level's convolutions, finest (the output) first, for a legal input.

        A voxel of level l spans the product of the strides above it; the maps of all levels have the same centre.

        Raises:
            ConfigError: the size is not legal.
        """
        bottleneck = self.encoder_sizes(size)[-1]
        return tuple(
            tuple(self._output_of(b, axis, level) for axis, b in enumerate(bottleneck))
            for level in range(max(self.levels - 1, 1))
        )

    def check(self, size: Sequence[int]) -> None:
        """Refuse a size that the network does not take.

        Raises:
            ConfigError: names the axis, the size found and the nearest legal ones.
        """
        if len(size) != self.dimensions:
            raise ConfigError(f"a {self.dimensions}-D network takes {self.dimensions} spatial axes, found size {size}")
        for axis, n in enumerate(size):
            first, step = self.smallest[axis], self.stride[axis]
            if n < first:
                raise ConfigError(f"input size {_times(size)}: axis {axis} has {n}, the smallest legal size is {first}")
            if (n - first) % step:
                below = n - (n - first) % step
                raise ConfigError(
                    f"input size {_times(size)}: axis {axis} has {n}, the nearest legal sizes are {below} and "
                    f"{below + step} ({'multiples of' if self.padded else 'steps of'} {step})"
                )

    def legal_sizes(self, low: int, high: int) -> tuple[range, ...]:
        """All legal sizes from `low` to `high`, both included, for each axis."""
        ranges = []
        for first, step in zip(self.smallest, self.stride, strict=True):
            start = first + max(0, -(-(low - first) // step)) * step
            ranges.append(range(start, high + 1, step))
        return tuple(ranges)

    def nearest_legal(self, size: Sequence[int]) -> Size:
        """The legal size nearest to `size` on each axis; the larger of two equally near sizes."""
        return tuple(
            first + max(0, (2 * (n - first) + step) // (2 * step)) * step
            for n, first, step in zip(size, self.smallest, self.stride, strict=True)
        )

    def smallest_for(self, output: Sequence[int]) -> Size:
        """The smallest legal input whose output is at least `output` on each axis."""
        return tuple(
            first + max(0, -(-(n + 2 * margin - first) // step)) * step
            for n, first, step, margin in zip(output, self.smallest, self.stride, self.margin, strict=True)
        )

    def context(self, region: Box, scan: Sequence[int]) -> Box:
        """The box to read so that the output of a region is that of one pass over the whole scan.

        For a padded network that is what the network's field of view reaches, on the network's grid, up to the padded
        scan's true borders; for an unpadded one the region itself, from a position on the grid on, as such a network
        is always given `margin` more on each side.

        Args:
            region: of the scan, not empty.
            scan: spatial shape.
        """
        spans = []
        for axis, (start, stop, s) in enumerate(zip(region.start, region.stop, self.stride, strict=True)):
            if self.padded:
                end = self.smallest_for(scan)[axis]
                start, stop = self._reach(start, stop, axis)
                start, stop = max(start, 0), min(-(-stop // s) * s, end)
            spans.append((start - start % s, stop))
        return Box(tuple(start for start, _ in spans), tuple(stop for _, stop in spans))

    def _reach(self, start: int, stop: int, axis: int) -> tuple[int, int]:
        """The rows of a padded network's input that rows of its output depend on, as if there were no borders."""
        skips = []
        for level in range(self.levels - 1):
            more = self.decoder_convolutions[level] * (self.kernels[level][axis] // 2)
            skips.append((start - more, stop + more))
            s = self.strides[level][axis]
            start, stop = (start - more) // s, -(-(stop + more) // s)
        for level in reversed(range(self.levels)):
            if level < self.levels - 1:
                s = self.strides[level][axis]
                start, stop = min(start * s, skips[level][0]), max(stop * s, skips[level][1])
            more = self.encoder_convolutions[level] * (self.kernels[level][axis] // 2)
            start, stop = start - more, stop + more
        return start, stop

    def _loss(self, level: int, axis: int, convolutions: tuple[int, ...]) -> int:
        """Voxels that a level's convolutions cost along an axis, both sides together."""
        return 0 if self.padded else convolutions[level] * (self.kernels[level][axis] - 1)

    def _input_of(self, bottleneck: int, axis: int) -> int:
        """The input size that gives this size after the deepest level's convolutions."""
        size = bottleneck + self._loss(self.levels - 1, axis, self.encoder_convolutions)
        for level in reversed(range(self.levels - 1)):
            size = size * self.strides[level][axis] + self._loss(level, axis, self.encoder_convolutions)
        return size

    def _output_of(self, bottleneck: int, axis: int, level: int = 0) -> int:
        """The size after a decoder level's convolutions that this size in the deepest level leads to."""
        size = bottleneck
        for current in reversed(range(level, self.levels - 1)):
            size = size * self.strides[current][axis] - self._loss(current, axis, self.decoder_convolutions)
        return size

    def _smallest_bottleneck(self, axis: int) -> int:
        """The smallest size in the deepest level that leaves the output one voxel, and so every level above it too."""
        return max(1, -(-(1 - self._output_of(0, axis)) // self.stride[axis]))


def _times(size: Sequence[int]) -> str:
    return "x".join(str(n) for n in size)
