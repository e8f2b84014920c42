"""Prediction: outputs on the scan's own grid, refusals before any work, one bad case stops no other."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import medunet
import medunet.predict
from medunet.api import segment_volume
from medunet.datasets.labels import table_from_names
from medunet.errors import ConfigError, DataError, MedunetError, OutputError
from medunet.geometry.tiles import plan_tiles
from medunet.inference.overlap_tile import overlap_tile
from medunet.inference.sliding_window import Windows, blended_windows
from medunet.model import Model, ModelCard, load_model, save_model
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from medunet.predict import segment_files
from medunet.prediction.outputs import PredictRequest, as_cases
from medunet.prediction.planning import PredictSettings
from medunet.prediction.segmenter import Segmenter
from medunet.transforms.preprocess import Normalisation, PreprocessSettings, preprocess
from medunet.transforms.restore import restore_labels
from medunet.volume import Volume
from tests.inference.oracles import whole_pass

LABELS = table_from_names({"background": 0, "dark": 32, "bright": 255}, None)


def card(**changes: object) -> ModelCard:
    given: dict = {
        "name": "thresholds",
        "network": UNetSettings(channels=(4, 8), classes=3, strides=2),
        "preprocess": PreprocessSettings(normalise=(Normalisation("none"),)),
        "labels": LABELS,
        "channels": ("MRI",),
        "patch": (16, 16, 16),
    }
    return ModelCard(**(given | changes))


def make_model(**changes: object) -> Model:
    torch.manual_seed(1)
    made = card(**changes)
    return Model(UNet(made.network).eval(), made)


class Thresholds(torch.nn.Module):
    """A network whose answer is known: 0 below 1, class 1 below 2, else class 2."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([1 - image, 1 - (image - 1.5).abs() * 2, image - 2], dim=1)


def known_model(**changes: object) -> Model:
    return Model(Thresholds().eval(), card(**changes))


def volume_of(shape: tuple[int, ...], code: str = "LPI", spacing: tuple[float, ...] = (1.0, 2.0, 1.5)) -> Volume:
    ornt = nib.orientations.axcodes2ornt(tuple(code))
    affine = nib.orientations.inv_ornt_aff(ornt, shape) @ np.diag([*spacing, 1])
    values = np.random.default_rng(0).choice([0.0, 1.5, 4.0], size=(1, *shape)).astype(np.float32)
    return Volume(values, affine)


@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("tta", [False, True])
def test_known_answers_come_back_voxel_for_voxel_on_the_scans_grid(code: str, tta: bool) -> None:
    volume = volume_of((13, 9, 7), code)
    settings = PredictSettings(tta=tta, precision="fp32")
    result = segment_volume(volume, known_model(mirror_axes=(0, 2)), settings)
    expected = np.select([volume.array < 1, volume.array < 2], [0, 32], 255)
    np.testing.assert_array_equal(result.array, expected)
    np.testing.assert_array_equal(result.affine, volume.affine)
    assert result.array.dtype == np.uint8


@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("padded", [True, False])
def test_exact_results_are_those_of_one_pass_over_the_whole_scan(code: str, padded: bool) -> None:
    model = make_model(network=UNetSettings(channels=(4, 8), classes=3, padded=padded), patch=(20, 20, 20))
    volume = volume_of((13, 9, 7), code)
    array, undo = preprocess(volume, model.card.preprocess)
    image = torch.from_numpy(array)
    if padded:
        logits = whole_pass(model.network, image, (2, 2, 2))
    else:
        shape = model.card.network.shape
        tile = shape.smallest_for(array.shape[1:])
        logits = overlap_tile(model.network, image, plan_tiles(array.shape[1:], tile, shape))
    expected = model.card.labels.to_values(restore_labels(logits.numpy(), undo))
    exact = segment_volume(volume, model, PredictSettings(method="exact", precision="fp32"))
    np.testing.assert_array_equal(exact.array, expected)
    assert len(np.unique(expected)) > 1


def plain_result(model: Model, volume: Volume) -> np.ndarray:
    """The oracle: one plain pass over everything, all scores at once, nothing of streaming or restoring by rows."""
    array, undo = preprocess(volume, model.card.preprocess)
    scores = whole_pass(model.network, torch.from_numpy(array), model.card.network.shape.stride)
    if undo.resampled:
        scores = scores.softmax(0)
    return model.card.labels.to_values(restore_labels(scores.numpy(), undo))


def parts(model: Model, volume: Volume, settings: PredictSettings) -> int:
    segmenter = Segmenter([model], settings)
    return len(segmenter.plan(segmenter.open(volume)).parts)


WIDE = UNetSettings(channels=(4, 8), classes=3)


@pytest.mark.slow
def test_a_wide_scan_is_split_to_fit_the_memory_and_gives_the_same() -> None:
    model = make_model(network=WIDE)
    volume = volume_of((40, 120, 90), "LPS")
    plain = plain_result(model, volume)
    settings = PredictSettings(precision="fp32")
    assert parts(model, volume, settings) == 1
    while parts(model, volume, settings) == 1:
        settings = replace(settings, memory=int(0.97 * min(settings.memory, 2**27)))
    for how in (settings, PredictSettings(precision="fp32")):
        different = segment_volume(volume, model, how).array != plain
        assert different.mean() < 1e-5, "ties that rounding decides"
    assert len(np.unique(plain)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["auto", "blend"])
def test_too_little_memory_is_an_error_that_says_how_much_would_do(way: str) -> None:
    model, volume = make_model(network=WIDE), volume_of((30, 60, 60))
    with pytest.raises(ConfigError, match=r"needs? about .* but --memory allows 1 MiB; give --memory \d+M") as error:
        segment_volume(volume, model, PredictSettings(memory=2**20, method=way))  # type: ignore[arg-type]
    enough = int(re.search(r"give --memory (\d+)M", str(error.value))[1]) * 2**20  # type: ignore[index]
    answer = segment_volume(volume, model, PredictSettings(memory=enough, method=way, precision="fp32"))  # type: ignore[arg-type]
    assert answer.shape == volume.shape


@pytest.mark.slow
@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("tight", [False, True])
def test_resampled_scans_are_interpolated_as_one_would_by_hand(tta: bool, tight: bool) -> None:
    """Streams, mirror images, parts and rows that are interpolated as they come, against all scores at once."""
    model = make_model(
        network=WIDE, mirror_axes=(0, 1), preprocess=PreprocessSettings(spacing=(0.9, 1.6, 1.1), crop="nonzero")
    )
    volume = volume_of((50, 70, 41), "PIL", (1.0, 1.2, 2.0))
    volume.array[:, :9] = 0
    array, undo = preprocess(volume, model.card.preprocess)
    image = torch.from_numpy(array)
    total = torch.zeros((3, *array.shape[1:]))
    for axes in ([], [1], [2], [1, 2]) if tta else ([],):
        total += whole_pass(model.network, image.flip(axes), (2, 2, 2)).flip(axes).softmax(0)
    expected = model.card.labels.to_values(restore_labels(total.numpy(), undo))
    settings = PredictSettings(precision="fp32", tta=tta)
    while tight and parts(model, volume, settings) == 1:
        settings = replace(settings, memory=int(0.97 * min(settings.memory, 2**27)))
    answer = segment_volume(volume, model, settings)
    assert (answer.array != expected).mean() < 1e-4, "ties that rounding decides"
    assert len(np.unique(expected)) > 1


def test_several_models_are_averaged() -> None:
    volume = volume_of((13, 9, 7))
    nets = [UNet(UNetSettings(channels=(4, 8), classes=3), seed).eval() for seed in (1, 2, 3)]
    other = [Normalisation("none")] * 2 + [Normalisation("ct", low=0, high=3, mean=1, std=2)]
    models = [
        Model(net, card(preprocess=PreprocessSettings(normalise=(how,)))) for net, how in zip(nets, other, strict=True)
    ]
    total = torch.zeros((3, *preprocess(volume, models[0].card.preprocess)[0].shape[1:]))
    for model in models:
        array, undo = preprocess(volume, model.card.preprocess)
        total += whole_pass(model.network, torch.from_numpy(array), (2, 2, 2)).softmax(0)
    expected = LABELS.to_values(restore_labels(total.numpy(), undo))
    answer = segment_volume(volume, models, PredictSettings(precision="fp32"))
    np.testing.assert_array_equal(answer.array, expected)
    assert not np.array_equal(answer.array, segment_volume(volume, models[:1], PredictSettings(precision="fp32")).array)
    with pytest.raises(ConfigError, match="differ in their labels"):
        segment_volume(volume, [models[0], make_model(labels=table_from_names({"a": 0, "b": 1, "c": 2}, None))])
    with pytest.raises(ConfigError, match="no model"):
        segment_volume(volume, [])


def test_an_array_lies_on_the_models_own_grid() -> None:
    model = make_model(preprocess=PreprocessSettings(spacing=(0.5, 0.5, 0.5)))
    array = np.random.default_rng(0).normal(50, 9, size=(1, 13, 9, 7)).astype(np.float32)
    normalised = (array - array.mean(dtype=np.float64)) / array.std(dtype=np.float64)
    scores = whole_pass(model.network, torch.from_numpy(normalised.astype(np.float32)), (2, 2, 2))
    answer = segment_volume(array, model, PredictSettings(precision="fp32"))
    assert isinstance(answer, np.ndarray)
    np.testing.assert_array_equal(answer[0], LABELS.to_values(scores.argmax(0).numpy()))


@pytest.mark.slow
@pytest.mark.parametrize("padded", [True, False])
def test_networks_with_instance_norm_go_by_patches_and_say_so(padded: bool) -> None:
    model = make_model(
        network=UNetSettings(channels=(4, 8), classes=3, norm="instance", padded=padded), mirror_axes=(0, 2)
    )
    volume = volume_of((30, 26, 17))
    for tta in (False, True):
        segmenter = Segmenter([model], PredictSettings(precision="fp32", tta=tta))
        plan = segmenter.plan(segmenter.open(volume))
        assert plan.method.way == ("blend" if padded else "tiles") and not plan.method.exact
        assert "instance norm takes its statistics over the tile" in plan.describe()
        array, undo = preprocess(volume, model.card.preprocess)
        image = torch.from_numpy(array)
        total = torch.zeros((3, *array.shape[1:]))
        for axes in ([], [1], [3], [1, 3]) if tta else ([],):
            if padded:
                scores = blended_windows(model.network, image.flip(axes), Windows((16, 16, 16)))
            else:
                shape = model.card.network.shape
                plan_ = plan_tiles(image.shape[1:], shape.smallest_for(image.shape[1:]), shape)
                scores = overlap_tile(model.network, image.flip(axes), plan_)
            total += scores.flip(axes).softmax(0)
        expected = LABELS.to_values(restore_labels(total.numpy(), undo))
        answer = segment_volume(volume, model, PredictSettings(precision="fp32", tta=tta)).array
        assert (answer != expected).mean() < 1e-3


def test_a_model_at_another_spacing_still_answers_on_the_scans_grid() -> None:
    blocks = np.repeat(np.repeat(np.repeat(np.array([[[[0.0, 4.0]]]]), 12, 1), 12, 2), 6, 3).astype(np.float32)
    volume = Volume(blocks, np.diag([1.0, 1.0, 2.0, 1.0]))
    model = known_model(preprocess=PreprocessSettings(spacing=(1.0, 1.0, 1.0), normalise=(Normalisation("none"),)))
    result = segment_volume(volume, model)
    assert result.shape == volume.shape
    np.testing.assert_array_equal(result.array[..., :5], 0)
    np.testing.assert_array_equal(result.array[..., 7:], 255)


def test_a_two_dimensional_model_goes_through_a_volume_slice_by_slice() -> None:
    flat = {"network": UNetSettings(dimensions=2, channels=(4, 8), classes=3), "patch": (16, 16), "slice_axis": 1}
    volume = volume_of((8, 5, 10), "RAS")
    result = segment_volume(volume, known_model(**flat))
    np.testing.assert_array_equal(result.array, np.select([volume.array < 1, volume.array < 2], [0, 32], 255))
    real = make_model(**flat)
    whole = segment_volume(volume, real, PredictSettings(precision="fp32")).array
    one = Volume(np.ascontiguousarray(volume.array[:, :, 2]), volume.affine)
    np.testing.assert_array_equal(segment_volume(one, real, PredictSettings(precision="fp32")).array, whole[:, :, 2])


def test_unpadded_networks_answer_for_every_voxel() -> None:
    model = make_model(
        network=UNetSettings(channels=(4, 8), classes=3, padded=False), patch=(20, 20, 20),
    )  # fmt: skip
    assert segment_volume(volume_of((11, 7, 9)), model).shape == (11, 7, 9)


def test_what_does_not_fit_the_model_is_refused() -> None:
    two = Volume(np.zeros((2, 8, 8, 8), np.float32))
    with pytest.raises(DataError, match=r"has 2 channel\(s\), the model was trained on 1 \(MRI\)"):
        segment_volume(two, make_model())
    with pytest.raises(DataError, match="is a picture, the model was trained on volumes"):
        segment_volume(Volume(np.zeros((1, 8, 8), np.float32)), make_model())
    with pytest.raises(ConfigError, match="instance norm"):
        segment_volume(
            volume_of((8, 8, 8)),
            make_model(network=UNetSettings(channels=(4, 8), classes=3, norm="instance")),
            PredictSettings(method="exact"),
        )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_model(tmp_path / "run" / "model.safetensors", UNet(card().network).state_dict(), card())
    return tmp_path / "run"


def save_scan(path: Path, shape: tuple[int, ...] = (9, 8, 7)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    medunet.write_volume(volume_of(shape), path)
    return path


def test_a_folder_of_scans_with_one_bad_one(run: Path, tmp_path: Path) -> None:
    for name in "abc":
        save_scan(tmp_path / "in" / f"{name}.nii.gz")
    bad = tmp_path / "in" / "b.nii.gz"
    bad.write_bytes(bad.read_bytes()[:300])
    request = PredictRequest([tmp_path / "in"], tmp_path / "out", record=tmp_path / "record.json", probabilities=True)
    summary = segment_files(str(run), request, PredictSettings())
    assert summary.failed == ["b"] and str(bad) in summary.errors[0]
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["a.nii.gz", "a_probabilities.nii.gz", "c.nii.gz", "c_probabilities.nii.gz"]
    record = json.loads((tmp_path / "record.json").read_text())
    assert [("error" in c) for c in record["cases"]] == [False, True, False]
    assert record["models"][0]["sha256"] == load_model(run).checksum
    probabilities = medunet.read_volume(tmp_path / "out" / "a_probabilities.nii.gz").array
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    labels = medunet.read_volume(tmp_path / "out" / "a.nii.gz").array
    np.testing.assert_array_equal(np.array([0, 32, 255])[probabilities.argmax(axis=0)], labels[0])


@pytest.mark.slow
def test_one_scan_to_a_named_file(run: Path, tmp_path: Path) -> None:
    scan = save_scan(tmp_path / "a.nii.gz")
    segment_files(str(run), PredictRequest([scan], tmp_path / "result.mha"), PredictSettings())
    result = medunet.read_volume(tmp_path / "result.mha")
    np.testing.assert_allclose(result.affine, medunet.read_volume(scan).affine, atol=1e-5)


REFUSALS = {
    "exists": "exists already",
    "record exists": "exists already",
    "probabilities exist": "exists already",
    "an input": "is one of the scans",
    "below a file": "cannot be written",
    "collision": "would write the same output",
    "one file for two": "is one file, but 2 scans",
    "suffix": "cannot be written; expected a folder or a name ending in",
    "no scan": "holds no scan",
    "no model": "is not a medunet model",
    "missing": "no such file or folder",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSALS)
def test_refusals_before_any_work(run: Path, tmp_path: Path, what: str) -> None:
    first, second = save_scan(tmp_path / "x" / "a.nii.gz"), save_scan(tmp_path / "y" / "a.nii.gz")
    model, inputs, output = str(run), [first], tmp_path / "out"
    extra: dict = {}
    if what == "exists":
        save_scan(output / "a.nii.gz")
    elif what == "record exists":
        (tmp_path / "r.json").write_text("{}")
        extra = {"record": tmp_path / "r.json"}
    elif what == "probabilities exist":
        save_scan(output / "a_probabilities.nii.gz")
        extra = {"probabilities": True}
    elif what == "an input":
        output = first.parent
        extra = {"overwrite": True}
    elif what == "below a file":
        output = first / "out"
    elif what == "collision":
        inputs = [first, second]
    elif what == "one file for two":
        inputs, output = [first, save_scan(tmp_path / "b.nii.gz")], tmp_path / "o.nii.gz"
    elif what == "suffix":
        output = tmp_path / "o.jpg"
    elif what == "no scan":
        (tmp_path / "empty").mkdir()
        inputs = [tmp_path / "empty"]
    elif what == "no model":
        model = str(first)
    elif what == "missing":
        inputs = [tmp_path / "nowhere.nii"]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MedunetError, match=REFUSALS[what]):
        segment_files(model, PredictRequest(inputs, output, **extra), PredictSettings())
    assert sorted(tmp_path.rglob("*")) == before


def test_overwrite_replaces(run: Path, tmp_path: Path) -> None:
    scan = save_scan(tmp_path / "a.nii.gz")
    for overwrite in (False, True):
        segment_files(str(run), PredictRequest([scan], tmp_path / "out", overwrite=overwrite), PredictSettings())
    with pytest.raises(OutputError, match="exists already"):
        segment_files(str(run), PredictRequest([scan], tmp_path / "out"), PredictSettings())


def test_nothing_but_background_is_said(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = UNet(card().network).state_dict()
    head = next(name for name in weights if "head" in name and name.endswith("bias"))
    weights[head] = torch.tensor([100.0, 0.0, 0.0])
    save_model(run / "model.safetensors", weights, card())
    summary = segment_files(
        str(run), PredictRequest([save_scan(tmp_path / "a.nii.gz")], tmp_path / "o"), PredictSettings()
    )
    assert any("NOTE: nothing but background" in line for line in summary.lines)


def test_another_version_of_a_name_is_no_obstacle(run: Path, tmp_path: Path) -> None:
    save_scan(tmp_path / "out" / "a.v2.nii.gz")
    request = PredictRequest([save_scan(tmp_path / "a.nii.gz")], tmp_path / "out")
    assert not segment_files(str(run), request, PredictSettings()).failed


def test_running_out_of_memory_stops_one_scan_only(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = [save_scan(tmp_path / f"{name}.nii.gz") for name in "ab"]
    real, calls = Segmenter.pieces, []

    def once(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Segmenter, "pieces", once)
    summary = segment_files(str(run), PredictRequest(scans, tmp_path / "out"), PredictSettings())
    assert summary.failed == ["a"] and "--memory" in summary.errors[0]
    assert (tmp_path / "out" / "b.nii.gz").exists()


def test_channels_are_grouped_only_for_models_that_want_several(tmp_path: Path) -> None:
    files = [tmp_path / f"p_{number:04d}.nii.gz" for number in (0, 1)]
    (case,) = as_cases(files, 2)
    assert case.name == "p" and case.images == tuple(files)
    assert [c.name for c in as_cases(files, 1)] == ["p_0000", "p_0001"]
    assert [c.name for c in as_cases([tmp_path / "a_0000.nii", tmp_path / "b_0000.nii"], 1)] == ["a", "b"]
    assert [c.name for c in as_cases([tmp_path / "time_0003.nii"], 1)] == ["time_0003"]


def small_model(path: Path, **changes: object) -> Path:
    """A small 2-D model of one channel, in a file."""
    settings = UNetSettings(channels=(4, 8), classes=3, strides=2, dimensions=2)
    made = card(network=settings, patch=(16, 16), **changes)
    torch.manual_seed(1)
    save_model(path, UNet(settings).state_dict(), made)
    return path


@pytest.mark.slow
def test_a_channel_is_found_by_name_or_chosen(tmp_path: Path) -> None:
    """A file of several channels gives what its one channel alone gives; a coloured picture is refused with advice."""
    rng = np.random.default_rng(0)
    array = rng.normal(0, 3, (3, 20, 24)).astype(np.float32)
    many, one, rgb = tmp_path / "many.ome.tif", tmp_path / "one.tif", tmp_path / "rgb.png"
    metadata = {"axes": "CYX", "Channel": {"Name": ["GFP", "mri", "Cy5"]}}
    tifffile.imwrite(many, array, ome=True, photometric="minisblack", metadata=metadata)
    tifffile.imwrite(one, array[1])
    Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(rgb)
    tifffile.imwrite(tmp_path / "time.tif", np.stack([array[0], array[1]]), imagej=True, metadata={"axes": "TYX"})
    model = str(small_model(tmp_path / "m.safetensors"))

    def predicted(name: str, **options: object) -> np.ndarray:
        request = PredictRequest([tmp_path / name], tmp_path / f"out_{name}", "cpu", overwrite=True, **options)
        summary = segment_files(model, request, PredictSettings())
        assert not summary.failed, summary.errors
        return np.array(medunet.read_volume(tmp_path / f"out_{name}").array)

    alone = predicted("one.tif")
    assert len(np.unique(alone)) > 1
    np.testing.assert_array_equal(predicted("many.ome.tif"), alone)
    np.testing.assert_array_equal(predicted("many.ome.tif", channels=(1,)), alone)
    np.testing.assert_array_equal(predicted("time.tif", frame=2), alone)
    assert not np.array_equal(predicted("many.ome.tif", channels=("gfp",)), alone)
    assert predicted("rgb.png", channels=(0,)).shape == (1, 24, 20)
    summary = segment_files(model, PredictRequest([rgb], tmp_path / "out", "cpu"), PredictSettings())
    assert "has 3 channel(s), the model was trained on 1 (MRI)" in summary.errors[0]
    assert "--channel 0 (red is 0), or save it in grey" in summary.errors[0]


def test_a_folder_of_sections_is_predicted_as_one_scan(tmp_path: Path) -> None:
    sections = tmp_path / "scans" / "s"
    sections.mkdir(parents=True)
    planes = np.random.default_rng(0).integers(0, 4, (5, 20, 24)).astype(np.uint8)
    for number, plane in enumerate(planes):
        Image.fromarray(plane).save(sections / f"{number}.png")
    model = str(small_model(tmp_path / "m.safetensors"))
    for given in (sections, tmp_path / "scans"):
        request = PredictRequest([given], tmp_path / "out", "cpu", overwrite=True, stack=True)
        assert segment_files(model, request, PredictSettings()).failed == []
        labels = medunet.read_volume(tmp_path / "out" / "s.tif")
        assert labels.array.shape == (1, 24, 20, 5)
        with tifffile.TiffFile(tmp_path / "out" / "s.tif") as file:
            assert "ColorMap" in file.pages[0].tags and file.imagej_metadata is not None
    assert not (tmp_path / "out" / "0.png").exists()
