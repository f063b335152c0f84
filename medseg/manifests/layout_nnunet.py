"""nnU-Net's raw dataset: ``imagesTr/CASE_0000.ext``, ``labelsTr/CASE.ext``, ``dataset.json``, ``splits_final.json``.

The format is described in nnU-Net's ``documentation/dataset_format.md``; its splits are a list of
``{"train": [case, ...], "val": [case, ...]}``, one entry a fold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.ingest.record import is_apple_double
from medseg.json_shape import TEXT, read_json
from medseg.manifests.items import Item, check_item, one_or_list, split_channel

_SPLITS = "splits_final.json"


def is_nnunet(content: Mapping[str, Any]) -> bool:
    """Whether a ``dataset.json`` is nnU-Net's (version 2) and lists no items itself."""
    return "file_ending" in content and "training" not in content


def read_nnunet(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The datalist of an nnU-Net dataset (version 2): the object in its ``dataset.json``, folds by its splits.

    A UsageError if an image has no label or lacks a channel, or the splits name a case twice or one that is not there.
    """
    _check(content, path)
    training = _training(path.parent, content)
    if path.with_name(_SPLITS).exists():
        _assign_folds(training, path.with_name(_SPLITS))
    names = _channel_names(content)
    test = _cases(path.parent, "Ts", str(content["file_ending"]), len(names) or 1)
    replaced = {"channel_names", "modality", "numTraining", "file_ending", "dataset"}
    return {
        "name": path.parent.name,
        **{key: value for key, value in content.items() if key not in replaced},
        "modality": dict(names),
        "numTraining": len(training),
        "numTest": len(test),
        "training": [training[case] for case in sorted(training)],
        "test": [test[case] for case in sorted(test)],
    }


def _check(content: Mapping[str, Any], path: Path) -> None:
    """Refuse what is of another kind than nnU-Net writes."""
    names, listed = _channel_names(content), content.get("dataset")
    if not isinstance(names, Mapping) or not isinstance(content["file_ending"], str) or not content["file_ending"]:
        raise UsageError(f"{path}: expected channel_names by number and a file_ending such as .nii.gz; correct it")
    for entry in listed.values() if isinstance(listed, Mapping) else ():
        images = entry.get("images") if isinstance(entry, Mapping) else None
        if not isinstance(images, list) or "label" not in entry:
            raise UsageError(f"{path}: a case of 'dataset' names no list of images and a label; correct it")
        check_item({"image": images, "label": entry["label"]}, path)


def _channel_names(content: Mapping[str, Any]) -> Mapping[str, Any]:
    names: Mapping[str, Any] = content.get("channel_names", content.get("modality", {}))
    return names


def _training(folder: Path, content: Mapping[str, Any]) -> dict[str, Item]:
    channels = len(_channel_names(content)) or 1
    if isinstance(content.get("dataset"), Mapping):  # nnU-Net's way to name files that lie elsewhere
        return {
            str(case): {"image": one_or_list(entry["images"]), "label": entry["label"], "patient_id": str(case)}
            for case, entry in content["dataset"].items()
        }
    cases = _cases(folder, "Tr", str(content["file_ending"]), channels)
    without = [case for case, item in cases.items() if "label" not in item]
    if without:
        raise UsageError(f"{folder}: {len(without)} training images have no label, the first is {sorted(without)[0]}")
    if not cases:
        raise UsageError(f"{folder / 'imagesTr'} holds no file that ends in {content['file_ending']}")
    return cases


def _cases(folder: Path, part: str, ending: str, channels: int) -> dict[str, Item]:
    found: dict[str, dict[int, str]] = defaultdict(dict)
    there = (folder / f"images{part}").glob(f"*{ending}")
    for path in sorted(path for path in there if not is_apple_double(path)):
        case, channel = split_channel(path.name.removesuffix(ending))
        if channel is None:
            raise UsageError(f"{path} does not end in a channel such as _0000{ending}; rename it as nnU-Net expects")
        found[case][channel] = path.relative_to(folder).as_posix()
    items: dict[str, Item] = {}
    for case, files in found.items():
        if sorted(files) != list(range(channels)):
            raise UsageError(f"{folder.name}: case {case} has channels {sorted(files)}; expected {channels} from 0")
        items[case] = {"image": one_or_list([files[number] for number in sorted(files)]), "patient_id": case}
        label = folder / f"labels{part}" / f"{case}{ending}"
        if label.exists():
            items[case]["label"] = label.relative_to(folder).as_posix()
    return items


def _assign_folds(training: dict[str, Item], path: Path) -> None:
    folds = read_json(path, [{"val!": [TEXT]}], "write a list of {train, val} objects, or remove it")
    for number, fold in enumerate(folds):
        for case in fold["val"]:
            item = training.get(str(case))
            if item is None:
                raise UsageError(f"{path}: fold {number} names the case {case}, which the dataset does not have")
            if item.setdefault("fold", number) != number:
                raise UsageError(f"{path}: the case {case} is validated in folds {item['fold']} and {number}")
