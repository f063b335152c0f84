"""The bundle for MR and PET on a patient's own DICOM series: two series of one study, one result on the MR."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.bundle import Bundle, audit
from medseg.evaluation import evaluate_case
from medseg.inference import Options, run_batch
from medseg.inference.cases import collect, load
from medseg.inference.config import channels_of
from medseg.ingest import read_volume
from medseg.ingest.selection import parse_rules
from tests.outputs.test_geometry import read_with_highdicom

BUNDLE = Path(__file__).parents[2] / "bundles" / "sarcoma_mrpet_segmentation"
RULES = [{"channel": "mr", "modality": "MR"}, {"channel": "pet", "modality": "PT"}]


@pytest.fixture
def study(real_data: Path) -> Path:
    return real_data / "ibsi_sts" / "dicom" / "STS_002"


def test_it_passes_the_audit_and_lists_its_data() -> None:
    assert {finding.file for finding in audit(BUNDLE)} == {"configs/datalist.json"}, "public data: it names its files"
    bundle = Bundle.open(BUNDLE)
    assert channels_of(bundle).resampled
    items = bundle.config("datalist")["training"]
    assert len({item["patient_id"] for item in items}) == len(items) == 22
    assert {item["fold"] for item in items} == {0, 1, 2}
    assert bundle.label_codes.keys() == bundle.labels.keys()


def test_rules_find_the_two_series_of_the_study(study: Path) -> None:
    (case,) = collect([study], 2, parse_rules(RULES))
    assert [record.modality for record in case.channels] == ["MR", "PT"]
    object.__setattr__(case, "taken", channels_of(Bundle.open(BUNDLE)))
    loaded = load(case)
    assert loaded.note == "channel 2 covers 100% of the first"
    nifti = study.parents[1] / "nifti" / "STS_002"
    for image, name in ((loaded.images["image"], "MR_T1"), (loaded.images["channel_1"], "PET")):
        values, grid, _ = read_volume(nifti / f"{name}_image.nii.gz")
        np.testing.assert_allclose(image.affine, grid.affine, atol=0.01)
        np.testing.assert_allclose(image[0], values, rtol=1e-3, atol=1e-3)


def test_the_segmentation_lies_on_the_mr(study: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text(json.dumps({"rules": RULES}))
    options = Options(write=("nifti", "seg"), select=str(tmp_path / "rules.json"))
    report = run_batch(BUNDLE, [study], tmp_path / "out", options)
    (case,) = report.content["cases"]
    assert (case["status"], len(case["outputs"])) == ("done", 2)
    mr, grid, _ = read_volume(study / "MR_T1" / "image")
    found, own, _ = read_volume(tmp_path / "out" / f"{case['case_id']}_seg.nii.gz")
    assert own.matches(grid)
    assert found.shape == mr.shape
    reference, _, _ = read_volume(study.parents[1] / "nifti" / "STS_002" / "MR_T1_mask.nii.gz")
    (dice,) = (result.values["dice"] for result in evaluate_case(found, reference, grid.spacing_mm, {1: "sarcoma"}))
    assert dice is not None
    assert dice > 0.75  # the network has learnt this patient: whether it lies in its place, not how good it is
    again = read_with_highdicom(tmp_path / "out" / f"{case['case_id']}_seg.dcm", grid, {1: 1})
    np.testing.assert_array_equal(again > 0, found > 0)
