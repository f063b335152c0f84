"""How fast a tree of DICOM files is indexed, against a plain pydicom walk.

Prints a table and writes ``bench_index.json``. Run it as ``python -m benchmarks.bench_index --instances 100000``.
CPU seconds are compared, since other work on the machine does not change them. The files are synthetic CT slices of
16×16 pixels with a header of usual size (about 75 elements), in a temporary folder that is removed at the end.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
from joblib.externals.loky import get_reusable_executor
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medseg.files import write_json
from medseg.ingest import scan

_SLICES = 100
_PYDICOM_SAMPLE = 2000
_UID_ROOT = "1.2.826.0.1.3680043.8.498."
_SERIES_MARK = _UID_ROOT + "1" * 20
_INSTANCE_MARK = _UID_ROOT + "2" * 20
_STUDY_MARK = _UID_ROOT + "3" * 20
_POSITION_MARK = "-125.0\\-125.0\\-1234.5"
_NUMBER_MARK = "987654"
_PATIENT_MARK = "PATIENT-00000000"


def template() -> bytes:
    """One CT slice with a header of usual size; the marks in it are replaced for each instance."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _INSTANCE_MARK
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    for keyword, value in _USUAL_HEADER.items():
        setattr(data, keyword, value)
    equivalent = Dataset()
    equivalent.CodeValue, equivalent.CodingSchemeDesignator, equivalent.CodeMeaning = "113014", "DCM", "Study"
    referenced = Dataset()
    referenced.ReferencedSOPClassUID, referenced.ReferencedSOPInstanceUID = CTImageStorage, _UID_ROOT + "9"
    data.ReferencedImageSequence = [referenced]
    data.ProcedureCodeSequence = [equivalent]
    data.PixelData = bytes(16 * 16 * 2)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


_USUAL_HEADER: dict[str, object] = {
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "InstanceCreationDate": "20200101",
    "InstanceCreationTime": "101010",
    "SOPClassUID": CTImageStorage,
    "SOPInstanceUID": _INSTANCE_MARK,
    "StudyDate": "20200101",
    "SeriesDate": "20200101",
    "AcquisitionDate": "20200101",
    "ContentDate": "20200101",
    "StudyTime": "101010",
    "SeriesTime": "101011",
    "AcquisitionTime": "101012.5",
    "ContentTime": "101013",
    "AccessionNumber": "A1",
    "Modality": "CT",
    "Manufacturer": "Synthetic",
    "InstitutionName": "Nowhere",
    "ReferringPhysicianName": "",
    "StationName": "S1",
    "StudyDescription": "Thorax and abdomen",
    "SeriesDescription": "Axial 5.0 soft tissue",
    "ManufacturerModelName": "Model",
    "PatientName": "Nobody",
    "PatientID": _PATIENT_MARK,
    "PatientBirthDate": "19500101",
    "PatientSex": "O",
    "PatientAge": "070Y",
    "PatientWeight": "70",
    "BodyPartExamined": "CHEST",
    "ContrastBolusAgent": "Agent",
    "ScanOptions": "HELICAL MODE",
    "SliceThickness": "5",
    "KVP": "120",
    "DataCollectionDiameter": "500",
    "SoftwareVersions": "1.0",
    "ProtocolName": "Routine",
    "ContrastBolusRoute": "IV",
    "ReconstructionDiameter": "360",
    "DistanceSourceToDetector": "949",
    "DistanceSourceToPatient": "541",
    "GantryDetectorTilt": "0",
    "TableHeight": "140",
    "RotationDirection": "CW",
    "ExposureTime": "600",
    "XRayTubeCurrent": "300",
    "Exposure": "180",
    "FilterType": "BODY",
    "GeneratorPower": "36000",
    "FocalSpots": "1.2",
    "ConvolutionKernel": "STANDARD",
    "PatientPosition": "FFS",
    "RevolutionTime": 0.6,
    "SingleCollimationWidth": 0.6,
    "TotalCollimationWidth": 38.4,
    "TableSpeed": 60.0,
    "SpiralPitchFactor": 1.0,
    "StudyInstanceUID": _STUDY_MARK,
    "SeriesInstanceUID": _SERIES_MARK,
    "StudyID": "1",
    "SeriesNumber": "3",
    "AcquisitionNumber": "1",
    "InstanceNumber": _NUMBER_MARK,
    "ImagePositionPatient": _POSITION_MARK,
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "FrameOfReferenceUID": _UID_ROOT + "7",
    "PositionReferenceIndicator": "SN",
    "SliceLocation": "1",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "Rows": 16,
    "Columns": 16,
    "PixelSpacing": ["0.703125", "0.703125"],
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 1,
    "WindowCenter": "40",
    "WindowWidth": "400",
    "RescaleIntercept": "-1024",
    "RescaleSlope": "1",
    "RescaleType": "HU",
}


def write_tree(root: Path, instances: int) -> None:
    """Patients with two series each, one folder a series, names without extension."""
    original = template()
    for series in range(-(-instances // _SLICES)):
        folder = root / f"patient{series // 2:05d}" / f"series{series:05d}"
        folder.mkdir(parents=True)
        of_series = _replaced(original, _PATIENT_MARK, f"PATIENT-{series // 2:08d}")
        of_series = _replaced(of_series, _STUDY_MARK, _UID_ROOT + f"{series // 2 + 3 * 10**19:020d}")
        of_series = _replaced(of_series, _SERIES_MARK, _UID_ROOT + f"{series + 10**19:020d}")
        for number in range(min(_SLICES, instances - series * _SLICES)):
            name = f"{series * _SLICES + number + 2 * 10**19:020d}"
            data = _replaced(of_series, _INSTANCE_MARK, _UID_ROOT + name)
            data = _replaced(data, _POSITION_MARK, f"-125.0\\-125.0\\{-1000 + 5 * number:07.1f}")
            (folder / f"I{number:04d}").write_bytes(_replaced(data, _NUMBER_MARK, f"{number + 1:06d}"))


def _replaced(data: bytes, mark: str, value: str) -> bytes:
    assert len(mark) == len(value), (mark, value)
    return data.replace(mark.encode(), value.encode())


def pydicom_walk(root: Path, most: int, tags: list[str] | None) -> int:
    """The plain way: every file through pydicom, grouped by series."""
    series: dict[str, list[str]] = {}
    count = 0
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            if count >= most:
                return count
            path = os.path.join(folder, name)  # noqa: PTH118
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            series.setdefault(str(header.SeriesInstanceUID), []).append(path)
            _ = (header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing, header.Rows)
            count += 1
    return count


_TAGS = [
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality"),
    *("SeriesDescription", "ImageType", "InstanceNumber", "Rows", "Columns", "PixelSpacing", "SliceThickness"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "AcquisitionTime"),
]


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process and of the workers it started, which end before the clock is read."""
    start = _cpu_seconds()
    work()
    get_reusable_executor().shutdown(wait=True)
    return _cpu_seconds() - start


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(instances: int, workers: int, folder: Path, tree: Path | None) -> dict[str, Any]:
    """All figures for one tree."""
    database = folder / "index.sqlite"
    if tree is None:
        tree = folder / "tree"
        write_tree(tree, instances)
    instances = sum(len(names) for _, _, names in os.walk(tree))
    sample = min(instances, _PYDICOM_SAMPLE)
    pydicom_walk(tree, 200, None)  # once, so that imports are not counted
    plain = [cpu_seconds(lambda: pydicom_walk(tree, sample, None)) / sample * 1e6]
    before = _peak_mib()
    seconds: dict[str, float] = {}
    wall: dict[str, float] = {}
    for name in ("first scan", "unchanged"):
        start = time.perf_counter()
        seconds[name] = cpu_seconds(lambda: scan(tree, database=database, workers=workers))
        wall[name] = time.perf_counter() - start
    plain.append(cpu_seconds(lambda: pydicom_walk(tree, sample, None)) / sample * 1e6)
    with_tags = cpu_seconds(lambda: pydicom_walk(tree, sample, _TAGS)) / sample * 1e6
    micros = {
        "pydicom, whole header": sum(plain) / len(plain),
        "pydicom, specific_tags": with_tags,
        **{f"medseg, {name}": value / instances * 1e6 for name, value in seconds.items()},
    }
    return {
        "instances": instances,
        "workers": workers,
        "cpu_us_per_file": {name: round(value, 1) for name, value in micros.items()},
        "wall_s": {name: round(value, 1) for name, value in wall.items()},
        "database_mib": round(database.stat().st_size / 2**20, 1),
        "peak_mib": round(_peak_mib()),
        "peak_mib_before_scan": round(before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("bench_index.json"))
    parser.add_argument("--tree", type=Path, help="an existing tree of DICOM images, in place of synthetic ones")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medseg-bench-") as folder:
        result = measure(options.instances, options.workers, Path(folder), options.tree)
    result["date"] = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    plain = result["cpu_us_per_file"]["pydicom, whole header"]
    for name, micros in result["cpu_us_per_file"].items():
        cores = options.workers if name.startswith("medseg, first") else 1
        ratio = plain / micros
        print(f"{name:26s} {micros:8.1f} CPU µs/file {ratio:6.1f}×, on {cores} cores {cores * ratio:6.1f}×")
    print(json.dumps({key: value for key, value in result.items() if key != "cpu_us_per_file"}))
    write_json(options.output, result)


if __name__ == "__main__":
    main()
