"""Label maps of any tool against references: pair by case, check the grids, score.

No network runs here. What the scores mean where a structure is missing is said in `medunet.metrics.case.POLICY`; tables
and a page are written by `scorefiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medunet.data.formats import case_stem, is_zarr
from medunet.data.labels import IGNORE, LabelTable, table_from_names, table_from_values
from medunet.data.membranes import best_probability, border_index, cell_probability
from medunet.data.pairs import (
    Pair,
    Source,
    annotation_beside,
    label_folder,
    labels_beside,
    pair_by_stem,
    read_pair,
    reference_of,
    require_same_grid,
    stack_beside,
    voxel_size_beside,
    with_voxel_size,
)
from medunet.data.volume import Volume
from medunet.errors import ConfigError, DataError
from medunet.metrics import (
    CaseScores,
    Summary,
    count_objects,
    pixel_accuracy,
    score_boundaries,
    score_case,
    summarise,
)
from medunet.scorecard import Scorecard

Track = Callable[[Sequence["Pair"]], Iterable["Pair"]]
"""Wraps the pairs while they are scored, such as `tqdm.tqdm` for a progress bar."""


@dataclass(frozen=True)
class EvaluateSettings:
    """How label maps are scored.

    Attributes:
        labels: what the values mean; None takes a `dataset.json` beside the references or, without one, the values
            found in them.
        tolerance: of the surface Dice, in the references' unit. None is 1 mm for scans in millimetres and twice the
            smallest voxel edge for all others.
        title: of the report.
        axes: axis letters of TIFF files that do not state them, such as `ZYX`.
        instances: compare object ids one by one, and all objects as one mask besides. None does where the references
            are declared as instances and a prediction holds more than one id; False compares masks alone.
        boundaries: compare maps of membranes as partitions into cells (ISBI 2012), and as masks besides; predictions
            may be probabilities of being inside a cell, and those that `predict --probabilities` wrote beside a label
            map are taken in its place.
        stack: a folder of sections (PNG, JPEG, TIFF) is one three-dimensional label map; so it is where a
            `dataset.json` beside the references says so.
    """

    labels: LabelTable | None = None
    tolerance: float | None = None
    title: str = "Segmentation scores"
    axes: str | None = None
    instances: bool | None = None
    boundaries: bool = False
    stack: bool = False

    def __post_init__(self) -> None:
        if self.instances and self.boundaries:
            raise ConfigError(
                "instances and boundaries: found both, expected one; score object ids and membrane maps apart"
            )
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ConfigError(f"tolerance: found {self.tolerance}, expected a distance of 0 or more")


@dataclass(frozen=True)
class Evaluation:
    """The scores of all cases.

    Attributes:
        labels: the table that was used; scored are its regions or, without any, all its labels but the background.
        pairs: the scored cases by name, for pictures.
    """

    card: Scorecard
    labels: LabelTable
    pairs: Mapping[str, Pair] = field(repr=False)

    @property
    def cases(self) -> tuple[CaseScores, ...]:
        return self.card.cases

    @property
    def summary(self) -> Summary:
        return self.card.summary

    @property
    def failed(self) -> Mapping[str, str]:
        """Cases that have no scores, with the reason: a bad file, another grid, no prediction."""
        return self.card.failed


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
    labels = _label_table(named, settings)
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


def true_indices(pair: Pair, labels: LabelTable, reference: Volume) -> NDArray[np.uint8]:
    """The class indices of a reference, IGNORE for what was not annotated."""
    indices = _indices(pair.reference, labels, reference)
    return pair.annotation.marked(indices[None], labels, pair.case)[0]


def _indices(source: Source, labels: LabelTable, volume: Volume) -> NDArray[np.uint8]:
    """The class indices `(x, y[, z])` of a label map that was read from `source`."""
    where = _where(source, volume)
    if volume.channels != 1:
        raise DataError(
            f"{where}: a label map needs one channel, found {volume.channels}; "
            "turn colour-coded masks into label maps, and probabilities into labels, first"
        )
    return labels.to_indices(volume.array, where)[0]


def predicted_indices(source: Source, labels: LabelTable, volume: Volume, boundaries: bool) -> NDArray[np.uint8]:
    """`_indices` of a prediction: probabilities of membranes are cut at 0.5, and id maps have no ignore value."""
    if boundaries:
        border = border_index(labels)
        inside = cell_probability(volume, labels, _where(source, volume)) > 0.5
        return np.where(inside, 1 - border, border).astype(np.uint8)
    if labels.kind == "instances":
        labels = replace(labels, ignore=None)
    return _indices(source, labels, volume)


def _where(source: Source, volume: Volume) -> str:
    return volume.name if isinstance(source, Volume) else str(source)


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


def _label_table(pairs: Sequence[Pair], how: EvaluateSettings) -> LabelTable:
    """The table that was given or, without one, of the values found."""
    if not how.instances:
        labels = how.labels or _found_labels(pairs, references_only=how.boundaries)
        if how.boundaries:
            border_index(labels)
        return labels
    if how.labels is None:
        return table_from_names({}, None, "instances")
    if how.labels.kind == "instances":
        return how.labels
    if len(how.labels.names) > 2:
        raise DataError(
            f"the references are declared as classes ({how.labels.describe()}), so their values are no object ids\n"
            'evaluate without --instances, or say "label_kind": "instances" in dataset.json'
        )
    # The value 0 is no object, whatever it is called.
    named = {name: value for name, value in zip(how.labels.names, how.labels.values, strict=True) if value}
    return table_from_names(named, how.labels.ignore, "instances")


def _found_labels(pairs: Sequence[Pair], references_only: bool = False) -> LabelTable:
    """A table of the values in all references; those that cannot be read are named when they are scored."""
    values: set[int] = {0}
    for pair in pairs:
        try:
            # A value that only a prediction has is a label as well: an invented structure must cost something.
            sides = (reference_of(pair),) if references_only else read_pair(pair)
            found = np.concatenate([np.unique(side.array) for side in sides])
        except DataError:
            continue
        values.update(int(value) for value in found if float(value).is_integer())
        if len(values) > 254:
            raise DataError(
                f"{pair.case}: the references hold more than 254 different values\n"
                'if they are object ids, evaluate with --instances, or say "label_kind": "instances" in a dataset.json '
                "beside them"
            )
    if len(values) < 2:
        raise DataError("the references hold no label but 0, so nothing can be scored; name the labels in dataset.json")
    return table_from_values(sorted(values))
