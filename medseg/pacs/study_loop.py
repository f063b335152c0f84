"""The whole loop in one go: find studies by rules, fetch them, compute, send the results back; each study once.

The queue is the listener's. A study is ``receiving`` while it is fetched and stays so if that is cut off, so that the
next run fetches it again; from then on it walks like one that was sent to us. Started again, a run goes on where the
last one stopped: studies that are ``done`` are left alone, results that a destination has taken are not sent again.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from medseg.errors import CaseFailed, UsageError
from medseg.files import locked_folder, remove_leftovers
from medseg.pacs.connect import open_remote
from medseg.pacs.incoming import clear_incoming
from medseg.pacs.queue import Queue
from medseg.pacs.receive import hash_uid
from medseg.pacs.remote import LimitExceeded, PacsError, Remote, StudyMatch
from medseg.pacs.settings import PacsSettings, RunSettings
from medseg.pacs.study_worker import Compute, Work, routes_kept_open

_log = logging.getLogger(__name__)
_MOST_MATCHES = 100_000
_UNFINISHED = "only part of it came before it was cut off, and the source does not find it any more"


@dataclass(frozen=True)
class Answered:
    """What one run did."""

    found: int  # studies that match the rules
    known: int  # of these, studies that earlier runs have answered
    left: int  # of these, studies left for later runs by the limit on studies
    # studies answered by this run, with the reason where nothing fitted a route; keys are hashes of UIDs
    done: dict[str, str]
    failed: dict[str, str]  # studies that could not be answered, with the reason; the next run tries them again


def answer_studies(
    settings: PacsSettings, *, compute: Compute | None = None, progress: Callable[[str, str], None] | None = None
) -> Answered:
    """Answer every study of ``settings.run.source`` that matches and was not answered before.

    ``settings``: with a ``[run]`` section and routes. ``compute``: what a route does with a study; for tests.
    ``progress``: called with the hash and the state of each study when it comes to an end. Raises ``UsageError`` if the
    settings have no ``[run]`` section, or no route; ``OutputLocked`` if another run uses the folder; ``PacsError`` if
    the source cannot be searched; ``CaseFailed`` if the queue cannot be written, as on a full disk.
    """
    if settings.run is None or not settings.routes:
        raise UsageError("the settings need a [run] section and at least one of [[routes]]; see docs/pacs.md")
    folder = settings.run.folder
    refusal = f"another run uses {folder}; wait for it, or give [run] another folder for another task"
    with locked_folder(folder, refusal):
        queue = Queue(folder / "queue.sqlite")
        try:
            return _Loop(
                settings, settings.run, queue, compute or routes_kept_open(), progress or (lambda *_: None)
            ).run()
        except sqlite3.OperationalError as error:
            raise CaseFailed(f"the queue cannot be written ({error}); free space and start again") from error
        finally:
            queue.close()


class _Loop:
    """One run."""

    def __init__(
        self,
        settings: PacsSettings,
        run: RunSettings,
        queue: Queue,
        compute: Compute,
        progress: Callable[[str, str], None],
    ) -> None:
        self._run, self._queue, self._progress = run, queue, progress
        self._work = Work(settings, run, queue, compute)
        self._node = settings.nodes[run.source]
        self._source: Remote = open_remote(self._node)
        self._studies = run.folder / "studies"
        self._told: dict[str, str] = {}

    def run(self) -> Answered:
        """Find, then fetch and answer study by study; what waits for another attempt comes last."""
        for folder in self._studies.glob("*"):
            remove_leftovers(folder)
        clear_incoming(self._studies)
        self._queue.recover()
        self._tell(aloud=False)
        before = {study for study, state in self._told.items() if state == "done"}
        matches = {
            hash_uid(match.study_uid): match
            for match in self._source.find(self._run.where, level="STUDY", limit=_MOST_MATCHES)
        }
        wanted = [key for key in matches if key not in before]
        taken = wanted[: self._node.limits.studies]
        for key in taken:
            self._queue.revive(key)
            if self._queue.state_of(key) in (None, "receiving"):
                self._fetch(key, matches[key])
            self._finish(wait=False)
        self._finish(wait=True)
        left = set(wanted) - set(taken)
        ended = [study for study in self._queue.studies() if study.study not in before | left]
        return Answered(
            found=len(matches),
            known=len(matches) - len(wanted),
            left=len(left),
            done={study.study: study.message for study in ended if study.state == "done"},
            failed={study.study: study.message or _UNFINISHED for study in ended if study.state != "done"},
        )

    def _fetch(self, key: str, match: StudyMatch) -> None:
        for attempt in range(1, self._run.attempts + 1):
            try:
                self._fetch_once(key, match)
            except LimitExceeded as error:
                shutil.rmtree(self._studies / key, ignore_errors=True)
                self._fail(key, str(error))
                return
            except PacsError as error:
                if attempt == self._run.attempts:
                    self._fail(key, str(error))
                    return
                _log.warning("study %s: %s; trying again", key, error)
                time.sleep(self._run.retry_seconds)
            else:
                self._queue.complete(key)
                return

    def _fetch_once(self, key: str, match: StudyMatch) -> None:
        free = shutil.disk_usage(self._run.folder).free
        if free < self._run.min_free_gb * 2**30:
            raise PacsError(f"less than {self._run.min_free_gb:g} GB are free in {self._run.folder}; free space")
        meter = self._source.meter()
        if match.instances and not self._run.modalities:
            meter.check(match.instances)
        for series_uid in self._series(match):
            for path in self._source.fetch(match.study_uid, series_uid, self._studies, meter=meter):
                self._queue.arrived(key, path.stem, changed=False, now=time.time())
        expected = 1 if self._run.modalities else match.instances or 1
        if meter.instances < expected:
            raise PacsError(f"{meter.instances} instances came, expected {expected}; is the study still at the source?")

    def _series(self, match: StudyMatch) -> list[str | None]:
        """The series to fetch; None for all of the study."""
        if not self._run.modalities:
            return [None]
        query = {"StudyInstanceUID": match.study_uid}
        series = self._source.find(query, level="SERIES", limit=_MOST_MATCHES)
        return [one.series_uid for one in series if one.modality in self._run.modalities]

    def _fail(self, key: str, reason: str) -> None:
        _log.warning("study %s: %s", key, reason)
        self._queue.refuse(key, reason, time.time())

    def _finish(self, *, wait: bool) -> None:
        """Work on what is due; with ``wait`` also on what is due later, until nothing is left."""
        while self._work.step() or (wait and self._sleep_until_due()):
            self._tell()
        self._tell()

    def _sleep_until_due(self) -> bool:
        due = self._queue.next_due()
        if due is None:
            return False
        time.sleep(max(0.0, due - time.time()))
        return True

    def _tell(self, *, aloud: bool = True) -> None:
        """Report studies that came to an end, and drop the images of those that are done."""
        for study in self._queue.studies():
            if study.state in ("done", "failed") and self._told.get(study.study) != study.state:
                self._told[study.study] = study.state
                if aloud:
                    self._progress(study.study, study.state)
                if study.state == "done" and not self._run.keep_images:
                    shutil.rmtree(self._studies / study.study, ignore_errors=True)
