"""What :mod:`benchmarks.compare_trees` runs inside one tree's own interpreter, through stable public names only.

``python -P tree_worker.py phantoms|series|read|commands|serve …`` with ``PYTHONPATH`` set to the tree. Heavy imports
happen where they are needed, so that a measurement pays for its own alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import resource
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Operation = Callable[[], Sequence[Any]]
"""Does what is measured, and hands back what came out."""

_IMAGES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_PER_FOLDER = 6
"""So many image files of one folder are read; folders of hundreds hold more of the same."""


def digest(*parts: Any) -> str:
    """SHA-256 over type, shape and bytes of arrays, and the text of all else."""
    total = hashlib.sha256()
    for part in parts:
        array = isinstance(part, np.ndarray)
        total.update(f"{part.dtype} {part.shape}".encode() if array else repr(part).encode())
        total.update(np.ascontiguousarray(part).tobytes() if array else b"")
    return total.hexdigest()


def phantoms(folder: Path, count: int) -> None:
    """Studies of synthetic patients as DICOM, with references; and two more as NIfTI."""
    from medseg.phantom import write_dataset

    write_dataset(folder, count, seed=41, kind="ct", structures=4)
    write_dataset(folder / "nifti", 2, seed=7, kind="ct", structures=4, form="nifti")
    write_dataset(folder / "mr", 1, seed=11, kind="mr", structures=4, form="nifti")


def series(folder: Path, slices: int) -> None:
    """A CT series of usual size, the same volume as ``.nii.gz``, and many small series."""
    from medseg.phantom import make_patient, write_dataset, write_dicom, write_nifti

    patient = make_patient(3, shape=(512, 512, slices), kind="ct", structures=4)
    write_dicom(patient, folder / "ct", thin=False)
    write_nifti(patient, image=folder / "volume.nii.gz")
    write_dataset(folder / "many", 24, seed=100, kind="ct", structures=4)


def read(data: Path) -> dict[str, str]:
    """Every folder of DICOM files and some image files below ``data``: digest of the volume, or why there is none."""
    from medseg.ingest import read_volume

    found: dict[str, str] = {}
    for source in _sources(data):
        try:
            array, geometry, facts = read_volume(source)
            kept = {key: facts[key] for key in ("kind", "modality", "rescale", "notes") if key in facts}
            found[str(source)] = digest(array, geometry.affine, json.dumps(kept, sort_keys=True, default=str))
        except Exception as error:  # noqa: BLE001 - a refusal is a result, and so is any other error
            found[str(source)] = f"{type(error).__name__} {getattr(error, 'code', '')}: {error}"
    return found


def _sources(data: Path) -> list[Path]:
    found = []
    for folder, _, names in os.walk(data):
        images = sorted(name for name in names if name.lower().endswith(_IMAGES))
        found += [Path(folder, name) for name in images[:_PER_FOLDER]]
        if any(_is_dicom(Path(folder, name)) for name in names):
            found.append(Path(folder))
    return sorted(found)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def commands(lines: list[list[str]]) -> dict[str, str]:
    """Exit code and output of light commands, and of every command's ``--help``, all in one process."""
    found = {" ".join(line): _command(line) for line in lines}
    pages: list[list[str]] = [[]]
    while pages:
        page = pages.pop()
        text = found[" ".join([*page, "--help"])] = _command([*page, "--help"])
        _, head, names = text.partition("Commands:\n")
        if head:
            pages += [[*page, line.split()[0]] for line in names.splitlines() if re.match(r"  \S", line)]
    return found


def _command(arguments: list[str]) -> str:
    said, code = io.StringIO(), 0
    sys.argv = ["medseg", *arguments]
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_module("medseg", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
    return f"exit {code}\n{said.getvalue()}"


# What is measured: each prepares (which is not measured) and hands back the operation.


def _read_series(folder: Path) -> Operation:
    from medseg.ingest import read_volume

    def operation() -> Sequence[Any]:
        array, geometry, _ = read_volume(folder)
        return array, geometry.affine

    return operation


def _scan(folder: Path) -> Operation:
    from medseg.ingest import scan

    def operation() -> Sequence[Any]:
        return [(record.case_id, record.source, record.usable) for record in scan([folder], workers=1)]

    return operation


def _metrics() -> Operation:
    """Fourteen structures in 256×256×160; the prediction is the reference, shifted and with holes."""
    from medseg.evaluation import evaluate_case
    from medseg.phantom import make_patient

    reference = make_patient(5, shape=(256, 256, 160), kind="ct", structures=14).label
    prediction = np.roll(reference, (2, -1, 1), (0, 1, 2))
    prediction[::7, ::5, ::3] = 0
    names = {int(value): f"structure {value}" for value in np.unique(reference) if value}
    return lambda: evaluate_case(prediction, reference, (1.3, 1.3, 1.4), names)


def _predictor(bundle: Path, image: Path) -> Operation:
    """One opened network, one case in memory."""
    from medseg.inference import Predictor
    from medseg.transforms import LoadVolumed

    predictor = Predictor(bundle, device="cpu", precision="fp32")
    volume = LoadVolumed(keys="image", ensure_channel_first=True)({"image": str(image)})["image"]

    def operation() -> Sequence[Any]:
        prediction: Any = predictor.predict(volume)
        return [np.asarray(getattr(prediction, "label_map", getattr(prediction, "labels", None)))]

    return operation


def _batch(bundle: Path, image: Path, folder: Path) -> Operation:
    """A whole run of one case, from opening the bundle to the files."""
    import nibabel as nib

    from medseg.inference import Options, run_batch

    def operation() -> Sequence[Any]:
        shutil.rmtree(folder, ignore_errors=True)
        run_batch(bundle, [image], folder, Options(precision="fp32", device="cpu"))
        return [np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*_seg.nii.gz"))]

    return operation


_OPERATIONS: dict[str, Callable[..., Operation]] = {
    "series": _read_series,
    "nifti": _read_series,
    "scan": _scan,
    "metrics": _metrics,
    "predictor": _predictor,
    "batch": _batch,
}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def serve(name: str, arguments: list[Path], answers: Any) -> None:
    """Warm up once, then one measurement for every line on standard input."""
    operation = _OPERATIONS[name](*arguments)
    operation()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        cpu, wall = _cpu_seconds(), time.perf_counter()
        result = operation()
        spent = {"wall": time.perf_counter() - wall, "cpu": _cpu_seconds() - cpu}
        print(json.dumps({**spent, "result": digest(*result)}), file=answers, flush=True)


def main() -> None:
    action, *arguments = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    if action == "phantoms":
        phantoms(Path(arguments[0]), int(arguments[1]))
    elif action == "series":
        series(Path(arguments[0]), int(arguments[1]))
    elif action == "read":
        print(json.dumps(read(Path(arguments[0])), indent=1), file=answers, flush=True)
    elif action == "commands":
        print(json.dumps(commands(json.loads(arguments[0])), indent=1), file=answers, flush=True)
    elif action == "serve":
        serve(arguments[0], [Path(argument) for argument in arguments[1:]], answers)
    else:
        raise SystemExit(f"unknown action {action}")


if __name__ == "__main__":
    main()
