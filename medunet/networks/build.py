"""One network from its settings, whichever architecture they name."""

from __future__ import annotations

import difflib

import torch

from medunet.errors import ConfigError
from medunet.networks.external.adapter import AdaptedNetwork, build_external, import_library
from medunet.networks.external.settings import EXTERNAL, ExternalSettings
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet

NetworkSettings = UNetSettings | ExternalSettings
"""The settings of any network that can be built."""

ARCHITECTURES: dict[str, type[NetworkSettings]] = {
    "unet": UNetSettings,
    **{name: kind for kind in EXTERNAL for name in kind.library_classes},
}
"""The settings of each architecture, by the name that a config says."""


def settings_kind(architecture: object) -> type[NetworkSettings]:
    """The class of settings of an architecture.

    Raises:
        ConfigError: no architecture has this name.
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
    if isinstance(settings, ExternalSettings):
        import_library(settings)


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
