"""The voxels a report shows: image, prediction and reference of one case on one grid, in canonical order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.errors import MedsegError, Refusal
from medseg.evaluation.reorientation import along
from medseg.evaluation.report.collect import Case
from medseg.geometry import Geometry

__all__ = ["CaseVolumes", "Reader", "read_case"]

Reader = Callable[[str | Path, str], tuple[NDArray[np.generic], Geometry]]
"""``reader(source, case_id)`` gives an array (i, j, k) and its grid, or raises :class:`Refusal`."""


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

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the three axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def read_case(case: Case, reader: Reader | None = None) -> CaseVolumes | None:
    """Read what there is of a case; None if it has no readable prediction.

    An image or a reference on another grid is left out with a note: drawing it would show a wrong place.
    """
    if case.prediction is None:
        return None
    read = reader or read_source
    try:
        labels, geometry = read(case.prediction, case.case_id)
    except (MedsegError, OSError):
        return None
    notes: list[str] = []
    image = _partner(case.image, "image", case, geometry, (read, notes))
    reference = _partner(case.reference, "reference", case, geometry, (read, notes))
    doubt = _partner(case.doubt, "map of doubt", case, geometry, (read, notes))
    placed = _to_canonical(geometry)
    affine = _canonical_affine(geometry)
    return CaseVolumes(
        prediction=placed(_labels(labels)),
        affine=affine,
        image=None if image is None else placed(np.asarray(image, np.float32)),
        reference=None if reference is None else placed(_labels(reference)),
        notes=tuple(notes),
        doubt=None if doubt is None else placed(np.asarray(doubt, np.float32)),
        look_at=_voxel(case.look_at_mm, affine, placed(labels).shape),
    )


def _voxel(
    point_mm: tuple[float, float, float] | None, affine: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[int, int, int] | None:
    """The voxel nearest to a point in mm; None without a point, or if it lies outside."""
    if point_mm is None:
        return None
    i, j, k = (int(v) for v in np.rint(np.linalg.solve(affine, [*point_mm, 1.0])[:3]))
    inside = all(0 <= v < n for v, n in zip((i, j, k), shape, strict=True))
    return (i, j, k) if inside else None


def _partner(
    source: str | Path | None, what: str, case: Case, geometry: Geometry, context: tuple[Reader, list[str]]
) -> NDArray[np.generic] | None:
    read, notes = context
    if source is None:
        if what == "image":
            notes.append("The image was not found, so contours are shown without it.")
        return None
    try:
        array, found = read(source, case.case_id)
    except (MedsegError, OSError) as error:
        reason = error.code if isinstance(error, Refusal) else type(error).__name__
        notes.append(f"The {what} could not be read ({reason}).")
        return None
    array, found = along(array, found, geometry)
    if not found.matches(geometry, tolerance_mm=0.5):
        notes.append(f"The {what} is on another grid than the prediction and is not shown.")
        return None
    return array


def _labels(array: NDArray[np.generic]) -> NDArray[np.uint16]:
    return np.rint(np.nan_to_num(np.asarray(array, np.float32))).astype(np.uint16)


def _to_canonical(geometry: Geometry) -> Callable[[NDArray[Any]], NDArray[Any]]:
    orientation = nib.io_orientation(geometry.affine)
    return lambda array: np.asarray(nib.orientations.apply_orientation(array, orientation))


def _canonical_affine(geometry: Geometry) -> NDArray[np.float64]:
    inverse = nib.orientations.inv_ornt_aff(nib.io_orientation(geometry.affine), geometry.shape)
    return np.asarray(geometry.affine @ inverse, np.float64)


def read_source(source: str | Path, case_id: str) -> tuple[NDArray[np.generic], Geometry]:
    """Read a file or a DICOM folder with :mod:`medseg.ingest`; of several series the one with this case id."""
    from medseg.ingest import read_volume, scan

    path = Path(source)
    if path.is_dir():
        records = {record.case_id: record for record in scan([path])}
        array, geometry, _ = read_volume(records.get(case_id, path))
    else:
        array, geometry, _ = read_volume(path)
    return array, geometry
