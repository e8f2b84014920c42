"""MONAI's random transforms on a patch, after medunet's own changes; the set of labels stays closed.

A transform that moves voxels takes labels from the nearest voxel and fills with zeros from outside. Labels go in less
IGNORE, so that what comes from outside is IGNORE afterwards, whatever the transform. All draws come from the patch's
own generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medunet.datasets.labels import IGNORE
from medunet.errors import ConfigError, LocatedError
from medunet.registry import build_located
from medunet.transforms.augment.monai_list import TRANSFORMS, build_transform

_TRIAL = 16
"""Voxels along each axis of the patch that shows whether MONAI takes the arguments."""


@dataclass(frozen=True)
class _Step:
    """A transform that is ready: its place in the config, its name, and whether it may change the label."""

    place: int
    name: str
    moves: bool
    apply: Callable[[Any], Any]


class MonaiSteps:
    """Transforms of a config, in its order; false without any.

    Args:
        steps: checked by `check_transforms`.
        dimensions: of the patches.

    Raises:
        LocatedError: a transform does not take patches of these dimensions, or refuses an argument when it is applied.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], dimensions: int) -> None:
        self._given = steps
        self._steps = [_made(place, step, dimensions) for place, step in enumerate(steps)]

    def __bool__(self) -> bool:
        return bool(self._steps)

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse patches whose size a transform would change.

        Raises:
            LocatedError: axes that are exchanged differ in length.
        """
        for step, given in zip(self._steps, self._given, strict=True):
            if step.name in TRANSFORMS and TRANSFORMS[step.name].exchanges:
                axes = given.get("spatial_axes", (0, 1))
                if len({size[axis] for axis in axes}) > 1:
                    raise LocatedError(
                        f"{step.name} exchanges the axes {tuple(axes)}, but patches.size {tuple(size)} differs along "
                        "them; give both one length, or say spatial_axes",
                        ("augment", "monai", step.place),
                    )

    def __call__(
        self, image: Tensor, weight: Tensor | None, label: Tensor, random: np.random.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Change one patch.

        Args:
            image: ``(channel, *spatial)`` float32; may be overwritten.
            weight: ``(1, *spatial)`` float32, or None; moved like the image, and otherwise left alone.
            label: ``(1, *spatial)`` class indices and IGNORE, of any integer type.
            random: decides all; no global generator moves.

        Returns:
            The three, in their types and sizes. The label has no value that it did not have, except IGNORE.

        Raises:
            ConfigError: a registered transform changes a size, or brings in a label that was not there.
        """
        # One number for each step, used or not: no step moves another one's draw.
        seeds = random.integers(2**32, size=len(self._steps)).tolist()
        with _plain_tensors():
            for step, seed in zip(self._steps, seeds, strict=True):
                image, weight, label = _applied(step, seed, image, weight, label)
        return image, weight, label


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


def _made(place: int, given: Mapping[str, Any], dimensions: int) -> _Step:
    """The transform, after it was tried on a small patch, as some arguments are refused only there."""
    where, name = ("augment", "monai", place), str(given["name"])
    arguments = {key: value for key, value in given.items() if key != "name"}
    moves = name not in TRANSFORMS or TRANSFORMS[name].moves

    def tried(**chosen: Any) -> Callable[[Any], Any]:
        certain = {"prob": 1.0} if name in TRANSFORMS else {}
        step = _Step(place, name, moves, build_transform(where, {"name": name, **chosen}, dimensions, **certain))
        shape = (1, *(_TRIAL,) * dimensions)
        image = torch.linspace(-1, 1, _TRIAL**dimensions).reshape(shape)
        with _plain_tensors():
            _applied(step, 0, image, None, torch.zeros(shape, dtype=torch.uint8))
        return step.apply

    build_transform(where, given, dimensions)
    build_located(where, tried, arguments, f"MONAI's {name}" if name in TRANSFORMS else name)
    return _Step(place, name, moves, build_transform(where, given, dimensions))


def _applied(
    step: _Step, seed: int, image: Tensor, weight: Tensor | None, label: Tensor
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


def _same_size(step: _Step, key: str, found: Any, before: Tensor) -> Tensor:
    tensor = torch.as_tensor(found).as_subclass(Tensor).to(before)
    if tensor.shape != before.shape:
        raise ConfigError(
            f"augment.monai[{step.place}] {step.name} makes {key} {tuple(tensor.shape)} of {tuple(before.shape)}; "
            "a patch has to keep its size"
        )
    return tensor


def _closed(step: _Step, found: Tensor, before: Tensor) -> Tensor:
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


def _opened(step: _Step, value: float) -> ConfigError:
    return ConfigError(
        f"augment.monai[{step.place}] {step.name} made the label {value:g}, which the patch did not hold\n"
        "a label is never interpolated: take labels from the nearest voxel"
    )
