"""Material of a training: cases, patches, loss and recipe, ready before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medunet.instances.weightmap import class_balance
from medunet.learning.loop import Recipe
from medunet.losses.build import Loss, make_loss
from medunet.patches.dataset import PatchDataset, PreparedCase
from medunet.patches.prepare import class_voxels
from medunet.planning.trial import recipe_of
from medunet.training.setup import Setup
from medunet.training.timetable import epochs_between_validations
from medunet.transforms.augment.augmentation import Augmentation


@dataclass(frozen=True)
class Material:
    """Everything that is ready before a training starts.

    Attributes:
        cases: the training cases.
        held: the cases that are held out, for validation.
        recipe: as this process alone would train a new run.
    """

    setup: Setup
    cases: list[PreparedCase]
    held: list[PreparedCase]
    patches: PatchDataset
    recipe: Recipe

    @property
    def epochs_apart(self) -> int:
        """Epochs from one validation to the next, in a run that is measured in epochs."""
        config = self.setup.config
        validated = sum(case.label.size for case in self.held[: config.training.validation_cases])
        return epochs_between_validations(
            config.training, self.patches.per_epoch * math.prod(config.patches.size), validated
        )


def make_material(
    setup: Setup, cases: list[PreparedCase], held: list[PreparedCase], augmentation: Augmentation | None = None
) -> Material:
    """Patches, loss and recipe for prepared cases.

    Args:
        augmentation: in place of the config's.

    Raises:
        ConfigError: class weights that do not fit the labels or regions.
    """
    config, classes = setup.config, setup.labels.classes
    loss = loss_of(setup, class_voxels(cases, classes) if config.loss.class_weights == "balanced" else None)
    class_weights: tuple[float, ...] = ()
    if config.weight_map.kind != "none":
        balance = config.weight_map.class_balance
        class_weights = class_balance(class_voxels(cases, classes)) if balance else (1.0,) * classes
    patches = PatchDataset(
        cases=cases,
        settings=config.patches,
        per_epoch=config.training.iterations * config.patches.batch,
        augmentation=augmentation or Augmentation(config.augment, config.network.dimensions),
        seed=config.training.seed,
        margin=() if config.network.padded else config.network.shape.margin,
        class_weights=class_weights,
    )
    return Material(setup, cases, held, patches, recipe_of(config, loss, setup.device))


def loss_of(setup: Setup, voxels: Sequence[int] | None) -> Loss:
    """The loss of a training.

    Args:
        voxels: of each class in the training cases; None where balanced weights do not ask for them.

    Raises:
        ConfigError: class weights that do not fit the labels or regions.
    """
    regions = [region.indices for region in setup.labels.regions]
    return make_loss(setup.config.loss, setup.labels.classes, voxels, regions, setup.world.sum)
