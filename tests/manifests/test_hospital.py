"""A datalist from DICOM trees: series, and the SEG and RTSTRUCT objects that refer to them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from medseg.errors import Refusal, UndecidedNames, UsageError
from medseg.ingest import save_nifti
from medseg.ingest.selection import parse_rules
from medseg.manifests import Manifest, audit, create
from medseg.manifests.layout_dicom import DicomChoices
from medseg.manifests.layouts import write_label_maps
from tests.ingest.trees import ROOT
from tests.manifests.hospital import rtstruct, seg, series


def made(folder: Path, **options: Any) -> Manifest:
    return create(folder, checksums=False, **options)


def labels_of(manifest: Manifest) -> list[Any]:
    return [item["label"] for item in manifest.training]


def test_objects_are_paired_by_what_they_refer_to_not_by_where_they_lie(tmp_path: Path) -> None:
    """Structure sets lie in the folder of the other patient, under names that say the opposite."""
    for patient in ("P1", "P2"):
        series(tmp_path / patient / "ct", patient[1], patient)
    rtstruct(tmp_path / "P2" / "P2.dcm", sorted((tmp_path / "P1" / "ct").iterdir()), ["liver"])
    seg(tmp_path / "P1" / "P1.dcm", sorted((tmp_path / "P2" / "ct").iterdir()), {"liver": slice(0, 2)})
    manifest = create(tmp_path)
    assert {item["image"]: item["label"] for item in manifest.training} == {
        "P1/ct": "P2/P2.dcm",
        "P2/ct": "P1/P1.dcm",
    }
    first = manifest.training[0]
    assert (first["modality"], len(first["patient_id"]), len(first["session"])) == ("CT", 32, 12)
    assert manifest.labels == {0: "background", 1: "liver"}
    assert len(first["sha256"]["label"]) == 64
    written = json.dumps(manifest.content)
    assert "Name^" not in written
    volumes = [next(iter(manifest.label_maps(item).values())).volumes_ml for item in manifest.training]
    assert all(volume[1] > 0 for volume in volumes)


def test_a_series_that_was_sent_on_under_another_uid_is_known_by_its_images(tmp_path: Path) -> None:
    slices = series(tmp_path / "a" / "ct", "1")
    series(tmp_path / "b" / "ct", "2")
    rtstruct(tmp_path / "a" / "rs.dcm", slices, ["liver"], SeriesInstanceUID=f"{ROOT}555")
    assert [item["image"] for item in made(tmp_path).training] == ["a/ct"]


def test_an_object_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    slices = series(tmp_path / "ct", "1")
    for name in ("liver", "spleen"):
        rtstruct(tmp_path / "rs.dcm", slices, [name])
        assert made(tmp_path).labels == {0: "background", 1: name}


def test_an_object_without_its_series_is_refused_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rtstruct(tmp_path / "rs" / "good.dcm", series(tmp_path / "p1" / "ct", "1"), ["liver"])
    gone = series(tmp_path / "gone", "2", "P2")
    rtstruct(tmp_path / "rs" / "lonely.dcm", gone, ["liver"])
    for path in gone:
        path.unlink()
    holed = series(tmp_path / "p3" / "ct", "3", "P3")
    rtstruct(tmp_path / "rs" / "holed.dcm", holed, ["liver"])
    holed[2].unlink()
    with pytest.raises(UsageError, match=r"2 labels cannot be matched(.|\n)*missing-slices(.|\n)*lonely.dcm refers"):
        made(tmp_path)
    with caplog.at_level(logging.WARNING):
        left = made(tmp_path, dicom=DicomChoices(leave_out=True))
    assert labels_of(left) == ["rs/good.dcm"]
    assert "lonely.dcm refers to a series that is not there" in caplog.text


def test_a_damaged_object_is_refused_by_name(tmp_path: Path) -> None:
    path = rtstruct(tmp_path / "rs.dcm", series(tmp_path / "ct", "1"), ["liver"])
    seg(tmp_path / "good.dcm", sorted((tmp_path / "ct").iterdir()), {"liver": slice(0, 2)})
    data = dcmread(path)
    data.StructureSetROISequence[0].ROINumber = 7  # contours refer to a ROI that is not there
    data.save_as(path)
    with pytest.raises(UsageError, match="all label"):
        made(tmp_path)
    (tmp_path / "good.dcm").unlink()
    with pytest.raises(Refusal, match="contours refer to ROI 1"):
        made(tmp_path).split(1, 0)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UsageError, match=r"1 label cannot be matched(.|\n)*rs\.dcm"):
        made(tmp_path)


def test_an_object_of_another_patient_is_refused(tmp_path: Path) -> None:
    path = rtstruct(tmp_path / "rs.dcm", series(tmp_path / "ct", "1"), ["liver"])
    data = dcmread(path)
    data.PatientID = "P9"
    data.save_as(path)
    with pytest.raises(UsageError, match="names another patient"):
        made(tmp_path)


def test_two_persons_under_one_patient_id_are_refused(tmp_path: Path) -> None:
    for number, name in (("1", "Able^A"), ("2", "Baker^B")):
        slices = series(tmp_path / f"exam{number}", number, "ANON", StudyInstanceUID=f"{ROOT}4{number}")
        for path in slices:
            data = dcmread(path)
            data.PatientName = name
            data.save_as(path)
        rtstruct(tmp_path / f"rs{number}.dcm", slices, ["liver"])
    with pytest.raises(UsageError, match="one patient id, 2 names of patients: exam1 and exam2") as refused:
        made(tmp_path)
    assert "Able" not in str(refused.value)


def test_several_objects_of_one_series_are_what_is_said_of_them(tmp_path: Path) -> None:
    slices = series(tmp_path / "ct", "1")
    rtstruct(tmp_path / "b.dcm", slices, ["liver"], number=1)
    rtstruct(tmp_path / "a.dcm", slices, ["liver"], number=2)
    with pytest.raises(UsageError, match=r"RTSTRUCT .*b.dcm \(liver\) and RTSTRUCT .*a.dcm \(liver\) all label"):
        made(tmp_path)
    assert labels_of(made(tmp_path, dicom=DicomChoices("latest"))) == ["a.dcm"]
    raters = made(tmp_path, dicom=DicomChoices("raters"))
    assert labels_of(raters) == [[{"rater": "1", "label": "b.dcm"}, {"rater": "2", "label": "a.dcm"}]]
    assert {*raters.label_maps(raters.training[0])} == {"1", "2"}
    with pytest.raises(UsageError, match="liver stands in more than one"):
        made(tmp_path, dicom=DicomChoices("join"))
    (tmp_path / "a.dcm").unlink()
    rtstruct(tmp_path / "c.dcm", slices, ["spleen"], number=3)
    joined = made(tmp_path, dicom=DicomChoices("join"))
    assert labels_of(joined) == [{"liver": "b.dcm", "spleen": "c.dcm"}]


def test_series_of_several_modalities_are_chosen_by_modality_or_rules(tmp_path: Path) -> None:
    study = {"StudyInstanceUID": f"{ROOT}900", "FrameOfReferenceUID": f"{ROOT}901"}
    for number, modality in (("1", "CT"), ("2", "MR")):
        slices = series(tmp_path / modality, number, Modality=modality, **study)
        rtstruct(tmp_path / f"{modality}.dcm", slices, ["liver"])
    with pytest.raises(UsageError, match=r"the labelled series are 1 CT and 1 MR; .*--modality CT"):
        made(tmp_path)
    assert labels_of(made(tmp_path, dicom=DicomChoices(modality="MR"))) == ["MR.dcm"]
    (tmp_path / "MR.dcm").unlink()
    rules = parse_rules([{"channel": "mr", "modality": "MR"}, {"channel": "ct", "modality": "CT"}])
    both = made(tmp_path, dicom=DicomChoices(rules=rules)).training
    assert [(item["image"], item["label"]) for item in both] == [(["MR", "CT"], "CT.dcm")]


def test_series_that_share_a_folder_are_sorted_apart_by_links(tmp_path: Path) -> None:
    for number in ("1", "2"):
        rtstruct(tmp_path / "all" / f"rs{number}", series(tmp_path / "all", number), ["liver"])
    with pytest.raises(UsageError, match="all holds 2 usable series: give --links DIR"):
        made(tmp_path / "all")
    manifest = made(tmp_path / "all", dicom=DicomChoices(links=tmp_path / "links"))
    assert len({item["image"] for item in manifest.training}) == 2
    assert all(path.is_symlink() for path in (tmp_path / "links").rglob("*.dcm"))
    for item in manifest.training:
        assert np.count_nonzero(manifest.label_maps(item)[""].array)


def test_names_that_are_not_declared_are_proposed_with_what_they_touch(tmp_path: Path) -> None:
    for number, names in enumerate((["Liver", "Kidney L"], ["LEBER", "Niere links"], ["liver_MD", "kidney_R"])):
        slices = series(tmp_path / f"p{number}" / "ct", str(number + 1), f"P{number}")
        rtstruct(tmp_path / f"p{number}" / "rs.dcm", slices, names)
    with pytest.raises(UndecidedNames) as undecided:
        made(tmp_path, structures=["liver", "kidney_left", "kidney_right"])
    lines = {line.name: line for line in undecided.value.proposals}
    assert {name: line.structure for name, line in lines.items()} == {
        "Liver": "liver",
        "LEBER": "liver",
        "liver_MD": "liver",
        "Kidney L": "kidney_left",
        "Niere links": "kidney_left",
        "kidney_R": "kidney_right",
    }
    assert all(line.cases == 1 and line.volume_ml > 0 for line in lines.values())
    table = {name: line.structure for name, line in lines.items()} | {"Kidney L": ""}
    manifest = made(tmp_path, structures=["liver", "kidney_left", "kidney_right"], roi_table=table)
    assert manifest.content["roi_mapping"] == {
        "Kidney L": None,
        "LEBER": "liver",
        "Niere links": "kidney_left",
        "kidney_R": "kidney_right",
        "liver_MD": "liver",
    }
    held = [set(manifest.label_maps(item)[""].values.voxels) - {0} for item in manifest.training]
    assert held == [{1}, {1, 2}, {1, 3}]


def test_a_datalist_made_anew_keeps_what_was_accepted(tmp_path: Path) -> None:
    rtstruct(tmp_path / "rs.dcm", series(tmp_path / "ct", "1"), ["LEBER", "BODY"])
    first = made(tmp_path, roi_table={"LEBER": "liver", "BODY": ""})
    first.write(tmp_path / "datalist.json")
    again = made(tmp_path / "datalist.json")
    assert again.content["roi_mapping"] == {"BODY": None, "LEBER": "liver"}
    assert again.labels == first.labels


def test_names_can_be_merged(tmp_path: Path) -> None:
    rtstruct(tmp_path / "rs.dcm", series(tmp_path / "ct", "1"), ["GTV", "GTV_N"])
    manifest = made(tmp_path, merges={"tumour": ["GTV", "GTV_N"]})
    assert manifest.labels == {0: "background", 1: "tumour"}
    assert manifest.content["roi_mapping"] == {"GTV": "tumour", "GTV_N": "tumour"}
    assert set(manifest.label_maps(manifest.training[0])[""].values.voxels) == {0, 1}
    with pytest.raises(UsageError, match="--merge names 'PTV', which no label has"):
        made(tmp_path, merges={"tumour": ["GTV", "PTV"]})


def test_the_table_must_say_every_name(tmp_path: Path) -> None:
    rtstruct(tmp_path / "rs.dcm", series(tmp_path / "ct", "1"), ["LEBER", "BODY"])
    with pytest.raises(UsageError, match="no line for 'BODY'"):
        made(tmp_path, roi_table={"LEBER": "liver"})
    with pytest.raises(UsageError, match="structure 'liver', which --label does not name"):
        made(tmp_path, structures=["spleen"], roi_table={"LEBER": "liver", "BODY": ""})
    with pytest.raises(UsageError, match="every name is left out"):
        made(tmp_path, roi_table={"LEBER": "", "BODY": ""})


def test_label_maps_are_written_on_request_with_where_they_are_from(tmp_path: Path) -> None:
    for number in ("1", "2"):
        slices = series(tmp_path / "study" / number / "ct", number, f"P{number}")
        rtstruct(tmp_path / "study" / number / "rs.dcm", slices, ["LEBER", "BODY"])
    first = create(tmp_path / "study", roi_table={"LEBER": "liver", "BODY": ""})
    written = write_label_maps(first, tmp_path / "maps")
    written.write(tmp_path / "datalist.json")
    again = Manifest.read(tmp_path / "datalist.json")
    assert "roi_mapping" not in again.content
    for item, before in zip(again.training, first.training, strict=True):
        assert item["label"] == f"maps/{item['case_id']}.nii.gz"
        assert item["label_source"]["label"] == before["label"]
        assert item["label_source"]["sha256"] == before["sha256"]["label"]
        maps = [manifest.label_maps(one)[""] for manifest, one in ((again, item), (first, before))]
        assert np.array_equal(maps[0].array, maps[1].array)
        assert maps[0].geometry.matches(maps[1].geometry)
    errors = {finding.code for finding in audit(again).findings if finding.severity == "error"}
    assert errors == {"duplicate-content"}  # the two series are one phantom


def test_objects_beside_label_files_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rtstruct(tmp_path / "x" / "scan" / "rs", series(tmp_path / "x" / "scan", "1"), ["liver"])
    save_nifti(np.ones((4, 3, 6), np.uint8), np.diag([-1.5, -1.5, 2, 1]), tmp_path / "y" / "scan.nii.gz")
    with caplog.at_level(logging.WARNING):
        manifest = made(tmp_path / "x", labels=tmp_path / "y")
    assert labels_of(manifest) == ["y/scan.nii.gz"]
    assert "label files were given; 1 DICOM RTSTRUCT lie there" in caplog.text
    save_nifti(np.ones((4, 3, 6), np.uint8), np.eye(4), tmp_path / "images" / "a.nii.gz")
    with pytest.raises(UsageError, match=r"1 of 1 images have no label .* 1 DICOM RTSTRUCT lie there"):
        made(tmp_path / "images", labels=tmp_path / "x")
