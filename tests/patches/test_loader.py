"""Loading: the same batches from any number of workers and processes, and of an epoch that is gone on with."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.patches.dataset import PatchDataset, PatchSettings, PreparedCase, collate, find_foreground
from medunet.patches.loader import EpochSampler, make_loader
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.augment.settings import AugmentSettings, Chance

LIVELY = AugmentSettings(rotation=Chance(0.5, -30, 30), scaling=Chance(0.5, 0.8, 1.25), noise=Chance(0.5, 0, 0.2))


def numbered(shape: tuple[int, ...], name: str = "case") -> PreparedCase:
    """A case whose image numbers its voxels from 1, so that each patch shows where it was taken."""
    image = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(1, *shape)
    label = np.zeros((1, *shape), np.uint8)
    for c in (1, 2):
        label[(0, *(n * c // 3 for n in shape))] = c
    return PreparedCase(name, image, label, find_foreground(label, (1, 2)))


def lively(per_epoch: int = 7) -> PatchDataset:
    cases = [numbered((20, 18, 16), name=f"case_{i}") for i in range(3)]
    return PatchDataset(cases, PatchSettings((8, 8, 8), batch=2), per_epoch, Augmentation(LIVELY, 3), seed=4)


def test_the_number_of_workers_changes_nothing() -> None:
    loaders = [make_loader(lively(), workers) for workers in (0, 2)]
    for epoch in (0, 3):
        batches = []
        for loader in loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            batches.append(list(loader))
        assert len(batches[0]) == len(batches[1]) == len(loaders[0]) == 4
        for one, two in zip(*batches, strict=True):
            assert torch.equal(one.image, two.image) and torch.equal(one.label, two.label) and one.cases == two.cases
    assert not torch.equal(batches[0][0].image, next(iter(make_loader(lively()))).image)


def test_a_resumed_epoch_goes_on_where_it_stopped() -> None:
    loader = make_loader(lively())
    whole = list(loader)
    loader.sampler.set_epoch(0, skip=2)  # type: ignore[attr-defined]
    rest = list(loader)
    assert len(rest) == len(loader) == 2
    assert all(torch.equal(a.image, b.image) for a, b in zip(whole[2:], rest, strict=True))
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert len(list(loader)) == 4


@given(share=st.integers(1, 4), size=st.integers(1, 4), steps=st.integers(1, 5), data=st.data())
@settings(deadline=None, max_examples=50)
def test_processes_together_see_the_batches_that_one_would(
    share: int, size: int, steps: int, data: st.DataObject
) -> None:
    """Each its share of every batch, in order, also in an epoch that is gone on with."""
    epoch, skip = data.draw(st.integers(0, 3)), data.draw(st.integers(0, steps))
    settings = PatchSettings((8, 8, 8), batch=share * size)
    patches = replace(lively(), settings=settings, per_epoch=steps * settings.batch)

    def batches(part: tuple[int, int]) -> list[list[int]]:
        sampler = EpochSampler(patches, part)
        sampler.set_epoch(epoch, skip)
        numbers, own = list(sampler), settings.batch // part[1]
        assert len(numbers) == len(sampler)
        return [numbers[n : n + own] for n in range(0, len(numbers), own)]

    each = [batches((rank, size)) for rank in range(size)]
    joined = [[n for piece in pieces for n in piece] for pieces in zip(*each, strict=True)]
    assert joined == batches((0, 1)) and len(joined) == steps - skip


def test_loading_touches_no_global_generator() -> None:
    before = (np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate())  # noqa: NPY002
    for workers in (0, 1):
        list(make_loader(lively(), workers))
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1]) and random.getstate() == before[2]


def test_batches_join_patches_in_order() -> None:
    data = lively()
    batch = collate([data[0], data[1]])
    assert batch.image.shape == (2, 1, 8, 8, 8) and batch.label.dtype == torch.uint8
    assert torch.equal(batch.image[1], data[1].image[0]) and batch.cases == [*data[0].cases, *data[1].cases]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_device_augments_as_workers_do(workers: int, dtype: type) -> None:
    case = numbered((20, 18, 16))
    case = replace(case, image=(case.image / 6000).astype(dtype))
    data = replace(lively(), cases=[case], settings=PatchSettings((8, 10, 8), batch=3), margin=(1, 2, 0))
    loaders = [make_loader(data), make_loader(data, workers, device=torch.device("cpu"))]
    for epoch in (0, 2):
        batches = []
        for loader in loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            batches.append(list(loader))
        assert len(batches[0]) == len(batches[1]) == len(loaders[1]) == 3
        for one, two in zip(*batches, strict=True):
            assert torch.equal(one.image, two.image) and torch.equal(one.label, two.label) and one.cases == two.cases
