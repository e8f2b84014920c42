"""Which masks show structures of which image: by names alone, so the files here are empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from medunet.conversion.layouts import find_layout
from medunet.conversion.structure_folders import case_folders, find_structures
from medunet.errors import DataError
from tests.conversion.test_layouts import folder_of, pairs


@pytest.mark.parametrize(
    ("images", "masks"), [("images", "labels"), ("imagesTr", "labelsTr"), ("Images", "Masks"), ("img", "gt")]
)
def test_a_folder_of_masks_for_each_image(tmp_path: Path, images: str, masks: str) -> None:
    source = folder_of(
        tmp_path, f"{images}/a.nii.gz", f"{images}/b.nii.gz", f"{images}/c.nii.gz", f"{masks}/a/spleen.nii.gz",
        f"{masks}/a/liver.nii.gz", f"{masks}/b/liver.nii.gz", f"{masks}/z/liver.nii.gz", f"{masks}/notes.txt",
    )  # fmt: skip
    layout = find_structures(source)
    assert layout is not None and layout.structures and not layout.own and not layout.objects
    assert pairs(layout, source) == {
        "a": [f"{images}/a.nii.gz", f"{masks}/a/liver.nii.gz", f"{masks}/a/spleen.nii.gz"],
        "b": [f"{images}/b.nii.gz", f"{masks}/b/liver.nii.gz"],
    }
    assert [path.name for path in layout.alone] == ["c.nii.gz"] and [path.name for path in layout.orphans] == ["z"]


def test_channels_of_an_image_stay_together(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "images/a_0000.png", "images/a_0001.png", "labels/a/x.png")
    layout = find_structures(source)
    assert layout is not None
    assert pairs(layout, source) == {"a": ["images/a_0000.png", "images/a_0001.png", "labels/a/x.png"]}


@pytest.mark.parametrize("inner", ["segmentations/", "masks/", ""])
@pytest.mark.parametrize("image", ["ct", "mri", "image"])
def test_a_folder_for_each_image(tmp_path: Path, inner: str, image: str) -> None:
    names = [f"s{n}/{name}.nii.gz" for n in (1, 2) for name in (image, f"{inner}liver", f"{inner}heart")]
    source = folder_of(tmp_path, *names, "meta.csv", "other/readme.txt")
    layout = find_structures(source)
    assert layout is not None and layout.structures
    assert pairs(layout, source) == {
        f"s{n}": [f"s{n}/{name}.nii.gz" for name in (image, f"{inner}heart", f"{inner}liver")] for n in (1, 2)
    }


def test_a_mask_folder_of_another_name_is_said(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "images/a.png", "drawn/a/x.png")
    assert find_structures(source) is None
    layout = find_structures(source, "drawn/")
    assert layout is not None and pairs(layout, source) == {"a": ["images/a.png", "drawn/a/x.png"]}


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("images/a.png", "labels/a.png"),
        ("images/a.png", "masks/a_mask.png"),
        ("images/image.png", "images/b.png", "labels/image.png", "labels/b.png"),
        ("7f/images/7f.png", "7f/masks/b.png", "7f/masks/a.png"),
        ("01/t000.tif", "01_GT/SEG/man_seg000.tif"),
        ("images/a/1.png", "images/a/2.png", "labels/a/1.png", "labels/a/2.png"),  # a stack of sections
        ("a.png", "a_mask.png"),
        ("train/a.png", "train_labels/a.png"),
    ],
)
def test_other_layouts_are_left_to_others(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = folder_of(tmp_path, *names)
    assert find_structures(source) is None
    if names and "images/a/1.png" not in names:
        assert find_layout(source).cases
    assert find_structures(tmp_path / "nowhere") is None


@pytest.mark.parametrize("names", [("images/a.png", "labels/a/notes.txt"), ("a/ct.nii.gz", "a/masks/notes.txt")])
def test_an_empty_folder_of_masks_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"(labels/a|a/masks): holds no mask; expected a file per structure"):
        find_structures(folder_of(tmp_path, *names))


@pytest.mark.parametrize("mask", ["masks/x.nii.gz", "x.nii.gz"])
def test_two_images_in_a_folder_are_refused(tmp_path: Path, mask: str) -> None:
    """As the names do not say which channel they are; see `test_channelfolders` for those that do."""
    with pytest.raises(DataError, match=r"s1: holds 2 scans \(ct.nii.gz, image.nii.gz\) beside its masks"):
        find_structures(
            folder_of(tmp_path, "s1/ct.nii.gz", "s1/image.nii.gz", f"s1/{mask}", "s2/ct.nii.gz", "s2/x.nii")
        )


def test_two_mask_folders_of_an_image_are_refused_until_one_is_named(tmp_path: Path) -> None:
    names = [f"s{n}/{name}.nii.gz" for n in (1, 2, 3) for name in ("ct", "masks/x", "segmentations/x")]
    source = folder_of(tmp_path, *names[:-1])
    with pytest.raises(DataError, match=r"s1: holds 2 folders of masks \(masks, segmentations\)") as error:
        find_structures(source)
    assert str(error.value).endswith("… and 1 more folders like this") and len(str(error.value).splitlines()) == 3
    layout = find_structures(source, "segmentations")
    assert layout is not None and list(pairs(layout, source)) == ["s1", "s2"]
    assert [path.relative_to(source).as_posix() for path in layout.alone] == ["s3/ct.nii.gz"], "said, not lost"


def test_two_pairs_of_folders_are_refused_until_one_is_named(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "images/a.png", "labels/a/x.png", "masks/a/x.png")
    with pytest.raises(DataError, match=r"which folders belong together\? found .*labels/; .*masks/"):
        find_structures(source)
    layout = find_structures(source, "masks")
    assert layout is not None and pairs(layout, source) == {"a": ["images/a.png", "masks/a/x.png"]}


def test_whatever_is_no_case_is_left_over_by_name(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path, "s1/ct.nii.gz", "s1/masks/x.nii.gz", "s2/ct.nii.gz", "s3/masks/x.nii.gz", "s4/x.nii.gz",
        "images/s5.nii.gz", "labels/s6.nii.gz", "top.nii.gz", "other/readme.txt",
    )  # fmt: skip
    layout = find_structures(source)
    assert layout is not None and list(pairs(layout, source)) == ["s1"]
    assert {path.relative_to(source).as_posix() for path in layout.alone} == {
        "s2/ct.nii.gz", "images/s5.nii.gz", "top.nii.gz",
    }  # fmt: skip
    assert {path.relative_to(source).as_posix() for path in layout.orphans} == {"s3/masks", "s4", "labels/s6.nii.gz"}


@pytest.mark.parametrize(
    "names",
    [
        ("images/a.png", "masks/a.png"),
        ("images/a.png", "labels/a.png"),
        ("a.png", "a_mask.png"),
        ("train/a.png", "train_labels/a.png"),
        ("01/t000.tif", "01_GT/SEG/man_seg000.tif"),
    ],
)
def test_a_stray_folder_does_not_take_over_and_is_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = folder_of(tmp_path, *names, "stray/ct.png", "stray/x.png", "other/ct.png", "other/seg/y.png")
    assert find_structures(source) is None
    assert [path.name for path in case_folders(source)] == ["other", "stray"]
    assert len(find_layout(source).cases) == 1
    assert find_structures(source, names[1].rpartition("/")[0] or "*_mask.png") is None


def test_odd_folders_do_not_disturb_another_layout(tmp_path: Path) -> None:
    names = ("7f/images/7f.png", "7f/masks/a.png", "stray/t1.png", "stray/t2.png", "stray/t3.png", "stray/t4.png")
    source = folder_of(tmp_path, *names, "stray/x.png")
    assert find_structures(source) is None and find_layout(source).one_each
    assert [path.name for path in case_folders(source)] == ["stray"]


def test_folders_of_masks_and_files_do_not_mix(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "images/a.png", "images/b.png", "masks/a.png", "masks/b/x.png")
    with pytest.raises(DataError, match=r"masks: holds folders of masks \(b\) and files \(a.png\)") as error:
        find_structures(source)
    assert "--masks 'masks/*'" in str(error.value)
    assert find_structures(source, "masks/*") is None
    assert pairs(find_layout(source, "masks/*"), source) == {"a": ["images/a.png", "masks/a.png"]}
