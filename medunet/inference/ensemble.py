"""Ensemble: the average of several members (models, flips, rotations), row by row, so no member is held whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medunet.inference.execution import Slab

Activation = Callable[[Tensor], Tensor]
"""From logits `(class, *spatial)` to probabilities."""


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of axes, none first: 2 to the power of their number."""
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def softmax(logits: Tensor) -> Tensor:
    """Probabilities of classes that exclude each other."""
    return logits.softmax(dim=0)


def probabilities(slabs: Iterator[Slab], activation: Activation = softmax) -> Iterator[Slab]:
    """The probabilities of logits, slab by slab."""
    for start, stop, logits in slabs:
        scores = activation(logits)
        del logits  # or it would be held as long as the scores are
        yield start, stop, scores


def averaged(members: Sequence[Iterator[Slab]], axis: int, activation: Activation = softmax) -> Iterator[Slab]:
    """The mean of the class probabilities of several members.

    They are asked in turn, each for its next rows, so that what is held besides is one slab of each.

    Args:
        members: at least one; logits of the same rows along the same axis, cut at any places.
        axis: the spatial axis along which rows come.
        activation: of each member, before the mean.

    Returns:
        ``(start, stop, probabilities)`` in order, covering the same rows once.
    """
    streams = [probabilities(member, activation) for member in members]
    held: list[Slab | None] = [None] * len(streams)
    position = 0
    while True:
        held = [_next(stream) if one is None else one for stream, one in zip(streams, held, strict=True)]
        slabs = [one for one in held if one is not None]
        if not slabs:
            return
        assert len(slabs) == len(streams), "all members are on the same rows"
        stop = min(one[1] for one in slabs)
        yield position, stop, _mean([_rows(one, position, stop, axis) for one in slabs])
        held = [None if one[1] == stop else one for one in slabs]
        position = stop


def _next(stream: Iterator[Slab]) -> Slab | None:
    return next(stream, None)


def _rows(slab: Slab, start: int, stop: int, axis: int) -> Tensor:
    first, _, scores = slab
    return scores.narrow(axis + 1, start - first, stop - start)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    total = torch.add(parts[0], parts[1])
    for part in parts[2:]:
        total += part
    return total.div_(len(parts))
