"""What ``medseg infer`` left in a folder, as its ``run.json`` and its journal tell it.

The form of a JSON file that another run wrote, checked where it is read, so that nothing later trips over it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from medseg.errors import UsageError

JOURNAL_NAME = ".medseg-journal.sqlite"
"""What a batch run has finished so far; the run's own bookkeeping, in the folder of its outputs."""

_RUN_NAME = "run.json"
_LABEL_MAP = "_seg."


def read_run(folder: Path) -> dict[str, Any]:
    """The object in the ``run.json`` of an infer folder.

    Raises
    ------
    UsageError
        If it is missing or damaged.
    """
    path = folder / _RUN_NAME
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(run, ensure_ascii=False).encode(errors="surrogateescape")  # half of a character is no text
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error}); give the folder that `medseg infer` wrote") from error
    if not isinstance(run, dict) or not isinstance(run.get("cases"), list):
        raise UsageError(f"{path} lists no cases; give the folder that `medseg infer` wrote")
    if wrong := misfit(run, RUN):
        raise UsageError(f"{path} is not as `medseg infer` writes it: {wrong}; run it again")
    return run


@dataclass(frozen=True)
class RunCase:
    """One case of a run.

    Parameters
    ----------
    case_id, source, status
        As in ``run.json``.
    outputs
        Names of its files in the folder.
    names
        Structure names by label value.
    trained_on
        Whether the model has learnt from this image; None if the run does not say.
    """

    case_id: str
    source: str = ""
    status: str = "done"
    outputs: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    trained_on: bool | None = None

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> RunCase:
        """The case behind an entry of ``cases``."""
        return cls(
            item["case_id"],
            item.get("source") or "",
            item.get("status") or "done",
            tuple(item.get("outputs") or ()),
            {structure["label"]: structure["name"] for structure in item.get("structures") or ()},
            item.get("trained_on"),
        )

    @property
    def label_map(self) -> str:
        """The name of its label map among its outputs, or the name that one would have."""
        start = f"{self.case_id}{_LABEL_MAP}"
        found = (name for name in self.outputs if name.startswith(start) and not name.endswith(".dcm"))
        return next(found, f"{start}nii.gz")


@dataclass(frozen=True)
class RunFolder:
    """A folder that ``medseg infer`` wrote.

    Parameters
    ----------
    path
        The folder.
    content
        The object in ``run.json``; empty if the run has not got that far.
    cases
        What is known of each case, by case id: of ``run.json``, and of the journal what ``run.json`` leaves out.
    """

    path: Path
    content: Mapping[str, Any]
    cases: Mapping[str, RunCase]

    @classmethod
    def find(cls, folder: Path) -> RunFolder | None:
        """The run that wrote ``folder``; None if no run did (another command's ``run.json`` has no cases).

        Raises
        ------
        UsageError
            If ``run.json`` or the journal is damaged.
        """
        content = read_run(folder) if _has_cases(folder / _RUN_NAME) else {}
        found = [*_journalled(folder / JOURNAL_NAME), *content.get("cases", [])]
        cases = {case.case_id: case for case in map(RunCase.of, found)}
        return cls(folder, content, cases) if cases or content else None

    @cached_property
    def label_maps(self) -> dict[str, str]:
        """Case id by file name, of the label maps that the run has finished."""
        done = [case for case in self.cases.values() if case.status == "done"]
        return {case.label_map: case.case_id for case in done if case.label_map in case.outputs}

    @cached_property
    def others(self) -> dict[str, str]:
        """Files of the folder that are no label maps of this run, by name, and what they are."""
        found: dict[str, str] = {}
        for case in self.cases.values():
            source = Path(case.source)
            if case.source and _is_in(source, self.path):
                found[source.name] = f"the image of {case.case_id}"
            found.update(dict.fromkeys(case.outputs, f"another output of {case.case_id}"))
            if case.status != "done":
                found[case.label_map] = f"left by an earlier run: {case.case_id} was {case.status} by the last one"
        return {name: what for name, what in found.items() if name not in self.label_maps}

    @property
    def names(self) -> dict[int, str]:
        """Structure names by label value, of all cases."""
        return {label: name for case in self.cases.values() for label, name in case.names.items()}


def _is_in(source: Path, folder: Path) -> bool:
    return source.parent.resolve() == folder.resolve()


def _has_cases(path: Path) -> bool:
    """Whether this is a run of cases and no other tool's file; what cannot be read is left to :func:`read_run`."""
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(content, dict) and "cases" in content


def _journalled(path: Path) -> Iterator[Mapping[str, Any]]:
    """The finished cases in a run's journal, which is opened for reading only."""
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT result FROM cases WHERE result IS NOT NULL").fetchall()
        results = [json.loads(text) for (text,) in rows]
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read as a run's journal ({error}); run `medseg infer` again") from error
    if wrong := misfit({"cases": results}, RUN):
        raise UsageError(f"{path} is not as `medseg infer` writes it: {wrong}; run it again")
    yield from results


Spec = Any
"""A test of one value; ``[spec]`` for a list; ``{key: spec}`` for an object: keys that end in ``!`` must be there,
``*`` stands for all others. What is ``null`` counts as absent."""

_LARGEST = 1e300


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


def _place(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_number, value))


def _text(value: object) -> bool:
    return isinstance(value, str)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


NUMBER, TEXT, FLAG, WHOLE = (
    (_number, "a number"),
    (_text, "a text"),
    (_flag, "true or false"),
    (_whole, "a whole number"),
)

_ESTIMATES = {
    "predicted_dice": NUMBER,
    "lower_bound": NUMBER,
    "verdict": TEXT,
    "flags": [TEXT],
    "look_at_mm": (_place, "three numbers"),
    "case_class": {"name!": TEXT, "probability!": NUMBER},
    "structures": [{"label!": WHOLE, "name!": TEXT, "predicted_dice!": NUMBER, "lower_bound!": NUMBER}],
}
_CASE = {
    "case_id!": TEXT,
    "source": TEXT,
    "status": TEXT,
    "reason": TEXT,
    "message": TEXT,
    "seconds": NUMBER,
    "outputs": [TEXT],
    "structures": [{"label!": WHOLE, "name!": TEXT, "volume_ml": NUMBER}],
    "trust": _ESTIMATES,
    "trained_on": FLAG,
}
RUN: Spec = {
    "bundle": {"name": TEXT, "version": TEXT, "sha256": TEXT},
    "device": TEXT,
    "precision": TEXT,
    "finished": TEXT,
    "trust": {
        "state": TEXT,
        "message": TEXT,
        "coverage": NUMBER,
        "thresholds": {"accept!": NUMBER, "reject!": NUMBER},
    },
    "cases!": [_CASE],
}
"""``run.json`` as ``medseg infer`` writes it, as far as it is read again."""


def misfit(value: object, spec: Spec, where: str = "") -> str:
    """The first part of a JSON value that is not as expected, in words; empty if all of it fits."""
    return next(_misfits(value, spec, where), "")


def _misfits(value: object, spec: Spec, where: str) -> Iterator[str]:
    if isinstance(spec, list):
        if not isinstance(value, list):
            yield _told(where, "a list", value)
            return
        for number, part in enumerate(value):
            yield from _misfits(part, spec[0], f"{where}[{number}]")
    elif isinstance(spec, Mapping):
        if not isinstance(value, Mapping):
            yield _told(where, "an object", value)
            return
        yield from _keys(value, spec, where)
    else:
        fits: Callable[[object], bool]
        fits, expected = spec
        if not fits(value):
            yield _told(where, expected, value)


def _keys(value: Mapping[str, Any], spec: Mapping[str, Spec], where: str) -> Iterator[str]:
    for key, inner in spec.items():
        name = key.removesuffix("!")
        if key == "*":
            for other, part in value.items():
                yield from _misfits(part, inner, f"{where}.{other}")
        elif value.get(name) is not None:
            yield from _misfits(value[name], inner, f"{where}.{name}".lstrip("."))
        elif key.endswith("!"):
            yield f"{where or 'it'} has no {name}"


def _told(where: str, expected: str, value: object) -> str:
    return f"{where or 'it'} is a {type(value).__name__}, expected {expected}"
