"""What a TIFF says of its axes, channels, frames and pages; tifffile writes the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import DataError
from medunet.formats.dispatch import read_grid, read_volume
from medunet.system.scratch import Scratch


def numbered(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, array, **({"photometric": "minisblack"} | options))
    return path


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    axes=st.sampled_from(["TYX", "TZYX", "TZCYX", "CTZYX", "TCYX", "CTYX", "ZTYX", "TZYXS"]),
    compression=st.sampled_from([None, "zlib", "lzw"]),
    frame=st.integers(1, 3),
    kind=st.sampled_from(["ome", "plain"]),
)
def test_a_frame_is_that_part_of_the_series(
    tmp_path_factory: pytest.TempPathFactory, axes: str, compression: str | None, frame: int, kind: str
) -> None:
    """Wherever the time axis stands, and whether the pixels lie in a run or in compressed pages."""
    array = numbered(*({"T": 3, "Z": 4, "C": 2, "Y": 6, "X": 7, "S": 3}[letter] for letter in axes))
    folder = tmp_path_factory.mktemp("frames")
    options = {"ome": True} if kind == "ome" else {}
    colour = {"photometric": "rgb"} if "S" in axes else {}
    path = save(folder / "scan.tif", array, metadata={"axes": axes}, compression=compression, **options, **colour)
    part = array.take(frame - 1, axes.index("T"))
    left = axes.replace("T", "")
    wanted = part.transpose([left.index(letter) for letter in "CSXYZ" if letter in left])
    wanted = wanted if {"C", "S"} & set(axes) else wanted[np.newaxis]
    for scratch in (None, Scratch(folder, limit=0)):
        np.testing.assert_array_equal(read_volume(path, frame=frame, scratch=scratch).array, wanted)
    grid = read_grid(path, frame=frame)
    assert (grid.channels, *grid.shape) == wanted.shape


def test_frames_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.tif", numbered(3, 6, 7), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(DataError, match=r"3 time points.*\n.*--frame 1 to --frame 3.*--axes ZYX"):
        read_grid(path)
    with pytest.raises(DataError, match="has the frames 1 to 3"):
        read_volume(path, frame=4)
    plain = save(tmp_path / "one.tif", numbered(6, 7))
    with pytest.raises(DataError, match="no time axis"):
        read_volume(plain, frame=1)
    # a stack that its user knows to be frames of volumes
    array = numbered(2, 3, 6, 7)
    bare = tmp_path / "bare.tif"
    with tifffile.TiffWriter(bare) as file:
        for page in array.reshape(-1, 6, 7):
            file.write(page, metadata=None, photometric="minisblack", contiguous=False)
    with pytest.raises(DataError, match="names 4 axes"):
        read_volume(bare, axes="TZYX", frame=2)


def test_channels_have_the_names_of_the_file(tmp_path: Path) -> None:
    channels = {"Channel": {"Name": ["DAPI", "GFP"]}}
    ome = save(tmp_path / "a.ome.tif", numbered(2, 3, 6, 7), ome=True, metadata={"axes": "CZYX", **channels})
    labels = {"Labels": ["DAPI", "GFP"] * 3}
    imagej = save(tmp_path / "b.tif", numbered(3, 2, 6, 7), imagej=True, metadata={"axes": "ZCYX", **labels})
    for path in (ome, imagej):
        assert read_grid(path).channel_names == ("DAPI", "GFP")
    planes = {"Labels": [f"plane {n}" for n in range(6)]}
    unnamed = save(tmp_path / "c.tif", numbered(3, 2, 6, 7), imagej=True, metadata={"axes": "ZCYX", **planes})
    twice = {"Channel": {"Name": ["GFP", "GFP"]}}
    equal = save(tmp_path / "d.ome.tif", numbered(2, 3, 6, 7), ome=True, metadata={"axes": "CZYX", **twice})
    for path in (unnamed, equal):
        assert read_grid(path).channel_names == ()


@pytest.mark.parametrize("axes", [None, "ZYX"])
@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ([(6, 7, "uint16"), (6, 7, "uint16"), (8, 9, "uint16")], "2 of 6×7 uint16, 1 of 8×9 uint16"),
        ([(6, 7, "uint8"), (6, 7, "uint16")], "1 of 6×7 uint8, 1 of 6×7 uint16"),
    ],
)
def test_pages_that_differ_are_no_stack(tmp_path: Path, axes: str | None, pages: list, said: str) -> None:
    with tifffile.TiffWriter(tmp_path / "scan.tif") as file:
        for height, width, dtype in pages:
            file.write(numbered(height, width, dtype=dtype), metadata=None, photometric="minisblack", contiguous=False)
    for look in (read_volume, read_grid):
        with pytest.raises(DataError, match=said):
            look(tmp_path / "scan.tif", axes=axes)


def test_a_pyramid_is_its_largest_image(tmp_path: Path) -> None:
    array = numbered(3, 64, 64)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        tiles: dict[str, Any] = {"tile": (32, 32), "photometric": "minisblack"}
        file.write(array, subifds=1, metadata={"axes": "ZYX", "PhysicalSizeX": 0.5}, **tiles)
        file.write(array[:, ::2, ::2], subfiletype=1, **tiles)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for step in (1, 2):
            file.write(array[0, ::step, ::step], subfiletype=step - 1, metadata=None, **tiles)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.ome.tif").array, array.T[np.newaxis])
    np.testing.assert_array_equal(read_volume(tmp_path / "b.tif").array, array[0].T[np.newaxis])


def test_positions_are_refused_and_an_overview_is_not(tmp_path: Path) -> None:
    for name, second in (("positions", (3, 6, 7)), ("overview", (4, 5))):
        with tifffile.TiffWriter(tmp_path / f"{name}.ome.tif", ome=True) as file:
            file.write(numbered(3, 6, 7), metadata={"axes": "ZYX", "Name": "A1"}, photometric="minisblack")
            file.write(numbered(*second), metadata={"axes": "ZYX"[-len(second) :]}, photometric="minisblack")
    with pytest.raises(DataError, match="2 OME images of one shape"):
        read_volume(tmp_path / "positions.ome.tif")
    assert read_volume(tmp_path / "overview.ome.tif").shape == (7, 6, 3)


COMPANION = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:1"/></OME>'
)
SET = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="7" SizeY="6" SizeZ="3" '
    'SizeC="2" SizeT="1" PhysicalSizeX="0.5"><TiffData IFD="0" FirstC="0" PlaneCount="3">'
    '<UUID FileName="scan.ome.tif">urn:uuid:0</UUID></TiffData><TiffData IFD="0" FirstC="1" PlaneCount="3">'
    '<UUID FileName="lost.ome.tif">urn:uuid:1</UUID></TiffData></Pixels></Image></OME>'
)


@pytest.mark.parametrize("xml", [COMPANION, SET])
def test_a_part_of_a_set_of_files_is_refused_unless_its_axes_are_stated(tmp_path: Path, xml: str) -> None:
    """Neither a companion file nor the other channels' files are there, and medunet would not follow names in XML."""
    array = numbered(3, 6, 7)
    with tifffile.TiffWriter(tmp_path / "scan.ome.tif") as file:
        for z, page in enumerate(array):
            described = xml if z == 0 else None
            file.write(page, metadata=None, description=described, photometric="minisblack", contiguous=False)
    with pytest.raises(DataError, match=r"one OME-TIFF \(Fiji: Bio-Formats Exporter\)"):
        read_volume(tmp_path / "scan.ome.tif")
    if xml == COMPANION:
        volume = read_volume(tmp_path / "scan.ome.tif", axes="ZYX")
        np.testing.assert_array_equal(volume.array, array.T[np.newaxis])


SIZES: list[tuple[dict[str, Any], tuple[float, float, float], str]] = [
    # ImageJ: a unit and the distance of slices in it
    ({"imagej": True, "resolution": (10, 10), "metadata": {"axes": "ZYX", "unit": "cm", "spacing": 0.2}},
     (1000, 1000, 2000), "um"),
    ({"imagej": True, "resolution": (10, 10), "metadata": {"axes": "ZYX", "unit": "inch", "spacing": 0.2}},
     (2540, 2540, 5080), "um"),
    ({"imagej": True, "resolution": (10, 10), "metadata": {"axes": "ZYX", "unit": "\\u00B5m", "spacing": 0.2}},
     (0.1, 0.1, 0.2), "um"),
    ({"imagej": True, "resolution": (10, 10), "metadata": {"axes": "ZYX", "unit": "microns", "spacing": 0.2}},
     (0.1, 0.1, 0.2), "um"),
    # a distance without a unit is in pixels, and so are lengths that nobody knows
    ({"imagej": True, "metadata": {"axes": "ZYX", "spacing": 2.5}}, (1, 1, 2.5), "pixel"),
    ({"imagej": True, "resolution": (10, 10), "metadata": {"axes": "ZYX", "unit": "furlong", "spacing": 2}},
     (1, 1, 2), "pixel"),
    # zero and nonsense are no sizes; ImageJ writes some depths with a negative sign
    ({"imagej": True, "resolution": (10, 10), "metadata": {"axes": "ZYX", "unit": "um", "spacing": 0}},
     (0.1, 0.1, 1), "um"),
    ({"imagej": True, "resolution": (10, 10), "metadata": {"axes": "ZYX", "unit": "um", "spacing": -0.4}},
     (0.1, 0.1, 0.4), "um"),
    ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0, "PhysicalSizeZ": 2}}, (1, 1, 1), "pixel"),
    ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 0}},
     (0.5, 0.5, 0.5), "um"),
    ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 2, "PhysicalSizeXUnit": "cm"}},
     (20000, 20000, 20000), "um"),
    ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 1, "PhysicalSizeXUnit": "inch"}},
     (25400, 25400, 25400), "um"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "spacing", "unit"), SIZES)
def test_spellings_of_pixel_sizes(
    tmp_path: Path, options: dict[str, Any], spacing: tuple[float, float, float], unit: str
) -> None:
    volume = read_volume(save(tmp_path / "scan.tif", numbered(5, 6, 7), **options))
    np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-6)
    assert volume.unit == unit
