"""A scan as the models see it: opened, checked, sized."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medunet.inference.execution import Image
from medunet.transforms.preprocess import Undo


@dataclass(frozen=True)
class Scan:
    """A scan as each of several models sees it.

    Attributes:
        views: `(channel, *spatial)`, one for each model, on one grid.
        undo: the way back from that grid.
    """

    views: tuple[Image, ...]
    undo: Undo

    @property
    def shape(self) -> tuple[int, ...]:
        return self.undo.shape

    @property
    def growth(self) -> float:
        """How many voxels of the network's grid there are for each of the scan's kept part."""
        return math.prod(self.undo.shape) / math.prod(self.undo.kept)
