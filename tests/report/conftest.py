from __future__ import annotations

from pathlib import Path

import pytest

from medseg.report import write_report
from tests.report.report_folders import Folders, make_folders, read_nifti

EVIL = "<img src=x onerror=alert(1)>&\"'case"
LONG = "a_very_long_case_identifier_" * 4
CASES = ("case_00", "case_01", "case_02", EVIL, LONG, "case_zz_missed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("report"), CASES, refused=2)


@pytest.fixture(scope="module")
def page(folders: Folders) -> Path:
    return write_report(folders.results, references=folders.references, reader=read_nifti)
