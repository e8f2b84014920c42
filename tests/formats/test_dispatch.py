"""The dispatch by suffix, and every real image and label."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from medunet.errors import DataError, OutputError
from medunet.formats.dispatch import (
    READABLE,
    WRITABLE,
    case_stem,
    default_suffix,
    is_readable,
    label_axes,
    read_grid,
    read_volume,
    suffix_of,
    write_volume,
)
from medunet.volume import Origin, Volume
from tests.formats.agreement import files_in, read_checked


@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("a.nii.gz", "a", ".nii.gz"),
        ("A.NII.GZ", "A", ".nii.gz"),
        ("a.b.nii", "a.b", ".nii"),
        ("a.ome.tif", "a", ".ome.tif"),
        ("a.OME.TIFF", "a", ".ome.tiff"),
        ("a.some.tif", "a.some", ".tif"),
        ("a.jpeg", "a", ".jpeg"),
        ("a.b.zarr", "a.b", ".zarr"),
        ("a.OME.zarr", "a", ".ome.zarr"),
        ("a.npy", "a", ".npy"),
        ("a", "a", ""),
        (".nii.gz", ".nii", ".gz"),
    ],
)
def test_stems_and_suffixes(name: str, stem: str, suffix: str) -> None:
    assert (case_stem(name), suffix_of(name)) == (stem, suffix)
    assert case_stem(f"folder.with.dots/{name}") == stem


def test_a_folder_keeps_its_whole_name(tmp_path: Path) -> None:
    (tmp_path / "Study3.T1").mkdir()
    assert case_stem(tmp_path / "Study3.T1") == "Study3.T1"


def test_a_linked_folder_keeps_the_name_of_the_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "series.0815").mkdir()
    (tmp_path / "patient_7").symlink_to(tmp_path / "series.0815")
    assert case_stem(tmp_path / "patient_7") == "patient_7"
    monkeypatch.chdir(tmp_path / "series.0815")
    assert case_stem(".") == "series.0815" and case_stem("../patient_7") == "patient_7"


def volume_from(name: str, family: str, array: np.ndarray) -> Volume:
    return Volume(array, origin=Origin(Path(name), family))


@pytest.mark.parametrize(
    ("name", "family", "suffix"),
    [
        ("a.nii.gz", "nifti", ".nii.gz"),
        ("a.nii", "nifti", ".nii"),
        ("a.img", "nifti", ".nii.gz"),
        ("a.mha", "itk", ".mha"),
        ("a.ome.tif", "tiff", ".ome.tif"),
        ("a.tiff", "tiff", ".tiff"),
        ("a.png", "picture", ".png"),
        ("a.jpg", "picture", ".png"),
        ("a.zarr", "zarr", ".zarr"),
        ("series.tif", "dicom", ".nii.gz"),
    ],
)
def test_outputs_look_like_their_inputs(name: str, family: str, suffix: str) -> None:
    if family == "dicom":
        name = "series"
    assert default_suffix(volume_from(name, family, np.zeros((1, 4, 4), np.uint8))) == suffix


def test_probabilities_of_a_picture_become_tiff_and_memory_becomes_nifti() -> None:
    assert default_suffix(volume_from("a.png", "picture", np.zeros((2, 4, 4), np.float32))) == ".tif"
    assert default_suffix(Volume(np.zeros((1, 4, 4)))) == ".nii.gz"


@pytest.mark.parametrize("suffix", WRITABLE)
def test_whatever_is_writable_is_whole_or_absent(tmp_path: Path, suffix: str) -> None:
    volume = Volume(np.arange(20, dtype=np.uint8).reshape(1, 4, 5), unit="pixel")
    path = tmp_path / "new" / f"a{suffix}"
    write_volume(volume, path)
    np.testing.assert_array_equal(read_checked(path).array, volume.array)
    before = files_in(path.parent)
    with pytest.raises(OutputError, match="exists already"):
        write_volume(volume, path)
    assert files_in(path.parent) == before
    write_volume(volume, path, overwrite=True)
    assert set(files_in(path.parent)) == set(before)
    assert is_readable(path) and not is_readable(path.rename(path.with_name(f".a{suffix}")))


def test_a_folder_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    for suffix in WRITABLE:
        path = tmp_path / f"a{suffix}"
        path.mkdir()
        with pytest.raises(OutputError, match="is a folder"):
            write_volume(Volume(np.zeros((1, 4, 5), np.uint8)), path, overwrite=True)
        assert not list(path.iterdir())


@pytest.mark.parametrize("read", [read_volume, read_grid])
def test_what_nobody_reads_is_named(tmp_path: Path, read: object) -> None:
    assert callable(read)
    cases = {"a.npy": b"x", "a.txt": b"x", "a.dcm": b"x", "a": b"x"} | {f"empty{s}": b"" for s in READABLE}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name) as caught:
            read(tmp_path / name)
        assert str(caught.value).count("\n") < 3
    with pytest.raises(DataError, match=r"\.nii\.gz, .*\.png.*DICOM"):
        read(tmp_path / "a.npy")
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "gone.nii.gz")
    with pytest.raises(DataError, match="without DICOM files"):
        read(tmp_path)


def test_unknown_output_suffix_lists_the_writable_ones(tmp_path: Path) -> None:
    for name in ("a.npy", "a", "a.gz"):
        with pytest.raises(OutputError, match=r"\.nii\.gz"):
            write_volume(Volume(np.zeros((1, 4, 5))), tmp_path / name)


def test_a_pair_counts_once_but_reads_under_both_names(tmp_path: Path) -> None:
    write_volume(Volume(np.zeros((1, 4, 5, 6), np.uint8)), tmp_path / "a.hdr")
    assert [p.name for p in tmp_path.iterdir() if is_readable(p)] == ["a.hdr"]
    assert read_volume(tmp_path / "a.img").shape == read_volume(str(tmp_path / "a.hdr")).shape


@pytest.mark.slow
def test_importing_the_formats_is_quick() -> None:
    """`medunet --help` must not wait for readers: none of their libraries is imported with this package."""
    code = (
        "import sys, medunet.formats.dispatch\n"
        "print(sorted({'itk', 'monai', 'torch', 'nibabel', 'pydicom', 'tifffile', 'PIL', 'zarr'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.data
def test_every_real_image_and_label_reads_and_gets_a_label_map_on_its_grid(real_data: Path, tmp_path: Path) -> None:
    seen = 0
    for folder in sorted(real_data.glob("*/images")) + sorted(real_data.glob("*/labels")):
        for index, scan in enumerate(filter(is_readable, sorted(folder.iterdir()))):
            seen += 1
            if index >= 10:  # of the same scanner or microscope as the ten before
                volume, grid = read_volume(scan), read_grid(scan)
                assert (grid.shape, grid.dtype, grid.unit) == (volume.shape, str(volume.array.dtype), volume.unit)
                np.testing.assert_array_equal(grid.affine, volume.affine)
                continue
            volume = read_checked(scan)
            labels = np.resize(np.arange(5, dtype=np.uint8), (1, *volume.shape))
            path = tmp_path / f"labels{default_suffix(volume.with_array(labels))}"
            write_volume(volume.with_array(labels), path, overwrite=True)
            back = read_volume(path)
            np.testing.assert_array_equal(back.array, labels)
            exact = scan.is_file()  # a DICOM series becomes NIfTI, whose header holds single precision
            np.testing.assert_allclose(back.affine, volume.affine, rtol=0, atol=0 if exact else 1e-5)
            assert back.unit == volume.unit
    assert seen > 100


@pytest.mark.data
def test_the_real_oblique_series_agrees_with_its_headers(real_data: Path) -> None:
    import pydicom

    folder = real_data / "dicom_mr_hippocrop" / "images" / "Study3_11-T1post-18670"
    if not folder.is_dir():
        pytest.skip("the oblique series is not here")
    volume = read_volume(folder)
    assert volume.shape == (320, 280, 22) or volume.shape == (280, 320, 22)
    assert volume.spacing[2] == pytest.approx(6.5, abs=0.02)
    for path in folder.glob("*.dcm"):
        data = pydicom.dcmread(path)
        ras = np.array(data.ImagePositionPatient, float) * [-1, -1, 1]
        x, y, z = np.linalg.solve(volume.affine, [*ras, 1])[:3]
        assert abs(x) < 0.01 and abs(y) < 0.01 and abs(z - round(z)) < 0.01
        np.testing.assert_array_equal(volume.array[0, :, :, round(z)], data.pixel_array.T)


@pytest.mark.parametrize(
    ("shape", "said", "images", "labels"),
    [
        ((12, 10), None, "CYX", None),
        ((5, 12, 10), None, "ZCYX", "ZYX"),
        ((5, 12, 10), None, "tczyx", "zyx"),
        ((1, 12, 10), None, "CYX", None),
        ((5, 12, 10), "ZYX", "CYXS", None),
        ((5, 12, 10), None, "ZYX", "ZYX"),
        ((5, 12, 10), None, None, None),
    ],
)
def test_a_label_map_needs_no_channels_where_its_images_have_them(
    shape: tuple[int, ...], said: str | None, images: str | None, labels: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    how = {"imagej": True, "metadata": {"axes": said}} if said else {"metadata": None}
    tifffile.imwrite(path, np.zeros(shape, np.uint8), photometric="minisblack", **how)
    found = label_axes(path, images)
    # Axes of a single page need no word.
    assert found == labels
    if images:
        assert read_volume(path, axes=found).channels == 1
