"""Stitching: answers for overlapping patches put together row by row, so only a band of the scan is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medunet.geometry.boxes import Box, Fill, read_box
from medunet.geometry.tiles import Tile
from medunet.inference.execution import Execution, Image, Network, Slab, as_array, floating, run_network


@dataclass(frozen=True)
class PatchReader:
    """The network's answer for patches of a scan, which it may see mirrored.

    Attributes:
        network: see `run_network`.
        image: ``(channel, *spatial)``; not changed.
        fill: what lies outside the scan.
        execution: where and how.
        mirror: spatial axes.
    """

    network: Network
    image: Image
    fill: Fill
    execution: Execution
    mirror: tuple[int, ...] = ()

    def answer(self, boxes: Sequence[Box]) -> Tensor:
        """Logits ``(patch, class, *spatial)`` on the host for boxes of one shape, in the coordinates of the scan."""
        axes = [axis + 1 for axis in self.mirror]
        patches = [floating(torch.from_numpy(read_box(as_array(self.image), box, self.fill))) for box in boxes]
        batch = torch.stack([patch.flip(axes) if axes else patch for patch in patches])
        logits = run_network(self.network, batch, self.execution)
        return logits.flip([axis + 1 for axis in axes]) if axes else logits


def mirrored_tiles(
    tiles: Sequence[Tile], scan: Sequence[int], answer: Sequence[int], axes: Sequence[int]
) -> list[Tile]:
    """Tiles that were laid over the mirrored scan, as boxes of the scan itself.

    Args:
        answer: spatial shape of the network's answer for one tile.
    """
    return [
        Tile(tile.read.mirrored(scan, axes), tile.crop.mirrored(answer, axes), tile.write.mirrored(scan, axes))
        for tile in tiles
    ]


def patch_rows(
    tiles: Sequence[Tile],
    axis: int,
    answer: Callable[[Sequence[Tile]], Tensor],
    batch: int = 1,
    weight: Tensor | None = None,
) -> Iterator[Slab]:
    """Add up what a network says about tiles, and hand rows on as soon as no tile will change them.

    Args:
        tiles: that cover the scan; where they overlap, answers are averaged by weight.
        axis: along which rows are handed on.
        answer: logits ``(tile, class, *spatial)`` of some tiles.
        batch: tiles that are answered at once.
        weight: ``(*spatial)``, of each voxel of an answer; None where no two tiles write the same voxel.

    Returns:
        ``(start, stop, logits)`` in order, covering the scan once; logits ``(class, *spatial)``.
    """
    ordered = sorted(tiles, key=lambda tile: tile.write.start[axis])
    band: _Band | None = None
    for first in range(0, len(ordered), batch):
        group = ordered[first : first + batch]
        logits = answer(group)
        for tile, one in zip(group, logits, strict=True):
            if band is None:
                band = _Band(ordered, axis, one, weighted=weight is not None)
            if tile.write.start[axis] > band.start:
                yield band.hand_on(tile.write.start[axis])
            band.add(tile, one, weight)
    assert band is not None, "tiles cover at least one voxel"
    yield band.hand_on(max(tile.write.stop[axis] for tile in ordered))


class _Band:
    """The rows that tiles still write to: weighted sums of logits, and of weights."""

    def __init__(self, tiles: Sequence[Tile], axis: int, like: Tensor, weighted: bool) -> None:
        self._axis, self.start = axis, 0
        plane = [max(tile.write.stop[a] for tile in tiles) for a in range(tiles[0].write.dimensions)]
        plane[axis] = max(tile.write.shape[axis] for tile in tiles)
        self._sums = torch.zeros((like.shape[0], *plane), dtype=like.dtype)
        self._weights = torch.zeros((1, *plane), dtype=like.dtype) if weighted else None

    def add(self, tile: Tile, logits: Tensor, weight: Tensor | None) -> None:
        offset = [self.start if a == self._axis else 0 for a in range(tile.write.dimensions)]
        place, crop = tile.write.relative_to(offset).slices, tile.crop.slices
        logits = logits[(slice(None), *crop)]
        if weight is None or self._weights is None:
            self._sums[(slice(None), *place)] = logits
            return
        weight = weight[crop].to(logits.dtype)
        self._sums[(slice(None), *place)] += logits * weight
        self._weights[(slice(None), *place)] += weight

    def hand_on(self, stop: int) -> Slab:
        """The finished rows before `stop`; the band moves on to it."""
        start, count, along = self.start, stop - self.start, self._axis + 1
        rows = self._sums.narrow(along, 0, count)
        rows = rows / self._weights.narrow(along, 0, count) if self._weights is not None else rows.clone()
        for held in (self._sums, self._weights):
            if held is not None:
                kept = held.shape[along] - count
                held.narrow(along, 0, kept).copy_(held.narrow(along, count, kept).clone())
                held.narrow(along, kept, count).zero_()
        self.start = stop
        return start, stop, rows
