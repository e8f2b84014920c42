"""Files appear whole or not at all: written beside the target, flushed to disk, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from medunet.errors import OutputError


@contextmanager
def written_aside(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; rename it onto `path` if the block ends well.

    The temporary name keeps the target's full name as its ending, because writers choose formats by suffix.
    The folder is made if it is missing. After any exception the temporary file is removed and `path` is untouched.

    Raises:
        OutputError: `path` exists and `overwrite` is false, or the folder or file cannot be written.
    """
    check_free(path, overwrite)
    aside = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb+") as handle:
            os.fsync(handle.fileno())
        aside.chmod(0o666 & ~_umask())
        aside.replace(path)
        flush_folder(path.parent)
    except OutputError:
        raise
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        # Where the "folder" is a file, there is nothing to remove, and unlink would hide the error.
        if path.parent.is_dir():
            aside.unlink(missing_ok=True)


def _umask() -> int:
    """The user's mask of file modes: some writers (safetensors) give nobody else a right to read."""
    found = os.umask(0o077)
    os.umask(found)
    return found


def flush_folder(folder: Path) -> None:
    """Bring a rename to the disk, so that it outlives a loss of power; systems that cannot do so are left alone."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unwritable(place: Path, error: OSError) -> OutputError:
    """The error for a place that the system refuses to write to."""
    return OutputError(
        f"{place}: cannot be written ({error.strerror or error})\n"
        "check the folder's permissions and the free disk space, or choose another place"
    )


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse, by an OutputError, a file that exists where `overwrite` is false, and any folder."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, but a file was to be written there; give a file name")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; choose another place, or say --overwrite to replace it")


def write_text(path: Path, text: str, overwrite: bool = False) -> None:
    """Write UTF-8 text whole or not at all."""
    with written_aside(path, overwrite) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def folder_written_aside(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder beside the target; rename it onto `folder` if the block ends well.

    After any exception the new folder is removed, and what was there is untouched.

    Raises:
        OutputError: `folder` exists and `overwrite` is false, or cannot be written.
    """
    if not overwrite:
        check_new_folder(folder)
    aside = folder.absolute().with_name(f".{secrets.token_hex(4)}.{folder.name}")
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in sorted(aside.rglob("*")):
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        put_in_place(aside, folder)
    except OutputError:
        raise
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def put_in_place(new: Path, target: Path) -> None:
    """Rename a finished file or folder onto a target on the same disk, which may be a folder with files in it.

    A folder cannot be replaced in one step: see `put_all_in_place`.

    Raises:
        OSError: the disk refuses; `target` is as it was.
    """
    if not (target.is_dir() and not target.is_symlink()) and not new.is_dir():
        new.replace(target)
        flush_folder(target.parent)
        return
    put_all_in_place({new: target})


def put_all_in_place(targets: Mapping[Path, Path]) -> None:
    """Rename finished files and folders onto targets on the same disk: all of them or none.

    What they replace, folders with files in them too, is moved aside, and removed once all new ones stand, or moved
    back if one of them cannot be placed. A program that is killed in between leaves it beside the target, under a
    hidden name.

    Args:
        targets: where each new one goes.

    Raises:
        OSError: the disk refuses; all targets are as they were, and the new ones back in their places.
    """
    replaced: list[Path] = []
    with ExitStack() as undo:
        for new, target in targets.items():
            if target.exists() or target.is_symlink():
                old = target.absolute().with_name(f".{secrets.token_hex(4)}.old.{target.name}")
                target.rename(old)
                undo.callback(old.rename, target)
                replaced.append(old)
            new.rename(target)
            undo.callback(target.rename, new)
        undo.pop_all()
    for folder in {target.parent for target in targets.values()}:
        flush_folder(folder)
    for old in replaced:
        _remove(old)


def _remove(path: Path) -> None:
    """Remove what was replaced; the new one stands, so that a failure must not say that it does not."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that exists, empty or not, and anything else of its name, by an OutputError."""
    if folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder}: exists already; choose another name, or move it away")
