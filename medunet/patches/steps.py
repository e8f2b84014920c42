"""Steps from a case's files to what a training patch is cut from, each on a dictionary of one case.

`medunet train` runs them in this order, keeps what comes out in the cache, and Python gets them as a `Compose`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.catalogue import Case
from medunet.datasets.labels import IGNORE, LabelTable
from medunet.datasets.loading import load_image, load_label, load_label_values
from medunet.formats.dispatch import case_stem
from medunet.instances.settings import InstanceSettings
from medunet.instances.targets import UNKNOWN, make_target, number_objects
from medunet.instances.weightmap import WeightMapSettings, gap_weights, parts_of_class
from medunet.transforms.preprocess import PreprocessSettings, Undo, preprocess, preprocess_label
from medunet.volume import Volume

Step: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class LoadCased:
    """Reads a case: `image` becomes a `Volume`, `label` class indices or object numbers `(1, *spatial)` on its grid.

    Attributes:
        labels: the data set's own table.
        axes: of TIFF files and Zarr arrays that do not state them.
        objects: True if label files hold object ids.
    """

    labels: LabelTable
    axes: str | None = None
    objects: bool = False

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The case with its arrays.

        Args:
            data: `case`, a `Case`; or `image`, a path or one for each channel, and `label`, a path or nothing.

        Raises:
            DataError: a file cannot be read, or the label does not lie on its image's grid.
        """
        case = data["case"] if "case" in data else _case_of(data)
        image = load_image(case, self.axes)
        found = {**data, "case": case, "image": image}
        if case.label is None:
            return found
        return found | {"label": self._objects(case, image) if self.objects else self._classes(case, image)}

    def _classes(self, case: Case, image: Volume) -> NDArray[Any]:
        return load_label(case, self.labels, image, self.axes)

    def _objects(self, case: Case, image: Volume) -> NDArray[np.int32]:
        """Objects on the label file's grid; what was not annotated is `UNKNOWN`."""
        objects = number_objects(load_label_values(case, image, self.axes), self.labels, str(case.label))
        known = case.annotation.marked((objects > 0).astype(np.uint8), self.labels, case.name) != IGNORE
        return np.where(known, objects, UNKNOWN).astype(np.int32)

    def __str__(self) -> str:
        return f"LoadCased({self.labels.describe()})"


@dataclass(frozen=True)
class Preprocessd:
    """Takes image and label to the network's grid: orientation, crop, normalisation, resampling.

    The image becomes `(channel, *spatial)` float32; a label is taken from the nearest voxel. `spacing` and `unit` are
    those of the new grid, `undo` is the way back.
    """

    settings: PreprocessSettings

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The preprocessed case.

        Raises:
            DataError: NaN or infinite voxels, or channels or a spacing that do not fit the settings.
        """
        image: Volume = data["image"]
        array, undo = preprocess(image, self.settings)
        found = {**data, "image": array, "undo": undo, "spacing": _spacing(image, undo), "unit": image.unit}
        return found | ({"label": preprocess_label(data["label"], undo)} if "label" in data else {})

    def __str__(self) -> str:
        spacing = "as stored" if self.settings.spacing is None else f"{self.settings.spacing} {self.settings.unit}"
        kinds = ", ".join(how.kind for how in self.settings.normalise)
        return f"Preprocessd(orientation={self.settings.orientation}, spacing={spacing}, normalise={kinds})"


@dataclass(frozen=True)
class ObjectTargetd:
    """Makes classes of objects: what a network learns of them. The objects stay as `objects`.

    Objects are resampled before: distances are learned on the network's grid.
    """

    settings: InstanceSettings

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The case with class indices as its label."""
        if "label" not in data:
            return dict(data)
        objects = data["label"]
        return {**data, "objects": objects, "label": make_target(objects, data["spacing"], self.settings)}

    def __str__(self) -> str:
        return f"ObjectTargetd({self.settings.target})"


@dataclass(frozen=True)
class GapWeightd:
    """Adds `weight`, by how much the voxels between objects count more in the loss."""

    settings: WeightMapSettings
    labels: LabelTable

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The case with its weight map `(1, *spatial)` float16."""
        if "label" not in data:
            return dict(data)
        objects = data.get("objects")
        if objects is None:
            assert self.settings.parts_of is not None, "classes have no objects but these"
            objects = parts_of_class(data["label"], self.labels.names.index(self.settings.parts_of))
        pitch = self.settings.pitch(data["spacing"], data["unit"], data["case"].name)
        return {**data, "weight": gap_weights(objects, pitch, self.settings)}

    def __str__(self) -> str:
        return f"GapWeightd({self.settings.kind})"


def preparation_steps(
    settings: PreprocessSettings,
    labels: LabelTable,
    axes: str | None,
    instances: InstanceSettings | None = None,
    weight_map: WeightMapSettings | None = None,
) -> list[Step]:
    """The steps in their order.

    Args:
        labels: the data set's own table.
        instances: what is made of object ids; None where label files hold classes.
        weight_map: how voxels between objects are weighed; None where they are not.
    """
    steps: list[Step] = [LoadCased(labels, axes, instances is not None), Preprocessd(settings)]
    if instances is not None:
        steps.append(ObjectTargetd(instances))
    if weight_map is not None:
        steps.append(GapWeightd(weight_map, labels))
    return steps


def _case_of(data: Mapping[str, Any]) -> Case:
    files = data["image"]
    images = tuple(Path(file) for file in ([files] if isinstance(files, str | Path) else files))
    label = data.get("label")
    return Case(case_stem(images[0]), images, None if label is None else Path(label))


def _spacing(image: Volume, undo: Undo) -> tuple[float, ...]:
    """The spacing of the network's grid, in the image's unit."""
    oriented = [image.spacing[axis] for axis in undo.orientation.axes]
    return tuple(s * n / m for s, n, m in zip(oriented, undo.kept, undo.shape, strict=True))
