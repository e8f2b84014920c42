"""Sampling between voxels against torch's own, and separable matrices against torch and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medunet.datasets.labels import IGNORE
from medunet.transforms.augment import sampling
from medunet.transforms.augment.sampling import Look, along_axes, blur_matrix, linear_matrix, resample, shrink_matrix


@pytest.mark.slow
@given(
    dimensions=st.integers(2, 3),
    channels=st.integers(1, 2),
    seed=st.integers(0, 10**6),
    displaced=st.booleans(),
    chunk=st.sampled_from([1, 40, 1 << 16]),
)
@settings(deadline=None, max_examples=120)
def test_resampling_equals_grid_sample_and_rounding(
    dimensions: int, channels: int, seed: int, displaced: bool, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    shape, size = (tuple(int(n) for n in rng.integers(1, 12, size=dimensions)) for _ in range(2))
    image = torch.from_numpy(rng.normal(size=(channels, *shape)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, 5, size=(1, *shape)).astype(np.uint8))
    matrix = np.eye(dimensions) * rng.choice([0, 0.5, 1]) + rng.normal(size=(dimensions, dimensions)) * rng.choice(
        [0.1, 0.7]
    )
    displacement = torch.from_numpy(rng.normal(size=(dimensions, *size)).astype(np.float32)) if displaced else None
    look = Look(size, matrix, tuple(rng.uniform(0, n) for n in shape), displacement)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_CHUNK", chunk)
        seen, classes = resample(image, label, look)

    offsets = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"))
    places = np.tensordot(matrix, offsets, 1) + np.reshape(look.centre, (-1, *(1,) * dimensions))
    places = places + (0 if displacement is None else displacement.numpy())
    grid = np.stack([(2 * p + 1) / n - 1 for p, n in zip(places[::-1], reversed(shape), strict=True)], axis=-1)
    expected = torch.nn.functional.grid_sample(image[None].double(), torch.from_numpy(grid)[None], align_corners=False)
    np.testing.assert_allclose(seen, expected[0], atol=2e-4)

    nearest = np.rint(places).astype(int)
    inside = np.all([(p >= 0) & (p < n) for p, n in zip(nearest, shape, strict=True)], axis=0)
    known = label[0].numpy()[tuple(np.clip(p, 0, n - 1) for p, n in zip(nearest, shape, strict=True))]
    unsure = (np.abs(places - np.floor(places) - 0.5) < 1e-4).any(axis=0)
    agree = np.where(inside, known, IGNORE) == classes[0].numpy()
    assert (agree | unsure).all()


def test_positions_within_the_array_need_no_border(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way without padding gives what the way with padding gives."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(2, 20, 22, 24)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, 9, size=(1, 20, 22, 24)).astype(np.int16))
    look = Look((9, 8, 7), np.eye(3) + rng.normal(size=(3, 3)) * 0.2, (9.5, 10.5, 11.5))
    assert look.within((20, 22, 24)) and not look.within((9, 22, 24))
    found = resample(image, label, look)
    monkeypatch.setattr(Look, "within", lambda *_: False)
    for one, two in zip(found, resample(image, label, look), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 7, 64])
@pytest.mark.parametrize("sigma", [0, 0.3, 0.8, 2.5])
def test_a_blur_matrix_is_scipys_gaussian(length: int, sigma: float) -> None:
    values = np.random.default_rng(0).normal(size=length)
    expected = ndimage.gaussian_filter1d(values, sigma, mode="nearest", truncate=3) if sigma else values
    np.testing.assert_allclose(blur_matrix(length, sigma) @ values, expected, atol=1e-6)


@pytest.mark.slow
@given(length=st.integers(1, 40), share=st.floats(0.02, 1), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=50)
def test_shrinking_and_enlarging_are_torchs(length: int, share: float, seed: int) -> None:
    fewer = max(round(length * share), 1)
    values = np.random.default_rng(seed).normal(size=length)
    shrunk = shrink_matrix(length, fewer) @ values
    interpolate = torch.nn.functional.interpolate
    area = interpolate(torch.from_numpy(values)[None, None], size=fewer, mode="area")
    np.testing.assert_allclose(shrunk, area[0, 0], atol=1e-9)
    places = (np.arange(length) + 0.5) * fewer / length - 0.5
    linear = interpolate(area, size=length, mode="linear", align_corners=False)
    np.testing.assert_allclose(linear_matrix(fewer, places) @ shrunk, linear[0, 0], atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 5, 6, 7), (3, 1, 2, 3)])
def test_along_axes_is_a_product_per_axis(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=shape).astype(np.float32)
    matrices = [rng.normal(size=(4 + axis, n)) for axis, n in enumerate(shape[1:])]
    expected = array.astype(float)
    for axis, matrix in enumerate(matrices, start=1):
        expected = np.moveaxis(np.tensordot(matrix, expected, (1, axis)), 0, axis)
    np.testing.assert_allclose(along_axes(torch.from_numpy(array), matrices), expected, rtol=1e-4, atol=1e-4)
    untouched = along_axes(torch.from_numpy(array), [None] * (len(shape) - 1))
    np.testing.assert_array_equal(untouched, array)
