from __future__ import annotations

from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread, dcmwrite

from medseg.pacs.receive import store_instance
from tests.pacs.conftest import make_instance


def _bytes(instance: Dataset, *, undefined_length: bool = False) -> bytes:
    instance["SourceImageSequence"].is_undefined_length = undefined_length
    buffer = BytesIO()
    dcmwrite(buffer, instance, enforce_file_format=True)
    return buffer.getvalue()


def _instance() -> Dataset:
    instance = make_instance("a", 1)
    instance.SourceImageSequence = [Dataset()]
    instance.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    return instance


def test_the_same_instance_in_another_encoding_is_not_new(tmp_path: Path) -> None:
    one, other = _bytes(_instance()), _bytes(_instance(), undefined_length=True)
    assert one != other
    path, new = store_instance(tmp_path, "1", "2", one)
    assert new
    assert store_instance(tmp_path, "1", "2", other) == (path, False)
    assert path.read_bytes() == one


def test_another_value_deep_inside_is_new(tmp_path: Path) -> None:
    changed = _instance()
    changed.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.4"
    store_instance(tmp_path, "1", "2", _bytes(_instance()))
    path, new = store_instance(tmp_path, "1", "2", _bytes(changed))
    assert new
    assert dcmread(path) == changed


def test_what_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    path, _ = store_instance(tmp_path, "1", "2", b"half of a file")
    assert store_instance(tmp_path, "1", "2", _bytes(_instance())) == (path, True)
