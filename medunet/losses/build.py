"""Losses on logits and class indices.

MONAI's losses know no ignored voxels (a label of 255 is an index error) and no voxel weights, and read the residual
probability of an absent class as a nearly full error; so these are our own, checked against MONAI's where both apply.
All compute in float32, also under autocast, and all treat a voxel of weight 0 exactly like an ignored one. The terms
are in `terms.py`, the pairs of prediction and target in `targets.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from medunet.errors import ConfigError, LocatedError
from medunet.losses import terms
from medunet.losses.foreign import PREFIX, REGISTERED, check_foreign, foreign_kinds, is_foreign, make_foreign
from medunet.losses.targets import IGNORE, Reduce, membership_of, one_process, pair_classes, pair_regions
from medunet.registry import find_name

Loss: TypeAlias = Callable[..., Tensor]
"""``loss(logits, target, weight=None, progress=1.0, parts=None)``; see `make_loss`."""

Parts: TypeAlias = MutableMapping[str, Tensor]
"""The values that a loss adds up, by term: scalars without gradients, weighted as they are in the sum."""

Kind: TypeAlias = Literal[
    "dice",
    "cross_entropy",
    "dice_cross_entropy",
    "focal",
    "dice_focal",
    "tversky",
    "tversky_cross_entropy",
    "generalized_dice",
    "generalized_dice_cross_entropy",
    "top_k",
    "dice_top_k",
]


@dataclass(frozen=True)
class LossSettings:
    """Settings of the loss.

    Attributes:
        kind: `dice_cross_entropy` is the sum of Dice and cross-entropy, and so on. `generalized_dice` weighs classes by
            the inverse square of their size, `top_k` is the cross-entropy of the hardest voxels. For data with regions,
            cross-entropy and focal loss are binary losses of each region. `monai.DiceFocalLoss` and so on are MONAI's
            (`foreign.LOSSES`), and a name that `register_loss` was told is that loss; neither takes other settings than
            `arguments`.
        arguments: of a loss of MONAI or a registered one, by name, as plain data.
        class_weights: for cross-entropy, top-k and focal loss; one weight per class (or region), or `balanced`:
            inverse to the number of its voxels in the data set; None weighs all voxels alike.
        include_background: whether class 0 counts in Dice and its relatives; true for data without a background class.
        smooth: voxels added above and below the fraction of Dice and Tversky.
        gamma: focal loss's exponent (Lin et al. 2017).
        alpha: weight of false positives in Tversky.
        beta: weight of false negatives in Tversky (Salehi et al. 2017); alpha = beta = 0.5 is Dice.
        batch_dice: take the sums of Dice and its relatives over the whole batch; false takes them patch by patch.
        squared: square probabilities in the denominator of Dice and generalized Dice (Milletari et al. 2016).
        top_k: the share of voxels, the hardest ones, that top-k cross-entropy averages over.
        blob_weight: of an additional Dice of each connected piece by itself, so that small ones count as much as
            large ones (Kofler et al. 2023, with 1 beside 2 for the whole); 0 leaves it out.
        surface: an additional term that weighs errors by their distance to the surface, in voxels: `boundary`
            (Kervadec et al. 2019) or `hausdorff` (Karimi et al. 2019; slow). Distances are computed on the CPU.
        surface_weight: of that term.
        surface_warm_in: the share of the training over which that weight grows from 0, in proportion.

    Raises:
        ConfigError: a number is out of its range.
    """

    kind: str = "dice_cross_entropy"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    include_background: bool = False
    smooth: float = 1.0
    gamma: float = 2.0
    alpha: float = 0.3
    beta: float = 0.7
    batch_dice: bool = True
    squared: bool = False
    top_k: float = 0.1
    blob_weight: float = 0.0
    surface: Literal["none", "boundary", "hausdorff"] = "none"
    surface_weight: float = 0.01
    surface_warm_in: float = 0.5

    def __post_init__(self) -> None:
        self._check_kind()
        if self.surface not in _SURFACES:
            raise ConfigError(f"loss.surface {self.surface!r} is unknown; choose one of {', '.join(_SURFACES)}")
        for name in ("smooth", "gamma", "alpha", "beta", "blob_weight", "surface_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"loss.{name} must be finite and cannot be negative, found {getattr(self, name)}")
        if self.alpha + self.beta == 0:
            raise ConfigError("loss.alpha and loss.beta are both 0, so errors would cost nothing; set at least one")
        if not 0 < self.top_k <= 1:
            raise ConfigError(f"loss.top_k is a share of the voxels, above 0 and up to 1; found {self.top_k}")
        if not 0 <= self.surface_warm_in <= 1:
            raise ConfigError(f"loss.surface_warm_in is a share of the run, 0 to 1; found {self.surface_warm_in}")
        weights = self.class_weights
        if isinstance(weights, str) and weights != "balanced":
            raise ConfigError(f"loss.class_weights is 'balanced', a list of numbers or empty; found {weights!r}")
        if isinstance(weights, tuple) and not (all(0 <= w < float("inf") for w in weights) and sum(weights) > 0):
            raise ConfigError(f"loss.class_weights must be finite, not negative and not all 0; found {weights}")

    def _check_kind(self) -> None:
        if not is_foreign(self.kind):
            find_name(("loss", "kind"), self.kind, (*get_args(Kind), *foreign_kinds()), "the loss", REGISTERED.call)
            if self.arguments:
                raise LocatedError(f"{self.kind} takes none; it has settings of its own", ("loss", "arguments"))
            return
        check_foreign(self.kind, self.arguments)
        for name, nothing in (("class_weights", None), ("blob_weight", 0.0), ("surface", "none")):
            if getattr(self, name) != nothing:
                raise LocatedError(f"{self.kind} takes none; leave it out (see loss.arguments)", ("loss", name))

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms that the loss adds up, at least one; `parts` have the same names in the same order."""
        if is_foreign(self.kind):
            return (self.kind.removeprefix(PREFIX),)
        return tuple(term.__name__ for term, _ in _weighted(self, 1.0))


def register_loss(name: str, factory: Callable[..., Any]) -> None:
    """Let `loss.kind` name a loss of your own, in this process.

    Args:
        name: as configs say it.
        factory: takes what `loss.arguments` says, and gives ``loss(logits, target, weight)``, a function or a module
            with a scalar as result. Logits are ``(batch, outputs, *spatial)`` float32; the target holds class indices
            ``(batch, *spatial)`` int64, for data with regions zeros and ones ``(batch, regions, *spatial)``; the weight
            ``(batch, *spatial)`` is 0 where a voxel is ignored. Logits of ignored voxels are 0 and get no gradient.

    Raises:
        ConfigError: the name exists.
    """
    REGISTERED.add(name, factory, get_args(Kind))


class SegmentationLoss(nn.Module):
    """A loss as a module, for training loops of your own: `SegmentationLoss(LossSettings(kind="dice"), classes=3)`.

    Args:
        settings, classes, regions: see `make_loss`. Balanced class weights need the voxels of each class: give numbers.

    Raises:
        ConfigError: there are fewer than two classes, or the settings do not fit them.
    """

    def __init__(
        self, settings: LossSettings | None = None, classes: int = 2, regions: Sequence[Sequence[int]] = ()
    ) -> None:
        super().__init__()
        self.settings, self.classes, self.outputs = settings or LossSettings(), classes, len(regions) or classes
        self._loss = make_loss(self.settings, classes, regions=regions)

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor, weight: Tensor | None = None) -> Tensor:
        """A scalar; 0 where every voxel is ignored.

        Args:
            logits: ``(batch, outputs, *spatial)``, one output for each class or region; or a sequence of them, finest
                first (deep supervision).
            target: class indices ``(batch, 1, *spatial)`` or ``(batch, *spatial)``; 255 is ignored.
            weight: one number per voxel, in the target's shape.

        Raises:
            ValueError: shapes do not fit, or the target holds what is no class.
        """
        first = logits if isinstance(logits, Tensor) else logits[0]
        if first.shape[1] != self.outputs:
            raise ValueError(f"logits {tuple(first.shape)} have {first.shape[1]} outputs, expected {self.outputs}")
        known = target[target != IGNORE]
        if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < self.classes:
            wrong = known[(known < 0) | (known >= self.classes)][0].item()
            raise ValueError(
                f"the target holds {wrong:g}, expected class indices 0 to {self.classes - 1}, or {IGNORE} for what is "
                "ignored"
            )
        return self._loss(logits, target, weight)


def make_loss(
    settings: LossSettings,
    classes: int,
    voxels: Sequence[int] | None = None,
    regions: Sequence[Sequence[int]] = (),
    reduce: Reduce = one_process,
) -> Loss:
    """Build the loss of a network.

    Args:
        settings: of the loss.
        classes: number of classes in the targets, background included; at least 2.
        voxels: voxels of each class in the data set; needed by `class_weights: balanced` alone.
        regions: the classes that each region is made of. With regions the network has an output for each region, which
            are not exclusive; without regions, an output for each class.
        reduce: adds a tensor of sums up over all processes of a distributed training, in a way that gradients go
            through. The loss knows nothing else of other processes, and calls it equally often in each of them.

    Returns:
        ``loss(logits, target, weight=None, progress=1.0, parts=None)``, a scalar float32 tensor. Logits are
        ``(batch, outputs, *spatial)``, or a sequence of them from fine to coarse (deep supervision,
        `deeply_supervised`); the target holds class indices of any integer type, ``(batch, 1, *spatial)`` or
        ``(batch, *spatial)``, and `IGNORE`; the weight holds one number per voxel in the target's shape; the progress
        is the share of the training that is over; the parts, if given, receive each term as it is added up, the same in
        all processes, so that their sum is the loss but for rounding. If every voxel is ignored, loss and gradient
        are 0.

    Raises:
        ConfigError: there are fewer than two classes, or the weights do not fit them.
    """
    if classes < 2:
        raise ConfigError(f"a segmentation needs at least 2 classes, background included; found {classes}")
    if is_foreign(settings.kind):
        return deeply_supervised(make_foreign(settings.kind, settings.arguments, classes, regions, reduce))
    membership = membership_of(regions, classes) if regions else None
    term_settings = terms.TermSettings(
        weights=_class_weights(settings, classes, voxels, regions),
        first=0 if regions or settings.include_background else 1,
        smooth=settings.smooth,
        squared=settings.squared,
        per_patch=not settings.batch_dice,
        gamma=settings.gamma,
        errors=(settings.alpha, settings.beta),
        top=settings.top_k,
        reduce=reduce,
    )

    def loss(logits: Tensor, target: Tensor, weight: Tensor | None, progress: float, parts: Parts | None) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            if membership is None:
                pair = pair_classes(logits, target, weight)
            else:
                pair = pair_regions(logits, target, weight, membership.to(logits.device))
            values = {
                term.__name__: factor * term(pair, term_settings) for term, factor in _weighted(settings, progress)
            }
            if parts is not None:
                parts.update({name: value.detach() for name, value in values.items()})
            return torch.stack(list(values.values())).sum()

    return deeply_supervised(loss)


def _weighted(settings: LossSettings, progress: float) -> list[tuple[terms.Term, float]]:
    """Terms with their weights. The terms do not depend on the progress, the weights do."""
    added = [(term, 1.0) for term in _KINDS[settings.kind]]
    if settings.blob_weight > 0:
        added.append((terms.blob, settings.blob_weight))
    surface = _SURFACES[settings.surface]
    if surface is not None:
        warm = min(1.0, progress / settings.surface_warm_in) if settings.surface_warm_in > 0 else 1.0
        added.append((surface, warm * settings.surface_weight))
    return added


def balanced_weights(voxels: Sequence[int]) -> tuple[float, ...]:
    """Weights inverse to the class frequencies: ``total / (classes * voxels)``; 1 for a class without a voxel."""
    return tuple(sum(voxels) / (len(voxels) * n) if n > 0 else 1.0 for n in voxels)


def deeply_supervised(loss: Loss) -> Loss:
    """The loss of the logits of several resolutions, weighted 1, 1/2, 1/4, … and normalised.

    Targets and weights are thinned out, never interpolated: each coarse voxel takes the fine voxel at its centre. All
    resolutions must show the same field of view, as those of padded networks do. A single tensor has the plain loss.

    Raises:
        ConfigError: (when called) a resolution is not a whole fraction of the target's.
    """

    def supervised(
        logits: Tensor | Sequence[Tensor],
        target: Tensor,
        weight: Tensor | None = None,
        progress: float = 1.0,
        parts: Parts | None = None,
    ) -> Tensor:
        if isinstance(logits, Tensor):
            return loss(logits, target, weight, progress, parts)
        shares = [0.5**level for level in range(len(logits))]
        values = []
        for level, share in zip(logits, shares, strict=True):
            size = level.shape[2:]
            thinner = None if weight is None else _thinned(weight, size)
            found: Parts = {}
            values.append(loss(level, _thinned(target, size), thinner, progress, found))
            if parts is not None:
                parts.update({k: share / sum(shares) * v + parts.get(k, 0) for k, v in found.items()})
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


def _class_weights(
    settings: LossSettings, classes: int, voxels: Sequence[int] | None, regions: Sequence[Sequence[int]]
) -> Tensor | None:
    weights = settings.class_weights
    if weights is None:
        return None
    if weights == "balanced":
        if voxels is None:
            raise ConfigError("loss.class_weights 'balanced' needs the data set's voxel counts; give numbers instead")
        weights = balanced_weights([sum(voxels[i] for i in region) for region in regions] if regions else voxels)
    expected, what = (len(regions), "regions") if regions else (classes, "classes")
    if len(weights) != expected:
        raise ConfigError(f"loss.class_weights has {len(weights)} numbers, but there are {expected} {what}")
    return torch.tensor(weights, dtype=torch.float32)


_KINDS: dict[str, tuple[terms.Term, ...]] = {
    "dice": (terms.dice,),
    "cross_entropy": (terms.cross_entropy,),
    "dice_cross_entropy": (terms.dice, terms.cross_entropy),
    "focal": (terms.focal,),
    "dice_focal": (terms.dice, terms.focal),
    "tversky": (terms.tversky,),
    "tversky_cross_entropy": (terms.tversky, terms.cross_entropy),
    "generalized_dice": (terms.generalized_dice,),
    "generalized_dice_cross_entropy": (terms.generalized_dice, terms.cross_entropy),
    "top_k": (terms.top_k,),
    "dice_top_k": (terms.dice, terms.top_k),
}
_SURFACES: dict[str, terms.Term | None] = {"none": None, "boundary": terms.boundary, "hausdorff": terms.hausdorff}
