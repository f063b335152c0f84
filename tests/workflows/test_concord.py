"""Several bundles or result folders side by side, without truth: `medseg concord`, through the command."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli import concord
from medseg.cli.main import app
from medseg.inference import Options, run_batch
from medseg.ingest import save_nifti
from medseg.phantom import make_patient, write_dicom
from medseg.tables import read_table
from tests.evaluation.label_folders import LABELS, reference_map, write_maps
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid

__all__ = ["concord"]  # registers the command

TRUTH = reference_map()
SHIFTED = np.roll(TRUTH, 2, axis=0)
WITHOUT_SPLEEN = np.where(TRUTH == 2, 0, TRUTH).astype(np.uint8)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["concord", *map(str, arguments)])
    return result.exit_code, result.output


def folder(place: Path, names: Mapping[int, str], **maps: Any) -> Path:
    """Label maps by case, with the names of their values beside them."""
    write_maps(place, {f"{case}.nii.gz": volume for case, volume in maps.items()})
    (place / "dataset.json").write_text(json.dumps({"labels": {str(value): name for value, name in names.items()}}))
    return place


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """``c`` is shifted in one case, ``b`` has no spleen in another, and all agree in the third."""
    return [
        folder(tmp_path / "a", LABELS, alike=TRUTH, moved=TRUTH, lacking=TRUTH),
        folder(tmp_path / "b", {1: "Liver ", 2: "SPLEEN"}, alike=TRUTH, moved=TRUTH, lacking=WITHOUT_SPLEEN),
        folder(tmp_path / "c", LABELS, alike=TRUTH, moved=SHIFTED, lacking=TRUTH),
    ]


def test_pairs_the_odd_one_and_what_is_missed(three: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = run(*three, "-o", out)
    assert code == 0, output
    rows = {
        (row["case_id"], row["structure"], row["compared"], row["with"]): row
        for row in read_table(out / "concord.csv").rows
    }
    assert len(rows) == 3 * 2 * 3  # cases, structures, pairs: none is dropped
    alone = rows["lacking", "spleen", "b", "a"]
    assert (alone["dice"], alone["hd95_mm"], alone["only_in"], alone["odd_one_out"]) == ("0.0", "", "a", "b")
    moved = rows["moved", "liver", "c", "a"]
    assert (moved["odd_one_out"], moved["odd_one_out_of_case"], float(moved["hd95_mm"])) == ("c", "c", 2.0)
    assert float(moved["dice"]) == pytest.approx(4 / 6)
    assert moved["compared_volume_ml"] == moved["with_volume_ml"]
    assert rows["alike", "liver", "b", "a"]["odd_one_out"] == ""
    summary = json.loads((out / "concord.json").read_text())
    assert summary["odd_one_out"] == {"a": [], "b": ["lacking"], "c": ["moved"]}
    assert (summary["readers"]["b"]["spleen"]["n_missed"], summary["readers"]["a"]["spleen"]["n_invented"]) == (1, 0)
    assert summary["readers"]["c"]["liver"]["estimated_dice"]["min"] < 0.9
    assert summary["readers"]["a"]["liver"]["estimated_dice"]["min"] > 0.98
    assert [one["case_id"] for one in summary["cases"]] == ["lacking", "moved", "alike"]  # worst first
    page = (out / "concord.html").read_text()
    assert "c (odd one out)" in page
    assert "https://" not in page  # nothing is fetched
    words = re.sub(r"\s*(?:<[^>]*>\s*)+", "|", page)
    for row in (  # of readers, pairs, what was matched, and of the worst case its opinions and pairs
        "|b|spleen|0.667|± 0.577|0.000 to 1.000|median 1.000|0.556|",
        "|c, a|liver|0.889|± 0.192|0.667 to 1.000|median 1.000|0.67|",
        "|spleen|names|spleen (2)|SPLEEN (2)|spleen (2)|",
        "|spleen|b|odd one out, missed|0|0.000|0.000|",
        "|spleen: b, a|0.000|–|–|",
    ):
        assert row in words
    assert page.index('data-case="lacking"') < page.index('data-case="moved"') < page.index('data-case="alike"')


def test_of_two_nobody_is_odd_and_no_dice_is_estimated(three: list[Path], tmp_path: Path) -> None:
    code, output = run(three[0], three[2], "-o", tmp_path / "out")
    assert code == 0, output
    summary = json.loads((tmp_path / "out" / "concord.json").read_text())
    assert summary["odd_one_out"] == {"a": [], "c": []}
    assert summary["readers"]["a"]["liver"]["estimated_dice"]["n"] == 0


def test_a_table_joins_parts_and_numbers(tmp_path: Path) -> None:
    whole = np.where(TRUTH > 0, 7, 0).astype(np.uint8)
    parts = folder(tmp_path / "parts", LABELS, one=TRUTH)
    write_maps(tmp_path / "whole", {"one_seg.nii.gz": whole})
    table = tmp_path / "match.csv"
    table.write_text("structure,parts,whole\nabdomen,liver+2,7\n")
    code, output = run(parts, tmp_path / "whole", "--match", table, "-o", tmp_path / "out")
    assert code == 0, output
    [row] = read_table(tmp_path / "out" / "concord.csv").rows
    assert (row["structure"], row["dice"]) == ("abdomen", "1.0")
    code, output = run(parts, tmp_path / "whole", "-o", tmp_path / "out")
    assert code == 2
    assert "no structure is the same by its coded term or its name" in output
    table.write_text("structure,parts,whole\nabdomen,kidney,7\n")
    code, output = run(parts, tmp_path / "whole", "--match", table, "-o", tmp_path / "out")
    assert (code, "found 'kidney', expected liver and spleen" in output) == (2, True)
    table.write_text("structure,parts,whole\nabdomen,liver+3,7\n")  # a value that nothing has is no empty mask
    code, output = run(parts, tmp_path / "whole", "--match", table, "-o", tmp_path / "out")
    assert (code, "found '3', expected liver and spleen or values of these" in output) == (2, True)


def test_other_grids_are_refused_and_missing_results_told(three: list[Path], tmp_path: Path) -> None:
    write_maps(three[1], {"moved.nii.gz": TRUTH[1:]})
    (three[2] / "alike.nii.gz").unlink()
    code, output = run(*three, "-o", tmp_path / "out")
    assert code == 1, output
    summary = json.loads((tmp_path / "out" / "concord.json").read_text())
    [refused] = summary["refused"]
    assert (refused["case_id"], refused["code"]) == ("moved", "geometry-mismatch")
    assert "resample the label map of b to the label map of a's grid" in refused["message"]
    assert summary["missing"] == [{"case_id": "alike", "reader": "c", "why": "has no result of it"}]
    assert summary["n_cases"] == 2


def test_axes_in_another_order_are_the_same_place(three: list[Path], tmp_path: Path) -> None:
    before = tmp_path / "before"
    assert run(*three, "-o", before)[0] == 0
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    affine[0, 3] = TRUTH.shape[0] - 1
    write_maps(three[0], {"moved.nii.gz": TRUTH[::-1]}, affine)
    assert run(*three, "-o", tmp_path / "after")[0] == 0
    assert (tmp_path / "after" / "concord.csv").read_text() == (before / "concord.csv").read_text()


def test_bundles_label_the_studies_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write_bundle(tmp_path / "one", Design(transforms=ORIENTED))
    other = write_bundle(tmp_path / "other", Design(transforms=ORIENTED))
    metadata = json.loads((other / "configs" / "metadata.json").read_text())
    pred = metadata["network_data_format"]["outputs"]["pred"]
    codes = {str(value): {"type": [f"T{value}", "99X", "thing"]} for value in (1, 2)}
    for bundle in (one, other):
        metadata["network_data_format"]["outputs"]["pred"] = {**pred, "segment_codes": codes}
        (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
        pred = {**pred, "channel_def": {key: f"{name} other" for key, name in pred["channel_def"].items()}}
        pred["channel_def"]["0"] = "background"
    (tmp_path / "studies").mkdir()
    for number in range(2):
        save_nifti(blobs((20, 18, 16)) + number, grid("plain"), tmp_path / "studies" / f"i{number}.nii.gz")
    code, output = run(one, other, tmp_path / "studies", "-o", tmp_path / "out", "--device", "cpu")
    assert code == 0, output
    summary = json.loads((tmp_path / "out" / "concord.json").read_text())
    assert {one["by"] for one in summary["structures"]} == {"code"}
    assert summary["n_cases"] == 2
    assert {row["dice"] for row in read_table(tmp_path / "out" / "concord.csv").rows} == {"1.0"}
    assert "data:image/webp" in (tmp_path / "out" / "concord.html").read_text()  # the run leads to the images
    made = tmp_path / "out" / "one" / "i0_seg.nii.gz"
    before = made.stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)  # where the bundle that made the folder is found by its name, and so its terms
    code, output = run(tmp_path / "out" / "one", other, tmp_path / "studies", "-o", tmp_path / "out")
    assert code == 0, output  # a folder of results beside a bundle
    assert made.stat().st_mtime_ns == before
    code, output = run(one, tmp_path / "out" / "one", tmp_path / "studies", "-o", tmp_path / "out")
    assert (code, "a bundle would write there" in output) == (2, True)  # else it were compared with itself
    code, output = run(one, tmp_path / "studies", "-o", tmp_path / "out")
    assert (code, "found 1 bundles, 0 folders of results and 1 studies" in output) == (2, True)
    (tmp_path / "match.csv").write_text("structure,one,other\nthing,kidney,2\n")
    code, output = run(one, other, tmp_path / "studies", "--match", tmp_path / "match.csv", "-o", tmp_path / "new")
    assert (code, "found 'kidney'" in output) == (2, True)
    assert not [*(tmp_path / "new").iterdir()]  # told before anything is labelled


def test_the_image_is_the_runs_own_and_not_one_of_its_name_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "one", Design(transforms=ORIENTED))
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()
    save_nifti(blobs((20, 18, 16)), grid("plain"), Path("studies/i.nii.gz"))
    for name in ("a", "b"):
        run_batch(bundle, ["studies/i.nii.gz"], name, Options(device="cpu"))
    Path("studies").rename("a/studies")
    Path("studies").mkdir()
    Path("studies/i.nii.gz").write_bytes(b"of another patient")
    assert run("a", "b", "-o", "out")[0] == 0
    page = Path("out/concord.html").read_text()
    assert "data:image/webp" in page
    assert "could not be read" not in page


def test_a_command_that_fails_leaves_no_older_results(three: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*three, "-o", out)[0] == 0
    assert len([*out.iterdir()]) == 3
    (tmp_path / "match.csv").write_text("structure,a,b,c\nheart,heart,,\n")
    assert run(*three, "--match", tmp_path / "match.csv", "-o", out)[0] == 2
    assert not [*out.iterdir()]


def test_a_case_that_all_refuse_is_missing_and_not_forgotten(tmp_path: Path) -> None:
    bundles = [write_bundle(tmp_path / name, Design(transforms=ORIENTED)) for name in ("one", "other")]
    (tmp_path / "studies").mkdir()
    save_nifti(blobs((20, 18, 16)), grid("plain"), tmp_path / "studies" / "good.nii.gz")
    (tmp_path / "studies" / "broken.nii.gz").write_bytes(b"nothing")
    code, output = run(*bundles, tmp_path / "studies", "-o", tmp_path / "out", "--device", "cpu")
    assert code == 1, output
    summary = json.loads((tmp_path / "out" / "concord.json").read_text())
    assert [(one["case_id"], one["reader"]) for one in summary["missing"]] == [("broken", "one"), ("broken", "other")]
    assert all(one["why"].startswith(("refused (", "failed (")) for one in summary["missing"])
    code, output = run(tmp_path / "out" / "one", tmp_path / "out" / "other", "-o", tmp_path / "again")
    assert (code, output.count("broken: ")) == (1, 2), output


def test_segmentations_from_elsewhere_are_matched_by_the_names_of_their_segments(tmp_path: Path) -> None:
    patient = make_patient(5, shape=(32, 32, 16), structures=2, lesion=False)
    series = write_dicom(patient, tmp_path / "study", thin=False).main
    folders = []
    for name, (first, second) in {"one": ("inner", "outer"), "other": ("Outer", "Inner")}.items():
        bundle = write_bundle(tmp_path / f"bundle_{name}", Design(transforms=ORIENTED))
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        pred = metadata["network_data_format"]["outputs"]["pred"]
        term = {"category": ["123037004", "SCT", "Anatomical Structure"], "type": ["64033007", "SCT", "Kidney"]}
        pred |= {"channel_def": {"0": "background", "1": first, "2": second}, "segment_codes": {"1": term, "2": term}}
        (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
        run_batch(bundle, [series], tmp_path / f"run_{name}", Options(("seg",), device="cpu"))
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        for file in (tmp_path / f"run_{name}").glob("*.dcm"):
            file.rename(folders[-1] / file.name)
    code, output = run(*folders, "-o", tmp_path / "out")
    assert code == 0, output
    rows = {row["structure"]: row for row in read_table(tmp_path / "out" / "concord.csv").rows}
    assert {name: row["dice"] for name, row in rows.items()} == {"inner": "0.0", "outer": "0.0"}  # called the other way
    assert rows["inner"]["compared_volume_ml"] == rows["outer"]["with_volume_ml"] != "0.0"
