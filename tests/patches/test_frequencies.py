"""Shares of classes in training cases."""

from __future__ import annotations

import numpy as np
import pytest

from medunet.datasets.labels import IGNORE
from medunet.patches.dataset import PreparedCase
from medunet.patches.prepare import class_frequencies, class_voxels


def case(label: np.ndarray) -> PreparedCase:
    label = label[None]
    return PreparedCase("a", np.zeros(label.shape, np.float32), label, {})


def test_annotated_voxels_count_alike_in_all_cases() -> None:
    first = np.array([[0, 0, 0], [1, 1, IGNORE]], np.uint8)
    second = np.array([[0, 2, IGNORE]], np.uint8)
    np.testing.assert_allclose(class_frequencies([case(first), case(second)], 4), [4 / 7, 2 / 7, 1 / 7, 0])
    assert class_voxels([case(first), case(second)], 4) == [4, 2, 1, 0]


def test_nothing_annotated_is_no_share() -> None:
    np.testing.assert_array_equal(class_frequencies([case(np.full((3, 3), IGNORE, np.uint8))], 2), [0, 0])
    np.testing.assert_array_equal(class_frequencies([], 2), [0, 0])


def test_of_a_large_case_some_slices_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medunet.patches.prepare._ENOUGH", 40)
    label = np.zeros((20, 10), np.uint8)
    label[:, :3] = 1
    label[1::5] = 2  # every 5th slice, from the second on, is none of those that are looked at
    np.testing.assert_allclose(class_frequencies([case(label)], 3), [0.7, 0.3, 0])
    assert class_voxels([case(label)], 3) == [112, 48, 40], "all of it, as weights need them"
