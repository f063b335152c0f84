from __future__ import annotations

from pathlib import Path

import pytest

from medseg.pacs.queue import Queue


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue.sqlite")


def _waiting(queue: Queue, study: str = "a") -> None:
    queue.arrived(study, "1", changed=True, now=0.0)
    queue.close_quiet(before=1.0)


def test_a_study_is_complete_only_after_a_quiet_time(queue: Queue) -> None:
    queue.arrived("a", "1", changed=True, now=10.0)
    queue.close_quiet(before=9.0)
    assert queue.take(now=20.0) is None
    queue.close_quiet(before=10.0)
    study = queue.take(now=20.0)
    assert study is not None
    assert (study.study, study.state) == ("a", "waiting")
    assert queue.take(now=20.0) is None, "a study in hand is not given out twice"


def test_a_late_instance_opens_the_study_again_and_outdates_work_in_hand(queue: Queue) -> None:
    _waiting(queue)
    study = queue.take(now=2.0)
    assert study is not None
    queue.arrived("a", "2", changed=True, now=3.0)
    queue.advance(study, "sending")
    assert [s.state for s in queue.studies()] == ["receiving"]


def test_a_duplicate_instance_does_not_open_a_finished_study(queue: Queue) -> None:
    _waiting(queue)
    study = queue.take(now=2.0)
    assert study is not None
    queue.advance(study, "done")
    queue.arrived("a", "1", changed=False, now=5.0)
    assert [s.state for s in queue.studies()] == ["done"]


def test_attempts_are_bounded_and_spaced(queue: Queue) -> None:
    _waiting(queue)
    for attempt, now in enumerate((2.0, 12.0, 22.0)):
        study = queue.take(now)
        assert study is not None
        assert study.attempts == attempt
        queue.postpone(study, "peer is down", attempts=3, until=now + 10)
        assert queue.take(now + 5) is None
    assert [(s.state, s.message) for s in queue.studies()] == [("failed", "peer is down")]


def test_a_killed_process_finds_its_study_again(tmp_path: Path) -> None:
    path = tmp_path / "queue.sqlite"
    first = Queue(path)
    _waiting(first)
    assert first.take(2.0) is not None
    first.close()
    second = Queue(path)
    second.recover()
    study = second.take(2.0)
    assert study is not None
    assert study.study == "a"


def test_what_was_sent_is_remembered_per_destination(queue: Queue) -> None:
    queue.mark_sent("a", "seg.dcm", "archive")
    queue.mark_sent("a", "seg.dcm", "archive")
    assert queue.was_sent("a", "seg.dcm", "archive")
    assert not queue.was_sent("a", "seg.dcm", "web")


def test_an_instance_whose_file_a_killed_process_left_behind_still_counts(queue: Queue) -> None:
    _waiting(queue)
    study = queue.take(now=2.0)
    assert study is not None
    queue.advance(study, "done")
    queue.arrived("a", "2", changed=False, now=3.0)
    assert [s.state for s in queue.studies()] == ["receiving"]
