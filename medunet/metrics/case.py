"""Scores of one case: every structure of a prediction against its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import nan
from operator import attrgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medunet.errors import ConfigError
from medunet.metrics.boundaries import BoundaryCounts
from medunet.metrics.objects import ObjectCounts
from medunet.metrics.overlap import Counts, Structure, count_overlap, label_masks
from medunet.metrics.surface import NOTHING_TO_MEASURE, SurfaceScores, surface_scores, worst_surface_scores
from medunet.registry import Registered

POLICY = (
    "A structure that is absent from both reference and prediction is left out of that structure's averages and "
    "counted as absent.",
    "A missed structure (reference, no prediction) scores Dice, IoU, precision, recall, volume similarity and surface "
    "Dice 0, and every distance is the diagonal of the image: a miss never improves an average.",
    "An invented structure (prediction, no reference) scores the same: 0, and the diagonal of the image.",
    "Volume differences are signed, given per case and not averaged, because opposite errors would cancel; "
    "the volume similarity is averaged instead.",
    "Voxels that hold the reference's ignore value are removed from both sides before counting; for surfaces they "
    "count as background on both sides.",
    "Surfaces are the centres of voxels with a face neighbour outside the structure; beyond the image is background.",
    "HD95 is the larger of the two directed 95th percentiles; the mean surface distance is the average over the "
    "surface voxels of both sides (ASSD).",
)
"""How scores are defined, sentence by sentence; written into every report and JSON file."""

Outcome = Literal["compared", "missed", "invented", "absent"]


@dataclass(frozen=True)
class Measure:
    """A score that can be averaged.

    Attributes:
        key: the attribute of `LabelScores`.
        is_distance: true for a length in the volume's unit.
    """

    key: str
    title: str
    higher_is_better: bool = True
    is_distance: bool = False


MEASURES = (
    Measure("dice", "Dice"),
    Measure("iou", "IoU"),
    Measure("precision", "Precision"),
    Measure("recall", "Recall"),
    Measure("volume_similarity", "Volume similarity"),
    Measure("surface_dice", "Surface Dice"),
    Measure("hausdorff95", "HD95", higher_is_better=False, is_distance=True),
    Measure("mean_surface_distance", "ASSD", higher_is_better=False, is_distance=True),
    Measure("hausdorff", "Hausdorff", higher_is_better=False, is_distance=True),
)


Metric = Callable[[NDArray[np.bool_], NDArray[np.bool_], tuple[float, ...]], float]
"""From the masks `(*spatial)` of prediction and reference, and the spacing, to a score."""


@dataclass(frozen=True)
class _Own:
    """A metric that a Python program registered."""

    measure: Measure
    function: Metric
    worst: float


REGISTERED: Registered[_Own] = Registered("medunet.register_metric")


def register_metric(
    name: str,
    function: Metric,
    worst: float = 0.0,
    higher_is_better: bool = True,
    title: str | None = None,
) -> None:
    """Let every evaluation in this process score by a metric of your own, beside medunet's.

    It stands in `scores.csv`, `summary.csv`, `scores.json`, and in what `evaluate_pairs` and a `Run` give.

    Args:
        name: its key there, such as `boundary_f1`.
        function: ``function(prediction, reference, spacing)`` gives a number for the masks ``(x, y[, z])`` of one
            structure, of which neither is empty; ignored voxels are in neither. Spacing is in the scan's unit.
        worst: what a structure scores that only one side holds, so that a miss never improves an average.
        higher_is_better: decides which case is the worst.
        title: for tables; the name by default.

    Raises:
        ConfigError: the name exists or is no plain word, or the function cannot be called.
    """
    if not callable(function):
        raise ConfigError(f"medunet.register_metric: {name!r} needs a function of two masks and a spacing")
    taken = [field for field in (*LabelScores.__dataclass_fields__, *vars(LabelScores)) if not field.startswith("_")]
    REGISTERED.add(name, _Own(Measure(name, title or name, higher_is_better), function, worst), taken)


def measures() -> tuple[Measure, ...]:
    """All scores that can be averaged: medunet's own, then those that were registered."""
    own = (REGISTERED.get(name) for name in REGISTERED)
    return (*MEASURES, *(found.measure for found in own if found is not None))


@dataclass(frozen=True)
class LabelScores:
    """One structure in one case; `POLICY` says what an empty side scores.

    Attributes:
        label: the structure's name.
        voxel_volume: of one voxel, in the unit cubed (squared in 2-D).
        surfaces: distances in the volume's unit.
        own: by the name of a registered metric.
    """

    label: str
    counts: Counts
    voxel_volume: float
    surfaces: SurfaceScores
    own: Mapping[str, float] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        if self.counts.reference:
            return "compared" if self.counts.prediction else "missed"
        return "invented" if self.counts.prediction else "absent"

    dice = property(attrgetter("counts.dice"))
    iou = property(attrgetter("counts.iou"))
    precision = property(attrgetter("counts.precision"))
    recall = property(attrgetter("counts.recall"))
    volume_similarity = property(attrgetter("counts.volume_similarity"))
    relative_volume_difference = property(attrgetter("counts.relative_volume_difference"))
    hausdorff = property(attrgetter("surfaces.hausdorff"))
    hausdorff95 = property(attrgetter("surfaces.hausdorff95"))
    mean_surface_distance = property(attrgetter("surfaces.mean_distance"))
    surface_dice = property(attrgetter("surfaces.surface_dice"))

    @property
    def reference_volume(self) -> float:
        return self.counts.reference * self.voxel_volume

    @property
    def prediction_volume(self) -> float:
        return self.counts.prediction * self.voxel_volume

    @property
    def volume_difference(self) -> float:
        """Prediction minus reference."""
        return (self.counts.prediction - self.counts.reference) * self.voxel_volume

    def value(self, measure: Measure) -> float:
        """The score that a measure names; NaN where the structure is absent."""
        return self.own.get(measure.key, nan) if measure.key in REGISTERED else float(getattr(self, measure.key))


@dataclass(frozen=True)
class CaseScores:
    """All scored structures of one case.

    Attributes:
        pixel_accuracy: the share of voxels with the right label, background included, ignored voxels left out.
        tolerance: of the surface Dice, in the volume's unit.
        voxels, annotated: number of voxels, and of those that do not hold the ignore value; 0 if not counted.
        objects: of id maps, which were compared object by object.
        boundaries: of maps of borders, which were compared as partitions.
    """

    case: str
    labels: tuple[LabelScores, ...]
    pixel_accuracy: float
    tolerance: float
    voxels: int = 0
    annotated: int = 0
    objects: ObjectCounts | None = None
    boundaries: BoundaryCounts | None = None

    @property
    def annotated_share(self) -> float:
        return self.annotated / self.voxels if self.voxels else nan

    def mean(self, measure: Measure) -> float:
        """The average over the structures that are present in reference or prediction; NaN without any."""
        values = [scores.value(measure) for scores in self.labels if scores.outcome != "absent"]
        return float(np.mean(values)) if values else nan


def score_case(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    spacing: tuple[float, ...],
    labels: Mapping[str, Structure],
    ignore: int | None = None,
    tolerance: float = 1.0,
) -> list[LabelScores]:
    """Scores of each structure of a case; `POLICY` says what a missing structure scores.

    Args:
        prediction: label map `(x, y)` or `(x, y, z)`.
        reference: label map of the same shape.
        spacing: per axis, in the unit in which distances are wanted.
        labels: name of each structure to score, and its value or values; leave the background out unless it is a
            structure.
        ignore: the value of unannotated voxels in the reference.
        tolerance: of the surface Dice, in the spacing's unit.

    Returns:
        One record per label, in the order of `labels`.

    Raises:
        ValueError: shapes or the number of spacings differ.
    """
    if prediction.shape != reference.shape or len(spacing) != reference.ndim:
        raise ValueError(f"prediction {prediction.shape}, reference {reference.shape} and spacing {spacing} do not fit")
    return [
        _score(name, label_masks(prediction, reference, value, ignore), spacing, tolerance)
        for name, value in labels.items()
    ]


def _score(
    name: str, masks: tuple[NDArray[np.bool_], NDArray[np.bool_]], spacing: tuple[float, ...], tolerance: float
) -> LabelScores:
    from scipy.ndimage import find_objects

    predicted, true = masks
    voxel_volume = float(np.prod(spacing))
    boxes = find_objects((predicted | true).view(np.uint8))
    if not boxes:
        return LabelScores(name, Counts(), voxel_volume, NOTHING_TO_MEASURE)
    (box,) = boxes
    counts = count_overlap(predicted[box], true[box])
    if counts.reference and counts.prediction:
        # One voxel more on each side, where the image goes on: axes of length one are left out of the surface.
        grown = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
        surfaces = surface_scores(predicted[grown], true[grown], spacing, tolerance)
    else:
        surfaces = worst_surface_scores(true.shape, spacing)
    own = {key: _own_score(key, masks, spacing, bool(counts.reference and counts.prediction)) for key in REGISTERED}
    return LabelScores(name, counts, voxel_volume, surfaces, own)


def _own_score(
    name: str, masks: tuple[NDArray[np.bool_], NDArray[np.bool_]], spacing: tuple[float, ...], compared: bool
) -> float:
    own = REGISTERED.get(name)
    assert own is not None
    if not compared:
        return own.worst
    found = own.function(*masks, spacing)
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the metric {name!r} gave a {type(found).__name__}, expected a number") from error
