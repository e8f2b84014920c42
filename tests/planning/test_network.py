"""Levels, kernels and strides by rule."""

from __future__ import annotations

import math

from medunet.planning.network import plan_topology


def test_topology_never_pools_below_four_voxels() -> None:
    topology = plan_topology((64, 64, 9), (1, 1, 1), most=6)
    assert math.prod(s[2] for s in topology.strides) == 2
    assert topology.stride[0] == 16


def test_coarse_axes_wait_until_the_others_are_as_coarse() -> None:
    topology = plan_topology((128, 128, 32), (1, 1, 4), most=5)
    assert topology.strides == ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    assert topology.kernels == ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3))
