"""Objects of a scan, found in a model's answers and numbered: slab by slab and component by component.

The result is that of one computation over the whole scan, however large: components of the mask are joined across
slabs, and each is cut into its objects within its own box, where nothing else has an influence on it
(see `instances/watershed.py`). Numbers follow the order of the first voxels: by z, then y, then x.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medunet.errors import MedunetError
from medunet.geometry.boxes import grown_slices
from medunet.instances.settings import ElevationRule
from medunet.instances.watershed import (
    DISTANCE_BYTES,
    LEVELS_BYTES,
    ObjectRule,
    connected,
    cut_by_depth,
    cut_by_distance,
    cut_by_levels,
    holes_of,
    without_gaps,
)
from medunet.system.blocks import Empty, spans
from medunet.system.scratch import release
from medunet.system.wording import bytes_text
from medunet.transforms.postprocess import at_edges
from medunet.transforms.preprocess import Undo
from medunet.transforms.restore import Piece

_CHUNK = 2**22
"""Voxels that are looked at together; each needs about 20 bytes then."""
_STEPS = 4096
"""Steps of an elevation between 0 and 1. Where a network is sure, voxels have one height and are shared by distance,
and not by the last bit of a sum, which another order of summing changes."""
_Slices = tuple[slice, ...]


@dataclass
class Landscape:
    """Levels and elevation of one scan, collected box by box, on the scan's own grid.

    Attributes:
        levels: `(*spatial)` uint8; see `ElevationRule`.
        elevation: `(*spatial)` float32, in steps of 1/4096, anything outside of the mask; None without weights.
    """

    elevation_rule: ElevationRule
    undo: Undo
    levels: NDArray[np.uint8]
    elevation: NDArray[np.float32] | None

    @staticmethod
    def blank(elevation_rule: ElevationRule, undo: Undo, shape: Sequence[int], empty: Empty) -> Landscape:
        """Nothing but background; arrays run along x first in memory.

        Args:
            shape: of the scan.
            empty: makes the arrays.
        """
        levels = empty(tuple(shape)[::-1], np.uint8)
        for rows in _rows(levels):
            levels[rows] = 0
            release(levels)
        elevation = None if elevation_rule.weights is None else empty(tuple(shape)[::-1], np.float32).T
        return Landscape(elevation_rule, undo, levels.T, elevation)

    @property
    def needs_scores(self) -> bool:
        return self.elevation_rule.weights is not None

    def put(self, piece: Piece) -> None:
        """Take a piece of the kept part, with its scores where `needs_scores` is true."""
        levels = np.array(self.elevation_rule.levels, np.uint8)
        self.undo.kept_part(self.levels[None])[0][piece.box.slices] = levels[piece.indices]
        release(self.levels)
        if self.elevation is not None and self.elevation_rule.weights is not None:
            weighted = [w * one for w, one in zip(self.elevation_rule.weights, piece.scores, strict=True) if w]
            steps = np.rint(_STEPS * np.sum(weighted, axis=0)) / _STEPS
            self.undo.kept_part(self.elevation[None])[0][piece.box.slices] = steps
            release(self.elevation)


@dataclass(frozen=True)
class Workspace:
    """Resources for numbering: a maker of large arrays, and bytes of memory."""

    empty: Empty
    memory: int


@dataclass(frozen=True)
class Objects:
    """The objects of one scan.

    Attributes:
        ids: `(1, *spatial)`, 0 is background, objects are numbered from 1 without gaps; uint16, or uint32 from 65536
            objects on.
        count: how many.
        dropped: how many were left out, for want of size or of a core, or at the border.
    """

    ids: NDArray[Any]
    count: int
    dropped: int = 0


def find_objects_of(landscape: Landscape, rule: ObjectRule, spacing: Sequence[float], work: Workspace) -> Objects:
    """Number the objects of a scan.

    Args:
        spacing: the size of a voxel along each axis, in any unit.

    Raises:
        MedunetError: objects that touch each other fill more of the scan than can be cut in the memory allowed.
    """
    levels = landscape.levels.T
    elevation = None if landscape.elevation is None else landscape.elevation.T
    ids = work.empty(levels.shape, np.int32 if levels.size < 2**30 else np.int64)
    boxes = _number_components(levels, ids)
    if elevation is not None:
        _cut_all(ids, boxes, _ByLevels(levels, elevation, landscape.elevation_rule.depth), work.memory)
    elif rule.split is not None:
        smallest = min(spacing)
        _cut_all(ids, boxes, _ByDistance(rule.split, [n / smallest for n in reversed(spacing)]), work.memory)
    reach = landscape.elevation_rule.reach * _scale(landscape.undo)
    if reach:
        _close_gaps(ids, reach)
        boxes = [grown_slices(box, reach, ids.shape) for box in boxes]
    if rule.fill_holes:
        _fill_holes(ids, boxes)
    return _renumbered(ids, levels, _Kept.of(landscape, rule, len(boxes)), work.empty)


def _scale(undo: Undo) -> int:
    """The length of a voxel of the network's grid in voxels of the scan, at least 1."""
    return max(1, *(round(own / seen) for own, seen in zip(undo.kept, undo.shape, strict=True)))


def _rows(array: NDArray[Any]) -> Iterator[slice]:
    return spans(len(array), array.size // len(array), _CHUNK)


def _number_components(levels: NDArray[np.uint8], ids: NDArray[Any]) -> list[_Slices]:
    """Write the number of each voxel's component into `ids`, and give the box of each component."""
    joined: list[NDArray[Any]] = [np.empty((2, 0), dtype=np.int64)]
    corners: list[NDArray[np.int64]] = [_corners([], levels.ndim, 0)]
    total = 0
    for rows in _rows(levels):
        lead = 1 if rows.start else 0
        numbers, count = connected(levels[rows.start - lead : rows.stop])
        if lead:
            above, here = ids[rows.start - 1], numbers[0]
            joined.append(np.unique([above[here > 0], here[here > 0] + total], axis=1))
        ids[rows] = np.where(numbers[lead:] > 0, numbers[lead:] + total, 0)
        corners.append(_corners(find_objects(numbers), levels.ndim, rows.start - lead))
        total += count
        release(levels)
        release(ids)
    first, second = np.concatenate(joined, axis=1).astype(np.int64)
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(total + 1, total + 1))
    _, of = connected_components(graph, directed=False)
    assert of[0] == 0, "the background, which is joined to nothing, is met first"
    for rows in _rows(ids):
        ids[rows] = of[ids[rows]]
        release(ids)
    return _boxes(np.concatenate(corners), of[1:])


def _corners(found: Sequence[_Slices], ndim: int, shift: int) -> NDArray[np.int64]:
    """`(box, start or stop, axis)`, moved along the first axis."""
    corners = np.array([[[s.start for s in box], [s.stop for s in box]] for box in found], dtype=np.int64)
    corners = corners.reshape(-1, 2, ndim)
    corners[:, :, 0] += shift
    return corners


def _boxes(corners: NDArray[np.int64], of: NDArray[Any]) -> list[_Slices]:
    """The box around all corners of each number."""
    count = int(of.max(initial=0))
    low = np.full((count, corners.shape[2]), np.iinfo(np.int64).max)
    high = np.zeros_like(low)
    np.minimum.at(low, of - 1, corners[:, 0])
    np.maximum.at(high, of - 1, corners[:, 1])
    return [
        tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        for start, stop in zip(low.tolist(), high.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class _ByLevels:
    """Cuts along what was learned."""

    levels: NDArray[np.uint8]
    elevation: NDArray[np.float32]
    depth: float | None
    bytes = LEVELS_BYTES

    def __call__(self, inside: NDArray[np.bool_], box: _Slices) -> tuple[NDArray[np.int32], int]:
        if self.depth is not None:
            return cut_by_depth(inside, self.elevation[box], self.depth)
        return cut_by_levels(np.where(inside, self.levels[box], 0).astype(np.uint8), self.elevation[box])

    def release(self) -> None:
        release(self.levels)
        release(self.elevation)


@dataclass(frozen=True)
class _ByDistance:
    """Cuts at necks."""

    depth: float
    spacing: Sequence[float]
    bytes = DISTANCE_BYTES

    def __call__(self, inside: NDArray[np.bool_], box: _Slices) -> tuple[NDArray[np.int32], int]:
        return cut_by_distance(inside, self.depth, self.spacing)

    def release(self) -> None:
        """Nothing is held."""


def _cut_all(ids: NDArray[Any], boxes: list[_Slices], cut: _ByLevels | _ByDistance, memory: int) -> None:
    """Cut each component within its box, grown by a voxel; the first part keeps the number, others get new ones."""
    seen = 0
    for number in range(1, len(boxes) + 1):
        box = grown_slices(boxes[number - 1], 1, ids.shape)
        inside = ids[box] == number
        if inside.size * cut.bytes > memory:
            raise MedunetError(
                f"objects that touch each other lie in a box of {inside.size:,} voxels; telling them apart takes "
                f"{bytes_text(inside.size * cut.bytes)}, and {bytes_text(memory)} are allowed\n"
                "allow more with --memory, or cut the scan"
            )
        parts, count = cut(inside, box)
        if count > 1:
            names = np.array([0, number, *range(len(boxes) + 1, len(boxes) + count)], dtype=ids.dtype)
            ids[box][inside] = names[parts[inside]]
            own, *others = (_within(part, box) for part in find_objects(parts))
            boxes[number - 1] = own
            boxes += others
        seen += inside.size
        if seen > _CHUNK:
            seen = 0
            release(ids)
            cut.release()


def _within(part: _Slices, box: _Slices) -> _Slices:
    return tuple(slice(b.start + p.start, b.start + p.stop) for p, b in zip(part, box, strict=True))


def _close_gaps(ids: NDArray[Any], reach: int) -> None:
    """See `without_gaps`; each slab is looked at with the rows around it as they were before."""
    halo = 2 * reach
    before = ids[:0].copy()
    for rows in _rows(ids):
        known = np.concatenate([before, ids[rows.start : rows.stop + halo]])
        lead, length = len(before), rows.stop - rows.start
        before = known[: lead + length][-halo:].copy()
        ids[rows] = without_gaps(known, reach)[lead : lead + length]
        release(ids)


def _fill_holes(ids: NDArray[Any], boxes: Sequence[_Slices]) -> None:
    """Small boxes first, so that what lies in an object within a ring belongs to the inner one."""
    volumes = [int(np.prod([s.stop - s.start for s in box])) for box in boxes]
    seen = 0
    for index in np.argsort(volumes, kind="stable").tolist():
        part = ids[boxes[index]]
        holes = holes_of(part == index + 1) & (part == 0)
        if holes.any():
            part[holes] = index + 1
        seen += part.size
        if seen > _CHUNK:
            seen = 0
            release(ids)


@dataclass(frozen=True)
class _Kept:
    """The objects that are kept: large enough, and reaching the level that is needed.

    Attributes:
        cut: the fewest voxels of objects that the scan's border cuts; None where these are left out.
    """

    count: int
    level: int
    voxels: float
    cut: float | None

    @staticmethod
    def of(landscape: Landscape, rule: ObjectRule, count: int) -> _Kept:
        elevation_rule, undo = landscape.elevation_rule, landscape.undo
        learned = elevation_rule.min_size * prod(undo.kept) / prod(undo.shape)
        voxels = learned if rule.min_size is None else rule.min_size
        cut = None if rule.drop_edge else float(rule.min_size or 0)
        return _Kept(count, elevation_rule.needed, voxels, cut)

    def __call__(self, sizes: NDArray[np.int64], reached: NDArray[np.bool_], at_edge: NDArray[np.bool_]) -> Any:
        large = sizes >= np.where(at_edge, np.inf if self.cut is None else self.cut, self.voxels)
        return large & reached


def _renumbered(ids: NDArray[Any], levels: NDArray[np.uint8], keep: _Kept, empty: Empty) -> Objects:
    """The objects that are kept, numbered in the order of their first voxels."""
    count = keep.count
    sizes, first = np.zeros(count + 1, dtype=np.int64), np.full(count + 1, -1, dtype=np.int64)
    at_edge, reached = np.zeros(count + 1, dtype=bool), np.zeros(count + 1, dtype=bool)
    for rows in _rows(ids):
        flat = ids[rows].reshape(-1)
        sizes += np.bincount(flat, minlength=count + 1)
        places = np.flatnonzero(flat)[::-1]
        here = np.full(count + 1, -1, dtype=np.int64)
        here[flat[places]] = places  # of several places the last one stays, which is the first voxel
        first = np.where((first < 0) & (here >= 0), here + rows.start * (ids.size // len(ids)), first)
        at_edge |= at_edges(ids[rows], count, (rows.start == 0, rows.stop == len(ids)))
        reached[ids[rows][levels[rows] >= keep.level]] = True
        release(ids)
        release(levels)
    found = np.flatnonzero((first >= 0) & keep(sizes, reached, at_edge))
    order = found[np.argsort(first[found])]
    names = np.zeros(count + 1, dtype=np.uint16 if len(order) < 2**16 else np.uint32)
    names[order] = np.arange(1, len(order) + 1)
    result = empty(ids.shape, names.dtype)
    for rows in _rows(ids):
        result[rows] = names[ids[rows]]
        release(ids)
        release(result)
    return Objects(result.T[None], len(order), int(np.count_nonzero(first >= 0)) - len(order))
