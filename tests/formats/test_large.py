"""Scans larger than memory: arrays in files are read and written as arrays in memory are, in every format."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import tifffile

from medunet.errors import OutputError
from medunet.formats import voxels
from medunet.formats.dispatch import WRITABLE, read_volume, write_volume
from medunet.formats.omezarr import chunks
from medunet.system import blocks
from medunet.system.scratch import Scratch, lives_in_file
from medunet.volume import Volume
from tests.formats.agreement import check_same, error_of, files_in, read_checked, read_through_file
from tests.formats.test_dicom import write_series
from tests.pairwise import pairwise

# ITK's SWIG classes warn while they are made, and where that is an error the interpreter crashes
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROOT = Path(__file__).parents[2]
STACKS = tuple(suffix for suffix in WRITABLE if suffix != ".png")
FILES = tuple(suffix for suffix in STACKS if "zarr" not in suffix)
"""Those whose voxels lie in one order in one file; OME-Zarr takes an array of any order chunk by chunk."""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays go the way of large ones: in blocks of a few voxels, turned around in files where need be."""
    monkeypatch.setattr(blocks, "BLOCK", 100)
    monkeypatch.setattr(blocks, "WINDOW", 200)
    monkeypatch.setattr(voxels, "BLOCK", 100)
    monkeypatch.setattr(chunks, "BOX", 100)
    monkeypatch.setattr(chunks, "CHUNK", {2: 4, 3: 4})
    monkeypatch.setattr(blocks, "Scratch", functools.partial(Scratch, limit=0))


in_small_blocks = pytest.mark.usefixtures("small_blocks")


def counted(shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 120).astype(dtype)


def stack(suffix: str, dtype: str = "int16", channels: int = 1) -> Volume:
    """A volume that every format but PNG holds without loss."""
    return Volume(
        counted((channels, 7, 6, 5), dtype),
        np.diag([0.5, 0.75, 2.0, 1.0]),
        "mm" if suffix in FILES and "tif" not in suffix else "um",
    )


@pytest.mark.slow
@in_small_blocks
@pytest.mark.parametrize(("suffix", "dtype", "channels"), pairwise(STACKS, ("uint8", "int16", "float32"), (1, 3)))
def test_read_into_a_file_is_read(tmp_path: Path, suffix: str, dtype: str, channels: int) -> None:
    path = tmp_path / f"scan{suffix}"
    volume = stack(suffix, dtype, channels)
    write_volume(volume, path)
    np.testing.assert_array_equal(read_checked(path).array, volume.array)


def save_nifti(path: Path, array: np.ndarray, dtype: str, scaled: bool = False) -> None:
    header = nib.Nifti1Header(endianness=">" if np.dtype(dtype).byteorder == ">" else "<")
    image = nib.Nifti1Image(array, np.diag([2.0, 3, 4, 1]), header)
    image.set_data_dtype(dtype)
    if scaled:
        image.header.set_slope_inter(0.1, -3)
    nib.save(image, path)


def unusual_files(folder: Path) -> Iterator[Path]:
    """Files that are not what medunet writes: other byte orders, packings, scalings and orders of axes."""
    save_nifti(folder / "swapped.nii.gz", counted((7, 6, 5)), ">i2")
    save_nifti(folder / "scaled.nii", counted((7, 6, 5, 2)), "int16", scaled=True)
    save_nifti(folder / "swapped and scaled.nii.gz", counted((7, 6, 5)), ">i2", scaled=True)
    colours = np.zeros((7, 6, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = counted((7, 6, 5))
    nib.save(nib.Nifti1Image(colours, np.eye(4)), folder / "colours.nii.gz")
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nendian: big\nencoding: "
    (folder / "swapped.nrrd").write_bytes(f"{head}raw\n\n".encode() + counted((120,), ">i2").tobytes())
    text = " ".join(str(n) for n in range(120))
    (folder / "text.nrrd").write_text(f"{head}ascii\n\n{text}\n")
    itk.imwrite(itk.image_from_array(counted((6, 5, 4))), str(folder / "raw.mhd"), compression=False)
    options = {"tiled": {"tile": (16, 16)}, "swapped": {"byteorder": ">"}, "packed": {"compression": "lzw"}}
    options |= {"swapped and packed": {"byteorder": ">", "compression": "zlib", "predictor": True}}
    for name, chosen in options.items():
        tifffile.imwrite(folder / f"{name}.tif", counted((5, 40, 30)), metadata={"axes": "ZYX"}, **chosen)
    for axes, shape in {"ZCYX": (5, 2, 7, 6), "XZY": (7, 5, 6), "YX": (7, 6), "CZYX": (2, 5, 7, 6)}.items():
        tifffile.imwrite(folder / f"{axes}.tif", counted(shape), photometric="minisblack", metadata={"axes": axes})
    tifffile.imwrite(
        folder / "CS.tif", counted((2, 7, 6, 3), "uint8"), photometric="rgb", ome=True, metadata={"axes": "CYXS"}
    )
    write_volume(Volume(counted((3, 7, 6), "uint8")), folder / "colours.png")
    write_volume(Volume(counted((1, 7, 6), "uint16")), folder / "grey.png")
    write_series(folder / "plain series")
    write_series(folder / "scaled series", RescaleSlope=0.5, RescaleIntercept=3)
    yield from (path for path in folder.iterdir() if path.suffix != ".raw")


@pytest.mark.slow
def test_unusual_files_are_read_alike_in_one_block_and_in_many(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What is read in one block, the tests of each format compare with what was written."""
    whole = [read_volume(path) for path in unusual_files(tmp_path)]
    assert len(whole) == 20 and all(volume.array.any() for volume in whole)
    request.getfixturevalue("small_blocks")
    for volume in whole:
        assert volume.origin is not None
        check_same(read_checked(volume.origin.path), volume)


@in_small_blocks
@pytest.mark.parametrize("suffix", STACKS)
def test_a_damaged_file_is_refused_in_the_same_words(tmp_path: Path, suffix: str) -> None:
    write_volume(stack(suffix), tmp_path / f"scan{suffix}")
    largest = max((path for path in tmp_path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    for end in (len(content) // 3, len(content) - 20):
        largest.write_bytes(content[:end])
        said = error_of(tmp_path / f"scan{suffix}")
        assert "scan" in said
        assert error_of(tmp_path / f"scan{suffix}", Scratch(tmp_path, limit=0)) == said


@pytest.mark.parametrize("suffix", STACKS)
def test_no_room_for_the_array_is_not_a_damaged_scan(tmp_path: Path, suffix: str) -> None:
    write_volume(stack(suffix), tmp_path / f"scan{suffix}")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="no room"):
        read_volume(tmp_path / f"scan{suffix}", scratch=Scratch(tmp_path / "file" / "below", limit=0))


CASTS = (("int64", "uint8"), ("bool", "uint8"), ("float16", "float32"), (">i2", "int16"))
"""Types of arrays, and those they have in a file."""
LAYOUTS = ("C order", "Fortran order", "turned", "flipped", "flipped Fortran order", "cropped")


def laid_out(array: np.ndarray, layout: str, empty: blocks.Empty) -> np.ndarray:
    """The same array ``(channel, x, y, z)``, otherwise in memory."""
    if layout == "turned":
        base = empty([array.shape[axis] for axis in (2, 0, 3, 1)], array.dtype)
        view = base.transpose(1, 3, 0, 2)
    elif layout == "cropped":
        base = empty([n + 3 for n in array.shape[::-1]], array.dtype)
        view = base.T[tuple(slice(2, -1) for _ in array.shape)]
    else:
        base = empty(array.shape, array.dtype, order="F" if "Fortran" in layout else "C")
        view = base[:, ::-1, :, ::-1] if "flipped" in layout else base
    base[...] = 99
    view[...] = array
    return view


@pytest.mark.slow
@in_small_blocks
@pytest.mark.parametrize(("suffix", "layout", "channels"), pairwise(STACKS, LAYOUTS, (1, 3)))
def test_written_files_do_not_depend_on_where_an_array_lives(
    tmp_path: Path, suffix: str, layout: str, channels: int
) -> None:
    volume = stack(suffix, channels=channels)
    names = (
        tmp_path / "plain" / f"scan{suffix}",
        tmp_path / "laid" / f"scan{suffix}",
        tmp_path / "file" / f"scan{suffix}",
    )
    in_file = laid_out(volume.array, layout, Scratch(tmp_path / "scratch", limit=0))
    assert lives_in_file(in_file)
    arrays = (np.ascontiguousarray(volume.array), laid_out(volume.array, layout, np.empty), in_file)
    for name, array in zip(names, arrays, strict=True):
        write_volume(volume.with_array(array), name)
    contents = [list(files_in(name.parent).values()) for name in names]
    if "ome" not in suffix:  # each OME-TIFF has an identifier of its own
        assert contents[0] == contents[1] == contents[2]
    for name in names:
        np.testing.assert_array_equal(read_volume(name).array, volume.array, strict=True)
    assert len(contents[2]) == len(contents[0]), "no copy is left in the folder"
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.slow
@in_small_blocks
@pytest.mark.parametrize(
    ("suffix", "types", "layout"), pairwise(STACKS, CASTS, ("C order", "flipped Fortran order")), ids=str
)
def test_types_are_cast_block_by_block(tmp_path: Path, suffix: str, types: tuple[str, str], layout: str) -> None:
    given, stored = types
    volume = stack(suffix, given)
    array = laid_out(volume.array, layout, Scratch(tmp_path / "scratch", limit=0))
    write_volume(volume.with_array(array), tmp_path / f"scan{suffix}")
    back = read_volume(tmp_path / f"scan{suffix}").array
    assert back.dtype == stored
    np.testing.assert_array_equal(back, volume.array.astype(stored))


@in_small_blocks
def test_the_range_of_values_is_that_of_all_blocks(tmp_path: Path) -> None:
    array = Scratch(tmp_path, limit=0)((1, 7, 6, 5), np.int64)
    array[...] = 1
    for place, value, dtype in [
        ((0, 6, 5, 4), 256, "int16"),
        ((0, 3, 2, 1), -1, "int16"),
        ((0, 0, 0, 0), 2**20, "int32"),
    ]:
        array[place] = value
        write_volume(Volume(array), tmp_path / "labels.nii", overwrite=True)
        assert read_volume(tmp_path / "labels.nii").array.dtype == dtype
    array[0, 6, 0, 4] = 2**40
    with pytest.raises(OutputError, match=f"values -1 to {2**40}"):
        write_volume(Volume(array), tmp_path / "labels.nii", overwrite=True)


@pytest.mark.slow
@in_small_blocks
@pytest.mark.parametrize("suffix", STACKS)
def test_a_label_map_in_a_file_lies_on_the_scan_that_was_read_into_one(tmp_path: Path, suffix: str) -> None:
    write_volume(stack(suffix), tmp_path / f"scan{suffix}")
    scan = read_through_file(tmp_path / f"scan{suffix}")
    labels = laid_out(counted((1, 7, 6, 5), "uint8") % 3, "Fortran order", Scratch(tmp_path / "scratch", limit=0))
    write_volume(scan.with_array(labels), tmp_path / f"labels{suffix}")
    back = read_checked(tmp_path / f"labels{suffix}")
    assert back.origin is not None
    check_same(scan.with_array(labels), Volume(back.array, back.affine, back.unit, scan.origin))


def test_a_header_that_cannot_be_written_leaves_the_old_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files are whole before either takes its place, so that no header ever stands beside another's voxels."""
    for suffix in (".mhd", ".nhdr"):
        path = tmp_path / suffix[1:] / f"scan{suffix}"
        write_volume(stack(suffix), path)
        before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OutputError, match="No space left"):
                write_volume(stack(suffix, "uint8"), path, overwrite=True)
        assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A limit on the size of files stands for a full disk: writing fails in the middle of the voxels."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited() -> Iterator[None]:
        handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


@pytest.mark.slow
@pytest.mark.parametrize("suffix", STACKS)
def test_a_full_disk_is_an_error_and_leaves_the_old_file_whole(
    tmp_path: Path, suffix: str, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    write_volume(stack(suffix), tmp_path / f"old{suffix}")
    before = files_in(tmp_path)
    noise = Volume(np.random.default_rng(0).integers(0, 256, (1, 128, 128, 32), np.uint8), unit="um")
    for name in ("old", "new"):
        with full_disk(), pytest.raises(OutputError, match=f"{name}(.|\n)*disk space"):
            write_volume(noise, tmp_path / f"{name}{suffix}", overwrite=True)
        assert files_in(tmp_path) == before
    write_volume(noise, tmp_path / f"new{suffix}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"new{suffix}").array, noise.array)


@in_small_blocks
@pytest.mark.parametrize("suffix", FILES)
def test_no_room_to_turn_an_array_around_is_an_error_before_anything_is_left(
    tmp_path: Path, suffix: str, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    array = Scratch(tmp_path / "scratch", limit=0)((1, 64, 64, 65), np.uint8)
    with full_disk(), pytest.raises(OutputError, match="no room for a temporary file of 266,240 bytes"):
        write_volume(Volume(array, unit="um"), tmp_path / "out" / f"scan{suffix}")
    assert not list((tmp_path / "out").iterdir())


PEAK = """
import os, sys
from pathlib import Path
import numpy as np
from medunet.formats import nifti
from medunet.formats.dispatch import read_volume, write_volume
from medunet.system.scratch import Scratch
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))
folder = Path(sys.argv[1])
header = nifti.nib.Nifti1Header()
header.set_data_shape((1024, 1024, 64))
header.set_data_dtype(np.int16)
with (folder / "scan.nii").open("wb") as file:
    header["vox_offset"] = 352
    file.write(header.structarr.tobytes().replace(b"ni1", b"n+1"))
os.truncate(folder / "scan.nii", 352 + 2**27)
before = peak()
volume = read_volume(folder / "scan.nii", scratch=Scratch(folder))
write_volume(volume.with_array(volume.array.swapaxes(1, 2)), folder / "out.nii")
print(peak() - before)
"""


@pytest.mark.slow
@linux_only
def test_memory_does_not_grow_with_the_scan(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert (tmp_path / "out.nii").stat().st_size == 352 + 2**27
    assert int(done.stdout) < 64, "of 128 MiB"
