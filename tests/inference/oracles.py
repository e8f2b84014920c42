"""Whole results that streams, tiles and windows are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medunet.geometry.boxes import Box
from medunet.geometry.tiles import TilePlan
from medunet.inference.execution import Execution, Image, Network, Progress, floating, run_network
from medunet.inference.overlap_tile import tile_rows


def whole_pass(
    network: Network, image: torch.Tensor, stride: Sequence[int], execution: Execution | None = None
) -> torch.Tensor:
    """Logits ``(class, *spatial)`` of a whole scan in one pass of a padded network.

    The far sides are zero-padded to multiples of the stride, and the answer is cropped again.
    """
    shape = tuple(image.shape[1:])
    sides = [side for n, s in zip(reversed(shape), reversed(tuple(stride)), strict=True) for side in (0, -n % s)]
    padded = torch.nn.functional.pad(floating(image), sides)
    logits = run_network(network, padded[None], execution or Execution())[0]
    assert logits.shape[1:] == padded.shape[1:], "a padded network keeps the size"
    return logits[(slice(None), *Box.of_shape(shape).slices)]


def overlap_tile(
    network: Network,
    image: Image,
    plan: TilePlan,
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Logits ``(class, *spatial)`` of a whole scan at once; see `tile_rows`."""
    return torch.cat([rows for _, _, rows in tile_rows(network, image, plan, execution, progress=progress)], dim=1)
