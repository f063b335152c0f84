"""The DICOM images that a result was made from: their headers, and where each of their frames lies.

A label map is put on the frames by its affine: nothing here relies on the order of slices or of array axes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest import SeriesRecord
from medseg.ingest.walk import on_disk
from medseg.labels.frames import TOLERANCE_VOXELS, FramePlace, GridPlaces

_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class Frame(FramePlace):
    """Where one frame lies: of which of the source's objects, and its number if that holds several."""

    dataset: int
    number: int | None
    shape: tuple[int, int]
    thickness_mm: float | None = None

    @property
    def cosines(self) -> tuple[float, ...]:
        """Direction cosines of the rows and columns, as in ImageOrientationPatient."""
        unit = [step / np.linalg.norm(step) for step in self.steps]
        return tuple(float(value) for value in np.concatenate(unit))

    @property
    def pixel_spacing_mm(self) -> tuple[float, float]:
        """Distance between rows and between columns, as in PixelSpacing."""
        return float(np.linalg.norm(self.steps[1])), float(np.linalg.norm(self.steps[0]))


@dataclass(frozen=True)
class SourceImages:
    """Headers without pixel data, orientation noise removed, and their frames in the order of the files."""

    datasets: tuple[Dataset, ...]
    frames: tuple[Frame, ...]

    @property
    def first(self) -> Dataset:
        """The first image, from which patient and study are copied."""
        return self.datasets[0]

    @property
    def is_multiframe(self) -> bool:
        """Whether all frames are in one object."""
        return self.frames[0].number is not None


def read_source(record: SeriesRecord) -> SourceImages:
    """Read the headers of a record's files.

    Raises ``Refusal``: ``no-dicom-source`` if the record is not DICOM, ``no-geometry`` if a frame cannot be placed.
    """
    if record.kind != "dicom":
        raise Refusal(
            "no-dicom-source",
            f"found {record.kind}, DICOM objects refer to the DICOM images they were made from;"
            " give the DICOM series, or write nifti",
        )
    with on_disk(record.files) as files:
        datasets = tuple(_header(file) for file in files)
    frames = tuple(frame for i, dataset in enumerate(datasets) for frame in frames_of(dataset, i))
    _remove_noise(datasets)
    return SourceImages(datasets, frames)


def _header(file: str) -> Dataset:
    with warnings.catch_warnings():
        # Odd values of the source are copied as they are: its study must stay the same study.
        warnings.simplefilter("ignore", UserWarning)
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        dataset.decode()
        _complete(dataset)
    return dataset


def _complete(dataset: Dataset) -> None:
    """Add to the copy in memory what objects that refer to it must have, and old files lack.

    Without a frame of reference one is derived from the series: positions within a series share one by nature.
    """
    for keyword in _TYPE_2:
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    if not dataset.get("FrameOfReferenceUID"):
        digest = hashlib.sha256(f"frame of reference {dataset.SeriesInstanceUID}".encode()).digest()
        dataset.FrameOfReferenceUID = f"2.25.{int.from_bytes(digest[:16])}"
    stated = dataset.get("SpecificCharacterSet", "ISO_IR 192")
    sets = [stated or ""] if isinstance(stated, str | None) else list(stated)
    if not any(sets):
        del dataset.SpecificCharacterSet  # empty is the default repertoire, which newer objects leave unsaid
    elif not all(sets) or (len(sets) == 1 and sets[0].startswith("ISO 2022")):
        # A single value must not name code extensions, and a first value left empty is unknown to highdicom;
        # Unicode holds every text that was read.
        dataset.SpecificCharacterSet = "ISO_IR 192"


def frames_of(dataset: Dataset, index: int = 0) -> Iterator[Frame]:
    """Frames of one object, with their number if it holds several."""
    shape = (int(dataset.Rows), int(dataset.Columns))
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        yield _frame(dataset, dataset, dataset, (index, None, shape))
        return
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for number, own in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        position, orientation, measures = (
            (own if keyword in own else shared)[keyword][0]
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        yield _frame(position, orientation, measures, (index, number, shape))


def _frame(
    position: Dataset, orientation: Dataset, measures: Dataset, which: tuple[int, int | None, tuple[int, int]]
) -> Frame:
    index, number, shape = which
    try:
        origin = np.array(position.ImagePositionPatient, dtype=np.float64)
        cosines = np.array(orientation.ImageOrientationPatient, dtype=np.float64)
        row_mm, column_mm = (float(value) for value in measures.PixelSpacing)
    except (AttributeError, TypeError, ValueError) as error:
        raise Refusal(
            "no-geometry", f"a frame of the source cannot be placed ({error}); fetch the series again"
        ) from error
    steps = np.stack([cosines[:3] * column_mm, cosines[3:] * row_mm])
    thickness = measures.get("SliceThickness")
    return Frame(origin, steps, index, number, shape, float(thickness) if thickness else None)


def _remove_noise(datasets: tuple[Dataset, ...]) -> None:
    """Give all single-frame images the first one's orientation if they differ only by rounding noise.

    Only copies in memory are changed: highdicom demands equal orientations, scanners write them to six digits.
    """
    first = datasets[0].get("ImageOrientationPatient")
    if first is None:
        return
    for dataset in datasets:
        if np.allclose(np.array(dataset.ImageOrientationPatient, float), np.array(first, float), atol=1e-3):
            dataset.ImageOrientationPatient = list(first)


def lies_in(geometry: Geometry, frame: Frame) -> bool:
    """Whether a frame is one of the slices of a grid.

    Raises ``Refusal`` (``geometry-mismatch``) if its pixels are not voxels of the grid.
    """
    first, exact = GridPlaces(geometry, frame.shape).index(frame)
    steps, origin = np.rint(exact), np.rint(first)
    sizes = np.array([frame.shape[1], frame.shape[0]])
    drift = float(np.abs((exact - steps) * sizes[:, None]).max())
    if drift > 0.5 or sorted(np.abs(steps).sum(axis=1)) != [1, 1] or abs(float(steps[0] @ steps[1])) > 0:
        raise _mismatch(geometry)
    across = np.flatnonzero(np.abs(steps).sum(axis=0) == 0)[0]
    if not -0.5 < first[across] < geometry.shape[across] - 0.5:
        return False
    covered = np.sort(np.stack([origin, origin + (sizes - 1) @ steps]), axis=0)
    within = [a for a in range(3) if a != across]
    if (covered[0, within] != 0).any() or (covered[1, within] != np.array(geometry.shape)[within] - 1).any():
        raise _mismatch(geometry)
    if np.abs(first - origin).max() > TOLERANCE_VOXELS:
        raise _mismatch(geometry)
    return True


def _mismatch(geometry: Geometry) -> Refusal:
    return Refusal(
        "geometry-mismatch",
        f"the label map ({geometry.describe()}) is not on the grid of its source images; bring it back to that grid",
    )


def placed(geometry: Geometry, frames: tuple[Frame, ...]) -> list[Frame]:
    """Frames that lie in a grid, one per place: of several time points of one place the first."""
    found: dict[tuple[float, ...], Frame] = {}
    for frame in frames:
        if lies_in(geometry, frame):
            found.setdefault(tuple(np.round(frame.position, 3)), frame)
    return list(found.values())


def slice_spacing_mm(geometry: Geometry, frame: Frame) -> float:
    """Distance between neighbouring slices along their normal."""
    normal = np.cross(*frame.steps)
    area = float(np.linalg.norm(normal))
    return geometry.voxel_volume_mm3 / area
