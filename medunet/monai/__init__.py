"""MONAI's interfaces: medunet's parts as readers, transforms and inferers of a MONAI script.

`import medunet.monai as mm` is all that a script needs; each name below is documented where it is defined. Nothing else
in medunet imports this door. Transforms take and give `MetaTensor`s, read what `medunet train` and `predict` read,
with the same functions, and change no label.

From top to bottom: saving, inferer, moves, grids, scans.
"""

from medunet.monai.grids import NormalizeScan, NormalizeScand, Orientation, Orientationd, Spacing, Spacingd
from medunet.monai.inferer import ExactInferer
from medunet.monai.moves import RandAffineElastic, RandAffineElasticd
from medunet.monai.saving import SaveLabelsd
from medunet.monai.scans import LoadScan, LoadScand, VolumeReader
from medunet.transforms.augment.settings import Chance

__all__ = [
    "Chance",
    "ExactInferer",
    "LoadScan",
    "LoadScand",
    "NormalizeScan",
    "NormalizeScand",
    "Orientation",
    "Orientationd",
    "RandAffineElastic",
    "RandAffineElasticd",
    "SaveLabelsd",
    "Spacing",
    "Spacingd",
    "VolumeReader",
]
