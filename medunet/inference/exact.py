"""Results that no tiling has touched: one pass over the whole scan, or tiles that repeat it exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box, read_box
from medunet.geometry.tiles import Tile, TilePlan
from medunet.inference.execution import Execution, Network, Progress, floating, run_network


def whole_pass(
    network: Network, image: torch.Tensor, stride: Sequence[int], execution: Execution | None = None
) -> torch.Tensor:
    """Logits of a whole scan in one pass of a padded network.

    The far sides are zero-padded to multiples of the stride, and the answer is cropped again.

    Args:
        network: keeps the spatial size; see `run_network`.
        image: ``(channel, *spatial)``; not changed.
        stride: the network's, per spatial axis.
        execution: where and how; float32 on the CPU by default.

    Returns:
        ``(class, *spatial)`` float32 (float64 for a float64 image).

    Raises:
        ConfigError: the network's answer has another spatial size, or see `run_network`.
    """
    shape = tuple(image.shape[1:])
    sides = [side for n, s in zip(reversed(shape), reversed(tuple(stride)), strict=True) for side in (0, -n % s)]
    padded = torch.nn.functional.pad(floating(image), sides)
    logits = run_network(network, padded[None], execution or Execution())[0]
    _check_size(logits, tuple(padded.shape[1:]))
    return logits[(slice(None), *Box.of_shape(shape).slices)]


def overlap_tile(
    network: Network,
    image: torch.Tensor,
    plan: TilePlan,
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Logits of a whole scan by an unpadded network, tile by tile, context beyond the scan mirrored.

    Equal to one pass over the whole mirrored scan if the network takes no statistics over space: the plan's tiles lie
    on the network's grid (Ronneberger et al. 2015; `medunet.geometry.tiles`).

    Args:
        network: unpadded, the one whose size arithmetic the plan holds; see `run_network`.
        image: ``(channel, *spatial)`` of the plan's scan; not changed.
        plan: from `plan_tiles`.
        execution: where and how; float32 on the CPU by default.
        progress: called after each tile.

    Returns:
        ``(class, *spatial)`` float32 (float64 for a float64 image).

    Raises:
        ConfigError: plan and image differ in shape, the network's answer has not the planned size, or see
            `run_network`.
    """
    if tuple(image.shape[1:]) != plan.scan:
        raise ConfigError(f"the plan is for a scan of {plan.scan}, the image has {tuple(image.shape[1:])}")
    result: torch.Tensor | None = None
    for done, tile in enumerate(plan.tiles, start=1):
        logits = _run_tile(network, image, tile, plan, execution or Execution())
        if result is None:
            result = torch.empty((logits.shape[0], *plan.scan), dtype=logits.dtype)
        result[(slice(None), *tile.write.slices)] = logits[(slice(None), *tile.crop.slices)]
        if progress:
            progress(done, len(plan.tiles))
    assert result is not None, "a plan covers at least one voxel"
    return result


def _run_tile(network: Network, image: torch.Tensor, tile: Tile, plan: TilePlan, execution: Execution) -> torch.Tensor:
    """Logits ``(class, *output)`` of one tile."""
    patch = floating(torch.from_numpy(read_box(image.numpy(), tile.read, "reflect")))
    logits = run_network(network, patch[None], execution)[0]
    _check_size(logits, plan.network.output_size(tile.read.shape))
    return logits


def _check_size(logits: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(logits.shape[1:]) != expected:
        raise ConfigError(f"the network answered with a size of {tuple(logits.shape[1:])}, expected {expected}")
