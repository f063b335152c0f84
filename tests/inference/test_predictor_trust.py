"""Trust in a batch: verdicts, flags, doubt on the source grid, and never a verdict from a calibration of others."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from medseg.bundle import Bundle
from medseg.cli import infer as infer_command
from medseg.cli.main import app
from medseg.errors import CaseFailed, Interrupted, UsageError
from medseg.files import sha256_file
from medseg.geometry import Geometry
from medseg.inference import Options, Predictor, run_batch
from medseg.networks import ConditionalPatchDiscriminator
from medseg.planning import Cleaning, set_cleaning
from medseg.results import RunReport, write_worklist
from medseg.results.verdict import DiscriminatorVerdict
from medseg.trust.discriminator import DiscriminatorJudge
from medseg.trust.discriminator_acceptance import (
    ACCEPTANCE_NAME,
    DISCRIMINATOR_NAME,
    DiscriminatorAcceptance,
    Proportion,
)
from medseg.trust.trust_files import trust_state
from tests.inference.bundles import ORIENTED, RESAMPLED, Design, write_bundle
from tests.inference.fake_judge import FakeJudge, calibrate, read_run, use
from tests.inference.volumes import blobs, grid, load, meta_tensor, save

assert infer_command


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """The thresholding bundle with a calibration for its weights."""
    bundle = write_bundle(tmp_path / "judged", Design(transforms=ORIENTED))
    calibrate(bundle)
    return bundle


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> FakeJudge:
    return use(FakeJudge(), monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An ordinary case, one without the large structure, one that is flagged, and one that cannot be read."""
    folder = tmp_path / "images"
    shape = (18, 14, 10)
    save(blobs(shape, 1) * 0.95, grid("plain"), folder / "sound.nii.gz")
    save(np.minimum(blobs(shape, 2), 25), grid("oblique"), folder / "lacking.nii.gz")
    save(blobs(shape, 3), grid("plain"), folder / "strange.nii.gz")
    (folder / "text.nii.gz").write_text("not an image")
    return folder


def _trust(folder: Path) -> dict[str, Any]:
    content: Any = read_run(folder)
    return {case["case_id"]: case["trust"] for case in content["cases"]}


def test_every_done_case_has_a_verdict_and_refused_ones_have_none(
    judged: Path, judge: FakeJudge, images: Path, tmp_path: Path
) -> None:
    report = run_batch(judged, [images], tmp_path / "out")
    trust = _trust(tmp_path / "out")
    assert trust["text"] is None
    assert len(judge.seen) == 3
    sound = trust["sound"]
    assert [s["name"] for s in sound["structures"]] == ["small", "large"]
    second = sound["structures"][1]["predicted_dice"]
    assert 0.5 < second < 1
    assert sound["predicted_dice"] == pytest.approx((0.9 + second) / 2, abs=1e-5)
    assert sound["lower_bound"] == pytest.approx(second / 2, abs=1e-5)
    assert sound["verdict"] == "review"
    assert trust["lacking"]["verdict"] == "reject"
    assert trust["strange"]["flags"] == ["unlike-training"]
    assert trust["strange"]["verdict"] != "accept"
    assert report.content["summary"]["verdicts"] == {"accept": 0, "review": 2, "reject": 1, "flagged": 1}
    assert report.content["trust"]["state"] == "ready"
    assert report.content["trust"]["coverage"] == 0.9
    assert report.content["summary"]["stages_seconds"]["trust"] > 0
    rows = {r["case_id"]: r for r in csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())}
    assert rows["strange"]["flags"] == "unlike-training"
    assert rows["lacking"]["verdict"] == "reject"
    assert rows["text"]["verdict"] == ""


def test_a_flag_is_never_accepted(judged: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeJudge(decision="accept"), monkeypatch)
    run_batch(judged, [images], tmp_path / "out")
    verdicts = {name: trust and trust["verdict"] for name, trust in _trust(tmp_path / "out").items()}
    assert verdicts == {"sound": "accept", "lacking": "accept", "strange": "review", "text": None}


def test_a_second_run_keeps_the_verdicts_and_a_new_calibration_asks_again(
    judged: Path, judge: FakeJudge, images: Path, tmp_path: Path
) -> None:
    first = run_batch(judged, [images], tmp_path / "out")
    again = run_batch(judged, [images], tmp_path / "out")
    assert again.content["summary"]["computed"] == 0
    assert again.content["cases"] == first.content["cases"]
    text = (judged / "trust" / "calibration.json").read_text()
    (judged / "trust" / "calibration.json").write_text(text.replace("\n", " \n", 1) + " ")
    assert run_batch(judged, [images], tmp_path / "out").content["summary"]["computed"] == 3


@pytest.mark.parametrize("transforms", [ORIENTED, RESAMPLED])
def test_doubt_lies_where_the_network_hesitates(
    judge: FakeJudge, tmp_path: Path, transforms: tuple[dict[str, Any], ...]
) -> None:
    bundle = write_bundle(tmp_path / "bundle", Design(transforms=transforms))
    calibrate(bundle)
    intensity = blobs((26, 22, 18), 5) * 0.95
    affine = grid("permuted")
    save(intensity, affine, tmp_path / "in" / "case.nii.gz")
    report = run_batch(bundle, [tmp_path / "in"], tmp_path / "out", Options(write=("nifti", "doubt"), windows="bundle"))
    assert report.cases[0].outputs == ("case_seg.nii.gz", "case_doubt.nii.gz")
    doubt, found_affine = load(tmp_path / "out" / "case_doubt.nii.gz")
    np.testing.assert_allclose(found_affine, affine, atol=1e-5)
    scores = np.stack([np.zeros_like(intensity), intensity - 10, 2 * intensity - 40])
    odds = np.exp(scores - scores.max(0))
    expected = 100 * (1 - (odds / odds.sum(0)).max(0))
    if transforms is ORIENTED:
        np.testing.assert_allclose(doubt, expected, atol=1.01)
    else:  # blurred by two interpolations, but in the right place and none where the answer is clear
        assert np.corrcoef(doubt.ravel(), expected.ravel())[0, 1] > 0.8
    point = report.cases[0].trust.look_at_mm if report.cases[0].trust else None
    assert point is not None
    index = np.linalg.inv(affine) @ [*point, 1]
    planes = [int(np.argmax(expected.sum(axis=tuple(b for b in range(3) if b != a)))) for a in range(3)]
    np.testing.assert_allclose(index[:3], planes, atol=0.01 if transforms is ORIENTED else 3)


def test_doubt_is_zero_outside_the_region_of_interest(judged: Path, judge: FakeJudge, tmp_path: Path) -> None:
    save(blobs((18, 14, 10), 1) * 0.95, grid("oblique"), tmp_path / "in" / "case.nii.gz")
    options = Options(write=("nifti", "doubt"), roi="voxels:2,3,1,9,8,6")
    run_batch(judged, [tmp_path / "in"], tmp_path / "out", options)
    doubt, _ = load(tmp_path / "out" / "case_doubt.nii.gz")
    assert doubt.shape == (18, 14, 10)
    assert doubt[2:10, 3:9, 1:7].any()
    doubt[2:10, 3:9, 1:7] = 0
    assert not doubt.any()


def test_a_calibration_of_other_weights_gives_no_verdict(judge: FakeJudge, images: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stale", Design(transforms=ORIENTED))
    calibrate(bundle, weights_sha256="ab" * 32)
    with pytest.raises(UsageError, match="no case can have it"):
        run_batch(bundle, [images], tmp_path / "out", Options(write=("nifti", "doubt")))
    report = run_batch(bundle, [images], tmp_path / "out")
    assert not judge.seen
    assert all(case.trust is None for case in report.cases)
    assert report.content["trust"]["state"] == "stale"
    assert "medseg trust fit" in report.content["trust"]["message"]
    assert report.content["summary"]["verdicts"] is None
    assert not list((tmp_path / "out").glob("*_doubt.nii.gz"))
    assert not (tmp_path / "out" / "worklist.csv").exists()
    shown = CliRunner().invoke(app, ["infer", str(bundle), str(images / "sound.nii.gz"), "-o", str(tmp_path / "out2")])
    assert shown.exit_code == 0
    assert "no verdicts, no doubt" in shown.stdout


def test_a_damaged_calibration_gives_no_verdict(judge: FakeJudge, images: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "damaged", Design(transforms=ORIENTED))
    calibrate(bundle).write_text('{"format": "something else"}')
    assert trust_state(Bundle.open(bundle)).state == "damaged"
    report = run_batch(bundle, [images / "sound.nii.gz"], tmp_path / "out")
    assert report.cases[0].status == "done"
    assert report.cases[0].trust is None
    assert not judge.seen


@pytest.mark.parametrize("error", [CaseFailed("no"), MemoryError(), RuntimeError("shape")])
def test_a_case_the_judge_fails_on_is_to_be_reviewed(
    judged: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    use(FakeJudge(error=error), monkeypatch)
    report = run_batch(judged, [images / "sound.nii.gz"], tmp_path / "out", Options(write=("nifti", "doubt")))
    (case,) = report.cases
    assert case.status == "done"
    assert case.outputs == ("sound_seg.nii.gz",)
    assert case.not_written["doubt"].reason == "not-judged"
    assert case.trust is not None
    assert (case.trust.decision, case.trust.flags) == ("review", ("not-judged",))
    assert case.trust.predicted_dice is None


@pytest.mark.parametrize("by", ["trust", "discriminator"])
def test_a_signal_while_a_case_is_judged_stops_the_run(
    judged: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    signal = Interrupted("stopped by SIGINT")
    use(FakeJudge(error=signal if by == "trust" else None), monkeypatch)
    if by == "discriminator":
        _with_discriminator(judged)

        def stopped(*_: object) -> DiscriminatorVerdict:
            raise signal

        monkeypatch.setattr(DiscriminatorJudge, "judge", stopped)
    with pytest.raises(Interrupted, match="1 cases are left"):
        run_batch(judged, [images / "sound.nii.gz"], tmp_path / "out")


def test_a_case_too_large_to_be_judged_is_to_be_reviewed(
    judged: Path, judge: FakeJudge, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg.trust.crop.LIMIT_BYTES", 1000)
    report = run_batch(judged, [images / "sound.nii.gz"], tmp_path / "out")
    assert report.cases[0].trust is not None
    assert report.cases[0].trust.flags == ("too-large",)
    assert report.cases[0].trust.decision == "review"
    assert not judge.seen


def test_trust_can_be_left_out(judged: Path, judge: FakeJudge, images: Path, tmp_path: Path) -> None:
    report = run_batch(judged, [images / "sound.nii.gz"], tmp_path / "out", Options(trust=False))
    assert report.cases[0].trust is None
    assert report.content["trust"]["state"] == "off"
    assert not judge.seen
    with pytest.raises(UsageError, match="doubt needs trust"):
        Options(trust=False, write=("doubt",))


def test_the_worklist_names_the_worst_first_and_why(
    judged: Path, judge: FakeJudge, images: Path, tmp_path: Path
) -> None:
    run_batch(judged, [images], tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "worklist.csv").read_text().splitlines()))
    assert [row["case_id"] for row in rows] == ["lacking", "strange", "sound"]
    assert [row["todo"] for row in rows] == ["segment anew", "correct", "correct"]
    assert rows[0]["structure"] == "large"
    assert "Dice about 0.00" in rows[0]["why"]
    assert "asked 0.70" in rows[0]["why"]
    assert "unlike those of the training" in rows[1]["why"]
    assert "looks like motion (83%)" in rows[1]["why"]
    assert "looks like" not in rows[0]["why"] + rows[2]["why"]
    assert rows[1]["prediction"] == "strange_seg.nii.gz"
    assert len(rows[1]["look_at_mm"].split()) == 3
    again = write_worklist(RunReport.read(tmp_path / "out"), tmp_path / "list.csv", {})
    assert (tmp_path / "list.csv").read_text() == (tmp_path / "out" / "worklist.csv").read_text()
    assert len(again) == 3


def test_a_verdict_is_printed_and_does_not_change_the_exit_code(
    judged: Path, judge: FakeJudge, images: Path, tmp_path: Path
) -> None:
    sources = [str(images / f"{name}.nii.gz") for name in ("sound", "lacking", "strange")]
    shown = CliRunner().invoke(app, ["infer", str(judged), *sources, "-o", str(tmp_path / "out"), "--profile"])
    assert shown.exit_code == 0, shown.output
    assert "reject" in shown.stdout
    assert "strange: done" in shown.stdout
    assert "unlike-training" in shown.stdout
    assert "Trust: 0 accept, 2 review, 1 reject, 1 flagged." in shown.stdout
    assert any(line.split()[:1] == ["trust"] for line in shown.stdout.splitlines())


def test_the_predictor_alone_gives_labels_verdict_and_error_map(judged: Path, judge: FakeJudge) -> None:
    intensity, affine = blobs((18, 14, 10), 1) * 0.95, grid("oblique")
    image = meta_tensor(intensity, affine)
    found = Predictor(judged).predict(image, error_map=True)
    np.testing.assert_array_equal(found.label_map, (intensity > 10).astype(int) + (intensity > 30))
    assert found.geometry.matches(Geometry((18, 14, 10), affine))
    assert found.verdict is not None
    assert found.verdict.decision == "review"
    assert found.error_map is not None
    assert found.error_map.shape == (18, 14, 10)
    assert found.error_map.dtype == np.dtype(np.uint8)
    assert found.error_map.any()
    assert set(found.seconds) == {"prepare", "network", "restore", "trust"}
    assert Predictor(judged).predict(image).error_map is None
    for without in (Predictor(judged, trust=False), Predictor(judged, mirror=("ap",))):
        plain = without.predict(image, error_map=True)
        assert (plain.verdict, plain.error_map) == (None, None)
        assert "trust" not in plain.seconds


def _with_discriminator(bundle: Path, real: int = 20) -> None:
    """A discriminator that judges everything real, and a record of having been tried."""
    discriminator = ConditionalPatchDiscriminator(label_channels=3, channels=2)
    last = [module for module in discriminator.modules() if isinstance(module, torch.nn.Conv3d)][-1]
    torch.nn.init.zeros_(last.weight)
    assert last.bias is not None
    torch.nn.init.ones_(last.bias)
    (bundle / "trust").mkdir(exist_ok=True)
    save_file(discriminator.state_dict(), bundle / DISCRIMINATOR_NAME)
    definition = {"_target_": "medseg.networks.ConditionalPatchDiscriminator", "label_channels": 3, "channels": 2}
    (bundle / "trust" / "discriminator.json").write_text(json.dumps(definition))
    tried = {"shifted": Proportion.counted(20, 20)}
    sha256 = sha256_file(bundle / DISCRIMINATOR_NAME)
    counted = Proportion.counted(real, 20)
    DiscriminatorAcceptance(sha256, (16, 16, 16), 0.0, 20, True, counted, tried, {}).write(bundle / ACCEPTANCE_NAME)


def test_an_accepted_discriminator_judges_every_case_with_and_without_trust(
    judged: Path, judge: FakeJudge, images: Path, tmp_path: Path
) -> None:
    _with_discriminator(judged)
    report = run_batch(judged, [images], tmp_path / "out")
    assert len(judge.seen) == 3, "trust as before"
    content: Any = read_run(tmp_path / "out")
    assert content["discriminator"]["state"] == "accepted"
    assert "of each at least 50% of the patches are real" in content["discriminator"]["rule"]
    assert content["summary"]["discriminator"] == {"accept": 2, "reject": 1}, "one was not found"
    found = {case["case_id"]: case["discriminator"] for case in content["cases"]}
    assert found["text"] is None
    assert found["sound"]["verdict"] == "accept"
    assert [(one["name"], one["share"]) for one in found["sound"]["structures"]] == [("small", 1.0), ("large", 1.0)]
    assert found["lacking"]["structures"][1] == {"label": 2, "name": "large", "share": None, "patches": 0}
    assert [one.discriminator for one in RunReport.read(tmp_path / "out").cases] == [
        one.discriminator for one in report.cases
    ]
    rows = {r["case_id"]: r for r in csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())}
    assert [rows["strange"][key] for key in ("discriminator", "small_real", "case_class")] == [
        "accept",
        "1.0",
        "motion",
    ]
    assert rows["lacking"]["large_real"] == rows["text"]["discriminator"] == ""
    (judged / "trust" / "calibration.json").unlink()
    alone = run_batch(judged, [images / "sound.nii.gz"], tmp_path / "alone")
    assert alone.cases[0].trust is not None
    assert not alone.cases[0].trust.calibrated
    assert alone.cases[0].discriminator == report.case("sound").discriminator  # type: ignore[union-attr]


def test_a_discriminator_judges_labels_as_they_are_cleaned(judged: Path, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="MONAI's cleaning needs scikit-image")
    _with_discriminator(judged)
    (judged / "trust" / "calibration.json").unlink()
    set_cleaning(Bundle.open(judged), Cleaning(smallest_ml=1e5))  # nothing is as large
    report = run_batch(judged, [images / "sound.nii.gz"], tmp_path / "out")
    found = report.cases[0].discriminator
    assert found is not None
    assert report.discriminator["state"] == "accepted", "its record is of references: it holds"
    assert [one.share for one in found.structures] == [None, None]


def test_a_discriminator_that_has_not_passed_judges_nothing_and_the_run_says_why(
    judged: Path, judge: FakeJudge, images: Path, tmp_path: Path
) -> None:
    source = images / "sound.nii.gz"

    def state(name: str, **options: Any) -> tuple[str, str]:
        report = run_batch(judged, [source], tmp_path / name, Options(**options))
        assert report.cases[0].discriminator is None
        assert "discriminator" not in (tmp_path / name / "results.csv").read_text().splitlines()[0]
        return report.discriminator["state"], report.discriminator["message"]

    assert state("none")[0] == "none"
    _with_discriminator(judged, real=3)
    assert state("failed")[0] == "failed"
    assert "judged real in 15%" in state("again")[1]
    _with_discriminator(judged)
    assert state("off", trust=False) == ("off", "switched off by --no-trust")


def test_a_discriminator_that_fails_takes_no_verdict_along(
    judged: Path, judge: FakeJudge, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_discriminator(judged)

    def broken(*_: object) -> DiscriminatorVerdict:
        raise RuntimeError("no")

    monkeypatch.setattr(DiscriminatorJudge, "judge", broken)
    (case,) = run_batch(judged, [images / "sound.nii.gz"], tmp_path / "out").cases
    assert (case.discriminator, case.verdict) == (None, "review")
