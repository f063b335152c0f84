"""Two stages through the front door: a whole volume to a bundle that takes crops, sides named and kept apart."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner, Result

from medseg.bundle import Bundle
from medseg.cli import infer as infer_command
from medseg.cli.main import app
from medseg.errors import ExitCode, UsageError
from medseg.evaluation import evaluate_folders
from medseg.inference import Options, run_batch
from medseg.inference.located_bundle import LocatedBundle
from medseg.pacs.settings import Route
from medseg.pacs.study_worker import run_route
from medseg.phantom import make_patient, write_dicom
from medseg.results.verdict import NOT_CALIBRATED
from tests.inference.bundles import CONVOLUTION, ORIENTED, SCORES_BACK, Design, write_bundle
from tests.inference.fake_judge import FakeJudge, calibrate, read_run, use
from tests.inference.heads import (
    LEFT,
    RANGE,
    RIGHT,
    affine_of,
    head,
    labelled,
    places,
    save_head,
    shape_of,
    two_bundles,
)
from tests.inference.volumes import load, save

assert infer_command

BOTH = ((LEFT, 3.2), (RIGHT, 4.2))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return two_bundles(tmp_path_factory.mktemp("bundles"))


def _infer(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["infer", *map(str, arguments)])


def _read(folder: Path) -> Any:
    return read_run(folder)


def _located(bundles: tuple[Path, Path], **more: Any) -> Options:
    return Options(locate=f"{bundles[0]}:large", **more)


@pytest.mark.parametrize("kind", ["RAS", "LPS", "AIL", "oblique", "sheared"])
def test_sides_are_those_of_the_patient_on_any_grid(kind: str, bundles: tuple[Path, Path], tmp_path: Path) -> None:
    image, where = save_head(tmp_path / "in", kind, BOTH)
    result = _infer(
        bundles[1], image, "-o", tmp_path / "out", "--locate", f"{bundles[0]}:Large", "--locate-margin", "5"
    )
    assert result.exit_code == ExitCode.DONE, result.stderr
    found, affine = load(tmp_path / "out" / f"{kind}_seg.nii.gz")
    np.testing.assert_allclose(affine, affine_of(kind, shape_of(kind)), atol=1e-6)
    np.testing.assert_array_equal(found, labelled(where, BOTH[:1]) + labelled(where, BOTH[1:], 2) * (where[0] > 0))
    case = _read(tmp_path / "out")["cases"][0]
    assert [(one["label"], one["name"]) for one in case["structures"]] == [
        (1, "Left small"),
        (2, "Left large"),
        (3, "Right small"),
        (4, "Right large"),
    ]
    voxels = np.bincount(found.reshape(-1), minlength=5) * np.linalg.det(affine[:3, :3]).item()
    assert [one["volume_ml"] for one in case["structures"]] == pytest.approx((abs(voxels[1:]) / 1000).tolist())
    row = next(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert float(row["Right large_volume_ml"]) == pytest.approx(abs(voxels[4]) / 1000)
    assert [part["name"] for part in case["parts"]] == ["right", "left"]
    assert case["parts"][0]["located_ml"] == pytest.approx(abs(voxels[4]) / 1000)
    assert "located by finder: right" in case["message"]


def test_run_json_says_how_it_was_located(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    image, _ = save_head(tmp_path / "in", "RAS", BOTH)
    run_batch(bundles[1], [image], tmp_path / "out", _located(bundles))
    content = _read(tmp_path / "out")
    asked = content["options"]["locate"]
    assert (asked["bundle"], asked["structure"], asked["margin_mm"], asked["sides"]) == ("finder", "large", 5.0, True)
    assert len(asked["sha256"]) == 64
    left = content["cases"][0]["parts"][1]
    assert np.subtract(left["high"], left["low"]).tolist() == [17, 17, 17]  # 7 + 2 · 5 voxels
    assert (left["low"], left["mirrored"], left["trust"]["verdict"]) == ([12, 12, 8], False, NOT_CALIBRATED)
    assert content["cases"][0]["message"].endswith(f"; {NOT_CALIBRATED}")
    off = run_batch(bundles[1], [image], tmp_path / "off", _located(bundles, trust=False)).cases[0]
    assert (off.parts[1].trust, off.message.endswith("; not judged")) == (None, True)


def test_goes_on_and_computes_anew_for_another_margin_or_locator(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    image, _ = save_head(tmp_path / "in", "RAS", BOTH)
    runs = [
        _located(bundles),
        _located(bundles, workers=2),
        _located(bundles, locate_margin=4.0),
        Options(locate=f"{bundles[0]}:small", locate_margin=4.0, locate_sides=False),
    ]
    computed = [run_batch(bundles[1], [image], tmp_path / "out", options).computed for options in runs]
    assert computed == [1, 0, 1, 1]
    case = _read(tmp_path / "out")["cases"][0]
    assert [one["name"] for one in case["structures"]] == ["small", "large"]
    assert [part["name"] for part in case["parts"]] == ["1", "2"]
    assert {part["located_ml"] for part in case["parts"]} == {0.988, 1.468}  # 11³ − 7³ and 13³ − 9³: the two shells


def test_what_is_not_there_is_refused_with_a_reason_of_its_own(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    image, _ = save_head(tmp_path / "in", "RAS", ())
    result = _infer(bundles[1], image, "-o", tmp_path / "out", "--locate", f"{bundles[0]}:large")
    assert result.exit_code == ExitCode.INCOMPLETE
    assert "RAS: refused (not-located) large by finder: it was not found" in " ".join(result.stdout.split())
    assert not list((tmp_path / "out").glob("*_seg*"))


def test_a_side_without_a_part_is_noted_and_flagged(
    bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = use(FakeJudge(decision="accept"), monkeypatch)
    second = write_bundle(tmp_path / "judged", Design(transforms=ORIENTED, training_range=RANGE))
    calibrate(second)
    for name, parts in (("one", BOTH[1:]), ("two", BOTH)):
        where = places(affine_of("oblique"), shape_of("oblique"))
        save(head(where, parts), affine_of("oblique"), tmp_path / "in" / f"{name}.nii.gz")
    run_batch(second, [tmp_path / "in"], tmp_path / "out", _located(bundles))
    one, two = _read(tmp_path / "out")["cases"]
    assert (one["status"], two["status"]) == ("done", "done"), (one["message"], two["message"])
    assert len(judge.seen) == 3
    assert "no left one was found" in one["message"]
    assert (one["trust"]["verdict"], one["trust"]["flags"]) == ("review", ["structure-missing"])
    assert one["parts"][0]["trust"]["verdict"] == "accept"
    assert one["structures"][0]["volume_ml"] == 0
    assert (two["trust"]["verdict"], two["trust"]["flags"]) == ("accept", [])
    assert [part["trust"]["verdict"] for part in two["parts"]] == ["accept", "accept"]
    assert [(s["label"], s["name"]) for s in two["trust"]["structures"]] == [
        (1, "Left small"),
        (2, "Left large"),
        (3, "Right small"),
        (4, "Right large"),
    ]
    again = run_batch(second, [tmp_path / "in"], tmp_path / "out", _located(bundles))
    assert (again.computed, [len(case.parts) for case in again.cases]) == (0, [1, 2])


def test_the_worst_part_is_the_verdict_of_the_case(
    bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeJudge(), monkeypatch)  # flags what exceeds 49.5
    second = write_bundle(tmp_path / "judged", Design(transforms=ORIENTED, training_range=RANGE))
    calibrate(second)
    where = places(affine_of("RAS"), shape_of("RAS"))
    image = head(where, BOTH)
    image[(where[0] > 0) & (image > 30)] = 50
    save(image, affine_of("RAS"), tmp_path / "in" / "bright.nii.gz")
    run_batch(second, [tmp_path / "in"], tmp_path / "out", _located(bundles))
    case = _read(tmp_path / "out")["cases"][0]
    flags = {part["name"]: part["trust"]["flags"] for part in case["parts"]}
    assert flags == {"left": [], "right": ["unlike-training"]}
    assert case["trust"]["flags"] == ["unlike-training"]
    assert case["trust"]["case_class"]["name"] == "motion"
    assert {one["label"]: one["predicted_dice"] for one in case["trust"]["structures"]}[1] == 0.9


def test_sides_are_evaluated_against_references_of_both(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    image, where = save_head(tmp_path / "in", "LPS", BOTH)
    run_batch(bundles[1], [image], tmp_path / "out", _located(bundles))
    truth = labelled(where, BOTH[:1]) + labelled(where, BOTH[1:], 2) * (where[0] > 0)
    save(np.where(truth == 4, 3, truth).astype(np.float32), affine_of("LPS"), tmp_path / "truth" / "LPS.nii.gz")
    found = evaluate_folders(tmp_path / "out", tmp_path / "truth", tmp_path / "scores")
    rows = {row.name: row for row in found.results}
    assert [rows[f"Left {name}"].dice for name in ("small", "large")] == [1, 1]
    assert rows["Right large"].invented
    assert (rows["Right small"].dice or 0) < 1


@pytest.mark.slow
def test_workers_of_a_cluster_locate_as_this_process_does(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    for kind in ("RAS", "oblique"):
        save_head(tmp_path / "in", kind, BOTH)
    for name, options in (("one", _located(bundles)), ("two", _located(bundles, cluster="local:1"))):
        report = run_batch(bundles[1], [tmp_path / "in"], tmp_path / name, options)
        assert report.complete, [case.message for case in report.cases]
    for kind in ("RAS", "oblique"):
        one, two = (load(tmp_path / name / f"{kind}_seg.nii.gz")[0] for name in ("one", "two"))
        np.testing.assert_array_equal(one, two)


def _looking_right(folder: Path, recipe: dict[str, Any]) -> Path:
    """A bundle that labels the voxel which has something bright to its right, with a recipe in its metadata."""
    network = {**CONVOLUTION, "kernel_size": [3, 1, 1]}

    def weights(state: dict[str, Any]) -> dict[str, Any]:
        for key, value in state.items():
            value.zero_()
            if key.endswith("weight"):
                value[1, 0, 2], value[2, 0, 2] = 1.0, 2.0
            else:
                value[1], value[2] = -10.0, -40.0
        return state

    bundle = write_bundle(folder, Design(network, transforms=ORIENTED, training_range=RANGE), weights)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    (bundle / "configs" / "metadata.json").write_text(json.dumps({**metadata, "locate": recipe}))
    return bundle


@pytest.mark.parametrize("kind", ["RAS", "LPS", "AIL"])
def test_a_network_that_knows_one_side_sees_the_other_mirrored(
    kind: str, bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = {"bundle": str(bundles[0]), "structure": "large", "margin_mm": 6, "sides": True, "trained_side": "left"}
    second = _looking_right(tmp_path / "one_sided", recipe)
    image, where = save_head(tmp_path / "in", kind, BOTH)
    report = run_batch(second, [image], tmp_path / "out", Options(locate="auto"))
    assert report.complete, report.cases[0].message
    found, _ = load(tmp_path / "out" / f"{kind}_seg.nii.gz")
    moved = np.array([1.0, 0.0, 0.0]).reshape(3, 1, 1, 1)
    left, right = labelled(where + moved, BOTH[:1]), labelled(where - moved, BOTH[1:], 2)
    np.testing.assert_array_equal(found, left + right * (where[0] > 0))
    assert {part.name: part.mirrored for part in report.cases[0].parts} == {"left": False, "right": True}


def test_a_recipe_without_its_bundle_and_a_refusal_say_how_to_locate(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    image, _ = save_head(tmp_path / "in", "RAS", BOTH)
    second = _looking_right(tmp_path / "one_sided", {"bundle": "whole_head", "structure": "large"})
    plain = _infer(second, image, "-o", tmp_path / "plain")
    assert plain.exit_code == ExitCode.INCOMPLETE
    told = " ".join(plain.stdout.split())
    assert "outside-training-range" in told
    assert "or have whole_head find the large first with --locate auto" in told
    missing = _infer(second, image, "-o", tmp_path / "out", "--locate", "auto")
    assert missing.exit_code == ExitCode.USAGE
    assert "there is no bundle whole_head here" in " ".join(missing.stderr.split())
    assert _infer(second, image, "-o", tmp_path / "named", "--locate", bundles[0]).exit_code == ExitCode.DONE
    other = _infer(bundles[1], image, "-o", tmp_path / "other")
    assert "--locate BUNDLE:STRUCTURE" in other.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"locate": "{finder}:liver"}, "labels small, large, found no 'liver'"),
        ({"locate": "{finder}"}, "do not say what is located"),
        ({"locate": "auto"}, "do not say how it is located"),
        ({"locate": "nowhere:large"}, "is not a bundle"),
        ({"locate": "{finder}:large", "write": ("probabilities",)}, "no probabilities"),
        ({"locate": "{finder}:large", "locate_margin": -1.0}, "at least 0"),
        ({"locate": "{finder}:large", "locate_margin": 1e300}, "at most 1000"),
        ({"locate": "{finder}:large", "locate_margin": float("nan")}, "at most 1000"),
        ({"locate_margin": 5.0}, "and --locate"),
    ],
)
def test_wrong_calls_are_told_before_the_first_case(
    options: dict[str, Any], told: str, bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    image, _ = save_head(tmp_path / "in", "RAS", BOTH)
    if "locate" in options:
        options = {**options, "locate": options["locate"].format(finder=bundles[0])}
    with pytest.raises(UsageError, match=told):
        run_batch(bundles[1], [image], tmp_path / "out", Options(**options))


def test_a_region_is_looked_at_first_and_other_looks_are_the_second_networks(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    image, where = save_head(tmp_path / "in", "LPS", BOTH)
    roi = "-32,-15,-14,32,15,14"
    options = _located(bundles, roi=roi, mirror=("ap",), ensemble=(str(bundles[1]),))
    run_batch(bundles[1], [image], tmp_path / "out", options)
    found, _ = load(tmp_path / "out" / "LPS_seg.nii.gz")
    np.testing.assert_array_equal(found, labelled(where, BOTH[:1]) + labelled(where, BOTH[1:], 2) * (where[0] > 0))
    case = _read(tmp_path / "out")["cases"][0]
    for part in case["parts"]:
        box = tuple(slice(a, b) for a, b in zip(part["low"], part["high"], strict=True))
        assert (found[box] == (4 if part["name"] == "right" else 2)).any()
        assert not (found[box] == (2 if part["name"] == "right" else 4)).any()


def test_kidneys_of_a_dicom_phantom_have_their_side_in_every_object(tmp_path: Path) -> None:
    patient = make_patient(5, shape=(64, 64, 32), structures=4, lesion=False)
    series = write_dicom(patient, tmp_path / "study", thin=False).main
    limits = {"spacing_mm": {"low": [2.0] * 3, "high": [9.0] * 3}, "fov_mm": {"low": [60.0] * 3, "high": [150.0] * 3}}
    second = write_bundle(tmp_path / "crops", Design(transforms=ORIENTED, training_range=limits))
    metadata = json.loads((second / "configs" / "metadata.json").read_text())
    term = {"category": ["123037004", "SCT", "Anatomical Structure"], "type": ["64033007", "SCT", "Kidney"]}
    codes = {"1": term, "2": {**term, "modifier": ["255551008", "SCT", "Posterior"], "colour": "#ffffff"}}
    metadata["network_data_format"]["outputs"]["pred"]["segment_codes"] = codes
    (second / "configs" / "metadata.json").write_text(json.dumps(metadata))
    locate = "phantom_ct_segmentation:kidney"
    options = Options(("nifti", "seg", "sr", "rtstruct"), locate=locate)
    report = run_batch(second, [series], tmp_path / "out", options)
    assert report.complete, report.cases[0].message
    case = report.cases[0]
    kidneys = {"right": patient.label == 3, "left": patient.label == 4}
    found, _ = load(tmp_path / "out" / case.outputs[0])
    for part in case.parts:
        box = tuple(slice(a, b) for a, b in zip(part.low, part.high, strict=True))
        assert kidneys[part.name][box].sum() > 0.95 * kidneys[part.name].sum()
        own = {"left": (1, 2), "right": (3, 4)}[part.name]
        assert np.isin(found[kidneys[part.name]], own).mean() > 0.9
    segments = pydicom.dcmread(tmp_path / "out" / f"{case.case_id}_seg.dcm").SegmentSequence
    for segment in segments:
        modifiers = segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
        side, kind = segment.SegmentLabel.split()
        assert [term.CodeMeaning for term in modifiers] == [side, *(["Posterior"] if kind == "large" else [])]
    assert {segment.SegmentLabel for segment in segments} >= {"Left large", "Right large"}
    text = str(pydicom.dcmread(tmp_path / "out" / f"{case.case_id}_sr.dcm"))
    assert all(f"'{word}'" in text for word in ("Left", "Right", "Posterior", "Topographical modifier"))
    regions = pydicom.dcmread(tmp_path / "out" / f"{case.case_id}_rtstruct.dcm").StructureSetROISequence
    assert {region.ROIName for region in regions} >= {"Left large", "Right large"}
    (sent,) = run_route(Route("kidneys", second, ("seg",), (), locate=locate), series, tmp_path / "route")
    by_route = pydicom.dcmread(sent)
    assert [one.SegmentLabel for one in by_route.SegmentSequence] == [one.SegmentLabel for one in segments]
    assert by_route.PixelData == pydicom.dcmread(tmp_path / "out" / f"{case.case_id}_seg.dcm").PixelData


def test_networks_of_one_bundle_stay_open_with_and_without_a_locator_until_its_files_change(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    second = write_bundle(tmp_path / "crops", Design(transforms=ORIENTED))
    image, _ = save_head(tmp_path / "in", "RAS", BOTH)
    kept: dict[str, Any] = {}

    def run() -> set[str]:
        for number, options in enumerate((_located(bundles), _located(bundles, locate_margin=4.0), Options())):
            assert run_batch(second, [image], tmp_path / str(number), options, kept=kept).complete
        return set(kept)

    first = run()
    assert len(first) == 3
    assert run() == first
    with (second / "configs" / "metadata.json").open("a") as metadata:
        metadata.write("\n")
    assert len(run()) == 3
    assert first.isdisjoint(kept)


def _named(bundle: Path, **names: str) -> Path:
    """The bundle with other names of its channels."""
    file = bundle / "configs" / "metadata.json"
    metadata = json.loads(file.read_text())
    channels = {name[1:]: text for name, text in names.items()}
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "background", **channels}
    file.write_text(json.dumps(metadata))
    return bundle


def test_a_number_behind_a_letter_is_no_side(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    finder = _named(write_bundle(tmp_path / "spine", Design(transforms=ORIENTED)), _1="disc", _2="vertebra L5")
    image, _ = save_head(tmp_path / "in", "RAS", BOTH)
    report = run_batch(bundles[1], [image], tmp_path / "out", Options(locate=f"{finder}:vertebra_L5"))
    assert report.complete, report.cases[0].message
    assert {part.name for part in report.cases[0].parts} == {"left", "right"}


def test_a_label_without_a_name_is_not_taken_for_one_of_the_other_side(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    crops = write_bundle(tmp_path / "crops", Design(transforms=ORIENTED, training_range=RANGE))
    image, where = save_head(tmp_path / "in", "RAS", BOTH)
    report = run_batch(_named(crops, _1="small"), [image], tmp_path / "out", _located(bundles))
    assert report.complete, report.cases[0].message
    names = {one.name: one.label for one in report.cases[0].structures}
    found, _ = load(tmp_path / "out" / "RAS_seg.nii.gz")
    np.testing.assert_array_equal(found == names["Right small"], labelled(where, BOTH[1:]) == 1)
    np.testing.assert_array_equal(found == names["Left small"], labelled(where, BOTH[:1]) == 1)


def test_numbers_that_post_processing_gives_are_those_that_are_located_and_named(tmp_path: Path) -> None:
    swap = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [1, 2], "target_labels": [2, 1]}
    post = (*SCORES_BACK, swap)
    finder = write_bundle(tmp_path / "finder", Design(transforms=ORIENTED, post=post))
    crops = write_bundle(tmp_path / "crops", Design(transforms=ORIENTED, training_range=RANGE, post=post))
    kept: dict[str, Any] = {}
    for name in ("first", "second"):  # the networks stay open in between
        image, where = save_head(tmp_path / name, "RAS", BOTH)
        report = run_batch(crops, [image], tmp_path / "out" / name, Options(locate=f"{finder}:large"), kept=kept)
        assert report.complete, report.cases[0].message
        [case] = report.cases
        assert case.parts[0].located_ml == pytest.approx((labelled(where, BOTH[1:]) == 2).sum() / 1000)
        volumes = {one.name: one.volume_ml for one in case.structures}
        assert volumes["Right large"] == pytest.approx((labelled(where, BOTH[1:]) == 2).sum() / 1000)
        assert volumes["Left small"] == pytest.approx((labelled(where, BOTH[:1]) == 1).sum() / 1000)


def test_a_locator_is_shown_the_channels_of_its_names(tmp_path: Path) -> None:
    finder = write_bundle(tmp_path / "finder", Design(transforms=ORIENTED))
    two = write_bundle(tmp_path / "two", Design(transforms=ORIENTED, input_channels=2))
    with pytest.raises(UsageError, match="channel_def of both"):
        Options(locate=f"{finder}:large").bundle_of(Bundle.open(two))
    for folder, names in ((finder, ["T1"]), (two, ["FLAIR", "t1"])):
        metadata = json.loads((folder / "configs" / "metadata.json").read_text())
        channels = {str(number): name for number, name in enumerate(names)}
        metadata["network_data_format"]["inputs"]["image"]["channel_def"] = channels
        (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    asked = Options(locate=f"{finder}:large").bundle_of(Bundle.open(two))
    assert isinstance(asked, LocatedBundle)
    assert asked.seen == [1]
