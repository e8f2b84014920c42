# %% [markdown]
# # Your own data
#
# All that medunet wants is a folder: pictures or scans in `images/`, label maps of the same names in `labels/`, and,
# if you like, a `dataset.json` that says what channels and labels are called. Here we make one from arrays, as you
# would from whatever your microscope or your database gives you, and go once through all commands.

# %%
import json
import os
import shlex
from pathlib import Path

import numpy as np
from PIL import Image

from medunet.cli import run

OUTPUT = Path(os.environ.get("TUTORIAL_OUTPUT", "tutorial_output")) / "02_your_own_data"
DATA, UNSEEN = OUTPUT / "dataset", OUTPUT / "unseen"


def medunet_command(line: str) -> int:
    """Run a command line of medunet, as if typed in a shell, and return its exit code."""
    print(f"\n$ medunet {line}", flush=True)
    return run(shlex.split(line))


# %% [markdown]
# ## Pictures and labels
#
# Our pictures hold two kinds of objects, solid discs and hollow rings, in noise. The label map has the value 100 on
# discs, 200 on rings and 0 elsewhere: values need not be 1, 2, 3, and results will use yours.


# %%
def draw_case(random: np.random.Generator, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its label map, both `(y, x)` uint8."""
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.uint8)
    picture = random.normal(60, 12, (size, size))
    for kind in (100, 200, 100, 200):
        radius = random.uniform(8, 13)
        centre = random.uniform(radius, size - radius, 2)
        distance = np.hypot(y - centre[0], x - centre[1])
        inside = (distance < radius) if kind == 100 else (distance < radius) & (distance > radius - 4)
        labels[inside] = kind
        picture[inside] += 60
    return picture.clip(0, 255).astype(np.uint8), labels


random = np.random.default_rng(0)
for number in range(16):
    place = DATA if number < 12 else UNSEEN
    for kind, array in zip(("images", "labels"), draw_case(random), strict=True):
        (place / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(place / kind / f"case_{number:02}.png")

labels = {"background": 0, "disc": 100, "ring": 200}
for place in (DATA, UNSEEN):
    (place / "dataset.json").write_text(
        json.dumps({"name": "shapes", "channels": ["grey"], "labels": labels}, indent=2)
    )

# %% [markdown]
# For scans it is the same with `.nii.gz`, `.nrrd`, `.mha`, `.tif` or a folder per DICOM series. Several channels of
# one case are `case_00_0000.nii.gz`, `case_00_0001.nii.gz`, … Voxels that nobody has labelled get a value of their
# own, and `"ignore": 255` in `dataset.json` says so.
#
# ## Look before you train
#
# `inspect` reads every file and lists what it found. Do this first: most failed trainings fail here.

# %%
assert medunet_command(f"inspect {DATA}") == 0

# %% [markdown]
# This is how a mistake looks: a label map that somebody has saved in another size. `inspect` names the case, and its
# exit code is 1, so a script notices, too. `train` would refuse this data set with the same words, before it starts.

# %%
broken = OUTPUT / "broken"
for kind in ("images", "labels"):
    (broken / kind).mkdir(parents=True, exist_ok=True)
    picture = Image.open(DATA / kind / "case_00.png")
    (picture if kind == "images" else picture.resize((48, 48), Image.Resampling.NEAREST)).save(broken / kind / "a.png")
assert medunet_command(f"inspect {broken}") == 1

# %% [markdown]
# ## Plan
#
# `plan` measures the data and this machine and writes a complete config, each choice with its reason. It is yours
# from then on: read it, change it, keep it with your results.

# %%
CONFIG, RUN = OUTPUT / "shapes.yaml", OUTPUT / "run"
assert medunet_command(f"plan {DATA} -o {CONFIG} --minutes 1 --overwrite") == 0
print("\n".join(CONFIG.read_text().splitlines()[:24]) + "\n…")

# %% [markdown]
# ## Train
#
# A fifth of the cases is held out and scored while the network learns from the others. `--set` changes single values
# of a config. We make the network smaller and the training shorter than planned, because nobody wants to wait in a
# tutorial. A misspelt key is refused, not ignored:

# %%
assert medunet_command(f"train {CONFIG} -o {RUN} --set network.chanels=[8,16]") == 1

# %%
shorter = (
    "--set training.minutes=null --set training.epochs=4 --set training.iterations=35 "
    "--set network.channels=[8,16,32] --set network.kernels=3 --set network.strides=2 "
    "--set patches.size=[64,64] --set patches.batch=4"
)
assert medunet_command(f"train {CONFIG} -o {RUN} --overwrite {shorter}") == 0
print("the run's folder:", ", ".join(sorted(path.name for path in RUN.iterdir())))

# %% [markdown]
# `model.safetensors` is the model: this one file is all that `predict` needs. `report.html` shows curves, scores and
# the worst, median and best of the held-out cases. `medunet train … --resume` would go on from `last.ckpt`.
#
# ## Predict and evaluate
#
# Four pictures have been kept apart. They are segmented in one go; each result has its picture's name and size, and
# the data set's own label values.

# %%
PREDICTED = OUTPUT / "predicted"
assert medunet_command(f"predict {RUN} {UNSEEN / 'images'} -o {PREDICTED} --overwrite") == 0
result = np.asarray(Image.open(PREDICTED / "case_12.png"))
print("size", result.shape, "values", np.unique(result))

# %% [markdown]
# `evaluate` needs no model: it compares any two folders of label maps, yours, ours, or another tool's.

# %%
SCORES = OUTPUT / "scores"
assert medunet_command(f"evaluate {PREDICTED} {UNSEEN} -o {SCORES} --overwrite") == 0
mean = json.loads((SCORES / "scores.json").read_text())["summary"]["mean"]
print(f"mean Dice {mean['dice']:.3f}; the page with pictures is {SCORES / 'report.html'}")
