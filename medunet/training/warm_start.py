"""`--init MODEL`: a network starts with a trained model's weights, as far as they fit.

Weights fit by name and shape. Two layers know more: the first convolution has a part for each input channel, the heads
have one for each label; there what bears the same name is taken, and what is new starts anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
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
"""Of the network's settings, those that bear a note."""
_NAMED = 6
"""Most names in a line."""


@dataclass
class Taken:
    """What was taken over, and words for what was not.

    Attributes:
        weights: numbers that were taken, out of `total`.
        convolutions: of the encoder, of which something was taken.
    """

    weights: int = 0
    total: int = 0
    convolutions: int = 0
    left: list[str] = field(default_factory=list)

    def lines(self, model: ModelCard) -> list[str]:
        """For the terminal."""
        share = 100 * self.weights / max(self.total, 1)
        lines = [f"starting with the weights of {model.name}: {share:.4g} % of the network's"]
        return lines + [f"  not taken, starts anew: {what}" for what in self.left]


@torch.no_grad()
def take_weights(network: UNet | AdaptedNetwork, model: Model, channels: Sequence[str], labels: LabelTable) -> Taken:
    """Copy a model's weights into a network where they fit; the rest of the network stays as it is.

    Args:
        channels: names of the network's input channels; empty ones or none mean that nothing was declared.
        labels: what the network's outputs stand for.

    Raises:
        ModelError: no convolution of the encoder fits.
    """
    taken, own, source = Taken(), _own_tensors(network), model.network.state_dict()
    card = model.card
    entries = _same_places(
        _known(channels, network.settings.in_channels), _known(card.channels, card.network.in_channels)
    )
    if isinstance(network, AdaptedNetwork) and entries not in ("by place", list(range(len(entries)))):
        raise ModelError(
            f"{model.path or card.name}: has the channels {', '.join(card.channels)}, the data {', '.join(channels)}\n"
            f"the weights of {network.settings.architecture} can start from those of the same channels in the same "
            "order alone"
        )
    outputs = _output_places(labels, card.labels)
    heads = _head_names(network)
    other: dict[str, str] = {}
    for name, tensor in own.items():
        taken.total += tensor.numel()
        found = source.get(name)
        if name.rpartition(".")[0] in heads:
            copied = _copy_parts(tensor, found, outputs, axis=0)
        elif _is_entry(name, tensor, network):
            copied = _copy_parts(tensor, found, entries, axis=1)
        elif found is not None and found.shape == tensor.shape:
            tensor.copy_(found)
            copied = tensor.numel()
        else:
            copied = 0
            other.setdefault(name.rpartition(".")[0], _why_not(tensor, found))
        taken.weights += copied
        # What the decoder alone has learned is of no use behind another encoder.
        taken.convolutions += copied > 0 and tensor.ndim > 2 and _is_encoder(name, network, heads)
    if not taken.convolutions:
        raise ModelError(
            f"{model.path or card.name}: none of its encoder's convolutions fits the network "
            f"({_described(card.network)}, against {_described(network.settings)})\n"
            "give the config the model's network settings, or train without --init"
        )
    counts = network.settings.in_channels, card.network.in_channels
    taken.left = _what_is_left(channels, labels, counts, entries, outputs, other)
    return taken


def _own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics by name, each once: some networks hold layers under two names."""
    names = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    return {name: tensor for name, tensor in network.state_dict().items() if name in names}


def _head_names(network: UNet | AdaptedNetwork) -> set[str]:
    """Layers with a part for each label."""
    return {name for name, layer in network.named_modules() if any(layer is head for head in network.heads)}


def _is_encoder(name: str, network: UNet | AdaptedNetwork, heads: set[str]) -> bool:
    """Whether a weight belongs to the encoder; external networks have no known parts but their heads."""
    return name.startswith("encoder.") if isinstance(network, UNet) else name.rpartition(".")[0] not in heads


def _described(settings: Any) -> str:
    widths = getattr(settings, "channels", getattr(settings, "features", getattr(settings, "encoder", "")))
    name = "" if settings.architecture == "unet" else f"{settings.architecture}, "
    return f"{name}channels {widths}, {settings.dimensions}-D"


def _is_entry(name: str, tensor: Tensor, network: UNet | AdaptedNetwork) -> bool:
    """Whether a weight has a part for each input channel that names tell apart."""
    first = ("encoder.0.convolutions.0.convolution.weight", "encoder.0.shortcut.weight")
    return isinstance(network, UNet) and name in first and tensor.shape[1] == network.settings.in_channels


def _known(names: Sequence[str], count: int) -> tuple[str, ...] | None:
    """Names that tell all channels apart, or None."""
    told = tuple(name.strip().lower() for name in names)
    return told if len(told) == count and all(told) and len(set(told)) == count else None


def _same_places(own: tuple[str, ...] | None, other: tuple[str, ...] | None) -> list[int | None] | str:
    """For each of the network's channels its place in the model, or None; words where names do not tell."""
    if own is not None and other is not None and set(own) & set(other):
        return [other.index(name) if name in other else None for name in own]
    return "by place"


def _output_places(own: LabelTable, other: LabelTable) -> list[int | None]:
    """For each of the network's outputs that of the same name in the model, or None.

    Outputs that exclude each other and those of regions say different things, so none of the one is one of the other.
    """
    if bool(own.regions) != bool(other.regions):
        return [None] * own.outputs
    places = {name: place for place, name in enumerate(_outputs(other))}
    return [places.get(name) for name in _outputs(own)]


def _outputs(labels: LabelTable) -> list[str]:
    names = [region.name for region in labels.regions] or list(labels.names)
    return [name.strip().lower() for name in names]


def _copy_parts(tensor: Tensor, found: Tensor | None, places: list[int | None] | str, axis: int) -> int:
    """Copy the parts along an axis that have a place in the model; returns how many numbers were copied."""
    if found is None or found.ndim != tensor.ndim:
        return 0
    if isinstance(places, str):
        places = list(range(tensor.shape[axis])) if found.shape[axis] == tensor.shape[axis] else []
    rest = [n for a, n in enumerate(tensor.shape) if a != axis]
    if rest != [n for a, n in enumerate(found.shape) if a != axis]:
        return 0
    pairs = [(here, there) for here, there in enumerate(places) if there is not None]
    for here, there in pairs:
        tensor.select(axis, here).copy_(found.select(axis, there))
    return len(pairs) * math.prod(rest)


def _why_not(tensor: Tensor, found: Tensor | None) -> str:
    return "not in the model" if found is None else f"{tuple(tensor.shape)} here, {tuple(found.shape)} there"


def _what_is_left(
    channels: Sequence[str],
    labels: LabelTable,
    counts: tuple[int, int],
    entries: list[int | None] | str,
    outputs: list[int | None],
    other: dict[str, str],
) -> list[str]:
    lines = []
    new = [name for name, place in zip(_outputs(labels), outputs, strict=True) if place is None]
    if new:
        lines.append(f"outputs of labels that the model does not have: {_listed(new)}")
    if isinstance(entries, list) and None in entries:
        strange = [name for name, place in zip(channels, entries, strict=True) if place is None]
        lines.append(f"the first convolution's part for channels that the model does not have: {_listed(strange)}")
    if isinstance(entries, str) and counts[0] != counts[1]:
        many = f"{counts[0]} channel{'s' if counts[0] > 1 else ''} here, {counts[1]} in the model"
        lines.append(f"the first convolution: {many}, and no names that tell which is which")
    if other:
        lines.append(_listed([f"{name} ({why})" for name, why in other.items()]))
    return lines


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
