"""Trees and tables as people make them: patients and structures in one name, links, spreadsheets of other countries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from medseg.errors import UndecidedNames, UsageError
from medseg.ingest import save_nifti
from medseg.manifests import create
from medseg.manifests.roi_table import read_roi_table
from tests.manifests.conftest import AFFINE, image_of
from tests.manifests.hospital import rtstruct, series
from tests.manifests.test_structures import mask

FLAT: dict[str, Any] = {
    "image_patterns": ["{patient}_ct.nii.gz"],
    "label_pattern": "{patient}_{structure}.nii.gz",
    "checksums": False,
}


def flat(folder: Path, *patients: str) -> Path:
    """All files in one folder, structures of two words."""
    for seed, patient in enumerate(patients):
        save_nifti(image_of(seed), AFFINE, folder / f"{patient}_ct.nii.gz")
        for place, name in enumerate(("left_kidney", "liver")):
            mask(folder / f"{patient}_{name}.nii.gz", place)
    return folder


def test_a_name_is_split_where_the_images_say(tmp_path: Path) -> None:
    made = create(flat(tmp_path, "p1", "p10", "p_1"), **FLAT)
    labels = {item["patient_id"]: item["label"] for item in made.training}
    assert set(labels) == {"p1", "p10", "p_1"}
    assert labels["p1"] == {"left_kidney": "p1_left_kidney.nii.gz", "liver": "p1_liver.nii.gz"}
    assert labels["p_1"]["left_kidney"] == "p_1_left_kidney.nii.gz"


def test_a_name_of_two_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="as the cases p1_left and p1"):
        create(flat(tmp_path, "p1", "p1_left"), **FLAT)


def test_linked_folders_are_patients_too(tmp_path: Path) -> None:
    study = tmp_path / "study"
    for seed, folder in enumerate((study / "p1", tmp_path / "store" / "p2")):
        save_nifti(image_of(seed), AFFINE, folder / "ct.nii.gz")
        mask(folder / "seg.nii.gz", 1)
    (study / "p2").symlink_to(tmp_path / "store" / "p2")
    (study / "p1" / "round").symlink_to(study)
    options: dict[str, Any] = {"image_patterns": ["{patient}/ct.nii.gz"], "label_pattern": "{patient}/seg.nii.gz"}
    made = create(study, checksums=False, **options)
    assert [item["image"] for item in made.training] == ["p1/ct.nii.gz", "p2/ct.nii.gz"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_any_spreadsheet(tmp_path: Path, delimiter: str) -> None:
    rows = [["name", "cases", "structure"], ["Liver, left", "1", "liver"], ["", "", ""]]
    text = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
    assert read_roi_table(tmp_path / "t.csv") == {"Liver, left": "liver"}


def test_a_name_has_one_structure_in_one_spelling(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('name,structure\nLiver,"liver,tumour"\n')
    with pytest.raises(UsageError, match="one structure for each name"):
        read_roi_table(tmp_path / "t.csv")
    flat(tmp_path / "study", "p1", "p2")
    with pytest.raises(UsageError, match="'kidney' and 'Kidney'"):
        create(tmp_path / "study", roi_table={"left_kidney": "kidney", "liver": "Kidney"}, **FLAT)


def test_sides_in_italian_are_never_crossed(tmp_path: Path) -> None:
    flat(tmp_path, "p1", "p2")
    mask(tmp_path / "p1_femoral_head_dx.nii.gz", 2)
    mask(tmp_path / "p2_femoralhead_sx.nii.gz", 2)
    mask(tmp_path / "p1_LEBER.nii.gz", 2)
    with pytest.raises(UndecidedNames) as undecided:
        create(tmp_path, structures=["femoral_head_dx", "Foie"], **FLAT)
    meant = {one.name: one.structure for one in undecided.value.proposals}
    assert (meant["femoral_head_dx"], meant["femoralhead_sx"]) == ("femoral_head_dx", "")


def test_an_roi_that_nobody_drew_was_not_looked_for(tmp_path: Path) -> None:
    for number in (1, 2):
        slices = series(tmp_path / f"P{number}" / "ct", f"1.2.{number}", f"P{number}")
        path = rtstruct(tmp_path / f"P{number}" / "rs.dcm", slices, ["liver", "spleen"])
    data = dcmread(path)
    data.ROIContourSequence[1].ContourSequence = []
    data.save_as(path)
    made = create(tmp_path, missing="unknown", checksums=False)
    annotated = {item["label"]: item["annotated"] for item in made.training}
    assert annotated == {"P1/rs.dcm": ["liver", "spleen"], "P2/rs.dcm": ["liver"]}
