"""A MONAI script with medunet's parts: loading, exact inference and saving against medunet's own commands."""

from __future__ import annotations

import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor, PersistentDataset, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import Compose, Flipd, Invertd, LoadImaged, RandFlipd

import medunet
import medunet.monai as mm
from medunet.errors import ConfigError, DataError, OutputError
from medunet.inference.streaming.graph import NotLocal
from tests.flows.made import make_set


def files_of(data: Path) -> list[dict[str, str]]:
    images = sorted((data / "images").iterdir())
    return [{"image": str(path), "label": str(data / "labels" / path.name)} for path in images]


def network(norm: str = "batch") -> UNet:
    torch.manual_seed(0)
    return UNet(3, 1, 3, (4, 8), (2,), norm=norm).eval()


LOAD = mm.LoadScand(["image", "label"], labels="label")


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_a_scan_is_loaded_as_medunet_reads_it(tmp_path: Path) -> None:
    files = files_of(make_set(tmp_path, 1))[0]
    found, volume = LOAD(files), medunet.read_volume(files["image"])
    assert np.array_equal(found["image"].numpy(), volume.array.astype(np.float32))
    assert np.array_equal(found["image"].affine.numpy(), volume.affine)
    assert found["label"].dtype in (torch.uint8, torch.int16, torch.int32)
    label = nibabel.load(files["label"])
    assert np.array_equal(found["label"][0].numpy(), np.asarray(label.dataobj))
    read = LoadImaged("image", reader=mm.VolumeReader(), ensure_channel_first=True)({"image": files["image"]})
    assert np.array_equal(read["image"].numpy(), found["image"].numpy())


def test_the_whole_script(tmp_path: Path) -> None:
    """Load in a loader with workers, infer exactly, take the flip back, and save on the scan's own grid."""
    files = files_of(make_set(tmp_path / "data", 2))
    before = Compose([LOAD, Flipd(["image", "label"], spatial_axis=0)])
    after = Compose(
        [
            Invertd("pred", transform=before, orig_keys="image", nearest_interp=True),
            mm.SaveLabelsd("pred", like="image", output_dir=tmp_path / "out"),
        ]
    )
    loader = DataLoader(CacheDataset(files, before, progress=False), batch_size=1, num_workers=2)
    net = network()
    for file, batch in zip(files, loader, strict=True):
        logits = mm.ExactInferer(memory="1G")(batch["image"], net)
        image = batch["image"].as_tensor()
        if all(n % 2 == 0 for n in image.shape[2:]):
            with torch.no_grad():
                expected = net(image)
            most = float(expected.abs().max())
            torch.testing.assert_close(logits.as_tensor(), expected, rtol=0, atol=1e-5 * most)
        batch["pred"] = logits.argmax(1, keepdim=True)
        for item in decollate_batch(batch):
            after(item)
        written = tmp_path / "out" / Path(file["image"]).name
        saved, scan = nibabel.load(written), nibabel.load(file["image"])
        assert np.array_equal(saved.affine, scan.affine) and saved.shape == scan.shape
        assert np.array_equal(np.asarray(saved.dataobj), batch["pred"][0, 0].flip(0).numpy())
        assert saved.header["qform_code"] == scan.header["qform_code"]


def test_an_existing_file_and_another_grid_are_refused(tmp_path: Path) -> None:
    item = LOAD(files_of(make_set(tmp_path / "data", 1))[0])
    save = mm.SaveLabelsd("label", like="image", output_dir=tmp_path / "out")
    save(item)
    with pytest.raises(OutputError):
        save(item)
    moved = Flipd(["image", "label"], spatial_axis=0)(item)
    moved["label"] = moved["label"][:, 1:]
    with pytest.raises(DataError, match=r"another grid.*\n.*Invertd"):
        mm.SaveLabelsd("label", like="image", output_dir=tmp_path / "other")(moved)


def test_parts_are_pickled_and_kept_by_monais_datasets(tmp_path: Path) -> None:
    files = files_of(make_set(tmp_path / "data", 2))
    transform = Compose([LOAD, RandFlipd(["image", "label"], prob=1.0, spatial_axis=1)])
    pickle.loads(pickle.dumps([transform, mm.ExactInferer()]))  # noqa: S301 - what was pickled a line before
    kept = PersistentDataset(files, transform, cache_dir=tmp_path / "cache")
    assert torch.equal(kept[0]["label"], kept[0]["label"])
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_inference_of_odd_sizes_metatensors_and_windows(caplog: pytest.LogCaptureFixture) -> None:
    image = MetaTensor(torch.randn(2, 1, 13, 9, 10), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    found = mm.ExactInferer()(image, network())
    assert isinstance(found, MetaTensor) and torch.equal(found.affine, image.affine)
    padded = torch.nn.functional.pad(image.as_tensor(), (0, 0, 0, 1, 0, 1))
    with torch.no_grad():
        expected = network()(padded)[:, :, :13, :9]
    torch.testing.assert_close(found.as_tensor(), expected, rtol=0, atol=1e-5)
    with pytest.raises(NotLocal, match="takes statistics over the scan"):
        mm.ExactInferer()(image, network("instance"))
    even = image.as_tensor()[:, :, :12, :8]
    blended = mm.ExactInferer(windows=(8, 8, 8))(even, network("instance"))
    assert "takes statistics" in caplog.text
    with torch.no_grad():
        monai = SlidingWindowInferer((8, 8, 8), 1, 0.5, "gaussian")(even, network("instance"))
    torch.testing.assert_close(blended, monai, rtol=0, atol=1e-5)


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ConfigError, match="no size"):
        mm.ExactInferer(memory="lots")
    with pytest.raises(ConfigError, match="training mode"):
        mm.ExactInferer()(torch.zeros(1, 1, 8, 8, 8), network().train())
    with pytest.raises(ConfigError, match="expected a torch module"):
        mm.ExactInferer()(torch.zeros(1, 1, 8, 8, 8), lambda x: x)
    with pytest.raises(ConfigError, match=r"\(batch, channel, \*spatial\)"):
        mm.ExactInferer()(torch.zeros(8, 8, 8), network())
    with pytest.raises(ConfigError, match="names 'mask', which is none of the keys"):
        mm.LoadScand(["image"], labels="mask")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.float32, ">i2"])
def test_a_volume_goes_to_monai_and_back(dtype: object) -> None:
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(dtype)  # type: ignore[call-overload]
    volume = medunet.Volume(array, np.diag([1.0, 2, 3, 1]), "um")
    back = medunet.Volume.from_metatensor(volume.to_metatensor())
    assert np.array_equal(back.array, array) and np.array_equal(back.affine, volume.affine) and back.unit == "um"
