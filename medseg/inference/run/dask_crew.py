"""Which workers there are, which have opened the bundle, and which are gone."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medseg.errors import Interrupted, UsageError
from medseg.inference.run.cluster import distributed
from medseg.inference.run.dask_worker import Ready, RunCard, prepare

POLL_S = 1.0
"""How often the scheduler is asked which workers there are."""

_ANSWER_S = 30.0
_MAX_STILLBORN = 5
_PATIENCE_S = 60.0
_log = logging.getLogger(__name__)


@dataclass
class Member:
    """A worker process.

    Parameters
    ----------
    address
        Where the scheduler reaches it.
    folder
        Its scratch folder, which tells it from a process that takes its place at the same address.
    threads
        What Dask lets it use: so many threads the network uses.
    ready
        What it answered when it was to open the bundle; None as long as it has not.
    """

    address: str
    folder: str
    threads: int
    opening: Any
    ready: Ready | None = None

    @property
    def usable(self) -> bool:
        """Whether it has opened the bundle."""
        return self.ready is not None and not self.ready.refusal


@dataclass
class Crew:
    """The workers of a run.

    Parameters
    ----------
    client
        Client of the scheduler.
    card
        What every worker is told of the run.
    events
        Gets None whenever a worker has answered.
    """

    client: distributed.Client
    card: RunCard
    events: queue.SimpleQueue[str | None]
    members: dict[str, Member] = field(default_factory=dict)
    _next_look: float = 0.0
    _stillborn: int = 0
    _alone_since: float = field(default_factory=time.monotonic)
    _refusals: set[str] = field(default_factory=set)

    @property
    def usable(self) -> list[Member]:
        """Workers that can be given a case."""
        return [member for member in self.members.values() if member.usable]

    def update(self) -> list[Member]:
        """Ask new workers to open the bundle, and return those that are gone.

        Raises
        ------
        UsageError
            If every worker refuses, or one after another dies while it opens the bundle.
        Interrupted
            If the scheduler is gone.
        """
        gone: list[Member] = []
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL_S * max(1.0, len(self.members) / 100)
            gone = self._look()
        for member in self.members.values():
            if member.ready is None and member.opening.done():
                self._greet(member)
        self._complain()
        return gone

    def _look(self) -> list[Member]:
        found = self._found()
        same = {address for address, member in self.members.items() if _folder(found.get(address)) == member.folder}
        gone = [self.members.pop(address) for address in list(self.members) if address not in same]
        self._stillborn += sum(member.ready is None for member in gone)
        for address, worker in found.items():
            if address not in self.members:
                self._add(address, _folder(worker), int(worker["nthreads"]))
        return gone

    def _found(self) -> Mapping[str, Mapping[str, Any]]:
        """The workers that the scheduler knows, by address.

        Asked for directly: ``Client.scheduler_info`` may give what a regular update of the client has put in its place
        meanwhile, which names no workers.
        """
        scheduler = self.client.scheduler
        try:
            if scheduler is None:
                raise OSError
            return self.client.sync(scheduler.identity, n_workers=-1)["workers"]
        except (OSError, TimeoutError) as error:
            raise Interrupted("the Dask scheduler does not answer any more") from error

    def _add(self, address: str, folder: str, threads: int) -> None:
        opening = self.client.submit(
            prepare, self.card, threads, workers=[address], allow_other_workers=False, pure=False
        )
        opening.add_done_callback(lambda _: self.events.put(None))
        self.members[address] = Member(address, folder, threads, opening)

    def _greet(self, member: Member) -> None:
        try:
            member.ready = member.opening.result(timeout=_ANSWER_S)
        except (TimeoutError, distributed.KilledWorker, distributed.CancelledError):
            return  # it died meanwhile: the next look tells
        except Exception as error:  # noqa: BLE001  whatever a worker without medseg raises when it is to load our functions
            what = f"it raised {type(error).__name__}; is the same medseg installed there?"
            member.ready = Ready(refusal=what)
        if member.usable:
            self._stillborn = 0
            _log.info("worker %s has opened the bundle, %d threads", member.address, member.threads)
        elif member.ready is not None and member.ready.refusal not in self._refusals:
            self._refusals.add(member.ready.refusal)
            _log.warning("worker %s cannot be used: %s", member.address, member.ready.refusal)

    def _complain(self) -> None:
        if self._stillborn >= _MAX_STILLBORN:
            raise UsageError(
                f"{self._stillborn} workers died one after another while they opened the bundle; see their logs"
            )
        answered = [member for member in self.members.values() if member.ready is not None]
        if answered and len(answered) == len(self.members) and not self.usable:
            raise UsageError(f"no worker of the cluster can be used: {'; '.join(sorted(self._refusals))}")
        if self.usable:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > _PATIENCE_S:
            self._alone_since = time.monotonic() + 10 * _PATIENCE_S
            _log.warning("no worker can be given a case yet: %d have joined; still waiting", len(self.members))


def _folder(found: Mapping[str, Any] | None) -> str:
    """The scratch folder of a worker that the scheduler has told of."""
    return "" if found is None else str(found["local_directory"])
