"""Pixel values: every lossless syntax decodes to the same pixels, odd bit layouts to the right values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medseg.errors import Refusal
from medseg.ingest import read_volume
from medseg.ingest.dicom_header import read_header
from medseg.ingest.pixels import read_slices, value_type
from tests.ingest.synthetic import (
    FIRST_MM,
    encoded,
    enhanced,
    enlarge,
    largest_error_mm,
    make_series,
    save,
    set_pixels,
    slice_at,
)

COMPRESSED = [RLELossless, JPEG2000Lossless, JPEGLSLossless]


@pytest.mark.parametrize(
    "syntax", [*COMPRESSED, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_every_syntax_gives_the_same_volume(tmp_path: Path, syntax: Any) -> None:
    series = make_series((0.0, 2.5, 5.0), change=enlarge)
    truth = series.truth()
    for item in series.slices:
        if syntax in COMPRESSED:
            item.compress(syntax, generate_instance_uid=False)
        else:
            if syntax == ExplicitVRBigEndian:
                item.PixelData = item.pixel_array.byteswap().tobytes()
            item.file_meta.TransferSyntaxUID = syntax
    values, geometry, facts = read_volume(series.write(tmp_path))
    assert largest_error_mm(values, geometry.affine, truth) < 1e-6
    assert facts["transfer_syntax"] == syntax


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_compressed_frames_are_decoded_one_by_one(tmp_path: Path, syntax: Any) -> None:
    series = make_series(change=enlarge)
    item = enhanced(series, order=(3, 0, 7, 5, 1, 6, 2, 4))
    item.compress(syntax, generate_instance_uid=False)
    values, geometry, _ = read_volume(save(item, tmp_path / "enhanced.dcm"))
    assert largest_error_mm(values, geometry.affine, series.truth()) < 1e-6


def test_real_slices_in_nine_syntaxes_have_the_same_pixels(real_data: Path) -> None:
    folder = real_data / "dcm_qa_ts"
    reference = np.asanyarray(
        nibabel.load(folder / "Ref" / "1.nii").dataobj
    )  # dcm2niix's, tiles taken apart, rows flipped
    for file in sorted((folder / "In").glob("*.dcm")):
        header = read_header(file)
        assert header is not None
        mosaic = read_slices([header])[..., 0]
        tiles = mosaic.reshape(6, 64, 6, 64).transpose(1, 3, 2, 0).reshape(64, 64, 36)[..., :35]
        np.testing.assert_array_equal(np.sort(tiles.ravel()), np.sort(reference.ravel()), err_msg=file.name)
        assert any(np.array_equal(tiles[:, ::-1], other) for other in (reference, reference[:, :, ::-1])), file.name


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_the_stored_ones_are_no_part_of_the_value(tmp_path: Path, signed: bool) -> None:
    """An overlay in the unused bits, or signs that were not extended, change no value."""
    true = encoded(0).astype(np.int16) - (60 if signed else 0)
    word = (true.astype(np.uint16) & 0x0FFF) | np.uint16(0 if signed else 0x4000)
    item = slice_at(FIRST_MM, 0)
    set_pixels(item, word.view(np.int16) if signed else word, bits_stored=12)
    header = read_header(save(item, tmp_path / "a.dcm"))
    assert header is not None
    np.testing.assert_array_equal(read_slices([header])[..., 0].T, true)


@pytest.mark.parametrize(
    ("bits", "signed", "rescale", "expected"),
    [
        (12, False, (1, -1024), "int16"),
        (16, False, (1, 0), "uint16"),
        (16, True, (1, 0), "int16"),
        (16, False, (1, -1024), "int32"),
        (8, False, (1, 0), "uint8"),
        (12, False, (1, 0), "int16"),
        (12, False, (0.5, 0), "float32"),
        (12, False, (1, 0.5), "float32"),
    ],
)
def test_the_type_is_the_smallest_exact_one(
    tmp_path: Path, bits: int, signed: bool, rescale: tuple[float, float], expected: str
) -> None:
    kind = np.int16 if signed else np.uint8 if bits == 8 else np.uint16
    item = slice_at(FIRST_MM, 0)
    set_pixels(item, encoded(0).astype(kind), bits_stored=bits)
    item.RescaleSlope, item.RescaleIntercept = (str(v) for v in rescale)
    header = read_header(save(item, tmp_path / "a.dcm"))
    assert header is not None
    assert value_type([header]) == expected
    exact = encoded(0).astype(float) * rescale[0] + rescale[1]
    np.testing.assert_array_equal(read_slices([header])[..., 0].T, exact)
    np.testing.assert_array_equal(read_slices([header], np.float64)[..., 0].T, exact)


def test_damaged_compressed_data_is_undecodable(tmp_path: Path) -> None:
    series = make_series((0.0, 2.5, 5.0), change=enlarge)
    for item in series.slices:
        item.compress(JPEG2000Lossless, generate_instance_uid=False)
    folder = series.write(tmp_path)
    victim = folder / "image-001.dcm"
    raw = bytearray(victim.read_bytes())
    raw[-120:-8] = bytes(112)
    start = raw.index(b"\xff\x4f\xff\x51")
    raw[start : start + 60] = bytes(60)
    victim.write_bytes(raw)
    with pytest.raises(Refusal) as caught:
        read_volume(folder)
    assert caught.value.code == "undecodable"


def test_a_large_frame_in_a_few_compressed_bytes_is_refused_unread(tmp_path: Path) -> None:
    """A small file whose header promises gigabytes must not reach a decoder, which would allocate them."""

    def lie(item: Dataset, number: int) -> None:
        enlarge(item, number)
        item.compress(JPEG2000Lossless, generate_instance_uid=False)
        item.Rows, item.Columns = 20_000, 20_000

    with pytest.raises(Refusal) as caught:
        read_volume(make_series((0.0, 2.5, 5.0), change=lie).write(tmp_path))
    assert caught.value.code in ("truncated", "too-large")


def test_a_deflate_bomb_is_refused_by_what_its_header_declares(tmp_path: Path) -> None:
    def bomb(item: Dataset, _: int) -> None:
        item.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        item.PixelData = bytes(40_000_000)

    with pytest.raises(Refusal, match="40000000 bytes where"):
        read_volume(make_series((0.0, 2.5, 5.0), change=bomb).write(tmp_path))
