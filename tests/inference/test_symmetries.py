"""Turned scans: the eight symmetries of a square, in each way of inference, against turning the scan itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from medunet.geometry.boxes import Box
from medunet.geometry.tiles import plan_tiles
from medunet.inference.execution import Passage, Slab
from medunet.inference.overlap_tile import overlap_tile, tile_rows
from medunet.inference.sliding_window import Windows, blended_rows, blended_windows
from medunet.inference.streaming.streamer import Streamer
from medunet.inference.symmetries import Symmetry, mirrored, symmetries
from medunet.networks.settings import UNetSettings
from tests.inference.oracles import whole_pass
from tests.networks.variants import seasoned

IMAGE = torch.randn(2, 13, 16, 10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def turned(array: torch.Tensor, symmetry: Symmetry) -> torch.Tensor:
    """What the network is to see: axes exchanged, then mirrored."""
    seen = array if symmetry.exchanged is None else array.transpose(*(axis + 1 for axis in symmetry.exchanged))
    return seen.flip([axis + 1 for axis in symmetry.mirror])


def turned_back(array: torch.Tensor, symmetry: Symmetry) -> torch.Tensor:
    back = array.flip([axis + 1 for axis in symmetry.mirror])
    return back if symmetry.exchanged is None else back.transpose(*(axis + 1 for axis in symmetry.exchanged))


def test_the_symmetries_of_a_square_are_numpys() -> None:
    """All different; four of them, without mirror images, are the rotations by right angles."""
    square = torch.arange(9.0).reshape(1, 3, 3)
    rotations = {tuple(np.rot90(square[0], n).ravel()) for n in range(4)}
    images = {tuple(np.rot90(square[0].T, n).ravel()) for n in range(4)}
    eight = [tuple(turned(square, symmetry)[0].ravel().tolist()) for symmetry in symmetries((0, 1), mirror=True)]
    assert len(eight) == 8 and set(eight) == rotations | images
    four = [tuple(turned(square, symmetry)[0].ravel().tolist()) for symmetry in symmetries((0, 1), mirror=False)]
    assert len(four) == 4 and set(four) == rotations
    assert symmetries((0, 2), mirror=True)[0].plain
    assert len({*symmetries((0, 1), mirror=True, beside=[2])}) == 16
    assert mirrored((0, 2)) == [Symmetry(), Symmetry((0,)), Symmetry((2,)), Symmetry((0, 2))]


Rows = Callable[[Symmetry, int], Iterator[Slab]]
Whole = Callable[[torch.Tensor], torch.Tensor]


def the_ways() -> dict[str, tuple[Rows, Whole]]:
    padded = seasoned(UNetSettings(in_channels=2, channels=(2, 4), classes=3))
    unpadded = seasoned(UNetSettings(in_channels=2, channels=(2, 4), classes=3, padded=False))
    shape, windows = unpadded.settings.shape, Windows((8, 10, 8), batch=2)
    tile = shape.smallest_for((8, 8, 8))

    def planned(image: torch.Tensor) -> torch.Tensor:
        return overlap_tile(unpadded, image, plan_tiles(image.shape[1:], tile, shape))

    def tiles(symmetry: Symmetry, axis: int) -> Iterator[Slab]:
        view = symmetry.view(IMAGE)
        return tile_rows(
            unpadded, view, plan_tiles(view.shape[1:], tile, shape), passage=Passage(axis, symmetry.mirror)
        )

    return {
        "stream": (
            lambda symmetry, axis: Streamer(padded).run(
                symmetry.view(IMAGE), 3, passage=Passage(axis, symmetry.mirror)
            ),
            lambda image: whole_pass(padded, image, (2, 2, 2)),
        ),
        "stream, unpadded": (
            lambda symmetry, axis: Streamer(unpadded).run(
                symmetry.view(IMAGE), 4, passage=Passage(axis, symmetry.mirror)
            ),
            planned,
        ),
        "tiles": (tiles, planned),
        "blend": (
            lambda symmetry, axis: blended_rows(
                padded, symmetry.view(IMAGE), windows, passage=Passage(axis, symmetry.mirror)
            ),
            lambda image: blended_windows(padded, image.contiguous(), windows),
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stream", "stream, unpadded", "tiles", "blend"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("plane", [(0, 1), (1, 2)])
def test_rows_of_a_turned_scan_are_what_turning_the_scan_gives(way: str, axis: int, plane: tuple[int, int]) -> None:
    """Along each of the scan's own axes, in its own order; a scan of three different lengths."""
    rows, whole = the_ways()[way]
    for symmetry in symmetries(plane, mirror=True)[::3] + [Symmetry((2, plane[0]), plane)]:
        slabs = list(symmetry.back(rows(symmetry, symmetry.axis(axis))))
        assert [start for start, _, _ in slabs] == [0, *(stop for _, stop, _ in slabs[:-1])]
        assert slabs[-1][1] == IMAGE.shape[axis + 1]
        answer = torch.cat([logits for _, _, logits in slabs], axis + 1)
        expected = turned_back(whole(turned(IMAGE, symmetry)), symmetry)
        # The weights of windows are float32.
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-6 if way == "blend" else 1e-11)


def test_boxes_and_lengths_change_places_with_the_axes() -> None:
    symmetry = Symmetry((1,), (0, 2))
    assert [symmetry.axis(axis) for axis in range(3)] == [2, 1, 0]
    assert symmetry.passage(1, Box((1, 2, 3), (4, 5, 6))).region == Box((3, 2, 1), (6, 5, 4))
    view = symmetry.view(IMAGE)
    assert tuple(view.shape) == (2, 10, 16, 13)
    part = view[(slice(None), slice(1, 4), slice(0, 5), slice(2, 9))]
    np.testing.assert_array_equal(part, IMAGE.transpose(1, 3).numpy()[:, 1:4, :5, 2:9])
