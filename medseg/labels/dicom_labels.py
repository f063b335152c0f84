"""A DICOM object that holds labels, of either kind, as a label map."""

from __future__ import annotations

from collections.abc import Sequence

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest.dicom_header import Header
from medseg.labels.canvas import Painted
from medseg.labels.dicom_objects import kind_of
from medseg.labels.frames import grid_of_frames
from medseg.labels.image_grid import ImageGrid
from medseg.labels.rtstruct import StructureSet, no_image_grid, open_rtstruct, read_rtstruct
from medseg.labels.rules import ReadingRules
from medseg.labels.scheme import LabelScheme
from medseg.labels.seg import SegObject, open_seg, read_seg

LabelObject = SegObject | StructureSet


def open_labels(header: Header, name: str) -> LabelObject:
    """Take an object apart; ``name`` is what messages call it. Raises what its kind's function raises."""
    return open_seg(header, name) if kind_of(header) == "seg" else open_rtstruct(header, name)


def names_in(found: LabelObject) -> list[str]:
    """What the object calls its structures: segment labels or ROI names, each once."""
    if isinstance(found, SegObject):
        return list(dict.fromkeys(found.structures.values()))
    return list(dict.fromkeys(roi.name for roi in found.rois))


def read_labels(found: LabelObject, scheme: LabelScheme, rules: ReadingRules, image: ImageGrid | None) -> Painted:
    """The label map of an object; parameters and errors are those of its kind's function."""
    if isinstance(found, SegObject):
        return read_seg(found, scheme, rules, image)
    return read_rtstruct(found, scheme, rules, image)


def common_grid(found: Sequence[LabelObject]) -> Geometry:
    """The smallest grid that holds the frames of several segmentations, where there is no image.

    Raises ``Refusal``: ``no-image-grid`` for a structure set, which has none; ``no-geometry`` if the frames lie on no
    common one.
    """
    for other in found:
        if isinstance(other, StructureSet):
            raise no_image_grid(other.name)
    segs = [seg for seg in found if isinstance(seg, SegObject)]
    frames = [frame for seg in segs for frame in seg.frames]
    if len({seg.shape for seg in segs}) > 1:
        raise Refusal("no-geometry", f"{segs[0].name} and {segs[1].name} have frames of different size; give the image")
    return grid_of_frames(frames, segs[0].shape, segs[0].spacing_mm, segs[0].name)
