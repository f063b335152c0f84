"""Label maps written once, on request, from labels that are SEG, RTSTRUCT, a file per structure, or renumbered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg._version import medseg_version
from medseg.errors import Refusal, UsageError
from medseg.ingest import save_nifti
from medseg.labels.rules import READING_KEY, ROI_MAPPING_KEY
from medseg.labels.scheme import MAPPING_KEY
from medseg.manifests.items import Item, case_of, common_start, relative_name
from medseg.manifests.layouts import checksums
from medseg.manifests.manifest import Manifest

SOURCE_KEY = "label_source"
"""Key of an item: what its label map was made from, with the sums of these files, by which medseg."""


def write_label_maps(manifest: Manifest, folder: Path, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Write every label as a NIfTI label map, ``CASE.nii.gz`` or ``CASE_RATER.nii.gz``, and list these instead.

    How names and values were read is applied, so that the manifest that comes back needs no such rule any more.

    Raises
    ------
    UsageError
        If two cases have one name, or a label cannot be read; its case is named.
    """
    start = common_start(manifest.dataset_dir, folder)
    total, taken = sum(bool(item.get("label")) for _, _, item in manifest.items()), set[str]()

    def write(item: Item) -> dict[str, Any]:
        moved = {"image": _moved(manifest, item, start)}
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


def _moved(manifest: Manifest, item: Item, start: Path) -> Any:
    names = [relative_name(path, start) for path in manifest.files(item, "image")]
    return names if isinstance(item["image"], list) else names[0]
