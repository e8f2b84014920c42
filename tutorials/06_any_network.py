# %% [markdown]
# # A MONAI script, and the same with `medunet.stream`
#
# Somebody has a network of MONAI and sends volumes through it in windows. The windows overlap, so most voxels are
# computed several times, and near the border of each window the network saw zeros where the scan goes on. Here is the
# script, then the lines that change, and what that gives: the logits of one pass over the whole volume.

# %%
import time

import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet

import medunet

# %% [markdown]
# ## Before
#
# A BasicUNet with batch norm. Ours has not been trained: its weights and the statistics of its batch norms are random,
# which changes nothing in the question whether two ways give the same logits. The volume is small, so that this page
# is quick on any machine.

# %%
torch.manual_seed(0)
network = BasicUNet(spatial_dims=3, in_channels=1, out_channels=3, features=(8, 8, 16, 32, 64, 8), norm="batch")
for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm3d):
        torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
        torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
network.eval()
volume = torch.randn(1, 96, 64, 64)  # (channel, x, y, z)


def before(volume: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits = sliding_window_inference(volume[None], (32, 32, 32), 4, network, overlap=0.5, mode="gaussian")
    return logits[0].argmax(0).to(torch.uint8)


# %% [markdown]
# ## After
#
# `medunet.stream` goes through the volume slab by slab and computes each activation once. It takes the network as it
# is: the operators are written down while a small image passes through it. Memory is bounded by `memory` (4G by
# default), and nothing needs to be known of the network.


# %%
def after(volume: torch.Tensor) -> torch.Tensor:
    labels = torch.empty(volume.shape[1:], dtype=torch.uint8)
    for place, logits in medunet.stream(network, volume):
        labels[place] = logits.argmax(0)
    return labels


# %% [markdown]
# ## Are they the same?
#
# The truth is one pass over the whole volume, which is possible here because the volume is small. The differences are
# given in parts of the largest logit. What is left of them in the streamed logits is rounding: sums were taken in
# another order.

# %%
with torch.inference_mode():
    whole = network(volume[None])[0]
    windows = sliding_window_inference(volume[None], (32, 32, 32), 4, network, overlap=0.5, mode="gaussian")[0]
streamed = torch.empty_like(whole)
for place, logits in medunet.stream(network, volume):
    streamed[(slice(None), *place)] = logits

largest = whole.abs().max()
for name, found in (("sliding windows", windows), ("medunet.stream", streamed)):
    print(f"{name:16}largest difference to one whole pass: {float((found - whole).abs().max() / largest):.1e}")

# %% [markdown]
# ## How long do they take here?
#
# Both in turn, and the better of two, because what else runs on your machine only makes them slower. Windows that
# overlap by half along three axes compute a voxel in the middle of the volume eight times.

# %%
seconds = {"sliding windows": [], "medunet.stream": []}
for _ in range(2):
    for name, way in (("sliding windows", before), ("medunet.stream", after)):
        started = time.perf_counter()
        way(volume)
        seconds[name].append(time.perf_counter() - started)
best = {name: min(taken) for name, taken in seconds.items()}
for name, taken in best.items():
    print(f"{name:16}{taken:.2f} s")
print(f"on this machine the windows took {best['sliding windows'] / best['medunet.stream']:.1f} times as long")

# %% [markdown]
# ## What cannot be streamed
#
# A layer that needs the whole volume at once, such as MONAI's default for this network, instance norm: its mean and
# variance are those of everything. `medunet.stream` says so by the layer's name, before it computes anything. For such
# a network windows remain the way.

# %%
unfit = BasicUNet(spatial_dims=3, in_channels=1, out_channels=3, features=(8, 8, 16, 32, 64, 8)).eval()
try:
    medunet.stream(unfit, volume)
except medunet.MedunetError as error:
    print(f"refused: {error}")
