"""Whether the description of the pixels agrees with itself and with the pixel data, before any is read.

Source: DICOM PS3.3 C.7.6.3 (Image Pixel module), PS3.5 section 8 and annex A (how long pixel data are).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from medseg.errors import Refusal
from medseg.ingest.dicom_elements import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, open_file
from medseg.resources import check_volume_size

if TYPE_CHECKING:
    from medseg.ingest.dicom_header import Header

CODECS: Final = {
    "1.2.840.10008.1.2.5": "pylibjpeg",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
    "1.2.840.10008.1.2.4.50": "gdcm",
    "1.2.840.10008.1.2.4.51": "gdcm",
    "1.2.840.10008.1.2.4.57": "gdcm",
    "1.2.840.10008.1.2.4.70": "gdcm",
}
"""Compressed transfer syntaxes that are decoded, and pydicom's plugin that decodes each."""

_NATIVE: Final = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
_INTEGER_PIXELS: Final = 0x7FE00010
_LONGEST_PADDING: Final = 64 * 1024


def check_pixels(header: Header) -> None:
    """Refuse what no reader may turn into a slice.

    Raises
    ------
    Refusal
        ``no-pixel-data``, ``undecodable``, ``colour``, ``mosaic``, ``no-geometry``, ``truncated`` or ``too-large``.
    """
    if header.pixel_tag != _INTEGER_PIXELS or not _has_sound_bits(header):
        found = f"{header.bits_stored} bits stored in {header.bits_allocated}"
        raise Refusal("undecodable", f"pixels have {found}, expected integers of 8, 16 or 32 bits")
    if header.samples_per_pixel != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise Refusal("colour", f"the images are in colour ({header.photometric}); give the original grey-scale series")
    if "MOSAIC" in header.image_type:
        raise Refusal(
            "mosaic", "Siemens mosaic: many slices tiled in one image; convert it first, for example by dcm2niix"
        )
    if min(header.grid) < 1:
        raise Refusal(
            "no-pixel-data", f"Rows and Columns are {header.rows} and {header.columns}; export the images again"
        )
    if header.number_of_frames > 1 and header.frame is None:
        raise Refusal("no-geometry", "several frames without per-frame positions; export an enhanced or classic series")
    _check_syntax(header)
    _check_length(header)


def _has_sound_bits(header: Header) -> bool:
    return header.bits_allocated in (8, 16, 32) and 0 < header.bits_stored <= header.bits_allocated


def _check_syntax(header: Header) -> None:
    """A syntax that is not known may have any order of bytes, as that of GE (1.2.840.113619.5.2) does."""
    syntax = header.transfer_syntax
    if syntax in CODECS:
        return
    if syntax not in _NATIVE:
        raise Refusal(
            "undecodable",
            f"the transfer syntax {syntax} is not one of those read here; convert the files to Explicit VR Little "
            "Endian, for example by dcmconv or gdcmconv",
        )
    if header.pixel_length is None:
        raise Refusal(
            "undecodable",
            f"the pixel data are in compressed fragments, but the transfer syntax {syntax} is uncompressed; export the "
            "files again",
        )


def _needed_bytes(header: Header) -> int:
    return (
        header.rows * header.columns * header.samples_per_pixel * header.number_of_frames * header.bits_allocated // 8
    )


def _bytes_there(header: Header) -> int:
    """Bytes of native pixel data, not more than the file has; of a deflated file as its data set declares."""
    declared = header.pixel_length or 0
    return declared if header.transfer_syntax == DEFLATED else min(declared, header.size - header.pixel_offset)


def _check_length(header: Header) -> None:
    check_volume_size((header.rows, header.columns, header.number_of_frames), header.bits_allocated // 8)
    if header.pixel_length is None:
        return
    there, needed = _bytes_there(header), _needed_bytes(header)
    if there < needed:
        raise Refusal(
            "truncated",
            f"{there} bytes of pixel data where {header.rows}×{header.columns}×{header.number_of_frames} pixels "
            f"need {needed}; copy the file again from its source",
        )


def excess_of(header: Header) -> str:
    """What contradicts the header in native pixel data that are longer than it says; empty if nothing does.

    One byte makes the length even (PS3.5 section 8.1.1). Older writers fill up to blocks of some hundred bytes with one
    byte; more, or bytes that differ, are pixels that the header does not know of: rows, frames, samples or bits.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    if header.pixel_length is None or not header.pixel_tag or not _has_sound_bits(header) or min(header.grid) < 1:
        return ""
    needed = _needed_bytes(header)
    excess = _bytes_there(header) - needed
    if excess <= 1 or (excess <= _LONGEST_PADDING and excess % needed and _is_filling(header, needed, excess)):
        return ""
    return (
        f"Pixel Data has {needed + excess} bytes where {header.rows}×{header.columns}×{header.number_of_frames} pixels "
        f"of {header.bits_allocated} bits need {needed}: the header contradicts its pixels; export the file again"
    )


def _is_filling(header: Header, needed: int, excess: int) -> bool:
    if header.transfer_syntax == DEFLATED:
        return True  # what lies behind the pixels is never inflated
    with open_file(header.path) as handle:
        handle.seek(header.pixel_offset + needed, os.SEEK_SET)
        return len(set(handle.read(excess) or b"")) <= 1
