"""What the audit needs to know of each case, gathered in one pass over the files, case by case in a few processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest import case_id_of, read_volume
from medseg.labels import LabelScheme, LabelValues, examine
from medseg.manifests.audit_findings import AuditFinding
from medseg.manifests.items import Item
from medseg.manifests.layouts import path_checksum
from medseg.manifests.manifest import Manifest
from medseg.resources import bounded_map, usable_cores

_SAMPLE_VOXELS = 1_000_000
_FEW_CASES = 24
_MOST_WORKERS = 4


@dataclass(frozen=True)
class VolumeFacts:
    """One file of a case in numbers."""

    geometry: Geometry
    content: str  # hash of the values: equal for copies in another format or orientation
    percentiles: tuple[float, float, float] = (0.0, 0.0, 0.0)  # the 1st, 50th and 99th
    step: float = 0.0  # see value_step
    constant: bool = False
    values: LabelValues = field(default_factory=lambda: LabelValues({}))  # labels only


@dataclass(frozen=True)
class CaseFacts:
    """One case: its item, what its files hold, and what kept a file from being read."""

    case: str
    section: str
    item: Item
    images: tuple[VolumeFacts, ...] = ()
    labels: tuple[VolumeFacts, ...] = ()
    problems: tuple[AuditFinding, ...] = ()


def case_of(item: Item) -> str:
    """Name of a case in messages: its ``case_id``, else its first image's name."""
    first = item["image"] if isinstance(item["image"], str) else item["image"][0]
    return str(item.get("case_id") or case_id_of(first))


def gather(
    manifest: Manifest, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> list[CaseFacts]:
    """Read every case once; the parameters are those of :func:`medseg.manifests.audit`."""
    scheme = manifest.scheme
    tasks = [(manifest.dataset_dir, scheme, section, item) for section, _, item in manifest.items()]
    if len(tasks) < _FEW_CASES:  # starting processes costs more than it saves
        workers = 1
    facts: list[CaseFacts] = []
    for one in bounded_map(_inspect, tasks, workers or min(_MOST_WORKERS, usable_cores())):
        facts.append(one)
        if progress is not None:
            progress(len(facts), len(tasks))
    return facts


def _inspect(task: tuple[Path, LabelScheme, str, Item]) -> CaseFacts:
    dataset_dir, scheme, section, item = task
    case, manifest = case_of(item), Manifest({}, dataset_dir)
    problems: list[AuditFinding] = []
    images = _volumes(manifest, item, "image", problems)
    labels = _volumes(manifest, item, "label", problems, scheme)
    if len(labels) > 1:
        message = f"the case names {len(labels)} label files, expected one label map that holds all structures"
        problems.append(AuditFinding("several-labels", message, (case,)))
    return CaseFacts(case, section, item, tuple(images), tuple(labels), tuple(problems))


def _volumes(
    manifest: Manifest, item: Item, key: str, problems: list[AuditFinding], scheme: LabelScheme | None = None
) -> list[VolumeFacts]:
    case = (case_of(item),)
    volumes = []
    stated = item.get("sha256")
    expected = stated.get(key, []) if isinstance(stated, Mapping) else []
    sums = expected if isinstance(expected, list) else [expected]
    for number, path in enumerate(manifest.files(item, key)):
        if not path.exists():
            problems.append(AuditFinding("missing-file", f"{key} {path.name} does not exist", case))
            continue
        if number < len(sums) and path_checksum(path) != sums[number]:
            problems.append(AuditFinding("checksum-mismatch", f"{key} {path.name} has another SHA-256 sum", case))
        try:
            volumes.append(_facts(path, scheme))
        except Refusal as refusal:
            problems.append(AuditFinding(refusal.code, f"{key} {path.name}: {refusal.message}", case))
    return volumes


def _facts(path: Path, scheme: LabelScheme | None) -> VolumeFacts:
    """An image, or a label map if there is a scheme for its values."""
    array, geometry, _ = read_volume(path)
    content = content_hash(array, geometry)
    if scheme is not None:
        return VolumeFacts(geometry, content, values=examine(array, scheme.mapping)[1])
    sample = array.ravel(order="K")[:: max(1, array.size // _SAMPLE_VOXELS)]
    low, middle, high = (float(value) for value in np.percentile(sample, (1, 50, 99)))
    return VolumeFacts(geometry, content, (low, middle, high), value_step(sample), bool(array.min() == array.max()))


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
