# %% [markdown]
# # Reading the scores
#
# `medunet evaluate` prints many numbers. None of them is the truth: each asks another question. We put shapes made in
# code beside each other whose agreement one can see, and look at what the scores say.

# %%
import json
import os
from pathlib import Path

import numpy as np

import medunet
from medunet.evaluate import evaluate_pairs
from medunet.evaluation.files import write_evaluation
from medunet.evaluation.pairs import Pair
from medunet.evaluation.settings import EvaluateSettings
from medunet.metrics.case import LabelScores, score_case

OUTPUT = Path(os.environ.get("TUTORIAL_OUTPUT", "tutorial_output")) / "04_reading_the_scores"
SHAPE = (64, 64, 64)


def ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """A label map `(x, y, z)` with the value 1 inside a ball."""
    grid = np.indices(SHAPE)
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
    return (distance < radius).astype(np.uint8)


def compare(
    title: str, prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)
) -> LabelScores:
    """Score one structure, print a line, and return all its scores."""
    (scores,) = score_case(prediction, reference, spacing, {"structure": 1})
    print(
        f"{title:<34} Dice {scores.dice:.3f}  IoU {scores.iou:.3f}  precision {scores.precision:.3f}  "
        f"recall {scores.recall:.3f}  HD95 {scores.hausdorff95:6.2f} mm  surface Dice {scores.surface_dice:.3f}"
    )
    return scores


# %% [markdown]
# ## Overlap
#
# *Dice* is twice the common volume over the sum of both volumes, *IoU* the common volume over the joint one. They say
# the same on two scales, Dice = 2 IoU / (1 + IoU), so never compare one with the other. *Precision* asks how much of
# the prediction is right, *recall* how much of the reference was found. Too large costs precision, too small costs
# recall.

# %%
middle = (32.0, 32.0, 32.0)
reference = ball(middle, 12)
scores = compare("the same", reference, reference)
assert scores.dice == 1
compare("one voxel too large all round", ball(middle, 13), reference)
compare("one voxel too small all round", ball(middle, 11), reference)
compare("shifted by 3 voxels", ball((35, 32, 32), 12), reference)

# %% [markdown]
# ## Small structures are punished
#
# The same error of one voxel, at every size. Dice falls with the radius, because a small ball is mostly surface. So a
# Dice of 0.75 may be excellent for a lesion and poor for a liver. HD95, explained below, measures the error itself
# and stays where it is.

# %%
for radius in (24, 12, 6, 3):
    compare(f"radius {radius} instead of {radius + 1}", ball(middle, radius), ball(middle, radius + 1))

# %% [markdown]
# ## Distances
#
# The *Hausdorff distance* is the largest distance from any point of one surface to the other surface. A single stray
# voxel decides it. *HD95* leaves out the farthest five per cent on each side, and forgives the speck, but also
# forgets it. The *mean surface distance* averages over both surfaces. *Surface Dice* is the share of both surfaces
# that lies within a tolerance of the other, 1 mm unless stated. Overlap hardly notices the speck at all.

# %%
speck = reference.copy()
speck[2:4, 2:4, 2:4] = 1
scores = compare("a speck far away", speck, reference)
print(f"    Hausdorff {scores.hausdorff:.1f} mm, HD95 {scores.hausdorff95:.1f} mm, ", end="")
print(f"mean surface distance {scores.mean_surface_distance:.2f} mm")
assert scores.hausdorff > 30 and scores.hausdorff95 < 1

# %% [markdown]
# HD95 and surface Dice answer different questions. The next two predictions are perfect but for one place: a horn of
# 14 mm has grown out of the first, the top of the second is cut off by 3 mm. Surface Dice tells how much of the
# surface is wrong, and that is about the same. HD95 tells how wrong it is.

# %%
horn = reference.copy()
horn[40:58, 29:36, 29:36] = 1
compare("a horn, perfect elsewhere", horn, reference)
dent = reference.copy()
dent[:, :, 41:] = 0
compare("the top cut off", dent, reference)

# %% [markdown]
# Distances are in millimetres, not voxels. The same two arrays in voxels of 1 x 1 x 5 mm:

# %%
compare("shifted by 3 voxels, cubes of 1 mm", ball((32, 32, 35), 12), reference)
compare("the same in slices of 5 mm", ball((32, 32, 35), 12), reference, spacing=(1, 1, 5))

# %% [markdown]
# ## Volume says nothing about place
#
# A ball of the right size in the wrong place has a perfect volume and no overlap. Report volumes beside Dice, never
# instead of it.

# %%
scores = compare("right size, wrong place", ball((14, 14, 14), 12), ball((48, 48, 48), 12))
print(f"    volume difference {scores.volume_difference:.0f} mm³, Dice {scores.dice:.0f}")
assert scores.volume_difference == 0 and scores.dice == 0

# %% [markdown]
# ## Nothing there, and nothing found
#
# Three cases hold a lesion, the fourth holds none. The tool finds the first two, misses the third, and rightly finds
# nothing in the fourth.
#
# Overlap of nothing with nothing is 0/0, no number. Some tools call it 1, which lifts the average of whoever has many
# healthy cases; some leave misses out, because a distance to nothing does not exist, which lifts the average of
# whoever misses most. Here a structure that is absent on both sides is left out, and a miss scores Dice 0 and the
# diagonal of the image as every distance. A miss never improves an average.

# %%
nothing = np.zeros(SHAPE, np.uint8)
cases = {
    "found": (ball(middle, 11), ball(middle, 12)),
    "found_too": (ball((30, 32, 32), 8), ball((32, 32, 32), 8)),
    "missed": (nothing, ball((20, 20, 20), 6)),
    "healthy": (nothing, nothing),
}
pairs = [
    Pair(name, medunet.Volume(prediction[None]), medunet.Volume(truth[None]))
    for name, (prediction, truth) in cases.items()
]
evaluation = evaluate_pairs(pairs, EvaluateSettings(title="Four cases"))
for case in evaluation.cases:
    (scores,) = case.labels
    print(f"{case.case:<10} {scores.outcome:<9} Dice {scores.dice:6.3f}  HD95 {scores.hausdorff95:7.2f} mm")
(label,) = evaluation.summary.labels
dice, distance = label.statistics["dice"], label.statistics["hausdorff95"]
print(
    f"mean over {dice.count} cases: Dice {dice.mean:.3f} ± {dice.deviation:.3f}, HD95 {distance.mean:.2f} mm;", end=" "
)
print("outcomes:", ", ".join(f"{count} {name}" for name, count in label.outcomes.items()))

# %% [markdown]
# What the same four cases would look like under other rules:

# %%
compared = [case.labels[0] for case in evaluation.cases if case.labels[0].outcome == "compared"]
print(f"misses left out:         Dice {np.mean([s.dice for s in compared]):.3f}, HD95 ", end="")
print(f"{np.mean([s.hausdorff95 for s in compared]):.2f} mm   better for missing one")
print(f"both empty counted as 1: Dice {(dice.mean * dice.count + 1) / (dice.count + 1):.3f}   better for healthy cases")

# %% [markdown]
# So read the number of misses before the mean, the spread before the ranking, and the worst case before any of them.
# The page shows all three; the rules stand at its end, and in `scores.json` under `definitions`.

# %%
write_evaluation(evaluation, OUTPUT, overwrite=True)
print(f"page: {OUTPUT / 'report.html'}")
for sentence in json.loads((OUTPUT / "scores.json").read_text())["definitions"][:2]:
    print("  -", sentence)
