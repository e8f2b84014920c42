"""Grids: orientation, voxel size and normalisation of scans and label maps, computed as in `medunet train`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform, Transform
from monai.utils.enums import TraceKeys
from numpy.typing import NDArray
from torch import Tensor

from medunet.errors import ConfigError, DataError
from medunet.geometry import grids
from medunet.geometry.boxes import Box
from medunet.monai.scans import is_label, label_keys
from medunet.transforms.preprocess import Normalisation, PreprocessSettings, ScanView, orientation_of, preprocess
from medunet.volume import Volume

_AFFINE, _MODE = "affine", "mode"
"""Entries of what MONAI keeps of an applied transform; `Invertd(nearest_interp=True)` changes the mode."""


class GridTransform(InvertibleTransform):  # type: ignore[misc]
    """A transform that moves voxels of one tensor `(channel, *spatial)`, and takes them back.

    A tensor in an integer type, and one that `LoadScand` marked as a label map, is only ever taken from the nearest
    voxel, there and back.
    """

    def remembered(self, before: Tensor, after: Tensor, affine: NDArray[np.float64], **facts: Any) -> Tensor:
        """The new tensor with its affine, the old one's metadata, and what `inverse` needs.

        Args:
            affine: of the new grid, `(4, 4)`.
            facts: plain data for `inverse`.
        """
        if not get_track_meta() or not isinstance(before, MetaTensor):
            return after.as_subclass(Tensor)
        found = MetaTensor(after.as_subclass(Tensor), meta=dict(before.meta))
        found.applied_operations = list(before.applied_operations)
        old = np.asarray(before.affine, np.float64)
        found.affine = torch.as_tensor(_cut(affine, len(old) - 1))
        mode = "nearest" if stays_whole(before) else "bilinear"
        self.push_transform(
            found, orig_size=tuple(before.shape[1:]), extra_info={_AFFINE: old.tolist(), _MODE: mode, **facts}
        )
        moved: Tensor = found
        return moved

    def taken_back(self, data: Tensor) -> tuple[dict[str, Any], tuple[int, ...], bool]:
        """What `remembered` kept, the size to go back to, and whether voxels are taken whole; the record is dropped."""
        record = self.pop_transform(data)
        facts = record[TraceKeys.EXTRA_INFO]
        return facts, tuple(int(n) for n in record[TraceKeys.ORIG_SIZE]), stays_whole(data) or facts[_MODE] == "nearest"


def stays_whole(tensor: Tensor) -> bool:
    """True for label maps: no value may be made of two."""
    return is_label(tensor) or not tensor.dtype.is_floating_point


def returned(data: Tensor, values: Tensor, facts: Mapping[str, Any]) -> Tensor:
    """The values with the data's metadata, on the grid that `remembered` kept."""
    found = MetaTensor(values.as_subclass(Tensor), meta=dict(getattr(data, "meta", {})))
    found.applied_operations = list(getattr(data, "applied_operations", []))
    found.affine = torch.tensor(facts[_AFFINE], dtype=torch.float64)
    back: Tensor = found
    return back


class Orientation(GridTransform):
    """Turns and flips a medical scan to the nearest right-anterior-superior order, as `medunet train` does.

    Voxels stay whole, so `inverse` is exact. A picture, and a scan in micrometres or pixels, stays as it is.
    """

    def __call__(self, scan: Tensor) -> Tensor:
        """The scan `(channel, *spatial)` in the new order, with its affine."""
        volume = _volume(scan)
        turn = orientation_of(volume, PreprocessSettings())
        matrix = np.eye(4)
        matrix[:3, :3] = 0
        for new, (old, flipped) in enumerate(zip(turn.axes, turn.flips, strict=True)):
            matrix[old, new] = -1 if flipped else 1
            matrix[old, 3] = volume.shape[old] - 1 if flipped else 0
        matrix[2, 2] = 1 if volume.dimensions == 2 else matrix[2, 2]
        order = {"axes": list(turn.axes), "flips": list(turn.flips)}
        return self.remembered(scan, _turned(scan, turn), volume.affine @ matrix, **order)

    def inverse(self, data: Tensor) -> Tensor:
        """The scan in its stored order; any tensor on the new grid, such as a prediction."""
        facts, _, _ = self.taken_back(data)
        turn = grids.Orientation(tuple(facts["axes"]), tuple(facts["flips"]))
        back = data.as_subclass(Tensor).flip([a for a, flipped in enumerate(turn.flips, start=1) if flipped])
        return returned(data, back.permute(0, *(int(a) + 1 for a in np.argsort(turn.axes))).contiguous(), facts)


class Spacing(GridTransform):
    """Resamples a scan to a voxel size, linearly after a blur against aliasing, as `medunet train` does.

    Old and new grid cover the same extent: their outer edges agree, not their first voxels. Scans within a hundredth of
    the voxel size stay as they are. Label maps are taken from the nearest voxel, so they hold no new value.

    Args:
        pixdim: voxel size for each axis, in the scan's own unit.
    """

    def __init__(self, pixdim: Sequence[float]) -> None:
        self.pixdim = tuple(float(n) for n in pixdim)
        PreprocessSettings(spacing=self.pixdim)

    def __call__(self, scan: Tensor) -> Tensor:
        """The scan on the new grid, `(channel, *spatial)`: float32, or the label map's own type.

        Raises:
            DataError: the scan states no physical voxel size, has other axes than `pixdim`, or holds NaN.
        """
        volume = _volume(scan)
        if volume.unit == "pixel":
            raise DataError(f"{volume.name}: states no physical voxel size, so it cannot be resampled to {self.pixdim}")
        whole = stays_whole(scan)
        settings = PreprocessSettings("stored", self.pixdim, volume.unit, normalise=(Normalisation("none"),))
        view = ScanView(volume.with_array(np.zeros((1, *volume.shape), np.uint8)) if whole else volume, settings)
        size = view.undo.shape
        values = grids.resample_nearest(volume.array, size) if whole else _all_of(view)
        matrix = np.eye(4)
        for axis, (old, new) in enumerate(zip(volume.shape, size, strict=True)):
            matrix[axis, axis], matrix[axis, 3] = old / new, (old / new - 1) / 2
        return self.remembered(scan, torch.from_numpy(values).to(scan.device), volume.affine @ matrix)

    def inverse(self, data: Tensor) -> Tensor:
        """The tensor on the scan's grid: logits linearly, label maps from the nearest voxel."""
        facts, size, whole = self.taken_back(data)
        array = data.detach().as_subclass(Tensor).cpu().numpy()
        if whole:
            values = grids.resample_nearest(array, size)
        else:
            values = grids.Resampling(array.shape[1:], size).apply(array, (0,) * len(size), Box.of_shape(size))
        return returned(data, torch.from_numpy(np.ascontiguousarray(values)).to(data.device, data.dtype), facts)


class NormalizeScan(Transform):  # type: ignore[misc]
    """Makes intensities comparable, as `medunet train` does: statistics in float64, a constant channel becomes 0.

    `medunet train` normalises before it resamples, so this stands before `Spacing` where numbers have to be equal.

    Args:
        kind, nonzero, low, high, mean, std: see `Normalisation`; `ct` needs the four numbers.

    Raises:
        ConfigError: `ct` lacks a number.
    """

    def __init__(
        self,
        kind: Literal["zscore", "ct", "minmax", "none"] = "zscore",
        nonzero: bool = False,
        **numbers: float,
    ) -> None:
        how = Normalisation(kind, nonzero, **numbers)
        if kind not in ("zscore", "ct", "minmax", "none") or not how.complete:
            raise ConfigError(
                f"NormalizeScan({kind!r}) needs {'low, high, mean and std' if kind == 'ct' else 'a kind'}"
            )
        self._settings = PreprocessSettings("stored", normalise=(how,))

    def __call__(self, scan: Tensor) -> Tensor:
        """The scan `(channel, *spatial)` in float32; each channel by its own statistics.

        Raises:
            DataError: a label map, or NaN voxels.
        """
        volume = _volume(scan)
        if is_label(scan):
            raise DataError(f"{volume.name}: is a label map; normalise images alone")
        values = torch.from_numpy(preprocess(volume, self._settings)[0]).to(scan.device)
        if not isinstance(scan, MetaTensor):
            return values
        found = MetaTensor(values, meta=dict(scan.meta))
        found.applied_operations = list(scan.applied_operations)
        normalised: Tensor = found
        return normalised


class GridTransformd(MapTransform, InvertibleTransform):  # type: ignore[misc]
    """A transform of grids for some keys, each by itself.

    Args:
        labels: those of the keys that are label maps; `LoadScand` has marked its own already.
    """

    def __init__(
        self, keys: KeysCollection, transform: GridTransform, labels: KeysCollection, allow_missing_keys: bool
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = label_keys(self.keys, labels)
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with moved tensors.

        Raises:
            DataError: see the transform's own; or a label map holds fractions.
        """
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = self.transform(as_label(found[key], str(key)) if key in self.labels else found[key])
        return found

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with the tensors taken back."""
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = self.transform.inverse(found[key])
        return found


class Orientationd(GridTransformd):
    """`Orientation` for some keys."""

    def __init__(self, keys: KeysCollection, labels: KeysCollection = (), allow_missing_keys: bool = False) -> None:
        super().__init__(keys, Orientation(), labels, allow_missing_keys)


class Spacingd(GridTransformd):
    """`Spacing` for some keys: images linearly, label maps from the nearest voxel. There is no option for it.

    Args:
        pixdim: see `Spacing`.
        labels: those of the keys that are label maps; `LoadScand` has marked its own already.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float],
        labels: KeysCollection = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, Spacing(pixdim), labels, allow_missing_keys)


class NormalizeScand(MapTransform):  # type: ignore[misc]
    """`NormalizeScan` for some keys, each by itself."""

    def __init__(
        self, keys: KeysCollection, kind: Any = "zscore", allow_missing_keys: bool = False, **options: Any
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = NormalizeScan(kind, **options)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with normalised images."""
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = self.transform(found[key])
        return found


def as_label(tensor: Tensor, name: str) -> Tensor:
    """A label map in an integer type.

    Raises:
        DataError: it holds fractions.
    """
    if stays_whole(tensor):
        return tensor
    whole = tensor.round()
    if not torch.equal(whole.as_subclass(Tensor), tensor.as_subclass(Tensor)):
        raise DataError(f"{name!r} is named as a label map, but holds fractions; load it with LoadScand, or round it")
    small = float(whole.min()) >= -(2**15) and float(whole.max()) < 2**15
    return whole.to(torch.int16 if small else torch.int64)


def _volume(scan: Tensor) -> Volume:
    return Volume.from_metatensor(scan)


def _turned(scan: Tensor, turn: grids.Orientation) -> Tensor:
    moved = scan.as_subclass(Tensor).permute(0, *(axis + 1 for axis in turn.axes))
    return moved.flip([axis for axis, flipped in enumerate(turn.flips, start=1) if flipped]).contiguous()


def _all_of(view: ScanView) -> NDArray[np.float32]:
    return view[(slice(None), *Box.of_shape(view.shape[1:]).slices)]


def _cut(affine: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """The affine of so many axes; MONAI gives pictures one of three rows."""
    kept = [*range(dimensions), 3]
    return affine[np.ix_(kept, kept)]
