"""Batches of training patches, from this process or from workers, the same whichever make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from medunet.patches.dataset import PatchBatch, PatchDataset, RawPatch, collate


class EpochSampler(Sampler[int]):
    """The numbers of one epoch's patches; `set_epoch` moves on, without restarting the loader's workers.

    Args:
        part: which of how many processes this is; each takes its share of every batch, one after the other, so that
            together they see the very batches that one process would. The batch must be a multiple of their number.
    """

    def __init__(self, dataset: PatchDataset, part: tuple[int, int] = (0, 1)) -> None:
        self._dataset, self._part = dataset, part
        self.set_epoch(0)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch of the next iteration, and how many of its batches a resumed run has already had."""
        self._first = epoch * self._dataset.per_epoch
        self._skipped = min(skip * self._dataset.settings.batch, self._dataset.per_epoch)

    def __iter__(self) -> Iterator[int]:
        (rank, size), batch = self._part, self._dataset.settings.batch
        share = batch // size
        numbers = range(self._first + self._skipped, self._first + self._dataset.per_epoch)
        return (n for place, n in enumerate(numbers) if place % batch // share == rank)

    def __len__(self) -> int:
        return (self._dataset.per_epoch - self._skipped) // self._part[1]


def make_loader(
    dataset: PatchDataset,
    workers: int = 0,
    pin_memory: bool = False,
    device: torch.device | None = None,
    part: tuple[int, int] = (0, 1),
) -> DataLoader[PatchBatch] | DeviceLoader:
    """A loader whose batches do not depend on the number of workers, nor touch any global generator.

    Call ``loader.sampler.set_epoch(epoch)`` before iterating over an epoch. The workers live as long as the loader.

    Args:
        dataset: gives the batch size, too; the last batch of an epoch may be smaller.
        workers: processes that prepare patches; 0 prepares them in this one.
        pin_memory: prepare batches for copying to a GPU.
        device: where to augment; the workers then only read, and batches arrive on it. None augments in the workers.
        part: which of how many processes this is, see `EpochSampler`; each gets its share of every batch.
    """
    if device is not None:
        return DeviceLoader(dataset, _loader(_Reading(dataset), dataset, list, (workers, pin_memory, part)), device)
    return _loader(dataset, dataset, collate, (workers, pin_memory, part))


class DeviceLoader:
    """Batches (`PatchBatch`) whose patches workers read, and a device augments."""

    def __init__(self, dataset: PatchDataset, loader: DataLoader[Any], device: torch.device) -> None:
        self._dataset = dataset
        self._loader = loader
        self._device = device
        self.sampler = loader.sampler

    def __iter__(self) -> Iterator[Any]:
        for patches in self._loader:
            yield self._dataset.augmented([patch.to(self._device) for patch in patches])

    def __len__(self) -> int:
        return len(self._loader)


@dataclass(frozen=True, eq=False)
class _Reading(Dataset[RawPatch]):
    """The patches of a dataset before their augmentation."""

    dataset: PatchDataset

    def __getitem__(self, number: int) -> RawPatch:
        return self.dataset.read(number).owned()


def _loader(
    items: Dataset[Any],
    dataset: PatchDataset,
    join: Callable[[Sequence[Any]], Any],
    how: tuple[int, bool, tuple[int, int]],
) -> DataLoader[Any]:
    workers, pin_memory, part = how
    return DataLoader(
        items,
        batch_size=dataset.settings.batch // part[1],
        sampler=EpochSampler(dataset, part),
        num_workers=workers,
        collate_fn=join,
        pin_memory=pin_memory,
        worker_init_fn=_single_threaded,
        generator=torch.Generator(),  # without one of its own, the loader draws from the global generator
        persistent_workers=workers > 0,
    )


def _single_threaded(worker: int) -> None:
    # Several workers with several threads each would fight over the cores with the training itself.
    torch.set_num_threads(1)
