"""Pictures of object maps: marks, colours of partners, ignored parts, planes of volumes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from medunet.report.objects import MarkedObjects, object_picture
from medunet.report.planes import Overlay

WRONG = (255, 72, 48)


def drawn(overlay: Overlay, marked: MarkedObjects, ignore: np.ndarray | None = None) -> list[np.ndarray]:
    """The panels of a picture 600 pixels wide, as RGB, without the page around them."""
    page = np.array(Image.open(io.BytesIO(object_picture(overlay, marked, ignore, width=612))).convert("RGB"))
    return [panel[20:-6] for panel in np.split(page[:, 3:-3].astype(int), 3, axis=1)]


def near(panel: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels have a colour, up to what the palette of 256 costs."""
    return int((np.abs(panel - colour).max(axis=2) < 25).sum())


def two_objects(shape: tuple[int, ...] = (20, 20)) -> np.ndarray:
    ids = np.zeros(shape, np.int64)
    ids[2:8, 2:8], ids[12:18, 12:18] = 5, 6
    return ids


def test_marks_are_drawn_on_their_own_side_alone() -> None:
    ids = two_objects()
    prediction = np.where(ids == 5, 5, 0)
    overlay = Overlay({"objects": (5, 6)}, (1.0, 1.0), np.zeros((20, 20)), ids, prediction)
    image, reference, predicted = drawn(overlay, MarkedObjects(missed=[6]))
    assert near(reference, WRONG) > 100 and near(predicted, WRONG) == 0 == near(image, WRONG)
    first = reference[20:80, 20:80], predicted[20:80, 20:80]
    assert np.abs(first[0] - first[1]).max() < 25, "partners have one colour"


def test_ignored_voxels_are_darker() -> None:
    ids = two_objects()
    ignore = np.zeros(ids.shape, bool)
    ignore[:, 10:] = True
    overlay = Overlay({"objects": (5, 6)}, (1.0, 1.0), np.arange(400.0).reshape(20, 20) % 7, ids, ids)
    image = drawn(overlay, MarkedObjects(), ignore)[0]
    plain = drawn(overlay, MarkedObjects())[0]
    middle = len(image) // 2
    assert (
        image[middle + 5 :].sum() < 0.6 * plain[middle + 5 :].sum() and np.abs(image - plain)[: middle - 5].max() < 25
    )


def test_the_plane_of_a_volume_is_where_the_sides_disagree() -> None:
    ids = np.zeros((20, 20, 9), np.int64)
    ids[2:8, 2:8, 1:4] = 5
    prediction = ids.copy()
    prediction[12:18, 12:18, 7] = 9
    overlay = Overlay({"objects": (5,)}, (1.0, 1.0, 2.0), np.zeros(ids.shape), ids, prediction, "um")
    _, reference, predicted = drawn(overlay, MarkedObjects(invented=[9]))
    assert near(predicted, WRONG) > 100 and near(reference, WRONG) == 0
