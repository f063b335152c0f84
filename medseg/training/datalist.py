"""Cases of one fold from a datalist in MONAI's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from monai.data import load_decathlon_datalist

from medseg.errors import UsageError

__all__ = ["fold_items"]


def fold_items(
    datalist: str | PathLike[str],
    dataset_dir: str | PathLike[str],
    fold: int,
    part: Literal["training", "validation", "unlabelled"],
    limit: int | None = None,
    keys: Sequence[str] = ("image",),
) -> list[dict[str, Any]]:
    """Cases to train on or to validate on, with absolute paths.

    Parameters
    ----------
    datalist
        JSON with a list ``training`` of items ``{"image", "label", "fold"}``. Items without ``label`` are unlabelled
        cases, and so are those of a list ``unlabelled`` (paths, or items with ``image``), if there is one.
    dataset_dir
        Folder the paths in it are relative to.
    fold
        Held-out fold: its cases validate, all others train. A negative number trains on every case and
        validates on fold 0 (figures are then not held out).
    part
        ``"unlabelled"`` gives items with ``image`` alone, none of them from the held-out fold; often there are none.
    limit
        Use only the first cases.
    keys
        Where the images go. With several keys each item lists one file per key, the channels, which may lie on
        different grids; with one, whatever the item says goes there.

    Raises
    ------
    UsageError
        If the file or the folder is missing, the fold is empty, or an image does not exist.
    """
    if not Path(datalist).is_file():
        raise UsageError(f"there is no datalist at {datalist}; give a JSON file with the list 'training'")
    items = load_decathlon_datalist(str(datalist), is_segmentation=True, base_dir=str(dataset_dir))
    folds = sorted({item.get("fold", 0) for item in items})
    if fold >= 0 and fold not in folds:
        raise UsageError(f"the datalist {datalist} has the folds {folds}, not {fold}; choose one of them with --fold")
    if part == "unlabelled":
        chosen = [item for item in items if "label" not in item] + _unlabelled_list(datalist, dataset_dir)
        chosen = [item for item in chosen if fold < 0 or item.get("fold", -1) != fold]
    elif part == "validation":
        chosen = [item for item in items if "label" in item and item.get("fold", 0) == max(fold, 0)]
    else:
        chosen = [item for item in items if "label" in item and (fold < 0 or item.get("fold", 0) != fold)]
    if not chosen and part != "unlabelled":
        raise UsageError(
            f"the datalist {datalist} leaves no case for {part} with fold {fold}; split it into folds first"
        )
    _require_first_image(chosen)
    return [_spread(item, keys, datalist, labelled=part != "unlabelled") for item in chosen[:limit]]


def _spread(
    item: dict[str, Any], keys: Sequence[str], datalist: str | PathLike[str], *, labelled: bool
) -> dict[str, Any]:
    """The images of an item under their keys, and its label."""
    images = [item["image"]] if len(keys) == 1 or isinstance(item["image"], str) else item["image"]
    if len(images) != len(keys):
        raise UsageError(
            f"an item of {datalist} lists {len(images)} image(s), the bundle takes {len(keys)} channels; "
            "list one file per channel under 'image'"
        )
    return {**dict(zip(keys, images, strict=True)), **({"label": item["label"]} if labelled else {})}


def _unlabelled_list(datalist: str | PathLike[str], dataset_dir: str | PathLike[str]) -> list[dict[str, Any]]:
    content = json.loads(Path(datalist).read_text())
    entries = [dict(entry) if isinstance(entry, dict) else {"image": entry} for entry in content.get("unlabelled", [])]
    for entry in entries:
        files = [entry["image"]] if isinstance(entry["image"], str) else entry["image"]
        paths = [str(Path(dataset_dir) / file) for file in files]
        entry["image"] = paths[0] if isinstance(entry["image"], str) else paths
    return entries


def _require_first_image(chosen: list[dict[str, Any]]) -> None:
    if not chosen:
        return
    first = chosen[0]["image"]
    images = [first] if isinstance(first, str) else first  # several channels are a list of files
    if missing := [image for image in images if not Path(image).exists()]:
        raise UsageError(
            f"the first image of the datalist, {missing[0]}, does not exist; "
            "give the folder that holds the data with --dataset-dir (dataset_dir in the configuration)"
        )
