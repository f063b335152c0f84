"""What a run says of its cases: ``run.json`` and ``results.csv``, written and read here alone.

Files that another run wrote are checked where they are read, so that nothing later trips over them.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from medseg.errors import OutputUnusable, UsageError
from medseg.files import shown, write_json, write_text
from medseg.json_shape import (
    FLAG,
    LARGEST_BYTES,
    NUMBER,
    TEXT,
    WHOLE,
    Spec,
    misfit,
    parse_json,
    read_bounded,
)
from medseg.results.accept_table import ACCEPT_TABLE
from medseg.results.case_result import CASE, CaseResult
from medseg.results.state_file import STATE_NAME, stored_cases
from medseg.results.verdict import counted
from medseg.tables import table_text

RUN_JSON, RESULTS_CSV = "run.json", "results.csv"
"""What every run leaves beside the outputs of its cases."""

RUN: Spec = {
    "medseg": TEXT,
    "versions": {"*": TEXT},
    "bundle": {"name": TEXT, "version": TEXT, "sha256": TEXT},
    "device": TEXT,
    "precision": TEXT,
    "notes": [TEXT],
    "options": {"roi": TEXT, "allow_resample": FLAG},
    "skipped": [{"source": TEXT, "reason": TEXT, "message": TEXT}],
    "engine": {"engine": TEXT},
    "started": TEXT,
    "finished": TEXT,
    "summary": {"seconds": NUMBER, "computed": WHOLE, "workers_lost": WHOLE, "pending": WHOLE},
    "trust": {
        "state": TEXT,
        "message": TEXT,
        "coverage": NUMBER,
        "thresholds": {"accept": NUMBER, "reject!": NUMBER},
        "accepted": ACCEPT_TABLE,
        "wider_for": [TEXT],
    },
    "discriminator": {"state": TEXT, "message": TEXT},
    "cases!": [CASE],
}
"""``run.json`` as ``medseg infer`` writes it, as far as it is read again."""


@dataclass(frozen=True)
class BundleStamp:
    """Which bundle, in which state, has computed."""

    name: str = ""
    version: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Skipped:
    """A file that was left out of a run's inputs, and why."""

    source: str
    reason: str | None
    message: str


@dataclass(frozen=True)
class RunReport:
    """What :func:`~medseg.inference.run_batch` hands back, and what its folder tells later."""

    folder: Path
    cases: tuple[CaseResult, ...]
    """``folder``, ``cases``: where the outputs are; every case of the run, in the order of the inputs."""
    medseg: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    bundle: BundleStamp = field(default_factory=BundleStamp)
    device: str = ""
    precision: str = ""
    engine: str = ""
    """``medseg``, ``versions``, ``bundle``, ``device``, ``precision``, ``engine``: what computed: versions of medseg
    and, by name, of others; the bundle, and how its network was run."""
    trust: Mapping[str, Any] = field(default_factory=dict)
    discriminator: Mapping[str, Any] = field(default_factory=dict)
    """``trust``, ``discriminator``: whether cases come with the verdict of each (``state``), why not (``message``);
    what the calibration says of itself."""
    notes: tuple[str, ...] = ()  # what medseg does otherwise than the bundle's configuration says
    options: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, see :class:`~medseg.inference.Options`."""
    skipped: tuple[Skipped, ...] = ()  # inputs that were left out with a warning
    started: str = ""
    finished: str = ""
    seconds: float = 0.0
    """``started``, ``finished``, ``seconds``: ISO 8601, UTC; wall time."""
    computed: int = 0
    workers_lost: int = 0
    pending: int = 0
    """``computed``, ``workers_lost``, ``pending``: cases computed by this run, workers of a cluster lost, cases without
    a result."""
    stored: tuple[CaseResult, ...] = ()
    """Cases that the folder's state file holds besides, of other inputs, or of a run that was killed."""
    unfinished: bool = False  # whether no run has got as far as ``run.json``

    # --- what the cases say together --------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every case was done."""
        return all(case.status == "done" for case in self.cases)

    @cached_property
    def statuses(self) -> dict[str, int]:
        """How many cases are done, refused and failed."""
        return {status: sum(case.status == status for case in self.cases) for status in ("done", "refused", "failed")}

    @property
    def verdicts(self) -> dict[str, int] | None:
        """How many cases trust accepts, wants reviewed and rejects, and how many are flagged; None without trust."""
        judged = [case for case in self.cases if case.trust]
        if not judged:
            return None
        return {**counted(case.verdict for case in judged), "flagged": sum(bool(case.flags) for case in judged)}

    @property
    def real(self) -> dict[str, int] | None:
        """How many cases the discriminator accepts and rejects; None where it does not judge."""
        judged = [case.discriminator.decision for case in self.cases if case.discriminator]
        return {name: judged.count(name) for name in ("accept", "reject")} if judged else None

    @property
    def trained_on(self) -> int | None:
        """How many of the cases that are done the bundle was trained on; None if it does not tell."""
        known = [case.trained_on for case in self.cases if case.status == "done" and case.trained_on is not None]
        return sum(known) if known else None

    @property
    def stages(self) -> dict[str, float]:
        """Wall time per stage over all cases, seconds."""
        total: dict[str, float] = {}
        for case in self.cases:
            for stage, seconds in case.stages.items():
                total[stage] = round(total.get(stage, 0.0) + seconds, 4)
        return total

    # --- what the folder holds --------------------------------------------------------------------------------------

    def case(self, case_id: str) -> CaseResult | None:
        """The case of this name, if the run has one."""
        return self._by_id.get(case_id)

    def image_of(self, case_id: str) -> Path | None:
        """Where the image of a case lies, seen from the run's folder, else from the current one; None if nowhere.

        A current folder that is not the run's own may hold another image of that name.
        """
        case = self.case(case_id)
        places = [self.folder / case.source, Path(case.source)] if case is not None and case.source else []
        return next((path for path in places if os.path.exists(path)), None)  # noqa: PTH110  False for a name too long

    @cached_property
    def _by_id(self) -> dict[str, CaseResult]:
        return {case.case_id: case for case in (*self.stored, *self.cases)}

    @cached_property
    def label_maps(self) -> dict[str, str]:
        """Case id by file name, of the label maps that the run has finished."""
        done = [case for case in self._by_id.values() if case.status == "done"]
        return {case.label_map: case.case_id for case in done if case.label_map in case.outputs}

    @cached_property
    def others(self) -> dict[str, str]:
        """Files of the folder that are no label maps of this run, by name, and what they are."""
        found: dict[str, str] = {}
        for case in self._by_id.values():
            source = Path(case.source)
            if case.source and source.parent.resolve() == self.folder.resolve():
                found[source.name] = f"the image of {case.case_id}"
            found.update(dict.fromkeys(case.outputs, f"another output of {case.case_id}"))
            if case.status != "done":
                found[case.label_map] = f"left by an earlier run: {case.case_id} was {case.status} by the last one"
        return {name: what for name, what in found.items() if name not in self.label_maps}

    @property
    def names(self) -> dict[int, str]:
        """Structure names by label value, of all cases."""
        return {structure.label: structure.name for case in self._by_id.values() for structure in case.structures}

    @property
    def regions(self) -> dict[int, tuple[int, ...]]:
        """Values in a label map by label of a region; empty if the structures do not overlap."""
        return {one.label: one.values for case in self._by_id.values() for one in case.structures if one.values}

    # --- as files ---------------------------------------------------------------------------------------------------

    @property
    def content(self) -> dict[str, Any]:
        """The object in ``run.json``; empty for a run that has not got that far."""
        return {} if self.unfinished else self.to_json()

    def to_json(self) -> dict[str, Any]:
        """The object in ``run.json``."""
        return {
            "medseg": self.medseg,
            "versions": dict(self.versions),
            "bundle": asdict(self.bundle),
            "device": self.device,
            "precision": self.precision,
            "trust": dict(self.trust),
            "discriminator": dict(self.discriminator),
            "notes": list(self.notes),
            "options": dict(self.options),
            "skipped": [asdict(one) for one in self.skipped],
            "engine": {"engine": self.engine, "windows": "bundle"},
            "started": self.started,
            "finished": self.finished,
            "summary": self._summary(),
            "cases": [case.to_json() for case in self.cases],
        }

    def _summary(self) -> dict[str, Any]:
        return {
            "cases": len(self.cases),
            **self.statuses,
            "reasons": dict(Counter(case.reason for case in self.cases if case.reason)),
            "verdicts": self.verdicts,
            "discriminator": self.real,
            "trained_on": self.trained_on,
            "not_written": dict(Counter(kind for case in self.cases for kind in case.not_written)),
            "seconds": self.seconds,
            "computed": self.computed,
            "workers_lost": self.workers_lost,
            "pending": self.pending,
            "stages_seconds": self.stages,
        }

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> RunReport:
        """The run behind an object that fits :data:`RUN`; of what an older run did not state, nothing is known."""
        summary, bundle = content.get("summary") or {}, content.get("bundle") or {}
        stated = ("medseg", "device", "precision", "started", "finished")
        counted = ("seconds", "computed", "workers_lost", "pending")
        return cls(
            folder,
            tuple(map(CaseResult.from_json, content["cases"])),
            versions=content.get("versions") or {},
            bundle=BundleStamp(*(bundle.get(key) or "" for key in ("name", "version", "sha256"))),
            engine=(content.get("engine") or {}).get("engine") or "",
            trust=content.get("trust") or {},
            discriminator=content.get("discriminator") or {},
            notes=tuple(content.get("notes") or ()),
            options=content.get("options") or {},
            skipped=tuple(
                Skipped(one.get("source") or "", one.get("reason"), one.get("message") or "")
                for one in content.get("skipped") or ()
            ),
            **{key: content.get(key) or "" for key in stated},  # type: ignore[arg-type]
            **{key: summary.get(key) or 0 for key in counted},  # type: ignore[arg-type]
        )

    def write(self) -> None:
        """Write ``run.json`` and ``results.csv`` into the folder.

        Raises ``OutputUnusable`` if they cannot be written.
        """
        try:
            write_json(self.folder / RUN_JSON, self.to_json())
            write_text(self.folder / RESULTS_CSV, _table(self.cases))
        except OSError as error:
            raise OutputUnusable(
                f"run.json and results.csv cannot be written to {shown(self.folder)} ({error.strerror}); the journal"
                f" there holds {len(self.cases)} cases: make room and run the same command again, it computes only what"
                " is missing"
            ) from error

    @classmethod
    def read(cls, folder: Path) -> RunReport:
        """What ``medseg infer`` wrote into a folder.

        Raises ``UsageError`` if ``run.json`` is missing or damaged.
        """
        path = folder / RUN_JSON
        try:
            content = parse_json(read_bounded(path, LARGEST_BYTES))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read ({error}); give the folder that `medseg infer` wrote") from error
        if not isinstance(content, dict) or not isinstance(content.get("cases"), list):
            raise UsageError(f"{path} lists no cases; give the folder that `medseg infer` wrote")
        if wrong := misfit(content, RUN):
            raise UsageError(f"{path} is not as `medseg infer` writes it: {wrong}; run it again")
        return cls.from_json(folder, content)

    @classmethod
    def find(cls, folder: Path) -> RunReport | None:
        """The run that wrote ``folder``; None if no run did (another command's ``run.json`` has no cases).

        Raises ``UsageError`` if ``run.json`` or the state file is damaged.
        """
        report = cls.read(folder) if _has_cases(folder / RUN_JSON) else cls(folder, (), unfinished=True)
        report = replace(report, stored=_stored(folder / STATE_NAME))
        return None if report.unfinished and not report.stored else report


def _table(cases: Sequence[CaseResult]) -> str:
    names = list(dict.fromkeys(structure.name for case in cases for structure in case.structures))
    head = ["case_id", "source", "status", "reason", "message", "seconds", "outputs"]
    trust = ["predicted_dice", "lower_bound", "verdict", "flags", "trained_on", "not_written"]
    real = ["discriminator", *(f"{name}_real" for name in names), "case_class"]
    if not any(case.discriminator for case in cases):
        real = []
    sizes = ["volume_ml", "volume_low_ml", "volume_high_ml"]
    if not any(structure.interval for case in cases for structure in case.structures):
        sizes = sizes[:1]
    volumes = [f"{name}_{size}" for name in names for size in sizes]
    rows: list[Sequence[object]] = [[*head, *volumes, *trust, *real]]
    for case in cases:
        known = {
            one.name: (one.volume_ml, *((one.interval.low, one.interval.high) if one.interval else ("", "")))
            for one in case.structures
        }
        row = [case.case_id, case.source, case.status, case.reason or "", case.message, case.seconds]
        row += [" ".join(case.outputs)]
        row += [cell for name in names for cell in known.get(name, ("", "", ""))[: len(sizes)]]
        row += ["" if value is None else value for value in case.estimates]
        row += [case.verdict, " ".join(case.flags), "" if case.trained_on is None else str(case.trained_on).lower()]
        row += [" ".join(f"{kind}({why.reason})" for kind, why in case.not_written.items())]
        rows.append([*row, *(_real(case, names) if real else [])])
    return table_text(rows)


def _real(case: CaseResult, names: Sequence[str]) -> list[object]:
    """What the discriminator takes the case for, each structure's share, and what the image may suffer from."""
    found = case.discriminator
    shares = {one.name: one.share for one in found.structures} if found else {}
    cells = [None if (share := shares.get(name)) is None else round(share, 4) for name in names]
    fault = case.trust.fault.name if case.trust and case.trust.fault else None
    return [found.decision if found else None, *cells, fault]


def _has_cases(path: Path) -> bool:
    """Whether this is a run of cases and no other tool's file; what cannot be read is left to ``read``."""
    if not path.is_file():
        return False
    try:
        content = parse_json(read_bounded(path, LARGEST_BYTES))
    except (OSError, ValueError):
        return True
    return isinstance(content, dict) and "cases" in content


def _stored(path: Path) -> tuple[CaseResult, ...]:
    """The finished cases in a run's state file, which is opened for reading only."""
    if not path.is_file():
        return ()
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            rows = stored_cases(path, connection, ["result"])
    except sqlite3.Error as error:
        raise UsageError(f"{path} cannot be read as a run's journal ({error}); run `medseg infer` again") from error
    return tuple(CaseResult.from_json(row["result"]) for row in rows if row["result"] is not None)
