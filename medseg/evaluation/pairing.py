"""Which prediction belongs to which reference: label maps of a file, a folder or a datalist, paired by case id."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.errors import Refusal, UsageError
from medseg.ingest.dicom_header import Header
from medseg.ingest.record import IMAGE_SUFFIXES, case_id_of_series, image_kind, is_second_of_pair, plain_name
from medseg.labels.dicom_labels import open_labels
from medseg.labels.dicom_objects import label_object
from medseg.labels.raters import RATERS_KEY, raters_of
from medseg.labels.read import LabelEntry
from medseg.labels.rules import ReadingRules
from medseg.labels.scheme import ANNOTATED_KEY, LabelScheme
from medseg.manifests import Item, Manifest, Part, patient_of
from medseg.manifests.items import map_files
from medseg.results import RunReport

EXTENSIONS = tuple(sorted(IMAGE_SUFFIXES, key=lambda suffix: (-len(suffix), suffix)))
"""Ends of names of volumes, longest first; compared without regard to capitals."""

_MAPS = re.compile(
    r"[._-](?P<what>doubt|uncertainty|entropy|variance|logits|softmax|prob(?:s|ability|abilities)?)(?:[._-]?\d+)?$",
    re.IGNORECASE,
)
_ROLES = re.compile(
    r"[._-](?:seg|segmentation|pred|prediction|predicted|trans|labels?|mask|gt|truth|ref|reference|manual)$",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"_0000$")
_PREDICTION_KEYS = ("pred", "prediction", "label")
_LEFT_OUT_SHOWN = 3
_NO_DICOM = "they are no segmentations or structure sets: give those, or label maps"


def is_image_name(name: str) -> bool:
    """Whether a file is a volume by its name; hidden files are none."""
    return not name.startswith(".") and image_kind(name) is not None


def _stem(name: str) -> str:
    return name[: len(name) - next((len(end) for end in EXTENSIONS if name.lower().endswith(end)), 0)]


def case_id_of_name(name: str) -> str:
    """File name without its extension and without a trailing ``_seg``."""
    return plain_name(re.sub(r"(?i)(?<=.)_seg$", "", _stem(name)))


def match_key(case_id: str) -> str:
    """What two names of one case have in common.

    Capitals, the two ways in which Unicode writes an accented letter, blanks round the name, what a file is for
    (``_pred``, ``_mask`` …) and nnU-Net's ``_0000`` of the first channel do not count.
    """
    key = unicodedata.normalize("NFC", case_id).strip()
    while (shorter := _ROLES.sub("", _CHANNEL.sub("", key))) not in ("", key):
        key = shorter
    return key.casefold()


@dataclass(frozen=True)
class CaseFile:
    """A label on disk, what its datalist says about the case, and which values of the file mean another label."""

    case_id: str
    path: Path
    attributes: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[Path, ...] = ()
    mapping: Mapping[int, int] = field(default_factory=dict)
    ignore: int | None = None  # value of voxels that nobody judged
    unknown: tuple[int, ...] = ()  # structures that were not looked for
    entry: LabelEntry | None = None  # where it is more than a file: a file for each structure
    rules: ReadingRules = field(default_factory=ReadingRules)  # how DICOM objects are read
    raters: Mapping[str, LabelEntry] = field(default_factory=dict)  # by name; empty if there is one alone
    way: str = "majority"  # how several raters become one reference
    regions: tuple[tuple[int, ...], ...] | None = None  # values by channel of its run's network; None without a run
    alias: str = ""  # its name, where the case is known by the series that a DICOM object refers to

    @property
    def patient(self) -> str:
        """The patient that the case belongs to; without a datalist each case is its own patient."""
        return patient_of(dict(self.attributes)) if self.attributes else self.case_id


@dataclass(frozen=True)
class Collection:
    """The label maps of a file, folder or datalist."""

    source: Path  # where they were looked for
    files: Mapping[str, CaseFile]  # by case id
    scheme: LabelScheme = field(default_factory=LabelScheme)  # what a datalist declares
    run: RunReport | None = None  # the run of ``medseg infer`` that wrote the folder; None if none did
    # volumes of the folder that are no label maps, by file name, and what they are
    left_out: Mapping[str, str] = field(default_factory=dict)
    single: bool = False  # whether one file was given, which makes its case the only one that is asked for
    warnings: tuple[str, ...] = ()  # what could not be learnt of the folder


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference; the case has the reference's name."""

    prediction: CaseFile
    reference: CaseFile

    @property
    def case_id(self) -> str:
        """What the references' side calls the case."""
        return self.reference.case_id


def collect(source: Path, role: str, part: Part | None = None) -> Collection:
    """Find the label maps of ``source``.

    ``source``: A label map, a folder of label maps, or a datalist. Of a folder hidden files and subfolders are left
    out, and so is what its ``run.json`` or, without one, its name tells to be no label map (doubt, probabilities).
    ``role``: ``"predictions"`` or ``"references"``: which key of a datalist's items holds the label map. ``part``:
    Which items of a datalist; all by default. Raises ``UsageError`` if there is nothing to read or two files have the
    same case id.
    """
    if part is not None and source.suffix.lower() != ".json":
        raise UsageError(f"--section and --fold choose items of a datalist, and {source} is none; give one (.json)")
    if source.is_dir():
        return _in_folder(source)
    if not source.is_file():
        what = "a label map, a folder of label maps or a datalist (JSON)"
        raise UsageError(f"{source} does not exist; {role} are {what}")
    if is_image_name(source.name):
        run, warnings = _run(source.parent)
        known = run.label_maps.get(source.name) if run else None
        regions = None if known is None or run is None else tuple(run.regions.values())
        case = CaseFile(case_id_of_name(source.name) if known is None else known, source, regions=regions)
        return Collection(source, {case.case_id: case}, run=run, single=True, warnings=warnings)
    if (header := label_object(source)) is not None:
        case = _of_object(source, header)
        return Collection(source, {case.case_id: case}, single=True)
    if source.suffix.lower() == ".dcm":
        raise UsageError(
            f"{source} is a DICOM object that holds no labels; give a label map, a segmentation, or a folder"
        )
    manifest = Manifest.read(source)
    keys = ("label",) if role == "references" else _PREDICTION_KEYS
    files = _unique(_in_manifest(manifest, (part or Part()).of(manifest, source), keys), source)
    if not files:
        raise UsageError(f"{source} names no {role}: no item has {' or '.join(map(repr, keys))}")
    return Collection(source, files, manifest.scheme)


def _run(folder: Path) -> tuple[RunReport | None, tuple[str, ...]]:
    """The run that wrote a folder, and why it is not known; its label maps can be scored without it."""
    try:
        return RunReport.find(folder), ()
    except UsageError as error:
        return None, (f"files, structures and training cases are known by name only: {error}",)


def _in_folder(folder: Path) -> Collection:
    run, warnings = _run(folder)
    regions = None if run is None else tuple(run.regions.values())
    found: list[CaseFile] = []
    left_out: dict[str, str] = {}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()):
        if (header := label_object(path)) is not None:
            found.append(_of_object(path, header))
            continue
        if not is_image_name(path.name):
            continue
        case_id = run.label_maps.get(path.name) if run else None
        what = "" if case_id is not None else _no_label_map(path, run)
        if what:
            left_out[path.name] = what
        elif not is_second_of_pair(path):
            name, of_run = (case_id_of_name(path.name), None) if case_id is None else (case_id, regions)
            found.append(CaseFile(name, path, regions=of_run))
    files = _unique(found, folder)
    if not files:
        raise UsageError(_nothing_in(folder, left_out))
    return Collection(folder, files, run=run, left_out=left_out, warnings=warnings)


def _no_label_map(path: Path, run: RunReport | None) -> str:
    """What a volume is that is no label map; empty for what may be one."""
    if run is not None and path.name in run.others:
        return run.others[path.name]
    named = _MAPS.search(_stem(path.name))
    return f"called like a map ({named['what'].lower()})" if named else ""


def _nothing_in(folder: Path, left_out: Mapping[str, str]) -> str:
    if left_out:
        named = "; ".join(f"{name} is {what}" for name, what in list(left_out.items())[:_LEFT_OUT_SHOWN])
        return f"{folder} holds no label maps: {named}. Give their folder, or a datalist that names them"
    if any(path.suffix.lower() == ".dcm" for path in folder.iterdir()):
        return f"{folder} holds DICOM objects and no label maps; {_NO_DICOM}"
    deeper = next((path for path in folder.glob("*/*") if is_image_name(path.name) and path.is_file()), None)
    if deeper is not None:
        return (
            f"{folder} holds no label maps itself, its subfolder {deeper.parent.name} does; give a folder with one "
            "file per case, or a datalist that names them"
        )
    return f"{folder} holds no label maps ({', '.join(sorted(EXTENSIONS))}); give a folder or datalist that does"


def _of_object(path: Path, header: Header) -> CaseFile:
    """A DICOM object: its case is the series that it refers to, as the index calls it; else it has the file's name."""
    name = case_id_of_name(path.name.removesuffix(path.suffix) if path.suffix.lower() == ".dcm" else path.name)
    try:
        series = open_labels(header, path.name).series
    except Refusal:  # told when the case is read
        series = frozenset()
    return CaseFile(case_id_of_series(next(iter(series))) if len(series) == 1 else name, path, alias=name)


def _in_manifest(manifest: Manifest, items: Iterable[Item], keys: tuple[str, ...]) -> Iterator[CaseFile]:
    rules = ReadingRules.of(manifest.content)
    for item in items:
        key = next((key for key in keys if item.get(key)), None)
        if key is None:
            continue
        images, paths = manifest.files(item, "image"), manifest.files(item, key)
        raters = raters_of(manifest.label_entry(item)) if key == "label" else {}
        if len(paths) != 1 and not isinstance(item[key], Mapping) and not raters:
            raise UsageError(f"an item names {len(paths)} files under {key!r}; give one label map per case")
        case_id = item.get("case_id") or case_id_of_name((images or paths)[0].name)
        several = map_files(item[key], lambda name: str(manifest.dataset_dir / name))
        entry = several if isinstance(several, Mapping) else None
        case = CaseFile(plain_name(str(case_id)), paths[0], item, tuple(images), entry=entry, rules=rules)
        if key == "label":  # a prediction has the network's own values
            scheme = manifest.scheme
            unknown = scheme.unknown_of(item.get(ANNOTATED_KEY))
            case = replace(case, mapping=scheme.mapping, ignore=scheme.ignore, unknown=unknown)
            way = str(manifest.content.get(RATERS_KEY, "majority"))
            case = replace(case, raters=raters, way=way)
        yield case


def _unique(found: Iterable[CaseFile], source: Path) -> dict[str, CaseFile]:
    files: dict[str, CaseFile] = {}
    for case in found:
        if case.case_id in files:
            raise UsageError(
                f"{source}: {files[case.case_id].path.name} and {case.path.name} both belong to case {case.case_id!r}; "
                "keep one, or give a datalist with a case_id per item"
            )
        files[case.case_id] = case
    return files


def pair_up(predictions: Collection, references: Collection) -> tuple[list[Pair], dict[str, list[str]]]:
    """Pairs in order of case id, and the case ids of either side that have no partner.

    Equal case ids pair (that of a DICOM object is the series that it refers to), then names that mean one case
    (:func:`~medseg.evaluation.pairing.match_key`), these only if no other file of either side could be meant. A single
    file on one side is compared with its partner alone, two single files with each other.
    """
    partner = _partners(predictions, references)
    pairs = [Pair(predictions.files[other], references.files[case]) for case, other in sorted(partner.items())]
    unpaired = {
        "predictions": [] if references.single else sorted(set(predictions.files) - set(partner.values())),
        "references": [] if predictions.single else sorted(set(references.files) - set(partner)),
    }
    return pairs, unpaired


def _partners(predictions: Collection, references: Collection) -> dict[str, str]:
    """The prediction's case id by the reference's."""
    if predictions.single and references.single:
        return dict(zip(references.files, predictions.files, strict=True))
    same = {case: case for case in references.files if case in predictions.files}
    ours, theirs = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for groups, side in ((ours, predictions), (theirs, references)):
        for case_id, file in side.files.items():
            groups[match_key(file.alias or case_id)].append(case_id)
    alike = {
        cases[0]: ours[key][0]
        for key, cases in theirs.items()
        if len(cases) == 1 and len(ours.get(key, ())) == 1 and cases[0] not in same
    }
    return {**same, **alike}
