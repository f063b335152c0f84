"""What a name of a ROI is proposed to mean: by spelling, language, a typing error; never across sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import UsageError
from medseg.manifests.roi_names import FoundName, Proposal, propose
from medseg.manifests.roi_table import read_roi_table, write_roi_table


def found(**cases: str) -> list[FoundName]:
    return [FoundName(name.replace("__", " "), set(letters)) for name, letters in cases.items()]


def meaning(declared: list[str], *names: str) -> dict[str, str]:
    """Each name alone in a case of its own."""
    proposals = propose([FoundName(name, {str(n)}) for n, name in enumerate(names)], declared)
    return {one.name: one.structure for one in proposals}


@pytest.mark.parametrize(
    ("declared", "names"),
    [
        ("liver", ["Liver", "LIVER ", "LEBER", "Foie", "fegato", "liver_MD", "liver v2", "Liver_final", "livr"]),
        (
            "kidney_left",
            ["Kidney L", "KIDNEY_LT", "Kidney-Lt", "Niere links", "Niere li", "rein gauche", "left kidney"],
        ),
        ("spinal_cord", ["SpinalCord", "Rückenmark", "Rueckenmark", "Spinal-Cord"]),
        ("tumour", ["tumor", "Tumeur", "TUMOR"]),
        ("Parotid-Rt", ["parotid_R", "Parotis rechts", "Parotid right"]),
        ("bladder", ["Harnblase", "vessie", "Urinary Bladder"]),
    ],
)
def test_spellings_and_languages(declared: str, names: list[str]) -> None:
    assert meaning([declared, "other"], *names) == dict.fromkeys(names, declared)


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        (["kidney_left", "kidney_right"], "Kidney"),
        (["kidney_left"], "kidney_right"),
        (["kidney_left"], "Kidney"),
        (["kidney"], "Kidney L"),
        (["GTV"], "GTV_N"),
        (["GTV_N"], "GTV-LN"),
        (["PTV5000"], "PTV5400"),
        (["vertebra_1"], "vertebra_2"),
        (["vertebrae_L1"], "vertebrae_T1"),
        (["gallbladder"], "bladder"),
        (["liver"], "liver-gtv margin"),
        (["lung_left"], "Lung_RLL"),
        (["lung"], "Lung_RLL"),
        (["spinal_cord"], "SpinalCord_PRV"),
        (["liver"], "Liver-GTV"),
    ],
)
def test_what_may_be_something_else_is_left_to_a_person(declared: list[str], name: str) -> None:
    assert meaning([*declared, "other"], name) == {name: ""}


def test_a_name_that_two_structures_could_mean_says_so() -> None:
    (proposal,) = propose(found(Kidney="a"), ["kidney_left", "kidney_right"])
    assert proposal.why == "names no side, and could be kidney_left or kidney_right: fill in which, if one of them"


def test_two_names_in_one_case_are_never_one_structure() -> None:
    proposals = {one.name: one for one in propose(found(Liver="abc", liver_MD="cd", LEBER="e"), ["liver"])}
    assert {name: one.structure for name, one in proposals.items()} == {
        "Liver": "liver",
        "liver_MD": "",
        "LEBER": "liver",
    }
    assert "stands beside another liver in 1 cases, such as c" in proposals["liver_MD"].why


def test_structures_are_made_of_what_is_found() -> None:
    names = found(Liver="ab", leber="c", Livr="d", Kidney__L="ab", kidney_left="c", Kidney="d", GTV="abc", GTV_N="ab")
    assert {one.name: one.structure for one in propose(names, [])} == {
        "Liver": "liver",
        "leber": "liver",
        "Livr": "liver",
        "Kidney L": "kidney_left",
        "kidney_left": "kidney_left",
        "Kidney": "",
        "GTV": "GTV",
        "GTV_N": "GTV_N",
    }


def test_the_table_can_be_read_again_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "rois.csv"
    write_roi_table(path, [Proposal("=LEBER", 3, 12.3456, "liver", "why, then"), Proposal("BODY", 1, None, "", "far")])
    assert read_roi_table(path) == {"=LEBER": "liver", "BODY": ""}
    assert path.read_text().splitlines()[0] == "name,cases,volume_ml,structure,why"
    with pytest.raises(UsageError, match="is there already: give it back with --roi-table"):
        write_roi_table(path, [])
    path.write_text("name,structure\nliver,liver\nLiver ,spleen\n")
    with pytest.raises(UsageError, match="two lines for 'Liver '"):
        read_roi_table(path)
    path.write_text("name,what\nliver,liver\n")
    with pytest.raises(UsageError, match="expected name and structure"):
        read_roi_table(path)


def test_an_atlas_of_like_names_is_taken_as_it_is() -> None:
    """Names that a letter or two tell apart, all in one case: muscles, vertebrae, lobes."""
    names = [f"gluteus_{which}_{side}" for which in ("maximus", "medius", "minimus") for side in ("left", "right")]
    names += [f"vertebrae_{level}" for level in ("L1", "L2", "T1", "T12", "C1", "S1")] + ["rib_left_1", "rib_right_1"]
    names += ["iliac_artery_left", "iliac_vena_left", "lung_upper_lobe_left", "lung_lower_lobe_left", "humerus_left"]
    names += ["kidney_left", "kidney_right", "kidney_cyst_left", "brain", "spinal_cord", "colon", "duodenum"]
    found_names = [FoundName(name, {"s1", "s2"}) for name in names]
    assert {one.name: one.structure for one in propose(found_names, [])} == {name: name for name in names}
    chosen = {one.name: one for one in propose(found_names, ["gluteus_maximus_left", "kidney_left"])}
    others = [one for name, one in chosen.items() if name not in ("gluteus_maximus_left", "kidney_left")]
    assert not any(one.structure for one in others)
    assert all(one.is_far for one in others)
