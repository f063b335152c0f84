"""A batch on Dask workers: one task for each case, which Dask schedules, repeats, and blames if its workers die.

A worker that has opened the bundle offers Dask a resource, of which a case needs one. The driver alone writes the
run's state. Dask's logs show nothing of a case: tasks have numbers, and what they take and give shows only its type.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from medseg.errors import Interrupted, MedsegError, UsageError
from medseg.inference.cases import InputCase
from medseg.inference.run.cluster import connected, distributed
from medseg.inference.run.options import RunContext, RunSpec, parse_place
from medseg.inference.run.pipeline import OpenedBundle, work_on
from medseg.inference.run.state import RunState
from medseg.results.case_result import CaseResult
from medseg.signals import signals_ignored

T = TypeVar("T")

_POLL_S = 1.0
_ANSWER_S = 30.0
_PATIENCE_S = 60.0
_MAX_FAILED_STARTS = 5
_KILLER = (
    "one worker after another died while this case was in hand (out of memory, a crash in a decoder, or the"
    " machine); it was given up so that the others finish; try it alone without --cluster, or crop with --roi"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Hidden(Generic[T]):
    """Something on its way that shows only its type."""

    value: T


class OpenBundlePlugin(distributed.WorkerPlugin):
    """Opens the bundle of a run once in every worker, also in those that join later.

    Its name is that of the output folder, so that the next run there takes its place if the driver was killed.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.name = f"medseg-{hashlib.sha256(spec.folder.encode()).hexdigest()[:12]}"
        self.refusal: str | None = None
        self._opened: tuple[RunContext, OpenedBundle] | None = None

    async def setup(self, worker: distributed.Worker) -> None:
        """Open the bundle, then offer to take as many cases at once as are read ahead, and one."""
        threads = worker.state.nthreads
        self.refusal = await asyncio.to_thread(self.open, threads)
        if not self.refusal:
            await worker.set_resources(**{self.name: min(threads, 1 + self.spec.options.workers)})
            # a new resource alone does not have the scheduler look whether a case waits for it
            worker.status = distributed.Status.paused
            worker.status = distributed.Status.running

    async def teardown(self, worker: distributed.Worker) -> None:
        """Let go of the bundle."""
        self._opened = None
        await worker.set_resources(**{self.name: 0})

    def open(self, threads: int) -> str:
        """Open what computing needs; why this process cannot work for the run, empty if it can."""
        torch.set_num_threads(threads)
        try:
            context = self.spec.open()
            self._opened = context, OpenedBundle.of(context)
        except MedsegError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  no GPU, no memory: told to the driver, which goes on without it
            return f"opening the bundle raised {type(error).__name__} there: {str(error)[:200]}"
        return ""

    def process(self, case: Hidden[InputCase]) -> Hidden[tuple[CaseResult, str]]:
        """Take one case through all stages: its result, and the digest of its bytes.

        A run that has ended, or that another one has replaced, is ``Interrupted``.
        """
        if self._opened is None:
            raise Interrupted("the run that this case belongs to has ended")
        context, opened = self._opened
        context.require_lease()
        return Hidden(work_on(case.value, context, opened))


def _process(name: str, case: Hidden[InputCase]) -> Hidden[tuple[CaseResult, str]]:
    found: Hidden[tuple[CaseResult, str]] = distributed.get_worker().plugins[name].process(case)
    return found


def _refusal(name: str, dask_worker: distributed.Worker) -> str | None:
    """Why a worker cannot be used; empty if it can, None while it opens the bundle."""
    return getattr(dask_worker.plugins.get(name), "refusal", None)


class DaskPipeline:
    """Has the cases of a run computed by the workers of a cluster; not for a bundle whose own code is to run."""

    def __init__(self, context: RunContext, state: RunState) -> None:
        if context.bundle.permission == "everything":
            raise UsageError(
                "the bundle's own code runs only without network, which a cluster needs; leave --cluster out"
            )
        self._context, self._state = context, state
        self._plugin = OpenBundlePlugin(RunSpec.of(context))
        self._tasks: dict[distributed.Future, InputCase] = {}
        self._begun: dict[distributed.Future, float] = {}
        self._number = 0
        self._ready_at, self._lost_before = time.monotonic(), 0

    def run(self, cases: Sequence[InputCase]) -> None:
        """Have cases computed; one that Dask blames for its workers' deaths gets one last try, alone."""
        blamed = [case for case in cases if self._state.may_kill(case.case_id)]
        place = parse_place(self._context.options.cluster or "")
        with connected(place, self._context.folder) as client, client.as_current():
            client.subscribe_topic("all", self._count_lost)
            try:
                self._open_bundle(client)
                blamed += self._compute(client, [case for case in cases if case not in blamed])
                for case in blamed:
                    if self._compute(client, [case]):
                        self._state.settle(CaseResult(case.case_id, case.source, "failed", "worker-died", _KILLER))
            finally:
                with signals_ignored(), suppress(Exception):  # a scheduler that is gone needs no telling
                    self._let_go(client)

    def wind_down(self) -> None:
        """After an interruption: what was given to Dask and is not finished stays to be done."""
        self._state.progress = None

    def _compute(self, client: distributed.Client, cases: list[InputCase]) -> list[InputCase]:
        """Keep every worker busy until all cases are settled, but those that Dask blames, which are returned."""
        waiting, blamed = deque(cases), []
        while waiting or self._tasks:
            for _ in range(min(len(waiting), self._room(client) - len(self._tasks))):
                self._submit(client, waiting.popleft())
            for future in self._ready():
                case = self._tasks[future]
                try:
                    result, content_key = future.result(timeout=_ANSWER_S).value
                except TimeoutError:  # its worker died before it could answer: Dask has it computed again
                    continue
                except distributed.CancelledError:  # by somebody else, or with the connection: nobody died
                    waiting.append(case)
                except distributed.KilledWorker:
                    _log.warning("workers died with %s in hand", case.case_id)
                    self._state.died(case.case_id)
                    blamed.append(case)
                except Interrupted:
                    raise
                except Exception as error:  # noqa: BLE001  recorded as this case's result
                    self._state.settle(CaseResult.of_error(case.case_id, case.source, error, "computing"))
                else:
                    self._state.settle(result, content_key)
                del self._tasks[future], self._begun[future]
        return blamed

    def _submit(self, client: distributed.Client, case: InputCase) -> None:
        self._number += 1
        name, key = self._plugin.name, f"medseg-{self._context.lease}-{self._number}"
        sent = Hidden(case.absolute)
        future = client.submit(_process, name, sent, key=key, resources={name: 1}, retries=1, pure=False)
        self._tasks[future], self._begun[future] = case, time.monotonic()

    def _ready(self) -> list[distributed.Future]:
        """Wait until some task has ended, for a moment; name the cases that take long."""
        if not self._tasks:
            time.sleep(_POLL_S)
            return []
        with suppress(TimeoutError, distributed.CancelledError):
            distributed.wait(list(self._tasks), timeout=_POLL_S, return_when="FIRST_COMPLETED")
        limit_s = 2 * self._context.options.stall_s
        for future, case in self._tasks.items():
            if time.monotonic() - self._begun[future] > limit_s:
                self._begun[future] = math.inf  # it is named once
                _log.warning("%s: a worker has had it for more than %.0f s", case.case_id, limit_s)
        return [future for future in self._tasks if future.done()]

    def _let_go(self, client: distributed.Client) -> None:
        """Keep what is finished; take the rest out of the workers' hands."""
        self._state.progress = None if self._tasks else self._state.progress
        for future in self._tasks:
            if future.status == "finished":
                self._state.settle(*future.result(timeout=_ANSWER_S).value)
        client.cancel(list(self._tasks))
        client.unsubscribe_topic("all")
        client.unregister_worker_plugin(self._plugin.name)

    def _open_bundle(self, client: distributed.Client) -> None:
        try:
            client.register_plugin(self._plugin, name=self._plugin.name)
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001  whatever a worker without medseg raises, or one that dies meanwhile
            _log.warning("a worker could not open the bundle: %s", type(error).__name__)
        for why in filter(None, self._refusals(client)):
            _log.warning("a worker cannot be used: %s", why)

    def _count_lost(self, event: tuple[float, Any]) -> None:
        if event[1].get("action") == "remove-worker" and not event[1].get("expected"):
            self._state.workers_lost += 1

    def _room(self, client: distributed.Client) -> int:
        """How many cases the workers that have opened the bundle can have in hand.

        Asked of the scheduler itself: ``Client.scheduler_info`` may give an update that names no workers.
        """
        try:
            workers = client.sync(client.scheduler.identity, n_workers=-1)["workers"].values()
        except (AttributeError, OSError, TimeoutError) as error:
            raise Interrupted("the Dask scheduler does not answer any more") from error
        room = sum(int(worker["resources"].get(self._plugin.name, 0)) for worker in workers)
        if room:
            self._ready_at, self._lost_before = time.monotonic(), self._state.workers_lost
        else:
            self._check_hope(client)
        return room

    def _check_hope(self, client: distributed.Client) -> None:
        """While no worker can be used: whether one may be later."""
        failed = self._state.workers_lost - self._lost_before
        if failed >= _MAX_FAILED_STARTS:
            raise UsageError(f"{failed} workers died one after another while they opened the bundle; see their logs")
        refusals = self._refusals(client)
        if refusals and all(refusals):
            raise UsageError(f"no worker of the cluster can be used: {'; '.join(sorted({*map(str, refusals)}))}")
        if time.monotonic() - self._ready_at > _PATIENCE_S:
            self._ready_at = time.monotonic() + 10 * _PATIENCE_S
            _log.warning("no worker can be given a case yet: %d have joined; still waiting", len(refusals))

    def _refusals(self, client: distributed.Client) -> list[str | None]:
        found = client.run(_refusal, self._plugin.name, on_error="return").values()
        strange = "it raised {}; is the same medseg installed there?"
        return [strange.format(type(why).__name__) if isinstance(why, Exception) else why for why in found]
