"""Which mask belongs to which image: by names alone, so the files here are empty."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.conversion.layouts import Layout, find_layout, image_keys, is_mask_name, mask_keys, match_names
from medunet.errors import DataError


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def pairs(layout: Layout, source: Path) -> dict[str, list[str]]:
    """Case, then image and masks relative to the source."""
    return {
        case.name: [path.relative_to(source).as_posix() for path in (*case.images, *case.masks)]
        for case in layout.cases
    }


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("cell.png", "cell_mask.png"),
        ("cell.jpg", "cell_mask.png"),
        ("cell 1.tif", "cell 1_masks.tif"),
        ("a.nii.gz", "a_seg.nii.gz"),
        ("a.nii.gz", "a-label.nii.gz"),
        ("001.png", "mask_001.png"),
        ("img_001.png", "mask_001.png"),
        ("img001.png", "mask001.png"),
        ("ISIC_0012.jpg", "ISIC_0012_segmentation.png"),
        ("benign (1).png", "benign (1)_mask.png"),
        ("x_GT1.png", "x_GT1_GT.png"),
        ("image.tif", "image_mask.tif"),
        ("train-volume.tif", "train-labels.tif"),
        ("label_free_3.tif", "label_free_3_mask.tif"),
        ("21_training.tif", "21_training_manual1.png"),
        ("Frame.01.png", "Frame.01.gt.png"),
    ],
)
def test_a_mask_lies_beside_its_image(tmp_path: Path, image: str, mask: str) -> None:
    source = folder_of(tmp_path, image, mask)
    layout = find_layout(source)
    assert list(pairs(layout, source).values()) == [[image, mask]]
    assert not layout.alone and not layout.orphans and not layout.own and not layout.objects


@pytest.mark.parametrize("name", ["maskara", "segment", "biglabel", "gtx", "photomask2x"])
def test_a_word_within_a_word_is_none(name: str) -> None:
    assert mask_keys(name) == []


def test_what_is_left_over_is_named(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "a.png", "a_mask.png", "b.png", "c_mask.png", "notes.txt", ".hidden.png")
    layout = find_layout(source)
    assert pairs(layout, source) == {"a": ["a.png", "a_mask.png"]}
    assert [path.name for path in layout.alone] == ["b.png"]
    assert [path.name for path in layout.orphans] == ["c_mask.png"]
    assert [path.name for path in layout.others] == ["notes.txt"]


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    stems=st.lists(st.from_regex(r"[xyz][0-9]{1,3}(_[pq]{1,3})?", fullmatch=True), min_size=1, max_size=6, unique=True),
    form=st.sampled_from(["{}_mask", "{}-seg", "mask_{}", "GT {}", "{}.labels"]),
    masked=st.data(),
)
def test_every_file_is_matched_once_or_left_over(stems: list[str], form: str, masked: st.DataObject) -> None:
    with_mask = {stem for stem in stems if masked.draw(st.booleans(), label=stem)}
    images = [Path(f"{stem}.png") for stem in stems]
    masks = {Path(f"{form.format(stem)}.png"): Path(f"{stem}.png") for stem in with_mask}
    pairing = match_names(sorted([*images, *masks]))
    found, orphans, alone = pairing.masks, pairing.orphans, pairing.alone
    assert {mask: image for image, own in found.items() for mask in own} == masks
    assert orphans == [] and set(alone) == {path for path in images if path.stem not in with_mask}


def test_two_images_for_one_mask_are_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "img_1.png", "raw_1.png", "mask_1.png")
    with pytest.raises(DataError, match=r"mask_1.png: could be the mask of img_1.png and of raw_1.png"):
        find_layout(source)


def test_a_mask_of_a_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"and that one of a\.png"):
        find_layout(folder_of(tmp_path, "a.png", "a_mask.png", "a_mask_seg.png"))


def test_several_masks_of_one_image_are_kept_together(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "b (1).png", "b (1)_mask.png", "b (1)_mask_1.png")
    assert pairs(find_layout(source), source) == {"b (1)": ["b (1).png", "b (1)_mask.png", "b (1)_mask_1.png"]}


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images", "masks"), ("img", "masks"), ("Images", "GT"), ("JPEGImages", "SegmentationClass"),
     ("train", "train_labels"), ("train", "trainannot")],
)  # fmt: skip
def test_folders_beside_each_other(tmp_path: Path, images: str, masks: str) -> None:
    source = folder_of(tmp_path, f"{images}/a.jpg", f"{masks}/a.png", f"{images}/b.png", f"{masks}/b_mask.png")
    assert pairs(find_layout(source), source) == {
        "a": [f"{images}/a.jpg", f"{masks}/a.png"],
        "b": [f"{images}/b.png", f"{masks}/b_mask.png"],
    }


def test_two_pairs_of_folders_get_the_folders_name(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "train/a.png", "train_labels/a.png", "val/a.png", "val_labels/a.png")
    assert set(pairs(find_layout(source), source)) == {"train_a", "val_a"}


def test_folders_that_could_belong_together_in_two_ways_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which folders belong together"):
        find_layout(folder_of(tmp_path, "images/a.png", "masks/a.png", "gt/a.png"))


def test_the_own_layout_keeps_channels_together(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "images/a_0000.png", "images/a_0001.png", "labels/a.png", "images/b_0000.png")
    layout = find_layout(source)
    assert layout.own and pairs(layout, source) == {"a": ["images/a_0000.png", "images/a_0001.png", "labels/a.png"]}


def test_the_cell_tracking_challenge(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path, "01/t000.tif", "01/t001.tif", "02/t000.tif", "01_GT/SEG/man_seg000.tif", "02_GT/SEG/man_seg000.tif",
        "02_GT/SEG/man_seg007.tif", "01_GT/TRA/man_track000.tif",
    )  # fmt: skip
    layout = find_layout(source)
    assert layout.objects
    assert pairs(layout, source) == {
        "01_t000": ["01/t000.tif", "01_GT/SEG/man_seg000.tif"],
        "02_t000": ["02/t000.tif", "02_GT/SEG/man_seg000.tif"],
    }
    assert [path.name for path in layout.alone] == ["t001.tif"]
    assert [path.name for path in layout.orphans] == ["man_seg007.tif"]


def test_the_data_science_bowl(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "7f/images/7f.png", "7f/masks/b.png", "7f/masks/a.png", "9c/images/9c.png")
    layout = find_layout(source)
    assert layout.objects and pairs(layout, source) == {"7f": ["7f/images/7f.png", "7f/masks/a.png", "7f/masks/b.png"]}
    assert [path.name for path in layout.alone] == ["9c.png"]


@pytest.mark.parametrize(
    ("pattern", "mask"),
    [("*.png", "a.png"), ("truth/t_*.png", "truth/t_a.png"), ("truth", "truth/a.png"), ("*x.tif", "ax.tif")],
)
def test_a_pattern_says_which_files_are_masks(tmp_path: Path, pattern: str, mask: str) -> None:
    source = folder_of(tmp_path, "a.jpg", mask)
    assert pairs(find_layout(source, pattern), source) == {"a": ["a.jpg", mask]}


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("*_m*.png", "one \\*"),
        ("../*.png", "one \\*"),
        ("*_nothing.png", "no scan fits"),
        ("*_b.png", "no image belongs to the masks"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(tmp_path: Path, pattern: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_layout(folder_of(tmp_path, "a.jpg", "c_b.png"), pattern)


@pytest.mark.parametrize("names", [(), ("a.png", "b.png"), ("x/y/a.png",), ("a_mask.png",)])
def test_nothing_recognised_says_what_was_found(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="no images with masks found; it holds"):
        find_layout(folder_of(tmp_path, *names))


def test_names_lose_a_word_and_one_separator() -> None:
    assert mask_keys("a_mask_1") == ["a_1", "a"]
    assert image_keys("train-volume") == ["train-volume", "train"]
    assert image_keys("img001") == ["img001", "001"]


@pytest.mark.parametrize(
    ("name", "whether"),
    [("seg", True), ("SEG", True), ("ground_truth", True), ("tumour_seg", False), ("segment", False), ("", False)],
)
def test_a_name_that_is_a_word_for_masks(name: str, whether: bool) -> None:
    assert is_mask_name(name) is whether


def test_pairs_of_folders_beside_many_others(tmp_path: Path) -> None:
    names = [f"{part}{ending}/{n}.png" for part in ("train", "val") for ending in ("", "annot") for n in (1, 2)]
    source = folder_of(
        tmp_path, *names, "test/1.png", "test_labels/1.png", "both/1.png", "both_gt/1.png", "bothannot/1.png"
    )
    assert find_layout(source).form == "test/ with test_labels/, train/ with trainannot/, val/ with valannot/"
