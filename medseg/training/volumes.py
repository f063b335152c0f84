"""Volumes without labels, for networks that learn from images alone."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from medseg.errors import UsageError

__all__ = ["image_items"]


def image_items(
    datalist: str | PathLike[str],
    dataset_dir: str | PathLike[str],
    fold: int,
    part: Literal["training", "validation"],
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Every case of a datalist, labelled or not, as ``{"image": absolute path}``.

    Parameters
    ----------
    datalist
        JSON with a list ``training`` and perhaps a list ``unlabelled``; their items are paths, or objects with
        ``image`` and perhaps ``fold``. Labels are ignored.
    dataset_dir
        Folder the paths in it are relative to.
    fold
        Held-out fold: its cases validate, all others train. A negative number trains on every case and validates
        on fold 0 (figures are then not held out).
    limit
        Use only the first cases.

    Raises
    ------
    UsageError
        If the file is missing, no case is left, or the first image does not exist.
    """
    path = Path(datalist)
    if not path.is_file():
        raise UsageError(f"there is no datalist at {path}; give a JSON file with the list 'training'")
    content = json.loads(path.read_text())
    entries = [*content.get("training", []), *content.get("unlabelled", [])]
    items = [entry if isinstance(entry, dict) else {"image": entry} for entry in entries]
    held_out = [item.get("fold", -1) == max(fold, 0) for item in items]
    wanted = [part == "validation" if held else part == "training" for held in held_out]
    if part == "training" and fold < 0:
        wanted = [True] * len(items)
    chosen = [_absolute(item["image"], Path(dataset_dir)) for item, take in zip(items, wanted, strict=True) if take]
    if not chosen:
        raise UsageError(f"the datalist {path} leaves no volume for {part} with fold {fold}; choose another fold")
    first = chosen[0][0]
    if not first.exists():
        raise UsageError(
            f"the first image of the datalist, {first}, does not exist; "
            "give the folder that holds the data with --dataset-dir (dataset_dir in the configuration)"
        )
    return [{"image": str(files[0]) if len(files) == 1 else [str(file) for file in files]} for files in chosen[:limit]]


def _absolute(image: str | list[str], folder: Path) -> list[Path]:
    return [folder / name for name in ([image] if isinstance(image, str) else image)]
