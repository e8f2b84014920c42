"""The files that a prediction consists of: all are written, or none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from medunet.errors import OutputError
from medunet.formats.dispatch import case_stem, check_target, suffix_of, write_volume
from medunet.system.files import put_all_in_place, unwritable
from medunet.volume import Volume

Result: TypeAlias = Callable[[], NDArray[Any]]
"""Makes the array `(channel, *spatial)` of a file."""


def write_together(like: Volume, results: Mapping[Path, Result], overwrite: bool) -> None:
    """All files of a scan or none: labels without the probabilities that were asked for would be half a result.

    Several are written into a hidden folder beside their places and moved there once all are whole, so that what they
    replace is not lost either.

    Args:
        like: whose grid and format they have.
        results: what makes each file's array; they are called one after the other, so that one array is held at a
            time. Integers are label maps.

    Raises:
        OutputError: a file exists and `overwrite` is false, be it the voxels beside a header, or cannot be written;
            what was there is untouched.
    """
    if len(results) == 1:
        ((path, make),) = results.items()
        write_volume(like.with_array(make()), path, overwrite=overwrite, labels=True)
        return
    for path in results:
        check_target(path, overwrite)
    place = next(iter(results)).parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=place) as staging:
            for path, make in results.items():
                array = make()
                write_volume(like.with_array(array), Path(staging) / path.name, labels=array.dtype.kind in "ui")
            targets = {file: place / file.name for file in sorted(Path(staging).iterdir())}
            for target in targets.values():
                check_target(target, overwrite)
            put_all_in_place(targets)
    except OutputError as error:
        raise OutputError(str(error).replace(staging, str(place))) from error
    except OSError as error:
        raise unwritable(Path(error.filename2 or place), error) from error


PROBABILITIES = "_probabilities"


def probabilities_path(target: Path) -> Path:
    """`CASE_probabilities` beside the label map; PNG cannot hold them, so they become TIFF."""
    suffix = suffix_of(target)
    return target.with_name(f"{case_stem(target)}{PROBABILITIES}{'.tif' if suffix == '.png' else suffix}")


def mask_path(target: Path, name: str) -> Path:
    """`CASE_REGION` beside the label map, in its format."""
    return target.with_name(f"{case_stem(target)}_{name}{suffix_of(target)}")
