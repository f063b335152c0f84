from __future__ import annotations

from medseg.errors import REASON_CODES
from medseg.report.remedies import REMEDIES
from medseg.report.tables import number


def test_every_reason_code_has_a_remedy() -> None:
    assert set(REMEDIES) == set(REASON_CODES)


def test_numbers() -> None:
    assert number(None, "dice") == "–"
    assert number(0.98765, "dice") == "0.988"
    assert number(-1.234, "volume_difference_ml") == "−1.23"
    assert number(1.234, "volume_difference_ml") == "+1.23"
    assert number(1234.5, "volume_ml") == "1234"
