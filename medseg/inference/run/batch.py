"""A whole folder through a bundle: collect the cases, open the folder, run, report."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import monai
import torch

from medseg._version import medseg_version
from medseg.bundle import Bundle, trained_on
from medseg.devices import described
from medseg.errors import Interrupted
from medseg.files import prepare_file, prepare_folder, remove_leftovers
from medseg.inference.cases import InputCase, check_modality, collect, expected_modalities
from medseg.inference.config import channels_of, read_inference_config
from medseg.inference.engines import AUTOCAST
from medseg.inference.located_bundle import LocatedBundle
from medseg.inference.roi import parse_region
from medseg.inference.run.export import check_kinds
from medseg.inference.run.options import RunContext, RunOptions, leased
from medseg.inference.run.pipeline import OpenedBundle, Pipeline
from medseg.inference.run.state import Progress, RunState, locked
from medseg.ingest import SeriesRecord
from medseg.ingest.selection import read_rules
from medseg.manifests import Part
from medseg.results.run_report import RESULTS_CSV, RUN_JSON, BundleStamp, RunReport, Skipped
from medseg.results.worklist import keep_worklist
from medseg.signals import signals_ignored, signals_interrupt
from medseg.trust.discriminator_acceptance import DiscriminatorState, discriminator_state
from medseg.trust.trust_files import TrustState, trust_state

if TYPE_CHECKING:
    from medseg.inference.run.dask import DaskPipeline


def run_batch(
    bundle: Bundle | str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    options: RunOptions | None = None,
    *,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
    kept: MutableMapping[str, OpenedBundle] | None = None,
) -> RunReport:
    """Label every case behind ``inputs`` and write the results into ``output``.

    Run it again and it continues: a case is computed only if its bytes, the bundle or an option that changes the
    result differ from what the folder's state holds, or if its outputs are not what was written.

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
    kept
        For a process that makes many runs: what they open stays open here, by bundle, device and precision. Give all of
        them the same dictionary, which is empty at first.

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
    plain = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    asked = options or RunOptions()
    options, bundle = asked.resolved, asked.bundle_of(plain)
    say = announce or (lambda _: None)
    rules = read_rules(options.select) if options.select else []
    region = parse_region(options.roi) if options.roi else None
    key = options.key(bundle, region)
    averaged = "--mirror or --ensemble: only results of the plain network are judged"
    off = f"switched off by {averaged if options.trust else '--no-trust'}"
    trust = trust_state(plain) if options.judged else TrustState("off", off)
    folder = prepare_folder(output)
    for name in (RUN_JSON, RESULTS_CSV):
        prepare_file(folder / name)
    say(computing(options))
    skipped: list[SeriesRecord] = []
    part = None if options.section is None and options.fold is None else Part(options.section, options.fold)
    found = collect(inputs, bundle.input_channels, rules, part=part, skipped=skipped)
    cases = _made_for(bundle, options, found)
    check_kinds(bundle, options.write, trust, cases)
    with locked(folder), leased(folder) as lease:
        context = RunContext(bundle, folder, options, region, key, lease, trained_on(bundle))
        remove_leftovers(folder)
        judge = discriminator_state(plain) if options.judged else DiscriminatorState("off", off)
        located = {"locate": bundle.as_asked} if isinstance(bundle, LocatedBundle) else {}
        head = _head(context, trust, skipped)
        head = replace(head, options={**asked.to_json(), **located}, discriminator=judge.as_json())
        for note in head.notes:
            say(f"note: {note}")
        with closing(RunState(context, cases, progress)) as state:
            return _execute(context, state, head, kept)


def computing(options: RunOptions) -> str:
    """On which device and in which precision a run computes, for people."""
    choice, device = options.engine_choice, options.resolved.device
    where = described(device) if options.cluster is None else f"{device} of the workers"
    by_rule = "; --precision fp32 for float32 throughout" if choice.engine == AUTOCAST else ""
    return f"computing on {where} in {choice.precision} ({choice.engine}{by_rule})"


def _made_for(bundle: Bundle, options: RunOptions, found: Sequence[InputCase]) -> list[InputCase]:
    """The cases as the bundle takes them; those of another modality are refused."""
    taken, modalities = channels_of(bundle), expected_modalities(bundle)
    cases = (replace(case, allow_resample=options.allow_resample, taken=taken) for case in found)
    return [check_modality(case, modalities, bundle.name) for case in cases]


def _head(context: RunContext, trust: TrustState, skipped: Sequence[SeriesRecord]) -> RunReport:
    """What is known of a run before its first case."""
    bundle, choice = context.bundle, context.options.engine_choice
    return RunReport(
        context.folder,
        (),
        medseg_version(),
        {"python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__},
        BundleStamp(bundle.name, bundle.version, bundle.sha256),
        context.options.device,
        choice.precision,
        choice.engine,
        trust=trust.as_json(),
        notes=(
            *filter(None, [bundle.import_state]),
            *read_inference_config(bundle, context.options.structures).notes,
        ),
        skipped=tuple(Skipped(record.source, record.reason, record.message) for record in skipped),
        started=_now(),
    )


def _execute(
    context: RunContext, state: RunState, head: RunReport, kept: MutableMapping[str, OpenedBundle] | None
) -> RunReport:
    begin = time.perf_counter()
    pipeline: Pipeline | DaskPipeline
    if context.options.cluster is None:
        pipeline = Pipeline(context, state, kept)
    else:
        from medseg.inference.run.dask import DaskPipeline

        pipeline = DaskPipeline(context, state)
    with signals_interrupt():
        try:
            cases = state.pending()
            if cases:
                pipeline.run(cases)
        except Interrupted as error:
            with signals_ignored():
                pipeline.wind_down()
                _report(state, head, begin)
            raise Interrupted(f"{error}; {state.left} cases are left: run the same command again to go on") from None
    return _report(state, head, begin)


def _report(state: RunState, head: RunReport, begin: float) -> RunReport:
    if state.trust is not None and state.trust.state == "damaged":  # which only the opened network has shown
        head = replace(head, trust=state.trust.as_json())
    report = replace(
        head,
        cases=tuple(state.results[case.case_id] for case in state.cases if case.case_id in state.results),
        finished=_now(),
        seconds=round(time.perf_counter() - begin, 3),
        computed=state.computed,
        workers_lost=state.workers_lost,
        pending=state.left,
    )
    report.write()
    keep_worklist(report, _measured_dice)
    return report


def _measured_dice(folder: Path) -> Mapping[str, float]:
    """Dice of an evaluation in the folder; what reads one is not imported for every run."""
    if not (folder / "metrics.csv").is_file():
        return {}
    from medseg.evaluation.tables import measured_dice

    return measured_dice(folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
