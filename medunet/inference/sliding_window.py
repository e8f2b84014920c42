"""Sliding windows, blended: for networks that cannot be exact.

The windows, their order and their weights are those of MONAI's `sliding_window_inference`, which the tests compare
with. It is not called: it holds the sums of all classes for the whole scan, and mirroring would hold them many times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box
from medunet.geometry.tiles import Tile
from medunet.inference.execution import WHOLE, Execution, Image, Network, Passage, Progress, Runner, Slab
from medunet.inference.stitching import PatchReader, mirrored_tiles, patch_rows

SIGMA = 0.125
"""Standard deviation of the weights, as a share of the window."""
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Windows:
    """Blended windows over a scan.

    Attributes:
        size: spatial, one number per axis; the network must take it and keep it.
        overlap: share of a window that its neighbour covers too, along each axis.
        batch: windows per run of the network.

    Raises:
        ConfigError: a number is out of range.
    """

    size: tuple[int, ...]
    overlap: float = 0.5
    batch: int = 1

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.batch < 1:
            raise ConfigError(f"windows of {self.size}, {self.batch} at a time: expected numbers of at least 1")
        if not 0.0 <= self.overlap < 1.0:
            raise ConfigError(f"windows overlap by {self.overlap}, expected a share from 0 to below 1")

    def tiles(self, shape: Sequence[int]) -> list[Tile]:
        """The windows over a scan of this spatial shape, the last axis running fastest.

        A scan smaller than a window lies in its middle.
        """
        scan = Box.of_shape(shape)
        tiles = []
        for start in itertools.product(*(self._starts(n, axis) for axis, n in enumerate(shape))):
            read = Box.of_shape(self.size, start)
            write = read.intersection(scan)
            tiles.append(Tile(read, write.relative_to(start), write))
        return tiles

    def _starts(self, length: int, axis: int) -> list[int]:
        size = self.size[axis]
        if length <= size:
            return [-((size - length) // 2)]
        step = max(int(size * (1 - self.overlap)), 1)
        count = -(-(length - size) // step)
        return [step * i for i in range(count)] + [length - size]

    def rows(self, runner: Runner, image: Image, passage: Passage, progress: Progress | None = None) -> Iterator[Slab]:
        """Logits by blended windows, row by row; see `blended_rows`."""
        return blended_rows(runner.network, image, self, runner.execution, passage, progress)

    def weight(self) -> Tensor:
        """Gaussian weights ``(*size)``, float32, nowhere near 0."""
        weight = torch.ones((1,) * len(self.size))
        for axis, size in enumerate(self.size):
            distance = torch.arange(size, dtype=torch.float) - (size - 1) / 2
            line = torch.exp(distance**2 / (-2 * (size * SIGMA) ** 2))
            weight = weight * line.view([-1 if a == axis else 1 for a in range(len(self.size))])
        return weight.clamp(min=max(float(weight.min()), LEAST_WEIGHT))


def blended_rows(
    network: Network,
    image: Image,
    windows: Windows,
    execution: Execution | None = None,
    passage: Passage = WHOLE,
    progress: Progress | None = None,
) -> Iterator[Slab]:
    """Logits averaged over overlapping windows with Gaussian weights, row by row, holding a band of a window's length.

    Any network that keeps the spatial size of the window. The result depends on the window grid. Scans smaller than a
    window are zero-padded on both sides.

    Args:
        network: see `run_network`.
        image: ``(channel, *spatial)``; not changed.
        windows: their size, overlap and number per run.
        execution: where and how; float32 on the CPU by default.
        passage: along which axis rows come, and how the scan is mirrored; always of the whole scan.
        progress: called after each run with the number of windows done and of all windows.

    Returns:
        ``(start, stop, logits)`` in order, covering the scan once; logits ``(class, *spatial)`` float32 (float64 for a
        float64 image) on the host.

    Raises:
        ConfigError: the network changes the size, as unpadded networks do; windows and image differ in dimensions; or
            see `run_network` and `Passage.check`.
    """
    scan = tuple(image.shape[1:])
    passage.check(len(scan))
    if len(windows.size) != len(scan):
        raise ConfigError(f"windows of {windows.size} do not fit an image of shape {tuple(image.shape)}")
    tiles = mirrored_tiles(windows.tiles(scan), scan, windows.size, passage.mirror)
    reader = PatchReader(network, image, "constant", execution or Execution(), passage.mirror)
    done = 0

    def answer(group: Sequence[Tile]) -> Tensor:
        nonlocal done
        logits = reader.answer([tile.read for tile in group])
        if tuple(logits.shape[2:]) != windows.size:
            raise ConfigError(
                f"the network turns windows of {windows.size} into {tuple(logits.shape[2:])}; blending "
                "needs the same size.\nUnpadded networks are run by overlapping tiles instead"
            )
        done += len(group)
        if progress:
            progress(done, len(tiles))
        return logits

    return patch_rows(tiles, passage.axis, answer, windows.batch, windows.weight())


def blended_windows(
    network: Network,
    image: Image,
    windows: Windows,
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Logits ``(class, *spatial)`` of a whole scan at once; see `blended_rows`."""
    rows = blended_rows(network, image, windows, execution, progress=progress)
    return torch.cat([logits for _, _, logits in rows], dim=1)
