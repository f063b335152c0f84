"""``medseg infer``: its options are the fields of :class:`~medseg.inference.run.options.RunOptions`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin, get_type_hints

import typer

from medseg.cli._app import BundleArgument, Outcome, app, command, terminal
from medseg.cli._progress import progress_bar
from medseg.cli._startup import confine_command, import_monai_quickly
from medseg.errors import UsageError
from medseg.files import prepare_folder, shown
from medseg.inference.run.options import RunOptions, parse_place

if TYPE_CHECKING:
    from medseg.bundle import Permission
    from medseg.results.case_result import CaseResult
    from medseg.results.run_report import RunReport

_HINTS = get_type_hints(RunOptions)
_REPEATED = {"ensemble"}
"""Options that hold paths and may be given several times; others that hold several words separate them by commas."""


def _with_run_options(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Give a command an option for every field of :class:`RunOptions`, which it gets as ``asked``."""
    options = {one.name: one for one in fields(RunOptions) if one.metadata["option"]}

    @functools.wraps(function)
    def run(*args: Any, **values: Any) -> Outcome:
        asked = {name: _value(name, values.pop(name)) for name in options}
        return function(*args, asked=asked, **values)

    own = inspect.signature(function, eval_str=True)
    parameters = [parameter for parameter in own.parameters.values() if parameter.name != "asked"]
    first = next(n for n, parameter in enumerate(parameters) if parameter.kind is inspect.Parameter.KEYWORD_ONLY)
    parameters[first:first] = [_parameter(one) for one in options.values()]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _parameter(one: Field[Any]) -> inspect.Parameter:
    flag, default = f"--{one.name.replace('_', '-')}", one.default
    kind: Any = _HINTS[one.name]
    if kind is bool and default:
        flag += f"/--no-{one.name.replace('_', '-')}"
    elif one.name in _REPEATED:
        kind, default = list[Path] | None, None
    elif isinstance(default, tuple):
        kind, default = str | None, ",".join(default) or None
    elif get_origin(kind) is Literal:
        kind = str
    hint = Annotated[kind, typer.Option(flag, help=one.metadata["help"])]
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _value(name: str, given: Any) -> Any:
    if name in _REPEATED:
        return tuple(str(path.absolute()) for path in given or ())
    if isinstance(RunOptions.__dataclass_fields__[name].default, tuple):
        return tuple(word.strip() for word in (given or "").split(",") if word.strip())
    return given


@app.command()
@command
@_with_run_options
def infer(
    bundle: BundleArgument,
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="NIfTI files, DICOM folders with any number of studies, datalists."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    *,
    asked: Mapping[str, Any],
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time went.")] = False,
    trust_bundle: Annotated[
        bool, typer.Option("--trust-bundle", help="Run the bundle's own code although the audit blocks it; no network.")
    ] = False,
    network_only: Annotated[
        bool, typer.Option("--network-only", help="Use the network and the clean parts of inference.json alone.")
    ] = False,
) -> Outcome:
    """Label images with a bundle: every case gets a label map on its own grid.

    Run the same command again and it goes on where it stopped. Exit code 0: all done; 1: some cases were refused or
    failed (run.json and results.csv say why); 75: interrupted, run it again.

    Example: medseg infer bundles/hippocampus_mri_segmentation studies/ -o results
    """
    from medseg.bundle import Bundle
    from medseg.inference.roi import parse_region

    options = RunOptions(**asked)
    options.bundle_of(Bundle.open(bundle))  # wrong paths and options are told before seconds go into imports
    if options.roi:
        parse_region(options.roi)
    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        raise UsageError(f"no such file or folder: {', '.join(missing[:5])}")
    _confine(output, options.cluster, own_code=trust_bundle)
    if not trust_bundle:  # its own code may need the whole of MONAI
        import_monai_quickly()
    from medseg.inference.run.batch import run_batch

    permission: Permission = "everything" if trust_bundle else "network-only" if network_only else "audited"
    with _Progress() as progress:
        opened = Bundle.open(bundle, permission)
        report = run_batch(opened, inputs, output, options, progress=progress.show, announce=progress.say)
    _say(report, profile=profile)
    return Outcome(report.content, report.complete)


def _confine(output: Path, cluster: str | None, *, own_code: bool) -> None:
    """Behind the wall nothing is reached but the workers of ``--cluster``; those started elsewhere stand outside."""
    from medseg.confinement import NETWORK, NOTHING

    kind = parse_place(cluster).kind if cluster else None
    folder = prepare_folder(output)
    if kind not in (None, "local") and not own_code:
        told = "workers on other machines are not confined by medseg: only a bundle's audit stands there"
        terminal().print(f"note: {told}", markup=False)
        return
    reach = NETWORK if kind == "local" and not own_code else NOTHING
    confine_command([folder], reach, imports="medseg.inference.run.batch", own_code=own_code)


class _Progress:
    """A bar with the remaining time on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = terminal()
        self._bar = progress_bar(self._console)
        self._task = self._bar.add_task("reading inputs", total=None)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line)

    def show(self, finished: int, total: int, result: CaseResult) -> None:
        """Show one more finished case."""
        name = shown(result.case_id)
        self._bar.update(self._task, completed=finished, total=total, description=name)
        notes = [*_verdict(result), *(f"no {kind} ({why.reason})" for kind, why in result.not_written.items())]
        if result.status != "done":
            self.say(f"{name}: {result.status} ({result.reason}) {shown(result.message)}")
        elif not self._console.is_terminal:
            self.say(", ".join([f"{finished}/{total} {name}: done in {result.seconds:.1f} s", *notes]))
        elif notes:
            self.say(f"{name}: {', '.join(notes)}")


def _verdict(result: CaseResult) -> list[str]:
    """Verdict with predicted Dice, and flags; empty without trust."""
    if not result.trust:
        return []
    predicted, lowest = result.estimates
    estimate = "" if predicted is None else f" (Dice about {predicted:.2f}, every structure at least {lowest:.2f})"
    return [result.verdict + estimate, *result.flags]


def _say(report: RunReport, *, profile: bool) -> None:
    def say(line: str, style: str | None = None) -> None:
        terminal().print(line, style=style)

    counts = ", ".join(f"{count} {status}" for status, count in report.statuses.items())
    place = report.folder / "run.json"
    say(f"{counts}; {report.computed} computed now in {report.seconds:.1f} s. See {place}")
    _say_trust(report, say)
    if real := report.real:
        say(f"Discriminator: {real['accept']} accepted, {real['reject']} rejected")
    if report.trained_on:
        seen = f"{report.trained_on} of {report.statuses['done']} cases were used to train this model"
        say(f"{seen}: these figures say nothing about new cases", "yellow")
    if profile:
        for stage, seconds in report.stages.items():
            say(f"  {stage:<10} {seconds:8.2f} s")


def _say_trust(report: RunReport, say: Callable[..., None]) -> None:
    verdicts, trust = report.verdicts, report.trust
    if verdicts is not None and trust["state"] == "none":
        say(
            f"Trust: not calibrated, so nothing is accepted; {verdicts['flagged']} to be reviewed as implausible."
            f" Worst first: {report.folder / 'worklist.csv'}"
        )
    elif verdicts is not None:
        flagged = verdicts.pop("flagged")
        words = [f"{count} {verdict}" for verdict, count in verdicts.items()]
        words += [f"{flagged} flagged"] if flagged else []
        say(f"Trust: {', '.join(words)}. Worst first: {report.folder / 'worklist.csv'}")
        if trust.get("accepted"):
            from medseg.results.accept_table import AcceptTable

            worth = AcceptTable.from_json(trust["accepted"]).describe(trust["thresholds"]["accept"])
            say(worth[0].upper() + worth[1:])
        if trust["provenance"]:
            say(f"Trust was calibrated on {trust['provenance']}")
    elif trust["state"] in {"stale", "damaged"}:
        say(f"Trust: no verdicts, no doubt. {trust['message']}", "yellow")
