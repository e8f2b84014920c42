"""The weight map of 2015 against the formula on whole pictures, object by object."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as scipy_label

from medunet.datasets.labels import IGNORE
from medunet.errors import ConfigError, DataError
from medunet.instances.targets import UNKNOWN, part_touching
from medunet.instances.weightmap import REACH, WeightMapSettings, class_balance, gap_weights, parts_of_class

ON = WeightMapSettings("unet2015")
quick = settings(deadline=None, max_examples=40)


@st.composite
def scattered(draw: st.DrawFn) -> np.ndarray:
    """Boxes of objects that touch, overlap, hang over the edge and lie far apart; some voxels unknown."""
    shape = draw(st.sampled_from([(40, 30), (64, 20), (16, 18, 12), (1, 50)]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    volume = np.zeros(shape, np.int32)
    for number in range(1, draw(st.integers(0, 6)) + 1):
        corner = [int(random.integers(-2, n)) for n in shape]
        size = random.integers(1, 7, len(shape))
        volume[tuple(slice(max(c, 0), max(c + int(s), 0)) for c, s in zip(corner, size, strict=True))] = number
    volume[random.random(shape) < draw(st.sampled_from([0.0, 0.05]))] = UNKNOWN
    return volume[None]


def plain(objects: np.ndarray, pitch: tuple[float, ...], how: WeightMapSettings) -> np.ndarray:
    """The formula, with a distance transform of the whole picture for every object."""
    volume = part_touching(objects)[0]
    numbers = [n for n in np.unique(volume) if n > 0]
    if len(numbers) < 2:
        return np.zeros(objects.shape)
    distances = np.sort([distance_transform_edt(volume != n, sampling=pitch) for n in numbers], axis=0)
    weights = how.w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * how.sigma**2))
    return np.where((volume > 0) | (objects[0] == UNKNOWN), 0, weights)[None]


@pytest.mark.slow
@quick
@given(
    objects=scattered(),
    sigma=st.sampled_from([0.7, 2.0, 5.0]),
    w0=st.sampled_from([1.0, 10.0, 300.0]),
    pitch=st.sampled_from([(1.0, 1.0, 1.0), (1.0, 2.2, 3.0), (0.3, 0.3, 0.9)]),
)
def test_the_map_is_the_formula_within_the_bound_that_is_stated(
    objects: np.ndarray, sigma: float, w0: float, pitch: tuple[float, ...]
) -> None:
    how, pitch = WeightMapSettings("unet2015", w0, sigma), pitch[: objects.ndim - 1]
    found, expected = gap_weights(objects, pitch, how).astype(float), plain(objects, pitch, how)
    assert found.shape == objects.shape
    rounding = 1e-3 * expected + 1e-6
    assert (found <= expected + rounding).all()
    assert (expected - found <= w0 * math.exp(-(REACH**2) / 2) + rounding).all()


@pytest.mark.slow
@quick
@given(objects=scattered(), seed=st.integers(0, 1000))
def test_it_does_not_depend_on_numbers_nor_on_which_way_round_the_picture_is(objects: np.ndarray, seed: int) -> None:
    pitch = (1.0,) * (objects.ndim - 1)
    found = gap_weights(objects, pitch, ON)
    order = np.random.default_rng(seed).permutation(7) + 1
    renamed = np.where(objects > 0, order[objects - 1], objects).astype(np.int32)
    np.testing.assert_array_equal(gap_weights(renamed, pitch, ON), found)
    turned = gap_weights(np.ascontiguousarray(np.flip(objects, 1).swapaxes(1, 2)), pitch, ON)
    np.testing.assert_array_equal(turned, np.flip(found, 1).swapaxes(1, 2))


def test_a_gap_of_the_paper_by_hand_and_objects_that_touch_are_parted_first() -> None:
    objects = np.zeros((1, 1, 30), np.int32)
    objects[..., 3:10], objects[..., 13:20] = 1, 2
    found = gap_weights(objects, (1, 1), ON)[0, 0].astype(float)
    # Voxels 10, 11, 12 lie 1, 2, 3 from one and 3, 2, 1 from the other.
    np.testing.assert_allclose(found[10:13], 10 * math.exp(-(4**2) / 50), rtol=1e-3)
    np.testing.assert_allclose(found[[2, 20]], 10 * math.exp(-(12**2) / 50), rtol=1e-3)
    assert not found[3:10].any() and not found[13:20].any()
    objects[..., 10:13] = 1
    touching = gap_weights(objects, (1, 1), ON)[0, 0].astype(float)
    np.testing.assert_allclose(touching[12:14], 10 * math.exp(-(3**2) / 50), rtol=1e-3)


def test_sigma_in_um_is_that_many_pixels_of_that_size() -> None:
    objects = np.zeros((1, 20, 12, 6), np.int32)
    objects[0, 4:8, 3:9, 1:4], objects[0, 10:14, 3:9, 2:5] = 1, 2
    physical = WeightMapSettings("unet2015", sigma=1.0, sigma_unit="um")
    pitch = physical.pitch((0.2, 0.2, 0.6), "um", "x")
    assert pitch == pytest.approx((0.2, 0.2, 0.6))
    assert physical.pitch((2e2, 2e2, 6e2), "nm", "x") == pytest.approx(pitch)
    pixels = ON.pitch((0.2, 0.2, 0.6), "um", "x")
    assert pixels == pytest.approx((1, 1, 3))
    np.testing.assert_allclose(
        gap_weights(objects, pitch, physical), gap_weights(objects, pixels, ON), rtol=2e-3, atol=1e-3
    )
    with pytest.raises(DataError, match=r"case_3: its image has no pixel size.*\n.*sigma_unit: pixel"):
        physical.pitch((1, 1), "pixel", "case_3")


def test_balanced_classes_weigh_the_same_in_all() -> None:
    weights = class_balance([900, 90, 10, 0])
    assert weights[3] == 1
    assert [w * n for w, n in zip(weights[:3], (900, 90, 10), strict=True)] == pytest.approx([250] * 3)


@pytest.mark.parametrize(
    "wrong", [{"kind": "unet"}, {"w0": -1}, {"w0": 1e5}, {"sigma": 0}, {"sigma": math.nan}, {"sigma_unit": "mm"}]
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"weight_map\."):
        WeightMapSettings(**wrong)


def test_cells_that_a_membrane_parts_are_objects_and_the_membrane_weighs_most_where_it_is_thin() -> None:
    indices = np.ones((1, 20, 30), np.uint8)
    indices[:, :, 10] = 0  # one voxel between two cells
    indices[:, :, 20:26] = 0  # six
    indices[:, 5, 10] = IGNORE
    for place in range(6):
        indices[:, 14 + place, 12 + place] = 0  # a diagonal parts, too
        indices[:, 14 + place, 10 : 12 + place] = 0
    objects = parts_of_class(indices, 1)
    assert objects.dtype == np.int32 and objects.shape == indices.shape
    assert set(np.unique(objects)) == {UNKNOWN, 0, 1, 2, 3} and objects[0, 5, 10] == UNKNOWN
    assert ((objects > 0) == (indices == 1)).all()
    expected, _ = scipy_label(indices[0] == 1)
    np.testing.assert_array_equal(objects[0] * (indices[0] == 1), expected)
    weights = gap_weights(objects, (1.0, 1.0), ON)[0]
    assert weights[8, 10] == pytest.approx(10 * math.exp(-(2**2) / 50), rel=1e-3)
    assert weights[8, 22] == pytest.approx(10 * math.exp(-(7**2) / 50), rel=1e-3)
    assert weights[5, 10] == 0 and (weights[indices[0] == 1] == 0).all()
