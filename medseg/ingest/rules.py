"""Selection rules: a small JSON file that a bundle can carry, one rule for each channel of its input.

::

    {"rules": [{"channel": "t1", "modality": "MR", "description": "t1.*(mprage|bravo)", "contrast": false,
                "slices": {"min": 80}, "spacing_mm": {"max": 1.5}, "take": "latest"}]}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from medseg.errors import UsageError

__all__ = ["Plane", "Range", "Rule", "Take", "parse_rules", "read_rules"]

Plane = Literal["axial", "coronal", "sagittal"]
Take = Literal["only", "first", "latest", "most-slices"]

_Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Range:
    """Limits, inclusive, for one number or for three along the patient's axes (R, A, S); ``None``: no limit."""

    min: _Triple | None = None
    max: _Triple | None = None

    def holds(self, values: Sequence[float]) -> bool:
        """Whether all values lie within the limits."""
        above = self.min is None or all(value >= low for value, low in zip(values, self.min, strict=False))
        below = self.max is None or all(value <= high for value, high in zip(values, self.max, strict=False))
        return above and below

    def __str__(self) -> str:
        low = "" if self.min is None else f"at least {_short(self.min)}"
        high = "" if self.max is None else f"at most {_short(self.max)}"
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True)
class Rule:
    """What one channel's series must be; a condition that is not given always holds.

    Parameters
    ----------
    channel
        Name of the channel that the series becomes.
    modality
        DICOM modalities, one of which it must have.
    orientation
        Planes of acquisition, by the axis across the slices.
    slices
        Number of slices.
    spacing_mm, slice_spacing_mm, fov_mm
        Voxel spacing along the patient's axes (R, A, S), spacing across the slices, extent along R, A, S; in mm.
    description, exclude_description
        Regular expressions searched in the series description, upper and lower case alike.
    contrast
        Whether the header names a contrast agent.
    take
        Which to choose if several series of a study satisfy the rule: ``only`` (none of them: the study is
        ambiguous), ``first``, ``latest`` (by time of acquisition, else series number) or ``most-slices``.
    """

    channel: str
    modality: tuple[str, ...] = ()
    orientation: tuple[Plane, ...] = ()
    slices: Range = Range()
    spacing_mm: Range = Range()
    slice_spacing_mm: Range = Range()
    fov_mm: Range = Range()
    description: str = ""
    exclude_description: str = ""
    contrast: bool | None = None
    take: Take = "only"


def read_rules(path: str | os.PathLike[str]) -> list[Rule]:
    """Read selection rules from a JSON file.

    Raises
    ------
    UsageError
        If the file is missing, is not JSON, or a rule is not understood.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read the selection rules {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"the selection rules {path} are not JSON: {error}") from error
    return parse_rules(content)


def parse_rules(content: Any) -> list[Rule]:
    """Rules from parsed JSON: ``{"rules": [...]}`` or the list alone.

    Raises
    ------
    UsageError
        If a rule has an unknown key, a value of the wrong kind, or a channel is named twice.
    """
    listed = content.get("rules") if isinstance(content, Mapping) else content
    if not isinstance(listed, list) or not listed or not all(isinstance(rule, Mapping) for rule in listed):
        raise UsageError('selection rules: expected {"rules": [{"channel": ..., ...}, ...]}')
    rules = [_rule(rule) for rule in listed]
    names = [rule.channel for rule in rules]
    if len(set(names)) < len(names):
        raise UsageError(f"selection rules: found channels {names}; each needs one rule and a name of its own")
    return rules


def _rule(given: Mapping[str, Any]) -> Rule:
    known = {field.name for field in fields(Rule)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise UsageError(f"selection rule: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    if not isinstance(given.get("channel"), str) or not given["channel"]:
        raise UsageError(f"selection rule: 'channel' is {given.get('channel')!r}; expected the name of the channel")
    values: dict[str, Any] = dict(given)
    for key in ("modality", "orientation"):
        values[key] = _names(key, given.get(key, []))
    for key in ("slices", "spacing_mm", "slice_spacing_mm", "fov_mm"):
        values[key] = _range(key, given.get(key, {}))
    for key in ("description", "exclude_description"):
        _check_pattern(key, given.get(key, ""))
    _check_choice("orientation", values["orientation"], get_args(Plane))
    _check_choice("take", (given.get("take", "only"),), get_args(Take))
    if given.get("contrast") not in (None, True, False):
        raise UsageError(f"selection rule: 'contrast' is {given['contrast']!r}; expected true or false")
    return Rule(**values)


def _names(key: str, value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"selection rule: {key!r} is {value!r}; expected a name or a list of names")
    return tuple(names)


def _range(key: str, value: Any) -> Range:
    if not isinstance(value, Mapping) or set(value) - {"min", "max"}:
        raise UsageError(f'selection rule: {key!r} is {value!r}; expected {{"min": ..., "max": ...}}')
    return Range(**{side: _triple(key, limit) for side, limit in value.items()})


def _triple(key: str, limit: Any) -> _Triple:
    numbers = limit if isinstance(limit, list) else [limit] * 3
    if len(numbers) != 3 or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise UsageError(f"selection rule: a limit of {key!r} is {limit!r}; expected a number, or three for R, A, S")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _check_pattern(key: str, pattern: Any) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UsageError(f"selection rule: {key!r} is {pattern!r}, no regular expression: {error}") from error


def _check_choice(key: str, values: Sequence[Any], allowed: Sequence[str]) -> None:
    for value in values:
        if value not in allowed:
            raise UsageError(f"selection rule: {key!r} is {value!r}; expected one of {', '.join(allowed)}")


def _short(triple: _Triple) -> str:
    return f"{triple[0]:g}" if len(set(triple)) == 1 else "×".join(f"{value:g}" for value in triple)
