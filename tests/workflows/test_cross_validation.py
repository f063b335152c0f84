"""Every case is scored by a network that has not seen it, and the bundle says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medseg.bundle import Bundle
from medseg.bundle.training_run import CROSS_VALIDATION, TrainingRun, record_figures
from medseg.cli import crossval as command
from medseg.cli.main import app
from medseg.errors import UsageError
from medseg.workflows import CrossValidation, cross_validate
from tests.training.bundles import SMALL, copy_bundle, write_data

assert command

pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader"),  # MONAI tries all its readers in LoadImaged
    pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class"),  # two steps miss things
]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy_bundle(tmp_path)


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return write_data(tmp_path / "data")


def _run(bundle: Path, datalist: Path, **options: Any) -> CrossValidation:
    return cross_validate(bundle, bundle.parent / "out", datalist=datalist, overrides=SMALL, device="cpu", **options)


def test_each_case_is_scored_by_the_network_that_has_not_seen_it(
    bundle: Path, datalist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").write_bytes(b"weights of all cases")
    result = _run(bundle, datalist)
    learnt = {}
    for fold in result.folds:
        run = TrainingRun.read(Bundle.open(result.output / f"fold{fold}" / bundle.name))
        assert run is not None
        assert (run.fold, run.model, run.cases) == (fold, "final", 2)
        learnt[fold] = set(run.images)
        trained = json.loads((result.output / f"fold{fold}" / "training" / "run.json").read_text())
        assert trained["result"]["judge"] is None, "no figure of the table is the judge's"
        labelled = json.loads((result.output / f"fold{fold}" / "results" / "run.json").read_text())
        assert (labelled["trust"]["state"], [case["trust"] for case in labelled["cases"]]) == ("off", [None, None])
        predicted = {path.name for path in (result.output / f"fold{fold}" / "results").glob("*_seg.nii.gz")}
        assert predicted == {f"image{number}_seg.nii.gz" for number in range(4) if number % 2 == fold}
    assert learnt[0].isdisjoint(learnt[1])
    assert {row.case_id for row in result.evaluation.results} == {f"image{number}" for number in range(4)}
    assert result.evaluation.complete
    assert (bundle / "models" / "model.pt").read_bytes() == b"weights of all cases"

    recorded = json.loads((bundle / CROSS_VALIDATION).read_text())
    assert (recorded["n_cases"], recorded["folds"]) == (4, [0, 1])
    assert set(recorded["subgroups"]["groups"]) == {"0", "1"}
    assert "image0" not in (bundle / CROSS_VALIDATION).read_text(), "no case is named"
    table = (bundle / "docs" / "cross_validation.md").read_text()
    assert "4 cases in 2 folds" in table
    figures = Bundle.open(bundle).metadata["eval_metrics"]
    assert "each by a network that has not seen it" in figures["cross_validation"]["cases"]

    monkeypatch.setattr("medseg.training.train_bundle", lambda *_, **__: pytest.fail("trained again"))
    again = _run(bundle, datalist)
    assert again.evaluation.summary["structures"] == result.evaluation.summary["structures"]
    with pytest.raises(UsageError, match="another datalist or other --set values"):
        cross_validate(bundle, bundle.parent / "out", datalist=datalist, overrides={**SMALL, "epochs": 3}, device="cpu")


def test_new_weights_keep_the_table_only_under_the_same_configuration(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.metadata["eval_metrics"] = {"cross_validation": {"dice": 0.8}}
    record_figures(opened, "trained", {}, "none")
    assert "cross_validation" not in opened.metadata["eval_metrics"], "nobody knows what it is of"


def test_folds_that_are_not_there_are_refused(bundle: Path, datalist: Path) -> None:
    with pytest.raises(UsageError, match=r"folds \[0, 1\] .* not \[7\]"):
        _run(bundle, datalist, folds=[0, 7])
    content = json.loads(datalist.read_text())
    for item in content["training"]:
        item["fold"] = 0
    datalist.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="at least two"):
        _run(bundle, datalist)
    done = CliRunner().invoke(app, ["crossval", str(bundle), "--folds", "0,x"])
    assert done.exit_code == 2
    assert "expected numbers" in done.stderr


def test_folds_of_another_configuration_are_not_mixed_in(bundle: Path, datalist: Path) -> None:
    other = bundle.parent / "out" / "fold0" / bundle.name / "configs"
    other.mkdir(parents=True)
    for path in (bundle / "configs").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((other / "train.json").read_text())
    (other / "train.json").write_text(json.dumps({**config, "epochs": 1}))
    with pytest.raises(UsageError, match="another configs/train"):
        _run(bundle, datalist)
