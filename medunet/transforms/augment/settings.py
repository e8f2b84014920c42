"""Settings of augmentation: the changes of a patch, their chance and strength, and the random draw of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medunet.errors import ConfigError
from medunet.transforms.augment.monai_list import check_transforms


@dataclass(frozen=True)
class Draw:
    """Names one random draw: the same three numbers give the same patch in any process and in any order.

    Raises:
        ConfigError: a number is negative.
    """

    seed: int
    epoch: int
    index: int

    def __post_init__(self) -> None:
        if min(self.seed, self.epoch, self.index) < 0:
            raise ConfigError(f"seed, epoch and index must not be negative, found {self}")

    def bits(self, stream: int) -> np.random.PCG64:
        """A fresh source of random bits; each `stream` is independent of the others."""
        return np.random.PCG64(np.random.SeedSequence([self.seed, self.epoch, self.index], spawn_key=(stream,)))

    def generator(self, stream: int) -> np.random.Generator:
        return np.random.Generator(self.bits(stream))


@dataclass(frozen=True)
class Chance:
    """The probability of a change, and the range that its strength is drawn from (uniformly).

    Raises:
        ConfigError: the probability lies outside 0 to 1, or the range is reversed or not finite.
    """

    probability: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"a probability lies between 0 and 1, found {self.probability}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ConfigError(f"a range runs from low to high, both finite; found low {self.low}, high {self.high}")

    def drawn(self, random: np.random.Generator) -> float | None:
        """A strength, or None where the change does not happen; uses two random numbers in either case."""
        strengths = self.drawn_each(random, 1)
        return None if strengths is None else float(strengths[0])

    def drawn_each(self, random: np.random.Generator, count: int) -> NDArray[np.float64] | None:
        """That many strengths, or None where the change does not happen; uses 1 + count random numbers."""
        numbers = random.random(1 + count)
        return self.low + (self.high - self.low) * numbers[1:] if numbers[0] < self.probability else None


@dataclass(frozen=True)
class ElasticGrid:
    """A coarse grid of random vectors, between which every voxel's displacement is interpolated, as in the papers.

    Attributes:
        points: per axis, the outermost ones at the patch's ends; 3 in Ronneberger et al. 2015.
        spacing: voxels from one vector to the next; 32 in Çiçek et al. 2016. One of both is given.
        spline: `cubic` passes through the vectors ("bicubic" in 2015); `b-spline` takes them as its coefficients
            (2016), which smoothes them: in two dimensions displacements come to about half, in three to a third of
            the vectors' length.

    Raises:
        ConfigError: both or none of points and spacing are given, or too few of them.
    """

    points: int | None = None
    spacing: float | None = None
    spline: Literal["cubic", "b-spline"] = "cubic"

    def __post_init__(self) -> None:
        if (self.points is None) == (self.spacing is None):
            raise ConfigError("augment.elastic_grid needs either points or spacing, as in {points: 3} or {spacing: 32}")
        if self.points is not None and self.points < 2:
            raise ConfigError(f"augment.elastic_grid.points must be at least 2 per axis, found {self.points}")
        if self.spacing is not None and not 1 <= self.spacing < math.inf:
            raise ConfigError(f"augment.elastic_grid.spacing must be at least 1 voxel, found {self.spacing}")
        if self.spline not in ("cubic", "b-spline"):
            raise ConfigError(f"augment.elastic_grid.spline must be cubic or b-spline, found {self.spline!r}")

    def apart(self, size: Sequence[int]) -> float:
        """The shortest distance of two neighbouring vectors in a patch, in voxels; infinite without any axis."""
        if self.spacing is not None:
            return self.spacing
        assert self.points is not None
        return min(((n - 1) / (self.points - 1) for n in size), default=math.inf)


@dataclass(frozen=True)
class AugmentSettings:
    """The changes that a training patch may undergo. Intensities are normalised, with about unit variance.

    The ranges are nnU-Net's (Isensee et al. 2021, nnU-Net v2 `get_training_transforms`), with milder scaling.

    Attributes:
        flip_axes: spatial axes that may be mirrored; None for all, () for none (left and right differ by name).
        flip_probability: for each of these axes on its own.
        rotation: degrees about each axis.
        scaling: factor for all axes; above 1 enlarges.
        scaling_per_axis: a factor of its own for each axis, so that proportions change, too.
        quarter_turns: probability of a turn by 90, 180 or 270 degrees in the plane of two random axes, without any
            interpolation; for pictures and scans without a preferred direction, as in microscopy.
        elastic: root-mean-square displacement per axis in voxels; with `elastic_grid` the standard deviation of each
            vector's components.
        elastic_sigma: smoothness of the displacement in voxels (Gaussian).
        elastic_grid: random vectors on a coarse grid in place of smoothed noise.
        coarse_axis: the axis of thick slices, which turns, rotation, scaling and elastic displacement leave alone.
        noise: standard deviation of added Gaussian noise; its range starts at 0.
        blur: standard deviation of a Gaussian in voxels, drawn for each axis.
        brightness: factor, drawn for each channel.
        shift: summand, drawn for each channel.
        contrast: factor about the channel's mean.
        low_resolution: factor by which the image is shrunk before it is enlarged again.
        gamma: exponent; mean and variance are kept.
        gamma_inverted: exponent, applied to the negated image.
        haze: height of a broad blob of light, in all channels alike, as what is out of focus gives under a microscope;
            its width is 0.15 to 0.5 of the patch along each axis (Gaussian); mean and variance are kept, as
            normalisation would.
        monai: random transforms of MONAI after all of these, in this order, each a name and its arguments, such as
            `[{name: RandBiasFieldd, prob: 0.3, coeff_range: [0.0, 0.1]}]`; see `augment/monai_list.py`.

    Raises:
        ConfigError: a range makes no sense for its change.
    """

    flip_axes: tuple[int, ...] | None = None
    flip_probability: float = 0.5
    rotation: Chance = Chance(0.3, -30, 30)
    scaling: Chance = Chance(0.3, 0.8, 1.25)
    scaling_per_axis: bool = False
    quarter_turns: float = 0
    elastic: Chance = Chance(0, 0, 3)
    elastic_sigma: float = 8
    elastic_grid: ElasticGrid | None = None
    coarse_axis: int | None = None
    noise: Chance = Chance(0.15, 0, 0.2)
    blur: Chance = Chance(0.1, 0.5, 1)
    brightness: Chance = Chance(0.2, 0.75, 1.25)
    shift: Chance = Chance(0.2, -0.2, 0.2)
    contrast: Chance = Chance(0.15, 0.75, 1.25)
    low_resolution: Chance = Chance(0.1, 0.5, 1)
    gamma: Chance = Chance(0.2, 0.7, 1.5)
    gamma_inverted: Chance = Chance(0.1, 0.7, 1.5)
    haze: Chance = Chance(0, 0, 4)
    monai: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_transforms(self.monai)
        for name in ("flip_probability", "quarter_turns"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augmentation '{name}' lies between 0 and 1, found {getattr(self, name)}")
        unknown = {*(self.flip_axes or ()), self.coarse_axis} - {0, 1, 2, None}
        if unknown:
            raise ConfigError(f"axes are 0, 1 and 2 (x, y, z); found {unknown}")
        for name in ("scaling", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"):
            self._require(name, getattr(self, name).low > 0, "factors and exponents must be above 0")
        for name in ("elastic", "blur"):
            self._require(name, getattr(self, name).low >= 0, "it cannot be negative")
        self._require("noise", self.noise.low == 0 <= self.noise.high, "its range starts at 0")
        self._require("low_resolution", self.low_resolution.high <= 1, "it shrinks, so at most 1")
        self._require("rotation", max(-self.rotation.low, self.rotation.high) <= 180, "degrees lie within -180 to 180")
        # Beyond half a sigma the displacement's slope often passes -1, where the image folds over itself.
        if self.elastic_grid is None:
            self._require("elastic", self.elastic.high <= self.elastic_sigma / 2, "at most half of elastic_sigma")

    def check_elastic(self, size: Sequence[int]) -> None:
        """Refuse vectors that are so long for their distance in a patch that it often folds over itself.

        Raises:
            ConfigError: they are longer than a quarter of it, from where on a slope of -1, at which a patch folds, lies
                within two standard deviations.
        """
        if self.elastic_grid is None or not self.elastic.probability:
            return
        apart = self.elastic_grid.apart([n for axis, n in enumerate(size) if axis != self.coarse_axis])
        if self.elastic.high > apart / 4:
            raise ConfigError(
                f"augment.elastic of up to {self.elastic.high:g} voxels folds patches of {tuple(size)} over "
                f"themselves: the vectors of augment.elastic_grid are {apart:g} voxels apart\n"
                f"set augment.elastic.high to at most {apart / 4:g}, or take a coarser grid or larger patches"
            )

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            found: Chance = getattr(self, name)
            raise ConfigError(f"augmentation '{name}' has range {found.low} to {found.high}: {rule}")

    @classmethod
    def none(cls) -> AugmentSettings:
        """Settings that change no patch."""
        chances = {field.name: field.default for field in fields(cls) if isinstance(field.default, Chance)}
        never = {name: replace(chance, probability=0) for name, chance in chances.items()}
        return replace(cls(flip_axes=(), flip_probability=0), **never)  # type: ignore[arg-type]


MOVES = ("rotation", "scaling", "elastic")
VALUES = (
    "noise", "blur", "brightness", "shift", "contrast", "low_resolution", "gamma", "gamma_inverted", "haze",
)  # fmt: skip
"""The changes of shape, and those of values, that have a chance."""


def described(settings: AugmentSettings, names: Sequence[str]) -> str:
    """The changes that can happen, each with its range and its probability; mirrors and turns with those of shape."""
    found = []
    for name in names:
        chance: Chance = getattr(settings, name)
        if chance.probability:
            found.append(f"{name}={chance.low:g}…{chance.high:g} with p={chance.probability:g}")
    if "rotation" in names and settings.flip_probability and settings.flip_axes != ():
        found.append(f"flip_axes={'all' if settings.flip_axes is None else settings.flip_axes}")
    if "rotation" in names and settings.quarter_turns:
        found.append(f"quarter_turns with p={settings.quarter_turns:g}")
    return ", ".join(found)
