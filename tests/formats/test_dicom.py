"""DICOM series, written with pydicom; ITK is the oracle for positions."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless, generate_uid

from medunet.errors import DataError
from medunet.formats.dispatch import is_dicom_series, is_readable, read_grid, read_volume
from tests.formats.agreement import check_label_grid, read_checked

PATIENT = "Mustermann^Erika"
STRAIGHT = np.array([[1.0, 0, 0], [0, 1, 0]])
TILTED = np.array([[1.0, 0, 0], [0, np.cos(0.3), np.sin(0.3)]])


def write_slice(path: Path, pixels: np.ndarray, position: np.ndarray, **tags: Any) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID = PATIENT, "4711"
    data.Modality, data.SeriesInstanceUID, data.SeriesNumber = "CT", "1.2.3", 4
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelSpacing, data.SliceThickness = [0.7, 0.5], 99
    data.ImageOrientationPatient = STRAIGHT.ravel().tolist()
    data.ImagePositionPatient = np.round(position, 9).tolist()
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def write_series(
    folder: Path, count: int = 5, axes: np.ndarray = STRAIGHT, step: float = 2.5, dtype: str = "int16", **tags: Any
) -> np.ndarray:
    """Shuffled file names, instance numbers against the positions; returns ``(x, y, z)`` as it must be read."""
    folder.mkdir(exist_ok=True)
    array = np.random.default_rng(0).integers(0, 200, (6, 4, count)).astype(dtype)
    names = np.random.default_rng(1).permutation(count)
    normal = np.cross(*axes)
    for z in range(count):
        position = np.array([10.0, -20, 30]) + z * step * normal
        orientation = {"ImageOrientationPatient": axes.ravel().tolist(), "InstanceNumber": count - z}
        write_slice(folder / f"IM{names[z]}", array[:, :, z].T.copy(), position, **(orientation | tags))
    return array


@pytest.mark.slow
@pytest.mark.parametrize("axes", [STRAIGHT, TILTED, -STRAIGHT, STRAIGHT[::-1]])
def test_order_step_and_affine_come_from_positions(tmp_path: Path, axes: np.ndarray) -> None:
    array = write_series(tmp_path / "series", axes=axes)
    (tmp_path / "series" / "notes.txt").write_text("no slice")
    volume = read_checked(tmp_path / "series")
    np.testing.assert_array_equal(volume.array[0], array)
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.spacing, (0.5, 0.7, 2.5), rtol=1e-6)
    for index in [(0, 0, 0), (5, 0, 0), (0, 3, 0), (2, 1, 4)]:
        lps = np.array([10, -20, 30]) + index[0] * 0.5 * axes[0] + index[1] * 0.7 * axes[1]
        lps = lps + index[2] * 2.5 * np.cross(*axes)
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], lps * [-1, -1, 1], atol=1e-6)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    slope=st.sampled_from([1, 2, 0.5, 1.0]),
    intercept=st.sampled_from([0, -1024, 0.25]),
    dtype=st.sampled_from(["int16", "uint16", "uint8"]),
)
def test_rescaling(tmp_path_factory: pytest.TempPathFactory, slope: float, intercept: float, dtype: str) -> None:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    array = write_series(folder, 3, dtype=dtype, RescaleSlope=slope, RescaleIntercept=intercept)
    volume = read_checked(folder)
    np.testing.assert_allclose(volume.array[0], array * float(slope) + intercept, rtol=1e-6)
    whole = float(slope).is_integer() and float(intercept).is_integer()
    assert (volume.array.dtype.kind in "iu") == whole


def test_slopes_may_differ_from_slice_to_slice(tmp_path: Path) -> None:
    array = np.full((4, 6), 10, np.uint16)
    for z, slope in enumerate([0.5, 1.5, 2.0]):
        write_slice(tmp_path / f"{z}.dcm", array, np.array([0, 0, z]), RescaleSlope=slope, RescaleIntercept=1)
    volume = read_checked(tmp_path)
    np.testing.assert_array_equal(volume.array[0, 0, 0], [6, 16, 21])


def test_a_run_length_compressed_series_is_decoded(tmp_path: Path) -> None:
    array = write_series(tmp_path / "series", 3)
    for path in (tmp_path / "series").iterdir():
        data = pydicom.dcmread(path)
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(path)
    np.testing.assert_array_equal(read_checked(tmp_path / "series").array[0], array)


def test_a_label_map_lies_on_the_series_grid(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    check_label_grid(tmp_path / "series", tmp_path / "labels.nii.gz", rounding=1e-5)  # float32 in a NIfTI header
    check_label_grid(tmp_path / "series", tmp_path / "labels.nrrd", rounding=1e-14)


def test_a_single_slice_needs_its_thickness(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", np.zeros((4, 6), np.int16), np.zeros(3), SliceThickness=3)
    assert read_checked(tmp_path).spacing == (0.5, 0.7, 3.0)
    write_slice(tmp_path / "a.dcm", np.zeros((4, 6), np.int16), np.zeros(3), SliceThickness=None)
    with pytest.raises(DataError, match="SliceThickness"):
        read_volume(tmp_path)


def broken(folder: Path, how: str) -> None:
    write_series(folder, 6)
    by_place = sorted(folder.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    path = by_place[2]
    data = pydicom.dcmread(path)
    if how == "missing slice":
        path.unlink()
        return
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
        return
    if how == "truncated header":
        path.write_bytes(path.read_bytes()[:500])
        return
    if how == "second series":
        data.SeriesInstanceUID, data.SeriesNumber = "1.2.9", 5
    elif how == "size":
        data.Rows, data.PixelData = 3, bytes(36)
    elif how == "same place":
        data.ImagePositionPatient = pydicom.dcmread(by_place[3]).ImagePositionPatient
    elif how == "shifted":
        data.ImagePositionPatient = [15, -20, float(data.ImagePositionPatient[2])]
    elif how == "uneven":
        data.ImagePositionPatient = [10, -20, float(data.ImagePositionPatient[2]) + 0.2]
    elif how == "direction":
        data.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
    elif how == "no spacing":
        del data.PixelSpacing
    elif how == "no position":
        del data.ImagePositionPatient
    elif how == "multi-frame":
        data.NumberOfFrames = 3
    elif how == "colour":
        data.SamplesPerPixel = 3
    elif how == "not perpendicular":
        for other in by_place:
            data = pydicom.dcmread(other)
            data.ImageOrientationPatient = [1, 0, 0, 0.2, 1, 0]
            data.save_as(other)
        return
    elif how == "tilt":
        for z, other in enumerate(by_place):
            data = pydicom.dcmread(other)
            data.ImagePositionPatient = [10, -20 + 0.3 * z, float(data.ImagePositionPatient[2])]
            data.save_as(other)
        return
    elif how == "no decoder":
        data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        data.PixelData = pydicom.encaps.encapsulate([bytes(48)])
        data["PixelData"].is_undefined_length = True
    data.save_as(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing slice", "5 mm between .* 2.5 mm elsewhere: slices are missing"),
        ("truncated", "truncated or damaged DICOM pixels"),
        ("truncated header", "lacks|damaged"),
        ("second series", "2 DICOM series.*\n.*5 files.*1 files"),
        ("size", "Rows"),
        ("same place", "same place"),
        ("shifted", "displaced sideways by 5 mm"),
        ("uneven", "unevenly spaced"),
        ("direction", "PixelSpacing or direction"),
        ("no spacing", "lacks PixelSpacing"),
        ("no position", "lacks ImagePositionPatient"),
        ("multi-frame", "multi-frame"),
        ("colour", "colour"),
        ("not perpendicular", "not perpendicular"),
        ("tilt", "gantry tilt"),
        ("no decoder", "JPEG Lossless.*no decoder"),
    ],
)
def test_what_is_no_volume_is_named_without_the_patient(tmp_path: Path, how: str, said: str) -> None:
    broken(tmp_path / "series", how)
    with pytest.raises(DataError, match=said) as caught:
        read_volume(tmp_path / "series")
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "Mustermann" not in str(chain) and "4711" not in str(chain)
        chain = chain.__cause__
    assert str(caught.value).count("\n") < 3


def test_the_patient_is_not_in_the_details(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    assert "Mustermann" not in str(read_grid(tmp_path / "series")) + str(read_volume(tmp_path / "series"))


@pytest.mark.parametrize("slope", [1, 2])
def test_overlay_bits_beyond_the_stored_ones_are_no_values(tmp_path: Path, slope: int) -> None:
    pixels = np.full((4, 6), 0xF000 | 1234, np.uint16)
    for z in range(2):
        write_slice(tmp_path / f"{z}.dcm", pixels, np.array([0, 0, z]), BitsStored=12, HighBit=11, RescaleSlope=slope)
    assert (read_checked(tmp_path).array == 1234 * slope).all()


def test_which_folder_is_a_series(tmp_path: Path) -> None:
    assert not is_dicom_series(tmp_path) and not is_readable(tmp_path)
    write_series(tmp_path / "series")
    assert is_dicom_series(tmp_path / "series") and is_readable(tmp_path / "series")
    assert not is_dicom_series(tmp_path)  # a folder of series is none
    (tmp_path / "series" / "scan.nii.gz").write_bytes(struct.pack("<i", 348))
    assert not is_dicom_series(tmp_path / "series")
    with pytest.raises(DataError, match=r"scan\.nii\.gz"):
        read_volume(tmp_path / "series")


def test_one_file_of_a_series_asks_for_the_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    with pytest.raises(DataError, match="give the folder"):
        read_volume(tmp_path / "series" / "IM0")


def test_an_anonymised_series_without_a_name_is_taken_by_its_geometry(tmp_path: Path) -> None:
    named = write_series(tmp_path / "named")
    array = write_series(tmp_path / "scan", SeriesInstanceUID="")
    np.testing.assert_array_equal(array, named)
    np.testing.assert_array_equal(read_volume(tmp_path / "scan").array[0], array)
    assert "no series" in read_grid(tmp_path / "scan").details["warning"]
    assert "warning" not in read_grid(tmp_path / "named").details
    write_series(tmp_path / "none", SeriesInstanceUID=None)
    with pytest.raises(DataError, match="names no series"):
        read_volume(tmp_path / "none")


def test_an_unknown_transfer_syntax_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", count=2)
    for path in (tmp_path / "scan").iterdir():
        path.write_bytes(path.read_bytes().replace(ExplicitVRLittleEndian.encode(), b"1.2.840.10008.9.8.7"))
    with pytest.raises(DataError, match=r"unknown DICOM transfer syntax 1\.2\.840\.10008\.9\.8\.7"):
        read_volume(tmp_path / "scan")
