"""The `dataset.json` of a converted data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medunet.conversion.layouts import Layout
from medunet.conversion.meaning import ConvertRequest, Meaning, source_json
from medunet.datasets.labels import table_from_names
from medunet.errors import DataError

_OF_COLOURS = {"colour_coded", "colours", "n_cases"}
_OF_LABELS = {"labels", "ignore", "label_kind", "regions", "regions_class_order", "instance_labels", "label_note"}
_OF_CHANNELS = {"channel_names", "modality"}


def completed(meaning: Meaning, pixels: Mapping[int, int], layout: Layout, request: ConvertRequest) -> dict[str, Any]:
    """The meaning's declaration with the source's entries on other things.

    Args:
        pixels: number of pixels of each label value.

    Raises:
        DataError: values that are not declared, or a single value.
    """
    dropped = _OF_COLOURS | (_OF_LABELS if meaning.declaration else set())
    dropped |= _OF_CHANNELS if layout.channels else set()
    kept = {key: value for key, value in source_json(request).items() if key not in dropped}
    if layout.channels:
        kept["channels"] = list(layout.channels)
    declaration = {"name": request.output.name, **kept, **meaning.declaration}
    if meaning.declaration:
        table_from_names(declaration["labels"], declaration.get("ignore"), declaration.get("label_kind", "classes"))
    if declaration.get("label_kind") != "instances":
        _check_values(declaration, pixels, request)
    return declaration


def _check_values(declaration: Mapping[str, Any], pixels: Mapping[int, int], request: ConvertRequest) -> None:
    labels = declaration["labels"]
    plain = isinstance(labels, dict) and all(type(value) is int for value in labels.values())
    unnamed = sorted(set(pixels) - {*labels.values(), declaration.get("ignore")}) if plain else []
    if unnamed:
        raise DataError(
            f"{request.source}: masks hold values that dataset.json does not name: "
            f"{', '.join(f'{value} ({pixels[value]:,} px)' for value in unnamed[:8])}\n"
            "add them to its labels, or correct the masks"
        )
    if len(pixels) < 2:
        value = next(iter(pixels))
        raise DataError(f"{request.source}: all masks hold the single value {value}; nothing can be learned from them")
