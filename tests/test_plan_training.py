"""The planner's rules on made-up fingerprints, and its promises on all of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.config import Config, parse_config, to_plain
from medunet.datasets.labels import LabelTable, table_from_names
from medunet.errors import ConfigError
from medunet.networks.cost import step_cost, step_memory
from medunet.plan_training import plan, plan_measured
from medunet.planning.budget import Budget
from medunet.planning.fingerprint import CaseFacts, Fingerprint, Intensities, Objects, ScanRange
from medunet.planning.preprocessing import Grid
from medunet.planning.recipe import partly_annotated, warnings
from medunet.planning.trial import Trial
from medunet.transforms.augment.augmentation import Augmentation

VALUES = Intensities(-900.0, 1200.0, 80.0, 200.0, -1024.0, 3000.0)
SPEED = 2.4e11


def facts(shape: tuple[int, ...], spacing: tuple[float, ...], **other: object) -> CaseFacts:
    given = {"unit": "mm", "content": 1.0, "zeros": 0.0, "voxels": (900, 100), "ignored": 0} | other
    return CaseFacts("case", shape, spacing, **given)  # type: ignore[arg-type]


def fingerprint(*cases: CaseFacts, labels: dict[str, int] | None = None, channels: int = 1) -> Fingerprint:
    table = table_from_names(labels or {"background": 0, "organ": 1}, None)
    cases = tuple(replace(c, voxels=(*c.voxels, *[100] * table.classes)[: table.classes]) for c in cases)
    return Fingerprint(cases, (VALUES,) * channels, table)


def budget(minutes: float = 15, memory: int = 16 * 2**30) -> Budget:
    return Budget(memory, minutes, lambda dimensions: SPEED, "cpu")


def planned(found: Fingerprint, names: tuple[str, ...] = (), **limits: float) -> Config:
    return plan(found, names, budget(**limits)).config


def test_a_small_cube_gets_one_patch_for_the_whole_scan() -> None:
    config = planned(fingerprint(facts((35, 51, 36), (1, 1, 1))))
    assert config.network.dimensions == 3
    assert all(p >= n for p, n in zip(config.patches.size, (35, 51, 36), strict=True))
    assert config.network.channels[0] == 16 and config.preprocess.spacing == (1, 1, 1)
    assert config.network.exact


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2048, 2048), (700, 700, 500)])
def test_the_time_that_the_widest_network_would_need_is_named_and_is_enough_for_it(shape: tuple[int, ...]) -> None:
    found = fingerprint(facts(shape, (1,) * len(shape)))
    why = plan(found, (), budget(10)).notes["network.channels"]
    told = re.search(r"without a limit of time (\d+) channels .*, from some (?:(\d+) h )?(\d+) min on", why)
    assert told is not None, why
    minutes = 60 * int(told[2] or 0) + int(told[3])
    assert minutes < 7 * 24 * 60
    assert planned(found, minutes=1.02 * minutes).network.channels[0] == int(told[1])


def test_the_target_spacing_is_the_median_and_unknown_without_a_physical_size() -> None:
    same = planned(fingerprint(facts((40, 40, 40), (1, 1, 1.5)), facts((50, 40, 40), (1, 1, 1.503))))
    assert same.preprocess.spacing == (1, 1, 1.5015)
    assert planned(fingerprint(facts((40, 40, 40), (1, 1, 1), unit="pixel"))).preprocess.spacing is None
    mixed = planned(fingerprint(*[facts((60, 60, 60), (s, s, s)) for s in (0.8, 1.0, 2.0)]))
    assert mixed.preprocess.spacing == (1.0, 1.0, 1.0)


def test_thick_slices_keep_kernels_of_one_until_the_axes_are_alike() -> None:
    config = planned(fingerprint(facts((256, 256, 48), (0.8, 0.8, 6.5))))
    kernels, strides = config.network.kernels, config.network.strides
    assert kernels[0] == (3, 3, 1) and strides[0] == (2, 2, 1)
    assert config.augment.coarse_axis == 2


def test_very_different_slice_distances_take_the_finer_ones() -> None:
    cases = [facts((300, 300, 30), (0.7, 0.7, s)) for s in (2.5, 5.0, 5.0, 5.0, 5.0)]
    spacing = planned(fingerprint(*cases)).preprocess.spacing
    assert spacing and 2.5 < spacing[2] < 5.0


def test_too_few_slices_make_it_two_dimensional() -> None:
    config = planned(fingerprint(facts((200, 180, 4), (1, 1, 5))))
    assert config.network.dimensions == 2 and len(config.patches.size) == 2 and config.patches.slice_axis == 2


def test_pictures() -> None:
    config = planned(fingerprint(facts((512, 512), (1, 1), unit="pixel"), labels={"membrane": 0, "cell": 255}))
    assert config.network.dimensions == 2 and config.loss.include_background
    assert config.preprocess.normalise[0].kind == "zscore"


def test_ct_is_clipped_by_the_foregrounds_percentiles() -> None:
    (how,) = planned(fingerprint(facts((80, 80, 80), (1, 1, 1))), ("CT",)).preprocess.normalise
    assert (how.kind, how.low, how.high, how.mean, how.std) == ("ct", -900, 1200, 80, 200)


def test_masked_heads_are_normalised_inside_the_mask_and_cropped() -> None:
    config = planned(fingerprint(facts((80, 90, 80), (2, 2, 2), content=0.5, zeros=0.6)))
    assert config.preprocess.crop == "nonzero" and config.preprocess.normalise[0].nonzero


@pytest.mark.slow
def test_less_time_or_memory_means_less_work() -> None:
    found = fingerprint(facts((180, 200, 180), (1, 1, 1)))
    work = [step_cost(c.network, c.patches.size).operations * c.patches.batch for c in
            (planned(found, minutes=m) for m in (5, 30, 240))]  # fmt: skip
    assert work == sorted(work) and work[0] < work[-1]
    small = planned(found, minutes=240, memory=2**30)
    assert step_memory(small.network, small.patches.size, small.patches.batch) <= 2**30


def test_hippocampus_in_a_quarter_of_an_hour_on_two_cores_is_the_measured_recipe() -> None:
    found = fingerprint(facts((35, 50, 36), (1, 1, 1)), labels={"background": 0, "anterior": 1, "posterior": 2})
    config = planned(replace(found, of=60))
    assert config.network.channels == (16, 32, 64, 128)
    assert config.patches.size == (40, 56, 40) and config.patches.batch == 2
    assert config.augment.gamma.probability == 0 and config.augment.flip_axes == (0,)


def test_the_file_says_why_for_every_planned_value_and_what_was_traded() -> None:
    result = plan(fingerprint(facts((180, 200, 180), (1, 1, 1))), (), budget(15))
    text = result.to_yaml()
    defaults = to_plain(Config())
    for section, values in to_plain(result.config).items():
        for key, value in values.items():
            if value != defaults[section][key] and key not in PARTS_OF_THE_STRENGTH:
                assert f"{section}.{key}" in result.notes, f"{section}.{key} is planned without a reason"
    for note in result.notes.values():
        assert note.split()[0] in text
    assert "with 60 min it would have been" in result.notes["network.channels"]
    assert (
        "32 channels and patch 40×56×40"
        in plan(fingerprint(facts((35, 50, 36), (1, 1, 1))), (), budget(15)).notes["network.channels"]
    )
    wide = plan(fingerprint(facts((35, 50, 36), (1, 1, 1))), (), budget(1e5))
    assert "nothing was traded" in wide.notes["network.channels"]


PARTS_OF_THE_STRENGTH = {"scaling", "brightness", "shift", "blur", "contrast", "low_resolution", "gamma",
                         "gamma_inverted"}  # fmt: skip
"""Settings of augmentation that one reason, at rotation and noise, stands for."""


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((200, 180, 4), (1, 1, 5), 2),
        ((4, 200, 180), (1, 1, 1), 0),
        ((256, 256, 25), (0.78, 0.78, 6.5), 2),
        ((22, 256, 256), (6.5, 0.8, 0.8), 0),
        ((1024, 1024, 20), (4.6, 4.6, 50), 2),
        ((256, 256, 60), (0.78, 0.78, 6.5), None),
        ((128, 128, 31), (0.15, 0.15, 0.6), None),
        ((8, 8, 8), (1, 1, 1), None),
    ],
)
def test_few_slices_far_apart_are_learned_one_by_one(
    shape: tuple[int, ...], spacing: tuple[float, ...], axis: int | None
) -> None:
    config = planned(fingerprint(facts(shape, spacing)))
    assert config.network.dimensions == (3 if axis is None else 2) == len(config.patches.size)
    if axis is not None:
        assert config.patches.slice_axis == axis
        assert len(config.preprocess.spacing or ()) == 3


def test_mirroring_of_slices_is_named_in_the_networks_axes() -> None:
    sided = {"background": 0, "kidney_left": 1, "kidney_right": 2}
    slices = [facts((200, 180, 4), (1, 1, 5)), facts((200, 4, 180), (1, 5, 1)), facts((4, 200, 180), (5, 1, 1))]
    axial, coronal, sagittal = (planned(fingerprint(one, labels=sided), minutes=1e5) for one in slices)
    assert axial.augment.flip_axes == coronal.augment.flip_axes == (1,)
    assert sagittal.augment.flip_axes == (0, 1)
    picture = fingerprint(facts((64, 64), (1, 1), unit="pixel"), labels=sided)
    microscope = fingerprint(facts((64, 64, 64), (1, 1, 1), unit="um"), labels=sided)
    assert planned(picture).augment.flip_axes == planned(microscope).augment.flip_axes == ()


@pytest.mark.parametrize(("cases", "folds"), [(1, 5), (2, 2), (3, 3), (4, 4), (5, 5), (60, 5)])
def test_few_cases_are_left_out_one_by_one(cases: int, folds: int) -> None:
    assert planned(fingerprint(*[facts((64, 64, 64), (1, 1, 1))] * cases)).data.folds == folds


@pytest.mark.parametrize(("voxels", "share"), [((999_950, 50), 2 / 3), ((999_500, 500), 1 / 2), ((900, 100), 1 / 3)])
def test_rare_labels_are_looked_for_more_often(voxels: tuple[int, ...], share: float) -> None:
    config = planned(fingerprint(facts((64, 64, 64), (1, 1, 1), voxels=voxels)))
    assert config.patches.oversample == pytest.approx(share)


def test_hounsfield_units_are_known_without_a_name() -> None:
    air, dark = ScanRange(-1000, 1200, -1024, 3000), ScanRange(-20, 600, -40, 700)
    assert planned(fingerprint(facts((64,) * 3, (1, 1, 1), ranges=(air,)))).preprocess.normalise[0].kind == "ct"
    assert planned(fingerprint(facts((64,) * 3, (1, 1, 1), ranges=(dark,)))).preprocess.normalise[0].kind == "zscore"
    named = fingerprint(facts((64,) * 3, (1, 1, 1), ranges=(air,)))
    assert planned(named, ("T1",)).preprocess.normalise[0].kind == "zscore"
    both = planned(fingerprint(facts((64,) * 3, (1, 1, 1), ranges=(air, air)), channels=2), ("CT", "PET"))
    assert [n.kind for n in both.preprocess.normalise] == ["ct", "zscore"]


@pytest.mark.slow
def test_too_little_memory_is_refused_with_what_would_do() -> None:
    found = fingerprint(facts((180, 200, 180), (1, 1, 1)))
    with pytest.raises(ConfigError, match=r"16.0 MiB|16 MiB") as refused:
        planned(found, memory=2**24)
    enough = re.search(r"--memory (\d+)M would do", str(refused.value))
    assert enough
    planned(found, memory=int(enough[1]) * 2**20)
    with pytest.raises(ConfigError):
        planned(found, memory=(int(enough[1]) - 8) * 2**20)


def trial(seconds: float, memory: int = 2**29) -> Trial:
    return Trial(seconds, 0.0, 0, memory, 0, 3)


def test_a_step_that_is_slower_than_counted_is_planned_anew() -> None:
    found = fingerprint(facts((180, 200, 180), (1, 1, 1)))
    counted = plan(found, (), budget(60))
    seen: list[Config] = []

    def slow(config: Config, grid: Grid) -> Trial:
        seen.append(config)
        return trial(4 * step_cost(config.network, config.patches.size).operations * config.patches.batch / SPEED)

    result = plan_measured(found, (), budget(60), slow)
    assert len(seen) == 2 and seen[0] == counted.config
    work = [step_cost(c.network, c.patches.size).operations * c.patches.batch for c in seen]
    assert work[1] < 0.6 * work[0]
    assert result.config.network == seen[1].network
    assert result.config.training.iterations == max(10, min(250, round(3600 / result.trial.seconds / 20)))
    # Within a third of what was counted the plan stays as it is.
    as_counted = plan_measured(found, (), budget(60), lambda config, grid: trial(1.2 * counted.choice.seconds))
    assert as_counted.config.network == counted.config.network


def test_a_step_that_needs_more_memory_than_counted_is_planned_anew() -> None:
    found = fingerprint(facts((180, 200, 180), (1, 1, 1)))

    def large(config: Config, grid: Grid) -> Trial:
        return trial(0.01, int(2 * step_memory(config.network, config.patches.size, config.patches.batch)))

    result = plan_measured(found, (), budget(240, memory=2**30), large)
    assert result.trial.memory <= 2**30

    def none(config: Config, grid: Grid) -> Trial:
        raise MemoryError

    with pytest.raises(ConfigError, match="--memory"):
        plan_measured(found, (), budget(240), none)


def test_what_a_person_should_know_is_said() -> None:
    flat, plain = ScanRange(7, 7, 7, 7), ScanRange(0, 100, 0, 120)
    names = {"background": 0, "organ": 1, "rare": 2}
    cases = [
        replace(facts((64,) * 3, (1, 1, 1), voxels=(900, 100, 0), ranges=(plain,)), name="good"),
        replace(facts((64,) * 3, (1, 1, 1), voxels=(1000, 0, 0), ranges=(flat,)), name="empty"),
        replace(facts((64,) * 3, (1, 1, 1), voxels=(900, 9, 0), ranges=(ScanRange(0, 9, 0, 9e5),)), name="bright"),
    ]
    said = "\n".join(warnings(fingerprint(*cases, labels=names)))
    assert "no measured case has a voxel of rare" in said
    assert "1 case(s) without any foreground (empty)" in said
    assert "1 case(s) with a constant channel (empty)" in said
    assert "1 case(s) with voxels far above all others (bright)" in said
    assert warnings(fingerprint(facts((64,) * 3, (1, 1, 1), ranges=(plain,)))) == []


def check_legal(config: Config) -> None:
    """What `medunet train` would refuse."""
    config.network.shape.check(config.patches.size)
    assert len(config.patches.size) == config.network.dimensions
    deepest = math.prod(config.network.shape.encoder_sizes(config.patches.size)[-1])
    assert deepest * config.patches.batch > 1
    Augmentation(config.augment, config.network.dimensions)


LABELS = st.sampled_from([
    {"background": 0, "organ": 1},
    {"membrane": 0, "cell": 255},
    {"background": 0, "kidney_left": 1, "kidney_right": 2},
    {"background": 0, **{f"part_{n}": n for n in range(1, 118)}},
])  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    shape=st.lists(st.integers(1, 700), min_size=2, max_size=3),
    spacing=st.tuples(*[st.floats(1e-3, 12)] * 3),
    unit=st.sampled_from(["mm", "um", "pixel"]),
    minutes=st.floats(1, 3000),
    memory=st.floats(29, 36),
    channels=st.integers(1, 12),
    labels=LABELS,
    cases=st.integers(1, 6),
)
def test_every_plan_is_legal_fits_and_survives_its_file(
    shape, spacing, unit, minutes, memory, channels, labels, cases
) -> None:
    pitch = (1.0,) * len(shape) if unit == "pixel" else spacing[: len(shape)]
    case = facts(tuple(shape), pitch, unit=unit, voxels=(900, *[1] * (len(labels) - 1)))
    found = fingerprint(*[case] * cases, channels=channels, labels=labels)
    try:
        result = plan(found, (), budget(minutes, int(2**memory)))
    except ConfigError as error:
        assert "would do" in str(error) and memory < 33
        return
    config = result.config
    check_legal(config)
    assert config.network.in_channels == channels and config.network.classes == len(labels)
    assert step_memory(config.network, config.patches.size, config.patches.batch) <= 2**memory
    assert parse_config(result.to_yaml(), "c").config == config


def pictures_of_cells(*counts: int) -> Fingerprint:
    """A picture of 1000 pixels for each count, every object of 10 pixels."""
    cases = [
        replace(
            facts((40, 25), (1, 1), unit="um", voxels=(1000 - 10 * count, 10 * count)),
            name=f"t{number:03}",
            objects=(Objects(0, 0, 0), Objects(count, 10, 10)),
        )
        for number, count in enumerate(counts)
    ]
    return Fingerprint(tuple(cases), (VALUES,), LabelTable(("background", "cell"), (0, 1), None, "instances"))


@pytest.mark.parametrize(
    ("counts", "partial"),
    [
        ((10, 11, 3, 12, 13), ("t002",)),
        ((10, 11, 5, 12, 13), ()),  # not less than half of the fewest
        ((10, 3, 12, 13), ()),  # three others are too few to say
        ((10, 30, 3, 12, 40, 1), ()),  # they differ anyway
        ((10, 11, 3, 3, 12, 13), ()),  # two like that are no slip
        ((10, 11, 0, 12, 13), ()),  # an empty picture is one without cells
    ],
)
def test_a_picture_with_far_fewer_objects_than_all_others_is_taken_as_annotated_in_part(
    counts: tuple[int, ...], partial: tuple[str, ...]
) -> None:
    found = pictures_of_cells(*counts)
    result = plan(found, (), budget())
    assert partly_annotated(found) == partial == result.config.data.partial
    assert ("t002 has 3 object(s) on 3 % of its area" in result.notes.get("data.partial", "")) == bool(partial)
    assert any("annotated in part" in line for line in warnings(found)) == bool(partial)


def test_half_of_the_smallest_object_is_a_speck() -> None:
    """In voxels of the network's grid: one case has pixels half as wide, so its objects have four for each of these."""
    found = pictures_of_cells(4, 5, 6)
    sizes = (Objects(0, 0, 0), Objects(4, 20, 30))
    fine = replace(found.cases[0], spacing=(0.5, 0.5), objects=sizes)
    result = plan(replace(found, cases=(fine, *found.cases[1:])), (), budget())
    assert result.config.preprocess.spacing == (1, 1) and result.config.instances.min_size == 2.5
    assert "50 % of the smallest object's 5 voxels" in result.notes["instances.min_size"]
    assert plan(fingerprint(facts((40, 25), (1, 1))), (), budget()).config.instances.min_size == 0


def test_pictures_from_microscopes_differ_in_light_and_stain() -> None:
    result = plan(pictures_of_cells(4, 5, 6), (), budget())
    assert min(getattr(result.config.augment, name).probability for name in ("haze", "gamma", "contrast")) == 0.3
    assert "microscope" in result.notes["augment.haze"]
    scans = planned(fingerprint(facts((80, 80, 80), (1, 1, 1))))
    assert scans.augment.haze.probability == 0


def test_a_short_run_mirrors_bodies_left_to_right_alone() -> None:
    slices = [facts((200, 180, 4), (1, 1, 5)), facts((200, 4, 180), (1, 5, 1)), facts((4, 200, 180), (5, 1, 1))]
    axial, coronal, sagittal = (planned(fingerprint(one)) for one in slices)
    assert axial.augment.flip_axes == coronal.augment.flip_axes == (0,) and sagittal.augment.flip_axes == ()
    assert planned(fingerprint(slices[0]), minutes=1e5).augment.flip_axes is None
    sided = {"background": 0, "kidney_left": 1, "kidney_right": 2}
    assert planned(fingerprint(slices[0], labels=sided)).augment.flip_axes == ()
    assert planned(pictures_of_cells(4, 5, 6)).augment.flip_axes is None


def test_labels_of_directions_are_neither_mirrored_nor_turned_far() -> None:
    names = {"membrane_45deg": 0, "membrane_135deg": 1, "cell": 2}
    result = plan(fingerprint(facts((512, 512), (1, 1), unit="pixel"), labels=names), (), budget())
    assert result.config.augment.flip_axes == () and result.config.augment.rotation.high == 10
    assert "membrane_45deg and membrane_135deg" in result.notes["augment.flip_axes"]
