"""Averages over mirror images and models: in step, in each way of inference, against a plain sum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import ConfigError
from medunet.geometry.tiles import plan_tiles
from medunet.inference.ensemble import averaged, mirrorings
from medunet.inference.execution import Passage, Slab
from medunet.inference.overlap_tile import overlap_tile, tile_rows
from medunet.inference.sliding_window import Windows, blended_rows, blended_windows
from medunet.inference.streaming.streamer import Streamer
from medunet.networks.settings import UNetSettings
from tests.inference.oracles import whole_pass
from tests.networks.variants import seasoned

IMAGE = torch.randn(2, 13, 15, 18, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
Rows = Callable[[int, tuple[int, ...]], Iterator[Slab]]
Whole = Callable[[torch.Tensor], torch.Tensor]


def the_ways() -> dict[str, tuple[Rows, Whole]]:
    """Rows of a mirrored scan along an axis, and all logits of a scan as it is, for each way."""
    padded = seasoned(UNetSettings(in_channels=2, channels=(2, 4), classes=3))
    unpadded = seasoned(UNetSettings(in_channels=2, channels=(2, 4), classes=3, padded=False))
    shape, windows = unpadded.settings.shape, Windows((8, 10, 8), batch=2)
    plan = plan_tiles(IMAGE.shape[1:], shape.smallest_for((8, 8, 8)), shape)
    return {
        "stream": (
            lambda axis, mirror: Streamer(padded).run(IMAGE, 3, passage=Passage(axis, mirror)),
            lambda image: whole_pass(padded, image, (2, 2, 2)),
        ),
        "stream, unpadded": (
            lambda axis, mirror: Streamer(unpadded).run(IMAGE, 4, passage=Passage(axis, mirror)),
            lambda image: overlap_tile(unpadded, image, plan),
        ),
        "tiles": (
            lambda axis, mirror: tile_rows(unpadded, IMAGE, plan, passage=Passage(axis, mirror)),
            lambda image: overlap_tile(unpadded, image, plan),
        ),
        "blend": (
            lambda axis, mirror: blended_rows(padded, IMAGE, windows, passage=Passage(axis, mirror)),
            lambda image: blended_windows(padded, image, windows),
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stream", "stream, unpadded", "tiles", "blend"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_average_over_all_mirror_images(way: str, axis: int) -> None:
    rows, whole = the_ways()[way]
    single = whole(IMAGE).softmax(dim=0)
    total = torch.zeros_like(single)
    for a, b in itertools.product([False, True], repeat=2):
        where = [axis + 1 for axis, flip in zip((0, 2), (a, b), strict=True) if flip]
        total += whole(IMAGE.flip(where)).softmax(dim=0).flip(where)
    slabs = list(averaged([rows(axis, mirror) for mirror in mirrorings((0, 2))], axis))
    assert [start for start, _, _ in slabs] == [0, *(stop for _, stop, _ in slabs[:-1])]
    answer = torch.cat([scores for _, _, scores in slabs], axis + 1)
    # The weights of windows are float32.
    torch.testing.assert_close(answer, total / 4, rtol=0, atol=1e-6 if way == "blend" else 1e-11)
    torch.testing.assert_close(answer.sum(dim=0), torch.ones(IMAGE.shape[1:], dtype=torch.float64))
    assert (answer - single).abs().max() > 1e-4


def test_mirrorings_are_all_combinations() -> None:
    assert mirrorings(()) == [()]
    assert mirrorings((0, 2)) == [(), (0,), (2,), (0, 2)]
    assert len(set(mirrorings((0, 1, 2)))) == 8


@pytest.mark.slow
@settings(deadline=None)
@given(st.data())
def test_opinions_cut_at_any_places_are_averaged(data: st.DataObject) -> None:
    length, axis = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 1))
    shape = (3, length, 4) if axis == 0 else (3, 4, length)
    members = [torch.randn(*shape) for _ in range(data.draw(st.integers(1, 4)))]

    def cut(logits: torch.Tensor) -> Iterator[Slab]:
        places = sorted({0, length, *data.draw(st.sets(st.integers(0, length)))})
        for start, stop in itertools.pairwise(places):
            yield start, stop, logits.narrow(axis + 1, start, stop - start)

    answer = torch.cat([scores for _, _, scores in averaged([cut(one) for one in members], axis)], axis + 1)
    torch.testing.assert_close(answer, torch.stack([one.softmax(0) for one in members]).mean(0))


@pytest.mark.parametrize("mirror", [(3,), (-1,), (0, 0)])
def test_impossible_axes_are_refused(mirror: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="cannot mirror"):
        blended_rows(lambda x: x, IMAGE, Windows((8, 8, 8)), passage=Passage(0, mirror))
