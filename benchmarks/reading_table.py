"""Read everything in a folder of real studies, compare with independent readers, write the table of docs/reading.md.

Every DICOM stack and every image file is listed: what it is, the verdict, and for accepted volumes whether SimpleITK,
nibabel or dcm2niix (if it is installed) see the same voxels at the same places (affine to 1e-4).

    python -m benchmarks.reading_table FOLDER [--document docs/reading.md]
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray

from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.ingest import read_volume
from medseg.ingest.read_dicom import read_headers, read_stack
from medseg.ingest.record import image_kind
from medseg.ingest.stacks import Stack, split

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
AFFINE_TOLERANCE = 1e-4

Values = NDArray[Any]
Affine = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    source: str
    what: str
    verdict: str
    agreement: str


def rows(root: Path) -> list[Row]:
    """The table of everything under ``root``; names are relative to it."""
    folders = sorted({file.parent for file in root.rglob("*") if file.is_file()})
    return [row for folder in folders for row in _folder(folder, root)]


def _folder(folder: Path, root: Path) -> Iterator[Row]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    images = [file for file in files if image_kind(file) is not None]
    for file in images:
        yield _image(file, root)
    for stack in split(read_headers(file for file in files if file not in images)):
        yield _stack(stack, folder, root)


def _image(file: Path, root: Path) -> Row:
    name = str(file.relative_to(root))
    try:
        values, geometry, _ = read_volume(file)
    except Refusal as refusal:
        return Row(name, "", refusal.code, "")
    independent = _by_nibabel(file) if image_kind(file) == "nifti" else _by_simpleitk([str(file)])
    reader = "nibabel" if image_kind(file) == "nifti" else "SimpleITK"
    return Row(name, geometry.describe(), "accepted", f"{reader}: {_compare(values, geometry, independent)}")


def _stack(stack: Stack, folder: Path, root: Path) -> Row:
    first = stack.headers[0]
    same = len(stack.files) == 1
    source = str((Path(stack.files[0]) if same else folder).relative_to(root)) + (
        f" ({stack.suffix})" if stack.suffix else ""
    )
    what = f"{first.modality or 'DICOM'}, {len(stack.headers)} slices"
    try:
        values, geometry, _ = read_stack(stack)
    except Refusal as refusal:
        return Row(source, what, refusal.code, "")
    found = []
    if first.frame is None:
        found.append(f"SimpleITK: {_compare(values, geometry, _by_simpleitk(stack.files))}")
    if shutil.which("dcm2niix"):
        found.append(f"dcm2niix: {_by_dcm2niix(stack.files, values, geometry)}")
    return Row(source, f"{what}, {geometry.describe()}", "accepted", "; ".join(found))


# --- independent readers ------------------------------------------------------------------------------------------


def _by_nibabel(file: Path) -> tuple[Values, Affine]:
    image = nibabel.load(file)
    return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)


def _by_simpleitk(files: Sequence[str]) -> tuple[Values, Affine] | None:
    try:
        image = SimpleITK.ReadImage(files[0] if len(files) == 1 else list(files))
    except RuntimeError:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _by_dcm2niix(files: Sequence[str], values: Values, geometry: Geometry) -> str:
    """Whether one of the volumes that dcm2niix makes of the files is ours."""
    with tempfile.TemporaryDirectory() as given, tempfile.TemporaryDirectory() as made:
        for number, file in enumerate(files):
            (Path(given) / f"{number:05d}.dcm").symlink_to(Path(file).absolute())
        # -p n: display values (RescaleSlope), as all other readers give them, instead of Philips's "precise" ones
        command = ["dcm2niix", "-p", "n", "-b", "n", "-z", "n", "-m", "n", "-o", made, "-f", "volume_%s", given]
        subprocess.run(command, capture_output=True, check=False, timeout=120)
        outcomes = [
            _compare(values, geometry, volume) for file in Path(made).glob("*.nii") for volume in _volumes(file)
        ]
    best_first = sorted(outcomes, key=lambda outcome: (outcome != "same", not outcome.startswith("same")))
    return best_first[0] if best_first else "made nothing"


def _volumes(file: Path) -> Iterator[tuple[Values, Affine]]:
    values, affine = _by_nibabel(file)
    for part in np.moveaxis(values, 3, 0) if values.ndim == 4 else [values]:
        yield part, affine


# --- comparison ---------------------------------------------------------------------------------------------------


def _compare(values: Values, geometry: Geometry, other: tuple[Values, Affine] | None) -> str:
    """``same`` if the same values lie at the same places, however the axes are ordered; else what differs."""
    if other is None:
        return "cannot read it"
    other_values, other_affine = other
    if other_values.ndim == 4 and other_values.shape[3] == 1:
        other_values = other_values[..., 0]
    placed = _like(other_values, other_affine, geometry)
    if placed is None:
        return "another grid"
    other_values, other_affine = placed
    tolerance = 1e-6 * max(1.0, float(np.abs(values).max()))
    if float(np.abs(values.astype(np.float64) - other_values).max()) > tolerance:
        return "other values"
    difference = Geometry(geometry.shape, other_affine).displacement_mm(geometry)
    if float(np.abs(other_affine - geometry.affine).max()) <= AFFINE_TOLERANCE:
        return "same"
    return f"same values, up to {difference:.3g} mm away" + (" (it cannot hold shear)" if geometry.is_sheared else "")


def _like(values: Values, affine: Affine, geometry: Geometry) -> tuple[Values, Affine] | None:
    """The other volume with its axes in our order and direction; ``None`` if the shapes do not fit."""
    to_ours = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.io_orientation(geometry.affine)
    )
    if values.ndim != 3:
        return None
    turned = nibabel.orientations.apply_orientation(values, to_ours)
    if turned.shape != geometry.shape:
        return None
    return turned, affine @ nibabel.orientations.inv_ornt_aff(to_ours, values.shape)


# --- text ---------------------------------------------------------------------------------------------------------


def table(found: list[Row]) -> str:
    """The rows as Markdown; files of one folder with the same outcome share a line."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in found:
        folder = row.source.rpartition("/")[0] if len(found) > 1 else ""
        key = (_study(folder), row.verdict, row.agreement)
        groups.setdefault(key, []).append(row)
    lines = ["| file or series | what | verdict | compared with |", "| --- | --- | --- | --- |"]
    for (folder, verdict, agreement), members in groups.items():
        if len(members) > 3:
            shapes = Counter(row.what for row in members)
            what = next(iter(shapes)) if len(shapes) == 1 else f"{len(shapes)} different grids"
            lines.append(f"| {folder}/…: {len(members)} files | {what} | {verdict} | {agreement} |")
        else:
            lines += [f"| {row.source} | {row.what} | {verdict} | {agreement} |" for row in members]
    counts = Counter(row.verdict for row in found)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    return f"{len(found)} volumes and objects: {summary}.\n\n" + "\n".join(lines)


def _study(folder: str) -> str:
    return "/".join(folder.split("/")[:2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--document", type=Path, help="write the table between the marks in this file")
    options = parser.parse_args()
    logging.getLogger("nibabel").setLevel(logging.ERROR)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    text = table(rows(options.folder))
    if options.document is None:
        print(text)
        return 0
    before, _, rest = options.document.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    options.document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
