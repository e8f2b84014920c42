"""`--tta-rotations`: the mean over a turned scan, by hand and by segmenting; what cannot be turned is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medunet.api import segment_volume
from medunet.errors import ConfigError
from medunet.geometry.tiles import plan_tiles
from medunet.inference.overlap_tile import overlap_tile
from medunet.networks.settings import UNetSettings
from medunet.prediction.members import symmetries_of
from medunet.prediction.planning import PredictSettings
from medunet.prediction.segmenter import Segmenter
from medunet.transforms.preprocess import PreprocessSettings, preprocess
from tests.inference.oracles import whole_pass
from tests.prediction.made import make_model, make_scan

ROTATED = PredictSettings(precision="fp32", rotations=True)
FLAT = {"network": UNetSettings(dimensions=2, channels=(4, 8), classes=3), "patch": (16, 16), "mirror_axes": (0,)}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("mirror", [(), (1,)])
def test_the_mean_over_rotations_and_mirror_images_of_a_picture(padded: bool, mirror: tuple[int, ...]) -> None:
    """Not square, so that the turned picture has another shape; rotations alone where training did not mirror."""
    settings = UNetSettings(dimensions=2, channels=(4, 8), classes=3, padded=padded)
    model = make_model(network=settings, patch=(20, 20), mirror_axes=mirror)
    scan = make_scan(27, 18)
    segmenter = Segmenter([model], ROTATED)
    image = torch.from_numpy(preprocess(scan, model.card.preprocess)[0])

    def answer(seen: torch.Tensor) -> torch.Tensor:
        if padded:
            return whole_pass(model.network, seen, (2, 2))
        shape = settings.shape
        return overlap_tile(model.network, seen, plan_tiles(seen.shape[1:], shape.smallest_for((16, 16)), shape))

    total = torch.zeros(3, 27, 18)
    for transposed in (False, True) if mirror else (False,):
        for quarters in range(4):
            seen = image.transpose(1, 2) if transposed else image
            scores = answer(torch.rot90(seen, quarters, (1, 2))).softmax(0)
            scores = torch.rot90(scores, -quarters, (1, 2))
            total += scores.transpose(1, 2) if transposed else scores
    count = 8 if mirror else 4
    assert f"mean of {count}" in segmenter.plan(segmenter.open(scan)).describe()
    found = segmenter.indices(segmenter.open(scan))
    assert (found[0] == total.argmax(0).numpy()).mean() > 0.997


def test_a_turned_scan_gives_the_turned_answer() -> None:
    """What an average over all symmetries is for; the network alone does not do it."""
    model = make_model(**FLAT)  # type: ignore[arg-type]
    array = np.random.default_rng(3).normal(size=(1, 24, 24)).astype(np.float32)
    straight = segment_volume(array, model, ROTATED)
    plain = segment_volume(array, model, replace(ROTATED, rotations=False))
    for turn in (lambda a: np.rot90(a, 1, (1, 2)), lambda a: a.swapaxes(1, 2), lambda a: a[:, ::-1]):
        given = np.ascontiguousarray(turn(array))
        assert (segment_volume(given, model, ROTATED) == turn(straight)).mean() > 0.995
        assert (segment_volume(given, model, replace(ROTATED, rotations=False)) == turn(plain)).mean() < 0.99


def test_volumes_are_turned_in_the_plane_of_their_slices() -> None:
    model = make_model(mirror_axes=(0, 1, 2))
    plain, both = symmetries_of([model], ROTATED), symmetries_of([model], replace(ROTATED, tta=True))
    assert len(plain) == 8 and all(2 not in symmetry.mirror for symmetry in plain)
    assert len(both) == 16 and all(symmetry.exchanged in (None, (0, 1)) for symmetry in both)
    thick = make_model(preprocess=PreprocessSettings(spacing=(5.0, 1.0, 1.0)))
    assert {symmetry.exchanged for symmetry in symmetries_of([thick], ROTATED)} == {None, (1, 2)}
    flat = make_model(**FLAT, preprocess=PreprocessSettings(spacing=(1.0, 1.0, 5.0)))  # type: ignore[arg-type]
    segmenter = Segmenter([flat], ROTATED)
    scan = make_scan(12, 15, 6)
    assert "slice by slice along axis 2; mean of 8" in segmenter.plan(segmenter.open(scan)).describe()
    assert segmenter.indices(segmenter.open(scan)).shape == (1, 12, 15, 6)


def test_what_right_angles_would_distort_is_refused() -> None:
    long = make_model(preprocess=PreprocessSettings(spacing=(1.0, 2.0, 3.0)))
    with pytest.raises(ConfigError, match=r"voxels are 1 by 2 mm\nuse --tta"):
        Segmenter([long], ROTATED)
    uneven = UNetSettings(channels=(4, 8), classes=3, kernels=((3, 1, 3), (3, 3, 3)))
    with pytest.raises(ConfigError, match="other kernels or strides along one"):
        Segmenter([make_model(network=uneven)], ROTATED)
    Segmenter([long], replace(ROTATED, rotations=False, tta=True))
