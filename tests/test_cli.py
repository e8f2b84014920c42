"""The command line's promises: exit codes, one clear error, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import medunet
import medunet.cli as cli
from tests.flows.made import make_set


@pytest.mark.parametrize("command", ["demo", "inspect", "plan", "train", "predict", "evaluate", "convert"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"]) == 0
    assert "Usage: medunet" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train"], ["predict", "m"], ["train", "x", "-o", "y", "--minutes", "-1"],
                  ["predict", "m", "i", "-o", "o", "--memory", "lots"], ["plan", "x"]],
)  # fmt: skip
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert cli.run(arguments) == 2


def broken_set(folder: Path, how: str) -> Path:
    data = make_set(folder / "data", cases=3, shape=(8, 8, 8))
    label = data / "labels" / "case_1.nii.gz"
    if how == "truncated":
        image = data / "images" / "case_1.nii.gz"
        image.write_bytes(image.read_bytes()[:-200])
    elif how == "grid":
        volume = medunet.read_volume(label)
        affine = volume.affine.copy()
        affine[0, 3] += 0.5
        medunet.write_volume(medunet.Volume(volume.array, affine), label, overwrite=True)
    elif how == "value":
        volume = medunet.read_volume(label)
        volume.array[0, 0, 0, 0] = 99
        medunet.write_volume(volume, label, overwrite=True)
    elif how == "no pairs":
        for path in (data / "labels").iterdir():
            path.unlink()
    return data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("truncated", "case_1"),
        ("grid", "case_1: label and image lie on different grids: corners differ by up to 0.5 mm"),
        ("value", "99 (1 voxels)"),
        ("no pairs", "no case has a label file"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "train"])
def test_bad_data_is_one_error_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, expected: str, command: str
) -> None:
    data = broken_set(tmp_path, how)
    assert cli.run([command, str(data), "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "medunet: error: " in error and expected in error and "Traceback" not in error
    assert len(error[error.index("medunet: error:") :].strip().splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_a_typo_in_the_config_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("training:\n  epoch: 3\n")
    assert cli.run(["train", str(path), "-o", str(tmp_path / "run")]) == 1
    assert f'{path}:2: unknown key "training.epoch"; did you mean "epochs"?' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_set(tmp_path / "data", cases=1, shape=(8, 8, 8))
    (tmp_path / "m.safetensors").write_bytes(b"not a model")
    arguments = ["predict", str(tmp_path / "m.safetensors"), str(data / "images"), "-o", str(tmp_path / "out")]
    assert cli.run(arguments) == 1
    assert "is not a medunet model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "train"])
def test_an_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Not by permissions, which do not bind root: below a file nothing can be made."""
    data = make_set(tmp_path / "data", cases=2, shape=(8, 8, 8))
    (tmp_path / "file").write_text("x")
    assert cli.run([command, str(data), "-o", str(tmp_path / "file" / "out")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(tmp_path), "--debug"]) == 1
    assert cli.run(["train", str(tmp_path / "no.yaml"), "-o", str(tmp_path / "r"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medunet.inspect.inspect_path", interrupted)
    assert cli.run(["inspect", "x"]) == 130


@pytest.mark.parametrize("name", ["run/events", b"run/events"])
def test_a_file_that_vanished_is_named(
    name: str | bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # TensorBoard's writer opens its files by names in bytes.
    def vanished(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", name)

    monkeypatch.setattr("medunet.inspect.inspect_path", vanished)
    assert cli.run(["inspect", str(Path(__file__).parent)]) == 1
    assert capsys.readouterr().err.startswith("medunet: error: run/events: No such file or directory; ")


def test_a_run_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert cli.run(["train", str(tmp_path), "-o", str(tmp_path / "run")]) == 1
    assert "holds a run already" in capsys.readouterr().err


def test_inspect_tells_scans_sets_and_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_set(tmp_path / "good", cases=2, shape=(8, 9, 10))
    assert cli.run(["inspect", str(data), str(data / "images" / "case_0.nii.gz"), "--json"]) == 0
    folder, scan = json.loads(capsys.readouterr().out)
    assert folder["cases"] == 2 and folder["shapes"] == ["8×9×10 (2 cases)"] and folder["problems"] == []
    assert sum(folder["voxels per label"].values()) == 2 * 720
    assert scan["shape"] == [8, 9, 10] and scan["orientation"] == "LPS" and scan["unit"] == "mm"
    bad = broken_set(tmp_path / "bad", "value")
    assert cli.run(["inspect", str(bad)]) == 1
    assert "PROBLEM" in capsys.readouterr().out


def test_threads_wait_passively_unless_the_user_says_otherwise() -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        environment = {name: "7"}
        cli.wait_passively(environment)
        assert environment == {name: "7"}
    environment = {}
    cli.wait_passively(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.slow
@pytest.mark.parametrize(("given", "said"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_the_choice_reaches_the_openmp_that_torch_loads(given: dict[str, str], said: str, tmp_path: Path) -> None:
    """OpenMP itself prints what it was given, when it is loaded."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [
        sys.executable,
        "-m",
        "medunet",
        "predict",
        str(tmp_path / "none"),
        str(tmp_path),
        "-o",
        str(tmp_path / "o"),
    ]
    answer = subprocess.run(
        command, env=kept | given | {"OMP_DISPLAY_ENV": "TRUE"}, capture_output=True, text=True, check=False
    )
    if "OMP_WAIT_POLICY" not in answer.stderr:
        pytest.skip("this OpenMP does not print its settings")
    assert f"OMP_WAIT_POLICY = '{said}'" in answer.stderr
