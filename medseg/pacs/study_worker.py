"""What is done with a complete study: choose a route's series, run its bundle, send the results."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from medseg.errors import CaseFailed, MedsegError, ReasonCode, Refusal
from medseg.pacs.connect import open_remote
from medseg.pacs.queue import Queue, Study
from medseg.pacs.remote import Remote
from medseg.pacs.settings import ListenerSettings, PacsSettings, Route, RunSettings

if TYPE_CHECKING:
    from medseg.inference.run.pipeline import OpenedBundle

_log = logging.getLogger(__name__)

Compute = Callable[[Route, Path, Path], Sequence[Path]]
"""``(route, folder of the study, folder for results) → DICOM files to send``; a Refusal says that nothing fits."""


def routes_kept_open() -> Compute:
    """Runs routes as :func:`run_route` does; the networks of each stay open from study to study."""
    return partial(run_route, kept={})


def run_route(
    route: Route, study_folder: Path, output: Path, *, kept: MutableMapping[str, OpenedBundle] | None = None
) -> Sequence[Path]:
    """Run a route's bundle over the series that its rules choose; goes on where a killed run stopped.

    ``kept`` is as for :func:`medseg.inference.run_batch`. Raises ``Refusal`` if no series of the study fits the route:
    another attempt would find the same; ``CaseFailed`` if a series that fits could not be labelled or written.
    """
    from medseg.inference import Options, run_batch

    select = str(route.select) if route.select else None
    options = Options(route.write, select, device=route.device, precision=route.precision, locate=route.locate)
    cases = run_batch(route.bundle, [study_folder], output, options, kept=kept).cases
    for case in cases:
        if case.status == "failed":
            raise CaseFailed(f"{case.case_id}: {case.message}")
    refused = [case for case in cases if case.status == "refused"]
    if len(refused) == len(cases):
        code = cast("ReasonCode", refused[0].reason)
        raise Refusal(code, "; ".join(dict.fromkeys(case.message for case in refused)))
    return sorted(output.glob("*.dcm"))


class Work:
    """Moves studies of a queue on, one step at a time; to be called from one thread."""

    def __init__(
        self, settings: PacsSettings, work: ListenerSettings | RunSettings, queue: Queue, compute: Compute
    ) -> None:
        self._routes, self._nodes, self._settings = settings.routes, settings.nodes, work
        self._queue, self._compute = queue, compute
        self._remotes: dict[str, Remote] = {}

    def step(self) -> bool:
        """Compute one study, or send its results; False if none is due.

        What fails is noted in the queue, which says when and whether it is tried again.
        """
        study = self._queue.take(time.time())
        if study is None:
            return False
        try:
            if study.state == "waiting":
                self._queue.advance(study, "sending", self._compute_all(study))
            else:
                self._send_all(study)
                # after an attempt that failed the message is that attempt's, which is over
                self._queue.advance(study, "done", "" if study.attempts else study.message)
        except (MedsegError, OSError, RuntimeError, ValueError) as error:
            _log.warning("study %s: %s", study.study, error)
            until = time.time() + self._settings.retry_seconds
            self._queue.postpone(study, str(error), attempts=self._settings.attempts, until=until)
        return True

    def _results(self, study: Study, route: Route) -> Path:
        return self._settings.folder / "results" / study.study / str(study.revision) / route.name

    def _compute_all(self, study: Study) -> str:
        """Compute every route; what is returned says of which routes nothing fits, and why."""
        reasons = []
        for route in self._routes:
            try:
                self._compute(route, self._settings.folder / "studies" / study.study, self._results(study, route))
            except Refusal as refusal:
                _log.info("study %s, route %s: %s", study.study, route.name, refusal)
                reasons.append(f"{route.name}: {refusal}")
        return "; ".join(reasons)

    def _send_all(self, study: Study) -> None:
        failures: list[str] = []
        for route in self._routes:
            files = sorted(self._results(study, route).glob("*.dcm"))
            for destination in route.send_to:
                failures += self._send(study, files, destination)
        if failures:
            raise MedsegError(f"{len(failures)} results were not taken, the first because: {failures[0]}")

    def _send(self, study: Study, files: Sequence[Path], destination: str) -> list[str]:
        names = {path: str(path.relative_to(self._settings.folder)) for path in files}
        left = [path for path in files if not self._queue.was_sent(study.study, names[path], destination)]
        if not left:
            return []
        remote = self._remotes.setdefault(destination, open_remote(self._nodes[destination]))
        result = remote.send(left)
        for path in result.sent:
            self._queue.mark_sent(study.study, names[path], destination)
        return [f"{destination}: {reason}" for reason in result.failed.values()]


class Worker:
    """One thread that works on complete studies, one at a time, until it is stopped."""

    def __init__(self, settings: PacsSettings, listener: ListenerSettings, queue: Queue, compute: Compute) -> None:
        self._work = Work(settings, listener, queue, compute)
        self._settings, self._queue = listener, queue
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="medseg-worker", daemon=True)

    def start(self) -> None:
        """Start working."""
        self._thread.start()

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Finish the study in hand if it takes no longer than the timeout, then stop."""
        self._stop.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._queue.close_quiet(time.time() - self._settings.quiet_seconds)
            if not self._work.step():
                self._stop.wait(min(0.5, self._settings.quiet_seconds / 4))
