"""Settings of instances: the training target for objects, and the elevation map that leads from answers to objects.

A network that learns only "cell or not" merges cells that touch. So label files with object ids can be turned into
label maps that keep touching objects apart; everything behind them (patches, losses, inference) sees plain classes or
regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import IGNORE, LabelTable
from medunet.datasets.regions import Region
from medunet.errors import ConfigError

Target: TypeAlias = Literal["foreground", "separated", "border", "cores"]

CORE_DEPTH = 0.25
"""Of the mean probability of object and cores: a lower ridge between two cores is one object's own unevenness.

Measured on held-out nuclei (DSB 2018): AP50 0.79 with each core an object, 0.79, 0.82 and 0.82 with 0.1, 0.2 and 0.3
(18, 23, 8 and 2 objects split, 30, 27, 31 and 34 merged); on astrocytes 0.69, 0.73, 0.77, 0.77.
"""


@dataclass(frozen=True)
class InstanceSettings:
    """Settings of training on label files with object ids.

    Attributes:
        target: `foreground` learns every object as one class. `separated` does, but voxels where objects touch are
            background (Ronneberger et al. 2015). `border` has a third class along the inside of each object's edge.
            `cores` learns, as regions inside each other, the object and those of its voxels that lie deeper than some
            shares of its largest depth.
        border: width of the class along the edge, in voxels of the network's grid.
        depths: for `cores`: the shares, ascending, of each object's largest distance to its edge.
        min_size: voxels of the network's grid below which a predicted object is taken for a speck and left out, unless
            the picture's edge cuts it or `predict --min-size` says otherwise; a plan sets half of the smallest object.

    Raises:
        ConfigError: a number is out of its range.
    """

    target: Target = "foreground"
    border: float = 2.0
    depths: tuple[float, ...] = (0.3, 0.6)
    min_size: float = 0

    def __post_init__(self) -> None:
        if not 0 < self.border < float("inf"):
            raise ConfigError(f"instances.border must be a positive number of voxels, found {self.border}")
        if not 0 <= self.min_size < float("inf"):
            raise ConfigError(f"instances.min_size must be a number of voxels, 0 or more, found {self.min_size}")
        ascending = all(a < b for a, b in zip((0.0, *self.depths), (*self.depths, 1.0), strict=True))
        if not self.depths or not ascending:
            raise ConfigError(
                f"instances.depths must be shares between 0 and 1 in ascending order, like [0.3, 0.6]; "
                f"found {list(self.depths)}"
            )

    def learned(self, labels: LabelTable) -> LabelTable:
        """The table of the label maps that are learned in place of the ids; the table itself for plain classes.

        For `border` the classes are background, the object's inside, and its edge; for `cores` class 1 is the object's
        rim, 2 what is deeper than the first share, and so on, and the regions are the object and its cores.
        """
        if labels.kind != "instances" or self.target in ("foreground", "separated"):
            return labels
        background, name = labels.names
        if self.target == "border":
            return LabelTable((background, name, f"{name}_border"), (0, 1, 2), labels.ignore, "classes")
        count = len(self.depths) + 1
        names = (name, *(f"{name}_core_{number}" for number in range(1, count)))
        regions = tuple(
            Region(region, tuple(range(number, count + 1)), number) for number, region in enumerate(names, start=1)
        )
        rings = (background, f"{name}_rim", *names[1:])
        return LabelTable(rings, tuple(range(count + 1)), labels.ignore, "classes", regions)

    def mask(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """The mask of all objects together, 1 inside, from the classes that are learned; IGNORE stays."""
        return np.where(indices == IGNORE, IGNORE, indices > 0).astype(np.uint8)


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
