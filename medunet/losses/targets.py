"""Predictions and targets: log-probabilities, truth, weights, and the sums that overlaps are made of.

A network predicts classes that exclude each other (softmax) or regions that may overlap (a sigmoid each).
The terms of `medunet.losses.terms` see both through the same record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

IGNORE = 255
"""The class index of voxels that no loss uses; the same as in the label tables of `medunet.datasets.labels`."""

Reduce: TypeAlias = Callable[[Tensor], Tensor]
"""Adds a tensor of sums up over processes, in a way that gradients go through; identity with one process."""


def one_process(sums: Tensor) -> Tensor:
    """The sums themselves: those of a training in one process."""
    return sums


@dataclass(frozen=True)
class PredictionAndTarget:
    """A prediction and its target.

    Attributes:
        log_probabilities: ``(batch, channels, *spatial)`` float32 (float64 for float64 logits).
        right: the log-probability of the truth: of the true class, ``(batch, *spatial)``; with regions, of being in
            each region or of not being in it, whichever is true, ``(batch, regions, *spatial)``.
        target: ``(batch, *spatial)`` int64 class indices; 0 where ignored.
        weight: ``(batch, *spatial)``; 0 where ignored.
        inside: with regions, 1 where a voxel lies in a region, ``(batch, regions, *spatial)``; None for classes.
    """

    log_probabilities: Tensor
    right: Tensor
    target: Tensor
    weight: Tensor
    inside: Tensor | None = None

    @property
    def channels(self) -> int:
        return self.log_probabilities.shape[1]

    def mask(self, channel: int) -> Tensor:
        """The true voxels of a class or region, ``(batch, *spatial)`` bool; false where ignored."""
        known = self.weight > 0
        return known & (self.target == channel if self.inside is None else self.inside[:, channel] > 0)


def pair_classes(logits: Tensor, target: Tensor, weight: Tensor | None) -> PredictionAndTarget:
    """The pair of logits ``(batch, classes, *spatial)`` of classes that exclude each other, and class indices."""
    known, weights = _known(logits, target, weight)
    log_probabilities = _exact(logits).log_softmax(dim=1)
    return PredictionAndTarget(log_probabilities, log_probabilities.gather(1, known[:, None])[:, 0], known, weights)


def pair_regions(logits: Tensor, target: Tensor, weight: Tensor | None, membership: Tensor) -> PredictionAndTarget:
    """The pair of logits ``(batch, regions, *spatial)`` and the class indices that regions are made of.

    Args:
        membership: ``(classes, regions)``, 1 where a class belongs to a region.
    """
    known, weights = _known(logits, target, weight)
    exact = _exact(logits)
    inside = membership.to(exact)[known].movedim(-1, 1)
    right = logsigmoid((2 * inside - 1) * exact)
    return PredictionAndTarget(logsigmoid(exact), right, known, weights, inside)


def _known(logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Class indices, 0 where ignored, and weights, 0 where ignored; both ``(batch, *spatial)``."""
    if target.ndim == logits.ndim:
        target = target.squeeze(1)
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit")
    valid = target != IGNORE
    weights = valid.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if weight is not None:
        weights = weights * weight.to(weights.dtype).reshape(target.shape)
    return target.long().masked_fill(~valid, 0), weights


def _exact(logits: Tensor) -> Tensor:
    """Logits in float32; float64 logits stay, for checks of gradients."""
    return logits if logits.dtype == torch.float64 else logits.float()


@dataclass(frozen=True)
class Sums:
    """The sums over voxels that Dice and its relatives are made of; a loss knows nothing else of other processes.

    Attributes:
        hits: probability given to a channel where it is true, ``(rows, channels)``: one row for the whole batch (of all
            processes), or one per patch.
        true: voxels of each channel.
        given: probability (or its square) given to each channel.
        voxels: those not ignored, ``(rows, 1)``. All four are weighted.
    """

    hits: Tensor
    true: Tensor
    given: Tensor
    voxels: Tensor

    def without(self, channels: int) -> Sums:
        """The sums of all but the first channels."""
        return Sums(self.hits[:, channels:], self.true[:, channels:], self.given[:, channels:], self.voxels)


def overlap_sums(pair: PredictionAndTarget, per_patch: bool, squared: bool, reduce: Reduce = one_process) -> Sums:
    """Sums over the batch of all processes, or over each patch.

    Args:
        per_patch: a row for each patch; nothing is added up over processes then.
        squared: `given` adds up squared probabilities.
    """
    batch = len(pair.weight)
    hits, true = _region_sums(pair) if pair.inside is not None else _class_sums(pair, per_patch)
    probabilities = pair.log_probabilities.exp().flatten(2)
    if squared:
        probabilities = probabilities.square()
    weight = pair.weight.flatten(1)
    if per_patch:
        given, voxels = torch.einsum("bkn,bn->bk", probabilities, weight), weight.sum(dim=1, keepdim=True)
        return Sums(hits, true, given, voxels)
    if pair.inside is not None:
        hits, true = hits.sum(dim=0, keepdim=True), true.sum(dim=0, keepdim=True)
    given = torch.einsum("bkn,bn->k", probabilities, weight)[None]
    voxels = pair.weight.sum().expand(1, pair.channels)
    assert batch and hits.shape == given.shape, "one row"
    summed = reduce(torch.stack([hits, true, given, voxels]))
    return Sums(summed[0], summed[1], summed[2], summed[3][:, :1])


def _class_sums(pair: PredictionAndTarget, per_patch: bool) -> tuple[Tensor, Tensor]:
    """Hits and voxels of each class, by index: a one-hot truth would be as large as the logits, gigabytes for many."""
    rows = len(pair.target) if per_patch else 1
    place = pair.target
    if per_patch:
        first = torch.arange(rows, device=place.device) * pair.channels
        place = place + first.reshape(-1, *(1,) * (place.ndim - 1))
    index, weight = place.flatten(), pair.weight
    blank = weight.new_zeros(rows * pair.channels)
    hits = blank.index_add(0, index, (pair.right.exp() * weight).flatten())
    true = blank.index_add(0, index, weight.flatten())
    return hits.reshape(rows, -1), true.reshape(rows, -1)


def _region_sums(pair: PredictionAndTarget) -> tuple[Tensor, Tensor]:
    """Hits and voxels of each region and patch."""
    assert pair.inside is not None
    weighted = (pair.inside * pair.weight[:, None]).flatten(2)
    hits = (pair.log_probabilities.exp().flatten(2) * weighted).sum(dim=2)
    return hits, weighted.sum(dim=2)


def membership_of(regions: Sequence[Sequence[int]], classes: int) -> Tensor:
    """``(classes, regions)`` float32: 1 where a class belongs to a region."""
    return torch.tensor([[float(index in region) for region in regions] for index in range(classes)])
