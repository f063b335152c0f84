"""Datalists from real studies: a DICOM tree with structure sets, segmentations of series, two people's masks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.ingest import read_volume
from medseg.manifests import create
from medseg.manifests.layout_dicom import DicomChoices


def test_a_study_with_three_series_and_their_structure_sets(real_data: Path) -> None:
    folder = real_data / "ibsi_sts" / "dicom"
    with pytest.raises(UsageError, match="the labelled series are 1 CT, 1 MR and 1 PT"):
        create(folder, checksums=False)
    manifest = create(
        folder,
        names={0: "background", 1: "tumour"},
        roi_table={"GTV_Mass_MR_T1": "tumour"},
        dicom=DicomChoices(modality="MR"),
    )
    (item,) = manifest.training
    assert (item["image"], item["label"]) == ("STS_002/MR_T1/image", "STS_002/MR_T1/mask/RS.dcm")
    labels = manifest.label_maps(item)[""]
    twin, geometry, _ = read_volume(real_data / "ibsi_sts" / "nifti" / "STS_002" / "MR_T1_mask.nii.gz")
    assert labels.geometry.matches(geometry, tolerance_mm=0.01)
    dice = 2 * np.count_nonzero(labels.array & (twin > 0)) / (np.count_nonzero(labels.array) + np.count_nonzero(twin))
    assert dice > 0.99


def test_segmentations_of_one_series(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "dcmqi_seg" / "segmentations"
    shutil.copytree(source / "ct-3slice", tmp_path / "ct")
    shutil.copy(source / "liver.dcm", tmp_path / "whatever.dcm")
    manifest = create(tmp_path)
    assert manifest.labels == {0: "background", 1: "Liver"}
    reference = read_volume(source / "liver_seg.nrrd")[0]
    assert manifest.label_maps(manifest.training[0])[""].values.voxels[1] == np.count_nonzero(reference)
    shutil.copy(source / "partial_overlaps.dcm", tmp_path / "second.dcm")
    with pytest.raises(UsageError, match=r"second.dcm .* all label .*--several"):
        create(tmp_path)


@pytest.mark.slow
def test_two_raters_with_a_file_for_each_structure(real_data: Path) -> None:
    folder = real_data / "deepmind_hn_two_raters" / "nrrds" / "test"
    manifest = create(
        folder,
        image_patterns=["oncologist/{patient}/segmentations/Brain.nrrd"],  # the images are not there
        label_pattern="{rater}/{patient}/segmentations/{structure}.nrrd",
        structures=["Brainstem", "Parotid-Lt", "Parotid-Rt"],
        checksums=False,
    )
    assert [item["patient_id"] for item in manifest.training] == ["0522c0017", "0522c0057"]
    maps = manifest.label_maps(manifest.training[0])
    assert {*maps} == {"oncologist", "radiographer"}
    assert all({1, 2, 3} <= set(labels.values.voxels) for labels in maps.values())
