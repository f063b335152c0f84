"""A whole folder through a bundle: reads ahead, writes behind, remembers what is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle import Bundle, trained_on
from medseg.devices import described, resolve_device
from medseg.errors import Interrupted
from medseg.files import prepare_file, prepare_folder, remove_leftovers
from medseg.inference.cases import InputCase, collect
from medseg.inference.config import channels_of, read_inference_config
from medseg.inference.engines import AUTOCAST, EngineChoice
from medseg.inference.ensemble import member_digest
from medseg.inference.modality import check_modality, expected_modalities
from medseg.inference.roi import parse_region
from medseg.inference.run.export import check_kinds
from medseg.inference.run.lease import claimed
from medseg.inference.run.loop import Batch
from medseg.inference.run.options import RunOptions, parse_place, run_key
from medseg.inference.run.results import REPORT_NAMES, CaseResult, RunReport, versions, write_report
from medseg.inference.run.state import Journal, Ledger, Progress, locked
from medseg.inference.run.work import Setting
from medseg.inference.worklist import keep_worklist
from medseg.ingest import SeriesRecord
from medseg.ingest.selection import read_rules
from medseg.manifests import Part
from medseg.signals import signals_ignored, signals_interrupt
from medseg.trust.trust_files import TrustState, trust_state

if TYPE_CHECKING:
    from medseg.inference.run.dask import ClusterBatch


def run_batch(
    bundle: Bundle | str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    options: RunOptions | None = None,
    *,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> RunReport:
    """Label every case behind ``inputs`` and write the results into ``output``.

    Run it again and it continues: a case is computed only if its bytes, the bundle or an option that changes the
    result differ from what the journal holds, or if its outputs are not what was written.

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
    announce
        Called first, with a line that says on which device and in which precision is computed, then with the notes on
        the bundle.

    Raises
    ------
    OutputLocked
        If another run is writing to ``output``.
    OutputUnusable
        If ``output`` cannot be written.
    Interrupted
        On SIGINT or SIGTERM; what is finished is kept.
    UsageError
        If there is nothing to do, an option makes no sense, or no case could have what is to be written.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    asked = options or RunOptions()
    options = replace(asked, device=_device(asked))
    rules = read_rules(options.select) if options.select else []
    region = parse_region(options.roi) if options.roi else None
    key = run_key(opened, options, region)
    state = _trust_state(opened, options)
    folder = prepare_folder(output)
    for name in REPORT_NAMES:
        prepare_file(folder / name)
    if announce is not None:
        announce(computing(options))
    skipped: list[SeriesRecord] = []
    part = None if options.section is None and options.fold is None else Part(options.section, options.fold)
    found = collect(inputs, opened.input_channels, rules, part=part, skipped=skipped)
    cases = _made_for(opened, options, found)
    check_kinds(opened, options.write, state, cases)
    with locked(folder), closing(Journal(folder)) as journal, claimed(folder) as claim:
        setting = Setting(opened, folder, options, region, key, claim, trained_on(opened))
        remove_leftovers(folder)
        if options.fresh:
            journal.clear()
        content = {**_describe(setting, asked, state), "skipped": [_skipped(record) for record in skipped]}
        _say(content["notes"], announce)
        return _execute(Ledger(setting, journal, cases, progress), content)


def _say(notes: Sequence[str], announce: Callable[[str], None] | None) -> None:
    if announce is None:
        return
    for note in notes:
        announce(f"note: {note}")


def _made_for(bundle: Bundle, options: RunOptions, found: Sequence[InputCase]) -> list[InputCase]:
    """The cases as the bundle takes them; those of another modality are refused."""
    taken, modalities = channels_of(bundle), expected_modalities(bundle)
    cases = (replace(case, allow_resample=options.allow_resample, taken=taken) for case in found)
    return [check_modality(case, modalities, bundle.name) for case in cases]


def _trust_state(bundle: Bundle, options: RunOptions) -> TrustState:
    why = "switched off by --no-trust" if not options.trust else "calibrated for the network alone, unmirrored"
    return trust_state(bundle) if options.judged else TrustState("off", why)


def _device(options: RunOptions) -> str:
    """The device that was asked for; of other machines this one knows nothing, so there ``auto`` is the CPU."""
    if options.cluster is None or parse_place(options.cluster).kind == "local":
        return resolve_device(options.device)
    return "cpu" if options.device == "auto" else options.device


def computing(options: RunOptions) -> str:
    """On which device and in which precision a run computes, for people."""
    options = replace(options, device=_device(options))
    choice = _choice(options)
    where = described(options.device) if options.cluster is None else f"{options.device} of the workers"
    by_rule = "; --precision fp32 for float32 throughout" if choice.engine == AUTOCAST else ""
    return f"computing on {where} in {choice.precision} ({choice.engine}{by_rule})"


def _choice(options: RunOptions) -> EngineChoice:
    return EngineChoice.by_rule(options.device, options.precision, options.engine)


def _skipped(record: SeriesRecord) -> dict[str, str | None]:
    return {"source": record.source, "reason": record.reason, "message": record.message}


def _execute(ledger: Ledger, content: dict[str, Any]) -> RunReport:
    started, begin = _now(), time.perf_counter()
    batch = _loop(ledger)
    with signals_interrupt():
        try:
            hands = ledger.pending()
            if hands:
                batch.run(hands)
        except Interrupted as error:
            with signals_ignored():
                batch.wind_down()
                _finish(ledger, content, started, begin)
            raise Interrupted(f"{error}; {ledger.left} cases are left: run the same command again to go on") from None
    return _finish(ledger, content, started, begin)


def _loop(ledger: Ledger) -> Batch | ClusterBatch:
    """What does the work: this process, or the workers of a cluster."""
    if ledger.setting.options.cluster is None:
        return Batch(ledger)
    from medseg.inference.run.dask import ClusterBatch

    return ClusterBatch(ledger)


def _finish(ledger: Ledger, content: dict[str, Any], started: str, begin: float) -> RunReport:
    seconds = time.perf_counter() - begin
    results = [ledger.results[case.case_id] for case in ledger.cases if case.case_id in ledger.results]
    summary = {
        "seconds": round(seconds, 3),
        "computed": ledger.computed,
        "workers_lost": ledger.workers_lost,
        "pending": ledger.left,
        "stages_seconds": _stages(results),
    }
    engine = _choice(ledger.setting.options).to_json()
    whole = {**content, "engine": engine, "started": started, "finished": _now(), "summary": summary}
    report = write_report(ledger.setting.folder, whole, results)
    keep_worklist(report.folder)
    return report


def _describe(setting: Setting, asked: RunOptions, state: TrustState) -> dict[str, Any]:
    bundle, options = setting.bundle, setting.options
    found = versions()
    return {
        "medseg": found.pop("medseg"),
        "versions": found,
        "bundle": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "device": options.device,
        "precision": _choice(options).precision,
        "trust": state.as_json(),
        "notes": list(read_inference_config(bundle).notes),
        "options": {
            "write": list(options.write),
            "select": options.select,
            "section": options.section,
            "fold": options.fold,
            "allow_resample": options.allow_resample,
            "roi": options.roi,
            "device": asked.device,
            "precision": options.precision,
            "engine": options.engine,
            "windows": options.windows,
            "cluster": options.cluster,
            "trust": options.trust,
            "mirror": list(options.mirror),
            "ensemble": [{"name": Path(place).name, "sha256": member_digest(place)} for place in options.ensemble],
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
