"""A whole folder through a bundle: reads ahead, writes behind, remembers what is finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle import Bundle
from medseg.errors import Interrupted
from medseg.files import remove_leftovers
from medseg.inference.batch import Batch
from medseg.inference.cases import collect
from medseg.inference.channels import channels_of
from medseg.inference.choice import Choice
from medseg.inference.claim import claimed
from medseg.inference.journal import Journal, locked
from medseg.inference.ledger import Ledger, Progress
from medseg.inference.members import member_digest
from medseg.inference.options import Options, run_key
from medseg.inference.quantised import forget_quantised
from medseg.inference.results import CaseResult, RunReport, versions, write_report
from medseg.inference.roi import parse_region
from medseg.inference.signals import signals_ignored, signals_interrupt
from medseg.inference.work import Setting
from medseg.inference.worklist import keep_worklist
from medseg.ingest.rules import read_rules
from medseg.trust.state import TrustState, trust_state

if TYPE_CHECKING:
    from medseg.inference.cluster.batch import ClusterBatch

__all__ = ["run_batch"]


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
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    found, taken = collect(inputs, opened.input_channels, rules), channels_of(opened)
    cases = [replace(case, allow_resample=options.allow_resample, taken=taken) for case in found]
    with locked(folder), closing(Journal(folder)) as journal, claimed(folder) as claim:
        setting = Setting(opened, folder, options, region, run_key(opened, options, region), claim)
        remove_leftovers(folder)
        if options.fresh:
            journal.clear()
            forget_quantised(folder)
        return _execute(Ledger(setting, journal, cases, progress))


def _execute(ledger: Ledger) -> RunReport:
    started, begin = _now(), time.perf_counter()
    content = _describe(ledger.setting)
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
    from medseg.inference.cluster.batch import ClusterBatch

    return ClusterBatch(ledger)


def _finish(ledger: Ledger, content: dict[str, Any], started: str, begin: float) -> RunReport:
    seconds = time.perf_counter() - begin
    results = [ledger.results[case.case_id] for case in ledger.cases if case.case_id in ledger.results]
    summary = {
        "seconds": round(seconds, 3),
        "computed": ledger.computed,
        "workers_lost": ledger.workers_lost,
        "pending": ledger.left,
        "stages_seconds": {**_stages(results), "tune": round(ledger.tuning_seconds, 4)},
    }
    engine = ledger.choice or Choice()
    whole = {**content, "engine": engine.to_json(), "started": started, "finished": _now(), "summary": summary}
    report = write_report(ledger.setting.folder, whole, results)
    keep_worklist(report.folder)
    return report


def _describe(setting: Setting) -> dict[str, Any]:
    bundle = setting.bundle
    found = versions()
    why = "switched off by --no-trust" if not setting.options.trust else "calibrated for the network alone, unmirrored"
    state = trust_state(bundle) if setting.options.judged else TrustState("off", why)
    return {
        "medseg": found.pop("medseg"),
        "versions": found,
        "bundle": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "device": setting.options.device,
        "precision": setting.options.precision,
        "trust": state.as_json(),
        "options": {
            "write": list(setting.options.write),
            "select": setting.options.select,
            "allow_resample": setting.options.allow_resample,
            "roi": setting.options.roi,
            "windows": setting.options.windows,
            "cluster": setting.options.cluster,
            "trust": setting.options.trust,
            "mirror": list(setting.options.mirror),
            "ensemble": [
                {"name": Path(place).name, "sha256": member_digest(place)} for place in setting.options.ensemble
            ],
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
