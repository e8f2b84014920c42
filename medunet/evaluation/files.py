"""Score files of an evaluation: tables, JSON, and a page with pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import IGNORE
from medunet.errors import DataError
from medunet.evaluation.indices import predicted_indices, true_indices
from medunet.evaluation.pairs import Pair, read_pair, volume_of, with_voxel_size
from medunet.evaluation.scorecard import score_record, score_report, score_table, summary_table
from medunet.evaluation.settings import Evaluation
from medunet.metrics.case import MEASURES
from medunet.metrics.objects import object_errors
from medunet.report.objects import MarkedObjects, object_picture
from medunet.report.page import Picture, render_page
from medunet.report.pictures import overlay_picture
from medunet.report.planes import Overlay, reoriented
from medunet.report.plots import EpochRecord
from medunet.report.table import csv_text
from medunet.system.files import check_free, write_text
from medunet.version import __version__

REPORT = "report.html"


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
    targets = outputs(folder, json_path)
    for path in targets:
        check_free(path, overwrite)
    record = json.dumps(evaluation_record(evaluation), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    texts = [record] if json_path is not None else []
    if folder is not None:
        texts += [csv_text(score_table(evaluation.card)), csv_text(summary_table(evaluation.card))]
        texts += [record, report_page(evaluation, epochs)]
    for path, text in zip(targets, texts, strict=True):
        write_text(path, text, overwrite)


def outputs(folder: Path | None, json_path: Path | None) -> list[Path]:
    outputs = [] if json_path is None else [json_path]
    if folder is not None:
        outputs += [folder / name for name in ("scores.csv", "summary.csv", "scores.json", REPORT)]
    return outputs


def report_page(evaluation: Evaluation, epochs: Sequence[EpochRecord] = ()) -> str:
    """The report as one HTML text, with pictures of the worst, the median and the best case."""
    title, scores = _ranking(evaluation)
    ranked = sorted(scores, key=lambda case: (scores[case], case))
    roles: dict[str, list[str]] = {}
    if ranked:
        for role, case in zip(("worst", "median", "best"), (0, (len(ranked) - 1) // 2, -1), strict=True):
            roles.setdefault(ranked[case], []).append(role)
    pictures = [
        Picture(case, f"{' and '.join(held)} case, {title} {scores[case]:.3f}", case_picture(evaluation, case))
        for case, held in roles.items()
    ]
    return render_page(score_report(evaluation.card, pictures, epochs))


def _ranking(evaluation: Evaluation) -> tuple[str, dict[str, float]]:
    """The score by which cases are called worst and best, and its values; cases without one are left out."""
    title, scores = "Dice", {case.case: case.mean(MEASURES[0]) for case in evaluation.cases}
    if evaluation.summary.objects is not None:
        title, scores = "mAP", {case.case: case.objects.mean_ap for case in evaluation.cases if case.objects}
    return title, {case: value for case, value in scores.items() if not isnan(value)}


def case_picture(evaluation: Evaluation, case: str, legend: bool = False) -> bytes:
    """A PNG of one scored case, its files read anew; an image that cannot be read is left out of the picture."""
    pair, table = evaluation.pairs[case], evaluation.labels
    prediction, reference = read_pair(pair)
    grid = with_voxel_size(pair, reference, prediction)
    overlay = Overlay(
        names=table.scored,
        spacing=grid.spacing,
        image=_shown_image(pair, reference.shape),
        reference=true_indices(pair, table, reference),
        prediction=predicted_indices(pair.prediction, table, prediction, evaluation.summary.boundaries is not None),
        unit=grid.unit,
    )
    if evaluation.summary.objects is not None:
        return _objects_drawn(overlay, prediction.array[0], reference.array[0])
    if grid.unit == "mm":
        overlay = reoriented(overlay, grid.affine)
    return overlay_picture(overlay, legend=legend)


def _objects_drawn(overlay: Overlay, prediction: NDArray[Any], reference: NDArray[Any]) -> bytes:
    """Ids in colours; predictions get their partner's id, those without one an id that no reference has."""
    ids, true = prediction.astype(np.int64), reference.astype(np.int64)
    marked_out = np.asarray(overlay.reference == IGNORE)
    unknown = marked_out if marked_out.any() else None
    errors = object_errors(ids, true, unknown)
    true = true if unknown is None else np.where(unknown, 0, true)
    free = int(true.max()) + 1
    found, position = np.unique(ids, return_inverse=True)
    renamed = {int(one): free + number for number, one in enumerate(found) if one}
    first = {partner: one for one, partner in reversed(errors.partner.items())}
    renamed |= {one: partner for partner, one in first.items()}
    shown = np.array([renamed.get(int(one), 0) for one in found])[position].reshape(ids.shape)
    marked = MarkedObjects(
        errors.missed.tolist(), errors.split.tolist(),
        [renamed[one] for one in errors.invented.tolist()], [renamed[one] for one in errors.merged.tolist()],
    )  # fmt: skip
    names = {"objects": tuple(np.unique(true)[1:].tolist()) or (1,)}
    return object_picture(replace(overlay, names=names, reference=true, prediction=shown), marked, unknown)


def _shown_image(pair: Pair, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """The first channel of the image, or None where there is no usable one: scores need no image."""
    if pair.image is None:
        return None
    try:
        image = volume_of(pair.image, pair.axes)
    except DataError:
        return None
    return image.array[0] if image.shape == shape else None


def evaluation_record(evaluation: Evaluation) -> dict[str, Any]:
    table = evaluation.labels
    values = dict(zip(table.names, table.values, strict=True))
    labels: dict[str, Any] = {"names": values, "ignore": table.ignore, "kind": table.kind}
    if table.regions:
        labels["regions"] = {name: [table.values[i] for i in indices] for name, indices in table.scored.items()}
    return {"medunet": __version__, "label_table": labels, **score_record(evaluation.card)}
