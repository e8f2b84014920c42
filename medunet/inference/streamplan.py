"""How thick the slabs of a stream are, along which axis, and how much memory that needs, before it is started."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from medunet.errors import ConfigError
from medunet.inference.layout import HeldMap, StreamLayout, UNetDescription

FLOAT = 4
FIXED = 24 * 2**20
"""What torch and oneDNN take besides, and the heap's waste."""
SLABS = (64, 32, 16, 8, 4, 2, 1)
SLAB_VOXELS = 2**17
"""Slabs of more voxels were not faster (network of 16-32-64-128 channels on one core)."""


@dataclass(frozen=True)
class StreamPlan:
    """How a scan is streamed.

    Attributes:
        slab: rows fed at a time.
        axis: the spatial axis that is streamed.
        bytes: peak memory that this needs, see `estimate_stream_bytes`.
    """

    slab: int
    axis: int
    bytes: int


def plan_stream(
    settings: UNetDescription, shape: Sequence[int], memory: int, axes: Sequence[int] = (0,), itemsize: int = FLOAT
) -> StreamPlan:
    """The thickest slab that is worth it and fits the memory; of several axes the one that then needs least.

    Args:
        settings: the network's.
        shape: of the scan, spatial, at least one voxel per axis.
        memory: bytes at hand, above the loaded network and the scan.
        axes: that may be streamed.
        itemsize: bytes of a number in the precision that is used.

    Returns:
        The plan; if none fits, the one that needs least, whose `bytes` then exceed `memory`.

    Raises:
        ConfigError: the network cannot be exact, or shape or axes do not fit it.
    """
    _check(settings, shape, axes)
    seen: list[StreamPlan] = []
    for slab in SLABS:
        needs = [
            StreamPlan(slab, axis, estimate_stream_bytes(settings, shape, slab, axis, itemsize))
            for axis in axes
            if slab <= 2 or slab * math.prod(shape) <= SLAB_VOXELS * shape[axis]
        ]
        best = min(needs, key=lambda plan: plan.bytes, default=None)
        if best is not None and best.bytes <= memory:
            return best
        seen += needs
    return min(seen, key=lambda plan: plan.bytes)


def estimate_stream_bytes(
    settings: UNetDescription, shape: Sequence[int], slab: int, axis: int = 0, itemsize: int = FLOAT
) -> int:
    """Peak memory of streaming a scan on the CPU, above the loaded network and the scan.

    The rows held between slabs, the largest maps that are made and dropped within a slab, the copy of the weights and
    the logits of two slabs, the caller's and the next. None of them grows with the scan along the streamed axis, apart
    from scans shorter than the network's field of view.

    Args:
        settings: the network's.
        shape: of the scan, spatial.
        slab: rows fed at a time.
        axis: the streamed one.
        itemsize: bytes of a number in the precision that is used.

    Raises:
        ConfigError: the network cannot be exact, or shape or axis do not fit it.
    """
    _check(settings, shape, (axis,))
    layout = StreamLayout(settings, tuple(shape), axis, slab)
    held = sum(rows.row * rows.held for rows in layout.stored)
    logits = settings.classes * math.prod(layout.decoder[0][-1].plane) * layout.decoder[0][-1].made
    result = 2 * FLOAT * logits + (itemsize * logits if itemsize != FLOAT else 0)
    return itemsize * (held + _passing(layout) + _weights(settings)) + result + FIXED


def _check(settings: UNetDescription, shape: Sequence[int], axes: Sequence[int]) -> None:
    dimensions = settings.shape.dimensions
    if settings.inexact_reason is not None:
        raise ConfigError(f"this network cannot be streamed: {settings.inexact_reason}; use --method auto")
    if len(shape) != dimensions or min(shape) < 1 or not axes or any(axis not in range(dimensions) for axis in axes):
        raise ConfigError(
            f"cannot stream a scan of shape {tuple(shape)} along axes {tuple(axes)} through a {dimensions}-D network"
        )


def _passing(layout: StreamLayout) -> int:
    """The most numbers that are made and dropped at once within a slab."""
    settings = layout.settings
    more = (settings.norm == "voxel", settings.activation not in ("relu", "leaky_relu"), settings.residual)
    copies = 1 + sum(more)
    maps = [held for level in (*layout.encoder, *layout.decoder) for held in level[1:]]
    most = [copies * held.row * held.made for held in maps]
    for level, (joined, *_) in enumerate(layout.decoder):
        coarse = (layout.decoder[level + 1] if level + 1 < len(layout.decoder) else layout.encoder[-1])[-1]
        most.append(coarse.row * coarse.made + _joining(layout, level, joined))
    return max(most)


def _joining(layout: StreamLayout, level: int, joined: HeldMap) -> int:
    """Numbers made while the coarser map is enlarged and joined with the skip connection."""
    voxels = math.prod(joined.plane) * joined.made
    own, up = layout.settings.channels[level], layout.settings.up_channels(level)[1]
    gate = 2 * max(own // 2, 1) + max(own, up) if layout.settings.attention else 0
    return voxels * max(up, gate)


def _weights(settings: UNetDescription) -> int:
    """Numbers in the kernels of all convolutions and up-convolutions."""
    shape, total = settings.shape, 0
    for level in range(shape.levels):
        channels = [settings.encoder_channels(level)]
        if level < shape.levels - 1:
            channels.append(settings.decoder_channels(level))
            total += math.prod(shape.strides[level]) * (math.prod(settings.up_channels(level)) + channels[0][-1] ** 2)
        pairs = [pair for one in channels for pair in itertools.pairwise(one)]
        total += math.prod(shape.kernels[level]) * sum(a * b for a, b in pairs)
    return total
