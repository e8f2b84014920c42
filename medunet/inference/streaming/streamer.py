"""Streamer: exact whole-scan inference in slabs of a few rows, each activation computed once.

Every operator keeps the rows of its input that the next slab's results need, so every skip connection is a queue of
rows until the upsampled path reaches them. The result is that of one pass over the whole scan; what is held does not
depend on the scan's length. `schedule.py` says which rows exist when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box, Fill, read_box
from medunet.inference.execution import WHOLE, Execution, Image, Passage, Progress, Runner, Slab, as_array, computing
from medunet.inference.streaming.graph import Convolution, Graph, Input, Joining
from medunet.inference.streaming.operators import Layer, Span, Target, ready_layer
from medunet.inference.streaming.plan import StreamPlan
from medunet.inference.streaming.ring_buffers import RowBuffer
from medunet.inference.streaming.schedule import Schedule
from medunet.inference.streaming.trace import graph_of


@dataclass(frozen=True)
class Stream:
    """Streaming, by its plan."""

    plan: StreamPlan

    def rows(self, runner: Runner, image: Image, passage: Passage, progress: Progress | None = None) -> Iterator[Slab]:
        """Logits slab by slab; see `Streamer.run`.

        Args:
            runner: a `Streamer`, which has its layers ready.
        """
        assert isinstance(runner, Streamer), "a scan is streamed by a streamer"
        return runner.run(image, self.plan.slab, progress, passage)


class Streamer(Runner):
    """A network made ready to stream scans.

    Args:
        network: any network of local operators in evaluation mode; its weights are copied when a scan first needs them,
            with batch norm folded into the convolutions.
        execution: where and how; float32 on the CPU by default. Lower precisions convert weights and maps.
        graph: of the network; traced if not given.

    Raises:
        NotLocal: training mode, or a layer that needs the whole scan at once, by name.
    """

    def __init__(self, network: nn.Module, execution: Execution | None = None, graph: Graph | None = None) -> None:
        super().__init__(network, execution)
        self.graph = graph or graph_of(network)
        double = all(p.dtype == torch.float64 for p in network.parameters())
        lower = self.execution.dtype != torch.float32
        self._dtype = torch.float64 if double and not lower else self.execution.dtype
        self._layers: dict[Target, list[Layer]] = {}

    def run(
        self, image: Image, slab: int, progress: Progress | None = None, passage: Passage = WHOLE
    ) -> Iterator[Slab]:
        """Stream one scan.

        A network that keeps the size sees the far sides zero-padded to multiples of its stride, another one sees the
        scan mirrored at its borders; either is made row by row.

        Args:
            image: ``(channel, *spatial)`` on the host, of any size; a tensor, an array, or anything that gives boxes of
                itself as an array does; not changed.
            slab: rows fed at a time.
            progress: called after each slab with the number of slabs done and of all.
            passage: the streamed axis, a part of the scan, or a mirrored one; see there.

        Returns:
            ``(start, stop, logits)`` in order, covering the region once. Logits are ``(class, *spatial)`` with
            ``stop - start`` rows on the streamed axis, float32 (float64 for a network in float64), on the device.

        Raises:
            ConfigError: the image's channels or axes are not the network's, it is empty, the slab is below 1, or the
                passage does not fit the image.
        """
        self._check(image, slab)
        _check_passage(passage, tuple(image.shape[1:]))
        device = torch.device(self.execution.device)
        target = Target(self._dtype, device, passage.axis, passage.axis in passage.mirror)
        return self._run(
            _Pass(self.graph, self._ready(target), _Source(image, self.graph, passage), target, slab), progress
        )

    def _ready(self, target: Target) -> list[Layer]:
        """The layers; `backwards` for a scan that is mirrored along the streamed axis, yet comes in its own order."""
        if target not in self._layers:
            with torch.inference_mode():
                self._layers[target] = [ready_layer(node.operator, target) for node in self.graph.nodes[1:]]
        return self._layers[target]

    def _run(self, one: _Pass, progress: Progress | None) -> Iterator[Slab]:
        for step in range(one.steps):
            with computing(self.execution):  # not around the yield, where the caller's code runs
                slab = one.step(step)
            if progress:
                progress(step + 1, one.steps)
            if slab is not None:
                yield slab

    def _check(self, image: Image, slab: int) -> None:
        dimensions, channels = len(image.shape) - 1, self.graph.in_channels
        if dimensions != self.graph.dimensions or image.shape[0] != channels or min(image.shape) < 1:
            raise ConfigError(
                f"found an image of shape {tuple(image.shape)}, expected ({channels}, *spatial) with "
                f"{self.graph.dimensions} spatial axes of at least one voxel"
            )
        if slab < 1:
            raise ConfigError(f"found slabs of {slab} rows, expected at least 1")


def _check_passage(passage: Passage, scan: tuple[int, ...]) -> None:
    passage.check(len(scan))
    region, axis = passage.region or Box.of_shape(scan), passage.axis
    if region.voxels == 0 or region.dimensions != len(scan) or not Box.of_shape(scan).contains(region):
        raise ConfigError(f"the region {region.start} to {region.stop} is no part of a scan of shape {scan}")
    if region.start[axis] != 0 or region.stop[axis] != scan[axis]:
        raise ConfigError(f"the region must be complete along axis {axis}, which is streamed")


class _Pass:
    """One scan on its way through the network: its source, and the rows in between."""

    def __init__(self, graph: Graph, layers: list[Layer], source: _Source, target: Target, slab: int) -> None:
        self._graph, self._layers, self._source, self._target = graph, layers, source, target
        axis = target.axis
        schedule = Schedule.of(graph, axis, source.size[axis], source.window[axis], slab, target.backwards)
        self._known, self._needed = schedule.known.tolist(), schedule.needed.tolist()
        self._schedule = schedule
        planes = [graph.lengths(a, n) for a, n in enumerate(source.size) if a != axis]
        self._planes = [tuple(plane[number] for plane in planes) for number in range(len(graph.nodes))]
        self._buffers = [self._buffer(number, target) for number in range(len(graph.nodes))]
        self._joined = [self._joined_by(number) for number in range(len(graph.nodes))]
        self._last = [max(readers, default=len(graph.nodes)) for readers in graph.readers]

    def _buffer(self, number: int, target: Target) -> RowBuffer | None:
        schedule, channels = self._schedule, self._graph.nodes[number].channels
        if not schedule.stored[number]:
            return None
        storage = target.empty(channels, schedule.capacity[number], self._planes[number])
        return RowBuffer(storage, schedule.rings[number])

    def _joined_by(self, number: int) -> tuple[int, int] | None:
        """The stored map of which a node's rows become channels at once, and the first channel; None if they do not."""
        readers, known = self._graph.readers[number], self._schedule.known
        if self._buffers[number] is not None or len(readers) != 1:
            return None
        reader = self._graph.nodes[readers[0]]
        if not isinstance(reader.operator, Joining) or self._buffers[readers[0]] is None:
            return None
        if reader.inputs.count(number) > 1 or not np.array_equal(known[:, number], known[:, readers[0]]):
            return None
        before = reader.inputs[: reader.inputs.index(number)]
        return readers[0], sum(self._graph.nodes[source].channels for source in before)

    @property
    def steps(self) -> int:
        return len(self._known) - 1

    def step(self, step: int) -> Slab | None:
        """Feed one slab; the rows of the scan that follow from it and their logits, or None."""
        before, after = self._known[step], self._known[step + 1]
        for buffer, first in zip(self._buffers, self._needed[step], strict=True):
            if buffer is not None:
                buffer.release(first)
        fresh: dict[int, Any] = {}
        room: dict[int, Tensor] = {}
        for number, node in enumerate(self._graph.nodes):
            start, stop = before[number], after[number]
            if start == stop:
                continue
            out = self._room(number, stop - start, room)
            if isinstance(node.operator, Input):
                rows = self._source.read(start, (stop - start, *self._planes[0]))
                if out is None:
                    out = self._target.empty(node.channels, stop - start, self._planes[0])
                fresh[number] = out.copy_(rows)
                continue
            span = Span(start, stop, self._schedule.reaches[number], self._schedule.lengths[node.inputs[0]],
                        self._spare(number, node.inputs[0]))  # fmt: skip
            if isinstance(node.operator, Joining) and out is not None:
                self._join(number, out, fresh, span, before)
                fresh[number] = out
            else:
                inputs = [self._rows(source, span, fresh, before) for source in node.inputs]
                fresh[number] = self._layers[number - 1](inputs, span, out)
            for source in node.inputs:
                if self._last[source] == number:
                    fresh.pop(source, None)
        last = len(self._graph.nodes) - 1
        return self._answer(fresh[last], before[last]) if after[last] > before[last] else None

    def _room(self, number: int, count: int, room: dict[int, Tensor]) -> Tensor | None:
        """Where a node's new rows go if they are stored, or joined with others in what is stored."""
        if number in room:
            return room[number]
        buffer = self._buffers[number]
        if buffer is not None:
            room[number] = buffer.append(count)
            return room[number]
        joined = self._joined[number]
        if joined is None:
            return None
        reader, first = joined
        if reader not in room:
            room[reader] = self._buffers[reader].append(count)  # type: ignore[union-attr]
        return room[reader].narrow(1, first, self._graph.nodes[number].channels)

    def _join(self, number: int, out: Tensor, fresh: dict[int, Any], span: Span, before: Sequence[int]) -> None:
        """Fill in the channels that are not there yet."""
        first = 0
        for source in self._graph.nodes[number].inputs:
            channels = self._graph.nodes[source].channels
            if self._joined[source] is None:
                out.narrow(1, first, channels).copy_(self._rows(source, span, fresh, before))
            first += channels

    def _rows(self, source: int, span: Span, fresh: dict[int, Any], before: Sequence[int]) -> Any:
        """The rows of a source that a step reads: stored ones, or some of those that were just made."""
        buffer = self._buffers[source]
        if buffer is not None:
            return buffer.read(*span.rows)
        (first, stop), made = span.rows, fresh[source]
        whole = not isinstance(made, Tensor) or made.shape[2] == stop - first
        return made if whole else made.narrow(2, first - before[source], stop - first)

    def _spare(self, number: int, source: int) -> bool:
        """Whether the rows of a source are in nobody else's hands."""
        return (
            self._buffers[source] is None
            and self._joined[source] is None
            and self._last[source] == number
            and self._graph.nodes[source].channels > 0
            and isinstance(self._graph.nodes[source].operator, Convolution)
        )

    def _answer(self, rows: Tensor, start: int) -> Slab | None:
        """Logits of the rows that lie in the scan; those beside it belong to the padding."""
        wanted = self._source.wanted
        first, stop = max(start, wanted.start), min(start + rows.shape[2], wanted.stop)
        if first >= stop:
            return None
        logits = rows.narrow(2, first - start, stop - first)[0]
        logits = self._source.turned_back(logits if logits.dtype == torch.float64 else logits.to(torch.float32))
        return first - wanted.start, stop - wanted.start, logits


class _Source:
    """A scan, read a few rows at a time with what lies around it: zeros, or the scan mirrored.

    Along the streamed axis rows come in the scan's order; where the network is to see it mirrored, what pads the scan
    to a legal size comes first. Positions on the other axes are those of the mirrored scan, if it is.

    Attributes:
        window: spatial shape of what the network answers for, padding included on the streamed axis.
        size: of the network's input for that.
        wanted: rows of the answer that are rows of the scan.
    """

    def __init__(self, image: Image, shape: Graph, passage: Passage) -> None:
        axis = passage.axis
        self._array, self._axis, self._turned = as_array(image), axis, passage.mirror
        self._scan = tuple(image.shape[1:])
        self._region = self._reflected(passage.region or Box.of_shape(self._scan))
        around = shape.context(self._region, self._scan)
        before = _padding(shape, self._scan, axis) if axis in passage.mirror else 0
        length = self._scan[axis] + before
        self.window = tuple(length if a == axis else n for a, n in enumerate(around.shape))
        self.wanted = range(before, length)
        self.size = shape.smallest_for(self.window)
        self._start = around.start
        self._origin = tuple(
            start - margin - (before if a == axis else 0)
            for a, (start, margin) in enumerate(zip(around.start, shape.margin, strict=True))
        )
        self._mode: Fill = "constant" if shape.padded else "reflect"

    def read(self, row: int, size: Sequence[int]) -> Tensor:
        """``(1, channel, *size)``, streamed axis first, from a row of the network's input on, in the scan's type."""
        axis = self._axis
        lengths = (*size[1 : axis + 1], size[0], *size[axis + 1 :])
        box = Box.of_shape(lengths, [o + row if a == axis else o for a, o in enumerate(self._origin)])
        read = torch.from_numpy(read_box(self._array, self._reflected(box), self._mode))
        return self._flipped(read).movedim(axis + 1, 1)[None]

    def turned_back(self, logits: Tensor) -> Tensor:
        """``(class, *spatial)`` of the region from ``(class, row, *plane)`` of the window."""
        logits = logits.movedim(1, self._axis + 1)
        for a, (inner, outer, n) in enumerate(zip(self._region.start, self._start, self._region.shape, strict=True)):
            logits = logits if a == self._axis else logits.narrow(a + 1, inner - outer, n)
        return self._flipped(logits)

    def _reflected(self, box: Box) -> Box:
        """The box of the scan that a box of the mirrored scan is, or the other way round."""
        return box.mirrored(self._scan, [axis for axis in self._turned if axis != self._axis])

    def _flipped(self, array: Tensor) -> Tensor:
        axes = [axis + 1 for axis in self._turned if axis != self._axis]
        return array.flip(axes) if axes else array


def _padding(shape: Graph, scan: Sequence[int], axis: int) -> int:
    """Rows of the network's answer that are more than the scan has."""
    return shape.smallest_for(scan)[axis] - 2 * shape.margin[axis] - scan[axis]
