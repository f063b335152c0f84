"""What every DICOM writer shares: options, identifiers, patient and study, files checked before they appear."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from medseg.errors import CaseFailed, Refusal
from medseg.files import atomic_path
from medseg.geometry import Geometry
from medseg.ingest import SeriesRecord
from medseg.labels.codes import BundleLike, SegmentCode, dicom_text, segment_codes
from medseg.labels.dicom_objects import hashed
from medseg.labels.frames import GridPlaces
from medseg.labels.image_grid import ImageGrid
from medseg.labels.scheme import LabelScheme
from medseg.outputs.source import Frame, SourceImages, placed
from medseg.results.verdict import Verdict

Kind = Literal["seg", "sr", "rtstruct", "sc"]
SegmentationType = Literal["AUTO", "BINARY", "FRACTIONAL", "LABELMAP"]

_SERIES_NUMBERS: Mapping[str, int] = {"seg": 9101, "sr": 9102, "rtstruct": 9103, "sc": 9104}
_DEIDENTIFICATION = (
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
)
_PATIENT_AND_STUDY = (
    # Patient module (PS3.3, C.7.1.1)
    "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID",
    "OtherPatientIDsSequence", "OtherPatientNames", "PatientBirthDate", "PatientBirthTime", "PatientSex",
    "QualityControlSubject", "EthnicGroup", "PatientComments", "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "BreedRegistrationSequence", "ResponsiblePerson",
    "ResponsiblePersonRole", "ResponsibleOrganization",
    # General Study and Patient Study modules (C.7.2.1, C.7.2.2)
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "RequestingService",
    "ReferencedStudySequence", "ProcedureCodeSequence", "ReasonForPerformedProcedureCodeSequence",
    "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize", "PatientWeight",
    "PatientBodyMassIndex", "MedicalAlerts", "Allergies", "SmokingStatus", "PregnancyStatus", "LastMenstrualDate",
    "PatientState", "Occupation", "AdditionalPatientHistory", "AdmissionID", "IssuerOfAdmissionIDSequence",
    "ServiceEpisodeID", "ServiceEpisodeDescription", "PatientSexNeutered", "ReasonForVisit",
    # Clinical Trial Subject and Study modules (C.7.1.3, C.7.2.3)
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription", "LongitudinalTemporalOffsetFromEvent",
    "LongitudinalTemporalEventType", "ConsentForClinicalTrialUseSequence",
)  # fmt: skip


@dataclass(frozen=True)
class WriteOptions:
    """What may be chosen about DICOM objects."""

    notice: str = "Research, not for clinical use"
    """Goes into the series description (with the bundle's name, cut to 64 characters) and onto pictures."""
    run: str = ""  # name of the run; part of what the identifiers are derived from, so the same run gives the same ones
    segmentation_type: SegmentationType = "AUTO"
    """``"AUTO"``: ``"BINARY"``, one bit per pixel, where frames fill whole bytes; elsewhere a byte per pixel in the
    form ``"FRACTIONAL"``, everything or nothing, because viewers misread frames that start within a byte.
    ``"LABELMAP"`` has all segments in one and is known to few readers; ``"FRACTIONAL"`` asked for by name needs
    ``probabilities``."""
    probabilities: Mapping[int, NDArray[np.floating[Any]]] | None = None
    """One array of the label map's shape per label, values from 0 to 1; for ``"FRACTIONAL"``."""
    trust: Verdict | None = None  # the verdict on the case; goes into the report
    doubt: NDArray[np.floating[Any]] | None = None
    """Array of the label map's shape, larger where the result is less sure; its worst slice opens the pictures."""
    when: datetime | None = None  # date and time to be written; now if not given
    asked: frozenset[int] = frozenset()
    """Labels that were looked for; empty: all. Of others nothing is stated where none occurs."""


@dataclass(frozen=True)
class Job:
    """One result on its way into a DICOM object."""

    labels: NDArray[np.integer[Any]]  # integers on ``geometry``, axes (i, j, k)
    geometry: Geometry  # the source's grid, in any axis order
    source: SourceImages  # headers and frames of the source
    bundle: BundleLike  # what made the result
    options: WriteOptions = field(default_factory=WriteOptions)  # see :class:`WriteOptions`
    record: SeriesRecord | None = None  # the source's record, for writers that need its pixels

    def __post_init__(self) -> None:
        if self.labels.shape != self.geometry.shape:
            raise Refusal(
                "geometry-mismatch",
                f"the label map has shape {self.labels.shape}, its grid {self.geometry.shape}; give its own grid",
            )
        unknown = sorted(set(np.unique(self.labels).tolist()) - {0, *self.bundle.labels, *self.scheme.names})
        if unknown:
            raise Refusal(
                "unexpected-labels", f"found labels {unknown}, {self.bundle.name} knows {sorted(self.bundle.labels)}"
            )

    @cached_property
    def frames(self) -> list[Frame]:
        """Frames of the source that lie in the grid, one per place."""
        return placed(self.geometry, self.source.frames)

    @cached_property
    def codes(self) -> dict[int, SegmentCode]:
        """Coded terms of the structures that occur; of all that were looked for if none occurs."""
        codes = segment_codes(self.bundle)
        present = {label: codes[label] for label in codes if self.mask(label).any()}
        asked = self.options.asked or codes.keys()
        return present or {label: code for label, code in codes.items() if label in asked}

    @cached_property
    def scheme(self) -> LabelScheme:
        """What the labels mean; structures of a bundle without regions have a value each."""
        return getattr(self.bundle, "scheme", None) or LabelScheme(self.bundle.labels)

    def mask(self, label: int) -> NDArray[np.bool_]:
        """Where a structure is; regions overlap."""
        members = self.scheme.members[label]
        return self.labels == label if members == (label,) else np.isin(self.labels, members)

    @property
    def image_grid(self) -> ImageGrid:
        """The source as those know it who read the object again."""
        first = self.source.first
        return ImageGrid(self.geometry, hashed(first.SeriesInstanceUID), hashed(first.FrameOfReferenceUID))

    @property
    def moment(self) -> datetime:
        """Date and time of the object."""
        return self.options.when or datetime.now().astimezone()

    def uid(self, *parts: str) -> str:
        """An identifier derived from source, bundle, run, result and ``parts``: the same inputs give the same one.

        The result's own hash is part of it, so that two different results never share an identifier. The form
        is a hash under the root 2.25 (PS3.5, B.2).
        """
        digest = hashlib.sha256()
        first = self.source.first
        made = (first.SeriesInstanceUID, first.SOPInstanceUID, self.bundle.name, self.bundle.sha256, self.options.run)
        for part in (*made, *parts):
            digest.update(str(part).encode() + b"\0")
        digest.update(self._content)
        return f"2.25.{int.from_bytes(digest.digest()[:16])}"

    @cached_property
    def _content(self) -> bytes:
        digest = hashlib.sha256(repr((self.labels.shape, np.round(self.geometry.affine, 4).tolist())).encode())
        digest.update(np.ascontiguousarray(self.labels, dtype=np.uint16).tobytes())
        return digest.digest()

    def view(self, volume: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """The part of a volume on the grid that one of :attr:`frames` shows, as (row, column)."""
        found = GridPlaces(self.geometry, frame.shape).view(volume, frame)
        assert found is not None, "frames lie in the grid"
        return found[0]

    def covered(self) -> None:
        """Refuse a label map of which part lies on no frame of the source.

        Raises ``Refusal``: ``geometry-mismatch``.
        """
        seen = np.zeros(self.labels.shape, dtype=bool)
        for frame in self.frames:
            self.view(seen, frame)[...] = True
        if not self.frames or (self.labels[~seen] != 0).any():
            raise Refusal(
                "geometry-mismatch", "part of the label map lies on no source image; bring it to the source grid first"
            )


def series_description(job: Job, what: str) -> str:
    """At most 64 characters: what it is, by which bundle, and the notice."""
    notice = dicom_text(job.options.notice)
    return dicom_text(f"{what} {job.bundle.name} {job.bundle.version}", max(62 - len(notice), 1)) + f", {notice}"[:63]


def series_and_equipment(job: Job, kind: Kind, what: str) -> dict[str, Any]:
    """Series, instance and equipment as highdicom's classes take them."""
    return {
        "series_instance_uid": job.uid(kind, "series"),
        "series_number": _SERIES_NUMBERS[kind],
        "sop_instance_uid": job.uid(kind),
        "instance_number": 1,
        "manufacturer": "medseg",
        "manufacturer_model_name": dicom_text(job.bundle.name),
        "software_versions": [version("medseg"), dicom_text(job.bundle.version)],
        "device_serial_number": job.bundle.sha256,
        "series_description": series_description(job, what),
    }


def reference_to(image: Dataset) -> Dataset:
    """An item that refers to an object by its class and identifier."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return item


def start_dataset(job: Job, kind: Kind, sop_class: str, modality: str) -> Dataset:
    """Patient, study, series, equipment and SOP common modules of a new object."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(job.uid(kind))
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, job.uid(kind)
    first = job.source.first
    if "SpecificCharacterSet" in first:
        dataset.SpecificCharacterSet = first.SpecificCharacterSet
    for keyword in _PATIENT_AND_STUDY:
        if keyword in first:
            dataset[keyword] = first[keyword]
    dataset.Modality = modality
    dataset.SeriesInstanceUID = job.uid(kind, "series")
    dataset.SeriesNumber, dataset.InstanceNumber = _SERIES_NUMBERS[kind], 1
    dataset.Manufacturer, dataset.ManufacturerModelName = "medseg", dicom_text(job.bundle.name)
    dataset.SoftwareVersions = [version("medseg"), dicom_text(job.bundle.version)]
    dataset.DeviceSerialNumber = job.bundle.sha256
    dataset.InstanceCreationDate = dataset.SeriesDate = dataset.ContentDate = job.moment.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.SeriesTime = dataset.ContentTime = job.moment.strftime("%H%M%S")
    copy_identity(first, dataset)
    return dataset


def copy_identity(source: Dataset, dataset: Dataset) -> None:
    """Copy what says that (and how) the source was de-identified: the result is, as much as its source."""
    for keyword in _DEIDENTIFICATION:
        if keyword in source:
            dataset[keyword] = source[keyword]


def save_checked(dataset: Dataset, path: Path, check: Callable[[Path], None]) -> Path:
    """Write an object under a temporary name, let ``check`` read it again, and only then give it its name.

    Raises ``CaseFailed`` if the file cannot be written, or ``check`` finds another content.
    """
    try:
        with atomic_path(path) as partial:
            dataset.save_as(partial, enforce_file_format=True)
            check(partial)
    except OSError as error:
        raise CaseFailed(
            f"{path.name} could not be written ({error.strerror}); free space or choose another folder"
        ) from error
    return path
