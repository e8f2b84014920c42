"""Exact whole-scan inference: the scan goes through the network in slabs of a few rows, each activation once.

Every convolution keeps the rows of its input that the next slab's results need, every skip connection is a queue of
rows until the upsampled path reaches them. The result is that of one pass over the whole scan; what is held does not
depend on the scan's length. `flow.py` says which rows exist when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box, Fill, read_box
from medunet.geometry.shapes import UNetShape
from medunet.inference.execution import Execution, Progress
from medunet.inference.flow import Rows
from medunet.inference.folded import Block, FoldedUNet, Target, centre
from medunet.inference.layout import HeldMap, StreamLayout
from medunet.inference.rows import RowQueue, RowWindow

Slab = tuple[int, int, Tensor]
"""Rows `start` to `stop` of the scan along the streamed axis, and their logits ``(class, *spatial)``."""


def stream(
    network: nn.Module, image: Tensor, slab: int, execution: Execution | None = None, progress: Progress | None = None
) -> Iterator[Slab]:
    """Logits of a whole scan, a few rows of its first axis at a time; see `Streamer` for other axes and many scans.

    Args:
        network: a `medunet.UNet` in evaluation mode; not changed.
        image: ``(channel, *spatial)`` of any size; not changed.
        slab: rows fed at a time.
        execution: where and how; float32 on the CPU by default.
        progress: called after each slab with the number of slabs done and of all.

    Returns:
        ``(start, stop, logits)`` in order, covering the scan once; see `Streamer.run`.

    Raises:
        ConfigError: see `Streamer` and `Streamer.run`.
    """
    return Streamer(network, execution).run(image, slab, progress)


class Streamer:
    """A network made ready to stream scans along one axis.

    Args:
        network: a `medunet.UNet` in evaluation mode; its layers are copied, with batch norm folded in.
        execution: where and how; float32 on the CPU by default. Lower precisions convert weights and maps.
        axis: the spatial axis that is streamed.

    Raises:
        ConfigError: not a U-Net of medunet, training mode, or a norm that takes statistics over space.
    """

    def __init__(self, network: nn.Module, execution: Execution | None = None, axis: int = 0) -> None:
        execution = execution or Execution()
        double = all(p.dtype == torch.float64 for p in network.parameters())
        dtype = torch.float64 if double and execution.dtype == torch.float32 else execution.dtype
        with torch.inference_mode():
            self._network = FoldedUNet(network, Target(dtype, torch.device(execution.device), axis))

    def run(self, image: Tensor, slab: int, progress: Progress | None = None) -> Iterator[Slab]:
        """Stream one scan.

        A padded network sees the far sides zero-padded to multiples of its stride, an unpadded one sees the scan
        mirrored at its borders; either is made row by row.

        Args:
            image: ``(channel, *spatial)`` on the host, of any size; may be a view of a memory map; not changed.
            slab: rows fed at a time.
            progress: called after each slab with the number of slabs done and of all.

        Returns:
            ``(start, stop, logits)`` in order, covering the scan once. Logits are ``(class, *spatial)`` with
            ``stop - start`` rows on the streamed axis, float32 (float64 for a network in float64), on the device.

        Raises:
            ConfigError: the image's channels or axes are not the network's, it is empty, or the slab is below 1.
        """
        self._check(image, slab)
        return self._run(_Pass(self._network, image, slab), progress)

    def _run(self, one: _Pass, progress: Progress | None) -> Iterator[Slab]:
        axis = self._network.target.axis + 1
        steps = one.flow.steps(one.slab)
        for done, (before, after) in enumerate(pairwise(steps), start=1):
            with torch.inference_mode():  # not around the yield, where the caller's code runs
                logits = one.step(before, after)
            if progress:
                progress(done, len(steps) - 1)
            if logits is not None:
                yield before.output, before.output + logits.shape[1], logits.movedim(1, axis)

    def _check(self, image: Tensor, slab: int) -> None:
        settings = self._network.settings
        if image.ndim != settings.shape.dimensions + 1 or image.shape[0] != settings.in_channels or image.numel() < 1:
            raise ConfigError(
                f"found an image of shape {tuple(image.shape)}, expected ({settings.in_channels}, *spatial) with "
                f"{settings.shape.dimensions} spatial axes of at least one voxel"
            )
        if slab < 1:
            raise ConfigError(f"found slabs of {slab} rows, expected at least 1")


class _Pass:
    """One scan on its way through the network: its source, and the rows in between."""

    def __init__(self, network: FoldedUNet, image: Tensor, slab: int) -> None:
        target, shape = network.target, network.settings.shape
        layout = StreamLayout(network.settings, tuple(image.shape[1:]), target.axis, slab)
        self._network, self._source = network, _Source(image, shape, target.axis)
        self._buffers, self.flow, self.slab = _Buffers(layout, target), layout.flow, slab
        self._scan = target.size(image.shape[1:])

    def step(self, before: Rows, after: Rows) -> Tensor | None:
        """Feed one slab; logits ``(class, row, *plane)`` of the rows of the scan that follow from it, or None."""
        self._buffers.release(self.flow.needed(before))
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
        rows.copy_(self._source.read(start, rows.shape[2:])[None])

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
                stride, out = self.flow.stride(level), buffers.encoder[level + 1][0].append(stop - start)
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
        start, stop, crop = before.decoder[level][0], after.decoder[level][0], self.flow.crop(level)
        joined = self._buffers.decoder[level][0].append(stop - start)
        own = self._network.settings.channels[level]
        skip, enlarged = joined[:, :own], joined[:, own:]
        self._network.ups[level](enlarged, coarse)
        for offset, piece in self._buffers.skips[level].pieces(start + crop, stop + crop):
            rows, to = centre(piece, joined.shape[3:]), skip.narrow(2, offset, piece.shape[2])
            if self._network.gates:
                rows = self._network.gates[level](rows, enlarged.narrow(2, offset, piece.shape[2]))
            to.copy_(rows)

    def _head(self, rows: Tensor, start: int) -> Tensor | None:
        """Logits of the rows that lie in the scan; those behind it belong to the padding."""
        count = min(rows.shape[2], self._scan[0] - start)
        if count <= 0:
            return None
        logits = self._network.head(rows.narrow(2, 0, count))[0]
        logits = logits[(slice(None), slice(None), *(slice(0, n) for n in self._scan[1:]))]
        return logits if logits.dtype == torch.float64 else logits.to(torch.float32)


class _Source:
    """The scan, read a few rows at a time with what lies around it: zeros, or the scan mirrored."""

    def __init__(self, image: Tensor, shape: UNetShape, axis: int) -> None:
        self._array = image.detach().as_subclass(Tensor).movedim(axis + 1, 1).numpy()
        margin = (shape.margin[axis], *shape.margin[:axis], *shape.margin[axis + 1 :])
        self._origin = tuple(-m for m in margin)
        self._mode: Fill = "constant" if shape.padded else "reflect"

    def read(self, row: int, size: Sequence[int]) -> Tensor:
        """``(channel, *size)`` from a row of the network's input on, in the scan's own type."""
        box = Box.of_shape(size, (self._origin[0] + row, *self._origin[1:]))
        return torch.from_numpy(read_box(self._array, box, self._mode))


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
