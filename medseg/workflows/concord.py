"""Several bundles or result folders side by side on the same studies, without truth."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg._version import medseg_version
from medseg.bundle import Bundle
from medseg.bundle.find import find_bundle, is_bundle
from medseg.errors import MedsegError, Refusal, UsageError
from medseg.evaluation.concordance import DEFINITIONS, MARGIN, MOST_READERS, Concord, compare_case, summarise_cases
from medseg.evaluation.definitions import Definitions, describe
from medseg.evaluation.matching import Matched, Offered, match, match_by_table, term_of
from medseg.evaluation.pairing import CaseFile, Collection, collect, match_key, pair_up
from medseg.evaluation.scoring import on_grid, read_side
from medseg.evaluation.statistics import Bootstrap
from medseg.evaluation.structures import plain, structures_of
from medseg.files import prepare_folder, write_json, write_text
from medseg.geometry import Geometry
from medseg.labels.dicom_labels import names_in, open_labels
from medseg.labels.dicom_objects import label_object
from medseg.labels.image_grid import ImageGrid
from medseg.labels.scheme import LabelScheme
from medseg.report.concord import write_concord
from medseg.results import RunReport
from medseg.tables import table_text

if TYPE_CHECKING:
    from medseg.inference import Options

CONCORD_CSV, CONCORD_JSON, CONCORD_HTML = "concord.csv", "concord.json", "concord.html"
_FIGURES = ("dice", "hd95_mm", "assd_mm", "nsd")
_TOLERANCE_MM = 1.0
_HEAD = (
    "case_id", "structure", "compared", "with", *_FIGURES, "compared_volume_ml", "with_volume_ml", "only_in",
    "odd_one_out", "odd_one_out_of_case",
)  # fmt: skip


@dataclass(frozen=True)
class ConcordResult:
    """What :func:`concord` found and wrote."""

    output: Path  # the folder with ``concord.csv``, ``concord.json`` and ``concord.html``
    cases: Sequence[Concord]  # worst agreement first
    summary: Mapping[str, Any]  # the content of ``concord.json``

    @property
    def complete(self) -> bool:
        """Whether every case has a result of everyone and could be compared."""
        return bool(self.cases) and not self.summary["missing"] and not self.summary["refused"]


@dataclass(frozen=True)
class _Reader:
    """A bundle that labels studies, or a folder of results: its structures, and its label maps once it has some."""

    name: str
    bundle: Bundle | None
    found: Collection
    scheme: LabelScheme  # what names in DICOM objects mean
    offered: Sequence[Offered]
    asked: frozenset[str] = frozenset()  # cases of its run, also those that it has no label map of

    @classmethod
    def of_bundle(cls, name: str, path: Path) -> _Reader:
        bundle = Bundle.open(path)
        scheme, codes = bundle.scheme, bundle.label_codes
        offered = [
            Offered(text, scheme.members.get(label, (label,)), term_of(codes.get(label)))
            for label, text in scheme.structures.items()
        ]
        return cls(name, bundle, Collection(path, {}), scheme, offered)

    @classmethod
    def of_results(cls, name: str, source: Path) -> _Reader:
        found = collect(source, "predictions")
        known = structures_of(None, found, found)
        maker, objects = _made_by(found.run), {} if known.names else _names_in_objects(found)
        codes, members = {} if maker is None else maker.label_codes, known.truth.members
        names = dict(known.names) or objects or {value: str(value) for value in _values(found)}
        scheme = LabelScheme(objects) if objects else known.scheme
        offered = [
            Offered(text, members.get(label, (label,)), term_of(codes.get(label))) for label, text in names.items()
        ]
        asked = (
            frozenset(one.case_id for one in found.run.cases) if found.run and not found.single else frozenset[str]()
        )
        return cls(name, None, found, scheme, offered, asked)

    def why_missing(self, case_id: str) -> str:
        """What its run says of a case that it has no label map of."""
        case = None if self.found.run is None else self.found.run.case(case_id)
        return "has no result of it" if case is None else f"{case.status} ({case.reason or 'no label map'})"


def _made_by(run: RunReport | None) -> Bundle | None:
    """The bundle that made a folder, for its coded terms, where it is still known by its name and unchanged."""
    try:
        bundle = Bundle.open(run.bundle.name) if run is not None and run.bundle.name else None
        same = run is not None and bundle is not None and bundle.sha256 == run.bundle.sha256
    except (MedsegError, OSError):
        return None
    return bundle if same else None


def _names_in_objects(found: Collection) -> dict[int, str]:
    """Names in DICOM objects, numbered, where nothing else names them; what cannot be read is refused when compared."""
    names: dict[str, str] = {}
    for file in found.files.values():
        if (header := label_object(file.path)) is None:
            return {}
        with suppress(Refusal):
            names = {**{plain(name): name for name in names_in(open_labels(header, file.path.name))}, **names}
    return dict(enumerate(sorted(names.values()), start=1))


def _values(found: Collection) -> list[int]:
    """Values of label maps that nothing names; what cannot be read is refused when it is compared."""
    values: set[int] = set()
    for file in found.files.values():
        with suppress(Refusal):
            values |= read_side(file, LabelScheme(), None).values.voxels.keys()
    return sorted(values - {0})


def concord(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    table: Path | None = None,
    margin: float = MARGIN,
    options: Options | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    say: Callable[[str], None] = lambda _: None,
) -> ConcordResult:
    """Label studies with several bundles, compare what they and result folders say, and write what was found.

    Parameters
    ----------
    sources
        Bundles and folders that ``medseg infer`` wrote; what else there is, are the studies that the bundles label.
        Without a bundle everything is a folder of results: label maps of any origin, or a datalist of them.
    output
        Gets ``concord.csv``, ``concord.json`` and ``concord.html`` (older ones are gone at once), and a folder of
        results for each bundle, where a run that was stopped goes on.
    table
        Which structures are the same (:func:`~medseg.evaluation.matching.match_by_table`); else terms and names tell.
    margin
        What makes an odd one out: see :data:`~medseg.evaluation.concordance.DEFINITIONS`.
    progress, say
        Called with cases done and cases in all of each step; with a line at its beginning, and those of the runs.

    Raises
    ------
    UsageError
        If there are fewer than two to compare, no structure is the same, no case has two results, or a bundle would
        write over results that are compared.
    """
    folder = prepare_folder(output)
    for name in (CONCORD_CSV, CONCORD_JSON, CONCORD_HTML):
        (folder / name).unlink(missing_ok=True)  # a command that fails must not leave an older one's results
    readers, studies = _readers(sources)
    given = {one.found.source.resolve() for one in readers if one.bundle is None}
    if taken := [place for one in readers if one.bundle and (place := folder / one.name).resolve() in given]:
        raise UsageError(f"{taken[0]} is to be compared, and a bundle would write there; give another --output")
    offered = {reader.name: reader.offered for reader in readers}
    structures, alone = match(offered) if table is None else match_by_table(table, offered)
    readers = [_labelled(one, studies, folder / one.name, options, progress, say) for one in readers]
    files = _cases(readers)
    schemes = {reader.name: reader.scheme for reader in readers}
    cases, refused = [], []
    say("comparing")
    for done, (case_id, of) in enumerate(sorted(files.items()), start=1):
        if len(of) > 1:
            try:
                cases.append(compare_case(case_id, *_read(of, schemes), structures, margin))
            except Refusal as refusal:
                refused.append({"case_id": case_id, "code": refusal.code, "message": refusal.message})
        progress(done, len(files))
    if not cases and not refused:
        raise UsageError(f"no case has two results: {_shown(readers)}; file names must agree but for a trailing _seg")
    cases.sort(key=lambda case: (case.worst, case.case_id))
    missing = [
        {"case_id": case_id, "reader": reader.name, "why": reader.why_missing(case_id)}
        for case_id in sorted({*files, *_of_nobody(readers, files)})
        for reader in readers
        if reader.name not in files.get(case_id, ())
    ]
    summary = {
        **_head(readers, structures, alone, margin),
        **summarise_cases(cases, Bootstrap()),
        "missing": missing,
        "refused": refused,
        "cases": [{"case_id": one.case_id, "odd_one_out": one.odd, "agreement": one.agreement,
                   "opinions": [asdict(opinion) for opinion in one.opinions]} for one in cases],
    }  # fmt: skip
    write_text(folder / CONCORD_CSV, table_text([_HEAD, *(row for case in cases for row in _rows(case))]))
    images = {case_id: _image(of, readers) for case_id, of in files.items()}

    def read(case_id: str) -> tuple[dict[str, NDArray[Any]], Geometry]:
        return _read(files[case_id], schemes)

    say("drawing")
    write_concord(folder / CONCORD_HTML, cases, structures, summary, images, read, progress)
    write_json(folder / CONCORD_JSON, summary)
    return ConcordResult(folder, cases, summary)


def _readers(sources: Sequence[str | Path]) -> tuple[list[_Reader], list[Path]]:
    """What is compared, each under a name of its own, and the studies for bundles to label."""
    paths = [find_bundle(source) for source in sources]
    if absent := [str(path) for path in paths if not path.exists()]:
        raise UsageError(f"found nothing at {', '.join(absent)}; give bundles by name or folder, results, or studies")
    bundles = [path for path in paths if is_bundle(path)]
    compared = [path for path in paths if path in bundles or not bundles or (path.is_dir() and RunReport.find(path))]
    studies = [path for path in paths if path not in compared]
    if not 2 <= len(compared) <= MOST_READERS or (bundles and not studies):
        found = f"{len(bundles)} bundles, {len(compared) - len(bundles)} folders of results and {len(studies)} studies"
        raise UsageError(
            f"found {found}; expected 2 to {MOST_READERS} to compare, and studies for bundles to label; beside one "
            "only folders that `medseg infer` wrote are results"
        )
    made: list[_Reader] = []
    times: Counter[str] = Counter()
    for path in compared:
        name = path.resolve().name.partition(".")[0] if path.is_file() else path.resolve().name
        times[name] += 1
        name = name if times[name] == 1 else f"{name}-{times[name]}"
        made.append(_Reader.of_bundle(name, path) if path in bundles else _Reader.of_results(name, path))
    return made, studies


def _labelled(
    reader: _Reader,
    studies: Sequence[Path],
    output: Path,
    options: Options | None,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> _Reader:
    """A bundle's results for these studies, whatever else its folder holds; results that are there stay as they are."""
    if reader.bundle is None:
        return reader
    from medseg.inference.run.batch import run_batch

    def show(done: int, total: int, _: object) -> None:
        progress(done, total)

    say(f"labelling by {reader.name}")
    report = run_batch(reader.bundle, studies, output, options, progress=show, announce=say)
    if not report.statuses["done"]:
        why = "; ".join(f"{case.case_id}: {case.reason}" for case in report.cases[:3])
        raise UsageError(f"{reader.name} could label no study ({why}); leave it out, or see {output}/run.json")
    found, asked = collect(output, "predictions"), {case.case_id for case in report.cases}
    kept = {case_id: file for case_id, file in found.files.items() if case_id in asked}
    return replace(reader, found=replace(found, files=kept), asked=frozenset(asked))


def _cases(readers: Sequence[_Reader]) -> dict[str, dict[str, CaseFile]]:
    """Files of each case by reader; a case is called as the first that has it calls it."""
    merged = replace(readers[0].found, files={})
    cases: dict[str, dict[str, CaseFile]] = {}
    for reader in readers:
        pairs, _ = pair_up(reader.found, merged)
        known = {pair.prediction.case_id: pair.case_id for pair in pairs}
        for case_id, file in reader.found.files.items():
            cases.setdefault(known.get(case_id, case_id), {})[reader.name] = file
        new = {case_id: file for case_id, file in reader.found.files.items() if case_id not in known}
        merged = replace(merged, files={**merged.files, **new})
    return cases


def _of_nobody(readers: Sequence[_Reader], files: Iterable[str]) -> set[str]:
    """Cases that runs were asked for, and nobody has a label map of."""
    known = {match_key(case_id) for case_id in files}
    return {case_id for reader in readers for case_id in reader.asked if match_key(case_id) not in known}


def _read(
    files: Mapping[str, CaseFile], schemes: Mapping[str, LabelScheme]
) -> tuple[dict[str, NDArray[Any]], Geometry]:
    """Label maps by reader on the grid of the first that is no DICOM object; refused where another lies elsewhere."""
    objects = [name for name, file in files.items() if label_object(file.path) is not None]
    first, *others = sorted(files, key=lambda name: name in objects)
    found = read_side(files[first], schemes[first], next(iter(files[first].images), None))
    grid, maps = found.geometry, {first: found.array}
    for name in others:
        found = read_side(files[name], schemes[name], ImageGrid(grid))
        maps[name], _ = on_grid(found.array, found.geometry, grid, (f"label map of {name}", f"label map of {first}"))
    return {name: np.asarray(maps[name]) for name in files}, grid


def _image(files: Mapping[str, CaseFile], readers: Sequence[_Reader]) -> Path | None:
    """The image of a case, as a datalist or a run knows it."""
    for file, run in ((files[one.name], one.found.run) for one in readers if one.name in files):
        listed = next((path for path in file.images if path.exists()), None)
        if (place := listed or (None if run is None else run.image_of(file.case_id))) is not None:
            return place
    return None


def _rows(case: Concord) -> list[tuple[object, ...]]:
    odd = {one.structure: one.reader for one in case.opinions if one.odd}
    return [
        (
            case.case_id,
            one.row.name,
            one.compared,
            one.reference,
            *(one.row.values.get(figure) for figure in _FIGURES),
            one.row.values["volume_ml"],
            one.row.values["reference_volume_ml"],
            one.reference if one.row.missed else one.compared if one.row.invented else "",
            odd.get(one.row.name, ""),
            case.odd,
        )
        for one in case.between
    ]


def _shown(readers: Sequence[_Reader]) -> str:
    return ", ".join(f"{reader.name} has {sorted(reader.found.files)[:2]}" for reader in readers)


def _head(
    readers: Sequence[_Reader], structures: Sequence[Matched], alone: Mapping[str, list[str]], margin: float
) -> dict[str, Any]:
    """What was compared, how, by which versions."""
    return {
        "medseg": medseg_version(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "compared": [
            {
                "name": one.name,
                "source": str(one.found.source),
                "bundle": asdict(one.found.run.bundle) if one.found.run else None,
            }
            for one in readers
        ],
        "structures": [
            {"structure": one.name, "by": one.by, "members": {who: asdict(what) for who, what in one.members.items()}}
            for one in structures
        ],
        "without_partner": {name: names for name, names in alone.items() if names},
        "margin": margin,
        "statistics": {"ci95": "percentile bootstrap of the mean over cases", **asdict(Bootstrap())},
        "definitions": {**DEFINITIONS, "measures": describe(Definitions(), _TOLERANCE_MM)},
    }
