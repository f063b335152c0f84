"""Images and labels by pattern, such as ``*/t1.nii.gz`` and ``*/seg.nii.gz``: what wildcards stand for is the case."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medseg.errors import UsageError
from medseg.manifests.layouts.names import common_start, one_or_list, relative_name
from medseg.manifests.manifest import Item, Manifest

__all__ = ["read"]

_WILDCARDS = re.compile(r"(\*\*/|\*|\?|\[[^\]/]+\])")
_GROUPS = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}
_Key = tuple[str, ...]


def read(images: Path, image_patterns: Sequence[str], label_pattern: str | None, labels: Path | None) -> Manifest:
    """Make a manifest of what matches.

    Parameters
    ----------
    images
        The folder that image patterns start in.
    image_patterns
        One for each channel: ``*`` and ``?`` stay inside a name, ``**/`` stands for any folders, ``[ab]`` for one of
        these letters. A pattern may name folders, each with one DICOM series.
    label_pattern
        The same for the labels, below ``labels`` (or ``images``); ``None`` for images without labels.
    labels
        The folder that ``label_pattern`` starts in.

    Raises
    ------
    UsageError
        If a pattern has no wildcard, nothing matches, or a case lacks a channel or its label.
    """
    if not image_patterns:
        raise UsageError("--label without --image: give a pattern for the images too, such as --image '*/t1.nii.gz'")
    if not images.is_dir():
        raise UsageError(f"{images} is a file; patterns are looked for below a folder")
    channels = [_matches(images, pattern) for pattern in image_patterns]
    below = labels or images
    label_of = _matches(below, label_pattern) if label_pattern is not None else {}
    start = common_start(images, below)
    for found, pattern in zip(channels, image_patterns, strict=True):
        _same_cases(channels[0], found, image_patterns[0], pattern)
    if label_pattern is not None:
        _same_cases(channels[0], label_of, image_patterns[0], label_pattern)
    items: list[Item] = []
    for key in sorted(channels[0]):
        item: Item = {
            "image": one_or_list([relative_name(found[key], start) for found in channels]),
            "case_id": _name(key),
            "patient_id": _patient(key, image_patterns[0]),
        }
        items.append(item | ({"label": relative_name(label_of[key], start)} if label_of else {}))
    section = "training" if label_of else "test"
    return Manifest({"name": start.name, "labels": {}, section: items}, start)


def _matches(folder: Path, pattern: str) -> dict[_Key, Path]:
    parts = _WILDCARDS.split(pattern.removeprefix("./"))
    if len(parts) == 1:
        raise UsageError(f"the pattern {pattern!r} has no wildcard, so it names one file; write * for the case")
    expression = re.compile(
        "".join(_GROUPS.get(part, f"({part})") if n % 2 else re.escape(part) for n, part in enumerate(parts))
    )
    found: dict[_Key, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        match = expression.fullmatch(name)
        if match is None or any(part.startswith(".") for part in name.split("/")):
            continue
        key = match.groups()
        if key in found:
            raise UsageError(f"{path} and {found[key]} both match {pattern!r} as the case {_name(key)}; narrow it")
        found[key] = path
    if not found:
        raise UsageError(f"nothing below {folder} matches {pattern!r}; wildcards do not cross folders, **/ does")
    return found


def _same_cases(first: dict[_Key, Path], other: dict[_Key, Path], pattern: str, other_pattern: str) -> None:
    for these, those, missing in ((first, other, other_pattern), (other, first, pattern)):
        without = sorted(set(these) - set(those))
        if without:
            raise UsageError(
                f"{len(without)} of {len(these)} cases have no file that matches {missing!r}, the first is "
                f"{_name(without[0])} ({these[without[0]].name}); the wildcards of both must stand for the same"
            )


def _name(key: _Key) -> str:
    return "_".join(part.strip("/").replace("/", "_") for part in key if part.strip("/")) or "case"


def _patient(key: _Key, pattern: str) -> str:
    """The first folder that a wildcard stands for; where none does, the case."""
    first_wildcard = _WILDCARDS.search(pattern)
    assert first_wildcard is not None
    in_folder = "/" in pattern[first_wildcard.start() :]
    folder = next((part.strip("/").split("/")[0] for part in key if part.strip("/")), "")
    return folder if in_folder and folder else _name(key)
