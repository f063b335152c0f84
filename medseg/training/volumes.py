"""Volumes without labels, for networks that learn from images alone."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal

from medseg.errors import UsageError
from medseg.training.datalist import read_datalist, require_first_image, unlabelled_list

__all__ = ["image_items"]


def image_items(
    datalist: str | PathLike[str],
    dataset_dir: str | PathLike[str] | None,
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
        Folder the paths in it are relative to; ``None``: where the datalist says, else the folder it lies in.
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
    manifest = read_datalist(datalist, dataset_dir)
    items = [*manifest.training, *unlabelled_list(manifest, datalist)]
    held_out = [item.get("fold", -1) == max(fold, 0) for item in items]
    wanted = [part == "validation" if held else part == "training" for held in held_out]
    if part == "training" and fold < 0:
        wanted = [True] * len(items)
    chosen = [item for item, take in zip(items, wanted, strict=True) if take]
    if not chosen:
        raise UsageError(f"the datalist {datalist} leaves no volume for {part} with fold {fold}; choose another fold")
    require_first_image(manifest, chosen)
    files = [[str(path) for path in manifest.files(item, "image")] for item in chosen[:limit]]
    return [{"image": paths[0] if len(paths) == 1 else paths} for paths in files]
