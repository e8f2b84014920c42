"""Class indices of references and predictions: what a score compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import LabelTable, table_from_names, table_from_values
from medunet.errors import DataError
from medunet.evaluation.membranes import border_index, cell_probability
from medunet.evaluation.pairs import Pair, Source, read_pair, reference_of
from medunet.evaluation.settings import EvaluateSettings
from medunet.volume import Volume


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
