"""Voxelwise equality after reading back, over directions, planes, angles and spacings, by readers that are not ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian

from medseg import outputs
from medseg.geometry import Geometry
from medseg.labels import ImageGrid, LabelScheme, ReadingRules, read_label
from tests.outputs.series import FakeBundle, blobs, read, rotation, write_enhanced, write_series

SHAPE = (7, 6, 5)
SPACING_MM = (0.7, 1.3, 2.9)
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


def affine_of(plane: str, signs: tuple[int, ...], degrees: float) -> NDArray[np.float64]:
    """LPS affine: columns, rows and slices along the plane's axes with the given signs, then turned."""
    affine = np.eye(4)
    directions = np.eye(3)[:, PLANES[plane]] * np.array(signs)
    affine[:3, :3] = rotation(degrees) @ directions * np.array(SPACING_MM)
    affine[:3, 3] = (-31.5, 47.25, -120.0)
    return affine


def read_with_highdicom(path: Path, geometry: Geometry, labels: dict[int, int]) -> NDArray[np.uint16]:
    """Place the voxels of highdicom's volume by its affine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = hd.seg.segread(path).get_volume(combine_segments=True)
    return place(volume.array, np.diag([-1, -1, 1, 1]) @ volume.affine, geometry, labels)


def place(
    array: NDArray[np.generic], affine: NDArray[np.float64], geometry: Geometry, labels: dict[int, int]
) -> NDArray[np.uint16]:
    result = np.zeros(geometry.shape, np.uint16)
    found = np.argwhere(np.asarray(array) > 0)
    index = (np.linalg.inv(geometry.affine) @ affine @ np.c_[found, np.ones(len(found))].T)[:3].T
    assert np.abs(index - np.rint(index)).max() < 0.02
    values = np.asarray(array)[tuple(found.T)]
    result[tuple(np.rint(index).astype(int).T)] = [labels[int(v)] for v in values]
    return result


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
@pytest.mark.parametrize("degrees", [0.0, 23.0])
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_segmentation_reads_back_equal(
    tmp_path: Path, plane: str, signs: tuple[int, ...], degrees: float, kind: str
) -> None:
    shape = (8, 6, 5) if kind == "BINARY" else SHAPE  # chosen by whether a frame fills whole bytes
    record, geometry = write_series(tmp_path / "in", affine_of(plane, signs, degrees), shape)
    labels = blobs(shape)
    path = outputs.write("seg", labels, geometry, record, FakeBundle(), tmp_path / "seg.dcm")
    assert read(path).SegmentationType == kind
    assert np.array_equal(read_with_highdicom(path, geometry, {1: 1, 2: 3}), labels)


def test_bits_of_frames_that_start_within_a_byte_read_back_equal(tmp_path: Path) -> None:
    record, geometry = write_series(tmp_path / "in", affine_of("coronal", (1, -1, 1), 23.0), SHAPE)
    options = outputs.WriteOptions(segmentation_type="BINARY")
    labels = blobs(SHAPE)
    path = outputs.write("seg", labels, geometry, record, FakeBundle(), tmp_path / "seg.dcm", options=options)
    assert read(path).SegmentationType == "BINARY"
    assert np.array_equal(read_with_highdicom(path, geometry, {1: 1, 2: 3}), labels)


@pytest.mark.parametrize("kind", ["AUTO", "LABELMAP"])
def test_frames_of_odd_size_need_no_codec(tmp_path: Path, kind: str) -> None:
    """The RLE encoder of a common library ends the whole process on 51 × 35 pixels."""
    shape = (35, 51, 3)
    record, geometry = write_series(tmp_path / "in", affine_of("axial", (1, 1, 1), 0.0), shape)
    options = outputs.WriteOptions(segmentation_type=kind)  # type: ignore[arg-type]
    labels = blobs(shape)
    path = outputs.write("seg", labels, geometry, record, FakeBundle(), tmp_path / "seg.dcm", options=options)
    assert read(path).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(read_with_highdicom(path, geometry, {1: 1, 2: 3}), labels)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("kind", ["AUTO", "BINARY", "LABELMAP"])
def test_enhanced_source_with_reversed_frames(tmp_path: Path, plane: str, kind: str) -> None:
    record, geometry = write_enhanced(tmp_path / "in", affine_of(plane, (1, -1, 1), 11.0), SHAPE)
    options = outputs.WriteOptions(segmentation_type=kind)  # type: ignore[arg-type]
    labels = blobs(SHAPE)
    path = outputs.write("seg", labels, geometry, record, FakeBundle(), tmp_path / "seg.dcm", options=options)
    assert np.array_equal(read_with_highdicom(path, geometry, {1: 1, 2: 3}), labels)


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SRA", "AIL"])
def test_the_label_map_may_come_in_any_axis_order(tmp_path: Path, orientation: str) -> None:
    record, geometry = write_series(tmp_path / "in", affine_of("coronal", (1, -1, -1), 8.0), SHAPE)
    labels = blobs(SHAPE)
    turned = nib.Nifti1Image(labels, geometry.affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(geometry.affine), nib.orientations.axcodes2ornt(tuple(orientation))
        )
    )
    other = Geometry(turned.shape, turned.affine)
    path = outputs.write("seg", np.asarray(turned.dataobj), other, record, FakeBundle(), tmp_path / "seg.dcm")
    assert np.array_equal(read_with_highdicom(path, geometry, {1: 1, 2: 3}), labels)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("degrees", [0.0, 23.0])
def test_structure_set_fills_to_the_mask(tmp_path: Path, plane: str, degrees: float) -> None:
    record, geometry = write_series(tmp_path / "in", affine_of(plane, (-1, 1, 1), degrees), SHAPE)
    labels = blobs(SHAPE)
    path = outputs.write("rtstruct", labels, geometry, record, FakeBundle(), tmp_path / "rt.dcm")
    scheme, rules = LabelScheme(dict(FakeBundle().labels)), ReadingRules(missing_slices="empty")
    found = read_label(path, scheme=scheme, rules=rules, image=ImageGrid(geometry))
    assert np.array_equal(found.array, labels)


@pytest.mark.parametrize("kind", outputs.KINDS)
def test_sheared_grid_of_a_gantry_tilt(tmp_path: Path, kind: str) -> None:
    affine = affine_of("axial", (1, 1, 1), 0.0)
    affine[1, 2] = SPACING_MM[2] * np.tan(np.radians(15))
    record, geometry = write_series(tmp_path / "in", affine, SHAPE)
    assert geometry.is_sheared
    assert outputs.write(kind, blobs(SHAPE), geometry, record, FakeBundle(), tmp_path / "o.dcm").is_file()


def _dcmqi() -> str | None:
    beside = Path(sys.executable).with_name("segimage2itkimage")
    return str(beside) if beside.is_file() else shutil.which("segimage2itkimage")


@pytest.mark.skipif(_dcmqi() is None, reason="dcmqi is not installed (pip install dcmqi)")
@pytest.mark.parametrize("kind", ["AUTO", "BINARY", "LABELMAP"])
@pytest.mark.parametrize(("plane", "degrees"), [("axial", 0.0), ("sagittal", 23.0), ("coronal", 23.0)])
def test_dcmqi_reads_the_same(tmp_path: Path, plane: str, degrees: float, kind: str) -> None:
    record, geometry = write_series(tmp_path / "in", affine_of(plane, (1, -1, 1), degrees), SHAPE)
    labels = blobs(SHAPE)
    options = outputs.WriteOptions(segmentation_type=kind)  # type: ignore[arg-type]
    path = outputs.write("seg", labels, geometry, record, FakeBundle(), tmp_path / "seg.dcm", options=options)
    command = [str(_dcmqi()), "--inputDICOM", str(path), "--outputDirectory", str(tmp_path), "-t", "nii"]
    subprocess.run(command, check=True, capture_output=True)
    found = np.zeros(SHAPE, np.uint16)
    files = {1: {1: 1, 2: 3}} if kind == "LABELMAP" else {1: {1: 1}, 2: {1: 3, 2: 3}}
    for number, labels_of in files.items():
        image = nib.load(tmp_path / f"{number}.nii.gz")
        found += place(np.asanyarray(image.dataobj), image.affine, geometry, labels_of)
    assert np.array_equal(found, labels)
