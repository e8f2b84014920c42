"""What inspect says of microscopy files: axes, pixel size, channels, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from medunet import cli


def described(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.run(["inspect", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)[0]


def test_axes_sizes_and_channels_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scan.ome.tif"
    metadata = {"axes": "TCZYX", "Channel": {"Name": ["DAPI", "GFP"]}, "PhysicalSizeX": 0.5, "PhysicalSizeZ": 2}
    array = np.arange(3 * 2 * 4 * 6 * 7, dtype=np.uint16).reshape(3, 2, 4, 6, 7)
    tifffile.imwrite(path, array, ome=True, photometric="minisblack", metadata=metadata)
    found = described(capsys, str(path), "--frame", "2")
    assert (found["TIFF axes"], found["TIFF shape"], found["type"]) == ("TCZYX", "3×2×4×6×7", "uint16")
    assert (found["shape"], found["spacing"], found["unit"]) == ([7, 6, 4], [0.5, 0.5, 2], "um")
    assert found["channel names"] == ["DAPI", "GFP"]
    assert (found["minimum"], found["maximum"]) == (array[1].min(), array[1].max())
    *axes, channels, network, labels = found["becomes"]
    assert axes == ["x: 7 voxels of 0.5 um", "y: 6 voxels of 0.5 um", "z: 4 voxels of 2 um"]
    assert channels == "channels: 0 DAPI, 1 GFP"
    assert "2 input channels as 3-D" in network and "--channel 0" in network
    assert ".ome.tif" in labels
    assert cli.run(["inspect", str(path), "--frame", "2"]) == 0
    text = capsys.readouterr().out
    assert "DAPI, GFP" in text and "z: 4 voxels of 2 um" in text
    assert cli.run(["inspect", str(path)]) == 1
    assert "--frame 1 to --frame 3" in capsys.readouterr().out


def test_colour_and_stacks_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "s").mkdir()
    for number in range(3):
        picture = Image.fromarray(rng.integers(0, 255, (6, 7, 3), np.uint8))
        picture.save(tmp_path / "s" / f"{number}.png")
    single = described(capsys, str(tmp_path / "s" / "0.png"))
    assert "channels: 0, 1, 2 (an RGB picture's red, green, blue)" in single["becomes"]
    stack = described(capsys, str(tmp_path / "s"), "--stack")
    assert (stack["format"], stack["shape"], stack["channels"]) == ("stack", [7, 6, 3], 3)
    assert cli.run(["inspect", str(tmp_path / "s")]) == 1
    assert "is no data set" in capsys.readouterr().out


def test_an_empty_label_map_is_a_note_and_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("a", 1), ("b", 0)):
        for folder, array in (("images", np.arange(30.0)), ("labels", np.full(30, value))):
            (tmp_path / folder).mkdir(exist_ok=True)
            picture = Image.fromarray(array.reshape(5, 6).astype(np.uint8))
            if value:
                picture.putpixel((0, 0), 0)
            picture.save(tmp_path / folder / f"{name}.png")
    found = described(capsys, str(tmp_path))
    assert "b: the label map is empty" in found["notes"] and not found["problems"]
