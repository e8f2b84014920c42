"""MONAI's random dictionary transforms that `augment.monai` may name, and the check of such a list.

A transform is found here or it was registered from Python (`register_transform`); nothing else is looked up. Left out
are MONAI's crops (patches have their size), those that take a function or the name of another library's class, and
those that must be told the patch's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medunet.errors import LocatedError
from medunet.registry import Allowed, Kind, Registered, Where, build_located, check_arguments, find_name

KEYS = ("image", "weight", "label")
"""The keys of a patch, in the order of the modes below; a patch may lack a weight."""


@dataclass(frozen=True)
class MonaiTransform:
    """One transform of the list.

    Attributes:
        arguments: that a config may give.
        moves: True if it moves voxels: then it gets all keys, else the image alone.
        forced: arguments that it is always given, by dimensions: linear for image and weight, nearest for the label,
            zeros outside.
        dimensions: of the patches that it takes.
        exchanges: True if it exchanges axes, so that those must be equally long.
    """

    arguments: Allowed
    moves: bool = False
    forced: Mapping[int, Mapping[str, Any]] = field(default_factory=lambda: {2: {}, 3: {}})
    dimensions: tuple[int, ...] = (2, 3)
    exchanges: bool = False


def _given(**arguments: Kind) -> Allowed:
    """The arguments of a transform, of which all have a probability."""
    return {"prob": Kind.SHARE, **arguments}


def _values(**arguments: Kind) -> MonaiTransform:
    """A transform of values, which sees the image alone."""
    return MonaiTransform(_given(**arguments))


def _sampled(arguments: Allowed, dimensions: tuple[int, ...] = (2, 3), **more: Any) -> MonaiTransform:
    """A transform that samples voxels at moved places."""
    forced = {"mode": ("bilinear", "bilinear", "nearest"), "padding_mode": ("zeros",) * 3, **more}
    return MonaiTransform(arguments, True, dict.fromkeys(dimensions, forced), dimensions)


def _zoom(linear: str) -> dict[str, Any]:
    return {"mode": (linear, linear, "nearest-exact"), "padding_mode": ("constant",) * 3, "keep_size": True}


def _low_resolution(linear: str) -> dict[str, Any]:
    # Plain nearest would shift the image by half a voxel.
    return {"downsample_mode": "nearest-exact", "upsample_mode": linear}


_FLAG, _WHOLE, _NUMBER, _PAIR, _WHOLES = Kind.FLAG, Kind.WHOLE, Kind.NUMBER, Kind.PAIR, Kind.WHOLES
_AFFINE = dict.fromkeys(("rotate_range", "shear_range", "translate_range", "scale_range"), Kind.NUMBERS)
_HOLES = {"holes": _WHOLE, "max_holes": _WHOLE, "spatial_size": _WHOLES, "max_spatial_size": _WHOLES}
_SIGMAS = {f"sigma{number}_{axis}": _PAIR for number in (1, 2) for axis in "xyz"}

TRANSFORMS: dict[str, MonaiTransform] = {
    # Those that move voxels.
    "RandFlipd": MonaiTransform(_given(spatial_axis=_WHOLES), moves=True),
    "RandAxisFlipd": MonaiTransform(_given(), moves=True),
    "RandRotate90d": MonaiTransform(_given(max_k=_WHOLE, spatial_axes=_WHOLES), moves=True, exchanges=True),
    "RandRotated": _sampled(_given(range_x=_PAIR, range_y=_PAIR, range_z=_PAIR), keep_size=True),
    "RandZoomd": MonaiTransform(
        _given(min_zoom=Kind.NUMBERS, max_zoom=Kind.NUMBERS), True, {2: _zoom("bilinear"), 3: _zoom("trilinear")}
    ),
    "RandAffined": _sampled(_given(**_AFFINE)),
    "Rand2DElasticd": _sampled(_given(**_AFFINE, spacing=Kind.NUMBERS, magnitude_range=_PAIR), (2,)),
    "Rand3DElasticd": _sampled(_given(**_AFFINE, sigma_range=_PAIR, magnitude_range=_PAIR), (3,)),
    "RandGridDistortiond": _sampled(_given(num_cells=_WHOLES, distort_limit=_PAIR)),
    # Those that change values.
    "RandGaussianNoised": _values(mean=_NUMBER, std=_NUMBER, sample_std=_FLAG),
    "RandRicianNoised": _values(mean=_NUMBER, std=_NUMBER, channel_wise=_FLAG, relative=_FLAG, sample_std=_FLAG),
    "RandBiasFieldd": _values(degree=_WHOLE, coeff_range=_PAIR),
    "RandScaleIntensityd": _values(factors=_PAIR, channel_wise=_FLAG),
    "RandScaleIntensityFixedMeand": _values(factors=_PAIR, fixed_mean=_FLAG, preserve_range=_FLAG, channel_wise=_FLAG),
    "RandShiftIntensityd": _values(offsets=_PAIR, safe=_FLAG, channel_wise=_FLAG),
    "RandStdShiftIntensityd": _values(factors=_PAIR, nonzero=_FLAG, channel_wise=_FLAG),
    "RandAdjustContrastd": _values(gamma=_PAIR, invert_image=_FLAG, retain_stats=_FLAG),
    "RandGaussianSmoothd": _values(sigma_x=_PAIR, sigma_y=_PAIR, sigma_z=_PAIR),
    "RandGaussianSharpend": _values(**_SIGMAS, alpha=_PAIR),
    "RandHistogramShiftd": _values(num_control_points=_WHOLES),
    "RandGibbsNoised": _values(alpha=_PAIR),
    "RandKSpaceSpikeNoised": _values(intensity_range=_PAIR, channel_wise=_FLAG),
    "RandSimulateLowResolutiond": MonaiTransform(
        _given(zoom_range=_PAIR), forced={2: _low_resolution("bilinear"), 3: _low_resolution("trilinear")}
    ),
    "RandCoarseDropoutd": _values(**_HOLES, fill_value=_PAIR, dropout_holes=_FLAG),
    "RandCoarseShuffled": _values(**_HOLES),
}

REGISTERED: Registered[Callable[..., Any]] = Registered("medunet.register_transform")


def register_transform(name: str, factory: Callable[..., Any]) -> None:
    """Let `augment.monai` name a transform of your own, in this process.

    Args:
        name: as configs say it.
        factory: takes the arguments of the config, and gives a callable from a dictionary with `image`
            ``(channel, *spatial)``, `label` ``(1, *spatial)`` and perhaps `weight` to such a dictionary of equal
            sizes. All of its randomness comes from MONAI's `set_random_state(seed)`, which it is called with for
            each patch where it has it.

    Raises:
        ConfigError: the name exists.
    """
    REGISTERED.add(name, factory, TRANSFORMS)


def check_transforms(steps: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a list of transforms with a wrong name, argument or value.

    Raises:
        LocatedError: at the place in the config.
    """
    for place, step in enumerate(steps):
        where = ("augment", "monai", place)
        if "name" not in step:
            raise LocatedError(
                f"found {dict(step)}, expected a name, such as {{name: RandBiasFieldd, prob: 0.3}}", where
            )
        name = find_name((*where, "name"), step["name"], [*TRANSFORMS, *REGISTERED], "the transform", REGISTERED.call)
        build_transform(where, step, TRANSFORMS[name].dimensions[-1] if name in TRANSFORMS else 3)


def build_transform(where: Where, step: Mapping[str, Any], dimensions: int, **more: Any) -> Callable[[Any], Any]:
    """The transform of a checked name.

    Args:
        more: arguments that stand above those of the config.

    Raises:
        LocatedError: an argument is unknown or refused, or the transform does not take patches of these dimensions.
    """
    name, given = step["name"], {key: value for key, value in step.items() if key != "name"}
    factory = REGISTERED.get(name)
    if factory is not None:
        made: Callable[[Any], Any] = build_located(where, factory, given, name)
        return made
    from monai import transforms

    entry, make = TRANSFORMS[name], getattr(transforms, name)
    if dimensions not in entry.dimensions:
        near = f"Rand{dimensions}DElasticd"
        raise LocatedError(f"{name} takes no {dimensions}-D patches; take {near}", (*where, "name"))
    fixed = {**entry.forced[dimensions], "keys": KEYS if entry.moves else KEYS[:1], "allow_missing_keys": True}
    arguments = check_arguments(where, given, entry.arguments, name)

    def build(**own: Any) -> Callable[[Any], Any]:
        built: Callable[[Any], Any] = make(**own | fixed | more)
        return built

    return build_located(where, build, arguments, f"MONAI's {name}")
