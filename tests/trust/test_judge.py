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
from medseg.sharing import verify
from medseg.trust.error_net import FineTuning
from medseg.trust.fault_classifier import USUAL
from medseg.trust.fit import TrustCase, TrustOptions, dice_of, fit_trust
from medseg.trust.trust_model import NOTHING_FOUND, TrustModel, Verdict
from tests.trust.conftest import SIDE, result

Fitted = tuple[Bundle, nn.Module]


@pytest.fixture
def judge(fitted: Fitted) -> TrustModel:
    found = TrustModel.open(*fitted)
    assert found is not None
    return found


def copy_of(fitted: Fitted, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(fitted[0].path, tmp_path / "copy"))


def assess(judge: TrustModel, case: TrustCase) -> Verdict:
    return judge.assess(case.image, case.probabilities, case.spacing_mm)


def test_a_good_result_is_told_from_a_poor_one(judge: TrustModel) -> None:
    true, found = [], []
    for seed in range(40, 48):
        for kind in ("own", "cut", "shift"):
            case = result(seed, kind)
            true.append(dice_of(case, 1) or 0.0)
            found.append(assess(judge, case).estimates[1].predicted_dice)
    assert np.corrcoef(true, found)[0, 1] > 0.7
    assert np.abs(np.array(true) - found).mean() < 0.7 * np.abs(np.array(true) - np.mean(true)).mean()


def test_doubt_lies_where_the_result_is_wrong(judge: TrustModel) -> None:
    inside, outside = [], []
    for seed in range(40, 46):
        case = result(seed, "shift")
        wrong = (case.probabilities.numpy().argmax(0) == 1) != (case.reference == 1)
        doubt = assess(judge, case).doubt
        assert doubt.shape == (SIDE,) * 3
        assert doubt.min() >= 0.0
        assert doubt.max() <= 1.0
        if wrong.any():
            inside.append(doubt[wrong].mean())
            outside.append(doubt[~wrong].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


def test_a_box_round_the_structure_is_judged_as_the_whole_image(judge: TrustModel) -> None:
    case = result(41)
    wide = torch.nn.functional.pad(case.image, (30, 30, 30, 30, 30, 30), value=float(case.image.min()))
    sure = torch.nn.functional.pad(case.probabilities, (30, 30, 30, 30, 30, 30))
    sure[0] = 1.0 - sure[1]
    box = (slice(None), *(slice(14, 70),) * 3)
    whole, part = judge.assess(wide, sure, (1, 1, 1)), judge.assess(wide[box], sure[box], (1, 1, 1))
    assert part.estimates == whole.estimates
    assert part.scores == pytest.approx(dict(whole.scores))
    np.testing.assert_array_equal(part.doubt, whole.doubt[box[1:]])


def test_an_image_of_something_else_is_flagged_and_not_accepted(judge: TrustModel) -> None:
    case = result(42)
    stripes = torch.sin(torch.arange(SIDE) * 1.5).expand(1, SIDE, SIDE, SIDE).contiguous() * 1.4
    strange = assess(judge, replace(case, image=stripes))
    assert "unlike-training" in strange.flags
    assert strange.verdict != "accept"


def test_a_noisy_image_is_told_from_a_usual_one(judge: TrustModel) -> None:
    for kind, expected in (("own", USUAL), ("noise", "noise")):
        told = [assess(judge, result(seed, kind)).case_class for seed in range(40, 46)]
        assert np.mean([probability[expected] for probability in told]) > 0.7


def test_usual_images_are_rarely_flagged(judge: TrustModel) -> None:
    flagged = [bool(assess(judge, result(seed)).flags) for seed in range(200, 230)]
    assert np.mean(flagged) <= 0.3


def test_nothing_found_is_flagged(judge: TrustModel) -> None:
    case = result(43)
    nothing = torch.zeros_like(case.probabilities)
    nothing[0] = 1.0
    trust = judge.assess(case.image, nothing, (1.0, 1.0, 1.0))
    assert NOTHING_FOUND in trust.flags
    assert trust.verdict != "accept"
    assert np.isfinite(list(trust.scores.values())).all()


def test_shapes_that_do_not_fit_are_refused(judge: TrustModel) -> None:
    case = result(44)
    with pytest.raises(UsageError, match="on one grid"):
        judge.assess(case.image[:, 1:], case.probabilities, (1, 1, 1))


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
    assert TrustModel.open(bundle, fitted[1]) is None


@pytest.mark.parametrize("name", ["calibration.json", "reference.json", "case_class.json"])
def test_numbers_of_other_weights_are_refused(name: str, fitted: Fitted, tmp_path: Path) -> None:
    bundle = copy_of(fitted, tmp_path)
    path = bundle.path / "trust" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": "cd" * 32}))
    with pytest.raises(BundleError, match="belongs to"):
        TrustModel.open(bundle, fitted[1])


@pytest.mark.parametrize("name", ["calibration.json", "reference.json", "case_class.json", "critic.safetensors"])
def test_damaged_files_are_refused(name: str, fitted: Fitted, tmp_path: Path) -> None:
    bundle = copy_of(fitted, tmp_path)
    path = bundle.path / "trust" / name
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BundleError, match="medseg trust fit"):
        TrustModel.open(bundle, fitted[1])


def test_a_second_hospital_keeps_the_critic_and_gets_its_own_calibration(fitted: Fitted, tmp_path: Path) -> None:
    bundle = copy_of(fitted, tmp_path)
    before = {file.name: file.read_bytes() for file in (bundle.path / "trust").iterdir()}
    cases = [result(seed, kind) for seed in range(300, 312) for kind in ("own", "noise")]  # enough for a head too
    calibration = fit_trust(bundle, fitted[1], cases, options=TrustOptions(finishing=None))
    after = {file.name: file.read_bytes() for file in (bundle.path / "trust").iterdir()}
    changed = {name for name in after if after[name] != before.get(name)}
    assert {"calibration.json"} <= changed <= {"calibration.json", "reference.json"}
    assert calibration.structures[0].n_patients == 12
    assert TrustModel.open(bundle, fitted[1]) is not None


def test_too_few_patients_are_refused(fitted: Fitted, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="patients"):
        fit_trust(copy_of(fitted, tmp_path), fitted[1], [result(1), result(2)], options=TrustOptions(finishing=None))


def test_a_critic_is_not_asked_about_patients_it_was_finished_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from medseg.trust import fit as fitting

    seen: list[set[str]] = []
    asked: list[tuple[str, int]] = []

    def finish(number: int, cases: list[TrustCase], _: FineTuning) -> int:
        seen.append({case.patient for case in cases})
        return number

    def score(case: TrustCase, number: int) -> dict[str, float]:
        asked.append((case.patient, number))
        return {}

    monkeypatch.setattr(fitting, "start_critic", lambda *_: len(seen))
    monkeypatch.setattr(fitting, "finish", finish)
    monkeypatch.setattr(fitting, "_score", score)
    cases = [result(seed, kind) for seed in range(6) for kind in ("own", "cut")]
    fitting._scored(None, cases, TrustOptions(finishing=FineTuning(), groups=3))  # type: ignore[arg-type]
    assert len(asked) == len(cases)
    assert all(patient not in seen[number] for patient, number in asked)
    assert seen[-1] == {case.patient for case in cases}
