"""Prediction through the command line: scans that are wrong, tiny or far too fine, full disks, interruptions."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import medunet
from medunet.cli import run
from medunet.model import save_model
from medunet.networks.settings import UNetSettings
from medunet.transforms.preprocess import Normalisation, PreprocessSettings
from medunet.volume import Volume
from tests.fresh import Fresh
from tests.prediction.made import make_model

DEEP = UNetSettings(channels=(4, 4, 8), classes=3)


def save(folder: Path, **changes: object) -> Path:
    model = make_model(**({"network": DEEP} | changes))  # type: ignore[arg-type]
    save_model(folder / "model.safetensors", model.network.state_dict(), model.card)
    return folder


def scan(path: Path, *shape: int, bad: float | None = None, channels: int = 1) -> Path:
    array = np.random.default_rng(0).normal(100, 20, (channels, *shape)).astype(np.float32)
    if bad is not None:
        array[0, 1, 0, 0] = bad
    medunet.write_volume(Volume(array, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path


def predict(model: Path, *scans: Path, out: Path, more: tuple[str, ...] = ()) -> int:
    return run(["predict", str(model), *map(str, scans), "-o", str(out), "--device", "cpu", *more])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: float) -> None:
    model, out = save(tmp_path / "run"), tmp_path / "out"
    scans = [scan(tmp_path / "bad.nii.gz", 9, 8, 7, bad=bad), scan(tmp_path / "good.nii.gz", 9, 8, 7)]
    assert predict(model, *scans, out=out) == 1
    error = capsys.readouterr().err
    assert "medunet: error: " in error and "bad.nii.gz" in error and "1 voxels are NaN or infinite" in error
    assert [path.name for path in out.iterdir()] == ["good.nii.gz"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 2, 1), (1, 1, 1), (40, 30, 1), (1, 30, 40)])
@pytest.mark.parametrize("padded", [True, False])
def test_scans_smaller_than_the_stride_and_single_slices(tmp_path: Path, shape: tuple[int, ...], padded: bool) -> None:
    network = UNetSettings(channels=(4, 4, 8), classes=3, padded=padded)
    model, place = save(tmp_path / "run", network=network), scan(tmp_path / "a.nii.gz", *shape)
    for way in (("--verify",), ("--tta",), ("--probabilities",), *((("--method", "blend"),) if padded else ())):
        assert predict(model, place, out=tmp_path / way[-1], more=way) == 0
        result = medunet.read_volume(tmp_path / way[-1] / "a.nii.gz")
        assert result.shape == shape and set(np.unique(result.array)) <= {0, 1, 2}
        np.testing.assert_array_equal(result.affine, medunet.read_volume(place).affine)


def test_another_channel_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = scan(tmp_path / "a.nii.gz", 9, 8, 7, channels=2)
    assert predict(save(tmp_path / "run"), place, out=tmp_path / "out") == 1
    assert "has 2 channel(s), the model was trained on 1 (MRI)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_much_finer_target_spacing_is_announced_before_it_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = PreprocessSettings(spacing=(0.8, 0.8, 0.8), normalise=(Normalisation("zscore"),))
    model, place = save(tmp_path / "run", preprocess=how), scan(tmp_path / "a.nii.gz", 9, 8, 7)
    assert predict(model, place, out=tmp_path / "out", more=("--record", str(tmp_path / "r.json"))) == 0
    said = capsys.readouterr().err
    assert "NOTE: the model works on finer voxels" in said and "brought to 22x20x18, 15.7 times its voxels" in said
    assert "MiB of memory" in said
    (case,) = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert case["network_shape"] == [22, 20, 18] and set(case["seconds"]) == {"read", "preprocess", "network", "write"}


@pytest.mark.slow
def test_verification_is_printed_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, place = save(tmp_path / "run"), scan(tmp_path / "a.nii.gz", 19, 18, 17)
    more = ("--verify", "--record", str(tmp_path / "r.json"))
    assert predict(model, place, out=tmp_path / "out", more=more) == 0
    assert "a: verified on the whole scan: streamed is one plain pass to" in capsys.readouterr().out
    (case,) = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert case["verified"]["largest_relative_difference"] < 1e-5 and "verify" in case["seconds"]
    instance = save(tmp_path / "other", network=UNetSettings(channels=(4, 8), classes=3, norm="instance"))
    assert predict(instance, place, out=tmp_path / "o", more=("--verify",)) == 1
    assert "leave --verify out" in capsys.readouterr().err and not (tmp_path / "o").exists()


FULL = """
import resource, signal, sys
from medunet.cli import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import torch
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the file size")
@pytest.mark.parametrize("more", [(), ("--probabilities",)])
def test_a_full_disk_is_one_error_and_leaves_nothing(fresh: Fresh, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Random labels do not compress below the limit; of probabilities beside labels, the labels alone would fit."""
    model, place, out = save(tmp_path / "run"), scan(tmp_path / "a.nii.gz", 60, 50, 40), tmp_path / "out"
    limit = 40_000 if more else 2_000
    arguments = ["predict", str(model), str(place), "-o", str(out), "--device", "cpu", *more]
    answer = fresh.run(FULL.format(limit=limit), *arguments)
    assert answer.returncode == 1, answer.stderr
    error = answer.stderr[answer.stderr.index("medunet: error:") :]
    assert "a.nii.gz" in error or "a_probabilities.nii.gz" in error
    assert "cannot be written" in error and "free disk space" in error and len(error.splitlines()) <= 3
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the file size")
def test_a_full_disk_does_not_cost_the_results_that_were_to_be_replaced(fresh: Fresh, tmp_path: Path) -> None:
    """Of labels and probabilities the labels would fit; both old files stay, and both are replaced if both fit."""
    model, place, out = save(tmp_path / "run"), scan(tmp_path / "a.nii.gz", 60, 50, 40), tmp_path / "out"
    names = ["a.nii.gz", "a_probabilities.nii.gz"]
    out.mkdir()
    for name in names:
        (out / name).write_bytes(b"old")
    arguments = ["predict", str(model), str(place), "-o", str(out), "--device", "cpu", "--probabilities", "--overwrite"]
    answer = fresh.run(FULL.format(limit=40_000), *arguments)
    assert answer.returncode == 1 and f"{out / names[1]}: cannot be written" in answer.stderr
    assert sorted(path.name for path in out.iterdir()) == names
    assert all((out / name).read_bytes() == b"old" for name in names)
    assert run(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == names
    assert all(medunet.read_volume(out / name).shape == (60, 50, 40) for name in names)


HEARING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
from medunet.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_leaves_whole_files_only(
    fresh: Fresh, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    model, out = save(tmp_path / "run"), tmp_path / "out"
    first = scan(tmp_path / "in" / "case_00.nii.gz", 40, 40, 40)
    for index in range(1, 200):
        (tmp_path / "in" / f"case_{index:02}.nii.gz").write_bytes(first.read_bytes())
    arguments = ["predict", str(model), str(tmp_path / "in"), "-o", str(out), "--device", "cpu"]
    process = fresh.start(HEARING, *arguments)
    while process.poll() is None and len(list(out.glob("case*"))) < 3:
        time.sleep(0.01)
    process.send_signal(number)
    ended = process.wait()
    said = ended.stderr
    assert ended.returncode == code and "finished outputs are kept" in said and "Traceback" not in said
    names = sorted(path.name for path in out.iterdir())
    assert 3 <= len(names) < 200 and all(name.startswith("case_") for name in names)
    for name in names:
        assert medunet.read_volume(out / name).shape == (40, 40, 40)
