"""The terms that losses are added up from, each a function of a prediction and its target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as components
from torch import Tensor

from medunet.losses.targets import PredictionAndTarget, Reduce, Sums, one_process, overlap_sums


@dataclass(frozen=True)
class TermSettings:
    """Settings of the terms; the numbers are those of `LossSettings`.

    Attributes:
        weights: one per class or region, or None.
        first: the first channel that Dice and its relatives look at: 1 leaves the background out.
        smooth, squared, per_patch: of Dice, see `LossSettings`.
        gamma: of the focal loss.
        errors: what false positives and false negatives cost in Tversky.
        top: share of the voxels that top-k cross-entropy takes.
        reduce: adds sums up over processes.
    """

    weights: Tensor | None = None
    first: int = 1
    smooth: float = 1.0
    squared: bool = False
    per_patch: bool = False
    gamma: float = 2.0
    errors: tuple[float, float] = (0.5, 0.5)
    top: float = 0.1
    reduce: Reduce = one_process

    def sums(self, pair: PredictionAndTarget, squared: bool = False) -> Sums:
        """The sums of the channels that Dice and its relatives look at."""
        return overlap_sums(pair, self.per_patch, squared, self.reduce).without(self.first)


Term: TypeAlias = Callable[[PredictionAndTarget, TermSettings], Tensor]


def cross_entropy(pair: PredictionAndTarget, settings: TermSettings) -> Tensor:
    """Mean over voxels; with regions, of the binary cross-entropy of each region."""
    return _mean(-pair.right, _weight(pair, settings), settings)


def focal(pair: PredictionAndTarget, settings: TermSettings) -> Tensor:
    """Focal loss: cross-entropy times (1 - p of the truth) to the power gamma."""
    # The smallest number keeps the slope finite where p is 1 and gamma below 1.
    missing = -torch.expm1(pair.right)
    return _mean(missing.clamp_min(1e-7) ** settings.gamma * -pair.right, _weight(pair, settings), settings)


def top_k(pair: PredictionAndTarget, settings: TermSettings) -> Tensor:
    """Cross-entropy of the hardest voxels alone: the given share of the known voxels, at least one voxel."""
    values, weight = -pair.right.flatten(), _weight(pair, settings).expand(pair.right.shape).flatten()
    known = weight > 0
    count = max(1, math.ceil(settings.top * int(known.sum())))
    # The voxels that cost most; known voxels come before all others.
    hardest = torch.where(known, values.detach() * weight, -1.0).topk(count).indices
    return _mean(values[hardest], weight[hardest], settings)


def _weight(pair: PredictionAndTarget, settings: TermSettings) -> Tensor:
    """The weight of voxels and classes together, broadcast over `PredictionAndTarget.right`."""
    weight = pair.weight if pair.inside is None else pair.weight[:, None]
    if settings.weights is None:
        return weight
    weights = settings.weights.to(weight)
    if pair.inside is None:
        return weight * weights[pair.target]
    return weight * weights.reshape(1, -1, *(1,) * (pair.target.ndim - 1))


def _mean(values: Tensor, weight: Tensor, settings: TermSettings) -> Tensor:
    weight = weight.expand(values.shape)
    sums = settings.reduce(torch.stack([(values * weight).sum(), weight.sum()]))
    return sums[0] / torch.where(sums[1] > 0, sums[1], 1.0)


def dice(pair: PredictionAndTarget, settings: TermSettings) -> Tensor:
    """Soft Dice (as Tversky's with half of both errors)."""
    return _overlap(settings.sums(pair, settings.squared), settings, (0.5, 0.5), settings.smooth / 2)


def tversky(pair: PredictionAndTarget, settings: TermSettings) -> Tensor:
    """Tversky's index (Salehi et al. 2017)."""
    return _overlap(settings.sums(pair), settings, settings.errors, settings.smooth)


def _overlap(sums: Sums, settings: TermSettings, errors: tuple[float, float], smooth: float) -> Tensor:
    """Mean loss of the classes present in the batch (or patch), plus that of the absent classes.

    A present class costs ``1 - (hit + s) / (hit + a * false positives + b * false negatives + s)``. For an absent class
    that fraction would read the residual probability of 1e-5 per voxel in a batch of 200,000 as a loss of 0.5; an
    absent class costs the mean probability that it is given instead, which is harmless if it is rightly absent.
    """
    hits, here = sums.hits, sums.true > 0
    false_positives, false_negatives = errors[0] * (sums.given - hits), errors[1] * (sums.true - hits)
    # The tiny number only matters for smooth = 0, where an absent class would divide 0 by 0.
    present = 1 - (hits + smooth) / (hits + false_positives + false_negatives + smooth).clamp_min(1e-12)
    return _mean_where(present, here, settings) + _mean_where(_absent(sums), ~here, settings)


def _absent(sums: Sums) -> Tensor:
    return sums.given / torch.where(sums.voxels > 0, sums.voxels, 1.0)


def _mean_where(values: Tensor, chosen: Tensor, settings: TermSettings) -> Tensor:
    sums = torch.stack([torch.where(chosen, values, 0.0).sum(), chosen.sum().to(values)])
    # Rows of patches are those of this process; the one row of a batch is that of all processes already.
    total, count = settings.reduce(sums) if settings.per_patch else sums
    found: Tensor = total / count.clamp_min(1)
    return found


def generalized_dice(pair: PredictionAndTarget, settings: TermSettings) -> Tensor:
    """One Dice of all classes together, each weighted by the inverse square of its voxels (Sudre et al. 2017).

    Weights are relative to that of the smallest class present, so that `smooth` counts voxels of that class. Absent
    classes cost as much as in Dice; in the paper they would weigh infinitely much.
    """
    sums = settings.sums(pair, settings.squared)
    here = sums.true > 0
    smallest = torch.where(here, sums.true, math.inf).amin(dim=1, keepdim=True)
    share = torch.where(here, (smallest / torch.where(here, sums.true, 1.0)) ** 2, 0.0)
    hits, both = (share * sums.hits).sum(dim=1), (share * (sums.given + sums.true)).sum(dim=1)
    present = 1 - (2 * hits + settings.smooth) / (both + settings.smooth).clamp_min(1e-12)
    return _mean_where(present, here.any(dim=1), settings) + _mean_where(_absent(sums), ~here, settings)


def blob(pair: PredictionAndTarget, settings: TermSettings) -> Tensor:
    """Soft Dice of each connected piece of each class and patch by itself (blob loss, Kofler et al. 2023).

    A piece is compared with the prediction anywhere but on the class's other pieces; small and large pieces count
    alike. Pieces that touch by a corner are one piece.
    """
    scores, count = [], pair.weight.new_zeros(())
    for channel in range(settings.first, pair.channels):
        mask = pair.mask(channel)
        pieces, most = _pieces(mask)
        if not most:
            continue
        given = pair.log_probabilities[:, channel].exp() * pair.weight
        blank = given.new_zeros(len(mask), most + 1)
        hits = blank.scatter_add(1, pieces.flatten(1), given.flatten(1))
        true = blank.scatter_add(1, pieces.flatten(1), pair.weight.flatten(1))
        beside = torch.where(mask, 0.0, given).flatten(1).sum(dim=1, keepdim=True)
        here = (true > 0) & (torch.arange(most + 1, device=true.device) > 0)
        values = 1 - (2 * hits + settings.smooth) / (hits + beside + true + settings.smooth)
        scores.append(torch.where(here, values, 0.0).sum())
        count = count + here.sum()
    total = torch.stack(scores).sum() if scores else pair.log_probabilities.sum() * 0.0
    sums = settings.reduce(torch.stack([total, count.to(total)]))
    return sums[0] / sums[1].clamp_min(1)


def _pieces(masks: Tensor) -> tuple[Tensor, int]:
    """The number of its connected piece for each voxel, 0 outside, ``(batch, *spatial)``; the highest number."""
    structure = np.ones((3,) * (masks.ndim - 1), dtype=bool)
    found = [components(mask, structure) for mask in masks.cpu().numpy()]
    numbers = torch.from_numpy(np.stack([pieces for pieces, _ in found])).long()
    return numbers.to(masks.device), max(count for _, count in found)


def boundary(pair: PredictionAndTarget, settings: TermSettings) -> Tensor:
    """Boundary loss (Kervadec et al. 2019): probability times the signed distance to the true surface, in voxels.

    The mean over voxels, patches and classes; negative where the prediction lies inside, and only of use beside
    another term. Patches without a class, or full of it, say nothing of its surface.
    """
    return _surface(pair, settings, lambda channel, p: surface_distances(pair.mask(channel), pair.weight > 0, True) * p)


def hausdorff(pair: PredictionAndTarget, settings: TermSettings) -> Tensor:
    """Squared errors times squared distances to the true and to the predicted surface (Karimi et al. 2019), in voxels.

    The mean over voxels, patches and classes.
    """

    def weighted(channel: int, p: Tensor) -> Tensor:
        true, known = pair.mask(channel), pair.weight > 0
        far = surface_distances(true, known, False) ** 2 + surface_distances(p.detach() > 0.5, known, False) ** 2
        return far * (p - true.to(p)) ** 2

    return _surface(pair, settings, weighted)


def _surface(pair: PredictionAndTarget, settings: TermSettings, value: Callable[[int, Tensor], Tensor]) -> Tensor:
    values = (value(c, pair.log_probabilities[:, c].exp()) for c in range(settings.first, pair.channels))
    return torch.stack([_mean(one, pair.weight, settings) for one in values]).mean()


def surface_distances(masks: Tensor, known: Tensor, signed: bool) -> Tensor:
    """The distance of each voxel to the nearest voxel on the other side of a surface, in voxels.

    scipy computes it on the CPU, patch by patch, as MONAI does without cuCIM. Unknown voxels take the side of their
    nearest known voxel, so that no surface appears at their border.

    Args:
        masks: ``(batch, *spatial)`` bool.
        known: of the same shape.
        signed: inside the mask, distances are counted from the outermost voxels on (0, 1, …) and negative, as in
            Kervadec et al. 2019.

    Returns:
        ``(batch, *spatial)`` float32; 0 for a mask that is empty or full, which has no surface.
    """
    pairs = zip(masks.cpu().numpy(), known.cpu().numpy(), strict=True)
    found = [_distances(_continued(mask, seen), signed) for mask, seen in pairs]
    return torch.from_numpy(np.stack(found)).to(masks.device)


def _distances(mask: NDArray[np.bool_], signed: bool) -> NDArray[np.float32]:
    if mask.all() or not mask.any():
        return np.zeros(mask.shape, np.float32)
    inside, outside = _edt(mask), _edt(~mask)
    return outside - np.maximum(inside - 1, 0) if signed else inside + outside


def _edt(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    distances: NDArray[np.float64] = distance_transform_edt(mask)
    return distances.astype(np.float32)


def _continued(mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with unknown voxels on the side of their nearest known one."""
    if known.all() or not known.any():
        return mask & known
    nearest: Any = distance_transform_edt(~known, return_distances=False, return_indices=True)
    found: NDArray[np.bool_] = mask[tuple(nearest)]
    return found
