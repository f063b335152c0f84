"""Pictures of a case: its volumes on one grid in canonical order, three planes with contours, copies for the viewer."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray
from PIL import Image

from medseg.errors import MedsegError
from medseg.evaluation.scoring import along
from medseg.files import write_text
from medseg.geometry import Geometry
from medseg.pictures import Layer, Panel, around, draw, view_along
from medseg.report.collect import Case

Reader = Callable[[str | Path, str], tuple[NDArray[np.generic], Geometry]]
"""``reader(source, case_id)`` gives an array (i, j, k) and its grid, or raises :class:`Refusal`."""

_GRID_TOLERANCE_MM = 0.5
_LARGEST_LABEL = 255


@dataclass(frozen=True)
class CaseVolumes:
    """Arrays of one case, axes closest to Right, Anterior, Superior; what could not be shown is in ``notes``.

    ``doubt`` is in per cent; ``look_at`` is the voxel at which the planes of greatest doubt meet.
    """

    prediction: NDArray[np.uint16]
    affine: NDArray[np.float64]
    image: NDArray[np.float32] | None
    reference: NDArray[np.uint16] | None
    notes: tuple[str, ...]
    doubt: NDArray[np.float32] | None = None
    look_at: tuple[int, int, int] | None = None


def read_case(case: Case, reader: Reader | None = None) -> CaseVolumes | None:
    """Read what there is of a case; None if it has no readable prediction.

    An image or a reference on another grid is left out with a note: drawing it would show a wrong place.
    """
    if case.prediction is None:
        return None
    read = reader or read_source
    try:
        labels, grid = read(case.prediction, case.case_id)
    except (MedsegError, OSError):
        return None
    turn = nib.io_orientation(grid.affine)
    affine = np.asarray(grid.affine @ nib.orientations.inv_ornt_aff(turn, grid.shape), np.float64)
    notes = [] if case.image is not None else ["The image was not found, so contours are shown without it."]
    found: dict[str, NDArray[Any]] = {"prediction": labels}
    sources = {"image": case.image, "reference": case.reference, "map of doubt": case.doubt}
    for what, source in sources.items():
        if source is None:
            continue
        try:
            array, own = along(*read(source, case.case_id), grid)
        except (MedsegError, OSError) as error:
            notes.append(f"The {what} could not be read ({getattr(error, 'code', type(error).__name__)}).")
            continue
        if own.matches(grid, tolerance_mm=_GRID_TOLERANCE_MM):
            found[what] = array
        else:
            notes.append(f"The {what} is on another grid than the prediction and is not shown.")
    placed = {what: np.asarray(nib.orientations.apply_orientation(a, turn)) for what, a in found.items()}
    image, reference, doubt = (placed.get(what) for what in sources)
    return CaseVolumes(
        prediction=_labels(placed["prediction"]),
        affine=affine,
        image=None if image is None else image.astype(np.float32),
        reference=None if reference is None else _labels(reference),
        notes=tuple(notes),
        doubt=None if doubt is None else doubt.astype(np.float32),
        look_at=_voxel(case.look_at_mm, affine, placed["prediction"].shape) if case.look_at_mm else None,
    )


def _voxel(
    point_mm: tuple[float, float, float], affine: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[int, int, int] | None:
    """The voxel nearest to a point in mm; None if it lies outside."""
    i, j, k = (int(v) for v in np.rint(np.linalg.solve(affine, [*point_mm, 1.0])[:3]))
    return (i, j, k) if all(0 <= v < n for v, n in zip((i, j, k), shape, strict=True)) else None


def _labels(array: NDArray[np.generic]) -> NDArray[np.uint16]:
    return np.rint(np.nan_to_num(np.asarray(array, np.float32))).astype(np.uint16)


def read_source(source: str | Path, case_id: str) -> tuple[NDArray[np.generic], Geometry]:
    """Read a file or a DICOM folder with :mod:`medseg.ingest`; of several series the one with this case id."""
    from medseg.ingest import read_volume, scan

    path = Path(source)
    records = {record.case_id: record for record in scan([path])} if path.is_dir() else {}
    array, geometry, _ = read_volume(records.get(case_id, path))
    return array, geometry


SIDE_PX = 208
"""Side of a picture in pixels."""


@dataclass(frozen=True)
class Plane:
    """One picture: a WebP under vector contours, all in a square of :data:`SIDE_PX`."""

    name: str
    slice_number: int
    left: str
    right: str
    top: str
    bottom: str
    picture: str
    prediction: Mapping[int, str]
    reference: Mapping[int, str]
    bar_px: float
    bar_mm: int


@dataclass(frozen=True)
class Pictures:
    """What was drawn of one case."""

    planes: tuple[Plane, ...] = ()  # axial, coronal and sagittal picture; empty if there are none
    notes: tuple[str, ...] = ()  # what could not be shown, and why
    key: str = ""  # name of the case for the viewer
    inlined: str = ""
    side_file: str = ""
    """``inlined``, ``side_file``: volumes for the viewer inside the page, or the file beside it; both empty without a
    viewer."""
    missing: str = "the prediction was not found or could not be read."  # why there are no pictures

    @property
    def look_at(self) -> str:
        """The voxel at which the planes meet, as the viewer takes it."""
        return ",".join(str(plane.slice_number - 1) for plane in reversed(self.planes))


def planes(volumes: CaseVolumes) -> tuple[Plane, ...]:
    """Axial, coronal and sagittal picture of a case."""
    return tuple(_plane(volumes, axis) for axis in (2, 1, 0))


def worst_slice(volumes: CaseVolumes, axis: int) -> int:
    """Index along ``axis`` of the slice to look at.

    That with most disagreeing voxels; without a reference that of greatest doubt; without trust that of the largest
    area; else the middle.
    """
    prediction, others = volumes.prediction, tuple(a for a in range(3) if a != axis)
    if volumes.reference is not None:
        differing = np.count_nonzero(prediction != volumes.reference, axis=others)
        if differing.any():
            return int(np.argmax(differing))
    if volumes.doubt is not None and volumes.doubt.any():
        return int(np.argmax(volumes.doubt.sum(axis=others)))
    if volumes.look_at is not None:
        return volumes.look_at[axis]
    area = np.count_nonzero(prediction, axis=others)
    return int(np.argmax(area)) if area.any() else prediction.shape[axis] // 2


def _plane(volumes: CaseVolumes, axis: int) -> Plane:
    index = worst_slice(volumes, axis)
    marked = volumes.prediction > 0
    layers = [Layer(np.take(volumes.prediction, index, axis))]
    if volumes.reference is not None:
        marked |= volumes.reference > 0
        layers.append(Layer(np.take(volumes.reference, index, axis), dashed=True))
    return plane(volumes, axis, index, layers, marked)


def plane(volumes: CaseVolumes, axis: int, index: int, layers: Sequence[Layer], marked: NDArray[np.bool_]) -> Plane:
    """The picture of one slice.

    Parameters
    ----------
    volumes
        Where the image and the grid come from.
    axis, index
        Array axis that is looked along, and which slice.
    layers
        Its label maps. Outlines of one label in several layers are joined, those of dashed layers as reference.
    marked
        Of the whole volume: what the picture has to show.
    """
    view = view_along(volumes.affine, axis)
    panel = draw(
        view,
        None if volumes.image is None else np.take(volumes.image, index, axis),
        layers,
        number=index + 1,
        longest_px=SIDE_PX,
        box=around(view.upright(np.any(marked, axis=axis)), view.pixel_mm),
    )
    paths: tuple[dict[int, str], dict[int, str]] = ({}, {})
    for layer, outlines in panel.outlines:
        for label, lines in outlines.items():
            paths[layer.dashed][label] = paths[layer.dashed].get(label, "") + "".join(map(_path, lines))
    edges = (view.left, view.right, view.top, view.bottom)
    return Plane(view.plane, index + 1, *edges, _encode(panel), *paths, panel.bar_px, panel.bar_mm)


def _encode(panel: Panel) -> str:
    if panel.grey is None:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(panel.grey).save(buffer, "WEBP", quality=78, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _path(points: NDArray[np.float64]) -> str:
    """A closed line as SVG, without points on a straight line between their neighbours."""
    ring = points[:-1]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    corners = ring[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-6]
    return "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in corners) + "Z"


def library() -> str:
    """NiiVue's script, compressed and in base64; the page unpacks it when a viewer is first opened."""
    source = files("medseg.report").joinpath("assets/niivue.umd.js").read_bytes()
    return base64.b64encode(igzip.compress(source, mtime=0)).decode()


def display_copy(array: NDArray[np.generic], affine: NDArray[np.float64], *, labels: bool) -> str:
    """NIfTI of 8 bits per voxel in base64, with a fresh header: nothing of the source's header travels along.

    Intensities are quantised between the 0.2nd and 99.8th percentile; they serve the eye, not measurement.
    Labels above 255 become 255.
    """
    if labels:
        image = nib.Nifti1Image(np.minimum(array, _LARGEST_LABEL).astype(np.uint8), affine)
    else:
        values = np.nan_to_num(np.asarray(array, np.float32))
        low, high = (float(v) for v in np.percentile(values, (0.2, 99.8)))
        step = max(high - low, 1e-6) / 255.0
        image = nib.Nifti1Image(np.rint((np.clip(values, low, high) - low) / step).astype(np.uint8), affine)
        image.header.set_slope_inter(step, low)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(igzip.compress(image.to_bytes(), mtime=0)).decode()


@dataclass
class ViewerStore:
    """Takes in cases worst first and keeps the page within its budget."""

    folder: Path | None  # where files beside the report go; None if everything must fit into the page
    budget_bytes: int  # total size of inlined volumes
    used_bytes: int = 0

    def add(self, key: str, volumes: CaseVolumes) -> tuple[str, str]:
        """Return what the page inlines for this case and the name of its side file; both empty if it did not fit."""
        arrays = {"image": volumes.image, "prediction": volumes.prediction, "reference": volumes.reference}
        pieces = {
            name: display_copy(array, volumes.affine, labels=name != "image")
            for name, array in arrays.items()
            if array is not None
        }
        size = sum(map(len, pieces.values()))
        if self.used_bytes + size <= self.budget_bytes:
            self.used_bytes += size
            return json.dumps(pieces), ""
        if self.folder is None:
            return "", ""
        # A page opened from a disk may not fetch files, but it may run scripts beside it.
        write_text(self.folder / f"{key}.js", f"medsegVolumes({json.dumps(key)},{json.dumps(pieces)});\n")
        return "", f"{self.folder.name}/{key}.js"
