"""From the answers for a scan to its objects, numbered: slab by slab and component by component.

The result is that of one computation over the whole scan, however large: components of the mask are joined across
slabs, and each is cut into its objects within its own box, where nothing else has an influence on it
(see `inference/instances.py`). Numbers follow the order of the first voxels: by z, then y, then x.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medunet.data.blocks import Empty
from medunet.data.instances import InstanceSettings
from medunet.data.labels import LabelTable
from medunet.data.preprocess import Undo
from medunet.data.scratch import release
from medunet.errors import ConfigError, MedunetError
from medunet.geometry.boxes import Box, grown_slices
from medunet.inference.instances import (
    DISTANCE_BYTES,
    LEVELS_BYTES,
    ObjectRule,
    connected,
    cut_by_distance,
    cut_by_levels,
    holes_of,
    without_gaps,
)
from medunet.model import Model
from medunet.segmentation.planning import bytes_text

_CHUNK = 2**22
"""Voxels that are looked at together; each needs about 20 bytes then."""
_STEPS = 4096
"""Elevations are multiples of one of so many parts: where a network is sure, voxels are of one height and are shared by
distance, and not by the last bit of a sum, which another order of summing changes."""
_Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Relief:
    """How objects rise from the background in what a model answers.

    Attributes:
        levels: of each class, 0 outside of objects, and higher the deeper inside.
        weights: of each class (or region): its share in the elevation that keeps touching objects apart; None where
            nothing of the kind was learned.
        reach: how many voxels of the network's grid training took from objects where they touch.
    """

    levels: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    reach: int = 0


def relief_of(models: Sequence[Model], rule: ObjectRule) -> Relief:
    """How the models' objects are found.

    Raises:
        ConfigError: models of several kinds of objects, or that learned objects in different ways; or a rule that is
            not for them.
    """
    relief = _relief(models)
    if relief.weights is not None and rule.split is not None:
        raise ConfigError(
            f"--split {rule.split:g}: this model learned where objects end (instances.target: "
            f"{_target(models[0].card.instances)}), and they are told apart by that; leave --split out"
        )
    return relief


def _relief(models: Sequence[Model]) -> Relief:
    first = models[0].card
    for other in models[1:]:
        if _target(other.card.instances) != _target(first.instances):
            raise ConfigError(
                f"{other.path} and {models[0].path} learned objects in different ways "
                f"({_target(other.card.instances)} and {_target(first.instances)}); --instances needs models of one way"
            )
    if first.instances is not None:
        return _relief_of_objects(first.instances, first.labels)
    if len(first.labels.scored) != 1:
        raise ConfigError(
            f"--instances needs a model of one kind of object; this one learned {len(first.labels.scored)}: "
            f"{', '.join(first.labels.scored)}\nleave --instances out, or train on label files with object ids "
            '("label_kind": "instances" in dataset.json)'
        )
    (indices,) = first.labels.scored.values()
    return Relief(tuple(int(index in indices) for index in range(first.labels.classes)))


def _target(instances: InstanceSettings | None) -> str:
    return instances.target if instances else "classes"


def _relief_of_objects(instances: InstanceSettings, labels: LabelTable) -> Relief:
    if instances.target == "border":
        return Relief((0, 2, 1), (0.0, 0.0, 1.0))
    if instances.target == "cores":
        return Relief(tuple(range(labels.classes)), (-1.0 / labels.outputs,) * labels.outputs)
    return Relief((0, 1), None, int(instances.target == "separated"))


@dataclass
class Terrain:
    """Levels and elevation of one scan, collected box by box, on the scan's own grid.

    Attributes:
        levels: `(*spatial)` uint8; see `Relief`.
        elevation: `(*spatial)` float32, in steps of 1/4096, anything outside of the mask; None without weights.
    """

    relief: Relief
    undo: Undo
    levels: NDArray[np.uint8]
    elevation: NDArray[np.float32] | None

    @staticmethod
    def blank(relief: Relief, undo: Undo, shape: Sequence[int], empty: Empty) -> Terrain:
        """Nothing but background; arrays run along x first in memory.

        Args:
            shape: of the scan.
            empty: makes the arrays.
        """
        levels = empty(tuple(shape)[::-1], np.uint8)
        for rows in _rows(levels):
            levels[rows] = 0
            release(levels)
        elevation = None if relief.weights is None else empty(tuple(shape)[::-1], np.float32).T
        return Terrain(relief, undo, levels.T, elevation)

    @property
    def needs_scores(self) -> bool:
        return self.relief.weights is not None

    def put(self, box: Box, winners: NDArray[np.uint8], scores: Sequence[NDArray[np.float32]]) -> None:
        """Take a box of the kept part, see `Canvas.put`."""
        self.undo.kept_part(self.levels[None])[0][box.slices] = np.array(self.relief.levels, np.uint8)[winners]
        release(self.levels)
        if self.elevation is not None and self.relief.weights is not None:
            weighted = [w * one for w, one in zip(self.relief.weights, scores, strict=True) if w]
            steps = np.rint(_STEPS * np.sum(weighted, axis=0)) / _STEPS
            self.undo.kept_part(self.elevation[None])[0][box.slices] = steps
            release(self.elevation)


@dataclass(frozen=True)
class Workspace:
    """What numbering may use: where large arrays live, and how many bytes of memory."""

    empty: Empty
    memory: int


@dataclass(frozen=True)
class Objects:
    """The objects of one scan.

    Attributes:
        ids: `(1, *spatial)`, 0 is background, objects are numbered from 1 without gaps; uint16, or uint32 from 65536
            objects on.
        count: how many.
    """

    ids: NDArray[Any]
    count: int


def find_objects_of(terrain: Terrain, rule: ObjectRule, spacing: Sequence[float], work: Workspace) -> Objects:
    """Number the objects of a scan.

    Args:
        spacing: the size of a voxel along each axis, in any unit.

    Raises:
        MedunetError: objects that touch each other fill more of the scan than can be cut in the memory allowed.
    """
    levels = terrain.levels.T
    elevation = None if terrain.elevation is None else terrain.elevation.T
    ids = work.empty(levels.shape, np.int32 if levels.size < 2**30 else np.int64)
    boxes = _number_components(levels, ids)
    if elevation is not None:
        _cut_all(ids, boxes, _ByLevels(levels, elevation), work.memory)
    elif rule.split is not None:
        smallest = min(spacing)
        _cut_all(ids, boxes, _ByDistance(rule.split, [n / smallest for n in reversed(spacing)]), work.memory)
    reach = terrain.relief.reach * _scale(terrain.undo)
    if reach:
        _close_gaps(ids, reach)
        boxes = [grown_slices(box, reach, ids.shape) for box in boxes]
    if rule.fill_holes:
        _fill_holes(ids, boxes)
    return _renumbered(ids, len(boxes), rule, work.empty)


def _scale(undo: Undo) -> int:
    """How many voxels of the scan one voxel of the network's grid is long, at least 1."""
    return max(1, *(round(own / seen) for own, seen in zip(undo.kept, undo.shape, strict=True)))


def _rows(array: NDArray[Any]) -> Iterator[slice]:
    """Parts along the first axis."""
    step = max(1, _CHUNK // max(1, array.size // len(array)))
    return (slice(start, min(start + step, len(array))) for start in range(0, len(array), step))


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
    bytes = LEVELS_BYTES

    def __call__(self, inside: NDArray[np.bool_], box: _Slices) -> tuple[NDArray[np.int32], int]:
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
        _require_memory(inside.size * cut.bytes, inside.size, memory)
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


def _require_memory(needed: int, voxels: int, memory: int) -> None:
    if needed > memory:
        raise MedunetError(
            f"objects that touch each other lie in a box of {voxels:,} voxels; telling them apart takes "
            f"{bytes_text(needed)}, and {bytes_text(memory)} are allowed\nallow more with --memory, or cut the scan"
        )


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


def _renumbered(ids: NDArray[Any], count: int, rule: ObjectRule, empty: Empty) -> Objects:
    """The objects that the rule keeps, numbered in the order of their first voxels."""
    sizes, first = np.zeros(count + 1, dtype=np.int64), np.full(count + 1, -1, dtype=np.int64)
    at_edge = np.zeros(count + 1, dtype=bool)
    for rows in _rows(ids):
        flat = ids[rows].reshape(-1)
        sizes += np.bincount(flat, minlength=count + 1)
        places = np.flatnonzero(flat)[::-1]
        here = np.full(count + 1, -1, dtype=np.int64)
        here[flat[places]] = places  # of several places the last one stays, which is the first voxel
        first = np.where((first < 0) & (here >= 0), here + rows.start * (ids.size // len(ids)), first)
        at_edge |= _reaching(ids[rows], count, rows.start == 0, rows.stop == len(ids))
        release(ids)
    kept = (first >= 0) & (sizes >= rule.min_size) & ~(at_edge & rule.drop_edge)
    found = np.flatnonzero(kept)
    order = found[np.argsort(first[found])]
    names = np.zeros(count + 1, dtype=np.uint16 if len(order) < 2**16 else np.uint32)
    names[order] = np.arange(1, len(order) + 1)
    result = empty(ids.shape, names.dtype)
    for rows in _rows(ids):
        result[rows] = names[ids[rows]]
        release(ids)
        release(result)
    return Objects(result.T[None], len(order))


def _reaching(slab: NDArray[Any], count: int, is_first: bool, is_last: bool) -> NDArray[np.bool_]:
    """For each number, whether a slab's voxels of it lie on the border of the scan."""
    found = np.zeros(count + 1, dtype=bool)
    for axis in range(slab.ndim):
        for end, counts in ((0, axis > 0 or is_first), (-1, axis > 0 or is_last)):
            if counts:
                found[slab.take(end, axis).reshape(-1)] = True
    return found
