"""Recordings of what the program gives, so that two commits can be compared byte for byte.

    python benchmarks/same_program.py -o before.json
    python benchmarks/same_program.py -o after.json --repository OTHER_CHECKOUT --python ENV/bin/python
    python benchmarks/same_program.py --compare before.json after.json --allow help/ --allow '*.engine'

About seventy commands run on small data sets made here, on the CPU with one thread (some four minutes), and leave
one flat JSON: a key for each weight tensor, file, score, message and help text, with its SHA-256 or its own text. The
comparison prints the keys that differ and exits with 1. Keys that begin with what --allow says (* is anything) may
differ: they are printed as such. Nothing of medunet is imported, so its modules may lie anywhere: only the command line
and the files it leaves are looked at. Recordings of two machines, or of two versions of torch, do not compare. A
recording exits with 1, too, where a command fails that should not.

Left out, because it differs from one run to the next:

- lengths of time, amounts of memory and speeds in texts; lines of progress; what a training expects to take;
- columns of times in metrics.csv; in JSON seconds, peak memory, versions, and how many times as long blending takes;
- the names of the temporary folder and of the repository, for which TEMP and ROOT stand;
- a model's minutes of training, and its checksums, which they are part of; in last.ckpt all but the tensors;
- the picture of a report's training curves, which show patches a second; TensorBoard's files, with times in them.

A plan depends on the speed of the machine. Here it does not: scans smaller than the smallest patch leave one network,
and 0.01 minutes leave the fewest iterations and light augmentation. How many steps it counts is left out, too.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import fnmatch
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tifffile
from PIL import Image
from safetensors import safe_open

Keys = dict[str, str]

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 20_000
"""Characters up to which a text is kept itself; of a longer one the checksum is."""
PASSING_LINES = re.compile(
    r"(train|predict|evaluate|plan|convert) +\d+ % |expected: |NOTE: (a step took|even so|that is more)"
)
PASSING_NAMES = re.compile(
    r"seconds|^minutes$|per_second|waiting_share|peak_memory|^versions$|^medunet$|times_the_time|init_checksum"
)
PASSING_WORDS = re.compile(
    r"\d[\d.,]*(e[+-]?\d+)? ?(GFLOP/s|[KMG]iB|ms|s|min|minutes|h)\b|\d[\d.]*(?= times the time)"
    r"|(?<=about )\d+(?= steps)|(?<=measured over )\d+(?= training step)"
)
PASSING_PICTURE = re.compile(r'"data:image[^"]*"(?= alt="Training:)')

# --- what is run ----------------------------------------------------------------------------------------------------

NETWORK = "# A comment that is kept.\nnetwork: {dimensions: %d, channels: [8, 16], %s}\npatches: {size: %s, batch: 2}\n"
CONFIGS = {
    "plane": NETWORK % (2, "deep_supervision: true, dropout: 0.2", "[32, 32]")
    + "augment: {elastic: {probability: 0.5, low: 0, high: 4}, rotation: {probability: 1, low: -180, high: 180}}\n"
    + "loss: {class_weights: balanced, surface: boundary}\n",
    "unpadded": NETWORK % (2, "padded: false, norm: none, activation: relu", "[44, 44]")
    + "optimiser: {kind: sgd, rate: 0.01}\nweight_map: {kind: unet2015, parts_of: cell}\n"
    + "augment: {elastic: {probability: 1, low: 4, high: 4}, elastic_grid: {points: 3, spline: cubic}}\n",
    "volume": NETWORK % (3, "kernels: [[3, 3, 1], 3], strides: [[2, 2, 1]], residual: true", "[16, 16, 8]")
    + "preprocess: {spacing: [1.2, 1.2, 2.5], normalise: [{kind: zscore}]}\noptimiser: {kind: adamw, rate: 0.01}\n",
    "cells": NETWORK % (2, "attention: true", "[32, 32]")
    + "instances: {target: cores}\nweight_map: {kind: unet2015, sigma: 2}\noptimiser: {rate: 0.02}\n",
    "regions": NETWORK % (3, "norm: instance", "[16, 16, 16]") + "loss: {kind: dice_focal}\nschedule: {kind: poly}\n",
    "typo": "training:\n  epoch: 3\n",
}
STEPS = ("training.epochs=2", "training.iterations=10", "training.seed=3", "training.workers=0",
         "training.precision=fp32", "data.cache=null")  # fmt: skip
OPTIONS = {
    "plan": ["--minutes", "0.01", "--memory", "2G", "--device", "cpu"],
    "train": ["--device", "cpu", *(word for step in STEPS for word in ("--set", step))],
    "predict": ["--device", "cpu", "--precision", "fp32"],
}
"""What is added to every command of a kind."""
SETS = ("plane", "membranes", "volume", "cells", "regions")
VERBS = ("inspect", "plan", "train", "predict", "evaluate", "convert", "demo")
COMMANDS = f"""
help/medunet --help
{"".join(f"help/{verb} {verb} --help;" for verb in VERBS)}
{"".join(f"inspect/{name} inspect {name} --json; plan/{name} plan {name} -o plan-{name}.yaml;" for name in SETS)}
inspect/files inspect volume/images/v0_0000.nii.gz cells/labels/c0.tif plane/images/p0.png
convert/dry convert organs --dry-run -o converted/dry
convert/colours convert street --ignore void -o converted/colours
convert/back convert converted/colours --to-colours -o converted/back
convert/structures convert organs -o converted/structures
train/plane train plane.yaml -o runs/plane --set data.path=plane
train/unpadded train unpadded.yaml -o runs/unpadded --set data.path=membranes
train/volume train volume.yaml -o runs/volume --set data.path=volume
train/cells train cells.yaml -o runs/cells --set data.path=cells
train/regions train regions.yaml -o runs/regions --set data.path=regions
train/started train plane.yaml -o runs/more --set data.path=plane --init runs/plane --set training.epochs=1
train/resumed train --resume -o runs/more
train/folds train volume.yaml -o runs/folds --set data.path=volume --fold all --set data.folds=2
predict/plane predict runs/plane plane/images -o predicted/plane --record plane.json --probabilities
predict/plane-turned predict runs/plane plane/images -o predicted/turned --tta-rotations
predict/slices predict runs/plane volume/images/v0_0000.nii.gz -o predicted/slices.nii.gz --record slices.json
predict/unpadded predict runs/unpadded membranes/images -o predicted/unpadded --record u.json --probabilities --verify
predict/split predict runs/unpadded membranes/images -o predicted/split --instances --split 1 --drop-edge-objects
predict/volume predict runs/volume volume/images -o predicted/volume --record volume.json --probabilities --verify
predict/volume-mirrored predict runs/volume volume/images -o predicted/mirrored --tta --probabilities
predict/volume-blend predict runs/volume volume/images -o predicted/blend --record blend.json --method blend
predict/parts predict runs/volume large -o predicted/parts --record parts.json --memory 31M --probabilities
predict/slabs predict runs/volume large -o predicted/slabs --record slabs.json --memory 40M --probabilities
predict/ensemble predict runs/folds volume/images -o predicted/ensemble --record ensemble.json
predict/cells predict runs/cells cells/images -o predicted/cells --record cells.json --probabilities
predict/objects predict runs/cells cells/images -o predicted/objects --instances --record o.json --table --rois
predict/regions predict runs/regions regions/images -o predicted/regions --record regions.json --region-masks
predict/regions-soft predict runs/regions regions/images -o predicted/soft --probabilities
evaluate/plane evaluate predicted/turned plane -o scores/plane
evaluate/volume evaluate predicted/blend volume -o scores/volume --json volume-scores.json --tolerance 2
evaluate/masks evaluate predicted/objects cells --masks -o scores/masks
evaluate/objects evaluate predicted/objects cells --instances -o scores/objects --json objects-scores.json
evaluate/regions evaluate predicted/regions regions -o scores/regions
evaluate/boundaries evaluate predicted/unpadded membranes --boundaries -o scores/boundaries
mistake/missing-scan predict runs/plane nowhere.png -o x
mistake/missing-run predict runs/none plane/images -o x
mistake/value predict runs/plane plane/images -o x --method fast
mistake/usage predict runs/plane plane/images -o x --table
mistake/dimensions predict runs/regions plane/images/p0.png -o x.png
mistake/regions predict runs/plane plane/images -o x --region-masks
mistake/exists predict runs/plane plane/images -o predicted/plane
mistake/pages predict runs/cells pages.tif -o x.tif
mistake/pages-inspect inspect pages.tif
mistake/memory predict runs/volume large -o x --memory 1M
mistake/key train plane.yaml -o x --set training.epoch=3
mistake/key-in-file train typo.yaml -o x
mistake/setting train plane.yaml -o x --set network.channels=[8]
mistake/unlabelled plan bare -o x.yaml
mistake/no-config train -o x
mistake/no-pairs evaluate bare/images volume
mistake/colours convert street -o x --colours nowhere.txt
"""
"""Key and arguments, in the order in which they run; what -o, --record and --json name is kept, too."""

# --- data sets: the same ones each time -----------------------------------------------------------------------------


def save(path: Path, pixels: np.ndarray, spacing: Sequence[float] = (1, 1, 1)) -> None:
    """One file; the ending says which kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        image = nib.Nifti1Image(pixels, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels, imagej=True, resolution=(2, 2), metadata={"axes": "YX", "unit": "um"})
    else:
        Image.fromarray(pixels).save(path)


def declare(folder: Path, **content: Any) -> None:
    (folder / "dataset.json").write_text(json.dumps({"name": folder.name, **content}))


def distances(random: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """Of all voxels from a point somewhere in the inner half."""
    places = zip(np.indices(shape), shape, spacing, strict=True)
    return np.sqrt(sum(((grid - random.integers(n // 4, n - n // 4)) * size) ** 2 for grid, n, size in places))


def two_balls(seed: int, shape: Sequence[int], spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A bright one and a dark one in noise, and their labels."""
    random, labels = np.random.default_rng(seed), np.zeros(shape, np.uint8)
    radius = min(n * size for n, size in zip(shape, spacing, strict=True)) / 4
    for value in (7, 32):
        labels[distances(random, shape, spacing) < radius] = value
    return random.normal(100, 8, shape) + 40 * (labels == 7) - 40 * (labels == 32), labels


def touching_discs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two pairs, and their numbers in no order."""
    random, ids, (x, y) = np.random.default_rng(seed), np.zeros((48, 40), np.uint16), np.indices((48, 40))
    for centre in ((12, 10), (12, 22), (34, 18), (34, 30)):
        at = np.array(centre) + random.integers(-1, 2, 2)
        ids[(x - at[0]) ** 2 + (y - at[1]) ** 2 < 40] = random.integers(300, 60000)
    return random.normal(100, 10, ids.shape) + 60 * (ids > 0), ids


def nested_balls(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Brighter and brighter."""
    random = np.random.default_rng(seed)
    away = distances(random, (20, 18, 16), (1, 1, 1))
    labels = np.select([away < 2.5, away < 4.5, away < 6.5], [4, 1, 2], 0).astype(np.uint8)
    return random.normal(0, 6, labels.shape) + np.array([0, 80, 40, 0, 120])[labels], labels


def make_sets(folder: Path) -> None:
    """Pictures of classes and of two classes, volumes of thick slices in two channels, objects, and regions."""
    for seed in range(5):
        image, labels = two_balls(seed, (48, 40), (1, 1))
        save(folder / "plane" / "images" / f"p{seed}.png", image.clip(0, 255).astype(np.uint8))
        save(folder / "plane" / "labels" / f"p{seed}.png", labels)
        spacing = (1, 1, 2.5) if seed % 2 else (1.25, 1.25, 2.5)
        image, labels = two_balls(seed, (28, 24, 12), spacing)
        save(folder / "volume" / "images" / f"v{seed}_0000.nii.gz", image.astype(np.float32), spacing)
        save(folder / "volume" / "images" / f"v{seed}_0001.nii.gz", (200 - image).astype(np.float32), spacing)
        save(folder / "volume" / "labels" / f"v{seed}.nii.gz", labels, spacing)
        image, ids = touching_discs(seed)
        save(folder / "membranes" / "images" / f"m{seed}.png", image.clip(0, 255).astype(np.uint8))
        save(folder / "membranes" / "labels" / f"m{seed}.png", (ids > 0).astype(np.uint8))
        ids[:, :2] = 7
        save(folder / "cells" / "images" / f"c{seed}.tif", image.astype(np.float32))
        save(folder / "cells" / "labels" / f"c{seed}.tif", ids)
        image, labels = nested_balls(seed)
        save(folder / "regions" / "images" / f"r{seed}.nii.gz", image.astype(np.float32))
        save(folder / "regions" / "labels" / f"r{seed}.nii.gz", labels)
    classes = {"background": 0, "bright": 7, "dark": 32}
    declare(folder / "plane", labels=classes)
    declare(folder / "volume", labels=classes, channels=["T1", "T2"])
    declare(folder / "membranes", labels={"background": 0, "cell": 1})
    declare(folder / "cells", labels={"background": 0, "cell": 1}, ignore=7, label_kind="instances")
    nested = {"whole": [1, 2, 4], "inner": [1, 4], "enhancing": [4]}
    declare(folder / "regions", labels={"background": 0, "oedema": 2, "core": 1, "enhancing": 4}, regions=nested)


def make_others(folder: Path) -> None:
    """What is converted, a larger scan, what is wrong, and configs."""
    colours = {"sky": (0, 0, 255), "road": (128, 64, 128), "car": (200, 0, 0), "void": (0, 0, 0)}
    for seed in range(2):
        random = np.random.default_rng(seed)
        for place in ("street", "bare"):
            save(folder / place / "images" / f"s{seed}.png", random.integers(0, 256, (15, 20), np.uint8))
        mask = np.array(list(colours.values()), np.uint8)[random.integers(0, 4, (15, 20))]
        save(folder / "street" / "masks" / f"s{seed}.png", mask)
        save(folder / "organs" / "images" / f"o{seed}.nii.gz", random.normal(0, 9, (12, 10, 8)).astype(np.float32))
        for name in ("liver", "lesion"):
            inside = distances(random, (12, 10, 8), (1, 1, 1)) < 4
            save(folder / "organs" / "labels" / f"o{seed}" / f"{name}.nii.gz", inside.astype(np.uint8))
        scan = random.normal(100, 40, (96, 90, 40)).astype(np.float32)
        save(folder / "large" / f"l_{seed:04d}.nii.gz", scan, (1, 1, 2.5))
    table = (f"{' '.join(map(str, colour))} {name}" for name, colour in colours.items())
    (folder / "street" / "Labels.txt").write_text("\n".join(table))
    tifffile.imwrite(folder / "pages.tif", np.zeros((5, 16, 16), np.uint16))
    for name, config in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(config)


# --- the recording --------------------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """Runs commands in a folder, and keeps what they say and write."""

    folder: Path
    python: str
    repository: Path
    found: Keys = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def run(self, key: str, verb: str, *given: str) -> None:
        """One command."""
        paths = os.pathsep.join(filter(None, (str(self.repository), os.environ.get("PYTHONPATH"))))
        settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "COLUMNS": "80",
                    "MEDUNET_CACHE": str(self.folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
        added = [] if "--help" in given else OPTIONS.get(verb, [])
        command = [self.python, "-m", "medunet", verb, *added, *given]
        done = subprocess.run(
            command, cwd=self.folder, env=os.environ | settings, capture_output=True, text=True, check=False
        )
        mistaken = key.startswith("mistake/")
        print(f"exit code {done.returncode}  {key}", file=sys.stderr)
        said = f"exit code {done.returncode}\n{done.stdout}--- errors and notes\n{done.stderr}"
        self.found[key] = short(self.lasting(rejoined(said) if verb == "plan" else said))
        for option, name in pairwise(given):
            if option in ("-o", "--record", "--json") and not mistaken:
                self.keep(key, self.folder / name)
        if bool(done.returncode) != mistaken:
            self.failed.append(key)

    def lasting(self, text: str) -> str:
        """A text without what passes."""
        text = text.replace(str(self.folder), "TEMP").replace(str(self.repository), "ROOT")
        lines = (line.rstrip() for line in text.splitlines() if not PASSING_LINES.match(line.lstrip("# ")))
        return PASSING_WORDS.sub("~", "\n".join(lines))

    def keep(self, key: str, place: Path) -> None:
        """A file, or all files of a folder."""
        for path in sorted(place.rglob("*") if place.is_dir() else place.parent.glob(place.name)):
            if path.is_file() and "tensorboard" not in path.parts:
                name = path.relative_to(place if place.is_dir() else place.parent).as_posix()
                self.found |= {f"{key}/{name}{part}": value for part, value in self.parts(path)}

    def parts(self, path: Path) -> Iterator[tuple[str, str]]:
        """What is in a file; each part with an ending of the key."""
        if path.suffix == ".safetensors":
            yield from weights(path)
        elif path.suffix in (".ckpt", ".zip"):
            yield from members(path)
        elif path.suffix == ".json":
            yield from ((f":{name}", self.lasting(value)) for name, value in leaves(json.loads(path.read_text())))
        elif path.suffix == ".csv":
            yield "", short(untimed(path.read_text()))
        elif path.suffix in (".yaml", ".txt"):
            yield "", short(self.lasting(rejoined(path.read_text())))
        elif path.suffix == ".html":
            page = PASSING_PICTURE.sub("~", self.lasting(path.read_text()))
            yield "", digest(page)
            yield ":text", short(re.sub(r"(?s:<style.*?</style>|<script.*?</script>|<[^>]*>|\s)+", " ", page))
        else:
            yield "", digest(path.read_bytes())
            yield ":array", array_of(path)


def digest(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def short(text: str) -> str:
    return text if len(text) <= LONGEST else digest(text)


def described(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)} {digest(np.ascontiguousarray(array).tobytes())}"


def array_of(path: Path) -> str:
    if path.suffix == ".gz":
        return described(np.asanyarray(nib.load(path).dataobj))
    return described(tifffile.imread(path) if path.suffix == ".tif" else np.array(Image.open(path)))


def weights(path: Path) -> Iterator[tuple[str, str]]:
    with safe_open(path, framework="np") as file:
        yield from ((f":{name}", described(file.get_tensor(name))) for name in sorted(file.keys()))
        for name, text in sorted((file.metadata() or {}).items()):
            yield from leaves(text, f":{name}")


def members(path: Path) -> Iterator[tuple[str, str]]:
    """Of a ZIP file; of a checkpoint, which is one, the tensors in whatever order."""
    with zipfile.ZipFile(path) as archive:
        found = {name: digest(archive.read(name)) for name in archive.namelist()}
    if path.suffix == ".zip":
        yield from ((f":{name}", value) for name, value in found.items())
    else:
        tensors = sorted(value for name, value in found.items() if "/data/" in name)
        yield ":tensors", f"{len(tensors)} {digest(' '.join(tensors))}"


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Of nested JSON, also in words, by dotted name; a list of numbers or words is one."""
    if isinstance(content, str) and content.startswith("{"):
        content = json.loads(content)
    items: list[tuple[Any, Any]] = list(content.items()) if isinstance(content, dict) else []
    if isinstance(content, list) and any(isinstance(item, dict | list) for item in content):
        items = list(enumerate(content))
    if not items:
        yield name, json.dumps(content, ensure_ascii=False)
    for key, value in items:
        if not PASSING_NAMES.search(str(key)) and (key != "sha256" or isinstance(value, dict)):
            yield from leaves(value, f"{name}.{key}" if name else str(key))


def untimed(table: str) -> str:
    rows = list(csv.reader(io.StringIO(table)))
    kept = [place for place, name in enumerate(rows[0]) if not PASSING_NAMES.search(name)]
    return "\n".join(",".join(row[place] for place in kept) for row in rows)


def rejoined(text: str) -> str:
    """The reasons of a plan in one line each: measured numbers decide where they are broken."""
    return re.sub(r"\n( *#   | {6,})(?=\S)", " ", text)


def record(recorder: Recorder) -> None:
    """Run everything, in an empty folder."""
    folder = recorder.folder
    make_sets(folder)
    make_others(folder)
    for name in SETS:
        recorder.keep(f"made/{name}", folder / name)
    for line in filter(None, re.split(r"[\n;]\s*", COMMANDS)):
        recorder.run(*shlex.split(line))


# --- two recordings -------------------------------------------------------------------------------------------------


def compare(before: Keys, after: Keys, allowed: Sequence[str]) -> int:
    """Print what differs; the exit code."""
    names = sorted(before.keys() | after.keys())
    differing = [name for name in names if before.get(name) != after.get(name)]
    excused = [name for name in differing if any(fnmatch.fnmatchcase(name, f"{start}*") for start in allowed)]
    for name in differing:
        print(f"{name}{'  (may differ)' if name in excused else ''}")
        old, new = (keys.get(name, "(no such key)").splitlines() for keys in (before, after))
        for line in list(difflib.unified_diff(old, new, lineterm="", n=0))[2:40]:
            print(f"    {line[:200]}")
    print(f"{len(names) - len(differing)} of {len(names)} equal; {len(excused)} of the others may differ")
    return 1 if len(differing) > len(excused) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs medunet")
    parser.add_argument("--repository", type=Path, default=ROOT, help="the folder whose medunet runs")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--allow", action="append", default=[], metavar="START", help="of keys that may differ")
    asked = parser.parse_args()
    if asked.compare:
        before, after = (json.loads(path.read_text(encoding="utf-8")) for path in asked.compare)
        return compare(before, after, asked.allow)
    if not asked.output:
        parser.error("say -o FILE.json, or --compare BEFORE AFTER")
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder).resolve(), asked.python, asked.repository.resolve())
        record(recorder)
    asked.output.write_text(json.dumps(recorder.found, indent=1, ensure_ascii=False, sort_keys=True), encoding="utf-8")
    print(f"{len(recorder.found)} keys in {asked.output}")
    if recorder.failed:
        print(f"not the exit code that was expected: {', '.join(recorder.failed)}")
    return 1 if recorder.failed else 0


if __name__ == "__main__":
    sys.exit(main())
