"""Which rows exist and which are needed, against the sizes of the network and against dependencies counted by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medunet.geometry.shapes import UNetShape
from medunet.inference.streaming.row_schedule import AxisSchedule, Maps, Rows


@st.composite
def flows(draw: st.DrawFn) -> AxisSchedule:
    """One axis of any network, and a scan along it."""
    levels = draw(st.integers(2, 4))
    shape = UNetShape(
        kernels=tuple((draw(st.sampled_from([1, 3, 5, 7])),) for _ in range(levels)),
        strides=tuple((draw(st.sampled_from([1, 2, 3])),) for _ in range(levels - 1)),
        encoder_convolutions=tuple(draw(st.integers(1, 3)) for _ in range(levels)),
        decoder_convolutions=tuple(draw(st.integers(1, 3)) for _ in range(levels - 1)),
        padded=draw(st.booleans()),
    )
    scan = draw(st.integers(1, 90))
    length = shape.smallest_for((scan,))[0]
    assume(length < 1000)
    return AxisSchedule(shape, 0, length, scan)


def flat(maps: Maps) -> list[int]:
    return [count for level in maps for count in level]


def counts(rows: Rows) -> list[int]:
    return flat(rows.encoder) + flat(rows.decoder)


@settings(deadline=None, max_examples=100)
@given(flows())
def test_complete_maps_have_the_sizes_of_the_network(schedule: AxisSchedule) -> None:
    sizes = (schedule.length,)
    assert [(maps[-1],) for maps in schedule.lengths.encoder] == list(schedule.shape.encoder_sizes(sizes))
    assert [(maps[-1],) for maps in schedule.lengths.decoder] == list(schedule.shape.decoder_sizes(sizes))


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(flows(), st.integers(1, 20))
def test_steps_go_on_until_all_wanted_rows_are_out(schedule: AxisSchedule, slab: int) -> None:
    steps = schedule.steps(slab)
    assert counts(steps[0]) == [0] * len(counts(schedule.lengths))
    assert steps[-1].output >= schedule.wanted > steps[-2].output
    for before, after in pairwise(steps):
        assert all(
            a <= b <= end for a, b, end in zip(counts(before), counts(after), counts(schedule.lengths), strict=True)
        )


def sources(schedule: AxisSchedule, level: int, rows: int, length: int) -> int:
    """How many rows of its input a convolution's first `rows` rows need, counted tap by tap; zeros need none."""
    taps = [row + tap - schedule.border(level) for row in range(rows) for tap in range(schedule.kernel(level))]
    return max((tap + 1 for tap in taps if tap < length), default=0)


@settings(deadline=None, max_examples=60)
@given(flows(), st.integers(0, 200))
def test_known_rows_follow_from_rows_that_are_known(schedule: AxisSchedule, fed: int) -> None:
    """And no known row of the encoder could have been known earlier."""
    known, ends = schedule.known(fed), schedule.lengths
    for levels, lengths in ((known.encoder, ends.encoder), (known.decoder, ends.decoder)):
        for level, (maps, length) in enumerate(zip(levels, lengths, strict=True)):
            for number, (before, after) in enumerate(pairwise(maps)):
                assert sources(schedule, level, after, length[number]) <= before
                if after < length[number + 1] and before < length[number]:
                    assert sources(schedule, level, after + 1, length[number]) > before
    for level in range(schedule.shape.levels - 1):
        coarse = (known.decoder[level + 1] if level + 1 < schedule.shape.levels - 1 else known.encoder[-1])[-1]
        assert known.encoder[level + 1][0] == known.encoder[level][-1] // schedule.stride(level)
        assert known.decoder[level][0] == coarse * schedule.stride(level)
        assert (
            known.decoder[level][0] + schedule.crop(level) <= known.encoder[level][-1] or known.decoder[level][0] == 0
        )


@settings(deadline=None, max_examples=60)
@given(flows(), st.integers(1, 12))
def test_rows_still_needed_are_not_forgotten(schedule: AxisSchedule, slab: int) -> None:
    for before, after in pairwise(schedule.steps(slab)):
        needed = schedule.needed(before)
        for levels, first, new in (
            (before.encoder, needed.encoder, after.encoder),
            (before.decoder, needed.decoder, after.decoder),
        ):
            for level, maps in enumerate(levels):
                for number in range(len(maps) - 1):
                    if new[level][number + 1] > maps[number + 1]:
                        assert first[level][number] <= maps[number + 1] - schedule.border(level)
        for level in range(schedule.shape.levels - 1):
            last = needed.encoder[level][-1]
            assert last <= before.encoder[level + 1][0] * schedule.stride(level)
            assert last <= before.decoder[level][0] + schedule.crop(level)


def test_rows_of_a_small_network_by_hand() -> None:
    """Two levels, kernels 3 and 5, stride 2, one convolution each, padded; 8 rows."""
    shape = UNetShape(((3,), (5,)), ((2,),), (1, 1), (1,), padded=True)
    schedule = AxisSchedule(shape, 0, 8, 8)
    assert schedule.known(4) == Rows(((4, 3), (1, 0)), ((0, 0),))
    assert schedule.known(6) == Rows(((6, 5), (2, 0)), ((0, 0),))
    assert schedule.known(8) == Rows(((8, 7), (3, 1)), ((2, 1),))
    assert schedule.known(10) == Rows(((8, 8), (4, 2)), ((4, 3),))
    assert schedule.needed(schedule.known(8)) == Rows(((6, 2), (-1, 1)), ((0, 1),))
    assert schedule.known(14) == Rows(((8, 8), (4, 4)), ((8, 7),))
    assert schedule.known(16) == schedule.lengths


def test_what_is_held_does_not_grow_with_the_scan() -> None:
    shape = UNetShape(((3,),) * 4, ((2,),) * 3, (2,) * 4, (2,) * 3, padded=True)
    for slab in (1, 3, 8):
        long, longer = AxisSchedule(shape, 0, 200, 200), AxisSchedule(shape, 0, 1600, 1600)
        assert long.held(slab) == longer.held(slab)
        assert long.made(slab) == longer.made(slab)


def test_the_last_slab_sets_no_more_rows_free_than_others() -> None:
    shape = UNetShape(((3,),) * 4, ((2,),) * 3, (2,) * 4, (2,) * 3, padded=True)
    assert AxisSchedule(shape, 0, 200, 200).made(8).output == 8
