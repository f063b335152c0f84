"""NIfTI: exact where the header is sound, refused with the right reason where it is not."""

from __future__ import annotations

import gzip
import math
import os
import struct
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import nibabel.eulerangles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medseg.errors import MedsegError, Refusal, UsageError
from medseg.ingest import inspect_image, read_volume, save_nifti
from medseg.resources import LIMIT_VARIABLE

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.asarray(nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1), dtype=np.float64) * [0.7, 0.8, 2.5]
OBLIQUE[:3, 3] = [31, -22, 100]
SHAPE = (7, 6, 5)


def values_of(dtype: Any = np.int16) -> NDArray[Any]:
    return np.arange(math.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def write(path: Path, change: Callable[[Any], None] | None = None, dtype: Any = np.int16, kind: Any = None) -> Path:
    """A file by nibabel with sform code 1, its header changed without any check."""
    image = (kind or nibabel.Nifti1Image)(values_of(dtype), OBLIQUE)
    image.set_sform(OBLIQUE, code=1)
    image.set_qform(OBLIQUE, code=0)
    image.header.set_xyzt_units("mm")
    raw = image.to_bytes()
    if change is not None:
        header = image.header_class(raw[: image.header.sizeof_hdr], endianness="<", check=False)
        change(header)
        raw = header.binaryblock + raw[image.header.sizeof_hdr :]
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def refusal_of(path: Path) -> str:
    with pytest.raises(Refusal) as caught:
        read_volume(path)
    return caught.value.code


# --- read exactly -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_values_type_and_affine_are_nibabels(tmp_path: Path, name: str, kind: Any, dtype: str) -> None:
    path = write(tmp_path / name, dtype=dtype, kind=kind)
    values, geometry, facts = read_volume(path)
    expected = nibabel.load(path)
    assert values.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(values, np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(geometry.affine, expected.affine, atol=1e-6)
    assert (facts["case_id"], facts["notes"]) == ("v", ())


@pytest.mark.parametrize("code", ["sform", "qform", "both"])
def test_the_coded_transform_is_used(tmp_path: Path, code: str) -> None:
    image = nibabel.Nifti1Image(values_of(), OBLIQUE)
    image.set_qform(OBLIQUE, code=int(code != "sform"))
    image.set_sform(OBLIQUE if code != "qform" else np.diag([9.0, 9, 9, 1]), code=int(code != "qform"))
    nibabel.save(image, tmp_path / "v.nii")
    _, geometry, _ = read_volume(tmp_path / "v.nii")
    np.testing.assert_allclose(geometry.affine, OBLIQUE, atol=1e-4)


@pytest.mark.parametrize("coded", ["qform", "both"])
def test_half_a_turn_is_not_tilted_by_rounding(tmp_path: Path, coded: str) -> None:
    affine = np.array([[-1.0, 0, 0, 127.6], [0, 0, 1, -133.5], [0, -1, 0, 134.5], [0, 0, 0, 1]])  # LIA
    image = nibabel.Nifti1Image(np.zeros((256, 256, 256), np.uint8), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=int(coded == "both"))
    nibabel.save(image, tmp_path / "v.nii")
    _, geometry, _ = read_volume(tmp_path / "v.nii")
    np.testing.assert_allclose(geometry.affine, affine, atol=1e-5)


def test_big_endian_becomes_native(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">f4")
    image = nibabel.Nifti1Image(values_of(np.float32), OBLIQUE, header)
    nibabel.save(image, tmp_path / "v.nii.gz")
    values, geometry, _ = read_volume(tmp_path / "v.nii.gz")
    assert values.dtype.isnative
    np.testing.assert_array_equal(values, values_of())
    np.testing.assert_allclose(geometry.affine, OBLIQUE, atol=1e-6)


def test_a_scale_slope_is_applied(tmp_path: Path) -> None:
    def scale(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = 0.5, -3

    values, *_ = read_volume(write(tmp_path / "v.nii", scale))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, values_of() * 0.5 - 3)


@pytest.mark.parametrize("slope", [0.0, 1.0, math.nan])
def test_no_scaling_keeps_integers(tmp_path: Path, slope: float) -> None:
    def scale(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = slope, math.nan if math.isnan(slope) else 0

    values, *_ = read_volume(write(tmp_path / "v.nii", scale))
    assert values.dtype == np.int16


@pytest.mark.parametrize("pair", [("v.hdr", "v.img"), ("v.hdr.gz", "v.img.gz")])
def test_pairs_of_files_are_one_volume(tmp_path: Path, pair: tuple[str, str]) -> None:
    image = nibabel.Nifti1Pair(values_of(), OBLIQUE)
    image.set_sform(OBLIQUE, code=1)
    nibabel.save(image, tmp_path / pair[1])
    for source in (tmp_path / pair[0], tmp_path / pair[1], tmp_path):
        values, geometry, _ = read_volume(source)
        np.testing.assert_array_equal(values, values_of())
        np.testing.assert_allclose(geometry.affine, OBLIQUE, atol=1e-6)
    assert len(inspect_image(tmp_path / pair[0]).files) == 2


def test_trailing_dimensions_of_one_are_dropped_and_noted(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values_of()[..., None, None], OBLIQUE)
    nibabel.save(image, tmp_path / "v.nii")
    values, _, facts = read_volume(tmp_path / "v.nii")
    assert values.shape == SHAPE
    assert any("trailing" in note for note in facts["notes"])


@pytest.mark.parametrize(("unit", "factor"), [(1, 1000.0), (3, 0.001)])
def test_other_units_become_mm_and_are_noted(tmp_path: Path, unit: int, factor: float) -> None:
    def rescale(header: Any) -> None:
        header["xyzt_units"] = unit
        for row in ("srow_x", "srow_y", "srow_z"):
            header[row] /= factor

    _, geometry, facts = read_volume(write(tmp_path / "v.nii", rescale))
    np.testing.assert_allclose(geometry.affine, OBLIQUE, rtol=1e-5, atol=1e-5)
    assert any("converted to mm" in note for note in facts["notes"])


def test_several_gzip_members_are_one_stream(tmp_path: Path) -> None:
    raw = write(tmp_path / "v.nii").read_bytes()
    path = tmp_path / "w.nii.gz"
    path.write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))
    np.testing.assert_array_equal(read_volume(path)[0], values_of())


def test_a_header_extension_is_skipped(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values_of(), OBLIQUE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"made up for a test"))
    nibabel.save(image, tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii.gz")[0], values_of())


def test_a_conformed_head_is_placed_by_its_qform_as_by_its_sform(tmp_path: Path) -> None:
    """A half-turn in single precision lacks 6e-8 of its length, which is no rotation of 0.03 degrees."""
    affine = np.array([[-1.0, 0, 0, 127.6], [0, 0, 1, -133.5], [0, -1, 0, 134.5], [0, 0, 0, 1]])
    path = tmp_path / "head.nii"
    save_nifti(np.zeros((256, 256, 256), np.uint8), affine, path)
    assert read_volume(path)[1].affine == pytest.approx(affine, abs=1e-4)
    image: Any = nibabel.load(path)
    image.set_sform(affine, code=0)
    nibabel.save(image, tmp_path / "qform.nii")
    assert read_volume(tmp_path / "qform.nii")[1].affine == pytest.approx(affine, abs=1e-4)


def test_qform_in_the_scanner_and_sform_in_a_template_are_two_frames(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(values_of(), OBLIQUE)
    moved = OBLIQUE.copy()
    moved[:3, 3] += [3, 4, 0]
    image.set_qform(OBLIQUE, code=1)
    image.set_sform(moved, code=4)
    nibabel.save(image, tmp_path / "v.nii")
    _, geometry, facts = read_volume(tmp_path / "v.nii")
    np.testing.assert_allclose(geometry.affine, moved, atol=1e-5)
    assert any("another frame, up to 5.0 mm away" in note for note in facts["notes"])


# --- refused ------------------------------------------------------------------------------------------------------


def _set(**fields: Any) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        for name, value in fields.items():
            header[name] = value

    return change


def _dim(*sizes: int) -> Callable[[Any], None]:
    return _set(dim=[*sizes, *([1] * (8 - len(sizes)))])


def _both_coded_apart(header: Any) -> None:
    header.set_qform(OBLIQUE, code=1)
    header["qoffset_x"] += 3


def _both_coded_mirrored(header: Any) -> None:
    header.set_qform(np.diag([-1.0, 1, 1, 1]) @ OBLIQUE, code=1)
    header["sform_code"] = 4


def _qform_only_negative(header: Any) -> None:
    header.set_qform(OBLIQUE, code=1)
    header["sform_code"], header["pixdim"][1] = 0, -0.7


def _quaternion_too_long(header: Any) -> None:
    header.set_qform(OBLIQUE, code=1)
    header["quatern_b"] = 1.5


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "both codes 0": (_set(sform_code=0), "no-geometry"),
    "code 77": (_set(sform_code=77), "no-geometry"),
    "qform and sform apart": (_both_coded_apart, "no-geometry"),
    "qform and sform mirrored": (_both_coded_mirrored, "no-geometry"),
    "negative pixdim under the qform": (_qform_only_negative, "singular-affine"),
    "quaternion longer than 1": (_quaternion_too_long, "singular-affine"),
    "singular sform": (_set(srow_z=[0, 0, 0, 5]), "singular-affine"),
    "NaN in the sform": (_set(srow_y=[math.nan, 1, 0, 5]), "singular-affine"),
    "NaN in the offset": (_set(srow_y=[0, 1, 0, math.nan]), "singular-affine"),
    "unit metres for millimetres": (_set(xyzt_units=1, srow_x=[40, 0, 0, 0]), "no-geometry"),
    "unknown unit": (_set(xyzt_units=5), "unreadable"),
    "2D": (_dim(2, 7, 6), "not-3d"),
    "4D": (_dim(4, 7, 6, 1, 5), "not-3d"),
    "no dimensions": (_dim(0), "unreadable"),
    "eight dimensions": (_set(dim=[8, 7, 6, 5, 1, 1, 1, 1]), "unreadable"),
    "a negative size": (_dim(3, 7, -6, 5), "unreadable"),
    "more slices than data": (_dim(3, 7, 6, 6), "truncated"),
    "absurd sizes": (_dim(3, 32767, 32767, 32767), "too-large"),
    "RGB": (_set(datatype=128, bitpix=24), "colour"),
    "complex": (_set(datatype=32, bitpix=64), "undecodable"),
    "unknown type": (_set(datatype=3), "undecodable"),
    "type and bits disagree": (_set(bitpix=8), "unreadable"),
    "wrong magic": (_set(magic=b"x+1"), "unreadable"),
    "Analyze": (_set(magic=b""), "unreadable"),
    "magic of a pair": (_set(magic=b"ni1"), "unreadable"),
    "vox_offset 0": (_set(vox_offset=0), "unreadable"),
    "vox_offset beyond the file": (_set(vox_offset=1e6), "truncated"),
    "vox_offset NaN": (_set(vox_offset=math.nan), "unreadable"),
    "slope infinite": (_set(scl_slope=math.inf), "non-finite"),
}


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_header_that_cannot_be_trusted_is_refused(
    tmp_path: Path, name: str, change: Callable[[Any], None], reason: str
) -> None:
    assert refusal_of(write(tmp_path / name, change)) == reason


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_a_header_that_describes_less_than_the_file_holds_is_refused(tmp_path: Path, name: str) -> None:
    image = nibabel.Nifti1Image(np.zeros((20, 20, 20), np.int16), OBLIQUE)
    nibabel.save(image, tmp_path / "large.nii")
    raw = bytearray((tmp_path / "large.nii").read_bytes())
    raw[46:48] = struct.pack("<h", 12)  # dim[3]
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert refusal_of(path) == "unreadable"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float, dtype: Any) -> None:
    values = values_of(dtype)
    values[3, 2, 1] = bad
    nibabel.save(nibabel.Nifti1Image(values, OBLIQUE), tmp_path / "v.nii.gz")
    assert refusal_of(tmp_path / "v.nii.gz") == "non-finite"


def test_scaled_values_that_overflow_are_refused(tmp_path: Path) -> None:
    assert refusal_of(write(tmp_path / "v.nii", _set(scl_slope=3e38, scl_inter=0))) == "non-finite"


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, keep: float) -> None:
    path = write(tmp_path / name, dtype=np.float64)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    assert refusal_of(path) == "truncated"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_gzip_stream_never_gives_other_values(data: st.DataObject) -> None:
    values = np.random.default_rng(0).integers(0, 999, SHAPE, np.int16)
    packed = bytearray(gzip.compress(nibabel.Nifti1Image(values, OBLIQUE).to_bytes(), mtime=0))
    place = data.draw(st.integers(10, len(packed) - 1))
    packed[place] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.nii.gz"
        path.write_bytes(packed)
        try:
            found, geometry, _ = read_volume(path)
        except Refusal:
            return
    # A few bits of a deflate stream mean nothing (padding, unused codes): what is accepted must be the original.
    assert np.array_equal(found, values)
    assert np.allclose(geometry.affine, OBLIQUE, atol=1e-5)


def test_a_gzip_bomb_is_refused_without_being_unpacked(tmp_path: Path) -> None:
    raw = write(tmp_path / "v.nii").read_bytes()
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(raw + bytes(64 * 1024 * 1024)))
    assert bomb.stat().st_size < 1024 * 1024
    tracemalloc.start()
    try:
        assert refusal_of(bomb) == "unreadable"
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_a_volume_of_many_decompressed_parts_is_joined_exactly(tmp_path: Path, dtype: type[np.generic]) -> None:
    """Parts of the decompressed stream end at any byte, here inside elements; several members count as one stream."""
    values = np.random.default_rng(0).integers(0, 200, (128, 120, 100)).astype(dtype)
    raw = nibabel.Nifti1Image(values, OBLIQUE).to_bytes()
    cut = 700_001
    path = tmp_path / "v.nii.gz"
    path.write_bytes(gzip.compress(raw[:cut], 1) + gzip.compress(raw[cut:], 1))
    np.testing.assert_array_equal(read_volume(path)[0], values)


def test_the_size_limit_is_stated_and_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "v.nii")
    monkeypatch.setenv(LIMIT_VARIABLE, "0.0000001")
    with pytest.raises(Refusal, match=LIMIT_VARIABLE) as caught:
        read_volume(path)
    assert caught.value.code == "too-large"
    monkeypatch.setenv(LIMIT_VARIABLE, "many")
    with pytest.raises(UsageError, match="not a number"):
        read_volume(path)


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.nii.gz")
    assert refusal_of(tmp_path / "v.nii.gz") == "unreadable"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_flipped_header_bytes_are_refused_or_give_a_sound_grid(data: st.DataObject) -> None:
    image = nibabel.Nifti1Image(values_of(np.float32), OBLIQUE)
    raw = bytearray(image.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, 351))] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.nii"
        path.write_bytes(raw)
        try:
            values, geometry, _ = read_volume(path)
        except MedsegError:
            return
    assert values.shape == geometry.shape
    assert np.isfinite(values).all()
    assert np.isfinite(geometry.affine).all()


# --- records ------------------------------------------------------------------------------------------------------


def test_the_record_of_a_file_reads_its_header_only(tmp_path: Path) -> None:
    record = inspect_image(write(tmp_path / "case 7.nii.gz"))
    assert (record.case_id, record.kind, record.usable, record.shape) == ("case 7", "nifti", True, SHAPE)
    assert record.affine is not None
    np.testing.assert_allclose(record.affine, OBLIQUE, atol=1e-6)
    refused = inspect_image(write(tmp_path / "bad.nii", _set(sform_code=0)))
    assert (refused.usable, refused.reason, refused.shape) == (False, "no-geometry", None)
    values, *_ = read_volume(record)
    np.testing.assert_array_equal(values, values_of())


# --- write --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("dtype", [bool, "u1", "i2", "u2", "i4", "i8", "f2", "f4", "f8", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str, dtype: Any, order: Any) -> None:
    values = np.asarray(values_of(np.int16) % 2 if dtype is bool else values_of(np.int16), order=order).astype(dtype)
    save_nifti(values, OBLIQUE, tmp_path / name)
    again, geometry, facts = read_volume(tmp_path / name)
    np.testing.assert_array_equal(again, values)
    np.testing.assert_allclose(geometry.affine, OBLIQUE, atol=1e-5)
    assert facts["notes"] == ()
    other = nibabel.load(tmp_path / name)
    np.testing.assert_array_equal(np.asanyarray(other.dataobj), values)
    np.testing.assert_allclose(other.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(other.get_qform(), OBLIQUE, atol=1e-4)


def test_a_sheared_affine_survives(tmp_path: Path) -> None:
    sheared = np.diag([0.5, 0.5, 5.0, 1.0])
    sheared[1, 2] = 1.3
    save_nifti(values_of(), sheared, tmp_path / "v.nii.gz")
    _, geometry, _ = read_volume(tmp_path / "v.nii.gz")
    np.testing.assert_allclose(geometry.affine, sheared, atol=1e-6)


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    save_nifti(values_of(), OBLIQUE, tmp_path / "one.nii.gz")
    save_nifti(values_of(), OBLIQUE, tmp_path / "other.nii.gz")
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "other.nii.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.nii.gz"
    save_nifti(values_of(), OBLIQUE, path)
    before = path.read_bytes()

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medseg.ingest.nifti._write", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_nifti(values_of(), OBLIQUE, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["v.nii.gz"]


@pytest.mark.parametrize(
    ("values", "affine", "error"),
    [
        (np.full(SHAPE, np.nan), OBLIQUE, Refusal),
        (np.zeros((3, 3)), OBLIQUE, Refusal),
        (np.zeros(SHAPE), np.zeros((4, 4)), Refusal),
        (np.zeros(SHAPE, complex), OBLIQUE, UsageError),
        (np.zeros((1, 1, 40000)), OBLIQUE, UsageError),
    ],
)
def test_what_no_reader_should_be_given_is_not_written(tmp_path: Path, values: Any, affine: Any, error: Any) -> None:
    with pytest.raises(error):
        save_nifti(values, affine, tmp_path / "v.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.nii"):
        save_nifti(values_of(), OBLIQUE, tmp_path / "v.mha")
