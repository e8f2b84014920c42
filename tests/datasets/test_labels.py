"""Label tables: what files hold, what networks see, and that nothing is invented between the two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.datasets.labels import IGNORE, LabelTable, table_from_names, table_from_values
from medunet.errors import DataError


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(values=st.sets(st.integers(-300, 70_000), min_size=2, max_size=12), seed=st.integers(0, 99), data=st.data())
def test_there_and_back_is_identity(values: set[int], seed: int, data: st.DataObject) -> None:
    table = table_from_names({f"n{v}": v for v in values}, None)
    stored = np.random.default_rng(seed).choice(sorted(values), size=(1, 4, 5))
    kind = data.draw(st.sampled_from([np.int32, np.int64, np.float32, np.float64]))
    indices = table.to_indices(stored.astype(kind), "case")
    assert indices.dtype == np.uint8 and indices.max() < table.classes
    restored = table.to_values(indices)
    np.testing.assert_array_equal(restored, stored)
    assert np.issubdtype(restored.dtype, np.integer)


def test_background_comes_first_and_is_not_foreground() -> None:
    table = table_from_names({"liver": 5, "spleen": 1, "Background": 7}, None)
    assert table.names == ("Background", "spleen", "liver")
    assert table.foreground == (1, 2)


def test_a_label_of_value_zero_with_another_name_is_foreground() -> None:
    table = table_from_names({"membrane": 0, "cell": 255}, None)
    assert not table.has_background and table.foreground == (0, 1)


def test_ignored_voxels_become_the_ignore_index() -> None:
    table = table_from_names({"background": 0, "a": 3}, ignore=9)
    assert table.to_indices(np.array([0, 3, 9]), "x").tolist() == [0, 1, IGNORE]


def test_instance_ids_are_one_class() -> None:
    table = table_from_names({"background": 0, "cell": 1}, ignore=65535, kind="instances")
    assert table.to_indices(np.array([0, 7, 300, 65535], dtype=np.uint16), "x").tolist() == [0, 1, 1, IGNORE]


def test_undeclared_values_are_listed_with_counts() -> None:
    table = table_from_names({"background": 0, "a": 1}, None)
    with pytest.raises(DataError, match=r"case_7.*not declared: 4 \(2 voxels\), 9 \(1 voxels\)") as error:
        table.to_indices(np.array([0, 1, 4, 4, 9]), "case_7")
    assert "0 background, 1 a" in str(error.value)


def test_interpolated_masks_are_refused() -> None:
    table = table_from_names({"background": 0, "a": 1}, None)
    with pytest.raises(DataError, match=r"whole numbers, found 0\.5"):
        table.to_indices(np.array([0.0, 0.5, 1.0]), "mask.nii.gz")


def test_values_without_names() -> None:
    table = table_from_values([0, 32, 255])
    assert table.names == ("background", "label_32", "label_255")
    assert table.to_values(np.array([2, 0])).dtype == np.uint8


@pytest.mark.parametrize(
    "arguments",
    [
        (("a",), (0,)),
        (("a", "b"), (1, 1)),
        (("a", "a"), (0, 1)),
        (("a", "b"), (0, 1), 1),
        (tuple(map(str, range(255))), tuple(range(255))),
    ],
)
def test_impossible_tables_do_not_exist(arguments: tuple) -> None:
    with pytest.raises(DataError):
        LabelTable(*arguments)
