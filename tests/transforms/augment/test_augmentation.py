"""Augmentation: labels stay labels, image and label stay together, and a draw is a draw."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, get_track_meta
from scipy import ndimage

from medunet.datasets.labels import IGNORE
from medunet.errors import ConfigError
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.augment.settings import AugmentSettings, Chance, Draw

ALWAYS = AugmentSettings(
    flip_probability=0.5,
    rotation=Chance(0.7, -45, 45),
    scaling=Chance(0.7, 0.7, 1.4),
    elastic=Chance(0.7, 0.5, 2),
    elastic_sigma=4,
    noise=Chance(0.5, 0, 0.3),
    blur=Chance(0.5, 0, 1),
    brightness=Chance(0.5, 0.5, 1.5),
    shift=Chance(0.5, -1, 1),
    contrast=Chance(0.5, 0.5, 1.5),
    low_resolution=Chance(0.5, 0.3, 1),
    gamma=Chance(0.5, 0.5, 2),
    gamma_inverted=Chance(0.5, 0.5, 2),
    haze=Chance(0.5, 0, 4),
)
STILL = AugmentSettings.none()


def only(**changes: object) -> AugmentSettings:
    return AugmentSettings(
        **{name: getattr(STILL, name) for name in STILL.__dataclass_fields__} | changes,  # type: ignore[arg-type]
    )


@pytest.mark.slow
def test_labels_stay_labels_over_a_thousand_augmentations() -> None:
    augmentations = {2: Augmentation(ALWAYS, 2), 3: Augmentation(ALWAYS, 3)}
    moved = 0
    for index in range(1000):
        rng = np.random.default_rng(index)
        dimensions = 2 + index % 2
        shape = tuple(rng.integers(2, 14, size=dimensions))
        values = rng.choice(255, size=rng.integers(1, 6), replace=False)
        dtype = np.uint8 if index % 3 else np.int16
        label = rng.choice(np.append(values, IGNORE) if index % 5 else values, size=(1, *shape)).astype(dtype)
        image = rng.normal(size=(rng.integers(1, 4), *shape)).astype(np.float16 if index % 7 == 0 else np.float32)
        size = tuple(int(rng.integers(2, n + 1)) for n in shape)

        after, classes = augmentations[dimensions](image, label, Draw(3, 0, index), size)

        assert set(np.unique(classes)) <= {*np.unique(label).tolist(), IGNORE}
        assert classes.numpy().dtype == dtype and classes.shape == (1, *size)
        assert after.dtype == torch.float32 and after.shape == (len(image), *size)
        assert torch.isfinite(after).all()
        assert type(after) is type(classes) is torch.Tensor
        moved += not np.array_equal(after, image)
    assert moved > 900


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("crop", [0, 3, 4])
def test_image_and_label_move_together(dimensions: int, crop: int) -> None:
    """A blob's thresholded image must stay the label, however it is moved.

    Nearest-neighbour labels jump by whole voxels, so the centre of mass of one draw may be off by a third of a voxel;
    a shift of image against label would show in the mean.
    """
    moving = only(
        rotation=Chance(0.8, -40, 40), scaling=Chance(0.8, 0.8, 1.3), elastic=Chance(0.5, 0.5, 1.5), elastic_sigma=8
    )
    augmentation = Augmentation(moving, dimensions)
    image, label = blob((30, 33, 31)[:dimensions], centre=(13.3, 17.6, 16.1)[:dimensions])
    size = tuple(n - crop for n in label.shape[1:])
    offsets, places = [], []
    for index in range(60):
        after, classes = augmentation(image, label, Draw(0, 0, index), size)
        places.append(ndimage.center_of_mass(classes[0].numpy() == 1))
        offsets.append(np.subtract(ndimage.center_of_mass(after[0].numpy() > 0.5), places[-1]))
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.1
    assert np.sqrt(np.mean(np.square(offsets), axis=0)).max() < 0.2
    assert np.ptp(places, axis=0).min() > 1


@pytest.mark.parametrize("size", [(16, 16), (15, 13), (9, 12)])
def test_cropping_moves_nothing_by_half_a_voxel(size: tuple[int, int]) -> None:
    """With a vanishing rotation the resampled crop is the plain crop."""
    image, label = blob((16, 17), centre=(7.0, 8.0))
    plain, plain_label = Augmentation(STILL, 2)(image, label, Draw(0, 0, 0), size)
    tiny = only(rotation=Chance(1, 1e-7, 1e-7))
    resampled, resampled_label = Augmentation(tiny, 2)(image, label, Draw(0, 0, 0), size)
    np.testing.assert_allclose(resampled, plain, atol=1e-5)
    np.testing.assert_array_equal(resampled_label, plain_label)


def test_a_rotation_agrees_with_scipy() -> None:
    image, label = blob((31, 31), centre=(12.0, 18.0), width=12)
    after, classes = Augmentation(only(rotation=Chance(1, 30, 30)), 2)(image, label, Draw(0, 0, 0))
    angles = [
        ndimage.rotate(image[0], sign * 30, reshape=False, order=1, mode="constant", prefilter=False)
        for sign in (1, -1)
    ]
    assert min(np.abs(angle - after[0].numpy()).max() for angle in angles) < 1e-4
    turned = [ndimage.rotate(label[0], sign * 30, reshape=False, order=0) for sign in (1, -1)]
    assert max((t == classes[0].numpy())[classes[0] != IGNORE].mean() for t in turned) > 0.99


def test_scaling_above_one_enlarges() -> None:
    image, label = blob((32, 32, 32), centre=(16, 16, 16))
    _, classes = Augmentation(only(scaling=Chance(1, 1.25, 1.25)), 3)(image, label, Draw(0, 0, 0))
    assert (classes == 1).sum().item() / label.sum() == pytest.approx(1.25**3, rel=0.05)


def test_voxels_from_outside_are_ignored_and_dark() -> None:
    label = np.ones((1, 20, 20), np.uint8)
    after, classes = Augmentation(only(rotation=Chance(1, 45, 45)), 2)(np.ones((1, 20, 20)), label, Draw(0, 0, 0))
    assert classes[0, 0, 0] == IGNORE and classes[0, 10, 10] == 1
    assert after[0, 0, 0] == 0 and after[0, 10, 10] == 1


@pytest.mark.parametrize("dimensions", [2, 3])
def test_reading_enough_surroundings_leaves_no_empty_corner(dimensions: int) -> None:
    augmentation = Augmentation(only(rotation=Chance(0.8, -45, 45), scaling=Chance(0.8, 0.7, 1.4)), dimensions)
    size = (12, 17, 9)[:dimensions]
    enlarged = 0
    for index in range(40):
        draw = Draw(1, 2, index)
        read = augmentation.read_size(size, draw)
        assert all(n >= m and (n - m) % 2 == 0 for n, m in zip(read, size, strict=True))
        _, classes = augmentation(np.ones((1, *read)), np.ones((1, *read), np.uint8), draw, size)
        assert (classes == 1).all()
        enlarged += read != size
    assert 20 < enlarged < 40


def test_the_coarse_axis_is_left_alone() -> None:
    settings_ = only(
        coarse_axis=2,
        rotation=Chance(1, -45, 45),
        scaling=Chance(1, 0.7, 1.3),
        elastic=Chance(1, 1, 2),
        elastic_sigma=8,
    )
    slices = np.broadcast_to(np.arange(7, dtype=np.uint8), (1, 24, 24, 7))
    after, classes = Augmentation(settings_, 3)(slices.astype(np.float32), slices, Draw(0, 0, 0))
    inside = classes[0] != IGNORE
    expected = torch.arange(7).expand(24, 24, 7)
    assert (classes[0][inside] == expected[inside]).all()
    np.testing.assert_allclose(after[0, 12, 12], np.arange(7), atol=1e-4)


def test_elastic_displacement_has_the_stated_size() -> None:
    """A ramp's displacement can be read off its values."""
    ramp = np.broadcast_to(np.arange(96, dtype=np.float32)[:, None], (1, 96, 96))
    augmentation = Augmentation(only(elastic=Chance(1, 2, 2), elastic_sigma=6), 2)
    squares = []
    for index in range(30):
        after, _ = augmentation(ramp, np.ones((1, 96, 96), np.uint8), Draw(0, 0, index))
        squares.append(float(((after - torch.from_numpy(ramp.copy()))[0, 16:80, 16:80] ** 2).mean()))
    assert np.mean(squares) ** 0.5 == pytest.approx(2, rel=0.15)


@pytest.mark.slow
@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 2**20), index=st.integers(0, 2**20))
@settings(deadline=None, max_examples=20)
def test_a_draw_depends_on_its_three_numbers_alone(seed: int, epoch: int, index: int) -> None:
    image, label = blob((12, 12), centre=(6, 5))
    augmentation = Augmentation(ALWAYS, 2)
    first = augmentation(image, label, Draw(seed, epoch, index))
    augmentation(image, label, Draw(seed, epoch, index + 1))
    again = augmentation(image, label, Draw(seed, epoch, index))
    fresh = Augmentation(ALWAYS, 2)(image, label, Draw(seed, epoch, index))
    for one, two, three in zip(first, again, fresh, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


def test_each_of_the_three_numbers_matters() -> None:
    image, label = blob((12, 12), centre=(6, 5))
    augmentation = Augmentation(only(noise=Chance(1, 0, 1)), 2)
    results = [
        augmentation(image, label, draw)[0] for draw in (Draw(0, 0, 0), Draw(1, 0, 0), Draw(0, 1, 0), Draw(0, 0, 1))
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_no_global_generator_or_flag_is_touched() -> None:
    image, label = blob((12, 12, 12), centre=(6, 5, 6))
    before = (np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate(), get_track_meta())  # noqa: NPY002
    augmentation = Augmentation(ALWAYS, 3)
    for index in range(20):
        augmentation(image, label, Draw(0, 0, index))
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]
    assert get_track_meta() == before[3]


def test_nothing_happens_without_settings_and_nothing_is_shared() -> None:
    image, label = blob((9, 8), centre=(4, 4))
    kept_image, kept_label = image.copy(), label.copy()
    image.setflags(write=False)
    after, classes = Augmentation(STILL, 2)(image, label, Draw(0, 0, 0))
    np.testing.assert_array_equal(after, kept_image)
    np.testing.assert_array_equal(classes, kept_label)
    after += 1
    classes += 1
    np.testing.assert_array_equal(image, kept_image)
    np.testing.assert_array_equal(label, kept_label)


def test_tensors_and_meta_tensors_give_the_same_plain_tensors() -> None:
    image, label = blob((12, 12), centre=(6, 5))
    augmentation = Augmentation(ALWAYS, 2)
    expected = augmentation(image, label, Draw(0, 0, 5))
    for kind in (torch.tensor, MetaTensor):
        found = augmentation(kind(image), kind(label), Draw(0, 0, 5))
        for one, two in zip(expected, found, strict=True):
            assert torch.equal(one, two) and type(two) is torch.Tensor


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_blur_keeps_a_flat_image_flat_up_to_its_rim(dimensions: int) -> None:
    """MONAI's own blur pads with zeros; a rim darker than the rest would be learned as anatomy."""
    flat = np.full((2, *(10,) * dimensions), 5, np.float32)
    label = np.zeros((1, *(10,) * dimensions), np.uint8)
    after, _ = Augmentation(only(blur=Chance(1, 1, 2)), dimensions)(flat, label, Draw(0, 0, 0))
    np.testing.assert_allclose(after, 5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["noise", "blur", "brightness", "shift", "contrast", "low_resolution", "gamma", "gamma_inverted", "haze"]
)
def test_each_intensity_change_changes_values_and_nothing_else(name: str) -> None:
    chance: Chance = getattr(ALWAYS, name)
    augmentation = Augmentation(only(**{name: Chance(1, chance.low, chance.high)}), 3)
    image, label = blob((22, 21, 23), centre=(10, 9, 12), width=8)
    image = np.concatenate([image, image * 2 + 1])
    after, classes = augmentation(image, label, Draw(0, 0, 1))
    np.testing.assert_array_equal(classes, label)
    assert not np.allclose(after, image, atol=1e-3)
    if name not in ("noise", "haze"):
        contrast = np.abs(after[0].numpy() - after[0, 0, 0, 0].item()) ** 2
        assert ndimage.center_of_mass(contrast) == pytest.approx((10, 9, 12), abs=0.1)


@pytest.mark.parametrize("shape", [(40, 30), (20, 16, 12)])
def test_haze_is_a_broad_blob_and_keeps_mean_and_variance(shape: tuple[int, ...]) -> None:
    """What is not the old image, at another scale, is a product of bells, one along each axis."""
    image = np.random.default_rng(0).normal(3, 2, size=(2, *shape)).astype(np.float32)
    label = np.zeros((1, *shape), np.uint8)
    augmentation, middles = Augmentation(only(haze=Chance(1, 3, 3)), len(shape)), []
    for index in range(20):
        after, _ = augmentation(image, label, Draw(0, 0, index))
        found = after.numpy().astype(float)
        assert found.mean() == pytest.approx(image.mean(), abs=1e-3)
        spreads = [np.sqrt(((a - a.mean((*range(1, a.ndim),), keepdims=True)) ** 2).mean()) for a in (image, found)]
        assert spreads[0] == pytest.approx(spreads[1], rel=1e-3)
        # Both channels got the same light, so their difference shows the scale.
        scale = np.std(found[0] - found[1]) / np.std(image[0] - image[1])
        light = (found[0] / scale - image[0]) - (found[0] / scale - image[0]).min()
        bends = [np.abs(np.diff(light, 2, axis=a)).max() for a in range(light.ndim)]
        assert scale <= 1 and 0.5 < light.max() <= 3.05
        # A bell's curvature is at most its height over the square of its width.
        assert all(b < 1.1 * 3 / (0.15 * n) ** 2 for b, n in zip(bends, shape, strict=True))
        middles.append(np.unravel_index(light.argmax(), shape))
    assert len(set(middles)) > 10
    flat = np.full((1, *shape), 5, np.float32)
    np.testing.assert_allclose(augmentation(flat, label, Draw(0, 0, 0))[0], 5, atol=1e-4)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2)])
def test_only_the_named_axes_are_mirrored(axes: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    label = (image > 0).astype(np.uint8)
    after, classes = Augmentation(only(flip_axes=axes, flip_probability=1), 3)(image, label, Draw(0, 0, 0))
    np.testing.assert_array_equal(after, np.flip(image, [a + 1 for a in axes]))
    np.testing.assert_array_equal(classes, np.flip(label, [a + 1 for a in axes]))


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_batch_becomes_what_its_patches_become_alone(dimensions: int) -> None:
    augmentation, size = Augmentation(ALWAYS, dimensions), (9, 12, 10)[:dimensions]
    draws = [Draw(4, 1, index) for index in range(12)]
    pairs = [blob(augmentation.read_size(size, draw), centre=(6, 5, 7)[:dimensions]) for draw in draws]
    images, labels = augmentation.batch([i for i, _ in pairs], [k for _, k in pairs], draws, size)
    assert images.shape == (12, 1, *size) and labels.shape == (12, 1, *size)
    for index, ((image, label), draw) in enumerate(zip(pairs, draws, strict=True)):
        one, known = augmentation.batch([image], [label], [draw], size)
        alone, classes = augmentation(image, label, draw, size)
        assert torch.equal(images[index], one[0]) and torch.equal(labels[index], known[0])
        assert torch.equal(images[index], alone) and torch.equal(labels[index], classes)
    with pytest.raises(ValueError, match="at least one"):
        augmentation.batch([], [], [], size)


@pytest.mark.slow
def test_threads_do_not_change_a_moved_patch() -> None:
    image, label = blob((80, 80, 80), centre=(30, 40, 50))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(Augmentation(ALWAYS, 3)(image, label, Draw(0, 0, 3), (64, 62, 60)))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("moving", [False, True])
def test_quarter_turns_are_exact_turns_of_the_patch(dimensions: int, moving: bool) -> None:
    """With a vanishing rotation the turn goes through the resampling, and must come out the same."""
    turns = only(quarter_turns=1, rotation=Chance(float(moving), 1e-9, 1e-9))
    size = (4, 6, 8)[:dimensions]
    rng, augmentation, seen = np.random.default_rng(0), Augmentation(turns, dimensions), set()
    for index in range(60):
        draw = Draw(0, 0, index)
        read = augmentation.read_size(size, draw)
        image = rng.normal(size=(1, *read)).astype(np.float32)
        label = (image > 0).astype(np.uint8)
        after, classes = augmentation(image, label, draw, size)
        np.testing.assert_array_equal(classes, after > 0)
        planes = [(k, axes) for axes in ((1, 2), (1, 3), (2, 3)) if max(axes) <= dimensions for k in (1, 2, 3)]
        turned = {plane: np.rot90(image, *plane) for plane in planes}
        large = [p for p, t in turned.items() if all(n >= m for n, m in zip(t.shape[1:], size, strict=True))]
        fits = [p for p in large if np.allclose(after, middle(turned[p], size), atol=1e-5)]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) == (3 if dimensions == 2 else 9)


@pytest.mark.parametrize("moving", [0.0, 1.0])
def test_a_turned_patch_without_surroundings_is_ignored_and_dark_outside(moving: float) -> None:
    augmentation = Augmentation(only(quarter_turns=1, rotation=Chance(moving, 1e-9, 1e-9)), 2)
    shapes = set()
    for index in range(20):
        after, classes = augmentation(np.ones((1, 4, 8)), np.ones((1, 4, 8), np.uint8), Draw(0, 0, index))
        known = classes[0].numpy() == 1
        assert (classes[0].numpy()[~known] == IGNORE).all()
        np.testing.assert_allclose(after[0], known, atol=1e-5)
        shapes.add((known.any(1).sum(), known.any(0).sum()))
    assert shapes == {(4, 8), (4, 4)}
    with pytest.raises(ConfigError, match="odd and even"):
        augmentation(np.ones((1, 4, 7)), np.ones((1, 4, 7), np.uint8), Draw(0, 0, 0))


def test_quarter_turns_leave_the_coarse_axis_alone_and_do_not_mirror() -> None:
    augmentation = Augmentation(only(quarter_turns=1, coarse_axis=2), 3)
    slices = np.broadcast_to(np.arange(5, dtype=np.float32), (1, 6, 6, 5))
    letter = np.zeros((1, 6, 6, 5), np.uint8)
    letter[0, 1:5, 1] = letter[0, 4, 1:4] = 1
    turned = [np.rot90(letter, k, (1, 2)) for k in (1, 2, 3)]
    for index in range(20):
        after, classes = augmentation(slices, letter, Draw(0, 0, index))
        np.testing.assert_array_equal(after, slices)
        assert any(np.array_equal(classes, t) for t in turned)


def test_scaling_per_axis_changes_proportions() -> None:
    image, label = blob((40, 40, 40), centre=(20, 20, 20), width=100)
    for per_axis in (False, True):
        augmentation = Augmentation(only(scaling=Chance(1, 0.7, 1.4), scaling_per_axis=per_axis), 3)
        spreads = []
        for index in range(12):
            _, classes = augmentation(image, label, Draw(0, 0, index))
            extent = np.argwhere(classes[0].numpy() == 1).std(axis=0)
            spreads.append(extent.max() / extent.min())
        assert (max(spreads) > 1.2) == per_axis and (max(spreads) < 1.05) == (not per_axis)


def test_mirrors_fold_into_the_resampling() -> None:
    image, label = blob((15, 14, 13), centre=(5, 8, 6))
    chance = Chance(1, 1e-9, 1e-9)
    for index in range(8):
        still = Augmentation(only(flip_axes=(0, 2), flip_probability=0.5), 3)(image, label, Draw(0, 0, index))
        moved = Augmentation(only(flip_axes=(0, 2), flip_probability=0.5, rotation=chance), 3)(
            image, label, Draw(0, 0, index)
        )
        np.testing.assert_allclose(still[0], moved[0], atol=1e-5)
        np.testing.assert_array_equal(still[1], moved[1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Chance(1.5, 0, 1), "between 0 and 1"),
        (lambda: Chance(0.5, 1, 0), "low to high"),
        (lambda: Chance(0.5, 0, float("nan")), "low to high"),
        (lambda: AugmentSettings(scaling=Chance(1, 0, 1)), "'scaling'"),
        (lambda: AugmentSettings(noise=Chance(1, 0.1, 1)), "'noise'"),
        (lambda: AugmentSettings(low_resolution=Chance(1, 0.5, 2)), "'low_resolution'"),
        (lambda: AugmentSettings(elastic=Chance(1, 0, 9)), "elastic_sigma"),
        (lambda: AugmentSettings(rotation=Chance(1, -200, 0)), "'rotation'"),
        (lambda: AugmentSettings(flip_axes=(3,)), "axes are 0, 1 and 2"),
        (lambda: AugmentSettings(flip_probability=2), "flip_probability"),
        (lambda: AugmentSettings(quarter_turns=-0.1), "quarter_turns"),
        (lambda: Augmentation(AugmentSettings(quarter_turns=0.5), 3).check_size((8, 9, 8)), "odd and even"),
        (lambda: Augmentation(AugmentSettings(flip_axes=(2,)), 2), "axis 2"),
        (lambda: Augmentation(AugmentSettings(coarse_axis=0), 2), "coarse_axis"),
        (lambda: Draw(-1, 0, 0), "negative"),
    ],
)
def test_impossible_settings_are_refused(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("image", "label", "size"), [((5, 5), (5, 4), None), ((5, 5), (5, 5), (6, 5)), ((5, 5, 5), (5, 5, 5), (5, 5))]
)
def test_arrays_that_do_not_fit_are_refused(
    image: tuple[int, ...], label: tuple[int, ...], size: tuple[int, ...] | None
) -> None:
    with pytest.raises(ValueError, match=r"do not fit|cannot give"):
        Augmentation(STILL, len(label))(np.zeros((1, *image)), np.zeros((1, *label), np.uint8), Draw(0, 0, 0), size)


def middle(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    starts = [(n - m) // 2 for n, m in zip(array.shape[1:], size, strict=True)]
    return array[(slice(None), *(slice(s, s + n) for s, n in zip(starts, size, strict=True)))]


def blob(shape: tuple[int, ...], centre: tuple[float, ...], width: float = 60) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image, 1 at the centre, and the label where it is above one half."""
    grid = np.indices(shape, dtype=np.float32)
    distance = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
    image = np.exp(-distance / width).astype(np.float32)[None]
    return image, (image > 0.5).astype(np.uint8)
