"""`medunet convert --to-colours`: label maps become colour masks, for tools and people that want to see colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medunet.conversion.colour_tables import declared_colours, read_colours, read_json
from medunet.conversion.colours import ColourTable, code_of
from medunet.conversion.masks import TIFFS, read_mask
from medunet.conversion.meaning import ConvertRequest
from medunet.conversion.messages import Say
from medunet.conversion.rules import values_of
from medunet.conversion.write import place_file, write_declaration
from medunet.datasets.catalogue import LAYOUTS, by_stem, group_cases, scan_files
from medunet.datasets.declaration import read_declaration
from medunet.datasets.labels import LabelTable
from medunet.errors import ConfigError, DataError
from medunet.formats.dispatch import case_stem, suffix_of, write_volume
from medunet.formats.omezarr.nodes import is_zarr
from medunet.report.colours import label_colours
from medunet.system.files import check_new_folder, folder_written_aside, write_text
from medunet.system.progress import progress
from medunet.volume import Volume


def recolour(request: ConvertRequest, say: Say) -> None:
    """Write RGB masks of label maps: PNG in two dimensions, TIFF for stacks.

    A data set becomes one of colour masks, its `dataset.json` says which colours they are, and `convert` makes the same
    label maps of it again. A folder of label maps, or one label map, becomes a folder of masks and a colour table.
    Colours are those of `--colours`, or of the nearest `dataset.json`, or chosen here where neither has any.

    Raises:
        DataError: no label maps, object ids, label values without a colour, or volumes that are no stacks.
        OutputError: the output exists or cannot be written.
        ConfigError: options that are for the way there.
    """
    if request.masks or request.tolerance or request.objects or request.foreground:
        raise ConfigError(
            "--to-colours turns label maps into colours; it takes --colours, --ignore, --link and --dry-run"
        )
    check_new_folder(request.output)
    images, labels = _files(request.source)
    table, whence = _table(request, labels)
    say(f"{request.source}: {len(labels)} label maps; colours {whence}")
    for path in progress(labels, "mask"):
        _coloured(path, table, request)
    if request.dry_run:
        say(f"dry run: nothing written; without --dry-run, {request.output} would hold {len(labels)} colour masks")
        return
    with folder_written_aside(request.output) as aside:
        folder = aside / "labels" if images else aside
        for path in progress(labels, "mask"):
            mask = _coloured(path, table, request)
            write_volume(mask, folder / f"{case_stem(path)}{'.png' if mask.dimensions == 2 else suffix_of(path)}")
        for path in images:
            place_file(path, aside / "images", case_stem(path), request.link)
        if images:
            write_declaration(aside / "dataset.json", _declaration(request.source, table))
        lines = [
            f"{' '.join(map(str, colour))} {name}" for name, colour in zip(table.names, table.colours, strict=True)
        ]
        write_text(aside / "Labels.txt", "\n".join(lines) + "\n")
    say(f"wrote {request.output}: {len(labels)} colour masks and Labels.txt, the table of their colours")


def _files(source: Path) -> tuple[list[Path], list[Path]]:
    """Images (none but for a data set) and label maps."""
    if source.is_file() or is_zarr(source):
        return [], [source]
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder; give a data set, a folder of label maps, or one")
    for images, labels in LAYOUTS:
        if (source / labels).is_dir():
            files = by_stem(scan_files(source / labels))
            scans = scan_files(source / images) if (source / images).is_dir() else []
            cases = [case for case in group_cases(scans, files) if case.label is not None]
            return [path for case in cases for path in case.images], _some(source / labels, list(files.values()))
    return [], _some(source, scan_files(source))


def _some(folder: Path, files: list[Path]) -> list[Path]:
    if not files:
        raise DataError(f"{folder}: holds no label map that medunet reads")
    return files


def _table(request: ConvertRequest, labels: Sequence[Path]) -> tuple[ColourTable, str]:
    """Colours of the classes, and where they are from, in words."""
    if request.colours is not None:
        return read_colours(request.colours, request.ignore), f"of {request.colours.name}"
    for folder in (request.source, labels[0].parent, labels[0].resolve().parent.parent):
        path = folder / "dataset.json"
        if not path.is_file():
            continue
        declared = read_json(path)
        if declared.get("label_kind") == "instances":
            raise DataError(
                f"{path}: label maps hold object ids, which have no colours of classes; say --colours TABLE"
            )
        found = declared_colours(declared, path, request.ignore)
        if found is not None:
            return found, f"of {path}"
        named = read_declaration(path).labels
        if named is not None:
            return _chosen(named), "chosen here, background and unannotated dark"
    raise DataError(
        f"{request.source}: no table says which colours its labels have; give --colours TABLE with lines `R G B name`, "
        'in the order of the label values from 0 on, or {"labels": {"name": 0}, "colours": {"name": [0, 0, 0]}}'
    )


def _chosen(named: LabelTable) -> ColourTable:
    """The colours that reports have; the background is black, unannotated voxels dark grey."""
    start = 1 if named.has_background else 0
    shown = [int(text[1:], 16) for text in label_colours(named.classes - start)]
    codes = [0] * start + shown
    names, values = list(named.names), list(named.values)
    ignore = None
    if named.ignore is not None:
        ignore = "ignore"
        names, values, codes = [*names, ignore], [*values, named.ignore], [*codes, code_of((40, 40, 40))]
    colours = tuple((code >> 16, code >> 8 & 255, code & 255) for code in codes)
    return ColourTable(tuple(names), colours, tuple(values), ignore)


def _coloured(path: Path, table: ColourTable, request: ConvertRequest) -> Volume:
    """Colours ``(3, *spatial)`` of a label map."""
    mask = read_mask(path, request.axes)
    flat = mask.volume.dimensions == 2
    if not flat and suffix_of(path) not in TIFFS:
        raise DataError(
            f"{path}: colour masks are made of two-dimensional label maps and of TIFF stacks\n"
            "give one of these, or choose colours in the program that shows it"
        )
    colours = table.encode(values_of(mask), str(path))
    return Volume(colours, unit="pixel") if flat else mask.volume.with_array(colours)


def _declaration(source: Path, table: ColourTable) -> dict[str, Any]:
    """The source's declaration with the colours beside its values."""
    path = source / "dataset.json"
    given: dict[str, Any] = read_json(path) if path.is_file() else {"name": source.name}
    if table.ignored is not None:
        given["ignore"] = table.ignored
    given["labels"] = table.classes
    given["colours"] = {name: list(colour) for name, colour in zip(table.names, table.colours, strict=True)}
    return given
