"""Any label of a datalist as one label map: an image file, a DICOM segmentation, a structure set, a file per structure.

What a file is, its content says, never its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from medseg.errors import Refusal
from medseg.ingest.read import Source
from medseg.labels.dicom_labels import open_labels, read_labels
from medseg.labels.dicom_objects import label_object
from medseg.labels.image_grid import ImageGrid
from medseg.labels.label_map import LabelMap, check_labels, read_label_map
from medseg.labels.masks import read_masks
from medseg.labels.rules import ReadingRules
from medseg.labels.scheme import LabelScheme

FilePath = str | os.PathLike[str]
LabelEntry = FilePath | Mapping[str, FilePath]
"""One label of a datalist: a file, or a file for each structure."""

ImageOf = ImageGrid | Source | Callable[[], ImageGrid] | None
"""The image that a label belongs to: its grid, where it lies on disk (then only what needs it looks), or none."""


def read_label(
    entry: LabelEntry,
    *,
    scheme: LabelScheme | None = None,
    rules: ReadingRules | None = None,
    image: ImageOf = None,
    only_declared: bool = True,
) -> LabelMap:
    """Read a label of a datalist and check it.

    Parameters
    ----------
    entry
        A label map (NIfTI, MetaImage, NRRD), a DICOM segmentation or structure set, or such a file for each structure.
    scheme
        What the values mean; names of segments, ROIs and mask files must be among its structures.
    rules
        Which other names mean them, and what may be done to objects that do not fit.
    image
        The image that the label belongs to. DICOM objects are brought onto its grid, once they have proven to belong
        to it; a segmentation without image has the smallest grid that holds its frames, a structure set none. A label
        map keeps its own grid.
    only_declared
        Refuse values that the scheme does not declare.

    Raises
    ------
    Refusal
        Whatever :func:`medseg.labels.read_label_map` refuses, and for DICOM objects and mask files
        ``unmapped-structure``, ``overlapping-labels``, ``other-frame-of-reference``, ``malformed-object``,
        ``off-slice-contours``, ``missing-contours``, ``outside-image``, ``no-image-grid``.
    """
    scheme, rules = scheme or LabelScheme(), rules or ReadingRules()
    if isinstance(entry, Mapping):
        name, painted = "the label of one file per structure", read_masks(entry, scheme, rules, _grid(entry, image))
    else:
        header = label_object(entry)
        if header is None:
            declared = scheme.values if only_declared else None
            return read_label_map(entry, declared=declared, mapping=scheme.mapping)
        name = f"the label {Path(entry).name}"
        painted = read_labels(open_labels(header, name), scheme, rules, image_grid(image))
    labels, values = check_labels(painted.array, name)
    return LabelMap(labels, painted.geometry, values, painted.notes)


def _grid(entry: Mapping[str, FilePath], image: ImageOf) -> ImageGrid | None:
    """The image's grid if a file of the entry needs it: masks have their own, which is compared with it later."""
    return image_grid(image) if any(label_object(path) is not None for path in entry.values()) else None


def image_grid(image: ImageOf) -> ImageGrid | None:
    """The grid behind an image, however it was given.

    Raises ``Refusal`` if the image cannot be used.
    """
    if image is None or isinstance(image, ImageGrid):
        return image
    if callable(image):
        return image()
    try:
        return ImageGrid.of(image)
    except Refusal as refusal:
        raise Refusal(refusal.code, f"the image of the label: {refusal.message}") from refusal
