"""Checks of a config against its data set, before anything is trained."""

from __future__ import annotations

import math

from medunet.config import Config
from medunet.datasets.labels import LabelTable
from medunet.errors import ConfigError
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.preprocess import Normalisation


def check_objects(config: Config, labels: LabelTable, name: str) -> None:
    """Refuse settings that need object ids where label files hold classes, and settings that weigh classes twice."""
    weighted = config.weight_map.kind != "none"
    if labels.kind != "instances":
        _check_no_objects(config, labels, name)
    if weighted and config.loss.kind.startswith("monai."):
        raise ConfigError(
            f"loss.kind is {config.loss.kind}, but MONAI's losses know no weight of a voxel\n"
            "set weight_map.kind to none, or take one of medunet's own losses, such as dice_cross_entropy"
        )
    if weighted and config.weight_map.class_balance and config.loss.class_weights is not None:
        raise ConfigError(
            "weight_map.class_balance and loss.class_weights both weigh classes, and would be multiplied\n"
            "set loss.class_weights to null, or weight_map.class_balance to false"
        )


def _check_no_objects(config: Config, labels: LabelTable, name: str) -> None:
    """Refuse a weight map for label files of classes, unless a class is named whose parts are the objects."""
    weighted, parts = config.weight_map.kind != "none", config.weight_map.parts_of
    if weighted and parts is not None and parts not in labels.names:
        raise ConfigError(
            f"weight_map.parts_of is {parts}, but the label files of {name} hold {labels.describe()}\n"
            "name the class whose connected parts are the objects, or set weight_map.kind to none"
        )
    asked = [f"weight_map.kind is {config.weight_map.kind}"] if weighted and parts is None else []
    asked += [f"instances.target is {config.instances.target}"] if config.instances.target != "foreground" else []
    if asked:
        off = (
            "weight_map.parts_of to the class whose connected parts are the objects, or weight_map.kind to none"
            if weighted and parts is None
            else "instances.target to foreground"
        )
        raise ConfigError(
            f"{' and '.join(asked)}, but the label files of {name} hold classes ({labels.describe()}), not objects\n"
            f'set {off}; or, if they do hold one id per object, say "label_kind": "instances" in dataset.json'
        )


def per_channel(config: Config, channels: int) -> tuple[Normalisation, ...]:
    normalise = config.preprocess.normalise
    if len(normalise) not in (1, channels):
        raise ConfigError(f"preprocess.normalise has {len(normalise)} entries, the data set {channels} channel(s)")
    return normalise * channels if len(normalise) == 1 else normalise


def check_dimensions(config: Config, dimensions: int, name: str) -> None:
    """A 2-D network takes volumes slice by slice; a 3-D network takes volumes only."""
    wanted, spacing = config.network.dimensions, config.preprocess.spacing
    if wanted > dimensions:
        raise ConfigError(
            f"network.dimensions is {wanted}, but {name} holds pictures of {dimensions} dimensions\n"
            "set network.dimensions to 2 and give patches.size two numbers, or start from configs/unet2d.yaml"
        )
    if spacing is not None and len(spacing) != dimensions:
        raise ConfigError(f"preprocess.spacing has {len(spacing)} numbers, but {name} has {dimensions} dimensions")


def check_sizes(config: Config) -> None:
    size, network = config.patches.size, config.network
    if len(size) != network.dimensions:
        raise ConfigError(f"patches.size {size} has {len(size)} numbers for a {network.dimensions}-D network")
    if not network.shape.is_legal(size):
        nearest = list(network.shape.nearest_legal(size))
        try:
            network.shape.check(size)
        except ConfigError as error:
            raise ConfigError(f"patches.size: {error}\nthe nearest legal patch is {nearest}") from error
    Augmentation(config.augment, network.dimensions).check_size(size)
    if network.deep_supervision and not network.padded:
        raise ConfigError("network.deep_supervision needs a padded network; set one of the two otherwise")
    deepest = math.prod(network.shape.encoder_sizes(size)[-1])
    values = deepest * (config.patches.batch if network.norm == "batch" else 1)
    if network.norm in ("batch", "instance") and values == 1:
        raise ConfigError(
            f"patches.size {size} leaves one voxel in the deepest level, which {network.norm} norm cannot normalise\n"
            "take a larger patch or batch, or fewer levels"
        )
