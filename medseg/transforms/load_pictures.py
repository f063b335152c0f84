"""Ordinary pictures: those of a folder, loaded in one size, grey or colour, from −1 (black) to 1 (white)."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from PIL import Image, UnidentifiedImageError

from medseg.errors import UsageError

_PICTURES = frozenset({".png", ".jpg", ".jpeg"})


class LoadPictured(MapTransform):
    """Load PNG or JPEG files as tensors ``(channels, rows, columns)`` within −1 … 1.

    MONAI's ``LoadImaged`` leaves it to the file how many channels there are, and swaps rows and columns.

    Parameters
    ----------
    keys
        Keys of the paths.
    size
        Rows and columns; a picture of another size is resized (and not cropped).
    channels
        1 for grey, 3 for colour; what a file has is converted.

    Raises
    ------
    UsageError
        When called, if a file is no picture that can be read whole, or is too large to be one.
    """

    def __init__(self, keys: KeysCollection, size: Sequence[int], channels: int = 1) -> None:
        super().__init__(keys)
        if channels not in (1, 3):
            raise ValueError(f"found {channels} channels, expected 1 (grey) or 3 (colour)")
        rows, columns = size
        self.size, self.mode = (int(columns), int(rows)), "L" if channels == 1 else "RGB"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load every key; the input is left as it is."""
        return {**data, **{key: self._load(Path(data[key])) for key in self.keys}}

    def _load(self, path: Path) -> torch.Tensor:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=("PNG", "JPEG")) as picture:
                    whole = _of_bytes(picture).convert(self.mode)
            pixels = np.asarray(whole.resize(self.size, Image.Resampling.BILINEAR))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UsageError(
                f"{path} cannot be read as a picture ({type(error).__name__}); expected a whole PNG or JPEG file"
            ) from error
        values = torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).astype(np.float32))
        return values / 127.5 - 1.0


def _of_bytes(picture: Image.Image) -> Image.Image:
    """A picture of 16 bits per value as one of 8; Pillow would make white of everything above 255."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))


def picture_items(
    dataset_dir: str | PathLike[str], fold: int, part: Literal["training", "validation"], limit: int | None = None
) -> list[dict[str, Any]]:
    """Every picture (PNG, JPEG) in a folder and its subfolders, as ``{"image": absolute path}``.

    Every fifth one is of the same ``fold`` (0 to 4), counted within each subfolder, so that classes in subfolders are
    held out alike; a negative fold holds out none, and validates on fold 0. Too few pictures are a ``UsageError``.
    """
    root = Path(dataset_dir).absolute()
    groups: dict[Path, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in _PICTURES and path.is_file():
            groups.setdefault(path.parent, []).append(path)
    chosen = [
        {"image": str(path)}
        for paths in groups.values()
        for number, path in enumerate(paths)
        if (number % 5 == max(fold, 0) if part == "validation" else fold < 0 or number % 5 != fold)
    ]
    if not chosen or fold > 4:
        found = sum(map(len, groups.values()))
        raise UsageError(
            f"{root} has {found} pictures ({', '.join(sorted(_PICTURES))}), none of them for {part} with fold {fold}; "
            "give a folder of at least five pictures, or of one subfolder per class, and a fold from 0 to 4"
        )
    return chosen[:limit]
