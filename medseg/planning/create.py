"""Write a complete bundle, ready to train, from a datalist and a plan. It holds data only, no code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np

from medseg.bundle import require_trusted
from medseg.bundle.training_run import UNTRAINED
from medseg.errors import UsageError
from medseg.files import write_json, write_text
from medseg.manifests import Manifest
from medseg.planning.fingerprint import Fingerprint, fingerprint_of_data
from medseg.planning.plan import Budget, Plan, make_plan, resampling, stacking

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)+")
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_MARGIN = 0.25
_FOLDS = 5
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
    authors
        Who made the bundle.

    Raises
    ------
    UsageError
        If the name is no bundle name, the bundle exists, or the data cannot be planned for.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"the name is {name!r}, expected the form <anatomy>_<modality>_<task>, lower case")
    folder = Path(output) / name
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another name, or remove it")
    manifest = _with_folds(Manifest.read(datalist, dataset_dir=dataset_dir))
    data = fingerprint_of_data(manifest)
    plan = make_plan(data, budget)
    try:
        _write(folder, manifest, data, plan, authors)
        require_trusted(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder, plan


def _with_folds(manifest: Manifest) -> Manifest:
    if any("fold" in item for item in manifest.training):
        return manifest
    return manifest.split(min(_FOLDS, len(manifest.training)), 0)


def _write(folder: Path, manifest: Manifest, data: Fingerprint, plan: Plan, authors: str) -> None:
    configs = folder / "configs"
    write_json(configs / "metadata.json", _metadata(folder.name, manifest, data, plan, authors))
    write_json(configs / "train.json", _train(manifest, data, plan))
    write_json(configs / "inference.json", _inference(manifest, data, plan))
    write_json(configs / "datalist.json", _datalist(manifest))
    for name in ("evaluate.json", "multi_gpu_train.json", "logging.conf"):
        write_text(configs / name, (_TEMPLATES / name).read_text())
    write_text(folder / "LICENSE", _UNLICENSED)
    write_text(folder / "docs" / "data_license.txt", (manifest.licence or "The datalist names no licence.") + "\n")
    write_text(folder / "docs" / "plan.md", _plan_text(data, plan))
    write_text(folder / "docs" / "README.md", _readme(folder.name, data))
    (folder / "models").mkdir()


def _template(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((_TEMPLATES / f"{name}.json").read_text())
    return config


def _datalist(manifest: Manifest) -> dict[str, Any]:
    return {key: value for key, value in manifest.content.items() if key != "dataset_dir"}


def _train(manifest: Manifest, data: Fingerprint, plan: Plan) -> dict[str, Any]:
    config = _template("train")
    classes = len(data.labels) + 1
    config.update(
        dataset_dir=str(manifest.dataset_dir.absolute()),
        seed=0,
        epochs=plan.epochs,
        iterations=plan.iterations,
        batch_size=plan.batch_size,
        patch_size=list(plan.patch_size),
        warm_up=plan.warm_up,
        ramp=plan.ramp,
        spacing_mm=list(plan.spacing_mm),
        label_names=list(data.labels.values()),
        network_def=plan.network,
    )
    config["discriminator_def"].update(
        label_channels=classes, image_channels=data.channels, channels=plan.width, layers=plan.discriminator_layers
    )
    train = config["train"]
    steps = train["preprocessing_transforms"]
    steps[0]["keys"] = list(plan.keys)
    train["preprocessing_transforms"] = _with_channels(steps, plan)
    train["augmentation_transforms"] = _augmentation(train["augmentation_transforms"], data, plan)
    config["unlabelled_transforms"] = _augmentation(config["unlabelled_transforms"], data, plan)
    _name_channels(config, plan.keys)
    for step in config["validate"]["postprocessing"]["transforms"]:
        step["to_onehot"] = classes
    config["validate"]["inferer"]["roi_size"] = list(plan.patch_size)
    return config


def _name_channels(config: dict[str, Any], keys: Sequence[str]) -> None:
    """Let the lists of cases give each channel its own key."""
    if len(keys) == 1:
        return
    config["channel_keys"] = list(keys)
    config["known_ids"].append("channel_keys")
    for lists in (config["train"]["dataset"], config["validate"]["dataset"], config["unlabelled"]):
        given = lists["data"].removesuffix(")")
        limit = "" if given.endswith("@training_cases") else ", None"
        lists["data"] = f"{given}{limit}, @channel_keys)"


def _inference(manifest: Manifest, data: Fingerprint, plan: Plan) -> dict[str, Any]:
    config = _template("inference")
    config.update(
        dataset_dir=str(manifest.dataset_dir.absolute()),
        images="*.nii.gz",
        spacing_mm=list(plan.spacing_mm),
        network_def=plan.network,
    )
    steps = config["preprocessing"]["transforms"]
    steps[0]["keys"] = steps[1]["keys"] = list(plan.keys) if len(plan.keys) > 1 else "image"  # load, channel first
    config["preprocessing"]["transforms"] = _with_channels(steps, plan)
    config["inferer"]["roi_size"] = list(plan.patch_size)
    if data.channels == 1:
        return config
    listed = "$[dict(zip(@channel_keys, item['image'])) for item in @items]"
    config["postprocessing"]["transforms"][-1]["data_root_dir"] = "@dataset_dir"  # files of two cases may share names
    replaced: dict[str, Any] = {
        "images": {"datalist_file": "$@bundle_root + '/configs/datalist.json'", "section": "training"},
        "datalist": {
            **({"channel_keys": list(plan.keys)} if len(plan.keys) > 1 else {}),
            "items": _ITEMS,
            "datalist": listed if len(plan.keys) > 1 else "$[{'image': item['image']} for item in @items]",
        },
    }
    return {new: value for key, old in config.items() for new, value in replaced.get(key, {key: old}).items()}


def _with_channels(steps: list[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """The template's preprocessing with the plan's normalisation and its way to one image of several channels."""
    made: list[dict[str, Any]] = []
    for step in steps:
        if step["_target_"] != "NormalizeIntensityd":
            made.append(step)
            continue
        made += [*resampling(plan.keys), *(dict(scaling) for scaling in plan.normalisation), *stacking(plan.keys)]
    return made


def _augmentation(steps: list[dict[str, Any]], data: Fingerprint, plan: Plan) -> list[dict[str, Any]]:
    spatial = steps[0]
    spatial["rotate_range"] = list(plan.rotate_range)
    if plan.flip_axes:
        spatial["flip_axes"] = list(plan.flip_axes)
    if plan.prob_foreground and "label" in spatial["keys"]:
        spatial.update(foreground_key="label", prob_foreground=plan.prob_foreground)
    if data.channels == 1:
        return steps
    for step in steps:
        if step["_target_"] in {"RandScaleIntensityd", "RandShiftIntensityd"}:
            step["channel_wise"] = True
    return [step for step in steps if step["_target_"] != "RandAdjustContrastd"]  # it takes all channels for one scale


def _metadata(name: str, manifest: Manifest, data: Fingerprint, plan: Plan, authors: str) -> dict[str, Any]:
    structures = ", ".join(data.labels.values())
    channels = {"0": "background", **{str(value): label for value, label in data.labels.items()}}
    tensor = {"spatial_shape": list(plan.patch_size), "dtype": "float32", "value_range": [], "is_patch_data": True}
    image = {
        "type": "image",
        "format": "hounsfield" if set(data.modality) == {"CT"} else "magnitude",
        "modality": data.modality[0],
        "num_channels": data.channels,
        **tensor,
        "channel_def": {str(number): modality for number, modality in enumerate(data.modality)},
    }
    pred = {"type": "image", "format": "segmentation", "num_channels": len(channels), **tensor, "channel_def": channels,
            "segment_codes": {}}  # fmt: skip
    return {
        "schema": _SCHEMA,
        "version": "0.1.0",
        "name": name.replace("_", " ").capitalize(),
        "changelog": {"0.1.0": f"planned from the data, {UNTRAINED}"},
        "monai_version": packages.version("monai"),
        "pytorch_version": packages.version("torch").partition("+")[0],
        "numpy_version": packages.version("numpy"),
        "required_packages_version": {
            "nibabel": packages.version("nibabel"),
            "pytorch-ignite": packages.version("pytorch-ignite"),
        },
        "supported_apps": {},
        "task": f"Segmentation of {structures}",
        "description": f"A network planned from {data.cases} cases; docs/plan.md explains every choice.",
        "authors": authors,
        "copyright": f"Copyright (c) {authors}",
        "data_source": str(manifest.content.get("name") or manifest.content.get("description") or "not stated"),
        "intended_use": "Research. Not a medical device; not for diagnosis or treatment.",
        "references": [],
        "eval_metrics": {},
        "training_range": _training_range(data),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _training_range(data: Fingerprint) -> dict[str, Any]:
    """Smallest and largest spacing and field of view of the cases read, widened by a quarter."""

    def limits(values: Any) -> dict[str, list[float]]:
        low, high = np.min(values, axis=0) * (1 - _MARGIN), np.max(values, axis=0) * (1 + _MARGIN)
        return {"low": [round(float(v), 2) for v in low], "high": [round(float(v), 2) for v in high]}

    modality = [name for name in dict.fromkeys(data.modality) if name != "unknown"]
    return {"spacing_mm": limits(data.spacing_mm), "fov_mm": limits(data.extent_mm), "modality": modality[:1]}


def _plan_text(data: Fingerprint, plan: Plan) -> str:
    spacing = " × ".join(f"{value:.2f}" for value in np.median(data.spacing_mm, axis=0))
    shape = " × ".join(f"{value:.0f}" for value in np.median(data.shape, axis=0))
    lines = [
        "# Plan",
        "",
        f"{data.cases} cases, {data.cases_read} of them read. {data.channels} channel(s): {', '.join(data.modality)}. "
        f"Median grid {shape} voxels of {spacing} mm (left-right, posterior-anterior, inferior-superior).",
        "",
        "| label | structure | median volume (ml) |",
        "| --- | --- | --- |",
        *(f"| {value} | {name} | {data.structure_ml.get(value, 0.0):.2f} |" for value, name in data.labels.items()),
        "",
        "| what | choice | why |",
        "| --- | --- | --- |",
        *(f"| {what} | {choice} | {why} |" for what, choice, why in plan.reasons),
        "",
        "Change any of it in `configs/train.json`; spacing, network and normalisation in `configs/inference.json` too.",
    ]
    return "\n".join(lines) + "\n"


def _readme(name: str, data: Fingerprint) -> str:
    structures = ", ".join(data.labels.values())
    return f"""# {name}

Segments {structures}. Planned from {data.cases} cases (`plan.md`).

<!-- training -->
{UNTRAINED.capitalize()}.
<!-- /training -->

In the folder that holds `bundles/`, or this one's own:

```bash
medseg train {name} --fold 0 --publish
medseg infer {name} INPUT -o OUTPUT
medseg bundle verify {name}
```

Here: `python -m monai.bundle run training --bundle_root . --config_file configs/train.json`.

The knobs at the top of `configs/train.json`: `epochs` and `iterations` (length), `batch_size` and `patch_size`
(memory), `learning_rate`, `adversarial_weight` (0 trains without the discriminator), `warm_up` and `ramp` (iterations
before and while the discriminator comes in), `fold`, `seed`, `dataset_dir`, `datalist`, `output_dir`, `device`.

Before you share it: choose a licence (`LICENSE`), state the coded term of each structure under `segment_codes` in
`configs/metadata.json` (DICOM outputs need them; a wrong term is worse than none, so none is guessed), and say here
what it was measured on.
"""
