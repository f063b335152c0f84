"""What is accepted without references, and how good it is: precision, share, and both groups' figures, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medseg.cli._evaluation_tables import show_evaluation
from medseg.evaluation import Bootstrap, Options, evaluate_folders
from medseg.evaluation.accepted import Share, acceptances
from medseg.evaluation.case import StructureResult
from medseg.evaluation.tables import read_summary
from medseg.report import write_report
from medseg.results.case_result import CaseResult, StructureVolume
from medseg.results.run_report import RunReport
from medseg.results.verdict import Decision, DiscriminatorVerdict, Interval, RealShare, StructureQuality, Verdict
from tests.evaluation.label_folders import LABELS, two_folders


def _case(case_id: str, real: float | None, decision: Decision | None, **more: Any) -> CaseResult:
    """A case whose two structures are real to this share and whole, and of which trust says this."""
    shares = (RealShare(1, "liver", real, 10), RealShare(2, "spleen", 1.0, 10))
    trust = None if decision is None else Verdict(decision, (StructureQuality(1, "liver", 0.9, 0.85),))
    return CaseResult(
        case_id, trust=trust, discriminator=None if real is None else DiscriminatorVerdict(shares), **more
    )


def _rows(case_id: str, dice: tuple[float, float], hd95: float | None) -> list[StructureResult]:
    return [
        StructureResult(label, name, {"dice": value, "hd95_mm": hd95 if label == 1 else None}, case_id=case_id)
        for (label, name), value in zip(((1, "liver"), (2, "spleen")), dice, strict=True)
    ]


def test_each_judge_is_held_to_what_it_accepts() -> None:
    judged = {
        "good": _case("good", 0.9, "accept"),
        "fair": _case("fair", 0.5, "review"),
        "poor": _case("poor", 0.6, "accept"),
        "bad": _case("bad", 0.49, "reject"),
        "seen": _case("seen", 1.0, "accept"),
    }
    dice = {"good": (0.9, 0.95), "fair": (0.85, 0.81), "poor": (0.9, 0.5), "bad": (0.3, 0.2), "seen": (1.0, 1.0)}
    distances = {"good": 1.0, "fair": 2.0, "poor": 6.0, "bad": None, "seen": 0.0}
    rows = [row for case in judged for row in _rows(case, dice[case], distances[case])]
    found = acceptances(judged, rows, bundle_dice=0.9, learnt=["seen"])
    assert found is not None
    assert found["left_out_as_trained_on"] == 1
    alone, calibrated, both = found["judges"]
    assert (alone["judge"], calibrated["judge"], both["judge"]) == ("discriminator", "calibrated", "both")
    assert (alone["accepted"]["count"], alone["accepted"]["of"]) == (3, 4), "half of the patches is enough"
    assert {limit: one["count"] for limit, one in alone["good"].items()} == {"0.8": 2, "0.9": 1}, "the worst structure"
    assert alone["dice"]["accepted"]["mean"] == pytest.approx((0.925 + 0.83 + 0.7) / 3)
    assert alone["dice"]["others"] == {"n": 1, "mean": pytest.approx(0.25), "std": None}
    assert alone["hd95_mm"]["accepted"]["n"] == 3
    assert alone["hd95_mm"]["others"] == {"n": 0, "mean": None, "std": None}, "what was missed has no distance"
    assert (calibrated["accepted"]["count"], calibrated["good"]["0.8"]["count"]) == (2, 1), "review is not accepted"
    assert (both["accepted"]["count"], both["good"]["0.8"]["of"]) == (2, 2)


def test_intervals_are_exact_and_what_was_not_judged_is_no_row() -> None:
    assert Share.counted(19, 20) == Share(19, 20, 0.7513, 0.9987)
    assert Share.counted(0, 0) == Share(0, 0, 0.0, 1.0)
    rows = _rows("a", (0.9, 0.9), 1.0)
    assert acceptances({"a": _case("a", None, None)}, rows) is None
    assert acceptances({}, rows) is None
    found = acceptances({"a": _case("a", None, "accept")}, rows)
    assert found is not None
    assert [one["judge"] for one in found["judges"]] == ["calibrated"]
    assert list(found["judges"][0]["good"]) == ["0.8"]
    nothing = acceptances({"a": _case("a", 1.0, None)}, rows, learnt=["a"])
    assert nothing is not None
    assert nothing["judges"][0]["accepted"]["of"] == 0


def test_an_evaluation_of_a_judged_run_says_what_was_accepted(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    names = sorted(path.name.removesuffix("_seg.nii.gz").removesuffix(".nii.gz") for path in predictions.iterdir())
    cases = tuple(
        _case(name, 0.2 if name == "missed" else 0.9, "accept", outputs=(path.name,))
        for name, path in zip(names, sorted(predictions.iterdir()), strict=True)
    )
    for path, case in zip(sorted(predictions.iterdir()), cases, strict=True):
        path.rename(predictions / case.label_map)
    run = RunReport(predictions, tuple(replace(case, outputs=(case.label_map,)) for case in cases))
    replace(run, trust={"state": "ready", "thresholds": {"accept": 0.7, "reject": 0.5}}).write()
    options = Options(bootstrap=Bootstrap(resamples=50))
    result = evaluate_folders(predictions, references, tmp_path / "out", labels=LABELS, options=options)
    accepted = read_summary(tmp_path / "out")["accepted"]
    assert accepted == json.loads(json.dumps(result.summary["accepted"]))
    alone, calibrated, both = accepted["judges"]
    assert (alone["accepted"]["count"], calibrated["accepted"]["count"], both["accepted"]["count"]) == (2, 3, 2)
    assert list(alone["good"]) == ["0.7", "0.8"]
    assert alone["dice"]["accepted"]["mean"] > alone["dice"]["others"]["mean"]
    console = Console(record=True, width=160, force_terminal=False)
    show_evaluation(console, result)
    text = console.export_text()
    assert "what was accepted without references" in text
    assert "2/3 (0.09, 0.99)" in text
    page = write_report(tmp_path / "out").read_text()
    assert "Accepted without references" in page
    assert "2 of 3" in page
    assert "liver 20% real" in page


def test_references_are_counted_that_lie_in_the_interval_of_their_volume(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    names = {path: path.name.removesuffix("_seg.nii.gz").removesuffix(".nii.gz") for path in predictions.iterdir()}
    wide, narrow = Interval(0.0, 1e3, 0.9), Interval(0.0, 1e-6, 0.9)
    cases = []
    for place, (path, name) in enumerate(sorted(names.items())):
        structures = (StructureVolume(1, LABELS[1], 1.0, (), narrow if place == 0 else wide),)
        cases.append(CaseResult(name, structures=structures, trained_on=place == 1))
        path.rename(predictions / cases[-1].label_map)
    RunReport(predictions, tuple(replace(case, outputs=(case.label_map,)) for case in cases)).write()
    options = Options(bootstrap=Bootstrap(resamples=50))
    result = evaluate_folders(predictions, references, tmp_path / "out", labels=LABELS, options=options)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["volume_intervals"]
    counts = {name: (share["count"], share["of"]) for name, share in found["structures"].items()}
    assert found["coverage"] == 0.9
    assert counts == {LABELS[1]: (len(cases) - 2, len(cases) - 1)}, "without the one that was learnt from"
    console = Console(record=True, width=80, force_terminal=False)
    show_evaluation(console, result)
    assert "reference volumes in their interval, 90% expected" in console.export_text()


def test_a_run_without_judgements_has_no_such_table(tmp_path: Path) -> None:
    predictions, references = two_folders(tmp_path)
    options = Options(bootstrap=Bootstrap(resamples=50))
    result = evaluate_folders(predictions, references, tmp_path / "out", labels=LABELS, options=options)
    assert not {"accepted", "volume_intervals"} & set(result.summary)
    assert "Accepted without references" not in write_report(tmp_path / "out").read_text()
