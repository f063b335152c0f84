from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.evaluation import evaluate_case, read_csv
from medseg.evaluation.tables import write_csv

DOCUMENTED = (
    "case_id,label,name,dice,iou,precision,recall,hd_mm,hd95_mm,assd_mm,nsd,volume_ml,reference_volume_ml,"
    "volume_difference_ml,missed,invented"
)


@pytest.fixture
def results() -> list[object]:
    reference = np.zeros((9, 9, 9), np.uint8)
    reference[1:4, 1:4, 1:4], reference[6, 6, 6] = 1, 2
    prediction = np.where(reference == 1, np.roll(reference, 1, 0), 0)
    return list(evaluate_case(prediction, reference, (0.7, 1.1, 1.3), {1: "left, upper", 2: "node", 3: "none"}))


def test_the_columns_are_the_documented_ones(results: list, tmp_path: Path) -> None:  # type: ignore[type-arg]
    write_csv(tmp_path / "metrics.csv", results)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == DOCUMENTED


def test_more_metrics_stand_behind_the_documented_ones(results: list, tmp_path: Path) -> None:  # type: ignore[type-arg]
    write_csv(tmp_path / "metrics.csv", results, ["masd_mm"])
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == DOCUMENTED + ",masd_mm"


def test_rows_come_back_in_full_precision(results: list, tmp_path: Path) -> None:  # type: ignore[type-arg]
    write_csv(tmp_path / "metrics.csv", results)
    for written, read in zip(results, read_csv(tmp_path / "metrics.csv"), strict=True):
        assert (written.label, written.name, written.missed, written.invented) == (
            read.label,
            read.name,
            read.missed,
            read.invented,
        )
        assert {name: written.values[name] for name in read.values} == dict(read.values)


def test_what_does_not_exist_is_an_empty_field(results: list, tmp_path: Path) -> None:  # type: ignore[type-arg]
    write_csv(tmp_path / "metrics.csv", results)
    with (tmp_path / "metrics.csv").open(newline="") as handle:
        _, missed, absent = csv.DictReader(handle)
    assert (missed["dice"], missed["hd_mm"], missed["hd95_mm"], missed["missed"]) == ("0.0", "", "", "1")
    assert (absent["dice"], absent["nsd"], absent["volume_ml"], absent["missed"]) == ("", "", "0.0", "0")
    assert "nan" not in (tmp_path / "metrics.csv").read_text().lower()


def test_a_strange_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("case,dice\na,1\n")
    with pytest.raises(UsageError, match="case_id"):
        read_csv(tmp_path / "metrics.csv")
