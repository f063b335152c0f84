"""Choose the series of a study that a network's channels need, and say of every other why it was not chosen.

Selection rules are a small JSON file that a bundle can carry, one rule for each channel of its input::

    {"rules": [{"channel": "t1", "modality": "MR", "description": "t1.*(mprage|bravo)", "contrast": false,
                "slices": {"min": 80}, "spacing_mm": {"max": 1.5}, "take": "latest"}]}
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args

import numpy as np

from medseg.errors import UsageError
from medseg.geometry import Geometry, ras_axes
from medseg.ingest.record import SeriesRecord
from medseg.json_shape import ANYTHING, NUMBER, misfit, read_json

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
    """What one channel's series must be; a condition that is not given always holds."""

    channel: str  # name of the channel that the series becomes
    modality: tuple[str, ...] = ()  # DICOM modalities, one of which it must have
    orientation: tuple[Plane, ...] = ()  # planes of acquisition, by the axis across the slices
    slices: Range = Range()  # number of slices
    spacing_mm: Range = Range()
    slice_spacing_mm: Range = Range()
    fov_mm: Range = Range()
    """``spacing_mm``, ``slice_spacing_mm``, ``fov_mm``: voxel spacing along the patient's axes (R, A, S), spacing
    across the slices, extent along R, A, S; in mm."""
    description: str = ""
    exclude_description: str = ""
    """``description``, ``exclude_description``: regular expressions searched in the series description, upper and lower
    case alike."""
    contrast: bool | None = None  # whether the header names a contrast agent
    take: Take = "only"
    """Which to choose if several series of a study satisfy the rule: ``only`` (none of them: the study is ambiguous),
    ``first``, ``latest`` (by time of acquisition, else series number) or ``most-slices``."""


def read_rules(path: str | os.PathLike[str]) -> list[Rule]:
    """Selection rules from a JSON file; a UsageError if it is missing, is not JSON, or a rule is not understood."""
    return parse_rules(read_json(path, ANYTHING, "give selection rules as docs/ingest.md describes them"))


def parse_rules(content: Any) -> list[Rule]:
    """Rules from parsed JSON: ``{"rules": [...]}`` or the list alone.

    A UsageError if a rule has an unknown key or a value of the wrong kind, or a channel is named twice.
    """
    listed = content.get("rules") if isinstance(content, Mapping) else content
    if not isinstance(listed, list) or not listed or not all(isinstance(rule, Mapping) for rule in listed):
        raise UsageError('selection rules: expected {"rules": [{"channel": ..., ...}, ...]}')
    rules = [_rule(rule) for rule in listed]
    names = [rule.channel for rule in rules]
    if len(set(names)) < len(names):
        raise UsageError(f"selection rules: found channels {names}; each needs one rule and a name of its own")
    return rules


def _rule(entry: Mapping[str, Any]) -> Rule:
    known = {field.name for field in fields(Rule)}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise UsageError(f"selection rule: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    if not isinstance(entry.get("channel"), str) or not entry["channel"]:
        raise _unexpected("channel", entry.get("channel"), "the name of the channel")
    values = {
        **entry,
        "modality": _names("modality", entry.get("modality", [])),
        "orientation": _names("orientation", entry.get("orientation", []), get_args(Plane)),
        **{key: _range(key, entry.get(key, {})) for key in ("slices", "spacing_mm", "slice_spacing_mm", "fov_mm")},
    }
    for key in ("description", "exclude_description"):
        try:
            re.compile(entry.get(key, ""))
        except (re.error, TypeError) as error:
            raise UsageError(f"selection rule: {key!r} is {entry[key]!r}, no regular expression: {error}") from error
    if entry.get("take", "only") not in get_args(Take):
        raise _unexpected("take", entry["take"], f"one of {', '.join(get_args(Take))}")
    if entry.get("contrast") not in (None, True, False):
        raise _unexpected("contrast", entry["contrast"], "true or false")
    return Rule(**values)


def _names(key: str, value: Any, allowed: Sequence[str] = ()) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _unexpected(key, value, "a name or a list of names")
    for name in names if allowed else ():
        if name not in allowed:
            raise _unexpected(key, name, f"one of {', '.join(allowed)}")
    return tuple(names)


def _unexpected(key: str, value: Any, expected: str) -> UsageError:
    return UsageError(f"selection rule: {key!r} is {value!r}; expected {expected}")


def _range(key: str, value: Any) -> Range:
    if not isinstance(value, Mapping) or set(value) - {"min", "max"}:
        raise _unexpected(key, value, '{"min": ..., "max": ...}')
    return Range(**{side: _triple(key, limit) for side, limit in value.items()})


def _triple(key: str, limit: Any) -> _Triple:
    numbers = limit if isinstance(limit, list) else [limit] * 3
    if len(numbers) != 3 or misfit(numbers, [NUMBER]):
        raise UsageError(f"selection rule: a limit of {key!r} is {limit!r}; expected a number, or three for R, A, S")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _short(triple: _Triple) -> str:
    return f"{triple[0]:g}" if len(set(triple)) == 1 else "×".join(f"{value:g}" for value in triple)


_PLANES: Final[Mapping[str, Plane]] = {
    **dict.fromkeys("RL", "sagittal"),
    **dict.fromkeys("AP", "coronal"),
    **dict.fromkeys("SI", "axial"),
}


@dataclass(frozen=True)
class Choice:
    """What became of one record within its study: the channel it was chosen for, if any, and the explanation.

    The explanation begins with ``chosen as`` or ``not chosen because``.
    """

    record: SeriesRecord
    study: str
    channel: str | None
    explanation: str


@dataclass(frozen=True)
class SelectedStudy:
    """The series of one study by channel, and the channels for which there is none."""

    study: str
    channels: Mapping[str, SeriesRecord]
    missing: tuple[str, ...]


def select(records: Iterable[SeriesRecord], rules: Sequence[Rule]) -> list[Choice]:
    """Apply the rules to each study: one choice for each record, in the order given.

    Rules are applied in their order, one for each channel; a series serves one channel at most.
    """
    records = list(records)
    studies: dict[str, list[SeriesRecord]] = defaultdict(list)
    for record in records:
        studies[study_of(record)].append(record)
    verdicts: dict[int, tuple[str | None, str]] = {}
    for members in studies.values():
        verdicts |= _select_in_study(members, rules)
    return [Choice(record, study_of(record), *verdicts[id(record)]) for record in records]


def selected_studies(choices: Iterable[Choice], rules: Sequence[Rule]) -> list[SelectedStudy]:
    """What was chosen, study by study, in the order in which the studies first appear."""
    studies: dict[str, dict[str, SeriesRecord]] = {}
    for choice in choices:
        chosen = studies.setdefault(choice.study, {})
        if choice.channel is not None:
            chosen[choice.channel] = choice.record
    names = [rule.channel for rule in rules]
    return [
        SelectedStudy(
            study,
            {name: chosen[name] for name in names if name in chosen},
            tuple(name for name in names if name not in chosen),
        )
        for study, chosen in studies.items()
    ]


def study_of(record: SeriesRecord) -> str:
    """The study of a record; an image file without one belongs to its folder."""
    return record.study_uid_hash or os.path.dirname(record.source)  # noqa: PTH120


def plane_of(record: SeriesRecord) -> Plane | None:
    """Plane of acquisition, by the array axis across the slices (the third)."""
    return _PLANES[record.orientation[2]] if len(record.orientation) == 3 else None


def _select_in_study(records: Sequence[SeriesRecord], rules: Sequence[Rule]) -> dict[int, tuple[str | None, str]]:
    chosen: dict[int, str] = {}
    reasons: dict[int, list[str]] = {id(record): [] for record in records}
    for rule in rules:
        fitting = []
        for record in records:
            against = list(_objections(record, rule))
            if id(record) in chosen:
                against = [f"it is the {chosen[id(record)]} already"]
            if against:
                reasons[id(record)].append(f"{rule.channel}: {', '.join(against)}")
            else:
                fitting.append(record)
        best = _best(fitting, rule)
        for record in fitting:
            if record is best:
                chosen[id(record)] = rule.channel
            else:
                reasons[id(record)].append(f"{rule.channel}: {_why_not(rule, len(fitting))}")
    verdicts: dict[int, tuple[str | None, str]] = {}
    for record in records:
        channel = chosen.get(id(record))
        because = f"it was refused ({record.reason})" if not record.usable else "; ".join(reasons[id(record)])
        verdicts[id(record)] = (channel, f"chosen as {channel}" if channel else f"not chosen because {because}")
    return verdicts


def _objections(record: SeriesRecord, rule: Rule) -> Iterator[str]:
    """Why a record does not satisfy a rule."""
    if not record.usable or record.shape is None or record.spacing_mm is None or record.affine is None:
        yield "it was refused"
        return
    yield from _objections_to_names(record, rule)
    geometry = Geometry(record.shape, np.array(record.affine))
    measured = (
        (rule.slices, "slices", (record.shape[2],)),
        (rule.spacing_mm, "mm spacing", [record.spacing_mm[axis] for axis in ras_axes(geometry)]),
        (rule.slice_spacing_mm, "mm between slices", (record.spacing_mm[2],)),
        (rule.fov_mm, "mm field of view", geometry.fov_mm),
    )
    for limits, name, values in measured:
        if not limits.holds(values):
            yield f"{'×'.join(f'{value:.4g}' for value in values)} {name}, expected {limits}"


def _objections_to_names(record: SeriesRecord, rule: Rule) -> Iterator[str]:
    if rule.modality and record.modality not in rule.modality:
        yield f"modality is {record.modality or 'not given'}, expected {' or '.join(rule.modality)}"
    plane = plane_of(record)
    if rule.orientation and plane not in rule.orientation:
        yield f"slices are {plane}, expected {' or '.join(rule.orientation)}"
    if rule.description and not re.search(rule.description, record.description, re.IGNORECASE):
        yield f"description does not match {rule.description!r}"
    if rule.exclude_description and re.search(rule.exclude_description, record.description, re.IGNORECASE):
        yield f"description matches {rule.exclude_description!r}, which is excluded"
    if rule.contrast is not None and record.contrast is not rule.contrast:
        found = {True: "with", False: "without", None: "not known to be with or without"}[record.contrast]
        yield f"{found} contrast agent, expected {'with' if rule.contrast else 'without'}"


def _best(fitting: Sequence[SeriesRecord], rule: Rule) -> SeriesRecord | None:
    if not fitting or (rule.take == "only" and len(fitting) > 1):
        return None
    ordered = sorted(fitting, key=lambda record: (record.series_number or 0, record.files))
    if all(record.acquired is not None for record in fitting):  # by time where all have one, else by series number
        ordered.sort(key=lambda record: (record.acquired or 0.0, record.series_number or 0, record.files))
    if rule.take == "most-slices":
        ordered.sort(key=lambda record: record.shape[2] if record.shape else 0)
    return ordered[0 if rule.take == "first" else -1]


def _why_not(rule: Rule, count: int) -> str:
    if rule.take == "only":
        return f'{count} series satisfy the rule; say which with "take": "first", "latest" or "most-slices"'
    which = {"first": "an earlier", "latest": "a later"}.get(rule.take, "a larger")
    return f"{which} series satisfies the rule as well"
