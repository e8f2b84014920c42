"""Schedule of a stream: the rows of every node that exist and are still needed while a scan comes in.

Integers only, so the memory of a stream is known before it starts. A row is a position on the streamed axis with all of
the other axes. A complete map counts on as if the scan did not end: what is behind its last row arrives as slowly as
the rows before, so that the last slab does not set free all rows that were waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medunet.inference.streaming.graph import Graph
from medunet.inference.streaming.rules import IDENTITY, Reach

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The rows of a graph's nodes along one axis.

    Attributes:
        graph: the network's.
        axis: the streamed one.
        length: of the network's input along it; legal.
        wanted: rows of the output that are asked for, at most all.
        slab: rows fed at a time.
        backwards: the network sees the scan mirrored along the axis, which comes in its own order.
    """

    graph: Graph
    axis: int
    length: int
    wanted: int
    slab: int
    backwards: bool = False

    @staticmethod
    def of(graph: Graph, axis: int, length: int, wanted: int, slab: int, backwards: bool = False) -> Schedule:
        key = (axis, length, wanted, slab, backwards)
        return graph.once(key, lambda: Schedule(graph, *key))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The rows of the complete maps."""
        return self.graph.lengths(self.axis, self.length)

    @cached_property
    def reaches(self) -> tuple[Reach, ...]:
        reaches = self.graph.reaches(self.axis, self.length)
        if not self.backwards:
            return reaches
        return tuple(
            reach if reach == IDENTITY else reach.mirrored(self.lengths[node.inputs[0]], self.lengths[number])
            for number, (reach, node) in enumerate(zip(reaches, self.graph.nodes, strict=True))
        )

    @cached_property
    def known(self) -> Counts:
        """Rows of each node (second axis) before the first slab and after each (first axis)."""
        steps = -(-self.length // self.slab) + 4
        while True:
            known = self._known(steps)
            done = np.flatnonzero(known[:, -1] >= self.wanted)
            if len(done):
                return known[: done[0] + 1]
            steps *= 2

    def _known(self, steps: int) -> Counts:
        virtual = np.empty((steps + 1, len(self.lengths)), dtype=np.int64)
        virtual[:, 0] = np.arange(steps + 1) * self.slab
        for number, (node, reach) in enumerate(zip(self.graph.nodes, self.reaches, strict=True)):
            if number:
                ready = virtual[:, list(node.inputs)].min(axis=1)
                virtual[:, number] = np.where(ready > 0, np.maximum(reach.made(ready), 0), 0)
        known: Counts = np.minimum(virtual, self.lengths)
        return known

    @cached_property
    def needed(self) -> Counts:
        """The first row of each node that somebody has yet to read, at the same times; all rows where nobody does."""
        needed = np.broadcast_to(np.array(self.lengths), self.known.shape).copy()
        for number, (node, reach) in enumerate(zip(self.graph.nodes, self.reaches, strict=True)):
            complete = self.known[:, number] >= self.lengths[number]
            for source in node.inputs:
                first = np.clip(reach.first(self.known[:, number]), 0, self.lengths[source] - 1)
                needed[:, source] = np.minimum(needed[:, source], np.where(complete, self.lengths[source], first))
        least: Counts = np.minimum(needed, self.known)
        return least

    @cached_property
    def stored(self) -> tuple[bool, ...]:
        """Whether a node's rows must wait: somebody reads other rows than those that a slab has just made."""
        waits = [False] * len(self.lengths)
        works = np.diff(self.known, axis=0) > 0
        for number, (node, reach) in enumerate(zip(self.graph.nodes, self.reaches, strict=True)):
            for source in node.inputs:
                first = np.clip(reach.first(self.known[:-1, number]), 0, self.lengths[source] - 1)
                waits[source] |= bool((works[:, number] & (first < self.known[:-1, source])).any())
        return tuple(waits)

    @cached_property
    def made(self) -> Counts:
        """The most rows of each node that one slab adds."""
        made: Counts = np.diff(self.known, axis=0).max(axis=0)
        return made

    @cached_property
    def capacity(self) -> tuple[int, ...]:
        """Rows of each node's buffer; see `rings`."""
        held = (self.known[1:] - self.needed[:-1]).max(axis=0)
        return tuple(
            int(rows + (made - 1 if ring else 0)) for rows, made, ring in zip(held, self.made, self.rings, strict=True)
        )

    @cached_property
    def rings(self) -> tuple[bool, ...]:
        """Whether more rows wait than a slab adds, so that they must not be moved."""
        kept = (self.known[:-1] - self.needed[:-1]).max(axis=0)
        return tuple(bool(ring) for ring in kept > self.made)
