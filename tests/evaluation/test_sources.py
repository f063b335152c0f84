"""What may stand on either side of an evaluation, by the front door."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from medseg.errors import UsageError
from medseg.evaluation import Bootstrap, EvaluationResult, Options, evaluate_folders
from medseg.files import sha256_file
from medseg.geometry import Geometry
from tests.evaluation.label_folders import AFFINE, LABELS, reference_map, write_maps

QUICK = Options(bootstrap=Bootstrap(resamples=50))


def score(predictions: Path, references: Path, **keywords: Any) -> EvaluationResult:
    out = predictions.parent / "scores"
    result = evaluate_folders(predictions, references, out, options=QUICK, **keywords)
    assert json.loads((out / "metrics.json").read_text()) == result.summary
    return result


def infer_folder(folder: Path, cases: dict[str, bool | None], **more: Any) -> Path:
    """Label maps with a map of doubt beside each, and the ``run.json`` that says which is which."""
    structures = [{"label": label, "name": name, "volume_ml": 1.0} for label, name in LABELS.items()]
    write_maps(folder, {f"{case}_seg.nii.gz": reference_map() for case in cases})
    write_maps(folder, {f"{case}_doubt.nii.gz": reference_map() * np.float32(0.3) for case in cases})
    items = [
        {
            "case_id": case,
            "source": f"images/{case}.nii.gz",
            "status": "done",
            "outputs": [f"{case}_seg.nii.gz", f"{case}_doubt.nii.gz"],
            "structures": structures,
            **({} if learnt is None else {"trained_on": learnt}),
        }
        for case, learnt in cases.items()
    ]
    (folder / "run.json").write_text(json.dumps({"cases": items, **more}))
    return folder


@pytest.fixture
def references(tmp_path: Path) -> Path:
    return write_maps(tmp_path / "references", {f"{case}.nii.gz": reference_map() for case in "ab"})


def test_what_a_run_left_beside_its_label_maps_is_no_prediction(tmp_path: Path, references: Path) -> None:
    result = score(infer_folder(tmp_path / "run", {"a": None, "b": None}), references)
    assert result.complete
    assert list(result.summary["structures"]) == ["liver", "spleen"]
    assert set(result.summary["left_out"]) == {"a_doubt.nii.gz", "b_doubt.nii.gz"}


def test_a_label_map_of_a_case_that_is_called_like_a_map_counts(tmp_path: Path) -> None:
    references = write_maps(tmp_path / "references", {"a_doubt.nii.gz": reference_map()})
    with pytest.raises(UsageError, match="called like a map"):
        score(infer_folder(tmp_path / "run", {"a_doubt": None}), references)
    references = write_maps(tmp_path / "other", {"a_doubt_seg.nii.gz": reference_map()})
    assert score(infer_folder(tmp_path / "run", {"a_doubt": None}), references).complete


def test_what_the_last_run_refused_is_not_scored_by_an_older_result(tmp_path: Path, references: Path) -> None:
    folder = infer_folder(tmp_path / "run", {"a": None, "b": None})
    run = json.loads((folder / "run.json").read_text())
    run["cases"][1] |= {"status": "refused", "outputs": []}
    (folder / "run.json").write_text(json.dumps(run))
    result = score(folder, references)
    assert result.summary["unpaired"] == {"predictions": [], "references": ["b"]}
    assert "earlier run" in result.summary["left_out"]["b_seg.nii.gz"]


def test_without_a_run_maps_are_known_by_name(tmp_path: Path, references: Path) -> None:
    folder = infer_folder(tmp_path / "run", {"a": None, "b": None})
    write_maps(folder, {"a_probabilities_1.nii.gz": reference_map(), "b-uncertainty.NII": reference_map()})
    (folder / "run.json").unlink()
    result = score(folder, references)
    assert result.complete
    assert len(result.summary["left_out"]) == 4


def test_a_folder_without_label_maps_says_what_lies_there(tmp_path: Path, references: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    with pytest.raises(UsageError, match="holds no label maps"):
        score(nothing, references)
    (nothing / "a_seg.dcm").touch()
    with pytest.raises(UsageError, match="DICOM objects"):
        score(nothing, references)
    with pytest.raises(UsageError, match="DICOM object"):
        score(nothing / "a_seg.dcm", references)
    write_maps(tmp_path / "deep" / "a", {"a.nii.gz": reference_map()})
    with pytest.raises(UsageError, match="subfolder a"):
        score(tmp_path / "deep", references)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("A.NII.GZ", "A.NII.GZ"),
        ("A_SEG.NII.GZ", "a.nii"),
        ("Case 1 (left).v2..nii.gz", "Case 1 (left).v2..nii.gz"),
        ("case_pred.nii.gz", "case.nii.gz"),
        ("case_trans.nii.gz", "case_gt.nii"),
        ("case_0000_seg.nii.gz", "case.nii.gz"),
        (unicodedata.normalize("NFD", "Müller_seg.nii.gz"), unicodedata.normalize("NFC", "Müller.nii.gz")),
        ("x.seg.nii", "x.nii"),
    ],
)
def test_names_that_mean_one_case_pair(prediction: str, reference: str, tmp_path: Path) -> None:
    ours = write_maps(tmp_path / "p", {"other_1.nii.gz": reference_map()})
    theirs = write_maps(tmp_path / "r", {"other_1.nii.gz": reference_map()})
    for folder, name in ((ours, prediction), (theirs, reference)):
        plain = "file.nii.gz" if name.lower().endswith(".gz") else "file.nii"
        write_maps(folder, {plain: reference_map()})
        (folder / plain).rename(folder / name)
    assert score(ours, theirs, labels=LABELS).complete


def test_names_that_could_mean_two_cases_are_left_alone(tmp_path: Path) -> None:
    ours = write_maps(tmp_path / "p", {name: reference_map() for name in ("a.nii.gz", "a_pred.nii.gz", "b_2.nii")})
    theirs = write_maps(tmp_path / "r", {name: reference_map() for name in ("a.nii.gz", "a_gt.nii.gz", "b_1.nii")})
    result = score(ours, theirs)
    assert [case["case_id"] for case in result.summary["cases"]] == ["a"]
    assert result.summary["unpaired"] == {"predictions": ["a_pred", "b_2"], "references": ["a_gt", "b_1"]}


def test_two_files_of_one_stem_are_told(tmp_path: Path, references: Path) -> None:
    ours = write_maps(tmp_path / "p", {"a.nii.gz": reference_map(), "a.nii": reference_map()})
    with pytest.raises(UsageError, match="both belong to case 'a'"):
        score(ours, references)


def test_a_header_and_its_values_are_one_label_map(tmp_path: Path, references: Path) -> None:
    ours = tmp_path / "p"
    ours.mkdir()
    nibabel.save(nibabel.Nifti1Pair(reference_map(), AFFINE), ours / "a.hdr")
    nibabel.save(nibabel.Nifti1Image(reference_map(), AFFINE), ours / "b.nii.gz")
    assert score(ours, references).complete


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
def test_other_formats_are_scored(extension: str, tmp_path: Path, references: Path) -> None:
    ours = tmp_path / "p"
    ours.mkdir()
    for case in "ab":
        image = SimpleITK.ReadImage(str(references / f"{case}.nii.gz"))
        SimpleITK.WriteImage(image, str(ours / f"{case}_seg{extension}"))
    assert score(ours, references).summary["structures"]["1"]["metrics"]["dice"]["mean"] == 1.0


def test_a_pair_of_files_is_compared_whatever_it_is_called(tmp_path: Path, references: Path) -> None:
    ours = write_maps(tmp_path / "p", {"final.nii": reference_map(), "a.nii": reference_map()})
    result = score(ours / "final.nii", references / "a.nii.gz")
    assert result.complete
    assert [row.dice for row in result.results] == [1.0, 1.0]
    one = score(ours / "a.nii", references)
    assert (one.complete, one.summary["n_cases"]) == (True, 1)
    with pytest.raises(UsageError, match=r"no prediction in .*final\.nii has a reference"):
        score(ours / "final.nii", references)


def nnunet_datalist(root: Path) -> Path:
    items = [{"image": f"imagesTr/{case}_0000.nii.gz", "label": f"references/{case}.nii.gz"} for case in "ab"]
    path = root / "list.json"
    path.write_text(json.dumps({"labels": {"0": "background", "1": "liver", "2": "spleen"}, "training": items}))
    return path


def test_nnunet_names_pair_in_folders_and_datalists(tmp_path: Path, references: Path) -> None:
    listed = nnunet_datalist(tmp_path)
    predictions = write_maps(tmp_path / "p", {f"{case}.nii.gz": reference_map() for case in "ab"})
    for ours, theirs in ((predictions, listed), (listed, references), (listed, listed)):
        result = score(ours, theirs)
        assert (result.complete, result.summary["n_cases"]) == (True, 2)
        assert list(result.summary["structures"]) == ["liver", "spleen"]


def turned(array: np.ndarray[Any, Any], axes: tuple[int, ...], flips: tuple[int, ...]) -> tuple[Any, Any]:
    """The same voxels at the same places, stored with other axes."""
    orientation = np.stack([np.argsort(axes).astype(float), np.where(np.isin(range(3), flips), -1.0, 1.0)], axis=1)
    moved = nibabel.orientations.apply_orientation(array, orientation)
    return np.ascontiguousarray(moved), AFFINE @ nibabel.orientations.inv_ornt_aff(orientation, array.shape)


@pytest.mark.parametrize(
    ("axes", "flips"), [((0, 1, 2), (0,)), ((2, 0, 1), ()), ((1, 0, 2), (0, 2)), ((2, 1, 0), (1,))]
)
def test_axes_stored_in_another_order_or_direction_are_undone(
    axes: tuple[int, ...], flips: tuple[int, ...], tmp_path: Path, references: Path
) -> None:
    array, affine = turned(reference_map(), axes, flips)
    predictions = write_maps(tmp_path / "p", {"a.nii.gz": array}, affine)
    write_maps(predictions, {"b.nii.gz": np.roll(reference_map(), 1, axis=2)})
    result = score(predictions, references)
    assert result.complete
    assert {row.dice for row in result.results if row.case_id == "a"} == {1.0}
    assert [note["case_id"] for note in result.summary["notes"]] == ["a"]
    assert "no value was changed" in result.summary["notes"][0]["note"]


def test_a_grid_that_is_really_another_is_refused_with_its_distance(tmp_path: Path, references: Path) -> None:
    cropped, affine = turned(reference_map()[:-3], (2, 0, 1), (1,))
    predictions = write_maps(tmp_path / "p", {"a.nii.gz": cropped}, affine)
    shifted = AFFINE.copy()
    shifted[2, 3] = 7.0
    write_maps(predictions, {"b.nii.gz": reference_map()[::-1].copy()}, shifted)
    refused = {case["case_id"]: case for case in score(predictions, references).summary["refused"]}
    assert {case["code"] for case in refused.values()} == {"geometry-mismatch"}
    assert "corners lie up to 3 mm apart" in refused["a"]["message"]
    assert "up to 7 mm" in refused["b"]["message"]
    assert not any("inf" in case["message"] for case in refused.values())
    assert Geometry((14, 12, 10), AFFINE).describe() in refused["a"]["message"]


def test_when_nothing_is_scored_that_is_told_and_incomplete(tmp_path: Path) -> None:
    empty = {f"{case}.nii.gz": reference_map() * np.uint8(0) for case in "abc"}
    ours, theirs = write_maps(tmp_path / "p", empty), write_maps(tmp_path / "r", empty)
    for labels in (None, LABELS):
        result = score(ours, theirs, labels=labels)
        assert not result.complete
        assert (result.summary["n_scored"], result.summary["n_patients"]) == (0, 3)
        assert result.summary["warnings"][0].startswith("no structure was scored: all masks are empty on both sides")


def test_a_structure_that_never_occurs_and_a_value_without_a_name_are_told(tmp_path: Path) -> None:
    volume = reference_map()
    volume[volume == 2] = 7
    ours = infer_folder(tmp_path / "run", {"a": None})
    write_maps(ours, {"a_seg.nii.gz": volume})
    result = score(ours, write_maps(tmp_path / "r", {"a.nii.gz": volume}))
    assert list(result.summary["structures"]) == ["liver", "spleen", "7"]
    assert any("spleen" in warning for warning in result.summary["warnings"])
    assert any("under their number: 7" in warning for warning in result.summary["warnings"])


def test_the_same_files_on_both_sides_are_told(references: Path) -> None:
    result = score(references, references)
    assert "very files" in result.summary["warnings"][0]


def dataset(folder: Path, labels: dict[str, Any]) -> None:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}}))


def test_names_come_from_a_dataset_beside_the_references(tmp_path: Path) -> None:
    ours = write_maps(tmp_path / "p", {"a.nii.gz": reference_map()})
    theirs = write_maps(tmp_path / "nn" / "labelsTr", {"a.nii.gz": reference_map()})
    dataset(tmp_path / "nn", {"background": 0, "liver": 1, "spleen": 2})
    assert list(score(ours, theirs).summary["structures"]) == ["liver", "spleen"]


def test_names_that_contradict_each_other_are_told(tmp_path: Path, references: Path) -> None:
    ours = infer_folder(tmp_path / "run", {"a": None, "b": None})
    dataset(references, {"background": 0, "Liver": 1, "Milz": 2})
    [warning] = score(ours, references).summary["warnings"]
    assert "2 is 'spleen' and 'Milz'" in warning
    assert "liver" not in warning


def test_two_sides_that_number_structures_differently_are_refused(tmp_path: Path, references: Path) -> None:
    ours = infer_folder(tmp_path / "run", {"a": None, "b": None})
    dataset(references, {"background": 0, "liver": 2, "spleen": 1})
    with pytest.raises(UsageError, match="number their structures differently"):
        score(ours, references)
    assert score(ours, references, labels=LABELS).complete


def test_floats_that_hold_whole_numbers_are_label_maps(tmp_path: Path, references: Path) -> None:
    nearly = reference_map().astype(np.float32) * np.float32(0.9999)
    assert score(write_maps(tmp_path / "p", {"a.nii.gz": nearly, "b.nii.gz": nearly}), references).complete
    soft = reference_map().astype(np.float32) * np.float32(0.95)
    result = score(write_maps(tmp_path / "q", {"a.nii.gz": soft, "b.nii.gz": reference_map()[..., None]}), references)
    assert [(case["case_id"], case["code"]) for case in result.summary["refused"]] == [("a", "unexpected-labels")]


def test_cases_that_the_model_was_trained_on_are_counted(tmp_path: Path, references: Path) -> None:
    result = score(infer_folder(tmp_path / "run", {"a": True, "b": False}), references)
    assert result.summary["trained_on"] == {"n": 1, "of": 2, "case_ids": ["a"]}
    lines = (tmp_path / "scores" / "metrics.csv").read_text().splitlines()
    assert lines[0].endswith(",invented,trained_on")
    assert [line.rsplit(",", 1)[1] for line in lines[1:]] == ["1", "1", "0", "0"]
    shutil.rmtree(tmp_path / "scores")
    assert score(infer_folder(tmp_path / "run", {"a": None, "b": None}), references).summary["trained_on"] is None
    assert (tmp_path / "scores" / "metrics.csv").read_text().splitlines()[0].endswith(",invented")


def test_training_cases_of_the_other_side_of_a_comparison_are_counted(tmp_path: Path, references: Path) -> None:
    first, second = (
        infer_folder(tmp_path / name, dict.fromkeys("ab", learnt))
        for name, learnt in (("first", False), ("second", True))
    )
    result = score(first, references, compare_with=second)
    assert result.summary["trained_on"]["n"] == 0
    assert result.summary["comparison"]["trained_on"]["n"] == 2


def test_training_cases_are_known_by_the_sums_in_the_bundle(tmp_path: Path, references: Path) -> None:
    images = write_maps(tmp_path / "imagesTr", {f"{case}_0000.nii.gz": reference_map() * 3 for case in "a"})
    write_maps(images, {"b_0000.nii.gz": reference_map() * 5})
    bundle = tmp_path / "bundle"
    (bundle / "configs").mkdir(parents=True)
    channels = {"0": "background", "1": "liver", "2": "spleen"}
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    learnt = [{"image": "secret.nii.gz", "sha256": {"image": sha256_file(images / "b_0000.nii.gz")}}]
    (bundle / "configs" / "datalist.json").write_text(json.dumps({"training": learnt}))
    predictions = write_maps(tmp_path / "p", {f"{case}.nii.gz": reference_map() for case in "ab"})
    result = score(predictions, nnunet_datalist(tmp_path), labels=bundle)
    assert result.summary["trained_on"]["n"] == 1
    assert result.summary["trained_on"]["case_ids"] == ["b_0000"]
