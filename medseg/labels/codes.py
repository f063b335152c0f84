"""Coded terms of the structures: what a bundle must state before DICOM objects can name them.

``segment_codes`` in a bundle's metadata maps each label to its terms, usually from SNOMED CT::

    {"1": {"category": ["123037004", "SCT", "Anatomical Structure"],
           "type": ["4958002", "SCT", "Amygdala"],
           "laterality": ["24028007", "SCT", "Right"],
           "colour": "#f0b000"}}

``category`` and ``type`` are required; ``laterality``, ``modifier`` and ``region`` (where a finding lies) may be added.
A term is ``[value, scheme, meaning]`` or an object with these keys. There are no default codes: a wrong term in a
patient's archive is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from medseg.errors import BundleError
from medseg.files import shown

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_SIDE = re.compile(r"left|right|(?:^|[^a-z0-9])[lr](?:[^a-z0-9]|$)")
_NO_SIDE = re.compile(r"(?<![a-z0-9])(?:bright|upright|cleft)")
"""Words that hold the name of a side and name none."""
_LATERALITY = {"left": ("7771000", "SCT", "Left"), "right": ("24028007", "SCT", "Right")}
_ADDED = ("laterality", "modifier", "region")
_RIGHT_SHADE = 0.65
_LONGEST_VALUE, _LONGEST_MEANING = 16, 64
_PALETTE = ("#f0b000", "#3fb4ee", "#12b886", "#f0722c", "#e07bb4", "#f2e545", "#6f8df7")


class BundleLike(Protocol):
    """What the writers need to know of a bundle."""

    @property
    def name(self) -> str:
        """Name of the bundle."""

    @property
    def version(self) -> str:
        """Its version."""

    @property
    def sha256(self) -> str:
        """Hash of everything that a prediction depends on."""

    @property
    def labels(self) -> dict[int, str]:
        """Names by label, without the background."""

    @property
    def label_codes(self) -> dict[int, Any]:
        """The ``segment_codes`` of the metadata by label."""


@dataclass(frozen=True)
class Code:
    """One coded term."""

    value: str
    scheme: str
    meaning: str


def dicom_text(text: object, most: int = _LONGEST_MEANING) -> str:
    """A text as a DICOM attribute of at most ``most`` characters: one line, and no backslash, which would part it."""
    line = shown(text).replace("\N{REPLACEMENT CHARACTER}", "?").replace("\\", "/")
    return line.strip()[:most].strip() or "?"


@dataclass(frozen=True)
class SegmentCode:
    """The terms of one structure and the colour in which viewers show it."""

    label: int
    name: str
    category: Code
    type: Code
    laterality: Code | None
    modifier: Code | None
    region: Code | None
    rgb: tuple[int, int, int]

    @property
    def modifiers(self) -> tuple[Code, ...]:
        """What the type is modified by, a side first."""
        return tuple(filter(None, (self.laterality, self.modifier)))


def segment_codes(bundle: BundleLike) -> dict[int, SegmentCode]:
    """Coded terms of every label of a bundle, in the order of the labels.

    Raises ``BundleError`` if a label has no terms, or one is incomplete.
    """
    if 0 in bundle.labels:
        raise BundleError(
            f"label 0 of {bundle.name} is {bundle.labels[0]} and no background; DICOM objects leave 0 out, write nifti"
        )
    stated = bundle.label_codes
    return {
        label: _segment(label, name, stated.get(label), bundle.name) for label, name in sorted(bundle.labels.items())
    }


def sided_names(bundle: BundleLike) -> list[str]:
    """Names of the structures that belong to one side of the body, by their name or by their code."""
    coded = {label for label, code in bundle.label_codes.items() if code.get("laterality")}
    named = {label for label, name in bundle.labels.items() if _SIDE.search(_NO_SIDE.sub("", name.lower()))}
    return [name for label, name in bundle.labels.items() if label in coded | named]


def sided_code(stated: Mapping[str, Any], side: str) -> dict[str, Any]:
    """The terms of a structure on one side of the body, ``left`` or ``right``; the right one is shown darker."""
    code = {**stated, "laterality": list(_LATERALITY[side])}
    colour = stated.get("colour", stated.get("color"))
    if side == "right" and isinstance(colour, str) and _COLOUR.fullmatch(colour):
        code["colour"] = "#" + "".join(f"{int(int(colour[n : n + 2], 16) * _RIGHT_SHADE):02x}" for n in (1, 3, 5))
    return code


def _segment(label: int, name: str, stated: object, bundle: str) -> SegmentCode:
    where = f"segment_codes of label {label} ({name}) in bundle {bundle}"
    if not isinstance(stated, Mapping):
        raise BundleError(
            f"{where}: found none, DICOM objects need coded terms; state category and type in configs/metadata.json,"
            ' such as {"category": ["123037004", "SCT", "Anatomical Structure"], "type": [...], "colour": "#f0b000"}'
        )
    added = {key: _code(stated[key], f"{key} in {where}") if stated.get(key) else None for key in _ADDED}
    return SegmentCode(
        label,
        dicom_text(name),
        _code(stated.get("category"), f"category in {where}"),
        _code(stated.get("type"), f"type in {where}"),
        **added,
        rgb=_rgb(stated.get("colour", stated.get("color")), label, where),
    )


def _code(stated: object, where: str) -> Code:
    parts = stated
    if isinstance(stated, Mapping):
        parts = [stated.get(key) for key in ("value", "scheme", "meaning")]
    if (
        not isinstance(parts, list | tuple)
        or len(parts) != 3
        or not all(isinstance(part, str) and part.strip() for part in parts)
    ):
        raise BundleError(
            f'{where}: found {stated!r}, expected [value, scheme, meaning], such as ["4958002", "SCT", "Amygdala"]'
        )
    value, scheme, meaning = (str(part) for part in parts)
    if len(value) > _LONGEST_VALUE or len(scheme) > _LONGEST_VALUE or len(meaning) > _LONGEST_MEANING:
        raise BundleError(
            f"{where}: {stated!r} is too long; DICOM allows {_LONGEST_VALUE} characters for value and scheme and"
            f" {_LONGEST_MEANING} for the meaning, so shorten it"
        )
    if any(shown(part) != part or "\\" in part for part in parts):
        raise BundleError(f"{where}: {stated!r} holds control characters or a backslash, as no DICOM term does")
    return Code(value, scheme, meaning)


def _rgb(stated: object, label: int, where: str) -> tuple[int, int, int]:
    text = _PALETTE[(label - 1) % len(_PALETTE)] if stated is None else stated
    if isinstance(text, list | tuple) and len(text) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in text):
        return int(text[0]), int(text[1]), int(text[2])
    if not isinstance(text, str) or not _COLOUR.fullmatch(text):
        raise BundleError(f"colour in {where}: found {stated!r}, expected #rrggbb or three numbers from 0 to 255")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
