"""Tile plans: every voxel once, on the network's grid, no tile larger than needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box
from medunet.geometry.shapes import UNetShape
from medunet.geometry.tiles import Tile, TilePlan, fitting_tile, plan_tiles
from tests.geometry.test_shapes import UNET2015, UNET2016, network_shapes


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(network_shapes(), st.lists(st.integers(1, 70), min_size=3, max_size=3), st.lists(st.integers(0, 4), min_size=3))
def test_each_voxel_is_written_once(network: UNetShape, lengths: list[int], more: list[int]) -> None:
    network = replace(network, padded=False)
    scan = tuple(lengths[: network.dimensions])
    least = network.smallest_for(network.stride)
    tile_input = tuple(n + k * s for n, k, s in zip(least, more, network.stride, strict=False))
    assume(np.prod([-(-n // s) for n, s in zip(scan, network.stride, strict=True)]) < 5000)
    plan = plan_tiles(scan, tile_input, network)
    visits = np.zeros(scan, dtype=int)
    for tile in plan.tiles:
        assert all(a <= b for a, b in zip(tile.read.shape, tile_input, strict=True))
        assert all(start % s == 0 for start, s in zip(tile.write.start, network.stride, strict=True))
        kept = tile.crop.shifted([a + m for a, m in zip(tile.read.start, network.margin, strict=True)])
        assert kept == tile.write
        assert Box.of_shape(network.output_size(tile.read.shape)).contains(tile.crop)
        visits[tile.write.slices] += 1
    assert (visits == 1).all()


def test_a_small_scan_is_one_small_tile() -> None:
    plan = plan_tiles((30, 50), (572, 572), UNET2015)
    assert len(plan.tiles) == 1
    assert plan.tiles[0].read.shape == UNET2015.smallest_for((30, 50)) == (220, 236)


def test_tiles_of_388_step_by_384() -> None:
    plan = plan_tiles((512, 388), (572, 572), UNET2015)
    assert [tile.write.start for tile in plan.tiles] == [(0, 0), (256, 0)]  # two equal tiles need only 444 of the 572
    assert plan.tiles[0].read.shape == (444, 572)
    plan = plan_tiles((772, 388), (572, 572), UNET2015)
    assert [tile.write for tile in plan.tiles] == [Box((0, 0), (384, 388)), Box((384, 0), (772, 388))]


def test_a_tile_too_small_to_join_is_refused() -> None:
    with pytest.raises(ConfigError, match="need at least 204"):
        plan_tiles((100, 100), (188, 188), UNET2015)
    assert len(plan_tiles((4, 4), (188, 188), UNET2015).tiles) == 1


def test_illegal_tiles_and_padded_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match="nearest legal sizes are 556 and 572"):
        plan_tiles((100, 100), (571, 572), UNET2015)
    with pytest.raises(ConfigError, match="unpadded"):
        plan_tiles((100, 100), (96, 96), replace(UNET2015, padded=True))
    with pytest.raises(ConfigError, match="nothing to tile"):
        plan_tiles((100, 0), (572, 572), UNET2015)


def test_a_plan_cannot_exist_with_gaps_overlaps_or_off_the_grid() -> None:
    plan = plan_tiles((772, 388), (572, 572), UNET2015)
    first, second = plan.tiles
    with pytest.raises(ValueError, match="once; found 0 to 1"):
        TilePlan(plan.scan, UNET2015, (first,))
    with pytest.raises(ValueError, match="once; found 1 to 2"):
        TilePlan(plan.scan, UNET2015, (first, second, second))
    moved = Tile(second.read.shifted((1, 0)), second.crop.shifted((-1, 0)), second.write)
    with pytest.raises(ValueError, match="multiples of the stride"):
        TilePlan(plan.scan, UNET2015, (first, moved))
    with pytest.raises(ValueError, match="outside the scan"):
        TilePlan((700, 388), UNET2015, plan.tiles)
    with pytest.raises(ValueError, match="outside its output"):
        TilePlan(plan.scan, UNET2015, (replace(first, crop=first.crop.shifted((5, 0))), second))
    with pytest.raises(ValueError, match="but writes to"):
        TilePlan(plan.scan, UNET2015, (replace(first, crop=first.crop.shifted((4, 0))), second))
    with pytest.raises(ValueError, match="does not take"):
        TilePlan(plan.scan, UNET2015, (replace(first, read=Box(first.read.start, (500, 480))), second))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [10**9, 132**3, 110**3, 100**3])
def test_the_fitting_tile_fits_and_covers(limit: int) -> None:
    scan = (300, 200, 40)
    tile = fitting_tile(scan, UNET2016, lambda size: int(np.prod(size)) <= limit)
    assert np.prod(tile) <= limit
    assert UNET2016.is_legal(tile)
    assert plan_tiles(scan, tile, UNET2016).scan == scan


def test_memory_too_small_for_any_tile_is_an_error() -> None:
    with pytest.raises(ConfigError, match="smallest tile"):
        fitting_tile((300, 200, 40), UNET2016, lambda size: False)
