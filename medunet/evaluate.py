"""The story of `medunet evaluate`: label maps of any tool are paired with references, checked and scored.

No network runs here. What the scores mean where a structure is missing is said in `medunet.metrics.case.POLICY`; tables
and a page are written by `scorefiles`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medunet.datasets.labels import IGNORE, LabelTable
from medunet.errors import DataError
from medunet.evaluation.files import REPORT, outputs, write_evaluation
from medunet.evaluation.indices import label_table, predicted_indices, true_indices
from medunet.evaluation.membranes import best_probability, border_index
from medunet.evaluation.pairs import (
    Pair,
    Source,
    annotation_beside,
    label_folder,
    labels_beside,
    pair_by_stem,
    read_pair,
    require_same_grid,
    stack_beside,
    voxel_size_beside,
    with_voxel_size,
)
from medunet.evaluation.scorecard import Scorecard, summary_lines
from medunet.evaluation.settings import EvaluateSettings, Evaluation, Track
from medunet.formats.dispatch import case_stem, is_zarr
from medunet.metrics import CaseScores, count_objects, pixel_accuracy, score_boundaries, score_case, summarise
from medunet.system.files import check_free
from medunet.volume import Volume


def evaluate_folders(
    predictions: Path, references: Path, settings: EvaluateSettings | None = None, track: Track = iter
) -> Evaluation:
    """Score a folder of predictions (or one file) against a folder of references (or one file), paired by stem.

    References without a prediction are named in `Evaluation.failed`; predictions without a reference in a note.

    Args:
        predictions: label files; with `EvaluateSettings.stack` also folders of sections, likewise of references.
        references: a folder of label files, or a data set with `labels/` or `labelsTr/`; its images, where it has
            any, are shown in the report's pictures.

    Raises:
        DataError: nothing to pair, or not one pair could be scored.
    """
    settings = settings or EvaluateSettings()
    folder = label_folder(references)
    beside = folder if folder.is_dir() and not is_zarr(folder) else folder.parent
    labels, annotation = settings.labels or labels_beside(beside), annotation_beside(beside)
    stack = settings.stack or stack_beside(beside)
    pairs, missing, notes = pair_by_stem(predictions, folder, stack, settings.axes)
    size = voxel_size_beside(beside)
    pairs = [replace(pair, axes=settings.axes, annotation=annotation.of(pair.case), size=size) for pair in pairs]
    evaluation = evaluate_pairs(pairs, replace(settings, labels=labels), track)
    failed = {**evaluation.failed, **dict.fromkeys(missing, "no prediction of this name")}
    card = replace(evaluation.card, failed=failed, notes=(*evaluation.card.notes, *notes))
    return replace(evaluation, card=card)


def evaluate_pairs(
    pairs: Iterable[Pair | tuple[Source, Source]], settings: EvaluateSettings | None = None, track: Track = iter
) -> Evaluation:
    """Score pairs of label maps. A case that cannot be scored is named in `Evaluation.failed` and stops no other.

    Args:
        pairs: `Pair` records, or plain (prediction, reference) tuples, which are named after the reference's file.

    Raises:
        DataError: no pair, two cases of one name, or not one pair could be scored.
    """
    settings = settings or EvaluateSettings()
    named = _named(pairs)
    labels = label_table(named, settings)
    cases, failed, unit = [], {}, ""
    for pair in track(named):
        try:
            case, found = _score_pair(pair, labels, settings)
            unit = unit or found
            _require_unit(pair, unit, found)
            cases.append(case)
        except DataError as error:
            failed[pair.case] = str(error)
    if not cases:
        more = f"\nand {len(failed) - 1} more cases could not be scored either" if len(failed) > 1 else ""
        raise DataError(next(iter(failed.values())) + more)
    if settings.instances is None and not any(_has_objects(case) for case in cases):
        cases = [replace(case, objects=None) for case in cases]
    card = Scorecard(settings.title, tuple(cases), summarise(cases), unit, failed, _notes(labels, cases, settings))
    return Evaluation(card, labels, {pair.case: pair for pair in named if pair.case not in failed})


def _named(pairs: Iterable[Pair | tuple[Source, Source]]) -> list[Pair]:
    named = []
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, Pair):
            prediction, reference = pair
            name = f"case {number}" if isinstance(reference, Volume) else case_stem(Path(reference))
            pair = Pair(name, prediction, reference)
        named.append(pair)
    if not named:
        raise DataError("nothing to evaluate: no pair of a prediction and a reference was given")
    names = [pair.case for pair in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: two pairs have this name; each case needs its own, give Pair(case, …) records")
    return named


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
    objects = boundaries = None
    if how.boundaries:
        probability = best_probability(pair, labels, prediction)
        boundaries = score_boundaries(probability, true == 1 - border_index(labels), unknown)
    if labels.kind == "instances" and how.instances is not False:
        # Values are whole numbers from 0 on, or `_indices` would have refused them.
        objects = count_objects(prediction.array[0].astype(np.int64), reference.array[0].astype(np.int64), unknown)
    case = CaseScores(
        pair.case,
        tuple(scores),
        pixel_accuracy(predicted, true, ignore),
        tolerance,
        voxels=true.size,
        annotated=true.size - (0 if unknown is None else int(np.count_nonzero(unknown))),
        objects=objects,
        boundaries=boundaries,
    )
    return case, grid.unit


def _require_unit(pair: Pair, unit: str, found: str) -> None:
    if found != unit:
        raise DataError(
            f"{pair.case}: its distances are in {found}, those of the cases before in {unit}, so no average exists\n"
            "evaluate them separately"
        )


def _has_objects(case: CaseScores) -> bool:
    return case.objects is not None and case.objects.prediction + case.objects.unjudged > 1


def _notes(labels: LabelTable, cases: Sequence[CaseScores], how: EvaluateSettings) -> tuple[str, ...]:
    return (*_annotated_notes(cases), *_kind_notes(labels, cases, how))


def _annotated_notes(cases: Sequence[CaseScores]) -> tuple[str, ...]:
    known, total = sum(case.annotated for case in cases), sum(case.voxels for case in cases)
    share = f"{100 * known / total:.3g} %" if total else "nothing"
    partly = (f"{share} of the references' voxels are annotated; the others were not scored.",)
    return () if known == total else partly


def _kind_notes(labels: LabelTable, cases: Sequence[CaseScores], how: EvaluateSettings) -> tuple[str, ...]:
    if how.boundaries:
        return _boundary_notes(labels, cases)
    if labels.kind != "instances":
        return ()
    masks = f"every id above 0 was scored as one label, “{labels.names[1]}”"
    if any(case.objects is not None for case in cases):
        return (f"Objects were compared by their ids; for Dice and the other mask scores {masks}.",)
    why = "" if how.instances is False else (
        " No prediction holds more than one id, so objects were not compared; give label maps with one id per object, "
        "or ask for it with --instances."
    )  # fmt: skip
    return (f"The references hold object ids: {masks}.{why}",)


def _boundary_notes(labels: LabelTable, cases: Sequence[CaseScores]) -> tuple[str, ...]:
    cell = labels.names[1 - border_index(labels)]
    pooled = summarise(cases).boundaries
    if pooled is None or not pooled.plain_pixel_error > 0.5:
        return ()
    return (
        f"More than half of the pixels are wrong. Maps were read as probabilities of being inside “{cell}”; if they "
        "are probabilities of membrane, turn them round first.",
    )


def evaluate_command(
    predictions: Path,
    references: Path,
    output: Path | None,
    json_path: Path | None,
    settings: EvaluateSettings,
    overwrite: bool,
) -> tuple[list[str], bool]:
    """What `medunet evaluate` does: score, write what is asked for, and say what came out.

    Returns:
        The lines to print, and whether a case failed.
    """
    from tqdm import tqdm

    for path in outputs(output, json_path):
        check_free(path, overwrite)

    def shown(pairs: Sequence[Pair]) -> Iterable[Pair]:
        return tqdm(pairs, unit="case", disable=None, leave=False)

    evaluation = evaluate_folders(predictions, references, settings, shown)
    write_evaluation(evaluation, output, json_path, overwrite)
    written = [] if output is None else [f"report: {output / REPORT}"]
    return [*summary_lines(evaluation.card), *written], bool(evaluation.failed)
