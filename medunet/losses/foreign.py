"""Losses that are not medunet's own: those of MONAI, from a written list, and those that Python registered.

MONAI's losses know no ignored voxels. Most look at voxels as a set: they are given the known voxels of each patch
alone, which is the loss without the ignored ones, exactly. A few look at surroundings (distances, skeletons): for them
ignored voxels are background in the prediction and in the truth alike. Either way nothing ignored reaches the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medunet.errors import ConfigError, LocatedError
from medunet.losses.targets import PredictionAndTarget, Reduce, membership_of, pair_classes, pair_regions
from medunet.registry import Allowed, Kind, Registered, build_located, check_arguments, find_name

PREFIX = "monai."
_ARGUMENTS = ("loss", "arguments")


@dataclass(frozen=True)
class MonaiLoss:
    """One loss of the list.

    Attributes:
        arguments: that a config may give.
        surroundings: True if it looks at a voxel's surroundings, so that voxels cannot be taken out.
        activated: True if it takes probabilities, and has no activation of its own.
        softmax: its argument that turns the softmax on; empty where there is none.
        regions: True if it can be computed for regions, which may overlap.
        classes: the only number of classes that it takes; 0 for any.
    """

    arguments: Allowed
    surroundings: bool = False
    activated: bool = False
    softmax: str = "softmax"
    regions: bool = True
    classes: int = 0


_BACKGROUND: Allowed = {"include_background": Kind.FLAG}
_SMOOTH: Allowed = {"smooth_nr": Kind.NUMBER, "smooth_dr": Kind.NUMBER}
_OVERLAP: Allowed = {**_BACKGROUND, **_SMOOTH, "batch": Kind.FLAG}
_DICE: Allowed = {**_OVERLAP, "squared_pred": Kind.FLAG, "jaccard": Kind.FLAG, "weight": Kind.NUMBERS}
_FOCAL: Allowed = {"gamma": Kind.NUMBER, "weight": Kind.NUMBERS}
_W_TYPE: Allowed = {"w_type": ("square", "simple", "uniform")}
_SKELETON: Allowed = {**_BACKGROUND, **_SMOOTH, "iter_": Kind.WHOLE, "smooth": Kind.NUMBER}
_DISTANCE = MonaiLoss({**_BACKGROUND, "alpha": Kind.NUMBER}, surroundings=True)

LOSSES: dict[str, MonaiLoss] = {
    "DiceLoss": MonaiLoss(_DICE),
    "DiceCELoss": MonaiLoss(
        {**_DICE, "lambda_dice": Kind.NUMBER, "lambda_ce": Kind.NUMBER, "label_smoothing": Kind.SHARE}, regions=False
    ),
    "DiceFocalLoss": MonaiLoss(
        {**_DICE, **_FOCAL, "lambda_dice": Kind.NUMBER, "lambda_focal": Kind.NUMBER, "alpha": Kind.SHARE}
    ),
    "GeneralizedDiceLoss": MonaiLoss({**_OVERLAP, **_W_TYPE}),
    "GeneralizedDiceFocalLoss": MonaiLoss(
        {**_OVERLAP, **_W_TYPE, **_FOCAL, "lambda_gdl": Kind.NUMBER, "lambda_focal": Kind.NUMBER}
    ),
    "FocalLoss": MonaiLoss({**_BACKGROUND, **_FOCAL, "alpha": Kind.NUMBERS}, softmax="use_softmax"),
    "TverskyLoss": MonaiLoss({**_OVERLAP, "alpha": Kind.NUMBER, "beta": Kind.NUMBER}),
    "MCCLoss": MonaiLoss(_OVERLAP),
    "GeneralizedWassersteinDiceLoss": MonaiLoss(
        {**_SMOOTH, "dist_matrix": Kind.NUMBERS, "weighting_mode": ("default", "GDL")}, softmax="", regions=False
    ),
    "AsymmetricUnifiedFocalLoss": MonaiLoss(
        {"weight": Kind.NUMBER, "gamma": Kind.NUMBER, "delta": Kind.NUMBER},
        activated=True,
        softmax="",
        regions=False,
        classes=2,
    ),
    "HausdorffDTLoss": _DISTANCE,
    "LogHausdorffDTLoss": _DISTANCE,
    "SoftclDiceLoss": MonaiLoss(_SKELETON, surroundings=True),
    "SoftDiceclDiceLoss": MonaiLoss({**_SKELETON, "alpha": Kind.SHARE}, surroundings=True),
}

REFUSED: dict[str, str] = {
    "MaskedDiceLoss": "every loss is masked here by what is ignored; take monai.DiceLoss",
    "NACLLoss": "its cross-entropy and its neighbourhoods of labels cannot be told which voxels are ignored",
    "DeepSupervisionLoss": "set network.deep_supervision to true; it goes with every loss",
}
"""Losses of MONAI that are refused, and why."""

_TENSORS = {"GeneralizedWassersteinDiceLoss": {"dist_matrix"}, "DiceCELoss": {"weight"}}
"""Arguments that must be tensors."""

REGISTERED: Registered[Callable[..., Any]] = Registered("medunet.register_loss")


def is_foreign(kind: str) -> bool:
    """True for a loss of MONAI and for a registered one, whether or not it exists."""
    return kind.startswith(PREFIX) or REGISTERED.get(kind) is not None


def foreign_kinds() -> tuple[str, ...]:
    return (*(PREFIX + name for name in LOSSES), *REGISTERED)


def check_foreign(kind: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what a loss does not take, before its classes are known.

    Raises:
        LocatedError: at the place in the config.
    """
    name = kind.removeprefix(PREFIX)
    if kind.startswith(PREFIX) and name in REFUSED:
        raise LocatedError(f"{kind} is not offered: {REFUSED[name]}", ("loss", "kind"))
    find_name(("loss", "kind"), kind, foreign_kinds(), "the loss", REGISTERED.call)
    _build(kind, arguments, regions=False)


def make_foreign(
    kind: str, arguments: Mapping[str, Any], classes: int, regions: Sequence[Sequence[int]], reduce: Reduce
) -> ForeignLoss:
    """The loss of a checked kind.

    Raises:
        LocatedError: it does not take these classes, or regions; or an argument has another number of classes.
    """
    entry = LOSSES.get(kind.removeprefix(PREFIX)) if kind.startswith(PREFIX) else None
    if entry is not None and regions and not entry.regions:
        raise LocatedError(
            f"{kind} is for classes that exclude each other, but the data set has regions; take monai.DiceFocalLoss, "
            "or dice_cross_entropy",
            ("loss", "kind"),
        )
    if entry is not None and entry.classes not in (0, classes):
        raise LocatedError(f"{kind} takes {entry.classes} classes, but the data set has {classes}", ("loss", "kind"))
    module = _build(kind, arguments, bool(regions))
    way: type[ForeignLoss] = RegisteredLoss
    if entry is not None:
        way = MaskedLoss if entry.surroundings else KnownVoxelsLoss
    found = way(module, classes, regions, reduce)
    found.name = kind.removeprefix(PREFIX)
    if entry is None:
        return found
    found.activated, found.batch = entry.activated, bool(arguments.get("batch", False))
    _try(kind, found, arguments, len(regions) or classes)
    return found


def _build(kind: str, arguments: Mapping[str, Any], regions: bool) -> Any:
    """The library's own loss, or the registered one."""
    if not kind.startswith(PREFIX):
        factory = REGISTERED.get(kind)
        assert factory is not None, "checked before"
        return build_located(_ARGUMENTS, factory, arguments, kind)
    from monai import losses

    name = kind.removeprefix(PREFIX)
    entry, make = LOSSES[name], getattr(losses, name)
    fixed: dict[str, Any] = {"to_onehot_y": not (regions or entry.surroundings)}
    if name == "GeneralizedWassersteinDiceLoss":
        fixed = {}
    elif entry.surroundings:
        pass  # It is given probabilities, as ignored voxels are masked after the activation.
    elif regions and entry.softmax == "softmax":
        fixed["sigmoid"] = True
    elif entry.softmax:
        fixed[entry.softmax] = not regions

    def build(**own: Any) -> Any:
        for tensor in _TENSORS.get(name, set()) & own.keys():
            own[tensor] = torch.tensor(own[tensor], dtype=torch.float32)
        return make(**own | fixed)

    given = check_arguments(_ARGUMENTS, arguments, entry.arguments, kind)
    return build_located(_ARGUMENTS, build, given, f"MONAI's {name}")


def _try(kind: str, loss: ForeignLoss, arguments: Mapping[str, Any], outputs: int) -> None:
    """Refuse arguments that do not fit the number of classes, which MONAI finds out when it computes."""

    def tried(**own: Any) -> Tensor:
        again = type(loss)(_build(kind, own, bool(loss.regions)), loss.classes, loss.regions, lambda sums: sums)
        again.activated = loss.activated
        target = torch.arange(16 * 16).reshape(1, 16, 16) % loss.classes
        found: Tensor = again(torch.zeros(1, outputs, 16, 16), target)
        return found

    build_located(_ARGUMENTS, tried, arguments, f"{kind} for {outputs} {'regions' if loss.regions else 'classes'}")


class ForeignLoss(nn.Module):
    """A loss of others behind the call of our own, ``loss(logits, target, weight=None, progress=1.0, parts=None)``.

    Its value is the mean over the patches that have a known voxel, of all processes; 0 where none has.

    Args:
        module: the loss itself.
        classes: of the targets.
        regions: the classes of each region; empty for classes.
        reduce: adds up over processes; called once for each call.
    """

    name = ""
    activated = False
    batch = False

    def __init__(self, module: Any, classes: int, regions: Sequence[Sequence[int]], reduce: Reduce) -> None:
        super().__init__()
        self.module = module
        self.classes = classes
        self.regions = tuple(tuple(region) for region in regions)
        self._reduce = reduce

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        progress: float = 1.0,
        parts: MutableMapping[str, Tensor] | None = None,
    ) -> Tensor:
        """See `medunet.losses.build.make_loss`.

        Raises:
            ConfigError: the weights are others than 0 and 1, which this loss cannot honour.
        """
        exact = logits if logits.dtype == torch.float64 else logits.float()
        self.to(exact)  # the weights of classes
        with torch.autocast(logits.device.type, enabled=False):
            pair = self._pair(exact, target, weight)
            values = self._values(exact, pair)
            # Each process counts its own patches.
            total = torch.stack(values).sum() if values else exact.sum() * 0.0
            sums = self._reduce(torch.stack([total, total.new_tensor(float(len(values)))]))
            mean = sums[0] / sums[1].clamp_min(1)
        if parts is not None:
            parts[self.name] = mean.detach()
        return mean

    def _pair(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> PredictionAndTarget:
        if not self.regions:
            return pair_classes(logits, target, weight)
        return pair_regions(logits, target, weight, membership_of(self.regions, self.classes).to(logits.device))

    def _values(self, logits: Tensor, pair: PredictionAndTarget) -> list[Tensor]:
        """The loss of each patch, or of all of them, without those that have no known voxel."""
        raise NotImplementedError


class RegisteredLoss(ForeignLoss):
    """A registered loss, which sees the whole batch and its weights, but no logit of an ignored voxel."""

    def _values(self, logits: Tensor, pair: PredictionAndTarget) -> list[Tensor]:
        known = pair.weight > 0
        if not bool(known.any()):
            return []
        value = self.module(torch.where(known[:, None], logits, 0.0), _truth(pair), pair.weight)
        if not isinstance(value, Tensor) or value.ndim:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"loss.kind: a registered loss gives one number, a tensor of shape (); found {found}")
        return [value]


class KnownVoxelsLoss(ForeignLoss):
    """A loss that looks at voxels as a set: it sees the known ones alone, patch by patch or of the whole batch."""

    def _values(self, logits: Tensor, pair: PredictionAndTarget) -> list[Tensor]:
        _require_plain(pair.weight)
        given = pair.log_probabilities.exp() if self.activated else logits
        truth = _truth(pair)
        truth = truth if self.regions else truth[:, None]
        known = [weight > 0 for weight in pair.weight]
        patches = [
            (values[:, mask], true[:, mask])
            for values, true, mask in zip(given, truth, known, strict=True)
            if bool(mask.any())
        ]
        if self.batch and patches:
            patches = [(torch.cat([p[0] for p in patches], dim=1), torch.cat([p[1] for p in patches], dim=1))]
        # MONAI expects pictures: one column of voxels.
        return [self.module(values[None, ..., None], true[None, ..., None]) for values, true in patches]


class MaskedLoss(ForeignLoss):
    """A loss that looks at surroundings: ignored voxels are background in prediction and truth, in all channels."""

    def _values(self, logits: Tensor, pair: PredictionAndTarget) -> list[Tensor]:
        _require_plain(pair.weight)
        truth = torch.stack([pair.mask(channel) for channel in range(pair.channels)], dim=1).to(logits.dtype)
        given = pair.log_probabilities.exp() * pair.weight[:, None]
        return [
            self.module(given[place : place + 1], truth[place : place + 1])
            for place, weight in enumerate(pair.weight)
            if bool((weight > 0).any())
        ]


def _truth(pair: PredictionAndTarget) -> Tensor:
    return pair.target if pair.inside is None else pair.inside


def _require_plain(weight: Tensor) -> None:
    if bool(((weight != 0) & (weight != 1)).any()):
        raise ConfigError(
            "loss.kind: MONAI's losses know no weight of a voxel; set weight_map.kind to none, or take one of "
            "medunet's own losses, such as dice_cross_entropy"
        )
