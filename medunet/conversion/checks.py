"""Checks before a conversion: options, and names and headers of every case."""

from __future__ import annotations

from collections import Counter

from medunet.conversion.layouts import Layout
from medunet.conversion.meaning import ConvertRequest, Meaning
from medunet.conversion.messages import relative
from medunet.conversion.structures import check_masks
from medunet.datasets.catalogue import Case
from medunet.datasets.loading import check_pairs
from medunet.errors import ConfigError, DataError
from medunet.formats.dispatch import read_grid


def check_options(request: ConvertRequest) -> None:
    if request.colours is not None and request.objects is not None:
        raise ConfigError(
            "--colours says that colours are classes, --instances that they are objects; give one of both"
        )
    if request.ignore is not None and request.objects is not None:
        raise ConfigError("--ignore names a class, but --instances says that masks hold objects; give one of both")
    if not 0 <= request.tolerance <= 255:
        raise ConfigError(f"--tolerance {request.tolerance:g}: expected a distance between colours, 0 to 255")


def check_cases(layout: Layout, request: ConvertRequest) -> None:
    """Refuse what names and headers of the cases show to be wrong."""
    if not layout.objects and not layout.structures and request.objects is None:
        several = [case for case in layout.cases if len(case.masks) > 1]
        if several:
            names = ", ".join(path.name for path in several[0].masks[:3])
            raise DataError(
                f"{several[0].images[0].name}: has {len(several[0].masks)} masks ({names}), {len(several)} image(s) in "
                "all have more than one\nsay --instances if each is one object; or keep one mask per image"
            )
    twice = [name for name, count in Counter(case.name for case in layout.cases).items() if count > 1]
    if twice:
        raise DataError(f"{request.source}: two cases would be called {twice[0]}; rename one of the images")
    if layout.channels:
        _check_channels(layout, request)
    # Named after the first mask where there may be a hundred.
    named = ((relative(case.masks[0], request.source) if layout.structures else case.name) for case in layout.cases)
    check_pairs(
        (Case(name, case.images, case.masks[0]) for name, case in zip(named, layout.cases, strict=True)), request.axes
    )
    if layout.structures:
        check_masks([case.masks for case in layout.cases], request.axes)


def _check_channels(layout: Layout, request: ConvertRequest) -> None:
    """Refuse channel files with several channels: a data set would count those of all files otherwise."""
    for case in layout.cases:
        for path, name in zip(case.images, layout.channels, strict=True):
            found = read_grid(path, axes=request.axes).channels
            if found != 1:
                raise DataError(
                    f"{path}: has {found} channels (or time points); expected one, {name}\n"
                    "save the one that is meant as a file of its own in its place"
                )


def refuse_label_maps(layout: Layout, meaning: Meaning, request: ConvertRequest) -> None:
    """Refuse a data set that needs no conversion."""
    asked = request.objects or request.ignore or request.foreground
    if layout.own and meaning.rule.unchanged and not asked:
        raise DataError(f"{request.source}: is a data set already, with label maps; medunet reads it as it is")
