"""Networks of segmentation-models-pytorch, which comes with the extra `backbones`."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from medunet.errors import MissingExtra
from medunet.networks.external.monai import no_weights
from medunet.networks.external.settings import SmpSettings


def require_smp() -> Any:
    """The module.

    Raises:
        MissingExtra: it is not installed, or installed beside a torchvision that does not belong to this torch.
    """
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


def build_smp(settings: SmpSettings, pretrained: bool = False) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator.

    Args:
        pretrained: whether to load what `encoder_weights` names.

    Raises:
        MissingExtra: see `require_smp`.
        ConfigError: pretrained weights cannot be had.
    """
    smp = require_smp()
    kinds = {
        "smp_unet": smp.Unet,
        "smp_unetplusplus": smp.UnetPlusPlus,
        "smp_linknet": smp.Linknet,
        "smp_fpn": smp.FPN,
        "smp_pspnet": smp.PSPNet,
    }
    rate = {"smp_fpn": "decoder_dropout", "smp_pspnet": "psp_dropout"}.get(settings.architecture)
    given: dict[str, Any] = {
        "encoder_name": settings.encoder,
        "encoder_weights": settings.encoder_weights if pretrained else None,
        "in_channels": settings.in_channels,
        "classes": settings.classes,
        **({rate: settings.dropout} if rate else {}),
    }
    try:
        return kinds[settings.architecture](**given)
    except Exception as error:
        if given["encoder_weights"] is None:
            raise
        raise no_weights(settings.encoder, settings.encoder_weights, error) from error
