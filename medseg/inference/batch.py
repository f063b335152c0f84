"""The loop of a batch run: one case is read while another is computed and a third is written."""

from __future__ import annotations

import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from medseg.bundle import Bundle
from medseg.errors import Interrupted
from medseg.geometry import Geometry
from medseg.inference.background import BackgroundJob, Watchdog
from medseg.inference.cases import Case, LoadedCase, content_key, load, stat_key, with_path_hash
from medseg.inference.journal import Entry, Journal
from medseg.inference.options import Options
from medseg.inference.predictor import Predictor
from medseg.inference.restore import LabelMap
from medseg.inference.results import CaseResult, result_of_error, structures_of
from medseg.inference.roi import IndexBox, Region
from medseg.inference.writers import check_source, missing_source, unavailable, write_outputs

__all__ = ["Batch", "Progress"]

MAX_DEATHS = 5
"""How often the process may die with a case in hand before the case is given up."""

Progress = Callable[[int, int, CaseResult], None]
_log = logging.getLogger(__name__)


@dataclass
class _Hand:
    """A case that is being worked on; its arrays are let go as soon as they are not needed."""

    case: Case
    entry: Entry
    begin: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)
    image: MetaTensor | None = None
    geometry: Geometry | None = None
    label_map: LabelMap | None = None
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """What every case of a run shares."""

    bundle: Bundle
    folder: Path
    options: Options
    region: Region | None
    run_key: str


class Batch:
    """Computes the cases that the journal does not hold yet.

    Parameters
    ----------
    setting
        What every case shares.
    journal
        The open journal.
    cases
        Every case of the run.
    progress
        Called after every case.
    """

    def __init__(
        self, setting: Setting, journal: Journal, cases: Sequence[Case], progress: Progress | None = None
    ) -> None:
        self.setting, self.journal = setting, journal
        self.results: dict[str, CaseResult] = {}
        self.entries = journal.entries()
        self.cases = [_distinct(case, self.entries.get(case.case_id)) for case in cases]
        self._progress = progress
        self.computed = 0
        self.tuning = False
        self.tuning_seconds = 0.0
        self._open: dict[str, _Hand] = {}
        self._watchdog = Watchdog(setting.options.stall_s)
        self._reading: deque[tuple[_Hand, BackgroundJob[tuple[LoadedCase, str]]]] = deque()
        self._writing: deque[tuple[_Hand, BackgroundJob[CaseResult]]] = deque()

    # --- what is to be done ----------------------------------------------------------------------------------------

    def pending(self) -> list[_Hand]:
        """Settle what is refused or finished already; return what is left."""
        left = []
        for case in self.cases:
            try:
                if case.refusal is not None:
                    raise case.refusal
                check_source(case, self.setting.options.write)
                entry = self._entry(case)
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001  recorded as this case's result
                self._settle(result_of_error(case.case_id, case.source, error, "reading"))
                continue
            if entry.result is not None:
                self._settle(_restored(entry.result, case))
            elif entry.deaths >= MAX_DEATHS:
                self._settle(_given_up(case, entry.deaths))
            else:
                left.append(_Hand(case, entry))
        return left

    def _entry(self, case: Case) -> Entry:
        """The journal's entry of a case, with its result only if that still holds."""
        key = stat_key(case)
        new = Entry(case.case_id, case.source, self.setting.run_key, key, "")
        old = self.entries.get(case.case_id)
        if old is None or old.run_key != new.run_key:
            return new
        unchanged = old.stat_key == key or (old.content_key != "" and old.content_key == content_key(case))
        if not unchanged:
            return new
        usable = old.result is not None and old.result["status"] != "failed" and self._outputs_exist(old.result)
        return replace(old, stat_key=key, source=case.source, result=old.result if usable else None)

    def _outputs_exist(self, result: Any) -> bool:
        return all((self.setting.folder / name).is_file() for name in result["outputs"])

    # --- the loop --------------------------------------------------------------------------------------------------

    def run(self, hands: Iterable[_Hand], predictor: Predictor) -> None:
        """Read, compute and write the cases in hand."""
        waiting = deque(hands)
        while waiting or self._reading:
            while waiting and len(self._reading) <= self.setting.options.workers:
                self._start_reading(waiting.popleft())
            hand, job = self._reading.popleft()
            read = self._attempt(hand, "reading", partial(self._take, hand, job))
            if read and self._attempt(hand, "computing", partial(self._compute, hand, predictor)):
                self._writing.append((hand, BackgroundJob(partial(_write, hand, self.setting))))
            while len(self._writing) > self.setting.options.workers:
                self._finish_oldest()
        while self._writing:
            self._finish_oldest()

    def wind_down(self) -> None:
        """After an interruption: keep what is being written, and forget that the others were in hand."""
        self._progress = None
        while self._writing:
            self._finish_oldest()
        for hand in self._open.values():
            self.journal.write(hand.entry)

    def _start_reading(self, hand: _Hand) -> None:
        # counted as a death until it is settled: a case that kills the process is given up after a few tries
        self._open[hand.case.case_id] = hand
        self.journal.write(replace(hand.entry, deaths=hand.entry.deaths + 1))
        hand.begin = time.perf_counter()
        self._reading.append((hand, BackgroundJob(partial(_read, hand))))

    def _take(self, hand: _Hand, job: BackgroundJob[tuple[LoadedCase, str]]) -> None:
        with self._watchdog.watch(hand.case.case_id, "reading"):
            loaded, key = job.result(self.setting.options.stall_s)
        hand.image, hand.geometry, hand.entry = loaded.image, loaded.geometry, replace(hand.entry, content_key=key)
        hand.note = loaded.note

    def _compute(self, hand: _Hand, predictor: Predictor) -> None:
        with self._watchdog.watch(hand.case.case_id, "computing"):
            image, box = _region(hand, self.setting.region)
            modality = hand.case.channels[0].modality or None
            if self.tuning:
                self._tune(predictor, image, modality, hand.case.case_id)
            prediction = predictor.predict(image, modality)
        hand.image = None
        hand.label_map = _pasted(prediction.label_map, box, hand)
        hand.stages.update(prediction.seconds)

    def _tune(self, predictor: Predictor, image: MetaTensor, modality: str | None, case_id: str) -> None:
        """Choose how the network is run, once, on the first case that can be labelled."""
        begin = time.perf_counter()
        choice = predictor.tune(image, modality, case_id, len(self.cases) - len(self.results))
        self.tuning = False
        self.tuning_seconds = time.perf_counter() - begin
        self.journal.set_fact(self.setting.run_key, choice.to_json())

    def _finish_oldest(self) -> None:
        hand, job = self._writing.popleft()
        self._attempt(hand, "writing", partial(self._record, hand, job))

    def _record(self, hand: _Hand, job: BackgroundJob[CaseResult]) -> None:
        with self._watchdog.watch(hand.case.case_id, "writing"):
            result = job.result(self.setting.options.stall_s)
        self._settle(replace(result, seconds=round(time.perf_counter() - hand.begin, 4)), hand)

    def _attempt(self, hand: _Hand, stage: str, action: Callable[[], None]) -> bool:
        """Do one stage of a case; whatever it raises becomes the case's result, so that the others go on."""
        try:
            action()
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001  recorded as this case's result
            _log.info("%s: %s in %s", hand.case.case_id, _where(error), stage)
            result = result_of_error(hand.case.case_id, hand.case.source, error, stage)
            self._settle(replace(result, seconds=round(time.perf_counter() - hand.begin, 4)), hand)
            return False
        return True

    def _settle(self, result: CaseResult, hand: _Hand | None = None) -> None:
        if hand is not None:
            self.journal.write(replace(hand.entry, result=asdict(result)))
            self._open.pop(result.case_id, None)
            hand.image = hand.label_map = None
            self.computed += 1
        self.results[result.case_id] = result
        if self._progress is not None:
            self._progress(len(self.results), len(self.cases), result)


def _read(hand: _Hand) -> tuple[LoadedCase, str]:
    begin = time.perf_counter()
    loaded = load(hand.case)
    key = content_key(hand.case)
    hand.stages["read"] = time.perf_counter() - begin
    return loaded, key


def _write(hand: _Hand, setting: Setting) -> CaseResult:
    begin = time.perf_counter()
    assert hand.geometry is not None
    assert hand.label_map is not None
    case, kinds = hand.case, setting.options.write
    structures = structures_of(hand.label_map, hand.geometry, setting.bundle.labels)
    outputs = write_outputs(hand.label_map, hand.geometry, case, setting.bundle, kinds, setting.folder)
    hand.stages["write"] = time.perf_counter() - begin
    stages = {name: round(value, 4) for name, value in hand.stages.items()}
    result = CaseResult(
        case.case_id, case.source, "done", message=hand.note, outputs=outputs, structures=structures, stages=stages
    )
    missing = unavailable(case, kinds)
    if not missing:
        return result
    refusal = missing_source(case, missing)
    return replace(result, status="refused", reason=refusal.code, message=refusal.message)


def _region(hand: _Hand, region: Region | None) -> tuple[MetaTensor, IndexBox | None]:
    """The image, or the part of it that lies in the region of interest."""
    assert hand.image is not None
    assert hand.geometry is not None
    if region is None:
        return hand.image, None
    box = region.box(hand.geometry)
    affine = np.array(box.geometry(hand.geometry).affine)
    return MetaTensor(hand.image.as_tensor()[(slice(None), *box.slices)], affine=affine), box


def _pasted(label_map: LabelMap, box: IndexBox | None, hand: _Hand) -> LabelMap:
    """LabelMap on the whole source grid; outside the region of interest there is background."""
    assert hand.geometry is not None
    if box is None:
        return label_map
    whole = np.zeros(hand.geometry.shape, dtype=label_map.dtype)
    whole[box.slices] = label_map
    return whole


def _distinct(case: Case, old: Entry | None) -> Case:
    """The case, under another name if an earlier run has used its name for other bytes from another place."""
    if old is None or old.content_key == "" or Path(old.source).absolute() == Path(case.source).absolute():
        return case
    if case.refusal is not None or old.content_key == content_key(case):
        return case
    return with_path_hash(case)


def _restored(row: Any, case: Case) -> CaseResult:
    values = {**row, "source": case.source, "outputs": tuple(row["outputs"]), "structures": tuple(row["structures"])}
    return CaseResult(**values)


def _given_up(case: Case, deaths: int) -> CaseResult:
    message = (
        f"the process died {deaths} times while this case was in hand (out of memory, or a crash in a decoder);"
        " it was given up so that the others finish; try it alone with --fresh, or crop with --roi"
    )
    return CaseResult(case.case_id, case.source, "failed", "crashed", message)


def _where(error: BaseException) -> str:
    """Type and place of an error, without its text, which a library may have taken from a header."""
    frame = traceback.extract_tb(error.__traceback__)[-1:] or None
    return type(error).__name__ + (f" at {frame[0].filename}:{frame[0].lineno}" if frame else "")
