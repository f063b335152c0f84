from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medseg.errors import UsageError
from medseg.files import shown
from medseg.tables import read_table, table_text

HOSTILE = st.text(
    st.sampled_from("=+-@\t\r\n '\"\\,;|0aé\x1b\x00\u202e\u2028\uff1d\uff0b\uff20\u2212\u200b\ufeff\udcff")
)
DANGEROUS = re.compile(r"[\t\r]|\s*[=+\-@＝＋－＠−]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


def test_numbers_stay_numbers_and_formulas_become_text() -> None:
    text = table_text([["=1+1", "@x", "-1.5", -2.5, "\tx", "+", "a", None]])
    assert text == "'=1+1,'@x,-1.5,-2.5,'\tx,'+,a,\n"


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    texts = ["=1+1", "'=1+1", "''-x", "'quoted", "-1.5", 'a "b", c', "two\nlines", "", "Größe"]
    (tmp_path / "table.csv").write_text(table_text([["=name", "n"], *([text, 3] for text in texts)]), encoding="utf-8")
    table = read_table(tmp_path / "table.csv")
    assert table.columns == ("=name", "n")
    assert [row["=name"] for row in table.rows] == texts


@pytest.mark.parametrize("content", ["a,b\n1,2,3\n", "a,b\n\x00,\xff\n"])
def test_what_is_no_table_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"table\.csv"):
        read_table(tmp_path / "table.csv")


def test_a_short_row_has_empty_fields(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text("index\tname\n1\n")
    assert read_table(tmp_path / "table.tsv", delimiter="\t").rows == ({"index": "1", "name": ""},)


@given(HOSTILE)
@example("-0")
@example("\t-0")
@example("0|-0")
def test_no_text_is_a_formula_or_another_row(text: str) -> None:
    written = table_text([[text, 1.5], ["next", 2]])
    (cell, number), *others = csv.reader(io.StringIO(written, newline=""))
    assert (number, others) == ("1.5", [["next", "2"]])
    assert NUMBER.fullmatch(cell) or not DANGEROUS.match(cell)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202e\u2028]", written)


@given(HOSTILE)
def test_what_can_be_shown_is_read_again_as_it_was(text: str) -> None:
    kept = "\n".join(shown(line).replace("\ufffd", "?") for line in text.split("\n"))
    [row] = csv.reader(io.StringIO(table_text([["a", kept]]), newline=""))
    assert row[1].removeprefix("'") == kept.removeprefix("'") or row[1] == f"'{kept}"


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_number_stays_a_number_also_as_a_text(value: float) -> None:
    first, second = table_text([[value, str(value)]]).strip().split(",")
    assert type(value)(first) == type(value)(second) == value
