"""What a report tells, gathered from the files that ``infer`` and ``evaluate`` leave in a folder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.evaluation.case import StructureResult
from medseg.evaluation.pairing import EXTENSIONS, case_id_of_name, is_image_name
from medseg.evaluation.statistics import by_structure
from medseg.evaluation.tables import METRICS_CSV, read_csv, read_summary, run_names
from medseg.evaluation.trained_on import summarised
from medseg.results import RunFolder, worst_first

Locations = Path | Mapping[str, str | Path] | None
"""Where images or references lie: a folder, a path per case id, or not told."""

_NAMES_A_FILE = re.compile(r"[/\\]|\.(?:dcm|ima|img|hdr|nii|gz|mha|mhd|nrrd)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One row of the report's table and what belongs to it.

    ``estimates`` are predicted Dice and lower bound by label; ``look_at_mm`` is where the planes of greatest doubt
    meet (RAS, mm), ``doubt`` its map in per cent, ``trained_on`` whether the model has learnt from the image (None if
    that is not known).
    """

    case_id: str
    status: str = "done"
    reason: str = ""
    message: str = ""
    seconds: float | None = None
    verdict: str = ""
    predicted_dice: float | None = None
    lower_bound: float | None = None
    flags: tuple[str, ...] = ()
    estimates: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    look_at_mm: tuple[float, float, float] | None = None
    structures: tuple[StructureResult, ...] = ()
    image: str | Path | None = None
    prediction: Path | None = None
    reference: Path | None = None
    doubt: Path | None = None
    trained_on: bool | None = None

    @property
    def dice(self) -> tuple[float, ...]:
        """Dice of the structures for which it is defined."""
        return tuple(d for s in self.structures if (d := s.values.get("dice")) is not None)

    @property
    def worst_dice(self) -> float | None:
        """Dice of the worst structure, None without a reference."""
        return min(self.dice, default=None)

    @property
    def rank(self) -> tuple[int, bool, float, str]:
        """Sorting key that puts the case to look at first on top; what was not done comes last."""
        return worst_first(
            self.case_id,
            status=self.status,
            verdict=self.verdict,
            flags=self.flags,
            estimates=(self.predicted_dice, self.lower_bound),
            measured_dice=self.worst_dice,
        )


@dataclass(frozen=True)
class Study:
    """Everything that the page is made from."""

    cases: tuple[Case, ...]
    run: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether there are references, so that Dice and distances are known."""
        return any(
            s.values.get("reference_volume_ml") is not None or s.missed or s.invented or case.dice
            for case in self.cases
            for s in case.structures
        )

    @property
    def trained_on(self) -> dict[str, Any] | None:
        """How many of how many cases the model has learnt from; None if that is not known of any."""
        done = {case.case_id: case.trained_on for case in self.cases if case.status == "done"}
        return self.metrics.get("trained_on") or summarised(done, done)

    @property
    def names(self) -> dict[int, str]:
        """Structure names by label, in the order of the labels."""
        return dict(by_structure(s for case in self.cases for s in case.structures).keys())


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
    predictions = _folder_named(metrics, "predictions", folder)
    found = RunFolder.find(folder) or (RunFolder.find(predictions) if predictions else None)
    run = found.content if found else {}
    rows = _read_rows(folder / METRICS_CSV)
    if not run.get("cases") and not rows and not metrics:
        raise UsageError(
            f"{folder} holds neither run.json (from `medseg infer`) nor metrics.csv (from `medseg evaluate`), "
            "expected at least one of them; name the folder given to their -o option"
        )
    places = _Places(
        folder, predictions or folder, images, references or _folder_named(metrics, "references", folder), metrics
    )
    cases = _merge([_from_run(item, places) for item in run.get("cases", [])], rows, places)
    cases = _with_training(cases, metrics)
    return Study(tuple(sorted(cases, key=lambda case: case.rank)), run, metrics)


def _with_training(cases: Sequence[Case], metrics: Mapping[str, Any]) -> list[Case]:
    """What the evaluation knows of the training cases, for cases of which the run does not say it."""
    stated = metrics.get("trained_on") or {}
    names = run_names(metrics)
    learnt = {names.get(case_id, case_id) for case_id in stated.get("case_ids") or ()}
    return [replace(case, trained_on=True) if case.case_id in learnt else case for case in cases]


class _Places:
    """Finds the files of a case."""

    def __init__(
        self, folder: Path, predictions: Path, images: Locations, references: Locations, metrics: Mapping[str, Any]
    ) -> None:
        self.folder, self.predictions = folder, predictions
        self._images, self._references = _by_case(images), _by_case(references)
        listed = [item for item in metrics.get("cases") or [] if isinstance(item, Mapping)]
        names = run_names(metrics)
        by_id = {str(item.get("case_id")): item for item in listed}
        self._listed = {names.get(case_id, case_id): item for case_id, item in by_id.items()}
        self.names = names

    def image(self, case_id: str, source: object) -> str | Path | None:
        if case_id in self._images:
            return self._images[case_id]
        first = source[0] if isinstance(source, Sequence) and not isinstance(source, str) and source else source
        if not isinstance(first, str) or not first:
            return None
        return next(
            (path for path in (Path(first), self.folder / first, self.predictions / first) if path.exists()), None
        )

    def prediction(self, case_id: str) -> Path | None:
        named = self._listed.get(case_id, {}).get("prediction")
        candidates = [
            self.folder / f"{case_id}_seg.nii.gz",
            *_candidates(self.predictions, case_id),
            *_as_paths(named, self.folder),
        ]
        return next((path for path in candidates if path.is_file()), None)

    def doubt(self, case_id: str) -> Path | None:
        candidates = [place / f"{case_id}_doubt.nii.gz" for place in (self.folder, self.predictions)]
        return next((path for path in candidates if path.is_file()), None)

    def reference(self, case_id: str) -> Path | None:
        named = self._listed.get(case_id, {}).get("reference")
        found = [self._references[case_id]] if case_id in self._references else []
        return next((path for path in [*map(Path, found), *_as_paths(named, self.folder)] if path.is_file()), None)


def _candidates(folder: Path, case_id: str) -> list[Path]:
    return [folder / f"{case_id}{suffix}{extension}" for suffix in ("_seg", "") for extension in EXTENSIONS]


def _as_paths(named: object, folder: Path) -> list[Path]:
    return [Path(named), folder / named] if isinstance(named, str) and named else []


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


def _folder_named(metrics: Mapping[str, Any], key: str, folder: Path) -> Path | None:
    """The folder that an evaluation names, or that of the one file it names."""
    found = next((path for path in _as_paths(metrics.get(key), folder) if path.exists()), None)
    return found if found is None or found.is_dir() else found.parent


def _from_run(item: Mapping[str, Any], places: _Places) -> Case:
    case_id, trust = str(item["case_id"]), item.get("trust") or {}
    source = item.get("source")
    done = (item.get("status") or "done") == "done"
    return Case(
        case_id=case_id,
        status=str(item.get("status") or "done"),
        reason=str(item.get("reason") or ""),
        message=_safe_message(str(item.get("message") or ""), source, case_id),
        seconds=_number(item.get("seconds")),
        verdict=str(trust.get("verdict") or ""),
        predicted_dice=_lowest(trust.get("predicted_dice")),
        lower_bound=_lowest(trust.get("lower_bound")),
        flags=tuple(map(str, trust.get("flags") or ())),
        estimates=_estimates(trust),
        look_at_mm=_point(trust.get("look_at_mm")),
        structures=tuple(
            StructureResult(
                int(s["label"]), str(s["name"]), {"volume_ml": _number(s.get("volume_ml"))}, case_id=case_id
            )
            for s in item.get("structures") or ()
        ),
        image=places.image(case_id, source) if done else None,
        prediction=places.prediction(case_id) if done else None,
        reference=places.reference(case_id) if done else None,
        doubt=places.doubt(case_id) if done and trust else None,
        trained_on=item["trained_on"] if isinstance(item.get("trained_on"), bool) else None,
    )


def _estimates(trust: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
    found = {}
    for item in trust.get("structures") or ():
        predicted, lowest = _number(item.get("predicted_dice")), _number(item.get("lower_bound"))
        if predicted is not None and lowest is not None:
            found[int(item["label"])] = (predicted, lowest)
    return found


def _point(value: object) -> tuple[float, float, float] | None:
    if not isinstance(value, Sequence) or len(value) != 3:
        return None
    x, y, z = (float(v) for v in value)
    return x, y, z


def _safe_message(message: str, source: object, case_id: str) -> str:
    """Folder and file names may carry a patient's name: a message that names one stays out of a page that travels."""
    text = message.replace(source, case_id) if isinstance(source, str) and source else message
    return "" if _NAMES_A_FILE.search(text.replace(case_id, "")) else text


def _merge(cases: Sequence[Case], rows: Mapping[str, tuple[StructureResult, ...]], places: _Places) -> list[Case]:
    by_id = {case.case_id: case for case in cases}
    for scored_id, structures in rows.items():
        case_id = places.names.get(scored_id, scored_id)
        known = by_id.get(case_id)
        if known is None:
            known = Case(
                case_id,
                image=places.image(case_id, None),
                prediction=places.prediction(case_id),
                reference=places.reference(case_id),
            )
        by_id[case_id] = replace(known, structures=structures)
    return list(by_id.values())


def _read_rows(path: Path) -> dict[str, tuple[StructureResult, ...]]:
    if not path.is_file():
        return {}
    rows: dict[str, tuple[StructureResult, ...]] = {}
    for result in read_csv(path):
        rows[result.case_id] = (*rows.get(result.case_id, ()), result)
    return rows


def _number(value: object) -> float | None:
    if value is None or value == "" or isinstance(value, bool):
        return None
    number = float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else None


def _lowest(value: object) -> float | None:
    """Trust may speak of the whole case or of each structure; the report shows the least trusted one."""
    if isinstance(value, Mapping):
        return min((n for v in value.values() if (n := _number(v)) is not None), default=None)
    return _number(value)
