from __future__ import annotations

from medseg.errors import REASON_CODES
from medseg.evaluation.case import StructureResult
from medseg.report.collect import Case, Study
from medseg.report.remedies import REMEDIES
from medseg.report.tables import number, structures_of_case
from medseg.results.verdict import Interval


def test_every_reason_code_has_a_remedy() -> None:
    assert set(REMEDIES) == set(REASON_CODES)


def test_numbers() -> None:
    assert number(None, "dice") == "–"
    assert number(0.98765, "dice") == "0.988"
    assert number(-1.234, "volume_difference_ml") == "−1.23"
    assert number(1.234, "volume_difference_ml") == "+1.23"
    assert number(1234.5, "volume_ml") == "1234"


def test_a_volume_has_its_interval_behind_it() -> None:
    rows = tuple(
        StructureResult(label, name, {"volume_ml": 1.75}, case_id="a") for label, name in ((1, "head"), (2, "tail"))
    )
    case = Case("a", structures=rows, volumes={1: Interval(1.625, 1.875, 0.9)})
    found = structures_of_case(case, Study((case,), of_run=True))
    assert [(cells[-1].text, cells[-1].aside) for cells in found.rows] == [("1.75", "1.62 to 1.88"), ("1.75", "")]
