"""Models and scans for the tests of segmentation."""

from __future__ import annotations

import numpy as np

from medunet.datasets.labels import LabelTable
from medunet.model import Model, ModelCard
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from medunet.transforms.preprocess import Normalisation, PreprocessSettings
from medunet.volume import Volume

SMALL = UNetSettings(channels=(4, 8), classes=3)


def make_model(network: UNetSettings = SMALL, seed: int = 1, **changes: object) -> Model:
    names = ("background", *(f"organ {index}" for index in range(1, network.classes)))
    given: dict = {
        "name": "made",
        "network": network,
        "preprocess": PreprocessSettings(normalise=(Normalisation("zscore"),)),
        "labels": LabelTable(names, tuple(range(network.classes))),
        "channels": ("MRI",) * network.in_channels,
        "patch": (16,) * network.dimensions,
    }
    card = ModelCard(**(given | changes))
    return Model(UNet(card.network, seed).eval(), card)


def make_scan(*shape: int, channels: int = 1) -> Volume:
    values = np.random.default_rng(0).integers(0, 1000, (channels, *shape)).astype(np.int16)
    return Volume(values, np.eye(4))
