"""What ``medseg manifest create`` does with its options, and what it shows of names and labels."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medseg.cli._app import Outcome, terminal
from medseg.files import prepare_folder

if TYPE_CHECKING:
    from medseg.errors import UndecidedNames
    from medseg.manifests import Manifest

Several = Literal["refuse", "latest", "join", "raters"]
Missing = Literal["background", "unknown"]
_NAMES_SHOWN = 40
_PATTERN_MARKS = {*"*?[{/"}


def created(
    images: Path,
    labels: Path | None,
    said: list[str],
    *,
    maps: list[str],
    merges: list[str],
    roi_table: Path | None,
    readings: list[str],
    dicom: tuple[Several, str, Path | None, Path | None, bool],
    **options: Any,
) -> Manifest:
    """The manifest that the options ask for."""
    from medseg.ingest.selection import read_rules
    from medseg.labels.scheme import parse_mapping, parse_names
    from medseg.manifests import create as create_manifest
    from medseg.manifests.layout_dicom import DicomChoices
    from medseg.manifests.roi_table import read_roi_table
    from medseg.manifests.value_table import parse_merges

    several, modality, select, links, leave_out = dicom
    rules = read_rules(select) if select is not None else []
    patterns = [text for text in said if "=" not in text and _PATTERN_MARKS & {*text}]
    return create_manifest(
        images,
        labels,
        label_pattern=_label_pattern(patterns),
        names=parse_names([text for text in said if "=" in text]),
        structures=_structures(said, patterns),
        mapping=parse_mapping(maps),
        merges=parse_merges(merges),
        roi_table=read_roi_table(roi_table) if roi_table is not None else None,
        reading=_reading(readings),
        dicom=DicomChoices(several, modality, rules, links, leave_out),
        **options,
    )


def written(manifest: Manifest, folder: Path, progress: Callable[[int, int], None]) -> Manifest:
    from medseg.manifests.layouts import write_label_maps

    prepare_folder(folder)
    return write_label_maps(manifest, folder, progress)


def _reading(texts: list[str]) -> dict[str, Any]:
    """``["order=liver,tumour", "threshold=0.4"]`` as the datalist's ``label_reading``."""
    from medseg.errors import UsageError

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise UsageError(f"found --reading {text!r}, expected KEY=VALUE, for example --reading missing_slices=fill")
        if key == "order":
            found[key] = [part.strip() for part in value.split(",")]
        elif value in ("true", "false"):
            found[key] = value == "true"
        else:
            found[key] = float(value) if re.fullmatch(r"[0-9.]+", value) else value
    return found


def _structures(said: list[str], patterns: list[str]) -> list[str]:
    """Names without a value, in their order."""
    from medseg.errors import UsageError

    names = [text for text in said if "=" not in text and text not in patterns]
    if names and any("=" in text for text in said):
        raise UsageError(f"--label {names[0]} has no value, and other names have one; give all of them one, or none")
    return names


def _label_pattern(patterns: list[str]) -> str | None:
    from medseg.errors import UsageError

    if len(patterns) > 1:
        raise UsageError(
            f"found {len(patterns)} patterns for labels, expected one; where each structure has a file of its own, "
            "write {structure} for it, and {rater} for several raters"
        )
    return patterns[0] if patterns else None


def proposed(undecided: UndecidedNames, output: Path) -> Outcome:
    """Write the table of proposals, show it, and say how to give it back."""
    from rich.markup import escape
    from rich.table import Table

    from medseg.manifests.roi_names import Proposal
    from medseg.manifests.roi_table import write_roi_table

    path = output.with_name(f"{output.stem}_rois.csv")
    proposals = [one for one in undecided.proposals if isinstance(one, Proposal)]
    write_roi_table(path, proposals)
    console = terminal()
    console.print(f"{undecided}. No datalist was written yet.")
    table = Table(box=None, header_style="bold")
    for heading in ("name", "cases", "ml", "structure", "why"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("cases", "ml") else "left")
    for one in proposals[:_NAMES_SHOWN]:
        volume = "" if one.volume_ml is None else f"{one.volume_ml:.3g}"
        cells = (one.name, str(one.cases), volume, one.structure or "–", one.why)
        if console.is_terminal:
            table.add_row(*map(escape, cells))
        else:
            console.print(": ".join(cells), markup=False)
    if console.is_terminal:
        console.print(table, markup=True)
    if len(proposals) > _NAMES_SHOWN:
        console.print(f"and {len(proposals) - _NAMES_SHOWN} more in the table")
    console.print(f"{path}: read it, correct the column `structure` (empty: left out), and give it back:")
    console.print(f"  the same command with --roi-table {path}", style="bold", markup=False)
    lines = [asdict(one) for one in proposals]
    return Outcome({"manifest": None, "roi_table": str(path), "proposals": lines}, complete=False)


def show_labels(manifest: Manifest) -> None:
    """The structures and their values, as they will be learnt."""
    structures = manifest.scheme.structures
    shown = [f"{value} {name}" for value, name in list(structures.items())[:_NAMES_SHOWN]]
    more = f", and {len(structures) - _NAMES_SHOWN} more" if len(structures) > _NAMES_SHOWN else ""
    if shown:
        terminal().print(f"labels: {', '.join(shown)}{more}", markup=False)
