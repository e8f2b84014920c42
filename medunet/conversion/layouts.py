"""Layouts of other tools: the mask that belongs to each image in the folders that other tools and people make.

Names alone decide; no file is opened. A file is taken for a mask only where what is left of its name, without the word
that says so, is the name of an image.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medunet.datasets.catalogue import LAYOUTS, by_stem, group_cases, scan_files
from medunet.errors import DataError
from medunet.formats.dispatch import case_stem, is_readable
from medunet.formats.omezarr.nodes import is_zarr
from medunet.system.wording import listed

_MASK_WORDS = (
    "masks?", "seg", "segs", "segmentations?", "segmented", "labels?", "lbl", "labelmap", "gt", "groundtruth",
    "ground[_ -]truth", "annotations?", "annot", "manual", "targets?",
)  # fmt: skip
_IMAGE_WORDS = ("images?", "img", "im", "imgs", "raw", "volumes?", "frames?", "scans?", "input", "pic", "photo")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot", "gt", "gts", "groundtruth",
    "ground_truth", "seg", "segs", "segmentation", "segmentations", "segmentationclass", "targets", "target",
    "manual", "labelmaps", "trainannot",
)  # fmt: skip
IMAGE_FOLDERS = (
    "images", "image", "imgs", "img", "raw", "jpegimages", "frames", "scans", "inputs", "input", "photos", "data",
    "volumes",
)  # fmt: skip


def _token(words: Sequence[str]) -> re.Pattern[str]:
    """One of the words, apart from letters beside it; `mask001` has the word mask, `maskara` has not."""
    return re.compile(rf"(?<![^\W\d_])(?:{'|'.join(words)})(?![^\W\d_])", re.IGNORECASE)


_MASK_TOKEN, _IMAGE_TOKEN = _token(_MASK_WORDS), _token(_IMAGE_WORDS)
_MASK_NUMBER = re.compile(r"[_\-. ]*\(?\d+\)?$")


@dataclass(frozen=True)
class FoundCase:
    """One case: its image, or one file per channel, and its mask: a file, or files of one object or structure each.

    Attributes:
        structures: the name of each mask's structure; empty where its file's name says it.
    """

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    structures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The cases of a folder, and the files that are left over.

    Attributes:
        form: a description for the user.
        objects: true if the form says that masks hold objects.
        one_each: true if these objects have a file each.
        alone: images without a mask.
        orphans: masks without an image.
        others: files that are no scans.
        own: true if this is the layout of a data set already.
        structures: true if masks show structures that may overlap, with a file or a channel each.
        passed_over: folders that look like a case of their own, in another form than this one.
        channels: names of the images of each case, in their order, where file names say them.
        unused: scans beside a case's images and mask that are neither.
    """

    form: str
    cases: tuple[FoundCase, ...]
    objects: bool = False
    alone: tuple[Path, ...] = ()
    orphans: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    own: bool = False
    one_each: bool = False
    structures: bool = False
    passed_over: tuple[Path, ...] = ()
    channels: tuple[str, ...] = ()
    unused: tuple[Path, ...] = ()


@dataclass
class Pairing:
    """Masks by image, masks without an image, and images without a mask; each file is in one of the three."""

    masks: dict[Path, list[Path]] = field(default_factory=lambda: defaultdict(list))
    orphans: list[Path] = field(default_factory=list)
    alone: list[Path] = field(default_factory=list)


def find_layout(source: Path, pattern: str | None = None) -> Layout:
    """Recognise how a folder's images and masks are kept.

    In this order: `pattern`; images/ with labels/ (and imagesTr/, labelsTr/); the Cell Tracking Challenge's `01/` with
    `01_GT/SEG/`; the Data Science Bowl's folder per image with images/ and masks/; an image folder beside a mask
    folder; images and masks in one folder, told apart by a word such as mask, seg, label or gt in the name.

    Args:
        pattern: which files are masks, relative to `source`, with one * that stands for the image's name, such as
            `*_mask.png` or `truth/*_manual1.png`; or a folder, whose masks have the images' names.

    Raises:
        DataError: no such folder, nothing recognised, or two images that a mask could belong to.
    """
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; give one that holds images and masks")
    if pattern is not None:
        return _by_pattern(source, pattern)
    layout = recognised(source)
    if layout is not None:
        return layout
    folders = [path.name for path in subfolders(source)]
    scans = scan_files(source)
    found = [f"{len(scans)} scans (first: {scans[0].name})"] if scans else ["no scan that medunet reads"]
    found += [f"folders {listed(folders, 6)}"] if folders else []
    raise DataError(
        f"{source}: no images with masks found; it holds {' and '.join(found)}\n"
        "expected names such as cell.png with cell_mask.png, or folders such as images/ and masks/; "
        "say which files are masks with --masks '*_mask.png'"
    )


def recognised(source: Path) -> Layout | None:
    """The layout of a folder of which nothing was said; None if it is none of those that are known here.

    Raises:
        DataError: two images that a mask could belong to, or folders that could belong together in several ways.
    """
    for finder in (_own_layout, _tracking_challenge, _science_bowl, _beside, _mixed):
        layout = finder(source)
        if layout is not None:
            return replace(layout, others=_others(source))
    return None


def pairs_at_top(source: Path) -> bool:
    """True if images and masks, or folders of them, lie right in a folder.

    Raises:
        DataError: as `recognised`.
    """
    return any(finder(source) is not None for finder in (_own_layout, _tracking_challenge, _beside, _mixed))


def is_mask_name(name: str) -> bool:
    """True if a name is nothing but a word for masks."""
    return _MASK_TOKEN.fullmatch(name) is not None


def mask_keys(stem: str) -> list[str]:
    """Names of the image that a mask of this name may belong to, the best first; none without a word for masks."""
    keys = []
    for match in reversed(list(_MASK_TOKEN.finditer(stem))):
        key = _joined(stem[: match.start()], stem[match.end() :])
        keys += [key, *([_joined(stem[: match.start()], "")] if _MASK_NUMBER.fullmatch(stem[match.end() :]) else [])]
    return list(dict.fromkeys(key.lower() for key in keys if key))


def image_keys(stem: str) -> list[str]:
    """Names by which a mask may call this image, the best first: its name, and that without a word for images."""
    keys = [stem]
    for match in _IMAGE_TOKEN.finditer(stem):
        keys.append(_joined(stem[: match.start()], stem[match.end() :]))
    return list(dict.fromkeys(key.lower() for key in keys if key))


def _joined(before: str, after: str) -> str:
    """The name around a word that was cut out, with one of its separators."""
    left, right = before.rstrip("_-. "), after.lstrip("_-. ")
    between = (before[len(left) :] or after[: len(after) - len(right)])[:1] if left and right else ""
    return left + between + right


def match_names(files: Sequence[Path]) -> Pairing:
    """Match images and masks that lie together.

    Raises:
        DataError: two images that one mask could belong to, or a mask of a mask.
    """
    pairing, owners = Pairing(), _by_key(files)
    found = {path: _owner(path, mask_keys(case_stem(path)), owners) for path in files}
    owner_of = {path: image for path, image in found.items() if image is not None}
    for mask, image in owner_of.items():
        if image in owner_of:
            raise DataError(
                f"{mask}: by their names this is a mask of {image.name}, and that one of {owner_of[image].name}\n"
                "say which files are masks with --masks, for example --masks '*_mask.png'"
            )
        pairing.masks[image].append(mask)
    for path in files:
        if path not in owner_of and path not in pairing.masks:
            (pairing.orphans if mask_keys(case_stem(path)) else pairing.alone).append(path)
    return pairing


def _match_folders(images: Sequence[Path], masks: Sequence[Path]) -> Pairing:
    """Match images and masks that have a folder of their own each."""
    pairing, owners = Pairing(), _by_key(images)
    for mask in masks:
        image = _owner(mask, [case_stem(mask).lower(), *mask_keys(case_stem(mask))], owners)
        (pairing.orphans if image is None else pairing.masks[image]).append(mask)
    pairing.alone += [path for path in images if path not in pairing.masks]
    return pairing


def _by_key(images: Iterable[Path]) -> dict[str, list[Path]]:
    """The images that each name may mean."""
    owners: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        for key in image_keys(case_stem(path)):
            owners[key].append(path)
    return owners


def _owner(mask: Path, keys: Iterable[str], owners: Mapping[str, Sequence[Path]]) -> Path | None:
    for key in keys:
        found = [path for path in owners.get(key, ()) if path != mask]
        exact = [path for path in found if case_stem(path).lower() == key]
        found = exact or found
        if len(found) > 1:
            raise DataError(
                f"{mask}: could be the mask of {found[0].name} and of {found[1].name}; rename one of them, or say "
                "which files are masks with --masks"
            )
        if found:
            return found[0]
    return None


def _cases(masks: Mapping[Path, Sequence[Path]], prefix: str = "") -> tuple[FoundCase, ...]:
    by_stem(masks)  # two images of one name would become one case
    return tuple(FoundCase(prefix + case_stem(image), (image,), tuple(sorted(masks[image]))) for image in sorted(masks))


def _by_pattern(source: Path, pattern: str) -> Layout:
    if pattern.count("*") > 1 or ".." in Path(pattern).parts or Path(pattern).is_absolute():
        raise DataError(f"--masks {pattern}: expected a name with one *, relative to {source}, such as '*_mask.png'")
    pattern = pattern if "*" in pattern else f"{pattern.rstrip('/')}/*"
    named = pattern.rpartition("/")[2]
    found = [path for path in sorted(source.glob(pattern)) if is_readable(path)]
    if not found:
        raise DataError(f"{source}: no scan fits --masks {pattern}; expected something like '*_mask.png'")
    before, _, after = named.partition("*")
    keys = {path: path.name[len(before) : len(path.name) - len(after)] for path in found}
    places = [source, *subfolders(source)]
    candidates = [path for place in places for path in scan_files(place) if path not in keys]
    pairing = Pairing()
    for mask, key in keys.items():
        key = key if after else case_stem(Path(key))
        images = [path for path in candidates if case_stem(path) == key]
        if len(images) > 1:
            raise DataError(f"{mask}: could be the mask of {images[0]} and of {images[1]}; move one of them away")
        (pairing.masks[images[0]] if images else pairing.orphans).append(mask)
    if not pairing.masks:
        raise DataError(
            f"{source}: no image belongs to the masks that fit --masks {pattern}; the first one, {found[0].name}, "
            f"expects an image called {keys[found[0]]}"
        )
    alone = tuple(path for path in candidates if path not in pairing.masks)
    cases, orphans = _cases(pairing.masks), tuple(pairing.orphans)
    return Layout(f"masks {pattern}", cases, alone=alone, orphans=orphans, others=_others(source))


def subfolders(source: Path) -> list[Path]:
    """The visible folders in a folder that are no scans, sorted."""
    found = (path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in found if not is_zarr(path))


def _own_layout(source: Path) -> Layout | None:
    for images, labels in LAYOUTS:
        if (source / images).is_dir() and (source / labels).is_dir():
            files = by_stem(scan_files(source / labels))
            cases = group_cases(scan_files(source / images), files)
            found = tuple(FoundCase(case.name, case.images, (case.label,)) for case in cases if case.label)
            alone = tuple(path for case in cases if case.label is None for path in case.images)
            orphans = tuple(files[name] for name in sorted(set(files) - {case.name for case in cases}))
            if found:
                return Layout(f"{images}/ with {labels}/", found, False, alone, orphans, own=True)
    return None


def _tracking_challenge(source: Path) -> Layout | None:
    """`01/t000.tif` with `01_GT/SEG/man_seg000.tif`; only fully annotated frames have such a file."""
    cases, alone, orphans = [], [], []
    for truth in sorted(source.glob("[0-9][0-9]_GT/SEG")):
        sequence = truth.parent.name.removesuffix("_GT")
        folder = source / sequence
        frames = {case_stem(path): path for path in scan_files(folder)} if folder.is_dir() else {}
        used = set()
        for mask in scan_files(truth):
            match = re.fullmatch(r"man_seg_?(\d+)", case_stem(mask))
            frame = f"t{match[1]}" if match else ""
            if frame in frames:
                cases.append(FoundCase(f"{sequence}_{frame}", (frames[frame],), (mask,)))
                used.add(frame)
            else:
                orphans.append(mask)
        alone += [path for frame, path in frames.items() if frame not in used]
    if not cases:
        return None
    return Layout("Cell Tracking Challenge", tuple(cases), True, tuple(alone), tuple(orphans))


def _science_bowl(source: Path) -> Layout | None:
    """One folder per image with `images/` (one file) and `masks/` (one file per object)."""
    cases, alone, orphans = [], [], []
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and (path / "images").is_dir()):
        images = scan_files(folder / "images")
        masks = scan_files(folder / "masks") if (folder / "masks").is_dir() else []
        if len(images) > 1 and masks:
            raise DataError(f"{folder}: has {len(images)} images; expected one, with its objects in masks/")
        if images and masks:
            cases.append(FoundCase(folder.name, tuple(images), tuple(masks)))
        else:
            alone += images
            orphans += masks
    if not cases:
        return None
    form = "one folder per image, one mask per object"
    return Layout(form, tuple(cases), True, tuple(alone), tuple(orphans), one_each=True)


def _beside(source: Path) -> Layout | None:
    """An image folder beside a mask folder, or pairs like `train` with `train_labels`."""
    folders = {path.name.lower(): path for path in sorted(source.iterdir()) if path.is_dir()}
    pairs = _folder_pairs(folders)
    if not pairs:
        return None
    cases: list[FoundCase] = []
    alone: list[Path] = []
    orphans: list[Path] = []
    for images, masks in pairs:
        found = _match_folders(scan_files(images), scan_files(masks))
        cases += _cases(found.masks, f"{images.name}_" if len(pairs) > 1 else "")
        alone, orphans = alone + found.alone, orphans + found.orphans
    if not cases:
        return None
    named = ", ".join(f"{images.name}/ with {masks.name}/" for images, masks in pairs)
    return Layout(named, tuple(cases), alone=tuple(alone), orphans=tuple(orphans))


def _folder_pairs(folders: Mapping[str, Path]) -> list[tuple[Path, Path]]:
    images = [folders[name] for name in IMAGE_FOLDERS if name in folders]
    masks = [folders[name] for name in MASK_FOLDERS if name in folders]
    if len(images) == 1 and len(masks) == 1:
        return [(images[0], masks[0])]
    of_image: dict[str, set[str]] = defaultdict(set)  # each name is looked at once, as there may be a thousand folders
    for key in folders:
        of_image[key.removesuffix("annot")].add(key)
        for name in mask_keys(key)[:1]:
            of_image[name].add(key)
    pairs = []
    for name, folder in folders.items():
        own = sorted(of_image[name] - {name})
        pairs += [(folder, folders[own[0]])] if len(own) == 1 else []
    if not pairs and len(images) + len(masks) > 2 and images and masks:
        names = ", ".join(path.name for path in [*images, *masks])
        raise DataError(f"{images[0].parent}: which folders belong together? found {names}; say --masks FOLDER")
    return pairs


def _mixed(source: Path) -> Layout | None:
    found = match_names(scan_files(source))
    if not found.masks:
        return None
    form = "images and masks in one folder"
    return Layout(form, _cases(found.masks), alone=tuple(found.alone), orphans=tuple(found.orphans))


def _others(source: Path) -> tuple[Path, ...]:
    """Files right in the folder that are no scans."""
    return tuple(
        path for path in sorted(source.iterdir()) if path.is_file() and not is_readable(path) and path.name[0] != "."
    )
