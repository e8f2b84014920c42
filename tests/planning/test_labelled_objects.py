"""Parts and objects against maps drawn by hand, and scikit-image."""

from __future__ import annotations

import numpy as np
from skimage.measure import label as label_parts

from medunet.planning.labelled_objects import Objects, connected_parts, instance_objects


def test_parts_by_hand() -> None:
    label = np.zeros((6, 6), np.uint8)
    label[0, 0] = label[1, 1] = 1  # corners connect
    label[4:6, 4:6] = 1
    label[3, 0] = 3
    assert connected_parts(label, (1, 2, 3)) == (Objects(2, 2, 3), Objects(0, 0, 0), Objects(1, 1, 1))
    assert connected_parts(label, (0,))[0].count == 1
    assert connected_parts(label, ()) == ()


def test_parts_are_scikit_images(rng: np.random.Generator) -> None:
    label = rng.integers(0, 3, (9, 10, 11)).astype(np.uint8) * (rng.random((9, 10, 11)) < 0.1).astype(np.uint8)
    for c, found in zip((0, 1, 2), connected_parts(label, (0, 1, 2)), strict=True):
        sizes = np.bincount(label_parts(label == c, connectivity=3).ravel())[1:]
        assert (found.count, found.smallest, found.median) == (sizes.size, sizes.min(), int(np.median(sizes)))


def test_objects_touch_across_faces_only() -> None:
    ids = np.zeros((5, 7), np.int64)
    ids[0, 0:2] = 10
    ids[0, 2] = 20  # touches 10
    ids[1, 3] = 30  # a corner of 20
    ids[4, 6] = 99
    assert instance_objects(ids, None) == Objects(4, 1, 1, 2)
    assert instance_objects(ids, 20) == Objects(3, 1, 1, 0)
    assert instance_objects(np.zeros((3, 3), int), None) == Objects(0, 0, 0)
    assert instance_objects(np.array([[1, 2]]), None).touching == 2
