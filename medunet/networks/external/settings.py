"""Settings of external networks: those that all of them have, and those of each.

Plain numbers and names; `external/adapter.py` imports the networks' libraries when it builds one. Each class states the
class in its library, so no file can bring its own name, and `EXTERNAL` lists them all.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from medunet.errors import ConfigError
from medunet.geometry.shapes import Size, UNetShape
from medunet.networks.settings import PerAxis, UNetSettings, per_axis

GROUPS = 8
"""Of group norm."""
EFFICIENTNETS = tuple(f"efficientnet-b{number}" for number in range(8))
MONAI_ENCODERS = (
    *(f"resnet{depth}" for depth in (10, 18, 34, 50, 101, 152, 200)),
    *EFFICIENTNETS,
    "efficientnet-b8",
    "efficientnet-l2",
)
SMP_ENCODERS = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    "inceptionv4",
    "inceptionresnetv2",
    *EFFICIENTNETS,
    "mobilenet_v2",
)


@dataclass(frozen=True)
class ExternalSettings(ABC):
    """Settings that all external networks have.

    Attributes:
        architecture: the name that a config states.
        dimensions: 2 or 3.
        in_channels: channels of the image.
        classes: channels of the logits, background included.
        dropout: the rate; 0 for none.
        library_classes: the class in the library, by architecture.
        head_paths: the convolutions that make the logits, finest first; their bias is that of the classes.
        inexact_reason: why tiles of this network cannot repeat one pass over the whole scan.

    Raises:
        ConfigError: a value is impossible.
    """

    architecture: str = ""
    dimensions: Literal[2, 3] = 3
    in_channels: int = 1
    classes: int = 2
    dropout: float = 0.0

    library_classes: ClassVar[dict[str, str]]
    head_paths: ClassVar[tuple[str, ...]]
    padded: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    # None, as only the network itself, traced, tells whether it can be streamed.
    inexact_reason: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        self._check()
        if self.dimensions not in (2, 3):
            raise ConfigError(f"dimensions: found {self.dimensions}, expected 2 or 3")
        if self.in_channels < 1 or self.classes < 1:
            raise ConfigError(f"found {self.in_channels} input channels and {self.classes} classes, expected 1 or more")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout: found {self.dropout}, expected a rate from 0 to below 1")
        if self.norm == "group" and any(width % GROUPS for width in self._normed):
            raise ConfigError(
                f"group norm has {GROUPS} groups, which do not divide the channels {self._normed}\n"
                f"take multiples of {GROUPS}, or norm: instance"
            )
        _ = self.shape

    @property
    def norm(self) -> str:
        return "batch"

    @property
    def deep_supervision(self) -> bool:
        return False

    @property
    def pretrained(self) -> bool:
        """True if a training starts with weights that the library downloads."""
        return False

    @property
    @abstractmethod
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of the library's class, for fresh weights."""

    @cached_property
    def shape(self) -> UNetShape:
        """The sizes that the network takes without padding: multiples of the product of its strides."""
        strides = self._strides
        ones = ((1,) * self.dimensions,) * (len(strides) + 1)
        counts = (1,) * len(strides)
        return UNetShape(ones, strides, (*counts, 1), counts, padded=True)

    def settled(self, in_channels: int, classes: int, patch: Size) -> Self:
        """The same settings with the values that the data set and the patch decide.

        Raises:
            ConfigError: the settings do not allow them.
        """
        return replace(self, in_channels=in_channels, classes=classes)

    @abstractmethod
    def _check(self) -> None:
        """Refuse values that are impossible for this kind of network; they are named before all others."""

    @property
    def _halvings(self) -> int:
        return 5

    @property
    def _strides(self) -> tuple[Size, ...]:
        """The strides between one resolution and the next, per axis; most networks halve all axes."""
        return ((2,) * self.dimensions,) * self._halvings

    @property
    def _normed(self) -> tuple[int, ...]:
        """Channels that are normalised."""
        return ()

    @property
    def _size_arguments(self) -> dict[str, Any]:
        """The arguments that all classes of MONAI share."""
        return {"spatial_dims": self.dimensions, "in_channels": self.in_channels, "out_channels": self.classes}

    @property
    def _norm_argument(self) -> tuple[str, dict[str, Any]]:
        return (self.norm, {"num_groups": GROUPS} if self.norm == "group" else {"affine": True})


@dataclass(frozen=True)
class LevelSettings(ExternalSettings):
    """Settings of a network that states the channels of each level.

    Attributes:
        channels: of each level, at least two.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256)

    def _check(self) -> None:
        check_widths(self.channels, 2)

    @property
    def _halvings(self) -> int:
        return len(self.channels) - 1

    @property
    def _normed(self) -> tuple[int, ...]:
        return self.channels


@dataclass(frozen=True)
class UNetPlusPlusSettings(LevelSettings):
    """U-Net++ (Zhou et al. 2018): MONAI's `BasicUNetPlusPlus`.

    Attributes:
        channels: of its five levels.
        norm: of each convolution.
        deep_supervision: while training, logits of all four nested decoders, each of the full size.
    """

    architecture: Literal["unetplusplus"] = "unetplusplus"
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    norm: Literal["batch", "instance", "group"] = "instance"
    deep_supervision: bool = False

    library_classes: ClassVar[dict[str, str]] = {"unetplusplus": "BasicUNetPlusPlus"}
    head_paths: ClassVar[tuple[str, ...]] = ("final_conv_0_4", "final_conv_0_3", "final_conv_0_2", "final_conv_0_1")

    def _check(self) -> None:
        check_widths(self.channels, 5, exactly=True)

    @property
    def keywords(self) -> dict[str, Any]:
        return self._size_arguments | {
            "features": (*self.channels, self.channels[0]),
            "deep_supervision": self.deep_supervision,
            "norm": self._norm_argument,
            "dropout": self.dropout,
        }


@dataclass(frozen=True)
class AttentionUNetSettings(LevelSettings):
    """Attention U-Net (Oktay et al. 2018): MONAI's `AttentionUnet`, with batch norm."""

    architecture: Literal["attention_unet"] = "attention_unet"

    library_classes: ClassVar[dict[str, str]] = {"attention_unet": "AttentionUnet"}
    head_paths: ClassVar[tuple[str, ...]] = ("model.2.conv",)

    @property
    def keywords(self) -> dict[str, Any]:
        return self._size_arguments | {
            "channels": self.channels,
            "strides": (2,) * self._halvings,
            "dropout": self.dropout,
        }


@dataclass(frozen=True)
class ResidualUNetSettings(LevelSettings):
    """Residual U-Net (Kerfoot et al. 2018): MONAI's `UNet`.

    Attributes:
        norm: of each convolution.
        residual_units: convolutions of each level, with a shortcut around them.
    """

    architecture: Literal["residual_unet"] = "residual_unet"
    norm: Literal["batch", "instance"] = "instance"
    residual_units: int = 2

    library_classes: ClassVar[dict[str, str]] = {"residual_unet": "UNet"}
    head_paths: ClassVar[tuple[str, ...]] = ("model.2.1.conv.unit0.conv",)

    def _check(self) -> None:
        super()._check()
        if self.residual_units < 1:
            raise ConfigError(f"residual_units: found {self.residual_units}, expected 1 or more")

    @property
    def keywords(self) -> dict[str, Any]:
        return self._size_arguments | {
            "channels": self.channels,
            "strides": (2,) * self._halvings,
            "num_res_units": self.residual_units,
            "norm": self.norm,
            "dropout": self.dropout,
        }


@dataclass(frozen=True)
class SegResNetSettings(ExternalSettings):
    """SegResNet (Myronenko 2018, without its auto-encoder): MONAI's `SegResNet`.

    Attributes:
        features: channels of the finest level; each coarser one has twice as many.
        blocks: residual blocks of each encoder level; their count is the number of levels.
        norm: of each convolution.
    """

    architecture: Literal["segresnet"] = "segresnet"
    features: int = 16
    blocks: tuple[int, ...] = (1, 2, 2, 4)
    norm: Literal["batch", "instance", "group"] = "group"

    library_classes: ClassVar[dict[str, str]] = {"segresnet": "SegResNet"}
    head_paths: ClassVar[tuple[str, ...]] = ("conv_final.2.conv",)

    def _check(self) -> None:
        check_widths((self.features,), 1, name="features")
        check_widths(self.blocks, 2, name="blocks")

    @property
    def keywords(self) -> dict[str, Any]:
        return self._size_arguments | {
            "init_filters": self.features,
            "dropout_prob": self.dropout or None,
            "norm": self._norm_argument,
            "blocks_down": self.blocks,
            "blocks_up": (1,) * self._halvings,
        }

    @property
    def _halvings(self) -> int:
        return len(self.blocks) - 1

    @property
    def _normed(self) -> tuple[int, ...]:
        return (self.features,)


@dataclass(frozen=True)
class DynUNetSettings(LevelSettings):
    """DynUNet, MONAI's form of nnU-Net's network (Isensee et al. 2021).

    Attributes:
        channels: of each level, at least three.
        kernels: per level, per axis, as those of our U-Net; odd.
        strides: between level l and l+1, per axis.
        norm: of each convolution.
        residual: a shortcut around each level's convolutions.
        deep_supervision: while training, logits of all decoder levels but the deepest, enlarged to the full size.
    """

    architecture: Literal["dynunet"] = "dynunet"
    kernels: int | tuple[PerAxis, ...] = 3
    strides: int | tuple[PerAxis, ...] = 2
    norm: Literal["batch", "instance", "group"] = "instance"
    residual: bool = False
    deep_supervision: bool = False

    library_classes: ClassVar[dict[str, str]] = {"dynunet": "DynUNet"}
    head_paths: ClassVar[tuple[str, ...]] = ("output_block.conv.conv", "deep_supervision_heads.*.conv.conv")

    def _check(self) -> None:
        check_widths(self.channels, 3)
        if self.deep_supervision and len(self.channels) < 4:
            raise ConfigError("deep_supervision of a dynunet needs four levels or more; give as many channels")
        if any(k < 1 or k % 2 == 0 for kernel in self.level_kernels for k in kernel):
            raise ConfigError(f"kernels: found {self.kernels}, expected odd numbers")

    @property
    def level_kernels(self) -> tuple[Size, ...]:
        return per_axis("kernels", self.kernels, len(self.channels), self.dimensions)

    @property
    def _strides(self) -> tuple[Size, ...]:
        return per_axis("strides", self.strides, self._halvings, self.dimensions)

    @property
    def keywords(self) -> dict[str, Any]:
        return self._size_arguments | {
            "kernel_size": self.level_kernels,
            "strides": ((1,) * self.dimensions, *self._strides),
            "upsample_kernel_size": self._strides,
            "filters": self.channels,
            "dropout": self.dropout or None,
            "norm_name": self._norm_argument,
            "deep_supervision": self.deep_supervision,
            "deep_supr_num": max(1, len(self.channels) - 3),
            "res_block": self.residual,
        }


@dataclass(frozen=True)
class UNETRSettings(ExternalSettings):
    """UNETR (Hatamizadeh et al. 2022): a vision transformer as encoder, on patches of 16 voxels. MONAI's `UNETR`.

    Attributes:
        features: channels of the finest decoder level.
        hidden: length of a token.
        mlp: width of the transformer's perceptrons.
        heads: of the attention; they divide `hidden`.
        image_size: per axis; its positions are learned, so it takes this size alone. None takes that of the patches.
        norm: of the convolutions.
    """

    architecture: Literal["unetr"] = "unetr"
    features: int = 16
    hidden: int = 768
    mlp: int = 3072
    heads: int = 12
    image_size: tuple[int, ...] | None = None
    norm: Literal["batch", "instance", "group"] = "instance"

    library_classes: ClassVar[dict[str, str]] = {"unetr": "UNETR"}
    head_paths: ClassVar[tuple[str, ...]] = ("out.conv.conv",)
    _halvings: ClassVar[int] = 4

    def _check(self) -> None:
        check_widths((self.features, self.hidden, self.mlp, self.heads), 1, name="features, hidden, mlp and heads")
        check_heads(self.hidden, self.heads)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None:
            self._require_legal("image_size", self.image_size)

    @property
    def keywords(self) -> dict[str, Any]:
        if self.image_size is None:
            raise ConfigError("image_size: a UNETR is made for one size of images; none was given")
        return self._size_arguments | {
            "img_size": self.image_size,
            "feature_size": self.features,
            "hidden_size": self.hidden,
            "mlp_dim": self.mlp,
            "num_heads": self.heads,
            "norm_name": self._norm_argument,
            "dropout_rate": self.dropout,
        }

    @property
    def _normed(self) -> tuple[int, ...]:
        return (self.features,)

    def _require_legal(self, name: str, size: Size) -> None:
        try:
            self.shape.check(size)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error

    def settled(self, in_channels: int, classes: int, patch: Size) -> Self:
        self._require_legal("patches.size", patch)
        if self.image_size not in (None, patch):
            raise ConfigError(
                f"network.image_size is {self.image_size}, but patches.size is {patch}\n"
                "a UNETR takes one size alone; leave image_size out, it is filled in from the patches"
            )
        return replace(self, in_channels=in_channels, classes=classes, image_size=patch)


@dataclass(frozen=True)
class TransUNetSettings(LevelSettings):
    """TransUNet (Chen et al. 2021): medunet's encoder and decoder, and between them MONAI's transformer blocks.

    The tokens are the places of the deepest map, so five levels that halve give patches of 16 voxels, as published. The
    published transformer has hidden 768, mlp 3072, heads 12 and layers 12.

    Attributes:
        channels: of each level.
        kernels: per level, per axis, as those of our U-Net; odd.
        strides: between level l and l+1, per axis.
        hidden: length of a token.
        mlp: width of the transformer's perceptrons.
        heads: of the attention; they divide `hidden`.
        layers: transformer blocks.
        image_size: per axis; one position is learned for each token of such an image, and they are interpolated for
            images of other sizes. None takes the size of the patches.
        norm: of the convolutions.
        residual: a shortcut around each level's convolutions.
    """

    architecture: Literal["transunet"] = "transunet"
    channels: tuple[int, ...] = (32, 64, 128, 256, 320)
    kernels: int | tuple[PerAxis, ...] = 3
    strides: int | tuple[PerAxis, ...] = 2
    hidden: int = 256
    mlp: int = 1024
    heads: int = 8
    layers: int = 4
    image_size: tuple[int, ...] | None = None
    norm: Literal["batch", "instance", "group"] = "batch"
    residual: bool = False

    library_classes: ClassVar[dict[str, str]] = {"transunet": "TransUNet"}
    head_paths: ClassVar[tuple[str, ...]] = ("head",)
    inexact_reason: ClassVar[str | None] = (
        "transformer.blocks.0.attn attends from each place to all others of the image"
    )

    def _check(self) -> None:
        super()._check()
        check_widths((self.hidden, self.mlp, self.heads, self.layers), 1, name="hidden, mlp, heads and layers")
        check_heads(self.hidden, self.heads)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.unet
        if self.image_size is None:
            return
        if len(self.image_size) != self.dimensions or min(self.image_size) < 1:
            raise ConfigError(
                f"image_size: found {self.image_size}, expected {self.dimensions} numbers of at least 1, "
                "or leave it out: it is filled in from the patches"
            )

    @property
    def unet(self) -> UNetSettings:
        """The encoder and the decoder."""
        return UNetSettings(
            dimensions=self.dimensions,
            in_channels=self.in_channels,
            classes=self.classes,
            channels=self.channels,
            kernels=self.kernels,
            strides=self.strides,
            norm=self.norm,
            dropout=self.dropout,
            residual=self.residual,
        )

    @property
    def positions(self) -> Size:
        """Positions that are learned, per axis: one for each place of the deepest map.

        Raises:
            ConfigError: no size of images was given.
        """
        if self.image_size is None:
            raise ConfigError("image_size: a TransUNet learns positions for one size of images; none was given")
        return self.shape.encoder_sizes(self.shape.smallest_for(self.image_size))[-1]

    @property
    def keywords(self) -> dict[str, Any]:
        return {"settings": self}

    @property
    def _normed(self) -> tuple[int, ...]:
        # Our own blocks make as many groups as divide the channels.
        return ()

    @property
    def _strides(self) -> tuple[Size, ...]:
        return per_axis("strides", self.strides, self._halvings, self.dimensions)

    def settled(self, in_channels: int, classes: int, patch: Size) -> Self:
        return replace(self, in_channels=in_channels, classes=classes, image_size=self.image_size or patch)


@dataclass(frozen=True)
class SwinUNETRSettings(ExternalSettings):
    """Swin UNETR (Hatamizadeh et al. 2022): shifted windows of attention as encoder. MONAI's `SwinUNETR`.

    Attributes:
        features: channels of the finest level, a multiple of 12.
        depths: transformer blocks of each of the four stages.
        heads: of the attention in each stage; they divide the stage's channels, `features` times 1, 2, 4 and 8.
        window: side of a window of attention.
        norm: of the convolutions.
    """

    architecture: Literal["swin_unetr"] = "swin_unetr"
    features: int = 24
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    norm: Literal["batch", "instance"] = "instance"

    library_classes: ClassVar[dict[str, str]] = {"swin_unetr": "SwinUNETR"}
    head_paths: ClassVar[tuple[str, ...]] = ("out.conv.conv",)

    def _check(self) -> None:
        check_widths((self.features, self.window), 1, name="features and window")
        check_widths(self.depths, 4, exactly=True, name="depths")
        check_widths(self.heads, 4, exactly=True, name="heads")
        if self.features % 12:
            below = self.features // 12 * 12
            near = f"{below} or {below + 12}" if below else "12"
            raise ConfigError(f"features: found {self.features}, expected a multiple of 12; the nearest are {near}")
        for stage, heads in enumerate(self.heads):
            if self.features * 2**stage % heads:
                raise ConfigError(
                    f"heads: {heads} do not divide the {self.features * 2**stage} channels of stage {stage}; "
                    "take 3, 6, 12 and 24"
                )

    @property
    def keywords(self) -> dict[str, Any]:
        return self._size_arguments | {
            "depths": self.depths,
            "num_heads": self.heads,
            "window_size": self.window,
            "feature_size": self.features,
            "norm_name": self.norm,
            "drop_rate": self.dropout,
        }


@dataclass(frozen=True)
class EncoderSettings(ExternalSettings):
    """Settings of a network around an encoder of its library.

    Attributes:
        encoder: its name.
        encoder_weights: the data set that the encoder was trained on when a training starts; None starts anew.
    """

    encoder: str = "resnet34"
    encoder_weights: str | None = None

    head_paths: ClassVar[tuple[str, ...]] = ("segmentation_head.0",)

    @property
    def pretrained(self) -> bool:
        return self.encoder_weights is not None

    @property
    @abstractmethod
    def weights_argument(self) -> dict[str, Any]:
        """The keyword argument that loads the pretrained encoder."""


@dataclass(frozen=True)
class FlexibleUNetSettings(EncoderSettings):
    """A U-Net around a ResNet or an EfficientNet: MONAI's `FlexibleUNet`, in 2-D and 3-D, with batch norm.

    Attributes:
        encoder: such as `resnet34` or `efficientnet-b0`.
        encoder_weights: a training starts with an encoder that was trained on ImageNet (2-D, EfficientNets up to b7)
            or as MedicalNet (3-D, ResNets, one channel); null starts anew.
        channels: of the decoder's five levels, finest first.
    """

    architecture: Literal["flexible_unet"] = "flexible_unet"
    encoder_weights: Literal["imagenet", "medicalnet"] | None = None
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)

    library_classes: ClassVar[dict[str, str]] = {"flexible_unet": "FlexibleUNet"}
    weights_argument: ClassVar[dict[str, Any]] = {"pretrained": True}

    def _check(self) -> None:
        check_encoder(self.encoder, MONAI_ENCODERS)
        check_widths(self.channels, 5, exactly=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_weights == "imagenet" and (self.dimensions != 2 or self.encoder not in EFFICIENTNETS):
            raise ConfigError(
                f"encoder_weights: those of ImageNet exist in 2-D for efficientnet-b0 to b7, found {self.encoder} in "
                f"{self.dimensions}-D\nset encoder_weights to null, or take such an encoder (smp_unet has more of them)"
            )
        medical = self.dimensions == 3 and self.encoder.startswith("resnet") and self.in_channels == 1
        if self.encoder_weights == "medicalnet" and not medical:
            raise ConfigError(
                f"encoder_weights: those of MedicalNet exist in 3-D for ResNets and one channel, found {self.encoder} "
                f"in {self.dimensions}-D and {self.in_channels} channel(s)\nset encoder_weights to null"
            )

    @property
    def keywords(self) -> dict[str, Any]:
        return self._size_arguments | {
            "backbone": self.encoder,
            "decoder_channels": tuple(reversed(self.channels)),
            "dropout": self.dropout,
        }


@dataclass(frozen=True)
class SmpSettings(EncoderSettings):
    """A 2-D network of segmentation-models-pytorch (extra `backbones`), with batch norm.

    Attributes:
        architecture: U-Net, U-Net++, LinkNet (Chaurasia & Culurciello 2017), FPN (Kirillov et al. 2019) or PSPNet
            (Zhao et al. 2017).
        encoder: such as `resnet34`, `vgg16_bn`, `inceptionv4`, `efficientnet-b0` or `mobilenet_v2`.
        encoder_weights: a training starts with an encoder that was trained on ImageNet; null starts anew.
        dropout: of the decoder; FPN and PSPNet alone have it.
    """

    architecture: Literal["smp_unet", "smp_unetplusplus", "smp_linknet", "smp_fpn", "smp_pspnet"] = "smp_unet"
    dimensions: Literal[2, 3] = 2
    encoder_weights: Literal["imagenet"] | None = None

    library_classes: ClassVar[dict[str, str]] = {
        "smp_unet": "Unet",
        "smp_unetplusplus": "UnetPlusPlus",
        "smp_linknet": "Linknet",
        "smp_fpn": "FPN",
        "smp_pspnet": "PSPNet",
    }
    dropout_arguments: ClassVar[dict[str, str]] = {"smp_fpn": "decoder_dropout", "smp_pspnet": "psp_dropout"}

    def _check(self) -> None:
        if self.dimensions != 2:
            raise ConfigError(
                f"dimensions: {self.architecture} is a network for two dimensions, found {self.dimensions}\n"
                "set network.dimensions to 2 (volumes go slice by slice), or take flexible_unet, which has a 3-D form"
            )
        check_encoder(self.encoder, SMP_ENCODERS)
        if self.dropout and self.architecture not in self.dropout_arguments:
            raise ConfigError(f"dropout: {self.architecture} has none; found {self.dropout}, expected 0")

    @property
    def keywords(self) -> dict[str, Any]:
        rate = self.dropout_arguments.get(self.architecture)
        return {
            "encoder_name": self.encoder,
            "encoder_weights": None,
            "in_channels": self.in_channels,
            "classes": self.classes,
            **({rate: self.dropout} if rate else {}),
        }

    @property
    def weights_argument(self) -> dict[str, Any]:
        return {"encoder_weights": self.encoder_weights}

    @property
    def _halvings(self) -> int:
        return 3 if self.architecture == "smp_pspnet" else 5


EXTERNAL: tuple[type[ExternalSettings], ...] = (
    UNetPlusPlusSettings,
    AttentionUNetSettings,
    ResidualUNetSettings,
    SegResNetSettings,
    DynUNetSettings,
    UNETRSettings,
    TransUNetSettings,
    SwinUNETRSettings,
    FlexibleUNetSettings,
    SmpSettings,
)
"""The settings of all external networks."""


def check_widths(numbers: tuple[int, ...], count: int, exactly: bool = False, name: str = "channels") -> None:
    """Refuse numbers below 1, and too few of them, by a ConfigError."""
    if len(numbers) < count or (exactly and len(numbers) != count):
        raise ConfigError(f"{name}: found {len(numbers)} numbers, expected {count}{'' if exactly else ' or more'}")
    if min(numbers) < 1:
        raise ConfigError(f"{name}: found {numbers}, expected numbers of at least 1")


def check_heads(hidden: int, heads: int) -> None:
    """Refuse a length of tokens that the heads of attention do not divide, by a ConfigError."""
    if hidden % heads:
        below = hidden // heads * heads
        near = f"{below} or {below + heads}" if below else str(heads)
        raise ConfigError(f"hidden: found {hidden}, which {heads} heads do not divide; take {near}")


def check_encoder(name: str, known: tuple[str, ...]) -> None:
    """Refuse an unknown encoder by a ConfigError that names the nearest known ones."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"encoder: {name} is unknown; {advice}")
