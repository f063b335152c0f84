"""What the reader and the index say of one folder: they must never disagree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medseg.errors import Refusal
from medseg.ingest import read_volume, scan
from tests.ingest.synthetic import Series, encoded

USABLE = "usable"


def verdict(folder: Path) -> tuple[str, str]:
    """Code and message of the reader's verdict, ``usable`` with the notes; the index must come to the same."""
    code, text = _read(folder)
    records = scan(folder)
    usable = [record for record in records if record.usable]
    if code == USABLE:
        assert len(usable) == 1
        assert all(note in text for note in usable[0].notes)
    elif not (code == "several-volumes" and len(usable) > 1):
        assert not usable
        assert code in {record.reason for record in records}
    return code, text


def _read(folder: Path) -> tuple[str, str]:
    try:
        return USABLE, "; ".join(read_volume(folder)[2]["notes"])
    except Refusal as refusal:
        return refusal.code, refusal.message


def values_of(folder: Path) -> NDArray[Any]:
    """The values of a folder, slices first, rows, columns, as the phantom's pixels are."""
    return np.asarray(read_volume(folder)[0].transpose(2, 1, 0))


def pixels_of(series: Series) -> NDArray[Any]:
    return np.stack([encoded(number) for number in range(len(series.slices))])


def raw_value(path: Path, tag: tuple[int, int], value: bytes) -> None:
    """Write bytes that pydicom would refuse as the value of an explicit little-endian element."""
    data = path.read_bytes()
    at = data.index(tag[0].to_bytes(2, "little") + tag[1].to_bytes(2, "little"), 132)
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    value += b" " * (len(value) % 2)
    path.write_bytes(data[: at + 6] + len(value).to_bytes(2, "little") + value + data[at + 8 + length :])


def without(item: Dataset, *names: str) -> None:
    for name in names:
        if name in item:
            delattr(item, name)


def some(count: int, chosen: str) -> Sequence[int]:
    """Which of ``count`` slices: the first, one in the middle, the last, or all."""
    return {"first": [0], "middle": [count // 2], "last": [count - 1], "all": range(count)}[chosen]
