"""The report's table of cases: columns, cells, and what a row opens to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import CSV_METRICS
from medseg.evaluation.report.collect import Case, Study
from medseg.evaluation.report.reasons import remedy
from medseg.evaluation.report.style import number
from medseg.evaluation.report.thumbnails import Plane

__all__ = ["Pictures", "case_rows", "heads", "metric_columns"]

_LEARNT = "This image was used to train the model: its figures say nothing about new cases."
_VERDICT_ORDER = {"reject": "0", "review": "1", "accept": "2"}


@dataclass(frozen=True)
class Pictures:
    """What was drawn of one case.

    Parameters
    ----------
    planes
        Thumbnails, empty if there are none.
    notes
        What could not be shown, and why.
    inlined, side_file
        Volumes for the viewer inside the page, or the file beside it; both empty without a viewer.
    missing
        Why there are no thumbnails.
    """

    planes: tuple[Plane, ...] = ()
    notes: tuple[str, ...] = ()
    inlined: str = ""
    side_file: str = ""
    missing: str = "the prediction was not found or could not be read."


def heads(study: Study) -> list[dict[str, str]]:
    """Columns of the table: only those that this study can fill."""
    columns = [("case", "Case", "text", "")]
    if any(case.status != "done" for case in study.cases):
        columns.append(("status", "Status", "text", "descending"))
    if any(case.verdict for case in study.cases):
        columns.append(("verdict", "Trust", "text", ""))
    if any(case.predicted_dice is not None for case in study.cases):
        columns.append(("predicted", "Predicted Dice", "num", ""))
    if study.measured:
        columns += [
            ("dice", "Worst Dice", "num", ""),
            ("mean", "Mean Dice", "num", ""),
            ("hd95", "HD95 [mm]", "num", "descending"),
        ]
    columns.append(("volume", "Volume [ml]", "num", "descending"))
    return [{"key": key, "name": name, "kind": kind, "first": first} for key, name, kind, first in columns]


def metric_columns(study: Study) -> list[str]:
    """Metrics for which some structure of some case has a value."""
    return [m for m in CSV_METRICS if any(s.values.get(m) is not None for case in study.cases for s in case.structures)]


def case_rows(study: Study, pictures: Mapping[str, Pictures]) -> list[dict[str, Any]]:
    """One dictionary per case for the template, in the study's order."""
    columns = [head["key"] for head in heads(study)]
    metrics = metric_columns(study)
    return [
        _row(case, pictures.get(case.case_id, Pictures()), i, (columns, metrics)) for i, case in enumerate(study.cases)
    ]


def _row(case: Case, drawn: Pictures, index: int, shown: tuple[Sequence[str], Sequence[str]]) -> dict[str, Any]:
    columns, metrics = shown
    labels = {label for plane in drawn.planes for label in (*plane.prediction, *plane.reference)}
    flags = [flag for s in case.structures if (flag := _flag(s))]
    return {
        "case_id": case.case_id,
        "status": case.status,
        "verdict": case.verdict,
        "reason": case.reason,
        "message": case.message or _told(case),
        "wrong": bool(flags),
        "search": " ".join([*_words(case), *flags]).lower(),
        "number": index,
        "key": f"v{index}",
        "cells": [_cell(case, column) for column in columns],
        "notes": (*([_LEARNT] if case.trained_on else []), *drawn.notes),
        "planes": drawn.planes,
        "no_picture": drawn.missing,
        "has_reference": any(plane.reference for plane in drawn.planes),
        "viewer": bool(drawn.inlined or drawn.side_file),
        "side_file": drawn.side_file,
        "at": ",".join(str(plane.slice_number - 1) for plane in reversed(drawn.planes)),
        "structures": [
            {
                "label": s.label,
                "name": s.name,
                "flag": _flag(s),
                "drawn": s.label in labels,
                "estimate": _estimate(case, s.label),
                "dice": "" if s.values.get("dice") is None else number(s.values["dice"], "dice"),
                "cells": [number(s.values.get(metric), metric) for metric in metrics],
            }
            for s in sorted(case.structures, key=lambda s: s.label)
        ],
    }


def _words(case: Case) -> list[str]:
    """What the search field finds a case by."""
    learnt = ["trained-on"] if case.trained_on else []
    return [case.case_id, case.status, case.reason, case.verdict, *case.flags, *learnt]


def _estimate(case: Case, label: int) -> str:
    """Predicted Dice and lower bound of one structure; empty without."""
    found = case.estimates.get(label)
    return "" if found is None else f"{found[0]:.3f} (at least {found[1]:.2f})"


def _told(case: Case) -> str:
    """What to say of a case that was not done and whose message cannot be shown."""
    return "" if case.status == "done" else " ".join([*remedy(case.reason), "Details are in run.json."]).strip()


def _flag(structure: StructureResult) -> str:
    return "missed" if structure.missed else "invented" if structure.invented else ""


def _cell(case: Case, column: str) -> dict[str, object]:
    """Text, sorting value and looks of one cell; numbers that do not exist sort last."""
    return _CELLS[column](case)


def _predicted(case: Case) -> dict[str, object]:
    note = "" if case.lower_bound is None else f"at least {case.lower_bound:.2f}"
    return _figure(case.predicted_dice, "dice", note)


def _worst_dice(case: Case) -> dict[str, object]:
    scored = [(d, s.name) for s in case.structures if (d := s.values.get("dice")) is not None]
    value, name = min(scored, default=(None, ""))
    return _figure(value, "dice", name if len(case.structures) > 1 else "")


def _volume(case: Case) -> dict[str, object]:
    volumes = [v for s in case.structures if (v := s.values.get("volume_ml")) is not None]
    return _figure(sum(volumes) if volumes else None, "volume_ml")


def _distance(case: Case) -> dict[str, object]:
    """Worst distance; a missed or invented structure has none, so it is named and sorts above every distance."""
    values = [v for s in case.structures if (v := s.values.get("hd95_mm")) is not None]
    flags = [_flag(s) for s in case.structures if _flag(s)]
    note = ", ".join(f"{flags.count(flag)} {flag}" for flag in ("missed", "invented") if flag in flags)
    cell = _figure(max(values, default=None), "hd95_mm", note)
    return {**cell, "value": "Infinity"} if flags else cell


def _text(text: str, value: str, pill: str = "") -> dict[str, object]:
    return {"kind": "text", "value": value, "text": text, "note": "", "pill": pill, "flags": []}


def _verdict(case: Case) -> dict[str, object]:
    """Badge of the verdict and, below, what was flagged; flagged cases sort first within a verdict."""
    place = _VERDICT_ORDER.get(case.verdict, "")
    cell = _text(case.verdict, place and place + ("0" if case.flags else "1"), pill=case.verdict)
    return {**cell, "flags": [flag.replace("-", " ") for flag in case.flags]}


def _figure(value: float | None, metric: str, note: str = "") -> dict[str, object]:
    return {
        "kind": "num",
        "value": "" if value is None else repr(float(value)),
        "text": number(value, metric),
        "note": note,
        "pill": "",
        "flags": [],
    }


_CELLS: dict[str, Callable[[Case], dict[str, object]]] = {
    "case": lambda case: _text(case.case_id, case.case_id),
    "status": lambda case: _text(case.status, case.status, pill=case.status),
    "verdict": _verdict,
    "predicted": _predicted,
    "dice": _worst_dice,
    "mean": lambda case: _figure(sum(case.dice) / len(case.dice) if case.dice else None, "dice"),
    "hd95": _distance,
    "volume": _volume,
}
