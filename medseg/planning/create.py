"""Write a complete bundle, ready to train, from a datalist and a plan. It holds data only, no code.

The configs are templates: a text such as ``"<patch_size>"`` in them is the place of a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.bundle import require_trusted
from medseg.bundle.training_run import UNTRAINED
from medseg.errors import UsageError
from medseg.files import whole_or_gone, write_bytes, write_json, write_text
from medseg.manifests import Manifest
from medseg.planning.encoder import Encoder, encoder_named
from medseg.planning.fingerprint import Fingerprint, fingerprint_of_data
from medseg.planning.plan import Budget, Plan, make_plan

if TYPE_CHECKING:
    from torch import Tensor

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)+")
_PLACE = re.compile(r"<(\w+)>")
_PRETRAINED = "pretrained/encoder.safetensors"
_MARGIN = 0.25
_FOLDS = 5
_THRESHOLD = 0.5
"""From this probability on a voxel is of a region."""
_LEFT_OUT: Any = object()
"""The value of a place whose key, or item of a list, goes with it."""
_ITEMS = {
    "_target_": "monai.data.load_decathlon_datalist",
    "data_list_file_path": "@datalist_file",
    "is_segmentation": True,
    "data_list_key": "@section",
    "base_dir": "@dataset_dir",
}
_UNLICENSED = """No licence has been chosen for this bundle yet: all rights are reserved by its authors.
Replace this file by the licence under which you share the bundle.
"""


def create_bundle(
    name: str,
    datalist: str | Path,
    output: str | Path,
    *,
    dataset_dir: str | Path | None = None,
    budget: Budget | None = None,
    authors: str = "not stated",
    encoder: str | None = None,
    weights: str | Path | None = None,
) -> tuple[Path, Plan]:
    """Fingerprint the data, plan, and write the bundle ``output/NAME``.

    Parameters
    ----------
    name
        ``<anatomy>_<modality>_<task>`` in lower case.
    datalist
        A datalist, or an MSD or nnU-Net ``dataset.json``. If it has no folds, five are made, by patient.
    output
        Folder in which the bundle's folder is created.
    dataset_dir
        Where relative paths of the datalist start; by default as the datalist says.
    budget
        Memory and time that training may take.
    encoder
        Name of a published encoder to build the network around (:data:`medseg.planning.encoder.ENCODERS`).
    weights
        File of its weights, which are copied into the bundle; training freezes them at first. Without it the encoder
        starts anew.

    Raises
    ------
    UsageError
        If the name is no bundle name, the bundle exists, the data cannot be planned for, or the weights do not fit.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"the name is {name!r}, expected the form <anatomy>_<modality>_<task>, lower case")
    folder = Path(output) / name
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another name, or remove it")
    chosen = encoder_named(encoder, weights)
    manifest = Manifest.read(datalist, dataset_dir=dataset_dir)
    if not any("fold" in item for item in manifest.training):
        manifest = manifest.split(min(_FOLDS, len(manifest.training)), 0)
    data = fingerprint_of_data(manifest)
    plan = make_plan(data, budget, chosen)
    tensors = None
    if chosen is not None and weights is not None:
        matched, tensors = chosen.match(weights, data.channels)
        why = f"{matched}; a copy lies in {_PRETRAINED}"
        plan = replace(plan, reasons=(*plan.reasons, ("weights", Path(weights).name, why)))
    with whole_or_gone(folder):
        _write(folder, manifest, data, plan, authors, _encoder_values(chosen, plan, pretrained=tensors is not None))
        if tensors is not None:
            _save_tensors(tensors, folder / _PRETRAINED)
        require_trusted(folder)
    return folder, plan


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save

    write_bytes(path, save(tensors))


def _encoder_values(encoder: Encoder | None, plan: Plan, *, pretrained: bool) -> dict[str, Any]:
    """Values of ``train.json`` that an encoder changes: its weights, a rate of its own, and a rest at the beginning."""
    network, ids = "@network_def", ("encoder_weights", "encoder_rate", "frozen_epochs")
    parameters = "medseg.training.parameters_of({}@deep_supervision)"
    values: dict[str, Any] = dict.fromkeys(ids, _LEFT_OUT)
    if encoder is None:
        parameters = parameters.format("@network, ")
        handlers: tuple[dict[str, Any], ...] = ()
    else:
        network = "medseg.networks.pretrained(@network_def, @encoder_weights)"
        groups = "medseg.networks.parameter_groups(@network, @learning_rate, {'encoder': @encoder_rate})"
        parameters = f"{groups} + [{{'params': {parameters.format('')}}}]"
        handlers = (
            {
                "_target_": "medseg.training.FrozenFirst",
                "network": "@network",
                "part": "encoder",
                "epochs": "@frozen_epochs",
            },
        )
        values = {
            "encoder_weights": f"$@bundle_root + '/{_PRETRAINED}'" if pretrained else None,
            "encoder_rate": 0.1 if pretrained else 1.0,
            "frozen_epochs": max(1, plan.epochs // 10) if pretrained else 0,
        }
    start = f"medseg.training.started({network}.to(@device), @init, @rescale)"
    return {
        **values,
        "encoder_ids": () if encoder is None else ids,
        "network_call": f"$medseg.training.compiled({start}, @compile)",
        "parameters": f"${parameters}",
        "frozen": handlers,
        "networks_import": () if encoder is None else ("$import medseg.networks",),
    }


def _write(
    folder: Path, manifest: Manifest, data: Fingerprint, plan: Plan, authors: str, encoder: Mapping[str, Any]
) -> None:
    configs = folder / "configs"
    shared = _shared_values(manifest, data, plan)
    values = {
        "metadata": {**shared, **_metadata_values(folder.name, manifest, data, authors)},
        "train": {**shared, **_training_values(data, plan), **encoder},
        "inference": {**shared, **_inference_values(data, plan)},
    }
    for name, given in values.items():
        write_json(configs / f"{name}.json", _filled(json.loads((_TEMPLATES / f"{name}.json").read_text()), given))
    datalist = {key: value for key, value in manifest.content.items() if key != "dataset_dir"}
    write_json(configs / "datalist.json", datalist)
    for name in ("evaluate.json", "multi_gpu_train.json", "logging.conf"):
        write_text(configs / name, (_TEMPLATES / name).read_text())
    write_text(folder / "LICENSE", _UNLICENSED)
    write_text(folder / "docs" / "data_license.txt", (manifest.licence or "The datalist names no licence.") + "\n")
    volumes = [(value, name, f"{data.structure_ml.get(value, 0.0):.2f}") for value, name in data.labels.items()]
    words = {
        "name": folder.name,
        "structures": ", ".join(data.labels.values()),
        "cases": data.cases,
        "untrained": UNTRAINED.capitalize(),
        "cases_read": data.cases_read,
        "channels": data.channels,
        "modality": ", ".join(data.modality),
        "shape": " × ".join(f"{value:.0f}" for value in np.median(data.shape, axis=0)),
        "spacing": " × ".join(f"{value:.2f}" for value in np.median(data.spacing_mm, axis=0)),
        "volumes": "\n".join(f"| {' | '.join(map(str, row))} |" for row in volumes),
        "reasons": "\n".join(f"| {' | '.join(row)} |" for row in plan.reasons),
    }
    for name in ("README.md", "plan.md"):
        text = _PLACE.sub(lambda place: str(words[place[1]]), (_TEMPLATES / name).read_text())
        write_text(folder / "docs" / name, text)
    (folder / "models").mkdir()


def _filled(part: Any, values: Mapping[str, Any]) -> Any:
    """A template with values in their places; a tuple stands for several items of a list."""
    if isinstance(part, str):
        place = _PLACE.fullmatch(part)
        return part if place is None else values[place[1]]
    if isinstance(part, dict):
        filled = {key: _filled(value, values) for key, value in part.items()}
        return {key: value for key, value in filled.items() if value is not _LEFT_OUT}
    if isinstance(part, list):
        items = [_filled(item, values) for item in part]
        return [one for item in items for one in (item if isinstance(item, tuple) else (item,))]
    return part


def _shared_values(manifest: Manifest, data: Fingerprint, plan: Plan) -> dict[str, Any]:
    return {
        "dataset_dir": str(manifest.dataset_dir.absolute()),
        "spacing_mm": list(plan.spacing_mm),
        "patch_size": list(plan.patch_size),
        "network": plan.network,
        "normalisation": plan.to_image,
        "image_channels": data.channels,
        "classes": data.outputs,
    }


def _training_values(data: Fingerprint, plan: Plan) -> dict[str, Any]:
    several = True if data.channels > 1 else _LEFT_OUT
    return {
        "epochs": plan.epochs,
        "iterations": plan.iterations,
        "batch_size": plan.batch_size,
        "warm_up": plan.warm_up,
        "ramp": plan.ramp,
        "channel_keys": list(plan.keys),
        "label_names": list(data.labels.values()),
        "width": plan.width,
        "discriminator_layers": plan.discriminator_layers,
        "rotate_range": list(plan.rotate_range),
        "shear_range": list(plan.shear_range) if len(set(plan.shear_range)) > 1 else plan.shear_range[0],
        "flip_axes": list(plan.flip_axes) or _LEFT_OUT,
        **_label_values(data, plan),
        "prob_foreground": plan.prob_foreground
        if plan.prob_foreground or data.scheme.ignore is not None
        else _LEFT_OUT,
        "channel_wise": several,
        "several_channels": several,  # switches off what takes all channels for one scale
    }


def _label_values(data: Fingerprint, plan: Plan) -> dict[str, Any]:
    """What of ``train.json`` depends on the labels: classes that are known everywhere, or also regions and unknowns."""
    scheme, regions, classes = data.scheme, bool(data.scheme.regions), data.outputs
    argmax = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    values: dict[str, Any] = {
        "loaded_names": "@label_names",
        "known_labels": (),
        "activation": _LEFT_OUT,
        "loss": plan.soft_loss
        or {
            "_target_": "DiceCELoss",
            "include_background": False,
            "to_onehot_y": True,
            "softmax": True,
            "batch": True,
        },
        "validated": (
            {**argmax, "to_onehot": classes},
            {"_target_": "AsDiscreted", "keys": "label", "to_onehot": classes},
        ),
        "metric_classes": _LEFT_OUT,
        "overlapping": _LEFT_OUT,
        "foreground_key": "label" if plan.prob_foreground or scheme.ignore is not None else _LEFT_OUT,
    }
    if data.fully_known:
        return values
    table = scheme.to_json()
    known = {"_target_": "medseg.transforms.KnownLabelsd", "keys": "label", **table, "allow_missing_keys": True}
    values |= {"loaded_names": None, "known_labels": (known,), "metric_classes": classes, "validated": (argmax,)}
    values["loss"] = {"_target_": "medseg.training.KnownDiceCELoss", "sigmoid": regions}
    if regions:
        sigmoid = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
        values["validated"] = (sigmoid, {"_target_": "AsDiscreted", "keys": "pred", "threshold": _THRESHOLD})
        values |= {"activation": "sigmoid", "metric_classes": _LEFT_OUT, "overlapping": True}
    return values


def _inference_values(data: Fingerprint, plan: Plan) -> dict[str, Any]:
    """Without a datalist a file is a case; several channels are listed case by case."""
    decoding = {"softmax": True, "sigmoid": _LEFT_OUT, "argmax": True, "threshold": _LEFT_OUT}
    if data.scheme.regions:
        decoding = {"softmax": _LEFT_OUT, "sigmoid": True, "argmax": _LEFT_OUT, "threshold": _THRESHOLD}
    if data.channels == 1:
        listed = dict.fromkeys(("datalist_file", "section", "items", "channel_keys", "data_root_dir"), _LEFT_OUT)
        datalist = "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/' + @images))]"
        return {**decoding, **listed, "image_keys": "image", "images": "*.nii.gz", "datalist": datalist}
    one_key = len(plan.keys) == 1
    together, apart = (
        "$[{'image': item['image']} for item in @items]",
        "$[dict(zip(@channel_keys, item['image'])) for item in @items]",
    )
    return {
        **decoding,
        "images": _LEFT_OUT,
        "datalist_file": "$@bundle_root + '/configs/datalist.json'",
        "section": "training",
        "channel_keys": _LEFT_OUT if one_key else list(plan.keys),
        "items": _ITEMS,
        "datalist": together if one_key else apart,
        "image_keys": "image" if one_key else list(plan.keys),
        "data_root_dir": "@dataset_dir",  # files of two cases may share names
    }


def _metadata_values(name: str, manifest: Manifest, data: Fingerprint, authors: str) -> dict[str, Any]:
    regions = data.scheme.regions
    channels = dict(enumerate(regions)) if regions else {0: "background", **data.labels}
    table = data.scheme.to_json() if regions else {}
    return {
        "title": name.replace("_", " ").capitalize(),
        "state": f"planned from the data, {UNTRAINED}",
        "monai": packages.version("monai"),
        "torch": packages.version("torch").partition("+")[0],
        "numpy": packages.version("numpy"),
        "nibabel": packages.version("nibabel"),
        "ignite": packages.version("pytorch-ignite"),
        "task": f"Segmentation of {', '.join(data.labels.values())}",
        "description": f"A network planned from {data.cases} cases; docs/plan.md explains every choice.",
        "authors": authors,
        "copyright": f"Copyright (c) {authors}",
        "data_source": str(manifest.content.get("name") or manifest.content.get("description") or "not stated"),
        "training_range": _training_range(data),
        "image_format": "hounsfield" if set(data.modality) == {"CT"} else "magnitude",
        "modality": data.modality[0],
        "image_channel_def": {str(number): modality for number, modality in enumerate(data.modality)},
        "label_channel_def": {str(value): structure for value, structure in channels.items()},
        "label_table": table.get("labels", _LEFT_OUT),
        "label_order": table.get("regions_class_order", _LEFT_OUT),
    }


def _training_range(data: Fingerprint) -> dict[str, Any]:
    """Smallest and largest spacing and field of view of the cases read, widened by a quarter."""

    def limits(values: Any) -> dict[str, list[float]]:
        low, high = np.min(values, axis=0) * (1 - _MARGIN), np.max(values, axis=0) * (1 + _MARGIN)
        return {"low": [round(float(v), 2) for v in low], "high": [round(float(v), 2) for v in high]}

    modality = [name for name in dict.fromkeys(data.modality) if name != "unknown"]
    return {"spacing_mm": limits(data.spacing_mm), "fov_mm": limits(data.extent_mm), "modality": modality[:1]}
