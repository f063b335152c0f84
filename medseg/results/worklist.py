"""The one order "worst first", and ``worklist.csv``: which results to look at first, where, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from medseg.errors import UsageError
from medseg.files import write_text
from medseg.results.case_result import CaseResult
from medseg.results.run_report import RunReport
from medseg.results.verdict import (
    CUT_OFF,
    IMPLAUSIBLE_SHAPE,
    NOT_CALIBRATED,
    NOT_JUDGED,
    NOTHING_FOUND,
    SCATTERED,
    SECOND_LOOK_DIFFERS,
    STRUCTURE_MISSING,
    TOO_LARGE,
    UNLIKE_TRAINING,
    UNSURE,
    USUAL,
    StructureQuality,
    Verdict,
)
from medseg.tables import table_text

_log = logging.getLogger(__name__)

WORKLIST_NAME = "worklist.csv"

_TODO = {"reject": "segment anew", "review": "correct", NOT_CALIBRATED: "look at it", "accept": "none"}
_FLAGS = {
    UNLIKE_TRAINING: "the image is unlike those of the training",
    IMPLAUSIBLE_SHAPE: "a structure has an unusual shape",
    STRUCTURE_MISSING: "a structure is missing",
    TOO_LARGE: "too large to be judged",
    NOT_JUDGED: "could not be judged",
    NOTHING_FOUND: "nothing was found",
    SCATTERED: "the structures lie in pieces",
    CUT_OFF: "the image ends within the structures",
    UNSURE: "the network is unsure",
    SECOND_LOOK_DIFFERS: "a second look says something else",
}
_KINDS = {
    "bias-field": "uneven brightness",
    "coarse": "thick slices or large voxels",
    "gamma": "another contrast",
    "contrast": "another contrast",
    "crop": "a wrong crop",
}
_SURE = 0.5

MISS_BELOW = 0.5
"""A structure whose measured Dice is below is a miss, which no verdict outranks."""

_GROUPS = {"reject": 1, "review": 2, NOT_CALIBRATED: 3, "accept": 4}
_UNJUDGED, _NOT_DONE = 3, 5


def worst_first(
    case_id: str,
    *,
    status: str = "done",
    trust: Verdict | None = None,
    measured_dice: float | None = None,
) -> tuple[int, bool, float, str]:
    """Sorting key that puts the case to look at first on top.

    A measured miss comes first, then what trust rejects, wants reviewed, has not judged, accepts; what was not done
    comes last. Within a group the worst measured Dice decides; where nothing was measured what is flagged comes
    first, then the lowest estimate.

    Parameters
    ----------
    case_id
        Decides between equals.
    status, trust
        As in ``run.json``; no verdict for what was not judged.
    measured_dice
        Dice of the worst structure against a reference; None without one.
    """
    if status != "done":
        group = _NOT_DONE
    elif measured_dice is not None and measured_dice < MISS_BELOW:
        group = 0
    else:
        group = _GROUPS[trust.decision] if trust else _UNJUDGED
    if measured_dice is not None:
        return group, True, measured_dice, case_id
    if trust is None:  # never looked at: it stands behind the measured
        return group, True, 2.0, case_id
    lowest = (value for value in (trust.predicted_dice, trust.lower_bound) if value is not None)
    return group, not trust.flags, min(lowest, default=-1.0), case_id


@dataclass(frozen=True)
class WorklistRow:
    """One case to look at; the fields are the columns of the table."""

    rank: int
    case_id: str
    todo: str
    verdict: str
    predicted_dice: str
    lower_bound: str
    structure: str  # the one that is trusted least
    why: str
    look_at_mm: str
    """``why``, ``look_at_mm``: sentences for the person who opens the case, and where the planes of greatest doubt meet
    (RAS, mm)."""
    prediction: str
    source: str


def write_worklist(report: RunReport, path: Path, measured: Mapping[str, float]) -> list[WorklistRow]:
    """Write the worklist of a run: its cases that are done, worst first, as the report orders them.

    Parameters
    ----------
    report
        The run.
    path
        The CSV file.
    measured
        Dice of the worst structure by case id, where cases were compared with references.

    Returns
    -------
    list
        The rows.

    Raises
    ------
    UsageError
        If no case was judged.
    """
    if not any(case.trust for case in report.cases):
        why = report.trust.get("message") or "the bundle has no trust calibration"
        raise UsageError(f"no case in {report.folder} has a verdict: {why}; a worklist orders cases by trust")
    done = [case for case in report.cases if case.status == "done"]
    ordered = sorted(
        done, key=lambda case: worst_first(case.case_id, trust=case.trust, measured_dice=measured.get(case.case_id))
    )
    accept_at = (report.trust.get("thresholds") or {}).get("accept")
    rows = [_row(rank, case, accept_at, measured.get(case.case_id)) for rank, case in enumerate(ordered, start=1)]
    write_text(path, table_text([[one.name for one in fields(WorklistRow)], *(astuple(row) for row in rows)]))
    return rows


def keep_worklist(report: RunReport, measured_in: Callable[[Path], Mapping[str, float]]) -> None:
    """Write the worklist if there is something to order by, or remove one that no longer belongs to the folder.

    ``measured_in`` gives what an evaluation in the folder measured. A table of somebody else's in the place of the
    evaluation's is told and does not keep a run from its worklist.
    """
    path = report.folder / WORKLIST_NAME
    if not any(case.trust for case in report.cases):
        path.unlink(missing_ok=True)
        return
    try:
        measured = measured_in(report.folder)
    except UsageError as error:
        _log.warning("the worklist is ordered by trust alone: %s", error)
        measured = {}
    write_worklist(report, path, measured)


def _row(rank: int, case: CaseResult, accept_at: float | None, measured: float | None) -> WorklistRow:
    worst = min(case.assessed, key=lambda structure: structure.predicted_dice, default=None)
    missed = measured is not None and measured < MISS_BELOW  # then it stands on top whatever its verdict is
    return WorklistRow(
        rank,
        case.case_id,
        _TODO[case.trust.decision] if case.trust else "look at it",
        case.verdict,
        _text(case.estimates[0]),
        _text(case.estimates[1]),
        "" if worst is None else worst.name,
        "; ".join([*([f"Dice {measured:.2f} against the reference"] if missed else []), *_why(case, worst, accept_at)]),
        " ".join(f"{value:.1f}" for value in case.look_at_mm or ()),
        case.label_map if case.label_map in case.outputs else next(iter(case.outputs), ""),
        case.source,
    )


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _why(case: CaseResult, worst: StructureQuality | None, accept_at: float | None) -> list[str]:
    """Sentences for the person who opens the case."""
    if case.trust is None:
        return ["not judged"]
    reasons = [_FLAGS.get(flag, flag.replace("-", " ")) for flag in case.flags]
    if case.verdict != "accept" and worst is not None:
        asked = "" if accept_at is None else f", asked {accept_at:.2f}"
        reasons.append(
            f"{worst.name}: Dice about {worst.predicted_dice:.2f}, perhaps only {worst.lower_bound:.2f}{asked}"
        )
        fault = case.trust.fault
        if fault and fault.name != USUAL and fault.probability >= _SURE:
            reasons.append(f"looks like {_KINDS.get(fault.name, fault.name)} ({fault.probability:.0%})")
    return reasons
