"""Reading at positions between voxels: the image by linear interpolation, the label by its nearest voxel.

torch's `grid_sample` is not used. In three dimensions its CPU code takes one voxel at a time, and 64³ take about twice
as long as all that is done here, labels included; batches of eight gain nothing. In two dimensions it is vectorised and
would save a third of a millisecond of 256², too little for a second way of doing the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet.datasets.labels import IGNORE

_CHUNK = 1 << 16
"""Voxels at a time on a CPU: a dozen arrays of so many stay in a core's cache. Half and twice as many are slower."""

SLACK = 1e-3
"""Voxels that lie between the positions and the outermost voxels, so that rounding carries none over the edge."""


@dataclass(frozen=True)
class Look:
    """Input positions of an output's voxels: ``centre + matrix @ (voxel - output's centre)`` + displacement.

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
        """True if every output voxel looks between the outermost voxels of an input of this shape."""
        if self.displacement is not None:
            return False
        half = [(n - 1) / 2 for n in self.size]
        for row, centre, length in zip(self.matrix.tolist(), self.centre, shape, strict=True):
            reach = sum(abs(a) * h for a, h in zip(row, half, strict=True)) + SLACK / 2
            if centre < reach or centre + reach > length - 1:
                return False
        return True

    def shifted(self, voxels: float) -> Look:
        """The same look at an input that begins some voxels earlier."""
        return Look(self.size, self.matrix, tuple(c + voxels for c in self.centre), self.displacement)

    def positions(self, device: torch.device) -> Callable[[slice, Sequence[Tensor]], None]:
        """A function that writes the input positions of a slab along the output's first axis, one array per axis."""
        terms = [[torch.from_numpy(term).to(device) for term in pair] for pair in self._terms()]

        def write(slab: slice, room: Sequence[Tensor]) -> None:
            for axis, ((first, rest), place) in enumerate(zip(terms, room, strict=True)):
                torch.add(first[slab], rest, out=place.view(-1, *self.size[1:]))
                if self.displacement is not None:
                    place.add_(self.displacement[axis, slab].reshape(-1))

        return write

    def _terms(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Per axis of the input what the output's first axis adds to a position, and all the rest of it."""
        offsets = [np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2) for n in self.size]
        for row, centre in zip(self.matrix.astype(np.float32), self.centre, strict=True):
            rest = np.float32(centre) + row[1] * offsets[1]
            for factor, offset in zip(row[2:], offsets[2:], strict=True):
                rest = rest[..., None] + factor * offset
            yield (row[0] * offsets[0]).reshape(-1, *(1,) * rest.ndim), rest


def resample(image: Tensor, label: Tensor, look: Look) -> tuple[Tensor, Tensor]:
    """Image and label at the positions that an output looks at. Outside them lie 0 and IGNORE.

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
        # One voxel before the first; two after the last, so that a position on the first of them has a next one.
        border = (1, 2) * len(look.size)
        image = torch.nn.functional.pad(image, border)
        label = torch.nn.functional.pad(label, border, value=IGNORE)
        look = look.shifted(1)
    seen, classes = image.new_empty((len(image), *look.size)), label.new_empty((1, *look.size))
    cells = _Cells.of(look.size, label.shape[1:], image.device)
    write_positions = look.positions(image.device)
    for start in range(0, look.size[0], cells.slices):
        slab = slice(start, min(start + cells.slices, look.size[0]))
        part = cells.part(classes[0, slab].numel())
        write_positions(slab, part.weights)
        if not inside:
            for position, n in zip(part.weights, label.shape[1:], strict=True):
                position.clamp_(0, n - 2)
        part.locate()
        part.nearest(label.view(-1), classes[0, slab].view(-1))
        for source, channel in zip(image, seen, strict=True):
            part.interpolate(source.view(-1), [channel[slab].view(-1), *part.spare])
    return seen, classes


@dataclass(frozen=True)
class _Cells:
    """For some positions the cells of 2 or 2×2×2 voxels around them, and room to compute in.

    The room is used again slab after slab: fresh memory costs more than what is done in it.

    Attributes:
        shape: of the arrays to read.
        slices: along the output's first axis at a time.
        weights: first the positions; after `locate`, per axis, how far into its cell each lies, 0 to 1.
        spare: as many arrays more.
        index: after `locate` each cell's first voxel in the flat array, int32 (half of int64's time).
        count: room for integers.
    """

    shape: tuple[int, ...]
    slices: int
    weights: Sequence[Tensor]
    spare: Sequence[Tensor]
    index: Tensor
    count: Tensor

    @classmethod
    def of(cls, size: Sequence[int], shape: Sequence[int], device: torch.device) -> _Cells:
        """Room for a slab of an output of `size`; a GPU takes it all at once."""
        slices = max(1, _CHUNK // math.prod(size[1:])) if device.type == "cpu" else size[0]
        voxels = min(slices, size[0]) * math.prod(size[1:])
        reals = torch.empty((2 * len(size), voxels), dtype=torch.float32, device=device).unbind()
        integers = torch.empty((2, voxels), dtype=torch.int32, device=device)
        return cls(tuple(shape), slices, reals[: len(size)], reals[len(size) :], integers[0], integers[1])

    def part(self, voxels: int) -> _Cells:
        """The same room for fewer positions."""
        if voxels == len(self.index):
            return self
        weights, spare = [w[:voxels] for w in self.weights], [s[:voxels] for s in self.spare]
        return _Cells(self.shape, self.slices, weights, spare, self.index[:voxels], self.count[:voxels])

    @property
    def strides(self) -> tuple[int, ...]:
        """Per axis the distance of a cell's two voxels in the flat array."""
        return tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))

    def locate(self) -> None:
        """Turn positions, which lie between 0 and the last voxel but never on the last, into cells and weights."""
        for position, first in zip(self.weights, self.spare, strict=True):
            torch.floor(position, out=first)
            position.sub_(first)
        # Counted in float32, exact below 2**24, as far as the last axis but one: fewer conversions, which are slow.
        rows = self.spare[0]
        for first, n in zip(self.spare[1:-1], self.shape[1:-1], strict=True):
            rows.mul_(n).add_(first)
        self.index.copy_(rows).mul_(self.shape[-1]).add_(self.count.copy_(self.spare[-1]))

    def nearest(self, source: Tensor, out: Tensor) -> None:
        """Write the value of the voxel of a flat array that each position lies in."""
        steps, rounded = self.spare[:2]
        torch.round(self.weights[0], out=steps).mul_(self.strides[0])
        for weight, stride in zip(self.weights[1:], self.strides[1:], strict=True):
            steps.add_(torch.round(weight, out=rounded), alpha=stride)
        torch.index_select(source, 0, self.count.copy_(steps).add_(self.index), out=out)

    def interpolate(self, source: Tensor, room: Sequence[Tensor], axis: int = 0, offset: int = 0) -> None:
        """Write the linear interpolation of a flat array, along this axis and those after it, to the first of `room`.

        As many more arrays as there are axes left are overwritten.
        """
        if axis == len(self.weights):
            torch.index_select(source[offset:], 0, self.index, out=room[0])
            return
        self.interpolate(source, room, axis + 1, offset)
        self.interpolate(source, room[1:], axis + 1, offset + self.strides[axis])
        # Half of lerp's time, which takes precautions for weights near 1.
        room[0].addcmul_(room[1].sub_(room[0]), self.weights[axis])


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


def spline_matrix(length: int, positions: NDArray[np.float64], through: bool) -> NDArray[np.float64]:
    """Cubic B-spline over an axis of `length` at these positions, mirrored at both ends (whose values are not doubled).

    Args:
        through: interpolate, so that the spline passes through the values; else they are its coefficients.
    """
    basis = _b_spline_basis(length, positions)
    if not through:
        return basis
    product: NDArray[np.float64] = basis @ np.linalg.inv(_b_spline_basis(length, np.arange(length, dtype=np.float64)))
    return product


def _b_spline_basis(length: int, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix, here = np.zeros((len(positions), length)), np.arange(len(positions))
    first = np.floor(positions).astype(int) - 1
    period = max(2 * (length - 1), 1)
    for knot in range(4):
        away = np.abs(positions - (first + knot))
        weight = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.clip(2 - away, 0, None) ** 3 / 6)
        place = (first + knot) % period
        np.add.at(matrix, (here, np.minimum(place, period - place)), weight)
    return matrix


def shrink_matrix(length: int, fewer: int) -> NDArray[np.float64]:
    """Mean over `fewer` bins that cover the axis, like `interpolate(mode="area")`: bins are whole voxels."""
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
