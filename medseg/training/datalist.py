"""Cases of one fold from a datalist in MONAI's format."""

from __future__ import annotations

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
    part: Literal["training", "validation"],
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Cases to train on or to validate on, with absolute paths.

    Parameters
    ----------
    datalist
        JSON with a list ``training`` of items ``{"image", "label", "fold"}``.
    dataset_dir
        Folder the paths in it are relative to.
    fold
        Held-out fold: its cases validate, all others train. A negative number trains on every case and
        validates on fold 0 (figures are then not held out).
    limit
        Use only the first cases.

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
    held_out = max(fold, 0)
    chosen = [item for item in items if fold < 0 or item.get("fold", 0) != held_out]
    if part == "validation":
        chosen = [item for item in items if item.get("fold", 0) == held_out]
    if not chosen:
        raise UsageError(
            f"the datalist {datalist} leaves no case for {part} with fold {fold}; split it into folds first"
        )
    first = chosen[0]["image"]
    images = [first] if isinstance(first, str) else first  # several channels are a list of files
    if missing := [image for image in images if not Path(image).exists()]:
        raise UsageError(
            f"the first image of the datalist, {missing[0]}, does not exist; "
            "give the folder that holds the data with --dataset-dir (dataset_dir in the configuration)"
        )
    return [{key: item[key] for key in ("image", "label")} for item in chosen[:limit]]
