"""The numbers that the planner decides by, each with what it was taken from. Change them by measurement only."""

from __future__ import annotations

from medunet.instances.settings import Target
from medunet.transforms.augment.settings import AugmentSettings, Chance

STEPS_OF_ONE_MINUTE, STEPS_POWER = 200.0, 0.75
"""Optimiser steps that one minute should allow, and the power of the minutes by which they grow.

Measured with Muon's rate of 0.006, in the same time each: on VNC ssTEM 1071 steps of 8 channels reach Dice 0.723, 620
of 12 and 450 of 16 both 0.748; on hippocampi 1400 steps of 16 channels 0.888, 640 of 24 0.885; on DSB 2018 1281 steps
of 8 and 540 of 16 are alike. So some 770 steps are wanted in six minutes, 1500 in fifteen; the power is a guess.
"""
MOST_STEPS = 20_000
"""Steps above which longer trainings buy wider networks and larger patches alone; a guess.

Without it, minutes for the widest network on large pictures came out as millions of hours. In the longest trainings
here validation stopped rising after 1000 to 3000 steps.
"""
ENOUGH_STEPS = 2 / 3
"""Share of the wanted steps that a measured speed must allow; below it the network is planned anew.

Timings of single steps on a shared machine vary by a third, and a plan should not change with them.
"""
BUSY = 4.0
"""Measured over counted time of a step from which on a plan says that the machine may be busy."""
TRAINING_SHARE = 0.8
"""Of the minutes; the rest is for reading, validation and the last predictions."""
EPOCHS = 20
"""An epoch is this part of the minutes, within 10 to 250 steps (250 in nnU-Net)."""

FIRST_CHANNELS = (32, 24, 16, 12, 8)
HALF_EFFICIENT = {2: 17, 3: 11}
"""First channels of a network that computes half as fast as a convolution of 32 channels.

Fitted to training steps on one AVX-512 core, of 8, 12, 16, 24 and 32 channels: 0.33, 0.41, 0.45, 0.59, 0.70 in 2-D and
0.41, 0.51, 0.72, 0.68, 0.74 in 3-D in bfloat16; in float32 0.36 to 0.59 and 0.59 to 0.86.
"""
FINEST_CONVOLUTIONS, CONVOLUTIONS, DECODER_CONVOLUTIONS = 1, 2, 1
"""Per level: of the encoder's finest one, of its others, and of the decoder.

Measured on hippocampi with the same time: 1200 steps of this network (Dice 0.875) beat 700 of one with two convolutions
everywhere (0.856); with one in the decoder alone it was between them. The table is in benchmarks/README.md.
"""
MOST_CHANNELS = {2: 512, 3: 320}
MOST_LEVELS = {2: 6, 3: 5}
USEFUL_PATCH = {2: 224**2, 3: 48**3}
"""Voxels below which a wider network is given up for a larger patch."""
LEAST_PATCH = {2: 128**2, 3: 32 * 40**2}
"""Voxels below which no patch is shrunk for time: fewer steps are better than patches that show nothing around."""
SMALLEST_PATCH = 16
"""Voxels along an axis below which no patch is shrunk for memory either."""
MOST_BATCH = {2: 12, 3: 4}
BATCH_OF_DATA = 0.05
"""A batch above two patches covers at most this share of the data set's voxels (nnU-Net)."""

COARSE = 3.0
"""An axis so many times as coarse as the others is thick slices (nnU-Net's threshold of anisotropy)."""
FEW_SLICES = 8
"""An axis with fewer voxels cannot be halved even once and leave four (nnU-Net's smallest edge)."""
APART, SOME_SLICES = 5.0, 32
"""Slices so many times as far apart as pixels, and fewer than so many of them, are learned one by one.

Kernels reach across slices only where a voxel is less than twice as long as it is wide: from a ratio of 5 on (slices
of 6.5 mm with pixels of 0.8 mm: 8; EM sections of 50 nm with pixels of 4.6 nm: 11) that is at the third level or
deeper, when details are pooled away. Fewer than 32 slices, halved there, leave less than the 16 voxels of the
smallest patch. That is reasoned from geometry; no Dice of both was compared yet.
"""
CROPPED = 0.75
"""Scans whose content fills less of them are cropped to it (nnU-Net)."""
MASKED = 0.25
"""Volumes with a larger share of exact zeros are masked: normalised inside the mask."""
AIR = -500.0
"""Below it lie the darkest voxels of a scan in Hounsfield units; MR and microscopes never go there."""
OUTLIER = 30.0
"""Brightest voxel, in widths of the middle 99 %, from which on a scan is worth a look."""

NO_BACKGROUND = 1e-3
"""Share of background below which a segmentation of it means little."""
RARE = ((1e-4, 2 / 3), (1e-3, 1 / 2))
"""Share of the annotated voxels below which a label is rare, and the share of patches made to contain foreground.

nnU-Net takes a third always; its users report tiny structures lost to the background (issues 2532, 1754, 3048).
"""

LIGHT_STEPS = 30_000
"""Below so many steps augmentation is light: strong intensity changes are learned too slowly to help."""
_NEVER = Chance(0, 0.8, 1)
LIGHT_AUGMENTATION = AugmentSettings(
    rotation=Chance(0.5, -28, 28),
    scaling=Chance(0.5, 0.8, 1.25),
    noise=Chance(0.3, 0, 0.2),
    brightness=Chance(0.5, 0.8, 1.2),
    shift=Chance(0.5, -0.2, 0.2),
    blur=Chance(0, 0.5, 1),
    contrast=_NEVER,
    low_resolution=_NEVER,
    gamma=_NEVER,
    gamma_inverted=_NEVER,
)
"""For runs of an hour or so on a CPU; the measured alternative to the defaults, which are nnU-Net's."""
SLIGHT_ROTATION = Chance(0.5, -10, 10)
"""Of labels that are told apart by their direction.

Measured on VNC ssTEM: with mirroring and 28 degrees the membranes of 45 and 135 degrees came to Dice 0.02 and 0.06.
"""
LEFT_RIGHT = 0
"""The axis along which bodies are mirrored in short runs; nnU-Net, with 250,000 steps, mirrors all.

Measured on hippocampi with 500 steps: see benchmarks/README.md.
"""
STAIN_GAMMA, STAIN_CONTRAST, HAZE = Chance(0.3, 0.7, 1.5), Chance(0.3, 0.65, 1.5), Chance(0.3, 0, 4)
"""On top, for pictures and volumes from microscopes, however short the run.

Measured on DSB 2018, whose pictures are from many experiments, with 1500 steps: see benchmarks/README.md.
"""

OBJECT_TARGET: Target = "cores"
"""What is learned of object ids where nobody says: until it is measured, what also keeps objects apart that touch."""

PARTLY, OTHERS = 0.5, 4
"""A picture is taken as partly annotated if it has less than this share of the fewest objects, and of the smallest
area, that any other has, there are so many others, and these are alike: their least is no less than this share of their
median.

Taken from the Cell Tracking Challenge's DIC-C2DH-HeLa: frame 67 has 3 objects on 9 % of its area, where 8 others have
10 to 13 on 39 to 53 %, because its other cells were not drawn. No other set in the benchmarks has such a case.
"""

SPECK = 0.5
"""Share of the smallest annotated object below which a predicted one is left out."""

FOLDS = 5
MOST_LABELS = 8
"""Of more labels the rarest ones are described."""
