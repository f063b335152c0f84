"""``medseg report``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli._app import Outcome, app, command, terminal
from medseg.files import prepare_file


class Viewer(StrEnum):
    """Which cases get the 3D and slice viewer."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@app.command()
@command
def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder that `medseg infer`, `evaluate` or `train` wrote.", show_default=False)
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, if run.json does not lead to them.")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="Folder of the reference masks, to draw them too.")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    viewer: Annotated[
        Viewer, typer.Option(help="auto: while the page stays small; always: with files beside it; never.")
    ] = Viewer.AUTO,
) -> Outcome:
    """Write report.html into an infer, evaluate or train folder: self-contained, works offline, worst cases first.

    Example: medseg report results/ --images scans/ --references masks/
    """
    from medseg.report import write_report
    from medseg.results import RunReport, keep_worklist

    if folder.is_dir():
        prepare_file(folder / "report.html")
    page = write_report(folder, images=images, references=references, title=title, viewer=viewer.value)
    if (run := RunReport.find(folder)) is not None:  # a training's run.json has no cases to order
        from medseg.evaluation.tables import measured_dice

        keep_worklist(run, measured_dice)
    terminal().print(f"Wrote {page}")
    return Outcome({"report": str(page)})
