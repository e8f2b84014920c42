"""MONAI's transforms inside medunet: no label is ever interpolated, a draw is a draw, and wrong lists are located."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import get_track_meta
from monai.transforms import RandAffined, RandZoomd

from medunet.config import parse_config
from medunet.datasets.labels import IGNORE
from medunet.errors import ConfigError
from medunet.transforms.augment import monai_list
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.augment.monai_list import TRANSFORMS, register_transform
from medunet.transforms.augment.settings import AugmentSettings, Draw

USUAL: dict[str, Any] = {
    "Rand2DElasticd": {"spacing": [8, 8], "magnitude_range": [1, 3]},
    "Rand3DElasticd": {"sigma_range": [2, 3], "magnitude_range": [20, 30]},
    "RandScaleIntensityd": {"factors": [-0.5, 0.5]},
    "RandScaleIntensityFixedMeand": {"factors": [-0.5, 0.5]},
    "RandStdShiftIntensityd": {"factors": [0.5, 0.9]},
    "RandShiftIntensityd": {"offsets": [0.2, 1]},
    "RandCoarseDropoutd": {"holes": 3, "spatial_size": 4},
    "RandCoarseShuffled": {"holes": 3, "spatial_size": 4},
    "RandAffined": {"rotate_range": 0.6, "translate_range": 3},
    "RandRotated": {"range_x": 0.6},
    "RandZoomd": {"min_zoom": 0.6, "max_zoom": 0.9},
}
ENTRIES = [(name, axes) for name, entry in TRANSFORMS.items() for axes in entry.dimensions]


def augmentation(name: str, dimensions: int, **arguments: Any) -> Augmentation:
    step = {"name": name, "prob": 1.0, **USUAL.get(name, {}), **arguments}
    return Augmentation(replace(AugmentSettings.none(), monai=(step,)), dimensions)


def patch(dimensions: int, seed: int = 0, side: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """An image of two channels, and a label of blocks with the values 0, 2, 7 and 200."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 2, 7, 200], np.uint8), size=(2,) * dimensions)
    label = coarse
    for axis in range(dimensions):
        label = label.repeat(side // 2, axis)
    return rng.normal(size=(2, *label.shape)).astype(np.float32), label[None]


@pytest.mark.parametrize(("name", "dimensions"), ENTRIES)
def test_every_transform_of_the_list_keeps_the_labels_and_depends_on_the_draw_alone(name: str, dimensions: int) -> None:
    augment, (image, label) = augmentation(name, dimensions), patch(dimensions)
    numpy_before, torch_before, python_before = np.random.get_state()[1], torch.get_rng_state(), random.getstate()  # noqa: NPY002
    results = [augment(image, label, Draw(5, 0, index)) for index in range(4)]
    again = pickle.loads(pickle.dumps(augment))(image, label, Draw(5, 0, 1))  # noqa: S301 (made here)

    assert np.array_equal(np.random.get_state()[1], numpy_before) and random.getstate() == python_before  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before) and get_track_meta()
    assert torch.equal(again[0], results[1][0]) and torch.equal(again[1], results[1][1])
    for after, classes in results:
        assert type(after) is torch.Tensor and after.dtype == torch.float32 and classes.dtype == torch.uint8
        assert after.shape == image.shape and bool(torch.isfinite(after).all())
        assert set(classes.unique().tolist()) <= {*np.unique(label).tolist(), IGNORE}
        if not TRANSFORMS[name].moves:
            assert np.array_equal(classes.numpy(), label)
    assert any(not np.array_equal(after.numpy(), image) for after, _ in results)


@pytest.mark.parametrize(("name", "dimensions"), [e for e in ENTRIES if TRANSFORMS[e[0]].moves])
def test_image_label_and_weight_move_alike(name: str, dimensions: int) -> None:
    # Both are the first coordinate: linear and nearest sampling of one place differ by half a voxel at most.
    shape = (28,) * dimensions
    label = np.broadcast_to(np.arange(28, dtype=np.uint8).reshape(-1, *(1,) * (dimensions - 1)), shape)[None]
    picture = label.astype(np.float32)
    image, classes = augmentation(name, dimensions)(np.concatenate([picture] * 2), label, Draw(1, 0, 0), moved_only=1)
    known = classes[0] != IGNORE
    assert known.any()
    assert torch.equal(image[0], image[1])
    away = (image[0] - classes[0].float()).abs()[known]
    # A seam of half a voxel at the border of the patch is mixed with the zeros outside.
    assert (away <= 0.501).float().mean() > 0.9


@pytest.mark.parametrize("kind", [RandAffined, RandZoomd])
def test_labels_are_those_that_monai_takes_from_the_nearest_voxel(kind: type) -> None:
    _, label = patch(2, side=20)
    draw = Draw(2, 0, 3)
    _, classes = augmentation(kind.__name__, 2)(label.astype(np.float32), label, draw)
    oracle = kind("x", prob=1.0, mode="nearest-exact" if kind is RandZoomd else "nearest",
                  padding_mode="constant" if kind is RandZoomd else "zeros", **USUAL[kind.__name__])  # fmt: skip
    oracle.set_random_state(seed=int(draw.generator(3).integers(2**32, size=1)[0]))
    expected = oracle({"x": label.astype(np.float32) + 1})["x"] - 1
    assert torch.equal(torch.where(expected < 0, IGNORE, expected).to(torch.uint8), classes)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("{name: RandBiasField}", r"x.yaml:3: augment.monai\[0\].name: .*did you mean RandBiasFieldd"),
        ("{name: RandLambdad, prob: 1}", r"augment.monai\[0\].name: .*unknown"),
        ("{name: os.system}", r"augment.monai\[0\].name: .*unknown; known are RandFlipd"),
        ("{name: [1]}", r"augment.monai\[0\].name: .*unknown"),
        ("{prob: 0.3}", r"augment.monai\[0\]: .*expected a name"),
        ("{name: RandBiasFieldd, coef_range: 1}", r"augment.monai\[0\].coef_range: .*did you mean coeff_range"),
        ("{name: RandBiasFieldd, prob: 3}", r"augment.monai\[0\].prob: found 3, expected a number from 0 to 1"),
        ("{name: RandBiasFieldd, prob: true}", r"augment.monai\[0\].prob: found True"),
        ("{name: RandAffined, mode: bilinear}", r"augment.monai\[0\].mode: "),
        ("{name: RandBiasFieldd, degree: 0}", r"augment.monai\[0\].degree: found 0; MONAI's RandBiasFieldd refuses"),
        ("{name: RandCoarseDropoutd}", r"augment.monai\[0\]: MONAI's .*holes"),
        ("{name: RandGibbsNoised, alpha: [0.9, 0.1]}", r"augment.monai\[0\].alpha: "),
    ],
)
def test_wrong_steps_are_located(step: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(f"augment:\n  monai:\n  - {step}\n", "x.yaml")


def test_the_second_step_is_named_and_its_line_too() -> None:
    text = "augment:\n  monai:\n  - {name: RandFlipd}\n  - name: RandGaussianNoised\n    std: a lot\n"
    with pytest.raises(ConfigError, match=r"x.yaml:5: augment.monai\[1\].std: found 'a lot', expected a number"):
        parse_config(text, "x.yaml")


def test_a_config_with_steps_survives_writing() -> None:
    text = "augment:\n  monai: [{name: RandBiasFieldd, prob: 0.3, coeff_range: [0.0, 0.1]}, {name: RandFlipd}]\n"
    file = parse_config(text, "x.yaml")
    assert parse_config(file.to_yaml(), "again").config == file.config
    assert file.config.augment.monai[0]["coeff_range"] == [0.0, 0.1]


def test_arguments_that_fail_only_on_a_patch_are_found_before_training() -> None:
    with pytest.raises(ConfigError, match=r"augment.monai\[0\].spatial_axis: .*refuses"):
        augmentation("RandFlipd", 2, spatial_axis=2)
    with pytest.raises(ConfigError, match=r"augment.monai\[0\].name: Rand2DElasticd takes no 3-D patches"):
        augmentation("Rand2DElasticd", 3)
    with pytest.raises(ConfigError, match=r"RandRotate90d exchanges the axes \(0, 1\)"):
        augmentation("RandRotate90d", 3).check_size((8, 12, 12))
    augmentation("RandRotate90d", 3, spatial_axes=[1, 2]).check_size((8, 12, 12))


class Shifted:
    """Adds to the image and, if asked, to the label; the registered kind of a careless user."""

    def __init__(self, by: float = 1.0, label: float = 0.0, crop: int = 0) -> None:
        if by < 0:
            raise ValueError("by is below 0")
        self.by, self.label, self.crop, self.seed = by, label, crop, 0

    def set_random_state(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, patch: dict[str, Any]) -> dict[str, Any]:
        return {
            "image": patch["image"][:, self.crop :] + self.by * (self.seed % 100),
            "label": patch["label"] + self.label,
        }


@pytest.fixture
def shifted() -> Any:
    register_transform("shifted", Shifted)
    yield
    monai_list.REGISTERED.remove("shifted")


@pytest.mark.usefixtures("shifted")
def test_a_registered_transform_is_used_by_its_name() -> None:
    settings = parse_config("augment: {monai: [{name: shifted, by: 2.0}]}", "x").config.augment
    augment = Augmentation(replace(AugmentSettings.none(), monai=settings.monai), 2)
    image, label = patch(2)
    one, classes = augment(image, label, Draw(0, 0, 1))
    two, _ = augment(image, label, Draw(0, 0, 2))
    assert np.array_equal(classes.numpy(), label) and not torch.equal(one, two)
    assert torch.equal(augment(image, label, Draw(0, 0, 1))[0], one)


@pytest.mark.usefixtures("shifted")
def test_a_registered_transform_cannot_open_the_set_of_labels_or_change_the_size() -> None:
    for by in (0.5, 1.0, 300.0, -300.0):
        step = {"name": "shifted", "label": by}
        with pytest.raises(ConfigError, match=r"augment.monai\[0\].label: .*made the label"):
            Augmentation(replace(AugmentSettings.none(), monai=(step,)), 2)
    with pytest.raises(ConfigError, match="has to keep its size"):
        Augmentation(replace(AugmentSettings.none(), monai=({"name": "shifted", "crop": 1},)), 2)
    with pytest.raises(ConfigError, match=r"augment.monai\[0\].by: found -1; shifted refuses it: by is below 0"):
        AugmentSettings(monai=({"name": "shifted", "by": -1},))


@pytest.mark.usefixtures("shifted")
def test_names_are_registered_once() -> None:
    for name in ("shifted", "RandFlipd"):
        with pytest.raises(ConfigError, match="exists already"):
            register_transform(name, Shifted)
    with pytest.raises(ConfigError, match="is no name"):
        register_transform("my own", Shifted)
