"""What a run says of each case, and the two files it leaves: ``run.json`` and ``results.csv``."""

from __future__ import annotations

import errno
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medseg._version import medseg_version
from medseg.errors import CaseFailed, OutputUnusable, Refusal
from medseg.files import shown, write_json, write_text
from medseg.geometry import Geometry
from medseg.tables import table_text

REPORT_NAMES = ("run.json", "results.csv")
"""What every run leaves beside the outputs of its cases."""

Status = Literal["done", "refused", "failed"]


@dataclass(frozen=True)
class CaseResult:
    """One case as in ``run.json``.

    Parameters
    ----------
    case_id, source
        Its name and the path as given.
    status, reason, message
        What became of it; a reason code and its explanation if it is not done.
    seconds
        Wall time in hand, reading and writing included.
    outputs
        File names in the output folder.
    structures
        Label, name and volume of every structure of the bundle.
    trust
        Predicted Dice (mean of the structures), lower bound (lowest), verdict, structures, flags, where doubt is
        greatest; None without a trust calibration for these weights, and for cases that are refused or failed.
    stages
        Wall time per stage.
    not_written
        Kinds of output that were asked for and the source cannot have: ``reason`` and ``message`` of each.
    trained_on
        Whether the image is one that the bundle has learnt from; None if the bundle does not tell.
    checksums
        Number of bytes and SHA-256 of every output, by its name.
    """

    case_id: str
    source: str
    status: Status
    reason: str | None = None
    message: str = ""
    seconds: float = 0.0
    outputs: tuple[str, ...] = ()
    structures: tuple[Mapping[str, Any], ...] = ()
    trust: Mapping[str, Any] | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    not_written: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    trained_on: bool | None = None
    checksums: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunReport:
    """What :func:`~medseg.inference.run_batch` hands back.

    Parameters
    ----------
    folder
        Where the outputs are.
    cases
        Every case of the run, in the order of the inputs.
    content
        The object in ``run.json``.
    """

    folder: Path
    cases: tuple[CaseResult, ...]
    content: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether every case was done."""
        return all(case.status == "done" for case in self.cases)


def structures_of(
    label_map: NDArray[np.integer[Any]], geometry: Geometry, labels: Mapping[int, str]
) -> tuple[Mapping[str, Any], ...]:
    """Volume of every structure of the bundle, 0 where it was not found."""
    counts = np.bincount(label_map.reshape(-1), minlength=max(labels, default=0) + 1)
    ml = geometry.voxel_volume_mm3 / 1000.0
    return tuple({"label": k, "name": name, "volume_ml": float(counts[k] * ml)} for k, name in labels.items())


def result_of_error(case_id: str, source: str, error: BaseException, stage: str) -> CaseResult:
    """The result of a case that raised.

    Messages of errors that are not medseg's own are left out: a library may have put a header's text into them.
    """
    if isinstance(error, Refusal):
        return CaseResult(case_id, source, "refused", error.code, error.message)
    reason, message = _failure(error, stage)
    return CaseResult(case_id, source, "failed", reason, message)


def _failure(error: BaseException, stage: str) -> tuple[str, str]:
    if isinstance(error, CaseFailed) and not isinstance(error.__cause__, OSError):
        return "case-failed", str(error)
    error = error.__cause__ if isinstance(error, CaseFailed) and error.__cause__ else error
    if isinstance(error, TimeoutError):
        return "timeout", f"{stage} gave {error}; look at the source, then run the same command again"
    if _is_out_of_memory(error):
        return "out-of-memory", f"{stage} ran out of memory; crop with --roi or use a machine with more"
    if isinstance(error, OSError):
        what = errno.errorcode.get(error.errno or 0, "OSError")
        if what in {"ENOSPC", "EDQUOT", "EFBIG"}:
            return "disk-full", f"{stage} found no space left ({what}); make room and run the same command again"
        return ("unwritable" if stage == "writing" else "unreadable"), f"{stage} failed with {what}; check the files"
    return "unexpected", f"{stage} raised {type(error).__name__}; run with --verbose to see where, and report it"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def write_report(folder: Path, content: Mapping[str, Any], cases: Sequence[CaseResult]) -> RunReport:
    """Write ``run.json`` and ``results.csv``.

    Raises
    ------
    OutputUnusable
        If they cannot be written.
    """
    rows = [_case_json(case) for case in cases]
    whole = {**content, "cases": rows, "summary": {**_summary(cases), **content.get("summary", {})}}
    try:
        write_json(folder / REPORT_NAMES[0], whole)
        write_text(folder / REPORT_NAMES[1], _table(cases))
    except OSError as error:
        raise OutputUnusable(
            f"run.json and results.csv cannot be written to {shown(folder)} ({error.strerror}); the journal there holds"
            f" {len(cases)} cases: make room and run the same command again, it computes only what is missing"
        ) from error
    return RunReport(folder, tuple(cases), whole)


def _case_json(case: CaseResult) -> dict[str, Any]:
    row = asdict(case)
    row["outputs"], row["structures"] = list(case.outputs), list(case.structures)
    return row


def _summary(cases: Sequence[CaseResult]) -> dict[str, Any]:
    counts = {status: sum(case.status == status for case in cases) for status in ("done", "refused", "failed")}
    reasons: dict[str, int] = {}
    for case in cases:
        if case.reason:
            reasons[case.reason] = reasons.get(case.reason, 0) + 1
    return {
        "cases": len(cases),
        **counts,
        "reasons": reasons,
        "verdicts": _verdicts(cases),
        "trained_on": _trained_on(cases),
        "not_written": dict(Counter(kind for case in cases for kind in case.not_written)),
    }


def _trained_on(cases: Sequence[CaseResult]) -> int | None:
    """How many of the cases that are done the bundle was trained on; None if it does not tell."""
    known = [case.trained_on for case in cases if case.status == "done" and case.trained_on is not None]
    return sum(known) if known else None


def _verdicts(cases: Sequence[CaseResult]) -> dict[str, int] | None:
    """How many cases trust accepts, wants reviewed and rejects, and how many are flagged; None without trust."""
    judged = [case.trust for case in cases if case.trust]
    if not judged:
        return None
    counts = {verdict: sum(t["verdict"] == verdict for t in judged) for verdict in ("accept", "review", "reject")}
    return {**counts, "flagged": sum(bool(t["flags"]) for t in judged)}


def _table(cases: Sequence[CaseResult]) -> str:
    names = list(dict.fromkeys(str(s["name"]) for case in cases for s in case.structures))
    head = ["case_id", "source", "status", "reason", "message", "seconds", "outputs"]
    trust = ["predicted_dice", "lower_bound", "verdict", "flags"]
    rows: list[Sequence[object]] = [
        [*head, *(f"{name}_volume_ml" for name in names), *trust, "trained_on", "not_written"]
    ]
    for case in cases:
        volumes = {str(s["name"]): s["volume_ml"] for s in case.structures}
        values = [case.case_id, case.source, case.status, case.reason or "", case.message, case.seconds]
        judged = {**case.trust, "flags": " ".join(case.trust["flags"])} if case.trust else {}
        seen = "" if case.trained_on is None else str(case.trained_on).lower()
        missing = " ".join(f"{kind}({why['reason']})" for kind, why in case.not_written.items())
        volume_cells = (volumes.get(name, "") for name in names)
        rows.append(
            [*values, " ".join(case.outputs), *volume_cells, *(judged.get(t, "") for t in trust), seen, missing]
        )
    return table_text(rows)


def versions() -> dict[str, str]:
    """Versions of what computed the result."""
    import monai

    return {
        "medseg": medseg_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
    }
