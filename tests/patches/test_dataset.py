"""Patch sampling: where patches lie, what is outside, and that numbers of patches decide everything."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.datasets.labels import IGNORE
from medunet.errors import ConfigError, DataError
from medunet.patches.dataset import PatchDataset, PatchSettings, PreparedCase, collate, find_foreground
from medunet.patches.loader import make_loader
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.augment.settings import AugmentSettings, Chance

STILL = {2: Augmentation(AugmentSettings.none(), 2), 3: Augmentation(AugmentSettings.none(), 3)}
LIVELY = AugmentSettings(rotation=Chance(0.5, -30, 30), scaling=Chance(0.5, 0.8, 1.25), noise=Chance(0.5, 0, 0.2))


def numbered(shape: tuple[int, ...], name: str = "case", classes: tuple[int, ...] = (1, 2)) -> PreparedCase:
    """A case whose image numbers its voxels from 1, so that each patch shows where it was taken."""
    image = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(1, *shape)
    label = np.zeros((1, *shape), np.uint8)
    for c in classes:
        label[(0, *(n * c // (len(classes) + 1) for n in shape))] = c
    return PreparedCase(name, image, label, find_foreground(label, classes))


def dataset(*cases: PreparedCase, size: tuple[int, ...], **changes: object) -> PatchDataset:
    patch = PatchSettings(size, oversample=changes.pop("oversample", 0.0))  # type: ignore[arg-type]
    made = PatchDataset(cases, patch, 1000, STILL[len(size)])
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.slow
@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    size=st.integers(1, 15),
    oversample=st.sampled_from([0.0, 0.5, 1.0]),
    number=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=100)
def test_a_patch_is_a_piece_of_the_scan_with_zeros_and_ignore_around(
    shape: list[int], size: int, oversample: float, number: int
) -> None:
    case = numbered(tuple(shape))
    patch = dataset(case, size=(size,) * len(shape), oversample=oversample)[number]
    image, label = patch.image[0, 0].numpy(), patch.label[0, 0].numpy()
    assert image.shape == label.shape == (size,) * len(shape)

    inside = image > 0
    np.testing.assert_array_equal(label == IGNORE, ~inside)
    # Each voxel that shows a number shows its own neighbours' numbers at the right distance.
    where = np.argwhere(inside)
    source = np.stack(np.unravel_index(image[inside].astype(int) - 1, shape), axis=1)
    assert len({tuple(offset) for offset in source - where}) == 1
    np.testing.assert_array_equal(label[inside], case.label[(0, *source.T)])
    # No axis shows padding beyond what the scan lacks, and what it lacks is on both sides.
    for axis, n in enumerate(shape):
        shown = np.flatnonzero(inside.any(axis=tuple(a for a in range(len(shape)) if a != axis)))
        assert len(shown) == min(n, size)
        assert abs(shown[0] - (size - 1 - shown[-1])) <= 1 or n >= size


@pytest.mark.slow
def test_uniform_patches_reach_every_position_evenly() -> None:
    data = dataset(numbered((9, 6)), size=(4, 6))
    starts = Counter(int((data[i].image[0, 0, 0, 0].item() - 1) // 6) for i in range(1200))
    assert sorted(starts) == list(range(6))
    assert max(starts.values()) < 1.4 * min(starts.values())


@pytest.mark.slow
@pytest.mark.parametrize("margin", [(), (2, 2, 2)])
def test_oversampled_patches_contain_foreground_of_each_class_alike(margin: tuple[int, ...]) -> None:
    data = dataset(numbered((30, 30, 30)), size=(8, 8, 8), oversample=1.0, margin=margin)
    labels = [data[i].label for i in range(200)]
    assert all(((label > 0) & (label != IGNORE)).any() for label in labels)
    seen = Counter(int(label[label != IGNORE].max()) for label in labels)
    assert seen.keys() == {1, 2} and min(seen.values()) > 70
    places = {tuple(np.argwhere(label[0, 0].numpy() > 0)[0]) for label in labels}
    assert len(places) >= 8, "the foreground must not always lie at one place of the patch"


@pytest.mark.slow
def test_the_share_of_oversampled_patches_is_as_asked() -> None:
    data = dataset(numbered((40, 40, 40)), size=(4, 4, 4), oversample=1 / 3)
    hits = np.mean([bool((data[i].label > 0).any()) for i in range(600)])
    assert hits == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize("value", [0, IGNORE])
def test_cases_without_foreground_give_patches_anywhere(value: int) -> None:
    empty = PreparedCase("empty", np.ones((1, 12, 12), np.float32), np.full((1, 12, 12), value, np.uint8), {})
    patch = dataset(empty, size=(5, 5), oversample=1.0)[0]
    assert (patch.label == value).all() and (patch.image == 1).all()


def test_unpadded_networks_see_the_scan_mirrored_and_judge_the_centre() -> None:
    case = numbered((7, 9))
    mirrored = np.pad(case.image[0], 6, mode="reflect")
    data = dataset(case, size=(10, 8), margin=(3, 2))
    seen = set()
    for index in range(40):
        patch = data[index]
        assert patch.label.shape == (1, 1, 4, 4) and patch.image.shape == (1, 1, 10, 8)
        x, y = np.divmod(int(patch.image[0, 0, 3, 2]) - 1, 9)
        seen.add((x, y))
        np.testing.assert_array_equal(patch.image[0, 0], mirrored[x + 3 : x + 13, y + 4 : y + 12])
        np.testing.assert_array_equal(patch.label[0, 0], case.label[0, x : x + 4, y : y + 4])
    assert {x for x, _ in seen} == set(range(4)) and {y for _, y in seen} == set(range(6))


def test_outputs_larger_than_the_scan_are_ignored_outside() -> None:
    patch = dataset(numbered((3, 9)), size=(10, 8), margin=(2, 2))[0]
    known = patch.label[0, 0] != IGNORE
    assert known.sum() == 3 * 4 and known[1:4].all()
    assert (patch.image > 0).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flat_network_gets_slices_of_a_scan(axis: int) -> None:
    case = numbered((5, 6, 7))
    data = PatchDataset([case], PatchSettings((4, 4), oversample=0.5, slice_axis=axis), 100, STILL[2])
    slices = set()
    for index in range(60):
        patch = data[index]
        assert patch.image.shape == patch.label.shape == (1, 1, 4, 4)
        places = np.stack(np.unravel_index(patch.image.numpy().astype(int).ravel() - 1, (5, 6, 7)))
        assert len(np.unique(places[axis])) == 1
        slices.add(places[axis, 0])
        np.testing.assert_array_equal(patch.label.numpy().ravel(), case.label[(0, *places)])
    assert slices == set(range(case.label.shape[1 + axis]))


def test_rotated_patches_are_filled_from_their_surroundings() -> None:
    """Deep inside a scan no voxel is ignored, however the patch is turned."""
    case = PreparedCase("flat", np.ones((1, 90, 90, 90), np.float16), np.ones((1, 90, 90, 90), np.uint8), {})
    middle = np.array([[45, 45, 45]], np.int32)
    case = replace(case, foreground={1: middle})
    turning = Augmentation(AugmentSettings(rotation=Chance(1, -45, 45), scaling=Chance(1, 0.8, 1.25)), 3)
    data = PatchDataset([case], PatchSettings((20, 24, 16), oversample=1), 100, turning)
    for index in range(10):
        patch = data[index]
        assert (patch.label == 1).all() and patch.image.dtype == torch.float32


def test_cases_take_turns() -> None:
    cases = [numbered((6, 6), name=str(i)) for i in range(5)]
    data = replace(dataset(*cases, size=(4, 4)), per_epoch=7)
    names = [data[i].cases[0] for i in range(35)]
    rounds = [names[i : i + 5] for i in range(0, 35, 5)]
    assert all(sorted(r) == list("01234") for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    limit=st.integers(1, 20),
    seed=st.integers(0, 1000),
    background=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_found_foreground_is_the_classes_voxels(shape: list[int], limit: int, seed: int, background: bool) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice(np.array([0, 1, 3, 200, IGNORE], np.uint8), size=(1, *shape))
    classes = [1, 2, 3, 200, IGNORE, *([0] if background else [])]
    found = find_foreground(label, classes, limit, seed)
    assert set(found) == {int(c) for c in np.unique(label) if c in classes and c != IGNORE}
    for c, voxels in found.items():
        assert voxels.dtype == np.int32
        everywhere = {tuple(v) for v in np.argwhere(label[0] == c)}
        chosen = {tuple(v) for v in voxels}
        assert chosen <= everywhere and len(chosen) == len(voxels) == min(limit, len(everywhere))
    again = find_foreground(label, classes, limit, seed)
    assert all(np.array_equal(found[c], again[c]) for c in found)


def test_the_choice_of_foreground_is_spread_over_the_class() -> None:
    label = np.ones((1, 1000, 10), np.uint8)
    rows = find_foreground(label, [1], limit=500, seed=3)[1][:, 0]
    assert np.histogram(rows, bins=5, range=(0, 1000))[0].min() > 70
    assert not np.array_equal(rows, find_foreground(label, [1], limit=500, seed=4)[1][:, 0])


def test_augmentation_never_writes_to_a_case() -> None:
    """Patches are views of their case until they are augmented."""
    case = numbered((20, 18, 16))
    image, label = case.image.copy(), case.label.copy()
    every = {
        field.name: replace(field.default, probability=0.5)
        for field in fields(AugmentSettings)
        if isinstance(field.default, Chance)
    }
    data = PatchDataset([case], PatchSettings((8, 8, 8)), 100, Augmentation(AugmentSettings(**every), 3))
    for index in range(40):
        patch = data[index]
        patch.image.zero_()
        patch.label.zero_()
    np.testing.assert_array_equal(case.image, image)
    np.testing.assert_array_equal(case.label, label)


def test_quarter_turns_of_sizes_that_cannot_turn_are_refused() -> None:
    turning = Augmentation(AugmentSettings(quarter_turns=0.5), 3)
    with pytest.raises(ConfigError, match="odd and even"):
        PatchDataset([numbered((20, 18, 16))], PatchSettings((8, 7, 8)), 10, turning)


def test_a_memory_mapped_case_gives_the_same_patches(tmp_path: Path) -> None:
    case = numbered((20, 18, 16))
    for name, array in (("image", case.image), ("label", case.label)):
        np.save(tmp_path / f"{name}.npy", array)
    mapped = replace(
        case,
        **{n: np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in ("image", "label")},  # type: ignore[arg-type]
    )
    data = dataset(case, size=(8, 8, 8), augmentation=Augmentation(LIVELY, 3))
    for index in range(5):
        one, two = (replace(data, cases=[c])[index] for c in (case, mapped))
        assert torch.equal(one.image, two.image) and torch.equal(one.label, two.label)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": ()}, "size"),
        ({"size": (0, 4)}, "size"),
        ({"batch": 0}, "batch"),
        ({"oversample": 1.1}, "oversample"),
        ({"slice_axis": 3}, "slice_axis"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PatchSettings(**changes)  # type: ignore[arg-type]


def test_cases_and_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to train on"):
        dataset(size=(4, 4))
    with pytest.raises(ConfigError, match="no output"):
        dataset(numbered((9, 9)), size=(4, 4), margin=(2, 1))
    with pytest.raises(ConfigError, match="case_7: a scan of 2 dimensions"):
        dataset(numbered((9, 9), name="case_7"), size=(4, 4, 4))
    with pytest.raises(DataError, match="case_8"):
        PreparedCase("case_8", np.zeros((1, 4, 4)), np.zeros((1, 4, 5), np.uint8), {})


def weighted(shape: tuple[int, ...], name: str = "case") -> PreparedCase:
    """Labels in blocks, some of them unknown; the map adds 2 for class 1 and 4 for class 2."""
    random = np.random.default_rng(len(shape))
    label = random.choice(np.array([0, 1, 2, IGNORE], np.uint8), [-(-n // 4) for n in shape])
    for axis, n in enumerate(shape):
        label = label.repeat(4, axis).take(range(n), axis)
    image = random.normal(size=(2, *shape)).astype(np.float32)
    weight = np.where(label == IGNORE, 0, 2 * label.astype(int)).astype(np.float16)
    return PreparedCase(name, image, label[None], find_foreground(label[None], (1, 2)), weight[None])


BALANCE = (0.5, 1.0, 3.0)
TURNS = replace(AugmentSettings.none(), flip_axes=None, flip_probability=0.5, quarter_turns=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("margin", [(), (2, 2)])
@pytest.mark.parametrize("shape", [(30, 26), (9, 11), (24, 24, 7)])
def test_weights_move_with_the_labels_and_are_0_where_nothing_is_known(
    shape: tuple[int, ...], margin: tuple[int, ...]
) -> None:
    data = dataset(
        weighted(shape), size=(12, 12), margin=margin, class_weights=BALANCE, augmentation=Augmentation(TURNS, 2)
    )
    table = torch.tensor([*(w + 2 * c for c, w in enumerate(BALANCE)), 0.0])
    for number in range(20):
        patch = data[number]
        assert patch.weight is not None and patch.weight.dtype == torch.float32
        expected = table[torch.where(patch.label == IGNORE, 3, patch.label).long()]
        torch.testing.assert_close(patch.weight, expected)


def test_weights_are_interpolated_between_their_neighbours_and_nothing_else_changes() -> None:
    lively = {"size": (16, 16), "augmentation": Augmentation(LIVELY, 2)}
    case, moved = weighted((40, 40)), 0
    on, off = dataset(case, class_weights=BALANCE, **lively), dataset(replace(case, weight=None), **lively)
    for number in range(20):
        with_weights, without = on[number], off[number]
        assert without.weight is None and with_weights.weight is not None
        torch.testing.assert_close(with_weights.image, without.image, rtol=0, atol=0)
        assert (with_weights.label == without.label).all()
        known = with_weights.label != IGNORE
        assert (with_weights.weight[~known] == 0).all()
        added = with_weights.weight[known] - torch.tensor(BALANCE)[with_weights.label[known].long()]
        assert added.min() >= -1e-5 and added.max() <= 4 + 1e-5
        moved += bool(((added % 2) > 1e-3).any())
    assert moved > 5


def test_a_device_and_a_batch_give_the_same_weights() -> None:
    data = dataset(weighted((30, 26)), size=(12, 12), class_weights=BALANCE, augmentation=Augmentation(LIVELY, 2))
    data = replace(data, per_epoch=6, settings=replace(data.settings, batch=3))
    here, there = list(make_loader(data)), list(make_loader(data, device=torch.device("cpu")))
    for one, other in zip(here, there, strict=True):
        assert one.weight is not None and one.weight.shape == one.label.shape
        assert (one.weight == other.weight).all() and (one.image == other.image).all()
    assert (collate([data[n] for n in range(3)]).weight == here[0].weight).all()


def test_a_weight_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match="weight"):
        replace(weighted((8, 8)), weight=np.zeros((1, 8, 7), np.float16))
