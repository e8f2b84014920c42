"""Pictures and plots: what is drawn is where it belongs, and odd inputs draw as well."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medunet.report.colours import label_colours, tinted
from medunet.report.pictures import overlay_picture
from medunet.report.planes import Overlay
from medunet.report.plots import EpochRecord, ScorePanel, curves_plot, score_plot


def drawn(overlay: Overlay, **how: bool) -> np.ndarray:
    """`overlay_picture` as RGB `(row, column, 3)`."""
    return np.array(Image.open(io.BytesIO(overlay_picture(overlay, **how))).convert("RGB"))  # type: ignore[arg-type]


def near(picture: np.ndarray, colour: str, distance: int = 40) -> np.ndarray:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.abs(picture.astype(int) - wanted).sum(axis=2) < distance


def square(low: int, high: int) -> np.ndarray:
    labels = np.zeros((40, 40), np.uint8)
    labels[low:high, low:high] = 3
    return labels


@pytest.mark.slow
def test_the_outline_has_the_labels_colour_and_place() -> None:
    """Without an image there is one panel: the picture fills the width, so places can be computed."""
    picture = drawn(Overlay({"cell": 3}, (1.0, 1.0), reference=square(10, 30)), legend=False)
    rows, columns = np.nonzero(near(picture, label_colours(1)[0]))
    assert columns.min() / picture.shape[1] == pytest.approx(0.25, abs=0.02)
    assert columns.max() / picture.shape[1] == pytest.approx(0.75, abs=0.02)
    assert (rows.max() - rows.min()) == pytest.approx(columns.max() - columns.min(), abs=2)


@pytest.mark.slow
def test_physical_proportions() -> None:
    """Voxels three times as high as wide make the square mask three times as high as wide."""
    picture = drawn(Overlay({"cell": 3}, (1.0, 3.0), reference=square(10, 30)), legend=False)
    rows, columns = np.nonzero(near(picture, label_colours(1)[0]))
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(3.0, rel=0.05)


@pytest.mark.slow
def test_a_prediction_changes_the_picture_and_its_legend_names_it() -> None:
    overlay = Overlay({"cell": 3}, (1.0, 1.0), square(0, 20), square(10, 30), square(12, 32))
    alone = Overlay({"cell": 3}, (1.0, 1.0), square(0, 20), square(10, 30))
    assert np.any(drawn(overlay, legend=False) != drawn(alone, legend=False))
    assert drawn(overlay).shape[0] > drawn(overlay, legend=False).shape[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "image",
    [np.zeros((12, 9, 5)), np.full((12, 9, 5), np.nan), np.ones((12, 9, 5), bool), None],
    ids=["constant", "nan", "bool", "none"],
)
def test_odd_images_and_absent_labels_are_drawn(image: np.ndarray | None) -> None:
    """Warnings are errors here: contours of nothing and percentiles of nothing must not be asked for."""
    empty = np.zeros((12, 9, 5), np.uint8)
    png = overlay_picture(Overlay({"$x_1$ <b>": 1}, (1.0, 1.0, 4.0), image, empty, empty))
    assert Image.open(io.BytesIO(png)).format == "PNG"


@pytest.mark.slow
def test_drawing_leaves_no_figure_in_pyplot() -> None:
    import matplotlib.pyplot

    before = matplotlib.pyplot.get_fignums()
    overlay_picture(Overlay({"a": 3}, (1.0, 1.0), square(2, 8), square(2, 8)))
    assert matplotlib.pyplot.get_fignums() == before


@pytest.mark.parametrize("count", [1, 7, 24, 117])
def test_every_label_has_a_colour_of_its_own(count: int) -> None:
    colours = label_colours(count)
    assert len(set(colours)) == count
    assert label_colours(3) == colours[:3] or count < 3
    assert tinted(colours[0], 1.0) == "#ffffff" and tinted(colours[0], 0.0) == colours[0]


@pytest.mark.slow
def test_plots_take_missing_values_and_odd_names() -> None:
    values = {"$a$_b": [0.9, float("nan"), 0.7], "_hidden": [], "x" * 80: [0.2]}
    dice = ScorePanel("Dice", values, {"_hidden": 2})
    distances = ScorePanel("HD95 (mm)", {name: [] for name in values}, {"_hidden": 2}, bounded=False)
    assert Image.open(io.BytesIO(score_plot([dice, distances]))).width == 1440


@pytest.mark.slow
def test_curves_of_short_and_unvalidated_runs() -> None:
    for epochs in (
        [EpochRecord(0, 1.2, 1e-3)],
        [EpochRecord(i, 1 / (i + 1), 1e-3, {"a": 0.5, "_b": float("nan")} if i % 2 else {}) for i in range(6)],
    ):
        assert Image.open(io.BytesIO(curves_plot(epochs))).width == 1440
