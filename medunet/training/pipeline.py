"""The preparation and augmentation of a training as one `Compose` of MONAI, to print, to change and to give back.

The steps are those that `medunet train` runs: preparation, whose result the cache keeps, a patch, and its augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose, Randomizable

from medunet.config import Config, load_config
from medunet.datasets.catalogue import annotated, read_data_set, with_labels
from medunet.datasets.labels import LabelTable
from medunet.errors import ConfigError
from medunet.patches.dataset import PatchSettings, PreparedCase, find_foreground, read_patch
from medunet.patches.steps import preparation_steps
from medunet.transforms.augment.augmentation import Augmentation, RandMoved, RandValuesd, Step
from medunet.transforms.augment.monai_steps import RandMonaid, own_step
from medunet.transforms.augment.settings import Draw


class Steps(Compose):  # type: ignore[misc]
    """A `Compose` that shows its steps when it is printed, and raises their errors as they are."""

    def __call__(self, data: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        """The data after all steps."""
        for step in self.transforms:
            data = step(data)
        return dict(data)

    def __init__(self, steps: Sequence[Any]) -> None:
        super().__init__()
        self.transforms: list[Any] = list(steps)

    def __repr__(self) -> str:
        return "\n".join(["Steps:", *(f"  {number}. {step}" for number, step in enumerate(self.transforms))])

    __str__ = __repr__


class RandPatchd(Randomizable):  # type: ignore[misc]
    """Cuts a patch out of a prepared case, with the surroundings that its move needs.

    `draw` in the data decides the place and all that follows; without it a new one is drawn from this transform's own
    random state. `image`, `label` and `weight` become tensors, `size` is the size of a patch.

    Attributes:
        classes: the foreground, of which some patches must show a voxel.
        margin: of an unpadded network.
        moved: the step that moves the patch.
    """

    def __init__(
        self, settings: PatchSettings, classes: Sequence[int], margin: tuple[int, ...], moved: RandMoved | None
    ) -> None:
        self.settings, self.classes, self.margin, self.moved = settings, tuple(classes), margin, moved

    def randomize(self, data: Any = None) -> Draw:
        """A new draw."""
        return Draw(int(self.R.randint(2**31 - 1)), 0, 0)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The patch.

        Raises:
            ConfigError: there is no label.
        """
        if "label" not in data:
            raise ConfigError("a training patch needs a label; give image and label")
        draw, size = data.get("draw") or self.randomize(), self.settings.size
        foreground = find_foreground(data["label"], self.classes)
        case = PreparedCase(data["case"].name, data["image"], data["label"], foreground, data.get("weight"))
        read = size if self.moved is None else self.moved.move(draw).read_size(size)
        patch = read_patch(case, self.settings, self.margin, draw, read).to(torch.device("cpu"))
        found = {**data, "image": patch.image, "label": patch.label, "draw": draw, "size": tuple(size)}
        return found if patch.weight is None else found | {"weight": patch.weight}

    def __str__(self) -> str:
        return f"RandPatchd(size={self.settings.size}, oversample={self.settings.oversample:.2f})"


@dataclass(frozen=True)
class OutputLabeld:
    """Cuts a label to what an unpadded network answers for."""

    margin: tuple[int, ...]

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        inner = (slice(None), *(slice(m, n - m) for m, n in zip(self.margin, data["size"], strict=True)))
        return {**data, **{key: data[key][inner] for key in ("label", "weight") if key in data}}


def training_transforms(config: Config | Path | str) -> Steps:
    """All that happens to a case before a network learns from it.

    `steps({"image": path, "label": path})` gives a patch: `image` ``(channel, *size)`` float32 and `label`
    ``(1, *size)``, 255 where nothing is known. With `draw=Draw(seed, epoch, index)` in the data it is the patch that
    `medunet train` would cut from this case. The steps after `RandPatchd` may be changed, and be given back as
    `medunet.train(…, transforms=steps)`.

    Args:
        config: a config or its file; its data set is looked at for the labels.

    Raises:
        ConfigError, DataError: the config or its data set is wrong.
    """
    config, labels = _read(config)
    augmentation = Augmentation(config.augment, config.network.dimensions)
    margin = () if config.network.padded else config.network.shape.margin
    learned = config.instances.learned(labels) if labels.kind == "instances" else labels
    moved = next(step for step in augmentation.steps if isinstance(step, RandMoved))
    patch = RandPatchd(config.patches, learned.foreground, margin, moved)
    cut = [OutputLabeld(margin)] if any(margin) else []
    return Steps([*_preparation(config, labels), patch, *augmentation.steps, *cut])


def validation_transforms(config: Config | Path | str) -> Steps:
    """All that happens to a held-out case before it is predicted whole; see `training_transforms`."""
    config, labels = _read(config)
    return Steps(_preparation(config, labels))


def augmentation_of(config: Config, transforms: Sequence[Any] | Steps) -> Augmentation:
    """The augmentation of a training, with what a Python program gives.

    Args:
        transforms: transforms of patches that follow the config's, or the whole that `training_transforms` gave.

    Raises:
        ConfigError: a transform cannot serve; or the steps of the preparation were changed, which the cache keeps.
    """
    dimensions = config.network.dimensions
    own = Augmentation(config.augment, dimensions)
    if not isinstance(transforms, Steps):
        return Augmentation(config.augment, dimensions, _ready([*own.steps, *transforms], dimensions))
    steps = list(transforms.transforms)
    at = next((place for place, step in enumerate(steps) if isinstance(step, RandPatchd)), None)
    expected = training_transforms(config).transforms
    first = next(place for place, step in enumerate(expected) if isinstance(step, RandPatchd))
    if at is None or [str(step) for step in steps[: at + 1]] != [str(step) for step in expected[: first + 1]]:
        raise ConfigError(
            "transforms changes the steps up to RandPatchd, which the config decides and the cache keeps\n"
            "change preprocess and patches in the config, and only what follows RandPatchd here"
        )
    random = [step for step in steps[at + 1 :] if not isinstance(step, OutputLabeld)]
    return Augmentation(config.augment, dimensions, _ready(random, dimensions))


def _ready(transforms: Sequence[Any], dimensions: int) -> list[Step]:
    """Steps of medunet as they are, transforms of other makers behind the checks of `own_step`, counted in order."""
    found: list[Step] = []
    for step in transforms:
        place = sum(isinstance(earlier, RandMonaid) for earlier in found)
        if isinstance(step, RandMonaid):
            found.append(replace(step, place=place))
        else:
            own = isinstance(step, RandMoved | RandValuesd)
            found.append(step if own else own_step(place, step, dimensions))
    return found


def _read(config: Config | Path | str) -> tuple[Config, LabelTable]:
    found = config if isinstance(config, Config) else load_config(Path(config)).config
    if found.data.path is None:
        raise ConfigError("the config names no data set; set data.path")
    data = annotated(read_data_set(Path(found.data.path), found.data.channels), found.data.annotation)
    return found, with_labels(data, data.labelled, found.data.axes)


def _preparation(config: Config, labels: LabelTable) -> list[Step]:
    instances = config.instances if labels.kind == "instances" else None
    weight_map = config.weight_map if config.weight_map.kind != "none" else None
    return list(preparation_steps(config.preprocess, labels, config.data.axes, instances, weight_map))
