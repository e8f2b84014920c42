"""Networks of MONAI, built from our settings. Names are looked up here alone, so no file can bring its own.

MONAI's defaults are stated where its networks differ from ours; what its transformers need besides (einops) is small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from medunet.errors import ConfigError, MissingExtra
from medunet.networks.external.settings import (
    GROUPS,
    AttentionUNetSettings,
    DynUNetSettings,
    ExternalSettings,
    FlexibleUNetSettings,
    ResidualUNetSettings,
    SegResNetSettings,
    SwinUNETRSettings,
    UNetPlusPlusSettings,
    UNETRSettings,
)


def build_monai(settings: ExternalSettings, pretrained: bool = False) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator.

    Args:
        pretrained: whether to load what `encoder_weights` names.

    Raises:
        MissingExtra: a package that it needs is not installed.
        ConfigError: pretrained weights cannot be had.
    """
    if pretrained and isinstance(settings, FlexibleUNetSettings) and settings.pretrained:
        return _flexible_unet(settings, pretrained=True)
    return _BUILDERS[type(settings)](settings)


def _unetplusplus(settings: UNetPlusPlusSettings) -> nn.Module:
    from monai.networks.nets import BasicUNetPlusPlus

    network = BasicUNetPlusPlus(
        spatial_dims=settings.dimensions,
        in_channels=settings.in_channels,
        out_channels=settings.classes,
        features=(*settings.channels, settings.channels[0]),
        deep_supervision=settings.deep_supervision,
        norm=_norm(settings.norm),
        dropout=settings.dropout,
    )
    if not settings.deep_supervision:
        # Computed, but never judged; without a gradient, several processes would wait for theirs.
        for name in ("final_conv_0_1", "final_conv_0_2", "final_conv_0_3"):
            network.get_submodule(name).requires_grad_(False)
    return network


def _attention_unet(settings: AttentionUNetSettings) -> nn.Module:
    from monai.networks.nets import AttentionUnet

    return AttentionUnet(
        spatial_dims=settings.dimensions,
        in_channels=settings.in_channels,
        out_channels=settings.classes,
        channels=settings.channels,
        strides=(2,) * (len(settings.channels) - 1),
        dropout=settings.dropout,
    )


def _residual_unet(settings: ResidualUNetSettings) -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=settings.dimensions,
        in_channels=settings.in_channels,
        out_channels=settings.classes,
        channels=settings.channels,
        strides=(2,) * (len(settings.channels) - 1),
        num_res_units=settings.residual_units,
        norm=settings.norm,
        dropout=settings.dropout,
    )


def _segresnet(settings: SegResNetSettings) -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(
        spatial_dims=settings.dimensions,
        init_filters=settings.features,
        in_channels=settings.in_channels,
        out_channels=settings.classes,
        dropout_prob=settings.dropout or None,
        norm=_norm(settings.norm),
        blocks_down=settings.blocks,
        blocks_up=(1,) * (len(settings.blocks) - 1),
    )


def _dynunet(settings: DynUNetSettings) -> nn.Module:
    from monai.networks.nets import DynUNet

    strides = settings.level_strides
    return DynUNet(
        spatial_dims=settings.dimensions,
        in_channels=settings.in_channels,
        out_channels=settings.classes,
        kernel_size=settings.level_kernels,
        strides=((1,) * settings.dimensions, *strides),
        upsample_kernel_size=strides,
        filters=settings.channels,
        dropout=settings.dropout or None,
        norm_name=_norm(settings.norm),
        deep_supervision=settings.deep_supervision,
        deep_supr_num=max(1, len(settings.channels) - 3),
        res_block=settings.residual,
    )


def _unetr(settings: UNETRSettings) -> nn.Module:
    require_einops(settings)
    from monai.networks.nets import UNETR

    if settings.image_size is None:
        raise ConfigError("image_size: a UNETR is made for one size of images; none was given")
    return UNETR(
        in_channels=settings.in_channels,
        out_channels=settings.classes,
        img_size=settings.image_size,
        feature_size=settings.features,
        hidden_size=settings.hidden,
        mlp_dim=settings.mlp,
        num_heads=settings.heads,
        norm_name=_norm(settings.norm),
        dropout_rate=settings.dropout,
        spatial_dims=settings.dimensions,
    )


def _swin_unetr(settings: SwinUNETRSettings) -> nn.Module:
    require_einops(settings)
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(
        in_channels=settings.in_channels,
        out_channels=settings.classes,
        depths=settings.depths,
        num_heads=settings.heads,
        window_size=settings.window,
        feature_size=settings.features,
        norm_name=settings.norm,
        drop_rate=settings.dropout,
        spatial_dims=settings.dimensions,
    )


def _flexible_unet(settings: FlexibleUNetSettings, pretrained: bool = False) -> nn.Module:
    from monai.networks.nets import FlexibleUNet

    try:
        return FlexibleUNet(
            in_channels=settings.in_channels,
            out_channels=settings.classes,
            backbone=settings.encoder,
            pretrained=pretrained,
            decoder_channels=tuple(reversed(settings.channels)),
            spatial_dims=settings.dimensions,
            dropout=settings.dropout,
        )
    except Exception as error:
        if not pretrained:
            raise
        raise no_weights(settings.encoder, settings.encoder_weights, error) from error


_BUILDERS: dict[type[ExternalSettings], Callable[[Any], nn.Module]] = {
    UNetPlusPlusSettings: _unetplusplus,
    AttentionUNetSettings: _attention_unet,
    ResidualUNetSettings: _residual_unet,
    SegResNetSettings: _segresnet,
    DynUNetSettings: _dynunet,
    UNETRSettings: _unetr,
    SwinUNETRSettings: _swin_unetr,
    FlexibleUNetSettings: _flexible_unet,
}


def no_weights(encoder: str, weights: str | None, error: Exception) -> ConfigError:
    """What to say when pretrained weights cannot be had: a library meets the network with errors of many kinds."""
    reason = (str(error).strip().splitlines() or [""])[0][:120]
    return ConfigError(
        f"network.encoder_weights: the {weights} weights of {encoder} cannot be loaded "
        f"({type(error).__name__}: {reason})\n"
        "their library downloads them when a training starts, and keeps them for the next one; connect to the "
        "internet once, or set network.encoder_weights to null"
    )


def _norm(name: str) -> tuple[str, dict[str, Any]]:
    return (name, {"num_groups": GROUPS}) if name == "group" else (name, {"affine": True})


def require_einops(settings: ExternalSettings) -> None:
    """Refuse MONAI's transformers where the package that they import is missing.

    Raises:
        MissingExtra: as said.
    """
    try:
        import einops  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"{settings.architecture} needs einops; pip install 'medunet[transformers]'") from error
