from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from medseg.bundle import Bundle
from medseg.errors import BundleError, UsageError
from medseg.files import sha256_file
from medseg.results.verdict import STRUCTURE_MISSING, UNLIKE_TRAINING, USUAL
from medseg.sharing import verify
from medseg.trust.calibration import FitOptions
from medseg.trust.crop import Crop
from medseg.trust.error_net import ErrorNet, FineTuning
from medseg.trust.features import CaseFeatures, case_features
from medseg.trust.fit import TrustOptions, fit_trust
from medseg.trust.fit_cases import TrustCase
from medseg.trust.trust_files import TrustFiles
from medseg.trust.trust_model import Assessment, TrustModel
from tests.bundle.sample import read_config, write_config
from tests.trust.conftest import SIDE, result

Fitted = tuple[Bundle, nn.Module]


@pytest.fixture
def model(fitted: Fitted) -> TrustModel:
    bundle, network = fitted
    found = TrustModel.open(TrustFiles(bundle), network)
    assert found is not None
    return found


def copy_of(fitted: Fitted, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(fitted[0].path, tmp_path / "copy"))


def assess(model: TrustModel, case: TrustCase) -> Assessment:
    return model.assess(case.crop)


def test_a_good_result_is_told_from_a_poor_one(model: TrustModel) -> None:
    true, found = [], []
    for seed in range(40, 48):
        for fault in (None, "cut", "shift"):
            case = result(seed, fault)
            true.append(case.dice(1) or 0.0)
            found.append(assess(model, case).verdict.structures[0].predicted_dice)
    assert np.corrcoef(true, found)[0, 1] > 0.7
    assert np.abs(np.array(true) - found).mean() < 0.7 * np.abs(np.array(true) - np.mean(true)).mean()


def test_errors_are_expected_where_the_result_is_wrong(model: TrustModel) -> None:
    inside, outside = [], []
    for seed in range(40, 46):
        case = result(seed, "shift")
        wrong = (case.crop.probabilities.numpy().argmax(0) == 1) != (case.reference == 1)
        errors = assess(model, case).error_map
        assert errors.shape == (SIDE,) * 3
        assert errors.min() >= 0.0
        assert errors.max() <= 1.0
        if wrong.any():
            inside.append(errors[wrong].mean())
            outside.append(errors[~wrong].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


def test_a_box_round_the_structure_is_judged_as_the_whole_image(model: TrustModel) -> None:
    case = result(41)
    wide = torch.nn.functional.pad(case.crop.image, (30, 30, 30, 30, 30, 30), value=float(case.crop.image.min()))
    sure = torch.nn.functional.pad(case.crop.probabilities, (30, 30, 30, 30, 30, 30))
    sure[0] = 1.0 - sure[1]
    box = (slice(None), *(slice(14, 70),) * 3)
    whole, part = model.assess(Crop(wide, sure)), model.assess(Crop(wide[box], sure[box], (14, 14, 14)))
    assert part.verdict == whole.verdict
    assert part.features == pytest.approx(dict(whole.features))
    np.testing.assert_array_equal(part.error_map, whole.error_map[box[1:]])


def test_an_image_of_something_else_is_flagged_and_not_accepted(model: TrustModel) -> None:
    case = result(42)
    stripes = torch.sin(torch.arange(SIDE) * 1.5).expand(1, SIDE, SIDE, SIDE).contiguous() * 1.4
    strange = assess(model, replace(case, crop=replace(case.crop, image=stripes))).verdict
    assert UNLIKE_TRAINING in strange.flags
    assert strange.decision != "accept"


def test_a_noisy_image_is_told_from_a_usual_one(model: TrustModel) -> None:
    for fault, expected in ((None, USUAL), ("noise", "noise")):
        faults = [assess(model, result(seed, fault)).verdict.fault for seed in range(40, 46)]
        assert np.mean([kind is not None and kind.name == expected for kind in faults]) > 0.7


def test_a_calibration_without_what_later_ones_rest_on_says_the_same_as_ever(fitted: Fitted, tmp_path: Path) -> None:
    bundle = copy_of(fitted, tmp_path)
    path = bundle.path / "trust" / "calibration.json"
    tree = {"feature": [0, -1, -1], "threshold": [0.5, 0, 0], "left": [1, -1, -1], "right": [2, -1, -1]}
    structure = {
        "label": 1,
        "name": "anything",
        "scores": ["soft-dice[1]"],
        "regressor": {"constant": 0.5, "learning_rate": 0.1, "trees": [{**tree, "value": [0.0, -2.0, 3.0]}]},
        "error_at": [0.0, 1.0],
        "error": [0.1, 0.1],
        "quantile": 1.5,
        "n_cases": 10,
        "n_patients": 10,
    }
    old = json.loads(path.read_text())
    old |= {"scores": ["soft-dice[1]", "entropy"], "structures": [structure]}
    path.write_text(json.dumps(old, indent=2))
    model = TrustModel.open(TrustFiles(bundle), fitted[1])
    assert model is not None
    found = model.assess(result(40).crop).verdict.structures[0]
    assert found.predicted_dice == pytest.approx(0.5 + 0.1 * 3)
    assert found.lower_bound == pytest.approx(0.8 - 1.5 * 0.1)


def test_a_calibration_rests_on_the_kind_of_fault_and_on_the_border(model: TrustModel, fitted: Fitted) -> None:
    kinds = {f"kind-{name}" for name in (USUAL, "noise")}
    assert kinds | {"at-border[1]", "faces[1]"} <= set(model.calibration.features)
    told = assess(model, result(44, "noise")).features
    assert sum(told[name] for name in kinds) == pytest.approx(1)
    assert TrustFiles(fitted[0]).state.state == "ready"


def test_a_calibration_that_rests_on_a_fault_classifier_is_damaged_without_it(fitted: Fitted, tmp_path: Path) -> None:
    bundle = copy_of(fitted, tmp_path)
    (bundle.path / "trust" / "case_class.json").unlink()
    state = TrustFiles(bundle).state
    assert state.state == "damaged"
    assert "kind-noise" in state.message


def test_usual_images_are_rarely_flagged(model: TrustModel) -> None:
    flagged = [bool(assess(model, result(seed)).verdict.flags) for seed in range(200, 230)]
    assert np.mean(flagged) <= 0.3


def test_nothing_found_is_flagged(model: TrustModel) -> None:
    crop = result(43).crop
    nothing = torch.zeros_like(crop.probabilities)
    nothing[0] = 1.0
    found = model.assess(replace(crop, probabilities=nothing))
    assert STRUCTURE_MISSING in found.verdict.flags
    assert found.verdict.decision != "accept"
    assert np.isfinite(list(found.features.values())).all()


def test_everything_names_the_weights_and_holds_no_code(fitted: Fitted) -> None:
    bundle, _ = fitted
    sha256 = sha256_file(bundle.path / "models" / "model.pt")
    trust = bundle.path / "trust"
    assert {file.suffix for file in trust.iterdir()} <= {".json", ".safetensors"}
    for name in ("calibration.json", "reference.json", "case_class.json"):
        assert json.loads((trust / name).read_text())["weights_sha256"] == sha256
    with safe_open(trust / "critic.safetensors", "pt") as content:
        assert content.metadata()["weights_sha256"] == sha256
    assert not [finding for finding in verify(bundle.path) if finding.file.startswith("trust/")]


def test_without_a_calibration_there_is_no_judge(fitted: Fitted, tmp_path: Path) -> None:
    bundle = copy_of(fitted, tmp_path)
    (bundle.path / "trust" / "calibration.json").unlink()
    assert TrustModel.open(TrustFiles(bundle), fitted[1]) is None


@pytest.mark.parametrize("name", ["calibration.json", "reference.json", "case_class.json"])
def test_numbers_of_other_weights_are_refused(name: str, fitted: Fitted, tmp_path: Path) -> None:
    bundle = copy_of(fitted, tmp_path)
    path = bundle.path / "trust" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": "cd" * 32}))
    with pytest.raises(BundleError, match="belongs to"):
        TrustModel.open(TrustFiles(bundle), fitted[1])


@pytest.mark.parametrize(
    "name",
    ["calibration.json", "reference.json", "case_class.json", "volume_interval.json", "critic.safetensors"],
)
def test_damaged_files_are_refused(name: str, fitted: Fitted, tmp_path: Path) -> None:
    bundle = copy_of(fitted, tmp_path)
    path = bundle.path / "trust" / name
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BundleError, match="medseg trust fit"):
        TrustModel.open(TrustFiles(bundle), fitted[1])
    assert {finding.file for finding in verify(bundle.path) if finding.severity == "block"} == {f"trust/{name}"}


def test_a_second_hospital_keeps_the_error_net_and_gets_its_own_calibration(fitted: Fitted, tmp_path: Path) -> None:
    bundle = copy_of(fitted, tmp_path)
    before = {file.name: file.read_bytes() for file in (bundle.path / "trust").iterdir()}
    cases = [result(seed, fault) for seed in range(300, 312) for fault in (None, "noise")]  # enough to classify, too
    calibration = fit_trust(bundle, fitted[1], cases, options=TrustOptions(fine_tuning=None))
    after = {file.name: file.read_bytes() for file in (bundle.path / "trust").iterdir()}
    changed = {name for name in after if after[name] != before.get(name)}
    renewed = {"calibration.json", "volume_interval.json"}
    assert renewed <= changed <= {*renewed, "reference.json"}
    assert calibration.structures[0].n_patients == 12
    assert TrustModel.open(TrustFiles(bundle), fitted[1]) is not None


def test_a_fit_belongs_to_the_weights_that_the_config_names(fitted: Fitted, tmp_path: Path) -> None:
    bundle = copy_of(fitted, tmp_path)
    shutil.rmtree(bundle.path / "trust")
    (bundle.path / "models" / "model.pt").rename(bundle.path / "models" / "model_other.pt")
    config = read_config(bundle.path, "inference")
    config["handlers"][0]["load_path"] = "$@bundle_root + '/models/model_other.pt'"
    write_config(bundle.path, "inference", config)
    cases = [result(seed) for seed in range(300, 305)]
    fit_trust(bundle, fitted[1], cases, options=TrustOptions(fine_tuning=None))
    assert TrustFiles(Bundle.open(bundle.path)).state.state == "ready"


def test_too_few_patients_are_refused(fitted: Fitted, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="patients"):
        fit_trust(copy_of(fitted, tmp_path), fitted[1], [result(1), result(2)], options=TrustOptions(fine_tuning=None))


def test_an_error_net_is_not_asked_about_patients_it_was_tuned_on(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned_on: list[set[str]] = []
    asked: list[tuple[str, int]] = []
    cases = [result(seed, fault) for seed in range(6) for fault in (None, "cut")]
    patients = {id(case.crop): case.patient for case in cases}

    def tune(net: ErrorNet, some: list[TrustCase], _: FineTuning) -> ErrorNet:
        tuned_on.append({case.patient for case in some})
        net.number = len(tuned_on) - 1  # type: ignore[assignment]
        return net

    def features(crop: Crop, net: ErrorNet | None) -> CaseFeatures:
        if net is not None:
            asked.append((patients[id(crop)], net.number))  # type: ignore[arg-type]
        return case_features(crop, net)

    monkeypatch.setattr("medseg.trust.fit.fine_tune", tune)
    monkeypatch.setattr("medseg.trust.fit.case_features", features)
    options = TrustOptions(FitOptions(folds=2), FineTuning(), folds=3)
    fit_trust(copy_of(fitted, tmp_path), fitted[1], cases, options=options)
    assert len(asked) == len(cases)
    assert all(patient not in tuned_on[number] for patient, number in asked)
    assert tuned_on[-1] == set(patients.values())
