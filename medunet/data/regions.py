"""Regions: unions of labels that a network learns one by one, so that they may lie inside each other.

A voxel of the enhancing tumour of BraTS also belongs to the tumour's core and to the whole tumour. Label maps hold one
value per voxel still; regions say which values make up what is learned, scored and thresholded, and which value each
writes. Regions are written one after the other in their order, later ones over earlier ones (nnU-Net's
`regions_class_order`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medunet.errors import DataError


@dataclass(frozen=True)
class Region:
    """A union of classes.

    Attributes:
        indices: the classes that it is made of, ascending; never the background.
        paints: the class that is written where this region was the last one found.
    """

    name: str
    indices: tuple[int, ...]
    paints: int


@dataclass(frozen=True)
class DeclaredRegions:
    """Regions as a `dataset.json` has them: by the values in label files.

    Attributes:
        values: of each region, in the order in which they are written.
        order: the value that each region writes; None where it follows from the values.
    """

    values: Mapping[str, tuple[int, ...]]
    order: tuple[int, ...] | None = None

    def written(self) -> tuple[int, ...]:
        """The value that each region writes: the only one of its values that no later region holds.

        So the label map that is painted from the regions of a label map is that label map.

        Raises:
            DataError: there is none or more than one such value and no order says which; or the order does not fit.
        """
        if self.order is None:
            return tuple(self._own(place) for place in range(len(self.values)))
        if len(self.order) != len(self.values):
            raise DataError(
                f'"regions_class_order" has {len(self.order)} values, but there are {len(self.values)} regions '
                f"({', '.join(self.values)}); give one value per region, in the same order"
            )
        for (name, values), value in zip(self.values.items(), self.order, strict=True):
            if value not in values:
                raise DataError(
                    f'"regions_class_order" writes {value} for region "{name}", which is made of {_listed(values)}; '
                    "expected one of these, or it would be scored as something else"
                )
        return self.order

    def _own(self, place: int) -> int:
        name, values = list(self.values.items())[place]
        later = {value for other in list(self.values.values())[place + 1 :] for value in other}
        own = [value for value in values if value not in later]
        if len(own) == 1:
            return own[0]
        if own:
            problem = f"its values {_listed(own)} lie in no later region, so it is not clear which one it writes"
        else:
            problem = "all its values lie in later regions, which would be written over it"
        raise DataError(
            f'region "{name}" ({_listed(values)}): {problem}\n'
            'declare regions from the largest to the smallest, or say "regions_class_order": one value per region'
        )


def split_declaration(labels: Mapping[str, Any], declared: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Plain labels, and regions where there are any, of both forms that a `dataset.json` may have.

    medunet's has `"regions": {"tumour": [1, 2], …}` beside labels of one value each. nnU-Net's has the lists among the
    labels; single values beside them are regions, too, and the labels are then named after the regions of one value.

    Args:
        labels: what stands under `labels`.
        declared: the whole file.

    Returns:
        Labels without lists, and `DeclaredRegions` or None.

    Raises:
        DataError: regions that are no lists of whole numbers, or are declared in both forms.
    """
    single = {name: _unwrapped(value) for name, value in labels.items()}
    mixed = [name for name, value in single.items() if isinstance(value, list)]
    if not mixed and not declared.get("regions"):
        return single, None
    order = _order(declared.get("regions_class_order"))
    if not mixed:
        return single, DeclaredRegions(_values_by_name(declared["regions"]), order)
    if declared.get("regions"):
        raise DataError(f'regions stand both under "regions" and under "labels" ({", ".join(mixed)}); keep one form')
    apart = {name: value for name, value in single.items() if value == 0 or name.lower() in ("background", "ignore")}
    values = _values_by_name({name: value for name, value in labels.items() if name not in apart})
    names = {own[0]: name for name, own in values.items() if len(own) == 1}
    plain = {names.get(value, f"label_{value}"): value for value in sorted({v for own in values.values() for v in own})}
    return {**apart, **plain}, DeclaredRegions(values, order)


def _unwrapped(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _values_by_name(regions: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(regions, Mapping):
        raise DataError(f'"regions" must be an object like {{"tumour": [1, 2], "core": [2]}}, found {regions!r}')
    return {str(name): _whole_numbers(value, f'region "{name}"') for name, value in regions.items()}


def _whole_numbers(value: Any, what: str) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
        raise DataError(f"{what} must be a list of the label values that it is made of, like [1, 2]; found {value!r}")
    if len(set(numbers)) < len(numbers):
        raise DataError(
            f"{what} holds a value twice: {value!r}\n"
            "if it is a colour: colour-coded masks become label maps with: medunet convert DATASET -o NEW_FOLDER"
        )
    return tuple(sorted(numbers))


def _order(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or any(isinstance(n, bool) or not isinstance(n, int) for n in value):
        raise DataError(f'"regions_class_order" must be a list of label values, one per region; found {value!r}')
    return tuple(value)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)
