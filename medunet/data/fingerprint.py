"""What a data set is like: shapes, spacings, intensities and label sizes, measured once and planned from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medunet.data.catalogue import Case, load_image, load_label
from medunet.data.labels import IGNORE, LabelTable
from medunet.data.preprocess import nonzero_box
from medunet.data.volume import Volume
from medunet.errors import DataError
from medunet.geometry.grids import closest_ras

_SAMPLES = 20_000
"""Foreground voxels per case and channel that the intensity statistics are taken from."""


@dataclass(frozen=True)
class Intensities:
    """Statistics of one channel over foreground voxels of all cases: low and high are the 0.5 and 99.5 percentiles."""

    low: float
    high: float
    mean: float
    std: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class CaseFacts:
    """One case, after orientation.

    Attributes:
        shape, spacing: of the scan.
        content: share of the scan inside the bounding box of voxels that are not 0.
        zeros: share of voxels that are 0 in all channels.
        voxels: labelled voxels per class index; `ignored` is not among them.
    """

    name: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: str
    content: float
    zeros: float
    voxels: tuple[int, ...]
    ignored: int


@dataclass(frozen=True)
class Fingerprint:
    """Facts of all cases and the intensities of each channel."""

    cases: tuple[CaseFacts, ...]
    intensities: tuple[Intensities, ...]
    labels: LabelTable

    @property
    def dimensions(self) -> int:
        return len(self.cases[0].shape)

    @property
    def channels(self) -> int:
        return len(self.intensities)

    def median_shape(self) -> tuple[float, ...]:
        return tuple(float(m) for m in np.median([c.shape for c in self.cases], axis=0))

    def median_spacing(self) -> tuple[float, ...]:
        return tuple(float(m) for m in np.median([c.spacing for c in self.cases], axis=0))

    def shares(self) -> tuple[float, ...]:
        """Share of the annotated voxels that each class has, over all cases."""
        total = np.sum([c.voxels for c in self.cases], axis=0, dtype=float)
        return tuple(float(v) for v in total / max(total.sum(), 1.0))


def take_fingerprint(
    cases: Iterable[Case], labels: LabelTable, axes: str | None = None, step: Callable[[str], None] = lambda _: None
) -> Fingerprint:
    """Read every case once and measure it; `step` is called with each case's name when it is done.

    Raises:
        DataError: cases that cannot be read, pairs on different grids, undeclared labels, differing channel counts.
    """
    facts: list[CaseFacts] = []
    samples: list[NDArray[np.float32]] = []
    for case in cases:
        image = load_image(case, axes)
        label = load_label(case, labels, image, axes)
        facts.append(_facts(case, image, label, labels.classes))
        samples.append(_foreground_samples(image, label, labels))
        step(case.name)
    _require_uniform([(f.name, s.shape[0], len(f.shape)) for f, s in zip(facts, samples, strict=True)])
    pooled = np.concatenate(samples, axis=1)
    return Fingerprint(tuple(facts), tuple(_statistics(channel) for channel in pooled), labels)


def _require_uniform(found: list[tuple[str, int, int]]) -> None:
    first = found[0]
    for name, channels, dimensions in found[1:]:
        if (channels, dimensions) != first[1:]:
            raise DataError(
                f"{name}: has {channels} channel(s) and {dimensions} dimensions, "
                f"{first[0]} has {first[1]} and {first[2]}\n"
                "all cases of a data set need the same channels; take the odd ones out"
            )


def _facts(case: Case, image: Volume, label: NDArray[np.uint8], classes: int) -> CaseFacts:
    axes = closest_ras(image.affine).axes if image.dimensions == 3 and image.unit == "mm" else range(image.dimensions)
    box = nonzero_box(image.array)
    counts = np.bincount(label.ravel(), minlength=IGNORE + 1)
    kept = np.prod([s.stop - s.start for s in box]) / np.prod(image.shape)
    return CaseFacts(
        name=case.name,
        shape=tuple(image.shape[a] for a in axes),
        spacing=tuple(image.spacing[a] for a in axes),
        unit=image.unit,
        content=float(kept),
        zeros=float(np.mean(~np.any(image.array != 0, axis=0))),
        voxels=tuple(int(n) for n in counts[:classes]),
        ignored=int(counts[IGNORE]),
    )


def _foreground_samples(image: Volume, label: NDArray[np.uint8], labels: LabelTable) -> NDArray[np.float32]:
    """`(channel, n)` intensities of evenly spaced foreground voxels; of all voxels where there is no foreground."""
    inside = np.flatnonzero(np.isin(label[0], labels.foreground))
    if not inside.size:
        inside = np.arange(label[0].size)
    chosen = inside[:: max(1, inside.size // _SAMPLES)]
    return np.stack([channel.reshape(-1)[chosen] for channel in image.array]).astype(np.float32)


def _statistics(values: NDArray[np.float32]) -> Intensities:
    low, high = np.percentile(values, (0.5, 99.5))
    return Intensities(
        float(low), float(high), float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)),
        float(values.min()), float(values.max()),
    )  # fmt: skip
