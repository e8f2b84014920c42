"""NRRD and MetaImage, with ITK and files written by hand as independent writers."""

from __future__ import annotations

import bz2
import gzip
import subprocess
import sys
import zlib
from pathlib import Path

import itk
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import DataError, OutputError
from medunet.formats.dispatch import read_volume, write_volume
from medunet.volume import Volume
from tests.formats.agreement import check_label_grid, read_checked, refused_or_right, write_and_read

# ITK's SWIG classes warn while they are made, and where that is an error the interpreter crashes
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
META = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_SHORT\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nendian: little\n"


def counted(shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def rotation(angles: list[float]) -> np.ndarray:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [(0, 1), (1, 2), (0, 2)][axis]
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    return turn


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    channels=st.sampled_from([1, 1, 2, 3, 5]),
    suffix=st.sampled_from(SUFFIXES),
    spacing=st.tuples(*[st.floats(0.01, 10)] * 3),
    angles=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
def test_written_is_read_back_and_a_second_time_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: tuple[int, ...],
    channels: int,
    suffix: str,
    spacing: tuple[float, ...],
    angles: list[float],
) -> None:
    if channels > 1 and dtype in ("int32", "uint32"):
        dtype = "uint16"  # ITK's Python has no vectors of them: see the test of wide vectors
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) @ np.diag(spacing)
    affine[:3, 3] = 1, -2, 1 / 3
    folder = tmp_path_factory.mktemp("itk")
    array = counted((channels, *shape), dtype)
    back = write_and_read(Volume(array, affine), folder / f"scan{suffix}")
    np.testing.assert_array_equal(back.array, array)
    assert back.array.dtype == array.dtype
    np.testing.assert_allclose(back.affine, affine, rtol=1e-9, atol=1e-9)
    again = write_and_read(back, folder / f"again{suffix}")
    np.testing.assert_allclose(again.affine, back.affine, rtol=0, atol=0 if suffix in (".mha", ".mhd") else 1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compressed", [True, False])
def test_reads_what_itk_writes(tmp_path: Path, suffix: str, compressed: bool) -> None:
    image = itk.image_from_array(counted((6, 5, 4)))
    image.SetSpacing([0.5, 1 / 3, 2.25])
    image.SetOrigin([10, -20, 30])
    image.SetDirection(itk.matrix_from_array(rotation([0.3, 0.2, -0.4])))
    path = tmp_path / f"scan{suffix}"
    itk.imwrite(image, str(path), compression=compressed)
    volume = read_checked(path)
    np.testing.assert_array_equal(volume.array[0], counted((6, 5, 4)).T)
    written = itk.imread(str(path))
    for index in [(0, 0, 0), (3, 0, 0), (0, 4, 0), (1, 2, 5)]:
        lps = np.array(written.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], lps * [-1, -1, 1], atol=1e-9)
    check_label_grid(path, tmp_path / f"labels{suffix}", rounding=0.0 if suffix in (".mha", ".mhd") else 1e-15)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_itk_reads_what_is_written(tmp_path: Path, suffix: str) -> None:
    array = counted((1, 4, 5, 6))
    affine = np.diag([-2.0, -3.0, 4.0, 1.0])
    affine[:3, 3] = 7, 8, 9
    write_volume(Volume(array, affine), tmp_path / f"scan{suffix}")
    image = itk.imread(str(tmp_path / f"scan{suffix}"))
    np.testing.assert_array_equal(itk.array_from_image(image), array[0].T)
    assert list(image.GetSpacing()) == [2, 3, 4] and list(image.GetOrigin()) == [-7, -8, 9]
    np.testing.assert_array_equal(itk.array_from_matrix(image.GetDirection()), np.eye(3))
    assert len(list(tmp_path.iterdir())) == (1 if suffix in (".nrrd", ".mha") else 2)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_two_dimensions(tmp_path: Path, suffix: str) -> None:
    affine = np.eye(4)
    affine[:2, :2] = [[0, -2], [3, 0]]
    affine[:2, 3] = 5, 6
    back = write_and_read(Volume(counted((1, 4, 5)), affine), tmp_path / f"scan{suffix}")
    np.testing.assert_allclose(back.affine, affine, atol=1e-12)
    np.testing.assert_array_equal(back.array, counted((1, 4, 5)))
    tilted = rotation([0, 0.5, 0])
    affine[:3, :3] = tilted
    with pytest.raises(OutputError, match="oblique"):
        write_volume(Volume(counted((1, 4, 5)), affine), tmp_path / f"oblique{suffix}")


def test_units_are_converted_to_the_formats_millimetres(tmp_path: Path) -> None:
    back = write_and_read(Volume(counted((1, 4, 5, 6)), np.diag([2.0, 3, 4, 1]), "um"), tmp_path / "scan.nrrd")
    assert back.unit == "mm"
    np.testing.assert_allclose(back.spacing, (2e-3, 3e-3, 4e-3))


@pytest.mark.parametrize(
    "met", ["CHAR", "UCHAR", "SHORT", "USHORT", "INT", "UINT", "LONG_LONG", "ULONG_LONG", "FLOAT", "DOUBLE"]
)
@pytest.mark.parametrize("msb", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_metaimage_by_hand_in_every_type(tmp_path: Path, met: str, msb: bool, channels: int) -> None:
    kinds = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
    names = ["CHAR", "UCHAR", "SHORT", "USHORT", "INT", "UINT", "LONG_LONG", "ULONG_LONG", "FLOAT", "DOUBLE"]
    dtype = np.dtype(kinds[names.index(met)])
    array = counted((6, 5, 4, channels), dtype.str)  # z, y, x, component: the order on disk
    text = (
        f"NDims = 3\nDimSize = 4 5 6\nElementNumberOfChannels = {channels}\nBinaryDataByteOrderMSB = {msb}\n"
        f"CompressedData = True\nElementType = MET_{met}\nElementDataFile = LOCAL\n"
    )
    voxels = zlib.compress(array.astype(dtype.newbyteorder(">" if msb else "<")).tobytes())
    (tmp_path / "scan.mha").write_bytes(text.encode() + voxels)
    volume = read_checked(tmp_path / "scan.mha")
    np.testing.assert_array_equal(volume.array, array.transpose(3, 2, 1, 0))
    assert volume.array.dtype == dtype


@pytest.mark.parametrize(
    "kinds", ["vector domain domain domain", "domain domain domain list", "domain list domain domain"]
)
def test_nrrd_channels_lie_where_the_kinds_say(tmp_path: Path, kinds: str) -> None:
    words = kinds.split()
    channel = next(i for i, kind in enumerate(words) if kind != "domain")
    sizes = [4, 5, 6]
    sizes.insert(channel, 3)
    directions = ["(2,0,0)", "(0,3,0)", "(0,0,4)"]
    directions.insert(channel, "none")
    array = counted(tuple(sizes))
    text = (
        f"NRRD0005\ntype: int16\ndimension: 4\nspace: left-posterior-superior\nsizes: {' '.join(map(str, sizes))}\n"
        f"space directions: {' '.join(directions)}\nkinds: {kinds}\nendian: little\nencoding: raw\n"
        "space origin: (1,2,3)\n\n"
    )
    (tmp_path / "scan.nrrd").write_bytes(text.encode() + array.tobytes(order="F"))
    volume = read_checked(tmp_path / "scan.nrrd")
    np.testing.assert_array_equal(volume.array, np.moveaxis(array, channel, 0))
    np.testing.assert_array_equal(volume.affine, [[-2, 0, 0, -1], [0, -3, 0, -2], [0, 0, 4, 3], [0, 0, 0, 1]])


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("detached", [True, False])
def test_nrrd_encodings_and_right_handed_space(tmp_path: Path, encoding: str, detached: bool) -> None:
    array = counted((4, 5, 6))
    raw = array.tobytes(order="F")
    voxels = {
        "raw": raw,
        "gzip": gzip.compress(raw),
        "bzip2": bz2.compress(raw),
        "ascii": " ".join(map(str, array.ravel(order="F"))).encode(),
    }[encoding]
    text = NRRD + (
        f"# a comment: with a colon\nkey:=value: 3\nencoding: {encoding}\nspace: right-anterior-superior\n"
        "space directions: (0,2,0) (-3,0,0) (0,0,4)\nspace origin: (1,2,3)\n"
    )
    if detached:
        (tmp_path / "scan.bin").write_bytes(voxels)
        (tmp_path / "scan.nhdr").write_text(text + "data file: scan.bin\n")
    else:
        (tmp_path / "scan.nrrd").write_bytes(text.encode() + b"\n" + voxels)
    volume = read_checked(tmp_path / ("scan.nhdr" if detached else "scan.nrrd"))
    np.testing.assert_array_equal(volume.array[0], array)
    np.testing.assert_allclose(volume.affine, [[0, -3, 0, 1], [2, 0, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]], atol=1e-12)


def zipped_meta(array: np.ndarray) -> bytes:
    return (META + "CompressedData = True\nElementDataFile = LOCAL\n").encode() + zlib.compress(array.tobytes())


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(data=st.data(), suffix=st.sampled_from([".mha", ".nrrd"]))
def test_no_damaged_voxels_pass_unseen(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suffix: str
) -> None:
    """ITK accepts many of these (zlib data cut or with a wrong checksum); every one must be an error."""
    folder = tmp_path_factory.mktemp("fuzz")
    raw = counted((6, 5, 4)).tobytes()
    head = (
        (META + "CompressedData = True\nElementDataFile = LOCAL\n") if suffix == ".mha" else NRRD + "encoding: gzip\n\n"
    )
    voxels = zlib.compress(raw) if suffix == ".mha" else gzip.compress(raw)
    if data.draw(st.booleans()):
        bad = voxels[: data.draw(st.integers(0, len(voxels) - 1))]
    else:
        at = data.draw(st.integers(10 if suffix == ".nrrd" else 2, len(voxels) - 1))
        bad = voxels[:at] + bytes([voxels[at] ^ (1 << data.draw(st.integers(0, 7)))]) + voxels[at + 1 :]
    path = folder / f"bad{suffix}"
    path.write_bytes(head.encode() + bad)
    refused_or_right(path, counted((6, 5, 4)).T)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.mha", (META + "ElementDataFile = LOCAL\n").encode() + bytes(239), "at most|truncated"),
        ("bad.mha", (META + "ElementDataFile = LOCAL\n").encode() + bytes(241), "found 241 bytes.*240"),
        ("bad.mha", (META + "ElementSpacing = 1 -1 1\nElementDataFile = LOCAL\n").encode() + bytes(240), "-1.0"),
        ("bad.mha", (META + "ElementSpacing = 1 0 1\nElementDataFile = LOCAL\n").encode() + bytes(240), "0.0"),
        ("bad.mha", (META + "ElementDataFile = ../secret.raw\n").encode(), "same folder"),
        ("bad.mha", (META + "ElementDataFile = /etc/hostname\n").encode(), "same folder"),
        ("bad.mhd", (META + "ElementDataFile = LIST\na.raw\n").encode(), "same folder"),
        ("bad.mhd", (META + "ElementDataFile = gone.raw\n").encode(), "gone.raw, which is missing"),
        ("bad.mha", (META + "ElementDataFile = LOCAL\n").replace("4 5 6", "4 5 0").encode(), "holds no voxel"),
        ("bad.mha", (META + "ElementDataFile = LOCAL\n").replace("4 5 6", "4 5 6 1").encode(), "4 spatial"),
        ("bad.mha", b"no header at all", "not MetaImage"),
        ("bad.mha", bytes(1000), "no header found"),
        ("bad.nrrd", b"no header at all", "not NRRD"),
        ("bad.nrrd", b"NRRD0004\ntype: short\nsizes:\nencoding: raw\n\n", "holds no voxel"),
        ("bad.nrrd", (NRRD + "encoding: hex\n\n").encode() + b"00" * 240, "hex"),
        ("bad.nrrd", (NRRD + "encoding: ascii\n\n").encode() + b"1 2 3", "found 3 numbers"),
        ("bad.nrrd", (NRRD + "encoding: raw\n\n").encode() + bytes(17), "at most|truncated"),
        ("bad.nhdr", (NRRD + "encoding: raw\ndata file: ../secret.raw\n").encode(), "same folder"),
        ("bad.nrrd", (NRRD + "encoding: raw\n\n").replace("4 5 6", "40000 50000 60000").encode(), "promises"),
    ],
)  # fmt: skip
def test_bad_headers_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path.parent / "secret.raw").write_bytes(bytes(240))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_volume(tmp_path / name)
    assert name in str(caught.value) and str(caught.value).count("\n") < 3


def test_wide_labels_take_the_smallest_type(tmp_path: Path) -> None:
    array = np.zeros((1, 2, 2, 2), np.int64)
    array[0, 0, 0, 0] = 300
    assert write_and_read(Volume(array), tmp_path / "labels.nrrd").array.dtype == np.int16
    array[0, 0, 0, 0] = 2**40
    with pytest.raises(OutputError, match="do not fit"):
        write_volume(Volume(array), tmp_path / "wide.mha")
    assert [p.name for p in tmp_path.iterdir()] == ["labels.nrrd"]


def test_an_existing_voxel_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "scan.zraw").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"scan\.zraw"):
        write_volume(Volume(counted((1, 4, 5, 6))), tmp_path / "scan.mhd")
    assert [p.name for p in tmp_path.iterdir()] == ["scan.zraw"]


@pytest.mark.slow
def test_survives_where_warnings_are_errors(tmp_path: Path) -> None:
    """In a process of its own, with ITK not yet loaded: it used to die of a segmentation fault."""
    (tmp_path / "scan.nrrd").write_bytes((NRRD + "encoding: raw\n\n").encode() + bytes(240))
    code = (
        "import sys; from medunet.formats.dispatch import read_volume, write_volume\n"
        "write_volume(read_volume(sys.argv[1]), sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "scan.nrrd"), str(tmp_path / "out.mha")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_volume(tmp_path / "out.mha").array, 0)


def test_vectors_of_wide_integers_are_narrowed_or_refused(tmp_path: Path) -> None:
    array = np.full((2, 3, 4, 5), 60000, np.int32)
    back = write_and_read(Volume(array), tmp_path / "vectors.mha")
    assert back.array.dtype == np.uint16 and (back.array == 60000).all()
    with pytest.raises(OutputError, match="do not fit"):
        write_volume(Volume(array + 10000), tmp_path / "wide.mha")
