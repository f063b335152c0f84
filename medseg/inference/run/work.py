"""The work on one case: read it, compute its labels, write its outputs; jobs that hang are given up.

Jobs in the background that can be given up when they hang, and a watchdog that names what takes long.

The work on one case: read it, compute its labels, write its outputs.

The loop on this machine (:mod:`medseg.inference.run.loop`) overlaps these stages of several cases; a worker of a
cluster goes through them with :func:`work_on`. Both compute the same.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from medseg.bundle import Bundle, TrainingData
from medseg.errors import Interrupted, OutputUnusable
from medseg.geometry import Geometry
from medseg.inference.cases import InputCase, LoadedCase, file_sums, key_of_sums, load
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.preprocess import Case
from medseg.inference.roi import Region
from medseg.inference.run import lease as claim
from medseg.inference.run.export import Written, write_outputs
from medseg.inference.run.options import RunOptions
from medseg.inference.run.results import CaseResult, result_of_error, structures_of
from medseg.inference.seen import seen_in_training

T = TypeVar("T")
_log = logging.getLogger(__name__)


class BackgroundJob(Generic[T]):
    """A function that runs in a daemon thread at once.

    A thread of a pool would keep the process from ending when it hangs in a read; a daemon does not.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001  handed to whoever asks for the result
            self._error = error

    @property
    def finished(self) -> bool:
        """Whether the function has returned or raised."""
        return not self._thread.is_alive()

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the value, or raise what the function raised.

        Raises
        ------
        TimeoutError
            If the function takes longer; its thread is left behind.
        """
        # short waits let signals reach the main thread on every platform
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._thread.is_alive():
            self._thread.join(0.2)
            if deadline is not None and time.monotonic() > deadline and self._thread.is_alive():
                raise TimeoutError(f"no result after {timeout_s:.0f} s")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


class Watchdog:
    """Logs the name of a case whose stage takes longer than ``limit_s``, once per stage."""

    def __init__(self, limit_s: float, report: Callable[[str], None] | None = None) -> None:
        self._limit_s = limit_s
        self._report = report or _log.warning

    @contextmanager
    def watch(self, case_id: str, stage: str) -> Iterator[None]:
        """Watch the body."""
        text = f"{case_id}: {stage} has taken more than {self._limit_s:.0f} s and is still running"
        timer = threading.Timer(self._limit_s, self._report, (text,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@dataclass(frozen=True)
class Setting:
    """What every case of a run shares."""

    bundle: Bundle
    folder: Path
    options: RunOptions
    region: Region | None
    run_key: str
    claim: str
    learnt: TrainingData | None = None


@dataclass(frozen=True)
class Tools:
    """What a process opens once and uses for every case.

    Parameters
    ----------
    predictor
        The bundle's network and trust model.
    turn
        Held while a case is computed: one at a time, since every core and the memory are taken by one.
    """

    predictor: Predictor
    turn: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Work:
    """A case that is being worked on; its arrays are let go as soon as they are not needed."""

    case: InputCase
    begin: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)
    image: Case | None = None
    geometry: Geometry | None = None
    prediction: Prediction | None = None
    content_key: str = ""
    note: str = ""
    trained_on: bool | None = None


def open_tools(setting: Setting) -> Tools:
    """Open what computing needs."""
    options = setting.options
    return Tools(
        Predictor(
            setting.bundle,
            options.device,
            options.precision,
            engine=options.engine,
            mirror=options.mirror,
            ensemble=options.ensemble,
            trust=options.trust,
        )
    )


def work_on(work: Work, setting: Setting, tools: Tools, watchdog: Watchdog) -> CaseResult:
    """Read, compute and write one case; whatever goes wrong becomes its result.

    Parameters
    ----------
    work
        The case.
    setting, tools
        What the run and this process share.
    watchdog
        Names the case if a stage takes long.

    Raises
    ------
    Interrupted
        If the run has ended or another one has taken its place.
    """
    patience_s = setting.options.stall_s
    results: list[CaseResult] = []

    def reading() -> None:
        take(work, BackgroundJob(partial(read, work, setting)), watchdog, patience_s)

    def writing() -> None:
        results.append(written(work, BackgroundJob(partial(write, work, setting)), watchdog, patience_s))

    computing = partial(compute, work, setting, tools, watchdog)
    failed = attempt(work, "reading", reading) or attempt(work, "computing", computing)
    failed = failed or attempt(work, "writing", writing)
    return failed or results[0]


def attempt(work: Work, stage: str, action: Callable[[], None]) -> CaseResult | None:
    """Do one stage of a case; whatever it raises is returned as the case's result, so that the others go on."""
    try:
        action()
    except (Interrupted, OutputUnusable):
        raise
    except Exception as error:  # noqa: BLE001  recorded as this case's result
        _log.info("%s: %s in %s", work.case.case_id, _where(error), stage)
        work.image = work.prediction = None
        return _timed(result_of_error(work.case.case_id, work.case.source, error, stage), work)
    return None


def read(work: Work, setting: Setting) -> tuple[LoadedCase, str]:
    """Read a case and digest its bytes; runs in the background."""
    begin = time.perf_counter()
    loaded = load(work.case)
    sums = file_sums(work.case)
    key = key_of_sums(sums)
    work.trained_on = seen_in_training(work.case, sums, setting.learnt)
    work.stages["read"] = time.perf_counter() - begin
    return loaded, key


def take(work: Work, job: BackgroundJob[tuple[LoadedCase, str]], watchdog: Watchdog, patience_s: float) -> None:
    """Wait for what :func:`read` gives and keep it."""
    with watchdog.watch(work.case.case_id, "reading"):
        loaded, work.content_key = job.result(patience_s)
    work.image, work.geometry, work.note = loaded.images, loaded.geometry, loaded.note


def compute(work: Work, setting: Setting, tools: Tools, watchdog: Watchdog) -> None:
    """Label the image of a case on its source grid; outside the region of interest there is background."""
    assert work.image is not None
    assert work.geometry is not None
    errors = bool({"doubt", "sc"} & set(setting.options.write))
    with tools.turn, watchdog.watch(work.case.case_id, "computing"):
        box = None if setting.region is None else setting.region.box(work.geometry)
        image = work.image if box is None else {**work.image, "image": box.crop(work.image["image"])}
        found = tools.predictor.predict(image, work.case.channels[0].modality or None, error_map=errors)
    work.image = None
    work.stages.update(found.seconds)
    if box is not None:
        shape = work.geometry.shape
        error_map = None if found.error_map is None else box.paste(found.error_map, shape)
        found = replace(found, label_map=box.paste(found.label_map, shape), error_map=error_map)
    work.prediction = replace(found, geometry=work.geometry)


def write(work: Work, setting: Setting) -> CaseResult:
    """Write the outputs of a case, each whole or not at all; runs in the background."""
    begin = time.perf_counter()
    assert work.prediction is not None
    claim.require(setting.folder, setting.claim)
    case, kinds, prediction = work.case, setting.options.write, work.prediction
    structures = structures_of(prediction.label_map, prediction.geometry, setting.bundle.labels)
    found = write_outputs(prediction, case, setting.bundle, kinds, setting.folder)
    work.stages["write"] = time.perf_counter() - begin
    result = CaseResult(
        case.case_id,
        case.source,
        "done",
        message=work.note,
        outputs=tuple(found.checksums),
        structures=structures,
        trust=prediction.verdict,
        stages={name: round(value, 4) for name, value in work.stages.items()},
        not_written={kind: {"reason": why.code, "message": why.message} for kind, why in found.missing.items()},
        trained_on=work.trained_on,
        checksums=found.checksums,
    )
    return _with_status(result, found)


def _with_status(result: CaseResult, found: Written) -> CaseResult:
    """Done; failed if an output could not be finished; refused if the source can have nothing that was asked for."""
    if found.failed is not None:
        kind, error = found.failed
        failure = result_of_error(result.case_id, result.source, error, "writing")
        return replace(result, status="failed", reason=failure.reason, message=f"{kind}: {failure.message}")
    refusal = next((why for kind, why in found.missing.items() if kind != "doubt"), None)
    if refusal is not None and not found.checksums:
        return replace(result, status="refused", reason=refusal.code, message=refusal.message)
    return result


def written(work: Work, job: BackgroundJob[CaseResult], watchdog: Watchdog, patience_s: float) -> CaseResult:
    """Wait for what :func:`write` gives."""
    with watchdog.watch(work.case.case_id, "writing"):
        result = job.result(patience_s)
    work.prediction = None
    return _timed(result, work)


def _timed(result: CaseResult, work: Work) -> CaseResult:
    return replace(result, seconds=round(time.perf_counter() - work.begin, 4))


def _where(error: BaseException) -> str:
    """Type and place of an error, without its text, which a library may have taken from a header."""
    frame = traceback.extract_tb(error.__traceback__)[-1:] or None
    return type(error).__name__ + (f" at {frame[0].filename}:{frame[0].lineno}" if frame else "")
