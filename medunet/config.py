"""The config file: composes the settings of the parts, YAML in, YAML out, errors with file and line.

Each part's settings live in the part; this file has no defaults of its own beyond which parts there are. YAML is read
by ruamel's round-trip loader, which builds plain scalars, lists and mappings only (tags are refused), keeps comments
and knows the line of every key.
"""

from __future__ import annotations

import difflib
import io
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, GetCoreSchemaHandler, GetPydanticSchema, Tag, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from medunet.datasets.annotation import AnnotatedSlices, AnnotationSettings
from medunet.datasets.catalogue import Channel
from medunet.datasets.splits import check_pattern
from medunet.errors import ConfigError, LocatedError
from medunet.instances.settings import InstanceSettings
from medunet.instances.weightmap import WeightMapSettings
from medunet.learning.optimisers import OptimiserSettings
from medunet.learning.schedules import ScheduleSettings
from medunet.losses.build import LossSettings
from medunet.networks.build import NetworkSettings, settings_kind, settings_kinds
from medunet.networks.settings import UNetSettings
from medunet.patches.dataset import PatchSettings
from medunet.transforms.augment.settings import AugmentSettings
from medunet.transforms.preprocess import PreprocessSettings

_LIMIT = 1_000_000
"""Bytes of the largest config that is read."""


def _kind_name(value: Any) -> str:
    """The class of settings that a section `network` is to become; without a word it is our own U-Net."""
    if isinstance(value, Mapping):
        return settings_kind(value.get("architecture", "unet")).__name__
    return type(value).__name__


def _tagged_union(_: Any, handler: GetCoreSchemaHandler) -> Any:
    kinds = (Annotated[kind, Tag(kind.__name__)] for kind in settings_kinds())
    return handler(Annotated[reduce(or_, kinds), Discriminator(_kind_name)])


Network = Annotated[NetworkSettings, GetPydanticSchema(_tagged_union)]
"""The settings of any network; `architecture` says which, so that only those it has are read."""


@dataclass(frozen=True)
class DataSettings:
    """The cases to train on and the cases that are held out.

    Attributes:
        path: the data set's folder, relative to where the command runs.
        axes: axis letters of TIFF files that do not state them, such as `ZYX`.
        channels: which channels are learned from, by index (from 0) or by the name that `dataset.json` or the files
            give them, such as `[DAPI]`; empty takes all.
        fold: which of the `folds` parts of the cases is held out for validation.
        folds: how many parts; 0 trains on all cases and validates on none. A single scan is cut into as many along
            its longest axis.
        seed: of the split.
        patient_pattern: a regular expression whose first group, in a case's name, is the patient; cases of one
            patient are held out together. Without it, `dataset.json` or `patients.csv` may name the patients.
        cache: the folder where preprocessed cases are kept for the next training; `auto` is `$MEDUNET_CACHE` or, where
            that is not set, the system's folder for caches (`~/.cache/medunet`); null keeps none.
        partial: cases of which only some objects were annotated, by name or by a pattern like `*_t067`: their
            background is not learned from, and not scored. They come on top of those that `dataset.json` names.
        partial_rim: voxels around the objects of these cases that are background all the same, so that edges are
            learned; null is 2, unless `dataset.json` says otherwise.
        annotated_slices: of volumes, such as `[{axis: z, every: 4, first: 0}]`, `[{axis: x, at: [10, 40]}]` or
            `[{axis: z, empty: ignore}]` (slices with nothing but background were not annotated); a voxel is known if
            one of the entries holds it. The rest is not learned from, and not scored. In place of what
            `dataset.json` says.
    """

    path: str | None = None
    axes: str | None = None
    channels: tuple[Channel, ...] = ()
    fold: int = 0
    folds: int = 5
    seed: int = 0
    patient_pattern: str | None = None
    cache: str | None = "auto"
    partial: tuple[str, ...] = ()
    partial_rim: float | None = None
    annotated_slices: tuple[AnnotatedSlices, ...] = ()

    @property
    def annotation(self) -> AnnotationSettings:
        return AnnotationSettings(self.partial, self.partial_rim, self.annotated_slices)

    def __post_init__(self) -> None:
        _ = self.annotation
        if self.patient_pattern is not None:
            check_pattern(self.patient_pattern)
        if len(set(self.channels)) < len(self.channels) or any(isinstance(c, int) and c < 0 for c in self.channels):
            raise ConfigError(
                f"data.channels must be names or indices from 0 on, each once, found {list(self.channels)}"
            )
        if self.cache == "":
            raise ConfigError("data.cache must be a folder, auto or null, found an empty name")
        if self.folds == 1 or self.folds < 0 or not 0 <= self.fold < max(self.folds, 1):
            raise ConfigError(
                f"data.fold must lie between 0 and data.folds - 1, and data.folds must be 0 (no validation) or at "
                f"least 2; found fold {self.fold} of {self.folds}"
            )


@dataclass(frozen=True)
class TrainingSettings:
    """Length and manner of the training.

    Attributes:
        epochs: how many epochs, unless `minutes` says how long.
        iterations: optimiser steps per epoch.
        minutes: wall time for everything, from reading the data to the last validation and over all sessions of a
            resumed run; the learning-rate schedule is fitted to it.
        init: the model (run folder or file) whose weights the network starts with, where they fit; None starts anew.
        seed: of the first weights, the patches and their augmentation.
        precision: `auto` takes bf16 where the processor computes it faster, `fp32` or `bf16` ask for one.
        clip: largest gradient norm; 0 switches clipping off.
        ema: decay of the moving average of the weights that is validated and saved; 0 switches it off.
        score: what the best model is chosen by, the mean over the foreground labels of `dice` or of `iou`.
        validation_share: validation during training takes at most this share of the time; of a run measured in
            epochs about this share, estimated from the voxels, so that the clock does not choose the best model.
        validation_cases: how many of the held-out cases are looked at during training (all are at the end).
        workers: processes that prepare patches; None chooses by the machine.
    """

    epochs: int = 100
    iterations: int = 100
    minutes: float | None = None
    init: str | None = None
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    clip: float = 12.0
    ema: float = 0.99
    score: Literal["dice", "iou"] = "dice"
    validation_share: float = 0.1
    validation_cases: int = 10
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("iterations", 1), ("validation_cases", 1), ("clip", 0), ("ema", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"training.{name} must be at least {low}, found {getattr(self, name)}")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"training.minutes must be positive, found {self.minutes:g}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"training.seed must lie between 0 and 2^31 - 1, found {self.seed}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"training.workers must not be negative, found {self.workers}")
        if self.ema >= 1 or not 0 < self.validation_share < 1:
            raise ConfigError("training.ema must lie below 1 and training.validation_share between 0 and 1")


@dataclass(frozen=True)
class Config:
    """A whole experiment: one record per part."""

    data: DataSettings = field(default_factory=DataSettings)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    instances: InstanceSettings = field(default_factory=InstanceSettings)
    weight_map: WeightMapSettings = field(default_factory=WeightMapSettings)
    network: Network = field(default_factory=UNetSettings)
    patches: PatchSettings = field(default_factory=PatchSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass(frozen=True)
class ConfigFile:
    """A config together with the YAML document it came from, whose comments are kept when it is written.

    Attributes:
        stated: the dotted keys that the document states; all others are defaults.
    """

    config: Config
    document: CommentedMap
    source: str

    @property
    def stated(self) -> frozenset[str]:
        return frozenset(_dotted_keys(self.document))

    def to_yaml(self) -> str:
        """The document with every value of the config in it, old comments in place."""
        document = _parse(_dump(self.document), self.source)
        _merge(document, to_plain(self.config))
        return _dump(document)


_OF_THE_DATA = ("dimensions", "in_channels", "classes")
"""Keys of every network that the data set decides."""


def load_config(path: Path, overrides: Iterable[str] = ()) -> ConfigFile:
    """Read a config file and apply `key.path=value` overrides.

    Raises:
        ConfigError: unreadable file, YAML syntax, unknown key (naming the nearest known one), wrong type or value;
            each with file and line.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; give a config or a data set")
    try:
        if path.stat().st_size > _LIMIT:
            raise ConfigError(f"{path}: is larger than {_LIMIT} bytes, which no config is")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a config ({error})") from error
    return parse_config(text, str(path), overrides)


def parse_config(text: str, source: str, overrides: Iterable[str] = ()) -> ConfigFile:
    """Parse YAML text; `source` names it in messages."""
    document = _parse(text, source)
    config = _validated(document, document, source)
    given = list(overrides)
    for override in given:
        _override(document, override)
        _refuse_unknown(document, Config, (), CommentedMap(), f"--set {override}")
    if given:
        # What is wrong now stands on the command line; lines of the file would mislead.
        config = _validated(document, CommentedMap(), f"--set {given[0]}" if len(given) == 1 else "--set")
    return ConfigFile(config, document, source)


def _validated(document: CommentedMap, lines: CommentedMap, source: str) -> Config:
    """The typed config; `lines` is the document that knows the lines for messages."""
    _refuse_unknown(document, Config, (), lines, source)
    try:
        return _config_type().validate_python(_plain(document))
    except ValidationError as error:
        raise ConfigError(_explain(error, document, lines, source)) from error


@cache
def _config_type() -> TypeAdapter[Config]:
    """The checks of a config; building them takes a tenth of a second."""
    return TypeAdapter(Config)


def to_plain(settings: Any) -> Any:
    """Nested dataclasses as dicts, lists and scalars, as YAML and JSON hold them."""
    if is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_plain(getattr(settings, f.name)) for f in fields(settings)}
    if isinstance(settings, Mapping):
        return {key: to_plain(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [to_plain(value) for value in settings]
    return settings


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.width = 110
    yaml.preserve_quotes = True
    # An empty value reads as a mistake; say null.
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def _parse(text: str, source: str) -> CommentedMap:
    try:
        document = _yaml().load(text)
    except (YAMLError, MarkedYAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if document is None:
        return CommentedMap()
    if not isinstance(document, CommentedMap):
        raise ConfigError(f"{source}: expected sections like network: and training:, found {type(document).__name__}")
    return document


def _dump(document: CommentedMap) -> str:
    stream = io.StringIO()
    _yaml().dump(document, stream)
    return "" if stream.getvalue().strip() == "{}" else stream.getvalue()


def _override(document: CommentedMap, override: str) -> None:
    key, separator, text = override.partition("=")
    names = key.strip().split(".")
    if not separator or not all(names):
        raise ConfigError(f"--set {override}: expected key.path=value, for example --set training.epochs=50")
    try:
        value = _yaml().load(text)
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML; quote it, or close its brackets") from error
    section = document
    for name in names[:-1]:
        if not isinstance(section.get(name), CommentedMap):
            section[name] = CommentedMap()
        section = section[name]
    if names == ["network", "architecture"] and section.get("architecture", "unet") != value:
        # The keys of one network mean nothing to another; what the data say of it stays.
        for key in [key for key in section if key not in _OF_THE_DATA]:
            del section[key]
    section[names[-1]] = value


def _plain(node: Any) -> Any:
    """A YAML node as plain Python; tags such as !!python/… are refused where they stand."""
    if not isinstance(node, (TaggedScalar, Mapping, list, tuple)):
        return node
    tag = getattr(getattr(node, "tag", None), "value", None)
    plain = not tag or str(tag).startswith(("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"))
    if isinstance(node, TaggedScalar) or not plain:
        raise ConfigError(f"YAML tags are not allowed in a config, found {tag}")
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node]


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _settings_class(annotation: Any) -> type | None:
    """The dataclass inside an annotation, also that of a list of them."""
    if is_dataclass(annotation):
        return typing.cast(type, annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list):
        return next(filter(None, map(_settings_class, typing.get_args(annotation))), None)
    return None


def _refuse_unknown(node: Any, kind: type, loc: tuple[Any, ...], document: CommentedMap, source: str) -> None:
    if isinstance(node, (CommentedSeq, list)):
        for index, item in enumerate(node):
            _refuse_unknown(item, kind, (*loc, index), document, source)
        return
    if not isinstance(node, Mapping):
        return
    hints = _hints(kind)
    known = [f.name for f in fields(kind)]
    for key, value in node.items():
        here = (*loc, key)
        if key not in known:
            raise ConfigError(_unknown(str(key), known, here, document, source))
        inner = _settings_class(hints[key])
        if here == ("network",) and isinstance(value, Mapping):
            inner = _network_kind(value, document, source)
        if inner is not None:
            _refuse_unknown(value, inner, here, document, source)


def _network_kind(section: Mapping[str, Any], document: CommentedMap, source: str) -> type:
    try:
        return settings_kind(section.get("architecture", "unet"))
    except ConfigError as error:
        raise ConfigError(f"{_where(('network', 'architecture'), document, source)}: {error}") from None


def _unknown(key: str, known: list[str], loc: tuple[Any, ...], document: CommentedMap, source: str) -> str:
    elsewhere = [name for name in _all_keys(Config, "") if name.split(".")[-1] == key]
    if loc[0] == "network" and "architecture" in known:
        # Another architecture may have it, which is no help.
        elsewhere = [name for name in elsewhere if not name.startswith("network.")]
    near = elsewhere or difflib.get_close_matches(key, known, n=1)
    advice = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(known)}"
    return f'{_where(loc, document, source)}: unknown key "{_dots(loc)}"; {advice}'


def _all_keys(kind: type, prefix: str) -> list[str]:
    names = []
    hints = _hints(kind)
    for f in fields(kind):
        names.append(prefix + f.name)
        inner = _settings_class(hints[f.name])
        if inner is not None:
            names += _all_keys(inner, f"{prefix}{f.name}.")
    return names


def _explain(error: ValidationError, document: CommentedMap, lines: CommentedMap, source: str) -> str:
    """The first problem in full, the others counted."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    message = str(cause) if cause is not None else str(first["msg"])
    loc = tuple(part for part in first["loc"] if _holds(document, part) or isinstance(part, int))
    found = "" if cause is not None else f", found {first['input']!r}"
    more = f"\n… and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    if isinstance(cause, LocatedError):
        return f"{_where(cause.at, lines, source)}: {cause}{more}"
    return f"{_where(loc, lines, source)}: {_dots(loc) or 'config'}: {message}{found}{more}"


def _holds(node: Any, key: Any) -> bool:
    """True if a key occurs anywhere below; pydantic puts names of union members into its locations."""
    if isinstance(node, Mapping):
        return key in node or any(_holds(value, key) for value in node.values())
    return isinstance(node, list) and any(_holds(value, key) for value in node)


def _where(loc: tuple[Any, ...], document: Any, source: str) -> str:
    """`file:line` of the deepest part of a location that the document has a line for."""
    line, node = None, document
    for part in loc:
        try:
            position = node.lc.data.get(part) if node.lc.data else None
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
        if position is None:
            break
        line = position[0] + 1
    return f"{source}:{line}" if line else source


def _dots(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc)


def _dotted_keys(node: Any, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items() if isinstance(node, Mapping) else ():
        keys += [f"{prefix}{key}", *_dotted_keys(value, f"{prefix}{key}.")]
    return keys


def _merge(document: CommentedMap, values: Mapping[str, Any]) -> None:
    """Put values into a document; keys that are there keep their place and comments."""
    for key, value in values.items():
        old = document.get(key)
        if isinstance(value, Mapping):
            if not isinstance(old, CommentedMap):
                document[key] = _new_section(value)
            _merge(document[key], value)
        elif _plain(old) != value or key not in document:
            document[key] = _flow(value)


def _new_section(value: Mapping[str, Any]) -> CommentedMap:
    """A section on lines of its own; a short section in one line, `{probability: 0.3, low: -30, high: 30}`."""
    section = CommentedMap()
    if len(value) <= 3 and not any(isinstance(item, (Mapping, list)) for item in value.values()):
        section.fa.set_flow_style()
    return section


def _flow(value: Any) -> Any:
    """Lists of scalars in one line, `[32, 64, 128]`; lists of records as blocks, without their empty values."""
    if not isinstance(value, list):
        return value
    if any(isinstance(item, Mapping) for item in value):
        return CommentedSeq([CommentedMap((k, v) for k, v in item.items() if v is not None) for item in value])
    sequence = CommentedSeq([_flow(item) for item in value])
    sequence.fa.set_flow_style()
    return sequence


def annotated_yaml(config: Config, notes: Mapping[str, str], header: str) -> str:
    """A complete config as YAML, with a header and the reason for each planned value above its key."""
    document = _parse(ConfigFile(config, CommentedMap(), "plan").to_yaml(), "plan")
    document.yaml_set_start_comment(header)
    for key, note in notes.items():
        *path, name = key.split(".")
        section = document
        for part in path:
            section = section[part]
        section.yaml_set_comment_before_after_key(name, before=note, indent=2 * len(path))
    return _dump(document)


def differences(before: Any, after: Any, key: str = "") -> list[str]:
    """The differences between two plain records, `key.path was 1, is 2`; long values are left out."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names = dict.fromkeys([*before, *after])
        pairs = ((before.get(n), after.get(n), f"{key}.{n}" if key else str(n)) for n in names)
        return [line for old, new, name in pairs for line in differences(old, new, name)]
    if before == after:
        return []
    old, new = json.dumps(before), json.dumps(after)
    return [f"{key} was {old}, is {new}" if len(old) + len(new) < 80 else f"{key} is another"]
