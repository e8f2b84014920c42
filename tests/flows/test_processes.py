"""Two processes, as torchrun starts them, train what one would, and their checkpoints go on with any number of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medunet.cli import run
from medunet.model import load_model
from tests.flows.made import make_set
from tests.fresh import PLAIN, Fresh

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_runs")]

# No biases before norms: their gradients are rounding alone, which AdamW makes into steps of full size.
TINY = ["--set", "network.channels=[4, 8]", "--set", "patches.size=[8, 8, 8]", "--set", "network.bias=false",
        "--set", "network.deep_supervision=true", "--set", "training.epochs=1", "--set", "training.iterations=5",
        "--set", "patches.batch=4", "--set", "training.precision=fp32", "--device", "cpu"]  # fmt: skip


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medunet"]
    return subprocess.run(
        [*program, "train", *arguments], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def compare(one: Path, two: Path) -> None:
    first, second = (torch.load(run / "last.ckpt", weights_only=True) for run in (one, two))
    assert (first["step"], first["epoch"], first["rate"]) == (second["step"], second["epoch"], second["rate"])
    for part in ("network", "ema"):
        torch.testing.assert_close(dict(second[part]), dict(first[part]), rtol=1e-3, atol=2e-5)
    assert second["tally"]["loss"] == pytest.approx(first["tally"]["loss"], rel=1e-4)
    assert second["tally"]["norm"] == pytest.approx(first["tally"]["norm"], rel=1e-3)


def test_two_processes_equal_one_also_after_changing_places(fresh: Fresh, tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", cases=3, shape=(12, 11, 10))
    (tmp_path / "c.yaml").write_text("")
    given = [str(tmp_path / "c.yaml"), *TINY, "--set", f"data.path={data}"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(["train", "-o", str(one), *given]) == 0
    done = torchrun("-o", str(two), *given)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes train together, each on 2 of the 4 patches a batch") == 1
    assert done.stdout.count("model: ") == 1, "one process prints"
    compare(one, two)
    assert load_model(two).card.record["processes"] == 2
    longer = ["--resume", "--set", "training.epochs=2", "--device", "cpu"]
    assert run(["train", "-o", str(two), *longer]) == 0
    done = fresh.pair(PLAIN, "train", "-o", str(one), *longer)
    assert done.returncode == 0, done.stderr
    compare(one, two)


def test_what_is_wrong_is_said_once_and_nothing_is_written(fresh: Fresh, tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", cases=3, shape=(12, 11, 10))
    done = fresh.pair(
        PLAIN, "train", str(data), "-o", str(tmp_path / "run"), *TINY, "--set", "patches.batch=3", "--minutes", "1"
    )
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert done.stderr.count("patches.batch is 3, which 2 processes cannot split evenly\nset it to 2 or 4") == 1
    assert "process 1 of 2 ends, because process 0 reported an error" in done.stderr and "gloo" not in done.stderr
    wild = ["--set", "network.norm=none", "--set", "optimiser.rate=1e25"]
    done = fresh.pair(PLAIN, "train", str(data), "-o", str(tmp_path / "run"), *TINY, *wild)
    (line,) = [line for line in done.stderr.splitlines() if "became nan at step 1 with the cases" in line]
    assert done.returncode == 1 and line.count("case_") == 4, "the whole batch is named, once"
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["step"] == 1


def test_all_folds_are_trained_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name, value in zip(names, ("0", "2", "0", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    data = make_set(tmp_path / "data", cases=3, shape=(12, 11, 10))
    assert run(["train", str(data), "-o", str(tmp_path / "run"), "--fold", "all"]) == 1
    assert "--fold all trains in one process" in capsys.readouterr().err and not (tmp_path / "run").exists()
