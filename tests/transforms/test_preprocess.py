"""Preprocessing and its undo: exact where voxels only move, close where they are resampled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import DataError
from medunet.transforms.preprocess import Normalisation, PreprocessSettings, ScanView, preprocess, preprocess_label
from medunet.transforms.restore import restore_labels
from medunet.volume import Volume
from tests.transforms.restoring import restore_scores

NONE = (Normalisation("none"),)


def random_volume(seed: int, shape: tuple[int, ...], channels: int = 1) -> Volume:
    """A scan in a random orthogonal orientation with random spacing, zero at its border."""
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    axes = np.eye(3)[random.permutation(3)] * random.choice([-1, 1], 3)[:, None]
    affine[:3, :3] = axes.T * random.uniform(0.5, 3, 3)
    affine[:3, 3] = random.normal(size=3) * 20
    array = random.normal(100, 20, size=(channels, *shape)).astype(np.float32)
    array[:, 0] = 0
    return Volume(array, affine)


def one_hot(indices: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([indices[0] == c for c in range(classes)]).astype(np.float32)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(*[st.integers(2, 9)] * 3),
    crop=st.sampled_from(["none", "nonzero"]),
    orientation=st.sampled_from(["RAS", "stored"]),
)
def test_undo_is_exact_without_resampling(seed, shape, crop, orientation) -> None:
    volume = random_volume(seed, shape)
    labels = np.random.default_rng(seed).integers(0, 4, size=(1, *shape)).astype(np.uint8)
    labels[:, 0] = 0
    array, undo = preprocess(volume, PreprocessSettings(orientation=orientation, crop=crop, normalise=NONE))
    moved = preprocess_label(labels, undo)
    assert array.shape[1:] == moved.shape[1:] == undo.shape
    np.testing.assert_array_equal(restore_labels(one_hot(moved, 4), undo), labels)
    scores = restore_scores(one_hot(moved, 4), undo)
    np.testing.assert_array_equal(scores.argmax(axis=0)[None], labels)
    # Image and label move alike: intensities are found again at the same places.
    restored = restore_scores(np.concatenate([np.zeros_like(array), array]), undo)[1]
    inside = volume.array[0] != 0
    np.testing.assert_array_equal(restored[inside], volume.array[0][inside])


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), target=st.tuples(*[st.floats(0.4, 4)] * 3))
def test_resampled_labels_are_a_closed_set_and_come_back_in_shape(seed, target) -> None:
    volume = random_volume(seed, (7, 8, 9))
    labels = np.random.default_rng(seed).choice([0, 3, 5], size=(1, 7, 8, 9)).astype(np.uint8)
    array, undo = preprocess(volume, PreprocessSettings(spacing=target, normalise=NONE))
    moved = preprocess_label(labels, undo)
    assert moved.dtype == np.uint8 and set(np.unique(moved)) <= {0, 3, 5}
    assert array.shape[1:] == moved.shape[1:]
    assert restore_labels(one_hot(moved, 6), undo).shape == labels.shape


def test_a_ball_survives_resampling_there_and_back() -> None:
    grid = np.indices((40, 40, 20)) * np.array([1, 1, 2]).reshape(3, 1, 1, 1)
    ball = (np.sum((grid - 20.0) ** 2, axis=0) < 12**2)[None].astype(np.uint8)
    volume = Volume(ball.astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    for spacing in ((1.5, 1.5, 1.5), (0.7, 0.9, 1.1)):
        _, undo = preprocess(volume, PreprocessSettings(spacing=spacing, normalise=NONE))
        back = restore_labels(one_hot(preprocess_label(ball, undo), 2), undo)
        dice = 2 * np.sum(back * ball) / (back.sum() + ball.sum())
        assert dice > 0.95
        # Not shifted: centres of mass agree far below half a voxel (nearest rounds one way at ties).
        centres = [np.argwhere(b[0]).mean(axis=0) for b in (back, ball)]
        np.testing.assert_allclose(centres[0], centres[1], atol=0.2)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    spacing=st.none() | st.tuples(*[st.floats(0.4, 4)] * 3),
    crop=st.sampled_from(["none", "nonzero"]),
    nonzero=st.booleans(),
    data=st.data(),
)
def test_any_box_of_a_view_is_a_part_of_the_whole(seed, spacing, crop, nonzero, data) -> None:
    volume = random_volume(seed, (7, 8, 12), channels=2)
    how = (Normalisation(nonzero=nonzero), Normalisation("minmax"))
    view = ScanView(volume, PreprocessSettings(spacing=spacing, crop=crop, normalise=how))
    whole, undo = preprocess(volume, PreprocessSettings(spacing=spacing, crop=crop, normalise=how))
    assert view.shape == whole.shape == (2, *undo.shape)
    starts = [data.draw(st.integers(0, n - 1)) for n in view.shape[1:]]
    box = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, view.shape[1:], strict=True))
    np.testing.assert_array_equal(view[(slice(None), *box)], whole[(slice(None), *box)])


def test_statistics_in_blocks_are_those_of_the_whole(rng, monkeypatch) -> None:
    values = rng.normal(1e4, 3, size=(1, 40, 30, 20)).astype(np.float32).transpose(0, 3, 1, 2)
    values[0, :, :7] = 0
    for how in (Normalisation(), Normalisation(nonzero=True), Normalisation("minmax")):
        settings = PreprocessSettings(normalise=(how,), crop="nonzero")
        whole, undo = preprocess(Volume(values), settings)
        monkeypatch.setattr("medunet.transforms.preprocess._BLOCK", 1000)
        blocks, undo_of_blocks = preprocess(Volume(values), settings)
        monkeypatch.undo()
        assert undo == undo_of_blocks and undo.crop[1] == slice(7, 40)
        np.testing.assert_allclose(blocks, whole, rtol=0, atol=1e-6)


def test_slabs_give_what_the_whole_gives(rng) -> None:
    """`restore_labels` goes slab by slab; the result must be the argmax of all scores restored at once."""
    volume = Volume(rng.normal(size=(1, 50, 9, 7)).astype(np.float32), np.diag([-0.5, 0.7, 1.0, 1.0]))
    _, undo = preprocess(volume, PreprocessSettings(spacing=(0.8, 0.8, 0.8), normalise=NONE))
    scores = rng.normal(size=(5, *undo.shape)).astype(np.float32)
    np.testing.assert_array_equal(restore_labels(scores, undo)[0], restore_scores(scores, undo).argmax(axis=0))


def test_cropped_voxels_are_the_stated_class() -> None:
    array = np.zeros((1, 6, 6, 6), dtype=np.float32)
    array[0, 2:4, 2:4, 2:4] = 5
    _, undo = preprocess(Volume(array), PreprocessSettings(crop="nonzero", normalise=NONE))
    assert undo.shape == (2, 2, 2)
    scores = np.stack([np.zeros((2, 2, 2)), np.ones((2, 2, 2))]).astype(np.float32)
    labels = restore_labels(scores, undo)
    assert labels.sum() == 8 and labels[0, 2:4, 2:4, 2:4].all()
    assert restore_labels(scores, undo, outside=7)[0, 0, 0, 0] == 7


def test_normalisations_against_plain_formulas(rng) -> None:
    values = rng.normal(50, 9, size=(1, 6, 7, 8)).astype(np.float32)
    values[0, :3] = 0

    def normalised(how: Normalisation) -> np.ndarray:
        return preprocess(Volume(values), PreprocessSettings(normalise=(how,)))[0]

    np.testing.assert_allclose(normalised(Normalisation()), (values - values.mean()) / values.std(), atol=1e-4)
    inside = values[values != 0]
    masked = normalised(Normalisation(nonzero=True))
    np.testing.assert_allclose(masked[values != 0], (inside - inside.mean()) / inside.std(), atol=1e-4)
    assert not masked[values == 0].any()
    ct = normalised(Normalisation("ct", low=40, high=60, mean=50, std=4))
    np.testing.assert_allclose(ct, (np.clip(values, 40, 60) - 50) / 4, atol=1e-5)
    assert normalised(Normalisation("minmax")).min() == 0 and normalised(Normalisation("minmax")).max() == 1
    np.testing.assert_array_equal(normalised(Normalisation("none")), values)


def test_channels_are_normalised_one_by_one(rng) -> None:
    values = np.stack([rng.normal(5, 1, (4, 4, 4)), rng.normal(1e6, 1e5, (4, 4, 4))]).astype(np.float32)
    array, _ = preprocess(Volume(values), PreprocessSettings())
    np.testing.assert_allclose(array.mean(axis=(1, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(array.std(axis=(1, 2, 3)), 1, atol=1e-3)


def test_a_constant_channel_becomes_zero() -> None:
    array, _ = preprocess(Volume(np.full((1, 3, 3, 3), 7.0)), PreprocessSettings())
    assert not array.any()


@pytest.mark.parametrize("kind", ["zscore", "minmax", "ct"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 100.1, 1e7 / 3, -1e-3])
def test_constant_scans_are_never_divided_by_nothing(kind: str, dtype: type, value: float) -> None:
    """Also with statistics of the data set's own constant foreground, or over no voxel at all (all are 0)."""
    if np.issubdtype(dtype, np.integer):
        value = float(np.clip(round(value), 0, np.iinfo(dtype).max))
    constant = Volume(np.full((1, 7, 6, 5), value, dtype))
    numbers = {"low": value, "high": value, "mean": value, "std": 0.0} if kind == "ct" else {}
    for nonzero in (False, True):
        how = Normalisation(kind, nonzero, **numbers)  # type: ignore[arg-type]
        array, _ = preprocess(constant, PreprocessSettings(normalise=(how,)))
        assert np.isfinite(array).all() and np.abs(array).max() <= 1e-7 * max(1.0, abs(value))


def test_rounding_is_not_blown_up_to_a_contrast() -> None:
    """Two neighbouring float32 numbers are one intensity; nearly constant scans that are none keep their contrast."""
    values = np.full((1, 4, 4, 4), 1e6, np.float32)
    values[0, :2] = np.nextafter(np.float32(1e6), np.float32(2e6))
    array, _ = preprocess(Volume(values), PreprocessSettings())
    assert np.abs(array).max() < 0.1
    values[0, :2] = 1e6 + 10
    array, _ = preprocess(Volume(values), PreprocessSettings())
    np.testing.assert_allclose(np.abs(array), 1, rtol=1e-2)


def test_microscopes_have_no_patient_orientation() -> None:
    """In um there is no 'right': axes stay as they are even where the affine runs backwards."""
    array = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    volume = Volume(array, np.diag([-1.0, 1.0, 1.0, 1.0]), unit="um")
    np.testing.assert_array_equal(preprocess(volume, PreprocessSettings(normalise=NONE))[0], array)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_by_name_and_number(bad: float) -> None:
    array = np.zeros((1, 3, 3, 3), dtype=np.float32)
    array[0, 0, 0, :2] = bad
    with pytest.raises(DataError, match="2 voxels are NaN or infinite"):
        preprocess(Volume(array), PreprocessSettings())


def test_shrinking_does_not_alias() -> None:
    """Stripes finer than the target voxel average out instead of turning into other stripes."""
    stripes = np.tile(np.array([0.0, 1.0], dtype=np.float32), 30).reshape(1, 60, 1, 1) * np.ones(
        (1, 60, 6, 6), np.float32
    )
    array, _ = preprocess(Volume(stripes), PreprocessSettings(spacing=(3.0, 1.0, 1.0), normalise=NONE))
    assert array[0, 2:-2].std() < 0.05


def test_voxel_sizes_within_a_percent_are_the_same_and_other_units_are_converted() -> None:
    array = np.zeros((1, 200, 4, 4), dtype=np.float32)
    settings = PreprocessSettings(spacing=(1.0, 1.0, 1.0), normalise=NONE)
    near = Volume(array, np.diag([1.006, 1.0, 0.995, 1.0]))
    assert preprocess(near, settings)[1].shape == (200, 4, 4)
    assert preprocess(Volume(array, np.diag([1.02, 1.0, 1.0, 1.0])), settings)[1].shape == (204, 4, 4)
    micrometres = Volume(array, np.diag([500.0, 1000.0, 1000.0, 1.0]), unit="um")
    assert preprocess(micrometres, settings)[1].shape == (100, 4, 4)
    with pytest.raises(DataError, match="in pixel, the target spacing in mm"):
        preprocess(Volume(array, unit="pixel"), settings)
