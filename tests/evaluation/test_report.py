from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.errors import REASON_CODES, UsageError
from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import CSV_METRICS
from medseg.evaluation.tables import measured_dice, read_csv, write_csv
from medseg.report import write_report
from medseg.report.charts import limits_of_agreement, nice_ticks, sections
from medseg.report.collect import Case, collect
from medseg.report.pictures import SIDE_PX, CaseVolumes, planes, read_case, worst_slice
from medseg.report.tables import REMEDIES, number
from medseg.results import RunReport, write_worklist
from medseg.results.worklist import WorklistRow
from tests.evaluation.browser import Browser, available, browser
from tests.evaluation.report_folders import Folders, make_folders, read_nifti

EVIL = "<img src=x onerror=alert(1)>&\"'case"
LONG = "a_very_long_case_identifier_" * 4
CASES = ("case_00", "case_01", "case_02", EVIL, LONG, "case_zz_missed")


def _worklist(folder: Path) -> list[WorklistRow]:
    return write_worklist(RunReport.read(folder), folder / "worklist.csv", measured_dice(folder))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("report"), CASES, refused=2)


@pytest.fixture(scope="module")
def page(folders: Folders) -> Path:
    return write_report(folders.results, references=folders.references, reader=read_nifti)


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


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("found 19 of 20 slices, expected all", "found 19 of 20 slices, expected all"),
        ("/in/Doe, Jane: found no pixels", "case_1: found no pixels"),
        ("/in/Doe, Jane/x y z: found no pixels", ""),
        ("Doe_Jane.dcm: found no pixels", ""),
        ("C:\\in\\Doe Jane: found no pixels", ""),
    ],
)
def test_messages_that_name_a_file_are_not_shown(tmp_path: Path, message: str, shown: str) -> None:
    item = {
        "case_id": "case_1",
        "source": "/in/Doe, Jane",
        "status": "refused",
        "reason": "no-pixel-data",
        "message": message,
    }
    (tmp_path / "run.json").write_text(json.dumps({"cases": [item]}))
    assert collect(tmp_path).cases[0].message == shown


def test_refusals_are_told_with_their_remedy(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "missing-slices" in text
    assert REMEDIES["missing-slices"][1] in text


def test_every_reason_code_has_a_remedy() -> None:
    assert set(REMEDIES) == set(REASON_CODES)


def test_the_miss_is_first_and_counted(page: Path, folders: Folders) -> None:
    study = collect(folders.results, None, folders.references)
    assert study.cases[0].case_id == "case_zz_missed"
    assert study.cases[-1].status == "refused"
    assert re.search(r'<span class="figure">1</span><span class="what">missed</span>', page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("measured", [True, False])
def test_the_worklist_has_the_order_of_the_report(folders: Folders, measured: bool, tmp_path: Path) -> None:
    shutil.copy(folders.results / "run.json", tmp_path)
    if measured:
        shutil.copy(folders.results / "metrics.csv", tmp_path)
    rows = _worklist(tmp_path)
    listed = [case.case_id for case in collect(tmp_path).cases if case.status == "done"]
    assert [row.case_id for row in rows] == listed
    assert ("against the reference" in rows[0].why) == measured


def test_an_evaluation_that_names_cases_otherwise_is_merged_with_its_run(folders: Folders, tmp_path: Path) -> None:
    shutil.copy(folders.results / "run.json", tmp_path)
    rows = [row for row in read_csv(folders.results / "metrics.csv") if row.case_id == "case_00"]
    write_csv(tmp_path / "metrics.csv", [replace(row, case_id="patient zero") for row in rows])
    named = {"case_id": "patient zero", "prediction": "p", "reference": "r", "prediction_case_id": "case_00"}
    (tmp_path / "metrics.json").write_text(json.dumps({"cases": [named], "trained_on": {"n": 1, "of": 1}}))
    study = collect(tmp_path)
    assert "patient zero" not in {case.case_id for case in study.cases}
    assert next(case for case in study.cases if case.case_id == "case_00").dice
    assert [row.case_id for row in _worklist(tmp_path)] == [c.case_id for c in study.cases if not c.reason]


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


def test_a_reference_stored_with_other_axes_is_drawn(tmp_path: Path) -> None:
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[1:4, 2:5, 3:6] = 1
    nib.save(nib.Nifti1Image(labels, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "p.nii.gz")
    turned = nib.as_closest_canonical(nib.load(tmp_path / "p.nii.gz")).as_reoriented(
        np.array([[2.0, -1.0], [0.0, 1.0], [1.0, -1.0]])
    )
    nib.save(turned, tmp_path / "r.nii.gz")
    volumes = read_case(Case("a", prediction=tmp_path / "p.nii.gz", reference=tmp_path / "r.nii.gz"))
    assert volumes is not None
    assert volumes.reference is not None
    assert np.array_equal(volumes.reference, volumes.prediction)


@pytest.mark.parametrize("spoil", [{"structures": 3}, {"trust": {"look_at_mm": ["x", 0, 0]}}, {"trust": [1]}])
def test_a_case_in_another_form_is_named(spoil: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"cases": [{"case_id": "a", **spoil}]}))
    with pytest.raises(UsageError, match=r"run\.json"):
        write_report(tmp_path)


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


@pytest.mark.parametrize(("name", "text"), [("run.json", "{"), ("run.json", "[]"), ("metrics.csv", "a,b\n1,2\n")])
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=name):
        write_report(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_command(folders: Folders) -> None:
    import medseg.cli.commands  # noqa: F401
    from medseg.cli.main import app

    result = CliRunner().invoke(app, ["report", str(folders.results / "nothing-here"), "--json"])
    assert result.exit_code == 2


def _volumes(prediction: np.ndarray, **others: Any) -> CaseVolumes:
    return CaseVolumes(prediction, np.eye(4), None, others.pop("reference", None), (), **others)


def test_worst_slice_prefers_disagreement_to_doubt_and_doubt_to_area() -> None:
    prediction = np.zeros((4, 5, 6), np.uint16)
    prediction[1:3, 1:4, 1] = 1
    assert worst_slice(_volumes(prediction), 2) == 1
    assert worst_slice(_volumes(prediction, look_at=(0, 3, 2)), 2) == 2
    doubt = np.zeros((4, 5, 6), np.float32)
    doubt[0, 0, 5] = 40
    doubted = _volumes(prediction, look_at=(0, 3, 2), doubt=doubt)
    assert [worst_slice(doubted, axis) for axis in range(3)] == [0, 0, 5]
    reference = prediction.copy()
    reference[0, 0, 4] = 2
    assert worst_slice(_volumes(prediction, reference=reference, doubt=doubt), 2) == 4
    assert worst_slice(_volumes(np.zeros((4, 5, 6), np.uint16)), 2) == 3


def test_pictures_without_reference_show_the_planes_of_greatest_doubt(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((folders.results / "run.json").read_text())
    shutil.copy(folders.results / "case_00_seg.nii.gz", tmp_path)
    case = next(case for case in collect(tmp_path).cases if case.case_id == "case_00")
    volumes = read_case(case, read_nifti)
    assert volumes is not None
    # the point (0, 0, 0) mm of a grid with origin (-20, -30, -25) mm and spacing (1, 1.2, 1.5) mm
    assert volumes.look_at == (20, 25, 17)
    assert [plane.slice_number for plane in planes(volumes)] == [18, 26, 21]
    assert "slice of greatest doubt" in write_report(tmp_path, viewer="never", reader=read_nifti).read_text()


def test_flags_are_shown_and_sort_first(folders: Folders, page: Path) -> None:
    study = collect(folders.results, None, folders.references)
    flagged = [case for case in study.cases if case.flags]
    assert flagged
    text = page.read_text(encoding="utf-8")
    assert text.count('class="flag">unlike training<') == len(flagged)
    assert f'<span class="figure">{len(flagged)}</span><span class="what">flagged</span>' in text
    assert "at least 0." in text
    assert "On cases like those of the calibration, 90% reach their lower bound" in text


def test_the_calibration_plot_counts_structures_and_their_bounds(folders: Folders) -> None:
    study = collect(folders.results)
    trust = next(section for section in sections(study) if section.anchor == "trust")
    rows = [(case.estimates[s.label], s.values["dice"]) for case in study.cases for s in case.structures]
    known = [(estimate, dice) for estimate, dice in rows if dice is not None]
    error = np.mean([abs(estimate[0] - dice) for estimate, dice in known])
    covered = sum(dice >= estimate[1] for estimate, dice in known)
    assert trust.charts[0].note == (
        f"mean absolute error {error:.3f}; {covered} of {len(known)} structures reach their lower bound"
    )


def test_a_stale_calibration_is_told(folders: Folders, tmp_path: Path) -> None:
    run = json.loads((folders.results / "run.json").read_text())
    run["trust"] = {"state": "stale", "message": "belongs to other weights"}
    for case in run["cases"]:
        case["trust"] = None
    (tmp_path / "run.json").write_text(json.dumps(run))
    text = write_report(tmp_path, viewer="never", reader=read_nifti).read_text()
    assert "no verdicts: the bundle&#39;s calibration does not belong to its weights" in text


def test_contours_lie_where_the_voxels_are() -> None:
    """A box at the patient's right, front and top must be drawn at the left, left and top of the pictures."""
    labels = np.zeros((40, 40, 40), np.uint16)
    labels[30:40, 30:40, 30:40] = 1
    drawn = {p.name: p for p in planes(CaseVolumes(labels, np.diag([4.0, 4.0, 4.0, 1.0]), None, None, ()))}
    for plane in drawn.values():
        points = np.array([[float(v) for v in pair.split(",")] for pair in plane.prediction[1].strip("MZ").split()])
        low, high = points.min(axis=0), points.max(axis=0)
        assert np.allclose(low, 0.0, atol=0.1)
        assert np.allclose(high - low, SIDE_PX / 1.7, atol=0.2)


def test_contour_of_a_hole_has_two_rings() -> None:
    labels = np.zeros((20, 20, 20), np.uint16)
    labels[4:16, 4:16, 4:16] = 1
    labels[8:12, 8:12, 8:12] = 0
    for plane in planes(CaseVolumes(labels, np.eye(4), None, None, ())):
        assert plane.prediction[1].count("M") in (1, 2)
    labels[8:12, 8:12, :] = 0
    axial = planes(CaseVolumes(labels, np.eye(4), None, None, ()))[0]
    assert axial.prediction[1].count("M") == 2


def test_limits_of_agreement_by_hand() -> None:
    bias, low, high = limits_of_agreement([-1.0, 0.0, 1.0])
    assert (bias, low, high) == pytest.approx((0.0, -1.96, 1.96))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7.9), (5, 5), (1e-4, 3e-4), (-1e6, 1e6)])
def test_ticks_span_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert len(ticks) <= 12


def test_numbers() -> None:
    assert number(None, "dice") == "–"
    assert number(0.98765, "dice") == "0.988"
    assert number(-1.234, "volume_difference_ml") == "−1.23"
    assert number(1.234, "volume_difference_ml") == "+1.23"
    assert number(1234.5, "volume_ml") == "1234"


def test_volumes_over_the_budget_go_beside_the_page(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.report._VIEWER_BUDGET_BYTES", 0)
    text = write_report(folders.results, viewer="always", reader=read_nifti).read_text(encoding="utf-8")
    assert len(list((folders.results / "report_files").glob("*.js"))) == len(CASES)
    assert 'data-file="report_files/v0.js"' in text
    write_report(folders.results, references=folders.references, reader=read_nifti)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not available():
        pytest.skip("chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


_SHOWN = "return [...document.querySelectorAll('tbody.case')].filter(b => !b.hidden).map(b => b.dataset.case)"


def _set(window: Browser, field: str, value: str | bool) -> None:
    script = (
        "const f = document.getElementById(arguments[0]);"
        "if (typeof arguments[1] === 'boolean') f.checked = arguments[1]; else f.value = arguments[1];"
        "f.dispatchEvent(new Event('input'))"
    )
    window.run(script, field, value)


def test_browser_sorts_and_filters(window: Browser, page: Path) -> None:
    window.open(page)
    assert window.run(_SHOWN)[0] == "case_zz_missed"
    window.run("document.querySelector('button[data-key=dice]').click()")
    window.run("document.querySelector('button[data-key=dice]').click()")
    dice = window.run(
        "return [...document.querySelectorAll('tbody.case')].map(b => Number(b.rows[0].cells[4].dataset.value || NaN))"
    )
    known = [d for d in dice if d is not None]
    assert known == sorted(known, reverse=True)
    assert (
        window.run("return document.querySelector('[data-key=dice]').parentElement.getAttribute('aria-sort')")
        == "descending"
    )
    _set(window, "f-text", "missing-slices")
    assert window.run(_SHOWN) == ["series-000000000000", "series-000000000001"]
    _set(window, "f-text", "")
    _set(window, "f-wrong", True)
    assert window.run(_SHOWN) == ["case_zz_missed"]
    assert window.run("return document.getElementById('count').textContent") == "1 of 8 cases"
    _set(window, "f-text", "no such case")
    assert window.run("return !document.getElementById('none').hidden")
    assert window.run("return document.querySelectorAll('img').length") == 0
    assert window.console() == []


def test_browser_keeps_hidden_controls_hidden(window: Browser, folders: Folders, tmp_path: Path) -> None:
    shutil.copy(folders.results / "run.json", tmp_path)
    shutil.copy(folders.results / "case_00_seg.nii.gz", tmp_path)
    window.open(write_report(tmp_path, reader=read_nifti))
    window.run("document.querySelector('.view').click()")
    window.wait("document.getElementById('viewer').dataset.state !== 'loading'", 90)
    assert window.run("return document.getElementById('v-reference-label').hidden")
    shown = window.run(
        "return [...document.querySelectorAll('[hidden]')].filter(e => getComputedStyle(e).display !== 'none').length"
    )
    assert shown == 0
    assert (
        window.run("return getComputedStyle(document.getElementById('v-prediction').parentElement).display") == "flex"
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_browser_page_never_scrolls_sideways(window: Browser, page: Path, width: int) -> None:
    window.open(page)
    window.resize(width, 900)
    assert window.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("inlined", [True, False])
def test_browser_viewer_draws(
    window: Browser, folders: Folders, monkeypatch: pytest.MonkeyPatch, inlined: bool
) -> None:
    if not inlined:
        monkeypatch.setattr("medseg.report._VIEWER_BUDGET_BYTES", 0)
    page = write_report(folders.results, references=folders.references, viewer="always", reader=read_nifti)
    window.open(page)
    window.resize(1000, 800)
    window.run("document.querySelector('.view').click()")
    window.wait("document.getElementById('viewer').dataset.state !== 'loading'", 90)
    assert window.run("return document.getElementById('v-message').textContent") == ""
    assert window.run("return document.getElementById('viewer').dataset.state") == "ready"
    window.wait(f"({_COLOURED})() > 200", 30)
    assert window.console() == []
    window.run("document.getElementById('v-close').click()")


# Draws the canvas into a picture and counts pixels that are clearly coloured: only a drawn label can be.
_COLOURED = """
() => { const c = document.getElementById('v-canvas'), d = document.createElement('canvas');
  d.width = c.width; d.height = c.height; window.medsegRedraw();
  const g = d.getContext('2d'); g.drawImage(c, 0, 0);
  const p = g.getImageData(0, 0, d.width, d.height).data; let n = 0;
  for (let i = 0; i < p.length; i += 4) n += p[i] - p[i + 2] > 60 && p[i] > 90;
  return n; }
"""
