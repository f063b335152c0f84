"""Loading and saving side by side with MONAI, nibabel and SimpleITK: the same volume, interleaved, medians of CPU time.

python -m benchmarks.bench_loading [--only PART] [--repeats 3] [--slices 300] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
import torch
from monai.transforms import LoadImaged
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from medseg.ingest import save_nifti
from medseg.transforms import LoadVolumed

SIZE = 512
SPACING_MM = (0.75, 0.75, 1.0)
AFFINE = np.array([[-0.75, 0, 0, 190.0], [0, -0.75, 0, 180.0], [0, 0, 1.0, -300.0], [0, 0, 0, 1]])

Timings = dict[str, tuple[float, float]]


def make_volume(slices: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """A CT-like volume: air, a body with smooth tissue, noise as in a scanner (axes i, j, k; HU)."""
    random = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE), indexing="ij")
    body = (x / 0.85) ** 2 + (y / 0.6) ** 2 < 1
    tissue = np.where(body, 40 + 30 * np.sin(7 * x) * np.cos(5 * y), -1000)
    noise = random.normal(0, 12, (SIZE, SIZE, 16)) * body[..., None]
    planes = np.rint(tissue[..., None] + noise).astype(np.int16)
    return np.asfortranarray(planes[..., np.arange(slices) % 16])


def write_series(volume: np.ndarray[Any, Any], folder: Path, syntax: str = ExplicitVRLittleEndian) -> None:
    """One CT series, one file per slice."""
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(volume.shape[2]):
        item = Dataset()
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, generate_uid()
        item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = study, series, frame
        item.Modality, item.PatientID, item.PatientName = "CT", "benchmark", "Benchmark"
        item.SeriesNumber, item.InstanceNumber = 1, k + 1
        item.ImagePositionPatient = [-190.0, -180.0, -300.0 + k]
        item.ImageOrientationPatient, item.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.75, 0.75]
        item.SliceThickness, item.RescaleSlope, item.RescaleIntercept = 1, "1", "-1024"
        item.Rows, item.Columns, item.SamplesPerPixel = SIZE, SIZE, 1
        item.PhotometricInterpretation, item.PixelRepresentation = "MONOCHROME2", 0
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 12, 11
        item.PixelData = (volume[..., k].T + 1024).astype(np.uint16).tobytes()
        item["PixelData"].VR = "OW"
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID
        item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
        if syntax != ExplicitVRLittleEndian:
            item.compress(syntax, generate_instance_uid=False)
        item.save_as(folder / f"{k:04d}.dcm", enforce_file_format=True)


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> Timings:
    """Median CPU and wall seconds of each call; the calls take turns, so that a busy machine treats them alike."""
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start_cpu, start = time.process_time(), time.perf_counter()
            result = call()
            cpu[name].append(time.process_time() - start_cpu)
            wall[name].append(time.perf_counter() - start)
            del result
    return {name: (statistics.median(cpu[name]), statistics.median(wall[name])) for name in calls}


def _monai(reader: str, source: Path) -> Callable[[], Any]:
    transform = LoadImaged(keys="image", reader=reader)
    return lambda: transform({"image": source})["image"]


def _ours(source: Path) -> Callable[[], Any]:
    transform = LoadVolumed(keys="image")
    return lambda: transform({"image": source})["image"]


def _check_equal(expected: np.ndarray[Any, Any], calls: dict[str, Callable[[], Any]], names: tuple[str, ...]) -> None:
    """Every reader named gives these voxels and this affine."""
    for name in names:
        found = calls[name]()
        np.testing.assert_array_equal(np.asarray(found), expected, err_msg=name)
        np.testing.assert_allclose(np.asarray(found.affine), AFFINE, atol=1e-5, err_msg=name)


def bench_load_nifti(volume: np.ndarray[Any, Any], folder: Path, repeats: int) -> Timings:
    path = folder / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, AFFINE), path)
    calls: dict[str, Callable[[], Any]] = {
        "medseg LoadVolumed": _ours(path),
        "MONAI LoadImaged, NibabelReader": _monai("NibabelReader", path),
        "MONAI LoadImaged, ITKReader": _monai("ITKReader", path),
        "nibabel": lambda: np.asanyarray(nibabel.load(path).dataobj).astype(np.float32),
        "SimpleITK": lambda: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat32)),
    }
    _check_equal(volume, calls, ("medseg LoadVolumed", "MONAI LoadImaged, NibabelReader"))
    return interleaved(calls, repeats)


def bench_save_nifti(volume: np.ndarray[Any, Any], folder: Path, repeats: int) -> Timings:
    ours, theirs, itks = folder / "ours.nii.gz", folder / "theirs.nii.gz", folder / "itks.nii.gz"
    image = SimpleITK.GetImageFromArray(volume.transpose(2, 1, 0))
    timings = interleaved(
        {
            "medseg save_nifti": lambda: save_nifti(volume, AFFINE, ours),
            "nibabel": lambda: nibabel.save(nibabel.Nifti1Image(volume, AFFINE), theirs),
            "SimpleITK": lambda: SimpleITK.WriteImage(image, str(itks), True),
        },
        repeats,
    )
    again = nibabel.load(ours)
    np.testing.assert_array_equal(np.asanyarray(again.dataobj), volume)
    np.testing.assert_allclose(again.affine, AFFINE, atol=1e-5)
    sizes = " / ".join(f"{file.stat().st_size / 1e6:.0f}" for file in (ours, theirs, itks))
    print(f"file sizes in MB (medseg / nibabel / SimpleITK): {sizes}")
    return timings


def bench_load_series(
    volume: np.ndarray[Any, Any], folder: Path, repeats: int, syntax: str = ExplicitVRLittleEndian
) -> Timings:
    source = folder / f"series-{syntax}"
    write_series(volume, source, syntax)
    calls = {
        "medseg LoadVolumed": _ours(source),
        "MONAI LoadImaged, ITKReader": _monai("ITKReader", source),
        "MONAI LoadImaged, PydicomReader": _monai("PydicomReader", source),
    }
    _check_equal(volume, calls, tuple(calls))
    return interleaved(calls, repeats)


def show(title: str, timings: Timings) -> dict[str, Any]:
    """Print one table; the first row is ours, and the ratio says how many times longer the others take."""
    (ours_cpu, ours_wall), *_ = timings.values()
    print(f"\n{title}\n{'':36s} {'CPU s':>8s} {'ratio':>7s} {'wall s':>8s} {'ratio':>7s}")
    for name, (cpu, wall) in timings.items():
        print(f"{name:36s} {cpu:8.2f} {cpu / ours_cpu:6.1f}x {wall:8.2f} {wall / ours_wall:6.1f}x")
    return {name: {"cpu_s": cpu, "cpu_ratio": cpu / ours_cpu, "wall_s": wall} for name, (cpu, wall) in timings.items()}


PARTS: dict[str, tuple[str, Callable[[np.ndarray[Any, Any], Path, int], Timings]]] = {
    "load-nifti": ("load .nii.gz", bench_load_nifti),
    "save-nifti": ("save .nii.gz", bench_save_nifti),
    "load-series": ("load DICOM series", bench_load_series),
    "load-rle": ("load DICOM series, RLE", partial(bench_load_series, syntax=RLELossless)),
    "load-jpeg-ls": ("load DICOM series, JPEG-LS", partial(bench_load_series, syntax=JPEGLSLossless)),
    "load-jpeg-2000": ("load DICOM series, JPEG 2000", partial(bench_load_series, syntax=JPEG2000Lossless)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="this part only; may be repeated")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    volume = make_volume(options.slices)
    results = {}
    with tempfile.TemporaryDirectory(prefix="medseg-bench-") as name:
        shape = "x".join(str(n) for n in volume.shape)
        for part in options.only or PARTS:
            title, bench = PARTS[part]
            results[title] = show(f"{title}, {shape} int16", bench(volume, Path(name), options.repeats))
    if options.json:
        options.json.write_text(
            json.dumps({"repeats": options.repeats, "shape": shape, "results": results}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
