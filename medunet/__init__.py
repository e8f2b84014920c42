"""medunet: from a folder of scans to a trained U-Net, segmentations and scores.

The public names below are loaded when they are first used, so that `medunet --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medunet.version import __version__

if TYPE_CHECKING:
    from medunet.errors import MedunetError
    from medunet.evaluate import evaluate_pairs
    from medunet.formats.dispatch import read_volume, write_volume
    from medunet.losses.build import register_loss
    from medunet.model import Model, load_model
    from medunet.networks.build import register_network
    from medunet.networks.settings import UNetSettings
    from medunet.networks.unet import UNet
    from medunet.predict import segment_objects, segment_volume
    from medunet.transforms.augment.monai_list import register_transform
    from medunet.volume import Volume

_HOMES = {
    "MedunetError": "medunet.errors",
    "Model": "medunet.model",
    "UNet": "medunet.networks.unet",
    "UNetSettings": "medunet.networks.settings",
    "Volume": "medunet.volume",
    "evaluate_pairs": "medunet.evaluate",
    "load_model": "medunet.model",
    "read_volume": "medunet.formats.dispatch",
    "register_loss": "medunet.losses.build",
    "register_network": "medunet.networks.build",
    "register_transform": "medunet.transforms.augment.monai_list",
    "segment_objects": "medunet.predict",
    "segment_volume": "medunet.predict",
    "write_volume": "medunet.formats.dispatch",
}

__all__ = [
    "MedunetError",
    "Model",
    "UNet",
    "UNetSettings",
    "Volume",
    "__version__",
    "evaluate_pairs",
    "load_model",
    "read_volume",
    "register_loss",
    "register_network",
    "register_transform",
    "segment_objects",
    "segment_volume",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medunet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
