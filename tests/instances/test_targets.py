"""What is learned of object ids, against plain slow versions that look at every pair of voxels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.datasets.labels import IGNORE, LabelTable
from medunet.errors import ConfigError, DataError
from medunet.instances.settings import InstanceSettings
from medunet.instances.targets import UNKNOWN, make_target, number_objects, object_depths, part_touching

TABLE = LabelTable(("background", "cell"), (0, 1), None, "instances")
PARTLY = LabelTable(("background", "cell"), (0, 1), 65535, "instances")
TARGETS = ("foreground", "separated", "border", "cores")
quick = settings(deadline=None, max_examples=40)


@st.composite
def maps(draw: st.DrawFn, unknown: bool = False) -> np.ndarray:
    """Numbered objects in blocks, some in pieces, some at the edge, some of a voxel, `(1, *spatial)`."""
    shape = draw(st.sampled_from([(7, 9), (11, 5), (5, 6, 4), (1, 8), (2, 3, 7)]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    block, kinds = draw(st.sampled_from([1, 2, 3, 4])), draw(st.integers(1, 5))
    volume = random.integers(0, kinds + 1, [-(-n // block) for n in shape])
    for axis, n in enumerate(shape):
        volume = volume.repeat(block, axis).take(range(n), axis)
    if unknown:
        volume[random.random(shape) < draw(st.sampled_from([0.1, 0.5]))] = UNKNOWN
    return (
        np.unique(volume, return_inverse=True)[1].reshape(1, *shape).astype(np.int32)
        - int(volume.min() < 0)
        + (int(volume.min() > 0))
    )


spacings = st.sampled_from([(1.0, 1.0, 1.0), (1.0, 2.0, 3.0), (2.5, 1.0, 1.0), (0.25, 0.25, 0.5)])


def plain_depths(volume: np.ndarray, number: int, pitch: np.ndarray, whole: bool = True) -> dict[tuple, float]:
    """Of each voxel of an object its distance to the nearest known voxel that is not of it, 1 beside one of them."""
    mine = np.argwhere(volume == number)
    low, high = (mine.min(0) - 1, mine.max(0) + 1)
    others = [
        place for place in np.argwhere((volume != number) & (volume != UNKNOWN))
        if whole or (np.all(place >= low) and np.all(place <= high))
    ]  # fmt: skip
    depths = {}
    for place in mine:
        steps = [other - place for other in others]
        far = min((float(np.sqrt(np.sum((step * pitch) ** 2))) for step in steps), default=1.0)
        depths[tuple(place)] = 1.0 if any(np.abs(step).sum() == 1 for step in steps) else far
    return depths


def plain_target(objects: np.ndarray, spacing: tuple[float, ...], how: InstanceSettings, whole: bool) -> np.ndarray:
    volume = objects[0]
    target = np.where(volume == UNKNOWN, IGNORE, volume > 0).astype(np.uint8)
    pitch = np.array(spacing) / min(spacing)
    for number in set(volume[volume > 0].tolist()):
        depths = plain_depths(volume, number, pitch, whole)
        most = max(depths.values())
        for place, depth in depths.items():
            if how.target == "border":
                target[place] = 2 if depth <= how.border and depth < most else 1
            elif how.target == "cores":
                target[place] = 1 + sum(depth > share * most for share in how.depths)
    return target[None]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["foreground", "border", "cores"])
@quick
@given(data=st.data())
def test_targets_are_those_of_the_slow_version_on_the_whole_picture(target: str, data: st.DataObject) -> None:
    objects = data.draw(maps())
    spacing = data.draw(spacings)[: objects.ndim - 1]
    how = InstanceSettings(
        target, data.draw(st.sampled_from([1.0, 2.0, 2.5])), data.draw(st.sampled_from([(0.3, 0.6), (0.5,)]))
    )
    np.testing.assert_array_equal(make_target(objects, spacing, how), plain_target(objects, spacing, how, True))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["border", "cores"])
@quick
@given(objects=maps(unknown=True), spacing=spacings)
def test_where_some_is_unknown_the_edge_is_looked_for_in_the_box_and_a_voxel_around(
    target: str, objects: np.ndarray, spacing: tuple[float, ...]
) -> None:
    how, spacing = InstanceSettings(target), spacing[: objects.ndim - 1]
    np.testing.assert_array_equal(make_target(objects, spacing, how), plain_target(objects, spacing, how, False))


@pytest.mark.slow
@quick
@given(objects=maps(unknown=True))
def test_objects_are_parted_where_any_neighbour_is_of_another(objects: np.ndarray) -> None:
    volume, expected = objects[0], objects[0].copy()
    for place in np.argwhere(volume > 0):
        for step in product((-1, 0, 1), repeat=volume.ndim):
            there = tuple(place + np.array(step))
            inside = all(0 <= p < n for p, n in zip(there, volume.shape, strict=True))
            if inside and volume[there] > 0 and volume[there] != volume[tuple(place)]:
                expected[tuple(place)] = 0
    np.testing.assert_array_equal(part_touching(objects)[0], expected)
    np.testing.assert_array_equal(part_touching(part_touching(objects)), expected[None])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@quick
@given(data=st.data())
def test_only_learned_classes_come_out_whatever_the_ids_are_called(target: str, data: st.DataObject) -> None:
    objects = data.draw(maps(unknown=True))
    spacing = data.draw(spacings)[: objects.ndim - 1]
    how = InstanceSettings(target)
    found = make_target(objects, spacing, how)
    assert found.dtype == np.uint8 and found.shape == objects.shape
    assert set(np.unique(found)) <= {*range(how.learned(PARTLY).classes), IGNORE}
    np.testing.assert_array_equal(found == IGNORE, objects == UNKNOWN)
    if target != "separated":
        np.testing.assert_array_equal(how.mask(found), np.where(objects == UNKNOWN, IGNORE, objects > 0))
    ids = data.draw(st.lists(st.integers(1, 65534), min_size=50, max_size=50, unique=True))
    renamed = np.array([0, *ids])[np.maximum(objects, 0)]
    renamed[objects == UNKNOWN] = 65535
    again = number_objects(renamed.astype(np.uint16), PARTLY, "x")
    np.testing.assert_array_equal(make_target(again, spacing, how), found)


@quick
@given(objects=maps())
def test_every_object_has_an_inside_and_an_innermost_core(objects: np.ndarray) -> None:
    spacing = (1.0,) * (objects.ndim - 1)
    for how, deepest in ((InstanceSettings("border"), 1), (InstanceSettings("cores", depths=(0.3, 0.6, 0.9)), 4)):
        found = make_target(objects, spacing, how)
        for number in range(1, objects.max() + 1):
            assert deepest in found[objects == number]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32])
def test_ids_of_any_type_and_size_are_numbered_in_their_order(dtype: type) -> None:
    top = 2**24 if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max
    ids = np.array([[0, top, 3], [top - 1, 0, 3]], dtype)
    np.testing.assert_array_equal(number_objects(ids, TABLE, "x"), [[0, 3, 1], [2, 0, 1]])


def test_negative_and_broken_ids_are_refused_by_file() -> None:
    with pytest.raises(DataError, match=r"a\.tif: instance ids must not be negative, found -3"):
        number_objects(np.array([[0, -3]]), TABLE, "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: label values must be whole numbers"):
        number_objects(np.array([[0, 1.5]]), TABLE, "a.tif")


def test_the_edge_of_the_picture_is_no_edge_of_an_object() -> None:
    whole = np.zeros((1, 21, 21), np.int32)
    whole[0, 3:18, 3:18] = 1
    ((_, inside, depth),) = object_depths(whole[0, :11, :11], (1, 1))
    ((_, _, all_of_it),) = object_depths(whole[0], (1, 1))
    np.testing.assert_array_equal(depth[inside].reshape(8, 8), all_of_it[1:-1, 1:-1][:8, :8])


def test_objects_on_top_of_each_other_in_thick_slices_have_edges_and_cores_that_keep_apart() -> None:
    objects = np.zeros((1, 13, 13, 6), np.int32)
    objects[0, 2:11, 2:11, :3], objects[0, 2:11, 2:11, 3:] = 1, 2
    border = make_target(objects, (1, 1, 4), InstanceSettings("border", border=2.0))
    assert (border[0, 2:11, 2:11, 2:4] == 2).all()
    cores = make_target(objects, (1, 1, 4), InstanceSettings("cores"))
    assert (cores[0, 2:11, 2:11, 2:4] == 1).all() and cores[0, 6, 6, 0] == cores[0, 6, 6, 5] == 3


def test_sparsely_annotated_slices_give_the_depths_of_each_slice() -> None:
    objects = np.full((1, 11, 11, 9), UNKNOWN, np.int32)
    objects[..., 4] = 0
    objects[0, 3:8, 3:8, 4] = 1
    found = make_target(objects, (1, 1, 1), InstanceSettings("cores"))
    np.testing.assert_array_equal(found[..., 4], make_target(objects[..., 4], (1, 1), InstanceSettings("cores")))
    assert (np.delete(found, 4, axis=-1) == IGNORE).all()


def test_an_object_that_fills_the_picture_has_no_edge_and_an_empty_picture_nothing() -> None:
    full, empty = np.ones((1, 4, 5), np.int32), np.zeros((1, 4, 5), np.int32)
    values = {target: int(make_target(full, (1, 1), InstanceSettings(target)).max()) for target in TARGETS}
    assert values == {"foreground": 1, "separated": 1, "border": 1, "cores": 3}
    assert not any(make_target(empty, (1, 1), InstanceSettings(target)).any() for target in TARGETS)


@pytest.mark.parametrize("wrong", [{"border": 0.0}, {"border": float("nan")}, {"depths": ()}, {"depths": (0.6, 0.3)}])
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"instances\."):
        InstanceSettings(**wrong)
