"""Cache of prepared cases on disk, found again by the content of what they were made from.

An entry is a folder named after a digest of all that decides what is in it: the bytes of the case's files, the
settings, and the code that computes it. Whatever changes gives another name, so that nothing that is found is stale;
neither names nor times of files matter. An entry is written aside and renamed as a whole, so that several trainings
can share a cache and one that is killed leaves nothing half-written. Each entry carries the digests of its files:
what is damaged is noticed, and made anew.

    CACHE/cases/KEY/image.npy        (channel, *spatial) float32
                    label.npy        (1, *spatial) uint8
                    foreground.npy   (n, 1 + dimensions) int32: class, voxel
                    weight.npy       (1, *spatial) float16, where there is a weight map
                    manifest.json    bytes and SHA-256 of all these
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.catalogue import Case
from medunet.datasets.labels import LabelTable
from medunet.errors import ConfigError, OutputError
from medunet.formats.dispatch import files_of, is_dicom_series, suffix_of
from medunet.formats.omezarr.nodes import is_zarr
from medunet.instances.settings import InstanceSettings
from medunet.instances.weightmap import WeightMapSettings
from medunet.patches.dataset import PreparedCase
from medunet.transforms.preprocess import PreprocessSettings
from medunet.version import __version__

FORMAT = 1
"""Of an entry; another layout is another number, and so another key."""

SHARE = 0.1
"""The part of a disk that a cache may take. What a training uses itself is never removed to keep it."""

MOST = 100_000_000_000
"""Bytes that the default cache takes at most: file systems of clusters are huge, and home folders have quotas."""

_PACKAGES = (
    "numpy",
    "scipy",
    "monai",
    "nibabel",
    "itk",
    "pydicom",
    "tifffile",
    "imagecodecs",
    "pillow",
    "zarr",
    "numcodecs",
)
_DECODERS = ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "python-gdcm")
"""Of compressed DICOM; pydicom takes those that happen to be installed."""

_SHAPED_BY = (
    "datasets",
    "formats",
    "geometry",
    "instances",
    "patches",
    "registry.py",
    "system",
    "transforms",
    "volume.py",
)
"""Folders and modules whose code shapes a prepared case; a test follows the imports and finds what is missing."""

_ARRAYS = ("image.npy", "label.npy", "foreground.npy")
_WEIGHT = "weight.npy"
_MANIFEST = "manifest.json"
_OVERHEAD = 20_480
"""Bytes of an entry besides the content of its arrays: headers, manifest, and the blocks that files do not fill."""
_ABANDONED = 24 * 3600
"""Seconds after which what was being written counts as left by a program that was killed."""
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Caches that programs can make anew: https://bford.info/cachedir/\n"
)


def find_cache(setting: str | None) -> Cache | None:
    """The cache that `data.cache` asks for: `auto`, a folder, or None for no cache.

    `auto` is the folder in the environment variable `MEDUNET_CACHE` or, without it, the one that the system has for
    what programs can make anew (`~/.cache/medunet` or `$XDG_CACHE_HOME/medunet`, `~/Library/Caches/medunet`,
    `%LOCALAPPDATA%\\medunet\\Cache`). It is not in the run's folder, because all runs and folds on one data set share
    it; nor in the data set's, which is often read-only. It holds voxels of scans: a folder that is made here is
    readable by its owner only, and a folder that a group is to share is made beforehand, with the rights it needs.
    Where there is no home folder, `auto` is no cache.

    Raises:
        ConfigError: a folder of a user who does not exist.
    """
    if setting is None:
        return None
    if setting != "auto":
        try:
            return Cache(Path(setting).expanduser(), asked=True)
        except RuntimeError as error:
            raise ConfigError(f"data.cache: {setting}: no such home folder; give a folder, auto or null") from error
    folder = default_folder(os.environ, sys.platform)
    return None if folder is None else Cache(folder, asked=False)


def default_folder(environment: Mapping[str, str], platform: str) -> Path | None:
    """The folder of `auto`; None without a home folder. `platform` is that of `sys.platform`."""
    if chosen := environment.get("MEDUNET_CACHE"):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if platform == "darwin":
        return home / "Library" / "Caches" / "medunet"
    if platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local") / "medunet" / "Cache"
    shared = Path(environment.get("XDG_CACHE_HOME") or "")
    # A relative path is to be ignored, says the XDG base directory specification.
    return (shared if shared.is_absolute() else home / ".cache") / "medunet"


def case_key(
    case: Case,
    settings: PreprocessSettings,
    labels: LabelTable,
    axes: str | None,
    objects: tuple[InstanceSettings | None, WeightMapSettings | None] = (None, None),
) -> str:
    """The digest of all that decides how a prepared case looks: 64 hexadecimal digits.

    SHA-256, because processors have instructions for it: where measured, it was 2.4 times as fast as BLAKE2b.

    Args:
        objects: what is made of object ids, see `Preparation`.

    Raises:
        DataError: a file that is missing, or a header that names one that is.
    """
    assert case.label is not None
    parts = {
        "images": [_content(path) for path in case.images],
        "label": _content(case.label),
        "settings": {key: value for key, value in asdict(settings).items() if key != "fallback_spacing"},
        "labels": asdict(labels),
        "axes": axes,
        "annotation": asdict(case.annotation),
        "channels": case.channels,
        "frame": case.frame,
        "objects": [None if made is None else asdict(made) for made in objects],
        "made by": makers(),
        **({} if case.size is None else {"size": asdict(case.size)}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _content(path: Path) -> list[str]:
    """The content of a scan, and its suffix, which decides how it is read; no other part of its name."""
    if is_zarr(path):  # the place of a chunk is in its name
        return [suffix_of(path), *(f"{file.relative_to(path)} {_digest(file)}" for file in files_of(path))]
    digests = [_digest(file) for file in files_of(path)]
    # A DICOM series is ordered by positions: the names of its files, and so their order here, say nothing.
    return ["", *sorted(digests)] if is_dicom_series(path) else [suffix_of(path), *digests]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def makers() -> dict[str, str | int | None]:
    """Versions of all packages that compute a prepared case, None if not installed."""
    found: dict[str, str | int | None] = {"format": FORMAT, "medunet": __version__, "source": _source_digest()}
    for name in (*_PACKAGES, *_DECODERS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _source_digest() -> str:
    """Digest of the modules that read and prepare: the version stays the same while they are being worked on."""
    package = Path(__file__).parents[1]
    parts = [package / part for part in _SHAPED_BY]
    files = sorted(path for part in parts for path in ([part] if part.suffix else part.rglob("*.py")))
    named = [[path.relative_to(package).as_posix(), _digest(path)] for path in files]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


@dataclass(frozen=True)
class _Entry:
    path: Path
    used: float
    size: int


@dataclass(frozen=True)
class Cache:
    """A folder of prepared cases, which several programs may use at once.

    Attributes:
        folder: made when room is made in it.
        asked: somebody named the folder. Otherwise it is a convenience: nothing should fail for want of it, and it
            takes no more than `SHARE` of the disk and `MOST` bytes even for the training at hand.
    """

    folder: Path
    asked: bool = True

    @property
    def _entries(self) -> Path:
        return self.folder / "cases"

    def make_room(self, wanted: Mapping[str, int]) -> None:
        """Make the folder, and room in it by removing entries, those first that were not used for longest.

        Entries that other trainings have open are not spared: what is mapped stays readable until it is let go of,
        or cannot be removed, as the system has it.

        Args:
            wanted: keys of the entries that are going to be used, which stay if they are there, and the most bytes
                that each takes if it is not.

        Raises:
            OutputError: the folder cannot be written, or there is not as much room; nothing was removed then, unless
                somebody who has it open still holds the room of what was removed.
        """
        self._make_folder()
        self._sweep()
        entries = sorted(self._listed(), key=lambda entry: entry.used)
        needed = sum(wanted.values()) - sum(wanted.get(entry.path.name, 0) for entry in entries)
        others = [entry for entry in entries if entry.path.name not in wanted]
        spare = sum(entry.size for entry in others)
        total = needed + sum(entry.size for entry in entries)
        free, limit = shutil.disk_usage(self.folder).free, self.limit
        if needed > free + spare:
            raise self._no_room(needed, f"{free + spare:,} bytes are free there")
        if not self.asked and total - spare > limit:
            raise self._no_room(total - spare, f"it is kept below {limit:,} bytes unless data.cache names its folder")
        for entry in others:
            if total <= limit and free >= needed:
                break
            _remove(entry.path)
            total, free = total - entry.size, free + entry.size
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise self._no_room(needed, f"{free:,} bytes are free there")

    @property
    def limit(self) -> int:
        """Bytes that the entries may take, as long as a training does not need more itself."""
        share = int(SHARE * shutil.disk_usage(self.folder).total)
        return share if self.asked else min(share, MOST)

    def _no_room(self, needed: int, reason: str) -> OutputError:
        return OutputError(
            f"{self.folder}: prepared cases need up to {needed:,} bytes in this cache, but {reason}\n"
            "free some, set data.cache to a folder on another disk, or to null to do without a cache"
        )

    def describe(self) -> str:
        """The cache's folder and size, for messages."""
        size = sum(entry.size for entry in self._listed())
        return f"{self.folder} ({size / 1e6:,.1f} MB of at most {self.limit / 1e6:,.0f} MB)"

    def find(self, key: str, name: str, mapped: bool) -> PreparedCase | None:
        """The prepared case of this key, or None; a damaged entry is removed.

        All bytes are compared with the manifest's digests: files that a crash of the system or a failing disk left in
        full length, with other content, must not be learned from.

        Args:
            name: of the case, for messages.
            mapped: leave image and label on the disk, mapped into memory and read-only.
        """
        entry = self._entries / key
        try:
            if (entry / _MANIFEST).read_bytes() == _manifest(entry):
                found = _opened(entry, name, mapped)
                with suppress(PermissionError):  # somebody else's entry
                    os.utime(entry / _MANIFEST)
                return found
        except (OSError, ValueError, EOFError):
            pass  # what is missing, shorter or no array is damage like any other
        if entry.exists():
            _remove(entry)
        return None

    def keep(self, key: str, case: PreparedCase, mapped: bool) -> PreparedCase:
        """Write a case that was just prepared; returned is the same case, mapped if so wished.

        Raises:
            OutputError: the disk refuses; nothing is left then.
        """
        entry = self._entries / key
        aside = entry.with_name(f".{secrets.token_hex(8)}")
        try:
            aside.mkdir(parents=True)
            for file, array in zip(_ARRAYS, (case.image, case.label, _table(case.foreground)), strict=True):
                write_array(aside / file, array)
            if case.weight is not None:
                write_array(aside / _WEIGHT, case.weight)
            # Not flushed to the disk one by one: what a crash takes, the digests miss.
            (aside / _MANIFEST).write_bytes(_manifest(aside))
            published = _published(aside, entry)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be written ({error.strerror or error})\n"
                "free disk space there, set data.cache to another folder, or to null to do without a cache"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        if not mapped:
            return case
        if not published:
            return self.find(key, case.name, mapped) or case
        try:
            return _opened(entry, case.name, mapped)
        except FileNotFoundError:
            return case  # another training needed the room this very moment

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._entries.mkdir(exist_ok=True)
            tag = self._entries / "CACHEDIR.TAG"
            if not tag.exists():
                tag.write_text(_TAG, encoding="utf-8")  # backups leave such folders out
            writable = os.access(self._entries, os.W_OK | os.X_OK)
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        if not writable:
            raise self._unusable("Permission denied")

    def _unusable(self, reason: str) -> OutputError:
        return OutputError(
            f"{self.folder}: cannot be used as a cache ({reason})\n"
            "set data.cache to a folder that can be written, or to null to do without a cache"
        )

    def _sweep(self) -> None:
        """Remove what programs that were killed have left."""
        for path in self._entries.glob(".*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(path, ignore_errors=True)

    def _listed(self) -> Iterator[_Entry]:
        """Folders that are named like a key; anything else that lies here is not ours."""
        if not self._entries.is_dir():
            return
        for path in self._entries.iterdir():
            if len(path.name) == 64 and not set(path.name) - set("0123456789abcdef"):
                with suppress(OSError):  # removed meanwhile
                    stats = {file.name: file.stat() for file in path.iterdir()}
                    used = stats.get(_MANIFEST, path.stat()).st_mtime
                    yield _Entry(path, used, sum(stat.st_size for stat in stats.values()))


def entry_size(shape: Sequence[int], channels: int, classes: int, weighted: bool = False, limit: int = 10_000) -> int:
    """Most bytes that a case of this spatial shape takes; `find_foreground` gives at most `limit` voxels per class."""
    voxels = math.prod(shape)
    return voxels * (4 * channels + 1 + 2 * weighted) + min(voxels, limit * classes) * 4 * (1 + len(shape)) + _OVERHEAD


def write_array(path: Path, array: NDArray[Any]) -> None:
    """As `np.save`, which leaves a short file without an error where the disk refuses an array's last kilobytes.

    It closes C's buffer without asking whether that could be written (seen with numpy 2.4).
    """
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data.cast("B") if array.size else b"")


def _manifest(entry: Path) -> bytes:
    """The manifest that these files must have."""
    names = (*_ARRAYS, _WEIGHT) if (entry / _WEIGHT).exists() else _ARRAYS
    files = {name: {"bytes": (entry / name).stat().st_size, "sha256": _digest(entry / name)} for name in names}
    return json.dumps({"format": FORMAT, "files": files}, indent=1).encode()


def _opened(entry: Path, name: str, mapped: bool) -> PreparedCase:
    mode: Any = "r" if mapped else None
    image, label = (np.load(entry / file, mmap_mode=mode, allow_pickle=False) for file in _ARRAYS[:2])
    table = np.load(entry / _ARRAYS[2], allow_pickle=False)
    weighted = (entry / _WEIGHT).exists()
    weight = np.load(entry / _WEIGHT, mmap_mode=mode, allow_pickle=False) if weighted else None
    return PreparedCase(name, image, label, _foreground(table), weight)


def _table(foreground: Mapping[int, NDArray[np.int32]]) -> NDArray[np.int32]:
    rows = [np.insert(voxels, 0, c, axis=1) for c, voxels in foreground.items()]
    return np.concatenate(rows) if rows else np.empty((0, 1), np.int32)


def _foreground(table: NDArray[np.int32]) -> dict[int, NDArray[np.int32]]:
    """The voxels that `_table` was made of: the rows of a class follow each other."""
    starts = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
    parts = np.split(table, starts[1:]) if len(table) else []
    return {int(rows[0, 0]): np.ascontiguousarray(rows[:, 1:]) for rows in parts}


def _published(aside: Path, entry: Path) -> bool:
    """Give a folder its final name; False if another training was faster."""
    try:
        aside.rename(entry)
    except OSError:
        if entry.is_dir():
            return False
        raise
    return True


def _remove(entry: Path) -> None:
    """Out of sight first, so that nobody finds half of it; what cannot be removed (somebody else's) stays."""
    aside = entry.with_name(f".{secrets.token_hex(8)}")
    with suppress(OSError):
        entry.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
