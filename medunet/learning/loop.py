"""The training loop: one state that changes, one step that changes it.

`TrainState` is the only thing that changes during training. Every random draw, dropout included, depends on the seed
and the step alone, so a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from medunet.errors import MedunetError
from medunet.learning.averaging import Ema
from medunet.learning.distributed import ALONE, World, unjoined
from medunet.learning.schedules import ResumePoint, ScheduleSettings, learning_rate
from medunet.learning.thin_maps import right_gradients


class Batch(Protocol):
    """A batch of patches: `(batch, channel, *spatial)` images, class-index labels, and case names.

    A weight has one number per voxel in the label's shape; None weighs all alike.
    """

    image: Tensor
    label: Tensor
    cases: list[str]
    weight: Tensor | None


class Diverged(MedunetError):
    """Loss or gradient are no numbers any more; the state is the one before that step."""


@dataclass
class Tally:
    """Sums over the steps of the epoch under way, or of the last one where the next has not begun.

    Attributes:
        parts: of each of the loss's terms, in their weights.
    """

    steps: int = 0
    loss: float = 0.0
    norm: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, facts: StepFacts) -> None:
        self.steps, self.loss, self.norm = self.steps + 1, self.loss + facts.loss, self.norm + facts.norm
        for name, value in facts.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value

    @property
    def mean_loss(self) -> float:
        """NaN where there was no step; so is `mean_norm`."""
        return self.loss / self.steps if self.steps else math.nan

    @property
    def mean_norm(self) -> float:
        return self.norm / self.steps if self.steps else math.nan

    @property
    def mean_parts(self) -> dict[str, float]:
        """They add up to `mean_loss`; empty where there was no step."""
        return {name: value / self.steps for name, value in self.parts.items()}


@dataclass
class TrainState:
    """All that changes during training.

    Attributes:
        forward: the network, or the module that joins it to those of other processes; a step calls it.
        network: the network itself.
        step: optimiser steps done.
        epoch: epochs completed.
        skip: steps already done of the epoch that is under way.
        best: the best validation score so far.
        rate: the learning rate of the last step, 0 before the first.
        progress: the highest share of the run that was ever over.
        tally: of the epoch.
    """

    forward: nn.Module
    optimiser: torch.optim.Optimizer
    ema: Ema | None
    step: int = 0
    epoch: int = 0
    skip: int = 0
    best: float = -math.inf
    rate: float = 0.0
    progress: float = 0.0
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.network = unjoined(self.forward)
        self._buffers = {name: buffer.detach().clone() for name, buffer in self.network.named_buffers()}

    @torch.no_grad()
    def remember_buffers(self) -> None:
        """Note the current running statistics, which a step changes before its loss is known."""
        for name, buffer in self.network.named_buffers():
            self._buffers[name].copy_(buffer)

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Go back to the running statistics that were noted last."""
        for name, buffer in self.network.named_buffers():
            buffer.copy_(self._buffers[name])


@dataclass(frozen=True)
class Recipe:
    """Everything that stays the same during training.

    Attributes:
        rate: the highest learning rate.
        clip: largest gradient norm, 0 for none.
        dtype: of autocast; None computes in float32 throughout.
        seed: of dropout.
        resumed: the point from which the run went on with another length; None for a run that keeps its first one.
        world: the processes that train together.
    """

    loss: Callable[..., Tensor]
    schedule: ScheduleSettings
    rate: float
    clip: float
    device: torch.device
    dtype: torch.dtype | None
    seed: int
    resumed: ResumePoint | None = None
    world: World = ALONE


@dataclass(frozen=True)
class StepFacts:
    """Numbers of one step: loss, gradient norm before clipping, learning rate, and the terms of the loss."""

    loss: float
    norm: float
    rate: float
    parts: Mapping[str, float]


def train_step(state: TrainState, batch: Batch, recipe: Recipe, progress: float) -> StepFacts:
    """One optimiser step at the given share (0 to 1) of the run.

    Raises:
        Diverged: loss or gradient are NaN or infinite; the state is that before the step.
    """
    rate = learning_rate(recipe.schedule, recipe.rate, progress, recipe.resumed)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    # Each process drops other voxels; the first one those that it would drop alone.
    torch.manual_seed((recipe.seed << 32) + (recipe.world.rank << 24) + state.step)
    state.remember_buffers()
    parts: dict[str, Tensor] = {}
    with right_gradients(recipe.device, recipe.dtype):
        loss = _forward(state, batch, recipe, progress, parts)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), recipe.clip if recipe.clip > 0 else math.inf)
    # One read, since the first one waits for the GPU.
    total, *each = torch.stack([loss.detach(), *parts.values()]).tolist()
    facts = StepFacts(total, float(norm), rate, dict(zip(parts, each, strict=True)))
    if recipe.world.highest(not (math.isfinite(facts.loss) and math.isfinite(facts.norm))):
        state.restore_buffers()
        raise Diverged(_divergence(facts, state.step, recipe.world.all(", ".join(batch.cases))))
    state.optimiser.step()
    if state.ema is not None:
        state.ema.update(state.step)
    state.step += 1
    state.skip += 1
    state.rate = rate
    state.progress = max(state.progress, progress)
    state.tally.add(facts)
    return facts


_INNERMOST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of axes of a batch; training with channels innermost in memory took 12 to 16 % less time on a CPU."""


def placed(network: nn.Module, dimensions: int, device: torch.device) -> nn.Module:
    """The network itself, on the device, with its kernels laid out as batches are; before an optimiser is made."""
    found: nn.Module = network.to(device, memory_format=_INNERMOST[dimensions + 2])  # type: ignore[call-overload]
    return found


def _forward(state: TrainState, batch: Batch, recipe: Recipe, progress: float, parts: dict[str, Tensor]) -> Tensor:
    image = batch.image.to(recipe.device, non_blocking=True)
    image = image.contiguous(memory_format=_INNERMOST[image.ndim])
    label = batch.label.to(recipe.device, non_blocking=True)
    weight = None if batch.weight is None else batch.weight.to(recipe.device, non_blocking=True)
    precision = torch.autocast(recipe.device.type, dtype=recipe.dtype) if recipe.dtype else nullcontext()
    with precision:
        logits = state.forward(image)
    # What a loss has warmed in stays in where a longer run is less far.
    return recipe.loss(logits, label, weight, progress=max(progress, state.progress), parts=parts)


def _divergence(facts: StepFacts, step: int, cases: list[str]) -> str:
    what = f"loss became {facts.loss}" if not math.isfinite(facts.loss) else f"gradient became {facts.norm}"
    return f"the {what} at step {step} with the cases {', '.join(cases)}; this step is not counted"


def run_epoch(
    state: TrainState,
    batches: Iterable[Batch],
    recipe: Recipe,
    progress: Callable[[], float],
    watch: Callable[[StepFacts], bool],
) -> float:
    """Train on the batches until they end or `watch` says stop.

    An epoch that was stopped is gone on with by calling this with the rest of its batches, even if there is none.

    Args:
        progress: the share of the run that is over, asked before every step; at 1 the epoch ends, if it has a step.
        watch: called after every step; True stops at once, leaving the epoch unfinished even after its last batch.

    Returns:
        The mean loss of the epoch's steps so far, NaN if there was none.
    """
    state.network.train()
    if not state.skip:
        state.tally = Tally()
    for batch in batches:
        share = progress()
        if share >= 1 and state.skip:
            break
        if watch(train_step(state, batch, recipe, share)):
            return state.tally.mean_loss
    if state.skip:
        state.epoch += 1
        state.skip = 0
    return state.tally.mean_loss


@contextmanager
def evaluation_weights(state: TrainState) -> Iterator[None]:
    """The averaged weights in evaluation mode for the length of a block; training mode and weights come back."""
    state.network.eval()
    try:
        with state.ema.applied() if state.ema else nullcontext():
            yield
    finally:
        state.network.train()
