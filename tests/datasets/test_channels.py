"""Channels by index and by name: in data sets, at prediction, and in the key of a prepared case."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medunet.datasets.catalogue import Case, channel_indices, chosen_names, read_data_set
from medunet.datasets.labels import table_from_names
from medunet.datasets.loading import by_model_channels, check_pairs, load_image, load_label
from medunet.errors import DataError
from medunet.formats.dispatch import write_volume
from medunet.patches.cache import case_key
from medunet.system.scratch import Scratch
from medunet.transforms.preprocess import PreprocessSettings
from medunet.volume import Volume

TABLE = table_from_names({"background": 0, "cell": 1}, None)


def write_named(path: Path, names: list[str]) -> np.ndarray:
    """An OME-TIFF whose channel n is filled with the length of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.stack([np.full((4, 6, 7), len(name), np.uint16) for name in names])
    metadata = {"axes": "CZYX", "Channel": {"Name": names}}
    tifffile.imwrite(path, array, ome=True, photometric="minisblack", metadata=metadata)
    return array


def make_set(folder: Path, names: list[str]) -> Path:
    for number in range(2):
        write_named(folder / "images" / f"c{number}.ome.tif", names)
        write_volume(Volume(np.ones((1, 7, 6, 4), np.uint8), unit="pixel"), folder / "labels" / f"c{number}.tif")
    return folder


def test_indices_and_names() -> None:
    assert channel_indices(["gfp", 0, "DAPI"], ("DAPI", "GFP"), 2, "x") == (1, 0, 0)
    assert channel_indices([2], (), 3, "x") == (2,)
    assert chosen_names([1, "x"], ("a", "b")) == ("b", "x")
    assert chosen_names([1, "x"], ("a",)) == ()
    with pytest.raises(DataError, match="has no channel 2: it has 2"):
        channel_indices([2], ("DAPI", "GFP"), 2, "x")
    with pytest.raises(DataError, match=r"no channel is called 'Cy5'.*0 'DAPI', 1 'GFP'"):
        channel_indices(["Cy5"], ("DAPI", "GFP"), 2, "x")
    with pytest.raises(DataError, match="without names"):
        channel_indices(["DAPI"], (), 2, "x")
    with pytest.raises(DataError, match="2 channels are called 'a'"):
        channel_indices(["a"], ("a", "A"), 2, "x")


def test_a_data_set_is_read_by_the_files_names(tmp_path: Path) -> None:
    data = read_data_set(make_set(tmp_path, ["a", "bb", "ccc"]), ["CCC", "a"])
    assert data.channels == ("CCC", "a")
    check_pairs(data.cases)
    for scratch in (None, Scratch(tmp_path, limit=0)):
        image = load_image(data.cases[0], scratch=scratch)
        assert image.array.shape == (2, 7, 6, 4)
        assert [int(channel.flat[0]) for channel in image.array] == [3, 1]
    with pytest.raises(DataError, match="'dddd'"):
        load_image(read_data_set(tmp_path, ["dddd"]).cases[0])


def test_declared_names_are_those_of_the_channels(tmp_path: Path) -> None:
    """They need not be the file's; an index without a name gives the model none."""
    make_set(tmp_path, ["a", "bb", "ccc"])
    assert read_data_set(tmp_path, [1]).channels == ()
    (tmp_path / "dataset.json").write_text(json.dumps({"channels": ["red", "green", "blue"]}))
    data = read_data_set(tmp_path, ["Green"])
    assert (data.channels, data.cases[0].channels) == (("green",), (1,))
    assert load_image(data.cases[0]).array.max() == 2
    assert read_data_set(tmp_path, [2]).channels == ("blue",)
    assert read_data_set(tmp_path).channels == ("red", "green", "blue")


def test_channels_in_files_of_their_own(tmp_path: Path) -> None:
    for channel in range(3):
        path = tmp_path / "images" / f"p_{channel:04d}.nii"
        write_volume(Volume(np.full((1, 4, 5, 6), channel, np.uint8)), path)
    (tmp_path / "dataset.json").write_text(json.dumps({"channels": ["T1", "T2", "FLAIR"]}))
    data = read_data_set(tmp_path, ["flair", "T1"])
    image = load_image(data.cases[0])
    assert [int(channel.flat[0]) for channel in image.array] == [2, 0]
    (one,) = read_data_set(tmp_path, ["T2"]).cases
    assert load_image(one).array.shape == (1, 4, 5, 6) and load_image(one).array.max() == 1


def test_a_model_finds_its_channels_by_name(tmp_path: Path) -> None:
    write_named(tmp_path / "scan.ome.tif", ["a", "bb", "ccc"])
    case = Case("scan", (tmp_path / "scan.ome.tif",))
    found = by_model_channels(case, ("CCC", "a"))
    assert [int(channel.flat[0]) for channel in load_image(found).array] == [3, 1]
    assert by_model_channels(case, ("a", "bb", "ccc")) == case
    assert load_image(by_model_channels(case, ("ccc", "bb", "a"))).array[0].max() == 3
    for names in ((), ("a", "x")):
        assert by_model_channels(case, names) == case
    chosen = replace(case, channels=(1,))
    assert by_model_channels(chosen, ("a",)) == chosen


def test_prepared_cases_of_other_channels_have_other_keys(tmp_path: Path) -> None:
    data = read_data_set(make_set(tmp_path, ["a", "bb"]))
    keys = {
        case_key(replace(data.cases[0], channels=channels), PreprocessSettings(), TABLE, None)
        for channels in ((), (0,), (1,), ("bb",))
    }
    assert len(keys) == 4


def picture_stack(folder: Path, count: int = 3) -> np.ndarray:
    folder.mkdir(parents=True)
    planes = np.random.default_rng(0).integers(0, 2, (count, 6, 7)).astype(np.uint8)
    for number, plane in enumerate(planes):
        Image.fromarray(plane).save(folder / f"s{number}.png")
    return planes


def test_a_declared_folder_of_sections_is_a_case(tmp_path: Path) -> None:
    declared = json.dumps({"stack": True, "labels": {"background": 0, "cell": 1}})
    whole, several = tmp_path / "whole", tmp_path / "several"
    for folder, names in ((whole, [""]), (several, ["x", "y"])):
        for name in names:
            image, label = picture_stack(folder / "images" / name), picture_stack(folder / "labels" / name)
        if folder is several:
            with pytest.raises(DataError, match="holds no scan"):
                read_data_set(folder)
        else:
            assert len(read_data_set(folder).cases) == 3, "without the declaration every section is a case"
        (folder / "dataset.json").write_text(declared)
        data = read_data_set(folder)
        assert [case.name for case in data.cases] == (["whole"] if folder is whole else names)
        check_pairs(data.labelled)
        case = data.labelled[-1]
        volume = load_image(case)
        np.testing.assert_array_equal(volume.array, image.transpose(2, 1, 0)[np.newaxis])
        assert data.labels is not None
        np.testing.assert_array_equal(load_label(case, data.labels, volume)[0], label.transpose(2, 1, 0))


def test_a_stack_case_depends_on_the_order_of_its_sections(tmp_path: Path) -> None:
    """The names of sections say their order, so other names are another volume."""
    picture_stack(tmp_path / "images" / "x")
    picture_stack(tmp_path / "labels" / "x")
    (tmp_path / "dataset.json").write_text('{"stack": true}')
    (case,) = read_data_set(tmp_path).cases
    before = case_key(case, PreprocessSettings(), TABLE, None)
    first, second = tmp_path / "images" / "x" / "s0.png", tmp_path / "images" / "x" / "s1.png"
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert case_key(case, PreprocessSettings(), TABLE, None) != before


def test_a_label_stack_may_be_a_file_and_the_key_is_true_or_false(tmp_path: Path) -> None:
    picture_stack(tmp_path / "images" / "x")
    write_volume(Volume(np.ones((1, 7, 6, 3), np.uint8), unit="pixel"), tmp_path / "labels" / "x.tif")
    (tmp_path / "dataset.json").write_text('{"stack": true}')
    (case,) = read_data_set(tmp_path).labelled
    assert case.label == tmp_path / "labels" / "x.tif"
    (tmp_path / "dataset.json").write_text('{"stack": 3}')
    with pytest.raises(DataError, match='"stack" must be true or false'):
        read_data_set(tmp_path)
