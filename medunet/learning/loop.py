"""The training loop: one state that changes, one step that changes it.

`TrainState` is the only thing that changes during training. Every random draw, dropout included, depends on the seed
and the step alone, so a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from medunet.errors import MedunetError
from medunet.learning.schedule import Ema, ScheduleSettings, learning_rate


class Batch(Protocol):
    """What the loop needs of a batch: `(batch, channel, *spatial)` images, class-index labels, and case names."""

    image: Tensor
    label: Tensor
    cases: list[str]


@dataclass
class TrainState:
    """All that changes during training, and all that a checkpoint holds.

    Attributes:
        step: optimiser steps done.
        epoch: epochs completed.
        skip: steps already done of the epoch that is under way.
        best: the best validation score so far.
        elapsed: seconds spent so far, over all sessions of the run.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    ema: Ema | None
    step: int = 0
    epoch: int = 0
    skip: int = 0
    best: float = -math.inf
    elapsed: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """What stays the same during training.

    Attributes:
        rate: the highest learning rate.
        clip: largest gradient norm, 0 for none.
        dtype: of autocast; None computes in float32 throughout.
        seed: of dropout.
    """

    loss: Callable[..., Tensor]
    schedule: ScheduleSettings
    rate: float
    clip: float
    device: torch.device
    dtype: torch.dtype | None
    seed: int


@dataclass(frozen=True)
class StepFacts:
    """What one step showed: loss, gradient norm before clipping, learning rate."""

    loss: float
    norm: float
    rate: float


def train_step(state: TrainState, batch: Batch, recipe: Recipe, progress: float) -> StepFacts:
    """One optimiser step at the given share (0 to 1) of the run.

    Raises:
        MedunetError: the loss is NaN or infinite; the weights are those before the step.
    """
    rate = learning_rate(recipe.schedule, recipe.rate, progress)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    torch.manual_seed((recipe.seed << 32) + state.step)
    loss = _forward(state.network, batch, recipe, progress)
    if not torch.isfinite(loss):
        raise MedunetError(
            f"the loss became {loss.item()} at step {state.step} with the cases {', '.join(batch.cases)}\n"
            "look at these scans (medunet inspect), or lower optimiser.rate; the last good state is kept"
        )
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), recipe.clip if recipe.clip > 0 else math.inf)
    state.optimiser.step()
    if state.ema is not None:
        state.ema.update(state.step)
    state.step += 1
    state.skip += 1
    return StepFacts(float(loss.detach()), float(norm), rate)


def _forward(network: nn.Module, batch: Batch, recipe: Recipe, progress: float) -> Tensor:
    image = batch.image.to(recipe.device, non_blocking=True)
    label = batch.label.to(recipe.device, non_blocking=True)
    precision = torch.autocast(recipe.device.type, dtype=recipe.dtype) if recipe.dtype else nullcontext()
    with precision:
        logits = network(image)
    return recipe.loss(logits, label, progress=progress)


def run_epoch(
    state: TrainState,
    batches: Iterable[Batch],
    recipe: Recipe,
    progress: Callable[[], float],
    watch: Callable[[StepFacts], bool],
) -> float:
    """Train on the batches until they end or `watch` says stop.

    Args:
        progress: the share of the run that is over, asked before every step; at 1 the epoch ends.
        watch: called after every step; True stops at once, leaving the epoch unfinished.

    Returns:
        The mean loss of the steps done, NaN if there was none.
    """
    state.network.train()
    losses = []
    for batch in batches:
        share = progress()
        if share >= 1:
            break
        facts = train_step(state, batch, recipe, share)
        losses.append(facts.loss)
        if watch(facts):
            return math.fsum(losses) / len(losses)
    state.epoch += 1
    state.skip = 0
    return math.fsum(losses) / len(losses) if losses else math.nan
