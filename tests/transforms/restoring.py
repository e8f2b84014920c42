"""Scores brought back all at once, which the restoring of pieces is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medunet.transforms.preprocess import Undo
from medunet.transforms.restore import Part, restored


def restore_scores(scores: NDArray[np.float32], undo: Undo) -> NDArray[np.float32]:
    """Probabilities `(class, *spatial)` on the scan's own grid; what was cut away is surely the first class."""
    blank = np.zeros((len(scores), *undo.oriented), dtype=np.float32)
    blank[0] = 1.0
    whole = undo.orientation.undo(blank)
    kept = undo.kept_part(whole)
    for rows in restored([(0, scores.shape[1], scores)], undo, Part.of(undo, 0)):
        for index in range(rows.classes):
            kept[index][rows.box.slices] = rows.scores(index)
    return np.ascontiguousarray(whole)
