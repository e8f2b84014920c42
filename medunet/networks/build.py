"""One network from its settings, whichever architecture they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.networks.external.adapter import AdaptedNetwork, build_external, import_library, require_buildable
from medunet.networks.external.named import (
    REGISTERED,
    MonaiSettings,
    NamedSettings,
    RegisteredNetwork,
    RegisteredSettings,
)
from medunet.networks.external.settings import EXTERNAL, ExternalSettings
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from medunet.registry import find_name

NetworkSettings = UNetSettings | ExternalSettings
"""The settings of any network that can be built."""

ARCHITECTURES: dict[str, type[NetworkSettings]] = {
    "unet": UNetSettings,
    **{name: kind for kind in EXTERNAL for name in kind.library_classes},
    **dict.fromkeys(MonaiSettings.library_classes, MonaiSettings),
}
"""The settings of each architecture, by the name that a config says."""


def settings_kind(architecture: object) -> type[NetworkSettings]:
    """The class of settings of an architecture.

    Raises:
        ConfigError: no architecture has this name.
    """
    if REGISTERED.get(architecture) is not None:
        return RegisteredSettings
    return ARCHITECTURES[find_name(("network", "architecture"), architecture, ARCHITECTURES, "", REGISTERED.call)]


def settings_kinds() -> tuple[type[NetworkSettings], ...]:
    """All classes of settings, each once."""
    return (*dict.fromkeys(ARCHITECTURES.values()), RegisteredSettings)


def register_network(
    name: str, settings: Callable[..., Any], build: Callable[..., nn.Module], multiple: int = 1
) -> None:
    """Let `network.architecture` name a network of your own, in this process.

    A model that was trained with it keeps the name and the arguments, never the code: a program that loads the model
    must register the name first.

    Args:
        name: as configs say it.
        settings: takes what `network.arguments` says, as keywords, and gives the settings of the network, such as a
            frozen dataclass that checks itself.
        build: ``build(settings, dimensions, in_channels, classes)`` gives the network, a `torch.nn.Module` that takes
            ``(batch, in_channels, *spatial)`` and gives logits ``(batch, classes, *spatial)`` of the same size.
        multiple: sizes that the network takes are multiples of it along each axis; others are padded.

    Raises:
        ConfigError: the name exists, or `multiple` is below 1.
    """
    if multiple < 1:
        raise ConfigError(f"medunet.register_network: multiple must be at least 1, found {multiple}")
    REGISTERED.add(name, RegisteredNetwork(settings, build, multiple), ARCHITECTURES)


def require_library(settings: NetworkSettings) -> None:
    """Refuse an architecture whose packages are missing, before any work is done.

    Raises:
        MissingExtra: naming what to install.
        LocatedError: the network's class refuses an argument.
    """
    if isinstance(settings, ExternalSettings):
        import_library(settings)
    if isinstance(settings, NamedSettings):
        require_buildable(settings)


def build_network(settings: NetworkSettings, seed: int = 0, pretrained: bool = False) -> UNet | AdaptedNetwork:
    """A network in training mode, on the CPU.

    Args:
        settings: of any architecture.
        seed: of the initial weights, which depend on the settings and this number alone; no global generator moves.
        pretrained: load the weights that `encoder_weights` names. Otherwise, or if it names none, no network
            connection is made.

    Raises:
        MissingExtra: the architecture's library is not installed.
        ConfigError: pretrained weights cannot be had.
    """
    if isinstance(settings, UNetSettings):
        return UNet(settings, seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AdaptedNetwork(build_external(settings, pretrained), settings)
