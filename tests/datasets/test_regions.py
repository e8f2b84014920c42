"""Regions: both forms of their declaration, what each writes, and what cannot be meant."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.datasets.declaration import read_declaration
from medunet.datasets.labels import LabelTable, table_from_names, with_regions
from medunet.datasets.regions import DeclaredRegions, Region
from medunet.errors import DataError

NESTED = {"whole_tumour": [1, 2, 4], "tumour_core": [1, 4], "enhancing": [4]}


def table_of(tmp_path: Path, **declared: object) -> LabelTable:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(declared))
    table = read_declaration(path).labels
    assert table is not None
    return table


def test_regions_beside_labels(tmp_path: Path) -> None:
    labels = {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 4}
    table = table_of(tmp_path, labels=labels, regions=NESTED, ignore=9)
    assert table.names == ("background", "necrosis", "oedema", "enhancing") and table.ignore == 9
    # Classes by position, what is written by what no later region holds: oedema, necrosis, enhancing tumour.
    assert table.regions == (
        Region("whole_tumour", (1, 2, 3), 2), Region("tumour_core", (1, 3), 1), Region("enhancing", (3,), 3),
    )  # fmt: skip
    assert table.outputs == 3 and table.foreground == (1, 2, 3) and table.unlearned == ()
    assert table.scored == {"whole_tumour": (1, 2, 3), "tumour_core": (1, 3), "enhancing": (3,)}
    assert "regions whole_tumour (1+2+4, writes 2), tumour_core (1+4, writes 1)" in table.describe()


def test_regions_as_nnunet_declares_them(tmp_path: Path) -> None:
    """Its BraTS example: single values are regions as well, and the order says what is written."""
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3, "ignore": 4}
    table = table_of(tmp_path, labels=labels, regions_class_order=[1, 2, 3])
    assert table.names == ("background", "label_1", "label_2", "enhancing tumor") and table.values == (0, 1, 2, 3)
    assert table.ignore == 4
    assert [(r.name, r.indices, r.paints) for r in table.regions] == [
        ("whole tumor", (1, 2, 3), 1), ("tumor core", (2, 3), 2), ("enhancing tumor", (3,), 3),
    ]  # fmt: skip
    listed = table_of(tmp_path, labels={**labels, "enhancing tumor": [3], "background": [0]})
    assert listed == table, "the order follows, where regions are nested"


def test_kits_in_nnunets_order(tmp_path: Path) -> None:
    labels = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}
    ordered = table_of(tmp_path, labels=labels, regions_class_order=[1, 3, 2])
    assert [r.paints for r in ordered.regions] == [1, 3, 2]
    assert ordered == table_of(tmp_path, labels=labels)


def test_a_label_in_no_region_is_background_to_the_network(tmp_path: Path) -> None:
    table = table_of(tmp_path, labels={"background": 0, "a": 1, "b": 2}, regions={"only": [2]})
    assert table.foreground == (2,) and table.unlearned == ("a",) and table.outputs == 1


def test_data_sets_without_regions_are_what_they_were(tmp_path: Path) -> None:
    table = table_of(tmp_path, labels={"background": 0, "a": 3, "b": 5}, regions_class_order=[1, 2])
    assert table == table_from_names({"background": 0, "a": 3, "b": 5}, None)
    assert table.outputs == 3 and table.scored == {"a": (1,), "b": (2,)} and "region" not in table.describe()


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"regions": {"core": [3], "whole": [1, 2, 3]}}, 'values 1 and 2 are in the same regions ."whole"'),
        ({"regions": {"a": [1, 2, 3], "b": [2, 3]}}, 'values 2 and 3 are in the same regions ."a", "b"'),
        ({"regions": {"whole": [1, 2, 7]}}, 'region "whole" holds 7; expected values of foreground labels'),
        ({"regions": {"whole": [0, 1]}}, 'region "whole" holds 0'),
        ({"regions": {"whole": []}}, "must be a list of the label values"),
        ({"regions": {"whole": ["a"]}}, "must be a list of the label values"),
        ({"regions": {"whole": [1, 1]}}, "holds a value twice"),
        ({"regions": [1, 2]}, '"regions" must be an object'),
        ({"regions": {"whole": [1, 2]}, "regions_class_order": [1, 2]}, "has 2 values, but there are 1 regions"),
        ({"regions": {"whole": [1, 2]}, "regions_class_order": [3]}, 'writes 3 for region "whole"'),
        ({"regions": {"whole": [1, 2]}, "regions_class_order": "1"}, "must be a list of label values"),
        ({"regions": {"a": [1]}, "labels": {"background": 0, "w": [1, 2]}}, "both under"),
        ({"regions": {"a": [1]}, "labels": {"membrane": 0, "cell": 1}}, "regions need labels with a background"),
        ({"regions": {"a": [1]}, "labels": None}, 'declares "regions" but no "labels"'),
        ({"regions": {"a": [1]}, "label_kind": "instances"}, "holds 2|regions need labels"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_error(tmp_path: Path, declared: dict, said: str) -> None:
    labels = {"background": 0, "a": 1, "b": 2, "c": 3}
    with pytest.raises(DataError, match=said) as error:
        table_of(tmp_path, **({"labels": labels} | declared))
    assert "dataset.json" in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_regions_that_overlap_are_decided_together(tmp_path: Path) -> None:
    labels = {"background": 0, "a": 1, "b": 2, "a+b": 7}
    table = table_of(tmp_path, labels=labels, regions={"A": [1, 7], "B": [2, 7]})
    assert table.regions == (Region("A", (1, 3), None), Region("B", (2, 3), None)) and not table.painted
    assert table.combined == {1: (0,), 2: (1,), 3: (0, 1)}
    assert table.outputs == 2 and table.scored == {"A": (1, 3), "B": (2, 3)}
    assert table.describe().endswith("regions A (1+7), B (2+7), decided together")
    nnunet = table_of(tmp_path, labels={"background": 0, "A": [1, 7], "B": [2, 7]})
    assert nnunet.regions == table.regions
    ordered = table_of(tmp_path, labels=labels, regions={"A": [1, 7], "B": [2, 7]}, regions_class_order=[1, 7])
    assert [region.paints for region in ordered.regions] == [1, 3], "an order that is given is kept to"


@pytest.mark.parametrize(
    ("regions", "painted"),
    [
        ({"a": [1], "b": [2, 3], "c": [3]}, True),
        ({"all": [1, 2, 3], "a": [1], "b": [2, 3], "c": [3]}, False),  # nothing is left for "all" to write
        ({"c": [3], "b": [2, 3]}, False),  # nested, but in no order in which they could be painted
        ({"a": [1, 3], "b": [2, 3], "c": [3]}, False),  # could be painted, but "a" and "b" overlap
    ],
)
def test_which_regions_are_painted(regions: dict, painted: bool, tmp_path: Path) -> None:
    table = table_of(tmp_path, labels={"background": 0, "a": 1, "b": 2, "c": 3}, regions=regions)
    assert table.painted == painted and ("decided together" in table.describe()) != painted


def test_a_table_decides_in_one_way() -> None:
    plain = table_from_names({"background": 0, "a": 1, "b": 2}, None)
    for regions in (Region("A", (1,), 1), Region("B", (2,), None)), (Region("A", (1, 2), None),):
        with pytest.raises(DataError, match="write one label each, or every label is in a combination"):
            replace(plain, regions=regions)


@settings(deadline=None, max_examples=100)
@given(values=st.lists(st.integers(1, 300), min_size=1, max_size=6, unique=True), seed=st.integers(0, 999))
def test_painting_the_regions_of_a_label_map_gives_the_label_map(values: list[int], seed: int) -> None:
    """Nested and complete regions, painted voxel by voxel as nnU-Net does."""
    table = table_from_names({"background": 0, **{f"n{v}": v for v in values}}, None)
    nested = {f"from {place}": tuple(sorted(values[place:])) for place in range(len(values))}
    table = with_regions(table, DeclaredRegions(nested))
    labels = np.random.default_rng(seed).integers(0, table.classes, (5, 4))
    painted = np.zeros_like(labels)
    for region in table.regions:
        painted[np.isin(labels, region.indices)] = region.paints
    np.testing.assert_array_equal(painted, labels)
