"""Which prediction belongs to which reference: folders or datalists, paired by case id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.labels import read_label_table
from medseg.manifests import Manifest, patient_of
from medseg.manifests.manifest import SECTIONS, unique_keys

__all__ = ["CaseFile", "Collection", "Pair", "collect", "pair_up", "read_labels"]

_EXTENSIONS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
_PREDICTION_KEYS = ("pred", "prediction", "label")


@dataclass(frozen=True)
class CaseFile:
    """One label map on disk and what its datalist says about the case."""

    case_id: str
    path: Path
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def patient(self) -> str:
        """The patient that the case belongs to; without a datalist each case is its own patient."""
        return patient_of(dict(self.attributes)) if self.attributes else self.case_id


@dataclass(frozen=True)
class Collection:
    """The label maps of a folder or datalist by case id, and the labels it declares (empty if none)."""

    files: Mapping[str, CaseFile]
    labels: Mapping[int, str]


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference."""

    case_id: str
    prediction: Path
    reference: Path


def collect(source: Path, role: str) -> Collection:
    """Find the label maps of ``source``.

    Parameters
    ----------
    source
        A folder of label maps (``.nii.gz``, ``.nii``, ``.mha``, ``.mhd``, ``.nrrd``, ``.nhdr``; hidden files and
        subfolders are left out), or a datalist.
    role
        ``"predictions"`` or ``"references"``: which key of a datalist's items holds the label map.

    Raises
    ------
    UsageError
        If there is nothing to read or two files have the same case id.
    """
    if source.is_dir():
        return Collection(_unique(_in_folder(source), source), {})
    if not source.is_file():
        raise UsageError(f"{source} does not exist; {role} are a folder of label maps or a datalist (JSON)")
    manifest = Manifest.read(source)
    keys = ("label",) if role == "references" else _PREDICTION_KEYS
    return Collection(_unique(_in_manifest(manifest, keys), source), manifest.labels)


def _in_folder(folder: Path) -> Iterator[CaseFile]:
    for path in sorted(folder.iterdir()):
        if path.name.endswith(_EXTENSIONS) and not path.name.startswith(".") and path.is_file():
            yield CaseFile(case_id_of_name(path.name), path)


def _in_manifest(manifest: Manifest, keys: tuple[str, ...]) -> Iterator[CaseFile]:
    for _, _, item in manifest.items():
        key = next((key for key in keys if item.get(key)), None)
        if key is None:
            continue
        images = manifest.files(item, "image")
        paths = manifest.files(item, key)
        if len(paths) != 1:
            raise UsageError(f"an item names {len(paths)} files under {key!r}; give one label map per case")
        case_id = item.get("case_id") or case_id_of_name((images or paths)[0].name)
        yield CaseFile(str(case_id), paths[0], item)


def _unique(found: Iterator[CaseFile], source: Path) -> dict[str, CaseFile]:
    files: dict[str, CaseFile] = {}
    for case in found:
        if case.case_id in files:
            raise UsageError(
                f"{source}: {files[case.case_id].path.name} and {case.path.name} both belong to case {case.case_id!r}; "
                "keep one, or give a datalist with a case_id per item"
            )
        files[case.case_id] = case
    if not files:
        raise UsageError(
            f"{source} holds no label maps ({', '.join(_EXTENSIONS)}); give a folder or datalist that does"
        )
    return files


def case_id_of_name(name: str) -> str:
    """File name without its extension and without a trailing ``_seg``."""
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension):
            name = name[: -len(extension)]
            break
    return name.removesuffix("_seg")


def pair_up(predictions: Collection, references: Collection) -> tuple[list[Pair], dict[str, list[str]]]:
    """Pairs in order of case id, and the case ids of either side that have no partner."""
    common = sorted(set(predictions.files) & set(references.files))
    pairs = [Pair(case, predictions.files[case].path, references.files[case].path) for case in common]
    unpaired = {
        "predictions": sorted(set(predictions.files) - set(references.files)),
        "references": sorted(set(references.files) - set(predictions.files)),
    }
    return pairs, unpaired


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
