"""A packed bundle tells nothing of patients and machines unless it is asked to."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.bundle import audit
from medseg.bundle.findings import blocks
from medseg.bundle.privacy import neutral_datalist, privacy_findings
from medseg.errors import BundleError
from medseg.sharing import pack, unpack
from tests.bundle.sample import read_config, write_config

SUM = "a" * 64
LISTED: dict[str, Any] = {
    "name": "Spheres",
    "site": "St. Elsewhere, ward 7",
    "labels": {"0": "background", "1": "sphere"},
    "training": [
        {"image": "meyer_anna/ct.nii.gz", "label": "meyer_anna/seg.nii.gz", "patient_id": "MRN-4711", "fold": 0,
         "sha256": {"image": SUM}, "referring": "Dr Who"},
        {"image": ["meyer_anna/a.nii", "meyer_anna/b.nii"], "label": "s.nrrd", "patient_id": "MRN-4711", "fold": 1},
        {"image": "huber_zoe/series", "label": "huber_zoe/seg.nii.gz", "patient_id": "MRN-4712", "fold": 1},
    ],
    "test": ["meyer_anna/late.nii.gz"],
}  # fmt: skip


@pytest.fixture
def told(bundle: Path) -> Path:
    """A bundle as a site has it: names in the datalist, its own folders in the configs."""
    write_config(bundle, "datalist", LISTED)
    for name in ("train", "inference"):
        write_config(bundle, name, {**read_config(bundle, name), "dataset_dir": "/srv/patients/2026"})
    return bundle


def _texts(archive: Path) -> str:
    with zipfile.ZipFile(archive) as source:
        return "\n".join(source.read(n).decode("utf-8", "replace") for n in source.namelist() if ".pt" not in n)


def test_a_packed_datalist_holds_sums_and_numbers(told: Path, tmp_path: Path) -> None:
    packed = pack(told, tmp_path / "x.zip")
    text = _texts(packed.path)
    for secret in ("meyer", "huber", "MRN", "Elsewhere", "Dr Who", "/srv/patients"):
        assert secret not in text
    found = unpack(packed.path, tmp_path / "out").path
    listed = read_config(found, "datalist")
    assert listed["training"][0] == {
        "image": "images/case-0001.nii.gz",
        "label": "labels/case-0001.nii.gz",
        "patient_id": "patient-0001",
        "fold": 0,
        "sha256": {"image": SUM},
    }
    assert listed["training"][1]["image"] == ["images/case-0002_0000.nii", "images/case-0002_0001.nii"]
    assert [item["patient_id"][-1] for item in listed["training"]] == ["1", "1", "2"]
    assert listed["training"][2]["image"] == "images/case-0003"
    assert read_config(found, "train")["dataset_dir"] == "data"
    assert read_config(told, "datalist") == LISTED, "the bundle at home keeps its names"


def test_a_neutral_datalist_stays_as_it_is(told: Path, tmp_path: Path) -> None:
    once = neutral_datalist(LISTED)
    assert neutral_datalist(once) == once
    packed = pack(told, tmp_path / "x.zip")
    again = pack(unpack(packed.path, tmp_path / "out").path, tmp_path / "y.zip")
    assert again.path.read_bytes() == packed.path.read_bytes()


def test_names_travel_only_on_request(told: Path, tmp_path: Path) -> None:
    text = _texts(pack(told, tmp_path / "x.zip", with_names=True).path)
    assert "meyer_anna/ct.nii.gz" in text
    assert "/srv/patients/2026" in text


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("docs/README.md", "The worst case is meyer_anna.\n", "meyer_anna"),
        ("docs/figures.csv", "case,dice\nMRN-4712,0.4\n", "MRN-4712"),
        ("docs/notes.json", '{"worst": "meyer_anna/late.nii.gz"}', "late.nii.gz"),
    ],
)
def test_a_text_that_names_a_case_is_not_packed(told: Path, tmp_path: Path, file: str, text: str, named: str) -> None:
    (told / file).write_text(text)
    with pytest.raises(BundleError, match=rf"{file} names .*{named}.*--with-names"):
        pack(told, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()
    pack(told, tmp_path / "x.zip", with_names=True)


@pytest.mark.parametrize("path", ["/home/zoe/lists/l.json", "C:\\Users\\zoe\\l.json", "~zoe/l.json"])
def test_a_config_with_a_path_of_this_machine_is_not_packed(told: Path, tmp_path: Path, path: str) -> None:
    write_config(told, "train", {**read_config(told, "train"), "extra": {"list": path}})
    with pytest.raises(BundleError, match=r"configs/train\.json names .*zoe"):
        pack(told, tmp_path / "x.zip")


def test_words_that_are_no_secret_do_not_forbid_packing(told: Path, tmp_path: Path) -> None:
    listed = {"training": [{"image": "sphere.nii.gz", "label": "sphere.nii.gz", "patient_id": "sphere", "fold": 0}]}
    write_config(told, "datalist", listed)
    (told / "docs" / "README.md").write_text("Marks every sphere.\n")
    pack(told, tmp_path / "x.zip")


@pytest.mark.parametrize("folder", ["network_def", "references", "dataset", "preprocessing", "validation"])
def test_a_folder_that_is_called_like_a_key_of_every_config_does_not_forbid_packing(
    told: Path, tmp_path: Path, folder: str
) -> None:
    items = [{"image": f"{one}/a{n}.nii", "patient_id": f"MRN-{n}"} for n, one in enumerate((folder, "meyer_anna"))]
    write_config(told, "datalist", {"training": items})
    (told / "docs" / "README.md").write_text(f"See `{folder}`.\n")
    pack(told, tmp_path / "x.zip")


def test_a_folder_that_all_images_or_all_labels_share_tells_nobody_apart(told: Path, tmp_path: Path) -> None:
    items = [
        {"image": f"scans/{n}/a.nii.gz", "label": f"outlines/{n}.nii.gz", "patient_id": f"MRN-{n}"} for n in range(3)
    ]
    write_config(told, "datalist", {"training": items})
    (told / "docs" / "README.md").write_text("The outlines of all scans were drawn by hand.\n")
    pack(told, tmp_path / "x.zip")


@pytest.mark.parametrize("config", ["train", "metadata"])
@pytest.mark.parametrize("key", ["meyer_anna", "MRN-4711", "late.nii.gz", "network_def meyer_anna"])
def test_a_patient_in_a_key_is_not_packed(told: Path, tmp_path: Path, config: str, key: str) -> None:
    write_config(told, config, {**read_config(told, config), "worst_cases": {key: 0.4}})
    with pytest.raises(BundleError, match=rf"configs/{config}\.json names"):
        pack(told, tmp_path / "x.zip")


@pytest.mark.parametrize("name", ["müller_zoë", "\U00020bb7野屋_家"])
def test_a_name_is_known_however_its_letters_are_written(told: Path, tmp_path: Path, name: str) -> None:
    items = [{"image": f"{one}/ct.nii", "patient_id": f"MRN-{n}"} for n, one in enumerate((name, "huber"))]
    write_config(told, "datalist", {"training": items})
    for file, text in (
        ("configs/more.json", json.dumps({"worst": name})),
        ("configs/more.yaml", yaml.safe_dump({name: 0.4})),
        ("docs/worst.json", json.dumps({name: 0.4})),
        ("docs/worst.md", unicodedata.normalize("NFD", name)),
    ):
        (told / file).write_text(text, encoding="utf-8")
        with pytest.raises(BundleError, match=f"{file} names {name}"):
            pack(told, tmp_path / "x.zip")
        (told / file).unlink()


@pytest.mark.parametrize(
    "items",
    [
        [{"image": "meyer_anna/ct.nii.gz", "label": "meyer_anna/seg.nii.gz", "patient_id": "MRN-4711"}],
        [{"image": f"meyer_anna/{name}.nii", "patient_id": "MRN-4711"} for name in ("first", "second")],
        [
            {"image": "meyer_anna/ct.nii", "label": "meyer_anna/seg.nii", "patient_id": "MRN-4711"},
            {"image": "huber_zoe/ct.nii", "patient_id": "MRN-4712"},
        ],
    ],
)
def test_the_folder_of_the_only_patient_is_a_name(told: Path, tmp_path: Path, items: list[dict[str, str]]) -> None:
    write_config(told, "datalist", {"training": items})
    (told / "docs" / "README.md").write_text("Learnt from meyer_anna.\n")
    with pytest.raises(BundleError, match=r"README\.md names meyer_anna"):
        pack(told, tmp_path / "x.zip")


def test_the_audit_warns_of_names_and_folders(told: Path, tmp_path: Path) -> None:
    found = audit(told)
    warned = {(finding.file, finding.place) for finding in found if finding.severity == "warn"}
    assert {("configs/datalist.json", ""), ("configs/train.json", "dataset_dir")} <= warned
    assert not blocks(found)
    clean = audit(unpack(pack(told, tmp_path / "x.zip").path, tmp_path / "out").path)
    assert [finding for finding in clean if finding.severity == "warn"] == []


def test_a_damaged_datalist_is_left_to_the_audit(told: Path) -> None:
    (told / "configs" / "datalist.json").write_text("{")
    assert any("not readable" in finding.what for finding in audit(told))
    (told / "configs" / "datalist.json").write_text(json.dumps([1]))
    audit(told)


def test_labels_of_structures_and_raters_become_numbers_too() -> None:
    by_structure = {"liver": "meyer/liver.nii.gz", "spleen": "meyer/spleen.nii.gz"}
    raters = [{"rater": "Dr Huber", "label": "meyer/h.dcm"}, {"rater": "Dr Zoe", "label": by_structure}]
    items = [{"image": "meyer/ct.nii", "label": label, "patient_id": "m"} for label in (by_structure, raters)]
    made = neutral_datalist({"labels": {"1": "liver", "2": "spleen"}, "training": items})["training"]
    assert made[0]["label"] == {"liver": "labels/case-0001_s000.nii.gz", "spleen": "labels/case-0001_s001.nii.gz"}
    assert [one["rater"] for one in made[1]["label"]] == ["0000", "0001"]
    assert not any(name in json.dumps(made) for name in ("meyer", "Huber", "Zoe"))
    assert neutral_datalist({"training": made})["training"] == made
    assert not [*privacy_findings({"configs/datalist.json": {"training": made}})]
