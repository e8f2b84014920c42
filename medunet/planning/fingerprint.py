"""Fingerprint of a data set: shapes, spacings, intensities, label sizes and objects, measured once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.catalogue import Case
from medunet.datasets.labels import IGNORE, LabelTable
from medunet.datasets.loading import load_image, load_label_values
from medunet.errors import DataError
from medunet.formats.dispatch import read_grid
from medunet.geometry.grids import closest_ras
from medunet.instances.watershed import connected
from medunet.transforms.preprocess import nonzero_box
from medunet.volume import MILLIMETRES, Volume

MOST_CASES, MOST_VOXELS = 200, 3e9
"""A data set with more of either is measured on a part of its cases, so that time is bounded."""

_SAMPLES = 20_000
"""Foreground voxels per case and channel that the intensity statistics are taken from."""
_SCAN_SAMPLES = 200_000
"""Voxels per case and channel that the whole scan's range is taken from."""


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
class ScanRange:
    """One channel of one whole scan: 0.5 and 99.5 percentiles (of a part of its voxels) and its two extremes."""

    low: float
    high: float
    minimum: float
    maximum: float

    @property
    def constant(self) -> bool:
        return self.minimum == self.maximum


@dataclass(frozen=True)
class Objects:
    """The connected parts of a class in one case; in instance maps the objects, whether connected or not.

    Attributes:
        count: how many; 0 where the class is absent.
        smallest, median: voxels of the smallest and of the median one; 0 where there is none.
        touching: how many have a face neighbour that belongs to another object (instance maps only).
    """

    count: int
    smallest: int
    median: int
    touching: int = 0


@dataclass(frozen=True)
class CaseFacts:
    """One case, after orientation.

    Attributes:
        shape, spacing: of the scan.
        content: share of the scan inside the bounding box of voxels that are not 0.
        zeros: share of voxels that are 0 in all channels.
        voxels: labelled voxels per class index; `ignored` is not among them.
        kept: shape of that bounding box; () where it was not measured.
        objects: connected parts per class index, or the objects of an instance map for its class; () likewise.
        ranges: per channel; () likewise.
    """

    name: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: str
    content: float
    zeros: float
    voxels: tuple[int, ...]
    ignored: int
    kept: tuple[int, ...] = ()
    objects: tuple[Objects, ...] = ()
    ranges: tuple[ScanRange, ...] = ()


@dataclass(frozen=True)
class Fingerprint:
    """Facts of the measured cases and the intensities of each channel.

    Attributes:
        of: how many cases the data set has; 0 where all were measured.
    """

    cases: tuple[CaseFacts, ...]
    intensities: tuple[Intensities, ...]
    labels: LabelTable
    of: int = 0

    @property
    def dimensions(self) -> int:
        return len(self.cases[0].shape)

    @property
    def channels(self) -> int:
        return len(self.intensities)

    @property
    def total(self) -> int:
        """Cases of the data set."""
        return max(self.of, len(self.cases))

    def median_shape(self) -> tuple[float, ...]:
        return tuple(float(m) for m in np.median([c.shape for c in self.cases], axis=0))

    def median_spacing(self) -> tuple[float, ...]:
        return tuple(float(m) for m in np.median([c.spacing for c in self.cases], axis=0))

    def class_frequencies(self) -> tuple[float, ...]:
        """The share of each class in the annotated voxels, over all cases."""
        total = np.sum([c.voxels for c in self.cases], axis=0, dtype=float)
        return tuple(float(v) for v in total / max(total.sum(), 1.0))

    def present(self, index: int) -> int:
        """The number of cases that have a voxel of a class."""
        return sum(case.voxels[index] > 0 for case in self.cases)

    def annotated(self) -> float:
        """Share of all voxels that are labelled, background included."""
        labelled, ignored = sum(sum(c.voxels) for c in self.cases), sum(c.ignored for c in self.cases)
        return labelled / max(labelled + ignored, 1)

    def objects_of(self, index: int) -> list[Objects]:
        """The objects of a class in each case that has any."""
        return [c.objects[index] for c in self.cases if c.objects and c.objects[index].count]


def choose_cases(cases: Sequence[Case], axes: str | None = None) -> list[Case]:
    """The cases to measure: all, or evenly spaced cases of a data set that is large by its files' headers.

    Raises:
        DataError: a header cannot be read.
    """
    chosen = _evenly(cases, MOST_CASES)
    voxels = [float(np.prod(read_grid(case.images[0], axes=axes).shape)) * len(case.images) for case in chosen]
    if sum(voxels) <= MOST_VOXELS:
        return chosen
    return _evenly(chosen, max(4, int(MOST_VOXELS / np.mean(voxels))))


def _evenly(cases: Sequence[Case], most: int) -> list[Case]:
    if len(cases) <= most:
        return list(cases)
    return [cases[int(i)] for i in np.linspace(0, len(cases) - 1, most).round()]


def take_fingerprint(cases: Sequence[Case], labels: LabelTable, axes: str | None = None) -> Fingerprint:
    """Read every case once and measure it.

    One case is in memory at a time. See `choose_cases` for data sets too large to be measured whole.

    Raises:
        DataError: cases that cannot be read, pairs on different grids, undeclared labels, differing channel counts.
    """
    facts: list[CaseFacts] = []
    samples: list[NDArray[np.float32]] = []
    for case in cases:
        image = load_image(case, axes)
        values = load_label_values(case, image, axes)
        label = case.annotation.marked(labels.to_indices(values, str(case.label)), labels, case.name)
        facts.append(replace(_facts(case, image, label, labels.classes), objects=_objects(values, label, labels)))
        samples.append(_foreground_samples(image, label, labels))
    _require_uniform([(f.name, s.shape[0], len(f.shape)) for f, s in zip(facts, samples, strict=True)])
    pooled = np.concatenate(samples, axis=1)
    alike = tuple(_in_unit(case, facts[0].unit) for case in facts)
    return Fingerprint(alike, tuple(_statistics(channel) for channel in pooled), labels)


def _require_uniform(found: list[tuple[str, int, int]]) -> None:
    first = found[0]
    for name, channels, dimensions in found[1:]:
        if (channels, dimensions) != first[1:]:
            raise DataError(
                f"{name}: has {channels} channel(s) and {dimensions} dimensions, "
                f"{first[0]} has {first[1]} and {first[2]}\n"
                "all cases of a data set need the same channels; take the odd ones out"
            )


def _in_unit(case: CaseFacts, unit: str) -> CaseFacts:
    """The same case with its spacing in another physical unit; unchanged if either unit is pixels."""
    if case.unit == unit or "pixel" in (case.unit, unit):
        return case
    scale = MILLIMETRES[case.unit] / MILLIMETRES[unit]
    return replace(case, unit=unit, spacing=tuple(s * scale for s in case.spacing))


def _facts(case: Case, image: Volume, label: NDArray[np.uint8], classes: int) -> CaseFacts:
    axes = closest_ras(image.affine).axes if image.dimensions == 3 and image.unit == "mm" else range(image.dimensions)
    kept = [s.stop - s.start for s in nonzero_box(image.array)]
    counts = np.bincount(label.ravel(), minlength=IGNORE + 1)
    return CaseFacts(
        name=case.name,
        shape=tuple(image.shape[a] for a in axes),
        spacing=tuple(image.spacing[a] for a in axes),
        unit=image.unit,
        content=float(np.prod(kept) / np.prod(image.shape)),
        zeros=float(np.mean(~np.any(image.array != 0, axis=0))),
        voxels=tuple(int(n) for n in counts[:classes]),
        ignored=int(counts[IGNORE]),
        kept=tuple(kept[a] for a in axes),
        ranges=tuple(_scan_range(channel) for channel in image.array),
    )


def _objects(values: NDArray[Any], label: NDArray[np.uint8], labels: LabelTable) -> tuple[Objects, ...]:
    """Objects per class index. The background is not measured: it is one part nearly everywhere."""
    if labels.kind == "instances":
        ids = np.where(label[0] == IGNORE, 0, np.rint(values[0]).astype(np.int64))
        return Objects(0, 0, 0), instance_objects(ids, labels.ignore)
    nothing = (Objects(0, 0, 0),) * (labels.classes - len(labels.foreground))
    return (*nothing, *connected_parts(label[0], labels.foreground))


def connected_parts(label: NDArray[np.uint8], classes: Sequence[int]) -> tuple[Objects, ...]:
    """The parts of each class, neighbours across faces, edges and corners being connected.

    Args:
        label: ``(*spatial)`` class indices.
        classes: which to look at; one result for each, in this order.
    """
    from scipy.ndimage import find_objects

    everywhere = (slice(0, None),) * label.ndim
    boxes = find_objects(label, max_label=max(classes, default=0)) if max(classes, default=0) > 0 else []
    result = []
    for c in classes:
        # scipy gives no box for 0, and None for classes without a voxel.
        box = boxes[c - 1] if c > 0 else everywhere
        if box is None:
            result.append(Objects(0, 0, 0))
            continue
        parts, _ = connected(label[box] == c)
        result.append(_of_sizes(np.bincount(parts.ravel())[1:]))
    return tuple(result)


def instance_objects(ids: NDArray[np.integer[Any]], ignore: int | None) -> Objects:
    """The objects of an instance map ``(*spatial)``: every value above 0 but `ignore` is an object.

    They touch where a voxel's face neighbour has another id above 0.
    """
    known = ids if ignore is None else np.where(ids == ignore, 0, ids)
    values, counts = np.unique(known, return_counts=True)
    touching: set[int] = set()
    for axis in range(known.ndim):
        first, second = (known.take(range(*span), axis) for span in ((0, ids.shape[axis] - 1), (1, ids.shape[axis])))
        border = (first != second) & (first > 0) & (second > 0)
        touching.update(np.unique(first[border]).tolist(), np.unique(second[border]).tolist())
    return _of_sizes(counts[values > 0], len(touching))


def _of_sizes(sizes: NDArray[np.integer[Any]], touching: int = 0) -> Objects:
    if not sizes.size:
        return Objects(0, 0, 0)
    return Objects(int(sizes.size), int(sizes.min()), int(np.median(sizes)), touching)


def _scan_range(channel: NDArray[Any]) -> ScanRange:
    """The range of the finite voxels; preparation refuses scans with other voxels, and counts them."""
    some = channel.reshape(-1)[:: max(1, channel.size // _SCAN_SAMPLES)].astype(np.float32)
    some = some[np.isfinite(some)]
    low, high = np.percentile(some, (0.5, 99.5)) if some.size else (0.0, 0.0)
    return ScanRange(float(low), float(high), float(channel.min()), float(channel.max()))


def _foreground_samples(image: Volume, label: NDArray[np.uint8], labels: LabelTable) -> NDArray[np.float32]:
    """`(channel, n)` intensities of evenly spaced foreground voxels; without foreground, of all voxels."""
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
