"""Elevation of objects: which classes rise how high, and what is too low or too small to be an object."""

from __future__ import annotations

from dataclasses import dataclass

from medunet.datasets.labels import LabelTable
from medunet.instances.settings import InstanceSettings

CORE_DEPTH = 0.25
"""Of the mean probability of object and cores: a lower ridge between two cores is one object's own unevenness.

Measured on held-out nuclei (DSB 2018): AP50 0.79 with each core an object, 0.79, 0.82 and 0.82 with 0.1, 0.2 and 0.3
(18, 23, 8 and 2 objects split, 30, 27, 31 and 34 merged); on astrocytes 0.69, 0.73, 0.77, 0.77.
"""


@dataclass(frozen=True)
class ElevationRule:
    """The elevation map of objects: how each class of a model's answer counts in it.

    Attributes:
        levels: of each class, 0 outside of objects, and higher the deeper inside.
        weights: of each class (or region): its share in the elevation that keeps touching objects apart; None where
            nothing of the kind was learned.
        reach: how many voxels of the network's grid training took from objects where they touch.
        needed: the level that each object reaches; what rises less high is none.
        depth: how far the elevation rises between two objects at least; None cuts by levels alone.
        min_size: voxels of the network's grid below which it is none either, unless the scan's border cuts it.
    """

    levels: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    reach: int = 0
    needed: int = 1
    depth: float | None = None
    min_size: float = 0.0


def elevation_rule(instances: InstanceSettings, labels: LabelTable) -> ElevationRule:
    """The rule for what was learned of objects."""
    if instances.target == "border":
        return ElevationRule((0, 2, 1), (0.0, 0.0, 1.0))
    if instances.target == "cores":
        # However small an object is, its deepest voxels are its core; rims alone are specks that nobody drew.
        weights = (-1.0 / labels.outputs,) * labels.outputs
        return ElevationRule(tuple(range(labels.classes)), weights, needed=2, depth=CORE_DEPTH)
    return ElevationRule((0, 1), None, int(instances.target == "separated"))


def elevation_rule_of_class(labels: LabelTable) -> ElevationRule:
    """The rule for connected parts of the only class or region that was learned."""
    (indices,) = labels.scored.values()
    return ElevationRule(tuple(int(index in indices) for index in range(labels.classes)))
