"""OME-Zarr as other programs write it: by the library zarr, metadata by hand after the specification."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import zarr

TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def save_array(path: Path, array: np.ndarray, zarr_format: int = 3, **options: Any) -> Path:
    """A plain array without OME metadata."""
    chosen = {"chunks": tuple(min(4, n) for n in array.shape)} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on codecs that Zarr 3 has not standardised yet
        made = zarr.create_array(path, shape=array.shape, dtype=array.dtype, zarr_format=zarr_format, **chosen)
        made[...] = array
    return path


def save_group(path: Path, attributes: dict[str, Any], zarr_format: int = 3) -> Path:
    ome = {"ome": {"version": "0.5", **attributes}} if zarr_format == 3 else attributes
    zarr.create_group(path, zarr_format=zarr_format, attributes=ome, overwrite=False)
    return path


def multiscale(
    axes: str,
    scale: list[float] | None = None,
    unit: str | None = "micrometer",
    translation: list[float] | None = None,
    whole: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """One image of one resolution, ``0``."""
    steps = [{"type": "scale", "scale": scale or [1.0] * len(axes)}]
    steps += [{"type": "translation", "translation": translation}] if translation else []
    named = [
        {"name": a, "type": TYPES[a]} | ({"unit": unit} if unit and TYPES[a] == "space" else {}) for a in axes.lower()
    ]
    found: dict[str, Any] = {"axes": named, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    return found | ({"coordinateTransformations": whole} if whole else {})


def save_image(
    path: Path, array: np.ndarray, axes: str, zarr_format: int = 3, more: dict[str, Any] | None = None, **options: Any
) -> Path:
    """An image of one resolution; `options` are those of `multiscale`, `more` further attributes of its group."""
    image = multiscale(axes, **options) | ({"version": "0.4"} if zarr_format == 2 else {})
    save_group(path, {"multiscales": [image]} | (more or {}), zarr_format)
    keys = {} if zarr_format == 3 else {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    save_array(path / "0", array, zarr_format, **keys)
    return path
