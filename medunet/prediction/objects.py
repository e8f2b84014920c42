"""Objects of models: by which rule the objects of one or several models are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medunet.errors import ConfigError
from medunet.instances.elevation import ElevationRule, elevation_rule, elevation_rule_of_class
from medunet.instances.settings import InstanceSettings
from medunet.instances.watershed import ObjectRule
from medunet.model import Model


def elevation_rule_of(models: Sequence[Model], rule: ObjectRule) -> ElevationRule:
    """The rule by which the models' objects are found.

    Raises:
        ConfigError: models of several kinds of objects, or that learned objects in different ways; or a rule that is
            not for them.
    """
    elevation_rule = _smallest_kept(models)
    if elevation_rule.weights is not None and rule.split is not None:
        raise ConfigError(
            f"--split {rule.split:g}: this model learned where objects end (instances.target: "
            f"{_target(models[0].card.instances)}), and they are told apart by that; leave --split out"
        )
    return elevation_rule


def _smallest_kept(models: Sequence[Model]) -> ElevationRule:
    elevation_rule = _rule_of_first(models)
    learned = [model.card.instances.min_size for model in models if model.card.instances]
    return replace(elevation_rule, min_size=min(learned, default=0.0))


def _rule_of_first(models: Sequence[Model]) -> ElevationRule:
    first = models[0].card
    for other in models[1:]:
        if _target(other.card.instances) != _target(first.instances):
            raise ConfigError(
                f"{other.path} and {models[0].path} learned objects in different ways "
                f"({_target(other.card.instances)} and {_target(first.instances)}); --instances needs models of one way"
            )
    if first.instances is not None:
        return elevation_rule(first.instances, first.labels)
    if len(first.labels.scored) != 1:
        raise ConfigError(
            f"--instances needs a model of one kind of object; this one learned {len(first.labels.scored)}: "
            f"{', '.join(first.labels.scored)}\nleave --instances out, or train on label files with object ids "
            '("label_kind": "instances" in dataset.json)'
        )
    return elevation_rule_of_class(first.labels)


def _target(instances: InstanceSettings | None) -> str:
    return instances.target if instances else "classes"
