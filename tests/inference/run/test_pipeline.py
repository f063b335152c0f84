"""Jobs that hang are given up, and a case that takes long is named."""

from __future__ import annotations

import threading
import time

import pytest

from medseg.inference.run.pipeline import in_background, result_of, watched


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
