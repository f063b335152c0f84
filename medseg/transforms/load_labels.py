"""Load labels for training, checked: no label that the network has no class for reaches a loss."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform
from numpy.typing import DTypeLike

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest import case_id_of
from medseg.labels import MAPPING_KEY, READING_KEY, ImageGrid, LabelMap, LabelScheme, ReadingRules, read_label
from medseg.labels.raters import RATERS_KEY, one_map, raters_of
from medseg.transforms.load import meta_of


class LoadLabeld(MapTransform):
    """Load label maps, DICOM segmentations, structure sets or one file per structure, and refuse what does not fit.

    Values within 0.001 of a whole number are rounded. What a datalist says of its labels besides their files is in the
    case, as :func:`medseg.training.fold_items` puts it there: a mapping of values under ``label_mapping``, how DICOM
    objects are read under ``label_reading``, and how several raters' labels become one under ``raters``; all are taken
    out.

    Parameters
    ----------
    keys
        Keys whose values are labels, see :data:`medseg.labels.LabelEntry`, or lists of raters.
    label_names
        Names of the classes 1, 2, … in order; background is 0. ``None`` allows every label from 0 to 65535; names in
        DICOM objects then mean what the datalist declares.
    image_key
        An image that is loaded already: a label on another grid is refused, and DICOM objects are brought onto it.
    dtype
        Type of the result.
    ensure_channel_first
        Give the result the shape (1, i, j, k).
    allow_missing_keys
        Pass cases without a label.

    Attributes
    ----------
    notes
        What was done to labels that were read in this process, by the label's first file: thresholds, filled slices,
        resampling, contours left out.

    Raises
    ------
    Refusal
        When called: ``unexpected-labels``, ``geometry-mismatch``, or whatever else :func:`medseg.labels.read_label`
        refuses. Inside a MONAI ``Compose`` it is the cause of the ``RuntimeError`` raised there.
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
        self.ensure_channel_first = ensure_channel_first
        self.notes: dict[str, tuple[str, ...]] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its labels in memory."""
        case = dict(data)
        mapping, reading = case.pop(MAPPING_KEY, None) or {}, case.pop(READING_KEY, None) or {}
        way, rules = case.pop(RATERS_KEY, "majority"), ReadingRules.of(reading)
        scheme = LabelScheme.of(reading) if self.declared is None else LabelScheme(self.declared)
        scheme = replace(scheme, mapping=mapping)
        image = case.get(self.image_key)
        grid = _grid(image) if isinstance(image, MetaTensor) else None
        for key in self.key_iterator(case):
            entries = raters_of(case[key]) or {"": case[key]}
            maps = {rater: self._read(entry, scheme, rules, grid) for rater, entry in entries.items()}
            found = one_map(maps, way, ignore=scheme.ignore) if len(maps) > 1 else next(iter(maps.values()))
            first = _first_file(next(iter(entries.values())))
            if told := tuple(dict.fromkeys(note for labels in (*maps.values(), found) for note in labels.notes)):
                self.notes[first] = told
            case[key] = self._tensor(found, first)
        return case

    def _read(self, entry: Any, scheme: LabelScheme, rules: ReadingRules, image: ImageGrid | None) -> LabelMap:
        if not isinstance(entry, str | os.PathLike | Mapping):
            raise Refusal(
                "unexpected-labels",
                f"found {entry!r} for a label, expected the path of one file, or of a file for each structure",
            )
        found = read_label(entry, scheme=scheme, rules=rules, image=image, only_declared=self.declared is not None)
        if image is not None and not found.geometry.matches(image.geometry):
            name = "of one file per structure" if isinstance(entry, Mapping) else Path(entry).name
            raise Refusal(
                "geometry-mismatch",
                f"the label {name} {found.geometry.mismatch(image.geometry)}; resample the label onto its image's "
                "grid, or restore the right label",
            )
        return found

    def _tensor(self, found: LabelMap, first: str) -> torch.Tensor:
        tensor = torch.from_numpy(found.array.astype(self.dtype))
        tensor = tensor.unsqueeze(0) if self.ensure_channel_first else tensor
        if not get_track_meta():
            return tensor
        facts = {"case_id": case_id_of(first), "notes": found.notes, "resampled": None}
        meta = meta_of(first, found.geometry, facts, float("nan"))
        return MetaTensor(tensor, meta=meta)


LoadLabelD = LoadLabelDict = LoadLabeld


def _first_file(entry: Any) -> str:
    return os.fspath(next(iter(entry.values())) if isinstance(entry, Mapping) else entry)


def _grid(volume: MetaTensor) -> ImageGrid:
    i, j, k = volume.shape[-3:]
    return ImageGrid.of_facts(Geometry((i, j, k), np.asarray(volume.affine, dtype=np.float64)), volume.meta)
