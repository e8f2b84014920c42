"""Reading at positions between voxels: the image by linear interpolation, the label by its nearest voxel.

torch's `grid_sample` is not used: in three dimensions its CPU code takes one voxel at a time, 7.4 ms for 64³ on one
core, where the gathers below take 3 with float32's full accuracy. In two dimensions, where it is vectorised, it is
faster than they are by less than building its grid costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet.data.labels import IGNORE

_CHUNK = 1 << 16
"""Voxels at a time on a CPU: a dozen arrays of so many stay in a core's cache. Half and twice as many are slower."""

_SLACK = 1e-4
"""Voxels by which rounding may carry a position over the edge; there the edge's slope goes on."""


@dataclass(frozen=True)
class Look:
    """Where each voxel of an output looks in an input: ``centre + matrix @ (voxel - output's centre)`` + displacement.

    Attributes:
        size: of the output.
        matrix: one row per axis of the input.
        centre: in the input's voxels.
        displacement: ``(axis, *size)`` in voxels, one entry per axis of the input; None for none.
    """

    size: tuple[int, ...]
    matrix: NDArray[np.float64]
    centre: tuple[float, ...]
    displacement: Tensor | None = None

    def within(self, shape: Sequence[int]) -> bool:
        """Whether no output voxel can look beyond the outermost voxels of an input of this shape."""
        if self.displacement is not None:
            return False
        reach = np.abs(self.matrix) @ ((np.asarray(self.size) - 1) / 2)
        ends = zip(self.centre, reach, shape, strict=True)
        return all(centre - far >= -_SLACK and centre + far <= n - 1 + _SLACK for centre, far, n in ends)

    def shifted(self, voxels: float) -> Look:
        """The same look at an input that has so many voxels more before its first."""
        return Look(self.size, self.matrix, tuple(c + voxels for c in self.centre), self.displacement)

    def positions(self, voxels: int, device: torch.device) -> Iterator[tuple[slice, list[Tensor]]]:
        """Input positions, flat, one array per axis, slab by slab of so many voxels along the output's first axis."""
        terms = [self._terms(axis, device) for axis in range(len(self.size))]
        step = max(1, voxels // math.prod(self.size[1:]))
        for start in range(0, self.size[0], step):
            slab = slice(start, min(start + step, self.size[0]))
            found = [(first[slab] + rest).view(-1) for first, rest in terms]
            if self.displacement is not None:
                found = [p.add_(d[slab].reshape(-1)) for p, d in zip(found, self.displacement, strict=True)]
            yield slab, found

    def _terms(self, axis: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the output's first axis adds to a position along an axis of the input, and all else of it."""
        first, *others = (
            torch.arange(n, dtype=torch.float32, device=device).sub_((n - 1) / 2).mul_(factor)
            for n, factor in zip(self.size, self.matrix[axis].tolist(), strict=True)
        )
        rest = torch.full((), self.centre[axis], device=device)
        for other in others:
            rest = rest[..., None] + other
        return first.view(-1, *(1,) * len(others)), rest


def resample(image: Tensor, label: Tensor, look: Look) -> tuple[Tensor, Tensor]:
    """What an output sees of image and label. Outside them lie 0 and IGNORE.

    Between the outermost voxels and one voxel further out the image fades to 0, as `grid_sample` does it; a label
    ends half a voxel beyond its outermost voxels.

    Args:
        image: ``(channel, *spatial)`` float32.
        label: ``(1, *spatial)`` class indices, on the same device.
        look: of as many dimensions.

    Returns:
        ``(channel, *size)`` float32 and ``(1, *size)`` of the label's dtype; indexing cannot invent a label.
    """
    inside = look.within(label.shape[1:])
    if not inside:
        border = (1, 1) * len(look.size)
        image = torch.nn.functional.pad(image, border)
        label = torch.nn.functional.pad(label, border, value=IGNORE)
        look = look.shifted(1)
    seen, classes = image.new_empty((len(image), *look.size)), label.new_empty((1, *look.size))
    sources, names = image.flatten(1), label.flatten()
    chunk = _CHUNK if image.device.type == "cpu" else math.prod(look.size)
    for slab, positions in look.positions(chunk, image.device):
        if not inside:
            positions = [p.clamp_(0, n - 1) for p, n in zip(positions, label.shape[1:], strict=True)]
        cells = _Cells.of(positions, label.shape[1:])
        classes[0, slab].view(-1).copy_(cells.nearest(names))
        for channel, source in zip(seen, sources, strict=True):
            channel[slab].view(-1).copy_(cells.interpolated(source))
    return seen, classes


@dataclass(frozen=True)
class _Cells:
    """For each position the cell of 2 or 2×2×2 voxels around it.

    Attributes:
        index: the cell's first voxel in the flat array, int32 (half of int64's time).
        weights: per axis how far into the cell the position lies, 0 to 1.
        strides: per axis the distance of a cell's two voxels in the flat array; 0 where the axis has one voxel.
    """

    index: Tensor
    weights: list[Tensor]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, positions: list[Tensor], shape: Sequence[int]) -> _Cells:
        """Overwrites the positions, which lie within the array, up to rounding."""
        firsts = [p.floor().clamp_(0, max(n - 2, 0)) for p, n in zip(positions, shape, strict=True)]
        weights = [p.sub_(first) for p, first in zip(positions, firsts, strict=True)]
        # Counted in float32, exact below 2**24, as far as the last axis but one: fewer conversions, which are slow.
        rows = firsts[0]
        for first, n in zip(firsts[1:-1], shape[1:-1], strict=True):
            rows.mul_(n).add_(first)
        index = rows.to(torch.int32).mul_(shape[-1]).add_(firsts[-1].to(torch.int32))
        strides = tuple(math.prod(shape[axis + 1 :]) if n > 1 else 0 for axis, n in enumerate(shape))
        return cls(index, weights, strides)

    def nearest(self, source: Tensor) -> Tensor:
        """The value of the voxel of a flat array that each position lies in."""
        steps = self.weights[0].round().mul_(self.strides[0])
        for weight, stride in zip(self.weights[1:], self.strides[1:], strict=True):
            steps.add_(weight.round(), alpha=stride)
        return source.index_select(0, steps.to(torch.int32).add_(self.index))

    def interpolated(self, source: Tensor, axis: int = 0, offset: int = 0) -> Tensor:
        """Linear interpolation of a flat array along this axis and those after it."""
        if axis == len(self.weights):
            return source[offset:].index_select(0, self.index)
        low = self.interpolated(source, axis + 1, offset)
        if self.strides[axis] == 0:
            return low
        return low.lerp_(self.interpolated(source, axis + 1, offset + self.strides[axis]), self.weights[axis])


def along_axes(array: Tensor, matrices: Sequence[NDArray[np.float64] | None]) -> Tensor:
    """Multiply an array by one matrix per spatial axis: a separable linear filter, or a change of size.

    A matrix product for 64³ takes 0.2 ms a core; scipy's filter along one axis takes 1 to 2.

    Args:
        array: ``(channel, *spatial)`` float32.
        matrices: ``(new length, length)`` per axis; None leaves the axis as it is.
    """
    for axis, matrix in enumerate(matrices, start=1):
        if matrix is None:
            continue
        factor = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32)).to(array.device)
        shape = list(array.shape)
        if axis == len(shape) - 1:
            array = array @ factor.T
        else:
            lines = array.reshape(math.prod(shape[:axis]), shape[axis], -1)
            array = torch.matmul(factor, lines).reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return array


def blur_matrix(length: int, sigma: float) -> NDArray[np.float64]:
    """A Gaussian along an axis, cut at three sigma; beyond the ends lies the end's value."""
    radius = int(3 * sigma + 0.5)
    places = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (places / max(sigma, 1e-6)) ** 2)
    matrix, here = np.zeros((length, length)), np.arange(length)
    for place, weight in zip(places, kernel / kernel.sum(), strict=True):
        np.add.at(matrix, (here, np.clip(here + place, 0, length - 1)), weight)
    return matrix


def shrink_matrix(length: int, fewer: int) -> NDArray[np.float64]:
    """Mean over `fewer` bins that cover the axis, as `interpolate(mode="area")` has it: bins are whole voxels."""
    matrix = np.zeros((fewer, length))
    for place in range(fewer):
        first, last = place * length // fewer, -(-(place + 1) * length // fewer)
        matrix[place, first:last] = 1 / (last - first)
    return matrix


def linear_matrix(length: int, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear interpolation of an axis of `length` at these positions; beyond the ends lies the end's value."""
    inside = np.clip(positions, 0, length - 1)
    first = np.minimum(inside.astype(int), max(length - 2, 0))
    matrix, here = np.zeros((len(positions), length)), np.arange(len(positions))
    matrix[here, first] = 1 - (inside - first)
    matrix[here, np.minimum(first + 1, length - 1)] += inside - first
    return matrix
