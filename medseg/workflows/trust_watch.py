"""Results of weeks, watched: has what trust says of them changed to the worse, in what, and since when?

Runs are read in the order of their time. What another bundle, version or engine has made is a stream of its own, whose
figures are not those of the former one. Within a stream every result counts once, however often it was written; the
test is that of :mod:`medseg.trust.change`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import UsageError
from medseg.files import shown
from medseg.results.case_result import CaseResult
from medseg.results.run_report import RUN_JSON, RunReport
from medseg.results.verdict import (
    IMPLAUSIBLE_SHAPE,
    NOT_JUDGED,
    STRUCTURE_MISSING,
    TOO_LARGE,
    UNLIKE_TRAINING,
    USUAL,
)
from medseg.trust.change import Change, watch_changes

FEWEST = 20
"""A reference of fewer results says too little of what is usual."""

FLAGS = (UNLIKE_TRAINING, IMPLAUSIBLE_SHAPE, STRUCTURE_MISSING, TOO_LARGE, NOT_JUDGED)
KINDS = ("noise", "blur", "motion", "bias-field", "coarse", "gamma", "contrast", "crop")
"""Fault kinds that are watched one by one, fixed before any result is seen; all others together are one more."""

DICE, OTHER_KIND = "predicted Dice", "looks like something else"
_MOST_STRETCHES = 40


@dataclass(frozen=True)
class Maker:
    """What has made a result; another one is another stream."""

    name: str
    version: str
    files: str  # SHA-256 of the bundle's weights, configuration and trust together
    engine: str
    options: str  # what else the figures depend on: mirrored views, further networks

    @classmethod
    def of(cls, run: RunReport) -> Maker:
        """Of the results of a run."""
        more = {key: run.options[key] for key in ("mirror", "ensemble") if run.options.get(key)}
        return cls(run.bundle.name, run.bundle.version, run.bundle.sha256, run.engine, json.dumps(more) if more else "")

    def told(self, before: Maker) -> str:
        """What differs from another maker."""
        # only a SHA-256 is shortened: of names and versions the end may be what differs
        own, former = ({**asdict(one), "files": one.files[:8]} for one in (self, before))
        changed = [name for name in own if getattr(self, name) != getattr(before, name)]
        return ", ".join(f"{name} {former[name] or 'none'} → {own[name] or 'none'}" for name in changed)


@dataclass(frozen=True)
class Study:
    """One result in a stream, and the run that it is of."""

    case: CaseResult
    folder: Path
    started: datetime

    @cached_property
    def identity(self) -> str:
        """The same for a result that was written again; DICOM objects differ each time, label maps do not.

        Empty label maps are alike, so that of a network that finds nothing any more the sources are told apart.
        """
        case, stamp = self.case, self.case.checksums.get(self.case.label_map)
        sizes, trust = [one.to_json() for one in case.structures], case.trust and case.trust.to_json()
        said: Any = [stamp.sha256] if stamp else [sizes, trust]
        if not any(one.volume_ml != 0 for one in case.structures):
            said += [case.source, sizes, trust]
        parts = [case.case_id, case.status, said if case.status == "done" else [case.source, case.reason]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def place(self) -> dict[str, str]:
        """For ``--json``."""
        return {"case_id": self.case.case_id, "folder": str(self.folder), "started": self.started.isoformat()}


@dataclass(frozen=True)
class Finding:
    """What became of one quantity: its mean before and since the change, or in the reference and after it."""

    name: str
    change: Change
    before: float | None
    since: float | None
    history: tuple[float, ...]  # means of up to 40 stretches of the stream with equally many results


@dataclass(frozen=True)
class Stream:
    """Results of one maker in the order of their time, the reference first, and what was found."""

    maker: Maker
    after: Maker | None  # who has made the former results of the same bundle
    studies: tuple[Study, ...]
    n_reference: int
    left_out: Mapping[str, int]  # how many results were not counted, by why
    findings: tuple[Finding, ...]

    @property
    def changes(self) -> list[Finding]:
        """The quantities that changed, the clearest first."""
        return sorted((one for one in self.findings if one.change.changed), key=lambda one: -one.change.evidence)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; results are counted from 1."""
        return {
            "bundle": asdict(self.maker),
            "other_than_before": self.after and self.maker.told(self.after),
            "results": len(self.studies),
            "reference": min(self.n_reference, len(self.studies)),
            "statuses": dict(Counter(study.case.status for study in self.studies)),
            "left_out": dict(self.left_out),
            "first": self.studies[0].place(),
            "last": self.studies[-1].place(),
            "quantities": [self._as_json(one) for one in self.findings],
        }

    def _as_json(self, one: Finding) -> dict[str, Any]:
        stated = {"name": one.name, "changed": one.change.changed, "evidence": one.change.evidence}
        at = {} if one.change.told is None else {"began": one.change.since, "told": one.change.told}
        places = {key: {"result": n + 1, **self.studies[n].place()} for key, n in at.items()}
        return {**stated, "before": one.before, "since": one.since, "history": list(one.history), **places}


@dataclass(frozen=True)
class Watched:
    """What :func:`watch` found."""

    streams: tuple[Stream, ...]
    unread: Mapping[Path, str]  # folders that could not be read, and why
    n_runs: int
    per_1000: float  # false alarms that are allowed in 1000 results on average

    @property
    def changed(self) -> bool:
        """Whether anything has changed."""
        return any(stream.changes for stream in self.streams)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        unread = [{"folder": str(folder), "message": why} for folder, why in self.unread.items()]
        streams = [stream.as_json() for stream in self.streams]
        stated = {"changed": self.changed, "false_alarms_per_1000": self.per_1000, "runs": self.n_runs}
        return {**stated, "streams": streams, "unread": unread}


def watch(
    results: Iterable[Path], reference: Iterable[Path] = (), *, baseline: int = 100, per_1000: float = 1.0
) -> Watched:
    """Test the results of weeks for change to the worse.

    Parameters
    ----------
    results
        Folders that ``medseg infer`` or ``medseg pacs`` wrote, or folders of these, in any order.
    reference
        Likewise, results that are as they should be; without any the first ones of each stream are taken for that.
    baseline
        How many these are.
    per_1000
        How many false alarms are allowed on average in 1000 results, over all quantities and streams.

    Raises
    ------
    UsageError
        If no run can be read, or the reference does not fit the results.
    """
    if baseline < FEWEST or not 0 < per_1000 < 1000:
        raise UsageError(f"baseline {baseline}, {per_1000:g} false alarms in 1000; give {FEWEST} or more, and above 0")
    (usual, unfit), (runs, unread) = _read(reference), _read(results)
    for why in [*unfit.values(), *(() if runs else unread.values())][:1]:
        raise UsageError(why)
    before, after = _by_maker(usual), _by_maker(runs)
    if usual and not before.keys() & after.keys():
        raise UsageError("no result is by the bundle of the reference as it was then; give a reference by the same one")
    streams: list[Stream] = []
    for maker, studies in after.items():
        former = [one.maker for one in streams if one.maker.name == maker.name]
        stream = _stream(maker, before.get(maker, []), studies, baseline, per_1000 / 1000)
        streams += [replace(stream, after=former[-1] if former else None)] if stream.studies else []
    if not streams:
        raise UsageError("there are no results but of cases that the bundle has learnt from, if any; nothing to watch")
    return Watched(tuple(streams), unread, len(runs), per_1000)


def _read(places: Iterable[Path]) -> tuple[list[tuple[datetime, RunReport]], dict[Path, str]]:
    """The runs in these folders with the time of their beginning, in its order; those that cannot be read, and why."""
    runs: dict[Path, tuple[datetime, RunReport]] = {}
    unread: dict[Path, str] = {}
    for place in places:
        inside = [] if (place / RUN_JSON).exists() else list(_folders_of_runs(place, unread))
        for folder in inside or [place]:
            try:
                if (run := RunReport.find(folder)) is not None:
                    runs[folder.resolve()] = _started(run), run
                elif not inside:  # what lies deeper may be of another command
                    raise UsageError(f"{shown(folder)} holds no run; give folders that `medseg infer` wrote")
            except UsageError as error:
                unread[folder] = str(error)
    ordered = sorted(runs.items(), key=lambda item: (item[1][0], item[1][1].finished, item[0]))
    return [run for _, run in ordered], dict(sorted(unread.items()))


def _folders_of_runs(place: Path, unread: dict[Path, str]) -> Iterator[Path]:
    """Folders below that hold a ``run.json``, those that links lead to, too, each once; which cannot be listed."""

    def unlisted(error: OSError) -> None:
        folder = Path(error.filename)
        if folder.is_dir():
            unread[folder] = f"{shown(folder)} cannot be listed ({error.strerror}); make it readable"

    seen = set[str]()
    for folder, below, files in os.walk(place, onerror=unlisted, followlinks=True):
        below[:] = sorted(below) if (real := os.path.realpath(folder)) not in seen else []
        if RUN_JSON in files and real not in seen:
            yield Path(folder)
        seen.add(real)


def _started(run: RunReport) -> datetime:
    try:
        started = datetime.fromisoformat(run.started)
    except ValueError as error:
        why = "was cut off" if run.unfinished else "does not say when it started"
        raise UsageError(f"the run in {shown(run.folder)} {why}; run the same `medseg infer` again") from error
    return started if started.tzinfo else started.replace(tzinfo=UTC)


def _by_maker(runs: Iterable[tuple[datetime, RunReport]]) -> dict[Maker, list[Study]]:
    found: dict[Maker, list[Study]] = {}
    for started, run in runs:
        found.setdefault(Maker.of(run), []).extend(Study(case, run.folder, started) for case in run.cases)
    return found


def _stream(maker: Maker, usual: Sequence[Study], later: Sequence[Study], baseline: int, rate: float) -> Stream:
    """Reference and results one after the other, tested; what the bundle has learnt from looks better than others."""
    left_out, kept, n_usual = Counter[str](), dict[str, Study](), 0
    for number, study in enumerate([*usual, *later]):
        if study.case.trained_on or study.identity in kept:
            left_out["trained on" if study.case.trained_on else "repeated"] += 1
        else:
            kept[study.identity] = study
            n_usual += number < len(usual)
    if usual and n_usual < FEWEST:
        raise UsageError(f"the reference has {n_usual} results of {maker.name}; give {FEWEST} or more")
    cases, n_reference = [study.case for study in kept.values()], n_usual or baseline
    values, structures = list(map(values_of, cases)), {one.name for case in cases for one in case.assessed}
    weights = weights_of(sorted(structures))
    series = {name: [found.get(name) for found in values] for name in weights}
    worse = {n: [-v if v and n.startswith(DICE) else v for v in column] for n, column in series.items()}
    lots = {name: [_lot(f"{identity} {name}") for identity in kept] for name in weights}
    changes = watch_changes(worse, lots, weights, n_reference, rate)
    known = [name for name in weights if any(found is not None for found in series[name])]
    found = tuple(_finding(name, changes[name], series[name], n_reference) for name in known)
    return Stream(maker, None, tuple(kept.values()), n_reference, left_out, found)


def _lot(text: str) -> float:
    """A number in [0, 1) that is the same at every look and has nothing to do with how good a result is."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _finding(name: str, change: Change, values: Sequence[float | None], n_reference: int) -> Finding:
    cut = change.since if change.changed else n_reference
    known = np.array([value for value in values if value is not None])
    stretches = np.array_split(known, min(_MOST_STRETCHES, -(-len(known) // 5)))
    history = tuple(round(float(stretch.mean()), 6) for stretch in stretches)
    return Finding(name, change, _mean(values[:cut]), _mean(values[cut:]), history)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 6) if known else None


def values_of(case: CaseResult) -> dict[str, float]:
    """What is watched of a result, by name: estimates of Dice, 1 for what is the case; what is not known is absent."""
    found: dict[str, float] = {name: case.status == name for name in ("failed", "refused")}
    if case.trust is None:
        return found
    found |= {"not accepted": case.verdict != "accept"} if case.trust.calibrated else {}
    found |= {"flagged": bool(case.flags)}
    found |= {f"flagged {flag}": flag in case.flags for flag in FLAGS}
    if case.assessed:
        found |= {DICE: case.estimates[0] or 0.0}
        found |= {f"{DICE} of {one.name}": one.predicted_dice for one in case.assessed}
    if case.trust.fault:
        kind = case.trust.fault.name
        found |= {"not a usual image": kind != USUAL, **{f"looks like {name}": kind == name for name in KINDS}}
        found[OTHER_KIND] = kind not in {USUAL, *KINDS}
    return found


def weights_of(structures: Sequence[str]) -> dict[str, float]:
    """The share of the rate that each quantity gets; the shares add up to 1, whatever the results are."""
    flags, kinds = [f"flagged {flag}" for flag in FLAGS], [*(f"looks like {kind}" for kind in KINDS), OTHER_KIND]
    shares = [(1 / 8, ["failed"]), (1 / 8, ["refused"]), (1 / 8, [DICE])]
    shares += [(1 / 8, [f"{DICE} of {name}" for name in structures])]
    shares += [(1 / 12, ["not accepted"]), (1 / 12, ["flagged"]), (1 / 12, flags)]
    shares += [(1 / 12, ["not a usual image"]), (1 / 6, kinds)]
    return {name: share / len(names) for share, names in shares for name in names}
