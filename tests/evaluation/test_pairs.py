"""Pairs of predictions and references, folders of sections among them, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medunet.cli import run
from medunet.errors import DataError
from medunet.evaluate import evaluate_folders
from medunet.evaluation.pairs import pair_by_stem
from medunet.evaluation.settings import EvaluateSettings
from medunet.formats.dispatch import write_volume
from medunet.volume import Volume

SHAPE = (12, 10, 4)


def truth(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(SHAPE) < 0.3).astype(np.uint8)


def sections(folder: Path, array: np.ndarray, first: int = 1, suffix: str = ".png", stem: str = "z") -> Path:
    """`z_1.png`, `z_2.png`, … of `(x, y, z)`."""
    for z in range(array.shape[2]):
        write_volume(Volume(array[None, ..., z], unit="pixel"), folder / f"{stem}_{first + z}{suffix}")
    return folder


def volume(path: Path, array: np.ndarray) -> Path:
    write_volume(Volume(array[None], unit="pixel"), path, labels=True)
    return path


def dice(predictions: Path, references: Path, stack: bool = True) -> dict[str, float]:
    found = evaluate_folders(predictions, references, EvaluateSettings(stack=stack))
    assert not found.failed
    return {case.case: case.labels[0].dice for case in found.cases}


def expected(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_folders_of_sections_pair_by_their_names(tmp_path: Path) -> None:
    for number in range(2):
        sections(tmp_path / "p" / f"s{number}", truth(number))
        sections(tmp_path / "r" / f"s{number}", truth(number + 5), suffix=".tif")
    found = dice(tmp_path / "p", tmp_path / "r")
    assert found == {f"s{n}": pytest.approx(expected(truth(n), truth(n + 5))) for n in range(2)}


def test_one_folder_against_one_folder_or_file_whatever_they_are_called(tmp_path: Path) -> None:
    folder, other = (
        sections(tmp_path / "mine", truth(1)),
        sections(tmp_path / "true", truth(2), first=0, stem="section"),
    )
    file = volume(tmp_path / "mine.tif", truth(1))
    assert dice(folder, other) == dice(file, other) == {"true": pytest.approx(expected(truth(1), truth(2)))}
    assert list(dice(other, file).values()) == [pytest.approx(expected(truth(1), truth(2)))]


def test_what_predict_writes_for_stacks_is_compared_with_sections(tmp_path: Path) -> None:
    """A folder of several TIFF volumes is no folder of sections, though all its files are of one kind."""
    for number in range(2):
        volume(tmp_path / "p" / f"s{number}.tif", truth(number))
        sections(tmp_path / "r" / f"s{number}", truth(number))
    assert dice(tmp_path / "p", tmp_path / "r") == {"s0": 1.0, "s1": 1.0}
    assert dice(tmp_path / "p", tmp_path / "r" / "s1") == {"s1": 1.0}


def test_a_data_set_of_stacks_needs_no_option_and_gives_labels_spacing_and_images(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(2):
        sections(data / "labels" / f"s{number}", truth(number))
        sections(data / "images" / f"s{number}", truth(number) * 100)
        sections(tmp_path / "p" / f"s{number}", truth(number))
    declared = {"stack": True, "labels": {"background": 0, "cell": 1}, "spacing": [50, 4, 4], "spacing_units": "nm"}
    (data / "dataset.json").write_text(json.dumps(declared | {"axes": "ZYX"}))
    found = evaluate_folders(tmp_path / "p", data)
    assert found.card.unit == "nm" and found.labels.names == ("background", "cell")
    assert [case.tolerance for case in found.cases] == [8, 8], "twice the smallest edge"
    assert found.pairs["s0"].image == data / "images" / "s0"
    one = evaluate_folders(tmp_path / "p" / "s1", data / "labels" / "s1", EvaluateSettings(stack=True))
    assert one.card.unit == "nm" and one.labels.names == ("background", "cell")


def sized(place: Path, array: np.ndarray, distance: float | None = None) -> Path:
    """Pixels of 4 nm: sections, which cannot state their distance, or a volume in which it is stated."""
    spacing = np.diag([0.004, 0.004, 1.0 if distance is None else distance, 1.0])
    if distance is not None:
        write_volume(Volume(array[None], spacing, "um"), place.with_suffix(".tif"), labels=True)
    for z in range(array.shape[2] if distance is None else 0):
        write_volume(Volume(array[None, ..., z], spacing, "um"), place / f"z_{z}.tif")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(
    ("predicted", "true"), [(None, None), (0.05, None), (None, 0.05), (0.05, 0.05), (0.004, None), (None, 0.004)]
)
def test_sections_with_a_pixel_size_lie_on_the_grid_of_a_volume_that_states_their_distance(
    predicted: float | None, true: float | None, declared: bool, tmp_path: Path
) -> None:
    """Also on that of a volume whose sections are as far apart as pixels are high: sections are written so, where their
    distance is not known."""
    data = tmp_path / "data"
    sized(tmp_path / "p" / "s", truth(0), predicted), sized(data / "labels" / "s", truth(0), true)
    size = {"spacing": [50, 4, 4], "spacing_units": "nm", "axes": "ZYX"} if declared else {}
    (data / "dataset.json").write_text(json.dumps({"stack": True, "labels": {"background": 0, "cell": 1}} | size))
    found = evaluate_folders(tmp_path / "p", data)
    assert not found.failed and found.cases[0].labels[0].dice == 1 and found.card.unit == "um"


def test_a_volume_that_contradicts_the_declared_distance_of_sections_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    sized(tmp_path / "p" / "s", truth(0), 0.06), sized(data / "labels" / "s", truth(0))
    size = {"spacing": [50, 4, 4], "spacing_units": "nm", "axes": "ZYX"}
    (data / "dataset.json").write_text(json.dumps({"stack": True, "labels": {"background": 0, "cell": 1}} | size))
    words = r"up to 0\.03 um apart .*\nspacing \(0\.004, 0\.004, 0\.06\) um and \(0\.004, 0\.004, 0\.05\) um"
    with pytest.raises(DataError, match=words):
        evaluate_folders(tmp_path / "p", data)


@pytest.mark.parametrize("declared", [True, False])
def test_distances_are_measured_with_the_distance_of_sections_that_is_known(declared: bool, tmp_path: Path) -> None:
    """A voxel that is one section away is 0.05 um away."""
    one, other = (np.zeros(SHAPE, np.uint8) for _ in range(2))
    one[5, 5, 1] = other[5, 5, 2] = 1
    data = tmp_path / "data"
    sized(tmp_path / "p" / "s", one, 0.05), sized(data / "labels" / "s", other)
    size = {"spacing": [50, 4, 4], "spacing_units": "nm", "axes": "ZYX"} if declared else {}
    (data / "dataset.json").write_text(json.dumps({"stack": True, "labels": {"background": 0, "cell": 1}} | size))
    (case,) = evaluate_folders(tmp_path / "p", data).cases
    assert case.labels[0].hausdorff95 == pytest.approx(0.05)


def test_the_only_stack_of_a_data_set_is_called_like_the_set(tmp_path: Path) -> None:
    data = tmp_path / "em"
    sections(data / "labels", truth(0)), sections(data / "images", truth(0))
    (pair,), missing, notes = pair_by_stem(sections(tmp_path / "p", truth(0)), data / "labels", stack=True)
    assert (pair.case, pair.image, missing, notes) == ("em", data / "images", [], ())
    assert dice(volume(tmp_path / "em.tif", truth(0)), data) == {"em": 1.0}


def shorter(folder: Path) -> None:
    sections(folder, truth(0)[..., :3])


def uneven(folder: Path) -> None:
    sections(folder, truth(0))
    write_volume(Volume(truth(0)[None, :5, :, 0], unit="pixel"), folder / "z_2.png", overwrite=True)


def shifted(folder: Path) -> None:
    sections(folder, truth(0), first=2)


def gap(folder: Path) -> None:
    sections(folder, truth(0))
    (folder / "z_2.png").unlink()


def single(folder: Path) -> None:
    sections(folder, truth(0)[..., :1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (shorter, ["s0 has 3 sections, but reference", "s0 has 4", "give all sections of both"]),
        (uneven, ["z_2.png: has 5×10 pixels", "but z_1.png 12×10 pixels"]),
        (shifted, ["z_2 would be compared with z_1"]),
        (gap, ["z_1.png is followed by z_3.png"]),
        (single, ["holds 1 section(s)"]),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_wrong_with_a_stack_is_said_and_stops_no_other(
    broken, words: list[str], swapped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections(tmp_path / "r" / "s0", truth(0)), sections(tmp_path / "r" / "s1", truth(1))
    broken(tmp_path / "p" / "s0"), sections(tmp_path / "p" / "s1", truth(1))
    sides = [str(tmp_path / "p"), str(tmp_path / "r")]
    assert run(["evaluate", *(reversed(sides) if swapped else sides), "--stack"]) == 1
    shown = capsys.readouterr().out
    if not swapped:
        assert all(word in shown for word in words), shown
    assert "s0" in shown and "1 case " in shown.splitlines()[0]


def test_folders_without_the_option_or_a_common_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections(tmp_path / "p" / "a", truth(0)), sections(tmp_path / "r" / "b", truth(0))
    both = ["evaluate", str(tmp_path / "p"), str(tmp_path / "r")]
    assert run(both) == 1
    assert "folders of sections are compared with --stack" in capsys.readouterr().err
    assert run([*both, "--stack"]) == 1
    shown = capsys.readouterr().err
    assert "predictions: a; references: b\ngive both the same names" in shown and len(shown.splitlines()) == 3
