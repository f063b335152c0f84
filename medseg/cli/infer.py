"""``medseg infer``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli._command import Outcome, command, terminal
from medseg.cli.main import app

if TYPE_CHECKING:
    from medseg.inference import CaseResult, RunReport


@app.command()
@command
def infer(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="NIfTI files, DICOM folders with any number of studies, datalists."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    write: Annotated[str, typer.Option(help="Comma-separated: nifti, seg, sr, rtstruct, sc.")] = "nifti",
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
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or int8.")] = "auto",
    windows: Annotated[
        str,
        typer.Option(help="bundle: the bundle's own; large: up to the whole volume; auto: large where measured equal."),
    ] = "auto",
    workers: Annotated[int, typer.Option(help="Cases read ahead and written behind at once.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time went.")] = False,
) -> Outcome:
    """Label images with a bundle: every case gets a label map on its own grid.

    Run the same command again and it goes on where it stopped. Exit code 0: all done; 1: some cases were refused or
    failed (run.json and results.csv say why); 75: interrupted, run it again.

    Example: medseg infer bundles/hippocampus_mri_segmentation studies/ -o results
    """
    from medseg.inference import Options, run_batch

    kinds = tuple(kind.strip() for kind in write.split(",") if kind.strip())
    options = Options(
        write=kinds,
        select=select,
        allow_resample=allow_resample,
        roi=roi,
        device=device,
        precision=precision,  # type: ignore[arg-type]
        windows=windows,  # type: ignore[arg-type]
        workers=workers,
        fresh=fresh,
    )
    with _Progress() as progress:
        report = run_batch(bundle, inputs, output, options, progress=progress.show)
    _say(report, profile=profile)
    return Outcome(report.content, report.complete)


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

    def show(self, finished: int, total: int, result: CaseResult) -> None:
        """Show one more finished case."""
        self._bar.update(self._task, completed=finished, total=total, description=result.case_id)
        if result.status != "done":
            self._console.print(f"{result.case_id}: {result.status} ({result.reason}) {result.message}", markup=False)
        elif not self._console.is_terminal:
            self._console.print(f"{finished}/{total} {result.case_id}: done in {result.seconds:.1f} s", markup=False)


def _say(report: RunReport, *, profile: bool) -> None:
    summary: dict[str, Any] = report.content["summary"]
    console = terminal()
    console.print(
        f"{summary['done']} done, {summary['refused']} refused, {summary['failed']} failed; {summary['computed']}"
        f" computed now in {summary['seconds']:.1f} s. See {report.folder / 'run.json'}",
        markup=False,
    )
    if profile:
        for stage, seconds in summary["stages_seconds"].items():
            console.print(f"  {stage:<10} {seconds:8.2f} s", markup=False)
