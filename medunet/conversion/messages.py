"""Messages of a conversion: the layout, the masks' meaning, the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medunet.conversion.colours import Decoded, tallied
from medunet.conversion.layouts import FoundCase, Layout
from medunet.conversion.meaning import ConvertRequest, Meaning
from medunet.conversion.rules import BlackAndWhite, Coloured, Rule
from medunet.errors import DataError
from medunet.system.wording import listed

Say = Callable[[str], None]

_SHOWN = 10


def say_layout(layout: Layout, request: ConvertRequest, say: Say) -> None:
    say(f"{request.source}: {layout.form}, {len(layout.cases)} pair{'s' * (len(layout.cases) != 1)}")
    if layout.channels:
        say(
            f"channels, in the order of their names: {', '.join(f'{n} {one}' for n, one in enumerate(layout.channels))}"
        )
    shown = layout.cases if request.dry_run else layout.cases[:_SHOWN]
    for case in shown:
        images = relative(case.images[0], request.source) + "".join(f" + {path.name}" for path in case.images[1:])
        masks = relative(case.masks[0], request.source)
        masks += f" and {len(case.masks) - 1} more" if len(case.masks) > 1 else ""
        say(f"  {images}  <-  {masks}")
    if len(layout.cases) > len(shown):
        say(f"  … and {len(layout.cases) - len(shown)} more (all with --dry-run)")
    for what, paths in (
        ("without a mask", layout.alone),
        ("without an image", layout.orphans),
        ("neither a known scan nor the mask", layout.unused),
        ("folders with an image and masks of their own", layout.passed_over),
    ):
        if paths:
            names = listed([relative(path, request.source) for path in paths], _SHOWN)
            say(f"left out, {what}: {len(paths)}: {names}")
    if layout.others:
        counts = Counter(path.suffix or path.name for path in layout.others)
        say(f"left out, no scans: {', '.join(f'{count} {suffix}' for suffix, count in counts.most_common())}")


def say_meaning(meaning: Meaning, say: Say) -> None:
    say(f"masks: {meaning.description}")
    for note in meaning.notes:
        say(f"note: {note}")


def relative(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


class Totals:
    """Counts over the label maps of all masks."""

    def __init__(self) -> None:
        self.pixels = self.changed = self.overlapping = self.hidden = self.objects = 0
        self.unknown: Counter[int] = Counter()
        self.odd: list[str] = []
        self.counts: Counter[int] = Counter()
        self.overlaps: list[str] = []

    def add(self, case: FoundCase, decoded: Decoded) -> None:
        self.pixels += decoded.labels.size
        self.changed += decoded.changed
        self.overlapping += decoded.overlapping
        self.hidden += decoded.hidden
        self.unknown.update(decoded.unknown)
        self.odd += [case.masks[0].name] if decoded.unknown else []
        self.overlaps += [case.name] if decoded.overlapping or decoded.hidden else []
        found = tallied(decoded.labels)
        self.counts.update(found)
        self.objects += sum(value > 0 for value in found)

    def lines(self, declaration: Mapping[str, Any]) -> Iterator[str]:
        """The lines that a user needs before training."""
        if declaration.get("label_kind") == "instances":
            share = 1 - self.counts[0] / self.pixels
            yield f"objects: {self.objects:,} in all, {share:.1%} of the pixels"
            if self.overlapping or self.hidden:
                yield (
                    f"overlaps: {self.overlapping:,} pixels belong to several objects (the first keeps them), "
                    f"{self.hidden} objects are empty or hidden; in {listed(self.overlaps, 5)}"
                )
        else:
            labels = {value: name for name, value in declaration["labels"].items() if isinstance(value, int)}
            if isinstance(declaration.get("ignore"), int):
                labels[declaration["ignore"]] = "(ignored)"
            shares = [f"{labels.get(v, v)} {v}: {n / self.pixels:.2%}" for v, n in sorted(self.counts.items())]
            yield f"label values: {listed(shares, 20)}"
        if self.changed:
            yield f"changed to the nearest class: {self.changed:,} pixels, {self.changed / self.pixels:.3%}"


def refuse_unknown(totals: Totals, rule: Rule, request: ConvertRequest) -> None:
    if not totals.unknown:
        return
    assert isinstance(rule, Coloured | BlackAndWhite), "other rules have a label value for every value"
    known = rule.table if isinstance(rule, Coloured) else rule
    count = sum(totals.unknown.values())
    within = f"within a tolerance of {request.tolerance:g} " if request.tolerance else ""
    raise DataError(
        f"{request.source}: {count:,} pixels ({count / totals.pixels:.3%}) in {len(totals.odd)} masks (first: "
        f"{totals.odd[0]}) have {len(totals.unknown):,} colours that {within}mean nothing; nothing was written\n"
        f"{known.describe(totals.unknown)}\nadd them to the table, or take the nearest class with --tolerance "
        f"{np.ceil(known.farthest(totals.unknown)):g} or less"
    )
