"""A Zarr folder's own metadata: which nodes it has, and arrays of which every part is known to be harmless.

Read here, as JSON, before the library `zarr` sees anything: it would run whatever codec a file names, `pickle` too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from medunet.errors import DataError

SUFFIXES = (".ome.zarr", ".zarr")

_MARKS = ("zarr.json", ".zarray", ".zgroup")
DOCUMENTS = (*_MARKS, ".zattrs", ".zmetadata")
_LARGEST = 64 * 2**20
"""Bytes of a metadata file that are read; consolidated ones of large plates have some megabytes."""

_MOST = 2**63 - 1
"""Bytes that an array can have; what asks for more fails in unforeseen ways."""

CODECS = frozenset({
    "blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "bytes", "endian", "transpose", "sharding_indexed",
    "delta", "shuffle", "packbits", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3",
})  # fmt: skip
"""What may take part in decoding: all of these turn numbers into numbers."""

_TYPES = frozenset({
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
})  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A group or an array.

    Attributes:
        zarr: the format's version, 2 or 3.
        array: the array's metadata, None for a group.
    """

    folder: Path
    zarr: int
    attributes: Mapping[str, Any]
    array: Mapping[str, Any] | None


@dataclass(frozen=True)
class Frames:
    """The places of blosc's frames in the files of an array.

    Attributes:
        tail: bytes of a checksum after each of them.
        shard: number of chunks in a file's index; 0 where a file is one chunk.
        index_first: true if that index stands at the start of the file.
    """

    tail: int
    shard: int = 0
    index_first: bool = False


@dataclass(frozen=True)
class StoredArray:
    """An array whose type and codecs were checked.

    Attributes:
        chunks: shape of the part that is read or written at a time; of the inner chunks in shards.
        files: the part of the array that one file holds; larger than `chunks` where there are shards.
        codecs: a description of the compression.
        key: the name of a chunk's file below `folder`, a group for each axis.
        frames: None where blosc takes no part.
    """

    folder: Path
    zarr: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    files: tuple[int, ...]
    dtype: np.dtype[Any]
    codecs: str
    key: re.Pattern[str]
    frames: Frames | None

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of files that there can be along each axis."""
        return tuple(math.ceil(n / step) for n, step in zip(self.shape, self.files, strict=True))


def is_zarr(path: Path) -> bool:
    """True if this folder is Zarr: by its name, or because Zarr's metadata lie in it. No file is opened."""
    if not path.is_dir():
        return False
    return path.name.lower().endswith(SUFFIXES) or any((path / mark).is_file() for mark in _MARKS)


def enclosing(path: Path) -> Path | None:
    """The outermost folder above a path (or the path) whose name says that it is Zarr, None outside of any."""
    absolute = path.absolute()
    places = [place for place in reversed((absolute, *absolute.parents)) if place.name.lower().endswith(SUFFIXES)]
    return next((place for place in places if is_zarr(place)), None)


def open_node(folder: Path) -> Node:
    """The metadata of one node; a DataError where there are none, or they are damaged."""
    if (folder / "zarr.json").is_file():
        found = read_document(folder / "zarr.json")
        if found.get("zarr_format") != 3 or found.get("node_type") not in ("array", "group"):
            raise _damaged(folder / "zarr.json", "expected a group or an array of zarr_format 3")
        attributes = found.get("attributes") or {}
        return Node(folder, 3, _object(attributes, folder), found if found["node_type"] == "array" else None)
    if not any((folder / name).is_file() for name in (*_MARKS, ".zattrs")):
        raise DataError(
            f"{folder}: no Zarr: neither zarr.json nor .zgroup nor .zarray is in it; copy the whole folder again"
        )
    array = read_document(folder / ".zarray") if (folder / ".zarray").is_file() else None
    attributes = read_document(folder / ".zattrs") if (folder / ".zattrs").is_file() else {}
    return Node(folder, 2, attributes, array)


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a metadata file; a DataError where it holds none, or cannot be read."""
    try:
        if path.stat().st_size > _LARGEST:
            raise _damaged(path, f"more than {_LARGEST:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, DataError) else _damaged(path, str(error)) from error
    return _object(found, path)


def below(folder: Path, relative: Any, what: str) -> Path:
    """A path that metadata name, relative to their folder; a DataError where it is none, or leads out of it."""
    parts = PurePosixPath(relative).parts if isinstance(relative, str) else ()
    if not parts or ".." in parts or parts[0].startswith("/") or "\\" in relative:
        raise DataError(
            f"{folder}: damaged metadata: {what} has the path {relative!r}, which is none below this folder"
        )
    return folder.joinpath(*parts)


def stored_array(node: Node) -> StoredArray:
    """The array that metadata describe; a DataError for damage, and for types and codecs that are not read."""
    assert node.array is not None, "an array, not a group"
    try:
        return (_of_version_2 if node.zarr == 2 else _of_version_3)(node, node.array)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        name = ".zarray" if node.zarr == 2 else "zarr.json"
        raise error if isinstance(error, DataError) else _damaged(node.folder / name, repr(error)) from error


def _of_version_2(node: Node, found: Mapping[str, Any]) -> StoredArray:
    folder, shape = node.folder, _lengths(found["shape"], "shape")
    chunks = _lengths(found["chunks"], "chunks")
    said = [part for part in (*(found.get("filters") or ()), found.get("compressor")) if part is not None]
    names = [_allowed(part["id"], part, folder) for part in said]
    separator = found.get("dimension_separator", ".")
    dtype = found["dtype"]
    if not isinstance(dtype, str) or np.dtype(dtype).kind not in "buif":
        raise _foreign_type(folder, dtype)
    key = _key(separator, len(shape), "")
    frames = _frames(names, folder)
    return _checked(StoredArray(folder, 2, shape, chunks, chunks, np.dtype(dtype), _words(names), key, frames))


def _of_version_3(node: Node, found: Mapping[str, Any]) -> StoredArray:
    folder, shape, dtype = node.folder, _lengths(found["shape"], "shape"), found["data_type"]
    if dtype not in _TYPES:
        raise _foreign_type(folder, dtype)
    if found["chunk_grid"]["name"] != "regular" or found.get("storage_transformers"):
        raise DataError(f"{folder}: its chunks are not of one size, or transformed; expected a regular chunk grid")
    files = _lengths(found["chunk_grid"]["configuration"]["chunk_shape"], "chunk shape")
    names = list(_codec_names(found["codecs"], folder))
    shards = [codec for codec in found["codecs"] if _codec_name(codec) == "sharding_indexed"]
    chunks = _lengths(shards[0]["configuration"]["chunk_shape"], "chunk shape") if shards else files
    encoding = found["chunk_key_encoding"]
    plain = encoding["name"] == "v2"
    separator = (encoding.get("configuration") or {}).get("separator", "." if plain else "/")
    key = _key(separator, len(shape), "" if plain else f"c{re.escape(separator)}")
    frames = _sharded(found["codecs"], files, chunks, folder) if shards else _frames(names, folder)
    dtype = np.dtype(dtype)
    return _checked(StoredArray(folder, 3, shape, chunks, files, dtype, _words(names), key, frames))


def _frames(names: Sequence[str], folder: Path) -> Frames | None:
    """The frames of a chain of codecs; the last codecs are those of the bytes on disk."""
    if "blosc" not in names:
        return None
    after = list(names[names.index("blosc") + 1 :])
    if after not in ([], ["crc32c"]):
        raise DataError(
            f"{folder}: its chunks are coded with blosc and then {', '.join(after)}, which medunet cannot check\n"
            "save it with one compressor"
        )
    return Frames(4 if after else 0)


def _sharded(codecs: Any, files: Sequence[int], chunks: Sequence[int], folder: Path) -> Frames | None:
    if "blosc" not in _codec_names(codecs, folder):
        return None
    shard = codecs[-1]["configuration"] if _codec_name(codecs[-1]) == "sharding_indexed" else {"codecs": ()}
    frames = _frames([_codec_name(codec).removeprefix("numcodecs.") for codec in shard["codecs"]], folder)
    index = [_codec_name(codec) for codec in shard.get("index_codecs", ())]
    if frames is None or index != ["bytes", "crc32c"] or any(n % m for n, m in zip(files, chunks, strict=True)):
        raise DataError(f"{folder}: its shards are coded in a way that medunet cannot check; save it with zstd or gzip")
    count = math.prod(n // m for n, m in zip(files, chunks, strict=True))
    return Frames(frames.tail, count, shard.get("index_location", "end") == "start")


def _checked(array: StoredArray) -> StoredArray:
    if not 2 <= len(array.shape) <= 8 or {len(array.chunks), len(array.files)} != {len(array.shape)}:
        raise DataError(
            f"{array.folder}: shape {array.shape} in chunks of {array.files}; expected an image of two axes or more"
        )
    absurd = next((n for n in (array.shape, array.files) if math.prod(n) * array.dtype.itemsize > _MOST), None)
    if absurd is not None:
        raise DataError(
            f"{array.folder}: damaged Zarr metadata (lengths {absurd}, more bytes than any computer can count); "
            "make or copy it again"
        )
    return array


def _codec_names(codecs: Any, folder: Path) -> Iterator[str]:
    """The names of the codecs of a chain and of all chains inside it."""
    for codec in codecs:
        inside = (codec.get("configuration") or {}) if isinstance(codec, Mapping) else {}
        yield _allowed(_codec_name(codec), inside, folder)
        if inside:
            for chain in ("codecs", "index_codecs"):
                yield from _codec_names(inside.get(chain, ()), folder)


def _codec_name(codec: Any) -> str:
    return str(codec["name"] if isinstance(codec, Mapping) else codec)


def _allowed(name: Any, configuration: Mapping[str, Any], folder: Path) -> str:
    plain = str(name).removeprefix("numcodecs.")
    types = [configuration[key] for key in ("dtype", "astype") if configuration.get(key) is not None]
    if plain not in CODECS or not all(isinstance(t, str) and np.dtype(t).kind in "buif" for t in types):
        raise DataError(
            f"{folder}: its chunks are coded with {name!r}, which medunet does not run\n"
            "save it with blosc, zstd, gzip or without compression; objects and pickles are never read"
        )
    return plain


def _words(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(n for n in names if n not in ("bytes", "endian", "crc32c"))) or "none"


def _lengths(numbers: Any, what: str) -> tuple[int, ...]:
    if not isinstance(numbers, list) or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise ValueError(f"{what} {numbers!r}")
    return tuple(numbers)


def _key(separator: str, axes: int, before: str) -> re.Pattern[str]:
    if separator not in ("/", "."):
        raise ValueError(f"separator {separator!r}")
    return re.compile(before + re.escape(separator).join([r"(\d+)"] * axes))


def documents(folder: Path) -> list[Path]:
    """The metadata files that lie in a node's folder."""
    return [folder / name for name in DOCUMENTS if (folder / name).is_file()]


def _object(found: Any, path: Path) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise _damaged(path, f"expected a JSON object, found {type(found).__name__}")
    return found


def _foreign_type(folder: Path, dtype: Any) -> DataError:
    return DataError(f"{folder}: holds {str(dtype)[:80]!r}; expected real numbers, and objects are never read")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: damaged Zarr metadata ({' '.join(reason.split())[:160]}); make or copy it again")
