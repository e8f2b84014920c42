"""Overlap-tile plans for unpadded networks: which box to read, what to keep of the answer, where to write it.

The seamless tiling of the 2015 U-Net paper (Ronneberger et al., arXiv 1505.04597, figure 2), with one condition that
the paper does not state: a tile repeats what one pass over the whole scan gives only where its position is a multiple
of the network's stride, because pooling must meet the same neighbours. Outputs of such networks are no multiples of
the stride (388 = 24 * 16 + 4), so neighbouring tiles overlap a little.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box
from medunet.geometry.shapes import Size, UNetShape


@dataclass(frozen=True)
class Tile:
    """One run of the network.

    Attributes:
        read: the input, in voxels of the scan; may reach outside, where the reader mirrors.
        crop: what to keep, in voxels of the tile's output.
        write: where it goes, in voxels of the scan; as large as `crop`.
    """

    read: Box
    crop: Box
    write: Box


@dataclass(frozen=True)
class TilePlan:
    """Tiles whose answers, written side by side, are one pass over the whole mirrored scan.

    Attributes:
        scan: the scan's spatial shape.
        network: the size arithmetic that the tiles were made for.
        tiles: in the order of the last axis running fastest.

    Raises:
        ValueError: the write boxes do not cover each voxel of the scan exactly once, a tile's position is off the
            network's grid, or it does not keep what it writes.
    """

    scan: Size
    network: UNetShape
    tiles: tuple[Tile, ...]

    def __post_init__(self) -> None:
        for tile in self.tiles:
            _check_tile(tile, self.network)
        _check_partition([tile.write for tile in self.tiles], Box.of_shape(self.scan))


def plan_tiles(scan: Sequence[int], tile_input: Sequence[int], network: UNetShape) -> TilePlan:
    """Cover a scan with equal tiles of at most `tile_input`.

    A tile is never larger than the scan needs, nor than the number of tiles along its axis needs.

    Args:
        scan: spatial shape, at least one voxel per axis.
        tile_input: the largest input to give to the network; legal for it.
        network: unpadded.

    Raises:
        ConfigError: the network is padded, the tile is not legal, or its output is smaller than the network's stride
            so that tiles on the network's grid would leave gaps.
    """
    if network.padded:
        raise ConfigError("overlap-tile is for unpadded networks; a padded one sees a border in every tile")
    network.check(tile_input)
    if len(scan) != network.dimensions or min(scan) < 1:
        raise ConfigError(f"a scan of shape {tuple(scan)} has nothing to tile in {network.dimensions} dimensions")
    axes = [_axis_tiles(n, tile, network, axis) for axis, (n, tile) in enumerate(zip(scan, tile_input, strict=True))]
    shape = tuple(size for size, _ in axes)
    tiles = []
    for spans in itertools.product(*(spans for _, spans in axes)):
        write = Box(tuple(start for start, _ in spans), tuple(stop for _, stop in spans))
        read = Box.of_shape(shape, [start - m for start, m in zip(write.start, network.margin, strict=True)])
        tiles.append(Tile(read, write.relative_to(write.start), write))
    return TilePlan(tuple(scan), network, tuple(tiles))


def fitting_tile(scan: Sequence[int], network: UNetShape, fits: Callable[[Size], bool]) -> Size:
    """The input of one tile for the whole scan, its longest axis halved until `fits` says yes.

    Args:
        scan: spatial shape.
        network: unpadded.
        fits: whether a legal input size is small enough, for instance for the memory at hand.

    Raises:
        ConfigError: even the smallest tile that can cover a scan does not fit.
    """
    tile = network.smallest_for(scan)
    floor = tuple(min(a, b) for a, b in zip(tile, network.smallest_for(network.stride), strict=True))
    while not fits(tile):
        if tile == floor:
            raise ConfigError(f"even the smallest tile of {floor} voxels does not fit; give it more memory")
        axis = max(range(len(tile)), key=lambda a: tile[a] - floor[a])
        half = (tile[axis] - floor[axis]) // 2 // network.stride[axis] * network.stride[axis]
        tile = tuple(floor[a] + half if a == axis else n for a, n in enumerate(tile))
    return tile


def _axis_tiles(length: int, tile: int, network: UNetShape, axis: int) -> tuple[int, list[tuple[int, int]]]:
    """The input size along one axis, and the spans ``(start, stop)`` that the tiles write."""
    stride, margin = network.stride[axis], network.margin[axis]
    lengths = [length if a == axis else 1 for a in range(network.dimensions)]
    tile = min(tile, network.smallest_for(lengths)[axis])
    output = tile - 2 * margin
    if output >= length:
        return tile, [(0, length)]
    step = output - output % stride
    if step == 0:
        raise ConfigError(
            f"a tile of {tile} voxels along axis {axis} gives only {output}, less than the network's stride {stride};\n"
            f"tiles that join without seams need at least {network.smallest_for(network.stride)[axis]}"
        )
    count = 1 + -(-(length - output) // step)
    while step > stride and (count - 1) * (step - stride) + output - stride >= length:
        step, output, tile = step - stride, output - stride, tile - stride
    starts = [step * i for i in range(count)]
    return tile, list(zip(starts, [*starts[1:], length], strict=True))


def _check_tile(tile: Tile, network: UNetShape) -> None:
    margin = network.margin
    origin = tuple(start + m for start, m in zip(tile.read.start, margin, strict=True))
    if any(o % s for o, s in zip(origin, network.stride, strict=True)):
        raise ValueError(f"the tile's output starts at {origin}, not at multiples of the stride {network.stride}")
    if not network.is_legal(tile.read.shape):
        raise ValueError(f"the tile reads {tile.read.shape} voxels, which the network does not take")
    if not Box.of_shape(network.output_size(tile.read.shape)).contains(tile.crop):
        raise ValueError(f"the tile keeps {tile.crop}, outside its output")
    if tile.crop.shifted(origin) != tile.write:
        raise ValueError(f"the tile keeps {tile.crop.shifted(origin)} but writes to {tile.write}")


def _check_partition(boxes: Sequence[Box], scan: Box) -> None:
    """Refuse boxes that do not hold each voxel of the scan exactly once, or that reach outside.

    Counted on the coarse grid that the boxes' faces span, so the cost does not grow with the number of voxels.
    """
    if any(not scan.contains(box) for box in boxes):
        raise ValueError(f"a tile writes outside the scan {scan.shape}")
    faces = [
        np.unique([scan.start[axis], scan.stop[axis], *(f for box in boxes for f in (box.start[axis], box.stop[axis]))])
        for axis in range(scan.dimensions)
    ]
    visits = np.zeros([len(f) - 1 for f in faces], dtype=np.int64)
    for box in boxes:
        first = [int(np.searchsorted(f, a)) for f, a in zip(faces, box.start, strict=True)]
        last = [int(np.searchsorted(f, a)) for f, a in zip(faces, box.stop, strict=True)]
        visits[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] += 1
    if not (visits == 1).all():
        raise ValueError(f"tiles must write each voxel of {scan.shape} once; found {visits.min()} to {visits.max()}")
