"""How much each name in the labels of a datalist touches: the volume of its masks, segments and ROIs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import Refusal
from medseg.ingest import read_volume
from medseg.labels.dicom_objects import kind_of, label_object
from medseg.labels.image_grid import ImageGrid
from medseg.labels.rtstruct import open_rtstruct, read_rtstruct
from medseg.labels.rules import ReadingRules
from medseg.labels.scheme import LabelScheme
from medseg.labels.seg import open_seg, read_seg
from medseg.manifests.items import entries_of
from medseg.manifests.label_objects import is_object, names_in
from medseg.manifests.manifest import Manifest
from medseg.manifests.roi_names import FoundName, plain

_log = logging.getLogger(__name__)


def measure(manifest: Manifest, found: Mapping[str, FoundName], progress: Callable[[int, int], None] | None) -> None:
    """Add up the volume of every name over all cases and raters; what cannot be read has none."""
    items = [item for _, _, item in manifest.items() if item.get("label")]
    for number, item in enumerate(items, start=1):
        image = manifest.files(item, "image")[0]
        for entry in entries_of(manifest.label_entry(item)).values():
            for name, volume_ml in _volumes(entry, image):
                one = found[plain(name)]
                one.volume_ml = (one.volume_ml or 0.0) + volume_ml
        if progress is not None:
            progress(number, len(items))


def _volumes(entry: Any, image: Path) -> Iterator[tuple[str, float]]:
    """Name and volume in ml of every mask, segment or ROI of a label."""
    files = dict.fromkeys(entry.values()) if isinstance(entry, Mapping) else [entry]
    for file in files:
        names = [name for name, own in entry.items() if own == file] if isinstance(entry, Mapping) else []
        try:
            if is_object(file):
                yield from _volumes_in(file, image, names)
            else:
                array, geometry, _ = read_volume(file)
                yield names[0], float(np.count_nonzero(array)) * geometry.voxel_volume_mm3 / 1000.0
        except Refusal as refusal:
            _log.warning("the volumes in %s are not known: %s", Path(file).name, refusal)


def _volumes_in(file: str, image: Path, wanted: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Of every segment or ROI of an object, one after the other, so that they may overlap."""
    header = label_object(file)
    assert header is not None
    grid, names = ImageGrid.of(image), names_in(file)
    for name in dict.fromkeys(wanted or names):
        others = {other: None for other in names if plain(other) != plain(name)}
        scheme, rules = LabelScheme({1: name}), ReadingRules(others, resample=True, missing_slices="empty")
        if kind_of(header) == "seg":
            painted = read_seg(open_seg(header, Path(file).name), scheme, rules, grid)
        else:
            painted = read_rtstruct(open_rtstruct(header, Path(file).name), scheme, rules, grid)
        yield name, float(np.count_nonzero(painted.array)) * painted.geometry.voxel_volume_mm3 / 1000.0
