"""Masks of structures that overlap become one label map, and its values give all masks back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import medunet
from medunet.conversion.layouts import FoundCase
from medunet.conversion.masks import Mask
from medunet.conversion.structures import (
    JoinedStructures,
    StructureCensus,
    StructureMasks,
    are_label_maps,
    has_structure_channels,
    inside_of,
    joined,
)
from medunet.datasets.labels import table_from_names, with_regions
from medunet.datasets.regions import DeclaredRegions
from medunet.errors import DataError
from medunet.volume import Volume


def mask(values: np.ndarray, name: str = "liver") -> Mask:
    return Mask(Path(f"case/{name}.nii.gz"), Volume(values[np.newaxis]), values, None)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 9999), count=st.integers(1, 6), cases=st.integers(1, 3), share=st.sampled_from([0, 0.1, 0.6])
)
def test_label_maps_hold_every_mask(seed: int, count: int, cases: int, share: float) -> None:
    """Whatever overlaps; each combination that occurs has a value of its own, and no other has."""
    rng = np.random.default_rng(seed)
    stacks = rng.random((cases, count, 4, 5, 3)) < share
    names = [f"s{place}" for place in range(count)]
    masks = [
        [mask(one.astype(np.uint8) * 255, name) for one, name in zip(stack, names, strict=True)] for stack in stacks
    ]
    census = StructureCensus()
    for own in masks:
        census.add(own, Path("set"))
    values, declared = census.values(), census.declaration()
    assert sorted(values.values()) == list(range(1, len(values) + 1))
    codes = (stacks * (2 ** np.arange(count)).reshape(-1, 1, 1, 1)).sum(axis=1)
    assert len(values) == len(set(codes.ravel().tolist()) - {0}), "as many as there are different sets of structures"
    for stack, own in zip(stacks, masks, strict=True):
        labels = JoinedStructures(values).apply(own).labels
        assert labels.dtype == np.uint8
        for one, name in zip(stack, names, strict=True):
            np.testing.assert_array_equal(np.isin(labels, [v for key, v in values.items() if name in key]), one)
    assert ("regions" in declared) == (stacks.sum(axis=1) > 1).any()
    if "regions" in declared:
        table = table_from_names(declared["labels"], None)
        table = with_regions(table, DeclaredRegions({k: tuple(v) for k, v in declared["regions"].items()}))
        assert set(table.scored) == set(census.structures) and table.unlearned == ()


def census_of(*cases: dict[str, list[int]]) -> StructureCensus:
    census = StructureCensus()
    for own in cases:
        census.add([mask(np.array([values], np.uint8), name) for name, values in own.items()], Path("set"))
    return census


def test_what_is_declared() -> None:
    apart = census_of({"b": [1, 0, 0], "a": [0, 1, 0]})
    assert apart.declaration() == {"labels": {"background": 0, "a": 1, "b": 2}} and apart.shared == 0
    crossing = census_of({"b": [1, 1, 0], "a": [0, 1, 1], "c": [0, 0, 0]}, {"b": [0, 0, 1]})
    assert crossing.declaration() == {
        "labels": {"background": 0, "a": 1, "b": 2, "a+b": 3},
        "regions": {"a": [1, 3], "b": [2, 3]},
    }
    assert crossing.shared == 1 and crossing.empty == ["c"] and crossing.incomplete == {"a": 1, "c": 1}
    nested = census_of({"core": [0, 1, 0], "whole": [1, 1, 0]})
    assert nested.declaration() == {
        "labels": {"background": 0, "whole": 1, "core+whole": 2},
        "regions": {"whole": [1, 2], "core": [2]},
    }, "the largest first, so that it is painted"
    odd = census_of({"a": [1, 1, 0], "b": [1, 1, 0], "a+b": [0, 0, 1]}).declaration()["labels"]
    assert odd == {"background": 0, "a+b": 1, "a+b (2)": 2}
    odder = census_of({"a": [1, 0, 1], "b": [0, 1, 1]}, {"a+b": [1, 0, 0], "a+b (5)": [0, 1, 0]}).declaration()
    assert odder["labels"] == {"background": 0, "a": 1, "a+b": 2, "a+b (5)": 3, "b": 4, "a+b (6)": 5}


@pytest.mark.parametrize("white", [1, 255, 65535, 1.0, True])
def test_binary_masks_of_any_kind(white: float) -> None:
    inside = np.array([[0, 1, 1], [0, 0, 1]], bool)
    values = np.where(inside, white, 0).astype(bool if white is True else np.result_type(np.min_scalar_type(white)))
    np.testing.assert_array_equal(inside_of(mask(values)), inside)
    assert not inside_of(mask(np.zeros_like(values))).any()


@pytest.mark.parametrize("odd", [2, 0.5, -1, np.nan, 128])
def test_masks_that_are_not_binary_are_refused(odd: float) -> None:
    values = np.array([[0, 1, 1, 255, odd]], np.float32)
    for given_ in (values[:, [0, 1, 4]], values[:, [0, 3, 4]], values[:, [0, 4]]):
        with pytest.raises(DataError, match=rf"case/liver.nii.gz: holds .*{odd:g} on \d voxels; .* 0 and 1") as error:
            inside_of(mask(given_))
        assert len(str(error.value).splitlines()) <= 3
    with pytest.raises(DataError, match="holds 1 on 2 voxels"):
        inside_of(mask(values[:, :4]))


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        (["label", "label"], True),
        (["s0_seg", "s1_seg"], True),
        (["s0", "s1"], True),
        (["liver", "heart"], False),
        (["label", "binary/label"], True),
        (["binary/label", "binary/label"], False),
    ],
)
def test_which_masks_are_label_maps(tmp_path: Path, masks: list[str], expected: bool) -> None:
    """One in each folder, of one name, of which not all are binary."""
    cases = []
    for number, name in enumerate(masks):
        path = tmp_path / str(number) / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.array([[0, 1, 1 if "binary" in name else 2]], np.uint8)).save(path)
        cases.append(FoundCase(f"s{number}", (path,), (path,)))
    assert are_label_maps(cases) == expected
    assert not are_label_maps([*cases, FoundCase("s9", (path,), (path, path))])


def test_masks_that_do_not_go_together_are_refused() -> None:
    ones = np.ones((2, 3), np.uint8)
    with pytest.raises(DataError, match=r"case/b.nii.gz: has shape \(2, 2\), the first mask of this case \(2, 3\)"):
        joined([mask(ones, "a"), mask(ones[:, :2], "b")])
    with pytest.raises(DataError, match="is a second mask of a beside"):
        joined([mask(ones, "a"), mask(ones, "a")])
    for name in ("background", "Ignore"):
        with pytest.raises(DataError, match=f"a structure cannot be called {name}"):
            joined([mask(ones, name)])


def test_more_combinations_than_values_are_refused() -> None:
    """Eight bits of a number as masks, so that all numbers above 0 occur; as many as a label table takes are joined."""

    def bits(highest: int) -> list[Mask]:
        numbers = np.minimum(np.arange(256), highest).reshape(16, 16)
        return [mask((numbers >> bit & 1).astype(np.uint8), f"bit{bit}") for bit in range(8)]

    with pytest.raises(DataError, match="case: its masks overlap in more than 253 combinations"):
        joined(bits(254))
    census = StructureCensus()
    census.add(bits(253), Path("set"))
    assert len(census.voxels) == 253 == table_from_names(census.declaration()["labels"], None).classes - 1
    with pytest.raises(DataError, match=r"^set: its masks overlap in more"):
        census.add([mask(np.ones((2, 2), np.uint8), "another")], Path("set"))


def test_channels_are_structures_unless_they_are_colours(tmp_path: Path) -> None:
    inside = np.random.default_rng(1).integers(0, 2, (3, 4, 5, 6)).astype(np.uint8)
    medunet.write_volume(Volume(inside), tmp_path / "m.nii.gz")
    assert has_structure_channels(tmp_path / "m.nii.gz")
    masks = StructureMasks([tmp_path / "m.nii.gz"])
    assert [one.name for one in masks] == ["structure_1", "structure_2", "structure_3"] and len(masks) == 3
    for one, expected in zip(masks, inside, strict=True):
        np.testing.assert_array_equal(inside_of(one), expected)
    tifffile.imwrite(tmp_path / "two.ome.tif", inside[:2, 0], metadata={"axes": "CYX", "Channel": {"Name": ["a", "b"]}})
    assert [one.name for one in StructureMasks([tmp_path / "two.ome.tif"])] == ["a", "b"]
    tifffile.imwrite(tmp_path / "rgb.tif", inside[:, 0], imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "grey.tif", inside[0, 0], metadata={"axes": "YX"})
    Image.fromarray(inside[0].transpose(1, 2, 0)[..., :3]).save(tmp_path / "rgb.png")
    assert not any(has_structure_channels(tmp_path / name) for name in ("rgb.tif", "grey.tif", "rgb.png"))


def test_masks_are_read_one_at_a_time(tmp_path: Path) -> None:
    paths = []
    for place, name in enumerate("abc"):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(np.full((3, 4), place == 1, np.uint8)).save(paths[-1])
    masks = StructureMasks(paths)
    assert len(masks) == 3 and masks[0] is masks[0] and masks[1] is not masks[1]
    assert [one.path.stem for one in masks] == [one.path.stem for one in masks[:]] == ["a", "b", "c"]
    with pytest.raises(IndexError):
        masks[3]
