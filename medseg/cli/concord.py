"""``medseg concord``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli._app import Outcome, app, command, terminal
from medseg.cli._startup import confine_command, import_monai_quickly
from medseg.files import prepare_folder


@app.command()
@command
def concord(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C]... [STUDIES]...",
            help="Bundles (name or folder) and the studies that they label; folders that medseg infer wrote; or label "
            "maps of any origin, folders or datalists of them, alone.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    *,
    match: Annotated[
        Path | None,
        typer.Option(help="CSV: structure, then its name or value in each (parts: a+b); else coded terms, then names."),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Dice by which the odd one out agrees less than the others do.")
    ] = 0.05,
    device: Annotated[
        str, typer.Option(help="Of bundles: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N.")
    ] = "auto",
) -> Outcome:
    """Compare what several bundles say of the same studies, without truth: agreement, the odd one out, estimated Dice.

    Run the same command again and it labels only what is missing. Exit code 1: some cases could not be compared.

    Example: medseg concord hippocampus_mri_segmentation other_bundle third_bundle studies/ -o concord

    Or results that are there: medseg concord results_a results_b results_c -o concord
    """
    from medseg.bundle.find import find_bundle, is_bundle
    from medseg.cli._progress import counted_progress
    from medseg.inference.run.options import RunOptions

    if any(is_bundle(find_bundle(one)) for one in sources):
        confine_command([prepare_folder(output)], imports="medseg.inference.run.batch")
        import_monai_quickly()
    from medseg.workflows.concord import concord as compare

    with counted_progress("cases") as show:
        result = compare(
            sources,
            output,
            table=match,
            margin=margin,
            options=RunOptions(device=device),
            progress=show,
            say=lambda line: terminal().print(line),
        )
    _show(result.summary)
    terminal().print(f"Wrote {output / 'concord.html'}, concord.csv and concord.json")
    return Outcome({"output": str(output), **result.summary}, complete=result.complete)


def _show(summary: Mapping[str, Any]) -> None:
    def say(line: str) -> None:
        terminal().print(line)

    wide = max((len(name) for of in summary["readers"].values() for name in of), default=0)
    widest = max(map(len, summary["readers"]), default=0)
    for reader, of in summary["readers"].items():
        for name, found in of.items():
            estimated, agreement = (_mean(found[key]) for key in ("estimated_dice", "agreement"))
            counts = ", ".join(f"{found[f'n_{what}']} {what}" for what in ("missed", "invented"))
            say(f"{reader:<{widest}}  {name:<{wide}}  estimated Dice {estimated}  agreement {agreement}  {counts}")
    for reader, cases in summary["odd_one_out"].items():
        if cases:
            shown = ", ".join(cases[:5]) + (f" and {len(cases) - 5} more" if len(cases) > 5 else "")
            say(f"odd one out in {len(cases)} of {summary['n_cases']} cases: {reader} ({shown})")
    for name, names in summary["without_partner"].items():
        say(f"without partner in {name}: {', '.join(names)}")
    for one in summary["missing"]:
        say(f"{one['case_id']}: {one['reader']} {one['why']}")
    for one in summary["refused"]:
        say(f"{one['case_id']}: refused ({one['code']}) {one['message']}")


def _mean(summary: Mapping[str, Any]) -> str:
    if summary["mean"] is None:
        return "  –  "
    low, high = summary["ci95"] or (None, None)
    return f"{summary['mean']:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")
