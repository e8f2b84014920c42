"""External network: built from its library, and adapted: any input is padded to a legal size, its logits cropped back.

The libraries are imported here alone, and their classes looked up by our own names. A library's defaults are stated in
the settings where its networks differ from ours.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medunet.errors import ConfigError, MissingExtra
from medunet.networks.external.named import WHERE, MonaiSettings, NamedSettings, RegisteredSettings
from medunet.networks.external.settings import (
    EncoderSettings,
    ExternalSettings,
    SmpSettings,
    SwinUNETRSettings,
    TransUNetSettings,
    UNETRSettings,
)
from medunet.networks.meta_memory import meta_tensor_bytes
from medunet.registry import build_located

HELD = 1.15
"""Bytes that the process holds for each byte alive: one pass was measured to take 0.94 to 1.08 times its sum."""


class AdaptedNetwork(nn.Module):
    """An external network that takes any size: zeros pad the image behind its last voxels, and the logits are cropped.

    Nothing is resized, and voxel i of the image is voxel i of the network's input. Blended windows see zeros beyond a
    scan's border, too.

    Args:
        network: takes ``(batch, channel, *spatial)`` of a size that is legal by `settings.shape`; its answer may be a
            list, or in training a stack of logits ``(batch, head, class, *spatial)``, all of the full size.
        settings: what it is made of.
    """

    def __init__(self, network: nn.Module, settings: ExternalSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self._estimated: dict[tuple[int, ...], int] = {}

    @property
    def adapted(self) -> nn.Module:
        """The network inside, by whose names users know the layers."""
        return self.network

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """The convolutions that give the logits, finest first."""
        found = find_heads(self.network, self.settings)
        return tuple(found) if self.settings.deep_supervision else tuple(found[:1])

    def pass_bytes(self, size: Sequence[int]) -> int:
        """Peak memory of a pass over an image of this size, see `meta_tensor_bytes`; each size is estimated once."""
        size = tuple(size)
        if size not in self._estimated:
            alive = meta_tensor_bytes(self, self.settings.in_channels, size)
            self._estimated[size] = int(HELD * alive)
        return self._estimated[size]

    def freeze_unused(self) -> None:
        """Freeze the weights that have no part in the logits.

        Some encoders come with layers that only a classifier needs. Joined processes would wait for their gradients,
        and a saved model would seem to have learned them. A pass over noise finds them; weights, statistics and
        generators stay.
        """
        kept = {name: buffer.clone() for name, buffer in self.named_buffers()}
        size = self.size_for((1,) * self.settings.dimensions)
        # Batch norm wants two values, and the smallest image leaves one in the deepest level.
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            answers = self.train()(torch.randn(2, self.settings.in_channels, *size))
            torch.stack([a.mean() for a in (answers if isinstance(answers, tuple) else (answers,))]).sum().backward()
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
            parameter.grad = None
        for name, buffer in self.named_buffers():
            buffer.copy_(kept[name])

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits ``(batch, class, *spatial)`` of an image ``(batch, channel, *spatial)`` of any size.

        While training with deep supervision a tuple, the final logits first, all of the image's size.

        Raises:
            ConfigError: the channels or axes are not the network's, or a UNETR's image is larger than it takes.
        """
        size = self._checked(image)
        more = [legal - n for n, legal in zip(size, self.size_for(size), strict=True)]
        if any(more):
            image = functional.pad(image, [n for extra in reversed(more) for n in (0, extra)])
        answers = _answers(self.network(image), self.settings.dimensions)
        window = (slice(None), slice(None), *(slice(n) for n in size))
        cropped = tuple(answer[window] if any(more) else answer for answer in answers)
        return cropped if self.training and self.settings.deep_supervision else cropped[0]

    def size_for(self, size: Sequence[int]) -> tuple[int, ...]:
        """The smallest size that the network takes and that holds this one; a ConfigError where a UNETR takes none."""
        settings = self.settings
        if isinstance(settings, UNETRSettings) and settings.image_size is not None:
            if any(n > most for n, most in zip(size, settings.image_size, strict=True)):
                raise ConfigError(
                    f"a UNETR for images of {settings.image_size} cannot take one of {tuple(size)} at once; "
                    "larger scans go through it in windows (prediction does so by itself)"
                )
            return settings.image_size
        legal = list(settings.shape.smallest_for(size))
        if settings.norm == "instance" and math.prod(settings.shape.encoder_sizes(legal)[-1]) == 1:
            # One voxel has no variance: instance norm refuses it, in evaluation, too.
            legal[-1] *= 2
        return tuple(legal)

    def _checked(self, image: Tensor) -> tuple[int, ...]:
        settings = self.settings
        if image.ndim != settings.dimensions + 2 or image.shape[1] != settings.in_channels or min(image.shape) < 1:
            raise ConfigError(
                f"found an input of shape {tuple(image.shape)}, expected (batch, {settings.in_channels}, *spatial) "
                f"with {settings.dimensions} spatial axes"
            )
        return tuple(int(n) for n in image.shape[2:])


def _answers(answer: Any, dimensions: int) -> tuple[Tensor, ...]:
    """The logits of each head, finest first."""
    if isinstance(answer, (list, tuple)):
        # U-Net++ names its shallowest decoder first.
        return tuple(reversed(answer))
    if answer.ndim == dimensions + 3:
        return tuple(answer.unbind(1))
    return (answer,)


def build_external(settings: ExternalSettings, pretrained: bool = False) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator.

    Args:
        settings: of the network.
        pretrained: load the encoder that `encoder_weights` names, if it names one.

    Raises:
        MissingExtra: see `import_library`.
        ConfigError: pretrained weights cannot be had.
    """
    if isinstance(settings, NamedSettings):
        return _build_named(settings)
    make = getattr(import_library(settings), settings.library_classes[settings.architecture])
    if pretrained and isinstance(settings, EncoderSettings) and settings.pretrained:
        try:
            found: nn.Module = make(**settings.keywords | settings.weights_argument)
            return found
        except Exception as error:
            raise _no_weights(settings, error) from error
    network: nn.Module = make(**settings.keywords)
    if not settings.deep_supervision:
        # Computed, but no loss sees them; without a gradient, several processes would wait for theirs.
        for head in find_heads(network, settings)[1:]:
            head.requires_grad_(False)
    return network


def _build_named(settings: NamedSettings) -> nn.Module:
    """A network by the arguments of its class; what it refuses is placed in the config."""
    if isinstance(settings, RegisteredSettings):
        found = settings.build()
        if not isinstance(found, nn.Module):
            raise ConfigError(
                f"network.architecture: {settings.architecture} was registered with a function that gives "
                f"{type(found).__name__}, expected a torch.nn.Module"
            )
        return found
    assert isinstance(settings, MonaiSettings)
    make = getattr(import_library(settings), settings.library_classes[settings.architecture])
    fixed = {name: value for name, value in settings.keywords.items() if name not in settings.arguments}
    given = {name: settings.keywords[name] for name in settings.arguments}

    def build(**own: Any) -> nn.Module:
        network: nn.Module = make(**fixed | own)
        return network

    return build_located(WHERE, build, given, f"MONAI's {settings.architecture.removeprefix('monai.')}")


def require_buildable(settings: NamedSettings) -> None:
    """Refuse arguments before any work is done, by a network without memory.

    Raises:
        LocatedError: the class refuses an argument.
    """
    if isinstance(settings, MonaiSettings):
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            _build_named(settings)


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
    if isinstance(settings, (UNETRSettings, TransUNetSettings, SwinUNETRSettings)):
        try:
            import einops  # noqa: F401
        except ImportError as error:
            raise MissingExtra(f"{settings.architecture} needs einops; pip install 'medunet[transformers]'") from error
    if isinstance(settings, TransUNetSettings):
        from medunet.networks.external import transunet

        return transunet
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
