"""Jobs that hang are given up; a case that takes long is named, and the line where a bundle's own code fails."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from medseg.bundle import Bundle
from medseg.inference import Options, run_batch
from medseg.inference.run.pipeline import in_background, result_of, watched
from medseg.results.case_result import place_of
from tests.inference.bundles import Design, write_bundle
from tests.inference.volumes import blobs, grid, save


def test_hands_back_the_value_or_the_error() -> None:
    assert result_of(in_background(lambda: 7), 9) == 7
    with pytest.raises(ZeroDivisionError):
        result_of(in_background(lambda: 1 // 0), 9)


def test_a_job_that_hangs_is_given_up() -> None:
    stop = threading.Event()
    job = in_background(stop.wait)
    with pytest.raises(TimeoutError, match="no result"):
        result_of(job, 0.1)
    stop.set()


def test_a_timeout_of_the_job_itself_keeps_its_words() -> None:
    def slow() -> None:
        raise TimeoutError("the server was slow")

    with pytest.raises(TimeoutError, match="the server was slow"):
        result_of(in_background(slow), 9)


def test_names_the_case_that_takes_long(caplog: pytest.LogCaptureFixture) -> None:
    with watched("case7", "computing", 0.01):
        deadline = time.monotonic() + 10
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages[0].startswith("case7: computing")
    with watched("case8", "reading", 60):
        pass
    assert len(caplog.messages) == 1


def test_what_fails_in_a_bundles_own_code_is_named_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # which running its code adds to
    bundle = write_bundle(tmp_path / "ö own", Design(transforms=({"_target_": "own_steps.Fails"},)))
    code = "class Fails:\n    def __call__(self, data):\n        return data['Doe^Jane']\n"
    (bundle / "own_steps.py").write_text(code)
    save(blobs((12, 12, 12)), grid("plain"), tmp_path / "a.nii.gz")
    caplog.set_level("INFO", "medseg")
    opened, options = Bundle.open(bundle, "everything"), Options(device="cpu")
    (case,) = run_batch(opened, [tmp_path / "a.nii.gz"], tmp_path / "out", options).cases
    sys.modules.pop("own_steps")
    assert (case.status, case.reason) == ("failed", "unexpected")
    assert "computing raised KeyError at own_steps.py:3, the bundle's own code" in case.message
    assert "KeyError at own_steps.py:3 in computing" in caplog.text
    assert "Doe" not in case.message + caplog.text


def test_an_error_that_names_itself_as_its_cause_has_a_place_too(tmp_path: Path) -> None:
    try:
        error = ValueError()
        raise error from error
    except ValueError as raised:
        place, is_own = place_of(raised, tmp_path)
    assert place.startswith(f"ValueError at {__file__}:")
    assert not is_own
    assert place_of(KeyError(), tmp_path) == ("KeyError", False)
