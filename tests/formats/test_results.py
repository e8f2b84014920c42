"""The files of one prediction: all of them or none, and nothing is replaced unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medunet.errors import OutputError
from medunet.formats.dispatch import read_volume
from medunet.formats.results import write_together
from medunet.volume import Volume

LIKE = Volume(np.zeros((1, 5, 4, 3), np.uint8))


def write(place: Path, ending: str, value: int, overwrite: bool = False) -> None:
    """A label map and a mask of one value."""
    array = np.full((1, 5, 4, 3), value, np.uint8)
    write_together(LIKE, {place / f"{name}{ending}": lambda: array for name in ("a", "a_B")}, overwrite)


def contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("companion", ["a.zraw", "a_B.zraw", "a.raw.gz", "a_B.raw.gz", "a.img", "a_B.img"])
def test_a_voxel_file_beside_a_header_is_not_replaced_unasked(companion: str, tmp_path: Path) -> None:
    """Though its header is not there, or lies elsewhere."""
    ending = {"zraw": ".mhd", "gz": ".nhdr", "img": ".hdr"}[companion.rpartition(".")[2]]
    (tmp_path / companion).write_bytes(b"voxels of another header")
    with pytest.raises(OutputError, match=rf"{tmp_path}/{companion}: exists already; .* --overwrite"):
        write(tmp_path, ending, 1)
    assert contents(tmp_path) == {companion: b"voxels of another header"}
    assert [path.name for path in tmp_path.iterdir()] == [companion]
    write(tmp_path, ending, 1, overwrite=True)
    assert len(contents(tmp_path)) == 4 and (read_volume(tmp_path / f"a_B{ending}").array == 1).all()


def test_a_folder_where_a_voxel_file_would_be_is_named_and_kept(tmp_path: Path) -> None:
    write(tmp_path, ".nii", 1)
    (tmp_path / "a_B.zraw").mkdir()
    (tmp_path / "a_B.zraw" / "mine").write_text("kept")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=r"a_B\.zraw: is a folder, but a file was to be written there"):
        write(tmp_path, ".mhd", 2, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".nii.gz", ".mhd", ".hdr", ".ome.zarr"])
@pytest.mark.parametrize("there", [True, False], ids=["over old ones", "anew"])
def test_where_a_later_file_cannot_be_placed_none_is(
    there: bool, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    if there:
        write(place, ending, 1)
    before, rename = contents(tmp_path), Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if target.name.startswith("a_B.") and path.name == target.name:
            raise PermissionError(1, "Operation not permitted", str(path), None, str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refusing)
    monkeypatch.setattr(Path, "replace", refusing)
    with pytest.raises(OutputError, match=r"out/a_B\..*: cannot be written \(Operation not permitted\)") as error:
        write(place, ending, 2, overwrite=True)
    assert len(str(error.value).splitlines()) <= 3
    assert contents(tmp_path) == before
    monkeypatch.undo()
    write(place, ending, 2, overwrite=True)
    assert {path.name for path in place.iterdir()} >= {f"a{ending}", f"a_B{ending}"}
    assert not [path for path in place.iterdir() if path.name.startswith(".")], "nothing is left aside"
    for name in ("a", "a_B"):
        assert (read_volume(place / f"{name}{ending}").array == 2).all()


def test_a_place_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=r"out: cannot be written \(File exists\)"):
        write(tmp_path / "out", ".nii", 1)
