"""NIfTI, with nibabel as the independent writer and reader."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import DataError, OutputError
from medunet.formats.dispatch import read_grid, read_volume, write_volume
from medunet.volume import Volume
from tests.formats.agreement import check_label_grid, read_checked, refused_or_right, write_and_read

OBLIQUE = np.array([[-1.9, 0.2, 0.3, 10], [0.1, 2.8, -0.4, -20], [0.2, 0.5, 3.9, 30], [0, 0, 0, 1.0]])


def counted(shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = OBLIQUE, header: object = None) -> Path:
    nib.save(nib.Nifti1Image(array, affine, header, dtype=array.dtype), path)
    return path


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"]),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    channels=st.integers(1, 3),
    suffix=st.sampled_from([".nii", ".nii.gz", ".hdr", ".img"]),
    entries=st.lists(st.floats(-3, 3, width=32), min_size=9, max_size=9),
    unit=st.sampled_from(["mm", "um", "nm"]),
)
def test_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: list[int],
    channels: int,
    suffix: str,
    entries: list[float],
    unit: str,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(entries, (3, 3)) + np.diag([10.0, 20, 30])  # dominated by its diagonal: regular
    array = counted((channels, *shape), dtype)
    back = write_and_read(Volume(array, affine, unit), tmp_path_factory.mktemp("nifti") / f"scan{suffix}")
    expected = array[..., np.newaxis] if len(shape) == 2 and channels > 1 else array
    np.testing.assert_array_equal(back.array, expected)
    assert back.array.dtype == array.dtype
    assert back.unit == ("um" if unit == "nm" else unit)
    scale = np.diag([1e-3 if unit == "nm" else 1.0] * 3 + [1])
    np.testing.assert_allclose(back.affine, scale @ affine, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", "i8"])
def test_reads_what_nibabel_reads(tmp_path: Path, suffix: str, order: str, dtype: str) -> None:
    array = counted((4, 5, 6)).astype(order + dtype)
    header = nib.Nifti1Header(endianness=order)
    path = save(tmp_path / f"scan{suffix}", array, OBLIQUE, header)
    volume = read_checked(path)
    np.testing.assert_array_equal(volume.array[0], np.asarray(nib.load(path).dataobj))
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    check_label_grid(path, tmp_path / f"labels{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 4), (2, 1)])
@pytest.mark.parametrize("units", [("mm", "sec"), ("unknown", "unknown"), ("micron", "msec")])
def test_a_label_map_keeps_every_geometric_field(
    tmp_path: Path, codes: tuple[int, int], units: tuple[str, str]
) -> None:
    """qform and sform disagree and the sform is sheared: both must come through, bit for bit (nibabel reads them)."""
    header = nib.Nifti1Header()
    header.set_qform(np.array([[0, -2, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]]), codes[0])
    header.set_sform(OBLIQUE, codes[1])
    header.set_xyzt_units(*units)
    header["descrip"], header["cal_max"], header["intent_name"] = b"scanner 7", 300, b"kept"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment of some length"))
    scan = save(tmp_path / "scan.nii.gz", counted((4, 5, 6)), None, header)
    check_label_grid(scan, tmp_path / "labels.nii.gz")
    before, after = nib.load(scan).header, nib.load(tmp_path / "labels.nii.gz").header
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {"datatype", "bitpix", "cal_max"}
    assert after["cal_max"] == 0 and after.get_data_dtype() == np.uint8
    assert [e.get_content() for e in after.extensions] == [e.get_content() for e in before.extensions]
    raw = gzip.decompress((tmp_path / "labels.nii.gz").read_bytes())
    assert struct.unpack("<2f", raw[112:120]) == (1.0, 0.0)


def test_a_header_crosses_between_single_file_and_pair(tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii", counted((4, 5, 6)))
    check_label_grid(scan, tmp_path / "labels.img")
    assert nib.load(tmp_path / "labels.hdr").get_data_dtype() == np.uint8
    back = check_label_grid(tmp_path / "labels.hdr", tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(back.affine, nib.load(scan).affine)


def test_nifti_2_stays_nifti_2(tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti2Image(counted((4, 5, 6)), OBLIQUE), scan)
    check_label_grid(scan, tmp_path / "labels.nii.gz")
    assert isinstance(nib.load(tmp_path / "labels.nii.gz"), nib.Nifti2Image)


def test_a_moved_grid_is_written_not_the_old_header(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "scan.nii.gz", counted((4, 5, 6))))
    moved = volume.affine.copy()
    moved[:3, 3] += 100
    back = write_and_read(Volume(volume.array, moved, "mm", volume.origin), tmp_path / "moved.nii.gz")
    np.testing.assert_allclose(back.affine, moved, rtol=1e-6)


def test_a_fresh_header_says_the_same_in_sform_and_qform_or_only_sform_if_sheared(tmp_path: Path) -> None:
    rotated = np.array([[0, -2, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]])
    write_volume(Volume(counted((1, 4, 5, 6)), rotated), tmp_path / "rotated.nii")
    header = nib.load(tmp_path / "rotated.nii").header
    np.testing.assert_allclose(header.get_qform(coded=True)[0], rotated, atol=1e-5)
    np.testing.assert_allclose(header.get_sform(coded=True)[0], rotated, atol=1e-5)
    write_volume(Volume(counted((1, 4, 5, 6)), OBLIQUE), tmp_path / "sheared.nii")
    header = nib.load(tmp_path / "sheared.nii").header
    assert header["qform_code"] == 0
    np.testing.assert_allclose(header.get_sform(), OBLIQUE, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5), (1, 4, 5)),
        ((4, 5, 1), (1, 4, 5, 1)),
        ((4, 5, 6, 1), (1, 4, 5, 6)),
        ((4, 5, 6, 3), (3, 4, 5, 6)),
        ((4, 5, 6, 1, 3), (3, 4, 5, 6)),
        ((4, 5, 1, 1, 3), (3, 4, 5, 1)),
        ((4, 5, 6, 2, 1, 1), (2, 4, 5, 6)),
    ],
)
def test_axes_become_channels(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = counted(shape)
    volume = read_checked(save(tmp_path / "scan.nii.gz", array))
    assert volume.array.shape == expected
    by_hand = array.reshape((*expected[1:], expected[0]))
    np.testing.assert_array_equal(volume.array, np.moveaxis(by_hand, -1, 0))


def test_rgb_becomes_three_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (4, 5, 6, 3), dtype=np.uint8)
    packed = np.empty((4, 5, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    for index, name in enumerate("RGB"):
        packed[name] = colours[..., index]
    path = save(tmp_path / "rgb.nii.gz", packed)
    np.testing.assert_array_equal(read_checked(path).array, np.moveaxis(colours, -1, 0))
    check_label_grid(path, tmp_path / "labels.nii.gz")


def test_scaling_is_applied_as_nibabel_does_and_reset_on_write(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_slope_inter(0.37, -5)
    values = (np.arange(120).reshape(4, 5, 6) * 0.37 - 5).astype(np.float64)
    nib.save(nib.Nifti1Image(values, OBLIQUE, header), tmp_path / "scan.nii.gz")
    volume = read_checked(tmp_path / "scan.nii.gz")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], nib.load(tmp_path / "scan.nii.gz").get_fdata().astype(np.float32))
    check_label_grid(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz")


def test_metres_are_read_as_millimetres(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_xyzt_units("meter")
    path = save(tmp_path / "scan.nii", counted((4, 5, 6)), np.diag([0.002, 0.002, 0.003, 1]), header)
    np.testing.assert_allclose(read_checked(path).spacing, (2, 2, 3), rtol=1e-6)
    check_label_grid(path, tmp_path / "labels.nii")


def test_differing_qform_is_said_in_the_details(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    header.set_sform(np.diag([-2.0, 2, 2, 1]), 1)
    path = save(tmp_path / "scan.nii", counted((4, 5, 6)), None, header)
    assert "differ" in read_grid(path).details["warning"]


def test_a_broken_qform_beside_a_good_sform_does_no_harm(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_sform(OBLIQUE, 1)
    header["qform_code"], header["quatern_b"] = 1, 5.0  # a unit quaternion has no component beyond 1
    path = save(tmp_path / "scan.nii", counted((4, 5, 6)), None, header)
    np.testing.assert_allclose(read_checked(path).affine, OBLIQUE, rtol=1e-6)
    assert "broken" in read_grid(path).details["warning"]
    check_label_grid(path, tmp_path / "labels.nii")


def damaged(tmp_path: Path, how: str) -> Path:
    good = save(tmp_path / "good.nii.gz", counted((14, 15, 16))).read_bytes()
    raw = bytearray(gzip.decompress(good))
    path = tmp_path / "bad.nii.gz"
    if how == "cut in half":
        path.write_bytes(good[: len(good) // 2])
    elif how == "cut in the header":
        path.write_bytes(good[:60])
    elif how == "trailer cut":
        path.write_bytes(good[:-8])
    elif how == "checksum":
        path.write_bytes(good[:-8] + bytes([good[-8] ^ 1]) + good[-7:])
    elif how == "flipped bit":
        path.write_bytes(good[:-300] + bytes([good[-300] ^ 16]) + good[-299:])
    elif how == "not gzip":
        path.write_bytes(raw)
    elif how == "too few voxels":
        path.write_bytes(gzip.compress(raw[:-10]))
    elif how == "too many voxels":
        path.write_bytes(gzip.compress(bytes(raw) + bytes(10)))
    elif how == "hostile size":
        struct.pack_into("<3h", raw, 42, 30000, 30000, 30000)
        path.write_bytes(gzip.compress(raw))
    elif how == "zero dimension":
        struct.pack_into("<h", raw, 42, 0)
        path.write_bytes(gzip.compress(raw))
    elif how == "NaN affine":
        struct.pack_into("<f", raw, 280, np.nan)
        path.write_bytes(gzip.compress(raw))
    elif how == "zero affine":
        raw[280:328] = bytes(48)
        path.write_bytes(gzip.compress(raw))
    elif how == "magic":
        raw[344:348] = bytes(4)
        path.write_bytes(gzip.compress(raw))
    elif how == "unknown type":
        struct.pack_into("<h", raw, 70, 999)
        path.write_bytes(gzip.compress(raw))
    elif how == "offset":
        struct.pack_into("<f", raw, 108, 12.0)
        path.write_bytes(gzip.compress(raw))
    return path


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut in half", "truncated.*of 6,720 bytes"),
        ("cut in the header", "truncated"),
        ("trailer cut", "truncated.*checksum"),
        ("checksum", "damaged"),
        ("flipped bit", "damaged|truncated|found"),
        ("not gzip", "not gzip"),
        ("too few voxels", "truncated: found 6,710 bytes.*6,720"),
        ("too many voxels", "found 6,730 bytes.*6,720"),
        ("hostile size", "promises"),
        ("zero dimension", "holds no voxel"),
        ("NaN affine", "affine"),
        ("zero affine", "singular"),
        ("magic", "not NIfTI"),
        ("unknown type", "broken NIfTI header"),
        ("offset", "byte 12"),
    ],
)
def test_damage_is_named(tmp_path: Path, how: str, said: str) -> None:
    path = damaged(tmp_path, how)
    with pytest.raises(DataError, match=said) as caught:
        read_volume(path)
    assert "bad.nii.gz" in str(caught.value) and str(caught.value).count("\n") < 3


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_damaged_byte_passes_unseen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any cut and any flipped bit beyond gzip's own header is an error of our kind, unless it changes nothing."""
    folder = tmp_path_factory.mktemp("fuzz")
    good = save(folder / "good.nii.gz", counted((4, 5, 6))).read_bytes()
    if data.draw(st.booleans()):
        bad = good[: data.draw(st.integers(1, len(good) - 1))]
    else:
        at = data.draw(st.integers(10, len(good) - 1))
        bad = good[:at] + bytes([good[at] ^ (1 << data.draw(st.integers(0, 7)))]) + good[at + 1 :]
    (folder / "bad.nii.gz").write_bytes(bad)
    refused_or_right(folder / "bad.nii.gz", counted((4, 5, 6)))


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", counted((14, 15, 16)))
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]) + bytes(7))
    np.testing.assert_array_equal(read_checked(path).array[0], counted((14, 15, 16)))


def test_an_uncompressed_file_must_have_the_promised_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", counted((4, 5, 6)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        read_volume(path)


def test_gzip_under_a_plain_name_is_said(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", counted((4, 5, 6))).rename(tmp_path / "scan.nii")
    with pytest.raises(DataError, match=r"rename it to \.nii\.gz"):
        read_volume(path)


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    write_volume(Volume(counted((1, 4, 5, 6))), tmp_path / "scan.hdr")
    (tmp_path / "scan.img").unlink()
    with pytest.raises(DataError, match=r"scan\.img is missing"):
        read_volume(tmp_path / "scan.hdr")


def test_analyze_is_refused(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(counted((4, 5, 6)), np.eye(4)), tmp_path / "scan.img")
    with pytest.raises(DataError, match="Analyze"):
        read_volume(tmp_path / "scan.img")


def test_complex_and_time_series_of_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="complex"):
        read_volume(save(tmp_path / "complex.nii", np.zeros((4, 5, 6), np.complex64)))
    with pytest.raises(DataError, match=r"\(4, 5, 6, 2, 3\)"):
        read_volume(save(tmp_path / "fived.nii", counted((4, 5, 6, 2, 3))))


def test_wide_labels_take_the_smallest_type_and_too_wide_ones_are_refused(tmp_path: Path) -> None:
    for top, expected in [(255, "uint8"), (256, "int16"), (40000, "uint16"), (70000, "int32"), (2**32 - 1, "uint32")]:
        array = np.zeros((1, 2, 2, 2), np.int64)
        array[0, 0, 0, 0] = top
        back = write_and_read(Volume(array), tmp_path / "labels.nii.gz")
        assert back.array.dtype == expected and back.array.max() == top
    array[0, 0, 0, 0] = 2**32
    with pytest.raises(OutputError, match=str(2**32)):
        write_volume(Volume(array), tmp_path / "wide.nii.gz")
    assert not (tmp_path / "wide.nii.gz").exists()


def test_an_axis_beyond_nifti_1_becomes_nifti_2(tmp_path: Path) -> None:
    long = Volume(counted((1, 40000, 2, 1), "uint8"))
    np.testing.assert_array_equal(write_and_read(long, tmp_path / "long.nii").array, long.array)
    assert isinstance(nib.load(tmp_path / "long.nii"), nib.Nifti2Image)


def test_unknown_sides_are_said_in_the_details(tmp_path: Path) -> None:
    array = nib.Nifti1Image(counted((4, 5, 6)), None)
    array.header["sform_code"] = array.header["qform_code"] = 0
    nib.save(array, tmp_path / "scan.nii")
    assert "sides are unknown" in read_grid(tmp_path / "scan.nii").details["warning"]
    known = save(tmp_path / "known.nii", counted((4, 5, 6)), OBLIQUE, nib.Nifti1Header())
    assert "warning" not in read_grid(known).details
