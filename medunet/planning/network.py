"""The network and its patches: as deep as the patch allows, as wide and large as minutes and memory allow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medunet.datasets.labels import LabelTable
from medunet.errors import ConfigError
from medunet.networks.cost import step_cost, step_memory
from medunet.networks.settings import UNetSettings
from medunet.patches.dataset import PatchSettings
from medunet.planning.budget import Budget, Notes
from medunet.planning.fingerprint import Fingerprint
from medunet.planning.preprocessing import Grid
from medunet.planning.rules import (
    BATCH_OF_DATA,
    CONVOLUTIONS,
    DECODER_CONVOLUTIONS,
    FINEST_CONVOLUTIONS,
    FIRST_CHANNELS,
    HALF_EFFICIENT,
    LEAST_PATCH,
    MOST_BATCH,
    MOST_CHANNELS,
    MOST_LEVELS,
    MOST_STEPS,
    SMALLEST_PATCH,
    STEPS_OF_ONE_MINUTE,
    STEPS_POWER,
    TRAINING_SHARE,
    USEFUL_PATCH,
)
from medunet.system.wording import bytes_text, duration, share, times_text


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


@dataclass(frozen=True)
class Choice:
    """A network with its patch and batch, and what a step of it is counted to cost.

    Attributes:
        seconds: of one optimiser step.
        ideal: the same as counted, before any measured slowness is taken in.
        memory: bytes by which the process grows.
        whole: whether the patch holds the median scan.
    """

    settings: UNetSettings
    patch: tuple[int, ...]
    batch: int
    seconds: float
    ideal: float
    memory: float
    whole: bool

    def describe(self) -> str:
        return f"{self.settings.channels[0]} channels and patch {times_text(self.patch)}"


@dataclass(frozen=True)
class Task:
    """The facts that networks of one data set are planned from.

    Attributes:
        labels: of what is learned.
        prepared: bytes of all prepared scans.
        resident: bytes of them that the process keeps in memory.
        voxels: of all scans, after preprocessing.
    """

    found: Fingerprint
    labels: LabelTable
    grid: Grid
    prepared: float
    resident: float
    voxels: float

    @staticmethod
    def of(found: Fingerprint, labels: LabelTable, grid: Grid, scan: float, budget: Budget) -> Task:
        """`scan`: voxels of the median scan after preprocessing."""
        voxels = scan * found.total
        prepared = voxels * (4 * found.channels + 1)
        on_gpu = budget.device.startswith("cuda")
        kept = 0.0 if on_gpu or not _kept(prepared, budget.memory) else prepared
        return Task(found, labels, grid, prepared, kept, voxels)


def _kept(prepared: float, memory: float) -> bool:
    """True if training keeps the prepared scans in memory; larger sets are read from files when needed."""
    return prepared <= memory / 3


def plan_network(task: Task, budget: Budget, notes: Notes) -> tuple[Choice, PatchSettings]:
    """The widest network whose patch still covers enough, then as large a batch as the budget allows.

    Raises:
        ConfigError: the memory does not hold the smallest network; the message says how much would.
    """
    grid = task.grid
    chosen = choose(task, budget)
    settings = chosen.settings
    speed = budget.speed(grid.dimensions)
    notes["network.in_channels"] = "channels of the scans"
    notes["network.classes"] = f"labels: {task.labels.describe()}"
    notes["network.channels"] = (
        f"{settings.channels[0]} in the first level, doubled with each: the widest with a useful patch (at least "
        f"{USEFUL_PATCH[grid.dimensions]} voxels or a whole scan) that makes {budget.wanted_steps:.0f} steps in "
        f"{TRAINING_SHARE * budget.minutes:.3g} min and fits {bytes_text(budget.memory)}; a convolution runs at "
        f"{speed / 1e9:.0f} GFLOP/s here, as measured\n{_traded(task, budget, chosen)}"
    )
    notes["network.finest_convolutions"] = (
        "one at the finest level, where most of the arithmetic is, two elsewhere: more steps in the same time"
    )
    notes["network.decoder_convolutions"] = "one a level, for the same reason"
    notes["network.kernels"] = "1 along axes that are at least twice as coarse as the finest at that level, 3 elsewhere"
    notes["network.strides"] = (
        f"an axis is halved while it has 8 voxels or more and is less than twice as coarse as the finest: "
        f"{settings.levels} levels, the deepest {times_text(settings.shape.encoder_sizes(chosen.patch)[-1])}"
    )
    notes["network.norm"] = "statistics of the training, not of the tile, so that whole scans can be computed exactly"
    notes["patches.size"] = (
        f"a median scan has {times_text(grid.shape)}; "
        + ("one patch holds it whole" if chosen.whole else "the physically longest axis was shortened until it fitted")
        + f", in multiples of {times_text(settings.shape.stride)}"
    )
    notes["patches.batch"] = (
        f"at least 2, at most {MOST_BATCH[grid.dimensions]} and {share(BATCH_OF_DATA)} of all voxels, "
        f"as minutes and memory allow; counted {duration(chosen.seconds)} and {bytes_text(chosen.memory)} for a step"
    )
    slices = {} if grid.slice_axis is None else {"slice_axis": grid.slice_axis}
    return chosen, PatchSettings(size=chosen.patch, batch=chosen.batch, **slices)


def choose(task: Task, budget: Budget) -> Choice:
    """The rules behind `plan_network`, without words."""
    grid = task.grid
    room = budget.memory - budget.process - task.resident
    for base in FIRST_CHANNELS:
        # Narrow layers wait for memory more than they compute.
        efficiency = base / (base + HALF_EFFICIENT[grid.dimensions])
        speed = budget.speed(grid.dimensions) * efficiency / budget.slowness
        limits = Limits(speed * budget.seconds / budget.wanted_steps, room / budget.growth)
        patch, settings = _largest_patch(task, base, limits)
        whole = all(p >= n for p, n in zip(patch, grid.shape, strict=True))
        fits = limits.holds(settings, patch, 2)
        if fits and (whole or math.prod(patch) >= USEFUL_PATCH[grid.dimensions]):
            break
    if not fits:
        _refuse(task, budget, settings, patch)
    batch = _batch(task, settings, patch, limits)
    seconds = step_cost(settings, patch).operations * batch / speed
    memory = step_memory(settings, patch, batch) * budget.growth
    return Choice(settings, patch, batch, seconds, seconds / budget.slowness, memory, whole)


def _refuse(task: Task, budget: Budget, settings: UNetSettings, patch: tuple[int, ...]) -> None:
    step = step_memory(settings, patch, 2) * budget.growth
    needed = step + budget.process
    scans = (
        task.prepared if not budget.device.startswith("cuda") and _kept(task.prepared, needed + task.prepared) else 0
    )
    raise ConfigError(
        f"--memory: {bytes_text(budget.memory)} on {budget.device} is too little: a step of the smallest network "
        f"planned ({settings.channels[0]} channels, two patches of {times_text(patch)}) needs {bytes_text(step)}, "
        f"the prepared scans {bytes_text(scans)} and the process {bytes_text(budget.process)}\n"
        f"--memory {math.ceil((needed + scans) / 2**20)}M would do"
    )


@dataclass(frozen=True)
class Limits:
    """Limits of one training step: operations, and bytes by which the process may grow."""

    operations: float
    memory: float

    def holds(self, settings: UNetSettings, patch: tuple[int, ...], batch: int) -> bool:
        """True if the memory is enough."""
        return step_memory(settings, patch, batch) <= self.memory

    def allow(self, settings: UNetSettings, patch: tuple[int, ...], batch: int) -> bool:
        """True if time and memory are enough."""
        return batch * step_cost(settings, patch).operations <= self.operations and self.holds(settings, patch, batch)


def _batch(task: Task, settings: UNetSettings, patch: tuple[int, ...], limits: Limits) -> int:
    most = min(MOST_BATCH[task.grid.dimensions], int(BATCH_OF_DATA * task.voxels / math.prod(patch)))
    return max([2, *(batch for batch in range(2, most + 1) if limits.allow(settings, patch, batch))])


def _largest_patch(task: Task, base: int, limits: Limits) -> tuple[tuple[int, ...], UNetSettings]:
    """Shrink the physically longest axis of the median shape until two patches fit.

    Never below 16 voxels an axis, nor, for time alone, below the least voxels that a patch should have.
    """
    shape, spacing = task.grid.shape, task.grid.spacing
    wanted = list(shape)
    chosen = None
    while True:
        topology = plan_topology(tuple(wanted), spacing, MOST_LEVELS[len(shape)])
        patch = tuple(math.ceil(n / s) * s for n, s in zip(wanted, topology.stride, strict=True))
        settings = _network(task, topology, base)
        if chosen and math.prod(patch) < LEAST_PATCH[len(shape)]:
            return chosen
        if limits.holds(settings, patch, 2):
            chosen = patch, settings
        shrinkable = [a for a, n in enumerate(wanted) if n > SMALLEST_PATCH]
        if not shrinkable or limits.allow(settings, patch, 2):
            return patch, settings
        longest = max(shrinkable, key=lambda a: wanted[a] * spacing[a])
        wanted[longest] = max(SMALLEST_PATCH, int(wanted[longest] * 0.92))


def _network(task: Task, topology: Topology, base: int) -> UNetSettings:
    dimensions = len(topology.kernels[0])
    most = MOST_CHANNELS[dimensions]
    return UNetSettings(
        dimensions=3 if dimensions == 3 else 2,
        in_channels=task.found.channels,
        classes=task.labels.outputs,
        channels=tuple(min(base * 2**level, most) for level in range(topology.levels)),
        convolutions=CONVOLUTIONS,
        finest_convolutions=FINEST_CONVOLUTIONS,
        decoder_convolutions=DECODER_CONVOLUTIONS,
        kernels=topology.kernels,
        strides=topology.strides,
    )


def _traded(task: Task, budget: Budget, chosen: Choice) -> str:
    """The network that more minutes or memory would have bought, in words."""
    free = choose(task, budget.lasting(1e9))
    if _same(free, chosen):
        wider = choose(task, Budget(2**60, 1e9, budget.speed, budget.device))
        if _same(wider, chosen):
            return "nothing was traded: more minutes or memory would not change it"
        return f"traded for memory, not for time: without its limit {wider.describe()}"
    text = [f"traded for time: {budget.minutes:g} min gave {chosen.describe()}"]
    longer = choose(task, budget.lasting(4 * budget.minutes))
    if not _same(longer, chosen):
        text.append(f"with {4 * budget.minutes:g} min it would have been {longer.describe()}")
    if not _same(longer, free):
        text.append(f"without a limit of time {free.describe()}, from some {duration(60 * _minutes_for(free))} on")
    return "; ".join(text)


def _minutes_for(choice: Choice) -> float:
    """The minutes in which a step of two patches fits: wanted steps grow more slowly than minutes, up to a limit."""
    step = 2 * choice.seconds / choice.batch / (60 * TRAINING_SHARE)
    found: float = min((step * STEPS_OF_ONE_MINUTE) ** (1 / (1 - STEPS_POWER)), step * MOST_STEPS)
    return found


def _same(one: Choice, other: Choice) -> bool:
    return (one.settings, one.patch) == (other.settings, other.patch)
