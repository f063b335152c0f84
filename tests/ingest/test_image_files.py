"""MetaImage and NRRD: voxels through SimpleITK, geometry from the header, nothing filled in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from medseg.errors import Refusal
from medseg.ingest import case_id_of, inspect_image, read_volume, save_nifti

SHAPE = (7, 6, 5)
KINDS = {"v.mha": "metaimage", "v.nrrd": "nrrd"}


def image() -> SimpleITK.Image:
    made = SimpleITK.GetImageFromArray(np.arange(210, dtype=np.int16).reshape(5, 6, 7))
    made.SetSpacing((0.7, 0.8, 2.5))
    made.SetOrigin((-31, -22, 100))
    turn = np.radians(20)
    made.SetDirection((np.cos(turn), 0, np.sin(turn), 0, 1, 0, -np.sin(turn), 0, np.cos(turn)))
    return made


def write(path: Path, compressed: bool = False) -> Path:
    SimpleITK.WriteImage(image(), str(path), compressed)
    return path


def edit(path: Path, old: bytes, new: bytes) -> Path:
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))
    return path


def refusal_of(path: Path) -> str:
    with pytest.raises(Refusal) as caught:
        read_volume(path)
    return caught.value.code


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_values_and_affine_are_those_of_the_image(tmp_path: Path, name: str, compressed: bool) -> None:
    values, geometry, facts = read_volume(write(tmp_path / name, compressed))
    np.testing.assert_array_equal(values, SimpleITK.GetArrayFromImage(image()).transpose(2, 1, 0))
    for index in ((0, 0, 0), (6, 5, 4), (1, 2, 3)):
        expected = np.array(image().TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose(geometry.affine[:3, :3] @ index + geometry.affine[:3, 3], expected, atol=1e-9)
    assert facts["kind"] == KINDS[name]
    record = inspect_image(tmp_path / name)
    assert (record.usable, record.shape, record.kind) == (True, SHAPE, KINDS[name])


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("v.mha", b"TransformMatrix", b"Comment", "no-geometry"),
        ("v.mha", b"Offset", b"Remark", "no-geometry"),
        ("v.mha", b"ElementSpacing", b"Something", "no-geometry"),
        ("v.mha", b"DimSize = 7 6 5", b"DimSize = 7 6 9", "truncated"),
        ("v.mha", b"DimSize = 7 6 5", b"DimSize = 70000 70000 5", "too-large"),
        ("v.mha", b"DimSize = 7 6 5", b"DimSize = 7 30", "not-3d"),
        ("v.mha", b"DimSize = 7 6 5", b"DimSize = 7 -6 5", "unreadable"),
        ("v.mha", b"MET_SHORT", b"MET_OTHER", "undecodable"),
        ("v.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = /etc/passwd", "unreadable"),
        ("v.nrrd", b"space: left-posterior-superior", b"# no space", "no-geometry"),
        ("v.nrrd", b"space: left-posterior-superior", b"space: scanner-xyz", "no-geometry"),
        ("v.nrrd", b"space origin", b"#pace origin", "no-geometry"),
        ("v.nrrd", b"sizes: 7 6 5", b"sizes: 7 6 9", "truncated"),
        ("v.nrrd", b"sizes: 7 6 5", b"sizes: 7 30", "not-3d"),
        ("v.nrrd", b"type: short", b"type: block", "undecodable"),
        ("v.nrrd", b"NRRD0004", b"NRRX0004", "unreadable"),
    ],
)
def test_what_a_header_lacks_or_belies_is_refused(
    tmp_path: Path, name: str, old: bytes, new: bytes, reason: str
) -> None:
    assert refusal_of(edit(write(tmp_path / name), old, new)) == reason
    assert inspect_image(tmp_path / name).reason == reason


@pytest.mark.parametrize("name", KINDS)
def test_cut_and_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, compressed=True)
    raw = path.read_bytes()
    path.write_bytes(raw[:-40])
    assert refusal_of(path) in ("undecodable", "truncated")
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-10])
    assert refusal_of(path) == "truncated"


@pytest.mark.parametrize("name", KINDS)
def test_values_that_are_not_finite_are_refused(tmp_path: Path, name: str) -> None:
    made = SimpleITK.Cast(image(), SimpleITK.sitkFloat32)
    made[1, 2, 3] = float("nan")
    SimpleITK.WriteImage(made, str(tmp_path / name))
    assert refusal_of(tmp_path / name) == "non-finite"


@pytest.mark.parametrize("name", KINDS)
def test_names_that_are_not_utf8_are_read(tmp_path: Path, name: str) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff-" + name.encode()))
    write(tmp_path / name).rename(odd)
    np.testing.assert_array_equal(read_volume(odd)[0].shape, SHAPE)
    case_id_of(odd).encode("utf-8")


@pytest.mark.parametrize(
    ("name", "case_id"),
    [("a.nii.gz", "a"), ("a.b.nii", "a.b"), ("x/a.nrrd", "a"), ("a.MHA", "a"), ("a.img.gz", "a"), (".nii", ".nii")],
)
def test_the_case_id_is_the_name_without_its_extension(name: str, case_id: str) -> None:
    assert case_id_of(name) == case_id


def test_several_images_in_a_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "v.mha")
    assert read_volume(tmp_path)[1].shape == SHAPE
    write(tmp_path / "w.nrrd")
    assert refusal_of(tmp_path) == "several-volumes"


def test_a_nifti_file_is_scanned_and_read_without_what_reads_dicom(tmp_path: Path) -> None:
    save_nifti(np.zeros((3, 4, 5), np.uint8), np.eye(4), tmp_path / "a.nii.gz")
    code = (
        "import sys; from medseg.ingest import read_volume, scan; path = sys.argv[1]; read_volume(path); "
        "read_volume(*scan(path)); print([name for name in sys.modules if name.startswith('medseg.ingest') and "
        "any(part in name for part in ('dicom', 'stacks', 'pixels', 'nrrd'))])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.nii.gz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['medseg.ingest.dicom_elements']"
