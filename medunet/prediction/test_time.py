"""Test-time augmentation: which flips and rotations of a scan are averaged."""

from __future__ import annotations

from collections.abc import Sequence

from medunet.errors import ConfigError
from medunet.inference.symmetries import Symmetry, mirrored, symmetries
from medunet.model import Model, ModelCard
from medunet.networks.settings import UNetSettings
from medunet.prediction.planning import PredictSettings


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
