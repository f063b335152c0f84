"""What the audit needs to know of each case, gathered in one pass over the files, case by case in a few processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest import read_volume
from medseg.labels.dicom_objects import label_object
from medseg.labels.label_map import LabelMap, LabelValues, examine
from medseg.labels.read import read_label
from medseg.labels.rules import ReadingRules
from medseg.manifests.audit_findings import AuditFinding
from medseg.manifests.audit_shape import LabelShape, edge_fit, shapes_of
from medseg.manifests.items import SECTIONS, Item, case_names, entries_of, files_of, sums_of
from medseg.manifests.layouts import path_checksum
from medseg.manifests.manifest import Manifest
from medseg.resources import bounded_map, usable_cores

_SAMPLE_VOXELS = 1_000_000
_FEW_CASES = 24
_MOST_WORKERS = 4
_MOST_STRUCTURES = 512
_LARGEST_POINTER = 1024

_Volume = tuple[NDArray[Any], Geometry]


@dataclass(frozen=True)
class VolumeFacts:
    """One file of a case in numbers."""

    geometry: Geometry
    content: str  # hash of the values: equal for copies in another format or orientation
    percentiles: tuple[float, float, float] = (0.0, 0.0, 0.0)  # the 1st, 50th and 99th
    step: float = 0.0  # see value_step
    constant: bool = False
    values: LabelValues = field(default_factory=lambda: LabelValues({}))  # labels only, as the next three
    shapes: Mapping[int, LabelShape] = field(default_factory=dict)
    fit: float | None = None  # see edge_fit
    notes: tuple[str, ...] = ()  # what was done to read it
    agreement: float | None = None  # of a further rater: Dice of all structures together with the first rater's


@dataclass(frozen=True)
class CaseFacts:
    """One case: its item, what its files hold, and what kept a file from being read."""

    case: str
    section: str
    item: Item
    images: tuple[VolumeFacts, ...] = ()
    labels: tuple[VolumeFacts, ...] = ()
    problems: tuple[AuditFinding, ...] = ()


def gather(
    manifest: Manifest, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> list[CaseFacts]:
    """Read every case once; the parameters are those of :func:`medseg.manifests.audit`."""
    ReadingRules.of(manifest.content)  # refused before the work
    bare = replace(manifest, content={key: value for key, value in manifest.content.items() if key not in SECTIONS})
    names = case_names(item for _, _, item in manifest.items())
    tasks = [(bare, name, section, item) for name, (section, _, item) in zip(names, manifest.items(), strict=True)]
    if len(tasks) < _FEW_CASES:  # starting processes costs more than it saves
        workers = 1
    facts: list[CaseFacts] = []
    for one in bounded_map(_inspect, tasks, workers or min(_MOST_WORKERS, usable_cores())):
        facts.append(one)
        if progress is not None:
            progress(len(facts), len(tasks))
    return facts


def _inspect(task: tuple[Manifest, str, str, Item]) -> CaseFacts:
    manifest, case, section, item = task
    scheme = manifest.scheme
    problems: list[AuditFinding] = []
    first: list[_Volume] = []  # the channel that labels are compared with
    images: list[VolumeFacts] = []
    labels: list[VolumeFacts] = []
    drawn: NDArray[Any] | None = None  # the first rater's label map
    for path in _usable(manifest, item, "image", problems, case):
        with _refusals_noted(problems, f"image {path.name}", case):
            array, geometry, _ = read_volume(path)
            images.append(_image_facts(array, geometry))
            first = first or [(array, geometry)]
    if _usable(manifest, item, "label", problems, case):
        for rater, entry in entries_of(manifest.label_entry(item)).items():
            with _refusals_noted(problems, _named(entry, rater), case):
                read = _read(entry, manifest, manifest.files(item, "image")[0])
                array = read.array
                found = _label_facts(read, scheme.ignore, first[0] if first else None)
                labels.append(found if drawn is None else replace(found, agreement=_agreement(array, drawn)))
                drawn = array if drawn is None else drawn
    return CaseFacts(case, section, item, tuple(images), tuple(labels), tuple(problems))


def _named(entry: Any, rater: str) -> str:
    files = files_of(entry)
    name = Path(files[0]).name if len(files) == 1 else f"of {len(files)} files"
    return f"label {name}" + f" of rater {rater}" * bool(rater)


@contextmanager
def _refusals_noted(problems: list[AuditFinding], name: str, case: str) -> Iterator[None]:
    """Turn a refusal into a finding of the case, which ends the body."""
    try:
        yield
    except Refusal as refusal:
        problems.append(AuditFinding(refusal.code, f"{name}: {refusal.message}", (case,)))


def _usable(manifest: Manifest, item: Item, key: str, problems: list[AuditFinding], name: str) -> list[Path]:
    """The files of an image that are there; those of a label if all of them are."""
    case = (name,)
    usable = []
    sums, paths = sums_of(item, key), manifest.files(item, key)
    for number, path in enumerate(paths):
        if pointer := pointer_to(path):
            problems.append(AuditFinding("pointer-file", f"{key} {path.name} is {pointer}, not the data", case))
        elif not path.exists():
            problems.append(AuditFinding("missing-file", f"{key} {path.name} does not exist", case))
        else:
            usable.append(path)
            if number < len(sums) and path_checksum(path) != sums[number]:
                problems.append(AuditFinding("checksum-mismatch", f"{key} {path.name} has another SHA-256 sum", case))
    return usable if key == "image" or len(usable) == len(paths) else []


def pointer_to(path: Path) -> str:
    """What stands in for a file whose content was not fetched: git-annex's link or pointer, or LFS's; else empty."""
    if path.is_symlink() and not path.exists() and "annex/objects" in path.readlink().as_posix():
        return "a link of git-annex to content that is not here"
    if not path.is_file() or path.stat().st_size > _LARGEST_POINTER:
        return ""
    with path.open("rb") as file:
        head = file.read(_LARGEST_POINTER)
    if head.startswith(b"version https://git-lfs"):
        return f"a pointer of git LFS ({len(head)} bytes)"
    is_annex = head.startswith(b"/annex/objects/") or b".git/annex/objects/" in head.split(b"\n")[0]
    return f"a pointer of git-annex ({len(head)} bytes)" if is_annex else ""


def _image_facts(array: NDArray[Any], geometry: Geometry) -> VolumeFacts:
    sample = array.ravel(order="K")[:: max(1, array.size // _SAMPLE_VOXELS)]
    low, middle, high = (float(value) for value in np.percentile(sample, (1, 50, 99)))
    content = content_hash(array, geometry)
    return VolumeFacts(geometry, content, (low, middle, high), value_step(sample), bool(array.min() == array.max()))


def _read(entry: Any, manifest: Manifest, image: Path) -> LabelMap:
    """A label in any form that a datalist may give; of a label map whatever it holds: the checks say what is wrong."""
    if isinstance(entry, str) and label_object(entry) is None:
        array, geometry, _ = read_volume(entry)
        labels, values = examine(array, manifest.scheme.mapping)
        return LabelMap(labels, geometry, values)
    rules = ReadingRules.of(manifest.content)
    found = read_label(entry, scheme=manifest.scheme, rules=rules, image=image, only_declared=False)
    notes = found.notes
    for file in files_of(entry):  # without its name a note is the same for all cases that it is true of
        notes = tuple(note.replace(f" {Path(file).name}", "") for note in notes)
    return replace(found, notes=notes)


def _label_facts(found: LabelMap, ignore: int | None, volume: _Volume | None) -> VolumeFacts:
    """A label, and how it fits the image's first channel."""
    labels, geometry, values = found.array, found.geometry, found.values
    facts = VolumeFacts(geometry, content_hash(labels, geometry), values=values, notes=found.notes)
    if values.fractional or len(values.voxels) > _MOST_STRUCTURES or min(values.voxels, default=0) < 0:
        return facts
    judged = labels if ignore is None else np.where(labels == ignore, 0, labels)
    fits = volume is not None and geometry.matches(volume[1])
    fit = edge_fit(volume[0], judged, geometry) if volume is not None and fits else None
    return replace(facts, shapes=shapes_of(judged, geometry), fit=fit)


def _agreement(labels: NDArray[Any], others: NDArray[Any]) -> float | None:
    """Voxels of one structure in both, twice, by the voxels of any structure in either; None without any."""
    total = np.count_nonzero(labels) + np.count_nonzero(others)
    if labels.shape != others.shape or not total:
        return None
    return 2.0 * np.count_nonzero((labels == others) & (labels != 0)) / total


def content_hash(array: NDArray[Any], geometry: Geometry) -> str:
    """Hash of the voxel values in the order of canonical (RAS) axes, whatever their storage type."""
    canonical = nib.orientations.apply_orientation(array, nib.orientations.io_orientation(geometry.affine))
    digest = hashlib.blake2b(repr(canonical.shape).encode(), digest_size=16)
    for plane in np.moveaxis(canonical, -1, 0):  # plane by plane, so that no second volume is held
        digest.update(np.ascontiguousarray(plane, dtype=np.float32).tobytes())
    return digest.hexdigest()


def value_step(values: NDArray[Any]) -> float:
    """The number of which all values are whole multiples, if there is one and it is not a plain decimal number.

    Scanners and converters scale stored integers by one factor per scan. Where that factor is an odd number such as
    6.13919, it marks the scan: two files that share it to five digits were most probably cut from the same scan.
    A plain factor (1, 0.5, 0.001) says nothing and gives 0, as do values without a common step.
    """
    if np.issubdtype(values.dtype, np.integer):
        return 0.0
    unique = np.unique(values.astype(np.float64))
    gaps = np.diff(unique)
    extent = float(np.abs(unique).max())
    gaps = gaps[gaps > 1e-6 * extent]
    if len(gaps) < 16 or extent == 0:
        return 0.0
    step = float(gaps.min())
    step = extent / max(1.0, round(extent / step))  # the largest value knows the step best
    multiples = unique / step
    is_plain = abs(step - float(f"{step:.3g}")) < 1e-6 * step
    if is_plain or np.abs(multiples - np.rint(multiples)).max() > 0.02:
        return 0.0
    return float(f"{step:.5g}")
