"""``medseg trust``: the worklist, a calibration on corrected cases, and what the bundle says of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from medseg.bundle import Bundle
from medseg.cli import bundle as bundle_command
from medseg.cli import infer as infer_command
from medseg.cli import trust as trust_command
from medseg.cli.main import app
from medseg.errors import ExitCode
from medseg.evaluation import evaluate_folders
from medseg.sharing import verify
from medseg.trust.trust_files import trust_state
from medseg.workflows.trust_fit import coverage_at_least, fewest_patients
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.fake_judge import calibrate
from tests.inference.volumes import blobs, grid, save

assert bundle_command
assert infer_command
assert trust_command


def _medseg(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def _worklist_folder(folder: Path) -> Path:
    def case(name: str, verdict: str, dice: float, flags: list[str]) -> dict[str, object]:
        structures = [{"label": 1, "name": "small", "predicted_dice": dice, "lower_bound": dice - 0.1}]
        trust = {"predicted_dice": dice, "lower_bound": dice - 0.1, "verdict": verdict, "flags": flags}
        return {
            "case_id": name,
            "source": f"in/{name}.nii.gz",
            "status": "done",
            "outputs": [f"{name}_seg.nii.gz"],
            "trust": {**trust, "structures": structures, "look_at_mm": [1.0, 2.0, 3.0]},
        }

    cases = [
        case("good", "accept", 0.95, []),
        case("fair", "review", 0.8, []),
        case("odd", "review", 0.9, ["unlike-training"]),
        case("bad", "reject", 0.3, []),
        {"case_id": "gone", "source": "in/gone", "status": "refused", "outputs": [], "trust": None},
    ]
    folder.mkdir()
    thresholds = {"thresholds": {"accept": 0.85, "reject": 0.5}}
    (folder / "run.json").write_text(json.dumps({"cases": cases, "trust": {"state": "ready", **thresholds}}))
    return folder


def test_the_worklist_is_printed_and_written(tmp_path: Path) -> None:
    folder = _worklist_folder(tmp_path / "out")
    shown = _medseg("trust", "worklist", folder, "--top", "2")
    assert shown.exit_code == ExitCode.DONE, shown.output
    assert "bad: reject, look at 1.0 2.0 3.0 mm. small: Dice about 0.30, perhaps only 0.20, asked 0.85" in shown.stdout
    assert "good" not in shown.stdout
    rows = list(csv.DictReader((folder / "worklist.csv").read_text().splitlines()))
    assert [row["case_id"] for row in rows] == ["bad", "odd", "fair", "good"]
    assert rows[-1]["todo"] == "none"
    as_json = _medseg("trust", "worklist", folder, "--json")
    assert [case["case_id"] for case in json.loads(as_json.stdout)["cases"]] == ["bad", "odd", "fair", "good"]


def test_a_folder_without_verdicts_has_no_worklist(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"cases": [], "trust": {"state": "stale", "message": "others"}}))
    result = _medseg("trust", "worklist", tmp_path)
    assert result.exit_code == ExitCode.USAGE
    assert "others" in result.stderr
    assert _medseg("trust", "worklist", tmp_path / "nowhere").exit_code == ExitCode.USAGE


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, twelve images through it, and corrected masks that differ from its results."""
    root = tmp_path_factory.mktemp("hospital")
    bundle = write_bundle(root / "bundle", Design(transforms=ORIENTED))
    assert _medseg("bundle", "clean", bundle, "--fill-holes", "large").exit_code == 0
    rng = np.random.default_rng(0)
    for number in range(12):
        intensity = blobs((20, 16, 12), number)
        save(intensity, grid("plain"), root / "images" / f"case{number}.nii.gz")
        low, high = 10 + 4 * rng.random(), 30 + 2 * rng.random()
        corrected = (intensity > low).astype(np.float32) + (intensity > high)
        save(corrected.astype(np.float32), grid("plain"), root / "masks" / f"case{number}_seg.nii.gz")
    assert _medseg("infer", bundle, root / "images", "-o", root / "out", "--windows", "bundle").exit_code == 0
    return root


@pytest.mark.slow
def test_fit_calibrates_and_infer_then_gives_verdicts(hospital: Path) -> None:
    bundle = hospital / "bundle"
    assert trust_state(Bundle.open(bundle)).state == "none"
    arguments = ("--predictions", hospital / "out", "--references", hospital / "masks")
    fitted = _medseg("trust", "fit", bundle, *arguments, "--accept", "0.6", "--reject", "0.2", "--json")
    assert fitted.exit_code == ExitCode.DONE, fitted.output
    told = json.loads(fitted.stdout)
    assert (told["n_cases"], told["n_patients"], told["before"], told["skipped"]) == (12, 12, None, [])
    assert all(structure["bounded"] for structure in told["structures"])
    assert [structure["holds_at_least"] for structure in told["structures"]] == [0.7791, 0.7791]
    assert trust_state(Bundle.open(bundle)).as_json()["thresholds"] == {"accept": 0.6, "reject": 0.2}
    bound = json.loads((bundle / "trust" / "calibration.json").read_text())["cleaning"]
    assert bound == ["FillHolesd(applied_labels=[2])"]

    judged = _medseg("infer", bundle, hospital / "images", "-o", hospital / "judged", "--windows", "bundle", "--json")
    assert judged.exit_code == ExitCode.DONE, judged.output
    run = json.loads(judged.stdout)
    assert run["trust"]["state"] == "ready"
    for case in run["cases"]:
        assert case["trust"]["verdict"] in {"accept", "review", "reject"}
        for structure in case["trust"]["structures"]:
            assert 0 <= structure["lower_bound"] <= structure["predicted_dice"] <= 1
    shown = _medseg("bundle", "info", bundle)
    assert "calibrated for these weights on 12 patients: 90% of the lower bounds hold; accept from 0.60" in shown.stdout
    assert "Trust: calibrated for these weights on 12 patients" in _medseg("bundle", "verify", bundle).stdout
    assert not [finding for finding in verify(bundle) if finding.file == "trust/calibration.json"]

    again = _medseg("trust", "fit", bundle, *arguments)
    assert again.exit_code == ExitCode.DONE, again.output
    assert "structures reach their lower bound" in again.stdout
    words = " ".join(again.stdout.split())
    assert "of 12 patients; lower bounds hold for 90% on average over such fits, for 78% in 19 of 20" in words
    assert trust_state(Bundle.open(bundle)).as_json()["thresholds"] == {"accept": 0.6, "reject": 0.2}

    strict = _medseg("trust", "fit", bundle, *arguments, "--precision", "0.99", "--good", "0.7")
    assert strict.exit_code == ExitCode.DONE, strict.output
    told = " ".join(strict.stdout.split())
    assert "accept nothing, reject below 0.20; nothing is accepted, since no threshold shows that 99%" in told
    assert trust_state(Bundle.open(bundle)).as_json()["thresholds"] == {"accept": None, "reject": 0.2}
    [finding] = [one for one in verify(bundle) if one.file == "trust/calibration.json"]
    assert (finding.severity, "nothing is accepted" in finding.what) == ("warn", True)

    none = _medseg("infer", bundle, hospital / "images", "-o", hospital / "none", "--windows", "bundle")
    told = " ".join(none.output.split())
    assert none.exit_code == ExitCode.DONE, told
    assert "Nothing is accepted, since no threshold shows that 99% of what it accepts" in told
    assert "(good: every Dice at least 0.70)" in told
    assert "asked" not in (hospital / "none" / "worklist.csv").read_text()
    measured = evaluate_folders(hospital / "none", hospital / "masks", hospital / "none", labels=bundle).summary
    (judge,) = measured["accepted"]["judges"]
    assert (judge["judge"], judge["accepted"]["count"], [*judge["good"]]) == ("calibrated", 0, ["0.8"])


def test_what_so_many_patients_can_bound() -> None:
    assert [fewest_patients(coverage) for coverage in (0.5, 0.8, 0.9, 0.95)] == [1, 4, 9, 19]
    assert coverage_at_least(0.9, 8) is None
    assert coverage_at_least(0.9, 9) == pytest.approx(0.05 ** (1 / 9), abs=1e-4)  # the largest of nine
    assert coverage_at_least(0.9, 22) == pytest.approx(0.8019, abs=1e-4)


def test_too_few_cases_are_refused(hospital: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for number in range(2):
        mask = hospital / "masks" / f"case{number}_seg.nii.gz"
        (tmp_path / "masks" / mask.name).write_bytes(mask.read_bytes())
    before = sorted((hospital / "bundle" / "trust").glob("*")) if (hospital / "bundle" / "trust").is_dir() else []
    arguments = ("--predictions", hospital / "out", "--references", tmp_path / "masks")
    refused = _medseg("trust", "fit", hospital / "bundle", *arguments)
    assert refused.exit_code == ExitCode.USAGE
    assert "patients" in refused.stderr
    folder = hospital / "bundle" / "trust"
    assert (sorted(folder.glob("*")) if folder.is_dir() else []) == before


def test_info_and_verify_tell_a_calibration_of_other_weights(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", Design(transforms=ORIENTED))
    calibrate(bundle, weights_sha256="cd" * 32)
    shown = _medseg("bundle", "info", bundle, "--json")
    assert json.loads(shown.stdout)["trust"]["state"] == "stale"
    found = [finding for finding in verify(bundle) if finding.file == "trust/calibration.json"]
    assert [(finding.severity, finding.what) for finding in found] == [("block", "it belongs to other weights")]
    assert "Trust: stale" in _medseg("bundle", "verify", bundle).stdout
    (bundle / "trust" / "calibration.json").write_text("{}")
    assert "Trust: damaged" in _medseg("bundle", "verify", bundle).stdout


def test_no_verdict_on_labels_that_are_cleaned_otherwise(hospital: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="MONAI's cleaning needs scikit-image")
    bundle = write_bundle(tmp_path / "bundle", Design(transforms=ORIENTED))
    calibration = calibrate(bundle)
    content = json.loads(calibration.read_text())
    assert content.pop("cleaning") == []
    calibration.write_text(json.dumps(content))  # as an older version wrote it
    assert trust_state(Bundle.open(bundle)).state == "ready"

    cleaned = _medseg("bundle", "clean", bundle, "--keep-largest", "large", "--json")
    told = json.loads(cleaned.stdout)["trust"]
    assert told["state"] == trust_state(Bundle.open(bundle)).state == "stale"
    assert (
        "fitted on labels with the cleaning: none; the bundle has now: KeepLargestConnectedComponentd("
        in (told["message"])
    )
    assert "applied_labels=[2]" in told["message"]
    assert "medseg trust fit" in told["message"]
    assert "no more verdicts" in _medseg("bundle", "clean", bundle, "--keep-largest", "small").stdout
    found = [finding for finding in verify(bundle) if finding.file == "trust/calibration.json"]
    assert [(finding.severity, finding.place) for finding in found] == [("block", "cleaning")]
    image = hospital / "images" / "case0.nii.gz"
    run = json.loads(_medseg("infer", bundle, image, "-o", tmp_path / "out", "--windows", "bundle", "--json").stdout)
    assert run["trust"]["state"] == "stale"
    assert run["cases"][0]["trust"] is None
    _medseg("bundle", "clean", bundle)
    assert trust_state(Bundle.open(bundle)).state == "ready", "it is set back"
    calibration.unlink()
    assert json.loads(_medseg("bundle", "clean", bundle, "--json").stdout)["trust"]["state"] == "none"
