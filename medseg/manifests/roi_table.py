"""The names of segments, ROIs and mask files in a datalist's labels, and the table that says what they mean.

The table is a CSV file: a name, the number of cases that have it, its volume in all of them, the structure that it
means (empty: it is left out), and why that is proposed. Accepted, it becomes the datalist's ``roi_mapping``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseg.errors import UndecidedNames, UsageError
from medseg.files import write_text
from medseg.ingest import read_volume
from medseg.labels.scheme import listed
from medseg.manifests.audit_facts import case_of
from medseg.manifests.items import Item, entries_of
from medseg.manifests.label_objects import is_object, read_object
from medseg.manifests.manifest import Manifest
from medseg.manifests.roi_names import FoundName, Proposal, propose
from medseg.tables import read_table, table_text

ROI_KEY = "roi_mapping"
"""Key of a datalist: name of a segment, ROI or mask file → structure; ``null`` for one that is left out on purpose."""

COLUMNS = ("name", "cases", "volume_ml", "structure", "why")
"""Of the table."""

Missing = Literal["background", "unknown"]
"""What a structure is in a case that has no mask, segment or ROI of it."""

_SHOWN = 6
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NameChoices:
    """What is said of the names in labels.

    Parameters
    ----------
    structures
        Names that are wanted, in the order of their values; empty: all that are found.
    table
        Structure by name, from an accepted table; empty for what is left out. ``None`` if none was given.
    merges
        Names that become one structure.
    missing
        What a structure is where a case has none of it; ``"unknown"`` writes ``annotated`` into the items.
    """

    structures: Sequence[str] = ()
    table: Mapping[str, str] | None = None
    merges: Mapping[str, Sequence[str]] = field(default_factory=dict)
    missing: Missing = "background"


def settle_names(
    manifest: Manifest, choices: NameChoices, progress: Callable[[int, int], None] | None = None
) -> Manifest | None:
    """Give every name in the labels its structure; ``None`` if the labels hold no names (label maps have values).

    Returns
    -------
    Manifest
        With ``labels``, ``roi_mapping``, mask files that are not wanted left out of the items, and ``annotated`` where
        asked for.

    Raises
    ------
    UndecidedNames
        If a name's structure is not said by the structures that are wanted, the table or a merge.
    UsageError
        If a wanted structure is not there.
    """
    per_item = [(case_of(item), _names_of(manifest, item)) for _, _, item in manifest.items() if item.get("label")]
    found: dict[str, FoundName] = {}
    masks: set[str] = set()
    for case, names in per_item:
        for name, is_mask in names.items():
            found.setdefault(name, FoundName(name)).cases.add(case)
            if is_mask:
                masks.add(name)
    if not found:
        return None
    mapping = _decided(list(found.values()), masks, choices)
    if mapping is None:
        _measure(manifest, found, progress)
        raise _undecided(list(found.values()), choices)
    structures = list(choices.structures) or list(dict.fromkeys(filter(None, mapping.values())))
    _refuse_absent(structures, mapping, choices)
    return _written(manifest, mapping, structures, choices.missing)


def _names_of(manifest: Manifest, item: Item) -> dict[str, bool]:
    """The names in an item's labels, of all raters, and whether each is that of a mask file."""
    names: dict[str, bool] = {}
    for entry in entries_of(manifest.label_entry(item)).values():
        if isinstance(entry, Mapping):
            names |= {name: not is_object(Path(file)) for name, file in entry.items()}
        elif is_object(Path(entry)):
            names |= dict.fromkeys(read_object(entry).names, False)
    return names


def _decided(found: Sequence[FoundName], masks: set[str], choices: NameChoices) -> dict[str, str] | None:
    """Structure by name, empty for what is left out; ``None`` if a person has to say more."""
    merged = {name: structure for structure, names in choices.merges.items() for name in names}
    if unknown := sorted(set(merged) - {one.name for one in found}):
        raise UsageError(f"--merge names {unknown[0]!r}, which no label has; found are {_some(found)}")
    wanted = [name for name in choices.structures if name not in choices.merges]
    rest = [one for one in found if one.name not in merged]
    if choices.table is not None:
        return _from_table(found, choices.table | merged, choices)
    proposals = propose(rest, wanted)
    own = {proposal.name: proposal.structure for proposal in proposals}
    for proposal in proposals:
        is_own = proposal.structure == proposal.name
        not_wanted = bool(choices.structures) and proposal.name in masks and proposal.is_far
        if not is_own and not not_wanted:
            return None
    return {one.name: merged.get(one.name, own.get(one.name, "")) for one in found}


def _from_table(found: Sequence[FoundName], table: Mapping[str, str], choices: NameChoices) -> dict[str, str]:
    names = {one.name for one in found}
    if unsaid := [one for one in found if one.name not in table]:
        raise UsageError(
            f"the table of names has no line for {_some(unsaid)}, which the labels have; add it, with an empty structure "
            "to leave it out"
        )
    if idle := sorted(set(table) - names):
        _log.warning("the table of names has lines for names that no label has: %s", listed(idle[:_SHOWN]))
    undeclared = sorted({structure for structure in table.values() if structure} - {*choices.structures})
    if choices.structures and undeclared:
        raise UsageError(
            f"the table of names has the structure {undeclared[0]!r}, which --label does not name (it names "
            f"{listed(choices.structures)}); name every structure of the table or none"
        )
    return {name: table[name] for name in table if name in names}


def _undecided(found: Sequence[FoundName], choices: NameChoices) -> UndecidedNames:
    wanted = [*dict.fromkeys([*choices.structures, *choices.merges])]
    proposals = [
        Proposal(one.name, len(one.cases), one.volume_ml, structure, "as --merge says") if structure else proposal
        for one, proposal in zip(found, propose(found, wanted), strict=True)
        for structure in [next((to for to, names in choices.merges.items() if one.name in names), "")]
    ]
    ordered = sorted(proposals, key=lambda one: (not one.structure, one.structure, -one.cases, one.name))
    return UndecidedNames(f"the labels hold {len(found)} names, whose structures are to be said", ordered)


def _refuse_absent(structures: Sequence[str], mapping: Mapping[str, str], choices: NameChoices) -> None:
    absent = [name for name in structures if name not in mapping.values()]
    if absent or not structures:
        found = listed(sorted(mapping)[:_SHOWN]) + (" and more" if len(mapping) > _SHOWN else "")
        what = f"no label has the structure {absent[0]!r}" if absent else "every name is left out"
        raise UsageError(f"{what}; the names found are {found}: correct --label or the table of names")


def _written(manifest: Manifest, mapping: Mapping[str, str], structures: Sequence[str], missing: Missing) -> Manifest:
    lacking: dict[str, int] = {}

    def keys(item: Item) -> dict[str, Any]:
        if not item.get("label"):
            return {}
        there = {mapping[name] for name in _names_of(manifest, item) if mapping[name]}
        for name in set(structures) - there:
            lacking[name] = lacking.get(name, 0) + 1
        partly = {"annotated": [name for name in structures if name in there]}
        return {"label": _kept(item["label"], mapping), **(partly if missing == "unknown" else {})}

    made = manifest.with_keys(keys)
    if lacking and missing == "background":
        counts = listed([f"{name} in {count}" for name, count in sorted(lacking.items())[:_SHOWN]])
        _log.warning(
            "cases without a structure: %s; it counts as background there. Say --missing unknown if nobody looked for it",
            counts,
        )
    told = {name: structure or None for name, structure in mapping.items() if name != structure}
    names = {str(value): name for value, name in enumerate(["background", *structures])}
    return made.with_content(labels=names, **({ROI_KEY: told} if told else {}))


def _kept(label: Any, mapping: Mapping[str, str]) -> Any:
    """A label without the mask files that are left out; a case in which nothing is left keeps its files."""
    if isinstance(label, Mapping):
        return {name: file for name, file in label.items() if mapping.get(name, name)} or label
    if isinstance(label, list):
        return [
            {**one, "label": _kept(one["label"], mapping)} if isinstance(one, Mapping) and "rater" in one else one
            for one in label
        ]
    return label


def _measure(manifest: Manifest, found: Mapping[str, FoundName], progress: Callable[[int, int], None] | None) -> None:
    """Add up the volume of every name over the first rater's masks, which are read for it."""
    items = [item for _, _, item in manifest.items() if item.get("label")]
    for number, item in enumerate(items, start=1):
        for entry in entries_of(manifest.label_entry(item)).values():
            for name, file in entry.items() if isinstance(entry, Mapping) else ():
                if not is_object(Path(file)):
                    array, geometry, _ = read_volume(file)
                    volume = float(np.count_nonzero(array)) * geometry.voxel_volume_mm3 / 1000.0
                    found[name].volume_ml = (found[name].volume_ml or 0.0) + volume
        if progress is not None:
            progress(number, len(items))


def _some(found: Sequence[FoundName]) -> str:
    names = [repr(one.name) for one in found[:_SHOWN]]
    return listed([*names, f"{len(found) - _SHOWN} more"] if len(found) > _SHOWN else names)


def write_roi_table(path: Path, proposals: Sequence[Proposal]) -> None:
    """Write the proposals as a table to be edited.

    Raises
    ------
    UsageError
        If the file is there: it may be one that somebody has edited.
    """
    if path.exists():
        raise UsageError(f"{path} is there already: give it back with --roi-table {path}, or remove it for a new one")
    rows = [
        (one.name, one.cases, "" if one.volume_ml is None else f"{one.volume_ml:.4g}", one.structure, one.why)
        for one in proposals
    ]
    write_text(path, table_text([COLUMNS, *rows]))


def read_roi_table(path: Path) -> dict[str, str]:
    """Structure by name from an accepted table, empty for what is left out.

    Raises
    ------
    UsageError
        If a column is missing, or a name stands there twice.
    """
    table = read_table(path)
    if not {"name", "structure"} <= set(table.columns):
        raise UsageError(f"{path} has the columns {listed(table.columns)}; expected name and structure")
    said: dict[str, str] = {}
    for row in table.rows:
        if row["name"] in said:
            raise UsageError(f"{path} has two lines for {row['name']!r}; keep one")
        said[row["name"]] = row["structure"].strip()
    return said
