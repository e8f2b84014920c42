"""What a model's answers say of objects: which classes rise how high, and what is too low or too small to be one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medunet.data.instances import InstanceSettings
from medunet.data.labels import LabelTable
from medunet.errors import ConfigError
from medunet.inference.instances import ObjectRule
from medunet.model import Model

CORE_DEPTH = 0.25
"""Of the mean probability of object and cores: a lower ridge between two cores is one object's own unevenness.

Measured on held-out nuclei (DSB 2018): AP50 0.79 with each core an object, 0.79, 0.82 and 0.82 with 0.1, 0.2 and 0.3
(18, 23, 8 and 2 objects split, 30, 27, 31 and 34 merged); on astrocytes 0.69, 0.73, 0.77, 0.77.
"""


@dataclass(frozen=True)
class Relief:
    """How objects rise from the background in what a model answers.

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


def relief_of(models: Sequence[Model], rule: ObjectRule) -> Relief:
    """How the models' objects are found.

    Raises:
        ConfigError: models of several kinds of objects, or that learned objects in different ways; or a rule that is
            not for them.
    """
    relief = _relief(models)
    if relief.weights is not None and rule.split is not None:
        raise ConfigError(
            f"--split {rule.split:g}: this model learned where objects end (instances.target: "
            f"{_target(models[0].card.instances)}), and they are told apart by that; leave --split out"
        )
    return relief


def _relief(models: Sequence[Model]) -> Relief:
    relief = _relief_of_first(models)
    learned = [model.card.instances.min_size for model in models if model.card.instances]
    return replace(relief, min_size=min(learned, default=0.0))


def _relief_of_first(models: Sequence[Model]) -> Relief:
    first = models[0].card
    for other in models[1:]:
        if _target(other.card.instances) != _target(first.instances):
            raise ConfigError(
                f"{other.path} and {models[0].path} learned objects in different ways "
                f"({_target(other.card.instances)} and {_target(first.instances)}); --instances needs models of one way"
            )
    if first.instances is not None:
        return _relief_of_objects(first.instances, first.labels)
    if len(first.labels.scored) != 1:
        raise ConfigError(
            f"--instances needs a model of one kind of object; this one learned {len(first.labels.scored)}: "
            f"{', '.join(first.labels.scored)}\nleave --instances out, or train on label files with object ids "
            '("label_kind": "instances" in dataset.json)'
        )
    (indices,) = first.labels.scored.values()
    return Relief(tuple(int(index in indices) for index in range(first.labels.classes)))


def _target(instances: InstanceSettings | None) -> str:
    return instances.target if instances else "classes"


def _relief_of_objects(instances: InstanceSettings, labels: LabelTable) -> Relief:
    if instances.target == "border":
        return Relief((0, 2, 1), (0.0, 0.0, 1.0))
    if instances.target == "cores":
        # However small an object is, its deepest voxels are its core; rims alone are specks that nobody drew.
        weights = (-1.0 / labels.outputs,) * labels.outputs
        return Relief(tuple(range(labels.classes)), weights, needed=2, depth=CORE_DEPTH)
    return Relief((0, 1), None, int(instances.target == "separated"))
