"""The change of shape that one draw makes: mirrors and quarter turns, rotation, scaling and elastic displacement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet.datasets.labels import IGNORE
from medunet.transforms.augment.sampling import (
    SLACK,
    Look,
    along_axes,
    blur_matrix,
    linear_matrix,
    resample,
    spline_matrix,
)
from medunet.transforms.augment.settings import AugmentSettings, ElasticGrid

_LATTICE_CELLS_PER_SIGMA = 2
T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Move:
    """The move of a patch; all parts share one resampling, and without `matrix` nothing is resampled.

    Attributes:
        order: for each axis of the output the axis of the input that it shows.
        flipped: for each axis of the output whether it runs backwards.
        matrix: from offsets from the centre of the reordered output to offsets from the input's centre, in voxels;
            None where voxels stay whole.
        amplitude: of the elastic displacement, in voxels: its root mean square, or that of a grid's vectors.
    """

    order: tuple[int, ...]
    flipped: tuple[bool, ...]
    matrix: NDArray[np.float64] | None = None
    amplitude: float = 0

    def read_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The input that fills an output of `size`; longer than it by an even number per axis, often 0."""
        half = [(n - 1) / 2 for n in size]
        if self.matrix is None:
            reach = list(self._extents(half))
        else:
            rows = self.offsets().tolist()
            reach = [sum(abs(a) * h for a, h in zip(row, half, strict=True)) + 3 * self.amplitude for row in rows]
            reach = [far + SLACK for far in reach]
        return tuple(n + 2 * max(math.ceil(r - h), 0) for n, h, r in zip(size, half, reach, strict=True))

    def apply(
        self, image: Tensor, label: Tensor, size: tuple[int, ...], field: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Image and label of the output, in memory of their own.

        Args:
            image: ``(channel, *spatial)`` float.
            label: ``(1, *spatial)``.
            size: of the output.
            field: displacement for an amplitude of 1, ``(axis, *size)``; None where `amplitude` is 0.
        """
        extents = self._extents(size)
        if self.matrix is None:
            return self._turned(image, extents, 0).to(torch.float32), self._turned(label, extents, IGNORE)
        lengths = zip(label.shape[1:], extents, strict=True)
        centre = tuple((length - n) // 2 + (n - 1) / 2 for length, n in lengths)
        displacement = None if field is None else field * self.amplitude
        look = Look(size, self.offsets(), centre, displacement)
        return resample(image.to(torch.float32).contiguous(), label.contiguous(), look)

    def offsets(self) -> NDArray[np.float64]:
        """From offsets from the output's centre to offsets from the input's, without the elastic displacement."""
        matrix = np.eye(len(self.order)) if self.matrix is None else self.matrix
        found: NDArray[np.float64] = matrix[:, list(self.order)] * np.where(self.flipped, -1.0, 1.0)
        return found

    def inverse(self) -> Move:
        """The move back, for an output of the input's size.

        Raises:
            ValueError: an elastic displacement has no inverse that is known.
        """
        if self.amplitude:
            raise ValueError("an elastic displacement cannot be taken back")
        if self.matrix is not None:
            identity = tuple(range(len(self.order)))
            back = np.linalg.inv(self.offsets()).astype(np.float64)
            return Move(identity, (False,) * len(identity), back)
        order = tuple(self.order.index(axis) for axis in range(len(self.order)))
        return Move(order, tuple(self.flipped[axis] for axis in order))

    def _extents(self, size: Sequence[T]) -> tuple[T, ...]:
        """The output's size, one number per axis of the input."""
        return tuple(n for _, n in sorted(zip(self.order, size, strict=True)))

    def _turned(self, array: Tensor, extents: tuple[int, ...], outside: int) -> Tensor:
        """The centre of the array, reordered and mirrored: a copy."""
        starts = [(n - m) // 2 for n, m in zip(array.shape[1:], extents, strict=True)]
        if min(starts) < 0:  # a long axis was turned into a short one, and nothing more was read
            ends = [m + s - n for n, m, s in zip(array.shape[1:], extents, starts, strict=True)]
            border = [max(n, 0) for s, e in zip(reversed(starts), reversed(ends), strict=True) for n in (-s, e)]
            array, starts = torch.nn.functional.pad(array, border, value=outside), [max(s, 0) for s in starts]
        part = array[(slice(None), *(slice(s, s + m) for s, m in zip(starts, extents, strict=True)))]
        if self.order != tuple(range(len(self.order))):
            part = part.permute(0, *(axis + 1 for axis in self.order))
        # Unlike contiguous(), flip copies even where nothing needs to move.
        return part.flip([axis for axis, backwards in enumerate(self.flipped, start=1) if backwards]).contiguous()


def draw_move(settings: AugmentSettings, dimensions: int, random: np.random.Generator) -> Move:
    """Draw a move; as many random numbers are used whatever happens, so no change moves another one's draw."""
    order, flipped = _orientation(settings, dimensions, random)
    factors = settings.scaling.drawn_each(random, dimensions)
    elastic = settings.elastic.drawn(random)
    angles = settings.rotation.drawn_each(random, 3)
    if factors is None and not elastic and angles is None:
        return Move(order, flipped)
    coarse = settings.coarse_axis
    matrix = _rotation(np.deg2rad(angles), dimensions, coarse) if angles is not None else np.eye(dimensions)
    if factors is not None:
        factors = factors if settings.scaling_per_axis else np.repeat(factors[:1], dimensions)
        if coarse is not None:
            factors[coarse] = 1
        matrix = matrix / factors
    return Move(order, flipped, matrix, elastic or 0.0)


def draw_field(settings: AugmentSettings, random: np.random.Generator, size: tuple[int, ...]) -> Tensor:
    """A random displacement, ``(axis, *size)``; 0 along the coarse axis.

    Gaussian-smoothed noise of unit variance, or vectors of unit variance on a coarse grid with a spline between them.
    """
    grid = settings.elastic_grid
    field = _smoothed_noise(settings.elastic_sigma, random, size) if grid is None else _splined(grid, random, size)
    if settings.coarse_axis is not None:
        field[settings.coarse_axis] = 0
    return field


def _splined(grid: ElasticGrid, random: np.random.Generator, size: tuple[int, ...]) -> Tensor:
    places = [_grid_places(grid, n) for n in size]
    vectors = random.standard_normal((len(size), *(count for count, _ in places)), dtype=np.float32)
    matrices = [spline_matrix(count, where, grid.spline == "cubic") for count, where in places]
    return along_axes(torch.from_numpy(vectors), matrices)


def _grid_places(grid: ElasticGrid, length: int) -> tuple[int, NDArray[np.float64]]:
    """The number of vectors along an axis, and the position of each voxel among them.

    With a given spacing one vector more at each side keeps the ends of a patch from being smoother than its middle.
    """
    if grid.points is not None:
        return grid.points, np.linspace(0, grid.points - 1, length)
    assert grid.spacing is not None
    places = 1 + np.arange(length) / grid.spacing
    return math.ceil(places[-1]) + 2, places


def _smoothed_noise(sigma: float, random: np.random.Generator, size: tuple[int, ...]) -> Tensor:
    """Gaussian-smoothed noise of unit variance.

    Smoothed on a lattice of `_LATTICE_CELLS_PER_SIGMA` cells, then enlarged linearly, both by one matrix per axis.
    """
    cells, radius = _LATTICE_CELLS_PER_SIGMA, 3 * _LATTICE_CELLS_PER_SIGMA
    lattice = [math.ceil((n - 1) * cells / sigma) + 1 for n in size]
    noise = random.standard_normal((len(size), *(n + 2 * radius for n in lattice)), dtype=np.float32)
    matrices = []
    for n, knots in zip(size, lattice, strict=True):
        smooth = blur_matrix(knots + 2 * radius, cells)[radius : radius + knots]
        smooth /= np.linalg.norm(smooth, axis=1, keepdims=True)
        matrices.append(linear_matrix(knots, np.linspace(0, knots - 1, n)) @ smooth)
    return along_axes(torch.from_numpy(noise), matrices)


def _orientation(
    settings: AugmentSettings, dimensions: int, random: np.random.Generator
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Mirrors, and a turn by 90, 180 or 270 degrees in a random plane without the coarse axis."""
    chances = random.random(dimensions + 3)
    axes = range(dimensions) if settings.flip_axes is None else settings.flip_axes
    flipped = [axis in axes and chances[axis] < settings.flip_probability for axis in range(dimensions)]
    order = list(range(dimensions))
    if chances[-3] < settings.quarter_turns:
        planes = _planes(dimensions, settings.coarse_axis)
        first, second = planes[int(chances[-2] * len(planes))]
        turns = 1 + int(chances[-1] * 3)
        if turns % 2:
            order[first], order[second] = second, first
        for axis in {1: (first,), 2: (first, second), 3: (second,)}[turns]:
            flipped[axis] = not flipped[axis]
    return tuple(order), tuple(bool(f) for f in flipped)


def _planes(dimensions: int, coarse: int | None) -> list[tuple[int, int]]:
    return [plane for plane in combinations(range(dimensions), 2) if coarse not in plane]


def _rotation(angles: NDArray[np.float64], dimensions: int, coarse: int | None) -> NDArray[np.float64]:
    """A rotation within each plane of two axes, without those of the coarse axis; angles in radians."""
    matrix = np.eye(dimensions)
    for angle, (first, second) in zip(angles.tolist(), _planes(dimensions, coarse), strict=False):
        turn = np.eye(dimensions)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix
