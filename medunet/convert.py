"""The story of `medunet convert`: other forms of data sets become medunet's.

    folder -> the mask of each image -> the meaning of the masks' pixels -> images/, labels/, dataset.json

Every mask is read and checked before anything is written; then the new folder is written aside and renamed as a whole.
"""

from __future__ import annotations

from typing import Any

from medunet.conversion.layout_choice import check_cases, check_options, layout_of, refuse_label_maps
from medunet.conversion.layouts import Layout
from medunet.conversion.meaning import ConvertRequest, Meaning, masks_of, meaning_of
from medunet.conversion.messages import Say, Totals, refuse_unknown, say_layout, say_meaning
from medunet.conversion.write import completed, write_case, write_declaration
from medunet.system.files import check_new_folder, folder_written_aside
from medunet.system.progress import progress


def convert(request: ConvertRequest, say: Say) -> None:
    """Make a data set of `images/`, `labels/` and `dataset.json` from a folder in another form.

    Args:
        say: is told, line by line, what was found and what was done.

    Raises:
        DataError: nothing recognised, or masks whose meaning is not known; nothing is written then.
        OutputError: the output exists or cannot be written.
        ConfigError: options that exclude each other.
    """
    check_options(request)
    check_new_folder(request.output)
    layout = layout_of(request)
    say_layout(layout, request, say)
    check_cases(layout, request)
    meaning = meaning_of(layout, request)
    say_meaning(meaning, say)
    refuse_label_maps(layout, meaning, request)
    declaration = _read(layout, meaning, request, say)
    if request.dry_run:
        say(f"dry run: nothing written; without --dry-run, {request.output} would hold {len(layout.cases)} cases")
        return
    with folder_written_aside(request.output) as aside:
        for case in progress(layout.cases, "case"):
            write_case(case, masks_of(case, layout, request), meaning.rule, request, aside)
        write_declaration(aside / "dataset.json", declaration)
    say(f"wrote {request.output}: {len(layout.cases)} cases, images/, labels/ and dataset.json")


def _read(layout: Layout, meaning: Meaning, request: ConvertRequest, say: Say) -> dict[str, Any]:
    """Read every mask; the new `dataset.json`."""
    totals = Totals()
    for case in progress(layout.cases, "case"):
        totals.add(case, meaning.rule.apply(masks_of(case, layout, request)))
    refuse_unknown(totals, meaning.rule, request)
    declaration = completed(meaning, totals.counts, layout, request)
    for line in totals.lines(declaration):
        say(line)
    return declaration
