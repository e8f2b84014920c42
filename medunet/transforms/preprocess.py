"""Preprocessing: from a scan to what a network sees.

Every step returns what undoes it; nothing is remembered anywhere else. The order is orientation, crop, normalisation,
resampling; the way back, in `restore.py`, is resampling, crop, orientation. All is computed box by box as it is read,
so that a scan that lives in a file never is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medunet.datasets.voxel_size import VoxelSize
from medunet.errors import ConfigError, DataError
from medunet.geometry.boxes import Box
from medunet.geometry.grids import (
    Orientation,
    Resampling,
    closest_ras,
    identity_orientation,
    resample_nearest,
    resampled_length,
)
from medunet.system.blocks import slowest_axis, spans
from medunet.system.scratch import release
from medunet.volume import MILLIMETRES, UNITS, Grid, Volume

SAME_SPACING = 0.01
"""Relative difference up to which voxel sizes are the same: resampling would blur more than it mends."""

_RESOLVED = float(np.finfo(np.float32).eps)
"""Relative difference of neighbouring float32 numbers."""
_BLOCK = 2**21
"""Voxels that statistics are taken of at a time."""
_Integer = TypeVar("_Integer", bound=np.integer[Any])
_REACH = 4.0
"""Standard deviations after which a Gaussian is cut off (scipy's default)."""


@dataclass(frozen=True)
class Normalisation:
    """Settings that make the intensities of one channel comparable.

    Attributes:
        kind: `zscore` (mean 0, standard deviation 1 per scan), `ct` (clip to `low`…`high`, then subtract `mean` and
            divide by `std`, all four measured once in the data set's foreground), `minmax` (0 to 1 per scan),
            or `none`.
        nonzero: take the statistics of `zscore` over voxels that are not 0 (skull-stripped or masked scans).
    """

    kind: Literal["zscore", "ct", "minmax", "none"] = "zscore"
    nonzero: bool = False
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None

    @property
    def complete(self) -> bool:
        """True if all numbers are known; `ct` needs the data set's."""
        return self.kind != "ct" or None not in (self.low, self.high, self.mean, self.std)


@dataclass(frozen=True)
class PreprocessSettings:
    """Settings of preprocessing.

    Attributes:
        orientation: `RAS` turns and flips medical scans to the nearest right-anterior-superior order;
            `stored` leaves the axes as they are in the file.
        spacing: target voxel size per axis after orientation; None keeps each scan's own.
        unit: of `spacing`; scans in another unit are converted, scans without a physical size refused.
        fallback_spacing: the voxel size in `unit`, in x, y, z as in the file, that a scan without a physical size is
            taken to have; filled in from the `spacing` of `dataset.json`. Without it such scans are refused.
        crop: `nonzero` cuts away the border of zeros around the scan's content.
        normalise: one entry per channel; a single entry serves all channels.
    """

    orientation: Literal["RAS", "stored"] = "RAS"
    spacing: tuple[float, ...] | None = None
    unit: str = "mm"
    crop: Literal["none", "nonzero"] = "none"
    normalise: tuple[Normalisation, ...] = (Normalisation(),)
    fallback_spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        fallback = self.fallback_spacing
        if fallback is not None and (len(fallback) not in (2, 3) or min(fallback) <= 0):
            raise ConfigError(f"preprocess.fallback_spacing needs 2 or 3 positive numbers, found {fallback}")
        if fallback is not None and self.unit == "pixel":
            raise ConfigError("preprocess.fallback_spacing is a physical size; set preprocess.unit to mm, um or nm")
        if self.spacing is not None and (len(self.spacing) not in (2, 3) or min(self.spacing) <= 0):
            raise ConfigError(f"preprocess.spacing needs 2 or 3 positive numbers, found {self.spacing}")
        if self.unit not in UNITS:
            raise ConfigError(f"preprocess.unit must be one of {', '.join(UNITS)}, found {self.unit}")
        if not self.normalise:
            raise ConfigError("preprocess.normalise needs at least one entry")

    @property
    def fallback(self) -> VoxelSize | None:
        """The voxel size of scans that state none; None where nothing is known."""
        return None if self.fallback_spacing is None else VoxelSize(self.fallback_spacing, self.unit)

    def channel(self, index: int) -> Normalisation:
        return self.normalise[index] if len(self.normalise) > 1 else self.normalise[0]


@dataclass(frozen=True)
class Undo:
    """The way from the network's grid back to the scan's own.

    Attributes:
        orientation: the reorientation that was applied.
        oriented: the scan's spatial shape after orientation.
        crop: the part of it that was kept, as slices.
        shape: the network grid's shape: that part, resampled.
    """

    orientation: Orientation
    oriented: tuple[int, ...]
    crop: tuple[slice, ...]
    shape: tuple[int, ...]

    @property
    def resampled(self) -> bool:
        return self.shape != self.kept

    @property
    def kept(self) -> tuple[int, ...]:
        """The shape of the kept part before resampling."""
        return tuple(s.stop - s.start for s in self.crop)

    @property
    def resampling(self) -> Resampling:
        """From the network's grid to the kept part."""
        return Resampling(self.shape, self.kept)

    def kept_part(self, whole: NDArray[Any]) -> NDArray[Any]:
        """A view `(channel, *kept)` of an array `(channel, *spatial)` on the scan's own grid."""
        return self.orientation.apply(whole)[(slice(None), *self.crop)]


class ScanView:
    """A scan as the network sees it, `(channel, *spatial)` float32, computed where it is read.

    Boxes of it are asked for as of an array: `view[:, 0:8, 0:100, 20:30]`, with slices that have a start and a stop.

    Attributes:
        shape: `(channel, *spatial)` on the network's grid.
        undo: the way back.

    Raises:
        DataError: NaN or infinite voxels, or a channel count or spacing that does not fit the settings.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, volume: Volume, settings: PreprocessSettings) -> None:
        _require_usable(volume, settings)
        orientation = orientation_of(volume, settings)
        array = orientation.apply(volume.array)
        crop = nonzero_box(array) if settings.crop == "nonzero" else tuple(slice(0, n) for n in array.shape[1:])
        self._part = array[(slice(None), *crop)]
        kept = self._part.shape[1:]
        spatial = _target_shape(volume, settings, orientation, kept)
        self.undo = Undo(orientation, array.shape[1:], crop, spatial)
        self.shape = (volume.channels, *spatial)
        self._scales = [_measure(channel, settings.channel(c)) for c, channel in enumerate(self._part)]
        self._resampling = Resampling(kept, spatial)
        # Against aliasing along axes that shrink: sigma (factor - 1) / 2, as scikit-image.
        sigmas = [max(0.0, (old / new - 1) / 2) for old, new in zip(kept, spatial, strict=True)]
        self._sigmas = sigmas if max(sigmas) > 0.25 else [0.0] * len(sigmas)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[np.float32]:
        """`(channel, *box)`; a copy."""
        channels, *spans = key
        box = Box(tuple(s.start for s in spans), tuple(s.stop for s in spans))
        needed = self._resampling.needs(box)
        reach = [int(_REACH * sigma + 0.5) for sigma in self._sigmas]
        read = needed.grown(reach).intersection(Box.of_shape(self._part.shape[1:]))
        scales = list(enumerate(self._scales))[channels]
        values = np.stack([scale.apply(self._part[c][read.slices]) for c, scale in scales])
        release(self._part)
        if any(self._sigmas):
            values = gaussian_filter(values, [0.0, *self._sigmas], mode="nearest", truncate=_REACH)
        return np.ascontiguousarray(self._resampling.apply(values, read.start, box))


def preprocess(volume: Volume, settings: PreprocessSettings) -> tuple[NDArray[np.float32], Undo]:
    """The array `(channel, *spatial)` float32 that a network sees, and the way back.

    See `ScanView` for large scans, and for the errors.
    """
    view = ScanView(volume, settings)
    return view[(slice(None), *Box.of_shape(view.shape[1:]).slices)], view.undo


def preprocess_label(label: NDArray[_Integer], undo: Undo) -> NDArray[_Integer]:
    """Take a label map `(1, *spatial)` of class indices or objects to the network's grid, by nearest neighbour."""
    part = undo.orientation.apply(label)[(slice(None), *undo.crop)]
    return np.ascontiguousarray(resample_nearest(part, undo.shape))


def _require_usable(volume: Volume, settings: PreprocessSettings) -> None:
    if np.issubdtype(volume.array.dtype, np.inexact):
        bad = sum(block.size - int(np.isfinite(block).sum()) for c in volume.array for block in _blocks(c))
        if bad:
            raise DataError(
                f"{volume.name}: {bad} voxels are NaN or infinite; a network would smear them over the result\n"
                "replace them (for example by the background intensity) and try again"
            )
    if len(settings.normalise) not in (1, volume.channels):
        raise DataError(
            f"{volume.name}: has {volume.channels} channel(s), the settings describe {len(settings.normalise)}"
        )
    _require_spacing(volume.name, volume, settings)


def _require_spacing(name: str, scan: Volume | Grid, settings: PreprocessSettings) -> None:
    if settings.spacing is not None and scan.unit != settings.unit and "pixel" in (scan.unit, settings.unit):
        raise DataError(
            f"{name}: its voxel size is in {scan.unit}, the target spacing in {settings.unit}; "
            "without a common unit it cannot be resampled\nstore the voxel size in the file"
        )
    if settings.spacing is not None and len(settings.spacing) != scan.dimensions:
        raise DataError(
            f"{name}: has {scan.dimensions} dimensions, the target spacing {settings.spacing} "
            f"has {len(settings.spacing)}"
        )


def target_shape(name: str, grid: Grid, settings: PreprocessSettings) -> tuple[int, ...]:
    """The spatial shape on the network's grid by a header alone; with `crop` it is the most that can come out.

    Raises:
        DataError: a spacing that does not fit the settings; `name` is the file's, for the message.
    """
    _require_spacing(name, grid, settings)
    orientation = orientation_of(grid, settings)
    return _target_shape(grid, settings, orientation, tuple(grid.shape[a] for a in orientation.axes))


def orientation_of(volume: Volume | Grid, settings: PreprocessSettings) -> Orientation:
    """The turn that these settings ask for; none for pictures and scans that are no patient's."""
    # "Right" and "anterior" mean something in patient space only; microscopes measure in um or nm.
    if settings.orientation == "RAS" and volume.dimensions == 3 and volume.unit == "mm":
        return closest_ras(volume.affine)
    return identity_orientation(volume.dimensions)


def nonzero_box(array: NDArray[Any]) -> tuple[slice, ...]:
    """The bounding box of voxels that are not 0 in any channel; the whole array if all are 0."""
    box = bounding_box(array, lambda part: np.any(part != 0, axis=0))
    return tuple(slice(0, n) for n in array.shape[1:]) if box is None else box


def bounding_box(array: NDArray[Any], inside: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> tuple[slice, ...] | None:
    """The bounding box of a structure, read part by part; None without a voxel of it.

    Args:
        array: `(channel, *spatial)`.
        inside: the mask `(*spatial)` of the structure in a part of the array.
    """
    axes = range(array.ndim - 1)
    held = [np.zeros(n, dtype=bool) for n in array.shape[1:]]
    slowest = slowest_axis(array)
    for rows in spans(array.shape[slowest + 1], array[0].size // array.shape[slowest + 1], _BLOCK):
        mask = inside(array[(slice(None), *(rows if axis == slowest else slice(None) for axis in axes))])
        release(array)
        for axis in axes:
            found = mask.any(axis=tuple(a for a in axes if a != axis))
            held[axis][rows if axis == slowest else slice(None)] |= found
    if not held[0].any():
        return None
    ends = [np.flatnonzero(found)[[0, -1]] for found in held]
    return tuple(slice(int(first), int(last) + 1) for first, last in ends)


def _blocks(channel: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """An array in pieces along the axis that is slowest in memory, so that each part of a file is read once."""
    axis = slowest_axis(channel[np.newaxis])
    for rows in spans(channel.shape[axis], channel.size // channel.shape[axis], _BLOCK):
        yield channel[tuple(rows if a == axis else slice(None) for a in range(channel.ndim))]
        release(channel)


@dataclass(frozen=True)
class _Scale:
    """The normalisation of one channel of one scan: clip, subtract, divide."""

    shift: float = 0.0
    divisor: float = 1.0
    limits: tuple[float, float] | None = None
    nonzero: bool = False

    def apply(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        values = stored.astype(np.float32)
        if self.limits is not None:
            np.clip(values, *self.limits, out=values)
        outside = values == 0 if self.nonzero else None
        values -= np.float32(self.shift)
        values /= np.float32(self.divisor)
        if outside is not None:
            # What was cut out of the scan stays at the mean, as in nnU-Net's masked z-score.
            values[outside] = 0
        return values


def _measure(channel: NDArray[Any], how: Normalisation) -> _Scale:
    """Statistics of one channel `(*spatial)`; a constant channel becomes 0 rather than NaN."""
    if how.kind == "none":
        return _Scale()
    if how.kind == "minmax":
        extremes = [(float(block.min()), float(block.max())) for block in _blocks(channel)]
        low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
        return _Scale(low, max(high - low, 1e-8))
    if how.kind == "ct":
        assert how.low is not None and how.high is not None and how.mean is not None and how.std is not None
        return _Scale(how.mean, max(how.std, 1e-8), (how.low, how.high))
    mean, std = _mean_and_std(channel, how.nonzero)
    # Below what float32 tells apart, differences are rounding, which must not be blown up to a contrast of 1.
    constant = std <= abs(mean) * _RESOLVED
    return _Scale(mean, 1.0 if constant else max(std, 1e-8), nonzero=how.nonzero)


def _mean_and_std(channel: NDArray[Any], nonzero: bool) -> tuple[float, float]:
    """In float64, as a float32 sum over 10^8 voxels of a CT is off in the third digit; 0 and 1 of no voxel at all."""
    count, total, squares = 0, 0.0, 0.0
    for block in _blocks(channel):
        values = block[block != 0] if nonzero else block
        count += values.size
        total += float(values.sum(dtype=np.float64))
    if count == 0:
        return 0.0, 1.0
    mean = total / count
    for block in _blocks(channel):
        values = block[block != 0] if nonzero else block
        squares += float(np.square(values - mean, dtype=np.float64).sum())
    return mean, float(np.sqrt(squares / count))


def _target_shape(
    volume: Volume | Grid, settings: PreprocessSettings, orientation: Orientation, shape: tuple[int, ...]
) -> tuple[int, ...]:
    if settings.spacing is None or settings.unit == volume.unit == "pixel":
        return shape
    scale = MILLIMETRES[volume.unit] / MILLIMETRES[settings.unit] if volume.unit != settings.unit else 1.0
    spacing = [volume.spacing[a] * scale for a in orientation.axes]
    if all(abs(old / new - 1) <= SAME_SPACING for old, new in zip(spacing, settings.spacing, strict=True)):
        return shape
    return tuple(resampled_length(n, old, new) for n, old, new in zip(shape, spacing, settings.spacing, strict=True))
