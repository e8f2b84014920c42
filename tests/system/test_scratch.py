"""Arrays that live in unnamed files: like any other, and without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medunet.errors import OutputError
from medunet.system.scratch import Scratch, lives_in_file, release

MIB = 2**20
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="memory and open files are counted in /proc")


def resident(kind: str = "RssFile") -> int:
    """Bytes of this process's memory that belong to files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", ">i2", "float64", "longdouble"])
def test_it_is_the_array_that_numpy_makes(tmp_path: Path, dtype: str, order: str) -> None:
    assert order == "C" or order == "F"
    expected = np.empty((3, 4, 5), dtype, order)
    array = Scratch(tmp_path, limit=0)((3, 4, 5), dtype, order)
    assert (array.shape, array.dtype, array.strides) == (expected.shape, expected.dtype, expected.strides)
    assert array.flags.writeable and array.flags.aligned
    array[...] = expected[...] = np.arange(60).reshape(3, 4, 5)
    np.testing.assert_array_equal(array, expected)


def test_only_large_arrays_live_in_files(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, limit=1000)
    assert not lives_in_file(scratch((999,), np.uint8))
    assert lives_in_file(scratch((1000,), np.uint8))
    assert lives_in_file(scratch.empty((5, 50), np.float32))
    assert not lives_in_file(Scratch(tmp_path)((MIB,), np.uint8)), "by default, a megabyte is small"
    assert Scratch(tmp_path, limit=0)((0, 5), np.uint8).shape == (0, 5), "an empty file cannot be mapped"


def test_views_are_known_and_other_arrays_are_not(tmp_path: Path) -> None:
    array = Scratch(tmp_path, limit=0)((4, 6, 8), np.int16)
    views = (array[1:, ::-1], array.T, array.reshape(-1), array[0, 0], array.view(np.uint8), np.moveaxis(array, 0, 2))
    assert all(lives_in_file(view) for view in (array, *views))
    (tmp_path / "own").write_bytes(bytes(8))
    for other in (array.copy(), array + 1, np.zeros(3), np.memmap(tmp_path / "own", np.uint8, "c")):
        assert not lives_in_file(other)


@pytest.mark.parametrize("kind", ["whole", "view"])
def test_release_keeps_the_content(tmp_path: Path, kind: str) -> None:
    array = Scratch(tmp_path, limit=0)((MIB,), np.int32)
    array[:] = np.arange(MIB)
    release(array if kind == "whole" else array[5::7])
    np.testing.assert_array_equal(array, np.arange(MIB))
    array[3] = -1
    release(array)
    assert array[:5].tolist() == [0, 1, 2, -1, 4]


def test_release_never_touches_other_arrays(tmp_path: Path) -> None:
    (tmp_path / "own").write_bytes(bytes(8))
    private = np.memmap(tmp_path / "own", np.uint8, "c")  # of such a mapping, it would lose the changes
    plain = np.zeros(8, np.uint8)
    for array in (private, plain):
        array[:] = 7
        release(array)
        assert array.tolist() == [7] * 8


@linux_only
def test_release_frees_memory(tmp_path: Path) -> None:
    array = Scratch(tmp_path, limit=0)((16 * MIB,), np.uint8)
    before = resident()
    array[:] = 1
    assert resident() > before + 12 * MIB
    release(array)
    assert resident() < before + 4 * MIB


def test_nothing_is_ever_seen_in_the_folder_which_is_made_if_missing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    array = Scratch(folder, limit=0)((1000,), np.uint8)
    array[:] = 1
    assert folder.is_dir() and not list(folder.iterdir())


@linux_only
def test_its_file_is_closed_with_the_last_view(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- counts the folder's own descriptor both times
    array = Scratch(tmp_path, limit=0)((1000,), np.uint8)
    view = array[5:]
    del array
    view[:] = 3
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    del view
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@linux_only
def test_disk_space_is_taken_at_once(tmp_path: Path) -> None:
    """Where it were only taken when pages are written, a full disk would kill the process instead of an error."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    array = Scratch(tmp_path, limit=0)((MIB,), np.uint8)
    opened = [name for name in set(os.listdir("/proc/self/fd")) - before if Path("/proc/self/fd", name).exists()]  # noqa: PTH208
    taken = [os.fstat(int(name)).st_blocks * 512 for name in opened]
    assert len(array) == MIB and max(taken) >= MIB


@pytest.mark.slow
def test_no_room_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: both fail where the space is taken, not where it is used."""
    pytest.importorskip("resource")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from medunet.system.scratch import Scratch\n"
        "from medunet.errors import OutputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n"
        "scratch = Scratch(Path(sys.argv[1]), limit=0)\n"
        "assert scratch((2**16,), 'u1').fill(1) is None\n"
        "try:\n"
        "    scratch((2**16 + 1,), 'u1')\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.startswith(f"{tmp_path}: no room for a temporary file of 65,537 bytes (")
    assert not list(tmp_path.iterdir())


def test_more_than_any_disk_has_is_no_room(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no room for a temporary file of 73,786,976,294,838,206,464 bytes"):
        Scratch(tmp_path, limit=0)((2**33, 2**33), np.uint8)


def test_a_folder_that_cannot_be_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match=r"file/folder: .*\n.*another disk"):
        Scratch(tmp_path / "file" / "folder", limit=0)((10,), np.uint8)
