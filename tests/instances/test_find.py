"""Numbering: slab by slab and component by component is the same as over the whole scan at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure, segmentation

import medunet.instances.find as objects_module
from medunet.datasets.labels import LabelTable
from medunet.datasets.regions import Region
from medunet.errors import ConfigError, MedunetError
from medunet.geometry.boxes import Box
from medunet.geometry.grids import identity_orientation
from medunet.instances.find import Landscape, Workspace, find_objects_of
from medunet.instances.settings import CORE_DEPTH, ElevationRule, InstanceSettings
from medunet.instances.watershed import ObjectRule, cut_by_depth
from medunet.networks.settings import UNetSettings
from medunet.prediction.members import elevation_rule_of
from medunet.system.scratch import Scratch
from medunet.transforms.preprocess import Undo
from tests.prediction.made import make_model

IDS = LabelTable(("background", "cell"), (0, 1), None, "instances")
KEEP_ALL = ObjectRule()


def number(
    levels: np.ndarray,
    elevation: np.ndarray | None,
    rule: ObjectRule,
    reach: int = 0,
    work: Workspace | None = None,
    **learned: float,
) -> np.ndarray:
    """Ids `(*spatial)` of arrays that run over z, y, x, as the numbering does."""
    shape = levels.shape[::-1]
    undo = Undo(identity_orientation(levels.ndim), shape, Box.of_shape(shape).slices, shape)
    elevation_rule = ElevationRule((), None if elevation is None else (1.0,), reach, **learned)  # type: ignore[arg-type]
    landscape = Landscape(elevation_rule, undo, levels.T, None if elevation is None else elevation.T)
    found = find_objects_of(landscape, rule, (1.0,) * levels.ndim, work or Workspace(np.empty, 2**30))
    assert found.count == found.ids.max(initial=0)
    return found.ids[0].T


def plain(levels: np.ndarray, elevation: np.ndarray | None, rule: ObjectRule) -> np.ndarray:
    """The oracle: scikit-image on the whole, every step by itself."""
    mask, ndim = levels > 0, levels.ndim
    ids = measure.label(mask, connectivity=ndim)
    if elevation is not None:
        seeds = np.zeros(levels.shape, np.int32)
        for level in (3, 2, 1):
            for part in measure.regionprops(measure.label(levels >= level, connectivity=ndim)):
                here = tuple(part.coords.T)
                if not seeds[here].any():
                    seeds[here] = seeds.max() + 1
        height = elevation.astype(float)
        height[seeds > 0] = np.arange(-(seeds > 0).sum(), 0) + elevation.min() - 1
        ids = segmentation.watershed(height, seeds, connectivity=ndim, mask=mask)
    if rule.fill_holes:
        for part in sorted(measure.regionprops(ids), key=lambda p: np.prod(p.image.shape)):
            ids[(ndimage.binary_fill_holes(ids == part.label)) & (ids == 0)] = part.label
    if rule.drop_edge:
        ids = segmentation.clear_border(ids)
    for part in measure.regionprops(ids):
        if part.area < (rule.min_size or 0):
            ids[ids == part.label] = 0
    return _by_first_voxel(ids)


def _by_first_voxel(ids: np.ndarray) -> np.ndarray:
    values, first = np.unique(ids, return_index=True)
    values, first = values[values > 0], first[values > 0]
    names = np.zeros(ids.max() + 1, int)
    names[values[np.argsort(first)]] = np.arange(1, len(values) + 1)
    return names[ids]


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(17, 13), (1, 9), (9, 1), (7, 6, 8), (6, 1, 9)]),
    share=st.sampled_from([0.1, 0.4, 0.7, 1.0]),
    chunk=st.sampled_from([1, 30, 100, 10**6]),
    learned=st.booleans(),
    rule=st.builds(
        ObjectRule, min_size=st.sampled_from([None, 0, 4]), fill_holes=st.booleans(), drop_edge=st.booleans()
    ),
)  # fmt: skip
@settings(max_examples=75, deadline=None)
def test_objects_are_those_of_the_whole_scan_at_once(
    seed: int, shape: tuple[int, ...], share: float, chunk: int, learned: bool, rule: ObjectRule
) -> None:
    random = np.random.default_rng(seed)
    levels = (random.integers(1, 4, shape) * (random.random(shape) < share)).astype(np.uint8)
    elevation = random.integers(0, 3, shape).astype(np.float32) if learned else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects_module, "_CHUNK", chunk)
        found = number(levels, elevation, rule)
    np.testing.assert_array_equal(found, plain(levels, elevation, rule))


def plain_necks(mask: np.ndarray, depth: float) -> np.ndarray:
    """The oracle: distances, h-maxima by repeated dilation, and the watershed, each of the whole scan at once."""
    distance = np.where(mask, ndimage.distance_transform_edt(mask), -depth)
    below, before = np.where(mask, distance - depth, -depth), None
    while before is None or (below != before).any():
        before, below = below, np.minimum(ndimage.grey_dilation(below, (3,) * mask.ndim), distance)
    plateaus = measure.label(np.unique(below, return_inverse=True)[1].reshape(mask.shape) + 1, connectivity=mask.ndim)
    not_top = np.unique(plateaus[ndimage.grey_dilation(below, (3,) * mask.ndim) > below])
    seeds = measure.label(mask & ~np.isin(plateaus, not_top), connectivity=mask.ndim)
    height = -distance
    height[seeds > 0] = np.arange(-(seeds > 0).sum(), 0) - distance.max() - 1
    return _by_first_voxel(segmentation.watershed(height, seeds, connectivity=mask.ndim, mask=mask))


@pytest.mark.slow
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 40, 10**6]),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.sampled_from([(40, 30), (12, 14, 13)]),
)
@settings(max_examples=20, deadline=None)
def test_necks_are_those_of_the_whole_scan_at_once(seed: int, chunk: int, depth: float, shape: tuple[int, ...]) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects_module, "_CHUNK", chunk)
        found = number(mask.astype(np.uint8), None, ObjectRule(split=depth))
    np.testing.assert_array_equal(found, plain_necks(mask, depth))


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(1, 2), st.sampled_from([1, 40]))
@settings(max_examples=30, deadline=None)
def test_gaps_close_across_slabs(seed: int, reach: int, chunk: int) -> None:
    random = np.random.default_rng(seed)
    mask = (random.random((23, 19)) < 0.3).astype(np.uint8)
    whole = number(mask, None, KEEP_ALL, reach)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects_module, "_CHUNK", chunk)
        np.testing.assert_array_equal(number(mask, None, KEEP_ALL, reach), whole)
    assert (whole > 0).sum() > mask.sum()


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(17, 13), (7, 6, 8)]),
    chunk=st.sampled_from([1, 30, 10**6]),
    needed=st.integers(1, 3),
    learned=st.sampled_from([0.0, 2.5, 5.0]),
    rule=st.builds(ObjectRule, min_size=st.sampled_from([None, 0, 4]), drop_edge=st.booleans()),
)
@settings(max_examples=50, deadline=None)
def test_specks_and_rims_without_a_core_are_left_out_and_what_the_border_cuts_may_be_small(
    seed: int, shape: tuple[int, ...], chunk: int, needed: int, learned: float, rule: ObjectRule
) -> None:
    random = np.random.default_rng(seed)
    levels = (random.integers(1, 4, shape) * (random.random(shape) < 0.15)).astype(np.uint8)
    elevation = random.integers(0, 3, shape).astype(np.float32)
    everything = number(levels, elevation, KEEP_ALL)
    inner = segmentation.clear_border(everything)
    expected = np.zeros_like(everything)
    for part in measure.regionprops(everything):
        here = everything == part.label
        cut = not inner[here].any()
        least = rule.min_size if rule.min_size is not None else 0 if cut else learned
        if levels[here].max() >= needed and part.area >= least and not (cut and rule.drop_edge):
            expected[here] = part.label
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects_module, "_CHUNK", chunk)
        found = number(levels, elevation, rule, needed=needed, min_size=learned)
    np.testing.assert_array_equal(found, _by_first_voxel(expected))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 300, 10**6])
def test_cores_are_objects_where_the_ridge_between_them_is_high_enough(
    chunk: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    elevation = ndimage.gaussian_filter(rng.normal(size=(14, 40, 30)), (1, 2, 2)).astype(np.float32)
    levels = (elevation < np.percentile(elevation, 12)).astype(np.uint8)
    expected = np.zeros(levels.shape, np.int64)
    for part in measure.regionprops(measure.label(levels, connectivity=3)):
        inside = np.zeros(levels.shape, bool)
        inside[tuple(part.coords.T)] = True
        cut, _ = cut_by_depth(inside, elevation, 0.02)
        expected[inside] = expected.max() + cut[inside]
    monkeypatch.setattr(objects_module, "_CHUNK", chunk)
    np.testing.assert_array_equal(number(levels, elevation, KEEP_ALL, depth=0.02), _by_first_voxel(expected))
    assert expected.max() > measure.label(levels, connectivity=3).max() > 3, "some were cut"


def test_the_learned_size_is_that_of_the_networks_voxels() -> None:
    """A scan with voxels half as wide, in each axis, has four of them for each one of the network's."""
    levels = np.zeros((20, 20), np.uint8)
    levels[2:4, 2:9] = levels[8:10, 2:10] = 2
    undo = Undo(identity_orientation(2), (20, 20), Box.of_shape((20, 20)).slices, (10, 10))
    landscape = Landscape(ElevationRule((), None, min_size=4), undo, levels.T, None)
    found = find_objects_of(landscape, ObjectRule(), (1.0, 1.0), Workspace(np.empty, 2**30))
    assert found.count == 1 and found.dropped == 1 and found.ids[0].T[8, 2] == 1


def test_arrays_in_files_give_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    levels = (ndimage.gaussian_filter(rng.normal(size=(30, 50, 40)), 2) * 30).clip(0, 3).astype(np.uint8)
    elevation = rng.random(levels.shape, dtype=np.float32)
    rule = ObjectRule(5, fill_holes=True)
    in_files = number(levels, elevation, rule, work=Workspace(Scratch(tmp_path, 0), 2**30))
    np.testing.assert_array_equal(in_files, number(levels, elevation, rule))
    assert in_files.max() > 10


@pytest.mark.slow
@pytest.mark.parametrize(("side", "dtype"), [(255, np.uint16), (256, np.uint32)])
def test_ids_are_no_wider_than_they_must_be(side: int, dtype: type) -> None:
    levels = np.zeros((512, 512), np.uint8)
    levels[: 2 * side : 2, ::2] = 1
    ids = number(levels, None, KEEP_ALL)
    assert ids.dtype == dtype
    np.testing.assert_array_equal(ids[levels > 0], np.arange(1, side * 256 + 1))


def test_nothing_found_is_an_empty_map() -> None:
    ids = number(np.zeros((5, 6), np.uint8), None, ObjectRule(3, True, True))
    assert ids.dtype == np.uint16 and not ids.any()


def test_an_object_within_a_ring_is_filled_by_itself() -> None:
    levels = np.zeros((15, 15), np.uint8)
    levels[1:14, 1:14] = 1
    levels[2:13, 2:13] = 0
    levels[5:10, 5:10] = 1
    levels[7, 7] = 0
    ids = number(levels, None, ObjectRule(fill_holes=True))
    assert ids[7, 7] == ids[5, 5] == 2
    assert ids[3, 3] == ids[1, 1] == 1


def test_too_wide_a_cluster_is_refused_before_it_fills_the_memory() -> None:
    levels = np.ones((64, 64), np.uint8)
    elevation = np.zeros(levels.shape, np.float32)
    assert number(levels, elevation, KEEP_ALL, work=Workspace(np.empty, 2**20)).max() == 1
    with pytest.raises(MedunetError, match=r"box of 4,096 voxels.*\n.*--memory"):
        number(levels, elevation, KEEP_ALL, work=Workspace(np.empty, 2**18))


def model_of(settings: InstanceSettings | None, labels: LabelTable = IDS):
    labels = settings.learned(labels) if settings else labels
    made = make_model(UNetSettings(channels=(4, 8), classes=labels.classes))
    return replace(made, card=replace(made.card, labels=labels, instances=settings))


def test_every_way_of_learning_objects_has_a_relief() -> None:
    found = {
        target: elevation_rule_of([model_of(InstanceSettings(target))], KEEP_ALL)  # type: ignore[arg-type]
        for target in ("foreground", "separated", "border", "cores")
    }
    assert found["foreground"] == ElevationRule((0, 1))
    assert found["separated"] == ElevationRule((0, 1), None, 1)
    assert found["border"] == ElevationRule((0, 2, 1), (0.0, 0.0, 1.0))
    assert found["cores"].levels == (0, 1, 2, 3) and found["cores"].needed == 2
    assert found["cores"].depth == CORE_DEPTH and found["border"].depth is None
    assert found["cores"].weights == pytest.approx((-1 / 3,) * 3)


def test_of_several_models_the_smallest_size_holds() -> None:
    models = [model_of(InstanceSettings("cores", min_size=size)) for size in (7, 4.5, 9)]
    assert elevation_rule_of(models, KEEP_ALL).min_size == 4.5


def test_classes_have_objects_if_there_is_one_kind() -> None:
    one = LabelTable(("background", "nucleus"), (0, 255))
    assert elevation_rule_of([model_of(None, one)], KEEP_ALL) == ElevationRule((0, 1))
    region = LabelTable(("background", "rim", "core"), (0, 1, 2), regions=(Region("nucleus", (1, 2), 1),))
    assert elevation_rule_of([model_of(None, region)], KEEP_ALL) == ElevationRule((0, 1, 1))
    with pytest.raises(ConfigError, match="one kind of object; this one learned 2: nucleus, axon"):
        elevation_rule_of([model_of(None, LabelTable(("background", "nucleus", "axon"), (0, 1, 2)))], KEEP_ALL)


def test_models_that_learned_objects_differently_are_not_averaged() -> None:
    models = [model_of(InstanceSettings("foreground")), model_of(InstanceSettings("separated"))]
    with pytest.raises(ConfigError, match="separated and foreground"):
        elevation_rule_of(models, KEEP_ALL)


def test_necks_are_not_cut_where_borders_were_learned() -> None:
    for target in ("border", "cores"):
        with pytest.raises(ConfigError, match=rf"--split 2.*{target}"):
            elevation_rule_of([model_of(InstanceSettings(target))], replace(KEEP_ALL, split=2.0))  # type: ignore[arg-type]
