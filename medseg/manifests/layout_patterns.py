"""Images and labels found by pattern: what a pattern leaves open names the case.

``{patient}/MR*.nii.gz`` says which part of a path is the patient; ``{session}``, ``{case}``, ``{structure}`` and
``{rater}`` are understood likewise, and ``*`` then stands for anything. A pattern without such names, as
``*/t1.nii.gz``, takes what its wildcards stand for as the case, and the first folder among it as the patient.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import UsageError
from medseg.labels.scheme import listed
from medseg.manifests.items import Item, common_start, files_below, label_of, one_or_list, relative_name
from medseg.manifests.manifest import Manifest

_WILDCARDS = re.compile(r"(\*\*/|\*|\?|\[[^\]/]+\]|\{[^{}]*\})")
_EXPRESSIONS = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
_OF_CASE = ("patient", "session", "case")
_OF_LABEL = ("rater", "structure")
_Key = tuple[str, ...]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pattern:
    """A pattern as an expression; ``fields`` are the names in it, empty for one of wildcards alone."""

    text: str
    expression: re.Pattern[str]
    fields: tuple[str, ...]

    @classmethod
    def of(cls, text: str, *, of_label: bool = False) -> _Pattern:
        parts = _WILDCARDS.split(text.removeprefix("./"))
        names = [part[1:-1] for part in parts[1::2] if part.startswith("{")]
        allowed = (*_OF_CASE, *(_OF_LABEL if of_label else ()))
        if unknown := [name for name in names if name not in allowed]:
            known = listed(["{" + name + "}" for name in allowed])
            raise UsageError(f"the pattern {text!r} has {{{unknown[0]}}}; understood are {known}")
        if len(parts) == 1:
            raise UsageError(f"the pattern {text!r} has no wildcard, so it names one file; write * for the case")
        if names and not set(names) & set(_OF_CASE):
            raise UsageError(f"the pattern {text!r} does not say which part is the case; write {{patient}} for it")
        seen: set[str] = set()
        joined = "".join(_expression(part, named=bool(names), seen=seen) for part in parts)
        return cls(text, re.compile(joined), tuple(dict.fromkeys(names)))

    def narrowed(self, known: Collection[_Key], *, longest: bool) -> re.Pattern[str]:
        """The expression for values of known cases alone, the longest or the shortest first."""
        text = self.expression.pattern
        for place, field in enumerate(name for name in _OF_CASE if name in self.fields):
            values = sorted({key[place] for key in known}, key=len, reverse=longest)
            text = text.replace(f"(?P<{field}>[^/]+)", f"(?P<{field}>{'|'.join(map(re.escape, values)) or '(?!)'})")
        return re.compile(text)

    def key(self, match: re.Match[str]) -> tuple[_Key, tuple[str, str]]:
        """The case, and rater and structure where the pattern names them."""
        if not self.fields:
            return match.groups(), ("", "")
        found = match.groupdict()
        case = tuple(found[name] for name in _OF_CASE if name in self.fields)
        return case, (found.get("rater", ""), found.get("structure", ""))


def _expression(part: str, *, named: bool, seen: set[str]) -> str:
    """A piece of a pattern as an expression; without names each wildcard is a group."""
    if part.startswith("{"):
        name = part[1:-1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>[^/]+)"
    if not _WILDCARDS.fullmatch(part):
        return re.escape(part)
    expression = _EXPRESSIONS.get(part, part)
    return expression if named else f"({expression})"


_Found = dict[_Key, dict[tuple[str, str], Path]]


def read_patterns(
    images: Path,
    image_patterns: Sequence[str],
    label_pattern: str | None,
    labels: Path | None,
    *,
    leave_out: bool = False,
) -> Manifest:
    """Make a manifest of what matches: one image pattern for each channel, labels below ``labels`` (or ``images``).

    ``*`` and ``?`` stay inside a name, ``**/`` stands for any folders, ``[ab]`` for one of these letters. A pattern may
    name folders, each with one DICOM series. With ``{structure}`` in the label's pattern a label is an object of files
    by structure, with ``{rater}`` a list of raters. ``leave_out`` drops cases that lack a file, with a warning. Raises
    ``UsageError`` if a pattern leaves nothing open, nothing matches, a case has two files for one thing, or it lacks a
    channel or its label.
    """
    if not image_patterns:
        raise UsageError("--label without --image: give a pattern for the images too, such as --image '*/t1.nii.gz'")
    if not images.is_dir():
        raise UsageError(f"{images} is a file; patterns are looked for below a folder")
    below = labels or images
    patterns = [_Pattern.of(text) for text in image_patterns]
    found = [(one, _matches(images, one)) for one in patterns]
    if label_pattern is not None:
        patterns.append(_Pattern.of(label_pattern, of_label=True))
    _refuse_other_fields(patterns)
    if label_pattern is not None:
        known = set().union(*(cases for _, cases in found))
        taken = {path for _, cases in found for files in cases.values() for path in files.values()}
        found.append((patterns[-1], _matches(below, patterns[-1], known, taken)))
    keys = _complete(found, leave_out=leave_out)
    start = common_start(images, below)
    items: list[Item] = []
    for key in sorted(keys):
        files = [relative_name(one[key]["", ""], start) for _, one in found[: len(image_patterns)]]
        item: Item = {"image": one_or_list(files), "case_id": _name(key), **_identity(key, patterns[0])}
        if label_pattern is not None:
            item["label"] = label_of(
                {what: relative_name(path, start) for what, path in sorted(found[-1][1][key].items())}
            )
        items.append(item)
    section = "training" if label_pattern is not None else "test"
    return Manifest({"name": start.name, "labels": {}, section: items}, start)


def _matches(folder: Path, pattern: _Pattern, known: Collection[_Key] = (), taken: Collection[Path] = ()) -> _Found:
    """What matches, by case; a name that can be split in several ways is that of a ``known`` case, if it can be."""
    found: _Found = {}
    nearer = [pattern.narrowed(known, longest=longest) for longest in (True, False)] if pattern.fields else []
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        match = pattern.expression.fullmatch(name)
        if match is None or path in taken:
            continue
        key, what = pattern.key(match)
        others = [pattern.key(one) for expression in nearer if (one := expression.fullmatch(name)) is not None]
        others = [other for other in others if other[0] in known]
        if len({*others}) > 1:
            cases = listed([_name(other[0]) for other in others])
            raise UsageError(f"{path} matches {pattern.text!r} as the cases {cases}; keep them in folders of their own")
        key, what = others[0] if others else (key, what)
        files = found.setdefault(key, {})
        if what in files:
            of = f" ({', '.join(filter(None, what))})" if any(what) else ""
            raise UsageError(
                f"{path} and {files[what]} both match {pattern.text!r} as the case {_name(key)}{of}; narrow it"
            )
        files[what] = path
    if not found:
        raise UsageError(f"nothing below {folder} matches {pattern.text!r}; wildcards do not cross folders, **/ does")
    return found


def _refuse_other_fields(patterns: Sequence[_Pattern]) -> None:
    """All patterns must tell the case by the same names."""
    of_case = [[name for name in one.fields if name in _OF_CASE] for one in patterns]
    for one, fields in zip(patterns, of_case, strict=True):
        if set(fields) != set(of_case[0]):
            raise UsageError(
                f"{patterns[0].text!r} tells a case by {_braced(of_case[0])}, {one.text!r} by {_braced(fields)}; write "
                "the same names in all patterns"
            )


def _braced(names: Sequence[str]) -> str:
    return listed(["{" + name + "}" for name in names]) if names else "its wildcards"


def _complete(found: Sequence[tuple[_Pattern, _Found]], *, leave_out: bool) -> set[_Key]:
    """The cases that every pattern has; a UsageError if one lacks something, unless such cases are left out."""
    whole = set.intersection(*(set(cases) for _, cases in found))
    every = set().union(*(set(cases) for _, cases in found))
    lacking = {pattern.text: sorted(every - set(cases)) for pattern, cases in found}
    parts = [
        f"{len(keys)} of {len(every)} cases have no file that matches {text!r}, the first is {_name(keys[0])} "
        f"({next(cases[keys[0]] for _, cases in found if keys[0] in cases).popitem()[1].name})"
        for text, keys in lacking.items()
        if keys
    ]
    if not parts:
        return whole
    if leave_out and whole:
        _log.warning("left out: %s", "; ".join(parts))
        return whole
    raise UsageError(
        f"{'; '.join(parts)}; what stands for the case must be the same in all patterns. Correct them, or leave such "
        "cases out with --leave-out"
    )


def _identity(key: _Key, pattern: _Pattern) -> dict[str, str]:
    """``patient_id``, and ``session`` where the pattern names it."""
    if not pattern.fields:
        return {"patient_id": _first_folder(key, pattern.text)}
    values = dict(zip([name for name in _OF_CASE if name in pattern.fields], key, strict=True))
    session = {"session": values["session"]} if "session" in values else {}
    return {"patient_id": values.get("patient", _name(key)), **session}


def _name(key: _Key) -> str:
    return "_".join(part.strip("/").replace("/", "_") for part in key if part.strip("/")) or "case"


def _first_folder(key: _Key, pattern: str) -> str:
    """The first folder that a wildcard stands for; where none does, the case."""
    first_wildcard = _WILDCARDS.search(pattern)
    assert first_wildcard is not None
    in_folder = "/" in pattern[first_wildcard.start() :]
    folder = next((part.strip("/").split("/")[0] for part in key if part.strip("/")), "")
    return folder if in_folder and folder else _name(key)
