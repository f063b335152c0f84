"""``medseg infer``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli._command import BundleArgument, Outcome, command, terminal
from medseg.cli._isolation import cut_network
from medseg.cli._lean import import_monai_quickly
from medseg.cli.main import app
from medseg.files import shown

if TYPE_CHECKING:
    from medseg.bundle import Permission
    from medseg.inference import CaseResult, RunReport


@app.command()
@command
def infer(
    bundle: BundleArgument,
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="NIfTI files, DICOM folders with any number of studies, datalists."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    write: Annotated[str, typer.Option(help="Comma-separated: nifti, doubt, seg, sr, rtstruct, sc.")] = "nifti",
    select: Annotated[
        str | None, typer.Option(help="JSON file with selection rules: which series of each study to use, per channel.")
    ] = None,
    allow_resample: Annotated[
        bool, typer.Option("--allow-resample", help="Resample uneven spacing or a gantry tilt onto a regular grid.")
    ] = False,
    roi: Annotated[
        str | None,
        typer.Option(
            help="Look only here: x0,y0,z0,x1,y1,z1, two corners in mm (RAS: right, anterior, superior positive);"
            " voxels:i0,j0,k0,i1,j1,k1, both ends included; or a mask image."
        ),
    ] = None,
    section: Annotated[
        str | None, typer.Option(help="Only these items of a datalist: training, validation or test.")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Only the items that this fold of a datalist holds out.")] = None,
    device: Annotated[str, typer.Option(help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (float32; on CUDA automatic mixed precision), fp32 or bf16.")
    ] = "auto",
    engine: Annotated[
        str,
        typer.Option(help="What runs the network, by name, such as openvino-fp32; auto: torch, as --precision says."),
    ] = "auto",
    windows: Annotated[str, typer.Option(help="bundle or auto: the bundle's own.")] = "auto",
    workers: Annotated[int, typer.Option(help="Cases read ahead and written behind at once.")] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(help="Where workers do the work: local:N processes, slurm[:FILE], or a Dask scheduler's address."),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            help="Also look at every window mirrored, and average: comma-separated axes of the patient, ap, is, lr"
            " (front-back, head-foot, left-right)."
        ),
    ] = None,
    ensemble: Annotated[
        list[Path] | None,
        typer.Option(help="Another bundle for the same task, or other weights, to average with; may be repeated."),
    ] = None,
    judged: Annotated[
        bool, typer.Option("--trust/--no-trust", help="Judge every case, if the bundle has a trust calibration.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
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

    _check_words(bundle, inputs, write)
    if not trust_bundle:
        import_monai_quickly()
    from medseg.inference import Options, run_batch

    if trust_bundle:
        cut_network()
    permission: Permission = "everything" if trust_bundle else "network-only" if network_only else "audited"
    kinds = tuple(kind.strip() for kind in write.split(",") if kind.strip())
    options = Options(
        write=kinds,
        select=select,
        allow_resample=allow_resample,
        roi=roi,
        section=section,
        fold=fold,
        device=device,
        engine=engine,
        precision=precision,  # type: ignore[arg-type]
        windows=windows,  # type: ignore[arg-type]
        workers=workers,
        cluster=cluster,
        trust=judged,
        mirror=tuple(axis.strip() for axis in (mirror or "").split(",") if axis.strip()),
        ensemble=tuple(str(member.absolute()) for member in ensemble or ()),
        fresh=fresh,
    )
    with _Progress() as progress:
        opened = Bundle.open(bundle, permission)
        report = run_batch(opened, inputs, output, options, progress=progress.show, announce=progress.say)
    _say(report, profile=profile)
    return Outcome(report.content, report.complete)


def _check_words(bundle: Path, inputs: Sequence[Path], write: str) -> None:
    """Wrong paths and kinds are told before seconds go into imports; everything is looked at again later."""
    from medseg.bundle import Bundle
    from medseg.errors import UsageError
    from medseg.outputs import KINDS

    Bundle.open(bundle)
    known = ("nifti", "doubt", *KINDS)
    kinds = [kind.strip() for kind in write.split(",") if kind.strip()]
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        raise UsageError(f"--write {write}: found {unknown}, expected some of {', '.join(known)}")
    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        raise UsageError(f"no such file or folder: {', '.join(missing[:5])}")


class _Progress:
    """A bar with the remaining time on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = terminal()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("reading inputs", total=None)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False)

    def show(self, finished: int, total: int, result: CaseResult) -> None:
        """Show one more finished case."""
        name = shown(result.case_id)
        self._bar.update(self._task, completed=finished, total=total, description=name.replace("[", r"\["))
        notes = [note for note in (_verdict(result), *_not_written(result)) if note]
        if result.status != "done":
            self.say(f"{name}: {result.status} ({result.reason}) {shown(result.message)}")
        elif not self._console.is_terminal:
            self.say(", ".join([f"{finished}/{total} {name}: done in {result.seconds:.1f} s", *notes]))
        elif notes:
            self.say(f"{name}: {', '.join(notes)}")


def _not_written(result: CaseResult) -> list[str]:
    """Which outputs the source cannot have, and why."""
    return [f"no {kind} ({why['reason']})" for kind, why in result.not_written.items()]


def _verdict(result: CaseResult) -> str:
    """Verdict, predicted Dice and flags in a few words; empty without trust."""
    if not result.trust:
        return ""
    predicted, lowest = result.trust["predicted_dice"], result.trust["lower_bound"]
    told = "" if predicted is None else f" (Dice about {predicted:.2f}, every structure at least {lowest:.2f})"
    return result.trust["verdict"] + told + "".join(f", {flag}" for flag in result.trust["flags"])


def _say(report: RunReport, *, profile: bool) -> None:
    summary: dict[str, Any] = report.content["summary"]
    console = terminal()
    console.print(
        f"{summary['done']} done, {summary['refused']} refused, {summary['failed']} failed; {summary['computed']}"
        f" computed now in {summary['seconds']:.1f} s. See {report.folder / 'run.json'}",
        markup=False,
    )
    _say_verdicts(report)
    _say_what_was_seen(summary)
    if profile:
        for stage, seconds in summary["stages_seconds"].items():
            console.print(f"  {stage:<10} {seconds:8.2f} s", markup=False)


def _say_what_was_seen(summary: dict[str, Any]) -> None:
    if summary["trained_on"]:
        console = terminal()
        told = f"{summary['trained_on']} of {summary['done']} cases were used to train this model: "
        console.print(f"{told}these figures say nothing about new cases", style="yellow", markup=False)


def _say_verdicts(report: RunReport) -> None:
    console = terminal()
    counts, state = report.content["summary"]["verdicts"], report.content["trust"]
    if counts is not None:
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("accept", "review", "reject"))
        flagged = f", {counts['flagged']} flagged" if counts["flagged"] else ""
        console.print(f"Trust: {told}{flagged}. Worst first: {report.folder / 'worklist.csv'}", markup=False)
        if state["provenance"]:
            console.print(f"Trust was calibrated on {state['provenance']}", markup=False)
        return
    if state["state"] in {"stale", "damaged"}:
        console.print(f"Trust: no verdicts, no doubt. {state['message']}", style="yellow", markup=False)
