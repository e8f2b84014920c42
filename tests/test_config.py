"""Config files: errors with file and line, overrides, comments kept, nothing that runs code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml.comments import CommentedMap

from medunet.config import Config, ConfigFile, annotated_yaml, load_config, parse_config
from medunet.errors import ConfigError

TEXT = """\
# an experiment
network:
  channels: [8, 16]  # small
  strides: 2
training:
  epochs: 7   # few
"""


def test_values_arrive_typed_and_defaults_fill_the_rest() -> None:
    config = parse_config(TEXT, "c.yaml").config
    assert config.network.channels == (8, 16) and config.training.epochs == 7
    assert config.optimiser == Config().optimiser


def test_numbers_as_yaml_writes_them() -> None:
    """PyYAML reads 1e-3 as text; here it is a number."""
    assert parse_config("optimiser: {rate: 1e-3}", "c").config.optimiser.rate == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network:\n  chanels: [8, 16]\n", r'c\.yaml:2: unknown key "network\.chanels"; did you mean "channels"\?'),
        ("netwrok: {}\n", r'c\.yaml:1: unknown key "netwrok"; did you mean "network"\?'),
        ("epochs: 5\n", r'c\.yaml:1: unknown key "epochs"; did you mean "training\.epochs"\?'),
        ("training:\n  seed: 1\n  epochs: many\n", r"c\.yaml:3: training\.epochs: .*found 'many'"),
        ("training:\n  epochs: 0\n", r"c\.yaml:1: training: training\.epochs must be at least 1, found 0"),
        ("loss:\n  kind: dise\n", r"c\.yaml:2: loss\.kind"),
        ("preprocess:\n  normalise:\n  - kind: zscore\n    nonzeros: true\n", r'c\.yaml:4: unknown key .*"nonzero"'),
        ("augment:\n  noise: {probability: 2, low: 0, high: 1}\n", r"c\.yaml:2: augment\.noise: a probability lies"),
        ("network: [1, 2\n", r"c\.yaml:\d+: is not valid YAML"),
        ("a: 1\na: 2\n", r"is not valid YAML"),
        ("- 1\n- 2\n", r"expected sections like network"),
        ("network: 3\n", r"c\.yaml:1: network"),
    ],
)
def test_errors_name_file_line_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


@pytest.mark.parametrize(
    "text",
    [
        "data: !!python/object/apply:os.system ['touch HACKED']\n",
        "data:\n  path: !!python/object/apply:os.getcwd []\n",
        "data:\n  path: !!python/name:os.system ''\n",
        "network: !!python/object:medunet.config.Config {}\n",
    ],
)
def test_tags_are_refused_and_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        parse_config(text, "c.yaml")
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.slow
def test_overrides_win_and_are_checked() -> None:
    file = parse_config(TEXT, "c", ["training.epochs=9", "network.channels=[4, 8, 16]", "optimiser.kind=sgd"])
    assert file.config.training.epochs == 9
    assert file.config.network.channels == (4, 8, 16) and file.config.optimiser.kind == "sgd"
    with pytest.raises(ConfigError, match=r"expected key\.path=value"):
        parse_config(TEXT, "c", ["training.epochs"])
    with pytest.raises(ConfigError, match=r'^--set training\.epoch=3: unknown key .*did you mean "epochs"'):
        parse_config(TEXT, "c", ["training.epoch=3"])
    for value in ("[1, 2", "@x", "nan", "-3"):
        with pytest.raises(ConfigError, match=r"^--set training\.seed="):
            parse_config(TEXT, "c", [f"training.seed={value}"])


@pytest.mark.slow
def test_the_resolved_config_keeps_comments_and_reads_back_equal() -> None:
    file = parse_config(TEXT, "c", ["training.epochs=9"])
    text = file.to_yaml()
    assert "# an experiment" in text and "# small" in text and "# few" in text and "epochs: 9" in text
    assert parse_config(text, "again").config == file.config
    assert parse_config(text, "again").to_yaml() == text


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    rate=st.floats(1e-6, 1.0),
    channels=st.lists(st.integers(1, 512), min_size=2, max_size=5),
    seed=st.integers(0, 2**31 - 1),
    name=st.text("abc #:'\"{}[]-\u00e9", max_size=12),
)
def test_any_config_survives_writing_and_reading(rate: float, channels: list[int], seed: int, name: str) -> None:
    config = Config()
    config = replace(
        config,
        network=replace(config.network, channels=tuple(channels)),
        optimiser=replace(config.optimiser, rate=rate),
        training=replace(config.training, seed=seed),
        data=replace(config.data, path=name or None),
    )
    assert parse_config(ConfigFile(config, CommentedMap(), "c").to_yaml(), "c").config == config


def test_stated_keys_are_known() -> None:
    assert {"network", "network.channels", "training.epochs"} <= parse_config(TEXT, "c").stated
    assert "network.norm" not in parse_config(TEXT, "c").stated


def test_annotated_yaml_has_every_reason_above_its_key() -> None:
    text = annotated_yaml(Config(), {"network.channels": "because", "patches.size": "why not"}, "header")
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "# header"
    assert lines[lines.index("# because") + 1].startswith("channels:")
    assert lines[lines.index("# why not") + 1].startswith("size:")
    assert parse_config(text, "c").config == Config()


def test_a_missing_or_huge_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "no.yaml")
    (tmp_path / "big.yaml").write_text("#" * 1_000_001)
    with pytest.raises(ConfigError, match="larger than"):
        load_config(tmp_path / "big.yaml")


def test_another_architecture_keeps_what_the_data_say_and_leaves_the_rest() -> None:
    text = "network:\n  channels: [8, 16]\n  classes: 4 # of the data\n  in_channels: 2\n"
    found = parse_config(text, "c.yaml", ["network.architecture=monai.BasicUNet"]).config.network
    assert (found.architecture, found.classes, found.in_channels) == ("monai.BasicUNet", 4, 2)
    same = parse_config(text, "c.yaml", ["network.architecture=unet"]).config.network
    assert same.channels == (8, 16)
    with pytest.raises(ConfigError, match="nothing_like_it"):
        parse_config(text, "c.yaml", ["network.architecture=monai.BasicUNet", "network.nothing_like_it=3"])
