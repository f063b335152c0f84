"""The loop of a batch run on this machine: one case is read while another is computed and a third is written."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from medseg.inference.cases import LoadedCase
from medseg.inference.run.results import CaseResult
from medseg.inference.run.state import Hand, Ledger
from medseg.inference.run.work import (
    BackgroundJob,
    Watchdog,
    attempt,
    compute,
    open_tools,
    read,
    take,
    write,
    written,
)


class Batch:
    """Computes the cases that the journal does not hold yet.

    Parameters
    ----------
    ledger
        The cases and what became of them.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.setting = ledger, ledger.setting
        self._patience_s = self.setting.options.stall_s
        self._watchdog = Watchdog(self._patience_s)
        self._reading: deque[tuple[Hand, BackgroundJob[tuple[LoadedCase, str]]]] = deque()
        self._writing: deque[tuple[Hand, BackgroundJob[CaseResult]]] = deque()

    def run(self, hands: Iterable[Hand]) -> None:
        """Read, compute and write the cases in hand; suspects come last."""
        waiting = deque(hands)
        tools = open_tools(self.setting)
        while waiting or self._reading:
            self._read_ahead(waiting)
            hand, job = self._reading.popleft()
            waited = partial(take, hand, job, self._watchdog, self._patience_s)
            computed = partial(compute, hand, self.setting, tools, self._watchdog)
            if self._attempt(hand, "reading", waited) and self._attempt(hand, "computing", computed):
                self._writing.append((hand, BackgroundJob(partial(write, hand, self.setting))))
            while len(self._writing) > self.setting.options.workers:
                self._finish_oldest()
        while self._writing:
            self._finish_oldest()

    def wind_down(self) -> None:
        """After an interruption: keep what is being written, and forget that the others were in hand."""
        self.ledger.progress = None
        while self._writing:
            self._finish_oldest()
        self.ledger.forget_open()

    def _read_ahead(self, waiting: deque[Hand]) -> None:
        while waiting and len(self._reading) <= self.setting.options.workers:
            if waiting[0].suspect:
                if self._reading:
                    return
                while self._writing:
                    self._finish_oldest()
            self._start_reading(waiting.popleft())

    def _start_reading(self, hand: Hand) -> None:
        self.ledger.begin(hand, here=True)
        hand.begin = time.perf_counter()
        self._reading.append((hand, BackgroundJob(partial(read, hand, self.setting))))

    def _finish_oldest(self) -> None:
        hand, job = self._writing.popleft()

        def record() -> None:
            self.ledger.settle(hand, written(hand, job, self._watchdog, self._patience_s))

        self._attempt(hand, "writing", record)

    def _attempt(self, hand: Hand, stage: str, action: Callable[[], None]) -> bool:
        failed = attempt(hand, stage, action)
        if failed is not None:
            self.ledger.settle(hand, failed)
        return failed is None
