"""Whether two scans lie on one grid: in one unit, and as far as they say."""

from __future__ import annotations

import numpy as np
import pytest

from medunet.volume import GRID_TOLERANCE, Volume, corners_apart, spacing_text, tolerance


def scan(unit: str, *spacing: float, shift: float = 0.0) -> Volume:
    affine = np.diag([*spacing, 1.0])
    affine[2, 3] = shift
    return Volume(np.zeros((1, 11, 6, 5), np.uint8), affine, unit)


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        (scan("um", 0.5, 0.5, 2.0), scan("um", 0.5, 0.5, 2.0), 0.0),
        (scan("um", 0.5, 0.5, 2.0), scan("mm", 0.0005, 0.0005, 0.002), 0.0),
        (scan("mm", 0.0005, 0.0005, 0.002), scan("nm", 500, 500, 2000), 0.0),
        (scan("um", 0.5, 0.5, 2.0), scan("mm", 0.0005, 0.0005, 0.002, shift=0.003), 3.0),
        (scan("um", 0.5, 0.5, 2.0), scan("mm", 0.5, 0.5, 2.0), 999 * np.linalg.norm([5, 2.5, 8])),
        (scan("um", 0.5, 0.5, 2.0), scan("um", 0.6, 0.5, 2.0), 1.0),
        (scan("um", 0.5, 0.5, 2.0), scan("pixel", 1, 1, 1), 0.0),
        (scan("pixel", 1, 1, 1), scan("mm", 7, 7, 7), 0.0),
    ],
)
def test_corners_are_compared_in_the_unit_of_the_first(first: Volume, second: Volume, apart: float) -> None:
    assert corners_apart(first, second) == pytest.approx(apart, abs=GRID_TOLERANCE / 10)


def test_small_spacings_are_said_with_their_digits() -> None:
    assert spacing_text(scan("mm", 0.000123456, 0.5, 2.0)) == "(0.0001235, 0.5, 2) mm"


def test_a_thousandth_of_a_millimetre_is_allowed_but_no_whole_voxel_of_a_microscope() -> None:
    assert tolerance(scan("mm", 0.7, 0.7, 5.0)) == 1e-3
    fine = scan("mm", 0.0005, 0.0005, 0.002)
    shifted = scan("mm", 0.0005, 0.0005, 0.002, shift=0.0005)
    assert corners_apart(fine, shifted) < GRID_TOLERANCE
    assert corners_apart(fine, shifted) > tolerance(fine) == pytest.approx(0.00005)
