"""`dataset.json`: the declaration of a data set's channels, labels, annotation and voxel sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medunet.datasets.annotation import AnnotationSettings, declared_annotation
from medunet.datasets.labels import LabelTable, table_from_names, with_regions
from medunet.datasets.regions import split_declaration
from medunet.datasets.voxel_size import VoxelSize, declared_size
from medunet.errors import DataError


@dataclass(frozen=True)
class Declaration:
    """The content of a `dataset.json`; empty where there is no such file.

    Each property raises a `DataError` where the file declares something that cannot be used.
    """

    path: Path
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> tuple[str, ...]:
        """From medunet's list, nnU-Net's `channel_names` or the Decathlon's `modality` ({"0": "MRI"})."""
        content = self.content
        channels = content.get("channels", content.get("channel_names", content.get("modality", ())))
        if isinstance(channels, dict):
            return tuple(str(channels[key]) for key in sorted(channels, key=lambda k: (len(k), k)))
        return tuple(str(c) for c in channels) if isinstance(channels, list) else ()

    @property
    def labels(self) -> LabelTable | None:
        """The labels with regions, ignore value and kind; None where no label is declared."""
        return _label_table(self.content, self.path)

    @property
    def annotation(self) -> AnnotationSettings:
        return declared_annotation(self.content, str(self.path))

    @property
    def size(self) -> VoxelSize | None:
        """The voxel size of files that state none."""
        return declared_size(self.content, str(self.path))

    @property
    def stack(self) -> bool:
        """True if folders of sections are scans."""
        stack = self.content.get("stack", False)
        if not isinstance(stack, bool):
            raise DataError(f'{self.path}: "stack" must be true or false, found {stack!r}')
        return stack


def read_declaration(path: Path) -> Declaration:
    """Read a `dataset.json`.

    Raises:
        DataError: it is no JSON object.
    """
    if not path.exists():
        return Declaration(path)
    try:
        declared = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(declared, dict):
        raise DataError(f'{path}: expected an object like {{"labels": {{"background": 0, …}}}}')
    return Declaration(path, declared)


def _label_table(declared: Mapping[str, Any], path: Path) -> LabelTable | None:
    labels = declared.get("labels")
    kind = str(declared.get("label_kind", "classes"))
    if kind not in ("classes", "instances"):
        raise DataError(f'{path}: "label_kind" must be "classes" or "instances", found "{kind}"')
    if not labels and kind == "classes":
        if declared.get("regions"):
            raise DataError(f'{path}: declares "regions" but no "labels"; declare the values that regions are made of')
        return None
    labels = labels or {"background": 0, "object": 1}
    if not isinstance(labels, dict):
        raise DataError(f'{path}: "labels" must be an object like {{"background": 0, "liver": 1}}, found {labels!r}')
    try:
        plain, regions = split_declaration(labels, declared)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    named = _named_values(plain, path)
    ignore = declared.get("ignore", named.pop("ignore", None))
    if ignore is not None and not isinstance(ignore, int):
        raise DataError(f'{path}: "ignore" must be the integer value of unannotated voxels, found {ignore!r}')
    try:
        table = table_from_names(named, ignore, kind)
        return table if regions is None else with_regions(table, regions)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _named_values(labels: Mapping[str, Any], path: Path) -> dict[str, int]:
    """`{"liver": 1}` or the Decathlon's `{"1": "liver"}`."""
    named: dict[str, int] = {}
    for key, value in labels.items():
        if isinstance(value, str) and re.fullmatch(r"-?\d+", key):
            named[value] = int(key)
        elif isinstance(value, int) and not isinstance(value, bool):
            named[key] = value
        else:
            raise DataError(
                f'{path}: label "{key}" must have one integer value, found {value!r}\n'
                f"colour-coded masks become label maps with: medunet convert {path.parent} -o NEW_FOLDER"
            )
    return named
