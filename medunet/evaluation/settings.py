"""Settings and result of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from medunet.datasets.labels import LabelTable
from medunet.errors import ConfigError
from medunet.evaluation.pairs import Pair
from medunet.evaluation.scorecard import Scorecard
from medunet.metrics.case import CaseScores
from medunet.metrics.summary import Summary

Track = Callable[[Sequence["Pair"]], Iterable["Pair"]]
"""Wraps the pairs while they are scored, such as `tqdm.tqdm` for a progress bar."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of an evaluation.

    Attributes:
        labels: the meaning of the values; None takes a `dataset.json` beside the references or, without one, the values
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
