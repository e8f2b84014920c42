"""Preprocessing: from a scan to the array a network sees, and the way back.

Every step returns what undoes it; nothing is remembered anywhere else. The order is orientation, crop, normalisation,
resampling; the way back is resampling, crop, orientation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medunet.data.volume import MILLIMETRES, UNITS, Volume
from medunet.errors import ConfigError, DataError
from medunet.geometry.grids import (
    Orientation,
    closest_ras,
    identity_orientation,
    resample_linear,
    resample_nearest,
    resampled_length,
)

SAME_SPACING = 0.01
"""Relative difference up to which voxel sizes are the same: resampling would blur more than it mends."""

_SLAB = 16
"""Rows that are brought back to the scan's grid at a time."""


@dataclass(frozen=True)
class Normalisation:
    """How the intensities of one channel become comparable.

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
        """Whether all numbers are known; `ct` needs the data set's."""
        return self.kind != "ct" or None not in (self.low, self.high, self.mean, self.std)


@dataclass(frozen=True)
class PreprocessSettings:
    """What is done to a scan before the network sees it.

    Attributes:
        orientation: `RAS` turns and flips medical scans to the nearest right-anterior-superior order;
            `stored` leaves the axes as they are in the file.
        spacing: target voxel size per axis after orientation; None keeps each scan's own.
        unit: of `spacing`; scans in another unit are converted, scans without a physical size refused.
        crop: `nonzero` cuts away the border of zeros around the scan's content.
        normalise: one entry per channel; a single entry serves all channels.
    """

    orientation: Literal["RAS", "stored"] = "RAS"
    spacing: tuple[float, ...] | None = None
    unit: str = "mm"
    crop: Literal["none", "nonzero"] = "none"
    normalise: tuple[Normalisation, ...] = (Normalisation(),)

    def __post_init__(self) -> None:
        if self.spacing is not None and (len(self.spacing) not in (2, 3) or min(self.spacing) <= 0):
            raise ConfigError(f"preprocess.spacing needs 2 or 3 positive numbers, found {self.spacing}")
        if self.unit not in UNITS:
            raise ConfigError(f"preprocess.unit must be one of {', '.join(UNITS)}, found {self.unit}")
        if not self.normalise:
            raise ConfigError("preprocess.normalise needs at least one entry")

    def channel(self, index: int) -> Normalisation:
        return self.normalise[index] if len(self.normalise) > 1 else self.normalise[0]


@dataclass(frozen=True)
class Undo:
    """What leads from the network's grid back to the scan's own.

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


def preprocess(volume: Volume, settings: PreprocessSettings) -> tuple[NDArray[np.float32], Undo]:
    """Turn a scan into the array that a network sees.

    Returns:
        The array `(channel, *spatial)` float32 and the way back.

    Raises:
        DataError: NaN or infinite voxels, or a channel count or spacing that does not fit the settings.
    """
    _require_usable(volume, settings)
    orientation = _orientation(volume, settings)
    array = orientation.apply(volume.array)
    crop = nonzero_box(array) if settings.crop == "nonzero" else tuple(slice(0, n) for n in array.shape[1:])
    part = array[(slice(None), *crop)]
    normalised = np.stack([_normalise(part[c], settings.channel(c)) for c in range(len(part))])
    shape = _target_shape(volume, settings, orientation, part.shape[1:])
    undo = Undo(orientation, array.shape[1:], crop, shape)
    return np.ascontiguousarray(_resample_image(normalised, shape)), undo


def preprocess_label(label: NDArray[np.uint8], undo: Undo) -> NDArray[np.uint8]:
    """Take a label map `(1, *spatial)` of class indices to the network's grid, by nearest neighbour."""
    part = undo.orientation.apply(label)[(slice(None), *undo.crop)]
    return np.ascontiguousarray(resample_nearest(part, undo.shape))


def restore_labels(scores: NDArray[np.float32], undo: Undo, outside: int = 0) -> NDArray[np.uint8]:
    """Class indices on the scan's own grid from scores on the network's grid.

    Scores are interpolated and then the largest wins; interpolating finished masks would cost accuracy
    (Dice 0.967 against 0.937 in a measurement). It goes slab by slab, so memory stays near one slab of all classes.

    Args:
        scores: `(class, *network grid)` logits or probabilities.
        outside: the class of voxels that were cut away.

    Returns:
        `(1, *spatial)` uint8.
    """
    kept = np.empty((1, *undo.kept), dtype=np.uint8)
    for start in range(0, undo.kept[0], _SLAB):
        rows = (start, min(start + _SLAB, undo.kept[0]))
        kept[0, rows[0] : rows[1]] = _winners(resample_linear(scores, undo.kept, rows))
    return place_labels(kept, undo, outside)


def place_labels(kept: NDArray[np.uint8], undo: Undo, outside: int = 0) -> NDArray[np.uint8]:
    """Class indices `(1, *kept part)`, not resampled or resampled back already, on the scan's own grid."""
    whole = np.full((1, *undo.oriented), outside, dtype=np.uint8)
    whole[(slice(None), *undo.crop)] = kept
    return np.ascontiguousarray(undo.orientation.undo(whole))


def restore_scores(scores: NDArray[np.float32], undo: Undo, outside: int = 0) -> NDArray[np.float32]:
    """Probabilities `(class, *spatial)` on the scan's own grid; what was cut away is surely `outside`."""
    whole = np.zeros((len(scores), *undo.oriented), dtype=np.float32)
    whole[outside] = 1.0
    whole[(slice(None), *undo.crop)] = resample_linear(scores, undo.kept)
    return np.ascontiguousarray(undo.orientation.undo(whole))


def _winners(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Index of the largest score; the first one wins a tie, as in argmax, but class by class, which is faster here."""
    best = scores[0].copy()
    winner = np.zeros(best.shape, dtype=np.uint8)
    for index in range(1, len(scores)):
        larger = scores[index] > best
        winner[larger] = index
        np.copyto(best, scores[index], where=larger)
    return winner


def _require_usable(volume: Volume, settings: PreprocessSettings) -> None:
    if np.issubdtype(volume.array.dtype, np.inexact) and not np.isfinite(volume.array).all():
        bad = int(np.size(volume.array) - np.isfinite(volume.array).sum())
        raise DataError(
            f"{volume.name}: {bad} voxels are NaN or infinite; a network would smear them over the result\n"
            "replace them (for example by the background intensity) and try again"
        )
    if len(settings.normalise) not in (1, volume.channels):
        raise DataError(
            f"{volume.name}: has {volume.channels} channel(s), the settings describe {len(settings.normalise)}"
        )
    if settings.spacing is not None and volume.unit != settings.unit and "pixel" in (volume.unit, settings.unit):
        raise DataError(
            f"{volume.name}: its voxel size is in {volume.unit}, the target spacing in {settings.unit}; "
            "without a common unit it cannot be resampled\nstore the voxel size in the file"
        )
    if settings.spacing is not None and len(settings.spacing) != volume.dimensions:
        raise DataError(
            f"{volume.name}: has {volume.dimensions} dimensions, the target spacing {settings.spacing} "
            f"has {len(settings.spacing)}"
        )


def _orientation(volume: Volume, settings: PreprocessSettings) -> Orientation:
    # "Right" and "anterior" mean something in patient space only; microscopes measure in um or nm.
    if settings.orientation == "RAS" and volume.dimensions == 3 and volume.unit == "mm":
        return closest_ras(volume.affine)
    return identity_orientation(volume.dimensions)


def nonzero_box(array: NDArray) -> tuple[slice, ...]:
    """The bounding box of voxels that are not 0 in any channel; the whole array if all are 0."""
    filled = np.any(array != 0, axis=0)
    box = []
    for axis in range(filled.ndim):
        line = np.flatnonzero(filled.any(axis=tuple(a for a in range(filled.ndim) if a != axis)))
        box.append(slice(int(line[0]), int(line[-1]) + 1) if line.size else slice(0, filled.shape[axis]))
    return tuple(box)


def _normalise(channel: NDArray, how: Normalisation) -> NDArray[np.float32]:
    """One channel `(*spatial)`; a constant channel becomes 0 rather than NaN."""
    values = channel.astype(np.float32)
    if how.kind == "none":
        return values
    if how.kind == "minmax":
        low, high = float(values.min()), float(values.max())
        return (values - low) / max(high - low, 1e-8)
    if how.kind == "ct":
        assert how.low is not None and how.high is not None and how.mean is not None and how.std is not None
        return (np.clip(values, how.low, how.high) - np.float32(how.mean)) / np.float32(max(how.std, 1e-8))
    inside = values[values != 0] if how.nonzero else values
    # Accumulated in float64: a float32 sum over 10^8 voxels of a CT is off in the third digit.
    mean = float(inside.mean(dtype=np.float64)) if inside.size else 0.0
    std = float(inside.std(dtype=np.float64)) if inside.size else 1.0
    normalised = (values - np.float32(mean)) / np.float32(max(std, 1e-8))
    if how.nonzero:
        # What was cut out of the scan stays at the mean, as in nnU-Net's masked z-score.
        normalised[values == 0] = 0
    return normalised


def _target_shape(
    volume: Volume, settings: PreprocessSettings, orientation: Orientation, shape: tuple[int, ...]
) -> tuple[int, ...]:
    if settings.spacing is None or settings.unit == volume.unit == "pixel":
        return shape
    scale = MILLIMETRES[volume.unit] / MILLIMETRES[settings.unit] if volume.unit != settings.unit else 1.0
    spacing = [volume.spacing[a] * scale for a in orientation.axes]
    if all(abs(old / new - 1) <= SAME_SPACING for old, new in zip(spacing, settings.spacing, strict=True)):
        return shape
    return tuple(resampled_length(n, old, new) for n, old, new in zip(shape, spacing, settings.spacing, strict=True))


def _resample_image(array: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Linear, after a Gaussian against aliasing along axes that shrink (sigma (factor - 1) / 2, as scikit-image)."""
    sigmas = [max(0.0, (old / new - 1) / 2) for old, new in zip(array.shape[1:], shape, strict=True)]
    if max(sigmas) > 0.25:
        array = gaussian_filter(array, [0.0, *sigmas], mode="nearest")
    return resample_linear(array, shape)
