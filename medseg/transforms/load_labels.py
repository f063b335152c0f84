"""Load label maps for training, checked: no label that the network has no class for reaches a loss."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import DTypeLike

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.labels import MAPPING_KEY, check_labels, no_label
from medseg.transforms.load import LoadVolume


class LoadLabeld(MapTransform):
    """Load label maps, and refuse those whose values are no whole numbers or no class of the network.

    Values within 0.001 of a whole number are rounded. A mapping of values under ``label_mapping`` in the case, as
    :func:`medseg.training.fold_items` puts it there, is applied first and taken out of the case.

    Parameters
    ----------
    keys
        Keys whose values are paths of label maps.
    label_names
        Names of the classes 1, 2, … in order; background is 0. ``None`` allows every label from 0 to 65535.
    image_key
        An image that is loaded already: a label on another grid is refused.
    dtype
        Type of the result.
    ensure_channel_first
        Give the result the shape (1, i, j, k).
    allow_missing_keys
        Pass cases without a label.

    Raises
    ------
    Refusal
        When called: ``unexpected-labels``, ``geometry-mismatch``, or why there is no sound volume. Inside a MONAI
        ``Compose`` it is the cause of the ``RuntimeError`` raised there.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_names: Sequence[str] | None,
        *,
        image_key: str = "image",
        dtype: DTypeLike = np.float32,
        ensure_channel_first: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.declared = None if label_names is None else {0: "background"} | dict(enumerate(label_names, start=1))
        self.image_key, self.dtype = image_key, dtype
        self._loader = LoadVolume(None, ensure_channel_first=ensure_channel_first)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its labels in memory."""
        case = dict(data)
        mapping = case.pop(MAPPING_KEY, None)
        image = case.get(self.image_key)
        for key in self.key_iterator(case):
            case[key] = self._load(case[key], mapping, image)
        return case

    def _load(self, source: Any, mapping: Mapping[int, int] | None, image: Any) -> torch.Tensor:
        if not isinstance(source, str | os.PathLike):
            raise Refusal("unexpected-labels", f"found {source!r} for a label, expected the path of one label map")
        name = f"the label {Path(source).name}"
        try:
            loaded = self._loader(source)
        except Refusal as refusal:
            raise no_label(refusal, name) from refusal
        values = loaded.as_tensor() if isinstance(loaded, MetaTensor) else loaded
        labels, _ = check_labels(values.numpy(), name, declared=self.declared, mapping=mapping)
        tensor = torch.from_numpy(labels.astype(self.dtype))
        if not isinstance(loaded, MetaTensor):
            return tensor
        if isinstance(image, MetaTensor):
            _require_same_grid(_grid(loaded), _grid(image), name)
        return MetaTensor(tensor, meta=loaded.meta)


LoadLabelD = LoadLabelDict = LoadLabeld


def _grid(volume: MetaTensor) -> Geometry:
    i, j, k = volume.shape[-3:]
    return Geometry((i, j, k), np.asarray(volume.affine, dtype=np.float64))


def _require_same_grid(label: Geometry, image: Geometry, name: str) -> None:
    if not label.matches(image):
        raise Refusal(
            "geometry-mismatch",
            f"{name} {label.mismatch(image)}; resample the label onto its image's grid, or restore the right label",
        )
