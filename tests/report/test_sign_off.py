"""The page to sign labels off: a picture of each label, findings, judgements that last as long as the label."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.ingest import save_nifti
from medseg.manifests import Manifest, audit, create
from medseg.report.sign_off import COLUMNS, PAGE_NAME, SIGN_OFF_NAME, write_review
from medseg.tables import table_text
from tests.manifests.conftest import AFFINE, SHAPE, label_of, write_case
from tests.manifests.hospital import rtstruct, series
from tests.report.browser import available, browser


@pytest.fixture
def datalist(tmp_path: Path) -> Manifest:
    """Three cases; the label of the second lies elsewhere, the third has two raters."""
    for seed in range(3):
        write_case(tmp_path / "data", f"case_{seed}x", seed)
    save_nifti(label_of(1), np.diag([1.0, 1.0, 3.0, 1.0]), tmp_path / "data" / "labelsTr" / "case_1x.nii.gz")
    made = create(tmp_path / "data" / "imagesTr", tmp_path / "data" / "labelsTr", names={0: "b", 1: "block", 2: "dot"})
    label = made.training[2]["label"]
    raters = [{"rater": "ann", "label": label}, {"rater": "bob", "label": label}]
    return made.with_content(training=[*made.training[:2], {**made.training[2], "label": raters}])


def state_of(folder: Path) -> list[dict[str, str]]:
    """What the page knows of each label."""
    page = (folder / PAGE_NAME).read_text(encoding="utf-8")
    text = page.split('id="sign-off"')[1].split(">", 1)[1].split("</script>")[0]
    found: list[dict[str, str]] = json.loads(text)
    return found


def test_every_label_is_shown_with_its_volumes_and_findings_the_worst_first(datalist: Manifest, tmp_path: Path) -> None:
    written = write_review(datalist, tmp_path / "out", audit=audit(datalist), viewer=False)
    page = written.page.read_text(encoding="utf-8")
    assert (written.judgements["open"], written.refused) == (4, 0)
    rows = [(row["case_id"], row["rater"]) for row in state_of(tmp_path / "out")]
    assert rows[0] == ("case_1x", "")
    assert ("case_2x", "bob") in rows
    assert page.count("<figure>") == 4 * 3
    assert page.count('class="sign"') == 4
    for words in ("geometry-mismatch", "block (ml)", "Labels to sign off", "on another grid than the label"):
        assert words in page
    assert 'id="viewer"' not in page


def test_findings_stand_beside_their_case_where_another_without_a_label_is_called_alike(
    datalist: Manifest, tmp_path: Path
) -> None:
    namesake = {"image": datalist.training[0]["image"], "case_id": "case_1x"}
    write_review(
        datalist.with_content(test=[namesake]),
        tmp_path / "out",
        audit=audit(datalist.with_content(test=[namesake])),
        viewer=False,
    )
    assert "geometry-mismatch" in (tmp_path / "out" / PAGE_NAME).read_text()


def test_a_datalist_without_labels_is_refused(datalist: Manifest, tmp_path: Path) -> None:
    bare = [{key: value for key, value in item.items() if key != "label"} for item in datalist.training]
    with pytest.raises(UsageError, match="nothing to sign off"):
        write_review(datalist.with_content(training=bare), tmp_path / "out")
    assert not (tmp_path / "out" / PAGE_NAME).exists()


def test_a_label_that_cannot_be_read_stands_there_with_its_reason(datalist: Manifest, tmp_path: Path) -> None:
    (tmp_path / "data" / "labelsTr" / "case_0x.nii.gz").write_bytes(b"no image")
    written = write_review(datalist, tmp_path / "out", viewer=False)
    assert written.refused == 1
    assert state_of(tmp_path / "out")[0]["case_id"] == "case_0x"
    assert "undecodable" in written.page.read_text() or "unreadable" in written.page.read_text()


def test_a_structure_set_is_drawn_on_its_series(tmp_path: Path) -> None:
    slices = series(tmp_path / "study" / "ct", "1")
    rtstruct(tmp_path / "study" / "rs.dcm", slices, ["liver"])
    manifest = create(tmp_path / "study")
    written = write_review(manifest, tmp_path / "out", viewer=False)
    page = written.page.read_text()
    assert written.refused == 0
    assert page.count("<figure>") == 3
    assert "liver (ml)" in page


def test_judgements_are_taken_up_until_the_label_changes(datalist: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_review(datalist, folder, viewer=False)
    rows = [{**row, "judgement": "right", "note": "=fine", "signed": "2020"} for row in state_of(folder)]
    (folder / SIGN_OFF_NAME).write_text(table_text([COLUMNS, *([row[c] for c in COLUMNS] for row in rows)]))
    assert write_review(datalist, folder, viewer=False).judgements == {"right": 4, "wrong": 0, "unsure": 0, "open": 0}
    assert {row["note"] for row in state_of(folder)} == {"=fine"}
    changed = np.ones(SHAPE, np.uint8)
    save_nifti(changed, AFFINE, tmp_path / "data" / "labelsTr" / "case_0x.nii.gz")
    after = write_review(datalist, folder, viewer=False)
    assert after.judgements == {"right": 3, "wrong": 0, "unsure": 0, "open": 1}
    assert "Labels changed since they were signed off, and open again: 1" in after.page.read_text()
    (folder / SIGN_OFF_NAME).write_text("a\n1,2\n")
    with pytest.raises(UsageError, match="write it again"):
        write_review(datalist, folder, viewer=False)


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="needs chromium and chromedriver")
def test_judgements_in_a_browser(datalist: Manifest, tmp_path: Path) -> None:
    page = write_review(datalist, tmp_path / "out", audit=audit(datalist)).page
    with browser(tmp_path / "profile") as window:
        window.open(page)
        window.run(
            """const who = document.getElementById('s-who'); who.value = 'Dr. @A, "B"';
            who.dispatchEvent(new Event('input'));
            const form = document.querySelector('.sign'); form.querySelector('[value=wrong]').click();
            const note = form.querySelector('[type=text]'); note.value = '=too, small';
            note.dispatchEvent(new Event('input', {bubbles: true}));
            URL.createObjectURL = (blob) => { blob.text().then((text) => { window.saved = text; }); return 'data:,'; };
            document.getElementById('s-save').click();"""
        )
        window.wait("window.saved")
        saved = str(window.run("return window.saved"))
        assert window.run("return document.getElementById('s-count').textContent") == "1 of 4 signed off"
        window.open(page)
        assert window.run("return document.querySelector('.sign [value=wrong]').checked")
        window.run(
            "const s = document.getElementById('f-signed'); s.value = 'wrong'; s.dispatchEvent(new Event('input'))"
        )
        assert window.run("return document.querySelectorAll('tbody.case:not([hidden])').length") == 1
        for width in (390, 1280):
            window.resize(width, 800)
            time.sleep(0.1)
            assert window.run("return document.documentElement.scrollWidth <= innerWidth")
        assert window.console() == []
    lines = list(csv.reader(saved.splitlines()))
    assert lines[0] == list(COLUMNS)
    assert lines[1][:5] == ["case_1x", "", "wrong", "'=too, small", 'Dr. @A, "B"']
    (tmp_path / "out" / SIGN_OFF_NAME).write_text(saved)
    assert write_review(datalist, tmp_path / "out", viewer=False).judgements["wrong"] == 1
