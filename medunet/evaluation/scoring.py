"""Scores of pairs: each is read, checked for one grid, and compared as masks, objects or partitions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import IGNORE, LabelTable
from medunet.errors import DataError
from medunet.evaluation.indices import predicted_indices, true_indices
from medunet.evaluation.membranes import best_probability, border_index
from medunet.evaluation.pairs import Pair, read_pair, require_same_grid, with_voxel_size
from medunet.evaluation.settings import EvaluateSettings
from medunet.metrics.boundaries import score_boundaries
from medunet.metrics.case import CaseScores, score_case
from medunet.metrics.objects import count_objects
from medunet.metrics.overlap import pixel_accuracy
from medunet.volume import Volume


@dataclass(frozen=True)
class Scored:
    """The scores of all pairs.

    Attributes:
        unit: of distances, the same for all cases.
        failed: cases that have no scores, with the reason.
    """

    cases: tuple[CaseScores, ...]
    unit: str
    failed: dict[str, str]


def score_pairs(pairs: Iterable[Pair], labels: LabelTable, how: EvaluateSettings) -> Scored:
    """Score each pair; a case that cannot be scored stops no other.

    Raises:
        DataError: not one pair could be scored.
    """
    cases, failed, unit = [], {}, ""
    for pair in pairs:
        try:
            case, found = _score_pair(pair, labels, how)
            unit = unit or found
            _require_unit(pair, unit, found)
            cases.append(case)
        except DataError as error:
            failed[pair.case] = str(error)
    if not cases:
        more = f"\nand {len(failed) - 1} more cases could not be scored either" if len(failed) > 1 else ""
        raise DataError(next(iter(failed.values())) + more)
    if how.instances is None and not any(_has_objects(case) for case in cases):
        cases = [replace(case, objects=None) for case in cases]
    return Scored(tuple(cases), unit, failed)


def _score_pair(pair: Pair, labels: LabelTable, how: EvaluateSettings) -> tuple[CaseScores, str]:
    """The scores of one pair, and the unit of their distances."""
    prediction, reference = read_pair(pair)
    require_same_grid(pair.case, prediction, reference, pair.size)
    grid = with_voxel_size(pair, reference, prediction)
    tolerance = how.tolerance
    if tolerance is None:
        tolerance = 1.0 if grid.unit == "mm" else 2 * min(grid.spacing)
    predicted = predicted_indices(pair.prediction, labels, prediction, how.boundaries)
    true = true_indices(pair, labels, reference)
    ignore = IGNORE if labels.ignore is not None or (true == IGNORE).any() else None
    scores = score_case(predicted, true, grid.spacing, labels.scored, ignore, tolerance)
    unknown = None if ignore is None else true == ignore
    case = CaseScores(
        pair.case,
        tuple(scores),
        pixel_accuracy(predicted, true, ignore),
        tolerance,
        voxels=true.size,
        annotated=true.size - (0 if unknown is None else int(np.count_nonzero(unknown))),
    )
    if how.boundaries:
        probability = best_probability(pair, labels, prediction)
        case = replace(case, boundaries=score_boundaries(probability, true == 1 - border_index(labels), unknown))
    if labels.kind == "instances" and how.instances is not False:
        # Values are whole numbers from 0 on, or `true_indices` would have refused them.
        case = replace(case, objects=count_objects(_ids(prediction), _ids(reference), unknown))
    return case, grid.unit


def _ids(volume: Volume) -> NDArray[Any]:
    found: NDArray[Any] = volume.array[0].astype(np.int64)
    return found


def _require_unit(pair: Pair, unit: str, found: str) -> None:
    if found != unit:
        raise DataError(
            f"{pair.case}: its distances are in {found}, those of the cases before in {unit}, so no average exists\n"
            "evaluate them separately"
        )


def _has_objects(case: CaseScores) -> bool:
    return case.objects is not None and case.objects.prediction + case.objects.unjudged > 1
