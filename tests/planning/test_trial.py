"""Steps that are really trained, timed and weighed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medunet.config import Config, TrainingSettings
from medunet.datasets.labels import table_from_values
from medunet.datasets.regions import Region
from medunet.networks.settings import UNetSettings
from medunet.patches.dataset import PatchSettings
from medunet.planning.preprocessing import Grid
from medunet.planning.trial import Trial, try_plan

CPU = torch.device("cpu")
LABELS = table_from_values((0, 1, 2))


def config(channels: tuple[int, ...], patch: tuple[int, ...], **training: float) -> Config:
    dimensions = 3 if len(patch) == 3 else 2
    return Config(
        network=UNetSettings(dimensions=dimensions, channels=channels, in_channels=2, classes=3),
        patches=PatchSettings(size=patch, batch=2),
        training=TrainingSettings(**{"minutes": 0.01, "precision": "fp32"} | training),  # type: ignore[arg-type]
    )


@pytest.mark.slow
def test_larger_steps_take_longer_and_global_generators_stand_still() -> None:
    torch.manual_seed(7)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    small = try_plan(config((4, 8), (8, 8, 8)), LABELS, Grid((20, 20, 20), (1, 1, 1)), CPU)
    large = try_plan(config((16, 32), (32, 32, 32)), LABELS, Grid((40, 40, 40), (1, 1, 1)), CPU)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002
    assert large.network > small.network > 0 and small.patches > 0 and small.steps >= 1
    assert large.memory > large.before > 2**26


def test_slices_of_volumes_across_any_axis() -> None:
    for axis in (0, 2):
        wanted = config((4, 8), (16, 8))
        sliced = Config(**vars(wanted) | {"patches": PatchSettings(size=(16, 8), batch=2, slice_axis=axis)})
        assert try_plan(sliced, LABELS, Grid((20, 20), (1, 1), axis), CPU).steps >= 1


def test_a_single_region_has_a_single_output() -> None:
    labels = replace(LABELS, regions=(Region("both", (1, 2), 1),))
    wanted = config((4, 8), (8, 8, 8))
    wanted = replace(wanted, network=replace(wanted.network, classes=labels.outputs))
    assert labels.outputs == 1
    assert try_plan(wanted, labels, Grid((20, 20, 20), (1, 1, 1)), CPU).steps >= 1


def test_workers_hide_the_patches_and_none_add_them() -> None:
    assert Trial(0.5, 0.2, 0, 1, 0, 1).seconds == pytest.approx(0.7)
    assert Trial(0.5, 2.0, 2, 1, 0, 1).seconds == pytest.approx(1.0)
    assert Trial(0.5, 0.2, 2, 1, 0, 1).seconds == pytest.approx(0.5)


def test_the_line_says_an_epoch_and_the_whole() -> None:
    asked = config((4, 8), (8, 8, 8), iterations=100, epochs=3)
    text = Trial(0.5, 0.1, 0, 2**30, 0, 4).describe(asked)
    assert "0.6 s an iteration" in text and "60 s an epoch" in text and "1.0 GiB" in text and "4 training" in text
    endless = Config(**vars(asked) | {"training": TrainingSettings(iterations=100, epochs=30)})
    assert "about 30 min in all" in Trial(0.5, 0.1, 0, 2**30, 0, 4).describe(endless)
