"""Masks of regions: what they are called, and that they say what the label map says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.datasets.labels import LabelTable, table_from_names, with_regions
from medunet.datasets.regions import DeclaredRegions
from medunet.formats.results import mask_path
from medunet.system.scratch import Scratch
from medunet.transforms.postprocess import mask_values, region_mask


def table_of(*names: str) -> LabelTable:
    """Regions of these names, of one value each from 3 on."""
    regions = {name: (place,) for place, name in enumerate(names, start=3)}
    plain = {"background": 0, **{f"n{place}": place for (place,) in regions.values()}}
    return with_regions(table_from_names(plain, None), DeclaredRegions(regions))


def test_names_of_files() -> None:
    table = table_of("liver", "left lung", "a/b: c", "Liver", "..", "probabilities", "Größe-1.5")
    assert mask_values(table) == {
        "liver": (3,), "left_lung": (4,), "a_b_c": (5,), "Liver_2": (6,), "region": (7,), "probabilities_2": (8,),
        "Größe-1.5": (9,),
    }  # fmt: skip
    assert mask_values(table_from_names({"background": 0, "liver": 1}, None)) == {}
    assert mask_path(Path("out/a.b.nii.gz"), "liver") == Path("out/a.b_liver.nii.gz")


@pytest.mark.slow
@settings(deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=6, unique=True))
def test_names_are_whole_and_apart_whatever_regions_are_called(names: list[str]) -> None:
    named = mask_values(table_of(*names))
    assert list(named.values()) == [(place,) for place in range(3, 3 + len(names))]
    assert len({name.casefold() for name in named}) == len(names)
    assert all(name and not set(name) & set('/\\:*?"<>| \n\0') and not name.startswith(".") for name in named)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("large", [False, True])
def test_a_mask_holds_what_the_label_map_does(order: str, large: bool, dtype: type, tmp_path: Path) -> None:
    """Part by part, in the label map's order of memory; also in files."""
    scratch = Scratch(tmp_path / "scratch", limit=1 if large else 2**30)
    shape = (7, 9, 11) if not large else (120, 300, 260)
    labels = scratch((1, *shape[::-1]), dtype).transpose(0, 3, 2, 1) if order == "F" else scratch((1, *shape), dtype)
    labels[...] = np.random.default_rng(1).integers(0, 5, labels.shape)
    mask = region_mask(labels, (1, 4), scratch)
    assert mask.dtype == np.uint8 and mask.shape == labels.shape
    np.testing.assert_array_equal(mask, (labels == 1) | (labels == 4))
    ranks = [np.argsort(array.strides[1:]).tolist() for array in (mask, labels)]
    assert ranks[0] == ranks[1]


def test_a_picture_and_a_single_slice() -> None:
    for shape in ((1, 5, 6), (1, 5, 6, 1), (1, 1, 1)):
        labels = np.random.default_rng(2).integers(0, 3, shape)
        np.testing.assert_array_equal(region_mask(labels, (2,), np.empty), labels == 2)
