"""What a bundle's ``inference.json`` asks for, read as data: channels, preprocessing, windows, the way to labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monai.transforms import Compose, Spacing

from medseg.bundle import Bundle
from medseg.bundle.config import item_at, steps, target_of
from medseg.bundle.promptable import is_promptable
from medseg.errors import BundleError, UsageError
from medseg.inference.postprocessing import Postprocessing, read_postprocessing
from medseg.inference.prompts import read_prompts, read_way_back
from medseg.inference.sliding_window import EVEN, WindowSettings
from medseg.networks.even_windows import EvenWindowInferer

_LOADERS = ("LoadImage", "EnsureChannelFirst", "LoadVolume")
_SLICES = "SliceInferer"


@dataclass(frozen=True)
class Channels:
    """How a bundle takes its channels.

    ``keys`` are names in its transforms: ``image`` for all channels at once, else one name each, the first ``image``,
    on whose grid results are made; its transforms may call that ``first`` one otherwise. If others are ``resampled``
    onto it, they may lie on grids of their own.
    """

    keys: tuple[str, ...] = ("image",)
    resampled: bool = False
    first: str = "image"


@dataclass(frozen=True)
class InferenceConfig:
    """The parts of ``inference.json`` that a prediction needs; :attr:`medseg.bundle.Bundle.weight_files` has the rest.

    ``preprocessing`` is without loading, and acts on the keys of ``channels``; the sliding window is as large as the
    volume if the bundle's inferer takes the whole volume at once; ``post`` is what becomes of the network's output;
    ``notes`` say where medseg does something else than the config says, and why; ``exact_affine`` is whether the affine
    of the preprocessed image says where its voxels were sampled. ``slice_axis`` is the array axis (0, 1, 2) along which
    a network of slices is shown one after the other; None for a network of volumes. ``prompts`` are the classes that a
    VISTA3D is asked for; empty for any other network.
    """

    preprocessing: Compose
    windows: WindowSettings
    post: Postprocessing
    channels: Channels = Channels()
    notes: tuple[str, ...] = ()
    exact_affine: bool = True
    slice_axis: int | None = None
    prompts: tuple[int, ...] = ()


def read_inference_config(bundle: Bundle, structures: Sequence[str] = ()) -> InferenceConfig:
    """Read ``inference.json`` of a bundle: what its evaluator would be given, evaluated by MONAI's own parser.

    ``structures``: names of those that a VISTA3D is asked for; by default all that it labels by itself.

    Raises
    ------
    UntrustedBundle
        If the audit finds anything outside its allow-list.
    UsageError
        If there is no such structure, or the bundle cannot be asked for some of its structures.
    BundleError
        If a part is missing, or asks for something that this predictor would do differently.
    MissingDependency
        If a package that one of the parts needs is not installed.
    """
    pipeline = bundle.pipeline
    by_slices = bool(pipeline.inferer) and target_of(item_at(bundle.inference, str(pipeline.inferer))) == _SLICES
    if bundle.dimensions != 3 and not (by_slices and bundle.dimensions == 2):
        raise BundleError(
            f"{bundle.name} takes images of {bundle.dimensions} dimensions; medseg labels volumes, with a network of"
            f" slices where the inferer is a {_SLICES}"
        )
    places = (pipeline.preprocessing, pipeline.inferer, pipeline.postprocessing)
    parsed = bundle.parsed(*(place for place in places if place is not None))
    bundle.check_packages()
    whole = parsed.get(pipeline.preprocessing)
    if whole is None:
        raise BundleError(f"inference.json of {bundle.name} has no preprocessing that is not disabled")
    transforms = parsed.get(pipeline.postprocessing) if pipeline.postprocessing else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transforms warn about values: the bundle's author's concern
        channels, table = (bundle.input_channels, bundle.output_channels), _region_table(bundle)
        prompted = is_promptable(bundle.inference)
        if prompted:
            post = read_way_back(transforms, bundle)
        else:
            post = read_postprocessing(transforms, whole, channels, bundle.name, table, bundle.stated_labels)
    if post.names:
        bundle.name_values(post.names)
    if structures and not prompted:
        raise UsageError(f"--structures: {bundle.name} labels all of its structures at once; leave the option out")
    preprocessing = _without_loading(whole)
    inferer = parsed.get(pipeline.inferer) if pipeline.inferer else None
    return InferenceConfig(
        preprocessing=preprocessing,
        windows=_windows(inferer, bundle),
        post=post,
        channels=channels_of(bundle),
        notes=(*pipeline.notes, *post.notes),
        prompts=read_prompts(bundle, structures) if prompted else (),
        exact_affine=not any(_recomputes_affine(step) for step in preprocessing.flatten().transforms),
        slice_axis=int(inferer.spatial_dim) if by_slices and inferer is not None else None,
    )


def _region_table(bundle: Bundle) -> tuple[int, ...]:
    """The label of every combination of regions; empty for a bundle without them."""
    scheme = bundle.scheme
    if scheme.regions and len(scheme.regions) != bundle.output_channels:
        raise BundleError(
            f"{bundle.name} declares {len(scheme.regions)} regions and {bundle.output_channels} channels of its output;"
            " expected one channel for each region"
        )
    return scheme.table if scheme.regions else ()


def channels_of(bundle: Bundle) -> Channels:
    """How a bundle takes its channels, by the text of its preprocessing: nothing is evaluated.

    They may lie on different grids if it loads each under a key of its own, resamples the others onto the first
    (``ResampleToMatchd``) and concatenates all (``ConcatItemsd`` into ``image``). Keys that it loads, as many as the
    network has channels, are channels, too, if its own code concatenates them.
    """
    listed = steps(bundle.inference, bundle.pipeline.preprocessing)
    concat = next((step for step in listed if target_of(step) == "ConcatItemsd" and step.get("name") == "image"), None)
    if concat is not None:
        keys = _names(concat.get("keys"))
    else:
        loaded = [name for step in listed if target_of(step) == "LoadImaged" for name in _names(step.get("keys"))]
        keys = tuple(name for name in loaded if name != "label") if "image" not in loaded else ()
    if len(keys) < 2 or (concat is None and len(keys) != bundle.input_channels):
        return Channels()
    matching = [step for step in listed if target_of(step) == "ResampleToMatchd" and step.get("key_dst") == keys[0]]
    matched = {key for step in matching for key in _names(step.get("keys"))}
    return Channels(("image", *keys[1:]), matched.issuperset(keys[1:]), keys[0])


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(name) for name in value or ())


def _without_loading(transform: Any) -> Compose:
    """The same transforms, composed in the same way, without those that read files."""
    if isinstance(transform, list | tuple):
        transform = Compose(list(transform))
    if type(transform) is not Compose:
        return Compose([] if type(transform).__name__.startswith(_LOADERS) else [transform])
    kept = [
        _without_loading(step) if type(step) is Compose else step
        for step in transform.transforms
        if not type(step).__name__.startswith(_LOADERS)
    ]
    return Compose(
        kept,
        map_items=transform.map_items,
        unpack_items=transform.unpack_items,
        lazy=transform.lazy,
        overrides=transform.overrides,
    )


def _recomputes_affine(step: Any) -> bool:
    """Whether a resampling writes another voxel size into the affine than the one it sampled with."""
    spacing = getattr(step, "spacing_transform", None)
    return isinstance(spacing, Spacing) and bool(spacing.recompute_affine)


def _windows(inferer: Any, bundle: Bundle) -> WindowSettings:
    name = type(inferer).__name__
    if inferer is None or name == "SimpleInferer":
        return WindowSettings((0, 0, 0))
    if isinstance(inferer, EvenWindowInferer):
        size = tuple(int(n) for n in _three(inferer.roi_size, "roi_size", bundle))
        return WindowSettings(size, (1 - inferer.step,) * 3, EVEN, batch_size=inferer.sw_batch_size)
    if name not in {"SlidingWindowInferer", "SlidingWindowInfererAdapt", _SLICES}:
        expected = f"SlidingWindowInferer, {_SLICES} or SimpleInferer"
        raise BundleError(f"inferer of {bundle.name} is {name}, expected {expected}")
    if inferer.with_coord:
        raise BundleError(f"inferer of {bundle.name} tells the network where a window lies (with_coord); not supported")
    overlap = tuple(float(o) for o in _three(inferer.overlap, "overlap", bundle))
    if not all(0 <= o < 1 for o in overlap):
        raise BundleError(f"inferer of {bundle.name} has an overlap of {inferer.overlap}, expected 0 to less than 1")
    window: Sequence[Any] = inferer.roi_size
    if name == _SLICES:  # windows of one slice
        window = list(inferer.orig_roi_size)
        window.insert(inferer.spatial_dim, 1)
    return WindowSettings(
        roi_size=tuple(int(n or 0) for n in _three(window, "roi_size", bundle)),
        overlap=overlap,
        mode=str(getattr(inferer.mode, "value", inferer.mode)),
        sigma_scale=inferer.sigma_scale,
        batch_size=int(inferer.sw_batch_size),
        padding_mode=str(getattr(inferer.padding_mode, "value", inferer.padding_mode)),
        padding_value=float(inferer.cval),
    )


def _three(value: Any, what: str, bundle: Bundle) -> Sequence[Any]:
    """One value per axis."""
    values = list(value) if isinstance(value, Sequence) else [value] * 3
    if len(values) != 3:
        raise BundleError(f"{what} in the inferer of {bundle.name} has {len(values)} values, expected 3 (volumes)")
    return values
