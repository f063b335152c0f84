"""The worklist: which results to look at first, where, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.evaluation.tables import measured_dice
from medseg.files import table_text, write_text
from medseg.results import MISS_BELOW, read_run, worst_first
from medseg.results.verdict import USUAL

_log = logging.getLogger(__name__)

WORKLIST_NAME = "worklist.csv"

_COLUMNS = (
    "rank",
    "case_id",
    "todo",
    "verdict",
    "predicted_dice",
    "lower_bound",
    "structure",
    "why",
    "look_at_mm",
    "prediction",
    "source",
)
_TODO = {"reject": "segment anew", "review": "correct", "accept": "none"}
_FLAGS = {
    "unlike-training": "the image is unlike those of the training",
    "implausible-shape": "a structure has an unusual shape",
    "structure-missing": "a structure is missing",
    "too-large": "too large to be judged",
    "not-judged": "could not be judged",
}
_KINDS = {
    "bias-field": "uneven brightness",
    "coarse": "thick slices or large voxels",
    "gamma": "another contrast",
    "contrast": "another contrast",
    "crop": "a wrong crop",
}
_SURE = 0.5


def worklist_rows(run: Mapping[str, Any], measured: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Cases of a run that are done, worst first (:func:`medseg.results.worst_first`), as the report orders them.

    Parameters
    ----------
    run
        The object in ``run.json``.
    measured
        Dice of the worst structure by case id, where cases were compared with references.
    """
    known = measured or {}
    done = [case for case in run.get("cases", []) if (case.get("status") or "done") == "done"]
    accept_at = (run.get("trust") or {}).get("thresholds", {}).get("accept")
    ordered = sorted(done, key=lambda case: _key(case, known.get(case["case_id"])))
    return [_row(rank, case, accept_at, known.get(case["case_id"])) for rank, case in enumerate(ordered, start=1)]


def write_worklist(
    folder: Path, path: Path | None = None, measured: Mapping[str, float] | None = None
) -> tuple[Path, list[dict[str, Any]]]:
    """Write the worklist of a folder that ``medseg infer`` filled; what ``medseg evaluate`` measured there counts.

    Parameters
    ----------
    folder
        Holds ``run.json``.
    path
        The CSV file; ``worklist.csv`` in ``folder`` if not given.
    measured
        Dice of the worst structure by case id; what an evaluation in ``folder`` found if not given.

    Raises
    ------
    UsageError
        If there is no readable ``run.json``, or no case of it was judged.
    """
    run = read_run(folder)
    if not any(case.get("trust") for case in run["cases"]):
        why = (run.get("trust") or {}).get("message") or "the bundle has no trust calibration"
        raise UsageError(f"no case in {folder} has a verdict: {why}; a worklist orders cases by trust")
    rows = worklist_rows(run, measured_dice(folder) if measured is None else measured)
    target = path or folder / WORKLIST_NAME
    write_text(target, table_text([_COLUMNS, *([row[column] for column in _COLUMNS] for row in rows)]))
    return target, rows


def keep_worklist(folder: Path) -> None:
    """Write the worklist if there is something to order by, or remove one that no longer belongs to the folder.

    A table of somebody else's in the place of an evaluation's is told and does not keep a run from its worklist.
    """
    if any(case.get("trust") for case in read_run(folder)["cases"]):
        try:
            write_worklist(folder)
        except UsageError as error:
            _log.warning("the worklist is ordered by trust alone: %s", error)
            write_worklist(folder, measured={})
    else:
        (folder / WORKLIST_NAME).unlink(missing_ok=True)


def _key(case: Mapping[str, Any], measured: float | None) -> tuple[int, bool, float, str]:
    trust = case.get("trust") or {}
    estimates = [None if (v := trust.get(key)) is None else float(v) for key in ("predicted_dice", "lower_bound")]
    return worst_first(
        str(case["case_id"]),
        verdict=str(trust.get("verdict") or ""),
        flags=tuple(trust.get("flags") or ()),
        estimates=estimates,
        measured_dice=measured,
    )


def _row(rank: int, case: Mapping[str, Any], accept_at: float | None, measured: float | None) -> dict[str, Any]:
    trust = case.get("trust") or {}
    verdict = str(trust.get("verdict") or "")
    worst = min(trust.get("structures") or [], key=lambda s: float(s["predicted_dice"]), default=None)
    prediction = next((name for name in case.get("outputs") or () if name.endswith("_seg.nii.gz")), "")
    return {
        "rank": rank,
        "case_id": case["case_id"],
        "todo": _TODO.get(verdict, "look at it"),
        "verdict": verdict,
        "predicted_dice": _text(trust.get("predicted_dice")),
        "lower_bound": _text(trust.get("lower_bound")),
        "structure": "" if worst is None else worst["name"],
        "why": "; ".join([*_missed(measured), *_why(trust, worst, accept_at)]),
        "look_at_mm": " ".join(f"{value:.1f}" for value in trust.get("look_at_mm") or ()),
        "prediction": prediction or next(iter(case.get("outputs") or ()), ""),
        "source": case.get("source") or "",
    }


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _missed(measured: float | None) -> list[str]:
    """Why a case stands on top whatever its verdict is."""
    return [f"Dice {measured:.2f} against the reference"] if measured is not None and measured < MISS_BELOW else []


def _why(trust: Mapping[str, Any], worst: Mapping[str, Any] | None, accept_at: float | None) -> list[str]:
    """Sentences for the person who opens the case."""
    reasons = [_FLAGS.get(flag, flag.replace("-", " ")) for flag in trust.get("flags") or ()]
    if trust.get("verdict") in {"review", "reject"} and worst is not None:
        reasons.append(_expected(worst, accept_at))
        reasons += _looks_like(trust.get("case_class") or {})
    if not trust:
        reasons.append("not judged")
    return reasons


def _looks_like(kind: Mapping[str, Any]) -> list[str]:
    name, probability = kind.get("name") or USUAL, float(kind.get("probability") or 0.0)
    return [] if name == USUAL or probability < _SURE else [f"looks like {_KINDS.get(name, name)} ({probability:.0%})"]


def _expected(worst: Mapping[str, Any], accept_at: float | None) -> str:
    asked = "" if accept_at is None else f", asked {accept_at:.2f}"
    return (
        f"{worst['name']}: Dice about {float(worst['predicted_dice']):.2f}, "
        f"perhaps only {float(worst['lower_bound']):.2f}{asked}"
    )
