"""Which rows exist and which are needed, against the sizes of the network and against dependencies counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medunet.inference.streaming.schedule import Schedule
from medunet.inference.streaming.trace import graph_of
from medunet.networks.unet import UNet
from tests.networks.variants import unet_settings


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """One axis of any network, and a scan along it."""
    config = draw(unet_settings())
    graph = graph_of(UNet(config).eval())
    axis, scan = draw(st.integers(0, config.dimensions - 1)), draw(st.integers(1, 90))
    length = graph.smallest_for((scan,) * config.dimensions)[axis]
    assert length == config.shape.smallest_for((scan,) * config.dimensions)[axis]
    assume(length < 1000)
    return Schedule(graph, axis, length, scan, draw(st.integers(1, 20)), draw(st.booleans()))


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(schedules())
def test_rows_come_in_order_until_all_that_are_wanted_are_out(schedule: Schedule) -> None:
    known = schedule.known
    assert not known[0].any()
    assert known[-1, -1] >= schedule.wanted > known[-2, -1]
    assert (np.diff(known, axis=0) >= 0).all() and (known <= schedule.lengths).all()
    assert (schedule.needed <= known).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(schedules())
def test_what_is_read_was_made_and_is_still_held(schedule: Schedule) -> None:
    """Each row made at a step reads rows that are known by then and were not released before it."""
    for before, after, needed in zip(schedule.known, schedule.known[1:], schedule.needed, strict=False):
        for number, (node, reach) in enumerate(zip(schedule.graph.nodes, schedule.reaches, strict=True)):
            for row in range(before[number], after[number]) if number else ():
                for source in node.inputs:
                    first, last = max(reach.first(row), 0), min(reach.last(row), schedule.lengths[source] - 1)
                    assert needed[source] <= first or first > last
                    assert last < after[source]


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(schedules())
def test_no_row_waits_longer_than_somebody_needs_it(schedule: Schedule) -> None:
    """At each time, the first row that is held is read later; else memory would be wasted."""
    reads = np.full((len(schedule.known), len(schedule.lengths)), np.iinfo(np.int64).max)
    for step in range(len(schedule.known) - 1):
        for number, (node, reach) in enumerate(zip(schedule.graph.nodes, schedule.reaches, strict=True)):
            if number and schedule.known[step + 1, number] > schedule.known[step, number]:
                for source in node.inputs:
                    first = max(int(reach.first(int(schedule.known[step, number]))), 0)
                    reads[step, source] = min(reads[step, source], first)
    later = np.minimum.accumulate(reads[::-1], axis=0)[::-1]
    held = schedule.needed < schedule.known
    assert (later[held] >= schedule.needed[held]).all()
