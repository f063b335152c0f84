"""Bundles that are made for clicks, without them: what of their config only handles clicks is left out.

DeepEdit marks clicks in channels beside the image, which stay empty, and turns their coordinates by code of its own.
VISTA3D comes with an evaluator and an inferer of its own. Without clicks they do what MONAI's own do: windows over the
volume, and one mask for each class that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medseg.bundle.config import follow, item_at, spelled_out, steps, target_of

CLASSES, PARTS = "medseg_class_prompts", "subclass"
"""Ids of the classes that are asked for, and of the classes that others consist of."""

_CLICKS = frozenset({"VistaPreTransformd", "VistaPostTransformd", "OrientationGuidanceMultipleLabelDeepEditd"})
_MARKS = "AddGuidanceSignalDeepEditd"
_COPIED = re.compile(r"\$\s*copy\.deepcopy\((@[\w:#]+)\)\s*")
_CALL = re.compile(r"\$\s*(monai\.[\w.]+)\(((?:\w+=@?[\w.]+(?:,\s*)?)*)\)\s*")
_OF_PROMPTS = ("metadata", "metadata_path", "labels_dict", "input_dict")
"""Ids that the zoo's bundle reads names and prompts from."""


def is_promptable(config: Mapping[str, Any]) -> bool:
    """Whether a laid-out config is that of a VISTA3D bundle, as it comes or as :func:`without_clicks` gave it."""
    evaluator = item_at(config, follow(config, "evaluator"))
    return CLASSES in config or (isinstance(evaluator, Mapping) and target_of(evaluator) == "Vista3dEvaluator")


def intensity_channels(config: Mapping[str, Any]) -> int | None:
    """Of how many channels the image of a DeepEdit bundle is, which adds others for clicks; None of any other."""
    marks = next((step for step in steps(config, "preprocessing") if target_of(step) == _MARKS), None)
    count = None if marks is None else spelled_out(config, marks.get("number_intensity_ch", 1))
    return count if isinstance(count, int) else None


def without_clicks(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config less what handles clicks, VISTA3D's asked by class prompts; any other bundle's as it is."""
    if CLASSES in config:
        return dict(config)
    if not is_promptable(config):
        return _without_clicks(config) if intensity_channels(config) is not None else dict(config)
    return _by_class(config)


def note_on(config: Mapping[str, Any]) -> list[str]:
    """What is told of a config that :func:`without_clicks` gave."""
    if CLASSES in config:
        return ["VISTA3D is asked by class, with MONAI's parts: its evaluator and inferer (scripts/) do not run"]
    edits = intensity_channels(config) is not None
    return ["DeepEdit is given no clicks: code of the bundle that turns them does not run"] if edits else []


def _by_class(config: Mapping[str, Any]) -> dict[str, Any]:
    given = _without_clicks({key: value for key, value in config.items() if key not in _OF_PROMPTS})
    evaluator = item_at(given, follow(given, "evaluator"))
    asked = evaluator.pop("hyper_kwargs", {})
    evaluator["_target_"] = "SupervisedEvaluator"
    inferer = item_at(given, follow(given, "evaluator::inferer"))
    if isinstance(inferer, dict) and target_of(inferer) == "Vista3dInferer":
        size = {key: inferer[key] for key in ("roi_size", "sw_batch_size") if key in inferer}
        inferer.clear()  # without clicks it leaves overlap and weights of windows to MONAI
        inferer.update({"_target_": "SlidingWindowInfererAdapt", **size})
    network = given.get("network_def")
    if isinstance(network, str) and (call := _CALL.fullmatch(network)):
        arguments = dict(part.split("=") for part in re.split(r",\s*", call[2]) if part)
        given["network_def"] = {"_target_": call[1], **{key: _value(text) for key, text in arguments.items()}}
    return {**given, CLASSES: asked.get("everything_labels") if isinstance(asked, Mapping) else None}


def _value(text: str) -> Any:
    return int(text) if text.isdecimal() else text


def _without_clicks(value: Any) -> Any:
    """A copy without the transforms of prompts, and without copies of parts, which stay the one they are."""
    if isinstance(value, Mapping):
        return {key: _without_clicks(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_clicks(part) for part in value if not _is_of_clicks(part)]
    copied = _COPIED.fullmatch(value) if isinstance(value, str) else None
    return copied[1] if copied else value


def _is_of_clicks(step: Any) -> bool:
    if not isinstance(step, Mapping):
        return False
    # where no click falls, that bundle's windows leave numbers that are none
    fills = target_of(step) == "Lambdad" and "torch.nan_to_num" in str(step.get("func"))
    return fills or target_of(step) in _CLICKS
