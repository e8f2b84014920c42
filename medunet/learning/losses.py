"""Losses on logits and class indices.

MONAI's losses know no ignored voxels (a label of 255 is an index error) and no voxel weights, and read the residual
probability of an absent class as a nearly full error; so these are our own, checked against MONAI's where both apply.
All compute in float32, also under autocast, and all treat a voxel of weight 0 exactly like an ignored one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from medunet.errors import ConfigError

IGNORE = 255
"""The class index of voxels that no loss uses; the same as in the label tables of `medunet.data`."""

Loss: TypeAlias = Callable[..., Tensor]
"""``loss(logits, target, weight=None)``; see `make_loss`."""


@dataclass(frozen=True)
class LossSettings:
    """What a prediction is judged by while training.

    Attributes:
        kind: `dice_cross_entropy` is the sum of both.
        class_weights: for cross-entropy and focal loss; one weight per class, or `balanced`: inverse to the number of
            the class's voxels in the data set; None weighs all voxels alike.
        include_background: whether class 0 counts in Dice and Tversky; true for data without a background class.
        smooth: voxels added above and below the fraction of Dice and Tversky.
        gamma: focal loss's exponent (Lin et al. 2017).
        alpha: weight of false positives in Tversky.
        beta: weight of false negatives in Tversky (Salehi et al. 2017); alpha = beta = 0.5 is Dice.

    Raises:
        ConfigError: a number is out of its range.
    """

    kind: Literal["dice", "cross_entropy", "dice_cross_entropy", "focal", "tversky"] = "dice_cross_entropy"
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    include_background: bool = False
    smooth: float = 1.0
    gamma: float = 2.0
    alpha: float = 0.3
    beta: float = 0.7

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"loss kind {self.kind!r} is unknown; choose one of {', '.join(_KINDS)}")
        for name in ("smooth", "gamma", "alpha", "beta"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"loss.{name} cannot be negative, found {getattr(self, name)}")
        if self.alpha + self.beta == 0:
            raise ConfigError("loss.alpha and loss.beta are both 0, so errors would cost nothing; set at least one")
        weights = self.class_weights
        if isinstance(weights, str) and weights != "balanced":
            raise ConfigError(f"loss.class_weights is 'balanced', a list of numbers or empty; found {weights!r}")
        if isinstance(weights, tuple) and not (all(0 <= w < float("inf") for w in weights) and sum(weights) > 0):
            raise ConfigError(f"loss.class_weights must be finite, not negative and not all 0; found {weights}")


def make_loss(settings: LossSettings, classes: int, voxels: Sequence[int] | None = None) -> Loss:
    """Build the loss of a network with `classes` outputs.

    Args:
        settings: which loss.
        classes: number of classes, background included; at least 2.
        voxels: voxels of each class in the data set; needed by `class_weights: balanced` alone.

    Returns:
        ``loss(logits, target, weight=None)``, a scalar float32 tensor. Logits are ``(batch, classes, *spatial)``, or a
        sequence of them from fine to coarse (deep supervision, `deeply_supervised`); the target holds class indices
        of any integer type, ``(batch, 1, *spatial)`` or ``(batch, *spatial)``, and `IGNORE`; the weight holds one
        number per voxel in the target's shape. Where every voxel is ignored, loss and gradient are 0.

    Raises:
        ConfigError: there are fewer than two classes, or the weights do not fit them.
    """
    if classes < 2:
        raise ConfigError(f"a segmentation needs at least 2 classes, background included; found {classes}")
    terms = [_TERMS[name] for name in _KINDS[settings.kind]]
    weights = _class_weights(settings, classes, voxels)

    def loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            judged = _judged(logits, target, weight)
            values = [term(judged, settings, weights) for term in terms]
            return torch.stack(values).sum()

    return deeply_supervised(loss)


def balanced_weights(voxels: Sequence[int]) -> tuple[float, ...]:
    """Weights inverse to the class's share: ``total / (classes * voxels)``; 1 for a class without a voxel."""
    return tuple(sum(voxels) / (len(voxels) * n) if n > 0 else 1.0 for n in voxels)


def deeply_supervised(loss: Loss) -> Loss:
    """Let a loss judge the logits of several resolutions, weighted 1, 1/2, 1/4, … and normalised.

    Targets and weights are thinned out, never interpolated: each coarse voxel takes the fine voxel at its centre. All
    resolutions must show the same field of view, as those of padded networks do. A single tensor is judged as before.

    Raises:
        ConfigError: (when called) a resolution is no whole fraction of the target's.
    """

    def supervised(logits: Tensor | Sequence[Tensor], target: Tensor, weight: Tensor | None = None) -> Tensor:
        if isinstance(logits, Tensor):
            return loss(logits, target, weight)
        shares = [0.5**level for level in range(len(logits))]
        values = []
        for level in logits:
            size = level.shape[2:]
            thinner = None if weight is None else _thinned(weight, size)
            values.append(loss(level, _thinned(target, size), thinner))
        return torch.stack([s * v for s, v in zip(shares, values, strict=True)]).sum() / sum(shares)

    return supervised


def _thinned(voxels: Tensor, size: Sequence[int]) -> Tensor:
    """The voxels at the centres of a coarser grid over the last axes."""
    first = voxels.ndim - len(size)
    for axis, count in enumerate(size, start=first):
        length = voxels.shape[axis]
        if length % count:
            raise ConfigError(
                f"deep supervision: logits of {tuple(size)} voxels do not show the target's field of view, "
                f"{tuple(voxels.shape[first:])} voxels\nset network.deep_supervision to false for unpadded networks"
            )
        if count != length:
            centres = (torch.arange(count, device=voxels.device) * 2 + 1) * length // (2 * count)
            voxels = voxels.index_select(axis, centres)
    return voxels


@dataclass(frozen=True)
class _Judged:
    """What was predicted beside what is true.

    Attributes:
        log_probabilities: ``(batch, classes, *spatial)`` float32.
        right: the log-probability of the true class, ``(batch, *spatial)``.
        target: ``(batch, *spatial)`` int64; 0 where ignored.
        weight: ``(batch, *spatial)`` float32; 0 where ignored.
    """

    log_probabilities: Tensor
    right: Tensor
    target: Tensor
    weight: Tensor


def _judged(logits: Tensor, target: Tensor, weight: Tensor | None) -> _Judged:
    if target.ndim == logits.ndim:
        target = target.squeeze(1)
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit")
    valid = target != IGNORE
    weights = valid.float()
    if weight is not None:
        weights = weights * weight.float().reshape(target.shape)
    known = target.long().masked_fill(~valid, 0)
    log_probabilities = logits.float().log_softmax(dim=1)
    return _Judged(log_probabilities, log_probabilities.gather(1, known[:, None])[:, 0], known, weights)


_Term: TypeAlias = Callable[[_Judged, LossSettings, Tensor | None], Tensor]


def _cross_entropy(judged: _Judged, settings: LossSettings, weights: Tensor | None) -> Tensor:
    return _weighted_mean(-judged.right, judged, weights)


def _focal(judged: _Judged, settings: LossSettings, weights: Tensor | None) -> Tensor:
    """Softmax focal loss: cross-entropy times (1 - p of the true class) to the power gamma."""
    # The smallest number keeps the slope finite where p is 1 and gamma below 1.
    missing = -torch.expm1(judged.right)
    return _weighted_mean(missing.clamp_min(1e-7) ** settings.gamma * -judged.right, judged, weights)


def _weighted_mean(values: Tensor, judged: _Judged, weights: Tensor | None) -> Tensor:
    weight = judged.weight
    if weights is not None:
        weight = weight * weights.to(weight.device)[judged.target]
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)


def _dice(judged: _Judged, settings: LossSettings, weights: Tensor | None) -> Tensor:
    """Soft Dice, its sums taken over the whole batch (as Tversky's with half of both errors)."""
    return _overlap(judged, settings, (0.5, 0.5), settings.smooth / 2)


def _tversky(judged: _Judged, settings: LossSettings, weights: Tensor | None) -> Tensor:
    return _overlap(judged, settings, (settings.alpha, settings.beta), settings.smooth)


def _overlap(judged: _Judged, settings: LossSettings, errors: tuple[float, float], smooth: float) -> Tensor:
    """Mean loss of the classes that are in the batch, plus that of those that are not.

    A class that is in the batch costs ``1 - (hit + s) / (hit + a * false positives + b * false negatives + s)``. For
    one that is not, that fraction would read the residual probability of 1e-5 per voxel in a batch of 200,000 as a
    loss of 0.5; it costs the mean probability that it is given instead, which is harmless where it is rightly absent.
    """
    first = 0 if settings.include_background else 1
    classes, weight, target = judged.log_probabilities.shape[1], judged.weight, judged.target.flatten()
    # Sums over classes by index: a one-hot truth would be as large as the logits, gigabytes for a hundred classes.
    hits = weight.new_zeros(classes).index_add(0, target, (judged.right.exp() * weight).flatten())[first:]
    true = weight.new_zeros(classes).index_add(0, target, weight.flatten())[first:]
    probabilities = judged.log_probabilities.exp().flatten(2)
    given = torch.einsum("bkn,bn->k", probabilities, weight.flatten(1))[first:]
    voxels = weight.sum()
    false_positives, false_negatives = errors[0] * (given - hits), errors[1] * (true - hits)
    # The tiny number only matters for smooth = 0, where an absent class would divide 0 by 0.
    present = 1 - (hits + smooth) / (hits + false_positives + false_negatives + smooth).clamp_min(1e-12)
    absent = given / torch.where(voxels > 0, voxels, 1.0)
    here = true > 0
    return _mean_where(present, here) + _mean_where(absent, ~here)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)


def _class_weights(settings: LossSettings, classes: int, voxels: Sequence[int] | None) -> Tensor | None:
    weights = settings.class_weights
    if weights is None:
        return None
    if weights == "balanced":
        if voxels is None:
            raise ConfigError("loss.class_weights 'balanced' needs the data set's voxel counts; give numbers instead")
        weights = balanced_weights(voxels)
    if len(weights) != classes:
        raise ConfigError(f"loss.class_weights has {len(weights)} numbers, but there are {classes} classes")
    return torch.tensor(weights, dtype=torch.float32)


_TERMS: dict[str, _Term] = {"dice": _dice, "cross_entropy": _cross_entropy, "focal": _focal, "tversky": _tversky}
_KINDS: dict[str, tuple[str, ...]] = {
    "dice": ("dice",),
    "cross_entropy": ("cross_entropy",),
    "dice_cross_entropy": ("dice", "cross_entropy"),
    "focal": ("focal",),
    "tversky": ("tversky",),
}
