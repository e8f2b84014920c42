"""One network from its settings, whichever architecture they name."""

from __future__ import annotations

import difflib
from typing import get_args

import torch

from medunet.errors import ConfigError
from medunet.networks.external.adapter import AdaptedNetwork
from medunet.networks.external.settings import (
    AttentionUNetSettings,
    DynUNetSettings,
    ExternalSettings,
    FlexibleUNetSettings,
    ResidualUNetSettings,
    SegResNetSettings,
    SmpArchitecture,
    SmpSettings,
    SwinUNETRSettings,
    UNetPlusPlusSettings,
    UNETRSettings,
)
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet

NetworkSettings = (
    UNetSettings
    | UNetPlusPlusSettings
    | AttentionUNetSettings
    | ResidualUNetSettings
    | SegResNetSettings
    | DynUNetSettings
    | UNETRSettings
    | SwinUNETRSettings
    | FlexibleUNetSettings
    | SmpSettings
)
"""The settings of any network that can be built."""

_KINDS: tuple[type[UNetSettings | ExternalSettings], ...] = get_args(NetworkSettings)
ARCHITECTURES: dict[str, type[UNetSettings | ExternalSettings]] = {
    name: kind
    for kind in _KINDS
    for name in (get_args(SmpArchitecture) if kind is SmpSettings else (str(kind.architecture),))
}
"""The settings of each architecture, by the name that a config says."""


def settings_kind(architecture: object) -> type[UNetSettings | ExternalSettings]:
    """The class of settings of an architecture.

    Raises:
        ConfigError: there is none of this name.
    """
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(str(architecture), ARCHITECTURES, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"network.architecture: {architecture} is unknown\n{advice}known are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture]


def require_library(settings: NetworkSettings) -> None:
    """Refuse an architecture whose packages are missing, before any work is done.

    Raises:
        MissingExtra: naming what to install.
    """
    if isinstance(settings, SmpSettings):
        from medunet.networks.external.smp import require_smp

        require_smp()
    elif isinstance(settings, (UNETRSettings, SwinUNETRSettings)):
        from medunet.networks.external.monai import require_einops

        require_einops(settings)


def build_network(settings: NetworkSettings, seed: int = 0, pretrained: bool = False) -> UNet | AdaptedNetwork:
    """A network in training mode, on the CPU.

    Args:
        settings: of any architecture.
        seed: of the initial weights, which depend on the settings and this number alone; no global generator moves.
        pretrained: whether to load the weights that `encoder_weights` names; without, or where it names none, no
            network connection is made.

    Raises:
        MissingExtra: the architecture's library is not installed.
        ConfigError: pretrained weights cannot be had.
    """
    if isinstance(settings, UNetSettings):
        return UNet(settings, seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if isinstance(settings, SmpSettings):
            from medunet.networks.external.smp import build_smp

            return AdaptedNetwork(build_smp(settings, pretrained), settings)
        from medunet.networks.external.monai import build_monai

        return AdaptedNetwork(build_monai(settings, pretrained), settings)
