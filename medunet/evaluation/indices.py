"""Class indices of references and predictions: what a score compares.

Of maps of membranes also the probability of each pixel to lie inside a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import LabelTable, table_from_names, table_from_values
from medunet.errors import DataError
from medunet.evaluation.pairs import Pair, Source, read_pair, reference_of, require_same_grid
from medunet.evaluation.settings import EvaluateSettings
from medunet.formats.dispatch import read_volume
from medunet.formats.results import probabilities_path
from medunet.volume import Volume

EXTERNAL = 0.01
"""Share of pixels in which a label map and the probabilities beside it may disagree: post-processing changes some."""
_BORDER_NAMES = ("membrane", "border", "boundary")


def true_indices(pair: Pair, labels: LabelTable, reference: Volume) -> NDArray[np.uint8]:
    """The class indices of a reference, IGNORE for what was not annotated."""
    indices = _indices(pair.reference, labels, reference)
    found: NDArray[np.uint8] = pair.annotation.marked(indices[None], labels, pair.case)[0]
    return found


def _indices(source: Source, labels: LabelTable, volume: Volume) -> NDArray[np.uint8]:
    """The class indices `(x, y[, z])` of a label map that was read from `source`."""
    where = _where(source, volume)
    if volume.channels != 1:
        raise DataError(
            f"{where}: a label map needs one channel, found {volume.channels}; "
            "turn colour-coded masks into label maps, and probabilities into labels, first"
        )
    found: NDArray[np.uint8] = labels.to_indices(volume.array, where)[0]
    return found


def predicted_indices(source: Source, labels: LabelTable, volume: Volume, boundaries: bool) -> NDArray[np.uint8]:
    """`_indices` of a prediction: probabilities of membranes are cut at 0.5, and id maps have no ignore value."""
    if boundaries:
        border = border_index(labels)
        inside = cell_probability(volume, labels, _where(source, volume)) > 0.5
        return np.where(inside, 1 - border, border).astype(np.uint8)
    if labels.kind == "instances":
        labels = replace(labels, ignore=None)
    return _indices(source, labels, volume)


def _where(source: Source, volume: Volume) -> str:
    return volume.name if isinstance(source, Volume) else str(source)


def label_table(pairs: Sequence[Pair], how: EvaluateSettings) -> LabelTable:
    """The table that was given or, without one, of the values found."""
    if not how.instances:
        labels = how.labels or _found_labels(pairs, references_only=how.boundaries)
        if how.boundaries:
            border_index(labels)
        return labels
    if how.labels is None:
        return table_from_names({}, None, "instances")
    if how.labels.kind == "instances":
        return how.labels
    if len(how.labels.names) > 2:
        raise DataError(
            f"the references are declared as classes ({how.labels.describe()}), so their values are no object ids\n"
            'evaluate without --instances, or say "label_kind": "instances" in dataset.json'
        )
    # The value 0 is no object, whatever it is called.
    named = {name: value for name, value in zip(how.labels.names, how.labels.values, strict=True) if value}
    return table_from_names(named, how.labels.ignore, "instances")


def _found_labels(pairs: Sequence[Pair], references_only: bool = False) -> LabelTable:
    """A table of the values in all references; those that cannot be read are named when they are scored."""
    values: set[int] = {0}
    for pair in pairs:
        try:
            # A value that only a prediction has is a label as well: an invented structure must cost something.
            sides = (reference_of(pair),) if references_only else read_pair(pair)
            found = np.concatenate([np.unique(side.array) for side in sides])
        except DataError:
            continue
        values.update(int(value) for value in found if float(value).is_integer())
        if len(values) > 254:
            raise DataError(
                f"{pair.case}: the references hold more than 254 different values\n"
                'if they are object ids, evaluate with --instances, or say "label_kind": "instances" in a dataset.json '
                "beside them"
            )
    if len(values) < 2:
        raise DataError("the references hold no label but 0, so nothing can be scored; name the labels in dataset.json")
    return table_from_values(sorted(values))


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
