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
    try:
        _, _, facts = read_volume(folder)
    except Refusal as refusal:
        refused = [record for record in scan(folder) if not record.usable]
        if refusal.code != "several-volumes":
            assert refusal.code in {record.reason for record in refused}
        assert not [record for record in scan(folder) if record.usable] or refusal.code == "several-volumes"
        return refusal.code, refusal.message
    (record,) = (record for record in scan(folder) if record.usable)
    notes = "; ".join(facts["notes"])
    assert all(note in notes for note in record.notes)
    return USABLE, notes


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
