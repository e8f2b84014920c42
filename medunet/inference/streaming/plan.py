"""Plan of a stream: its axis, the thickness of its slabs, the number of its parts, and the memory they need."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box
from medunet.inference.streaming.graph import Graph
from medunet.inference.streaming.schedule import Schedule

FLOAT = 4
FIXED = 18 * 2**20
"""What torch and oneDNN take besides, and the heap's waste."""
SLABS = (64, 32, 16, 8, 4, 2, 1)
SLAB_VOXELS = 2**17
"""Slabs of more voxels were not faster (network of 16-32-64-128 channels on one core)."""
MOST_WORK = 8.0
"""How often each voxel may be computed, on average, where a scan is split: as often as overlapping windows do. Beyond
that a split is refused rather than taking hours."""
PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Into how many parts an axis is split."""


@dataclass(frozen=True)
class Budget:
    """The budget of a plan.

    Attributes:
        memory: bytes at hand, above the loaded network and the scan.
        itemsize: bytes of a number in the precision that is used.
        copies: how many passes of such a network run in step; each holds its rows and its logits.
        networks: how many copies of the weights are made ready for them.
        beside: bytes that the caller needs for each voxel of a slab, for what it reads and what it makes of the logits.
    """

    memory: int
    itemsize: int = FLOAT
    copies: int = 1
    networks: int = 1
    beside: int = 0


@dataclass(frozen=True)
class StreamPlan:
    """The plan of a stream.

    Attributes:
        slab: rows fed at a time.
        axis: the spatial axis that is streamed.
        bytes: peak memory that this needs, see `stream_bytes`.
        parts: into how many parts each axis is split; 1 along the streamed one.
        work: voxels that are computed, for each voxel of the scan; 1 unless parts overlap.
    """

    slab: int
    axis: int
    bytes: int
    parts: tuple[int, ...]
    work: float = 1.0


def plan_stream(graph: Graph, shape: Sequence[int], budget: Budget, axes: Sequence[int] = (0,)) -> StreamPlan:
    """The thickest slab that is worth it and fits the memory; of several axes the one that then needs least.

    A scan whose thinnest slabs do not fit is split along the axes that are not streamed, with as little to be computed
    twice as possible.

    Args:
        graph: the network's.
        shape: of the scan, spatial, at least one voxel per axis.
        axes: that may be streamed.

    Returns:
        The plan; if none fits, the one that needs least, whose `bytes` then exceed the budget.

    Raises:
        ConfigError: shape or axes do not fit the network.
    """
    _check(graph, shape, axes)
    key = (tuple(shape), budget, tuple(axes))
    return graph.once(key, lambda: _plan(graph, *key))


def _plan(graph: Graph, shape: tuple[int, ...], budget: Budget, axes: tuple[int, ...]) -> StreamPlan:
    whole = [_Split(axis, (1,) * len(shape), shape, 1.0) for axis in axes]
    for slab in SLABS:
        worth = [way for way in whole if slab <= 2 or slab * way.plane <= SLAB_VOXELS]
        plans = [_with_slab(graph, way, slab, budget) for way in worth]
        best = min(plans, key=lambda plan: plan.bytes, default=None)
        if best is not None and best.bytes <= budget.memory:
            return best
    assert best is not None, "the thinnest slabs are always tried"
    least = best
    for way in sorted(_splits(graph, shape, axes), key=lambda way: way.work):
        thinnest = _with_slab(graph, way, 1, budget)
        if thinnest.bytes <= budget.memory:
            thicker = (_with_slab(graph, way, slab, budget) for slab in (8, 4, 2))
            return next((plan for plan in thicker if plan.bytes <= budget.memory), thinnest)
        least = min(least, thinnest, key=lambda plan: plan.bytes)
    return least


def _with_slab(graph: Graph, way: _Split, slab: int, budget: Budget) -> StreamPlan:
    needs = stream_bytes(graph, way.window, slab, way.axis, budget) + budget.beside * slab * way.plane
    return StreamPlan(slab, way.axis, needs, way.parts, way.work)


def stream_bytes(graph: Graph, shape: tuple[int, ...], slab: int, axis: int, budget: Budget) -> int:
    """Peak memory of streaming a scan on the CPU, above the loaded network and the scan.

    The rows held between slabs, the largest maps that are made and dropped within a slab, the copies of the weights and
    the logits of two slabs, the caller's and the next. None of them grows with the scan along the streamed axis, apart
    from scans shorter than the network's field of view.
    """
    size = graph.smallest_for(shape)
    schedule = Schedule.of(graph, axis, size[axis], shape[axis], slab)
    rows = _row_numbers(graph, tuple(n for a, n in enumerate(size) if a != axis), axis)
    held = sum(n * row for n, row, stored in zip(schedule.capacity, rows, schedule.stored, strict=True) if stored)
    logits = int(schedule.made[-1]) * rows[-1]
    result = 2 * FLOAT * logits + (budget.itemsize * logits if budget.itemsize != FLOAT else 0)
    each = budget.itemsize * held + result
    once = budget.itemsize * (_passing(schedule, rows) + budget.networks * graph.weights)
    return budget.copies * each + once + FIXED


def _row_numbers(graph: Graph, plane: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Numbers in one row of each node."""
    others = [a for a in range(graph.dimensions) if a != axis]
    lengths = [graph.lengths(a, n) for a, n in zip(others, plane, strict=True)]
    return tuple(node.channels * math.prod(each[i] for each in lengths) for i, node in enumerate(graph.nodes))


@dataclass(frozen=True)
class _Split:
    """A way to split a scan.

    Attributes:
        window: spatial shape of the largest part with what it reads around itself.
    """

    axis: int
    parts: tuple[int, ...]
    window: tuple[int, ...]
    work: float

    @property
    def plane(self) -> int:
        """Voxels in one row of the largest part."""
        return math.prod(self.window) // self.window[self.axis]


def _splits(graph: Graph, shape: tuple[int, ...], axes: Sequence[int]) -> Iterator[_Split]:
    counts = PARTS if graph.splittable else PARTS[:1]
    windows = [{p: _windows(graph, shape, a, p) for p in counts if p <= n} for a, n in enumerate(shape)]
    for axis in axes:
        for parts in itertools.product(*([1] if a == axis else windows[a] for a in range(len(shape)))):
            lengths = [windows[a][count] for a, count in enumerate(parts)]
            work = math.prod(sum(each) / n for each, n in zip(lengths, shape, strict=True))
            if work <= MOST_WORK:
                yield _Split(axis, parts, tuple(max(each) for each in lengths), work)


def _windows(graph: Graph, shape: tuple[int, ...], axis: int, parts: int) -> list[int]:
    """Lengths computed along an axis for each of its parts, with one voxel more on each side for resampling."""
    if parts == 1:
        return [shape[axis]]
    lengths = []
    for start, stop in split(shape[axis], parts):
        first, last = max(start - 1, 0), min(stop + 1, shape[axis])
        region = Box.of_shape(shape).along(axis, first, last)
        lengths.append(graph.context(region, shape).shape[axis])
    return lengths


def split(length: int, parts: int) -> list[tuple[int, int]]:
    """Spans ``(start, stop)`` of nearly equal length, side by side."""
    edges = [length * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(edges))


def _check(graph: Graph, shape: Sequence[int], axes: Sequence[int]) -> None:
    dimensions = graph.dimensions
    if len(shape) != dimensions or min(shape) < 1 or not axes or any(axis not in range(dimensions) for axis in axes):
        raise ConfigError(
            f"cannot stream a scan of shape {tuple(shape)} along axes {tuple(axes)} through a {dimensions}-D network"
        )


def _passing(schedule: Schedule, rows: Sequence[int]) -> int:
    """The most numbers that are made and dropped at once within a slab."""
    nodes, readers, alive, most = schedule.graph.nodes, schedule.graph.readers, 0, 0
    for number, node in enumerate(nodes[1:], start=1):
        made = int(schedule.made[number]) * rows[number]
        most = max(most, alive + made)
        alive += 0 if schedule.stored[number] else made
        alive -= sum(
            int(schedule.made[source]) * rows[source]
            for source in set(node.inputs)
            if source and not schedule.stored[source] and max(readers[source]) == number
        )
    return most
