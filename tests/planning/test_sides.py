"""Which label names say that mirroring would exchange them."""

from __future__ import annotations

import pytest

from medunet.planning.sides import sides


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
