"""Rows of elements that were seen before: whatever came first, every file gives its own values."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.ingest.runs import Runs

WANTED = frozenset((0x00080008, 0x00080018, 0x00200013))
STOP = 0x7FE00008
PIXEL_BYTES = 512

elements = st.lists(
    st.tuples(st.sampled_from([0x00080005, 0x00080008, 0x00080018, 0x00200013, 0x00280010]), st.binary(max_size=6)),
    max_size=12,
)


def encoded(rows: list[tuple[int, bytes]], *, explicit: bool) -> bytes:
    """Elements as little-endian bytes, and behind them the pixel data."""
    parts = []
    for tag, value in rows:
        kind = b"LO" + struct.pack("<H", len(value)) if explicit else struct.pack("<I", len(value))
        parts.append(struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind + value)
    return b"".join(parts) + b"\xe0\x7f\x10\x00OW\0\0" + bytes(PIXEL_BYTES)


@pytest.mark.parametrize("explicit", [True, False])
@given(files=st.lists(elements, min_size=1, max_size=6))
def test_each_file_gives_its_own_values(files: list[list[tuple[int, bytes]]], explicit: bool) -> None:
    runs = Runs(WANTED, STOP, "<", explicit)
    for rows in files * 2:
        values: dict[int, bytes] = {}
        data = encoded(rows, explicit=explicit)
        assert runs.read(data, 0, values) == len(data) - 8 - PIXEL_BYTES
        assert values == {tag: value for tag, value in rows if tag in WANTED}


def test_a_known_run_does_not_reach_beyond_the_bytes_there_are() -> None:
    runs = Runs(WANTED, STOP, "<", explicit=True)
    data = encoded([(0x00080008, b"AB"), (0x00200013, b"17")], explicit=True)
    runs.read(data, 0, {})
    for end in range(len(data) - 8 - PIXEL_BYTES):
        values: dict[int, bytes] = {}
        place = runs.read(data[:end], 0, values)
        assert place <= end
        assert all(value in (b"AB", b"17") for value in values.values())


def test_memory_is_bounded() -> None:
    runs = Runs(WANTED, STOP, "<", explicit=True)
    for tag in range(0x00090000, 0x00090000 + 1000):
        runs.read(encoded([(tag, b"")], explicit=True), 0, {})
    assert len(runs._runs) <= 256
