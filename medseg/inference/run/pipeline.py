"""The way of a case through a run: read, compute, write, each stage a new value.

In one process (:class:`Pipeline`) one case is read while another is computed and a third is written; a worker of a
cluster goes through the stages of a case in turn (:func:`work_on`). Both compute the same. What hangs in the background
is given up.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from medseg.bundle import Bundle, TrainingData
from medseg.errors import Interrupted, OutputUnusable
from medseg.geometry import Geometry
from medseg.inference.cases import InputCase, file_sums, key_of_sums, load
from medseg.inference.located import LocatedPredictor
from medseg.inference.located_bundle import LocatedBundle, Locating
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.preprocess import Case
from medseg.inference.run.export import write_outputs
from medseg.inference.run.options import RunContext
from medseg.inference.run.state import RunState
from medseg.ingest import SeriesRecord
from medseg.ingest import walk as archives
from medseg.manifests.layouts import path_checksum
from medseg.results.case_result import CaseResult, place_of, volumes_of

T = TypeVar("T")
_log = logging.getLogger(__name__)


# --- what a process opens, and waits for ----------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedBundle:
    """What a process opens once and uses for every case."""

    predictor: Predictor  # the bundle's network and trust model
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a case is computed: one at a time, since every core and the memory are taken by one."""

    @classmethod
    def of(cls, context: RunContext, kept: MutableMapping[str, OpenedBundle] | None = None) -> OpenedBundle:
        """The bundle of a run, opened as its options ask, or taken from those that are ``kept`` open and kept there."""
        if kept is None:
            return cls._open(context)
        key = context.options.network_key(context.bundle)
        if key not in kept:
            same = [old for old, one in kept.items() if _place(one.predictor.bundle) == _place(context.bundle)]
            for old in same:
                if kept[old].predictor.bundle.sha256 != context.bundle.sha256:  # its files have changed
                    del kept[old]
            kept[key] = cls._open(context)
        return kept[key]

    @classmethod
    def _open(cls, context: RunContext) -> OpenedBundle:
        options, bundle = context.options, context.bundle
        predictor: Callable[..., Predictor] = partial(Predictor, bundle)
        if isinstance(bundle, LocatedBundle):
            predictor = partial(LocatedPredictor, bundle)
        return cls(
            predictor(
                options.device,
                options.precision,
                engine=options.engine,
                mirror=options.mirror,
                ensemble=options.ensemble,
                trust=options.trust,
                structures=options.structures,
            )
        )


def _place(bundle: Bundle) -> tuple[Path, Locating | None]:
    """Where a bundle lies, and how what it labels is located."""
    return bundle.path, bundle.locating if isinstance(bundle, LocatedBundle) else None


def in_background(function: Callable[[], T]) -> Future[T]:
    """Run a function in a daemon thread at once.

    A thread of a pool would keep the process from ending when it hangs in a read; a daemon does not.
    """
    job: Future[T] = Future()

    def run() -> None:
        try:
            job.set_result(function())
        except BaseException as error:  # noqa: BLE001  handed to whoever asks for the result
            job.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return job


def result_of(job: Future[T], timeout_s: float) -> T:
    """Wait for a job, or raise what it raised.

    Raises ``TimeoutError`` if it takes longer; its thread is left behind.
    """
    try:
        return job.result(timeout_s)
    except TimeoutError:
        if job.done():
            raise
        raise TimeoutError(f"no result after {timeout_s:.0f} s") from None


@contextmanager
def watched(case_id: str, stage: str, limit_s: float) -> Iterator[None]:
    """Log the name of a case if the body takes longer than ``limit_s``."""
    text = f"{case_id}: {stage} has taken more than {limit_s:.0f} s and is still running"
    timer = threading.Timer(limit_s, _log.warning, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# --- the stages of a case -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaseFacts:
    """What reading has learnt of a case."""

    geometry: Geometry  # the source grid
    note: str  # what is worth knowing of the volume
    content_key: str  # digest of the files' bytes
    trained_on: bool | None  # whether the bundle has learnt from it


@dataclass(frozen=True)
class ReadCase:
    """A case in memory, its first channel on the source grid, and the seconds that reading took."""

    facts: CaseFacts
    images: Case
    stages: Mapping[str, float]


@dataclass(frozen=True)
class ComputedCase:
    """A case with its labels on the source grid, and the seconds of every stage so far.

    ``asked`` are the labels that were looked for, where a network is asked by class; empty: all.
    """

    facts: CaseFacts
    prediction: Prediction
    stages: Mapping[str, float]
    asked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class CaseTask:
    """One case on its way through a run."""

    case: InputCase
    context: RunContext
    begin: float = field(default_factory=time.perf_counter)

    def read(self) -> ReadCase:
        """Read the case and digest its bytes."""
        begin = time.perf_counter()
        loaded, sums = load(self.case), file_sums(self.case)
        learnt = seen_in_training(self.case, sums, self.context.training_data)
        facts = CaseFacts(loaded.geometry, loaded.note, key_of_sums(sums), learnt)
        return ReadCase(facts, loaded.images, {"read": time.perf_counter() - begin})

    def compute(self, read: ReadCase, opened: OpenedBundle) -> ComputedCase:
        """Label the image; outside the region of interest there is background."""
        region, grid = self.context.region, read.facts.geometry
        box = None if region is None else region.box(grid)
        images = read.images if box is None else {**read.images, "image": box.crop(read.images["image"])}
        shows_errors = bool({"doubt", "sc"} & set(self.context.options.write))
        spool = self.context.folder if "probabilities" in self.context.options.write else None
        modality = self.case.channels[0].modality or None
        with opened.lock, self.watch("computing"):
            found = opened.predictor.predict(images, modality, error_map=shows_errors, probabilities=spool)
        if box is not None:
            error_map = None if found.error_map is None else box.paste(found.error_map, grid.shape)
            maps = found.probabilities and found.probabilities.moved(partial(box.paste, shape=grid.shape))
            labels = box.paste(found.label_map, grid.shape)
            parts = tuple(part.moved(box.low) for part in found.parts)
            found = replace(found, label_map=labels, error_map=error_map, probabilities=maps, parts=parts)
        stages = {**read.stages, **found.seconds}
        return ComputedCase(read.facts, replace(found, geometry=grid), stages, self._asked(opened))

    def _asked(self, opened: OpenedBundle) -> frozenset[int]:
        """The labels that a network asked by class was asked for; of what is located, on either side."""
        bundle, prompts = self.context.bundle, opened.predictor.config.prompts
        shifts = {0, bundle.offset} if isinstance(bundle, LocatedBundle) else {0}
        return frozenset(label + shift for label in prompts for shift in shifts)

    def write(self, computed: ComputedCase) -> CaseResult:
        """Write the outputs of the case, each whole or not at all."""
        begin = time.perf_counter()
        self.context.require_lease()
        case, facts, prediction = self.case, computed.facts, computed.prediction
        scheme = self.context.bundle.scheme
        volumes = volumes_of(prediction.label_map, facts.geometry, scheme, prediction.verdict)
        if computed.asked:  # of others nobody knows that they are not there
            volumes = tuple(one for one in volumes if one.label in computed.asked)
        found = write_outputs(case, prediction, self.context, computed.asked)
        stages = {**computed.stages, "write": time.perf_counter() - begin}
        status, reason, message = found.failure(case) or (
            "done",
            None,
            "; ".join(filter(None, (facts.note, prediction.note))),
        )
        return CaseResult(
            case.case_id,
            case.source,
            status,
            reason,
            message,
            self._seconds(),
            outputs=tuple(found.stamps),
            structures=volumes,
            trust=prediction.verdict,
            stages={name: round(value, 4) for name, value in stages.items()},
            not_written=found.not_written,
            trained_on=facts.trained_on,
            checksums=found.stamps,
            discriminator=prediction.discriminator,
            parts=prediction.parts,
        )

    def watch(self, stage: str) -> AbstractContextManager[None]:
        """Name the case in the log if the stage takes long."""
        return watched(self.case.case_id, stage, self.context.options.stall_s)

    def wait(self, stage: str, job: Future[T]) -> T:
        """Wait for a stage in the background."""
        with self.watch(stage):
            return result_of(job, self.context.options.stall_s)

    def attempt(self, stage: str, action: Callable[[], T]) -> T | CaseResult:
        """Do one stage; whatever it raises is returned as the case's result, so that the others go on."""
        try:
            return action()
        except (Interrupted, OutputUnusable):
            raise
        except Exception as error:  # noqa: BLE001  recorded as this case's result
            bundle = self.context.bundle.path
            _log.info("%s: %s in %s", self.case.case_id, place_of(error, bundle)[0], stage)
            failed = CaseResult.of_error(self.case.case_id, self.case.source, error, stage, bundle)
            return replace(failed, seconds=self._seconds())

    def _seconds(self) -> float:
        return round(time.perf_counter() - self.begin, 4)


def work_on(case: InputCase, context: RunContext, opened: OpenedBundle) -> tuple[CaseResult, str]:
    """Take one case through all stages in turn: its result, and the digest of its bytes if they were read.

    Raises ``Interrupted`` if the run has ended or another one has taken its place.
    """
    task = CaseTask(case, context)
    read = task.attempt("reading", lambda: task.wait("reading", in_background(task.read)))
    if isinstance(read, CaseResult):
        return read, ""
    key = read.facts.content_key
    computed = task.attempt("computing", partial(task.compute, read, opened))
    if isinstance(computed, CaseResult):
        return computed, key
    writing = partial(task.write, computed)
    return task.attempt("writing", lambda: task.wait("writing", in_background(writing))), key


class Pipeline:
    """Computes the cases of a run in this process.

    Parameters
    ----------
    context
        What every case shares.
    state
        The cases and what became of them.
    kept
        Bundles that stay open between runs.
    """

    def __init__(
        self, context: RunContext, state: RunState, kept: MutableMapping[str, OpenedBundle] | None = None
    ) -> None:
        self._context, self._state, self._kept = context, state, kept
        self._ahead = context.options.workers
        self._reading: deque[tuple[CaseTask, Future[ReadCase]]] = deque()
        self._writing: deque[tuple[CaseTask, str, Future[CaseResult]]] = deque()

    def run(self, cases: Iterable[InputCase]) -> None:
        """Read, compute and write cases; those that may kill the process come last, each alone."""
        waiting = deque(cases)
        opened = OpenedBundle.of(self._context, self._kept)
        self._state.trust = opened.predictor.trust_state
        while waiting or self._reading:
            self._read_ahead(waiting)
            self._compute(*self._reading.popleft(), opened)
            self._finish(leave=self._ahead)
        self._finish()

    def wind_down(self) -> None:
        """After an interruption: keep what is being written, and forget that the others were in hand."""
        self._state.progress = None
        self._finish()
        self._state.forget_open()

    def _read_ahead(self, waiting: deque[InputCase]) -> None:
        while waiting and len(self._reading) <= self._ahead:
            if self._state.may_kill(waiting[0].case_id):
                if self._reading:
                    return
                self._finish()
            task = CaseTask(waiting.popleft(), self._context)
            self._state.begin(task.case.case_id)
            self._reading.append((task, in_background(task.read)))

    def _compute(self, task: CaseTask, job: Future[ReadCase], opened: OpenedBundle) -> None:
        read = task.attempt("reading", partial(task.wait, "reading", job))
        if isinstance(read, CaseResult):
            self._state.settle(read)
            return
        key = read.facts.content_key
        computed = task.attempt("computing", partial(task.compute, read, opened))
        if isinstance(computed, CaseResult):
            self._state.settle(computed, key)
        else:
            self._writing.append((task, key, in_background(partial(task.write, computed))))

    def _finish(self, leave: int = 0) -> None:
        """Wait for the oldest cases that are being written until only some are left."""
        while len(self._writing) > leave:
            task, key, job = self._writing.popleft()
            self._state.settle(task.attempt("writing", partial(task.wait, "writing", job)), key)


# --- parts of the stages --------------------------------------------------------------------------------------------


def seen_in_training(case: InputCase, sums: Mapping[str, str], known: TrainingData | None) -> bool | None:
    """Whether any channel of a case is an image that the bundle has learnt from; None if it does not tell.

    ``sums`` are the SHA-256 of the case's files.
    """
    if known is None:
        return None
    if not known.images.isdisjoint(sums.values()):
        return True
    return any(_folder_sum(record, sums) in known.images for record in case.channels if record.kind == "dicom")


def _folder_sum(record: SeriesRecord, sums: Mapping[str, str]) -> str:
    """The sum of a series' folder as a datalist states it: over every file that lies there, not the series' alone."""
    folders = {os.path.dirname(file) for file in record.files}  # noqa: PTH120 - bytes of odd names survive
    if len(folders) != 1 or any(archives.is_member(file) for file in record.files):
        return ""
    return path_checksum(Path(folders.pop()), {Path(file): sums[file] for file in record.files})
