"""Augmented training patches per second of one core: medunet's and MONAI's dictionary transforms, asked in turn.

    python benchmarks/augment_speed.py [--rounds N] [--patches N] [--parts] [--beside CHECKOUT]

Both sides read patches from the same arrays in memory (two made scans of 160³, or pictures of 512², float32, one
channel, three classes) and change them with the same probabilities and ranges, on one thread. Seconds are CPU seconds
of the process. Each round times a block of patches on every side; medians of the rounds are printed, and the median of
the ratios within a round.

Why both sides do the same work:

- Place: one patch in three holds a foreground voxel; MONAI's RandCropByPosNegLabeld gets the voxels' indices ready
  made, as medunet's cases carry them, and searches nothing.
- Shape: medunet rotates and scales with a probability each and resamples once; MONAI's RandAffined has one probability,
  which is set to that of a resampling here, so that both resample equally often: image linearly, label by the nearest.
- Corners: medunet reads a patch's surroundings so that a rotation brings in no empty corner. "corners empty" crops the
  bare patch, which is less work than medunet's, and leaves corners empty: the ratio against it is the cautious one.
  "filled" crops as much as the largest move needs and lets RandAffined cut the patch out of it, the usual way in MONAI;
  it then resamples patches that are not moved, too, which medunet spares. The truth lies between the two.
- Values: noise, blur, brightness, shift, contrast, low resolution and gamma (twice), each with the probability and the
  range of the settings; mirrors on every axis with probability one half.
- MONAI runs as fast as it can: without metadata (set_track_meta(False)) and with ready-made coordinates (cache_grid).

Its blur pads with 0 where medunet's repeats the edge; its shrinking is told to take means, as medunet's does.
`--parts` times each change of values, and mirrors, alone, with probability 1 on one patch of 64³; and whether
`grid_sample` gains from batches.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai import transforms as m
from monai.data import set_track_meta
from scipy.ndimage import gaussian_filter

from medunet.patches.dataset import PatchDataset, PatchSettings, PreparedCase, find_foreground
from medunet.planning.rules import LIGHT_AUGMENTATION
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.augment.settings import AugmentSettings, Chance, Draw

HERE = Path(__file__).resolve().parents[1]
SETTINGS = {"default (nnU-Net's)": AugmentSettings(), "light": LIGHT_AUGMENTATION}
SIZES = ((64, 64, 64), (40, 56, 40), (256, 256))
VALUES = ("noise", "blur", "brightness", "shift", "contrast", "low_resolution", "gamma", "gamma_inverted")

Side = Callable[[int], Any]
"""Makes patch number n."""


def made_cases(shape: tuple[int, ...]) -> list[PreparedCase]:
    cases = []
    for index in range(2):
        image = gaussian_filter(np.random.default_rng(index).normal(size=shape), 3).astype(np.float32)
        label = np.digitize(image / image.std(), [1, 2]).astype(np.uint8)[None]
        cases.append(PreparedCase(f"made_{index}", image[None] / image.std(), label, find_foreground(label, [1, 2])))
    return cases


def medunet_side(cases: list[PreparedCase], settings: AugmentSettings, size: tuple[int, ...]) -> Side:
    return PatchDataset(cases, PatchSettings(size), 1_000_000, Augmentation(settings, len(size))).__getitem__


def monai_side(cases: list[PreparedCase], settings: AugmentSettings, size: tuple[int, ...], filled: bool) -> Side:
    crop = largest_read(settings, size) if filled else size
    steps = [
        m.RandCropByPosNegLabeld(
            keys=["image", "label"],
            label_key="label",
            spatial_size=crop,
            pos=1,
            neg=2,
            num_samples=1,
            fg_indices_key="fg",
            bg_indices_key="bg",
        ),
        *affine(settings, size),
        *(m.RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=axis) for axis in range(len(size))),
        *(
            monai_values(name, getattr(settings, name), len(size))
            for name in VALUES
            if getattr(settings, name).probability
        ),
    ]
    compose = m.Compose(steps)
    compose.set_random_state(0)
    items = []
    for case in cases:
        foreground = np.flatnonzero(case.label > 0)
        background = np.flatnonzero(case.label == 0)
        image, label = torch.from_numpy(case.image), torch.from_numpy(case.label)
        items.append({"image": image, "label": label, "fg": foreground, "bg": background})
    return lambda number: compose(dict(items[number % len(items)]))


def largest_read(settings: AugmentSettings, size: tuple[int, ...]) -> tuple[int, ...]:
    """What medunet reads at most in many draws."""
    augmentation = Augmentation(settings, len(size))
    reads = [augmentation.read_size(size, Draw(0, 0, index)) for index in range(500)]
    return tuple(max(read[axis] for read in reads) for axis in range(len(size)))


def affine(settings: AugmentSettings, size: tuple[int, ...]) -> list[Any]:
    happens = 1 - (1 - settings.rotation.probability) * (1 - settings.scaling.probability)
    return [
        m.RandAffined(
            keys=["image", "label"],
            prob=happens,
            rotate_range=[(math.radians(settings.rotation.low), math.radians(settings.rotation.high))]
            * (3 if len(size) == 3 else 1),
            # MONAI's factor is the inverse of medunet's, and it adds the 1 itself.
            scale_range=[(1 / settings.scaling.high - 1, 1 / settings.scaling.low - 1)] * len(size),
            spatial_size=size,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
            cache_grid=True,
        )
    ]


def monai_values(name: str, chance: Chance, dimensions: int) -> Any:
    """MONAI's transform for one change of values."""
    keys, prob = ["image"], chance.probability
    factors = (chance.low - 1, chance.high - 1)
    if name == "noise":
        return m.RandGaussianNoised(keys, prob=prob, std=chance.high)
    if name == "blur":
        sigma = (chance.low, chance.high)
        return m.RandGaussianSmoothd(keys, prob=prob, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma)
    if name == "brightness":
        return m.RandScaleIntensityd(keys, prob=prob, factors=factors, channel_wise=True)
    if name == "shift":
        return m.RandShiftIntensityd(keys, prob=prob, offsets=(chance.low, chance.high), channel_wise=True)
    if name == "contrast":
        return m.RandScaleIntensityFixedMeand(keys, prob=prob, factors=factors, channel_wise=True)
    if name == "low_resolution":
        return m.RandSimulateLowResolutiond(
            keys,
            prob=prob,
            zoom_range=(chance.low, chance.high),
            downsample_mode="area",
            upsample_mode="bilinear" if dimensions == 2 else "trilinear",
        )
    gamma, inverted = (chance.low, chance.high), name == "gamma_inverted"
    return m.RandAdjustContrastd(keys, prob=prob, gamma=gamma, invert_image=inverted, retain_stats=True)


def milliseconds(side: Side, numbers: Sequence[int]) -> float:
    """CPU time per patch."""
    started = time.process_time()
    for number in numbers:
        side(number)
    return (time.process_time() - started) / len(numbers) * 1e3


def compare(sides: dict[str, Side], rounds: int, patches: int) -> dict[str, tuple[float, float]]:
    """Each side's median milliseconds per patch, and how many times the first side's they are."""
    for side in sides.values():
        milliseconds(side, range(4))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        numbers = range(turn * patches, (turn + 1) * patches)
        for name, side in sides.items():
            taken[name].append(milliseconds(side, numbers))
    first = next(iter(taken.values()))
    return {
        name: (statistics.median(times), statistics.median(t / f for t, f in zip(times, first, strict=True)))
        for name, times in taken.items()
    }


def print_rows(title: str, found: dict[str, tuple[float, float]]) -> None:
    print(title)
    for name, (each, ratio) in found.items():
        print(
            f"    {name:<36} {each:8.3f} ms a patch   {1e3 / each:8.1f} patches a core-second   {ratio:6.2f} times",
            flush=True,
        )


def whole(rounds: int, patches: int) -> None:
    for size in SIZES:
        cases = made_cases((160,) * 3 if len(size) == 3 else (512,) * 2)
        for name, settings in SETTINGS.items():
            sides = {
                "medunet": medunet_side(cases, settings, size),
                "MONAI (corners empty)": monai_side(cases, settings, size, filled=False),
                "MONAI, filled": monai_side(cases, settings, size, filled=True),
            }
            print_rows(f"{'×'.join(map(str, size))}, {name}", compare(sides, rounds, patches))


def parts(rounds: int, patches: int) -> None:
    case, still = made_cases((64,) * 3)[0], AugmentSettings.none()
    data = {"image": torch.from_numpy(case.image), "label": torch.from_numpy(case.label)}

    def ours(settings: AugmentSettings) -> Side:
        augmentation = Augmentation(settings, 3)
        return lambda number: augmentation(case.image, case.label, Draw(0, 0, number))

    for name in VALUES:
        chance = replace(getattr(AugmentSettings(), name), probability=1)
        transform = monai_values(name, chance, 3)
        sides = {"medunet": ours(replace(still, **{name: chance})), "MONAI": lambda _, t=transform: t(dict(data))}
        print_rows(name, compare(sides, rounds, patches))
    flips = m.Compose([m.RandFlipd(keys=["image", "label"], prob=1, spatial_axis=axis) for axis in range(3)])
    sides = {"medunet": ours(replace(still, flip_axes=None, flip_probability=1)), "MONAI": lambda _: flips(dict(data))}
    print_rows("mirrors on three axes", compare(sides, rounds, patches))
    turned = AugmentSettings(rotation=Chance(1, -30, 30), scaling=Chance(1, 0.8, 1.25))
    transform = affine(turned, (64,) * 3)[0]
    only_turned = replace(still, rotation=turned.rotation, scaling=turned.scaling)
    sides = {"medunet": ours(only_turned), "MONAI": lambda _: transform(dict(data))}
    print_rows("rotation and scaling, corners empty", compare(sides, rounds, patches))
    batches(rounds)


def batches(rounds: int) -> None:
    """Milliseconds per patch of torch's grid_sample, eight patches at once and one by one."""
    image, grid = torch.randn(8, 1, 64, 64, 64), torch.rand(8, 64, 64, 64, 3) * 1.6 - 0.8

    def sample(count: int) -> Side:
        return lambda _: torch.nn.functional.grid_sample(image[:count], grid[:count], align_corners=False)

    found = compare({"one by one": sample(1), "eight at once": lambda n: sample(8)(n)}, rounds, 8)
    alone, together = found["one by one"][0], found["eight at once"][0] / 8
    print(f"grid_sample of 64³: {alone:.2f} ms a patch one by one, {together:.2f} ms a patch eight at once")


def of_checkout(checkout: Path, size: tuple[int, ...], name: str, patches: int) -> float:
    """Milliseconds a patch of medunet as it lies in a checkout, in a process of its own."""
    code = (
        f"import sys; sys.path.insert(0, {str(HERE / 'benchmarks')!r}); import augment_speed as b; import medunet; "
        f"assert medunet.__file__.startswith({str(checkout)!r}); size = {size!r}; "
        "cases = b.made_cases((160,) * 3 if len(size) == 3 else (512,) * 2); "
        f"side = b.medunet_side(cases, b.SETTINGS[{name!r}], size); b.milliseconds(side, range(8)); "
        f"print(b.milliseconds(side, range({patches})))"
    )
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return float(answer.stdout)


def beside(checkout: Path, rounds: int, patches: int) -> None:
    """This checkout and another one in turn; the speed is that of the other one's."""
    for size in SIZES:
        for name in SETTINGS:
            pairs = [[of_checkout(c, size, name, patches) for c in (HERE, checkout)] for _ in range(rounds)]
            here, there = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(other / own for own, other in pairs)
            print(f"{'×'.join(map(str, size))}, {name}: {here:.2f} ms, {there:.2f} ms; {ratio:.3f} of its speed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patches", type=int, default=30, help="patches of a block")
    parser.add_argument("--parts", action="store_true", help="each change alone")
    parser.add_argument("--beside", type=Path, help="another checkout of medunet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_track_meta(False)
    if options.beside is not None:
        beside(options.beside.resolve(), options.rounds, options.patches)
        return
    (parts if options.parts else whole)(options.rounds, options.patches)


if __name__ == "__main__":
    main()
