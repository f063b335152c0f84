from __future__ import annotations

import html
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import CSV_METRICS
from medseg.evaluation.tables import write_csv
from medseg.report import write_report
from medseg.report.collect import collect
from medseg.report.remedies import REMEDIES
from medseg.results.accept_table import AcceptTable
from tests.report.conftest import CASES
from tests.report.report_folders import Folders, read_nifti


class _Tags(HTMLParser):
    """Counts tags and collects attributes that would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        self.loads += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith(("#", "data:"))
        ]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]


def test_page_loads_nothing_from_elsewhere(page: Path) -> None:
    tags = _Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert tags.loads == []
    assert tags.handlers == ["onsubmit"]


def test_case_ids_are_escaped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text


def test_no_path_and_no_name_reaches_the_page(page: Path, folders: Folders) -> None:
    text = page.read_text(encoding="utf-8")
    for secret in ("Doe^Jane", "19 SECRET", str(folders.images), str(folders.results)):
        assert secret not in text


def test_refusals_are_told_with_their_remedy(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "missing-slices" in text
    assert REMEDIES["missing-slices"][1] in text


@pytest.mark.parametrize(
    ("learnt", "told"),
    [
        (CASES, "6 of 6 cases were used to train this model: these figures say nothing about new cases"),
        (CASES[:1], "1 of 6 cases was used to train this model: their figures say nothing about new cases"),
        ((), ""),
    ],
)
def test_training_cases_are_told_at_the_top(
    learnt: tuple[str, ...], told: str, folders: Folders, tmp_path: Path
) -> None:
    run = json.loads((folders.results / "run.json").read_text())
    for case in run["cases"]:
        case["trained_on"] = case["case_id"] in learnt
    (tmp_path / "run.json").write_text(json.dumps(run))
    text = write_report(tmp_path, viewer="never", reader=read_nifti).read_text(encoding="utf-8")
    head = text[: text.index("<nav")]
    assert (told in head) if told else ("used to train" not in text)
    assert text.count("This image was used to train the model") == len(learnt)


def test_writing_twice_gives_the_same_page(folders: Folders, page: Path) -> None:
    before = page.read_bytes()
    assert write_report(folders.results, references=folders.references, reader=read_nifti).read_bytes() == before


def test_infer_folder_alone(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((folders.results / "run.json").read_text())
    text = write_report(tmp_path, viewer="never", reader=read_nifti).read_text(encoding="utf-8")
    assert "Segmentation run" in text
    assert "NiiVue" not in text
    assert "No pictures" in text
    assert "Dice [" not in text


def test_evaluate_folder_alone(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text((folders.results / "metrics.csv").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps({"n_unpaired": 2, "predictions": str(folders.results)}))
    text = write_report(tmp_path, images=folders.images, references=folders.references, reader=read_nifti).read_text(
        encoding="utf-8"
    )
    assert "2 files have no partner" in text
    assert text.count("<figure><svg") == 3 * len(CASES)


def test_all_structures_absent_is_no_division_by_zero(tmp_path: Path) -> None:
    nothing = StructureResult(1, "liver", dict.fromkeys(CSV_METRICS) | {"volume_ml": 0.0}, case_id="a")
    write_csv(tmp_path / "metrics.csv", [nothing])
    assert "liver" in write_report(tmp_path).read_text(encoding="utf-8")


def test_command(folders: Folders) -> None:
    from medseg.cli.main import app, load_commands

    load_commands()

    result = CliRunner().invoke(app, ["report", str(folders.results / "nothing-here"), "--json"])
    assert result.exit_code == 2


def test_flags_are_shown_and_sort_first(folders: Folders, page: Path) -> None:
    study = collect(folders.results, None, folders.references)
    flagged = [case for case in study.cases if case.flags]
    assert flagged
    text = page.read_text(encoding="utf-8")
    assert text.count('class="flag">unlike training<') == len(flagged)
    assert f'<span class="figure">{len(flagged)}</span><span class="what">flagged</span>' in text
    assert "at least 0." in text
    assert "On cases like those of the calibration, 90% reach their lower bound" in text


def test_a_stale_calibration_is_told(folders: Folders, tmp_path: Path) -> None:
    run = json.loads((folders.results / "run.json").read_text())
    run["trust"] = {"state": "stale", "message": "belongs to other weights"}
    for case in run["cases"]:
        case["trust"] = None
    (tmp_path / "run.json").write_text(json.dumps(run))
    text = write_report(tmp_path, viewer="never", reader=read_nifti).read_text()
    assert "no verdicts: the bundle&#39;s calibration does not belong to its weights" in text


def test_the_page_says_what_accept_is_worth(folders: Folders, tmp_path: Path) -> None:
    run = json.loads((folders.results / "run.json").read_text())
    n = 40
    bound, own = np.full(n, 0.9), np.ones(n, dtype=bool)
    table = AcceptTable.of(bound, own, own, [str(i) for i in range(n)], precision=0.9, thresholds=(0.77,))

    def page_of(**trust: Any) -> str:
        (tmp_path / "run.json").write_text(json.dumps({**run, "trust": {**run["trust"], **trust}}))
        return html.unescape(write_report(tmp_path, viewer="never", reader=read_nifti).read_text())

    text = page_of(accepted=table.to_json(), wider_for=["crop", "motion"])
    assert "at least 0.77; accepted are 100% of the network's own results, and of these 100% (91% to 100%, 40" in text
    assert "90% reach their lower bound, also on images that look like crop, motion, where it is lower" in text
    nothing = page_of(accepted=table.at(None).to_json(), thresholds={"accept": None, "reject": 0.5})
    assert "accept: nothing is accepted, since no threshold shows that 90% of what it accepts are good" in nothing


def test_volumes_over_the_budget_go_beside_the_page(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.report.write._VIEWER_BUDGET_BYTES", 0)
    text = write_report(folders.results, viewer="always", reader=read_nifti).read_text(encoding="utf-8")
    assert len(list((folders.results / "report_files").glob("*.js"))) == len(CASES)
    assert 'data-file="report_files/v0.js"' in text
    write_report(folders.results, references=folders.references, reader=read_nifti)
