"""What pixels of masks mean, compared with scikit-image and with masks whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label as skimage_label

from medunet.conversion.colours import packed, unpacked
from medunet.conversion.masks import Mask
from medunet.conversion.rules import (
    BlackAndWhite,
    Census,
    ColouredObjects,
    Connected,
    OneMaskPerObject,
    Unchanged,
    parts_of,
)
from medunet.errors import DataError
from medunet.volume import Volume


def grey(values: np.ndarray, name: str = "m.png") -> Mask:
    return Mask(Path(name), Volume(values[np.newaxis], unit="pixel"), values, None)


def coloured(codes: np.ndarray, name: str = "m.png") -> Mask:
    return Mask(Path(name), Volume(unpacked(codes), unit="pixel"), None, codes.astype(np.uint32))


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two label maps cut the pixels in the same way, 0 being background in both."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(pairs[0]) == len(np.unique(one)) == len(np.unique(other)) and ((one == 0) == (other == 0)).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 9999), shape=st.sampled_from([(1, 1), (6, 7), (3, 4, 5)]), values=st.integers(1, 4))
def test_connected_parts_are_those_of_scikit_image(seed: int, shape: tuple[int, ...], values: int) -> None:
    labels = np.random.default_rng(seed).integers(0, values + 1, shape) * 1000
    parts = parts_of(labels)
    assert same_partition(parts, skimage_label(labels, background=0, connectivity=len(shape)))
    assert set(np.unique(parts)) - {0} == set(range(1, parts.max() + 1))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 9999), background=st.sampled_from([0, 0xFFFFFF]), connected=st.booleans())
def test_each_colour_is_an_object(seed: int, background: int, connected: bool) -> None:
    rng = np.random.default_rng(seed)
    colours = np.append(rng.choice(1 << 24, 5, replace=False), background)
    blocks = np.kron(colours[rng.integers(0, 6, (4, 3))], np.ones((3, 3), np.int64))  # 9 pixels each: no smooth edges
    labels = ColouredObjects(background, connected).apply([coloured(blocks)]).labels
    truth = np.where(blocks == background, 0, blocks + 1)
    assert same_partition(labels, skimage_label(truth, background=0, connectivity=2) if connected else truth)
    assert labels.dtype == np.uint16


def test_ids_follow_the_first_pixels() -> None:
    codes = np.repeat(np.array([[0, 900, 5, 900, 77]]), 5, axis=0)
    assert ColouredObjects().apply([coloured(codes)]).labels[0].tolist() == [0, 1, 2, 1, 3]


def test_smooth_edges_are_no_objects() -> None:
    codes = np.zeros((6, 6), np.int64)
    codes[1:5, 1:5], codes[1, 1:5], codes[4, 1:3] = 0xFF0000, np.arange(4) + 0x800000, 0x400000
    with pytest.raises(DataError, match=r"m\.png: 6 colours, more than half of them on fewer than 5 pixels"):
        ColouredObjects().apply([coloured(codes)])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 9999), count=st.integers(1, 5))
def test_masks_of_objects_become_ids_and_overlaps_are_counted(seed: int, count: int) -> None:
    inside = np.random.default_rng(seed).random((count, 5, 6)) < 0.3
    decoded = OneMaskPerObject().apply([grey(part.astype(np.uint8) * 255) for part in inside])
    slow = np.zeros((5, 6), int)
    for place in np.ndindex(5, 6):
        owners = [n for n in range(count) if inside[(n, *place)]]
        slow[place] = owners[0] + 1 if owners else 0
    np.testing.assert_array_equal(decoded.labels, slow)
    assert decoded.overlapping == int((inside.sum(axis=0) > 1).sum())
    assert decoded.hidden == count - len(set(slow.ravel()) - {0})


def test_masks_of_one_image_need_one_size() -> None:
    with pytest.raises(DataError, match="all masks of an image need its size"):
        OneMaskPerObject().apply([grey(np.zeros((2, 3), np.uint8)), grey(np.zeros((3, 2), np.uint8))])


def test_black_and_white_within_a_tolerance() -> None:
    values = np.array([[0, 3, 4, 127, 128, 250, 252, 255]], np.uint8)
    exact = BlackAndWhite(255).apply([grey(values)])
    assert exact.labels.tolist() == [[0, 0, 0, 0, 0, 0, 0, 1]] and sum(exact.unknown.values()) == 6
    near = BlackAndWhite(255, 3).apply([grey(values)])
    assert near.labels.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1]] and near.changed == 2
    assert set(near.unknown) == {4, 127, 128, 250}
    assert BlackAndWhite(255).farthest(near.unknown) == 127
    whole = BlackAndWhite(255, 127).apply([grey(values)])
    assert whole.labels.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] and whole.unknown == {} and whole.changed == 6


@pytest.mark.parametrize(
    ("values", "name", "said"),
    [
        (np.array([[0.5, 1]]), "m.tif", "whole numbers"),
        (np.array([[np.nan, 1]]), "m.tif", "whole numbers"),
        (np.array([[-1, 1]], np.int16), "m.tif", "must not be negative, found -1"),
        (np.array([[0, 1]], np.uint8), "m.jpg", "JPEG changes label values"),
    ],
)
def test_what_are_no_label_values_is_refused(values: np.ndarray, name: str, said: str) -> None:
    for rule in (Unchanged(), Connected()):
        with pytest.raises(DataError, match=said):
            rule.apply([grey(values, name)])


def test_the_census_tells_random_colours_from_classes() -> None:
    rng = np.random.default_rng(0)
    objects, classes = Census(), Census()
    for _ in range(4):
        objects.add(coloured(np.kron(rng.choice(1 << 24, (4, 4), replace=False), np.ones((4, 4), np.int64))))
        classes.add(coloured(np.kron(rng.permutation(np.arange(16) * 7000).reshape(4, 4), np.ones((4, 4), np.int64))))
    assert objects.like_objects and not objects.with_smooth_edges
    assert not classes.like_objects and classes.coloured == 4
    assert packed(np.full((3, 1), 255, np.uint8))[0] == 0xFFFFFF
