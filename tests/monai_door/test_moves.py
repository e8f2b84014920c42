"""The random move of a MONAI script is that of `medunet train`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose
from monai.utils import set_determinism

import medunet.monai as mm
from medunet.errors import DataError
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.augment.settings import AugmentSettings, Draw
from tests.monai_door.test_grids import OBLIQUE, off_the_ramp, ramp

ALWAYS = {"rotation": mm.Chance(1, -25, 25), "scaling": mm.Chance(1, 0.8, 1.25)}
WHOLE = {"flip_axes": (0, 1, 2), "quarter_turns": 1.0}


def pair(shape: tuple[int, ...] = (16, 16, 16)) -> dict[str, MetaTensor]:
    label = torch.randint(0, 3, (1, *shape), dtype=torch.uint8)
    return {"image": ramp(shape, OBLIQUE, 0), "label": MetaTensor(label, affine=torch.tensor(OBLIQUE))}


@pytest.mark.parametrize("options", [ALWAYS, WHOLE, ALWAYS | WHOLE])
@pytest.mark.parametrize("seed", range(3))
def test_a_voxel_stays_where_it_was(options: dict, seed: int) -> None:
    found = mm.RandAffineElastic(**options).set_random_state(seed)(pair()["image"])
    assert off_the_ramp(found, 0, margin=6) < 1e-3
    assert not torch.equal(found.affine, torch.tensor(OBLIQUE))


def test_arrays_are_those_of_the_training() -> None:
    settings = {**ALWAYS, "elastic": mm.Chance(1, 1, 3), "flip_axes": (0, 1)}
    step = mm.RandAffineElasticd(["image", "label"], labels="label", **settings).set_random_state(5)
    given = pair((15, 14, 12))
    found = step(given)
    seed = int(np.random.RandomState(5).randint(2**31 - 1))
    own = Augmentation(AugmentSettings(**{**vars(AugmentSettings.none()), **settings, "flip_probability": 0.5}), 3)
    image, label = own(given["image"].as_tensor(), given["label"].as_tensor(), Draw(seed, 0, 0))
    assert torch.equal(found["image"].as_tensor(), image) and torch.equal(found["label"].as_tensor(), label)
    assert set(found["label"].unique().tolist()) <= {0, 1, 2, 255} and found["label"].dtype == torch.uint8


def test_the_label_from_outside_can_be_chosen() -> None:
    step = mm.RandAffineElastic(scaling=mm.Chance(1, 0.5, 0.5), outside=0)
    ones = MetaTensor(torch.ones(1, 8, 8, dtype=torch.int64))
    found = step(ones)
    assert found.unique().tolist() == [0, 1] and found.dtype == torch.int64
    with pytest.raises(DataError, match="holds 0 to 300"):
        step(torch.arange(301).reshape(1, 7, 43))


def test_whole_moves_are_taken_back_exactly_and_others_nearly() -> None:
    given = pair((12, 12, 12))
    whole = mm.RandAffineElasticd(["image", "label"], labels="label", **WHOLE)
    for seed in range(6):
        back = whole.inverse(whole.set_random_state(seed)(given))
        assert all(torch.equal(back[key].as_tensor(), given[key].as_tensor()) for key in given)
        assert all(torch.equal(back[key].affine, given[key].affine) for key in given)
    turned = mm.RandAffineElasticd(["image", "label"], labels="label", **ALWAYS).set_random_state(1)
    back = turned.inverse(turned(given))
    assert off_the_ramp(back["image"], 0, margin=4) < 1e-3
    assert set(back["label"].unique().tolist()) <= {0, 1, 2, 255}
    elastic = mm.RandAffineElastic(elastic=mm.Chance(1, 2, 2))
    with pytest.raises(DataError, match="elastic"):
        elastic.inverse(elastic(given["image"]))


@pytest.mark.slow
def test_workers_draw_differently_and_again_the_same(tmp_path: Path) -> None:
    step = Compose([mm.RandAffineElasticd(["image", "label"], labels="label", **ALWAYS)])
    data = [pair()] * 4

    def drawn(workers: int) -> list[torch.Tensor]:
        set_determinism(3)
        step.set_random_state(3)
        loader = DataLoader(CacheDataset(data, step, progress=False), batch_size=1, num_workers=workers)
        found = [batch["image"].as_tensor().clone() for batch in loader]
        set_determinism(None)
        return found

    first, again = drawn(2), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(first[i], first[j]) for i in range(4) for j in range(i))
