"""Mirroring: the identity for networks that do not mind, the average for those that do, in each way of inference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch

from medunet.errors import ConfigError
from medunet.geometry.tiles import plan_tiles
from medunet.inference.exact import overlap_tile, whole_pass
from medunet.inference.mirroring import mirrored
from medunet.inference.sliding import Windows, blended_windows
from medunet.networks.unet import UNetSettings
from tests.networks.variants import seasoned

IMAGE = torch.randn(2, 12, 16, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def voxelwise(batch: torch.Tensor) -> torch.Tensor:
    """A network without neighbours, so mirroring commutes with it."""
    return torch.stack([batch[:, 0], batch[:, 1] ** 2, batch.sum(dim=1)], dim=1)


@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 1, 2)])
def test_a_network_that_commutes_with_mirrors_is_unchanged(axes: tuple[int, ...]) -> None:
    expected = voxelwise(IMAGE[None])[0].softmax(dim=0)
    kept = IMAGE.clone()
    for scores in (
        partial(whole_pass, voxelwise, stride=(4, 4, 4)),
        partial(blended_windows, voxelwise, windows=Windows((8, 8, 8))),
    ):
        torch.testing.assert_close(mirrored(scores, IMAGE, axes), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(IMAGE, kept)


def the_ways() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    padded = UNetSettings(in_channels=2, channels=(2, 4), classes=3)
    unpadded = UNetSettings(in_channels=2, channels=(2, 4), classes=3, padded=False)
    plan = plan_tiles(IMAGE.shape[1:], unpadded.shape.smallest_for((8, 8, 8)), unpadded.shape)
    return {
        "whole": partial(whole_pass, seasoned(padded), stride=(2, 2, 2)),
        "tiles": partial(overlap_tile, seasoned(unpadded), plan=plan),
        "blend": partial(blended_windows, seasoned(padded), windows=Windows((8, 8, 8))),
    }


@pytest.mark.parametrize("way", ["whole", "tiles", "blend"])
def test_the_average_over_all_mirror_images(way: str) -> None:
    scores, axes = the_ways()[way], (0, 2)
    single = scores(IMAGE).softmax(dim=0)
    total = torch.zeros_like(single)
    for a, b in itertools.product([False, True], repeat=2):
        where = [axis + 1 for axis, flip in zip(axes, (a, b), strict=True) if flip]
        total += scores(IMAGE.flip(where)).softmax(dim=0).flip(where)
    answer = mirrored(scores, IMAGE, axes)
    torch.testing.assert_close(answer, total / 4)
    torch.testing.assert_close(answer.sum(dim=0), torch.ones(IMAGE.shape[1:], dtype=torch.float64))
    assert (answer - single).abs().max() > 1e-4


@pytest.mark.parametrize("axes", [(3,), (-1,), (0, 0)])
def test_impossible_axes_are_refused(axes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="cannot mirror"):
        mirrored(partial(whole_pass, voxelwise, stride=(4, 4, 4)), IMAGE, axes)
