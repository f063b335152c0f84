"""``medseg index``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli._app import Outcome, app, command, terminal

if TYPE_CHECKING:
    from medseg.ingest import SeriesRecord


@app.command()
@command
def index(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders, files or zip archives.")],
    *,
    database: Annotated[
        Path | None, typer.Option("--database", help="Keep the index here; the next scan reads only what has changed.")
    ] = None,
    select: Annotated[
        Path | None, typer.Option("--select", help="Selection rules (.json); say which series each rule chooses.")
    ] = None,
) -> Outcome:
    """Show what is there: one line per DICOM series or image file, its geometry, and whether it can be used.

    The exit code is 1 if some were refused. Nothing shown or kept is derived from a name or a date.

    Example: medseg index /data/studies --database index.sqlite
    """
    from medseg.cli._progress import counted_progress
    from medseg.ingest import scan

    with counted_progress("indexing") as progress:
        records = scan(paths, database=database, progress=progress)
    refused = [record for record in records if not record.usable]
    _show(records)
    terminal().print(f"{len(records)} found, {len(records) - len(refused)} usable, {len(refused)} refused")
    result = {"found": len(records), "refused": len(refused), "records": [asdict(record) for record in records]}
    if select is not None:
        result["choices"] = _selection(records, select)
    return Outcome(result, complete=not refused)


def _show(records: Sequence[SeriesRecord]) -> None:
    """A table by study, the refused first within each; one plain line for each where the output is no terminal."""
    from rich.table import Table

    studies: dict[str, list[SeriesRecord]] = {}
    for record in records:
        studies.setdefault(record.study_uid_hash or str(Path(record.source).parent), []).append(record)
    console = terminal()
    table = Table(box=None, header_style="bold")
    for heading in ("case", "what", "size", "mm", "axes", "verdict"):
        table.add_column(heading, overflow="fold")
    for study in studies.values():
        for record in sorted(study, key=lambda record: record.usable):
            if console.is_terminal:
                table.add_row(*_row(record))
            else:
                console.print("  ".join(cell for cell in _row(record) if cell), markup=True)
        table.add_section()
    if console.is_terminal and records:
        console.print(table, markup=True)


def _row(record: SeriesRecord) -> tuple[str, ...]:
    from rich.markup import escape

    return (
        escape(record.case_id),
        escape(f"{record.modality or record.kind} {record.description}".strip()),
        "×".join(map(str, record.shape or ())),
        "×".join(f"{spacing:.3g}" for spacing in record.spacing_mm or ()),
        escape(record.orientation),
        _verdict(record),
    )


def _verdict(record: SeriesRecord) -> str:
    from rich.markup import escape

    if record.usable:
        return "[green]usable[/]" + escape("; ".join(["", *record.notes]))
    return f"[red]{record.reason}[/] {escape(record.message)}"


def _selection(records: Sequence[SeriesRecord], rules_file: Path) -> list[dict[str, object]]:
    from medseg.ingest.selection import read_rules
    from medseg.ingest.selection import select as select_series

    choices = select_series(records, read_rules(rules_file))
    for choice in choices:
        terminal().print(
            f"{choice.record.case_id}: {choice.explanation}", style=None if choice.channel is None else "green"
        )
    return [
        {"case_id": choice.record.case_id, "channel": choice.channel, "explanation": choice.explanation}
        for choice in choices
    ]
