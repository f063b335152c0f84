"""``medseg demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli._app import Outcome, app, command, terminal
from medseg.files import prepare_folder

if TYPE_CHECKING:
    from medseg.workflows.demo import DemoResult


NEXT = (
    "medseg index STUDIES                     # what is there, usable or refused, and why",
    "medseg manifest create --images IMAGES --labels LABELS -o datalist.json",
    "medseg bundle new my_bundle --datalist datalist.json",
    "medseg train my_bundle --publish",
    "medseg infer my_bundle STUDIES -o results",
)
"""What to try after the demo."""


@app.command()
@command
def demo(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")] = Path("medseg-demo"),
) -> Outcome:
    """Walk the whole way on synthetic patients: DICOM, index, split, train, batch inference, evaluation, report.

    Takes about 2 minutes on 2 free cores; downloads nothing.

    Example: medseg demo --output medseg-demo
    """
    from medseg.cli._progress import TrainingProgress
    from medseg.workflows.demo import run_demo

    prepare_folder(output)
    console = terminal()
    with TrainingProgress(console) as progress:
        result = run_demo(output, watchers=[progress], say=lambda line: console.print(line, style="bold"))
    _say(result)
    return Outcome(
        {
            "output": str(result.output),
            "report": str(result.report),
            "bundle": str(result.bundle),
            "mean_dice": result.mean_dice,
            "dice": dict(result.dice),
            "seconds": dict(result.seconds),
        }
    )


def _say(result: DemoResult) -> None:
    console = terminal()
    console.print()
    for name, dice in result.dice.items():
        console.print(f"  Dice {dice:.3f}  {name}")
    console.print()
    console.print(f"Mean Dice {result.mean_dice:.3f} after {sum(result.seconds.values()):.0f} s.", style="green")
    console.print()
    console.print(f"Look at   {result.report}  (open it in a browser)")
    console.print(
        f"          {result.output}/metrics.json, *_seg.nii.gz, run.json; {result.output}/training: curves, samples"
    )
    console.print("Next, on your own data:")
    for line in NEXT:
        console.print(f"  {line}")
