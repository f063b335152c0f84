"""Results as DICOM objects, read again as labels; and a real study from its structure set to its figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from medseg import outputs
from medseg.bundle import Bundle
from medseg.cli.main import app, load_commands
from medseg.evaluation.tables import read_csv
from medseg.inference import Options, run_batch
from medseg.ingest import SeriesRecord, read_volume, save_nifti, scan
from medseg.labels import ReadingRules, read_label
from medseg.manifests import Manifest
from medseg.phantom import Phantom, make_patient, write_dicom
from medseg.phantom.anatomy import rotation

pytestmark = pytest.mark.slow

BUNDLES = Path(__file__).parents[2] / "bundles"
GRIDS = {"oblique": (23.0, 0.0), "anisotropic": (0.0, 0.0), "sheared": (0.0, 15.0)}
"""Turn and gantry tilt in degrees."""
Result = Callable[[Path, Path], NDArray[np.uint8]]


def on_grid(name: str, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """A grid round the origin, its axes towards left, posterior and superior but for turn and tilt."""
    degrees, tilt = GRIDS[name]
    axes = rotation(np.array([degrees, -degrees / 2, degrees / 3])) @ np.diag(spacing_mm) @ np.diag([-1, -1, 1])
    axes[1, 2] += axes[2, 2] * np.tan(np.radians(tilt))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, -axes @ ((np.array(shape) - 1) / 2)
    return np.asarray(np.round(affine, 9))


def written(phantom: Phantom, folder: Path) -> SeriesRecord:
    [record] = scan(write_dicom(phantom, folder, thin=False).main)
    return record


def require_equal(path: Path, expected: NDArray[np.uint8], record: SeriesRecord, bundle: Bundle) -> None:
    """A structure set says nothing of slices between two contours, so a gap of the result is taken as it is."""
    rules = ReadingRules(missing_slices="empty")
    found = read_label(path, scheme=bundle.scheme, rules=rules, image=Path(record.source))
    assert found.array.shape == expected.shape
    np.testing.assert_array_equal(found.array, expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_results_of_the_phantom_bundle_come_back_equal(grid: str, tmp_path: Path) -> None:
    bundle = Bundle.open(BUNDLES / "phantom_ct_segmentation")
    shape, spacing_mm = ((68, 68, 48), (4.5, 4.5, 4.5)) if grid == "oblique" else ((76, 76, 27), (4.0, 4.0, 8.0))
    phantom = make_patient(3, shape=(40, 40, 32), lesion=True).on_grid(shape, on_grid(grid, shape, spacing_mm))
    record = written(phantom, tmp_path / "in")
    asked = Options(write=("nifti", "seg", "rtstruct"), device="cpu", precision="fp32")
    [case] = run_batch(bundle.path, [Path(record.source)], tmp_path / "out", asked).cases
    assert case.status == "done", case.message
    assert not case.not_written
    labels, geometry, _ = read_volume(tmp_path / "out" / f"{case.case_id}_seg.nii.gz")
    assert geometry.is_sheared == (grid == "sheared")
    assert len(np.unique(labels)) > 3
    objects = sorted((tmp_path / "out").glob("*.dcm"))
    assert len(objects) == 2
    for path in objects:
        require_equal(path, labels.astype(np.uint8), record, bundle)


def hippocampus(data: Path, folder: Path) -> NDArray[np.uint8]:
    """What the bundle finds in a real case."""
    image = data / "msd_hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"
    run_batch(BUNDLES / "hippocampus_mri_segmentation", [image], folder, Options(device="cpu", precision="fp32"))
    return read_volume(folder / "hippocampus_001_seg.nii.gz")[0].astype(np.uint8)


def sarcoma(data: Path, _: Path) -> NDArray[np.uint8]:
    """A real tumour as it was drawn, on every second row and column."""
    labels = read_volume(data / "ibsi_sts" / "nifti" / "STS_002" / "MR_T1_mask.nii.gz")[0] > 0
    found = np.argwhere(labels)
    low, high = found.min(axis=0) - 1, found.max(axis=0) + 2
    return labels[low[0] : high[0] : 2, low[1] : high[1] : 2, low[2] : high[2]].astype(np.uint8)


@pytest.mark.parametrize(("name", "result"), [("hippocampus_mri", hippocampus), ("sarcoma_mrpet", sarcoma)])
def test_results_of_the_other_bundles_come_back_equal(
    name: str, result: Result, real_data: Path, tmp_path: Path
) -> None:
    labels = result(real_data, tmp_path / "found")
    bundle = Bundle.open(BUNDLES / f"{name}_segmentation")
    assert set(np.unique(labels)) == {0, *bundle.labels}
    for grid in GRIDS:
        blank = replace(make_patient(0, "mr", shape=(8, 8, 8)), image=np.zeros(labels.shape, np.int16), label=labels)
        phantom = replace(blank, affine=on_grid(grid, labels.shape, (0.9, 0.9, 3.6)))
        record = written(phantom, tmp_path / grid)
        for kind in ("seg", "rtstruct"):
            path = outputs.write(kind, labels, phantom.geometry, record, bundle, tmp_path / grid / f"{kind}.dcm")
            require_equal(path, labels, record, bundle)


def medseg(*arguments: object) -> None:
    load_commands(str(arguments[0]))
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"


def test_a_study_trains_and_is_scored_against_its_structure_set(real_data: Path, tmp_path: Path) -> None:
    listed, name, run = tmp_path / "list.json", "thigh_mri_sarcoma", tmp_path / "run"
    chosen = ["--modality", "MR", "--label", "1=tumour", "--merge", "tumour=GTV_Mass_MR_T1"]
    medseg("manifest", "create", "--images", real_data / "ibsi_sts" / "dicom", *chosen, "-o", listed)
    manifest = Manifest.read(listed)
    (item,) = manifest.training
    assert item["label"] == "STS_002/MR_T1/mask/RS.dcm"
    label = manifest.label_maps(item)[""]
    twin, grid, _ = read_volume(real_data / "ibsi_sts" / "nifti" / "STS_002" / "MR_T1_mask.nii.gz")
    assert label.geometry.matches(grid, tolerance_mm=0.01)
    assert np.count_nonzero(label.array != twin) == 0
    medseg("bundle", "new", name, "--datalist", listed, "-o", tmp_path, "--minutes", 2)
    settings = ["epochs=1", "iterations=2", "patch_size=[32,32,16]", "val_interval=1", "warm_up=0", "ramp=1"]
    options = [part for setting in settings for part in ("--set", setting)]
    medseg("train", tmp_path / name, "--fold", -1, "--device", "cpu", "-o", run, "--publish", *options)
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["label_notes"]) == ("done", {})
    medseg("infer", tmp_path / name, listed, "-o", tmp_path / "found", "--device", "cpu")
    medseg("evaluate", tmp_path / "found", listed, "-o", tmp_path / "scores")
    (row,) = read_csv(tmp_path / "scores" / "metrics.csv")
    found = read_volume(tmp_path / "found" / f"{item['case_id']}_seg.nii.gz")[0] > 0
    by_hand = 2 * np.count_nonzero(found & (twin > 0)) / (np.count_nonzero(found) + np.count_nonzero(twin))
    assert (row.name, row.case_id) == ("tumour", item["case_id"])
    assert row.dice == pytest.approx(by_hand)
    save_nifti((twin > 0).astype(np.uint8), grid.affine, tmp_path / "twin" / f"{item['case_id']}.nii.gz")
    medseg("evaluate", tmp_path / "twin", listed, "-o", tmp_path / "same")
    assert [row.dice for row in read_csv(tmp_path / "same" / "metrics.csv")] == [1.0]
