"""A few real training steps, timed, before hours are spent: seconds and memory of this config on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medunet.config import Config, TrainingSettings
from medunet.datasets.labels import LabelTable, table_from_values
from medunet.learning.averaging import Ema
from medunet.learning.loop import Recipe, TrainState, placed, train_step
from medunet.learning.optimisers import make_optimiser
from medunet.losses.build import Loss, make_loss
from medunet.networks.build import build_network
from medunet.networks.settings import UNetSettings
from medunet.patches.dataset import PatchDataset, PatchSettings, PreparedCase, find_foreground
from medunet.patches.loader import make_loader
from medunet.planning.preprocessing import Grid
from medunet.system.devices import autocast_type, loader_workers, peak_memory, reset_peak_memory, resident_memory
from medunet.system.wording import bytes_text, duration
from medunet.transforms.augment.augmentation import Augmentation

TRIAL_SECONDS = 3.0
_STEPS = 6
"""At most so many steps are timed; the first one, in which libraries prepare themselves, is not among them."""
_CASES = 4


@dataclass(frozen=True)
class Trial:
    """Measured time and memory of training steps.

    Attributes:
        network: seconds of one optimiser step (median).
        patches: seconds in which one process prepares a batch (median).
        workers: processes that prepare patches while the network computes; 0 prepares them in between.
        memory: most bytes held meanwhile: of the whole process, or reserved on the GPU.
        before: bytes of them that were held before the first step, with all libraries loaded.
        steps: how many were timed.
    """

    network: float
    patches: float
    workers: int
    memory: int
    before: int
    steps: int

    @property
    def seconds(self) -> float:
        """Per iteration."""
        if self.workers:
            return max(self.network, self.patches / self.workers)
        return self.network + self.patches

    def describe(self, config: Config) -> str:
        """Expected time and memory of a training, and how they were measured, in one line."""
        training = config.training
        text = (
            f"{duration(self.seconds)} an iteration ({duration(self.network)} network, {duration(self.patches)} "
            f"patches), {training.iterations} iterations or {duration(self.seconds * training.iterations)} an epoch"
        )
        if training.minutes is not None:
            text += f", {duration(60 * training.minutes)} in all"
        else:
            text += f", about {duration(self.seconds * training.iterations * training.epochs)} in all"
        return f"{text}; peak memory {bytes_text(self.memory)} (measured over {self.steps} training step(s))"


def recipe_of(config: Config, loss: Loss, device: torch.device) -> Recipe:
    """The recipe of a training in one process."""
    return Recipe(
        loss=loss,
        schedule=config.schedule,
        rate=config.optimiser.highest_rate,
        clip=config.training.clip,
        device=device,
        dtype=autocast_type(config.training.precision, device),
        seed=config.training.seed,
    )


def try_steps(config: Config, recipe: Recipe, patches: PatchDataset, limit: float = TRIAL_SECONDS) -> Trial:
    """Train a throw-away network for some seconds; neither the real network nor a global generator is touched.

    Peak memory is the system's record of this process (Linux: `VmHWM`, set back before), so it includes Python,
    libraries and whatever is loaded; on a GPU it is what PyTorch reserved.

    Args:
        limit: seconds after which no further step is started, or a hundredth of the minutes if that is less; at least
            one is timed, after one that is not.

    Raises:
        MedunetError: the loss is not finite.
        RuntimeError, MemoryError: the memory is not enough.
    """
    device = recipe.device
    if config.training.minutes is not None:
        limit = min(limit, 0.01 * 60 * config.training.minutes)
    batches = _endless(patches)
    # The first patch loads libraries: its time says nothing, and their memory is not the network's.
    next(batches)
    reset_peak_memory(device)
    before = resident_memory() if device.type == "cpu" else 0
    times: list[tuple[float, float]] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = build_network(config.network, config.training.seed)
        placed(network, config.network.dimensions, device).train()
        ema = Ema(network, config.training.ema) if config.training.ema else None
        state = TrainState(network, make_optimiser(config.optimiser, network), ema)
        begun = time.perf_counter()
        while len(times) < 2 or (len(times) <= _STEPS and time.perf_counter() - begun < limit):
            started = time.perf_counter()
            batch = next(batches)
            prepared = time.perf_counter()
            # At the start of the schedule rates are lowest, so that made-up data cannot make the loss infinite.
            train_step(state, batch, recipe, 0.0)
            times.append((time.perf_counter() - prepared, prepared - started))
    network_seconds, patch_seconds = np.median(times[1:], axis=0)
    workers = loader_workers(config.training.workers, device)
    return Trial(float(network_seconds), float(patch_seconds), workers, peak_memory(device), before, len(times) - 1)


def _endless(patches: PatchDataset) -> Iterator[Any]:
    while True:
        yield from make_loader(patches)


def loaded_memory() -> int:
    """Bytes of this process once training's modules are loaded, which one tiny step on the CPU does."""
    tiny = Config(
        network=UNetSettings(channels=(2, 4)),
        patches=PatchSettings(size=(8, 8, 8)),
        training=TrainingSettings(minutes=1e-3, iterations=2),
    )
    labels = table_from_values((0, 1))
    return max(try_plan(tiny, labels, Grid((8, 8, 8), (1, 1, 1)), torch.device("cpu")).before, resident_memory())


def try_plan(config: Config, labels: LabelTable, grid: Grid, device: torch.device) -> Trial:
    """Time a config without its data, on noise of the median scan's shape with labels in blocks.

    Raises:
        RuntimeError, MemoryError: the memory is not enough.
    """
    classes, regions = labels.classes, [region.indices for region in labels.regions]
    recipe = recipe_of(config, make_loss(config.loss, classes, [1] * classes, regions), device)
    patches = PatchDataset(
        cases=[_made_up(config, classes, grid, seed) for seed in range(_CASES)],
        settings=config.patches,
        per_epoch=config.training.iterations * config.patches.batch,
        augmentation=Augmentation(config.augment, config.network.dimensions),
        seed=config.training.seed,
    )
    return try_steps(config, recipe, patches)


def _made_up(config: Config, classes: int, grid: Grid, seed: int) -> PreparedCase:
    """A case twice as long as a patch at most: what lies further away costs nothing."""
    shape = [min(n, 2 * p) for n, p in zip(grid.shape, config.patches.size, strict=True)]
    if grid.slice_axis is not None:
        shape.insert(grid.slice_axis, 1)
    random = np.random.default_rng(seed)
    image = random.standard_normal((config.network.in_channels, *shape), dtype=np.float32)
    blocks = random.integers(0, classes, [-(-n // 8) for n in shape]).astype(np.uint8)
    for axis, n in enumerate(shape):
        blocks = blocks.repeat(8, axis).take(range(n), axis)
    return PreparedCase(f"noise {seed}", image, blocks[None], find_foreground(blocks[None], range(1, classes)))
