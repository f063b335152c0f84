"""Pixel data of DICOM files: whether their description is believed, and the values in modality units.

Native bytes are read directly, compressed ones by pydicom with pylibjpeg-openjpeg (JPEG 2000, HTJ2K), pylibjpeg-rle,
pyjpegls (JPEG-LS) and GDCM (the other JPEGs). Unused bits above Bits Stored are cleared and signs extended; then the
slice's own rescale is applied. Source: PS3.3 C.7.6.3 (Image Pixel module), PS3.5 section 8 and annex A.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medseg.errors import Refusal
from medseg.ingest.dicom_elements import BIG_ENDIAN, DEFLATED, NATIVE, inflate, open_file
from medseg.ingest.dicom_header import Header
from medseg.resources import check_volume_size, max_volume_bytes, usable_cores

_JPEG: Final = "1.2.840.10008.1.2.4."
_RLE: Final = "1.2.840.10008.1.2.5"
_CODECS: Final = {
    **dict.fromkeys((_RLE, *(f"{_JPEG}{end}" for end in (90, 91, 201, 202, 203))), "pylibjpeg"),
    **dict.fromkeys((f"{_JPEG}{end}" for end in (80, 81)), "pyjpegls"),
    **dict.fromkeys((f"{_JPEG}{end}" for end in (50, 51, 57, 70)), "gdcm"),
}
"""Compressed transfer syntaxes that are decoded, and pydicom's plugin that decodes each."""

_INTEGER_PIXELS: Final = 0x7FE00010
LOSSY_SYNTAXES: Final = {
    f"{_JPEG}50": "JPEG baseline",
    f"{_JPEG}51": "JPEG extended",
    f"{_JPEG}81": "JPEG-LS near-lossless",
    f"{_JPEG}91": "JPEG 2000",
    f"{_JPEG}203": "HTJ2K",
}
_LARGE_FRAME_BYTES: Final = 64 * 1024 * 1024
_HIGHEST_RATIO: Final = 1000
_MOST_WORKERS: Final = 8
_NO_RESCALE: Final = (1.0, 0.0)
_ITEM: Final = b"\xfe\xff\x00\xe0"
_DELIMITER: Final = b"\xfe\xff\xdd\xe0"
_LENGTH: Final = struct.Struct("<I")
_STREAM_STARTS: Final = (b"\xff\xd8", b"\xff\x4f\xff\x51")
"""How a JPEG or JPEG-LS image begins, and a JPEG 2000 one."""


def check_pixels(header: Header) -> None:
    """Refuse what no reader may turn into a slice."""
    if header.pixel_tag != _INTEGER_PIXELS or not header.has_sound_bits:
        found = f"{header.bits_stored} bits stored in {header.bits_allocated}"
        raise Refusal("undecodable", f"pixels have {found}, expected integers of 8, 16 or 32 bits")
    if header.samples_per_pixel != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise Refusal("colour", f"the images are in colour ({header.photometric}); give the original grey-scale series")
    if "MOSAIC" in header.image_type:
        message = "Siemens mosaic: many slices tiled in one image; convert it first, for example by dcm2niix"
        raise Refusal("mosaic", message)
    if min(header.grid) < 1:
        message = f"Rows and Columns are {header.rows} and {header.columns}; export the images again"
        raise Refusal("no-pixel-data", message)
    if header.number_of_frames > 1 and header.frame is None:
        raise Refusal("no-geometry", "several frames without per-frame positions; export an enhanced or classic series")
    _check_syntax(header)
    _check_length(header)


def _check_syntax(header: Header) -> None:
    """A syntax that is not known may have any order of bytes, as that of GE (1.2.840.113619.5.2) does."""
    syntax = header.transfer_syntax
    if syntax in _CODECS:
        return
    if syntax not in NATIVE:
        raise Refusal(
            "undecodable",
            f"the transfer syntax {syntax} is not one of those read here; convert the files to Explicit VR Little "
            "Endian, for example by dcmconv or gdcmconv",
        )
    if header.pixel_length is None:
        message = f"compressed fragments where the transfer syntax {syntax} is uncompressed; export the files again"
        raise Refusal("undecodable", message)


def _check_length(header: Header) -> None:
    check_volume_size((header.rows, header.columns, header.number_of_frames), header.bits_allocated // 8)
    if header.pixel_length is None:
        return
    there, needed = header.available_bytes, header.needed_bytes
    if there < needed:
        raise Refusal(
            "truncated",
            f"{there} bytes of pixel data where {header.rows}×{header.columns}×{header.number_of_frames} pixels "
            f"need {needed}; copy the file again from its source",
        )


def value_type(headers: Sequence[Header]) -> np.dtype[Any]:
    """The smallest type that holds the values of all slices exactly: an integer type, or float32 after a rescale.

    Whole-number intercepts at slope 1, as in CT, keep integers; anything else becomes float32.
    """
    lows, highs = [], []
    for header in headers:
        slope, intercept = header.rescale or _NO_RESCALE
        if slope != 1 or intercept != int(intercept):
            return np.dtype(np.float32)
        low, high = header.stored_range
        lows.append(low + int(intercept))
        highs.append(high + int(intercept))
    low, high = min(lows), max(highs)
    for name in ("uint8", "int16", "uint16", "int32", "uint32"):
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            return np.dtype(name)
    return np.dtype(np.float32)


def read_slices(headers: Sequence[Header], dtype: DTypeLike | None = None) -> NDArray[Any]:
    """The values of sorted slices (or frames) of one grid, in modality units; by default of :func:`value_type`.

    The axes are (i, j, k): columns, rows, slices; memory is ordered slice by slice. Refused are ``truncated``,
    ``undecodable``, ``unreadable``, ``non-finite`` and ``too-large`` pixels.
    """
    rows, columns = headers[0].grid
    chosen = value_type(headers) if dtype is None else np.dtype(dtype)
    check_volume_size((columns, rows, len(headers)), chosen.itemsize)
    values = np.empty((len(headers), rows, columns), chosen)
    by_file: dict[str, list[int]] = defaultdict(list)
    for index, header in enumerate(headers):
        by_file[header.path].append(index)
    workers = min(_MOST_WORKERS, usable_cores(), len(by_file))
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda indices: _read_file(headers, indices, values), by_file.values()))  # raises what they raise
    return values.transpose(2, 1, 0)


def _read_file(headers: Sequence[Header], indices: list[int], values: NDArray[Any]) -> None:
    """Read the slices of one file into their places."""
    header = headers[indices[0]]
    try:
        if header.pixel_length is None:
            decoded = _decoded(header, [headers[i].frame or 0 for i in indices])
        else:
            decoded = [_native(headers[i]) for i in indices]
    except OSError as error:
        message = f"a slice cannot be read ({error.strerror}); check the disk and try again"
        raise Refusal("unreadable", message) from error
    for index, stored in zip(indices, decoded, strict=True):
        if stored.shape != header.grid:
            raise Refusal("undecodable", f"a decoded slice has shape {stored.shape}, its header says {header.grid}")
        _rescale(stored, headers[index].rescale or _NO_RESCALE, values[index])


def _stored_type(header: Header) -> np.dtype[Any]:
    order = ">" if header.transfer_syntax == BIG_ENDIAN else "<"
    return np.dtype(f"{order}{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def _native(header: Header) -> NDArray[Any]:
    """Stored values of an uncompressed slice."""
    kind = _stored_type(header)
    length = header.rows * header.columns * kind.itemsize
    offset = header.pixel_offset + (header.frame or 0) * length
    if header.transfer_syntax == DEFLATED:
        _check_plausible(header)
        buffer = bytearray(inflate(header.path, header.data_set_offset, offset + length)[offset:])
    elif header.transfer_syntax == BIG_ENDIAN and kind.itemsize == 1:
        buffer = _bytes_in_words(header, offset, length)
    else:
        buffer = bytearray(length)
        with open_file(header.path) as handle:
            handle.seek(offset)
            del buffer[handle.readinto(buffer) :]
    if len(buffer) < length:
        raise Refusal("truncated", f"a slice has {len(buffer)} bytes of pixel data, expected {length}; copy it again")
    stored = np.frombuffer(buffer, kind).reshape(header.grid)
    if not stored.dtype.isnative:
        stored = stored.astype(kind.newbyteorder("="))
    return _without_unused_bits(stored, header)


def _bytes_in_words(header: Header, offset: int, length: int) -> bytearray:
    """Pixels of 8 bits in a big-endian file: swapped in pairs if they are words (OW), as they are if bytes (OB).

    Source: PS3.5 section 8.1.1 and annex A.3. The value representation stands 8 bytes before the value.
    """
    first = (offset - header.pixel_offset) % 2
    with open_file(header.path) as handle:
        handle.seek(header.pixel_offset - 8)
        words = handle.read(2) == b"OW"
        handle.seek(offset - first)
        buffer = bytearray(handle.read(length + first + (length + first) % 2) or b"")
    if words:
        del buffer[len(buffer) // 2 * 2 :]
        buffer[::2], buffer[1::2] = buffer[1::2], buffer[::2]
    return buffer[first : first + length]


def _without_unused_bits(stored: NDArray[Any], header: Header) -> NDArray[Any]:
    unused = header.bits_allocated - header.bits_stored
    if not unused or (not header.signed and int(stored.max()) >> header.bits_stored == 0):
        return stored
    padding, (smallest, largest) = padding_outside(header), header.stored_range
    if padding is not None:
        padded = ((stored < smallest) | (stored > largest)) & (stored >= padding[0]) & (stored <= padding[1])
    np.left_shift(stored, unused, out=stored)
    np.right_shift(stored, unused, out=stored)
    if padding is not None:
        stored[padded] = smallest  # air in CT, nothing elsewhere
    return stored


def _decoded(header: Header, frames: Sequence[int]) -> list[NDArray[Any]]:
    """Stored values of compressed frames."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    _check_plausible(header)
    fragments = _fragments(header)
    same = ("rows", "columns", "samples_per_pixel", "bits_allocated", "bits_stored", "number_of_frames")
    described = {
        **{name: getattr(header, name) for name in same},
        "pixel_representation": int(header.signed),
        "photometric_interpretation": header.photometric or "MONOCHROME2",
        "pixel_keyword": "PixelData",
        "correct_unused_bits": False,
        "decoding_plugin": _CODECS[header.transfer_syntax],
    }
    try:
        decoder = get_decoder(UID(header.transfer_syntax))
        decoded = (decoder.as_array(fragments, index=i, raw=True, **described)[0] for i in frames)
        return [_without_unused_bits(stored, header) for stored in decoded]
    except (OSError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # Decoders raise many kinds for damaged data, one even a Rust panic that is no Exception; none gives pixels.
        raise Refusal(
            "undecodable",
            f"the compressed pixel data (transfer syntax {header.transfer_syntax}) cannot be decoded "
            f"({type(error).__name__}); copy the file again, or decompress it with another tool",
        ) from error


def _fragments(header: Header) -> bytes:
    """The items of the encapsulated pixel data, each whole, closed by a delimiter even where the file lacks it.

    Some writers leave out the last delimiter (PS3.5 annex A.4); the code streams are whole all the same.
    """
    with open_file(header.path) as handle:
        handle.seek(header.pixel_offset)
        found = handle.read() or b""
    end = streams = 0
    while found[end : end + 4] == _ITEM and end + 8 <= len(found):
        (length,) = _LENGTH.unpack_from(found, end + 4)
        # The first item is the offset table; each frame of RLE is one item, other frames begin with a marker of theirs.
        streams += end > 0 and (header.transfer_syntax == _RLE or found.startswith(_STREAM_STARTS, end + 8))
        end += 8 + length
    if end > len(found):
        raise Refusal("truncated", "the file ends inside its compressed pixel data; copy it again from its source")
    if not _DELIMITER.startswith(found[end : end + 4]):
        raise Refusal("undecodable", "the compressed pixel data are no sequence of fragments; copy the file again")
    if streams != header.number_of_frames:
        raise Refusal(
            "undecodable",
            f"{streams} compressed images where Number of Frames (0028,0008) is {header.number_of_frames}; export it",
        )
    return found[:end] + _DELIMITER + bytes(4)


def _check_plausible(header: Header) -> None:
    """Refuse a frame that would take much memory although next to nothing is compressed in it."""
    frame = header.rows * header.columns * header.bits_allocated // 8
    packed = header.size - header.pixel_offset
    if frame > _LARGE_FRAME_BYTES and packed * _HIGHEST_RATIO < frame * header.number_of_frames:
        message = f"{packed} bytes of compressed data for frames of {frame} bytes; copy the file again"
        raise Refusal("truncated", message)
    if header.size > max_volume_bytes():
        raise Refusal("too-large", f"the file has {header.size} bytes, the limit is {max_volume_bytes()}")


def _rescale(stored: NDArray[Any], rescale: tuple[float, float], out: NDArray[Any]) -> None:
    slope, intercept = rescale
    if rescale == _NO_RESCALE:
        out[...] = stored
        return
    small = stored.dtype.itemsize <= 2 and out.dtype.itemsize >= 2 and abs(intercept) < 1 << 15
    if slope == 1 and intercept == int(intercept) and small and out.dtype.kind in "if":
        # Whole numbers of less than 24 bits: exact in float32, and in integers, which wrap round and back again.
        np.add(stored, out.dtype.type(intercept), out=out, dtype=out.dtype, casting="unsafe")
        return
    values = stored * np.float64(slope) + intercept
    if max(values.max(), -values.min()) > np.finfo(np.float32).max:
        raise Refusal("non-finite", f"values overflow after the rescale (slope {slope}, intercept {intercept})")
    out[...] = values


def padding_outside(header: Header) -> tuple[int, int] | None:
    """First and last padding value of a slice, where they do not fit into its stored bits; ``None`` where they do.

    Some scanners store 12 bits and pad with -2000 in all 16: cut to 12 bits it would become a value in the middle of
    the range. PS3.3 C.7.5.1.1.2 (Pixel Padding Value) lets the value lie outside the range of the image.
    """
    if not header.padding or header.bits_stored >= header.bits_allocated:
        return None
    smallest, largest = header.stored_range
    low, high = min(header.padding), max(header.padding)
    return None if smallest <= low and high <= largest else (low, high)
