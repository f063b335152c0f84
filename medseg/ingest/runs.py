"""Recognise data elements that were seen in a row before, and read them at once.

The files of one series differ in few lengths, and a scan is bound by the walk over their elements: what was walked
once, element by element, is afterwards compared and read as a whole. Nothing is guessed: every tag, value
representation and length is compared before a value is taken.
"""

from __future__ import annotations

import struct
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Final, NamedTuple

FUNCTIONAL_GROUPS: Final = (0x52009229, 0x52009230)
LONGEST_WANTED: Final = 64 * 1024
SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations whose length has two bytes (PS3.5 section 7.1.2)."""

_HEAD: Final = 8
_LONGEST_RUN: Final = 128
_MOST_RUNS: Final = 256


class _Run(NamedTuple):
    """Elements in a row: their heads, how to take these out of a buffer; the wanted tags, how to take their values."""

    heads: tuple[bytes, ...]
    layout: struct.Struct
    tags: tuple[int, ...]
    values: struct.Struct


class Runs:
    """The runs that walks of one kind have met, by the head of their first element; at most 256 of 128 elements.

    Parameters
    ----------
    wanted
        Tags whose values are read.
    stop
        First tag that belongs to no run.
    byte_order, explicit
        How the elements are encoded.
    """

    def __init__(self, wanted: AbstractSet[int], stop: int, byte_order: str, explicit: bool) -> None:
        self._wanted = wanted
        self._stop = stop
        self._explicit = explicit
        self._unpack = struct.Struct(byte_order + ("HH2sH" if explicit else "HHI")).unpack
        self._runs: dict[bytes, _Run] = {}

    def read(self, buffer: bytes, position: int, values: dict[int, bytes]) -> int:
        """Put wanted ``values`` of the plain elements from ``position`` on in place; return where they end."""
        while True:
            head = buffer[position : position + _HEAD]
            run = self._runs.get(head) or self._learn(buffer, position)
            if run is None or position + run.layout.size > len(buffer):
                return position
            heads = run.layout.unpack_from(buffer, position)
            if heads != run.heads:
                same = next(i for i, (one, other) in enumerate(zip(heads, run.heads, strict=True)) if one != other)
                self._runs[head] = run = self._run(heads[:same])
            values.update(zip(run.tags, run.values.unpack_from(buffer, position), strict=True))
            position += run.layout.size

    def _learn(self, buffer: bytes, position: int) -> _Run | None:
        """Remember the plain elements that begin at ``position``; ``None`` if there are none."""
        heads: list[bytes] = []
        while position + _HEAD <= len(buffer) and len(heads) < _LONGEST_RUN:
            head = buffer[position : position + _HEAD]
            tag, length = self._tag_and_length(head)
            position += _HEAD + length
            if tag >= self._stop or position > len(buffer) or not self._is_plain(head, tag, length):
                break
            heads.append(head)
        if not heads:
            return None
        if len(self._runs) >= _MOST_RUNS:
            self._runs.clear()  # other series, other runs
        run = self._runs[heads[0]] = self._run(tuple(heads))
        return run

    def _run(self, heads: tuple[bytes, ...]) -> _Run:
        layout, values, tags, gap = "=", "=", [], 0
        for tag, length in map(self._tag_and_length, heads):
            layout += f"{_HEAD}s{length}x"
            gap += _HEAD
            if tag in self._wanted:
                tags.append(tag)
                values += f"{gap}x{length}s"
                gap = 0
            else:
                gap += length
        return _Run(heads, struct.Struct(layout), tuple(tags), struct.Struct(values))

    def _tag_and_length(self, head: bytes) -> tuple[int, int]:
        group, element, *_, length = self._unpack(head)
        return group << 16 | element, length

    def _is_plain(self, head: bytes, tag: int, length: int) -> bool:
        """Whether the value follows the head at once and needs no look inside."""
        if self._explicit:
            return head[4:6] in SHORT_VRS
        return length <= LONGEST_WANTED and tag not in FUNCTIONAL_GROUPS


@lru_cache(maxsize=8)
def runs_of(wanted: AbstractSet[int], stop: int, byte_order: str, explicit: bool) -> Runs:
    """The runs that this process knows for walks of one kind."""
    return Runs(wanted, stop, byte_order, explicit)
