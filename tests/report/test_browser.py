from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg.report import write_report
from tests.report.browser import Browser, available, browser
from tests.report.report_folders import Folders, read_nifti


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
        monkeypatch.setattr("medseg.report.write._VIEWER_BUDGET_BYTES", 0)
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
