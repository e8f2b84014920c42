"""Which files of a case's folder are its channels and which its mask: by names alone, so the files here are empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from medunet.conversion.layouts import Layout
from medunet.conversion.structure_folders import case_folders, find_structures
from medunet.errors import DataError
from tests.conversion.test_layouts import folder_of, pairs


def layout_of(source: Path, masks: str | None = None) -> Layout:
    layout = find_structures(source, masks)
    assert layout is not None
    return layout


@pytest.mark.parametrize(
    ("cases", "pattern", "channels"),
    [
        (["BraTS20_Training_001", "BraTS20_Training_002"], "{0}/{0}_{1}.nii", ["flair", "t1", "t1ce", "t2"]),
        (["BraTS-GLI-00000-000", "BraTS-GLI-00002-001"], "{0}/{0}-{1}.nii.gz", ["t1c", "t1n", "t2f", "t2w"]),
        (["1", "17"], "{0}/{1}.nii.gz", ["flair", "t1"]),
        (["p1", "p2"], "{0}/{1}_{0}.nrrd", ["adc", "dwi", "t2"]),
    ],
)
def test_files_are_channels_by_the_order_of_their_names(
    tmp_path: Path, cases: list[str], pattern: str, channels: list[str]
) -> None:
    names = [pattern.format(case, name) for case in cases for name in ("seg", *reversed(channels))]
    layout = layout_of(folder_of(tmp_path, *names, "survival_info.csv"))
    assert list(layout.channels) == channels and not layout.structures
    assert pairs(layout, tmp_path) == {
        case: [pattern.format(case, name) for name in (*channels, "seg")] for case in cases
    }
    assert not layout.alone and not layout.orphans and not layout.unused


def test_upper_case_is_the_same(tmp_path: Path) -> None:
    layout = layout_of(folder_of(tmp_path, *(f"A/{n}.nii" for n in ("T1", "FLAIR", "wmh")), "b/B_flair.nii", "b/T1.nii",
                                 "b/b_WMH.nii"))  # fmt: skip
    assert layout.channels == ("flair", "t1") and layout.structures, "wmh may be a structure's binary mask"
    assert pairs(layout, tmp_path) == {
        "A": ["A/FLAIR.nii", "A/T1.nii", "A/wmh.nii"], "b": ["b/B_flair.nii", "b/T1.nii", "b/b_WMH.nii"],
    }  # fmt: skip
    assert [case.structures for case in layout.cases] == [("wmh",), ("WMH",)]


def test_the_one_file_that_is_left_is_the_mask_whatever_it_is_called(tmp_path: Path) -> None:
    """As in a case of BraTS 2020."""
    names = ["c1/c1_t1.nii", "c1/c1_t2.nii", "c1/c1_seg.nii", "c2/c2_t1.nii", "c2/c2_t2.nii", "c2/W39_1998.09_Segm.nii"]
    layout = layout_of(folder_of(tmp_path, *names))
    assert not layout.structures and [case.masks[0].name for case in layout.cases] == [names[2][3:], names[5][3:]]


def test_what_all_cases_hold_beside_a_file_called_seg_is_left_out(tmp_path: Path) -> None:
    names = [f"c{n}/{name}.nii" for n in (1, 2) for name in ("t1", "t2", "seg", "brain")]
    layout = layout_of(folder_of(tmp_path, *names))
    assert [path.relative_to(tmp_path).as_posix() for path in layout.unused] == ["c1/brain.nii", "c2/brain.nii"]
    assert [case.masks[0].name for case in layout.cases] == ["seg.nii", "seg.nii"] and not layout.structures


@pytest.mark.parametrize("inner", ["", "masks/", "drawn/"])
def test_several_masks_are_of_a_structure_each(tmp_path: Path, inner: str) -> None:
    names = [f"c{n}/{inner}c{n}_{name}.nii" for n in (1, 2) for name in ("liver", "spleen")]
    source = folder_of(tmp_path, *names, *(f"c{n}/c{n}_{name}.nii" for n in (1, 2) for name in ("pet", "ct")))
    layout = layout_of(source, "drawn" if inner == "drawn/" else None)
    assert layout.channels == ("ct", "pet") and layout.structures
    assert [case.structures for case in layout.cases] == [("liver", "spleen")] * 2
    assert pairs(layout, tmp_path)["c1"] == ["c1/c1_ct.nii", "c1/c1_pet.nii", *names[:2]]


def test_in_a_folder_of_masks_all_are_masks(tmp_path: Path) -> None:
    names = [f"c1/{name}.nii" for name in ("ct", "pet", "masks/label", "masks/liver", "masks/seg")]
    layout = layout_of(folder_of(tmp_path, *names))
    assert pairs(layout, tmp_path) == {"c1": names} and layout.structures


def test_whatever_is_no_case_is_left_over_by_name(tmp_path: Path) -> None:
    names = ("c1/t1.nii", "c1/t2.nii", "c1/seg.nii", "c2/t1.nii", "c2/t2.nii", "c3/seg.nii", "top.nii", "c4/readme.txt")
    layout = layout_of(folder_of(tmp_path, *names))
    assert list(pairs(layout, tmp_path)) == ["c1"]
    assert [path.relative_to(tmp_path).as_posix() for path in layout.alone] == ["top.nii", "c2/t1.nii", "c2/t2.nii"]
    assert [path.name for path in layout.orphans] == ["c3"]


@pytest.mark.parametrize("name", ["t1", "ct", "image"])
def test_one_image_in_each_folder_stays_what_it_was(tmp_path: Path, name: str) -> None:
    layout = layout_of(folder_of(tmp_path, *(f"c{n}/{one}.nii" for n in (1, 2) for one in (name, "seg"))))
    assert layout.form == "one folder per image" and not layout.channels and layout.structures
    assert pairs(layout, tmp_path) == {f"c{n}": [f"c{n}/{name}.nii", f"c{n}/seg.nii"] for n in (1, 2)}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("-c2/c2_t2.nii", "c2: lacks t2, it holds c2_t1.nii, c2_seg.nii; expected t1, t2 as in c1 (2 of 3 cases)"),
        ("+c2/c2_pet.nii", "c2: holds c2_pet.nii besides; expected t1, t2 as in c1 (2 of 3 cases)"),
        ("+c2/c2_brain.nii", "c2: holds c2_brain.nii besides; expected the channels and c2_seg.nii, as in most cases"),
        ("+c2/c2_label.nii", "c2: holds 2 files that are called masks (c2_label.nii, c2_seg.nii); expected one"),
        ("+c2/t1.nii", "c2: holds 2 files of the channel t1 (c2_t1.nii, t1.nii); expected one"),
        ("+c2/c2_t1.nii.gz", "c2: holds 2 files of the channel t1 (c2_t1.nii, c2_t1.nii.gz); expected one"),
        ("+c2/image.nii", "c2: holds image.nii besides; expected t1, t2 as in c1 (2 of 3 cases)"),
        ("+c2/masks/x.nii", "c2: holds c2_seg.nii besides"),
        ("+c2/masks/readme.txt", "c2/masks: holds no mask"),
    ],
)
def test_a_case_that_differs_is_refused(tmp_path: Path, changed: str, expected: str) -> None:
    source = folder_of(tmp_path, *(f"c{n}/c{n}_{name}.nii" for n in (1, 2, 3) for name in ("t1", "t2", "seg")))
    if changed[0] == "-":
        (source / changed[1:]).unlink()
    else:
        folder_of(source, changed[1:])
    with pytest.raises(DataError) as error:
        find_structures(source)
    assert expected in str(error.value) and len(str(error.value).splitlines()) == 2


def test_a_mask_that_cannot_be_told_is_refused(tmp_path: Path) -> None:
    names = [f"c{n}/{name}.nii" for n in (1, 2) for name in ("t1", "t2", "seg", "brain")]
    (folder_of(tmp_path, *names) / "c2/seg.nii").rename(tmp_path / "c2/consensus.nii")
    with pytest.raises(DataError, match=r"c2: which is the mask, brain.nii, consensus.nii\? expected one called seg"):
        find_structures(tmp_path)


def test_all_cases_that_differ_are_counted(tmp_path: Path) -> None:
    names = [f"c{n}/{name}.nii" for n in range(5) for name in ("t1", "t2", "seg")]
    source = folder_of(tmp_path, *(name for name in names if name not in ("c1/t2.nii", "c3/t1.nii")))
    with pytest.raises(DataError, match=r"c1: lacks t2(?s:.*)\n… and 1 more folders like this$"):
        find_structures(source)


def test_a_name_that_says_nothing_is_no_channel(tmp_path: Path) -> None:
    source = folder_of(tmp_path, *(f"c{n}/{name}.nii" for n in (1, 2) for name in ("t1", "t2", "image", "seg")))
    with pytest.raises(DataError, match=r"c1: holds 3 images, and image.nii does not say which channel it is"):
        find_structures(source)


def test_other_layouts_come_first(tmp_path: Path) -> None:
    stray = [f"stray/{name}.png" for name in ("t1", "t2", "seg")]
    source = folder_of(tmp_path, "images/a.png", "masks/a.png", *stray)
    assert find_structures(source) is None and [path.name for path in case_folders(source)] == ["stray"]
