"""Maps of membranes: the class that parts the cells, and the probability of each pixel to lie inside a cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import LabelTable
from medunet.errors import DataError
from medunet.evaluation.pairs import Pair, require_same_grid
from medunet.formats.dispatch import read_volume
from medunet.formats.results import probabilities_path
from medunet.volume import Volume

EXTERNAL = 0.01
"""Share of pixels in which a label map and the probabilities beside it may disagree: post-processing changes some."""
_BORDER_NAMES = ("membrane", "border", "boundary")


def border_index(labels: LabelTable) -> int:
    """The class that parts cells: called membrane, border or boundary, else the background or the lower value.

    Raises:
        DataError: the table has not two classes.
    """
    if len(labels.names) != 2 or labels.kind != "classes":
        raise DataError(
            f"maps of boundaries have two classes, membrane and cell; declared are {labels.describe()}"
            f"{', which are object ids' if labels.kind == 'instances' else ''}\nevaluate without --boundaries"
        )
    named = (i for i, name in enumerate(labels.names) if any(word in name.lower() for word in _BORDER_NAMES))
    return next(named, 0)


def best_probability(pair: Pair, labels: LabelTable, prediction: Volume) -> NDArray[Any]:
    """`cell_probability` of what `predict --probabilities` wrote beside a pair's label map or, without it, of the map.

    Args:
        prediction: the pair's, as it was read.

    Raises:
        DataError: see `cell_probability`; or the probabilities are of another prediction, as one that is made later
            without them leaves the old ones there.
    """
    if isinstance(pair.prediction, Volume):
        return cell_probability(prediction, labels, pair.prediction.name)
    own, beside = Path(pair.prediction), probabilities_path(Path(pair.prediction))
    found = cell_probability(prediction, labels, str(own))
    if not beside.is_file():
        return found
    volume = read_volume(beside, axes=pair.predicted_axes)
    require_same_grid(pair.case, volume, prediction)
    probability = cell_probability(volume, labels, str(beside))
    other = np.mean((probability > 0.5) != (found > 0.5))
    if other > EXTERNAL:
        raise DataError(
            f"{beside}: {100 * other:.3g} % of its pixels disagree with {own.name} beside it, so they are of another "
            "prediction\npredict both again with --probabilities, or remove the old probabilities"
        )
    return probability


def cell_probability(volume: Volume, labels: LabelTable, where: str) -> NDArray[Any]:
    """The probability of each pixel to lie inside a cell, as a map is read.

    A map of the declared values is a label map. Otherwise it holds probabilities of being inside a cell, as ISBI 2012
    has them: from 0 to 1, or scaled to the whole range of an unsigned integer type. A map with two channels holds the
    probabilities of both classes, as `medunet predict --probabilities` writes them.

    Returns:
        `(x, y[, z])`: bool for a map of two values, else float from 0 to 1.

    Raises:
        DataError: it is none of these.
    """
    border, array = border_index(labels), volume.array
    if volume.channels == 2:
        return _within_one(array[1 - border], where)
    if volume.channels != 1:
        raise DataError(
            f"{where}: expected a label map, or probabilities in 1 or 2 channels; found {volume.channels} channels"
        )
    array = array[0]
    if np.isin(array, labels.values).all():
        return np.asarray(array == labels.values[1 - border])
    largest = array.max()
    if array.dtype.kind == "u" and largest > 1:
        return np.asarray(array / np.float32(np.iinfo(array.dtype).max))
    return _within_one(array, where)


def _within_one(array: NDArray[Any], where: str) -> NDArray[Any]:
    if array.dtype == bool:
        return array
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1 + 1e-5):
        raise DataError(
            f"{where}: probabilities lie between 0 and 1, found {array.min():g} to {array.max():g}\n"
            "give a label map of the declared values, or probabilities of being inside a cell"
        )
    return array == 1 if np.isin(array, (0, 1)).all() else array
