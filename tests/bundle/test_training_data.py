"""Which images a bundle has learnt from, by what it states itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medseg.bundle import TrainingData, trained_on
from tests.bundle.sample import write_bundle


def _sum(digit: str) -> str:
    return digit * 64


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path)


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
