"""What a bundle says of its training fits its weights, or `verify` says so; which images it has learnt from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medseg.bundle import Bundle, TrainingData, trained_on
from medseg.bundle.training_run import TRAINING_RUN, UNTRAINED, TrainingRun
from medseg.sharing import verify
from medseg.sharing.model_card import model_card
from tests.bundle.sample import read_config, write_config

RUN = TrainingRun(
    weights_sha256="", model="best", epoch=3, epochs=5, iterations=50, fold=1, cases=8, held_out_cases=2,
    figures={"dice": 0.81234, "hd95_mm": 2.5}, images=("a" * 64,),
)  # fmt: skip


@pytest.fixture
def planned(bundle: Path) -> Path:
    """A bundle that says what `bundle new` writes, with weights."""
    metadata = read_config(bundle, "metadata")
    metadata.update(eval_metrics={}, changelog={"0.1.0": f"planned from the data, {UNTRAINED}"})
    write_config(bundle, "metadata", metadata)
    readme = f"# Sphere\n\n<!-- training -->\n{UNTRAINED.capitalize()}.\n<!-- /training -->\n"
    (bundle / "docs" / "README.md").write_text(readme)
    return bundle


def _publish(folder: Path, run: TrainingRun = RUN) -> Bundle:
    opened = Bundle.open(folder)
    weights = hashlib.sha256((folder / "models" / "model.pt").read_bytes()).hexdigest()
    replace(run, weights_sha256=weights).write(opened)
    return Bundle.open(folder)


def _found(folder: Path) -> set[tuple[str, str]]:
    return {(finding.severity, finding.file) for finding in verify(folder)}


def test_verify_notices_weights_that_nobody_accounts_for(planned: Path) -> None:
    assert {("block", "configs/metadata.json"), ("warn", "docs/README.md")} <= _found(planned)


def test_a_published_run_stands_in_metadata_readme_and_model_card(planned: Path) -> None:
    opened = _publish(planned)
    assert opened.version == "0.1.0", "what was never trained is the first version"
    assert UNTRAINED not in json.dumps(opened.metadata)
    assert opened.metadata["eval_metrics"] == {
        "cases": "fold 1 with 2 cases held out, which chose the epoch",
        "dice": 0.8123,
        "hd95_mm": 2.5,
    }
    readme = (planned / "docs" / "README.md").read_text()
    assert "Trained for 5 epochs on 8 cases" in readme
    assert UNTRAINED not in readme.lower()
    assert "| dice | 0.8123 |" in model_card(opened)
    assert ("block", "configs/metadata.json") not in _found(planned)
    assert TrainingRun.read(opened) == replace(RUN, weights_sha256=TrainingRun.read(opened).weights_sha256)  # type: ignore[union-attr]


def test_new_weights_are_a_new_version_and_old_figures_go(planned: Path) -> None:
    _publish(planned)
    opened = _publish(planned, replace(RUN, fold=-1, figures={"dice": 0.99}, model="final"))
    assert opened.version == "0.2.0"
    assert set(opened.metadata["changelog"]) == {"0.1.0", "0.2.0"}
    assert opened.metadata["eval_metrics"] == {"cases": "none held out"}, "figures on training cases are none"


def test_a_record_of_other_weights_is_noticed(planned: Path) -> None:
    _publish(planned)
    content = json.loads((planned / TRAINING_RUN).read_text())
    (planned / TRAINING_RUN).write_text(json.dumps({**content, "weights_sha256": "0" * 64}))
    assert ("block", TRAINING_RUN) in _found(planned)
    for damaged in ("{", "[]", "{}"):
        (planned / TRAINING_RUN).write_text(damaged)
        assert ("block", TRAINING_RUN) in _found(planned)


def _sum(digit: str) -> str:
    return digit * 64


def _state(bundle: Path, content: Any) -> None:
    (bundle / "configs" / "datalist.json").write_text(json.dumps(content))


def test_every_training_case_counts_and_no_other(bundle: Path) -> None:
    items = [
        {"image": "a.nii.gz", "fold": 0, "sha256": {"image": _sum("a"), "label": _sum("b")}},
        {"case_id": "c", "fold": 1, "sha256": {"image": [_sum("c"), _sum("d")]}},  # channels; no label, no names
        {"image": "e.nii.gz", "fold": 1},
    ]
    held_back = [{"image": "f.nii.gz", "sha256": {"image": _sum("f")}}]
    _state(bundle, {"training": items, "validation": held_back, "test": held_back})
    assert trained_on(bundle) == TrainingData(frozenset(map(_sum, "acd")), frozenset({_sum("b")}))


@pytest.mark.parametrize("run", [{"fold": 1}, {"configuration": {"fold": 1}}, {"fold": -1}, {}])
def test_the_fold_that_was_held_out_is_new_to_the_network(bundle: Path, run: dict[str, Any]) -> None:
    _state(bundle, {"training": [{"fold": f, "sha256": {"image": _sum(str(f))}} for f in range(3)]})
    (bundle / "docs").mkdir(exist_ok=True)
    (bundle / "docs" / "training_run.json").write_text(json.dumps(run))
    found = trained_on(bundle)
    assert found is not None
    assert found.images == {
        _sum(d) for d in ("02" if 1 in (run.get("fold"), *run.get("configuration", {}).values()) else "012")
    }


def test_a_run_that_lists_what_it_was_trained_on_is_believed(bundle: Path) -> None:
    _state(bundle, {"training": [{"fold": 0, "sha256": {"image": _sum("0")}}]})
    (bundle / "docs").mkdir(exist_ok=True)
    run = {"fold": 0, "images": [_sum("a"), "no sum"], "labels": [_sum("b")]}
    (bundle / "docs" / "training_run.json").write_text(json.dumps(run))
    assert trained_on(bundle) == TrainingData(frozenset({_sum("a")}), frozenset({_sum("b")}))


@pytest.mark.parametrize("content", [{}, {"training": []}, {"training": [{"image": "a"}]}, [], {"training": "x"}])
def test_a_bundle_without_sums_tells_nothing(bundle: Path, content: Any) -> None:
    _state(bundle, content)
    assert trained_on(bundle) is None
    (bundle / "configs" / "datalist.json").write_text("{")
    assert trained_on(bundle) is None
    (bundle / "configs" / "datalist.json").unlink()
    assert trained_on(bundle) is None
