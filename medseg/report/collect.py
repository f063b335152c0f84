"""What a report says, gathered from the files that ``infer`` and ``evaluate`` leave in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.evaluation.case import StructureResult
from medseg.evaluation.pairing import EXTENSIONS, case_id_of_name, is_image_name
from medseg.evaluation.statistics import by_structure
from medseg.evaluation.tables import METRICS_CSV, read_csv, read_summary, run_names
from medseg.evaluation.trained_on import summarised
from medseg.results import CaseResult, RunReport, worst_first
from medseg.results.accept_table import AcceptTable
from medseg.results.verdict import DiscriminatorVerdict, Interval, Judged, Verdict

Locations = Path | Mapping[str, str | Path] | None
"""Where images or references lie: a folder, a path per case id, or not known."""

_NAMES_A_FILE = re.compile(r"[/\\]|\.(?:dcm|ima|img|hdr|nii|gz|mha|mhd|nrrd)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Case(Judged):
    """One row of the report's table and what belongs to it.

    ``doubt`` is the map of it in per cent, ``trained_on`` whether the model has learnt from the image (None if that is
    not known).
    """

    case_id: str
    status: str = "done"
    reason: str = ""
    message: str = ""
    seconds: float | None = None
    trust: Verdict | None = None
    structures: tuple[StructureResult, ...] = ()
    image: str | Path | None = None
    prediction: Path | None = None
    reference: Path | None = None
    doubt: Path | None = None
    trained_on: bool | None = None
    discriminator: DiscriminatorVerdict | None = None
    volumes: Mapping[int, Interval] = field(default_factory=dict)  # by label: where the volume of a reference lies, ml

    @property
    def dice(self) -> tuple[float, ...]:
        """Dice of the structures for which it is defined."""
        return tuple(d for s in self.structures if (d := s.values.get("dice")) is not None)

    @property
    def rank(self) -> tuple[int, bool, float, str]:
        """Sorting key that puts the case to look at first on top; what was not done comes last."""
        return worst_first(
            self.case_id,
            status=self.status,
            trust=self.trust,
            measured_dice=min(self.dice, default=None),
        )


@dataclass(frozen=True)
class Trust:
    """What a run says of its calibration: state, thresholds of accept and reject, coverage of the lower bounds.

    ``worth`` says what an accepted result is worth, empty if that is not known; ``wider_for`` are the kinds of image
    with a lower bound of their own.
    """

    state: str = ""
    accept: float | None = None
    reject: float | None = None
    coverage: float = 0.9
    worth: str = ""
    wider_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Everything that the page is made from."""

    cases: tuple[Case, ...]  # worst first
    of_run: bool = False  # whether a run's ``run.json`` was found
    model: str = ""  # the bundle's name; empty if not known
    facts: tuple[tuple[str, str], ...] = ()  # name and value of what computed
    trust: Trust = field(default_factory=Trust)  # what the run says of its calibration
    summaries: Mapping[str, Any] = field(default_factory=dict)  # ``structures`` of ``metrics.json``; empty without one
    learnt: Mapping[str, Any] | None = None
    accepted: Mapping[str, Any] | None = None
    """``learnt``, ``accepted``: ``trained_on`` and ``accepted`` of ``metrics.json``."""
    definitions: tuple[tuple[str, str], ...] = ()  # of the figures: name and text
    n_unpaired: int = 0
    n_warnings: int = 0
    """``n_unpaired``, ``n_warnings``: files without a partner and warnings of the evaluation."""

    @property
    def structures(self) -> list[StructureResult]:
        """Those of all cases."""
        return [structure for case in self.cases for structure in case.structures]

    @property
    def measured(self) -> bool:
        """Whether there are references, so that Dice and distances are known."""
        known = ("reference_volume_ml", "dice")
        return any(s.missed or s.invented or any(s.values.get(k) is not None for k in known) for s in self.structures)

    @property
    def trained_on(self) -> Mapping[str, Any] | None:
        """How many of how many cases the model has learnt from; None if that is not known of any."""
        done = {case.case_id: case.trained_on for case in self.cases if case.status == "done"}
        return self.learnt or summarised(done, done)

    @property
    def names(self) -> dict[int, str]:
        """Structure names by label, in the order of the labels."""
        return dict(by_structure(self.structures).keys())


def collect(folder: Path, images: Locations = None, references: Locations = None) -> Study:
    """Read an ``infer`` folder, an ``evaluate`` folder, or one that holds both.

    Parameters
    ----------
    folder
        Holds ``run.json``, or ``metrics.csv`` and ``metrics.json``, or all of them.
    images, references
        Where the images and the reference masks lie, if the folder's own files do not tell.

    Returns
    -------
    Study
        Cases sorted worst first.

    Raises
    ------
    UsageError
        If the folder holds neither kind of result, or a file in it cannot be read.
    """
    metrics = read_summary(folder)
    predictions = _folder_named(metrics.get("predictions"), folder)
    found = RunReport.find(folder) or (RunReport.find(predictions) if predictions else None)
    run = None if found is None or found.unfinished else found
    scored = read_csv(folder / METRICS_CSV) if (folder / METRICS_CSV).is_file() else []
    if not (run and run.cases) and not scored and not metrics:
        raise UsageError(
            f"{folder} holds neither run.json (from `medseg infer`) nor metrics.csv (from `medseg evaluate`), "
            "expected at least one of them; name the folder given to their -o option"
        )
    references = references or _folder_named(metrics.get("references"), folder)
    files = _Files(folder, predictions or folder, images, references, metrics)
    cases = {case.case_id: case for case in (_from_run(result, files) for result in (run.cases if run else ()))}
    learnt = {files.names.get(case_id, case_id) for case_id in (metrics.get("trained_on") or {}).get("case_ids") or ()}
    rows: dict[str, list[StructureResult]] = {}
    for row in scored:
        rows.setdefault(files.names.get(row.case_id, row.case_id), []).append(row)
    for case_id, structures in rows.items():
        cases[case_id] = replace(cases.get(case_id) or files.of(Case(case_id), None), structures=tuple(structures))
    marked = [replace(case, trained_on=True) if case.case_id in learnt else case for case in cases.values()]
    return Study(
        tuple(sorted(marked, key=lambda case: case.rank)),
        of_run=run is not None,
        model=run.bundle.name if run else "",
        facts=tuple(_facts(run)) if run else (),
        trust=_trust(run.trust if run else {}),
        summaries={name: row for name, row in (metrics.get("structures") or {}).items() if row.get("metrics")},
        learnt=metrics.get("trained_on"),
        accepted=metrics.get("accepted"),
        definitions=tuple(_definitions(metrics.get("definitions") or {})),
        n_unpaired=metrics.get("n_unpaired") or 0,
        n_warnings=len(metrics.get("warnings") or ()),
    )


class _Files:
    """Finds the files of a case."""

    def __init__(
        self, folder: Path, predictions: Path, images: Locations, references: Locations, metrics: Mapping[str, Any]
    ) -> None:
        self._folder, self._predictions = folder, predictions
        self._images, self._references = _by_case(images), _by_case(references)
        self.names = run_names(metrics)
        listed = metrics.get("cases") or []
        self._listed = {self.names.get(item["case_id"], item["case_id"]): item for item in listed}

    def of(self, case: Case, source: str | None) -> Case:
        """The case with its files; ``source`` is where its run found the image."""
        case_id, listed = case.case_id, self._listed.get(case.case_id, {})
        places = [self._folder / source, self._predictions / source, Path(source)] if source else []
        image = self._images.get(case_id) or next((path for path in places if os.path.exists(path)), None)  # noqa: PTH110  as above
        own = [self._predictions / f"{case_id}{suffix}{end}" for suffix in ("_seg", "") for end in EXTENSIONS]
        predictions = [self._folder / f"{case_id}_seg.nii.gz", *own, *_as_paths(listed.get("prediction"), self._folder)]
        reference = [Path(self._references[case_id])] if case_id in self._references else []
        return replace(
            case,
            image=image,
            prediction=_first(predictions),
            reference=_first([*reference, *_as_paths(listed.get("reference"), self._folder)]),
        )

    def doubt(self, case_id: str) -> Path | None:
        return _first([place / f"{case_id}_doubt.nii.gz" for place in (self._folder, self._predictions)])


def _first(paths: list[Path]) -> Path | None:
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113  False for a name too long


def _as_paths(named: str | None, folder: Path) -> list[Path]:
    return [Path(named), folder / named] if named else []


def _by_case(where: Locations) -> dict[str, str | Path]:
    if where is None:
        return {}
    if isinstance(where, Mapping):
        return dict(where)
    if not where.is_dir():
        raise UsageError(f"{where} is not a folder; give the folder that holds one file per case")
    files = sorted(path for path in where.iterdir() if is_image_name(path.name))
    names = [(case_id_of_name(path.name), path) for path in files]
    return {key: path for name, path in names for key in (name, name.removesuffix("_0000"))}


def _folder_named(named: str | None, folder: Path) -> Path | None:
    """The folder that an evaluation names, or that of the one file it names."""
    found = next((path for path in _as_paths(named, folder) if os.path.exists(path)), None)  # noqa: PTH110  as above
    return found if found is None or found.is_dir() else found.parent


def _from_run(result: CaseResult, files: _Files) -> Case:
    case = Case(
        result.case_id,
        result.status,
        result.reason or "",
        _safe_message(result.message, result.source, result.case_id),
        result.seconds,
        result.trust,
        tuple(
            StructureResult(s.label, s.name, {"volume_ml": s.volume_ml}, case_id=result.case_id)
            for s in result.structures
        ),
        trained_on=result.trained_on,
        discriminator=result.discriminator,
        volumes={one.label: one.interval for one in result.structures if one.interval},
    )
    if case.status != "done":
        return case
    return replace(files.of(case, result.source), doubt=files.doubt(case.case_id) if case.trust else None)


def _safe_message(message: str, source: str, case_id: str) -> str:
    """Folder and file names may carry a patient's name: a message that names one stays out of a page that travels."""
    text = message.replace(source, case_id) if source else message
    return "" if _NAMES_A_FILE.search(text.replace(case_id, "")) else text


def _facts(run: RunReport) -> Iterator[tuple[str, str]]:
    facts = {
        "model": " ".join(filter(None, (run.bundle.name, run.bundle.version))),
        "weights": run.bundle.sha256[:12],
        "device": " · ".join(filter(None, (run.device, run.precision))),
        "finished": run.finished[:16].replace("T", " "),
    }
    yield from ((name, value) for name, value in facts.items() if value)


def _trust(stated: Mapping[str, Any]) -> Trust:
    limits, coverage = stated.get("thresholds") or {}, stated.get("coverage")
    covers, accept, table = 0.9 if coverage is None else coverage, limits.get("accept"), stated.get("accepted")
    worth = AcceptTable.from_json(table).describe(accept) if table else ""
    kinds = tuple(stated.get("wider_for") or ())
    return Trust(stated.get("state") or "", accept, limits.get("reject"), covers, worth, kinds)


def _definitions(stated: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, name in (("percentile_rule", "Percentiles"), ("surface", "Surface")):
        if stated.get(key):
            yield name, stated[key]
    if stated.get("tolerance_mm") is not None:
        yield "NSD tolerance", f"{stated['tolerance_mm']} mm"
