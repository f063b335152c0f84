"""What a bundle's ``inference.json`` asks for, read as data: preprocessing, windows, and the way back to labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from monai.bundle import ConfigParser
from monai.transforms import Compose

from medseg.bundle import Bundle
from medseg.errors import BundleError
from medseg.inference.channels import channels_of
from medseg.inference.windows import WindowSettings

__all__ = ["Recipe", "read_recipe"]

_LOADERS = ("LoadImage", "EnsureChannelFirst", "LoadVolume")
_CLEANERS = {"FillHolesd", "KeepLargestConnectedComponentd", "LabelFilterd", "RemoveSmallObjectsd"}
_IGNORED = {"EnsureTyped", "SaveImaged", "DeleteItemsd", "SelectItemsd", "ToDeviced", "ToTensord", "CastToTyped"}


@dataclass(frozen=True)
class Recipe:
    """The parts of ``inference.json`` that a prediction needs.

    Parameters
    ----------
    preprocessing
        The bundle's dict transforms without loading; they act on the key ``image``, and first on the other ``keys``.
    windows
        The bundle's own sliding window; None if its inferer takes the whole volume at once.
    activation
        What is applied to the network's output before it is interpolated or compared.
    back
        Whether scores or labels are taken back to the source grid.
    nearest
        Whether nearest-neighbour interpolation is used on the way back.
    threshold
        Labels are ``score >= threshold`` of the only channel; None if the largest channel wins.
    clean_model, clean_source
        Label transforms applied on the network's grid and on the source grid.
    keys
        Under which the preprocessing takes channels, see :class:`medseg.inference.channels.Channels`.
    """

    preprocessing: Compose
    windows: WindowSettings | None
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    back: Literal["scores", "labels"] = "labels"
    nearest: bool = True
    threshold: float | None = None
    clean_model: tuple[Callable[..., Any], ...] = field(default=())
    clean_source: tuple[Callable[..., Any], ...] = field(default=())
    keys: tuple[str, ...] = ("image",)


@dataclass
class _Post:
    """State while the list of post-processing steps is read."""

    activation: Literal["none", "softmax", "sigmoid"] = "none"
    back: Literal["scores", "labels"] | None = None
    nearest: bool = True
    threshold: float | None = None
    discrete: bool = False
    clean_model: list[Callable[..., Any]] = field(default_factory=list)
    clean_source: list[Callable[..., Any]] = field(default_factory=list)


def read_recipe(bundle: Bundle) -> Recipe:
    """Read ``inference.json`` of a bundle.

    Raises
    ------
    UntrustedBundle
        If the audit finds anything outside its allow-list.
    BundleError
        If a part is missing, or asks for something that this predictor would do differently.
    """
    config = bundle.runnable_config("preprocessing", "inferer", "postprocessing")
    after = _steps(config, "postprocessing", bundle)
    steps = [step for step in _steps(config, "preprocessing", bundle) if not _target(step).startswith(_LOADERS)]
    config["preprocessing"] = {"_target_": "Compose", "transforms": steps}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns about parsing and about defaults: the bundle's author's concern
        parser = ConfigParser(config)
        preprocessing: Compose = parser.get_parsed_content("preprocessing")
        windows = _windows(parser, bundle)
        post = _read_post(after, bundle)
    if not post.discrete:
        raise BundleError(f"postprocessing of {bundle.name} lacks AsDiscreted with argmax or a threshold")
    return Recipe(
        preprocessing,
        windows,
        post.activation,
        post.back or "labels",
        post.nearest,
        post.threshold,
        tuple(post.clean_model),
        tuple(post.clean_source),
        channels_of(bundle).keys,
    )


def _target(step: Mapping[str, Any]) -> str:
    return str(step.get("_target_", "")).rsplit(".", 1)[-1]


def _steps(config: Mapping[str, Any], key: str, bundle: Bundle) -> list[Mapping[str, Any]]:
    """The list of transforms under ``key``, following references such as ``"@transforms"``."""
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("transforms")
    if isinstance(value, str) and value.startswith("@"):
        return _steps(config, value[1:], bundle)
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, Mapping) for v in value):
        raise BundleError(f"{key} in inference.json of {bundle.name} is not a Compose of a literal list of transforms")
    return [step for step in value if not step.get("_disabled_", False)]


def _windows(parser: ConfigParser, bundle: Bundle) -> WindowSettings | None:
    inferer = parser.get_parsed_content("inferer")
    name = type(inferer).__name__
    if name == "SimpleInferer":
        return None
    if name != "SlidingWindowInferer":
        raise BundleError(f"inferer of {bundle.name} is {name}, expected SlidingWindowInferer or SimpleInferer")
    roi, overlap = inferer.roi_size, inferer.overlap
    return WindowSettings(
        roi_size=tuple(int(n) for n in (roi if isinstance(roi, Sequence) else (roi,) * 3)),
        overlap=tuple(float(o) for o in (overlap if isinstance(overlap, Sequence) else (overlap,) * 3)),
        mode=str(getattr(inferer.mode, "value", inferer.mode)),
        sigma_scale=inferer.sigma_scale,
        batch_size=int(inferer.sw_batch_size),
        padding_mode=str(getattr(inferer.padding_mode, "value", inferer.padding_mode)),
        padding_value=float(inferer.cval),
    )


def _read_post(steps: Sequence[Mapping[str, Any]], bundle: Bundle) -> _Post:
    post = _Post()
    for step in steps:
        name = _target(step)
        if name == "Activationsd":
            _read_activation(step, post, bundle)
        elif name == "Invertd":
            post.back = "labels" if post.discrete else "scores"
            post.nearest = bool(step.get("nearest_interp", True))
        elif name == "AsDiscreted":
            _read_discrete(step, post, bundle)
        elif name in _CLEANERS and post.discrete:
            (post.clean_model if post.back is None else post.clean_source).append(_cleaner(step))
        elif name not in _IGNORED:
            raise BundleError(f"postprocessing of {bundle.name} uses {name} in a way that medseg does not know")
    return post


def _read_activation(step: Mapping[str, Any], post: _Post, bundle: Bundle) -> None:
    if step.get("other") is not None or post.discrete:
        raise BundleError(f"Activationsd of {bundle.name} must be softmax or sigmoid and come before AsDiscreted")
    post.activation = "softmax" if step.get("softmax") else "sigmoid" if step.get("sigmoid") else "none"


def _read_discrete(step: Mapping[str, Any], post: _Post, bundle: Bundle) -> None:
    if step.get("argmax"):
        post.threshold = None
    elif step.get("threshold") is not None and bundle.output_channels == 1:
        post.threshold = float(step["threshold"])
    else:
        raise BundleError(
            f"AsDiscreted of {bundle.name} must use argmax, or a threshold on one channel: a label map holds one label"
            " a voxel"
        )
    post.discrete = True


def _cleaner(step: Mapping[str, Any]) -> Callable[..., Any]:
    """The array transform behind a dict transform such as ``KeepLargestConnectedComponentd``."""
    instance = ConfigParser({"step": dict(step)}).get_parsed_content("step")
    own = [getattr(instance, name, None) for name in ("converter", "filter", "label_filter")]
    return next((transform for transform in own if callable(transform)), _on_pred(instance))


def _on_pred(instance: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Callable[..., Any]:
    return lambda array: instance({"pred": array})["pred"]
