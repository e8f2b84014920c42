"""Several processes train one network: PyTorch's `torchrun` starts them, its DistributedDataParallel joins them.

Each process computes its share of every batch. The loss and batch norm take their sums over the whole batch, by
`World.sum`, so that the training is that of one process with the same batch but for rounding. Process 0 alone decides
(the clock, signals), writes, prints and validates. Nothing of this does anything where there is one process.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medunet.errors import ConfigError, MedunetError
from medunet.learning.synced_norm import synced_norms

_PATIENCE = timedelta(hours=12)
"""The longest wait of processes for one another: the first may plan, read or validate long. `torchrun` ends all if one
dies, so a longer wait hides nothing."""

_LETTING_GO = 0.3
"""Seconds between the last exchange and the end of the group."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """The processes of a training, and which one this is.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        local_rank, local_size: the same on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """True in the process that decides, writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on all of them; gradients go through."""
        return tensor if self.size == 1 else _Sum.apply(tensor)  # type: ignore[no-untyped-call]  # of torch.autograd

    def highest(self, value: float) -> float:
        """The highest of all processes' values, on all of them."""
        if self.size == 1:
            return value
        held = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(held, dist.ReduceOp.MAX)
        return float(held)

    def first(self, data: bytes) -> bytes:
        """The first process' bytes, on all of them."""
        if self.size == 1:
            return data
        length = torch.tensor(len(data))
        dist.broadcast(length, 0)
        held = _numbers(data) if self.leads else torch.empty(int(length), dtype=torch.uint8)
        if len(held):
            dist.broadcast(held, 0)
        return held.numpy().tobytes()

    def all(self, text: str) -> list[str]:
        """Each process' text, in their order, on all of them."""
        if self.size == 1:
            return [text]
        data = text.encode()
        room = int(self.highest(len(data)))
        mine = torch.zeros(room + 8, dtype=torch.uint8)
        mine[: len(data) + 8] = _numbers(len(data).to_bytes(8, "big") + data)
        held = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(held, mine)
        every = [piece.numpy().tobytes() for piece in held]
        return [piece[8 : 8 + int.from_bytes(piece[:8], "big")].decode() for piece in every]

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error of one process ends the block for all: the first that failed says why, the others point to it.

        Nothing within the block may wait for another process.
        """
        found: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            found = error
        failed = [rank for rank, text in enumerate(self.all("failed" if found else "")) if text]
        if found is not None and failed[0] == self.rank:
            raise found
        if failed:
            raise MedunetError(
                f"process {self.rank} of {self.size} ends, because process {failed[0]} reported an error"
            )

    def share(self, batch: int) -> int:
        """The number of patches of a batch that each process takes.

        Raises:
            ConfigError: the batch cannot be split evenly.
        """
        if batch % self.size:
            below = batch // self.size * self.size
            legal = [str(n) for n in (below, below + self.size) if n > 0]
            raise ConfigError(
                f"patches.batch is {batch}, which {self.size} processes cannot split evenly\n"
                f"set it to {' or '.join(legal)}; it counts the patches of all processes together"
            )
        return batch // self.size

    def joined(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The module that joins a network to those of the other processes, to be called in its place.

        Gradients are the mean over processes, weights start as those of the first process, and batch norm, which is
        replaced within the network, takes the whole batch's statistics.
        """
        if self.size == 1:
            return network
        synced_norms(network, self.sum, device)
        places = [device] if device.type == "cuda" else None
        # Running statistics are equal everywhere already, as all processes compute them from the same sums.
        named = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        settings: dict[str, Any] = {"forward_sync_buffers" if named else "broadcast_buffers": False}
        return DistributedDataParallel(network, device_ids=places, **settings)


def unjoined(module: nn.Module) -> nn.Module:
    """The network inside a module that `World.joined` gave."""
    network = module.module if isinstance(module, DistributedDataParallel) else module
    assert isinstance(network, nn.Module)
    return network


ALONE = World()


def _numbers(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


class _Sum(torch.autograd.Function):
    """PyTorch's all-reduce with its gradient: each process' input adds to the result in all of them.

    `torch.distributed.nn.functional` has the same, but is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        held = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(held)
        return held

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        held = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(held)
        return held


def world_of(environment: Mapping[str, str]) -> World:
    """The world that a launcher describes by RANK, WORLD_SIZE and LOCAL_RANK; one process where there is none.

    Raises:
        ConfigError: the description is incomplete or contradicts itself.
    """
    found = {name: environment[name] for name in _VARIABLES if name in environment}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not found.get(name, "0").lstrip("-").isdigit():
            raise ConfigError(f"the environment variable {name} is no number: {found[name]!r}; start with torchrun")
    if int(found.get("WORLD_SIZE", "1")) <= 1 and int(found.get("RANK", "0")) == 0:
        return ALONE
    missing = [name for name in _VARIABLES if name not in found]
    if missing:
        raise ConfigError(
            f"the environment describes several processes ({', '.join(f'{k}={v}' for k, v in found.items())}), but "
            f"lacks {', '.join(missing)}\nstart with: torchrun --nproc-per-node N -m medunet train …"
        )
    size, rank, local = (int(found[name]) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    if not 0 <= local <= rank < size:
        raise ConfigError(f"RANK={rank}, LOCAL_RANK={local} and WORLD_SIZE={size} contradict each other; use torchrun")
    return World(rank, size, local, int(environment.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the processes that `torchrun` started, for the length of a block; just this one where it did not.

    Raises:
        ConfigError: see `world_of`.
        MedunetError: the processes found each other in another number, or one of them ended early.
    """
    world = world_of(os.environ)
    if world.size == 1:
        yield world
        return
    # Decisions and names go over gloo also where gradients go over NCCL.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    # Held until its threads have had their time: the network that a training joined must not be what ends them.
    group = dist.group.WORLD
    try:
        found = dist.get_world_size(), dist.get_rank()
        if found != (world.size, world.rank):
            raise MedunetError(
                f"expected process {world.rank} of {world.size}, found {found[1]} of {found[0]}; start with torchrun"
            )
        yield world
    except RuntimeError as error:
        # Either says that another process is gone.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise MedunetError(f"process {world.rank} of {world.size} ends, because another one did; see there") from error
    finally:
        # A thread of gloo takes the interpreter's lock to let go of its last tensors. Whoever ends the group keeps that
        # lock while it waits for the thread, for ever.
        time.sleep(_LETTING_GO)
        dist.destroy_process_group()
        del group
