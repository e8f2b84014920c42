"""Overlap tiles: an unpadded network gives what one pass over the whole mirrored scan gives, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from medunet.errors import ConfigError
from medunet.geometry.shapes import Size, UNetShape
from medunet.geometry.tiles import Tile, TilePlan, plan_tiles
from medunet.inference.execution import (
    WHOLE,
    Execution,
    Image,
    Network,
    Passage,
    Progress,
    Runner,
    Slab,
)
from medunet.inference.stitching import PatchReader, mirrored_tiles, patch_rows


@dataclass(frozen=True)
class Tiles:
    """Overlapping tiles of an unpadded network.

    Attributes:
        size: the input of one, per axis.
        shape: the network's size arithmetic.
    """

    size: Size
    shape: UNetShape

    def rows(self, runner: Runner, image: Image, passage: Passage, progress: Progress | None = None) -> Iterator[Slab]:
        """Logits tile by tile, row by row; see `tile_rows`."""
        plan = plan_tiles(tuple(image.shape[1:]), passage.lengths(self.size), self.shape)
        return tile_rows(runner.network, image, plan, runner.execution, passage, progress)


def tile_rows(
    network: Network,
    image: Image,
    plan: TilePlan,
    execution: Execution | None = None,
    passage: Passage = WHOLE,
    progress: Progress | None = None,
) -> Iterator[Slab]:
    """Logits by an unpadded network, tile by tile, context beyond the scan mirrored; row by row.

    Equal to one pass over the whole mirrored scan if the network takes no statistics over space: the plan's tiles lie
    on the network's grid (Ronneberger et al. 2015; `medunet.geometry.tiles`).

    Args:
        network: unpadded, the one whose size arithmetic the plan holds; see `run_network`.
        image: ``(channel, *spatial)`` of the plan's scan; not changed.
        plan: from `plan_tiles`.
        execution: where and how; float32 on the CPU by default.
        passage: along which axis rows come, and how the scan is mirrored; always of the whole scan.
        progress: called after each tile.

    Returns:
        ``(start, stop, logits)`` in order, covering the scan once; logits ``(class, *spatial)`` float32 (float64 for a
        float64 image) on the host.

    Raises:
        ConfigError: plan and image differ in shape, the network's answer has not the planned size, or see
            `run_network` and `Passage.check`.
    """
    passage.check(len(plan.scan))
    if tuple(image.shape[1:]) != plan.scan:
        raise ConfigError(f"the plan is for a scan of {plan.scan}, the image has {tuple(image.shape[1:])}")
    expected = plan.network.output_size(plan.tiles[0].read.shape)
    tiles = mirrored_tiles(plan.tiles, plan.scan, expected, passage.mirror)
    reader = PatchReader(network, image, "reflect", execution or Execution(), passage.mirror)
    done = 0

    def answer(group: Sequence[Tile]) -> torch.Tensor:
        nonlocal done
        logits = reader.answer([tile.read for tile in group])
        _check_size(logits[0], expected)
        done += len(group)
        if progress:
            progress(done, len(tiles))
        return logits

    return patch_rows(tiles, passage.axis, answer)


def overlap_tile(
    network: Network,
    image: Image,
    plan: TilePlan,
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Logits ``(class, *spatial)`` of a whole scan at once; see `tile_rows`."""
    return torch.cat([rows for _, _, rows in tile_rows(network, image, plan, execution, progress=progress)], dim=1)


def _check_size(logits: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(logits.shape[1:]) != expected:
        raise ConfigError(f"the network answered with a size of {tuple(logits.shape[1:])}, expected {expected}")
