"""Label maps of any tool against references: pair by case, check the grids, score, write tables and a page.

No network runs here. What the scores mean where a structure is missing is said in `medunet.metrics.case.POLICY`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.data.catalogue import GRID_TOLERANCE
from medunet.data.formats import case_stem, read_volume
from medunet.data.labels import IGNORE, LabelTable, table_from_values
from medunet.data.pairs import Pair, Source, annotation_beside, label_folder, labels_beside, pair_by_stem
from medunet.data.volume import MILLIMETRES, Volume
from medunet.errors import ConfigError, DataError
from medunet.files import check_free, write_text
from medunet.geometry.grids import grid_distance
from medunet.metrics import MEASURES, CaseScores, Summary, pixel_accuracy, score_case, summarise
from medunet.report.page import Picture, render_page
from medunet.report.pictures import overlay_picture
from medunet.report.planes import Overlay, reoriented
from medunet.report.plots import EpochRecord
from medunet.report.table import csv_text
from medunet.scorecard import Scorecard, score_record, score_report, score_table, summary_lines, summary_table

Track = Callable[[Sequence["Pair"]], Iterable["Pair"]]
"""Wraps the pairs while they are scored, such as `tqdm.tqdm` for a progress bar."""

_REPORT = "report.html"


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
    """

    labels: LabelTable | None = None
    tolerance: float | None = None
    title: str = "Segmentation scores"
    axes: str | None = None

    def __post_init__(self) -> None:
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
        references: a folder of label files, or a data set with `labels/` or `labelsTr/`; its images, where it has
            any, are shown in the report's pictures.

    Raises:
        DataError: nothing to pair, or not one pair could be scored.
    """
    settings = settings or EvaluateSettings()
    folder = label_folder(references)
    beside = folder if folder.is_dir() else folder.parent
    labels, annotation = settings.labels or labels_beside(beside), annotation_beside(beside)
    pairs, missing, notes = pair_by_stem(predictions, folder)
    pairs = [replace(pair, axes=settings.axes, annotation=annotation.of(pair.case)) for pair in pairs]
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
    labels = settings.labels or _found_labels(named)
    cases, failed, unit = [], {}, ""
    known = np.zeros(2, dtype=np.int64)
    for pair in track(named):
        try:
            case, found, voxels = _score_pair(pair, labels, settings.tolerance)
            unit = unit or found
            _require_unit(pair, unit, found)
            cases.append(case)
            known += voxels
        except DataError as error:
            failed[pair.case] = str(error)
    if not cases:
        more = f"\nand {len(failed) - 1} more cases could not be scored either" if len(failed) > 1 else ""
        raise DataError(next(iter(failed.values())) + more)
    card = Scorecard(settings.title, tuple(cases), summarise(cases), unit, failed, _notes(labels, known))
    return Evaluation(card, labels, {pair.case: pair for pair in named if pair.case not in failed})


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

    for path in _outputs(output, json_path):
        check_free(path, overwrite)

    def shown(pairs: Sequence[Pair]) -> Iterable[Pair]:
        return tqdm(pairs, unit="case", disable=None, leave=False)

    evaluation = evaluate_folders(predictions, references, settings, shown)
    write_evaluation(evaluation, output, json_path, overwrite)
    written = [] if output is None else [f"report: {output / _REPORT}"]
    return [*summary_lines(evaluation.card), *written], bool(evaluation.failed)


def write_evaluation(
    evaluation: Evaluation,
    folder: Path | None,
    json_path: Path | None = None,
    overwrite: bool = False,
    epochs: Sequence[EpochRecord] = (),
) -> None:
    """Write `scores.csv`, `summary.csv`, `scores.json` and `report.html` into the folder, and JSON where asked for.

    Args:
        folder: None writes only `json_path`.
        epochs: a training run's history, for the curves of its report.

    Raises:
        OutputError: one of the files exists and `overwrite` is false (nothing is written then), or cannot be written.
    """
    outputs = _outputs(folder, json_path)
    for path in outputs:
        check_free(path, overwrite)
    record = json.dumps(_record(evaluation), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    texts = [record] if json_path is not None else []
    if folder is not None:
        texts += [csv_text(score_table(evaluation.card)), csv_text(summary_table(evaluation.card))]
        texts += [record, report_page(evaluation, epochs)]
    for path, text in zip(outputs, texts, strict=True):
        write_text(path, text, overwrite)


def _outputs(folder: Path | None, json_path: Path | None) -> list[Path]:
    outputs = [] if json_path is None else [json_path]
    if folder is not None:
        outputs += [folder / name for name in ("scores.csv", "summary.csv", "scores.json", _REPORT)]
    return outputs


def report_page(evaluation: Evaluation, epochs: Sequence[EpochRecord] = ()) -> str:
    """The report as one HTML text, with pictures of the worst, the median and the best case."""
    summary = evaluation.summary
    roles: dict[str, list[str]] = {}
    for role, case in (("worst", summary.worst_case), ("median", summary.median_case), ("best", summary.best_case)):
        if case is not None:
            roles.setdefault(case, []).append(role)
    dice = {case.case: case.mean(MEASURES[0]) for case in evaluation.cases}
    pictures = [
        Picture(case, f"{' and '.join(held)} case, Dice {dice[case]:.3f}", case_picture(evaluation, case))
        for case, held in roles.items()
    ]
    return render_page(score_report(evaluation.card, pictures, epochs))


def case_picture(evaluation: Evaluation, case: str, legend: bool = False) -> bytes:
    """A PNG of one scored case, its files read anew; an image that cannot be read is left out of the picture."""
    pair, table = evaluation.pairs[case], evaluation.labels
    grid = _physical(_volume(pair.reference, pair.axes), _volume(pair.prediction, pair.axes))
    reference = _true_indices(pair, table, _volume(pair.reference, pair.axes))
    overlay = Overlay(
        names=table.scored,
        spacing=grid.spacing,
        image=_shown_image(pair, reference.shape),
        reference=reference,
        prediction=_indices(pair.prediction, table, _volume(pair.prediction, pair.axes)),
        unit=grid.unit,
    )
    if grid.unit == "mm":
        overlay = reoriented(overlay, grid.affine)
    return overlay_picture(overlay, legend=legend)


def _shown_image(pair: Pair, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """The first channel of the image, or None where there is no usable one: scores need no image."""
    if pair.image is None:
        return None
    try:
        image = _volume(pair.image, pair.axes)
    except DataError:
        return None
    return image.array[0] if image.shape == shape else None


def _record(evaluation: Evaluation) -> dict[str, Any]:
    from medunet import __version__

    table = evaluation.labels
    values = dict(zip(table.names, table.values, strict=True))
    labels: dict[str, Any] = {"names": values, "ignore": table.ignore, "kind": table.kind}
    if table.regions:
        labels["regions"] = {name: [table.values[i] for i in indices] for name, indices in table.scored.items()}
    return {"medunet": __version__, "label_table": labels, **score_record(evaluation.card)}


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


def _score_pair(pair: Pair, labels: LabelTable, tolerance: float | None) -> tuple[CaseScores, str, tuple[int, int]]:
    """The scores of one pair, the unit of their distances, and how many voxels are annotated, of how many."""
    prediction, reference = _volume(pair.prediction, pair.axes), _volume(pair.reference, pair.axes)
    _require_same_grid(pair.case, prediction, reference)
    grid = _physical(reference, prediction)
    if tolerance is None:
        tolerance = 1.0 if grid.unit == "mm" else 2 * min(grid.spacing)
    predicted, true = _indices(pair.prediction, labels, prediction), _true_indices(pair, labels, reference)
    known = int(np.count_nonzero(true != IGNORE))
    ignore = None if known == true.size else IGNORE
    scores = score_case(predicted, true, grid.spacing, labels.scored, ignore, tolerance)
    case = CaseScores(pair.case, tuple(scores), pixel_accuracy(predicted, true, ignore), tolerance)
    return case, grid.unit, (known, true.size)


def _true_indices(pair: Pair, labels: LabelTable, reference: Volume) -> NDArray[np.uint8]:
    """The class indices of a reference, IGNORE for what was not annotated."""
    indices = _indices(pair.reference, labels, reference)
    return pair.annotation.marked(indices[None], labels, pair.case)[0]


def _volume(source: Source, axes: str | None = None) -> Volume:
    return source if isinstance(source, Volume) else read_volume(source, axes=axes)


def _indices(source: Source, labels: LabelTable, volume: Volume) -> NDArray[np.uint8]:
    """The class indices `(x, y[, z])` of a label map that was read from `source`."""
    where = volume.name if isinstance(source, Volume) else str(source)
    if volume.channels != 1:
        raise DataError(
            f"{where}: a label map needs one channel, found {volume.channels}; "
            "turn colour-coded masks into label maps, and probabilities into labels, first"
        )
    return labels.to_indices(volume.array, where)[0]


def _physical(reference: Volume, prediction: Volume) -> Volume:
    """The side whose voxel size is known; the reference where both are, or neither."""
    return prediction if reference.unit == "pixel" else reference


def _require_same_grid(case: str, prediction: Volume, reference: Volume) -> None:
    if prediction.shape != reference.shape:
        raise DataError(
            f"{case}: prediction {prediction.name} has shape {prediction.shape}, "
            f"but reference {reference.name} has {reference.shape}\nwrite the prediction on the reference's grid"
        )
    # A file without voxel size (a PNG) says nothing about its grid but the shape.
    if "pixel" in (prediction.unit, reference.unit):
        return
    affine = prediction.affine.copy()
    affine[:3] *= MILLIMETRES[prediction.unit] / MILLIMETRES[reference.unit]
    distance = grid_distance(reference.shape, reference.affine, affine)
    if distance > GRID_TOLERANCE:
        raise DataError(
            f"{case}: prediction {prediction.name} and reference {reference.name} lie on different grids: "
            f"corners are up to {distance:.4g} {reference.unit} apart (allowed {GRID_TOLERANCE:g})\n"
            f"spacing {_rounded(prediction)} {prediction.unit} and {_rounded(reference)} {reference.unit}; "
            "write the prediction on the reference's grid"
        )


def _rounded(volume: Volume) -> tuple[float, ...]:
    return tuple(round(length, 4) for length in volume.spacing)


def _require_unit(pair: Pair, unit: str, found: str) -> None:
    if found != unit:
        raise DataError(
            f"{pair.case}: its distances are in {found}, those of the cases before in {unit}, so no average exists\n"
            "evaluate them separately"
        )


def _notes(labels: LabelTable, voxels: NDArray[np.int64]) -> tuple[str, ...]:
    known, total = voxels.tolist()
    share = f"{100 * known / total:.3g} %" if total else "nothing"
    partly = (f"{share} of the references' voxels are annotated; the others were not scored.",)
    notes = () if known == total else partly
    if labels.kind != "instances":
        return notes
    return (*notes, f"The references hold object ids: every id above 0 was scored as one label, “{labels.names[1]}”.")


def _found_labels(pairs: Sequence[Pair]) -> LabelTable:
    """A table of the values in all references; those that cannot be read are named when they are scored."""
    values: set[int] = {0}
    for pair in pairs:
        try:
            # A value that only a prediction has is a label as well: an invented structure must cost something.
            found = np.unique(
                [
                    *np.unique(_volume(pair.reference, pair.axes).array),
                    *np.unique(_volume(pair.prediction, pair.axes).array),
                ]
            )
        except DataError:
            continue
        values.update(int(value) for value in found if float(value).is_integer())
        if len(values) > 254:
            raise DataError(
                f"{pair.case}: the references hold more than 254 different values\n"
                'if they are object ids, say "label_kind": "instances" in a dataset.json beside them'
            )
    if len(values) < 2:
        raise DataError("the references hold no label but 0, so nothing can be scored; name the labels in dataset.json")
    return table_from_values(sorted(values))
