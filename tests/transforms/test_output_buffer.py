"""The output buffer: pieces land where they belong, what was cut away is background, memory lies as the scan's does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medunet.datasets.labels import LabelTable
from medunet.geometry.boxes import Box
from medunet.system.scratch import Scratch
from medunet.transforms.preprocess import PreprocessSettings, ScanView
from medunet.transforms.restore import OutputBuffer, Piece
from medunet.volume import Volume

TABLE = LabelTable(("background", "dark", "bright"), (0, 32, 255))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("in_files", [False, True])
def test_pieces_land_where_they_belong(order: str, in_files: bool, tmp_path: Path) -> None:
    array = np.zeros((1, 6, 5, 4), np.float32, order)  # type: ignore[call-overload]
    array[0, 2:5, 1:4, 1:3] = 7
    volume = Volume(array, np.diag([-1.0, 1, 1, 1]))
    undo = ScanView(volume, PreprocessSettings(crop="nonzero")).undo
    output = OutputBuffer.blank(volume, undo, TABLE, Scratch(tmp_path, 0) if in_files else np.empty, scores=True)
    assert not output.found
    winners = np.arange(18).reshape(undo.kept).astype(np.uint8) % 3
    scores = np.eye(3, dtype=np.float32)[winners]
    for rows in ((0, 2), (2, 3)):
        box = Box((rows[0], 0, 0), (rows[1], 3, 2))
        output.put(Piece(box, winners[box.slices], list(np.moveaxis(scores[box.slices], -1, 0))))
    assert output.found
    expected = np.zeros((6, 5, 4), np.uint8)
    expected[2:5, 1:4, 1:3] = np.array([0, 32, 255])[winners[::-1]]  # the first axis of the scan runs to the left
    np.testing.assert_array_equal(output.labels[0], expected)
    assert output.labels.dtype == np.uint8 and output.probabilities is not None
    np.testing.assert_array_equal(output.probabilities.sum(axis=0), 1)
    np.testing.assert_array_equal(output.probabilities.argmax(axis=0), np.searchsorted([0, 32, 255], expected))
    fastest = [int(np.argmin(one.strides[1:])) for one in (array, output.labels, output.probabilities)]
    assert fastest == [2 if order == "C" else 0] * 3
