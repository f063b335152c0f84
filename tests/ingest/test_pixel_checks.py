"""The description of the pixels must agree with itself and with the pixel data, or nobody knows what a value is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medseg.errors import Refusal
from medseg.ingest import read_volume
from tests.ingest.synthetic import COLUMNS, PIXELS, ROWS, encoded, enhanced, enlarge, make_series, save, set_pixels
from tests.ingest.verdicts import USABLE, pixels_of, values_of, verdict

# --- transfer syntaxes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uid", ["1.2.840.99999.1.2.1", "1.2.840.113619.5.2", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.100"]
)
def test_pixels_in_a_syntax_that_nobody_knows_are_refused(tmp_path: Path, uid: str) -> None:
    for path in make_series().write(tmp_path).iterdir():
        data = path.read_bytes()
        old = b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"
        new = uid.encode() + b"\0" * (len(uid) % 2)
        at = data.index(b"\x02\0\0\0UL") + 8
        length = int.from_bytes(data[at : at + 4], "little") + len(new) - 20
        data = data[:at] + length.to_bytes(4, "little") + data[at + 4 :]
        path.write_bytes(data.replace(old, old[:6] + len(new).to_bytes(2, "little") + new))
    code, message = verdict(tmp_path)
    assert code == "undecodable"
    assert uid in message


def test_fragments_under_an_uncompressed_syntax_are_refused(tmp_path: Path) -> None:
    for item in (series := make_series((0, 2.5, 5), change=enlarge)).slices:
        item.compress(RLELossless, generate_instance_uid=False)
    for path in series.write(tmp_path).iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0"))
    code, message = verdict(tmp_path)
    assert code == "undecodable"
    assert "compressed fragments" in message


# --- lengths ------------------------------------------------------------------------------------------------------


def _eight_bits(item: Dataset, _: int) -> None:
    item.BitsAllocated, item.BitsStored, item.HighBit = 8, 8, 7


def _half_of_the_rows(item: Dataset, _: int) -> None:
    item.Rows = ROWS // 2


def _a_row_less(item: Dataset, _: int) -> None:
    item.Rows = ROWS - 1


def _a_column_less(item: Dataset, _: int) -> None:
    item.Columns = COLUMNS - 1


def _three_samples(item: Dataset, _: int) -> None:
    item.PixelData = item.PixelData * 3


def _two_frames(item: Dataset, _: int) -> None:
    item.PixelData = item.PixelData + item.PixelData[::-1]


def _zeros_as_long(item: Dataset, _: int) -> None:
    item.PixelData = item.PixelData + bytes(2 * PIXELS)


def _a_row_more(item: Dataset, _: int) -> None:
    item.Rows = ROWS + 1


def _sixteen_of_eight(item: Dataset, number: int) -> None:
    item.PixelData = encoded(number).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_eight_bits, "unreadable"),
        (_half_of_the_rows, "unreadable"),
        (_a_row_less, "unreadable"),
        (_a_column_less, "unreadable"),
        (_three_samples, "unreadable"),
        (_two_frames, "unreadable"),
        (_zeros_as_long, "unreadable"),
        (_a_row_more, "truncated"),
        (_sixteen_of_eight, "truncated"),
    ],
)
def test_pixel_data_of_another_length_are_refused(
    tmp_path: Path, change: Callable[[Dataset, int], None], code: str
) -> None:
    assert verdict(make_series(change=change).write(tmp_path))[0] == code


@pytest.mark.parametrize("filling", [b"\0", bytes(512), b" " * 100, b"\xff" * 2048])
def test_a_filling_behind_the_pixels_is_no_contradiction(tmp_path: Path, filling: bytes) -> None:
    series = make_series()
    for item in series.slices:
        item.PixelData += filling + b"\0" * (len(filling) % 2)
    assert verdict(series.write(tmp_path))[0] == USABLE
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series))


def test_pixels_of_an_odd_number_of_bytes_are_made_even(tmp_path: Path) -> None:
    def odd(item: Dataset, number: int) -> None:
        set_pixels(item, np.full((9, 11), number, np.uint8))
        item.PixelData += b"\0"

    assert verdict(make_series(change=odd).write(tmp_path))[0] == USABLE


def test_frames_beyond_those_declared_are_refused(tmp_path: Path) -> None:
    item = enhanced(make_series())
    item.PixelData += item.PixelData[: 2 * PIXELS]
    save(item, tmp_path / "enhanced.dcm")
    assert verdict(tmp_path)[0] == "unreadable"


# --- bits ---------------------------------------------------------------------------------------------------------


def _no_sign(item: Dataset) -> None:
    del item.PixelRepresentation


def _odd_sign(item: Dataset) -> None:
    item.PixelRepresentation = 2


def _no_bits_stored(item: Dataset) -> None:
    del item.BitsStored


def _more_bits_than_allocated(item: Dataset) -> None:
    item.BitsStored, item.HighBit = 17, 16


def _twelve_bits_allocated(item: Dataset) -> None:
    item.BitsAllocated, item.BitsStored, item.HighBit = 12, 12, 11
    item.PixelData = item.PixelData[: len(item.PixelData) * 3 // 4]


@pytest.mark.parametrize(
    "spoil", [_no_sign, _odd_sign, _no_bits_stored, _more_bits_than_allocated, _twelve_bits_allocated]
)
@pytest.mark.parametrize("multiframe", [False, True], ids=["classic", "multi-frame"])
def test_bits_that_mean_no_value_are_refused(
    tmp_path: Path, spoil: Callable[[Dataset], None], multiframe: bool
) -> None:
    series = make_series()
    if multiframe:
        item = enhanced(series)
        spoil(item)
        save(item, tmp_path / "enhanced.dcm")
    else:
        for item in series.slices:
            spoil(item)
        series.write(tmp_path)
    assert verdict(tmp_path)[0] == "undecodable"


@pytest.mark.parametrize("compressed", [False, True], ids=["native", "JPEG-LS"])
@pytest.mark.parametrize(("padding", "limit"), [(63536, None), (0x8000, None), (63536, 63540)])
def test_padding_that_does_not_fit_into_the_stored_bits_is_outside_the_field_of_view(
    tmp_path: Path, padding: int, limit: int | None, compressed: bool
) -> None:
    def padded(item: Dataset, number: int) -> None:
        pixels = encoded(number * 12, 36, 40) % 4096
        pixels[0, :3] = padding if limit is None else limit
        set_pixels(item, pixels)
        item.BitsStored, item.HighBit = (16, 15) if compressed else (12, 11)
        item.RescaleSlope, item.RescaleIntercept = "1", "-1024"
        item.add_new(0x00280120, "US", padding)
        if limit is not None:
            item.add_new(0x00280121, "US", limit)
        if compressed:
            item.compress(JPEGLSLossless, generate_instance_uid=False)
            item.BitsStored, item.HighBit = 12, 11

    found, notes = verdict(make_series((0, 2.5, 5), change=padded).write(tmp_path))
    assert found == USABLE
    assert f"padding value {padding} does not fit into 12 stored bits" in notes
    values = values_of(tmp_path)
    assert (values[:, 0, :3] == -1024).all()
    expected = np.stack([encoded(number * 12, 36, 40) % 4096 for number in range(3)]).astype(int) - 1024
    np.testing.assert_array_equal(values[:, 1:], expected[:, 1:])


# --- encapsulation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_whole_code_streams_are_read_without_the_last_delimiter(tmp_path: Path, syntax: str) -> None:
    series = make_series((0, 2.5, 5), change=enlarge)
    for item in series.slices:
        item.compress(syntax, generate_instance_uid=False)
    for path in series.write(tmp_path).iterdir():
        assert path.read_bytes()[-8:-4] == b"\xfe\xff\xdd\xe0"
        path.write_bytes(path.read_bytes()[:-8])
    expected = np.stack([encoded(number * 12, 36, 40) for number in range(3)])
    np.testing.assert_array_equal(values_of(tmp_path), expected)


def test_frames_are_read_without_the_last_delimiter(tmp_path: Path) -> None:
    item = enhanced(make_series(change=enlarge))
    item.compress(RLELossless, generate_instance_uid=False)
    path = save(item, tmp_path / "enhanced.dcm")
    path.write_bytes(path.read_bytes()[:-8])
    expected = np.stack([encoded(number * 12, 36, 40) for number in range(8)])
    np.testing.assert_array_equal(values_of(tmp_path), expected)


@pytest.mark.parametrize("cut", [10, 200])
def test_a_code_stream_that_is_cut_off_is_truncated(tmp_path: Path, cut: int) -> None:
    series = make_series((0, 2.5, 5), change=enlarge)
    for item in series.slices:
        item.compress(JPEG2000Lossless, generate_instance_uid=False)
    path = series.write(tmp_path) / "image-001.dcm"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(Refusal) as caught:
        read_volume(tmp_path)
    assert caught.value.code == "truncated"


def test_the_last_delimiter_may_be_cut_itself(tmp_path: Path) -> None:
    series = make_series((0, 2.5, 5), change=enlarge)
    for item in series.slices:
        item.compress(RLELossless, generate_instance_uid=False)
    for path in series.write(tmp_path).iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    assert values_of(tmp_path).shape == (3, 36, 40)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
@pytest.mark.parametrize("declared", [4, 9])
def test_more_or_fewer_compressed_images_than_frames_are_refused(tmp_path: Path, syntax: str, declared: int) -> None:
    item = enhanced(make_series(change=enlarge))
    item.compress(syntax, generate_instance_uid=False)
    item.NumberOfFrames = declared
    groups = item.PerFrameFunctionalGroupsSequence
    item.PerFrameFunctionalGroupsSequence = [*groups, *_one_more(groups)][:declared]
    save(item, tmp_path / "enhanced.dcm")
    with pytest.raises(Refusal, match="8 compressed images where"):
        read_volume(tmp_path)


def _one_more(groups: Sequence[Dataset]) -> list[Dataset]:
    extra = copy.deepcopy(groups[-1])
    x, y, z = extra.PlanePositionSequence[0].ImagePositionPatient
    extra.PlanePositionSequence[0].ImagePositionPatient = [x, y, z + 2.5]
    return [extra]


def _write_big_endian(folder: Path, vr: str, shape: tuple[int, int]) -> None:
    def big(item: Dataset, number: int) -> None:
        pixels = (encoded(number, *shape) % 251).astype(np.uint8)
        set_pixels(item, pixels)
        item.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        stored = np.frombuffer(pixels.tobytes() + b"\0" * (pixels.size % 2), np.uint8)
        item.PixelData = (stored.reshape(-1, 2)[:, ::-1] if vr == "OW" else stored).tobytes()
        item["PixelData"].VR = vr

    make_series((0, 2.5, 5), change=big).write(folder)


@pytest.mark.parametrize("vr", ["OB", "OW"])
@pytest.mark.parametrize("shape", [(10, 12), (9, 11)], ids=["even", "odd"])
def test_bytes_in_big_endian_words_are_in_their_order(tmp_path: Path, vr: str, shape: tuple[int, int]) -> None:
    _write_big_endian(tmp_path, vr, shape)
    expected = np.stack([encoded(number, *shape) % 251 for number in range(3)])
    np.testing.assert_array_equal(values_of(tmp_path), expected)


def test_big_endian_words_that_lack_their_last_byte_are_cut_off(tmp_path: Path) -> None:
    """Of an odd number of pixels the last one stands behind its padding."""
    _write_big_endian(tmp_path, "OW", (9, 11))
    last = max(path for path in tmp_path.rglob("*") if path.is_file())
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(Refusal) as refused:
        read_volume(tmp_path)
    assert refused.value.code == "truncated"
