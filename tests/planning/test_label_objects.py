"""A bundle is planned from DICOM objects and mask files as it is from the label maps that they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pytest
from typer.testing import CliRunner

from medseg.bundle import Bundle
from medseg.cli.main import app, load_commands
from medseg.manifests import Manifest
from medseg.planning.fingerprint import Fingerprint, fingerprint_of_data
from tests.labels.objects import save, segmentation, series
from tests.training.test_label_objects import series_geometry, truth, write_study


def of_label_maps(datalist: Path) -> Fingerprint:
    """The same cases with a NIfTI label map each."""
    content = json.loads(datalist.read_text())
    for number, item in enumerate(content["training"]):
        item["label"] = f"{number}.nii.gz"
        image = nib.Nifti1Image(truth(), series_geometry(datalist.parent / item["image"]))
        nib.save(image, datalist.parent / item["label"])
    (datalist.parent / "maps.json").write_text(json.dumps(content))
    return fingerprint_of_data(Manifest.read(datalist.parent / "maps.json"))


@pytest.mark.parametrize("kind", ["seg", "rtstruct", "masks"])
def test_the_plan_is_that_of_the_label_maps(tmp_path: Path, kind: str) -> None:
    datalist = write_study(tmp_path, kind)
    found, right = fingerprint_of_data(Manifest.read(datalist)), of_label_maps(datalist)
    assert (found.labels, found.structure_fraction) == (right.labels, right.structure_fraction)
    assert found.structure_ml == pytest.approx(right.structure_ml, rel=1e-6)
    assert found.intensity == right.intensity
    load_commands("bundle")
    command = ["bundle", "new", "hippocampus_ct_planned", "--datalist", str(datalist), "-o", str(tmp_path / "b")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    bundle = Bundle.open(tmp_path / "b" / "hippocampus_ct_planned")
    assert bundle.labels == {1: "anterior hippocampus", 2: "posterior hippocampus"}
    written = bundle.config("datalist")
    assert written["roi_mapping"] == json.loads(datalist.read_text())["roi_mapping"]


def test_regions_are_planned_from_segments_that_overlap(tmp_path: Path) -> None:
    of = series(tmp_path / "ct", shape=truth().shape)
    save(segmentation(of, {"whole": truth() > 0, "core": truth() == 2}), tmp_path / "seg.dcm")
    table = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    items = [{"image": "ct", "label": "seg.dcm", "patient_id": f"p{number}"} for number in range(2)]
    (tmp_path / "list.json").write_text(json.dumps({**table, "training": items}))
    found = fingerprint_of_data(Manifest.read(tmp_path / "list.json"))
    assert (found.labels, found.outputs) == ({1: "whole", 2: "core"}, 2)
    assert found.structure_ml[1] == pytest.approx(2 * found.structure_ml[2])
