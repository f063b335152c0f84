"""DICOM trees as they come from an archive: series, and SEG and RTSTRUCT objects that refer to them; few voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import highdicom as hd
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from tests.ingest.trees import ROOT, write_series

_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
FRAME = f"{ROOT}77"
SQUARE = ((0.0, 0.0), (3.0, 0.0), (3.0, 3.0), (0.0, 3.0))
"""Of pixels centres, in mm: columns 0 to 2 and rows 0 to 2 of the slices of :func:`series`."""


def series(folder: Path, uid: str, patient: str = "P1", **attributes: Any) -> list[Path]:
    """Six slices of 4×3 pixels with what an archive's series carry."""
    return write_series(
        folder,
        uid,
        PatientID=patient,
        PatientName=f"Name^{patient}",
        StudyInstanceUID=attributes.pop("StudyInstanceUID", f"{ROOT}{crc32(patient.encode())}"),
        FrameOfReferenceUID=attributes.pop("FrameOfReferenceUID", f"{FRAME}.{uid}"),
        **attributes,
    )


def rtstruct(path: Path, slices: Sequence[Path], names: Sequence[str], *, number: int = 1, **changes: str) -> Path:
    """A structure set with a square in the second and third slice for each name, beside one another."""
    images = [dcmread(one, stop_before_pixels=True) for one in slices]
    first = images[0]
    data = _object(first, _RTSTRUCT, "RTSTRUCT", number)
    data.StructureSetLabel, data.StructureSetDate, data.StructureSetTime = "S", "20200101", f"{number:06d}"
    referenced = Dataset()
    referenced.SeriesInstanceUID = changes.get("SeriesInstanceUID", first.SeriesInstanceUID)
    referenced.ContourImageSequence = [_image(one) for one in images]
    study = Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [referenced]
    frame = Dataset()
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    data.StructureSetROISequence = [_roi(n, name, first) for n, name in enumerate(names, start=1)]
    data.ROIContourSequence = [_contours(n, images[1:3]) for n, _ in enumerate(names, start=1)]
    return _saved(data, path)


def _object(first: Dataset, sop_class: str, modality: str, number: int) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
    uid = f"{first.SeriesInstanceUID}.9.{number}"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1"
    data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = uid, first.StudyInstanceUID, modality
    data.PatientID, data.PatientName = first.PatientID, first.PatientName
    return data


def _image(image: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return item


def _roi(number: int, name: str, first: Dataset) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName, item.ROIGenerationAlgorithm = number, name, "MANUAL"
    item.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
    return item


def _contours(number: int, images: Sequence[Dataset]) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber, item.ContourSequence = number, []
    for image in images:
        contour = Dataset()
        contour.ContourImageSequence = [_image(image)]
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(SQUARE)
        z = float(image.ImagePositionPatient[2])
        left = 1.5 * (number - 1)  # a column further for each ROI
        points = [(x * 0.4 + left - 0.6, y - 0.75, z) for x, y in SQUARE]
        contour.ContourData = [round(value, 3) for point in points for value in point]
        item.ContourSequence.append(contour)
    return item


def _saved(data: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def seg(path: Path, slices: Sequence[Path], masks: Mapping[str, slice], *, number: int = 1) -> Path:
    """A segmentation by name: each segment holds some columns of the second slice."""
    images = [dcmread(one) for one in slices]
    for image in images:
        image.PatientBirthDate, image.PatientSex, image.StudyID, image.AccessionNumber = "", "", "", ""
        image.StudyDate, image.StudyTime, image.ReferringPhysicianName, image.PositionReferenceIndicator = (
            "",
            "",
            "",
            "",
        )
    pixels = np.zeros((len(images), 3, 4, len(masks)), np.uint8)
    for index, columns in enumerate(masks.values()):
        pixels[1, :, columns, index] = 1
    made = hd.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=n,
                segment_label=name,
                segmented_property_category=codes.SCT.Organ,
                segmented_property_type=codes.SCT.Liver,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
            )
            for n, name in enumerate(masks, start=1)
        ],
        series_instance_uid=f"{images[0].SeriesInstanceUID}.8.{number}",
        series_number=9,
        sop_instance_uid=f"{images[0].SeriesInstanceUID}.8.{number}.1",
        instance_number=1,
        manufacturer="M",
        manufacturer_model_name="M",
        software_versions="1",
        device_serial_number="1",
    )
    return _saved(made, path)
