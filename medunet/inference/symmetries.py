"""Symmetries of a scan for test-time augmentation: flips and right-angled rotations that change no voxel's value.

Two axes are exchanged, then some are mirrored; together these are the eight symmetries of a square. Each way of
inference mirrors by itself; an exchange is a view of the scan, whose rows come out in the scan's own order if the
exchanged axis is streamed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.geometry.boxes import Box
from medunet.inference.ensemble import mirrorings
from medunet.inference.execution import Image, Passage, Slab, as_array


@dataclass(frozen=True)
class Symmetry:
    """A flip or rotation of a scan, as a network sees it.

    Attributes:
        mirror: spatial axes, after the exchange, that run backwards.
        exchanged: two spatial axes that change places; None for none.
    """

    mirror: tuple[int, ...] = ()
    exchanged: tuple[int, int] | None = None

    @property
    def plain(self) -> bool:
        return not self.mirror and self.exchanged is None

    def axis(self, axis: int) -> int:
        """The place of an axis of the scan in what the network sees."""
        if self.exchanged is None or axis not in self.exchanged:
            return axis
        return self.exchanged[1 - self.exchanged.index(axis)]

    def passage(self, axis: int, region: Box | None = None) -> Passage:
        """The passage of a scan that comes along one of its own axes.

        Args:
            axis: of the scan.
            region: a box of the scan; mirrors are not applied to it.
        """
        plain = Passage(self.axis(axis), self.mirror, None, self.exchanged)
        if region is None:
            return plain
        return replace(plain, region=Box(plain.lengths(region.start), plain.lengths(region.stop)))

    def view(self, image: Image) -> Image:
        """The scan with its axes exchanged; it is read only where the view is."""
        return image if self.exchanged is None else _Exchanged(image, self)

    def back(self, slabs: Iterator[Slab]) -> Iterator[Slab]:
        """The answer for the view, with the scan's own axes."""
        if self.exchanged is None:
            yield from slabs
            return
        first, second = (axis + 1 for axis in self.exchanged)
        for start, stop, logits in slabs:
            yield start, stop, logits.transpose(first, second)


class _Exchanged:
    """A scan `(channel, *spatial)` with two spatial axes exchanged, as an array is seen."""

    def __init__(self, view: Image, symmetry: Symmetry) -> None:
        self._view, self._symmetry = as_array(view), symmetry
        self.shape = (int(view.shape[0]), *symmetry.passage(0).lengths(tuple(int(n) for n in view.shape[1:])))
        self.ndim = len(self.shape)
        self.dtype = getattr(self._view, "dtype", np.dtype(np.float32))

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        assert self._symmetry.exchanged is not None and len(key) == self.ndim
        place = (key[0], *(key[1 + self._symmetry.axis(axis)] for axis in range(self.ndim - 1)))
        first, second = (axis + 1 for axis in self._symmetry.exchanged)
        return np.asarray(self._view[place]).swapaxes(first, second)


def mirrored(axes: Sequence[int]) -> list[Symmetry]:
    """All combinations of mirrors along some axes, none first."""
    return [Symmetry(chosen) for chosen in mirrorings(axes)]


def symmetries(plane: tuple[int, int], mirror: bool, beside: Sequence[int] = ()) -> list[Symmetry]:
    """The eight symmetries of a square in the plane of two axes, or its four rotations; the identity comes first.

    Args:
        plane: two spatial axes.
        mirror: whether mirror images are among them.
        beside: other axes, along all combinations of which the scan is mirrored as well.
    """
    found = []
    for exchanged, chosen in itertools.product((None, plane), mirrorings(plane)):
        # A mirror changes handedness, and so does an exchange of two axes; a rotation does not.
        if mirror or (len(chosen) + (exchanged is not None)) % 2 == 0:
            found += [Symmetry((*chosen, *more), exchanged) for more in mirrorings(beside)]
    return found
