"""Measurement report (SR, template TID 1500) by highdicom: volumes and diameters per segment, and the trust verdict.

An interval round a volume is stated as DICOM states the uncertainty of a measurement: as its properties (TID 310), the
ranges above and below (CID 225). The terms of the verdict are private (coding scheme ``99MEDSEG``): no published scheme
names a Dice coefficient that was predicted without ground truth.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from highdicom import sr
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.sr.codedict import codes as dicom_codes
from pydicom.uid import SegmentationStorage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from medseg.errors import CaseFailed
from medseg.labels.codes import SegmentCode, dicom_text
from medseg.outputs.common import Job, copy_identity, save_checked, series_and_equipment
from medseg.outputs.seg import coded
from medseg.results.case_result import StructureVolume, volumes_of
from medseg.results.verdict import Verdict

_LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
_MILLILITRE = CodedConcept("ml", "UCUM", "milliliter")
_NO_UNITS = CodedConcept("1", "UCUM", "no units")
_SCHEME = "99MEDSEG"
_DICE = CodedConcept("DICE", _SCHEME, "Predicted Dice coefficient")
_LOWER_BOUND = CodedConcept("DICELOW", _SCHEME, "Lower bound of Dice")
_VERDICT = CodedConcept("TRUST", _SCHEME, "Trust verdict")
_FLAG = CodedConcept("FLAG", _SCHEME, "Trust flag")
_ABOVE = CodedConcept("371886008", "SCT", "+, range of upper measurement uncertainty")
_BELOW = CodedConcept("371885007", "SCT", "-, range of lower measurement uncertainty")
_RESULT = CodedConcept("RESULT", _SCHEME, "Whole segmentation result")


def of_structure(trust: Verdict | None, label: int) -> list[sr.Measurement]:
    """Predicted Dice and lower bound of one structure, if it was assessed."""
    own = [structure for structure in (trust.structures if trust else ()) if structure.label == label]
    return _measures(own[0].predicted_dice, own[0].lower_bound) if own else []


def verdict_of(trust: Verdict | None) -> list[sr.QualitativeEvaluation] | None:
    """The verdict on the case, as it stands in every group: no structure is to be read without it."""
    if trust is None:
        return None
    return [sr.QualitativeEvaluation(name=_VERDICT, value=_term(trust.decision.upper(), trust.decision.capitalize()))]


def of_result(
    trust: Verdict | None, tracking: sr.TrackingIdentifier, algorithm: sr.AlgorithmIdentification
) -> list[sr.MeasurementsAndQualitativeEvaluations]:
    """A group of its own (TID 1501) for what is known of the whole result: both measures, verdict, flags."""
    if trust is None:
        return []
    flags = [sr.QualitativeEvaluation(name=_FLAG, value=_term(flag, flag)) for flag in trust.flags]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        finding_type=_RESULT,
        algorithm_id=algorithm,
        measurements=_measures(trust.predicted_dice, trust.lower_bound) or None,
        qualitative_evaluations=[*(verdict_of(trust) or ()), *flags],
    )
    return [group]


def _measures(predicted_dice: float | None, lower_bound: float | None) -> list[sr.Measurement]:
    return [
        sr.Measurement(name=name, value=float(f"{value:.4f}"), unit=_NO_UNITS)
        for name, value in ((_DICE, predicted_dice), (_LOWER_BOUND, lower_bound))
        if value is not None
    ]


def _term(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, _SCHEME, dicom_text(meaning))


def write_sr(job: Job, path: Path) -> Path:
    """Write a Comprehensive 3D SR that refers, by identifier, to the Segmentation of the same result.

    Raises ``CaseFailed`` if the file read again does not hold the measured volumes and their intervals.
    """
    job.covered()
    volumes = {one.label: one for one in volumes_of(job.labels, job.geometry, job.scheme, job.options.trust)}
    codes = list(job.codes.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # highdicom comments on names and on identifiers
        dataset = sr.Comprehensive3DSR(
            evidence=_evidence(job),
            content=_report(job, codes, volumes),
            **series_and_equipment(job, "sr", "SR"),
            is_complete=True,
            is_final=False,
            is_verified=False,
        )
    copy_identity(job.source.first, dataset)

    def check(partial: Path) -> None:
        stated = sorted(_stated_volumes(pydicom.dcmread(partial)))
        own = [volumes[code.label] for code in codes]
        expected = sorted(number for one in own for number in (one.volume_ml or 0.0, *_ranges_ml(one)))
        if len(stated) != len(expected) or not np.allclose(stated, expected, rtol=1e-4, atol=1e-6):
            raise CaseFailed(
                f"{path.name}: the report read again states other volumes; nothing was written, please report this"
            )

    return save_checked(dataset, path, check)


def longest_diameter_mm(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> float:
    """Largest distance between the centres of two voxels of a structure, in mm; 0 for one voxel.

    The farthest two points of a set are corners of its convex hull, so only those are compared.
    """
    inner = np.zeros_like(mask)  # voxels with a neighbour on both sides along the first axis are never extreme
    inner[1:-1] = mask[:-2] & mask[2:]
    points = np.argwhere(mask & ~inner) @ affine[:3, :3].T
    if len(points) < 2:
        return 0.0
    try:
        points = points[ConvexHull(points).vertices]
    except QhullError:  # flat or straight structures have no hull in 3D; few points, so all are compared
        points = points[np.linspace(0, len(points) - 1, min(len(points), 3000)).astype(int)]
    return float(pdist(points).max())


def _evidence(job: Job) -> list[pydicom.Dataset]:
    segmentation = pydicom.Dataset()
    first = job.source.first
    segmentation.SOPClassUID, segmentation.SOPInstanceUID = _seg_class(job), job.uid("seg")
    segmentation.StudyInstanceUID, segmentation.SeriesInstanceUID = first.StudyInstanceUID, job.uid("seg", "series")
    return [*job.source.datasets, segmentation]


def _seg_class(job: Job) -> str:
    return str(_LABELMAP_STORAGE if job.options.segmentation_type == "LABELMAP" else SegmentationStorage)


def _report(job: Job, codes: list[SegmentCode], volumes: Mapping[int, StructureVolume]) -> sr.MeasurementReport:
    observer = sr.ObserverContext(
        observer_type=dicom_codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=job.uid("device"),
            name="medseg",
            manufacturer_name="medseg",
            model_name=dicom_text(f"{job.bundle.name} {job.bundle.version}"),
        ),
    )
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=CodedConcept("363679005", "SCT", "Imaging procedure"),
        title=dicom_codes.DCM.ImagingMeasurementReport,
        imaging_measurements=[
            *(_group(job, code, n, volumes[code.label]) for n, code in enumerate(codes, start=1)),
            *of_result(job.options.trust, _tracking(job, "result", "whole result"), _algorithm(job)),
        ],
    )


def _group(job: Job, code: SegmentCode, number: int, volume: StructureVolume) -> Any:
    segment = sr.ReferencedSegment(
        sop_class_uid=_seg_class(job),
        sop_instance_uid=job.uid("seg"),
        segment_number=number,
        source_series=sr.SourceSeriesForSegmentation(job.source.first.SeriesInstanceUID),
    )
    diameter = longest_diameter_mm(job.mask(code.label), job.geometry.affine)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=segment,
        tracking_identifier=_tracking(job, str(code.label), code.name),
        finding_category=coded(code.category),
        finding_type=coded(code.type),
        finding_sites=_sites(code),
        algorithm_id=_algorithm(job),
        measurements=[
            _volume(job, volume),
            sr.Measurement(
                name=CodedConcept("L0JK", "IBSI", "Maximum 3D diameter"),
                value=float(f"{diameter:.6g}"),
                unit=dicom_codes.UCUM.Millimeter,
            ),
            *of_structure(job.options.trust, code.label),
        ],
        qualitative_evaluations=verdict_of(job.options.trust),
    )


def _volume(job: Job, volume: StructureVolume) -> sr.Measurement:
    """The volume; with an interval, how far that goes above and below it, and in the algorithm how often it holds."""
    found, properties, algorithm = volume.volume_ml or 0.0, None, None
    if volume.interval is not None:
        properties = sr.MeasurementProperties()  # its own arguments have no units
        for name, range_ml in zip((_ABOVE, _BELOW), _ranges_ml(volume), strict=True):
            properties.append(
                sr.NumContentItem(
                    name=name,
                    value=float(f"{range_ml:.6g}"),
                    unit=_MILLILITRE,
                    relationship_type=sr.RelationshipTypeValues.HAS_PROPERTIES,
                )
            )
        algorithm = _algorithm(job, f"conformal interval, holds for {volume.interval.coverage:.0%} of references")
    return sr.Measurement(
        name=dicom_codes.SCT.Volume,
        value=float(f"{found:.6g}"),
        unit=_MILLILITRE,
        algorithm_id=algorithm,
        properties=properties,
    )


def _ranges_ml(volume: StructureVolume) -> list[float]:
    """How far the interval goes above the volume, and how far below it; empty without one."""
    found = volume.volume_ml or 0.0
    return [] if volume.interval is None else [volume.interval.high - found, found - volume.interval.low]


def _tracking(job: Job, key: str, name: str) -> sr.TrackingIdentifier:
    return sr.TrackingIdentifier(uid=job.uid("tracking", key), identifier=dicom_text(f"{job.bundle.name} {name}"))


def _algorithm(job: Job, *more: str) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=dicom_text(job.bundle.name),
        version=str(job.bundle.version),
        parameters=[f"sha256 {job.bundle.sha256}", dicom_text(job.options.notice), *more],
    )


def _sites(code: SegmentCode) -> list[sr.FindingSite] | None:
    place = code.region or (code.type if code.modifiers else None)
    if place is None:
        return None
    side, part = (None if one is None else coded(one) for one in (code.laterality, code.modifier))
    return [sr.FindingSite(anatomic_location=coded(place), laterality=side, topographical_modifier=part)]


def _stated_volumes(dataset: pydicom.Dataset) -> list[float]:
    """Every volume and its ranges."""
    values = []
    for item in dataset.get("ContentSequence", []):
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == dicom_codes.SCT.Volume.value:
            numbers = [item, *(part for part in item.get("ContentSequence", []) if part.ValueType == "NUM")]
            values += [float(one.MeasuredValueSequence[0].NumericValue) for one in numbers]
        values += _stated_volumes(item)
    return values
