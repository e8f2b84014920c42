"""Which label names say that mirroring would exchange them."""

from __future__ import annotations

import pytest

from medunet.planning.laterality import directions, sides


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (("kidney_left", "kidney_right"), {0}),
        (("Left Kidney", "Right Kidney"), {0}),
        (("L", "R"), {0}),
        (("hippocampus-L", "hippocampus-R"), {0}),
        (("LKidney", "RKidney"), {0}),
        (("kidneyLeft", "kidneyRight"), {0}),
        (("lh_cortex", "rh_cortex"), {0}),
        (("rib_left_7", "rib_right_7"), {0}),
        (("kidney_left", "liver"), {0}),
        (("lung_upper_lobe_left", "lung_lower_lobe_left"), {0, 2}),
        (("anterior", "posterior"), {1}),
        (("upper_left", "upper_right", "lower_left", "lower_right"), {0, 2}),
        (("superior", "inferior"), {2}),
        ((), set()),
        (("cleft", "upright", "inferior_vena_cava"), set()),
        (("vertebrae_L5", "vertebrae_L4", "R"), set()),
        (("links", "rechts"), set()),
        (("anterior", "liver"), set()),
        (("LV", "RV", "myocardium"), set()),
    ],
)
def test_pairs(names: tuple[str, ...], axes: set[int]) -> None:
    assert set(sides(names)) == axes


def test_the_pair_is_named() -> None:
    assert sides(("liver", "kidney_right", "kidney_left")) == {0: "kidney_left and kidney_right"}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("membrane_0deg", "glia", "membrane_135deg"), "membrane_0deg and membrane_135deg"),
        (("edge 45°", "edge 90°"), "edge 45° and edge 90°"),
        (("wall horizontal", "wall vertical"), "wall horizontal and wall vertical"),
        (("layer_1", "layer_2"), None),
        (("membrane_45deg", "axon_90deg"), None),
        (("degree", "45"), None),
        ((), None),
    ],
)
def test_directions(names: tuple[str, ...], told: str | None) -> None:
    assert directions(names) == told
