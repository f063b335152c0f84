"""The shipped hippocampus bundle on real volumes: medseg gives what MONAI gives with the same bundle."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.agreement import agreement
from medseg.inference import Options, run_batch
from tests.inference.bundles import run_monai
from tests.inference.volumes import load

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_segmentation"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MEDSEG_TEST_DATA" not in os.environ, reason="MEDSEG_TEST_DATA is not set"),
    pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").is_file(), reason="the bundle has no weights yet"),
]


def test_agrees_with_the_bundles_own_evaluator(tmp_path: Path) -> None:
    source = Path(os.environ["MEDSEG_TEST_DATA"]) / "msd_hippocampus" / "imagesTr"
    (tmp_path / "data" / "imagesTr").mkdir(parents=True)
    for path in sorted(source.glob("hippocampus_*.nii.gz"))[:4]:
        (tmp_path / "data" / "imagesTr" / path.name).symlink_to(path)
    run_monai(BUNDLE, tmp_path / "data", tmp_path / "monai")
    report = run_batch(BUNDLE, [tmp_path / "data"], tmp_path / "medseg", Options(precision="fp32"))
    assert report.complete
    for case in report.cases:
        found, affine = load(tmp_path / "medseg" / case.outputs[0])
        expected, _ = load(tmp_path / "monai" / case.outputs[0])
        same = agreement(found, expected)
        assert same is not None
        assert same >= 0.9999
        np.testing.assert_allclose(affine, load(source / f"{case.case_id}.nii.gz")[1], atol=1e-5)


def test_whole_heads_are_refused_and_the_crop_is_labelled(tmp_path: Path) -> None:
    study = Path(os.environ["MEDSEG_TEST_DATA"]) / "brain_mr_dicom" / "Study1"
    report = run_batch(BUNDLE, [study], tmp_path / "out", Options(precision="fp32"))
    by_folder = {Path(case.source).name: case for case in report.cases}
    crop = by_folder.pop("13_HCropVolume")
    assert crop.status == "done"
    assert all((structure.volume_ml or 0.0) > 0.3 for structure in crop.structures)
    assert {case.reason for case in by_folder.values()} == {"outside-training-range"}
