"""From scores to labels: the largest class wins, or regions are painted one over the other where they are likely.

The same decision is taken on a device, where a slab of scores is whole, and in memory, where one interpolated class is
held at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet.data.labels import LabelTable

THRESHOLD = 0.5
"""A region is there where its probability is larger."""


@dataclass(frozen=True)
class LargestWins:
    """Classes exclude each other: softmax, and the class of the largest score, the first one in a tie."""

    @property
    def needs_probabilities(self) -> bool:
        """The largest logit is the largest probability."""
        return False

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities `(class, *spatial)`."""
        return logits.softmax(dim=0)

    def decide(self, scores: Tensor) -> Tensor:
        """`(*spatial)` uint8 class indices of `(class, *spatial)` logits or probabilities."""
        return scores.argmax(dim=0).to(torch.uint8)

    def decide_one_by_one(self, count: int, scores: Callable[[int], NDArray[np.float32]]) -> NDArray[np.uint8]:
        """The same of `count` classes, each `(*spatial)`, of which one is held at a time."""
        best = scores(0).copy()
        winner = np.zeros(best.shape, dtype=np.uint8)
        for index in range(1, count):
            score = scores(index)
            larger = score > best
            winner[larger] = index
            np.copyto(best, score, where=larger)
        return winner


@dataclass(frozen=True)
class PaintedRegions:
    """Regions overlap: a sigmoid each, and those above the threshold are painted in their order, later ones over.

    Attributes:
        paints: the class index that each region paints; 0 stays where there is no region.
    """

    paints: tuple[int, ...]

    @property
    def needs_probabilities(self) -> bool:
        """The threshold is one of probabilities, so that labels do not depend on whether these are asked for."""
        return True

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities `(region, *spatial)`; they do not sum to 1."""
        return logits.sigmoid()

    def decide(self, scores: Tensor) -> Tensor:
        """`(*spatial)` uint8 class indices of `(region, *spatial)` probabilities."""
        painted = torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
        for score, index in zip(scores, self.paints, strict=True):
            painted.masked_fill_(score > THRESHOLD, index)
        return painted

    def decide_one_by_one(self, count: int, scores: Callable[[int], NDArray[np.float32]]) -> NDArray[np.uint8]:
        """The same of `count` regions, each `(*spatial)`, of which one is held at a time."""
        assert count == len(self.paints), "one channel per region"
        first = scores(0) > THRESHOLD
        painted = np.where(first, self.paints[0], 0).astype(np.uint8)
        for place in range(1, count):
            painted[scores(place) > THRESHOLD] = self.paints[place]
        return painted


Decision: TypeAlias = LargestWins | PaintedRegions


def decision_of(labels: LabelTable) -> Decision:
    """How a network with these labels decides."""
    return PaintedRegions(tuple(region.paints for region in labels.regions)) if labels.regions else LargestWins()
