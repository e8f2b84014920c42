"""How fast a network learns and when it is done: learning rates, the run's clock, optimisers, averaged weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medunet.errors import ConfigError, ModelError
from medunet.learning.muon import Muon, muon_groups

_WARMUP_START = 0.01
_REJOIN = 0.1
"""Over this share of what remains a run that was made longer rises to its new schedule."""
_SCHEDULES = ("cosine", "poly", "constant")
# Highest rates. Muon's was measured on planned networks (`benchmarks/README.md`, "What short trainings gain"), as was
# Adam's; SGD's is nnU-Net's.
_RATES = {"muon": 6e-3, "adamw": 2e-3, "adam": 2e-3, "sgd": 1e-2}


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate runs over the whole training.

    Attributes:
        kind: after the warm-up, `cosine` and `poly` fall to `floor`; `constant` stays.
        warmup: share of the run (0 to below 1) in which the rate rises linearly from 1 % of its highest value.
        power: exponent of `poly` (0.9 in nnU-Net).
        floor: last rate as a share of the highest.

    Raises:
        ConfigError: a number is out of its range.
    """

    kind: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: float = 0.05
    power: float = 0.9
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _SCHEDULES:
            raise ConfigError(f"schedule.kind {self.kind!r} is unknown; choose one of {', '.join(_SCHEDULES)}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"schedule.warmup is a share of the run, from 0 to below 1; found {self.warmup}")
        if not self.power > 0 or not 0 <= self.floor <= 1:
            raise ConfigError(
                f"schedule.power must be above 0 and schedule.floor within 0 to 1; found {self.power} and {self.floor}"
            )


@dataclass(frozen=True)
class Joint:
    """Where a run went on with another length or schedule than it had before.

    Attributes:
        progress: the share of the run, as it is measured now, that was over then.
        rate: the last learning rate before.
    """

    progress: float
    rate: float


def learning_rate(settings: ScheduleSettings, base: float, progress: float, joint: Joint | None = None) -> float:
    """The learning rate when the share `progress` (0 to 1) of the run is over, measured in steps or in minutes.

    After a joint the rate starts from what it was and glides, by a smooth step, to what a run of this length would
    have had from the beginning: up over a tenth of what remains, down over all of it. So it never jumps; a finished
    cosine run, whose rate is 0, warms up again to the rate of the longer run at this point: a little where little is
    added, much where much is.
    """
    rate = _planned_rate(settings, base, progress)
    if joint is None or joint.progress >= 1:
        return rate
    rises = _planned_rate(settings, base, joint.progress) > joint.rate
    glide = (_REJOIN if rises else 1.0) * (1 - joint.progress)
    gone = min(max((progress - joint.progress) / glide, 0.0), 1.0)
    new = gone * gone * (3 - 2 * gone)
    return (1 - new) * joint.rate + new * rate


def _planned_rate(settings: ScheduleSettings, base: float, progress: float) -> float:
    if progress < settings.warmup:
        return base * (_WARMUP_START + (1 - _WARMUP_START) * progress / settings.warmup)
    gone = min((progress - settings.warmup) / (1 - settings.warmup), 1.0)
    if settings.kind == "constant":
        return base
    left = 0.5 * (1 + math.cos(math.pi * gone)) if settings.kind == "cosine" else (1 - gone) ** settings.power
    return base * (settings.floor + (1 - settings.floor) * left)


@dataclass(frozen=True)
class Progress:
    """The clock of a run that is measured by steps or by minutes.

    Attributes:
        max_steps: steps of the whole run, or None.
        minutes: wall time of the whole run over all its sessions, or None; exactly one of both is given.
        before: seconds that earlier sessions of a resumed run took.
        clock: seconds that never run backwards.
        started: the clock's reading when this session began; None reads it now.

    Raises:
        ConfigError: not exactly one measure is given, or it is not positive.
    """

    max_steps: int | None = None
    minutes: float | None = None
    before: float = 0.0
    clock: Callable[[], float] = time.monotonic
    started: float | None = None

    def __post_init__(self) -> None:
        given = [measure for measure in (self.max_steps, self.minutes) if measure is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ConfigError(
                f"a run is measured by steps or by minutes, one of them and positive; "
                f"found max_steps {self.max_steps}, minutes {self.minutes}"
            )
        if self.started is None:
            object.__setattr__(self, "started", self.clock())

    def elapsed(self) -> float:
        """Seconds that the run has taken, earlier sessions included."""
        assert self.started is not None
        return self.before + self.clock() - self.started

    def fraction(self, step: int) -> float:
        """The share of the run that is over after `step` steps, from 0 to 1."""
        if self.max_steps is not None:
            return min(step / self.max_steps, 1.0)
        assert self.minutes is not None
        return min(self.elapsed() / (60 * self.minutes), 1.0)


@dataclass(frozen=True)
class OptimiserSettings:
    """Which optimiser moves the weights.

    Attributes:
        kind: `muon` (for hidden layers' kernels, with `adamw` for all else), `adamw`, `adam` or `sgd` (Nesterov).
        rate: highest learning rate; None takes the kind's own: 0.006 for `muon`, 0.002 for `adamw` and `adam`, 0.01 for
            `sgd`.
        weight_decay: for weights of more than one axis; biases and norms' scales are left alone.
        momentum: of `sgd`; that of `muon` is 0.95.
        betas: of `adam` and `adamw`.

    Raises:
        ConfigError: a number is out of its range.
    """

    kind: Literal["muon", "adamw", "adam", "sgd"] = "muon"
    rate: float | None = None
    weight_decay: float = 1e-2
    momentum: float = 0.99
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.kind not in _RATES:
            raise ConfigError(f"optimiser.kind {self.kind!r} is unknown; choose one of {', '.join(_RATES)}")
        if not 0 < self.highest_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"optimiser.rate must be above 0 and optimiser.weight_decay not below; "
                f"found {self.highest_rate} and {self.weight_decay}"
            )
        if not all(0 <= share < 1 for share in (self.momentum, *self.betas)):
            raise ConfigError(
                f"optimiser.momentum and optimiser.betas lie from 0 to below 1; found {self.momentum} and {self.betas}"
            )

    @property
    def highest_rate(self) -> float:
        """The learning rate at the top of the schedule."""
        return _RATES[self.kind] if self.rate is None else self.rate


def make_optimiser(settings: OptimiserSettings, network: nn.Module) -> torch.optim.Optimizer:
    """An optimiser of the network's trainable weights, on the device where they are now.

    Raises:
        ValueError: the network has no trainable weight.
    """
    if settings.kind == "muon":
        return Muon(_trained(muon_groups(network, settings.weight_decay)), settings.highest_rate, settings.betas)
    groups = _decay_groups(network, settings.weight_decay)
    # The fused kernels update all weights in one call; other devices than these have none.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    if settings.kind == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(groups, settings.highest_rate, momentum, nesterov=momentum > 0, fused=fused)
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return kind(groups, settings.highest_rate, betas=settings.betas, fused=fused)


def _trained(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not groups:
        raise ValueError("the network has no trainable weight")
    return groups


def _decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim > 1]
    spared = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return _trained([group for group in groups if group["params"]])


class Ema:
    """Exponential moving average of a network's weights and running statistics.

    The decay rises with the steps as ``min(decay, (1 + step) / (10 + step))``, so the random first weights are
    forgotten soon. Floating-point buffers are averaged like weights; others, such as counters, are copied.

    Args:
        network: the network whose weights are averaged, starting with those of now.
        decay: highest decay, from 0 to below 1.

    Raises:
        ConfigError: the decay is out of its range.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"the decay of the averaged weights lies from 0 to below 1, found {decay}")
        self._network = network
        self._decay = decay
        self._average = _copied(network)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after optimiser step `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, current in self._network.state_dict().items():
            if current.is_floating_point():
                self._average[name].lerp_(current, 1 - decay)
            else:
                self._average[name].copy_(current)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averaged weights within the block; afterwards its own again, to the last bit.

        That holds after an exception too, and for buffers that the block changed.
        """
        own = _copied(self._network)
        try:
            _write(self._network, self._average)
            yield
        finally:
            _write(self._network, own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the names of the network's own state dict; copies."""
        return {name: tensor.clone() for name, tensor in self._average.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over averages that `state_dict` gave.

        Raises:
            ModelError: they belong to another network; nothing is taken over.
        """
        expected = {name: tensor.shape for name, tensor in self._average.items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        if found != expected:
            wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
            raise ModelError(
                f"the averaged weights do not fit the network: {len(wrong)} of {len(expected)} tensors differ, "
                f"first {wrong[0]}\nresume with the config that the run was started with"
            )
        for name, tensor in state.items():
            self._average[name].copy_(tensor)


@torch.no_grad()
def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@torch.no_grad()
def _write(network: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, tensor in network.state_dict().items():
        tensor.copy_(weights[name])
