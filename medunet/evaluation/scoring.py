"""Scores of pairs: each is read, checked for one grid, and compared as masks, objects or partitions.

Notes beside the scores say what was left out, and how label maps were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from medunet.datasets.labels import IGNORE, LabelTable
from medunet.errors import DataError
from medunet.evaluation.indices import best_probability, border_index, predicted_indices, true_indices
from medunet.evaluation.pairs import Pair, read_pair, require_same_grid, with_voxel_size
from medunet.evaluation.scorecard import Scorecard
from medunet.evaluation.settings import EvaluateSettings
from medunet.metrics.boundaries import score_boundaries
from medunet.metrics.case import CaseScores, score_case
from medunet.metrics.objects import count_objects
from medunet.metrics.overlap import pixel_accuracy
from medunet.metrics.summary import Summary, summarise


def score_pairs(pairs: Iterable[Pair], labels: LabelTable, how: EvaluateSettings) -> Scorecard:
    """Score each pair; a case that cannot be scored stops no other.

    Raises:
        DataError: not one pair could be scored.
    """
    cases: list[CaseScores] = []
    failed, unit = {}, ""
    for pair in pairs:
        try:
            case, found = _score_pair(pair, labels, how)
            unit = unit or found
            if found != unit:
                raise DataError(
                    f"{pair.case}: its distances are in {found}, those of the cases before in {unit}, so no average "
                    "exists\nevaluate them separately"
                )
            cases.append(case)
        except DataError as error:
            failed[pair.case] = str(error)
    if not cases:
        more = f"\nand {len(failed) - 1} more cases could not be scored either" if len(failed) > 1 else ""
        raise DataError(next(iter(failed.values())) + more)
    if how.instances is None and not any(o.prediction + o.unjudged > 1 for case in cases if (o := case.objects)):
        cases = [replace(case, objects=None) for case in cases]
    summary = summarise(cases)
    return Scorecard(how.title, tuple(cases), summary, unit, failed, _notes(cases, summary, labels, how))


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
        ids, true_ids = (volume.array[0].astype(np.int64) for volume in (prediction, reference))
        case = replace(case, objects=count_objects(ids, true_ids, unknown))
    return case, grid.unit


def _notes(cases: Sequence[CaseScores], summary: Summary, labels: LabelTable, how: EvaluateSettings) -> tuple[str, ...]:
    """Sentences for the reader of the scores."""
    notes = []
    known, total = sum(case.annotated for case in cases), sum(case.voxels for case in cases)
    if known != total:
        notes.append(
            f"{100 * known / total:.3g} % of the references' voxels are annotated; the others were not scored."
        )
    if summary.boundaries is not None and summary.boundaries.plain_pixel_error > 0.5:
        cell = labels.names[1 - border_index(labels)]
        notes.append(
            f"More than half of the pixels are wrong. Maps were read as probabilities of being inside “{cell}”; if "
            "they are probabilities of membrane, turn them round first."
        )
    if labels.kind == "instances" and not how.boundaries:
        masks = f"every id above 0 was scored as one label, “{labels.names[1]}”"
        why = (
            " No prediction holds more than one id, so objects were not compared; give label maps with one id per "
            "object, or ask for it with --instances."
        )
        if summary.objects is not None:
            notes.append(f"Objects were compared by their ids; for Dice and the other mask scores {masks}.")
        else:
            notes.append(f"The references hold object ids: {masks}.{'' if how.instances is False else why}")
    return tuple(notes)
