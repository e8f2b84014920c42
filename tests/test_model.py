"""Model files: everything comes back, damage is noticed, nothing runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from medunet.config import to_plain
from medunet.datasets.labels import table_from_names
from medunet.errors import ConfigError, ModelError
from medunet.model import ModelCard, _digest, load_model, save_model
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from medunet.transforms.preprocess import Normalisation, PreprocessSettings

SETTINGS = UNetSettings(dimensions=2, channels=(4, 8), classes=3, kernels=((3, 3), (3, 1)), dropout=0.1)
CARD = ModelCard(
    name="test", network=SETTINGS,
    preprocess=PreprocessSettings(spacing=(1.0, 2.0), normalise=(Normalisation("ct", False, -99.0, 300.0, 5.0, 70.5),)),
    labels=table_from_names({"background": 0, "a": 32, "b": 255}, 7), channels=("CT",), patch=(16, 16),
    mirror_axes=(1,), record={"cases": 3},
)  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "model.safetensors", UNet(SETTINGS).state_dict(), CARD)
    return tmp_path / "model.safetensors"


def test_card_and_weights_come_back(saved: Path) -> None:
    model = load_model(saved)
    assert model.card == CARD
    torch.manual_seed(0)
    original = UNet(SETTINGS).eval()
    image = torch.randn(1, 1, 16, 16)
    assert torch.equal(original(image), model.network(image))
    assert not model.network.training
    assert load_model(saved.parent).checksum == model.checksum


def test_a_flipped_bit_is_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-5] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ModelError, match="checksum"):
        load_model(saved)


@pytest.mark.parametrize("what", ["empty", "text", "foreign", "truncated", "pickle", "missing", "unfinished run"])
def test_what_is_no_model_is_one_clear_error(saved: Path, tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.safetensors"
    if what == "empty":
        path.write_bytes(b"")
    elif what == "text":
        path.write_text("hello, I am a model")
    elif what == "foreign":
        save_file({"w": torch.zeros(2)}, path)
    elif what == "truncated":
        path.write_bytes(saved.read_bytes()[:-100])
    elif what == "pickle":
        torch.save({"w": torch.zeros(2)}, path)
    elif what == "unfinished run":
        path = tmp_path / "run"
        path.mkdir()
    with pytest.raises(ModelError) as error:
        load_model(path)
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_a_card_from_another_version_is_an_error(saved: Path) -> None:
    tensors = load_file(saved)
    with saved.open("rb") as file:
        header = json.loads(file.read(int(np.frombuffer(file.read(8), np.uint64)[0])))
    metadata = json.loads(header["__metadata__"]["medunet"])
    card = json.loads(metadata["card"])
    card["network"]["channels"] = [4, 8, 16]
    metadata["card"] = json.dumps(card)
    save_file(tensors, saved, metadata={"medunet": json.dumps(metadata)})
    with pytest.raises(ModelError, match="does not match its checksum"):
        load_model(saved)
    metadata["sha256"] = _digest(tensors, metadata["card"])
    save_file(tensors, saved, metadata={"medunet": json.dumps(metadata)})
    with pytest.raises(ModelError, match="cannot be used"):
        load_model(saved)


def test_a_card_from_before_there_were_other_architectures_is_that_of_our_own() -> None:
    plain = to_plain(CARD)
    assert plain["network"].pop("architecture") == "unet"
    assert TypeAdapter(ModelCard).validate_json(json.dumps(plain)) == CARD
    plain["network"]["architecture"] = "os.system"
    with pytest.raises(ConfigError, match=r"os\.system is unknown"):
        TypeAdapter(ModelCard).validate_json(json.dumps(plain))
