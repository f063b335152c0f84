"""Downloading a task, against a stand-in for the network."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from medseg.errors import UsageError
from medseg.manifests import download


def archive_bytes(name: str = "Task09_Spleen/dataset.json") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        data = json.dumps({"training": []}).encode()
        member = tarfile.TarInfo(name)
        member.size = len(data)
        packed.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def source_of(monkeypatch: pytest.MonkeyPatch, data: bytes, folder: Path) -> None:
    """Let the task come from a file on disk."""
    (folder / "remote").write_bytes(data)
    entry = ((folder / "remote").as_uri(), hashlib.md5(data).hexdigest())
    monkeypatch.setattr(download, "_sources", lambda: {"Task09_Spleen": entry})


def test_a_task_is_fetched_checked_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source_of(monkeypatch, archive_bytes(), tmp_path)
    folder = download.download_task("spleen", tmp_path / "data", progress=False)
    assert folder == tmp_path / "data" / "Task09_Spleen"
    assert (folder / "dataset.json").is_file()
    assert not list((tmp_path / "data").glob(".medseg-partial-*"))
    (tmp_path / "remote").unlink()
    assert download.download_task("9", tmp_path / "data") == folder


def test_a_wrong_sum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source_of(monkeypatch, archive_bytes(), tmp_path)
    (tmp_path / "remote").write_bytes(archive_bytes() + b"x")
    with pytest.raises(UsageError, match="another MD5 sum"):
        download.download_task("spleen", tmp_path, progress=False)
    (tmp_path / "Task09_Spleen.tar").write_bytes(b"cut short")
    with pytest.raises(UsageError, match="delete it"):
        download.download_task("spleen", tmp_path, progress=False)
    assert not (tmp_path / "Task09_Spleen").exists()


def test_offline_the_message_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("monai.apps.utils.urlretrieve", unreachable)
    with pytest.raises(UsageError) as caught:
        download.download_task("Task04_Hippocampus", tmp_path, progress=False)
    message = str(caught.value)
    assert "Task04_Hippocampus.tar" in message
    assert str(tmp_path / "Task04_Hippocampus.tar") in message
    assert "9d24dba78a72977dbd1d2e110310f31b" in message


def test_a_file_put_there_by_hand_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source_of(monkeypatch, archive_bytes(), tmp_path)
    (tmp_path / "remote").rename(tmp_path / "Task09_Spleen.tar")
    assert (download.download_task("spleen", tmp_path) / "dataset.json").is_file()


def test_an_archive_cannot_write_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source_of(monkeypatch, archive_bytes("../../outside/dataset.json"), tmp_path)
    with pytest.raises(ValueError, match=r"[Uu]nsafe"):
        download.download_task("spleen", tmp_path / "a" / "b", progress=False)
    assert not (tmp_path / "outside").exists()


def test_half_a_folder_is_not_taken_for_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source_of(monkeypatch, archive_bytes(), tmp_path)
    (tmp_path / "Task09_Spleen").mkdir()
    with pytest.raises(UsageError, match=r"no dataset\.json"):
        download.download_task("spleen", tmp_path)


@pytest.mark.parametrize("wanted", ["4", "04", "hippocampus", "Task04", "task04_hippocampus", "Task04_Hippocampus"])
def test_names_of_tasks(wanted: str) -> None:
    assert download.task_name(wanted) == "Task04_Hippocampus"


def test_an_unknown_task_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="Task09_Spleen"):
        download.task_name("appendix")
