"""Which prediction belongs to which reference: names of files, files, folders or datalists, paired by case id.

What the names of files tell: whether one may be a label map, to which case it belongs, which names mean one case.

Which prediction belongs to which reference: files, folders or datalists, paired by case id.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.ingest.record import IMAGE_SUFFIXES
from medseg.labels import read_label_table
from medseg.manifests import Item, Manifest, Part, patient_of
from medseg.manifests.manifest import SECTIONS, unique_keys
from medseg.results import RunFolder

EXTENSIONS = tuple(sorted({*IMAGE_SUFFIXES, ".mhd", ".nhdr"}, key=lambda suffix: (-len(suffix), suffix)))
"""Ends of names of volumes, longest first; compared without regard to capitals."""

_HEADERS = {".img": ".hdr", ".img.gz": ".hdr.gz"}
_MAPS = re.compile(
    r"[._-](?P<what>doubt|uncertainty|entropy|variance|logits|softmax|prob(?:s|ability|abilities)?)(?:[._-]?\d+)?$",
    re.IGNORECASE,
)
_ROLES = re.compile(
    r"[._-](?:seg|segmentation|pred|prediction|predicted|trans|labels?|mask|gt|truth|ref|reference|manual)$",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"_0000$")


def is_image_name(name: str) -> bool:
    """Whether a name ends like a volume's, and more than an extension is left of it; hidden files are none."""
    return not name.startswith(".") and _extension(name) is not None


def _extension(name: str) -> str | None:
    lower = name.lower()
    return next((suffix for suffix in EXTENSIONS if lower.endswith(suffix) and len(lower) > len(suffix)), None)


def _stem(name: str) -> str:
    return name[: -len(_extension(name) or "") or None]


def is_second_half(path: Path) -> bool:
    """Whether this is the ``.img`` of a pair whose ``.hdr`` lies beside it: one volume, not two."""
    header = _HEADERS.get(_extension(path.name) or "")
    if header is None:
        return False
    wanted = f"{_stem(path.name)}{header}".lower()
    return any(other.name.lower() == wanted for other in path.parent.iterdir())


def case_id_of_name(name: str) -> str:
    """File name without its extension and without a trailing ``_seg``."""
    stem = _stem(name)
    return stem[: -len("_seg")] if stem.lower().endswith("_seg") and len(stem) > len("_seg") else stem


def map_of(name: str) -> str:
    """Which map a file is by its name (``"doubt"``, ``"probabilities"`` …); empty if it may be a label map."""
    found = _MAPS.search(_stem(name))
    return found["what"].lower() if found else ""


def match_key(case_id: str) -> str:
    """What two names of one case have in common.

    Capitals, the two ways in which Unicode writes an accented letter, blanks round the name, what a file is for
    (``_pred``, ``_mask`` …) and nnU-Net's ``_0000`` of the first channel do not count.
    """
    key = unicodedata.normalize("NFC", case_id).strip()
    while (shorter := _ROLES.sub("", _CHANNEL.sub("", key))) not in ("", key):
        key = shorter
    return key.casefold()


_PREDICTION_KEYS = ("pred", "prediction", "label")
_LEFT_OUT = 3


@dataclass(frozen=True)
class CaseFile:
    """One label map on disk and what its datalist says about the case, and about the values in the file."""

    case_id: str
    path: Path
    attributes: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[Path, ...] = ()
    mapping: Mapping[int, int] = field(default_factory=dict)

    @property
    def patient(self) -> str:
        """The patient that the case belongs to; without a datalist each case is its own patient."""
        return patient_of(dict(self.attributes)) if self.attributes else self.case_id


@dataclass(frozen=True)
class Collection:
    """The label maps of a file, folder or datalist.

    Parameters
    ----------
    files
        By case id.
    labels
        What a datalist declares; empty if none.
    run
        The run of ``medseg infer`` that wrote the folder; None if none did.
    left_out
        Volumes of the folder that are no label maps, by file name, and what they are.
    single
        Whether one file was given, which makes its case the only one that is asked for.
    warnings
        What could not be learnt of the folder.
    """

    files: Mapping[str, CaseFile]
    labels: Mapping[int, str]
    run: RunFolder | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    single: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference; ``prediction_id`` is what the prediction's side calls the case.

    The mappings say what the values in either file mean.
    """

    case_id: str
    prediction: Path
    reference: Path
    prediction_id: str = ""
    prediction_mapping: Mapping[int, int] = field(default_factory=dict)
    reference_mapping: Mapping[int, int] = field(default_factory=dict)

    @property
    def renamed(self) -> bool:
        """Whether the two sides call the case differently."""
        return self.prediction_id not in ("", self.case_id)


def collect(source: Path, role: str, part: Part | None = None) -> Collection:
    """Find the label maps of ``source``.

    Parameters
    ----------
    source
        A label map, a folder of label maps, or a datalist. Of a folder hidden files and subfolders are left out, and
        so is what its ``run.json`` or, without one, its name tells to be no label map (doubt, probabilities).
    role
        ``"predictions"`` or ``"references"``: which key of a datalist's items holds the label map.
    part
        Which items of a datalist; all by default.

    Raises
    ------
    UsageError
        If there is nothing to read or two files have the same case id.
    """
    if part is not None and source.suffix.lower() != ".json":
        raise UsageError(f"--section and --fold choose items of a datalist, and {source} is none; give one (.json)")
    if source.is_dir():
        return _in_folder(source)
    if not source.is_file():
        raise UsageError(
            f"{source} does not exist; {role} are a label map, a folder of label maps or a datalist (JSON)"
        )
    if is_image_name(source.name):
        return _one_file(source)
    if source.suffix.lower() == ".dcm":
        raise UsageError(f"{source} is a DICOM object; {_NO_DICOM}")
    manifest = Manifest.read(source)
    keys = ("label",) if role == "references" else _PREDICTION_KEYS
    files = _unique(_in_manifest(manifest, (part or Part()).of(manifest, source), keys), source)
    if not files:
        raise UsageError(f"{source} names no {role}: no item has {' or '.join(map(repr, keys))}")
    return Collection(files, manifest.labels)


_NO_DICOM = "evaluate reads no DICOM SEG or RTSTRUCT: give label maps, such as `medseg infer --write nifti` leaves"


def _one_file(path: Path) -> Collection:
    run, warnings = _run(path.parent)
    known = run.label_maps.get(path.name) if run else None
    case = CaseFile(known if known is not None else case_id_of_name(path.name), path)
    return Collection({case.case_id: case}, {}, run, single=True, warnings=warnings)


def _run(folder: Path) -> tuple[RunFolder | None, tuple[str, ...]]:
    """The run that wrote a folder, and why it is not known; its label maps can be scored without it."""
    try:
        return RunFolder.find(folder), ()
    except UsageError as error:
        return None, (f"files, structures and training cases are known by name only: {error}",)


def _in_folder(folder: Path) -> Collection:
    run, warnings = _run(folder)
    found: list[CaseFile] = []
    left_out: dict[str, str] = {}
    names = sorted(path.name for path in folder.iterdir() if is_image_name(path.name) and path.is_file())
    for path in (folder / name for name in names):
        case_id = run.label_maps.get(path.name) if run else None
        what = "" if case_id is not None else _no_label_map(path, run)
        if what:
            left_out[path.name] = what
        elif not is_second_half(path):
            found.append(CaseFile(case_id if case_id is not None else case_id_of_name(path.name), path))
    files = _unique(iter(found), folder)
    if not files:
        raise UsageError(_nothing_in(folder, left_out))
    return Collection(files, {}, run, left_out, warnings=warnings)


def _no_label_map(path: Path, run: RunFolder | None) -> str:
    """What a volume is that is no label map; empty for what may be one."""
    if run is not None and path.name in run.others:
        return run.others[path.name]
    kind = map_of(path.name)
    return f"called like a map ({kind})" if kind else ""


def _nothing_in(folder: Path, left_out: Mapping[str, str]) -> str:
    if left_out:
        named = "; ".join(f"{name} is {what}" for name, what in list(left_out.items())[:_LEFT_OUT])
        return (
            f"{folder} holds no label maps: {named}. Give the folder of the label maps, or a datalist that names them"
        )
    if any(path.suffix.lower() == ".dcm" for path in folder.iterdir()):
        return f"{folder} holds DICOM objects and no label maps; {_NO_DICOM}"
    deeper = next((path for path in folder.glob("*/*") if is_image_name(path.name) and path.is_file()), None)
    if deeper is not None:
        return (
            f"{folder} holds no label maps itself, its subfolder {deeper.parent.name} does; give a folder with one "
            "file per case, or a datalist that names them"
        )
    return f"{folder} holds no label maps ({', '.join(sorted(EXTENSIONS))}); give a folder or datalist that does"


def _in_manifest(manifest: Manifest, items: Iterable[Item], keys: tuple[str, ...]) -> Iterator[CaseFile]:
    for item in items:
        key = next((key for key in keys if item.get(key)), None)
        if key is None:
            continue
        images = manifest.files(item, "image")
        paths = manifest.files(item, key)
        if len(paths) != 1:
            raise UsageError(f"an item names {len(paths)} files under {key!r}; give one label map per case")
        case_id = item.get("case_id") or case_id_of_name((images or paths)[0].name)
        mapping = manifest.scheme.mapping if key == "label" else {}  # a prediction has the network's own values
        yield CaseFile(str(case_id), paths[0], item, tuple(images), mapping)


def _unique(found: Iterator[CaseFile], source: Path) -> dict[str, CaseFile]:
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

    Equal case ids pair, then names that mean one case (:func:`~medseg.evaluation.pairing.match_key`), these only if no
    other file of either side could be meant. The pair has the reference's case id. A single file on one side is
    compared with its partner alone, two single files with each other.
    """
    partner = _partners(predictions, references)
    pairs = [_pair(predictions.files[other], references.files[case]) for case, other in sorted(partner.items())]
    left = {"predictions": set(predictions.files) - set(partner.values()), "references": set(references.files)}
    left["references"] -= set(partner)
    if predictions.single:
        left["references"].clear()
    if references.single:
        left["predictions"].clear()
    return pairs, {side: sorted(cases) for side, cases in left.items()}


def _pair(prediction: CaseFile, reference: CaseFile) -> Pair:
    mappings = (prediction.mapping, reference.mapping)
    return Pair(reference.case_id, prediction.path, reference.path, prediction.case_id, *mappings)


def _partners(predictions: Collection, references: Collection) -> dict[str, str]:
    """The prediction's case id by the reference's."""
    if predictions.single and references.single:
        return dict(zip(references.files, predictions.files, strict=True))
    same = {case: case for case in references.files if case in predictions.files}
    ours, theirs = _by_key(predictions), _by_key(references)
    alike = {
        theirs[key][0]: ours[key][0]
        for key in theirs
        if len(theirs[key]) == 1 and len(ours.get(key, ())) == 1 and theirs[key][0] not in same
    }
    return {**same, **alike}


def _by_key(collection: Collection) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for case_id in collection.files:
        groups[match_key(case_id)].append(case_id)
    return groups


def read_labels(source: Path) -> dict[int, str]:
    """Structures by label value, background left out; nothing is executed.

    Parameters
    ----------
    source
        A JSON file ``{"1": "liver"}``, a datalist or dataset.json with ``labels``, or a bundle's folder, whose
        ``configs/metadata.json`` names the channels of its output.

    Raises
    ------
    UsageError
        If no labels are found.
    """
    path = source / "configs" / "metadata.json" if source.is_dir() else source
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; give a JSON file of labels or a bundle folder"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}; give a JSON file of labels or a bundle folder") from error
    names = _label_names(content, path)
    if not names:
        raise UsageError(f'{path} declares no labels; expected {{"1": "name", ...}} or a bundle with channel_def')
    return names


def _label_names(content: Any, path: Path) -> dict[int, str]:
    """The structures of the first table there is: a bundle's channels, a datalist's labels, or the file itself."""
    for keys in (("network_data_format", "outputs", "pred", "channel_def"), ("labels",)):
        declared = content
        for key in keys:
            declared = declared.get(key) if isinstance(declared, dict) else None
        if declared:
            return _unique_names(read_label_table(declared, f"`{keys[-1]}` of {path}"))
    if not isinstance(content, dict) or any(isinstance(content.get(key), list) for key in SECTIONS):
        return {}  # a datalist that declares none
    return _unique_names(read_label_table(content, str(path)))


def _unique_names(names: Mapping[int, str]) -> dict[int, str]:
    """The structures; equal names get their value appended."""
    given = list(names.values())
    return {
        label: name if given.count(name) == 1 else f"{name} ({label})" for label, name in names.items() if label != 0
    }
