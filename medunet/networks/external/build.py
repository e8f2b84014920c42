"""Builder of external networks: their libraries are imported here alone, and their classes looked up by our own names.

A library's defaults are stated in the settings where its networks differ from ours.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from medunet.errors import ConfigError, MissingExtra
from medunet.networks.external.settings import (
    EncoderSettings,
    ExternalSettings,
    SmpSettings,
    SwinUNETRSettings,
    UNETRSettings,
)


def build_external(settings: ExternalSettings, pretrained: bool = False) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator.

    Args:
        settings: of the network.
        pretrained: load the encoder that `encoder_weights` names, if it names one.

    Raises:
        MissingExtra: see `import_library`.
        ConfigError: pretrained weights cannot be had.
    """
    make = getattr(import_library(settings), settings.library_classes[settings.architecture])
    if pretrained and isinstance(settings, EncoderSettings) and settings.pretrained:
        try:
            found: nn.Module = make(**settings.arguments | settings.weights_argument)
            return found
        except Exception as error:
            raise _no_weights(settings, error) from error
    network: nn.Module = make(**settings.arguments)
    if not settings.deep_supervision:
        # Computed, but no loss sees them; without a gradient, several processes would wait for theirs.
        for head in find_heads(network, settings)[1:]:
            head.requires_grad_(False)
    return network


def find_heads(network: nn.Module, settings: ExternalSettings) -> list[nn.Module]:
    """The convolutions that make the logits, finest first; a `*` in a path stands for each block of a list."""
    found: list[nn.Module] = []
    for path in settings.head_paths:
        stem, star, leaf = path.partition(".*.")
        if star:
            found += [block.get_submodule(leaf) for block in getattr(network, stem, ())]
        else:
            found.append(network.get_submodule(path))
    return found


def import_library(settings: ExternalSettings) -> Any:
    """The module that holds the network's class.

    Raises:
        MissingExtra: naming what to install; or torchvision does not belong to this torch.
    """
    if isinstance(settings, SmpSettings):
        return _import_smp()
    if isinstance(settings, (UNETRSettings, SwinUNETRSettings)):
        try:
            import einops  # noqa: F401
        except ImportError as error:
            raise MissingExtra(f"{settings.architecture} needs einops; pip install 'medunet[transformers]'") from error
    from monai.networks import nets

    return nets


def _import_smp() -> Any:
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise MissingExtra(
            "the networks smp_… need segmentation-models-pytorch; pip install 'medunet[backbones]'"
            + (f" ({error})" if importlib.util.find_spec("segmentation_models_pytorch") else "")
        ) from error
    except RuntimeError as error:
        # torchvision's compiled operators fail so beside another torch: pip finds nothing wrong with the pair.
        raise MissingExtra(
            f"segmentation-models-pytorch is installed, but cannot be loaded ({str(error).splitlines()[0]})\n"
            "torchvision must be of the same kind as torch: install both from the same index, such as "
            "--index-url https://download.pytorch.org/whl/cpu"
        ) from error
    return segmentation_models_pytorch


def _no_weights(settings: EncoderSettings, error: Exception) -> ConfigError:
    """The error of pretrained weights that cannot be had: a library raises errors of many kinds for that."""
    reason = (str(error).strip().splitlines() or [""])[0][:120]
    return ConfigError(
        f"network.encoder_weights: the {settings.encoder_weights} weights of {settings.encoder} cannot be loaded "
        f"({type(error).__name__}: {reason})\n"
        "their library downloads them when a training starts, and keeps them for the next one; connect to the "
        "internet once, or set network.encoder_weights to null"
    )
