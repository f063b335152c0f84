"""Selection: what is chosen, and a true reason for everything that is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import UsageError
from medseg.ingest.record import SeriesRecord
from medseg.ingest.selection import parse_rules, plane_of, read_rules, select, selected_studies

AXIAL = ((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 5.0, 0.0), (0.0, 0.0, 0.0, 1.0))
SAGITTAL = ((0.0, 0.0, 5.0, 0.0), (-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def record(case: str, **values: Any) -> SeriesRecord:
    """An axial MR series of 20 slices, 5 mm apart."""
    known: dict[str, Any] = {
        "source": f"/{case}",
        "kind": "dicom",
        "files": (f"/{case}/1",),
        "study_uid_hash": "study",
        "modality": "MR",
        "description": "T1 post",
        "shape": (100, 80, 20),
        "spacing_mm": (1.0, 1.0, 5.0),
        "affine": AXIAL,
        "orientation": "LPS",
        "usable": True,
        "contrast": True,
        "series_number": 1,
    }
    return SeriesRecord(case_id=case, **(known | values))


def chosen(records: list[SeriesRecord], *rules: dict[str, Any]) -> dict[str, str | None]:
    return {choice.record.case_id: choice.channel for choice in select(records, parse_rules(list(rules)))}


def explanation(wrong: SeriesRecord, **rule: Any) -> str:
    """Why a record is not chosen beside one that is."""
    right = record("right")
    choices = select([right, wrong], parse_rules([{"channel": "t1", **rule}]))
    assert choices[0].channel == "t1", choices[0].explanation
    assert choices[1].channel is None
    assert choices[1].explanation.startswith("not chosen because")
    return choices[1].explanation


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        ({"modality": "CT"}, {"modality": "MR"}, "modality is CT, expected MR"),
        ({"modality": ""}, {"modality": ["MR", "CT"]}, "modality is not given, expected MR or CT"),
        (
            {"affine": SAGITTAL, "orientation": "PIR"},
            {"orientation": ["axial", "coronal"]},
            "slices are sagittal, expected axial or coronal",
        ),
        ({"shape": (100, 80, 9)}, {"slices": {"min": 10}}, "9 slices, expected at least 10"),
        (
            {"spacing_mm": (3.0, 1.0, 5.0)},
            {"spacing_mm": {"max": [2, 2, 6]}},
            "3×1×5 mm spacing, expected at most 2×2×6",
        ),
        ({"spacing_mm": (1.0, 1.0, 7.0)}, {"slice_spacing_mm": {"max": 6}}, "7 mm between slices, expected at most 6"),
        ({"shape": (10, 80, 20)}, {"fov_mm": {"min": 50}}, "10×80×100 mm field of view, expected at least 50"),
        ({"description": "FLAIR"}, {"description": "t1.*post"}, "description does not match 't1.*post'"),
        (
            {"description": "T1 post SUB"},
            {"exclude_description": "sub$"},
            "description matches 'sub$', which is excluded",
        ),
        ({"contrast": False}, {"contrast": True}, "without contrast agent, expected with"),
        ({"contrast": None}, {"contrast": True}, "not known to be with or without contrast agent"),
        ({"usable": False, "reason": "missing-slices"}, {}, "it was refused (missing-slices)"),
    ],
)
def test_every_condition_names_what_was_found_and_expected(
    change: dict[str, Any], rule: dict[str, Any], words: str
) -> None:
    assert words in explanation(record("wrong", **change), **rule)


def test_several_that_fit_are_not_guessed_between() -> None:
    choices = select([record("a"), record("b")], parse_rules([{"channel": "t1"}]))
    assert [choice.channel for choice in choices] == [None, None]
    assert '2 series satisfy the rule; say which with "take"' in choices[0].explanation


@pytest.mark.parametrize(("take", "expected"), [("first", "b"), ("latest", "c"), ("most-slices", "a")])
def test_take_decides(take: str, expected: str) -> None:
    records = [
        record("a", acquired=5.0, shape=(100, 80, 30)),
        record("b", acquired=4.0, series_number=9),
        record("c", acquired=6.0),
    ]
    assert [case for case, channel in chosen(records, {"channel": "x", "take": take}).items() if channel] == [expected]


def test_without_times_the_series_number_orders() -> None:
    records = [record("a", series_number=7), record("b", series_number=3, acquired=9.0)]
    assert chosen(records, {"channel": "x", "take": "latest"}) == {"a": "x", "b": None}


def test_one_series_serves_one_channel() -> None:
    rules = ({"channel": "t1", "description": "t1"}, {"channel": "any", "take": "first"})
    records = [record("a"), record("b", description="FLAIR", series_number=5)]
    assert chosen(records, *rules) == {"a": "t1", "b": "any"}


def test_each_study_is_chosen_from_by_itself() -> None:
    records = [record("a"), record("b", study_uid_hash="other"), record("c", study_uid_hash="third", modality="CT")]
    rules = parse_rules([{"channel": "t1", "modality": "MR"}])
    studies = selected_studies(select(records, rules), rules)
    assert [study.channels.get("t1") for study in studies] == [records[0], records[1], None]
    assert [study.missing for study in studies] == [(), (), ("t1",)]


def test_files_without_a_study_are_compared_within_their_folder() -> None:
    flair = record("flair", kind="nifti", study_uid_hash="", source="/p1/flair.nii", description="")
    assert [choice.study for choice in select([flair], parse_rules([{"channel": "x"}]))] == ["/p1"]


def test_planes() -> None:
    assert plane_of(record("a")) == "axial"
    assert plane_of(record("a", orientation="LSA")) == "coronal"
    assert plane_of(record("a", orientation="")) is None


@given(order=st.permutations(range(4)), take=st.sampled_from(["first", "latest", "most-slices"]))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_records_does_not_matter(order: list[int], take: str) -> None:
    records = [record(name, acquired=float(n % 2), files=(name,)) for n, name in enumerate("abcd")]
    rule = {"channel": "x", "take": take}
    assert chosen([records[n] for n in order], rule) == chosen(records, rule)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected"),
        ([], "expected"),
        ([{"channel": "a"}, {"channel": "a"}], "a name of its own"),
        ([{"modality": "MR"}], "'channel' is None"),
        ([{"channel": "a", "modalty": "MR"}], "unknown modalty; known are"),
        ([{"channel": "a", "orientation": "oblique"}], "expected one of axial, coronal, sagittal"),
        ([{"channel": "a", "take": "best"}], "expected one of only"),
        ([{"channel": "a", "slices": 5}], "expected"),
        ([{"channel": "a", "spacing_mm": {"max": [1, 2]}}], "three for R, A, S"),
        ([{"channel": "a", "description": "("}], "no regular expression"),
        ([{"channel": "a", "contrast": "yes"}], "expected true or false"),
        ([{"channel": "a", "modality": 3}], "a name or a list of names"),
    ],
)
def test_rules_that_are_not_understood_are_refused(content: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_rules(content)


def test_rules_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"rules": [{"channel": "t1", "slices": {"min": 3, "max": 9}}]}))
    (rule,) = read_rules(path)
    assert rule.slices.holds([3])
    assert not rule.slices.holds([10])
    assert str(rule.slices) == "at least 3 and at most 9"
    path.write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        read_rules(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_rules(tmp_path / "missing.json")


def test_a_chosen_record_is_the_very_record() -> None:
    original = record("a")
    (choice,) = select([original], parse_rules([{"channel": "x"}]))
    assert choice.record is original
    assert replace(original) == original
