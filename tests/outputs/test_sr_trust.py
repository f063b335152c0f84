"""What a report says of trust, read by nothing but pydicom and judged by dciodvfy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from medseg import outputs
from medseg.results.verdict import Interval, StructureQuality, Verdict
from tests.outputs.series import CODES, FakeBundle, blobs, read, write_series
from tests.outputs.validators import errors, needs_validator

SHAPE = (9, 8, 6)
FLAGS = ("far-from-training-data", "small")
HIPPOCAMPUS = StructureQuality(1, "hippocampus", 0.8125, 0.7)
TRUST = Verdict("review", (HIPPOCAMPUS, StructureQuality(3, "tumour", 0.66, 0.61234)), FLAGS)
WHOLE = "Whole segmentation result"


@pytest.fixture
def report(tmp_path: Path, request: pytest.FixtureRequest) -> Dataset:
    return read(write_report(tmp_path, request.param))


def write_report(folder: Path, trust: Verdict | None) -> Path:
    record, geometry = write_series(folder / "in", np.diag([0.8, 1.1, 2.0, 1.0]), SHAPE)
    options = outputs.WriteOptions(trust=trust)
    return outputs.write("sr", blobs(SHAPE), geometry, record, FakeBundle(), folder / "sr.dcm", options=options)


def test_a_part_of_a_structure_is_no_side(tmp_path: Path) -> None:
    codes = {**CODES, 1: {**CODES[1], "modifier": ["255551008", "SCT", "Posterior"]}}
    one_sided = {**codes, 1: {key: value for key, value in codes[1].items() if key != "laterality"}}
    record, geometry = write_series(tmp_path / "in", np.diag([0.8, 1.1, 2.0, 1.0]), SHAPE)
    for number, (given, named) in enumerate(
        ((codes, {"Laterality", "Topographical modifier"}), (one_sided, {"Topographical modifier"}))
    ):
        path = tmp_path / f"{number}.dcm"
        report = read(outputs.write("sr", blobs(SHAPE), geometry, record, FakeBundle(label_codes=given), path))
        (site,) = [item for item in next(_groups(report)).ContentSequence if _name(item) == "Finding Site"]
        assert {_name(item) for item in site.ContentSequence} == named


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning) if "ConceptNameCodeSequence" in item else ""


def _groups(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", []):
        if _name(child) == "Measurement Group":
            yield child
        else:
            yield from _groups(child)


def stated(report: Dataset) -> dict[str, dict[str, list[Any]]]:
    """What each measurement group states of trust, by the meaning of its finding."""
    found: dict[str, dict[str, list[Any]]] = {}
    for group in _groups(report):
        values: dict[str, list[Any]] = {}
        finding = ""
        for item in group.ContentSequence:
            if _name(item) == "Finding":
                finding = str(item.ConceptCodeSequence[0].CodeMeaning)
            elif item.ConceptNameCodeSequence[0].get("CodingSchemeDesignator") != "99MEDSEG":
                continue
            elif item.ValueType == "NUM":
                (value,) = item.MeasuredValueSequence
                assert value.MeasurementUnitsCodeSequence[0].CodeValue == "1"
                values.setdefault(_name(item), []).append(float(value.NumericValue))
            else:
                values.setdefault(_name(item), []).append(str(item.ConceptCodeSequence[0].CodeMeaning))
        found[finding] = values
    return found


def _figures(dice: float, low: float, **more: list[str]) -> dict[str, list[Any]]:
    named: dict[str, list[Any]] = {
        "Predicted Dice coefficient": [dice],
        "Lower bound of Dice": [low],
        "Trust verdict": ["Review"],
    }
    return {**named, **{key.replace("_", " "): value for key, value in more.items()}}


@pytest.mark.parametrize("report", [TRUST], indirect=True)
def test_each_structure_and_the_whole_result_state_their_own_figures(report: Dataset) -> None:
    assert stated(report) == {
        "Hippocampus structure": _figures(0.8125, 0.7),
        "Neoplasm": _figures(0.66, 0.6123),
        WHOLE: _figures(0.7362, 0.6123, Trust_flag=list(FLAGS)),
    }


@pytest.mark.parametrize("report", [Verdict("review", (HIPPOCAMPUS,))], indirect=True)
def test_a_structure_that_was_not_judged_borrows_no_figures(report: Dataset) -> None:
    assert stated(report)["Neoplasm"] == {"Trust verdict": ["Review"]}


@pytest.mark.parametrize("report", [Verdict.not_assessed("too-large")], indirect=True)
def test_a_case_that_could_not_be_judged_says_so_without_figures(report: Dataset) -> None:
    assert stated(report)[WHOLE] == {"Trust verdict": ["Review"], "Trust flag": ["too-large"]}


@pytest.mark.parametrize("report", [None], indirect=True)
def test_without_trust_nothing_is_said(report: Dataset) -> None:
    assert set(stated(report)) == {"Hippocampus structure", "Neoplasm"}
    assert not any(stated(report).values())


BOUNDED = Verdict(
    "review",
    (StructureQuality(1, "hippocampus", 0.8, 0.7, Interval(0.875, 1.25, 0.9)), StructureQuality(3, "tumour", 0.6, 0.5)),
)


@pytest.mark.parametrize("report", [BOUNDED], indirect=True)
def test_a_volume_states_its_interval_as_the_uncertainty_of_a_measurement(report: Dataset) -> None:
    """TID 310: how far the range goes above and below, in the unit of the measurement, under SNOMED's names."""
    bounded, other, _ = (
        next(item for item in group.ContentSequence if _name(item) == "Volume") if number < 2 else None
        for number, group in enumerate(_groups(report))
    )
    assert bounded is not None
    assert other is not None
    (measured,) = bounded.MeasuredValueSequence
    volume_ml, ranges, texts = float(measured.NumericValue), {}, []
    for item in bounded.ContentSequence:
        if item.ValueType != "NUM":
            texts += [str(item.TextValue)] if item.ValueType == "TEXT" else []
            continue
        (value,), (name,) = item.MeasuredValueSequence, item.ConceptNameCodeSequence
        assert item.RelationshipType == "HAS PROPERTIES"
        assert value.MeasurementUnitsCodeSequence[0].CodeValue == "ml"
        ranges[name.CodingSchemeDesignator, name.CodeValue] = float(value.NumericValue)
    assert ranges == {
        ("SCT", "371886008"): pytest.approx(0.25 * volume_ml, rel=1e-5),
        ("SCT", "371885007"): pytest.approx(0.125 * volume_ml, rel=1e-5),
    }
    assert "conformal interval, holds for 90% of references" in texts
    assert not [item for item in other.get("ContentSequence", []) if item.ValueType == "NUM"]


@pytest.mark.parametrize("report", [Verdict("review", BOUNDED.structures, ("unlike-training",))], indirect=True)
def test_a_flagged_result_states_volumes_without_intervals(report: Dataset) -> None:
    assert "measurement uncertainty" not in str(report)


@needs_validator
@pytest.mark.parametrize("trust", [TRUST, BOUNDED, Verdict("reject", flags=("too-large",))])
def test_dciodvfy_finds_no_error(tmp_path: Path, trust: Verdict) -> None:
    assert errors(write_report(tmp_path, trust)) == set()
