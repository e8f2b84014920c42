"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medunet.errors import OutputError
from medunet.system.files import folder_written_aside, put_all_in_place, put_in_place, write_text, written_aside


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "x.txt"
    with pytest.raises(RuntimeError), written_aside(target) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert list(tmp_path.rglob("*.txt")) == []


def test_the_old_file_survives_a_failed_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), written_aside(target, overwrite=True) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_existing_files_are_refused_unasked(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "one")
    with pytest.raises(OutputError, match="exists already"):
        write_text(tmp_path / "x.txt", "two")
    write_text(tmp_path / "x.txt", "two", overwrite=True)
    assert (tmp_path / "x.txt").read_text() == "two"


def test_a_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        write_text(tmp_path, "x", overwrite=True)


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "file" / "y.txt", "y")


def test_an_unwritable_place_is_an_error_that_names_it() -> None:
    place = Path("/proc/nothing/x.txt")
    if not place.parent.parent.is_dir():
        pytest.skip("needs a read-only /proc")
    with pytest.raises(OutputError, match=r"/proc/nothing/x\.txt: cannot be written"):
        write_text(place, "x")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with (
        pytest.raises(OutputError, match="No space left"),
        written_aside(tmp_path / "x"),
        Path("/dev/full").open("w") as full,
    ):
        full.write("x" * 100_000)
        full.flush()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with folder_written_aside(tmp_path / "new" / "set") as aside:
        (aside / "images").mkdir()
        (aside / "images" / "a").write_text("a")
        assert not (tmp_path / "new" / "set").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set"]
    assert (tmp_path / "new" / "set" / "images" / "a").read_text() == "a"
    with pytest.raises(ValueError, match="in between"), folder_written_aside(tmp_path / "other") as aside:
        (aside / "b").write_text("b")
        raise ValueError("in between")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(OutputError, match="exists already"), folder_written_aside(tmp_path / "set"):
        pass
    with pytest.raises(OutputError, match="cannot be written"), folder_written_aside(Path("/proc/nothing/set")):
        pass


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    (path / text).write_text(text)
    return path


def test_a_folder_that_may_be_replaced_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder_of(tmp_path / "set", "old")
    with pytest.raises(ValueError, match="in between"), folder_written_aside(target, overwrite=True) as aside:
        raise ValueError("in between")
    assert [path.name for path in target.iterdir()] == ["old"]
    with folder_written_aside(target, overwrite=True) as aside:
        (aside / "new").write_text("new")
        assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in target.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [target]
    new, rename = folder_of(tmp_path / "newer", "newer"), Path.rename
    monkeypatch.setattr(Path, "rename", lambda a, b: rename(a, b if a != new else tmp_path / "no" / "where"))
    with pytest.raises(OSError, match="where"):
        put_in_place(new, target)
    assert [path.name for path in target.iterdir()] == ["new"] and len(list(tmp_path.iterdir())) == 2


def test_whatever_stands_there_is_replaced_by_a_folder_and_a_link_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    other = folder_of(tmp_path / "other", "mine")
    (tmp_path / "link").symlink_to(other)
    for name in ("file", "link", "nothing"):
        put_in_place(folder_of(tmp_path / "new", "new"), tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["new"]
    assert (other / "mine").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "nothing", "other"]


def test_several_are_placed_together_or_all_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a file, over a folder, and where nothing is; the last one cannot be placed at first."""
    new, place = tmp_path / "new", tmp_path / "place"
    new.mkdir(), place.mkdir()
    for name in ("a", "c", "d"):
        (new / name).write_text(f"new {name}")
    folder_of(new / "b", "new b")
    (place / "a").write_text("old a"), (place / "d").write_text("old d")
    folder_of(place / "b", "old b")
    targets, rename = {new / name: place / name for name in "abcd"}, Path.rename
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def refusing(path: Path, target: Path) -> Path:
        return rename(path, target if path != new / "d" else tmp_path / "no" / "where")

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(OSError, match="where"):
        put_all_in_place(targets)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert ((place / "a").read_text(), (place / "d").read_text()) == ("old a", "old d")
    monkeypatch.undo()
    put_all_in_place(targets)
    assert [(place / name).read_text() for name in ("a", "b/new b", "c", "d")] == ["new a", "new b", "new c", "new d"]
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "c", "d"] and not list(new.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="file modes are Unix's")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_may_be_read_by_whom_the_users_mask_allows(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with written_aside(tmp_path / "model") as aside:
            aside.touch(0o600)  # as safetensors makes its files
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == mode
