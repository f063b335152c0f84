"""Jobs that hang are given up, and a case that takes long is named."""

from __future__ import annotations

import threading

import pytest

from medseg.inference.run.work import BackgroundJob, Watchdog


def test_hands_back_the_value_or_the_error() -> None:
    assert BackgroundJob(lambda: 7).result() == 7
    with pytest.raises(ZeroDivisionError):
        BackgroundJob(lambda: 1 // 0).result()


def test_a_job_that_hangs_is_given_up() -> None:
    stop = threading.Event()
    job = BackgroundJob(stop.wait)
    with pytest.raises(TimeoutError, match="no result"):
        job.result(timeout_s=0.1)
    stop.set()


def test_names_the_case_that_takes_long() -> None:
    said: list[str] = []
    heard = threading.Event()

    def report(text: str) -> None:
        said.append(text)
        heard.set()

    with Watchdog(0.01, report).watch("case7", "computing"):
        assert heard.wait(10)
    assert said[0].startswith("case7: computing")
    with Watchdog(60, report).watch("case8", "reading"):
        pass
    assert len(said) == 1
