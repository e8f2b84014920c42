"""Random changes of a training patch that move image and label alike and can never interpolate a label.

Shapes are changed by one resampling of our own, intensities and mirrors by MONAI's dictionary transforms. A label is
only ever indexed, cropped and mirrored; transforms that compute with values are built by `_on_image`, which knows the
image's key alone. So there is no interpolation mode that somebody could forget to set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet.data.labels import IGNORE
from medunet.errors import ConfigError

Array: TypeAlias = NDArray[Any] | Tensor

# Independent streams of one draw, so that a change in one kind of randomness leaves the others as they were.
_SHAPE, _FIELD, _VALUES = 1, 2, 3
_LATTICE_CELLS_PER_SIGMA = 2


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
    """How often a change happens, and the range its strength is drawn from (uniformly).

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
        happens, strength = random.random() < self.probability, random.uniform(self.low, self.high)
        return strength if happens else None


@dataclass(frozen=True)
class AugmentSettings:
    """Which changes a training patch may undergo. Intensities are thought of as normalised, about unit variance.

    The ranges are nnU-Net's (Isensee et al. 2021, nnU-Net v2 `get_training_transforms`), with milder scaling.

    Attributes:
        flip_axes: spatial axes that may be mirrored; None for all, () for none (left and right differ by name).
        flip_probability: for each of these axes on its own.
        rotation: degrees about each axis.
        scaling: factor for all axes; above 1 enlarges.
        elastic: root-mean-square displacement per axis in voxels.
        elastic_sigma: smoothness of the displacement in voxels (Gaussian).
        coarse_axis: the axis of thick slices, which rotation, scaling and elastic displacement leave alone.
        noise: standard deviation of added Gaussian noise; its range starts at 0.
        blur: standard deviation of a Gaussian in voxels, drawn for each axis.
        brightness: factor, drawn for each channel.
        shift: summand, drawn for each channel.
        contrast: factor about the channel's mean.
        low_resolution: factor by which the image is shrunk before it is enlarged again.
        gamma: exponent; mean and variance are kept.
        gamma_inverted: exponent, applied to the negated image.

    Raises:
        ConfigError: a range makes no sense for its change.
    """

    flip_axes: tuple[int, ...] | None = None
    flip_probability: float = 0.5
    rotation: Chance = Chance(0.3, -30, 30)
    scaling: Chance = Chance(0.3, 0.8, 1.25)
    elastic: Chance = Chance(0, 0, 3)
    elastic_sigma: float = 8
    coarse_axis: int | None = None
    noise: Chance = Chance(0.15, 0, 0.2)
    blur: Chance = Chance(0.1, 0.5, 1)
    brightness: Chance = Chance(0.2, 0.75, 1.25)
    shift: Chance = Chance(0.2, -0.2, 0.2)
    contrast: Chance = Chance(0.15, 0.75, 1.25)
    low_resolution: Chance = Chance(0.1, 0.5, 1)
    gamma: Chance = Chance(0.2, 0.7, 1.5)
    gamma_inverted: Chance = Chance(0.1, 0.7, 1.5)

    def __post_init__(self) -> None:
        if not 0 <= self.flip_probability <= 1:
            raise ConfigError(f"flip_probability lies between 0 and 1, found {self.flip_probability}")
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
        self._require("elastic", self.elastic.high <= self.elastic_sigma / 2, "at most half of elastic_sigma")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            found: Chance = getattr(self, name)
            raise ConfigError(f"augmentation '{name}' has range {found.low} to {found.high}: {rule}")

    @classmethod
    def none(cls) -> AugmentSettings:
        """Settings that leave every patch as it is."""
        chances = {field.name: field.default for field in fields(cls) if isinstance(field.default, Chance)}
        never = {name: replace(chance, probability=0) for name, chance in chances.items()}
        return replace(cls(flip_axes=(), flip_probability=0), **never)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Warp:
    """Maps offsets from the output's centre to offsets from the input's centre, in voxels."""

    matrix: NDArray[np.float64]
    amplitude: float = 0

    def reach(self, size: Sequence[int]) -> NDArray[np.float64]:
        """How far from the centre an output of this size looks, per axis."""
        offsets = (np.asarray(size) - 1) / 2
        reach: NDArray[np.float64] = np.abs(self.matrix) @ offsets + 3 * self.amplitude
        return reach


class Augmentation:
    """Changes patches at random; what happens depends on the draw alone.

    Rotation, scaling and elastic displacement are drawn with their own probabilities and share one resampling.
    MONAI's RandAffined has one probability for both, shifts by half a voxel when an odd number of voxels is cropped
    and works in float64; its Rand3DElasticd takes 240 ms for 64³, where this takes 20.

    Args:
        settings: what may happen.
        dimensions: 2 or 3.

    Raises:
        ConfigError: the settings name an axis that patches do not have.
    """

    def __init__(self, settings: AugmentSettings, dimensions: int) -> None:
        self._settings = settings
        self._dimensions = dimensions
        if settings.flip_axes and max(settings.flip_axes) >= dimensions:
            raise ConfigError(f"augment.flip_axes names axis {max(settings.flip_axes)} of {dimensions}-D patches")
        if settings.coarse_axis is not None and dimensions == 2:
            raise ConfigError("augment.coarse_axis is for 3-D patches; leave it out for a 2-D network")
        self._steps = [*_intensity_steps(settings, dimensions), *_flips(settings, dimensions)]

    def read_size(self, size: Sequence[int], draw: Draw) -> tuple[int, ...]:
        """The patch to read so that this draw fills an output of `size` with real surroundings.

        Each axis is longer than `size` by an even number, often 0, so that both have the same centre.
        """
        warp = self._warp(draw)
        if warp is None:
            return tuple(size)
        beyond = np.ceil(warp.reach(size) - (np.asarray(size) - 1) / 2).astype(int)
        return tuple(int(n + 2 * max(b, 0)) for n, b in zip(size, beyond, strict=True))

    def __call__(
        self, image: Array, label: Array, draw: Draw, size: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Change one patch.

        Voxels that a rotation brings in from outside the patch become 0 in the image, which is what padding gives,
        and IGNORE in the label: anatomy that was not seen is never taught.

        Args:
            image: ``(channel, *spatial)``, float; not written to.
            label: ``(1, *spatial)`` class indices, uint8 or int16; not written to.
            draw: names the random draw.
            size: the output's spatial size; cropped from the centre, without shifting by half a voxel. Default: all.

        Returns:
            Image ``(channel, *size)`` float32 and label ``(1, *size)`` of the label's dtype, which holds no value that
            it did not hold before, except IGNORE. Plain tensors, sharing no memory with the inputs.

        Raises:
            ValueError: image and label differ in shape, or are smaller than `size`.
        """
        target = tuple(size) if size is not None else tuple(label.shape[1:])
        if image.shape[1:] != label.shape[1:] or not len(target) == label.ndim - 1 == self._dimensions:
            raise ValueError(f"image {tuple(image.shape)}, label {tuple(label.shape)} and size {target} do not fit")
        if any(n > m for n, m in zip(target, label.shape[1:], strict=True)):
            raise ValueError(f"a patch of {tuple(label.shape[1:])} voxels cannot give an output of {target}")
        before = _plain(label)
        warp = self._warp(draw)
        if warp is None:
            moved, after = _centre(_plain(image).float(), target), _centre(before, target)
        else:
            moved, after = _resampled(_plain(image).float(), before, self._positions(warp, before, target, draw))
        moved, after = self._stepped(moved, after, draw)
        assert _closed(before, after), "augmentation made a label value that was not there"
        return moved.contiguous(), after.contiguous()

    def _warp(self, draw: Draw) -> _Warp | None:
        random = draw.generator(_SHAPE)
        scaling, elastic = self._settings.scaling.drawn(random), self._settings.elastic.drawn(random)
        turned = random.random() < self._settings.rotation.probability
        angles = random.uniform(self._settings.rotation.low, self._settings.rotation.high, size=3)
        if scaling is None and not elastic and not turned:
            return None
        coarse = self._settings.coarse_axis
        matrix = _rotation(np.deg2rad(angles), self._dimensions, coarse) if turned else np.eye(self._dimensions)
        factors = np.full(self._dimensions, scaling or 1.0)
        if coarse is not None:
            factors[coarse] = 1
        return _Warp(matrix / factors, elastic or 0)

    def _positions(self, warp: _Warp, label: Tensor, size: tuple[int, ...], draw: Draw) -> list[Tensor]:
        """Where each output voxel looks in the input, in input voxels: one array of shape `size` per axis."""
        offsets = np.ix_(*(np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2) for n in size))
        positions = []
        for row, length, n in zip(warp.matrix.astype(np.float32), label.shape[1:], size, strict=True):
            centre = np.float32((length - n) // 2 + (n - 1) / 2)
            terms = [factor * offset for factor, offset in zip(row, offsets, strict=True)]
            positions.append(torch.from_numpy(sum(terms, centre)))
        if warp.amplitude:
            displacement = _smooth_field(draw, size, self._settings.elastic_sigma)
            for axis in set(range(len(size))) - {self._settings.coarse_axis}:
                positions[axis] = positions[axis] + warp.amplitude * displacement[axis]
        return positions

    def _stepped(self, image: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        state = np.random.RandomState(draw.bits(_VALUES))
        data: dict[str, Any] = {"image": image, "label": label}
        with _without_metadata():
            for step in self._steps:
                step.set_random_state(state=state)
                data = step(data)
        return data["image"], data["label"]


def _rotation(angles: NDArray[np.float64], dimensions: int, coarse: int | None) -> NDArray[np.float64]:
    """A rotation within each plane of two axes that the coarse axis is not one of; angles in radians."""
    planes = [plane for plane in combinations(range(dimensions), 2) if coarse not in plane]
    matrix = np.eye(dimensions)
    for angle, (first, second) in zip(angles, planes, strict=False):  # three angles are drawn, whatever is needed
        turn = np.eye(dimensions)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def _smooth_field(draw: Draw, size: tuple[int, ...], sigma: float) -> Tensor:
    """Gaussian-smoothed noise of unit variance, ``(axis, *size)``: smoothed on a coarse lattice, then enlarged."""
    from scipy.ndimage import gaussian_filter

    cells, radius = _LATTICE_CELLS_PER_SIGMA, 3 * _LATTICE_CELLS_PER_SIGMA
    lattice = [math.ceil((n - 1) * cells / sigma) + 1 for n in size]
    noise = draw.generator(_FIELD).standard_normal((len(size), *(n + 2 * radius for n in lattice)))
    smooth = gaussian_filter(noise, (0, *(cells,) * len(size)), truncate=3)
    inner = smooth[(slice(None), *(slice(radius, radius + n) for n in lattice))]
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / cells) ** 2)
    deviation = np.linalg.norm(kernel / kernel.sum()) ** len(size)
    field = torch.from_numpy(inner / deviation).float()
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return torch.nn.functional.interpolate(field[None], size=size, mode=mode, align_corners=True)[0]


def _resampled(image: Tensor, label: Tensor, positions: list[Tensor]) -> tuple[Tensor, Tensor]:
    sizes = image.shape[1:]
    # grid_sample wants the last axis first, and -1 to 1 from edge to edge.
    grid = torch.stack([(2 * p + 1) / n - 1 for p, n in zip(positions[::-1], reversed(sizes), strict=True)], dim=-1)
    sampled = torch.nn.functional.grid_sample(image[None], grid[None], padding_mode="zeros", align_corners=False)[0]
    return sampled, _looked_up(label, positions)


def _looked_up(label: Tensor, positions: list[Tensor]) -> Tensor:
    """The label of the voxel that each position lies in; IGNORE outside. Indexing cannot invent a value."""
    index = torch.zeros(positions[0].shape, dtype=torch.int32)  # half of int64's time; a patch is far smaller
    inside = torch.ones(positions[0].shape, dtype=torch.bool)
    for position, count in zip(positions, label.shape[1:], strict=True):
        nearest = position.round().to(torch.int32)
        inside &= (nearest >= 0) & (nearest < count)
        index.mul_(count).add_(nearest.clamp_(0, count - 1))
    found = label.reshape(-1).index_select(0, index.reshape(-1)).reshape(index.shape)
    return found.masked_fill_(~inside, IGNORE)[None]


def _intensity_steps(settings: AugmentSettings, dimensions: int) -> list[Any]:
    """The steps that compute with values, in nnU-Net's order."""
    from monai import transforms as m

    def factors(chance: Chance) -> tuple[float, float]:
        return chance.low - 1, chance.high - 1  # MONAI adds the 1 itself

    noise, low, per_channel = settings.noise, settings.low_resolution, {"channel_wise": True}
    steps = [
        _on_image(m.RandGaussianNoised, noise, std=noise.high),
        _Blur(settings.blur) if settings.blur.probability else None,
        _on_image(m.RandScaleIntensityd, settings.brightness, factors=factors(settings.brightness), **per_channel),
        _on_image(
            m.RandShiftIntensityd, settings.shift, offsets=(settings.shift.low, settings.shift.high), **per_channel
        ),
        _on_image(m.RandScaleIntensityFixedMeand, settings.contrast, factors=factors(settings.contrast), **per_channel),
        # MONAI shrinks by "nearest" unless told otherwise, which moves the image by half a voxel against its label.
        _on_image(
            m.RandSimulateLowResolutiond,
            low,
            zoom_range=(low.low, low.high),
            downsample_mode="area",
            upsample_mode="bilinear" if dimensions == 2 else "trilinear",
        ),
        *(
            _on_image(m.RandAdjustContrastd, g, gamma=(g.low, g.high), invert_image=inverted, retain_stats=True)
            for g, inverted in ((settings.gamma_inverted, True), (settings.gamma, False))
        ),
    ]
    return [step for step in steps if step is not None]


def _on_image(transform: Callable[..., Any], chance: Chance, **options: Any) -> Any | None:
    """Build a MONAI transform that sees the image alone: the one place where value-changing transforms are made."""
    return transform(keys=["image"], prob=chance.probability, **options) if chance.probability else None


def _flips(settings: AugmentSettings, dimensions: int) -> list[Any]:
    from monai.transforms import RandFlipd

    axes = range(dimensions) if settings.flip_axes is None else settings.flip_axes
    if not settings.flip_probability:
        return []
    return [RandFlipd(keys=["image", "label"], prob=settings.flip_probability, spatial_axis=axis) for axis in axes]


class _Blur:
    """Gaussian blur of the image. MONAI's RandGaussianSmoothd pads with 0, which darkens a patch's rim to a third."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._state = np.random.RandomState(0)

    def set_random_state(self, state: np.random.RandomState) -> None:
        self._state = state

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        from scipy.ndimage import gaussian_filter1d

        if self._state.rand() >= self._chance.probability:
            return data
        blurred = data["image"].numpy()
        for axis in range(1, blurred.ndim):
            sigma = self._state.uniform(self._chance.low, self._chance.high)
            blurred = gaussian_filter1d(blurred, sigma, axis=axis, mode="nearest", truncate=3)
        return data | {"image": torch.from_numpy(blurred)}


@contextmanager
def _without_metadata() -> Iterator[None]:
    """MONAI's MetaTensor costs up to 40 % of a small patch's time, and nothing here needs an affine."""
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def _plain(array: Array) -> Tensor:
    """A tensor of its own memory, without metadata."""
    if isinstance(array, Tensor):
        return array.detach().as_subclass(Tensor).clone()
    return torch.from_numpy(np.array(array, order="C"))


def _centre(array: Tensor, size: tuple[int, ...]) -> Tensor:
    starts = [(n - m) // 2 for n, m in zip(array.shape[1:], size, strict=True)]
    return array[(slice(None), *(slice(start, start + n) for start, n in zip(starts, size, strict=True)))]


def _closed(before: Tensor, after: Tensor) -> bool:
    counts = [np.bincount(label.numpy().reshape(-1), minlength=IGNORE + 1) for label in (before, after)]
    known = counts[0] > 0
    known[IGNORE] = True
    return counts[1].size <= known.size and bool(known[: counts[1].size][counts[1] > 0].all())
