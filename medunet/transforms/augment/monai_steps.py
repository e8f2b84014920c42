"""MONAI's random transforms on a patch, after medunet's own changes; the set of labels stays closed.

A transform that moves voxels takes labels from the nearest voxel and fills with zeros from outside. Labels go in less
IGNORE, so that what comes from outside is IGNORE afterwards, whatever the transform. All draws come from the patch's
own generator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medunet.datasets.labels import IGNORE
from medunet.errors import ConfigError, LocatedError
from medunet.registry import build_located
from medunet.transforms.augment.monai_list import TRANSFORMS, build_transform

STREAM = 3
"""Of a draw, from which all steps have their random numbers."""
_TRIAL = 16
"""Voxels along each axis of the patch that shows whether MONAI takes the arguments."""


@dataclass(frozen=True)
class RandMonaid:
    """One transform of MONAI, or of the user's own, that is ready; a step of the augmentation.

    Attributes:
        place: among the steps of its kind, from 0; it decides the random numbers.
        name: of the transform.
        moves: True if it may move voxels, so that it gets the label and the weight as well.
        apply: the transform.
        where: its place for messages, such as `augment.monai[0]`.
    """

    place: int
    name: str
    moves: bool
    apply: Callable[[Any], Any]
    where: str = ""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Change one patch, see `RandMoved` for its entries.

        The random state is set from the draw; what is no `Randomizable` of MONAI has to decide nothing by chance.

        Raises:
            ConfigError: the transform changes a size, or brings in a label that was not there.
        """
        # One number for each step, used or not: no step moves another one's draw.
        seed = int(data["draw"].generator(STREAM).integers(2**32, size=self.place + 1)[-1])
        with _plain_tensors():
            image, weight, label = _applied(self, seed, data["image"], data.get("weight"), data["label"])
        return {**data, "image": image, "label": label} | ({} if weight is None else {"weight": weight})

    def __str__(self) -> str:
        return f"{self.where or self.name}: {self.name}"


def monai_steps(steps: Sequence[Mapping[str, Any]], dimensions: int) -> list[RandMonaid]:
    """The transforms of a config, in its order.

    Args:
        steps: checked by `check_transforms`.
        dimensions: of the patches.

    Raises:
        LocatedError: a transform does not take patches of these dimensions, or refuses an argument when it is applied.
    """
    return [_made(place, step, dimensions) for place, step in enumerate(steps)]


def own_step(place: int, transform: Any, dimensions: int) -> RandMonaid:
    """A transform object that a Python program gives, after it was tried on a small patch.

    Args:
        place: see `RandMonaid`.

    Raises:
        ConfigError: it is not callable, moves the image but not the label, interpolates labels or changes the size.
    """
    name = type(transform).__name__
    if not callable(transform):
        raise ConfigError(f"transforms holds {transform!r}, expected a transform of MONAI or a function of a patch")
    known = TRANSFORMS.get(name)
    keys = getattr(transform, "keys", None)
    if known is not None and known.moves and keys is not None and "label" not in keys:
        raise ConfigError(f"{name} moves voxels, so it needs the keys image and label, found {tuple(keys)}")
    step = RandMonaid(place, name, known is None or known.moves, transform, f"transforms[{place}]")
    certain = copy.deepcopy(transform)
    if hasattr(certain, "prob"):
        certain.prob = 1.0
    shape = (1, *(_TRIAL,) * dimensions)
    label = (torch.arange(_TRIAL**dimensions) % 3).to(torch.uint8).reshape(shape)
    try:
        with _plain_tensors():
            _applied(replace(step, apply=certain), 0, torch.linspace(-1, 1, label.numel()).reshape(shape), None, label)
    except ConfigError:
        raise
    except Exception as error:  # a transform raises errors of any kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"{step.where} {name} fails on a patch of {_TRIAL} voxels: {reason}") from error
    return step


def check_exchanges(settings: Sequence[Mapping[str, Any]], size: Sequence[int]) -> None:
    """Refuse patches whose size a transform of a config would change.

    Raises:
        LocatedError: axes that are exchanged differ in length.
    """
    for place, given in enumerate(settings):
        name = str(given["name"])
        if name in TRANSFORMS and TRANSFORMS[name].exchanges:
            axes = given.get("spatial_axes", (0, 1))
            if len({size[axis] for axis in axes}) > 1:
                raise LocatedError(
                    f"{name} exchanges the axes {tuple(axes)}, but patches.size {tuple(size)} differs along "
                    "them; give both one length, or say spatial_axes",
                    ("augment", "monai", place),
                )


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Within it MONAI keeps no metadata, which would cost more than the arithmetic."""
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def _made(place: int, given: Mapping[str, Any], dimensions: int) -> RandMonaid:
    """The transform, after it was tried on a small patch, as some arguments are refused only there."""
    where, name = ("augment", "monai", place), str(given["name"])
    said = f"augment.monai[{place}]"
    arguments = {key: value for key, value in given.items() if key != "name"}
    moves = name not in TRANSFORMS or TRANSFORMS[name].moves

    def tried(**chosen: Any) -> Callable[[Any], Any]:
        certain = {"prob": 1.0} if name in TRANSFORMS else {}
        built = build_transform(where, {"name": name, **chosen}, dimensions, **certain)
        step = RandMonaid(place, name, moves, built, said)
        shape = (1, *(_TRIAL,) * dimensions)
        image = torch.linspace(-1, 1, _TRIAL**dimensions).reshape(shape)
        with _plain_tensors():
            _applied(step, 0, image, None, torch.zeros(shape, dtype=torch.uint8))
        return step.apply

    build_transform(where, given, dimensions)
    build_located(where, tried, arguments, f"MONAI's {name}" if name in TRANSFORMS else name)
    return RandMonaid(place, name, moves, build_transform(where, given, dimensions), said)


def _applied(
    step: RandMonaid, seed: int, image: Tensor, weight: Tensor | None, label: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    patch = {"image": image}
    if step.moves:
        patch["label"] = label.float() - IGNORE
        if weight is not None:
            patch["weight"] = weight
    if hasattr(step.apply, "set_random_state"):
        step.apply.set_random_state(seed=seed)
    found = step.apply(patch)
    after = {key: _same_size(step, key, found[key], patch[key]) for key in patch}
    if not step.moves:
        return after["image"], weight, label
    return after["image"], after.get("weight"), _closed(step, after["label"] + IGNORE, label)


def _same_size(step: RandMonaid, key: str, found: Any, before: Tensor) -> Tensor:
    tensor = torch.as_tensor(found).as_subclass(Tensor).to(before)
    if tensor.shape != before.shape:
        raise ConfigError(
            f"{step.where} {step.name} makes {key} {tuple(tensor.shape)} of {tuple(before.shape)}; "
            "a patch has to keep its size"
        )
    return tensor


def _closed(step: RandMonaid, found: Tensor, before: Tensor) -> Tensor:
    """The label in its old type, after a check that it holds no value that it did not hold, except IGNORE."""
    # Counted, as sorting a patch's voxels takes ten times as long.
    known = torch.bincount(before.flatten().long(), minlength=IGNORE + 1) > 0
    known[IGNORE] = True
    whole = found.round()
    index = whole.flatten().long()
    if bool((found != whole).any()) or not 0 <= int(index.min()) <= int(index.max()) < len(known):
        wrong = found[(found != whole) | (whole < 0) | (whole >= len(known))][0]
        raise _opened(step, float(wrong))
    new = (torch.bincount(index, minlength=len(known)) > 0) & ~known
    if bool(new.any()):
        raise _opened(step, float(new.nonzero()[0]))
    return whole.to(before.dtype)


def _opened(step: RandMonaid, value: float) -> ConfigError:
    return ConfigError(
        f"{step.where} {step.name} made the label {value:g}, which the patch did not hold\n"
        "a label is never interpolated: take labels from the nearest voxel"
    )
