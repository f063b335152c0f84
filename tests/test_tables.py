from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import UsageError
from medseg.tables import read_table, table_text


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
