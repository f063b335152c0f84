"""A Dask scheduler, workers and drivers as processes of their own on loopback.

They are forked from one process that has imported everything. Workers write down what they do and obey files in a
folder, so that a test acts at a known moment instead of after some seconds: a case ``NAME`` is held while it is read
as long as ``hold-NAME`` exists, and a case whose name starts with ``poison`` kills its worker.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import dask
from distributed import Scheduler, Worker

from medseg.errors import ExitCode, MedsegError
from medseg.inference import Options, run_batch
from medseg.inference.cases import InputCase, LoadedCase, load
from medseg.inference.run import pipeline
from medseg.inference.run.options import RunContext
from medseg.inference.run.pipeline import OpenedBundle

ALLOWED_FAILURES = 1
_PATIENCE_S = 100.0
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["medseg.inference.run.dask", "distributed", __name__])


class Site:
    """Two workers, replaced when they die, and what they have written down."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._stopping = False
        ours, theirs = _CONTEXT.Pipe()
        self._scheduler = _start(_scheduler, theirs, folder)
        self.address: str = ours.recv()
        self._workers = [self._new_worker() for _ in range(workers)]
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()

    def close(self) -> None:
        """End every process."""
        self._stopping = True
        self._keeper.join()
        for process in (*self._workers, self._scheduler):
            process.kill()
            process.join()

    def end_scheduler(self) -> None:
        """Kill the scheduler; no worker is replaced from now on."""
        self._stopping = True
        self._keeper.join()
        self._scheduler.kill()

    def _new_worker(self) -> ForkServerProcess:
        return _start(_worker, self.address, self.folder)

    def _keep(self) -> None:
        while not self._stopping:
            for index, process in enumerate(self._workers):
                if not process.is_alive():
                    self._workers[index] = self._new_worker()
            time.sleep(0.05)

    def hold(self, case_id: str) -> Path:
        """Hold a case while it is read, until the file is removed."""
        path = self.folder / f"hold-{case_id}"
        path.touch()
        return path

    def notes(self, what: str) -> list[tuple[str, int]]:
        """What the workers wrote down: (name, process id)."""
        path = self.folder / what
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(name, int(pid)) for name, pid in rows]

    def reads(self) -> Counter[str]:
        """How often each case was begun."""
        return Counter(name for name, _ in self.notes("reads"))

    def logs(self) -> str:
        """Everything that Dask has logged on the scheduler and the workers."""
        return "".join(path.read_text() for path in self.folder.glob("dask-*.log"))

    def driver(self, bundle: Path, images: Path, output: Path, **options: Any) -> ForkServerProcess:
        """Start a run of its own process; its exit code is that of ``medseg infer``."""
        chosen = Options(**{"precision": "fp32", "cluster": self.address, **options})
        return start_driver(bundle, images, output, chosen)


def start_driver(bundle: Path, images: Path, output: Path, options: Options) -> ForkServerProcess:
    """Start a run in a process of its own."""
    return _start(_drive, bundle, images, output, options)


def wait_for(condition: Callable[[], Any]) -> Any:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def exit_code(process: ForkServerProcess) -> int | None:
    process.join(_PATIENCE_S)
    return process.exitcode


def cases_of(folder: Path) -> list[Any]:
    """The cases in ``run.json`` without times."""
    cases = json.loads((folder / "run.json").read_text())["cases"]
    return [{key: value for key, value in case.items() if key not in {"seconds", "stages"}} for case in cases]


def outputs_of(folder: Path) -> dict[str, bytes]:
    """Every file with a final name that belongs to a case."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*_seg.nii.gz"))}


def _start(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    process = _CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def _log_dask(folder: Path) -> None:
    handler = logging.FileHandler(folder / f"dask-{os.getpid()}.log")
    for name in ("distributed", "asyncio"):
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).addHandler(handler)


def _scheduler(answer: Connection, folder: Path) -> None:
    async def serve() -> None:
        dask.config.set({"distributed.scheduler.allowed-failures": ALLOWED_FAILURES})
        async with Scheduler(host="127.0.0.1", dashboard_address="127.0.0.1:0") as scheduler:
            answer.send(scheduler.address)
            await scheduler.finished()

    _log_dask(folder)
    asyncio.run(serve())


def _worker(address: str, folder: Path) -> None:
    async def serve() -> None:
        async with Worker(
            address, nthreads=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", local_directory=str(folder)
        ) as worker:
            await worker.finished()

    _log_dask(folder)
    _observe(folder)
    asyncio.run(serve())


def _observe(folder: Path) -> None:
    """Make this process write down what it opens and reads."""

    def note(what: str, name: str) -> None:
        with (folder / what).open("a") as handle:
            handle.write(f"{name} {os.getpid()}\n")

    def observed_load(case: InputCase) -> LoadedCase:
        note("reads", case.case_id)
        if case.case_id.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        while (folder / f"hold-{case.case_id}").exists():
            time.sleep(0.02)
        return load(case)

    def observed_open(context: RunContext, kept: MutableMapping[str, OpenedBundle] | None = None) -> OpenedBundle:
        opened = whole_open(context, kept)
        note("opens", opened.predictor.choice.engine)
        return opened

    whole_open = OpenedBundle.of
    pipeline.load = observed_load  # type: ignore[attr-defined]
    OpenedBundle.of = observed_open  # type: ignore[method-assign]


def _drive(bundle: Path, images: Path, output: Path, options: Options) -> None:
    dask.config.set({"distributed.comm.timeouts.connect": "2s"})  # a scheduler that is gone is told soon
    try:
        report = run_batch(bundle, [images], output, options)
    except MedsegError as error:
        (output.parent / f"{output.name}.error").write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(int(error.exit_code)) from None
    raise SystemExit(int(ExitCode.DONE if report.complete else ExitCode.INCOMPLETE))
