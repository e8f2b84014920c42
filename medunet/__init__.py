"""medunet: from a folder of scans to a trained U-Net, segmentations and scores.

The public names below are loaded when they are first used, so that `medunet --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from types import FunctionType
from typing import TYPE_CHECKING, Any

from medunet.errors import in_python
from medunet.version import __version__

if TYPE_CHECKING:
    from medunet.api import Run, Scores, evaluate_pairs, plan, segment_objects, segment_volume, train
    from medunet.config import Config, load_config
    from medunet.errors import MedunetError
    from medunet.evaluate import evaluate_folders
    from medunet.evaluation.settings import EvaluateSettings
    from medunet.formats.dispatch import read_volume, write_volume
    from medunet.inference.any_network import stream
    from medunet.instances.watershed import ObjectRule
    from medunet.instances.weightmap import WeightMapSettings, gap_weights
    from medunet.losses.build import LossSettings, SegmentationLoss, register_loss
    from medunet.metrics.case import register_metric, score_case
    from medunet.metrics.objects import count_objects
    from medunet.model import Model, load_model, save_model
    from medunet.networks.build import register_network
    from medunet.networks.presets import unet3d2016, unet2015
    from medunet.networks.settings import UNetSettings
    from medunet.networks.unet import UNet
    from medunet.predict import segment_files
    from medunet.prediction.outputs import PredictRequest
    from medunet.prediction.planning import PredictSettings
    from medunet.training.pipeline import training_transforms, validation_transforms
    from medunet.transforms.augment.monai_list import register_transform
    from medunet.transforms.augment.settings import AugmentSettings
    from medunet.transforms.preprocess import PreprocessSettings
    from medunet.volume import Volume

_HOMES = {
    "AugmentSettings": "medunet.transforms.augment.settings",
    "Config": "medunet.config",
    "EvaluateSettings": "medunet.evaluation.settings",
    "LossSettings": "medunet.losses.build",
    "MedunetError": "medunet.errors",
    "Model": "medunet.model",
    "ObjectRule": "medunet.instances.watershed",
    "PredictRequest": "medunet.prediction.outputs",
    "PredictSettings": "medunet.prediction.planning",
    "PreprocessSettings": "medunet.transforms.preprocess",
    "Run": "medunet.api",
    "Scores": "medunet.api",
    "SegmentationLoss": "medunet.losses.build",
    "UNet": "medunet.networks.unet",
    "UNetSettings": "medunet.networks.settings",
    "Volume": "medunet.volume",
    "WeightMapSettings": "medunet.instances.weightmap",
    "count_objects": "medunet.metrics.objects",
    "evaluate_folders": "medunet.evaluate",
    "evaluate_pairs": "medunet.api",
    "gap_weights": "medunet.instances.weightmap",
    "load_config": "medunet.config",
    "load_model": "medunet.model",
    "plan": "medunet.api",
    "read_volume": "medunet.formats.dispatch",
    "register_loss": "medunet.losses.build",
    "register_metric": "medunet.metrics.case",
    "register_network": "medunet.networks.build",
    "register_transform": "medunet.transforms.augment.monai_list",
    "save_model": "medunet.model",
    "score_case": "medunet.metrics.case",
    "segment_files": "medunet.predict",
    "segment_objects": "medunet.api",
    "segment_volume": "medunet.api",
    "stream": "medunet.inference.any_network",
    "train": "medunet.api",
    "training_transforms": "medunet.training.pipeline",
    "unet2015": "medunet.networks.presets",
    "unet3d2016": "medunet.networks.presets",
    "validation_transforms": "medunet.training.pipeline",
    "write_volume": "medunet.formats.dispatch",
}

__all__ = [
    "AugmentSettings",
    "Config",
    "EvaluateSettings",
    "LossSettings",
    "MedunetError",
    "Model",
    "ObjectRule",
    "PredictRequest",
    "PredictSettings",
    "PreprocessSettings",
    "Run",
    "Scores",
    "SegmentationLoss",
    "UNet",
    "UNetSettings",
    "Volume",
    "WeightMapSettings",
    "__version__",
    "count_objects",
    "evaluate_folders",
    "evaluate_pairs",
    "gap_weights",
    "load_config",
    "load_model",
    "plan",
    "read_volume",
    "register_loss",
    "register_metric",
    "register_network",
    "register_transform",
    "save_model",
    "score_case",
    "segment_files",
    "segment_objects",
    "segment_volume",
    "stream",
    "train",
    "training_transforms",
    "unet2015",
    "unet3d2016",
    "validation_transforms",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medunet' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    if isinstance(found, FunctionType):
        found = in_python(found)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
