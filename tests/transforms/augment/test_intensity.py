"""Changes of values against MONAI's transforms and plain formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai import transforms as m
from monai.data import get_track_meta, set_track_meta

from medunet.transforms.augment.intensity import change_values
from medunet.transforms.augment.settings import AugmentSettings, Chance

STILL = AugmentSettings.none()
SHAPES = [(1, 12, 9), (2, 12, 9, 10)]


def changed(image: np.ndarray, settings: AugmentSettings, seed: int = 0) -> np.ndarray:
    return change_values(torch.from_numpy(image.copy()), settings, np.random.default_rng(seed)).numpy()


def pictures(shape: tuple[int, ...], offset: float = 3) -> np.ndarray:
    return (np.random.default_rng(1).normal(size=shape) * 2 + offset).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_is_monais(shape: tuple[int, ...], inverted: bool, exponent: float) -> None:
    before = get_track_meta()
    set_track_meta(False)
    try:
        expected = m.AdjustContrast(exponent, invert_image=inverted, retain_stats=True)(pictures(shape))
    finally:
        set_track_meta(before)
    name = "gamma_inverted" if inverted else "gamma"
    found = changed(pictures(shape), replace(STILL, **{name: Chance(1, exponent, exponent)}))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found.mean() == pytest.approx(pictures(shape).mean(), abs=1e-4)
    assert found.std() == pytest.approx(pictures(shape).std(), rel=1e-4)


def test_gamma_keeps_statistics_far_from_zero() -> None:
    """Where the mean is a hundred deviations from 0, sums of squares would lose all digits."""
    image = pictures((1, 24, 25, 26), offset=200)
    found = changed(image, replace(STILL, gamma=Chance(1, 1.4, 1.4)))
    assert found.astype(float).std() == pytest.approx(image.astype(float).std(), rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_image_stays_constant(shape: tuple[int, ...]) -> None:
    flat = np.full(shape, 4, np.float32)
    for name in ("gamma", "gamma_inverted", "blur", "low_resolution", "contrast"):
        chance: Chance = getattr(AugmentSettings(), name)
        np.testing.assert_allclose(
            changed(flat, replace(STILL, **{name: replace(chance, probability=1)})), 4, rtol=1e-6
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_brightness_shift_and_contrast_in_one_pass_are_the_three_in_turn(shape: tuple[int, ...]) -> None:
    image = pictures(shape)
    all_three = replace(
        STILL, brightness=Chance(1, 1.3, 1.3), shift=Chance(1, -0.4, -0.4), contrast=Chance(1, 0.6, 0.6)
    )
    step = image * 1.3 - 0.4
    mean = step.mean(axis=tuple(range(1, step.ndim)), keepdims=True)
    np.testing.assert_allclose(changed(image, all_three), (step - mean) * 0.6 + mean, atol=1e-5)


def test_brightness_and_shift_are_drawn_for_each_channel() -> None:
    image = np.ones((3, 4, 4), np.float32)
    for name in ("brightness", "shift"):
        values = changed(image, replace(STILL, **{name: Chance(1, 0.1, 0.9)}))
        assert len(np.unique(values[:, 0, 0])) == 3 and (values == values[:, :1, :1]).all()


def test_noise_has_the_drawn_deviation() -> None:
    noise = changed(np.zeros((1, 60, 60, 10), np.float32), replace(STILL, noise=Chance(1, 0, 0.2)))
    drawn = np.random.default_rng(0).random(2)[1] * 0.2
    assert noise.std() == pytest.approx(drawn, rel=0.02) and abs(noise.mean()) < 0.01 * 0.2


def test_a_change_does_not_move_another_ones_draw() -> None:
    """Switching blur off must leave the noise of every patch as it was."""
    image = pictures((1, 8, 8, 8))
    noise = changed(image, replace(STILL, noise=Chance(1, 0, 0.5)))
    for name in ("blur", "brightness", "gamma"):
        unlikely = replace(getattr(AugmentSettings(), name), probability=1e-12)
        np.testing.assert_array_equal(
            changed(image, replace(STILL, noise=Chance(1, 0, 0.5), **{name: unlikely})), noise
        )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 64, 64, 64), (2, 130, 127)])
def test_the_number_of_threads_changes_nothing(shape: tuple[int, ...]) -> None:
    """Workers have one thread, the training process several; their patches must be equal to the last bit."""
    chances = ("noise", "blur", "brightness", "shift", "contrast", "low_resolution", "gamma", "gamma_inverted")
    always = {name: replace(getattr(AugmentSettings(), name), probability=1) for name in chances}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(changed(pictures(shape), replace(STILL, **always), seed=5))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)
