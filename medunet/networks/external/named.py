"""Networks that a config builds by their library's own arguments: MONAI's, from a written list, and registered ones.

`network: {architecture: monai.BasicUNet, arguments: {features: [32, 32, 64, 128, 256, 32]}}`. The list says which
arguments a class takes and how its resolutions follow from them. What a data set decides (dimensions, channels,
classes) is no argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from medunet.errors import LocatedError
from medunet.geometry.shapes import Size
from medunet.networks.external.settings import MONAI_ENCODERS, ExternalSettings
from medunet.registry import Allowed, Kind, Registered, as_tuples, build_located, check_arguments, find_name

PREFIX = "monai."
WHERE = ("network", "arguments")


@dataclass(frozen=True)
class MonaiNetwork:
    """One network of the list.

    Attributes:
        arguments: that a config may give.
        stride: the product of its strides, for its arguments; None where they say none, and it is refused.
        norm: that of its layers, unless its argument `norm` says another.
    """

    arguments: Allowed
    stride: Callable[[Mapping[str, Any]], int]
    norm: Literal["batch", "instance", "group"] = "batch"


def _strides(given: Mapping[str, Any]) -> int:
    strides = given.get("strides", ())
    return math.prod(strides) if isinstance(strides, tuple) else strides


def _strides_per_axis(given: Mapping[str, Any]) -> int:
    """The product of the largest stride of each level; a level states one for all axes, or one for each."""
    levels = given.get("strides", ())
    levels = levels if isinstance(levels, tuple) else (levels,)
    return int(math.prod(max(level) if isinstance(level, tuple) else level for level in levels))


def _blocks(count: int) -> Callable[[Mapping[str, Any]], int]:
    """Halvings between the blocks that `blocks_down` lists; `count` where it is not given."""
    return lambda given: int(2 ** (len(given["blocks_down"]) - 1 if "blocks_down" in given else count))


_NORM: Allowed = {"norm": ("batch", "instance")}
_LEVELS: Allowed = dict.fromkeys(("channels", "strides", "kernel_size", "up_kernel_size"), Kind.WHOLES)
_DROPOUT: Allowed = {"dropout": Kind.SHARE}
_BASIC: Allowed = {
    **_NORM,
    **_DROPOUT,
    "features": Kind.WHOLES,
    "bias": Kind.FLAG,
    "upsample": ("deconv", "pixelshuffle", "nontrainable"),
}
_SEGRESNET: Allowed = {
    "init_filters": Kind.WHOLE,
    "blocks_down": Kind.WHOLES,
    "blocks_up": Kind.WHOLES,
    "upsample_mode": ("deconv", "pixelshuffle", "nontrainable"),
}
_RATIOS = ("encoder_expansion_ratio", "decoder_expansion_ratio")

NETWORKS: dict[str, MonaiNetwork] = {
    "AttentionUnet": MonaiNetwork({**_LEVELS, **_DROPOUT}, _strides),
    "UNet": MonaiNetwork(
        {**_LEVELS, **_DROPOUT, **_NORM, "num_res_units": Kind.WHOLE, "bias": Kind.FLAG}, _strides, "instance"
    ),
    "BasicUNet": MonaiNetwork(_BASIC, lambda given: 16, "instance"),
    "BasicUNetPlusPlus": MonaiNetwork(_BASIC, lambda given: 16, "instance"),
    "DynUNet": MonaiNetwork(
        {
            **dict.fromkeys(("kernel_size", "strides", "upsample_kernel_size"), Kind.NUMBERS),
            **_DROPOUT,
            "filters": Kind.WHOLES,
            "norm_name": ("batch", "instance"),
            "res_block": Kind.FLAG,
            "trans_bias": Kind.FLAG,
        },
        _strides_per_axis,
        "instance",
    ),
    "FlexibleUNet": MonaiNetwork(
        {
            **_NORM,
            **_DROPOUT,
            "backbone": MONAI_ENCODERS,
            "decoder_channels": Kind.WHOLES,
            "decoder_bias": Kind.FLAG,
            "upsample": ("deconv", "pixelshuffle", "nontrainable"),
        },
        lambda given: 32,
    ),
    "VNet": MonaiNetwork(
        {"dropout_prob_down": Kind.SHARE, "dropout_prob_up": Kind.NUMBERS, "bias": Kind.FLAG}, lambda given: 16
    ),
    "HighResNet": MonaiNetwork({"dropout_prob": Kind.SHARE, "bias": Kind.FLAG}, lambda given: 1),
    "SegResNet": MonaiNetwork({**_SEGRESNET, "dropout_prob": Kind.SHARE}, _blocks(3), "group"),
    "SegResNetDS": MonaiNetwork({**_SEGRESNET, **_NORM}, _blocks(3)),
    "MedNeXt": MonaiNetwork(
        {
            **dict.fromkeys((*_RATIOS, "blocks_down", "blocks_up"), Kind.WHOLES),
            **dict.fromkeys(
                ("init_filters", "bottleneck_expansion_ratio", "kernel_size", "blocks_bottleneck"), Kind.WHOLE
            ),
            "use_residual_connection": Kind.FLAG,
            "global_resp_norm": Kind.FLAG,
        },
        # The bottleneck lies one resolution below the last of these blocks.
        lambda given: 2 * _blocks(3)(given),
        "group",
    ),
}


@dataclass(frozen=True)
class RegisteredNetwork:
    """What `register_network` was told."""

    settings: Callable[..., Any]
    build: Callable[..., Any]
    multiple: int


REGISTERED: Registered[RegisteredNetwork] = Registered("medunet.register_network")


@dataclass(frozen=True)
class NamedSettings(ExternalSettings):
    """Settings of a network by the arguments of its class.

    Attributes:
        arguments: of the class, as plain data.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)

    head_paths: ClassVar[tuple[str, ...]] = ()

    def _check(self) -> None:
        if self.dropout:
            raise LocatedError("is for medunet's names of networks; see network.arguments", ("network", "dropout"))

    @property
    def _stride(self) -> int:
        return 1

    @property
    def _strides(self) -> tuple[Size, ...]:
        return () if self._stride == 1 else ((self._stride,) * self.dimensions,)


@dataclass(frozen=True)
class MonaiSettings(NamedSettings):
    """A network of MONAI by its class, such as `monai.BasicUNet`, with the arguments and defaults of MONAI."""

    architecture: str = "monai.BasicUNet"

    library_classes: ClassVar[dict[str, str]] = {PREFIX + name: name for name in NETWORKS}

    @property
    def _entry(self) -> MonaiNetwork:
        return NETWORKS[self.architecture.removeprefix(PREFIX)]

    def _check(self) -> None:
        super()._check()
        check_arguments(WHERE, self.arguments, self._entry.arguments, self.architecture)

    @property
    def norm(self) -> str:
        return str(self.arguments.get("norm", self.arguments.get("norm_name", self._entry.norm)))

    @property
    def _stride(self) -> int:
        return max(1, self._entry.stride({name: as_tuples(value) for name, value in self.arguments.items()}))

    @property
    def keywords(self) -> dict[str, Any]:
        given = check_arguments(WHERE, self.arguments, self._entry.arguments, self.architecture)
        forced = {"dropout_dim": self.dimensions} if self.architecture == "monai.VNet" else {}
        return self._size_arguments | given | forced


@dataclass(frozen=True)
class RegisteredSettings(NamedSettings):
    """A network that `register_network` was told; its own settings are made of `arguments`."""

    library_classes: ClassVar[dict[str, str]] = {}

    def _check(self) -> None:
        super()._check()
        find_name(("network", "architecture"), self.architecture, REGISTERED, "", REGISTERED.call)
        _ = self.own

    @property
    def _registered(self) -> RegisteredNetwork:
        found = REGISTERED.get(self.architecture)
        assert found is not None, "checked when it was made"
        return found

    @property
    def own(self) -> Any:
        """The registered settings, made of the arguments.

        Raises:
            LocatedError: they refuse an argument.
        """
        given = {name: as_tuples(value) for name, value in self.arguments.items()}
        return build_located(WHERE, self._registered.settings, given, self.architecture)

    @property
    def norm(self) -> str:
        # Unknown; batch norm is checked most gently.
        return "batch"

    @property
    def _stride(self) -> int:
        return self._registered.multiple

    @property
    def keywords(self) -> dict[str, Any]:
        return {
            "settings": self.own,
            "dimensions": self.dimensions,
            "in_channels": self.in_channels,
            "classes": self.classes,
        }

    def build(self) -> Any:
        return self._registered.build(**self.keywords)
