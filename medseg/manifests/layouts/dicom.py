"""Images as DICOM: one series a folder, matched with label files by the folder's name or the series' case id."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg.errors import UsageError
from medseg.ingest import SeriesRecord, scan
from medseg.labels.unread import describe_unread, unread_objects
from medseg.manifests.layouts.names import common_start, relative_name
from medseg.manifests.manifest import Item, Manifest

__all__ = ["read"]

_log = logging.getLogger(__name__)


def read(images: Path, labels: Path | None, label_of: Mapping[str, Path]) -> Manifest:
    """Make a manifest of the usable series below a folder.

    Parameters
    ----------
    images
        Where to look for series. The image of an item is the folder that holds the series.
    labels
        The folder of label files, or ``None`` for images without labels.
    label_of
        Label files by the name of their case: the series' ``case_id``, or its folder's name.

    Raises
    ------
    UsageError
        If there is no usable series, a folder holds several, or a series has no label.
    """
    start = common_start(images, labels or images)
    items: list[Item] = []
    records = scan(images)
    beside = describe_unread(records)
    if beside:
        _log.warning("%s%s", images, beside)
    for source, record in sorted(_one_a_folder(images, records).items()):
        item: Item = {
            "image": relative_name(Path(source), start),
            "case_id": record.case_id,
            "patient_id": record.patient_hash,
        }
        if labels is not None:
            label = label_of.get(record.case_id) or label_of.get(Path(source).name)
            if label is None:
                raise UsageError(
                    f"the series in {source} has no label file below {labels} called {record.case_id} or "
                    f"{Path(source).name}{beside or unread_objects(labels)}"
                )
            item["label"] = relative_name(label, start)
        items.append(item)
    section = "training" if labels is not None else "test"
    return Manifest({"name": start.name, "labels": {}, section: items}, start)


def _one_a_folder(images: Path, records: Sequence[SeriesRecord]) -> dict[str, SeriesRecord]:
    found: dict[str, list[SeriesRecord]] = defaultdict(list)
    for record in records:
        if record.kind == "dicom" and record.usable:
            found[record.source].append(record)
    if not found:
        raise UsageError(f"{images} holds no image file and no usable DICOM series; see: medseg index {images}")
    for source, series in found.items():
        if len(series) > 1:
            raise UsageError(f"{source} holds {len(series)} usable series; expected one a folder: sort them apart")
    return {source: series[0] for source, series in found.items()}
