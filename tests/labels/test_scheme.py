"""Tables of labels: both traditions are read, and what is no table of structures is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from medseg.errors import UsageError
from medseg.labels.scheme import (
    LabelScheme,
    parse_mapping,
    parse_names,
    read_label_table,
    read_mapping,
    renumbering_advice,
)


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
        (
            {"background": 0, "whole": [1, 2], "core": 2},
            r"the region 'whole' \(1 and 2\), expected one value for each name",
        ),
        ({"background": 0, "whole": []}, "the region 'whole'"),
        ({"background": 0, "liver": 1, "ignore": 2}, r"'ignore' \(value 2\).*--map 2=0"),
        ({"1": "liver", "2": "Ignore"}, r"'ignore' \(value 2\)"),
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
        LabelScheme.of({"labels": {"whole": []}})


_BRATS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


@pytest.mark.parametrize("order", [{}, {"regions_class_order": [1, 2, 3]}])
def test_regions_and_ignore_are_no_values_with_a_name(order: dict[str, Any]) -> None:
    scheme = LabelScheme.of({"labels": _BRATS, **order})
    assert scheme.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert list(scheme.regions) == ["whole", "core", "enhancing"]
    assert (scheme.ignore, scheme.structures) == (4, {1: "whole", 2: "core", 3: "enhancing"})
    assert scheme.names == {0: "background", 1: "whole (1)", 2: "core (2)", 3: "enhancing"}
    assert scheme.values == {**scheme.names, 4: "ignore"}
    assert scheme.members == {1: (1, 2, 3), 2: (2, 3), 3: (3,)}
    assert LabelScheme.of(scheme.to_json()) == scheme


def test_ignore_alone() -> None:
    scheme = LabelScheme.of({"labels": {"0": "background", "1": "liver", "2": "Ignore"}})
    assert (scheme.structures, scheme.ignore, scheme.regions) == ({1: "liver"}, 2, {})
    assert LabelScheme.of(scheme.to_json()) == scheme
    moved = LabelScheme.of({"labels": {"liver": 5, "ignore": 9}}, moved={5: 1, 9: 0})
    assert (moved.structures, moved.ignore) == ({1: "liver"}, None)


def test_regions_move_with_their_values() -> None:
    content = {"labels": {"whole": [10, 20], "core": 20}, "regions_class_order": [10, 20]}
    scheme = LabelScheme.of(content, moved={10: 1, 20: 2})
    assert (scheme.regions, scheme.paints) == ({"whole": (1, 2), "core": (2,)}, {"whole": 1, "core": 2})


@pytest.mark.parametrize(
    ("labels", "order", "words"),
    [
        ({"whole": [1, 2]}, None, "no `regions_class_order`.*'whole' .1, 2."),
        ({"whole": [1, 2], "core": 2}, [2, 1], "lets the region 'core' .2. paint 1"),
        ({"whole": [1, 2], "core": 2}, [1], "expected 2 different values"),
        ({"whole": [1, 2], "core": 2}, [2, 2], "expected 2 different values"),
        ({"whole": [1, 2], "core": 2}, "12", "expected 2 different values"),
        ({"whole": [0, 1, 2], "core": 1}, [2, 1], "0 is background"),
        ({"whole": [1, 1]}, [1], "different values above 0"),
        ({"whole": [1, 2], "all": [2, 1]}, [1, 2], "and the region 'whole' of the same values"),
        ({"whole": [1, 2], "ignore": 2}, [1], "2 marks voxels that nobody judged"),
        ({"whole": [1, "2"]}, [1], "the value '2', expected whole numbers"),
        ({"whole": [1, 2], "a": 1, "b": 1}, [1, 2, 3], "two names for the value 1"),
        ({f"r{n}": [1, n + 2] for n in range(13)}, None, "13 regions, expected 12 at most"),
        ({"ignore": 0, "liver": 1}, None, "0 is background"),
    ],
)
def test_odd_regions_are_refused_by_name(labels: dict[str, Any], order: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LabelScheme.of({"labels": labels, "regions_class_order": order})


def test_what_combinations_of_regions_become() -> None:
    nested = LabelScheme.of({"labels": {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}})
    # nothing, whole, core alone, both, enhancing alone …: the last one there paints, as in nnU-Net's export
    assert nested.table == (0, 1, 2, 2, 3, 3, 3, 3)
    crossing = LabelScheme.of({"labels": {"a": [1, 2], "b": [2, 3]}, "regions_class_order": [1, 3]})
    assert crossing.table == (0, 1, 3, 2)  # where both are, the value that belongs to both


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
