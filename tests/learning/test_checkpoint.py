"""Checkpoints: a flipped bit is found, the generation before goes on, and a full disk leaves the last one."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from medunet.errors import ModelError, OutputError
from medunet.learning.checkpoint import load_checkpoint, previous_of, save_checkpoint
from medunet.learning.loop import TrainState


def state_at(step: int) -> TrainState:
    torch.manual_seed(step)
    network = nn.Conv2d(3, 8, 3)
    return TrainState(network, torch.optim.SGD(network.parameters(), 0.1), None, step=step)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two generations: step 2 after step 1."""
    path = tmp_path / "last.ckpt"
    for step in (1, 2):
        save_checkpoint(path, state_at(step), "run")
    return path


def flip(path: Path, part: str) -> None:
    """One bit in the middle of a part of the file, as a failing disk does it."""
    with zipfile.ZipFile(path) as parts:
        found = next(info for info in parts.infolist() if info.filename.endswith(part))
    data = bytearray(path.read_bytes())
    # A local header has 30 bytes, a name and padding before the content.
    start = found.header_offset + 30 + len(found.filename.encode())
    start += int.from_bytes(data[found.header_offset + 28 : found.header_offset + 30], "little")
    data[start + found.file_size // 2] ^= 8
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["data/0", "data/1", "data.pkl"])
def test_a_flipped_bit_is_named_and_the_generation_before_goes_on(saved: Path, part: str) -> None:
    assert load_checkpoint(saved).step == 2 and not load_checkpoint(saved).note
    flip(saved, part)
    found = load_checkpoint(saved)
    assert found.step == 1
    assert found.note.startswith("NOTE: last.ckpt is damaged") and part in found.note
    assert found.note.endswith("going on from last.previous.ckpt, step 1")
    previous_of(saved).unlink()
    with pytest.raises(
        ModelError, match=r"last\.ckpt is damaged.*; last\.previous\.ckpt is missing\n.*without --resume"
    ):
        load_checkpoint(saved)


def test_a_cut_file_is_no_checkpoint(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    assert load_checkpoint(saved).step == 1


def test_a_disk_that_gives_up_is_one_error_and_leaves_both_generations(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"last\.ckpt: cannot be written .*\n.*free disk space"):
        save_checkpoint(saved, state_at(3), "run")
    assert load_checkpoint(saved).step == 2 and len(list(saved.parent.iterdir())) == 2
