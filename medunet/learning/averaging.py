"""Averaged weights: an exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medunet.errors import ConfigError, ModelError


class Ema:
    """Exponential moving average of a network's weights and running statistics.

    The decay rises with the steps as ``min(decay, (1 + step) / (10 + step))``, so the random first weights are
    forgotten soon. Floating-point buffers are averaged like weights; others, such as counters, are copied.

    Args:
        network: the network whose weights are averaged, starting with the current ones.
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
