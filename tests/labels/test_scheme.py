"""Tables of labels: both traditions are read, and what is no table of structures is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from medseg.errors import UsageError
from medseg.labels import LabelScheme, parse_mapping, parse_names, read_label_table, read_mapping, renumbering_advice


@pytest.mark.parametrize(
    "declared",
    [
        {"0": "background", "1": "liver", "2": "tumour"},
        {"2": "tumour", "0": "background", "01": "liver"},
        {"background": 0, "tumour": 2, "liver": 1},
        {"background": 0, "tumour": [2], "liver": 1},
    ],
)
def test_both_traditions_say_the_same(declared: dict[str, Any]) -> None:
    assert list(read_label_table(declared, "labels").items()) == [(0, "background"), (1, "liver"), (2, "tumour")]


@pytest.mark.parametrize("declared", [None, {}, []])
def test_nothing_declared(declared: Any) -> None:
    assert read_label_table(declared, "labels") == {}


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, r"the region 'whole' \(1 and 2\).*not supported"),
        ({"background": 0, "whole": []}, "the region 'whole'"),
        ({"background": 0, "liver": 1, "ignore": 2}, r"'ignore' \(value 2\).*--map 2=0"),
        ({"1": "liver", "2": "Ignore"}, r"'Ignore' \(value 2\)"),
        ({"liver": 1, "tumour": 1}, "two names for the value 1, 'liver' and 'tumour'"),
        ({"1": "liver", "01": "tumour"}, "two names for the value 1"),
        ({"liver": "one"}, "gives no name to a value"),
        ({"liver": "1"}, "gives no name to a value"),
        ({"liver": 1.5}, "gives no name to a value"),
        ({"liver": True}, "gives no name to a value"),
        ({"1": None}, "gives no name to a value"),
        ({"1": {"name": "liver"}}, "gives no name to a value"),
        ({"liver": -1}, "to -1; labels are whole numbers from 0 to 65535"),
        ({"-1": "liver"}, "to -1; labels"),
        ({"liver": 65536}, "to 65536; labels"),
        ({"1": " "}, "no name for the value 1"),
        ({"background": 1, "liver": 2}, "calls 1 the background, expected 0"),
        ({"1": "Background", "2": "liver"}, "calls 1 the background"),
        ({"liver": 0, "tumour": 1}, "gives the value 0 to 'liver', but 0 is background"),
        (["background", "liver"], "is a list"),
        ("liver", "is a str"),
    ],
)
def test_an_odd_table_is_refused_by_name(declared: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_label_table(declared, "labels")


def test_names_move_with_their_values() -> None:
    table = {"background": 0, "liver": 255, "ignore": 7, "tumour": 2}
    assert read_label_table(table, "labels", {255: 1, 7: 0}) == {0: "background", 1: "liver", 2: "tumour"}
    with pytest.raises(UsageError, match="both 'tumour' and 'liver'"):
        read_label_table(table, "labels", {255: 2, 7: 0})


def test_a_scheme_of_a_datalist() -> None:
    scheme = LabelScheme.of({"labels": {"0": "background", "1": "liver"}, "label_mapping": {"255": 1}})
    assert (scheme.structures, scheme.mapping) == ({1: "liver"}, {255: 1})
    with pytest.raises(UsageError, match="`labels` of the datalist"):
        LabelScheme.of({"labels": {"whole": [1, 2]}})


def test_mappings_and_names_from_the_command_line() -> None:
    assert parse_mapping(["7=1,200=2", "-1=0"]) == {-1: 0, 7: 1, 200: 2}
    assert parse_names(["1=liver", "2=left kidney"]) == {0: "background", 1: "liver", 2: "left kidney"}
    assert (parse_mapping([]), parse_names([]), read_mapping(None, "m")) == ({}, {}, {})


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["7"], "expected VALUE=LABEL"),
        (["a=1"], "expected whole numbers"),
        (["7=-1"], "expected a label from 0"),
        (["7=70000"], "expected a label from 0"),
        (["7=1", "7=2"], "both 1 and 2"),
    ],
)
def test_odd_mappings_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_mapping(texts)


@pytest.mark.parametrize("declared", [{"255": "one"}, {"x": 1}, [1], {"1": None}, {"1": 1.5}])
def test_odd_mappings_of_a_datalist_are_refused(declared: Any) -> None:
    with pytest.raises(UsageError, match="`label_mapping`"):
        LabelScheme.of({"label_mapping": declared})


@pytest.mark.parametrize("texts", [["liver"], ["1="], ["x=liver"], ["1=a", "1=b"], ["1=ignore"]])
def test_odd_names_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--label"):
        parse_names(texts)


def test_gaps_are_told_with_the_way_out() -> None:
    message = renumbering_advice([0, 7, 200])
    assert message is not None
    assert "--map 7=1,200=2" in message
    assert renumbering_advice([0, 1, 2]) is None
    assert renumbering_advice([2, 1]) is None
    assert renumbering_advice([]) is None
