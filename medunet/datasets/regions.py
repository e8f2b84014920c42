"""Regions: unions of labels that a network learns one by one, so that they may overlap.

A voxel of the enhancing tumour of BraTS also belongs to the tumour's core and to the whole tumour. Label maps hold one
value per voxel still; each value stands for a combination of regions.

Regions inside each other are written one after the other in their order, later ones over earlier ones (nnU-Net's
`regions_class_order`): each writes a value. Where regions overlap in other ways no order says what is in both, and the
value is written whose combination of regions is the most probable one. See `transforms/labelling.py` for both.
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
        paints: the class that is written where this region was the last one found; None, then for all regions of a
            table, where classes are decided on by the combination of regions.
    """

    name: str
    indices: tuple[int, ...]
    paints: int | None


def combinations(regions: Sequence[Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """The places of the regions that each class is in, by class, ascending; classes that no region holds are left out.

    Args:
        regions: of each, its classes (or their values in label files).
    """
    members = sorted({member for region in regions for member in region})
    return {one: tuple(place for place, region in enumerate(regions) if one in region) for one in members}


def alike(combined: Mapping[int, tuple[int, ...]]) -> tuple[int, int] | None:
    """The first two classes that are in the same regions, so that no labelling rule can tell them apart; or None."""
    seen: dict[tuple[int, ...], int] = {}
    for one, places in combined.items():
        if places in seen:
            return seen[places], one
        seen[places] = one
    return None


@dataclass(frozen=True)
class DeclaredRegions:
    """Regions as a `dataset.json` has them: by the values in label files.

    Attributes:
        values: of each region, in the order in which they are written.
        order: the value that each region writes; None where it follows from the values.
    """

    values: Mapping[str, tuple[int, ...]]
    order: tuple[int, ...] | None = None

    def written(self) -> tuple[int, ...] | None:
        """The value that each region writes; None where values are decided on by the combination of regions.

        Without an order, regions that lie inside each other or apart write the only one of their values that no later
        region holds. Where there is no such value, or two regions overlap in another way, combinations decide. Either
        way the label map that is made from the regions of a label map is that label map.

        Raises:
            DataError: two values are in the same regions and no order says which is written; or the order does not fit.
        """
        if self.order is not None:
            return self._checked(self.order)
        combined = combinations(list(self.values.values()))
        twins = alike(combined)
        if twins:
            names = list(self.values)
            shared = ", ".join(f'"{names[place]}"' for place in combined[twins[0]])
            raise DataError(
                f"the label values {twins[0]} and {twins[1]} are in the same regions ({shared}), so it is not clear "
                "which one is written there\ngive one of them a region of its own, make them one value, or say "
                '"regions_class_order": one value per region, regions from the largest to the smallest'
            )
        own = [self._own(place) for place in range(len(self.values))]
        if None in own or self._crossing():
            return None
        return tuple(value for value in own if value is not None)

    def _checked(self, order: tuple[int, ...]) -> tuple[int, ...]:
        if len(order) != len(self.values):
            raise DataError(
                f'"regions_class_order" has {len(order)} values, but there are {len(self.values)} regions '
                f"({', '.join(self.values)}); give one value per region, in the same order"
            )
        for (name, values), value in zip(self.values.items(), order, strict=True):
            if value not in values:
                raise DataError(
                    f'"regions_class_order" writes {value} for region "{name}", which is made of '
                    f"{', '.join(map(str, values))}; expected one of these, or it would be scored as something else"
                )
        return order

    def _own(self, place: int) -> int | None:
        """The only value of a region that no later region holds; None for no or several such values."""
        regions = list(self.values.values())
        later = {value for other in regions[place + 1 :] for value in other}
        own = [value for value in regions[place] if value not in later]
        return own[0] if len(own) == 1 else None

    def _crossing(self) -> bool:
        """True if two regions overlap, and neither lies inside the other."""
        regions = [set(values) for values in self.values.values()]
        return any(
            one & other and one - other and other - one
            for place, one in enumerate(regions)
            for other in regions[place + 1 :]
        )


def split_declaration(labels: Mapping[str, Any], declared: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Plain labels, and regions where there are any, of both forms that a `dataset.json` may have.

    medunet's has `"regions": {"tumour": [1, 2], …}` beside labels of one value each. nnU-Net's has the lists among the
    labels; single values beside them are regions, too, and the labels are then named after the regions of one value.

    Args:
        labels: the content of `labels`.
        declared: the whole file.

    Returns:
        Labels without lists, and `DeclaredRegions` or None.

    Raises:
        DataError: regions that are no lists of whole numbers, or are declared in both forms.
    """
    single = {n: v[0] if isinstance(v, list) and len(v) == 1 else v for n, v in labels.items()}
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
