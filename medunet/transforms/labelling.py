"""Labelling rules: the class of each voxel from its scores.

The largest class wins; or likely regions are painted one over the other; or the most probable combination of regions
is taken. Each rule works on a device, where a slab of scores is whole, and in memory, where one interpolated class is
held at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet.datasets.labels import LabelTable

THRESHOLD = 0.5
"""A region covers the voxels where its probability is larger."""

SUREST = 2.0**-24
"""Probabilities count as at least this far from 0 and 1, which is as near as float32 comes to 1."""

_TOGETHER = 2**20
"""Scores that are compared at a time, so that no slab of many regions is held twice."""


class _OneByOne:
    """Rules that need one channel at a time."""

    def held(self, count: int) -> int:
        """The number of channels, of `count`, that `decide_one_by_one` holds at a time."""
        return 1


class _Regions:
    """Rules for a sigmoid per region. Thresholds and means are those of probabilities."""

    needs_probabilities: ClassVar[bool] = True

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities `(region, *spatial)`; they do not sum to 1."""
        return logits.sigmoid()


@dataclass(frozen=True)
class LargestWins(_OneByOne):
    """Classes exclude each other: softmax, and the class of the largest score, the first one in a tie.

    The largest logit is the largest probability, so logits suffice.
    """

    needs_probabilities: ClassVar[bool] = False

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities `(class, *spatial)`."""
        return logits.softmax(dim=0)

    def decide(self, scores: Tensor) -> Tensor:
        """`(*spatial)` uint8 class indices of `(class, *spatial)` logits or probabilities."""
        return scores.argmax(dim=0).to(torch.uint8)

    def decide_one_by_one(self, count: int, scores: Callable[[int], NDArray[np.float32]]) -> NDArray[np.uint8]:
        """The same for `count` classes `(*spatial)`, of which one is held at a time."""
        best = scores(0).copy()
        winner = np.zeros(best.shape, dtype=np.uint8)
        for index in range(1, count):
            score = scores(index)
            larger = score > best
            winner[larger] = index
            np.copyto(best, score, where=larger)
        return winner


@dataclass(frozen=True)
class PaintedRegions(_OneByOne, _Regions):
    """Regions lie inside each other: those above the threshold are painted in order, each over those before it.

    Attributes:
        paints: the class index that each region paints; 0 stays where there is no region.
    """

    paints: tuple[int, ...]

    def decide(self, scores: Tensor) -> Tensor:
        """`(*spatial)` uint8 class indices of `(region, *spatial)` probabilities."""
        painted = torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
        for score, index in zip(scores, self.paints, strict=True):
            painted.masked_fill_(score > THRESHOLD, index)
        return painted

    def decide_one_by_one(self, count: int, scores: Callable[[int], NDArray[np.float32]]) -> NDArray[np.uint8]:
        """The same for `count` regions `(*spatial)`, of which one is held at a time."""
        assert count == len(self.paints), "one channel per region"
        first = scores(0) > THRESHOLD
        painted = np.where(first, self.paints[0], 0).astype(np.uint8)
        for place in range(1, count):
            painted[scores(place) > THRESHOLD] = self.paints[place]
        return painted


@dataclass(frozen=True)
class ProbableCombination(_Regions):
    """Regions overlap in any way: the class whose combination of regions is the most probable.

    Regions being independent, the log-probability of a class is the sum of log p over the regions that it is in and of
    log(1 - p) over the others; less that of the background, which is in none, it is the sum of the logits of the
    regions that it is in. Only classes that were declared can be the answer, so no combination is invented.

    Attributes:
        combined: each class with the places of the regions that it is in, the background left out.
    """

    combined: tuple[tuple[int, tuple[int, ...]], ...]

    def decide(self, scores: Tensor) -> Tensor:
        """`(*spatial)` uint8 class indices of `(region, *spatial)` probabilities; the first class in a tie."""
        rows = max(1, _TOGETHER * scores.shape[1] // max(1, scores.numel()))
        return torch.cat([self._decided(part.logit(SUREST)) for part in scores.split(rows, dim=1)])

    def _decided(self, logits: Tensor) -> Tensor:
        best = torch.zeros_like(logits[0])  # of the background, to which all others are relative
        winner = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
        for index, (first, *others) in self.combined:
            # Summed one by one: a matrix product rounds by the size of its blocks, and on GPUs to fewer digits.
            total = logits[first].clone()
            for place in others:
                total += logits[place]
            larger = total > best
            winner.masked_fill_(larger, index)
            torch.maximum(best, total, out=best)
        return winner

    def held(self, count: int) -> int:
        """All channels are needed at a time, and a copy of them."""
        return 2 * count

    def decide_one_by_one(self, count: int, scores: Callable[[int], NDArray[np.float32]]) -> NDArray[np.uint8]:
        """The same for `count` regions `(*spatial)`, all of which are held at a time."""
        return self.decide(torch.from_numpy(np.stack([scores(index) for index in range(count)]))).numpy()


LabellingRule: TypeAlias = LargestWins | PaintedRegions | ProbableCombination


def labelling_rule_of(labels: LabelTable) -> LabellingRule:
    """The rule of a network with these labels."""
    if not labels.regions:
        return LargestWins()
    if labels.painted:
        return PaintedRegions(tuple(region.paints for region in labels.regions if region.paints is not None))
    return ProbableCombination(tuple(labels.combined.items()))
