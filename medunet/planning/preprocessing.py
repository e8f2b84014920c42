"""Planned preprocessing: voxel size, crop, normalisation, and whether the network sees slices or volumes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medunet.errors import ConfigError
from medunet.planning.budget import Notes
from medunet.planning.fingerprint import Fingerprint
from medunet.planning.rules import AIR, APART, COARSE, CROPPED, FEW_SLICES, MASKED, SOME_SLICES
from medunet.system.wording import share, times_text
from medunet.transforms.preprocess import Normalisation, PreprocessSettings


@dataclass(frozen=True)
class Grid:
    """The median scan after preprocessing, in the axes that the network has.

    Attributes:
        shape, spacing: per axis of the network; spacing 1 where no physical size is known.
        slice_axis: the scans' axis that a 2-D network lacks; None for volumes and pictures.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    slice_axis: int | None = None

    @property
    def dimensions(self) -> int:
        return len(self.shape)


def plan_preprocess(found: Fingerprint, names: tuple[str, ...], notes: Notes) -> PreprocessSettings:
    """Target spacing, crop and normalisation."""
    unit = found.cases[0].unit
    content = float(np.median([c.content for c in found.cases]))
    notes["preprocess.orientation"] = (
        "scans are turned to right, anterior, superior, so that axes mean the same in all"
        if found.dimensions == 3 and unit == "mm"
        else "without effect here: pictures and microscopes' volumes have no right and anterior"
    )
    spacing = _target_spacing(found, notes)
    notes["preprocess.crop"] = (
        f"the box around all voxels that are not 0 fills {share(content)} of the median scan; "
        f"below {share(CROPPED)} the rest is cut away"
    )
    normalise = tuple(_plan_normalisation(found, c, names, notes) for c in range(found.channels))
    if len(set(normalise)) == 1:
        normalise = normalise[:1]
    return PreprocessSettings(
        spacing=spacing, unit=unit, crop="nonzero" if content < CROPPED else "none", normalise=normalise
    )


def _plan_normalisation(found: Fingerprint, channel: int, names: tuple[str, ...], notes: Notes) -> Normalisation:
    name = names[channel] if channel < len(names) else ""
    values, zeros = found.intensities[channel], float(np.median([c.zeros for c in found.cases]))
    if _is_ct(found, channel, name):
        why = (
            f"CT (its channel is called {name!r})" if name else f"the darkest voxels lie below {AIR:g}, as in CT alone"
        )
        text = (
            f"{why}: Hounsfield units mean the same in all scans, so all are clipped and scaled alike; inside the "
            f"foreground {values.low:.4g} to {values.high:.4g} (0.5 and 99.5 percentiles), mean {values.mean:.4g}, "
            f"deviation {values.std:.4g}"
        )
        how = Normalisation("ct", low=values.low, high=values.high, mean=values.mean, std=values.std)
    else:
        masked = zeros > MASKED and found.dimensions == 3
        text = "intensities have no fixed scale, so each scan gets mean 0 and deviation 1" + _scales(found, channel)
        text += f"; {share(zeros)} of the median scan is exactly 0" + (
            ", a mask: statistics are taken inside it" if masked else ""
        )
        how = Normalisation("zscore", nonzero=masked)
    label = f"{name or f'channel {channel}'}: " if found.channels > 1 else ""
    before = f"{notes['preprocess.normalise']}\n" if channel else ""
    notes["preprocess.normalise"] = f"{before}{label}{text}"
    return how


def _is_ct(found: Fingerprint, channel: int, name: str) -> bool:
    """True for CT by the channel's name, or without a name by values that only Hounsfield units have."""
    if name:
        return "ct" in re.split(r"[^a-z]+", name.lower())
    lows = [case.ranges[channel].low for case in found.cases if case.ranges]
    return bool(lows) and found.dimensions == 3 and found.cases[0].unit == "mm" and float(np.median(lows)) < AIR


def _scales(found: Fingerprint, channel: int) -> str:
    """The differences of the scans' scales: the reason for normalising each scan on its own."""
    highs = [case.ranges[channel].high for case in found.cases if case.ranges]
    if not highs:
        return ""
    return f" (99.5 percentile of a scan: {min(highs):.4g} to {max(highs):.4g})"


def _target_spacing(found: Fingerprint, notes: Notes) -> tuple[float, ...] | None:
    """The median per axis; a much coarser axis takes its 10th percentile (nnU-Net). None without a physical size.

    Also where all cases agree: the model must know the voxel size it was trained at, because scans to come may differ.
    """
    unknown = sum(case.unit == "pixel" for case in found.cases)
    if unknown:
        notes["preprocess.spacing"] = f"{unknown} of {len(found.cases)} cases state no voxel size: nothing is resampled"
        return None
    spacings = np.array([case.spacing for case in found.cases])
    median = np.median(spacings, axis=0)
    low, high = spacings.min(axis=0), spacings.max(axis=0)
    text = f"median of {len(found.cases)} case(s)"
    if not np.allclose(low, high, rtol=0.01):
        text += f", which lie between {times_text(low)} and {times_text(high)} {found.cases[0].unit}"
    worst = int(np.argmax(median))
    others = np.delete(median, worst)
    shape = np.array(found.median_shape())
    if median[worst] > COARSE * others.max() and shape[worst] * COARSE < np.delete(shape, worst).min():
        finer = max(np.percentile(spacings[:, worst], 10), others.max() * (1 + 1e-5))
        if finer < median[worst]:
            text += f"; axis {worst} is {median[worst] / others.max():.2g} times as coarse, so its 10th percentile"
            median[worst] = finer
    notes["preprocess.spacing"] = f"{text}; scans within 1 % of it are not resampled"
    # Six digits of the number itself: 0.00046 mm must not be rounded to five decimals.
    return tuple(float(f"{s:.6g}") for s in median)


def plan_grid(
    found: Fingerprint, preprocess: PreprocessSettings, notes: Notes, dimensions: Literal[2, 3] | None = None
) -> Grid:
    """The median scan that is left after preprocessing, and whether the network sees it whole or slice by slice.

    Args:
        dimensions: those that the user wants; None decides by the scans.

    Raises:
        ConfigError: three dimensions for pictures.
    """
    spacing = preprocess.spacing or found.median_spacing()
    shapes = []
    for case in found.cases:
        kept = np.array(case.shape, dtype=float)
        if preprocess.crop == "nonzero":
            kept = np.array(case.kept) if case.kept else kept * case.content ** (1 / len(case.shape))
        shapes.append(kept if preprocess.spacing is None else kept * np.array(case.spacing) / spacing)
    shape = tuple(max(1, round(float(n))) for n in np.median(shapes, axis=0))
    thin = _slices(shape, spacing, notes) if dimensions is None else _wanted(shape, spacing, notes, dimensions)
    if thin is None:
        return Grid(shape, spacing)
    notes["patches.slice_axis"] = "the axis across the slices, see network.dimensions"
    return Grid(_without(shape, thin), _without(spacing, thin), thin)


def _slices(shape: tuple[int, ...], spacing: tuple[float, ...], notes: Notes) -> int | None:
    """The axis across the slices of a 2-D network; None for pictures, and for volumes that need a third dimension."""
    if len(shape) == 2:
        notes["network.dimensions"] = f"the cases are pictures, the median one {times_text(shape)}"
        return None
    thin, coarse = int(np.argmin(shape)), int(np.argmax(spacing))
    apart = spacing[coarse] / max(_without(spacing, coarse))
    median = f"volumes of median shape {times_text(shape)}, spacing {times_text(spacing)}"
    if shape[thin] < FEW_SLICES:
        notes["network.dimensions"] = (
            f"{median}: {shape[thin]} slices along axis {thin}, of which fewer than {FEW_SLICES} cannot be pooled once"
        )
        return thin
    if apart >= APART and shape[coarse] < SOME_SLICES:
        notes["network.dimensions"] = (
            f"{median}: only {shape[coarse]} slices (of less than {SOME_SLICES}), {apart:.2g} times as far apart as "
            f"pixels (from {APART:g}), so a third dimension would be seen by the deepest levels alone"
        )
        return coarse
    notes["network.dimensions"] = (
        f"{median}: at least {shape[thin]} voxels along each axis, the coarsest {apart:.2g} times the others"
    )
    return None


def _wanted(shape: tuple[int, ...], spacing: tuple[float, ...], notes: Notes, dimensions: int) -> int | None:
    """The axis across the slices where the user has chosen the dimensions."""
    if dimensions > len(shape):
        raise ConfigError("--dimensions 3: the cases are pictures, which a 2-D network segments; leave it out")
    notes["network.dimensions"] = f"asked for, with --dimensions {dimensions}"
    if dimensions == len(shape):
        return None
    coarse = int(np.argmax(spacing))
    return coarse if spacing[coarse] > max(_without(spacing, coarse)) else int(np.argmin(shape))


def _without(values: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    return (*values[:axis], *values[axis + 1 :])
