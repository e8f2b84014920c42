"""The layout of a folder: which of the known forms of data sets it has, and what was passed over.

Then checks before a conversion: options, and names and headers of every case.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from medunet.conversion.layouts import Layout, find_layout
from medunet.conversion.meaning import ConvertRequest, Meaning
from medunet.conversion.messages import relative
from medunet.conversion.structure_folders import case_folders, find_structures
from medunet.conversion.structures import are_label_maps, check_masks, has_structure_channels
from medunet.datasets.catalogue import Case
from medunet.datasets.loading import check_pairs
from medunet.errors import ConfigError, DataError
from medunet.formats.dispatch import read_grid


def layout_of(request: ConvertRequest) -> Layout:
    """The layout; of masks that hold objects only what `find_layout` knows, as files are no structures then."""
    if request.objects is not None:
        return find_layout(request.source, request.masks)
    found = find_structures(request.source, request.masks)
    if found is not None:
        return _of_folders(found, request)
    layout = find_layout(request.source, request.masks)
    layout = replace(layout, passed_over=_passed_over(layout, request))
    plain = request.colours is None and all(len(case.masks) == 1 for case in layout.cases)
    if plain and not layout.objects and _structure_channels(layout, request):
        return replace(layout, form=f"{layout.form}, one channel per structure", structures=True)
    return layout


def _passed_over(layout: Layout, request: ConvertRequest) -> tuple[Path, ...]:
    """Folders that look like cases and of which the layout uses no file; none where it was said which files count."""
    if request.masks is not None:
        return ()
    used = {path for case in layout.cases for file in (*case.images, *case.masks) for path in file.parents}
    return tuple(folder for folder in case_folders(request.source) if folder not in used)


def _of_folders(found: Layout, request: ConvertRequest) -> Layout:
    """Masks in a folder per image: a label map in each, a file with a channel per structure, or a mask for each."""
    if _structure_channels(found, request):
        return replace(found, form=f"{found.form}, one channel per structure", structures=True)
    if not found.structures or are_label_maps(found.cases, request.axes):
        return replace(found, form=f"{found.form}, one label map each", structures=False)
    return replace(found, form=f"{found.form}, one mask per structure")


def _structure_channels(layout: Layout, request: ConvertRequest) -> bool:
    """True if masks have a channel for each structure.

    Raises:
        DataError: some have, others have not; or a header cannot be read.
    """
    masks = [case.masks[0] for case in layout.cases]
    found = [len(case.masks) == 1 and has_structure_channels(case.masks[0], request.axes) for case in layout.cases]
    if any(found) and not all(found):
        several, one = masks[found.index(True)], masks[found.index(False)]
        raise DataError(
            f"{request.source}: in {sum(found)} of {len(masks)} cases the mask has a channel for each structure "
            f"({relative(several, request.source)}), in others not ({relative(one, request.source)})\n"
            "make all of one kind, or move one kind away"
        )
    return all(found)


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
