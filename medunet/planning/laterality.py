"""Labels that are told apart by their side or direction: mirroring or turning would exchange them.

nnU-Net issues 1110 and 2989; membranes by their direction are labels of the VNC ssTEM set.
"""

from __future__ import annotations

import re

_OPPOSITES = (
    (("left", "right"), ("l", "r"), ("lh", "rh"), ("lt", "rt")),
    (("anterior", "posterior"), ("ventral", "dorsal"), ("front", "back")),
    (("superior", "inferior"), ("upper", "lower"), ("cranial", "caudal"), ("top", "bottom")),
)
"""Words for the two ends of the RAS axes x, y and z."""

_ALONE = frozenset({"left", "right"})
"""Words that say enough without their opposite: of a left kidney alone, the mirror image shows a right one."""

_DEGREES = (("deg",), ("degree",), ("degrees",))


def sides(names: tuple[str, ...]) -> dict[int, str]:
    """RAS axes whose ends give labels their names, with an example of what was found.

    Two names form a pair if replacing one word by its opposite makes one the other: `kidney_left` and `kidney_right`,
    `lhCortex` and `rhCortex`, `L` and `R`. So `vertebrae_L5`, `cleft` or `inferior_vena_cava` mean nothing.
    """
    words = {name: _words(name) for name in names}
    found: dict[int, str] = {}
    for axis, pairs in enumerate(_OPPOSITES):
        for one, other in pairs:
            alone = (name for name, parts in words.items() if {one, other} & _ALONE & set(parts))
            example = _pair(words, one, other) or next(alone, None)
            if example:
                found.setdefault(axis, example)
    return found


def directions(names: tuple[str, ...]) -> str | None:
    """An example of labels that differ by a direction in the plane: `membrane_45deg` and `membrane_135deg`.

    Angles in degrees, or `horizontal` and `vertical`. None where there are none.
    """
    seen: dict[tuple[str, ...], str] = {}
    for name in names:
        words = _words(name.replace("°", "deg"))
        without = tuple(
            "" if word in ("horizontal", "vertical") or words[place + 1 : place + 2] in _DEGREES else word
            for place, word in enumerate(words)
        )
        if without != words:
            if without in seen:
                return f"{seen[without]} and {name}"
            seen[without] = name
    return None


def _words(name: str) -> tuple[str, ...]:
    """`lung_upperLobe-L2` as lung, upper, lobe, l, 2."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))


def _pair(words: dict[str, tuple[str, ...]], one: str, other: str) -> str | None:
    by_words = {parts: name for name, parts in words.items()}
    for name, parts in words.items():
        for place, word in enumerate(parts):
            opposite = by_words.get((*parts[:place], other, *parts[place + 1 :])) if word == one else None
            if opposite:
                return f"{name} and {opposite}"
    return None
