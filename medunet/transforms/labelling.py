"""From scores to labels: the largest class wins, or regions are painted one over the other where they are likely, or
the combination of regions that is the most probable one.

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

from medunet.datasets.labels import LabelTable

THRESHOLD = 0.5
"""A region is there where its probability is larger."""

SUREST = 2.0**-24
"""Probabilities count as at least this far from 0 and 1, which is as near as float32 comes to 1."""

_TOGETHER = 2**20
"""Scores that are compared at a time, of all regions together, so that no slab of many regions is held twice."""


class _OneAtATime:
    """Channels can be decided on one after the other."""

    def held(self, count: int) -> int:
        """How many of `count` channels are held at a time by `decide_one_by_one`."""
        return 1


class _Regions:
    """A sigmoid for each region."""

    @property
    def needs_probabilities(self) -> bool:
        """Thresholds and means are those of probabilities, so labels do not depend on whether these are asked for."""
        return True

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities `(region, *spatial)`; they do not sum to 1."""
        return logits.sigmoid()


@dataclass(frozen=True)
class LargestWins(_OneAtATime):
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
class PaintedRegions(_OneAtATime, _Regions):
    """Regions lie inside each other: a sigmoid each; those above the threshold are painted in order, later ones over.

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
        """The same of `count` regions, each `(*spatial)`, of which one is held at a time."""
        assert count == len(self.paints), "one channel per region"
        first = scores(0) > THRESHOLD
        painted = np.where(first, self.paints[0], 0).astype(np.uint8)
        for place in range(1, count):
            painted[scores(place) > THRESHOLD] = self.paints[place]
        return painted


@dataclass(frozen=True)
class ProbableCombination(_Regions):
    """Regions overlap in any way: a sigmoid each, and the class whose combination of regions is the most probable.

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
        """How many of `count` channels are held at a time by `decide_one_by_one`: all are needed, and a copy."""
        return 2 * count

    def decide_one_by_one(self, count: int, scores: Callable[[int], NDArray[np.float32]]) -> NDArray[np.uint8]:
        """The same of `count` regions, each `(*spatial)`, all of which are held at a time."""
        return self.decide(torch.from_numpy(np.stack([scores(index) for index in range(count)]))).numpy()


LabellingRule: TypeAlias = LargestWins | PaintedRegions | ProbableCombination


def labelling_rule_of(labels: LabelTable) -> LabellingRule:
    """How a network with these labels decides."""
    if not labels.regions:
        return LargestWins()
    if labels.painted:
        return PaintedRegions(tuple(region.paints for region in labels.regions if region.paints is not None))
    return ProbableCombination(tuple(labels.combined.items()))
