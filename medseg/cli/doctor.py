"""``medseg doctor``."""

from __future__ import annotations

from collections.abc import Mapping

from medseg.cli._command import Outcome, command, terminal
from medseg.cli.main import app


@app.command()
@command
def doctor() -> Outcome:
    """Show versions, devices, CPU features, memory, DICOM decoders and extras, and what to install for what is missing.

    Example: medseg doctor --json
    """
    from rich.markup import escape

    from medseg.doctor import diagnose

    found = diagnose()
    _show("Versions", {name: version or "[red]missing[/red]" for name, version in found.versions.items()})
    bf16 = "bf16 in hardware" if found.cpu["bf16_in_hardware"] else "no bf16 in hardware, fp32 is used"
    machine = {
        "system": f"{found.system}, Python {found.python}",
        "cores": f"{found.cores} ({found.cpu['capability']}, {bf16})",
        "CPU features": ", ".join(found.cpu["features"]) or "not known on this system",
        "memory": f"{found.memory_gb} GiB",
        "free for temporary files": f"{found.free_disk_gb} GiB",
    }
    _show("Machine", machine)
    _show("Devices", found.devices)
    _show("DICOM pixel data", {name: _mark(available) for name, available in found.decoders.items()})
    _show("Extras", {name: _mark(complete) for name, complete in found.extras.items()})
    for problem in found.problems:
        terminal().print(f"[red]Problem:[/red] {problem}")
    for advice in found.advice:
        terminal().print(f"[yellow]Could help:[/yellow] {escape(advice)}")
    if not found.problems:
        terminal().print("[green]medseg can work here.[/green]")
    return Outcome(found.as_dict(), complete=not found.problems)


def _mark(good: bool) -> str:
    return "[green]yes[/green]" if good else "[yellow]no[/yellow]"


def _show(title: str, rows: Mapping[str, str]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(f"  {name}", value)
    terminal().print(table)
    terminal().print()
