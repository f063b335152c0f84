"""Published networks as bundles: their weights are read as data, and nothing of what they come with is executed.

A TensorFlow.js layers model describes its own network. Of weights alone (TorchScript archives, state dicts) the user
names the network. Either way the bundle names MONAI's classes only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle import Bundle, require_trusted
from medseg.bundle.described import BACKGROUND
from medseg.conversion.imported import Imported, ImportOptions, describe, free_place, name_of, template, write_texts
from medseg.conversion.published_tensors import WEIGHT_SUFFIXES, read_state, without_prefix
from medseg.conversion.published_tfjs import is_layers_model, read_stack
from medseg.errors import BundleError, UsageError
from medseg.files import shown, whole_or_gone
from medseg.json_shape import ANYTHING, TEXT, misfit, read_bounded, read_json, wholes

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"\w+", re.ASCII)
_SMALL_TEXT = 1 << 20
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_UNLICENSED = "The source of this bundle states no licence: ask its authors before you share it.\n"
_NO_BACKGROUND = frozenset({"unknown", "bg"})
_COLOURS = {"R!": wholes(0), "G!": wholes(0), "B!": wholes(0), "labels!": [TEXT]}
_NETWORK = {
    "network_def": {"_target_!": TEXT, "*": ANYTHING},
    "preprocessing": [{"_target_!": TEXT, "*": ANYTHING}],
    "inferer": {"_target_!": TEXT, "*": ANYTHING},
    "labels": [TEXT],
    "modality": TEXT,
}
_NETWORK_REMEDY = (
    "give a network_def of a MONAI bundle, or an object with network_def and, if they are known, preprocessing (a list"
    " of transforms), inferer, labels (names of the output's channels) and modality"
)
_QUANTILES = re.compile(
    r"(?<!\d)(\d{1,2})\s?%\s?quantile.{0,80}?(?<!\d)(\d{1,2})\s?%\s?quantile", re.IGNORECASE | re.DOTALL
)
_IMAGE: dict[str, Any] = {"keys": "image"}
_CONFORMED = "x.shape[1:] == (256, 256, 256) and x.max() <= 255"
_CLIP = {
    "_target_": "Lambdad",
    **_IMAGE,
    "func": f"$lambda x: x if {_CONFORMED} else x.clamp(max=float(np.percentile(x[x > 0], 99.9)))",
}
"""As the browser tool's conform, which leaves an image of 256³ voxels alone: the brightest 0.1 % become one."""
_RANGE = (
    {"low": [0.4, 0.4, 0.4], "high": [3.0, 3.0, 3.0]},
    {"low": [120.0, 140.0, 120.0], "high": [320.0, 320.0, 320.0]},
)


@dataclass
class _Model:
    """What a bundle is made of: ``parts`` of ``inference.json``, weights, names of the output's channels."""

    kind: str
    parts: dict[str, Any]
    state: dict[str, torch.Tensor]
    labels: list[str]
    modality: str
    colours: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_published(source: Path) -> bool:
    """Whether ``source`` is a TensorFlow.js layers model (its folder, or ``model.json``) or a file of weights."""
    if source.is_dir():
        return is_layers_model(source / "model.json")
    return is_layers_model(source) or (source.is_file() and source.suffix.lower() in WEIGHT_SUFFIXES)


def import_published(source: Path, output: Path, options: ImportOptions) -> Imported:
    """Make a bundle below ``output`` of a network that somebody has published.

    ``options.network`` names the file with the network of weights that do not describe it. Raises ``UsageError`` if the
    network is not said, or the bundle exists; ``BundleError`` if the source cannot be read, is damaged or does not fit
    its network, or holds what MONAI has not.
    """
    layers = next((path for path in (source, source / "model.json") if is_layers_model(path)), None)
    model = _of_weights(source, options) if layers is None else _of_layers(layers)
    stem = (source if layers is None else layers.parent).resolve().stem
    name = options.name or name_of(f"{stem[:80]} segmentation")
    folder = free_place(output, name, _NAME, "letters, digits and underscores")
    with whole_or_gone(folder):
        beside = source if source.is_dir() else source.parent
        licence = next(iter(_texts(beside, beside.resolve().parent)), _UNLICENSED)
        _name_background(model)
        write_texts(folder, _inference(model.parts), _metadata(name, model), licence, model.notes)
        _fill(folder, model)
    return Imported(folder, model.kind, tuple(model.notes))


# --- what describes itself --------------------------------------------------------------------------------------------


def _of_layers(path: Path) -> _Model:
    """A stack of convolutions in a browser's format, with the preprocessing of brainchop, which publishes such."""
    stack = read_stack(path)
    labels, colours = _labels(path.parent, stack.classes)
    scaling, how = _scaling(stack.comment)
    transforms = [
        _CLIP,
        {"_target_": "Orientationd", **_IMAGE, "axcodes": "LIA", "labels": None},
        {"_target_": "Spacingd", **_IMAGE, "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
        {"_target_": "SpatialPadd", **_IMAGE, "spatial_size": list(stack.extent)},
        scaling,
    ]
    notes = [
        "taken for a whole-head T1 network as brainchop runs it: voxels in the order left, inferior, anterior, of 1 mm,"
        f" padded to {' × '.join(map(str, stack.extent))}, {how}",
        "an image that is no 256³ voxels of up to 255 already has its brightest 0.1 % clipped first",
        "the whole head at once, as the network was trained; brainchop crops it to what is bright, to save memory",
        f"windows would be exact only where a margin of {stack.margin} voxels is thrown away",
        *stack.notes,
    ]
    parts = {
        "layers": stack.layers,
        "network_def": "$torch.nn.Sequential(*@layers)",
        "preprocessing": transforms,
        "inferer": {"_target_": "SimpleInferer"},
    }
    spacing, fov = _RANGE
    limits = {"training_range": {"spacing_mm": spacing, "fov_mm": fov, "modality": ["MR"]}}
    return _Model("a TensorFlow.js layers model", parts, stack.state, labels, "MR", colours, limits, notes)


def _scaling(comment: str) -> tuple[dict[str, Any], str]:
    """The normalisation that the model's comment asks for, else between the least and the largest value."""
    asked = _QUANTILES.search(comment)
    if asked and (low := float(asked[1])) < (high := float(asked[2])) < 100:
        limits = {"lower": low, "upper": high, "b_min": 0.0, "b_max": 1.0, "clip": False}
        scale = {"_target_": "ScaleIntensityRangePercentilesd", **_IMAGE, **limits}
        return scale, f"{low:g} % and {high:g} % of its values as 0 and 1"
    return {"_target_": "ScaleIntensityd", **_IMAGE}, "its least and largest value as 0 and 1"


def _labels(folder: Path, classes: int) -> tuple[list[str], dict[str, str]]:
    """Names of the channels and ``#rrggbb`` by label, from ``colormap.json`` or ``labels.json`` beside the model."""
    for name in ("colormap.json", "labels.json"):
        if (folder / name).is_file():
            remedy = f"correct it, or remove it and name the {classes} channels in the bundle's metadata"
            found = read_json(folder / name, ANYTHING, remedy, BundleError, _SMALL_TEXT)
            named = [found[str(number)] for number in range(classes)] if _is_numbered(found, classes) else found
            labels: Any = named.get("labels") if isinstance(named, dict) else named
            if misfit(labels, [TEXT]) or not len(labels) == len({*labels}) == classes:
                why = f"does not name {classes} classes from 0 on, each differently, as the weights have"
                raise BundleError(f"{shown(folder / name)} {why}; {remedy}")
            return [shown(label) for label in labels], _colours(found, classes)
    return ["background", *(f"class {number}" for number in range(1, classes))], {}


def _is_numbered(found: Any, classes: int) -> bool:
    return isinstance(found, dict) and found.keys() == {str(number) for number in range(classes)}


def _colours(found: Any, classes: int) -> dict[str, str]:
    if misfit(found, _COLOURS) or any(len(found[key]) != classes or max(found[key]) > 255 for key in "RGB"):
        return {}
    colours = zip(found["R"], found["G"], found["B"], strict=True)
    return {str(label): "#{:02x}{:02x}{:02x}".format(*colour) for label, colour in enumerate(colours) if label}


# --- what is described by the user ------------------------------------------------------------------------------------


def _of_weights(source: Path, options: ImportOptions) -> _Model:
    """Weights whose network the user names."""
    if options.network is None:
        raise UsageError(f"{shown(source)} holds weights and no network; say which with --network FILE.json")
    given = read_json(options.network, {"*": ANYTHING}, _NETWORK_REMEDY)
    parts = {"network_def": given} if "_target_" in given else given
    if (wrong := misfit(parts, _NETWORK)) or "network_def" not in parts:
        raise UsageError(f"{shown(options.network)}: {wrong or 'it has no network_def'}; {_NETWORK_REMEDY}")
    state, kind = read_state(source)
    definition = parts["network_def"]
    labels = parts.get("labels")
    if labels is None:
        classes = definition.get("out_channels")
        if not isinstance(classes, int):
            raise UsageError(f"{shown(options.network)} states no out_channels; name the output's channels in labels")
        labels = ["background", *(f"class {number}" for number in range(1, classes))]
    stated = definition.get("out_channels", len(labels)), definition.get("in_channels", 1)
    if stated != (len({*labels}), 1) or len(labels) != stated[0] or len(labels) < 2:
        raise UsageError(
            f"{shown(options.network)} names {len({*labels})} channels of a network with {shown(stated[0])} for images"
            f" of {shown(stated[1])}; expected two or more different names, background included, and images of 1"
        )
    notes = []
    if "preprocessing" not in parts:
        notes.append("the source states no preprocessing: RAS, mean 0 and deviation 1 are a guess; correct it")
    if "inferer" not in parts:
        notes.append("the source states no windows: 96³ with half of each repeated are a guess; correct them")
    plain: list[dict[str, Any]] = [
        {"_target_": "Orientationd", **_IMAGE, "axcodes": "RAS", "labels": None},
        {"_target_": "NormalizeIntensityd", **_IMAGE},
    ]
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "overlap": 0.5, "mode": "gaussian"}
    used = {"preprocessing": plain, "inferer": inferer, **parts}
    used = {key: used[key] for key in ("network_def", "preprocessing", "inferer")}
    return _Model(kind, used, state, labels, parts.get("modality", "not stated"), notes=notes)


# --- the bundle -------------------------------------------------------------------------------------------------------


def _fill(folder: Path, model: _Model) -> None:
    """Write the weights as far as they fit the network, which the audit has to permit first."""
    from medseg.inference.config import read_inference_config
    from medseg.training.checkpoints import save_whole

    (folder / "models").mkdir()
    require_trusted(folder)
    first: BundleError | None = None
    for prefix, state in without_prefix(model.state):
        save_whole(dict(state), folder / "models" / "model.pt")
        try:
            bundle = Bundle.open(folder)
            bundle.load_network()
        except BundleError as error:
            first = first or error
            continue
        if prefix:
            model.notes.append(f"every weight's name began with {prefix}, which is left out")
        read_inference_config(bundle)
        return
    assert first is not None
    raise first


def _name_background(model: _Model) -> None:
    """Call channel 0 what it is where its name says so, and tell where it does not: its voxels are 0 anyway."""
    name = model.labels[0]
    if name.strip().lower() in _NO_BACKGROUND:
        model.labels[0] = "background"
        model.notes.append(f"channel 0, {name}, is the background")
    elif name.strip().lower() not in BACKGROUND:
        model.notes.append(f"channel 0, {name}, is no background by its name: label maps hold it as 0, as nothing")


def _texts(*folders: Path) -> Iterator[str]:
    """Texts of the licences that lie beside the source."""
    for path in (folder / name for folder in folders for name in _LICENCES):
        # a link can lead to any text of this machine
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _SMALL_TEXT:
            yield read_bounded(path, _SMALL_TEXT).decode(errors="replace")


def _inference(parts: Mapping[str, Any]) -> dict[str, Any]:
    config = template("inference")
    config["preprocessing"]["transforms"] += [*parts["preprocessing"], {"_target_": "EnsureTyped", **_IMAGE}]
    invert, discrete, save = config["postprocessing"]["transforms"]
    decided = [{**discrete, "argmax": True}, {**invert, "nearest_interp": True}, save]
    config["postprocessing"]["transforms"] = decided  # on the network's grid, as the origin does
    return config | {key: parts[key] for key in ("layers", "network_def", "inferer") if key in parts}


def _metadata(name: str, model: _Model) -> dict[str, Any]:
    labels = dict(enumerate(model.labels))
    metadata = describe(name, model.kind, {0: model.modality}, labels, ["*"] * 3, model.modality)
    codes = metadata["network_data_format"]["outputs"]["pred"]["segment_codes"]
    codes |= {label: {"colour": colour} for label, colour in model.colours.items()}
    return metadata | {"task": f"Segmentation of {len(labels) - 1} structures", **model.metadata}
