"""The loop of a batch run on a cluster: cases are handed to workers, a few at a time, and their results noted.

Every order goes to one named worker. When that worker is gone, the cases that it had in hand are known: they are tried
again, each alone on a worker, so that the one that kills workers is told apart from those that only were there.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from medseg.errors import Interrupted, UsageError
from medseg.inference.cases import InputCase
from medseg.inference.run.cluster import connected, distributed
from medseg.inference.run.dask_crew import POLL_S, Crew, Member
from medseg.inference.run.dask_worker import Reply, card_of, order_of, process
from medseg.inference.run.options import parse_place
from medseg.inference.run.results import CaseResult, result_of_error
from medseg.inference.run.state import Hand, Ledger
from medseg.signals import signals_ignored

MAX_WORKER_DEATHS = 3
"""How often a worker may die with a case in hand before this run gives the case up."""

_ANSWER_S = 30.0
_log = logging.getLogger(__name__)


@dataclass
class _Flight:
    """A case in the hand of a worker."""

    hand: Hand
    member: Member
    future: Any
    begin: float = field(default_factory=time.monotonic)
    named: bool = False


class ClusterBatch:
    """Has the cases computed that the journal does not hold yet.

    Parameters
    ----------
    ledger
        The cases and what became of them.

    Raises
    ------
    UsageError
        If the bundle's own code is to run, which needs a process without network.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.setting = ledger, ledger.setting
        if self.setting.bundle.permission == "everything":
            raise UsageError(
                "the bundle's own code runs only without network, which a cluster needs; leave --cluster out"
            )
        self._waiting: deque[Hand] = deque()
        self._suspects: deque[Hand] = deque()
        self._flights: dict[str, _Flight] = {}
        self._events: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._deaths: Counter[str] = Counter()
        self._card = card_of(self.setting)
        self._orders = 0

    def run(self, hands: Iterable[Hand]) -> None:
        """Have the cases in hand computed; suspects come last."""
        for hand in hands:
            (self._suspects if hand.suspect else self._waiting).append(hand)
        place = parse_place(self.setting.options.cluster or "")
        with connected(place, self.setting.folder) as client:
            crew = Crew(client, self._card, self._events)
            try:
                while self._waiting or self._suspects or self._flights:
                    self._turn(crew)
            finally:
                with signals_ignored():
                    self._let_go()

    def wind_down(self) -> None:
        """After an interruption: what is in the hands of workers was not finished."""
        self.ledger.progress = None
        self.ledger.forget_open()

    def _turn(self, crew: Crew) -> None:
        for member in crew.update():
            self.ledger.workers_lost += 1
            self._lost([flight for flight in self._flights.values() if flight.member is member])
        self._hand_out(crew)
        self._name_slow_ones()
        self._collect(POLL_S)

    # --- handing out -----------------------------------------------------------------------------------------------

    def _hand_out(self, crew: Crew) -> None:
        """Give every worker one case, then as many as it reads ahead."""
        usable = crew.usable
        in_hand: defaultdict[str, list[Hand]] = defaultdict(list)
        for flight in self._flights.values():
            in_hand[flight.member.address].append(flight.hand)
        for level in range(1 + self.setting.options.workers):
            for member in usable:
                theirs = in_hand[member.address]
                hand = self._next(theirs) if len(theirs) == level < member.threads else None
                if hand is not None:
                    theirs.append(hand)
                    self._order(crew.client, member, hand)

    def _next(self, in_hand: list[Hand]) -> Hand | None:
        if any(hand.suspect for hand in in_hand):
            return None
        if self._waiting:
            return self._waiting.popleft()
        return self._suspects.popleft() if self._suspects and not in_hand else None

    def _order(self, client: distributed.Client, member: Member, hand: Hand) -> None:
        self._orders += 1
        key = f"medseg-{self._card.claim}-{self._orders}"  # shown in logs and dashboards of Dask: nothing of the case
        order = order_of(self._card, hand.case)
        self.ledger.begin(hand, here=False)
        future = client.submit(
            process, order, key=key, workers=[member.address], allow_other_workers=False, pure=False, retries=0
        )
        self._flights[key] = _Flight(hand, member, future)
        future.add_done_callback(lambda done: self._events.put(done.key))

    # --- what comes back -------------------------------------------------------------------------------------------

    def _collect(self, wait_s: float) -> None:
        with suppress(queue.Empty):
            self._conclude(self._events.get(timeout=wait_s))
            while True:
                self._conclude(self._events.get_nowait())

    def _conclude(self, key: str | None) -> None:
        flight = self._flights.get(key or "")
        if flight is None:
            return
        try:
            reply = flight.future.result(timeout=_ANSWER_S)
        except TimeoutError:  # its worker died before it could answer, or is slow to: the next look at the crew tells
            if flight.future.done():
                self._events.put(key)
        except distributed.KilledWorker:
            self._lost([flight])
        except distributed.CancelledError:  # by somebody else, or with the connection: nobody died
            self._drop(flight)
            (self._suspects if flight.hand.suspect else self._waiting).append(flight.hand)
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001  recorded as this case's result
            self._settle(flight, result_of_error(flight.hand.case.case_id, flight.hand.case.source, error, "computing"))
        else:
            self._note(flight, reply)

    def _note(self, flight: _Flight, reply: Reply) -> None:
        flight.hand.content_key = reply.content_key
        self._settle(flight, reply.result)

    def _settle(self, flight: _Flight, result: CaseResult) -> None:
        self._drop(flight)
        self.ledger.settle(flight.hand, result)

    def _lost(self, flights: list[_Flight]) -> None:
        """Cases whose worker is gone: another try, alone, or the end of trying."""
        for flight in flights:
            hand, case = flight.hand, flight.hand.case
            self._drop(flight)
            self.ledger.died(hand)
            self._deaths[case.case_id] += 1
            tries = self._deaths[case.case_id]
            if tries >= MAX_WORKER_DEATHS:
                self.ledger.settle(hand, _given_up(case, tries))
                continue
            _log.warning(
                "a worker died with %s in hand (%d of %d); trying it alone", case.case_id, tries, MAX_WORKER_DEATHS
            )
            self._suspects.append(hand)

    def _drop(self, flight: _Flight) -> None:
        self._flights.pop(flight.future.key, None)
        if not flight.future.done():
            flight.future.cancel()

    def _name_slow_ones(self) -> None:
        limit_s = self.setting.options.stall_s
        for flight in self._flights.values():
            if not flight.named and time.monotonic() - flight.begin > limit_s * min(flight.member.threads, 2):
                flight.named = True
                _log.warning(
                    "%s: worker %s has had it for more than %.0f s and is still running",
                    flight.hand.case.case_id,
                    flight.member.address,
                    limit_s,
                )

    def _let_go(self) -> None:
        """Keep what is finished; take the rest out of the workers' hands."""
        self.ledger.progress = None if self._flights else self.ledger.progress
        with suppress(Interrupted, OSError):
            self._collect(0)
            for flight in list(self._flights.values()):
                flight.future.cancel()


def _given_up(case: InputCase, tries: int) -> CaseResult:
    message = (
        f"{tries} workers died while this case was in hand (out of memory, a crash in a decoder, or the machine);"
        " it was given up so that the others finish; try it alone without --cluster, or crop with --roi"
    )
    return CaseResult(case.case_id, case.source, "failed", "worker-died", message)
