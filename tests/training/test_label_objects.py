"""From a datalist of DICOM objects to a trained bundle and its figures, through the front door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose
from typer.testing import CliRunner

from medseg.cli.main import app, load_commands
from medseg.errors import UsageError
from medseg.ingest import scan
from medseg.labels import ImageGrid
from medseg.training import TrainingDataset, fold_items, train_bundle
from medseg.transforms import LoadVolumed
from tests.labels.objects import Series, affine, ring, save, segmentation, series, structure_set
from tests.outputs.series import rotation
from tests.training.bundles import SMALL, copy_bundle

load_commands()

SHAPE = (16, 16, 16)
NAMES = ("Anterior Hippocampus", "Posterior")
VALUES = {"0": "background", "1": "anterior hippocampus", "2": "posterior hippocampus"}
MAPPING = {"posterior": "posterior hippocampus"}


def truth() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:8, 4:12, 4:12], labels[8:12, 4:12, 4:12] = 1, 2
    return labels


def as_object(of: Series, kind: str, path: Path) -> Path:
    if kind == "seg":
        return save(segmentation(of, {name: truth() == value for value, name in enumerate(NAMES, start=1)}), path)
    if kind == "rtstruct":
        boxes = {NAMES[0]: (3.5, 7.5), NAMES[1]: (7.5, 11.5)}
        contours: dict[str, list[Any]] = {
            name: [ring(rows, (3.5, 11.5), k) for k in range(4, 12)] for name, rows in boxes.items()
        }
        contours[NAMES[0]].append((ring((3.5, 7.5), (3.5, 11.5), 5)[:1], "POINT"))
        return save(structure_set(of, contours), path)
    raise AssertionError(kind)


def write_study(folder: Path, kind: str) -> Path:
    items: list[dict[str, Any]] = []
    for number in range(4):
        of = series(folder / f"ct{number}", affine(rotation(5.0 * number)), SHAPE)
        label: Any
        if kind == "masks":
            label = {}
            for value, name in enumerate(NAMES, start=1):
                mask = nib.Nifti1Image(((truth() == value) * 255).astype(np.uint8), of.geometry.affine)
                nib.save(mask, folder / f"{number}_{value}.nii.gz")
                label[name] = f"{number}_{value}.nii.gz"
        else:
            label = as_object(of, kind, folder / f"{number}.dcm").name
        items.append({"image": f"ct{number}", "label": label, "fold": number % 2, "patient_id": f"p{number}"})
    path = folder / "datalist.json"
    path.write_text(json.dumps({"labels": VALUES, "roi_mapping": MAPPING, "training": items}))
    return path


@pytest.mark.parametrize("kind", ["seg", "rtstruct", "masks"])
def test_two_iterations_and_an_evaluation(tmp_path: Path, kind: str) -> None:
    datalist = write_study(tmp_path, kind)
    result = train_bundle(
        copy_bundle(tmp_path),
        datalist=datalist,
        output=tmp_path / "run",
        device="cpu",
        overrides={**SMALL, "epochs": 1},
    )
    assert result.epochs == 1
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    content = json.loads(datalist.read_text())
    for number, item in enumerate(content["training"]):
        geometry = series_geometry(tmp_path / item["image"])
        nib.save(nib.Nifti1Image(truth(), geometry), predictions / f"ct{number}_seg.nii.gz")
    done = CliRunner().invoke(app, ["evaluate", str(predictions), str(datalist), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {row["metrics"]["dice"]["mean"] for row in summary["structures"].values()} == {1.0}
    if kind == "rtstruct":  # what was left out is told wherever the labels are read
        words = "left out, which hold nothing"
        noted = json.loads((tmp_path / "run" / "run.json").read_text())["label_notes"]
        assert list(noted) == [str(tmp_path / f"{number}.dcm") for number in range(4)]
        assert all(words in note for (note,) in noted.values())
        assert [words in case["note"] for case in summary["notes"]] == [True] * 4
        done = CliRunner().invoke(app, ["manifest", "audit", str(datalist), "--json"])
        read = [one for one in json.loads(done.stdout)["findings"] if one["code"] == "label-reading"]
        assert [one["cases"] for one in read if words in one["message"]] == [[f"ct{number}" for number in range(4)]]


def series_geometry(folder: Path) -> np.ndarray:
    return np.array(ImageGrid.of(folder).geometry.affine)


@pytest.mark.parametrize("side", ["references", "both"])
def test_a_folder_of_segmentations_is_paired_by_series(tmp_path: Path, side: str) -> None:
    """Names say nothing: each object has that of another case."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    predictions.mkdir()
    references.mkdir()
    for number in range(3):
        of = series(tmp_path / f"ct{number}", affine(rotation(5.0 * number)), SHAPE)
        save(segmentation(of, {"one": truth() == 1, "two": truth() == 2}), references / f"case{(number + 1) % 3}.dcm")
        if side == "both":
            empty = {"one": truth() == 1, "two": (truth() == 2) & (np.arange(16) < 8)}
            save(segmentation(of, empty), predictions / f"{number}.dcm")
        else:
            [record] = scan(of.folder)
            nib.save(nib.Nifti1Image(truth(), of.geometry.affine), predictions / f"{record.case_id}_seg.nii.gz")
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"1": "one", "2": "two"}))
    done = CliRunner().invoke(
        app, ["evaluate", str(predictions), str(references), "-o", str(tmp_path / "out"), "--labels", str(labels)]
    )
    assert done.exit_code == 0, done.output
    structures = json.loads((tmp_path / "out" / "metrics.json").read_text())["structures"]
    assert structures["one"]["metrics"]["dice"]["mean"] == 1.0
    assert structures["two"]["metrics"]["dice"]["mean"] == pytest.approx(1.0 if side == "references" else 2 / 3)


def test_objects_need_a_bundle_that_reads_them(tmp_path: Path) -> None:
    items = fold_items(write_study(tmp_path, "seg"), None, 0, "training")
    with pytest.raises(UsageError, match="LoadLabeld"):
        TrainingDataset(items, Compose([LoadVolumed(["image", "label"])]))
