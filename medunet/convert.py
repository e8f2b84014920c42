"""`medunet convert`: other forms of data sets become medunet's, and label maps become colour masks again.

    folder -> which mask belongs to which image -> what the masks' pixels mean -> images/, labels/, dataset.json

Every mask is read and checked before anything is written; then the new folder is written aside and renamed as a whole.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from medunet.conversion.layout_choice import layout_of
from medunet.conversion.layouts import Layout
from medunet.conversion.meaning import ConvertRequest, Meaning, masks_of, meaning_of, progress, source_json
from medunet.conversion.messages import Say, Totals, refuse_unknown, relative, say_layout
from medunet.conversion.structures import check_masks
from medunet.conversion.write import write_case, write_declaration
from medunet.datasets.catalogue import Case
from medunet.datasets.labels import table_from_names
from medunet.datasets.loading import check_pairs
from medunet.errors import ConfigError, DataError
from medunet.formats.dispatch import (
    read_grid,
)
from medunet.system.files import check_new_folder, folder_written_aside


def convert(request: ConvertRequest, say: Say) -> None:
    """Make a data set of `images/`, `labels/` and `dataset.json` from a folder in another form.

    Args:
        say: is told, line by line, what was found and what was done.

    Raises:
        DataError: nothing recognised, or masks whose meaning is not known; nothing is written then.
        OutputError: the output exists or cannot be written.
        ConfigError: options that exclude each other.
    """
    _check_options(request)
    check_new_folder(request.output)
    layout = layout_of(request)
    say_layout(layout, request, say)
    _check_cases(layout, request)
    meaning = meaning_of(layout, request)
    say(f"masks: {meaning.words}")
    for note in meaning.notes:
        say(f"note: {note}")
    asked = request.objects or request.ignore or request.foreground
    if layout.own and meaning.rule.unchanged and not asked:
        raise DataError(f"{request.source}: is a data set already, with label maps; medunet reads it as it is")
    totals = Totals()
    for case in progress(layout.cases):
        totals.add(case, meaning.rule.apply(masks_of(case, layout, request)))
    refuse_unknown(totals, meaning.rule, request)
    declaration = _completed(meaning, totals, layout, request)
    for line in totals.lines(declaration):
        say(line)
    if request.dry_run:
        say(f"dry run: nothing written; without --dry-run, {request.output} would hold {len(layout.cases)} cases")
        return
    with folder_written_aside(request.output) as aside:
        for case in progress(layout.cases):
            write_case(case, masks_of(case, layout, request), meaning.rule, request, aside)
        write_declaration(aside / "dataset.json", declaration)
    say(f"wrote {request.output}: {len(layout.cases)} cases, images/, labels/ and dataset.json")


def _check_options(request: ConvertRequest) -> None:
    if request.colours is not None and request.objects is not None:
        raise ConfigError(
            "--colours says that colours are classes, --instances that they are objects; give one of both"
        )
    if request.ignore is not None and request.objects is not None:
        raise ConfigError("--ignore names a class, but --instances says that masks hold objects; give one of both")
    if not 0 <= request.tolerance <= 255:
        raise ConfigError(f"--tolerance {request.tolerance:g}: expected a distance between colours, 0 to 255")


def _check_cases(layout: Layout, request: ConvertRequest) -> None:
    """All that names and headers can tell, of every case."""
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
    # Named after the mask where there may be a hundred. The others need no image, whose header may be slow to read.
    named = ((relative(case.masks[0], request.source) if layout.structures else case.name) for case in layout.cases)
    check_pairs(
        (Case(name, case.images, case.masks[0]) for name, case in zip(named, layout.cases, strict=True)), request.axes
    )
    if layout.structures:
        check_masks([case.masks for case in layout.cases], request.axes)


def _check_channels(layout: Layout, request: ConvertRequest) -> None:
    """Files that are a channel each have one; a data set would count those of all files otherwise."""
    for case in layout.cases:
        for path, name in zip(case.images, layout.channels, strict=True):
            found = read_grid(path, axes=request.axes).channels
            if found != 1:
                raise DataError(
                    f"{path}: has {found} channels (or time points); expected one, {name}\n"
                    "save the one that is meant as a file of its own in its place"
                )


def _completed(meaning: Meaning, totals: Totals, layout: Layout, request: ConvertRequest) -> dict[str, Any]:
    """The new `dataset.json`: what the source's says of other things is kept."""
    given = source_json(request)
    kept = {key: value for key, value in given.items() if key not in ("colour_coded", "colours", "n_cases")}
    if meaning.declaration:
        dropped = ("labels", "ignore", "label_kind", "regions", "regions_class_order", "instance_labels", "label_note")
        kept = {key: value for key, value in kept.items() if key not in dropped}
    if layout.channels:
        kept = {key: value for key, value in kept.items() if key not in ("channel_names", "modality")}
        kept["channels"] = list(layout.channels)
    declaration = {"name": request.output.name, **kept, **meaning.declaration}
    labels = declaration["labels"]
    if meaning.declaration:
        table_from_names(labels, declaration.get("ignore"), declaration.get("label_kind", "classes"))
    plain = isinstance(labels, dict) and all(type(value) is int for value in labels.values())
    unnamed = set(totals.counts) - {*labels.values(), declaration.get("ignore")} if plain else set()
    if unnamed and declaration.get("label_kind") != "instances":
        listed = ", ".join(f"{value} ({totals.counts[value]:,} px)" for value in sorted(unnamed)[:8])
        raise DataError(
            f"{request.source}: masks hold values that dataset.json does not name: {listed}\n"
            "add them to its labels, or correct the masks"
        )
    if declaration.get("label_kind") != "instances" and len(totals.counts) < 2:
        value = next(iter(totals.counts))
        raise DataError(f"{request.source}: all masks hold the single value {value}; nothing can be learned from them")
    return declaration
