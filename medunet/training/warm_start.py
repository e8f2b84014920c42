"""Warm start (`--init MODEL`): a network starts with a trained model's weights, as far as they fit.

Weights fit by name and shape. Two layers know more: the first convolution has a part for each input channel, the heads
have one for each label. There parts of the same name are taken, and new ones start anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from medunet.config import Config
from medunet.datasets.labels import LabelTable
from medunet.errors import ModelError
from medunet.model import Model, ModelCard
from medunet.networks.external.adapter import AdaptedNetwork
from medunet.networks.unet import UNet

_NOTED = ("dimensions", "channels", "kernels", "norm")
"""Settings of the network that bear a note."""
_NAMED = 6
"""Most names in a line."""


@dataclass(frozen=True)
class WarmStart:
    """The part of a network that starts with a model's weights, and words for the rest.

    Attributes:
        weights: numbers that were taken, out of `total`.
        left: the parts that start anew.
    """

    weights: int
    total: int
    left: list[str]

    def lines(self, model: ModelCard) -> list[str]:
        """For the terminal."""
        share = 100 * self.weights / max(self.total, 1)
        lines = [f"starting with the weights of {model.name}: {share:.4g} % of the network's"]
        return lines + [f"  not taken, starts anew: {what}" for what in self.left]


@torch.no_grad()
def take_weights(
    network: UNet | AdaptedNetwork, model: Model, channels: Sequence[str], labels: LabelTable
) -> WarmStart:
    """Copy a model's weights into a network where they fit; the rest of the network keeps its own.

    Args:
        channels: names of the network's input channels; empty ones or none mean that nothing was declared.
        labels: the meaning of the network's outputs.

    Raises:
        ModelError: no convolution of the encoder fits.
    """
    match = _Match(network, model, channels, labels)
    match.require_same_channels()
    own, source = _own_tensors(network), model.network.state_dict()
    copied = {name: match.copy(name, tensor, source.get(name)) for name, tensor in own.items()}
    # Weights of the decoder alone are of no use behind another encoder.
    if not any(copied[name] and tensor.ndim > 2 and match.is_encoder(name) for name, tensor in own.items()):
        raise ModelError(
            f"{match.source}: none of its encoder's convolutions fits the network "
            f"({_described(model.card.network)}, against {_described(network.settings)})\n"
            "give the config the model's network settings, or train without --init"
        )
    return WarmStart(sum(copied.values()), sum(tensor.numel() for tensor in own.values()), match.left())


def _own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics by name, each once: some networks hold layers under two names."""
    names = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    return {name: tensor for name, tensor in network.state_dict().items() if name in names}


class _Match:
    """The correspondence of a network and a model, by the names of input channels and outputs.

    Attributes:
        source: the model's file or name.
    """

    def __init__(
        self, network: UNet | AdaptedNetwork, model: Model, channels: Sequence[str], labels: LabelTable
    ) -> None:
        card, self._network, self._channels, self._labels = model.card, network, channels, labels
        self.source, self._card = model.path or card.name, card
        counts = network.settings.in_channels, card.network.in_channels
        self._inputs = _input_places(_known(channels, counts[0]), _known(card.channels, counts[1]))
        self._outputs = _output_places(labels, card.labels)
        self._heads = {name for name, layer in network.named_modules() if any(layer is head for head in network.heads)}
        self._misfits: dict[str, str] = {}

    def require_same_channels(self) -> None:
        """Refuse other channels for a network whose first layer is not known."""
        inputs = self._inputs
        if isinstance(self._network, AdaptedNetwork) and inputs is not None and inputs != list(range(len(inputs))):
            raise ModelError(
                f"{self.source}: has the channels {', '.join(self._card.channels)}, "
                f"the data {', '.join(self._channels)}\n"
                f"the weights of {self._network.settings.architecture} can start from those of the same channels in "
                "the same order alone"
            )

    def copy(self, name: str, tensor: Tensor, found: Tensor | None) -> int:
        """Copy the fitting part of a weight or statistic of the model; returns how many numbers were copied."""
        layer = name.rpartition(".")[0]
        if layer in self._heads:
            return _copy_parts(tensor, found, self._outputs, axis=0)
        if self._is_first(name, tensor):
            return _copy_parts(tensor, found, self._inputs, axis=1)
        if found is not None and found.shape == tensor.shape:
            tensor.copy_(found)
            return tensor.numel()
        there = "not in the model" if found is None else f"{tuple(tensor.shape)} here, {tuple(found.shape)} there"
        self._misfits.setdefault(layer, there)
        return 0

    def is_encoder(self, name: str) -> bool:
        """True for the encoder's weights; of an external network for all but the heads, as its parts are not known."""
        return (
            name.startswith("encoder.")
            if isinstance(self._network, UNet)
            else name.rpartition(".")[0] not in self._heads
        )

    def _is_first(self, name: str, tensor: Tensor) -> bool:
        """True for a weight that has a part for each input channel."""
        first = ("encoder.0.convolutions.0.convolution.weight", "encoder.0.shortcut.weight")
        network = self._network
        return isinstance(network, UNet) and name in first and tensor.shape[1] == network.settings.in_channels

    def left(self) -> list[str]:
        """The parts that start anew, in words."""
        lines, inputs = [], self._inputs
        here, there = self._network.settings.in_channels, self._card.network.in_channels
        new = [name for name, place in zip(_output_names(self._labels), self._outputs, strict=True) if place is None]
        if new:
            lines.append(f"outputs of labels that the model does not have: {_listed(new)}")
        if inputs is not None and None in inputs:
            strange = [name for name, place in zip(self._channels, inputs, strict=True) if place is None]
            lines.append(f"the first convolution's part for channels that the model does not have: {_listed(strange)}")
        if inputs is None and here != there:
            many = f"{here} channel{'s' if here > 1 else ''} here, {there} in the model"
            lines.append(f"the first convolution: {many}, and no names that tell which is which")
        if self._misfits:
            lines.append(_listed([f"{name} ({why})" for name, why in self._misfits.items()]))
        return lines


def _described(settings: Any) -> str:
    widths = getattr(settings, "channels", getattr(settings, "features", getattr(settings, "encoder", "")))
    name = "" if settings.architecture == "unet" else f"{settings.architecture}, "
    return f"{name}channels {widths}, {settings.dimensions}-D"


def _known(names: Sequence[str], count: int) -> tuple[str, ...] | None:
    """Names that tell all channels apart, or None."""
    told = tuple(name.strip().lower() for name in names)
    return told if len(told) == count and all(told) and len(set(told)) == count else None


def _input_places(own: tuple[str, ...] | None, other: tuple[str, ...] | None) -> list[int | None] | None:
    """For each of the network's channels its place in the model, if any; None where names do not tell."""
    if own is not None and other is not None and set(own) & set(other):
        return [other.index(name) if name in other else None for name in own]
    return None


def _output_places(own: LabelTable, other: LabelTable) -> list[int | None]:
    """For each of the network's outputs the place of the same name in the model, if any.

    Outputs that exclude each other and those of regions have different meanings, so none matches one of the others.
    """
    if bool(own.regions) != bool(other.regions):
        return [None] * own.outputs
    places = {name: place for place, name in enumerate(_output_names(other))}
    return [places.get(name) for name in _output_names(own)]


def _output_names(labels: LabelTable) -> list[str]:
    names = [region.name for region in labels.regions] or list(labels.names)
    return [name.strip().lower() for name in names]


def _copy_parts(tensor: Tensor, found: Tensor | None, places: list[int | None] | None, axis: int) -> int:
    """Copy the parts along an axis that have a place in the model; returns how many numbers were copied.

    Args:
        places: None copies all of them in their order, if they are as many in the model.
    """
    if found is None or found.ndim != tensor.ndim:
        return 0
    if places is None:
        places = list(range(tensor.shape[axis])) if found.shape[axis] == tensor.shape[axis] else []
    rest = [n for a, n in enumerate(tensor.shape) if a != axis]
    if rest != [n for a, n in enumerate(found.shape) if a != axis]:
        return 0
    pairs = [(here, there) for here, there in enumerate(places) if there is not None]
    for here, there in pairs:
        tensor.select(axis, here).copy_(found.select(axis, there))
    return len(pairs) * math.prod(rest)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def planned_like(config: Config, card: ModelCard) -> tuple[Config, dict[str, str]]:
    """A planned config with a model's network and patch, so that its weights fit; notes by dotted key say so.

    Batch, iterations and all else stay as planned.
    """
    network = card.network.settled(config.network.in_channels, config.network.classes, card.patch)
    patches = replace(config.patches, size=card.patch, slice_axis=card.slice_axis)
    note = f"as in {card.name}, the model that the weights come from"
    had = [f"network.{field.name}" for field in fields(network) if field.name in _NOTED]
    keys = (*had, "patches.size")
    return replace(config, network=network, patches=patches), dict.fromkeys(keys, note)
