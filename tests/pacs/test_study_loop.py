"""The loop against an archive in memory that can be cut off at any step; ``orthanc_checks.py`` has the real one."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from medseg.errors import CaseFailed, OutputLocked, Refusal, UsageError
from medseg.pacs import study_loop as loop
from medseg.pacs import study_worker as work
from medseg.pacs.queue import Queue
from medseg.pacs.receive import hash_uid, store_instance
from medseg.pacs.remote import Meter, PacsError, SendResult, StudyMatch
from medseg.pacs.settings import DicomNode, Limits, PacsSettings, Route, RunSettings
from medseg.pacs.study_loop import Answered, answer_studies
from tests.pacs.conftest import answer_one, make_instance, write_study


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Archive:
    """Studies by UID, what was stored, and when to fail; it is source and destination."""

    studies: dict[str, list[Path]]
    limits: Limits = field(default_factory=Limits)
    stored: Counter[str] = field(default_factory=Counter)
    fetched: Counter[str] = field(default_factory=Counter)
    computed: Counter[str] = field(default_factory=Counter)
    kill_after: int | None = None
    refusals: int = 0

    def tick(self) -> None:
        if self.kill_after is not None:
            self.kill_after -= 1
            if self.kill_after < 0:
                raise Killed

    def meter(self) -> Meter:
        return Meter(self.limits, "ARCHIVE")

    def find(self, query: Mapping[str, str], *, level: str, limit: int) -> list[StudyMatch]:
        if level == "SERIES":
            return [StudyMatch(query["StudyInstanceUID"], modality, modality, "", None) for modality in ("CT", "SR")]
        return [StudyMatch(uid, None, "CT", "", len(files)) for uid, files in self.studies.items()][:limit]

    def fetch(
        self, study_uid: str, series_uid: str | None, folder: Path, *, meter: Meter | None = None
    ) -> Iterator[Path]:
        assert meter is not None
        self.fetched[study_uid if series_uid is None else series_uid] += 1
        for path in self.studies[study_uid]:
            self.tick()
            meter.count(path.stat().st_size)
            yield store_instance(folder, study_uid, str(dcmread(path).SOPInstanceUID), path.read_bytes())[0]
        self.tick()

    def send(self, files: Sequence[Path]) -> SendResult:
        if self.refusals:
            self.refusals -= 1
            raise PacsError("ARCHIVE did not answer")
        self.tick()
        for path in files:
            self.stored[str(dcmread(path).SOPInstanceUID)] += 1
        self.tick()
        return SendResult(tuple(files), {})

    def compute(self, route: Route, study: Path, output: Path) -> Sequence[Path]:
        self.tick()
        done = answer_one(route, study, output)
        self.computed[study.name] += 1
        self.tick()
        return done

    def answered_once(self) -> bool:
        """Whether each study has its one result, and no result came twice under another name."""
        return len(self.stored) == len(self.studies) and set(self.computed) == {hash_uid(uid) for uid in self.studies}


def archive_of(folder: Path, names: str, count: int = 2) -> Archive:
    return Archive({str(make_instance(n, 0).StudyInstanceUID): write_study(folder, n, count) for n in names})


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    found = archive_of(tmp_path / "source", "abc")
    for room in (loop, work):
        monkeypatch.setattr(room, "open_remote", lambda _: found)
    return found


def run(archive: Archive, folder: Path, **options: object) -> Answered:
    node = DicomNode("ARCHIVE", "127.0.0.1", 4242, limits=archive.limits)
    rules = RunSettings("archive", folder / "run", min_free_gb=0.0, retry_seconds=0.0)
    route = Route("r", Path("bundle"), ("seg",), ("archive",))
    whole = PacsSettings({"archive": node}, None, (route,), replace(rules, **options))  # type: ignore[arg-type]
    return answer_studies(whole, compute=archive.compute)


def test_each_study_is_answered_once_and_a_second_run_does_nothing(archive: Archive, tmp_path: Path) -> None:
    first = run(archive, tmp_path)
    assert (first.found, first.known, first.left, len(first.done), first.failed) == (3, 0, 0, 3, {})
    assert archive.answered_once()
    second = run(archive, tmp_path)
    assert (second.found, second.known, second.done) == (3, 3, {})
    assert set(archive.stored.values()) == set(archive.computed.values()) == set(archive.fetched.values()) == {1}
    assert not list((tmp_path / "run" / "studies").rglob("*.dcm")), "images are dropped, the archive has them"
    assert len(list((tmp_path / "run" / "results").rglob("*.dcm"))) == 3


@settings(max_examples=12, deadline=None)
@given(kills=st.lists(st.integers(0, 14), max_size=4))
def test_wherever_it_is_killed_each_study_is_answered_once(kills: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        archive = archive_of(Path(name) / "source", "ab")
        for room in (loop, work):
            patch.setattr(room, "open_remote", lambda _: archive)
        deaths = 0
        for archive.kill_after in kills:
            try:
                run(archive, Path(name))
            except Killed:
                deaths += 1
        archive.kill_after = None
        last = run(archive, Path(name))
        assert last.failed == {}
        assert last.known + len(last.done) == 2
        assert archive.answered_once()
        extra = sum(archive.stored.values()) + sum(archive.computed.values()) - 4
        assert extra <= deaths, "only the step that was cut off is repeated"


def test_the_limit_on_studies_leaves_the_rest_for_later_runs(archive: Archive, tmp_path: Path) -> None:
    archive.limits = Limits(studies=2)
    assert (len(run(archive, tmp_path).done), sum(archive.stored.values())) == (2, 2)
    second = run(archive, tmp_path)
    assert (second.known, len(second.done), second.left) == (2, 1, 0)
    assert archive.answered_once()


def test_a_study_that_is_too_large_is_not_fetched_and_the_others_are_answered(archive: Archive, tmp_path: Path) -> None:
    large = str(make_instance("large", 0).StudyInstanceUID)
    archive.studies[large] = write_study(tmp_path / "source", "large", 5)
    archive.limits = Limits(instances=4)
    answered = run(archive, tmp_path)
    assert len(answered.done) == 3
    assert list(answered.failed) == [hash_uid(large)]
    assert "limits.instances" in answered.failed[hash_uid(large)]
    assert archive.fetched[large] == 0
    archive.limits = Limits()
    assert list(run(archive, tmp_path).done) == [hash_uid(large)], "failed studies are tried again by the next run"


def test_bytes_are_limited_and_what_came_is_dropped(archive: Archive, tmp_path: Path) -> None:
    archive.limits = Limits(megabytes=0.001)
    answered = run(archive, tmp_path, modalities=("CT", "SR"))
    assert len(answered.failed) == 3
    assert all("limits.megabytes" in reason for reason in answered.failed.values())
    assert not list((tmp_path / "run" / "studies").rglob("*.dcm"))


def test_only_series_of_the_modalities_wanted_are_fetched(archive: Archive, tmp_path: Path) -> None:
    assert len(run(archive, tmp_path, modalities=("CT",)).done) == 3
    assert archive.fetched == {"CT": 3}


def test_a_destination_that_is_down_for_a_while_gets_its_results(archive: Archive, tmp_path: Path) -> None:
    archive.refusals = 2
    answered = run(archive, tmp_path, attempts=3)
    assert (len(answered.done), answered.failed) == (3, {})
    assert set(archive.computed.values()) == {1}


def test_a_destination_that_stays_down_fails_the_studies_and_the_next_run_sends(
    archive: Archive, tmp_path: Path
) -> None:
    archive.refusals = 6
    answered = run(archive, tmp_path, attempts=2)
    assert len(answered.failed) == 3
    assert set(answered.failed.values()) == {"ARCHIVE did not answer"}
    assert len(run(archive, tmp_path, attempts=2).done) == 3
    assert archive.answered_once()


def test_a_study_that_comes_in_part_is_not_answered(archive: Archive, tmp_path: Path) -> None:
    uid = next(iter(archive.studies))
    whole = archive.find({}, level="STUDY", limit=9)
    archive.find = lambda *_, **__: whole  # type: ignore[method-assign]  # what the archive says it has
    lost = archive.studies[uid].pop()
    answered = run(archive, tmp_path, attempts=2)
    assert list(answered.failed) == [hash_uid(uid)]
    assert "1 instances came, expected 2" in answered.failed[hash_uid(uid)]
    archive.studies[uid].append(lost)
    assert list(run(archive, tmp_path).done) == [hash_uid(uid)]


def test_a_full_disk_stops_fetching(archive: Archive, tmp_path: Path) -> None:
    answered = run(archive, tmp_path, min_free_gb=1e9, attempts=1)
    assert not archive.fetched
    assert all("GB are free" in reason for reason in answered.failed.values())


def test_a_disk_that_fills_up_in_the_middle_is_a_clear_error_and_nothing_is_lost(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Queue):
        def complete(self, study: str) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "Queue", Full)
        with pytest.raises(CaseFailed, match="disk is full"):
            run(archive, tmp_path)
    assert not archive.stored
    assert len(run(archive, tmp_path).done) == 3
    assert archive.answered_once()


def test_a_study_in_which_nothing_fits_is_done_with_the_reason(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Sequence[Path]:
        raise Refusal("wrong-modality", "found CT, expected MR")

    monkeypatch.setattr(archive, "compute", refuse)
    assert all("expected MR" in reason for reason in run(archive, tmp_path).done.values())
    assert run(archive, tmp_path).known == 3


def test_two_runs_do_not_share_a_folder(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*_: object) -> Sequence[Path]:
        with pytest.raises(OutputLocked):
            run(archive, tmp_path)
        return []

    monkeypatch.setattr(archive, "compute", meanwhile)
    assert len(run(archive, tmp_path).done) == 3


def test_settings_without_a_run_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\[run\]"):
        answer_studies(PacsSettings())
