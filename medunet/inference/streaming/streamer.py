"""Streamer: exact whole-scan inference in slabs of a few rows, each activation computed once.

Every convolution keeps the rows of its input that the next slab's results need, every skip connection is a queue of
rows until the upsampled path reaches them. The result is that of one pass over the whole scan; what is held does not
depend on the scan's length. `row_schedule.py` says which rows exist when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box, Fill, read_box
from medunet.geometry.shapes import UNetShape
from medunet.inference.execution import WHOLE, Execution, Image, Passage, Progress, Runner, Slab, as_array
from medunet.inference.streaming.buffer_sizes import HeldMap, StreamLayout
from medunet.inference.streaming.fused_layers import Block, FusedUNet, Target, centre, check_streamable
from medunet.inference.streaming.plan import StreamPlan
from medunet.inference.streaming.ring_buffers import RowQueue, RowWindow
from medunet.inference.streaming.row_schedule import Rows


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
        network: a `medunet.UNet` in evaluation mode; its layers are copied when a scan first needs them, with batch
            norm folded into the convolutions.
        execution: where and how; float32 on the CPU by default. Lower precisions convert weights and maps.

    Raises:
        ConfigError: not a U-Net of medunet, training mode, or a norm that takes statistics over space.
    """

    def __init__(self, network: nn.Module, execution: Execution | None = None) -> None:
        check_streamable(network)
        super().__init__(network, execution)
        double = all(p.dtype == torch.float64 for p in network.parameters())
        lower = self.execution.dtype != torch.float32
        self._dtype = torch.float64 if double and not lower else self.execution.dtype
        self._fused: dict[tuple[int, bool], FusedUNet] = {}

    def run(
        self, image: Image, slab: int, progress: Progress | None = None, passage: Passage = WHOLE
    ) -> Iterator[Slab]:
        """Stream one scan.

        A padded network sees the far sides zero-padded to multiples of its stride, an unpadded one sees the scan
        mirrored at its borders; either is made row by row.

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
        network = self._layers(passage.axis, passage.axis in passage.mirror)
        return self._run(_Pass(network, _Source(image, network, passage), slab), progress)

    def _layers(self, axis: int, backwards: bool) -> FusedUNet:
        """The layers; `backwards` for a scan that is mirrored along the streamed axis, yet comes in its own order."""
        if (axis, backwards) not in self._fused:
            target = Target(self._dtype, torch.device(self.execution.device), axis, backwards)
            with torch.inference_mode():
                self._fused[axis, backwards] = FusedUNet(self.network, target)
        return self._fused[axis, backwards]

    def _run(self, one: _Pass, progress: Progress | None) -> Iterator[Slab]:
        steps = one.schedule.steps(one.slab)
        for done, (before, after) in enumerate(pairwise(steps), start=1):
            with torch.inference_mode():  # not around the yield, where the caller's code runs
                slab = one.step(before, after)
            if progress:
                progress(done, len(steps) - 1)
            if slab is not None:
                yield slab

    def _check(self, image: Image, slab: int) -> None:
        settings = self.network.settings
        dimensions = len(image.shape) - 1
        if dimensions != settings.shape.dimensions or image.shape[0] != settings.in_channels or min(image.shape) < 1:
            raise ConfigError(
                f"found an image of shape {tuple(image.shape)}, expected ({settings.in_channels}, *spatial) with "
                f"{settings.shape.dimensions} spatial axes of at least one voxel"
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

    def __init__(self, network: FusedUNet, source: _Source, slab: int) -> None:
        target = network.target
        layout = StreamLayout(network.settings, source.window, target.axis, slab)
        self._network, self._source = network, source
        self._buffers, self.schedule, self.slab = _Buffers(layout, target), layout.schedule, slab

    def step(self, before: Rows, after: Rows) -> Slab | None:
        """Feed one slab; the rows of the scan that follow from it and their logits, or None."""
        self._buffers.release(self.schedule.needed(before))
        self._feed(before.encoder[0][0], after.encoder[0][0])
        rows = self._encode(before, after)
        for level in reversed(range(len(self._network.decoder))):
            if rows is not None:
                self._join(level, before, after, rows)
            windows = self._buffers.decoder[level]
            rows = self._block(self._network.decoder[level], windows, before.decoder[level], after.decoder[level])
            rows = rows if rows is None else self._network.decoder[level].after[-1].activate(rows)
        return None if rows is None else self._head(rows, before.output)

    def _feed(self, start: int, stop: int) -> None:
        if stop == start:
            return
        rows = self._buffers.encoder[0][0].append(stop - start)
        rows.copy_(self._source.read(start, rows.shape[2:]))

    def _encode(self, before: Rows, after: Rows) -> Tensor | None:
        """Down to the deepest level; its new rows."""
        network, buffers = self._network, self._buffers
        for level, down in enumerate(network.downs):
            counts = before.encoder[level], after.encoder[level]
            rows = self._block(network.encoder[level], buffers.encoder[level], *counts)
            if rows is not None:
                for offset, piece in buffers.skips[level].pieces(counts[0][-1], counts[1][-1]):
                    network.encoder[level].after[-1].activate_into(piece, rows.narrow(2, offset, piece.shape[2]))
            start, stop = before.encoder[level + 1][0], after.encoder[level + 1][0]
            if stop > start:
                stride, out = self.schedule.stride(level), buffers.encoder[level + 1][0].append(stop - start)
                for offset, piece in buffers.skips[level].pieces(start * stride, stop * stride):
                    down(out.narrow(2, offset // stride, piece.shape[2] // stride), piece)
        rows = self._block(network.encoder[-1], buffers.encoder[-1], before.encoder[-1], after.encoder[-1])
        return None if rows is None else network.encoder[-1].after[-1].activate(rows)

    def _block(
        self, block: Block, windows: Sequence[RowWindow], before: Sequence[int], after: Sequence[int]
    ) -> Tensor | None:
        """The new rows of a block's last convolution, normalised, to be activated; None if there are none."""
        rows: Tensor | None = None
        for number, (convolution, pointwise) in enumerate(zip(block.convolutions, block.after, strict=True)):
            count, rows = after[number + 1] - before[number + 1], None
            if count:
                first = before[number + 1] - windows[number].border
                rows = pointwise.normalise(
                    convolution(windows[number].read(first, first + count + convolution.rows - 1))
                )
            if rows is not None and number < len(windows) - 1:
                pointwise.activate_into(windows[number + 1].append(count), rows)
        if rows is not None and block.residual:
            rows = block.add_shortcut(rows, windows[0].read(before[-1] + block.crop, after[-1] + block.crop))
        return rows

    def _join(self, level: int, before: Rows, after: Rows, coarse: Tensor) -> None:
        """Skip connection and enlarged coarser map side by side, skip first."""
        start, stop, crop = before.decoder[level][0], after.decoder[level][0], self.schedule.crop(level)
        joined = self._buffers.decoder[level][0].append(stop - start)
        own = self._network.settings.channels[level]
        skip, enlarged = joined[:, :own], joined[:, own:]
        self._network.ups[level](enlarged, coarse)
        for offset, piece in self._buffers.skips[level].pieces(start + crop, stop + crop):
            rows, to = centre(piece, joined.shape[3:]), skip.narrow(2, offset, piece.shape[2])
            if self._network.gates:
                rows = self._network.gates[level](rows, enlarged.narrow(2, offset, piece.shape[2]))
            to.copy_(rows)

    def _head(self, rows: Tensor, start: int) -> Slab | None:
        """Logits of the rows that lie in the scan; those beside it belong to the padding."""
        wanted = self._source.wanted
        first, stop = max(start, wanted.start), min(start + rows.shape[2], wanted.stop)
        if first >= stop:
            return None
        logits = self._network.head(rows.narrow(2, first - start, stop - first))[0]
        logits = self._source.turned_back(logits if logits.dtype == torch.float64 else logits.to(torch.float32))
        return first - wanted.start, stop - wanted.start, logits


class _Source:
    """A scan, read a few rows at a time with what lies around it: zeros, or the scan mirrored.

    Along the streamed axis rows come in the scan's order; where the network is to see it mirrored, what pads the scan
    to a legal size comes first. Positions on the other axes are those of the mirrored scan, if it is.

    Attributes:
        window: spatial shape of what the network answers for, padding included on the streamed axis.
        wanted: rows of the answer that are rows of the scan.
    """

    def __init__(self, image: Image, network: FusedUNet, passage: Passage) -> None:
        shape, axis = network.settings.shape, network.target.axis
        self._array, self._target, self._turned = as_array(image), network.target, passage.mirror
        self._scan = tuple(image.shape[1:])
        self._region = self._reflected(passage.region or Box.of_shape(self._scan))
        around = shape.context(self._region, self._scan)
        before = _padding(shape, self._scan, axis) if axis in passage.mirror else 0
        length = self._scan[axis] + before
        self.window = tuple(length if a == axis else n for a, n in enumerate(around.shape))
        self.wanted = range(before, length)
        self._start = around.start
        self._origin = tuple(
            start - margin - (before if a == axis else 0)
            for a, (start, margin) in enumerate(zip(around.start, shape.margin, strict=True))
        )
        self._mode: Fill = "constant" if shape.padded else "reflect"

    def read(self, row: int, size: Sequence[int]) -> Tensor:
        """``(1, channel, *size)``, streamed axis first, from a row of the network's input on, in the scan's type."""
        axis = self._target.axis
        lengths = (*size[1 : axis + 1], size[0], *size[axis + 1 :])
        box = Box.of_shape(lengths, [o + row if a == axis else o for a, o in enumerate(self._origin)])
        read = torch.from_numpy(read_box(self._array, self._reflected(box), self._mode))
        return self._flipped(read).movedim(axis + 1, 1)[None]

    def turned_back(self, logits: Tensor) -> Tensor:
        """``(class, *spatial)`` of the region from ``(class, row, *plane)`` of the window."""
        logits = logits.movedim(1, self._target.axis + 1)
        for a, (inner, outer, n) in enumerate(zip(self._region.start, self._start, self._region.shape, strict=True)):
            logits = logits if a == self._target.axis else logits.narrow(a + 1, inner - outer, n)
        return self._flipped(logits)

    def _reflected(self, box: Box) -> Box:
        """The box of the scan that a box of the mirrored scan is, or the other way round."""
        return box.mirrored(self._scan, [axis for axis in self._turned if axis != self._target.axis])

    def _flipped(self, array: Tensor) -> Tensor:
        axes = [axis + 1 for axis in self._turned if axis != self._target.axis]
        return array.flip(axes) if axes else array


def _padding(shape: UNetShape, scan: Sequence[int], axis: int) -> int:
    """Rows of the network's answer that are more than the scan has."""
    return shape.smallest_for(scan)[axis] - 2 * shape.margin[axis] - scan[axis]


class _Buffers:
    """All rows that are held between slabs: windows before convolutions, and a queue for each skip connection."""

    def __init__(self, layout: StreamLayout, target: Target) -> None:
        self.encoder = [_windows(maps, target) for maps in layout.encoder]
        self.decoder = [_windows(maps, target) for maps in layout.decoder]
        self.skips = [RowQueue(target.rows(maps[-1])) for maps in layout.encoder[:-1]]

    def release(self, needed: Rows) -> None:
        """Forget rows that nobody will read."""
        for levels, firsts in ((self.encoder, needed.encoder), (self.decoder, needed.decoder)):
            for windows, rows in zip(levels, firsts, strict=True):
                for window, first in zip(windows, rows, strict=False):  # a level's last map has no window
                    window.release(first)


def _windows(maps: Sequence[HeldMap], target: Target) -> list[RowWindow]:
    return [RowWindow(target.rows(held), held.length, held.border) for held in maps[:-1]]
