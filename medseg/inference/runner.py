"""A whole folder through a bundle: reads ahead, writes behind, remembers what is finished."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from medseg.bundle import Bundle
from medseg.errors import Interrupted
from medseg.files import remove_leftovers
from medseg.inference.batch import Batch, Progress, Setting
from medseg.inference.cases import collect
from medseg.inference.choice import Choice
from medseg.inference.journal import Journal, locked
from medseg.inference.options import Options, run_key
from medseg.inference.predictor import Predictor
from medseg.inference.results import CaseResult, RunReport, versions, write_report
from medseg.inference.roi import parse_region
from medseg.ingest.rules import read_rules

__all__ = ["SMALLEST_BATCH_TO_TUNE", "run_batch"]

SMALLEST_BATCH_TO_TUNE = 8
"""Number of waiting cases from which it pays to measure which way of computing is fastest."""


def run_batch(
    bundle: Bundle | str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
) -> RunReport:
    """Label every case behind ``inputs`` and write the results into ``output``.

    Run it again and it continues: a case is computed only if its bytes, the bundle or an option that changes the
    result differ from what the journal holds, or if its outputs are gone.

    Parameters
    ----------
    bundle
        The bundle or its folder.
    inputs
        Files, folders, datalists.
    output
        Folder for the results; made if needed.
    options
        See :class:`~medseg.inference.Options`.
    progress
        Called with (cases finished, cases in all, result) after every case.

    Raises
    ------
    OutputLocked
        If another run is writing to ``output``.
    Interrupted
        On SIGINT or SIGTERM; what is finished is kept.
    UsageError
        If there is nothing to do or an option makes no sense.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    options = options or Options()
    rules = read_rules(options.select) if options.select else []
    region = parse_region(options.roi) if options.roi else None
    setting = Setting(opened, Path(output), options, region, run_key(opened, options, region))
    setting.folder.mkdir(parents=True, exist_ok=True)
    cases = [
        replace(case, allow_resample=options.allow_resample) for case in collect(inputs, opened.input_channels, rules)
    ]
    with locked(setting.folder), closing(Journal(setting.folder)) as journal:
        remove_leftovers(setting.folder)
        if options.fresh:
            journal.clear()
        return _execute(setting, journal, Batch(setting, journal, cases, progress))


def _execute(setting: Setting, journal: Journal, batch: Batch) -> RunReport:
    started, begin = _now(), time.perf_counter()
    content = _describe(setting)
    with _signals_interrupt():
        try:
            hands = batch.pending()
            if hands:
                batch.run(hands, _predictor(setting, journal, batch, len(hands)))
        except Interrupted as error:
            with _signals_ignored():
                batch.wind_down()
                _finish(batch, content, started, begin)
            left = len(batch.cases) - len(batch.results)
            raise Interrupted(f"{error}; {left} cases are left: run the same command again to go on") from None
    return _finish(batch, content, started, begin)


def _predictor(setting: Setting, journal: Journal, batch: Batch, pending: int) -> Predictor:
    """The predictor, run in the way that the journal holds for this bundle and these options."""
    options = setting.options
    windows = "large" if options.windows == "large" else "bundle"
    predictor = Predictor(setting.bundle, options.device, options.precision, windows)
    known = journal.fact(setting.run_key)
    if known is not None:
        predictor.use(Choice.from_json(known))
    elif options.precision == "auto" and options.windows == "auto":
        # measuring costs about three cases: it pays only if more are waiting
        batch.tuning = pending >= SMALLEST_BATCH_TO_TUNE
    else:
        journal.set_fact(setting.run_key, predictor.choice.to_json())
    return predictor


def _finish(batch: Batch, content: dict[str, Any], started: str, begin: float) -> RunReport:
    seconds = time.perf_counter() - begin
    results = [batch.results[case.case_id] for case in batch.cases if case.case_id in batch.results]
    summary = {
        "seconds": round(seconds, 3),
        "computed": batch.computed,
        "pending": len(batch.cases) - len(results),
        "stages_seconds": {**_stages(results), "tune": round(batch.tuning_seconds, 4)},
    }
    engine = batch.journal.fact(batch.setting.run_key) or Choice().to_json()
    whole = {**content, "engine": engine, "started": started, "finished": _now(), "summary": summary}
    return write_report(batch.setting.folder, whole, results)


def _describe(setting: Setting) -> dict[str, Any]:
    bundle = setting.bundle
    found = versions()
    return {
        "medseg": found.pop("medseg"),
        "versions": found,
        "bundle": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "device": setting.options.device,
        "precision": setting.options.precision,
        "options": {
            "write": list(setting.options.write),
            "select": setting.options.select,
            "allow_resample": setting.options.allow_resample,
            "roi": setting.options.roi,
            "windows": setting.options.windows,
        },
    }


def _stages(results: Sequence[CaseResult]) -> dict[str, float]:
    total: dict[str, float] = {}
    for result in results:
        for stage, seconds in result.stages.items():
            total[stage] = round(total.get(stage, 0.0) + seconds, 4)
    return total


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into :class:`Interrupted` in the main thread."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}")

    with _handlers(stop):
        yield


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Finish winding down even if the user presses Ctrl-C twice."""
    with _handlers(signal.SIG_IGN):
        yield


@contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
