"""The layout of a folder: which of the known forms of data sets it has, and what was passed over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medunet.conversion.layouts import Layout, find_layout
from medunet.conversion.meaning import ConvertRequest
from medunet.conversion.messages import relative
from medunet.conversion.structure_folders import case_folders, find_structures
from medunet.conversion.structures import are_label_maps, has_structure_channels
from medunet.errors import DataError


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
