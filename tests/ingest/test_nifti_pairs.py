"""NIfTI in two files: found whatever the case of their names, one record each, and a missing half is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import Refusal
from medseg.ingest import inspect_image, read_volume, scan
from medseg.manifests.items import image_files
from medseg.transforms import LoadVolumed

VALUES = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
AFFINE = np.diag([-0.7, 0.8, 2.5, 1.0])
APPLE_DOUBLE = bytes.fromhex("0005160700020000") + bytes(4088)


def pair(folder: Path, header: str, data: str) -> None:
    made = nib.Nifti1Pair(VALUES, AFFINE)
    made.set_sform(AFFINE, 1)
    nib.save(made, folder / "made.img")
    for old, new in (("made.hdr", header), ("made.img", data)):
        content = (folder / old).read_bytes()
        (folder / old).unlink()
        (folder / new).write_bytes(gzip.compress(content) if new.lower().endswith(".gz") else content)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ("t1.hdr", "t1.img"),
        ("T1.HDR", "T1.IMG"),
        ("T1.hdr", "T1.IMG"),
        ("t1.Hdr", "t1.Img"),
        ("T1.HDR.GZ", "T1.IMG.GZ"),
        ("T1.HDR", "T1.IMG.GZ"),
        ("t1.hdr.gz", "t1.img"),
    ],
)
def test_pairs_in_any_letters_are_one_volume(tmp_path: Path, header: str, data: str) -> None:
    pair(tmp_path, header, data)
    (record,) = scan(tmp_path)
    assert record.usable, record.message
    assert record.files == (str(tmp_path / header), str(tmp_path / data))
    assert [path.name for path in image_files(tmp_path)] == [header]
    for source in (tmp_path, tmp_path / header, tmp_path / data, record):
        values, geometry, _ = read_volume(source)
        np.testing.assert_array_equal(values, VALUES)
        np.testing.assert_allclose(geometry.affine, AFFINE, atol=1e-6)
    assert [found.files for found in scan(tmp_path / data)] == [record.files]


@pytest.mark.parametrize(("half", "other"), [("X.HDR", "X.IMG"), ("x.img", "x.hdr"), ("X.Img.gz", "X.hdr.gz")])
def test_a_missing_half_costs_one_record_that_names_it(tmp_path: Path, half: str, other: str) -> None:
    (tmp_path / half).write_bytes(bytes(348))
    pair(tmp_path, "t1.hdr", "t1.img")
    lonely, whole = sorted(scan(tmp_path), key=lambda record: record.usable)
    assert (lonely.reason, lonely.files) == ("unreadable", (str(tmp_path / half),))
    assert half in lonely.message
    assert other in lonely.message
    assert whole.usable
    with pytest.raises(Refusal, match=other):
        read_volume(tmp_path / half)
    assert len(image_files(tmp_path)) == 2  # an orphan does not vanish from a manifest


@pytest.mark.parametrize(
    ("place", "value", "code"),
    [
        (112, np.float32("nan"), "non-finite"),
        (112, np.float32("inf"), "non-finite"),
        (72, np.int16(0), "unreadable"),
    ],
)
def test_headers_that_stay_refused_are_named_by_the_index(
    tmp_path: Path, place: int, value: np.generic, code: str
) -> None:
    """A slope (scl_slope) that is no number, and bitpix 0."""
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.set_sform(AFFINE, 1)
    nib.save(image, tmp_path / "t1.nii")
    raw = bytearray((tmp_path / "t1.nii").read_bytes())
    raw[116:120] = np.float32(0).tobytes()  # scl_inter
    raw[place : place + value.nbytes] = value.tobytes()
    (tmp_path / "t1.nii").write_bytes(raw)
    (record,) = scan(tmp_path)
    assert (record.usable, record.reason, record.source) == (False, code, str(tmp_path / "t1.nii"))
    assert record.message == inspect_image(tmp_path / "t1.nii").message


def test_a_lone_pair_in_a_folder_loads(tmp_path: Path) -> None:
    pair(tmp_path, "T1.HDR", "T1.IMG")
    assert LoadVolumed(keys="image")({"image": str(tmp_path)})["image"].shape == VALUES.shape
