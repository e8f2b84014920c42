"""Validation: held-out scans predicted whole, quickly during training and in full at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import IGNORE
from medunet.metrics.overlap import Counts, count_labels
from medunet.model import Model
from medunet.patches.dataset import PreparedCase
from medunet.prediction.planning import PredictSettings
from medunet.prediction.scan import prepared_scan
from medunet.prediction.segmenter import Segmenter
from medunet.report.planes import Overlay
from medunet.report.raster import outlined
from medunet.transforms.preprocess import PreprocessSettings

QUICK = 2.0
"""Seconds up to which a case is measured twice."""
WORST_CASES = 4
"""Number of cases that each validation shows."""


@dataclass(frozen=True)
class Validation:
    """Scores of a validation during training, on the network's grid.

    Attributes:
        dice, iou: by label, the mean over the cases that hold it in reference or prediction; labels that no case
            holds are left out.
        spread: by label, the Dice of each case that holds it; under `all`, the mean of each case over its labels.
        pictures: `(rows, columns, 3)` uint8, the worst cases with the contours of truth and prediction, worst first.
    """

    dice: dict[str, float]
    iou: dict[str, float]
    spread: dict[str, list[float]]
    pictures: list[NDArray[np.uint8]]

    @property
    def mean_dice(self) -> float:
        return _mean(list(self.dice.values()))

    @property
    def mean_iou(self) -> float:
        return _mean(list(self.iou.values()))


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(values: Sequence[float]) -> float:
    known = _known(values)
    return math.fsum(known) / len(known) if known else math.nan


def validate(
    model: Model, cases: Sequence[PreparedCase], precision: Literal["auto", "fp32", "bf16"] = "auto"
) -> Validation:
    """Predict preprocessed cases whole and count; no distances, no files."""
    table = model.card.labels
    scored = table.scored
    counted: list[dict[str, Counts]] = []
    worst: list[_Seen] = []
    segmenter = Segmenter([model], PredictSettings(precision=precision))
    for case in cases:
        prediction = segmenter.indices(prepared_scan(np.asarray(case.image), 1))[0]
        counted.append(count_labels(prediction, case.label[0], scored, IGNORE))
        seen = _Seen(case, prediction, _mean([counts.dice for counts in counted[-1].values()]))
        worst = sorted([*worst, seen], key=lambda one: one.rank)[:WORST_CASES]
    spread = {name: _known([counts[name].dice for counts in counted]) for name in scored}
    every = _known([_mean([c.dice for c in counts.values()]) for counts in counted])
    return Validation(
        dice=_by_label(counted, "dice"),
        iou=_by_label(counted, "iou"),
        spread={**{name: values for name, values in spread.items() if values}, **({"all": every} if every else {})},
        pictures=[_picture(one, scored, model.card.preprocess) for one in worst],
    )


@dataclass(frozen=True)
class _Seen:
    """A case with its prediction `(*spatial)` and its mean Dice, NaN without any label."""

    case: PreparedCase
    prediction: NDArray[np.uint8]
    dice: float

    @property
    def rank(self) -> float:
        return math.inf if math.isnan(self.dice) else self.dice


def _by_label(counted: Sequence[dict[str, Counts]], measure: str) -> dict[str, float]:
    means = {name: _mean([getattr(counts[name], measure) for counts in counted]) for name in counted[0]}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def _picture(seen: _Seen, names: dict[str, tuple[int, ...]], how: PreprocessSettings) -> NDArray[np.uint8]:
    label = np.asarray(seen.case.label[0])
    overlay = Overlay(
        names, how.spacing or (1.0,) * label.ndim, np.asarray(seen.case.image[0]), label, seen.prediction,
        radiological=how.orientation == "RAS" and how.unit == "mm" and how.spacing is not None and label.ndim == 3,
    )  # fmt: skip
    score = "no label" if math.isnan(seen.dice) else f"Dice {seen.dice:.3f}"
    return outlined(overlay, f"{seen.case.name}   {score}   solid: reference, dashed: prediction", ignore=IGNORE)
