"""Cases of one fold from a datalist in MONAI's format."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from medseg.errors import UsageError
from medseg.labels import MAPPING_KEY
from medseg.manifests import Item, Manifest
from medseg.manifests.items import check_item
from medseg.manifests.manifest import read_json_object

__all__ = ["data_root", "fold_items", "read_datalist", "require_first_image", "unlabelled_list", "with_folder"]

_OWN_CONFIG = "configs/train.json"


def data_root(
    datalist: str | PathLike[str], dataset_dir: str | PathLike[str] | None, bundle_root: str | PathLike[str]
) -> str | None:
    """Where the paths of a datalist start, if not where the datalist says.

    The ``dataset_dir`` that a bundle's ``train.json`` is written with belongs to the bundle's own datalist: another
    datalist, whose relative names may well exist there too, must not be read from it.

    Parameters
    ----------
    datalist, dataset_dir, bundle_root
        The ids of the configuration, as they stand after overrides.

    Returns
    -------
    str or None
        ``dataset_dir`` where it was given with the datalist, or the datalist is the bundle's own; else ``None``.
    """
    if dataset_dir is None:
        return None
    root = Path(bundle_root)
    written = read_json_object(root / _OWN_CONFIG) if (root / _OWN_CONFIG).is_file() else {}
    own_datalist = (root / "configs").resolve() == Path(datalist).resolve().parent
    if str(dataset_dir) == written.get("dataset_dir") and not own_datalist:
        return None
    return str(dataset_dir)


def with_folder(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of a call with ``dataset_dir`` beside ``datalist``, so that no folder of another datalist is read.

    Without ``dataset_dir`` it is what the datalist says, whatever the bundle's configuration makes of the id. One that
    was given ends in a separator, and so is never taken for that of the configuration (:func:`data_root`). A
    configuration without the id is left alone.

    Raises
    ------
    UsageError
        If there is no such datalist.
    """
    datalist, folder = given.get("datalist"), given.get("dataset_dir")
    if not isinstance(datalist, str) or "dataset_dir" not in config:
        return dict(given)
    start = Path(folder) if isinstance(folder, str) else read_datalist(datalist, None).dataset_dir
    return {**given, "dataset_dir": os.path.join(start.absolute(), "")}  # noqa: PTH118  Path drops the separator


def read_datalist(datalist: str | PathLike[str], dataset_dir: str | PathLike[str] | None) -> Manifest:
    """The datalist of a training run.

    Raises
    ------
    UsageError
        If there is none, or it is no datalist.
    """
    if not Path(datalist).exists():
        raise UsageError(f"there is no datalist at {datalist}; give a JSON file with the list 'training'")
    return Manifest.read(datalist, dataset_dir=dataset_dir)


def fold_items(
    datalist: str | PathLike[str],
    dataset_dir: str | PathLike[str] | None,
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
        Folder the paths in it are relative to; ``None``: where the datalist says, else the folder it lies in.
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

    Returns
    -------
    list of dict
        With ``label_mapping`` where the datalist has one, for :class:`medseg.transforms.LoadLabeld`.

    Raises
    ------
    UsageError
        If the file or the folder is missing, the fold is empty, an image does not exist, or the datalist declares odd
        labels.
    """
    manifest = read_datalist(datalist, dataset_dir)
    mapping = manifest.scheme.mapping
    items = manifest.training
    folds = sorted({item.get("fold", 0) for item in items})
    if fold >= 0 and fold not in folds:
        raise UsageError(f"the datalist {datalist} has the folds {folds}, not {fold}; choose one of them with --fold")
    if part == "unlabelled":
        chosen = [item for item in items if not item.get("label")] + unlabelled_list(manifest, datalist)
        chosen = [item for item in chosen if fold < 0 or item.get("fold", -1) != fold]
    elif part == "validation":
        chosen = [item for item in items if item.get("label") and item.get("fold", 0) == max(fold, 0)]
    else:
        chosen = [item for item in items if item.get("label") and (fold < 0 or item.get("fold", 0) != fold)]
    if not chosen and part != "unlabelled":
        raise UsageError(
            f"the datalist {datalist} leaves no case for {part} with fold {fold}; split it into folds first"
        )
    require_first_image(manifest, chosen)
    made = [_spread(manifest, item, keys, datalist) for item in chosen[:limit]]
    if part == "unlabelled":
        return made
    mapped = {MAPPING_KEY: dict(mapping)} if mapping else {}
    return [{**case, "label": _label(manifest, item), **mapped} for case, item in zip(made, chosen, strict=False)]


def _spread(manifest: Manifest, item: Item, keys: Sequence[str], datalist: str | PathLike[str]) -> dict[str, Any]:
    """The images of an item under their keys."""
    files = [str(path) for path in manifest.files(item, "image")]
    if len(keys) == 1:
        return {keys[0]: files[0] if isinstance(item["image"], str) else files}
    if len(files) != len(keys):
        raise UsageError(
            f"an item of {datalist} lists {len(files)} image(s), the bundle takes {len(keys)} channels; "
            "list one file per channel under 'image'"
        )
    return dict(zip(keys, files, strict=True))


def _label(manifest: Manifest, item: Item) -> str:
    files = manifest.files(item, "label")
    if len(files) > 1:
        raise UsageError(
            f"an item names {len(files)} label files, such as {files[0].name}; expected one label map that holds all "
            "structures: join them first, one value for each"
        )
    return str(files[0])


def unlabelled_list(manifest: Manifest, datalist: str | PathLike[str]) -> list[Item]:
    """Items of the list ``unlabelled``, which may name paths alone."""
    listed = manifest.content.get("unlabelled", [])
    if not isinstance(listed, list):
        raise UsageError(f"{datalist}: 'unlabelled' is a {type(listed).__name__}, expected a list of paths or items")
    entries = [entry if isinstance(entry, dict) else {"image": entry} for entry in listed]
    for entry in entries:
        check_item(entry, Path(datalist))
    return entries


def require_first_image(manifest: Manifest, chosen: Sequence[Item]) -> None:
    """Notice a wrong folder before anything is loaded."""
    missing = [path for item in chosen[:1] for path in manifest.files(item, "image") if not path.exists()]
    if missing:
        raise UsageError(
            f"the first image of the datalist, {missing[0]}, does not exist: paths start in {manifest.dataset_dir}; "
            "give the folder that holds the data with --dataset-dir (dataset_dir in the configuration), or name it in "
            "the datalist"
        )
