"""The names of segments, ROIs and mask files in a datalist's labels, and the table that says what they mean.

The table is a CSV file: a name, the number of cases that have it, its volume in all of them, the structure that it
means (empty: it is left out), and why that is proposed. Accepted, it becomes the datalist's ``roi_mapping``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medseg.errors import UndecidedNames, UsageError
from medseg.files import write_text
from medseg.labels.rules import ROI_MAPPING_KEY
from medseg.labels.rules import plain_name as plain
from medseg.labels.scheme import listed
from medseg.manifests.items import Item, case_of, entries_of
from medseg.manifests.label_objects import is_object, object_in, volumes_of
from medseg.manifests.manifest import Manifest
from medseg.manifests.roi_names import FoundName, Proposal, propose
from medseg.tables import read_table, table_text

COLUMNS = ("name", "cases", "volume_ml", "structure", "why")
"""Of the table."""

Missing = Literal["background", "unknown"]
"""What a structure is in a case that has no mask, segment or ROI of it."""

_SHOWN = 6
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NameChoices:
    """What is said of the names in labels."""

    structures: Sequence[str] = ()  # names that are wanted, in the order of their values; empty: all that are found
    table: Mapping[str, str] | None = None
    """Structure by name, from an accepted table; empty for what is left out. ``None`` if none was given."""
    merges: Mapping[str, Sequence[str]] = field(default_factory=dict)  # names that become one structure
    missing: Missing = "background"
    """What a structure is where a case has none of it; ``"unknown"`` writes ``annotated`` into the items."""


def settle_names(
    manifest: Manifest, choices: NameChoices, progress: Callable[[int, int], None] | None = None
) -> Manifest | None:
    """Give every name in the labels its structure; ``None`` if the labels hold no names (label maps have values).

    The manifest that comes back has ``labels``, ``roi_mapping``, ``annotated`` where asked for, and no mask files that
    are not wanted. Raises ``UndecidedNames`` if a name's structure is not said by the structures that are wanted, the
    table or a merge; ``UsageError`` if a wanted structure is not there.
    """
    per_item = [(case_of(item), _names_of(manifest, item)) for _, _, item in manifest.items() if item.get("label")]
    found: dict[str, FoundName] = {}
    masks: set[str] = set()
    for case, names in per_item:
        for name, is_mask in names.items():
            found.setdefault(plain(name), FoundName(name)).cases.add(case)
            if is_mask:
                masks.add(plain(name))
    if not found:
        return None
    choices = _with_declared(manifest, choices)
    mapping = _decided(list(found.values()), masks, choices)
    if mapping is None:
        _measure(manifest, found, progress)
        raise _undecided(list(found.values()), choices)
    structures = list(choices.structures) or list(dict.fromkeys(filter(None, mapping.values())))
    _refuse_absent(structures, mapping, list(found.values()))
    return _written(manifest, mapping, structures, choices.missing)


def _with_declared(manifest: Manifest, choices: NameChoices) -> NameChoices:
    """What a datalist that is made anew says already: its structures, and its mapping of names."""
    said = manifest.content.get(ROI_MAPPING_KEY)
    structures = choices.structures or list(manifest.scheme.structures.values())
    if choices.table is None and isinstance(said, Mapping) and said:
        table = {name: name for name in structures} | {name: said[name] or "" for name in said}
        return replace(choices, structures=structures, table=table)
    return replace(choices, structures=structures)


def _names_of(manifest: Manifest, item: Item) -> dict[str, bool]:
    """The names in an item's labels, of all raters, and whether each is that of a mask file."""
    names: dict[str, bool] = {}
    for entry in entries_of(manifest.label_entry(item)).values():
        if isinstance(entry, Mapping):
            names |= {name: not is_object(file) for name, file in entry.items()}
        elif is_object(entry):
            names |= dict.fromkeys(object_in(entry).names, False)
    return names


def _empty_of(manifest: Manifest, item: Item) -> set[str]:
    """Names in an item's structure sets that nobody drew: no sign that somebody looked."""
    files = [entry for entry in entries_of(manifest.label_entry(item)).values() if not isinstance(entry, Mapping)]
    return {name for file in files if is_object(file) for name in object_in(file).empty}


def _decided(found: Sequence[FoundName], masks: set[str], choices: NameChoices) -> dict[str, str] | None:
    """Structure by plain name, empty for what is left out; ``None`` if a person has to say more."""
    merged = {plain(name): structure for structure, names in choices.merges.items() for name in names}
    there = {plain(one.name) for one in found}
    if unknown := [name for names in choices.merges.values() for name in names if plain(name) not in there]:
        raise UsageError(f"--merge names {unknown[0]!r}, which no label has; found are {_some(found)}")
    if choices.table is not None:
        return _from_table(found, {plain(name): to for name, to in choices.table.items()} | merged, choices)
    wanted = [name for name in choices.structures if name not in choices.merges]
    decided = dict(merged)
    for one in propose([one for one in found if plain(one.name) not in merged], wanted):
        name = plain(one.name)
        not_wanted = bool(choices.structures) and name in masks and one.is_far
        if plain(one.structure) != name and not not_wanted:
            return None
        decided[name] = one.structure
    return decided


def _from_table(found: Sequence[FoundName], table: Mapping[str, str], choices: NameChoices) -> dict[str, str]:
    names = {plain(one.name) for one in found}
    if unsaid := [one for one in found if plain(one.name) not in table]:
        raise UsageError(
            f"the table of names has no line for {_some(unsaid)}, which the labels have; add it, with an empty "
            "structure to leave it out"
        )
    if idle := sorted(set(table) - names - {plain(name) for name in choices.structures}):
        _log.warning("the table of names has lines for names that no label has: %s", listed(idle[:_SHOWN]))
    seen: dict[str, str] = {}
    for structure in filter(None, table.values()):  # a reader would take two that differ in capitals alone for one
        if (other := seen.setdefault(plain(structure), structure)) != structure:
            raise UsageError(
                f"the table of names has the structures {other!r} and {structure!r}; write one of them in one way"
            )
    undeclared = sorted({structure for structure in table.values() if structure} - {*choices.structures})
    if choices.structures and undeclared:
        raise UsageError(
            f"the table of names has the structure {undeclared[0]!r}, which --label does not name (it names "
            f"{listed(choices.structures)}); name every structure of the table or none"
        )
    return {name: structure for name, structure in table.items() if name in names}


def _undecided(found: Sequence[FoundName], choices: NameChoices) -> UndecidedNames:
    wanted = [*dict.fromkeys([*choices.structures, *choices.merges])]
    proposals = [
        Proposal(one.name, len(one.cases), one.volume_ml, structure, "as --merge says") if structure else proposal
        for one, proposal in zip(found, propose(found, wanted), strict=True)
        for structure in [_merged_into(one.name, choices)]
    ]
    ordered = sorted(proposals, key=lambda one: (not one.structure, one.structure, -one.cases, one.name))
    held = f"the name {found[0].name!r}" if len(found) == 1 else f"{len(found)} names"
    return UndecidedNames(f"the labels hold {held}, and it is to be said which structure each means", ordered)


def _merged_into(name: str, choices: NameChoices) -> str:
    return next((to for to, names in choices.merges.items() if plain(name) in map(plain, names)), "")


def _refuse_absent(structures: Sequence[str], mapping: Mapping[str, str], found: Sequence[FoundName]) -> None:
    absent = [name for name in structures if name not in mapping.values()]
    if absent or not structures:
        what = f"no label has the structure {absent[0]!r}" if absent else "every name is left out"
        raise UsageError(f"{what}; the names found are {_some(found)}: correct --label or the table of names")


def _written(manifest: Manifest, mapping: Mapping[str, str], structures: Sequence[str], missing: Missing) -> Manifest:
    lacking: Counter[str] = Counter()
    told: dict[str, str | None] = {}

    def keys(item: Item) -> dict[str, Any]:
        if not item.get("label"):
            return {}
        names = _names_of(manifest, item)
        there = {mapping[plain(name)] for name in names.keys() - _empty_of(manifest, item)}
        for name, is_mask in names.items():
            structure = mapping[plain(name)]
            if plain(structure) != plain(name) and (structure or not is_mask):
                told.setdefault(name, structure or None)
        lacking.update(name for name in structures if name not in there)
        partly = {"annotated": [name for name in structures if name in there]}
        return {"label": _kept(item, mapping), **(partly if missing == "unknown" else {})}

    made = manifest.with_keys(keys)
    if lacking and missing == "background":
        counts = listed([f"{name} in {count}" for name, count in lacking.most_common(_SHOWN)])
        _log.warning(
            "cases without a structure: %s; it counts as background there: say --missing unknown if nobody looked",
            counts,
        )
    names = {str(value): name for value, name in enumerate(["background", *structures])}
    content = {key: value for key, value in made.content.items() if key != ROI_MAPPING_KEY}
    mapped = {ROI_MAPPING_KEY: dict(sorted(told.items()))} if told else {}
    return replace(made, content={**content, "labels": names, **mapped})


def _kept(item: Item, mapping: Mapping[str, str]) -> Any:
    """An item's label without the mask files that are left out.

    Raises ``UsageError`` if nothing is left of it.
    """

    def part(entry: Any) -> Any:
        if not isinstance(entry, Mapping):
            return entry
        files = {name: file for name, file in entry.items() if mapping[plain(name)]}
        if not files:
            there = listed([*entry][:_SHOWN])
            raise UsageError(f"the case {case_of(item)} has none of the structures that are wanted; it has {there}")
        return files

    label = item["label"]
    if not isinstance(label, list):
        return part(label)
    return [{"rater": rater, "label": part(entry)} for rater, entry in entries_of(label).items()]


def _measure(manifest: Manifest, found: Mapping[str, FoundName], progress: Callable[[int, int], None] | None) -> None:
    """Add up the volume of every name over all cases and raters; what cannot be read has none."""
    items = [item for _, _, item in manifest.items() if item.get("label")]
    for number, item in enumerate(items, start=1):
        image = manifest.files(item, "image")[0]
        for entry in entries_of(manifest.label_entry(item)).values():
            for name, volume_ml in volumes_of(entry, image):
                one = found[plain(name)]
                one.volume_ml = (one.volume_ml or 0.0) + volume_ml
        if progress is not None:
            progress(number, len(items))


def _some(found: Sequence[FoundName]) -> str:
    return listed([repr(one.name) for one in found], _SHOWN)


def write_roi_table(path: Path, proposals: Sequence[Proposal]) -> None:
    """Write the proposals as a table to be edited.

    Raises ``UsageError`` if the file is there: it may be one that somebody has edited.
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

    Raises ``UsageError`` if a column is missing, or a name stands there twice.
    """
    table = read_table(path, delimiter=_delimiter(path))
    if not {"name", "structure"} <= set(table.columns):
        raise UsageError(f"{path} has the columns {listed(table.columns)}; expected name and structure")
    said: dict[str, str] = {}
    for row in table.rows:
        name, structure = row["name"], row["structure"].strip()
        if not name.strip() and not structure:
            continue  # an empty line of a spreadsheet
        if not name.strip() or set(structure) & set(",;"):
            raise UsageError(f"{path} gives {name!r} the structure {structure!r}; expected one structure for each name")
        if plain(name) in map(plain, said):
            raise UsageError(f"{path} has two lines for {name!r}; keep one (capitals do not count)")
        said[name] = structure
    return said


def _delimiter(path: Path) -> str:
    """What parts the columns: spreadsheets write semicolons where the comma is a decimal point, or tabs."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as handle:
            head = handle.readline()
    except OSError:
        return ","  # whoever reads the table says what is wrong
    return max(",;\t", key=head.count)
