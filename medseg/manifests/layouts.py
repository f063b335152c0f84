"""Make a manifest from whatever way a dataset lies on disk, with the SHA-256 sums of its files; write label maps."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict, Unpack

from medseg._version import medseg_version
from medseg.errors import Refusal, UsageError
from medseg.files import sha256_file
from medseg.ingest import save_nifti
from medseg.ingest.record import is_apple_double
from medseg.labels.rules import READING_KEY, ROI_MAPPING_KEY, ReadingRules
from medseg.labels.scheme import MAPPING_KEY
from medseg.manifests.items import Item, case_of, common_start, files_of, relative_name
from medseg.manifests.layout_dicom import DicomChoices
from medseg.manifests.manifest import Manifest
from medseg.manifests.roi_table import Missing, NameChoices, settle_names
from medseg.manifests.value_table import declare_values

SOURCE_KEY = "label_source"
"""Key of an item: what its label map was made from, with the sums of these files, by which medseg."""


class CreateOptions(TypedDict, total=False):
    """What may be said where a study's layout does not say it."""

    patient_pattern: str | None
    """Regular expression searched in each image's path; its first group (or the whole match) is the patient. By default
    each case is a patient of its own, in BIDS each subject, in DICOM each patient."""
    image_patterns: Sequence[str]
    label_pattern: str | None
    """Where images (one pattern a channel) and labels lie, such as ``{patient}/MR*.nii.gz`` and
    ``{patient}/seg*.nii.gz``, see :func:`medseg.manifests.layout_patterns.read_patterns`."""
    names: Mapping[int, str]  # names of the labels by value; replace what the dataset declares itself
    mapping: Mapping[int, int]
    """Value in the label files → label that is meant, recorded in the manifest and applied by whoever reads a label."""
    structures: Sequence[str]
    """Names that are wanted of those in mask files, SEG and RTSTRUCT, in the order of their values."""
    merges: Mapping[str, Sequence[str]]
    """Structures made of several values, names in the dataset's table, or names of ROIs."""
    roi_table: Mapping[str, str] | None
    """Structure by name of a ROI, segment or mask file, from an accepted table; empty for what is left out."""
    missing: Missing  # what a structure is in a case that has no mask or ROI of it, background or unknown
    reading: Mapping[str, Any]
    """How SEG and RTSTRUCT are read where they do not fit as they are: :class:`medseg.labels.rules.ReadingRules`."""
    dicom: DicomChoices
    """What decides where a DICOM tree (or a BIDS dataset with several raters) leaves several answers."""
    checksums: bool  # add the SHA-256 sums of all files, so that the audit can tell when one has changed (the default)
    progress: Callable[[int, int], None] | None  # called with cases whose labels were looked at, and of all


def create(images: Path, labels: Path | None = None, **options: Unpack[CreateOptions]) -> Manifest:
    """Make a manifest from whatever way a study lies on disk.

    Folders of images and label maps, a folder for each patient, one mask file for each structure, a DICOM tree whose
    SEG and RTSTRUCT objects refer to its series, a Decathlon or nnU-Net ``dataset.json``, BIDS derivatives. No file is
    rewritten: the manifest says how each label is read.

    ``images``: a folder of images, a BIDS dataset, or a datalist or ``dataset.json`` (or the folder that holds one).
    ``labels``: a folder of label maps, masks or objects, or a BIDS derivative; not needed where ``images`` names or
    holds them. ``options``: see :class:`CreateOptions`. Raises ``UndecidedNames`` if it has to be said which structures
    the names in the labels mean; ``UsageError`` if nothing usable is found, or images and labels cannot be matched
    without guessing.
    """
    for path in (images, labels):
        if path is not None and not path.exists():
            raise UsageError(f"cannot find {path}; give an existing folder or dataset.json")
    manifest = _cases(images, labels, options)
    if (pattern := options.get("patient_pattern")) is not None:
        manifest = manifest.with_keys(_patients(pattern))
    if reading := options.get("reading"):
        manifest = manifest.with_content(**{READING_KEY: dict(reading)})
        ReadingRules.of(manifest.content, "this call")
    manifest = _with_labels(manifest, options)
    if not options.get("checksums", True):
        return manifest
    return manifest.with_keys(lambda item: {"sha256": checksums(manifest, item)})


def _with_labels(manifest: Manifest, options: CreateOptions) -> Manifest:
    """Declare the structures, by the names in the labels or by the values."""
    names, mapping, merges = options.get("names", {}), options.get("mapping", {}), options.get("merges", {})
    structures, table = options.get("structures", ()), options.get("roi_table")
    wanted = list(structures) or [name for value, name in names.items() if value]
    choices = NameChoices(wanted, table, merges, options.get("missing", "background"))
    settled = settle_names(manifest, choices, options.get("progress"))
    if settled is None:
        if table is not None or structures:
            raise UsageError("the labels are label maps, which have values: name these with --label VALUE=NAME")
        return declare_values(manifest, names, mapping, merges)
    if mapping:
        raise UsageError("--map renumbers values, and these labels have names: say the values with --label VALUE=NAME")
    return settled.with_content(labels={str(value): names[value] for value in sorted(names)}) if names else settled


def _cases(images: Path, labels: Path | None, options: CreateOptions) -> Manifest:
    """The cases of a study, whichever way it lies."""
    from medseg.manifests import layout_bids, layout_folders, layout_patterns  # not needed for sums of files

    dicom = options.get("dicom", DicomChoices())
    image_patterns, label_pattern = options.get("image_patterns", ()), options.get("label_pattern")
    if labels is None and not image_patterns and any(images.glob("*/segmentations/*.nii.gz")):
        # TotalSegmentator's dataset
        image_patterns = ["{patient}/*.nii.gz"]
        label_pattern = label_pattern or "{patient}/segmentations/{structure}.nii.gz"
    if image_patterns or label_pattern:
        read = layout_patterns.read_patterns
        return read(images, image_patterns, label_pattern, labels, leave_out=dicom.leave_out)
    if images.is_file() or (labels is None and (images / "dataset.json").is_file()):
        return Manifest.read(images)
    if layout_bids.is_bids(images):
        return layout_bids.read(images, labels, raters=dicom.several == "raters")
    return layout_folders.read_folders(images, labels, dicom)


def _patients(pattern: str) -> Callable[[Item], dict[str, str]]:
    """The key ``patient_id`` of an item, from its image's path."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error

    def patient(item: Item) -> dict[str, str]:
        image = files_of(item["image"])[0]
        match = expression.search(image)
        if match is None:
            raise UsageError(f"the patient pattern {pattern!r} matches nothing in {image}; widen it")
        return {"patient_id": match[1] if expression.groups else match[0]}

    return patient


def path_checksum(path: Path, known: Mapping[Path, str] = MappingProxyType({})) -> str:
    """SHA-256 of a file; of a folder, the SHA-256 over its files' sums and relative names in sorted order.

    ``known`` holds sums of files that need not be read again.
    """
    if not path.is_dir():
        return sha256_file(path)
    total = hashlib.sha256()
    files = (file for file in path.rglob("*") if file.is_file() and not is_apple_double(file))
    for name in sorted(file.relative_to(path).as_posix() for file in files):
        own = known.get(path / name) or sha256_file(path / name)
        total.update(f"{own}  {name}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def checksums(manifest: Manifest, item: Item) -> dict[str, str | list[str]]:
    """SHA-256 sums of an item's image and label; a list, in the order of the files, where it names several."""
    sums: dict[str, str | list[str]] = {}
    for key in ("image", "label"):
        paths = manifest.files(item, key)
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise UsageError(f"cannot find {missing[0]}; check the manifest's dataset_dir or give --dataset-dir")
        if paths:
            values = [path_checksum(path) for path in paths]
            sums[key] = values[0] if isinstance(item[key], str) else values
    return sums


def write_label_maps(manifest: Manifest, folder: Path, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Write every label as a NIfTI label map, ``CASE.nii.gz`` or ``CASE_RATER.nii.gz``, and list these instead.

    How names and values were read is applied, so that the manifest that comes back needs no such rule any more. Raises
    ``UsageError`` if two cases have one name, or a label cannot be read; its case is named.
    """
    start = common_start(manifest.dataset_dir, folder)
    total, taken = sum(bool(item.get("label")) for _, _, item in manifest.items()), set[str]()

    def write(item: Item) -> dict[str, Any]:
        images = [relative_name(path, start) for path in manifest.files(item, "image")]
        moved = {"image": images if isinstance(item["image"], list) else images[0]}
        if not item.get("label"):
            return moved
        case = case_of(item)
        if case in taken:
            raise UsageError(f"two cases are called {case}; give them a case_id each, since label maps are named by it")
        taken.add(case)
        try:
            maps = manifest.label_maps(item, only_declared=True)
        except Refusal as refusal:
            raise UsageError(f"the label of {case} cannot be written: {refusal}") from refusal
        names = {rater: folder / (f"{case}_{rater}.nii.gz" if rater else f"{case}.nii.gz") for rater in maps}
        for rater, labels in maps.items():
            save_nifti(labels.array, labels.geometry.affine, names[rater], description="label map by medseg")
        written = {rater: relative_name(path, start) for rater, path in names.items()}
        label: Any = [{"rater": rater, "label": name} for rater, name in written.items()]
        notes = [note for labels in maps.values() for note in labels.notes]
        source = {
            "label": item["label"],
            "sha256": checksums(manifest, item).get("label"),
            "medseg": medseg_version(),
            **({"notes": notes} if notes else {}),
        }
        if progress is not None:
            progress(len(taken), total)
        return {**moved, "label": written.get("", label), SOURCE_KEY: source}

    made = manifest.with_keys(write)
    rules = {key: made.content[key] for key in (ROI_MAPPING_KEY, MAPPING_KEY, READING_KEY) if key in made.content}
    content = {key: value for key, value in made.content.items() if key not in rules}
    made = replace(made, content={**content, **({"labels_written_by": rules} if rules else {})}, dataset_dir=start)
    return made.with_keys(lambda item: {"sha256": checksums(made, item)})
