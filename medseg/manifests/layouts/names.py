"""File names of images: which they are, channel numbers, names relative to a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from medseg.ingest.names import image_kind, is_second_of_pair

__all__ = ["common_start", "image_files", "one_or_list", "relative_name", "split_channel"]

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


def split_channel(name: str) -> tuple[str, int | None]:
    """nnU-Net's ``CASE_0001`` as ``("CASE", 1)``; any other name has no channel."""
    match = _CHANNEL.match(name)
    return (match["case"], int(match["channel"])) if match else (name, None)


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden files and folders, and the second files of pairs, are left out."""
    found = [
        path
        for path in folder.rglob("*")
        if image_kind(path) is not None
        and not is_second_of_pair(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(path for path in found if path.is_file())


def relative_name(path: Path, start: Path) -> str:
    """A path relative to ``start`` with forward slashes; links are not followed, so annexed files keep their names."""
    return Path(os.path.relpath(path.absolute(), start.absolute())).as_posix()


def common_start(*folders: Path) -> Path:
    """The deepest folder that holds all of ``folders``; links are not followed."""
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))  # noqa: PTH100


def one_or_list(files: list[str]) -> str | list[str]:
    """A single channel is a string in a datalist, several are a list."""
    return files[0] if len(files) == 1 else files
