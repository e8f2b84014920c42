"""Validation: held-out scans predicted whole, quickly during training and in full at its end."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medunet.data.catalogue import Case, load_image, load_label
from medunet.data.formats import default_suffix, write_volume
from medunet.data.labels import IGNORE, LabelTable
from medunet.data.patches import PreparedCase
from medunet.data.prepare import held_out_mask
from medunet.data.preprocess import Undo
from medunet.data.restore import restore_labels
from medunet.data.splits import Fold
from medunet.data.volume import Volume
from medunet.evaluate import EvaluateSettings, Pair, evaluate_pairs, report_page, write_evaluation
from medunet.files import write_text
from medunet.learning.monitor import ProgressLine
from medunet.metrics import Counts, count_labels
from medunet.model import Model, load_model
from medunet.report.pictures import overlay_array
from medunet.report.planes import Overlay
from medunet.report.plots import EpochRecord
from medunet.scorecard import summary_lines
from medunet.segmentation.planning import PredictSettings
from medunet.segmentation.segmenter import Segmenter


@dataclass(frozen=True)
class Validation:
    """Scores of a validation during training, on the network's grid.

    Attributes:
        dice, iou: by label, the mean over the cases that hold it in reference or prediction; labels that no case
            holds are left out.
        picture: `(rows, columns, 3)` uint8, the worst case with the contours of truth and prediction.
    """

    dice: dict[str, float]
    iou: dict[str, float]
    picture: NDArray[np.uint8]

    @property
    def mean_dice(self) -> float:
        return _mean(list(self.dice.values()))

    @property
    def mean_iou(self) -> float:
        return _mean(list(self.iou.values()))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def validate(
    model: Model, cases: Sequence[PreparedCase], precision: Literal["auto", "fp32", "bf16"] = "auto"
) -> Validation:
    """Predict preprocessed cases whole and count; no distances, no files."""
    table = model.card.labels
    scored = table.scored
    counted: list[dict[str, Counts]] = []
    predictions: list[NDArray[np.uint8]] = []
    segmenter = Segmenter([model], PredictSettings(precision=precision))
    for case in cases:
        predictions.append(segmenter.indices(segmenter.opened(np.asarray(case.image)))[0])
        counted.append(count_labels(predictions[-1], case.label[0], scored, IGNORE))
    means = [_mean([c.dice for c in counts.values()]) for counts in counted]
    worst = int(np.argmin(np.nan_to_num(means, nan=np.inf)))
    return Validation(
        dice=_by_label(counted, "dice"),
        iou=_by_label(counted, "iou"),
        picture=_picture(cases[worst], predictions[worst], scored),
    )


def _by_label(counted: Sequence[dict[str, Counts]], measure: str) -> dict[str, float]:
    means = {name: _mean([getattr(counts[name], measure) for counts in counted]) for name in counted[0]}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def _picture(case: PreparedCase, prediction: NDArray[np.uint8], names: dict[str, tuple[int, ...]]) -> NDArray[np.uint8]:
    label = np.array(case.label[0])
    overlay = Overlay(names, (1.0,) * label.ndim, np.asarray(case.image[0]), label, prediction, unit="voxel")
    return overlay_array(overlay, title=case.name)


@dataclass(frozen=True)
class HeldOut:
    """The cases whose results stand at the end of a training.

    Attributes:
        inside: the part of the only scan that was held out, where it was split: scores are taken in it alone.
    """

    cases: Sequence[Case]
    labels: LabelTable
    axes: str | None
    inside: Fold | None


def finish_run(folder: Path, held: HeldOut, line: ProgressLine, device: torch.device) -> list[str]:
    """Predict and score all held-out scans on their own grids with the best model; write predictions and reports.

    Returns:
        Lines for the terminal.
    """
    if not held.cases:
        return ["no case was held out (data.folds is 0), so there are no validation scores"]
    segmenter = Segmenter([load_model(folder, device)])
    labels = widened(held.labels) if held.inside else held.labels
    pairs = []
    for number, case in enumerate(held.cases, start=1):
        line.update(1.0, f"last validation {number}/{len(held.cases)} {case.name}")
        pairs.append(_predict_case(case, segmenter, folder / "validation", held))
    settings = EvaluateSettings(labels=labels, title=f"Held-out cases of {segmenter.card.name}")
    evaluation = evaluate_pairs(pairs, settings)
    epochs = epoch_records(folder / "metrics.csv")
    write_evaluation(evaluation, folder / "validation", overwrite=True, epochs=epochs)
    write_text(folder / "report.html", report_page(evaluation, epochs), overwrite=True)
    return [*summary_lines(evaluation.card), f"report: {folder / 'report.html'}"]


def _predict_case(case: Case, segmenter: Segmenter, folder: Path, held: HeldOut) -> Pair:
    assert case.label is not None
    volume = load_image(case, held.axes)
    scan = segmenter.open(volume)
    target = folder / f"{case.name}{default_suffix(volume)}"
    predicted = volume.with_array(segmenter.card.labels.to_values(segmenter.indices(scan)))
    write_volume(predicted, target, overwrite=True)
    reference: Path | Volume = case.label
    if held.inside:
        truth = load_label(case, held.labels, volume, held.axes)
        truth[fold_of_voxels(scan.undo, held.inside.count) != held.inside.number] = IGNORE
        reference = volume.with_array(_values(truth, widened(held.labels)))
    return Pair(case.name, target, reference, case.images[0], held.axes)


def fold_of_voxels(undo: Undo, folds: int) -> NDArray[np.uint8]:
    """`(1, *spatial)`, in which fold each voxel of a single scan is held out; `folds` where it was cut away."""
    found = np.ascontiguousarray(undo.orientation.undo(np.full((1, *undo.oriented), folds, dtype=np.uint8)))
    for number in range(folds):
        held = held_out_mask(undo.shape, Fold(number, folds))
        inside = restore_labels(np.stack([held, ~held]).astype(np.float32), undo, outside=1) == 0
        # Halfway between two parts a voxel could belong to both.
        found[inside & (found == folds)] = number
    return found


def widened(labels: LabelTable) -> LabelTable:
    """A table with a value for voxels outside the held-out part; instance tables become plain ones of two classes."""
    ignore = labels.ignore
    if ignore is None:
        ignore = next(value for value in range(len(labels.values) + 1) if value not in labels.values)
    return replace(labels, ignore=ignore, kind="classes")


def _values(indices: NDArray[np.uint8], labels: LabelTable) -> NDArray[np.int64]:
    assert labels.ignore is not None
    known = np.where(indices == IGNORE, 0, indices)
    return np.where(indices == IGNORE, labels.ignore, labels.to_values(known).astype(np.int64))


def epoch_records(path: Path) -> list[EpochRecord]:
    """The training's history as `metrics.csv` has it."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        EpochRecord(
            epoch=int(row["epoch"]),
            loss=float(row["loss"] or "nan"),
            learning_rate=float(row["rate"] or "nan"),
            dice={key[5:]: float(value) for key, value in row.items() if key.startswith("dice:") and value},
        )
        for row in rows
    ]
