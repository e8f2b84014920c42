# %% [markdown]
# # From cell pictures to counted and measured cells
#
# Cells touch. A network that learns only "cell or not" makes one blob of two neighbours, and a count of blobs is no
# count of cells. Here we make pictures of crowded cells, with one number per cell in the label files, train on them,
# and get numbered cells, a table of their sizes, outlines for Fiji, and scores per cell.

# %%
import csv
import json
import os
import shlex
from pathlib import Path

import numpy as np
import tifffile

from medunet.cli import run

OUTPUT = Path(os.environ.get("TUTORIAL_OUTPUT", "tutorial_output")) / "05_cells"
DATA, UNSEEN = OUTPUT / "cells", OUTPUT / "unseen"
PIXEL = 0.5  # µm


def medunet_command(line: str) -> int:
    """Run a command line of medunet, as if typed in a shell, and return its exit code."""
    print(f"\n$ medunet {line}", flush=True)
    return run(shlex.split(line))


# %% [markdown]
# ## Pictures with one number per cell
#
# Each pixel belongs to the nearest of some scattered centres, if that is near enough: round cells, flattened where they
# touch. The files are ImageJ TIFFs with their pixel size, as a microscope's software writes them.


# %%
def draw_cells(random: np.random.Generator, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A picture `(y, x)` and the number of each pixel's cell, 0 between cells."""
    centres = [random.uniform(8, size - 8, 2)]
    for centre in random.uniform(8, size - 8, (400, 2)):
        if min(np.hypot(*(centre - other)) for other in centres) > 13:
            centres.append(centre)
    y, x = np.mgrid[:size, :size]
    distances = np.stack([np.hypot(y - centre[0], x - centre[1]) for centre in centres])
    ids = np.where(distances.min(axis=0) < 8.5, distances.argmin(axis=0) + 1, 0)
    bright = 40 + 90 * np.exp(-((distances.min(axis=0) / 7) ** 2)) * (ids > 0)
    return (bright + random.normal(0, 8, bright.shape)).clip(0, 255).astype(np.uint8), ids.astype(np.uint16)


def write_tiff(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, imagej=True, resolution=(1 / PIXEL, 1 / PIXEL), metadata={"axes": "YX", "unit": "um"})


random = np.random.default_rng(1)
for number in range(12):
    place = DATA if number < 10 else UNSEEN
    picture, ids = draw_cells(random)
    write_tiff(place / "images" / f"field_{number:02}.tif", picture)
    write_tiff(place / "labels" / f"field_{number:02}.tif", ids)
for place in (DATA, UNSEEN):
    declared = {"name": "cells", "channels": ["membrane"], "labels": {"background": 0, "cell": 1}}
    (place / "dataset.json").write_text(json.dumps({**declared, "label_kind": "instances"}, indent=2))

# %% [markdown]
# `"label_kind": "instances"` says that the label files hold numbers of cells and not of classes. `inspect` shows axes
# and pixel size as they were read, and how many of the cells touch.

# %%
assert medunet_command(f"inspect {DATA}") == 0

# %% [markdown]
# ## Train
#
# The plan takes `instances.target: cores`: the network learns each cell and, inside it, what is deeper than 30 % and
# 60 % of its largest depth. Cells touch, their cores do not. Real pictures want a larger network and more
# steps than these few: plan with `--minutes 30`, and leave all `--set` out.

# %%
CONFIG, RUN = OUTPUT / "cells.yaml", OUTPUT / "run"
assert medunet_command(f"plan {DATA} -o {CONFIG} --minutes 1 --overwrite") == 0
shorter = (
    "--set training.minutes=null --set training.epochs=3 --set training.iterations=40 "
    "--set network.channels=[8,16,32] --set network.kernels=3 --set network.strides=2 --set patches.size=[64,64]"
)
assert medunet_command(f"train {CONFIG} -o {RUN} --overwrite {shorter}") == 0

# %% [markdown]
# ## Count and measure
#
# `--instances` numbers the cells, `--table` measures them, `--rois` writes outlines that Fiji's ROI Manager opens.

# %%
FOUND = OUTPUT / "found"
assert (
    medunet_command(
        f"predict {RUN} {UNSEEN / 'images'} -o {FOUND} --instances --min-size 10 --table --rois --overwrite"
    )
    == 0
)
for table in sorted(FOUND.glob("*_objects.csv")):
    with table.open(newline="") as file:
        areas = [float(row["area_um2"]) for row in csv.DictReader(file)]
    true = len(np.unique(tifffile.imread(UNSEEN / "labels" / f"{table.stem.removesuffix('_objects')}.tif"))) - 1
    print(f"{table.stem}: {len(areas)} cells ({true} are there), median area {np.median(areas):.1f} µm²")

# %% [markdown]
# ## How good is that?
#
# `evaluate` compares cell by cell: how many were found at an overlap of one half (AP50), how well they overlap (SEG),
# how many were missed, invented, merged or split. `report.html` shows them in colours.

# %%
assert medunet_command(f"evaluate {FOUND} {UNSEEN} -o {OUTPUT / 'scores'} --overwrite") == 0
