# %% [markdown]
# # A first segmentation
#
# We train a small 3-D U-Net on one half of a real MRI, let it segment the other half, and look at the result. The MRI
# is the MNI152 template, an average of 152 brains, which comes with the Python package nilearn together with maps of
# where grey and white matter are.

# %%
import json
import os
import shlex
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

import medunet
from medunet.cli import run

OUTPUT = Path(os.environ.get("TUTORIAL_OUTPUT", "tutorial_output")) / "01_first_segmentation"


def medunet_command(line: str) -> None:
    """Run a command line of medunet, as if typed in a shell."""
    print(f"\n$ medunet {line}", flush=True)
    assert run(shlex.split(line)) == 0, "the command failed; its message stands above"


# %% [markdown]
# ## The data
#
# To be quick we make voxels of 2 mm from the template's 1 mm, by averaging blocks of 2 x 2 x 2. A voxel is grey (1)
# or white (2) matter where the map says so with more than one half.

# %%
spec = find_spec("nilearn")
assert spec is not None and spec.origin is not None, "this tutorial needs nilearn: pip install 'medunet[demo]'"
folder = Path(spec.origin).parent / "datasets" / "data"


def coarse_map(name: str) -> tuple[np.ndarray, np.ndarray]:
    """One of the template's images in voxels of 2 mm, and where its voxels are in space (the affine)."""
    image = nib.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    fine = np.asarray(image.dataobj, dtype=np.float32)
    even = fine[tuple(slice(0, n - n % 2) for n in fine.shape)]
    x, y, z = (n // 2 for n in even.shape)
    affine = image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] += image.affine[:3, :3] @ np.full(3, 0.5)  # the centre of a block lies half a fine voxel further
    return even.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5)), affine


t1, affine = coarse_map("t1")
grey, white = coarse_map("gm")[0] / 255, coarse_map("wm")[0] / 255
labels = np.where(white > 0.5, 2, np.where(grey > 0.5, 1, 0)).astype(np.uint8)
print(f"{t1.shape} voxels of 2 mm, {np.mean(labels == 1):.1%} grey and {np.mean(labels == 2):.1%} white matter")

# %% [markdown]
# A data set is a folder with `images/`, `labels/` and a `dataset.json` that names things. The left half goes into it.
# The right half we keep elsewhere, so that the training cannot see it.
#
# A `Volume` is an array `(channel, x, y, z)` with its affine. When we cut, the affine has to move along, otherwise
# the right half would claim to lie where the left one is.

# %%
middle = t1.shape[0] // 2
halves = {"left": slice(0, middle), "right": slice(middle, None)}
for name, part in halves.items():
    place = OUTPUT / ("dataset" if name == "left" else "unseen")
    moved = affine.copy()
    moved[:3, 3] += affine[:3, 0] * (part.start or 0)
    for kind, array in (("images", t1), ("labels", labels)):
        volume = medunet.Volume(array[None, part], moved)
        medunet.write_volume(volume, place / kind / f"{name}.nii.gz", overwrite=True)
    names = {"background": 0, "grey_matter": 1, "white_matter": 2}
    (place / "dataset.json").write_text(json.dumps({"name": "MNI152 half", "channels": ["T1"], "labels": names}))

medunet_command(f"inspect {OUTPUT / 'dataset'}")

# %% [markdown]
# ## Training
#
# A config says what is done. What it leaves open has defaults; the number of channels and classes comes from the
# data. This one is as small as it can be: three levels, cubes of 24 voxels, 180 steps, about ten seconds on two
# cores. For work that matters, let `medunet plan` write one for your data and machine, and give it hours with
# `--minutes`.
#
# `folds: 0` holds no case out for validation: there is only one, and our test is the other half.

# %%
CONFIG, RUN = OUTPUT / "first.yaml", OUTPUT / "run"
CONFIG.write_text(
    f"""\
data: {{path: {OUTPUT / "dataset"}, folds: 0}}
preprocess:
  normalise: [{{kind: zscore, nonzero: true}}]  # brightness means nothing in MRI, so each scan is brought to one scale
  crop: nonzero                               # the air around the head teaches nothing
network: {{channels: [8, 16, 32]}}
patches: {{size: [24, 24, 24], batch: 2}}
training: {{epochs: 3, iterations: 60}}
"""
)
medunet_command(f"train {CONFIG} -o {RUN} --overwrite")

# %% [markdown]
# ## Prediction
#
# From the command line this would be `medunet predict RUN SCAN -o LABELS`. In Python it is three lines. The result is
# again a `Volume`, on exactly the grid of the scan.

# %%
scan = medunet.read_volume(OUTPUT / "unseen" / "images" / "right.nii.gz")
model = medunet.load_model(RUN)
predicted = medunet.segment_volume(scan, model)
medunet.write_volume(predicted, OUTPUT / "right_predicted.nii.gz", overwrite=True)
assert np.array_equal(predicted.affine, scan.affine)

# %% [markdown]
# ## Scores
#
# Dice is 1 where prediction and reference are the same, 0 where they have no voxel in common.

# %%
truth = medunet.read_volume(OUTPUT / "unseen" / "labels" / "right.nii.gz")
evaluation = medunet.evaluate_pairs([(predicted, truth)])
for name, scores in zip(("grey matter", "white matter"), evaluation.cases[0].labels, strict=True):
    print(f"{name}: Dice {scores.dice:.3f}, 95 % of the surface within {scores.hausdorff95:.1f} mm")

# %% [markdown]
# Be careful with what this means. The template is smooth, as an average of many brains is, and it was made symmetric:
# the right half is nearly the mirror image of the left one. A scan of a patient is far harder. The scores show that
# everything works, not that this model is good.
#
# ## Picture
#
# The same slice three times: the scan, the reference, the prediction.

# %%
z = scan.shape[2] // 2
figure = Figure(figsize=(9, 5), layout="constrained")
shown = {"scan": None, "reference": truth, "prediction": predicted}
for panel, (title, overlay) in zip(figure.subplots(1, 3), shown.items(), strict=True):
    panel.imshow(scan.array[0, :, :, z].T, cmap="gray", origin="lower")
    if overlay is not None:
        tissue = np.ma.masked_equal(overlay.array[0, :, :, z].T, 0)
        panel.imshow(tissue, cmap="autumn", vmin=1, vmax=2, alpha=0.5, origin="lower", interpolation="nearest")
    panel.set_title(title)
    panel.axis("off")
figure.savefig(OUTPUT / "picture.png", dpi=120)
print(f"picture: {OUTPUT / 'picture.png'}")
