# %% [markdown]
# # The original U-Net and its sizes
#
# The U-Net of 2015 (Ronneberger, Fischer and Brox, arXiv 1505.04597) takes pictures of 572 x 572 pixels and answers
# with 388 x 388. Why? And how does it segment a picture of any size without a trace of tiles? We take it apart.

# %%
import os
from pathlib import Path

import numpy as np
import torch

import medunet
from medunet.errors import ConfigError
from medunet.geometry.boxes import Box, read_box
from medunet.geometry.tiles import plan_tiles
from medunet.inference.overlap_tile import overlap_tile
from medunet.networks.presets import unet2015, unet2015_settings

OUTPUT = Path(os.environ.get("TUTORIAL_OUTPUT", "tutorial_output")) / "03_original_unet"
OUTPUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The published figures

# %%
network = unet2015(in_channels=1, classes=2).eval()
print(f"{sum(p.numel() for p in network.parameters()):,} parameters")
with torch.inference_mode():
    answer = network(torch.zeros(1, 1, 572, 572))
print("572 x 572 in,", " x ".join(str(n) for n in answer.shape[2:]), "out, for", answer.shape[1], "classes")
assert answer.shape == (1, 2, 388, 388)

# %% [markdown]
# ## Where 184 pixels go
#
# Nothing is padded: a 3 x 3 convolution can only answer where all its nine pixels exist, so it costs one pixel on
# each side. On the way down every pooling halves the picture; a pixel lost down there is worth 2, 4, 8, 16 pixels up
# here.

# %%
shape = unet2015_settings().shape
for level, (before, after) in enumerate(
    zip([572, *(n[0] // 2 for n in shape.encoder_sizes((572, 572)))], shape.encoder_sizes((572, 572)), strict=False)
):
    print(f"  down, level {level}: {before} -> two convolutions -> {after[0]}")
for level, size in reversed(list(enumerate(shape.decoder_sizes((572, 572))))):
    print(f"  up,   level {level}: {size[0] + 4} -> two convolutions -> {size[0]}")
print(f"margin: {shape.margin[0]} pixels on each side")

# %% [markdown]
# ## Legal inputs
#
# Pooling takes 2 x 2 pixels to one, so the size must be even before each of the four poolings. That leaves every 16th
# size. A network that rounds instead would shift its answer by half a pixel, and nobody would notice; this one
# refuses.

# %%
print("legal sizes from 500 to 600:", list(shape.legal_sizes(500, 600)[0]))
print("to get at least 512 out, put in", shape.smallest_for((512, 512))[0])
try:
    network(torch.zeros(1, 1, 512, 512))
except ConfigError as error:
    print("512 x 512:", error)

# %% [markdown]
# ## Mirrored context
#
# To segment a whole picture, 92 pixels are missing on each side. The paper mirrors the picture there: what lies
# outside looks like what lies inside, which is a better guess than black. We draw a picture and save it with its
# mirrored surroundings.


# %%
def draw_picture(height: int, width: int) -> np.ndarray:
    """A smooth random texture with stripes, `(channel, y, x)` float32."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width]
    waves = sum(np.sin(x * a + y * b + c) for a, b, c in random.uniform(-0.25, 0.25, (12, 3)) * [1, 1, 20])
    return (waves / 3 + random.normal(0, 0.1, (height, width)))[None].astype(np.float32)


picture = draw_picture(150, 210)
around = read_box(picture, Box.of_shape(picture.shape[1:]).grown(92), "reflect")
print(f"{picture.shape[1:]} with its surroundings is {around.shape[1:]}")


def save_png(array: np.ndarray, name: str) -> None:
    """A `(y, x)` picture as grey values from the 1st to the 99th percentile."""
    low, high = np.percentile(array, [1, 99])
    grey = ((array - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    volume = medunet.Volume(np.ascontiguousarray(grey.T)[None], unit="pixel")  # volumes are (channel, x, y)
    medunet.write_volume(volume, OUTPUT / name, overwrite=True)


save_png(around[0], "mirrored_context.png")

# %% [markdown]
# ## Overlap-tile
#
# A large picture does not fit into memory, so it is cut into tiles. Each tile reads 92 pixels more on every side than
# it answers for. We use the same network with thinner layers and random weights; what is true for any weights is true
# for trained ones.
#
# First the whole picture in one pass. Then in tiles. Then we compare.

# %%
settings = medunet.UNetSettings(dimensions=2, channels=(4, 8, 16, 32, 64), padded=False, norm="none", activation="relu")
small = medunet.UNet(settings).eval()
whole_box = Box.of_shape(settings.shape.smallest_for(picture.shape[1:]), [-m for m in settings.shape.margin])
plan = plan_tiles(picture.shape[1:], (252, 252), settings.shape)
print(f"{len(plan.tiles)} tiles of {plan.tiles[0].read.shape} instead of one pass over {whole_box.shape}")


def one_pass(array: np.ndarray) -> torch.Tensor:
    """The logits of a whole picture, computed in one piece."""
    with torch.inference_mode():
        logits = small(torch.from_numpy(read_box(array, whole_box, "reflect"))[None])[0]
    return logits[:, : array.shape[1], : array.shape[2]]


whole, tiled = one_pass(picture), overlap_tile(small, torch.from_numpy(picture), plan)
difference = (tiled - whole).abs().max().item()
print(f"float32: logits from {whole.min():.2f} to {whole.max():.2f}, largest difference {difference:.0e}")
assert difference < 1e-5 * whole.abs().max()

# %% [markdown]
# Is this rounding, or a small mistake somewhere? With twice as many digits, rounding must shrink and a mistake must
# not.

# %%
small.double()
precise = picture.astype(np.float64)
difference = (overlap_tile(small, torch.from_numpy(precise), plan) - one_pass(precise)).abs().max().item()
print(f"float64: largest difference {difference:.0e}")
assert difference < 1e-12
small.float()

# %% [markdown]
# It was rounding. There is no seam, nothing has been blended, and no tile is better than another.
#
# ## Why tiles start on a grid
#
# The network is not indifferent to where a tile starts: pooling groups pixels 0 and 1, 2 and 3, and so on, four
# times. Shift a tile by one pixel, and other pixels are grouped, so the answer for the same place is another one. How
# different depends on the weights: much with the random ones here, little with trained ones on a smooth picture, and
# that is the danger, for nobody sees it. Only shifts by 2 x 2 x 2 x 2 = 16 pixels keep all groups, so tiles start at
# multiples of 16.


# %%
def answer_at(start: int, size: int = 32) -> torch.Tensor:
    """The logits of `size` x `size` pixels from pixel (start, start) on, by a tile that begins exactly there."""
    read = Box.of_shape(settings.shape.smallest_for((size, size)), [start - m for m in settings.shape.margin])
    with torch.inference_mode():
        return small(torch.from_numpy(read_box(picture, read, "reflect"))[None])[0][:, :size, :size]


print("start   largest difference from one pass")
for start in (0, 1, 2, 4, 8, 16, 24, 32, 48):
    error = (answer_at(start) - whole[:, start : start + 32, start : start + 32]).abs().max().item()
    print(f"{start:5}   {error:.1e}{'   on the grid' if start % settings.shape.stride[0] == 0 else ''}")

# %% [markdown]
# `medunet predict` plans its tiles on this grid for every unpadded network, in 2-D and 3-D, and picks them as large
# as `--memory` allows. Padded networks, the usual kind today, see a border of zeros in each tile, so their tiles
# cannot join like this.

# %%
save_png(tiled[1].numpy() - tiled[0].numpy(), "tiled_answer.png")
print("pictures:", ", ".join(sorted(path.name for path in OUTPUT.glob("*.png"))))
