"""The weight map of the 2015 U-Net: errors count more in narrow gaps between objects, and in rare classes.

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

The second part, of one case, is made here and kept with it; the first, the balance of classes over all training cases,
is added when a patch is read (Ronneberger, Fischer, Brox 2015, arXiv 1505.04597, equation 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import IGNORE
from medunet.errors import ConfigError, DataError
from medunet.geometry.boxes import grown_slices
from medunet.instances.targets import UNKNOWN, part_touching
from medunet.volume import MILLIMETRES

REACH = 4.0
"""Sigmas around an object within which its distance is looked at.

Beyond, d2 alone exceeds four sigma, so what is left out is less than exp(-8) w0, 0.034 % of w0.
"""
_MOST = 1e4
"""Weights are kept as float16, which ends at 65504."""


@dataclass(frozen=True)
class WeightMapSettings:
    """Weights of voxels in the loss, for data sets of object ids or of classes whose connected parts are objects.

    Attributes:
        kind: `unet2015` weighs narrow gaps between objects and rare classes higher; `none` weighs all voxels alike.
        w0: what is added where two objects meet.
        sigma: how fast that falls off with the sum of the distances to the two nearest objects.
        sigma_unit: of sigma: `pixel` is the finest axis of the network's grid, `um` needs images with a pixel size.
        class_balance: weigh each class by the inverse of its share of the training voxels; false weighs them by 1.
        parts_of: where label files hold classes: the one whose connected parts (over faces) are the objects, such as
            the inside of cells that membranes part. Not looked at where they hold object ids.

    Raises:
        ConfigError: a number is out of its range.
    """

    kind: Literal["none", "unet2015"] = "none"
    w0: float = 10.0
    sigma: float = 5.0
    sigma_unit: Literal["pixel", "um"] = "pixel"
    class_balance: bool = True
    parts_of: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("none", "unet2015"):
            raise ConfigError(f"weight_map.kind is none or unet2015, found {self.kind!r}")
        if self.sigma_unit not in ("pixel", "um"):
            raise ConfigError(f"weight_map.sigma_unit is pixel or um, found {self.sigma_unit!r}")
        if not 0 <= self.w0 <= _MOST:
            raise ConfigError(f"weight_map.w0 must lie between 0 and {_MOST:g}, found {self.w0}")
        if not 0 < self.sigma < math.inf:
            raise ConfigError(f"weight_map.sigma must be a positive number, found {self.sigma}")

    def pitch(self, spacing: Sequence[float], unit: str, where: str) -> tuple[float, ...]:
        """The size of a voxel in sigma's unit, per axis.

        Args:
            spacing: of the network's grid, in `unit`.
            where: the case, for the message.

        Raises:
            DataError: sigma is in um, but the case has no pixel size.
        """
        if self.sigma_unit == "pixel":
            return tuple(s / min(spacing) for s in spacing)
        if unit not in MILLIMETRES:
            raise DataError(
                f"{where}: its image has no pixel size, but weight_map.sigma is {self.sigma:g} um\n"
                "say sigma in pixels (weight_map.sigma_unit: pixel), or store the pixel size in the file"
            )
        return tuple(s * MILLIMETRES[unit] / MILLIMETRES["um"] for s in spacing)


def gap_weights(objects: NDArray[np.int32], pitch: Sequence[float], settings: WeightMapSettings) -> NDArray[np.float16]:
    """The part of the weights that is high between objects, `w0 exp(-(d1 + d2)^2 / (2 sigma^2))`.

    d1 and d2 are the distances to the nearest voxel of the nearest and of the second nearest object. Objects are parted
    first (`part_touching`), so that those that touch have a gap, too, whatever is learned there. As in the authors'
    code, it is 0 inside of them; also where nothing is known. A background voxel needs two objects to be above 0.

    Args:
        objects: ``(1, *spatial)``, numbered as `number_objects` does it.
        pitch: voxel size per axis in the unit of sigma, see `WeightMapSettings.pitch`.

    Returns:
        ``(1, *spatial)``; at most `REACH`'s bound below the formula, besides float16's rounding (0.05 %).
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    volume = part_touching(objects)[0]
    reach = [int(REACH * settings.sigma / size) for size in pitch]
    nearest, second = (np.full(volume.shape, np.inf, np.float32) for _ in range(2))
    for number, tight in enumerate(find_objects(volume), start=1):
        if tight is None:
            continue
        box = grown_slices(tight, reach, volume.shape)
        distance = distance_transform_edt(volume[box] != number, sampling=pitch).astype(np.float32)
        np.minimum(second[box], np.maximum(nearest[box], distance), out=second[box])
        np.minimum(nearest[box], distance, out=nearest[box])
    weights = settings.w0 * np.exp(-((nearest + second) ** 2) / (2 * settings.sigma**2))
    weights[(volume > 0) | (objects[0] == UNKNOWN)] = 0
    return weights.astype(np.float16)[None]


def parts_of_class(indices: NDArray[np.uint8], index: int) -> NDArray[np.int32]:
    """The connected parts of a class as objects, numbered from 1; `UNKNOWN` where nothing is annotated.

    Args:
        indices: ``(1, *spatial)`` class indices. Neighbours share faces (4 in 2-D, 6 in 3-D), so that a membrane one
            voxel wide parts two cells wherever it runs.
    """
    from scipy.ndimage import label

    numbers, _ = label(indices[0] == index)
    return np.where(indices[0] == IGNORE, UNKNOWN, numbers).astype(np.int32)[None]


def class_balance(voxels: Sequence[int]) -> tuple[float, ...]:
    """Weights inverse to each class's share of the voxels, 1 on average over them; 1 for a class without a voxel."""
    return tuple(sum(voxels) / (len(voxels) * n) if n > 0 else 1.0 for n in voxels)
