"""Scans: medunet's readers behind MONAI's `ImageReader` and its loading transforms."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.data.image_reader import ImageReader
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple
from numpy.typing import NDArray

from medunet.datasets.catalogue import Case, group_cases
from medunet.datasets.labels import whole_numbers
from medunet.datasets.loading import load_image, load_label_values
from medunet.errors import ConfigError
from medunet.formats.dispatch import case_stem, is_readable, read_volume
from medunet.volume import Volume

Files: TypeAlias = Path | str | Sequence[Path | str]
"""A file, a folder that is a scan, or one file for each channel."""

KIND, LABEL, IMAGE = "kind", "label", "image"
"""The entry of `meta` that tells label maps from images, and its values."""
CASE = "case"
"""The entry of `meta` that names the case, which outputs are called after."""


class VolumeReader(ImageReader):  # type: ignore[misc]
    """medunet's readers for `LoadImage`: every format that medunet reads, told by suffix and content.

    Arrays are as MONAI's own readers give them: `(x, y[, z])`, several channels last.

    Args:
        axes, frame: see `medunet.read_volume`.
    """

    def __init__(self, axes: str | None = None, frame: int | None = None) -> None:
        self._axes, self._frame = axes, frame

    def verify_suffix(self, filename: Files) -> bool:
        """True if all of these are scans that medunet reads."""
        return all(is_readable(path) for path in _paths(filename))

    def read(self, data: Files, **kwargs: Any) -> list[Volume]:
        """The volume of each file.

        Raises:
            DataError: a file cannot be read.
        """
        stated = {"axes": self._axes, "frame": self._frame} | kwargs
        return [read_volume(path, **stated) for path in _paths(data)]

    def get_data(self, img: Volume | Sequence[Volume]) -> tuple[NDArray[Any], dict[str, Any]]:
        """The array of all channels, and its metadata.

        Raises:
            DataError: the files differ in shape.
        """
        first, *others = [img] if isinstance(img, Volume) else img
        arrays = [first.array, *(first.with_array(other.array).array for other in others)]
        array = np.moveaxis(np.concatenate(arrays) if others else first.array, 0, -1)
        single = array.shape[-1] == 1
        meta = first.meta() | {"original_channel_dim": float("nan") if single else -1}
        return array[..., 0] if single else array, meta


class LoadScan(Transform):  # type: ignore[misc]
    """Loads a scan as `medunet train` and `predict` do: `(channel, *spatial)` with its grid.

    Args:
        axes, frame: see `medunet.read_volume`.
        dtype: of the tensor; None keeps the file's, as far as torch has it.
    """

    def __init__(self, axes: str | None = None, frame: int | None = None, dtype: Any = np.float32) -> None:
        self._axes, self._frame, self._dtype = axes, frame, dtype

    def __call__(self, files: Files) -> torch.Tensor:
        """The scan as a `MetaTensor`, or as a plain tensor where MONAI is told not to track metadata.

        Args:
            files: one, or one for each channel, which must share one grid.

        Raises:
            DataError: a file cannot be read, or channels lie on different grids.
        """
        case = _case(files, self._frame)
        volume = load_image(case, self._axes)
        if self._dtype is not None:
            volume = volume.with_array(volume.array.astype(self._dtype, copy=False))
        return tracked(volume, {KIND: IMAGE, CASE: case.name})


class LoadScand(MapTransform):  # type: ignore[misc]
    """`LoadScan` for some keys, with label maps that are checked against their image's grid.

    Labels keep whole numbers in an integer type, so that no later transform can interpolate them unseen, and the mark
    of a label in their `meta`, by which medunet's transforms know them.

    Args:
        keys: of files; the first that is no label is the image that labels belong to.
        labels: those of the keys that are label maps.
        axes, frame: see `medunet.read_volume`; of a label map what fits it is taken.

    Raises:
        ConfigError: `labels` names what is no key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: KeysCollection = (),
        axes: str | None = None,
        frame: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = label_keys(self.keys, labels)
        self._axes, self._frame = axes, frame
        self._image = LoadScan(axes, frame)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with tensors in place of the files.

        Raises:
            DataError: a file cannot be read, a label map holds fractions or lies on another grid than its image.
        """
        found = dict(data)
        keys = list(self.key_iterator(found))
        images = [key for key in keys if key not in self.labels]
        for key in images:
            found[key] = self._image(data[key])
        for key in keys:
            if key in self.labels:
                found[key] = self._label(data[key], data[images[0]] if images else None)
        return found

    def _label(self, file: Files, image: Files | None) -> torch.Tensor:
        case = _case(file, None)
        label = read_volume(case.images[0]) if image is None else self._beside(case.images[0], image)
        values = whole_numbers(label.array, str(case.images[0]))
        return tracked(label.with_array(values), {KIND: LABEL, CASE: case.name})

    def _beside(self, label: Path, image: Files) -> Volume:
        """The label map on its image's grid."""
        case = replace(_case(image, self._frame), label=label)
        volume = load_image(replace(case, images=case.images[:1]), self._axes)
        values = load_label_values(case, volume, self._axes)
        assert volume.origin is not None
        return replace(volume, array=values, origin=replace(volume.origin, path=label))


def label_keys(keys: Sequence[Hashable], labels: KeysCollection) -> tuple[Hashable, ...]:
    """The keys that are label maps.

    Raises:
        ConfigError: one of them is no key.
    """
    named = ensure_tuple(labels)
    unknown = [label for label in named if label not in keys]
    if unknown:
        raise ConfigError(f"labels={named!r} names {unknown[0]!r}, which is none of the keys {tuple(keys)!r}")
    return tuple(named)


def is_label(tensor: Any) -> bool:
    """True if a tensor was loaded as a label map."""
    return isinstance(tensor, MetaTensor) and tensor.meta.get(KIND) == LABEL


def tracked(volume: Volume, meta: Mapping[str, Any]) -> torch.Tensor:
    """The volume as MONAI's tensor with more metadata; plain where MONAI is told to track none."""
    tensor: torch.Tensor = volume.to_metatensor()
    tensor.meta.update(meta)  # type: ignore[attr-defined]
    return tensor if get_track_meta() else tensor.as_subclass(torch.Tensor)


def _paths(files: Files) -> list[Path]:
    return [Path(path) for path in ([files] if isinstance(files, (str, Path)) else files)]


def _case(files: Files, frame: int | None) -> Case:
    """The case that these files are; several are its channels, in this order."""
    paths = tuple(_paths(files))
    if not paths:
        raise ConfigError("found an empty list of files, expected the file of a scan or one for each channel")
    grouped: Collection[Case] = group_cases(paths, {}) if len(paths) > 1 else ()
    name = next(iter(grouped)).name if len(grouped) == 1 else case_stem(paths[0])
    return Case(name, paths, frame=frame)
