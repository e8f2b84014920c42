# %% [markdown]
# # Your own loss and your own network
#
# A config names its loss and its network. The names come from written lists, so that a config or a model that somebody
# sends you runs no code. Your own parts get names by a call in your program. We register two, train with them from
# Python, and segment with the model.

# %%
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import medunet

OUTPUT = Path(os.environ.get("TUTORIAL_OUTPUT", "tutorial_output")) / "07_own_parts"
DATA, RUN = OUTPUT / "balls", OUTPUT / "run"

# %% [markdown]
# ## A tiny data set
#
# Six volumes of noise, in each of them a bright ball. Five become the data set, one stays unseen.


# %%
def make_volume(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image `(1, x, y, z)` and its labels."""
    size = np.array([24, 24, 20])
    centre = random.uniform(8, size - 8)
    grid = np.stack(np.indices(tuple(size)), axis=-1)
    inside = np.linalg.norm(grid - centre, axis=-1) < random.uniform(5, 7)
    image = random.normal(0, 1, tuple(size)) + 2 * inside
    return image[None].astype(np.float32), inside[None].astype(np.uint8)


random = np.random.default_rng(0)
affine = np.diag([1.5, 1.5, 2.0, 1.0])  # voxels of 1.5 x 1.5 x 2 mm
for number in range(6):
    place = DATA if number < 5 else OUTPUT / "unseen"
    for kind, array in zip(("images", "labels"), make_volume(random), strict=True):
        medunet.write_volume(medunet.Volume(array, affine), place / kind / f"ball_{number}.nii.gz", overwrite=True)
names = {"name": "balls", "channels": ["noise"], "labels": {"background": 0, "ball": 1}}
(DATA / "dataset.json").write_text(json.dumps(names))

# %% [markdown]
# ## A loss
#
# The factory takes what `loss.arguments` of a config says and gives `loss(logits, target, weight)`. Logits are
# `(batch, classes, x, y, z)`, the target holds class indices `(batch, x, y, z)`, and the weight `(batch, x, y, z)` is
# 0 where a voxel is to be ignored. Our loss is the cross-entropy with the sure voxels weighed down, a focal loss.


# %%
def focal_factory(gamma: float = 2.0):
    def focal(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        entropy = nn.functional.cross_entropy(logits, target, reduction="none")
        hard = (1 - torch.exp(-entropy)) ** gamma
        return (hard * entropy * weight).sum() / weight.sum().clamp(min=1)

    return focal


medunet.register_loss("my_focal", focal_factory)

# %% [markdown]
# ## A network
#
# Three things: a class of settings, made of what `network.arguments` says; a function that builds the network of them
# and of what the data set decides (dimensions, channels, classes); and the name. The network is any `torch.nn.Module`
# from `(batch, in_channels, x, y, z)` to logits of the same size.


# %%
@dataclass(frozen=True)
class DilatedSettings:
    width: int = 8
    dilations: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, found {self.width}")


def build_dilated(settings: DilatedSettings, dimensions: int, in_channels: int, classes: int) -> nn.Module:
    """Convolutions that reach further and further at full resolution, as in DeepLab."""
    convolution, norm = (nn.Conv3d, nn.BatchNorm3d) if dimensions == 3 else (nn.Conv2d, nn.BatchNorm2d)
    layers: list[nn.Module] = []
    channels = in_channels
    for dilation in settings.dilations:
        layers += [convolution(channels, settings.width, 3, padding=dilation, dilation=dilation)]
        layers += [norm(settings.width), nn.ReLU()]
        channels = settings.width
    return nn.Sequential(*layers, convolution(channels, classes, 1))


medunet.register_network("my_dilated", DilatedSettings, build_dilated)

# %% [markdown]
# ## Train
#
# A config may say the names now. `medunet.train` takes a config file as here, a plan, or the folder of a data set, for
# which it plans. `overrides` are values of the config by dotted key. `after_epoch` is called with each epoch's line of
# `metrics.csv`; ours prints, others report to a tracker.

# %%
CONFIG = OUTPUT / "own.yaml"
CONFIG.write_text(
    f"""\
data: {{path: {DATA}, cache: null}}
network: {{architecture: my_dilated, arguments: {{width: 8}}}}
loss: {{kind: my_focal, arguments: {{gamma: 1.0}}}}
patches: {{size: [16, 16, 16], batch: 2}}
training: {{epochs: 3, iterations: 20}}
"""
)


def show(line: dict[str, float]) -> None:
    print(f"epoch {line['epoch']}: loss {line['loss']:.3f}, validation Dice {line.get('validation_dice', 0):.3f}")


run = medunet.train(CONFIG, RUN, {"optimiser.rate": 0.01}, device="cpu", after_epoch=show, overwrite=True)
print(f"{len(run.history)} epochs; held-out cases: Dice {run.scores['summary']['mean']['dice']:.3f}")

# %% [markdown]
# ## Segment
#
# The model file holds the weights, the name `my_dilated` and its arguments, never the code. This program has
# registered the name, so the model loads; a program that has not is told which call it lacks.

# %%
model = medunet.load_model(RUN)
scan = medunet.read_volume(OUTPUT / "unseen" / "images" / "ball_5.nii.gz")
labels = medunet.segment_volume(scan, model)
assert np.array_equal(labels.affine, scan.affine)
scores = medunet.evaluate_pairs([(labels, medunet.read_volume(OUTPUT / "unseen" / "labels" / "ball_5.nii.gz"))])
print(f"unseen ball: Dice {scores.cases[0].labels[0].dice:.3f}")

# %% [markdown]
# ## Stream
#
# Your network's layers are local, so `medunet.stream` sends whole volumes of any size through it, exactly
# (see `06_any_network.py`). `medunet predict` and `segment_volume` do that by themselves.

# %%
network = model.network.eval()
slabs = list(medunet.stream(network, torch.randn(1, 64, 48, 40)))
place, logits = slabs[-1]
print(f"the last slab: rows {place[0].start} to {place[0].stop} of the first axis, logits {tuple(logits.shape)}")

# %% [markdown]
# ## Mistakes
#
# A misspelt name is an error that names the nearest one; a value that your own settings refuse is shown at its place
# in the config.

# %%
for wrong in ({"loss.kind": "my_focl"}, {"network.arguments": {"width": 0}}):
    try:
        medunet.train(CONFIG, RUN, wrong, device="cpu", overwrite=True)
    except medunet.MedunetError as error:
        print(f"{wrong}\n    -> {error}")
