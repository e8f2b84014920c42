"""The Compose that Python gets is what `medunet train` runs, and what Python gives back is what it learns from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandAffined, RandBiasFieldd, RandFlipd, RandGaussianNoised, RandRotate90d

import medunet
from medunet.config import Config, DataSettings
from medunet.datasets.catalogue import read_data_set, with_labels
from medunet.errors import ConfigError
from medunet.networks.settings import UNetSettings
from medunet.patches.dataset import PatchDataset, PatchSettings
from medunet.patches.prepare import Preparation, prepare_cases
from medunet.training.pipeline import augmentation_of
from medunet.transforms.augment.augmentation import Augmentation, RandValuesd
from medunet.transforms.augment.settings import AugmentSettings, Draw
from medunet.transforms.preprocess import PreprocessSettings
from tests.flows.made import make_set

HEAVY = AugmentSettings(monai=({"name": "RandBiasFieldd", "prob": 0.9},))


def config_of(data: Path, padded: bool = True) -> Config:
    network = UNetSettings(channels=(4, 8), classes=3, padded=padded)
    return Config(
        data=DataSettings(path=str(data)),
        preprocess=PreprocessSettings(spacing=(1.5, 1.5, 1.5)),
        network=network,
        patches=PatchSettings(size=(16, 20, 16) if padded else (20, 24, 20)),
        augment=HEAVY,
    )


def dataset_of(config: Config, augmentation: Augmentation, folder: Path) -> PatchDataset:
    """Patches as the training makes them."""
    data = read_data_set(Path(str(config.data.path)))
    labels = with_labels(data, data.labelled)
    cases = prepare_cases(data.labelled, Preparation(config.preprocess, labels, None, folder, 2**30))
    margin = () if config.network.padded else config.network.shape.margin
    return PatchDataset(cases, config.patches, 8, augmentation, seed=3, margin=margin)


@pytest.mark.parametrize("padded", [True, False])
def test_the_steps_by_hand_give_the_patches_of_the_training(tmp_path: Path, padded: bool) -> None:
    config = config_of(make_set(tmp_path / "data", 1), padded)
    steps = medunet.training_transforms(config)
    assert isinstance(steps, Compose) and len(str(steps).splitlines()) == len(steps.transforms) + 1
    case = read_data_set(tmp_path / "data").labelled[0]
    patches = dataset_of(config, Augmentation(config.augment, 3), tmp_path)
    for number in range(10):
        found = steps({"image": case.images[0], "label": case.label, "draw": Draw(3, *divmod(number, 8))})
        right = patches[number]
        assert torch.equal(found["image"], right.image[0]) and torch.equal(found["label"], right.label[0])


def test_whole_cases_are_prepared_as_for_validation(tmp_path: Path) -> None:
    config = config_of(make_set(tmp_path / "data", 1))
    case = read_data_set(tmp_path / "data").labelled[0]
    (prepared,) = dataset_of(config, Augmentation(config.augment, 3), tmp_path).cases
    found = medunet.validation_transforms(config)({"image": str(case.images[0]), "label": str(case.label)})
    np.testing.assert_array_equal(found["image"], prepared.image)
    np.testing.assert_array_equal(found["label"], prepared.label)
    assert "label" not in medunet.validation_transforms(config)({"image": case.images[0]})


def test_a_changed_compose_is_what_the_training_takes(tmp_path: Path) -> None:
    config = config_of(make_set(tmp_path / "data", 1))
    steps = medunet.training_transforms(config)
    at = next(place for place, step in enumerate(steps.transforms) if isinstance(step, RandValuesd))
    del steps.transforms[at]
    steps.transforms.append(RandFlipd(["image", "label"], prob=0.5, spatial_axis=1))
    own = augmentation_of(config, steps)
    assert [type(step).__name__ for step in own.steps] == ["RandMoved", "RandMonaid", "RandMonaid"]
    patches = dataset_of(config, own, tmp_path)
    first, again = patches[4], patches[4]
    assert torch.equal(first.image, again.image) and not torch.equal(patches[5].image, first.image)
    steps.transforms[1] = replace(steps.transforms[1], settings=PreprocessSettings())
    with pytest.raises(ConfigError, match="up to RandPatchd"):
        augmentation_of(config, steps)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (RandAffined(["image", "label"], prob=0.1, rotate_range=0.5, mode="bilinear"), "never interpolated"),
        (RandFlipd(["image"], prob=0.5), "needs the keys image and label"),
        ("RandFlipd", "expected a transform"),
        (lambda patch: {**patch, "image": patch["image"][:, 1:]}, "has to keep its size"),
        (lambda patch: {**patch, "label": patch["label"] + 1}, "made the label"),
        (lambda patch: patch["nothing"], "fails on a patch"),
    ],
)
def test_a_transform_that_cannot_serve_is_refused(transform: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        augmentation_of(Config(network=UNetSettings(), augment=AugmentSettings.none()), [transform])


def test_own_transforms_follow_those_of_the_config_and_depend_on_the_draw_alone() -> None:
    config = Config(network=UNetSettings(), augment=HEAVY)
    given = [RandGaussianNoised(["image"], prob=1.0), RandRotate90d(["image", "label"], prob=1.0)]
    augmentation = augmentation_of(config, given)
    image, label = torch.rand(1, 16, 16, 16), torch.randint(0, 3, (1, 16, 16, 16), dtype=torch.uint8)
    first = augmentation(image, label, Draw(1, 2, 3))
    augmentation(image, label, Draw(1, 2, 4))
    again = augmentation(image, label, Draw(1, 2, 3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    plain = Augmentation(config.augment, 3)(image, label, Draw(1, 2, 3))
    assert not torch.equal(plain[0], first[0]) and set(first[1].unique().tolist()) <= {0, 1, 2, 255}


@pytest.mark.slow
def test_a_training_learns_from_them(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", 2)
    config = config_of(data)
    small = {
        "training.epochs": 1,
        "training.iterations": 2,
        "training.minutes": None,
        "data.folds": 0,
        "data.cache": None,
    }
    options = {"device": "cpu", "overrides": small | {"training.precision": "fp32"}}
    plain = medunet.train(config, tmp_path / "plain", **options)
    same = medunet.train(config, tmp_path / "same", **options, transforms=medunet.training_transforms(config))
    other = medunet.train(config, tmp_path / "other", **options, transforms=[RandBiasFieldd(["image"], prob=1.0)])
    losses = [run.history[0]["loss"] for run in (plain, same, other)]
    assert losses[0] == losses[1] != losses[2]
