"""The story of `medunet plan`: a data set's fingerprint becomes a config that says why.

The rules start from nnU-Net's (Isensee et al. 2021): median spacing, patch from the median shape, an axis is pooled
while it is long and not coarser than the others, kernels of 1 along coarse axes. What is added is a budget: channels
and patch shrink until enough iterations fit into the minutes, at the speed this machine was measured to have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medunet.config import Config, DataSettings, TrainingSettings, annotated_yaml
from medunet.data.augment import AugmentSettings, Chance
from medunet.data.catalogue import DataSet, check_pairs, read_data_set, with_labels
from medunet.data.fingerprint import Fingerprint, take_fingerprint
from medunet.data.patches import PatchSettings
from medunet.data.preprocess import Normalisation, PreprocessSettings
from medunet.devices import autocast_type, find_device, free_memory, training_speed
from medunet.errors import DataError
from medunet.files import check_free, write_text
from medunet.learning.losses import LossSettings
from medunet.networks.cost import Cost, step_cost
from medunet.networks.settings import UNetSettings

_ITERATIONS = 500.0
"""Optimiser steps that one minute should allow; they grow with the square root of the minutes.

Measured on 48 hippocampus cases: 16 channels and 1331 steps on one core for 12 minutes (Dice 0.874) beat 32 channels
and 929 steps on two cores for 15 minutes (0.868). At short budgets steps are worth more than width.
"""

_LIGHT = 30_000
"""Below so many steps augmentation is light: strong intensity changes are learned too slowly to help."""

_COARSE = 3.0
_TRAINING_SHARE = 0.8
"""Of the minutes; the rest is for reading, validation and the last predictions."""


@dataclass(frozen=True)
class Budget:
    """What a training may use.

    Attributes:
        memory: bytes.
        minutes: wall time.
        speed: floating-point operations per second of a training step, measured.
        device: for messages.
    """

    memory: int
    minutes: float
    speed: Callable[[int], float]
    device: str

    @staticmethod
    def of(memory: int | None, minutes: float | None, device: str) -> Budget:
        """The budget of this machine; an hour and three quarters of the free memory where nothing is said."""
        where = find_device(device)
        dtype = autocast_type("auto", where)
        return Budget(
            memory or free_memory(where) * 3 // 4,
            minutes or 60.0,
            lambda dimensions: training_speed(where, dtype, dimensions),
            str(where),
        )


@dataclass(frozen=True)
class Topology:
    """Levels of a network: kernels per level, strides between levels, both per axis."""

    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def levels(self) -> int:
        return len(self.kernels)

    @property
    def stride(self) -> tuple[int, ...]:
        return tuple(int(s) for s in np.prod(self.strides, axis=0)) if self.strides else (1,) * len(self.kernels[0])


def write_plan(folder: Path, output: Path, budget: Budget, axes: str | None, overwrite: bool) -> str:
    """Measure a data set, write its config, and return a summary for the terminal."""
    check_free(output, overwrite)
    data = read_data_set(folder)
    config, notes, _ = plan_data_set(data, budget, axes)
    header = (
        f"Planned for {data.name} ({len(data.labelled)} labelled cases), {budget.minutes:g} minutes on {budget.device}."
    )
    write_text(output, annotated_yaml(config, notes, header), overwrite)
    return f"{header}\n" + "\n".join(f"  {key}: {note}" for key, note in notes.items()) + f"\nwritten to {output}"


def plan_data_set(
    data: DataSet, budget: Budget, axes: str | None, step: Callable[[str], None] = lambda _: None
) -> tuple[Config, dict[str, str], Fingerprint]:
    """A config for a data set, the reasons by dotted key, and what was measured.

    Raises:
        DataError: no labelled case, or cases that are wrong.
    """
    if not data.labelled:
        raise DataError(
            f"{data.folder}: no case has a label file of the same name in the labels folder; nothing to learn from"
        )
    check_pairs(data.labelled, axes)
    fingerprint = take_fingerprint(data.labelled, with_labels(data, data.labelled, axes), axes, step)
    config, notes = plan(fingerprint, data.channels, budget)
    return replace(config, data=DataSettings(path=str(data.folder), axes=axes)), notes, fingerprint


def plan(found: Fingerprint, channel_names: tuple[str, ...], budget: Budget) -> tuple[Config, dict[str, str]]:
    """The rules, as a pure function of the fingerprint and the budget."""
    notes: dict[str, str] = {}
    preprocess = _plan_preprocess(found, channel_names, notes)
    shape, spacing = _working_grid(found, preprocess)
    dimensions = _dimensions(shape, spacing, notes)
    if dimensions < len(shape):
        shape, spacing = shape[:2], spacing[:2]
    network, patches, iterations = _plan_network(found, shape, spacing, budget, notes)
    config = Config(
        preprocess=preprocess,
        network=network,
        patches=patches,
        augment=_plan_augment(found, (dimensions, spacing), iterations * 20, notes),
        loss=LossSettings(include_background=not found.labels.has_background),
        training=TrainingSettings(minutes=budget.minutes, iterations=iterations),
    )
    return config, notes


def _plan_preprocess(found: Fingerprint, names: tuple[str, ...], notes: dict[str, str]) -> PreprocessSettings:
    spacing = _target_spacing(found)
    content = float(np.median([c.content for c in found.cases]))
    zeros = float(np.median([c.zeros for c in found.cases]))
    if spacing is None:
        notes["preprocess.spacing"] = "no physical voxel size is known, so nothing is resampled"
    else:
        notes["preprocess.spacing"] = f"median of the {len(found.cases)} cases; scans within 1 % of it stay as they are"
    crop = content < 0.75
    notes["preprocess.crop"] = f"the content fills {100 * content:.0f} % of the median scan's volume"
    normalise = tuple(_plan_normalisation(found, c, names, zeros) for c in range(found.channels))
    kinds = ", ".join(n.kind + (" over non-zero voxels" if n.nonzero else "") for n in normalise)
    notes["preprocess.normalise"] = f"{kinds}; the median scan is 0 in {100 * zeros:.0f} % of its voxels"
    if len(set(normalise)) == 1:
        normalise = normalise[:1]
    return PreprocessSettings(
        spacing=spacing, unit=found.cases[0].unit, crop="nonzero" if crop else "none", normalise=normalise
    )


def _plan_normalisation(found: Fingerprint, channel: int, names: tuple[str, ...], zeros: float) -> Normalisation:
    name = names[channel] if channel < len(names) else ""
    if name.strip().lower() == "ct":
        values = found.intensities[channel]
        return Normalisation("ct", low=values.low, high=values.high, mean=values.mean, std=values.std)
    return Normalisation("zscore", nonzero=zeros > 0.25 and found.dimensions == 3)


def _target_spacing(found: Fingerprint) -> tuple[float, ...] | None:
    """The median per axis; a much coarser axis takes its 10th percentile (nnU-Net). None without a physical size.

    Also where all cases agree: the model must know the voxel size it was trained at, because scans to come may differ.
    """
    if any(case.unit == "pixel" for case in found.cases):
        return None
    spacings = np.array([case.spacing for case in found.cases])
    median = np.median(spacings, axis=0)
    worst = int(np.argmax(median))
    others = np.delete(median, worst)
    shape = np.array(found.median_shape())
    if median[worst] > _COARSE * others.max() and shape[worst] * _COARSE < np.delete(shape, worst).min():
        median[worst] = max(np.percentile(spacings[:, worst], 10), others.max() * (1 + 1e-5))
    return tuple(round(float(s), 5) for s in median)


def _working_grid(found: Fingerprint, preprocess: PreprocessSettings) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Median shape and spacing of what the network sees."""
    spacing = preprocess.spacing or found.median_spacing()
    shapes = []
    for case in found.cases:
        kept = case.content ** (1 / len(case.shape)) if preprocess.crop == "nonzero" else 1.0
        scale = [1.0] * len(spacing) if preprocess.spacing is None else np.array(case.spacing) / spacing
        shapes.append(np.array(case.shape) * kept * scale)
    return tuple(max(1, round(float(n))) for n in np.median(shapes, axis=0)), spacing


def _dimensions(shape: tuple[int, ...], spacing: tuple[float, ...], notes: dict[str, str]) -> int:
    if len(shape) == 2:
        notes["network.dimensions"] = "the cases are pictures"
        return 2
    # Only a thin last axis can be cut into slices by a 2-D network; other thin axes stay 3-D with kernels of 1.
    if shape[2] < 8:
        notes["network.dimensions"] = f"the median scan has only {shape[2]} slices, too few for a third dimension"
        return 2
    notes["network.dimensions"] = f"volumes of median shape {_times(shape)}, spacing {_times(spacing)}"
    return 3


def plan_topology(patch: tuple[int, ...], spacing: tuple[float, ...], most: int) -> Topology:
    """Pool an axis while it has at least 8 voxels and is less than twice as coarse as the finest such axis.

    Kernels are 1 along an axis until it is less than twice as coarse as the finest, and 3 from then on. There are at
    least two levels: a tiny patch is padded for them.
    """
    size, pitch = list(patch), list(spacing)
    kernels: list[tuple[int, ...]] = [(1,) * len(size)]
    strides: list[tuple[int, ...]] = []
    while True:
        fine = [p < 2 * min(pitch) for p in pitch]
        kernels.append(tuple(3 if f or k == 3 else 1 for f, k in zip(fine, kernels[-1], strict=True)))
        long = [n >= 8 for n in size]
        finest = min((p for p, can in zip(pitch, long, strict=True) if can), default=math.inf)
        stride = tuple(2 if can and p < 2 * finest else 1 for p, can in zip(pitch, long, strict=True))
        if max(stride) == 1 and not strides:
            stride = tuple(2 if f else 1 for f in fine)
        if max(stride) == 1 or len(strides) == most - 1:
            break
        strides.append(stride)
        size = [math.ceil(n / s) for n, s in zip(size, stride, strict=True)]
        pitch = [p * s for p, s in zip(pitch, stride, strict=True)]
    return Topology(tuple(kernels[1:]), tuple(strides))


def _plan_network(
    found: Fingerprint, shape: tuple[int, ...], spacing: tuple[float, ...], budget: Budget, notes: dict[str, str]
) -> tuple[UNetSettings, PatchSettings, int]:
    """Widest network whose patch still covers enough; then as large a patch and batch as the budget allows."""
    useful = 48**3 if len(shape) == 3 else 256**2
    peak = budget.speed(len(shape))
    for base in (32, 24, 16, 12, 8):
        speed = peak * _efficiency(base)
        operations = speed * 60 * budget.minutes * _TRAINING_SHARE / wanted_steps(budget.minutes)
        patch, network = _largest_patch(found, shape, spacing, base, Limits(operations, budget.memory))
        if math.prod(patch) >= useful or all(p >= n for p, n in zip(patch, shape, strict=True)):
            break
    cost = step_cost(network, patch)
    fits = min(operations / cost.operations, budget.memory / cost.bytes)
    batch = int(min(max(2, fits), 4 if len(shape) == 3 else 12))
    seconds = cost.operations * batch / speed
    notes["network.channels"] = (
        f"{base} in the first level: the widest with a useful patch at {peak / 1e9:.0f} GFLOP/s, as measured here"
    )
    notes["network.kernels"] = "1 along axes that are at least twice as coarse as the finest, 3 elsewhere"
    notes["network.norm"] = "statistics of the training, not of the tile, so that whole scans can be computed exactly"
    notes["patches.size"] = f"of a median scan of {_times(shape)}; about {seconds:.2g} s an iteration with this batch"
    notes["patches.batch"] = f"needs about {cost.bytes * batch / 2**30:.2g} GiB of activations"
    epoch = max(10, min(250, round(60 * budget.minutes / seconds / 20)))
    notes["training.iterations"] = "so that an epoch is about a twentieth of the minutes"
    return network, PatchSettings(size=patch, batch=batch), epoch


def _efficiency(base: int) -> float:
    """Share of a 32-channel convolution's speed that a whole U-Net with this many first channels reaches.

    Narrow layers wait for memory more than they compute. Fitted to training steps on two AVX-512 cores in bf16.
    """
    return 1 / (1 + (12 / base) ** 2)


def wanted_steps(minutes: float) -> float:
    """How many optimiser steps a training of so many minutes should have."""
    return _ITERATIONS * math.sqrt(minutes)


@dataclass(frozen=True)
class Limits:
    """What one training step of a batch of two may cost."""

    operations: float
    memory: float

    def allow(self, cost: Cost) -> bool:
        return 2 * cost.operations <= self.operations and 2 * cost.bytes <= self.memory


def _largest_patch(
    found: Fingerprint, shape: tuple[int, ...], spacing: tuple[float, ...], base: int, limits: Limits
) -> tuple[tuple[int, ...], UNetSettings]:
    """Shrink the physically longest axis of the median shape until two patches fit; never below 16 voxels an axis."""
    wanted = list(shape)
    while True:
        topology = plan_topology(tuple(wanted), spacing, most=5 if len(shape) == 3 else 6)
        patch = tuple(math.ceil(n / s) * s for n, s in zip(wanted, topology.stride, strict=True))
        network = _network(found, topology, base)
        shrinkable = [a for a, n in enumerate(wanted) if n > 16]
        if not shrinkable or limits.allow(step_cost(network, patch)):
            return patch, network
        longest = max(shrinkable, key=lambda a: wanted[a] * spacing[a])
        wanted[longest] = max(16, int(wanted[longest] * 0.92))


def _network(found: Fingerprint, topology: Topology, base: int) -> UNetSettings:
    dimensions = len(topology.kernels[0])
    most = 320 if dimensions == 3 else 512
    return UNetSettings(
        dimensions=3 if dimensions == 3 else 2,
        in_channels=found.channels,
        classes=found.labels.outputs,
        channels=tuple(min(base * 2**level, most) for level in range(topology.levels)),
        kernels=topology.kernels,
        strides=topology.strides,
    )


_NEVER = Chance(0, 0.8, 1)

LIGHT_AUGMENTATION = AugmentSettings(
    rotation=Chance(0.5, -28, 28),
    scaling=Chance(0.5, 0.8, 1.25),
    noise=Chance(0.3, 0, 0.2),
    brightness=Chance(0.5, 0.8, 1.2),
    shift=Chance(0.5, -0.2, 0.2),
    blur=Chance(0, 0.5, 1),
    contrast=_NEVER,
    low_resolution=_NEVER,
    gamma=_NEVER,
    gamma_inverted=_NEVER,
)
"""For runs of an hour or so on a CPU; the measured alternative to the defaults, which are nnU-Net's."""


def _plan_augment(
    found: Fingerprint, grid: tuple[int, tuple[float, ...]], steps: int, notes: dict[str, str]
) -> AugmentSettings:
    (dimensions, spacing), settings = grid, AugmentSettings()
    if steps < _LIGHT:
        settings = LIGHT_AUGMENTATION
        notes["augment.noise"] = f"about {steps} steps: light changes of intensity, frequent changes of shape"
    coarse = None
    if dimensions == 3 and max(spacing) > _COARSE * min(spacing):
        coarse = int(np.argmax(spacing))
        notes["augment.coarse_axis"] = "thick slices are rotated and scaled in their own plane only"
    pairs = _opposites((*found.labels.names, *found.labels.scored))
    if not pairs:
        return replace(settings, coarse_axis=coarse)
    axes = tuple(axis for axis in range(dimensions) if axis not in pairs)
    if dimensions == 2:
        # In a picture nobody knows which way left and right lie.
        axes = ()
    named = ", ".join(pairs.values())
    notes["augment.flip_axes"] = f"labels differ by side ({named}), so there is no mirroring that would exchange them"
    return replace(settings, flip_axes=axes, coarse_axis=coarse)


_OPPOSITES = (
    (("left", "right"), ("l", "r"), ("lh", "rh")),
    (("anterior", "posterior"), ("ventral", "dorsal"), ("front", "back")),
    (("superior", "inferior"), ("upper", "lower"), ("cranial", "caudal")),
)
"""Words for the two ends of the RAS axes x, y and z."""


def _opposites(names: tuple[str, ...]) -> dict[int, str]:
    """Axes whose two ends give labels their names, with the pair of words that was found."""
    words = {word for name in names for word in re.split(r"[^a-z]+", name.lower())}
    return {
        axis: f"{one} and {other}"
        for axis, pairs in enumerate(_OPPOSITES)
        for one, other in reversed(pairs)
        if one in words and other in words
    }


def _times(numbers: tuple[float, ...]) -> str:
    return "×".join(f"{n:.4g}" for n in numbers)
