"""Members of an ensemble: what they must share, the flips and rotations that are averaged, and their object rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medunet.errors import ConfigError
from medunet.inference.symmetries import Symmetry, mirrored, symmetries
from medunet.instances.settings import ElevationRule, InstanceSettings, elevation_rule, elevation_rule_of_class
from medunet.instances.watershed import ObjectRule
from medunet.model import Model, ModelCard
from medunet.networks.settings import UNetSettings
from medunet.prediction.planning import PredictSettings


def require_alike(models: Sequence[Model]) -> None:
    """Refuse no model, and models that cannot be averaged, by a ConfigError."""
    if not models:
        raise ConfigError("no model was given")
    first = _shared(models[0].card)
    for model in models[1:]:
        own = _shared(model.card)
        if model.card.network.exact:
            del own["patch"]
        for what, its in own.items():
            if its != first[what]:
                raise ConfigError(f"{model.path} and {models[0].path} differ in their {what}; they cannot be averaged")


def _shared(card: ModelCard) -> dict[str, Any]:
    """The facts that models must share to be averaged, in the order of comparison."""
    return {
        "labels": card.labels,
        "channels": card.network.in_channels,
        "dimensions": card.network.dimensions,
        "padding": card.network.padded,
        "target spacing": card.preprocess.spacing,
        "patch": card.patch,
    }


def symmetries_of(models: Sequence[Model], settings: PredictSettings) -> list[Symmetry]:
    """The flips and rotations that are asked for; the identity comes first.

    Raises:
        ConfigError: rotations of what cannot be turned by right angles.
    """
    card = models[0].card
    if not settings.rotations:
        return mirrored(card.mirror_axes if settings.tta else ())
    plane = _plane(card)
    for model in models:
        _require_square(model, plane)
    beside = [axis for axis in card.mirror_axes if axis not in plane] if settings.tta else []
    return symmetries(plane, mirror=any(axis in plane for axis in card.mirror_axes), beside=beside)


def _plane(card: ModelCard) -> tuple[int, int]:
    """The two axes of the network's grid in which slices lie: not the coarsest, or that across the slices."""
    if card.network.dimensions == 2:
        return 0, 1
    spacing = card.preprocess.spacing
    across = card.slice_axis
    if spacing is not None and max(spacing) > 1.01 * min(spacing):
        across = spacing.index(max(spacing))
    first, second = (axis for axis in range(3) if axis != across)
    return first, second


def _require_square(model: Model, plane: tuple[int, int]) -> None:
    card = model.card
    spacing, network = card.preprocess.spacing, card.network
    first, second = plane
    # An external network is known by the windows that it was trained on alone.
    sizes = (*network.shape.kernels, *network.shape.strides) if isinstance(network, UNetSettings) else (card.patch,)
    if any(size[first] != size[second] for size in sizes):
        what = "kernels or strides" if isinstance(network, UNetSettings) else "windows"
        raise ConfigError(
            f"{model.path}: rotations exchange the axes {first} and {second}, but the network has other {what} along "
            "one than along the other\nuse --tta, which mirrors"
        )
    if spacing is None:
        return
    flat = spacing
    if len(spacing) > card.network.dimensions:
        flat = tuple(length for axis, length in enumerate(spacing) if axis != card.slice_axis)
    if abs(flat[first] - flat[second]) > 0.01 * flat[first]:
        raise ConfigError(
            f"{model.path}: rotations exchange the axes {first} and {second}, but the model's voxels are "
            f"{flat[first]:g} by {flat[second]:g} {card.preprocess.unit}\nuse --tta, which mirrors"
        )


def elevation_rule_of(models: Sequence[Model], rule: ObjectRule) -> ElevationRule:
    """The rule by which the models' objects are found.

    Raises:
        ConfigError: models of several kinds of objects, or that learned objects in different ways; or a rule that is
            not for them.
    """
    found = _rule_of_first(models)
    if found.weights is not None and rule.split is not None:
        raise ConfigError(
            f"--split {rule.split:g}: this model learned where objects end (instances.target: "
            f"{_target(models[0].card.instances)}), and they are told apart by that; leave --split out"
        )
    learned = [model.card.instances.min_size for model in models if model.card.instances]
    return replace(found, min_size=min(learned, default=0.0))


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
