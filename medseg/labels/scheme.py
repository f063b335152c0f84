"""Which structures there are: names by label value, and which values of the files are meant by them.

Tables come in two forms. The Medical Segmentation Decathlon writes ``{"1": "liver"}``; nnU-Net (version 2,
``documentation/dataset_format.md``) writes ``{"liver": 1}``, with lists of values for regions that overlap and
``ignore`` for voxels that nobody judged. The last two are no structures with a value of their own: a region read as the
label of its first value, or ``ignore`` as a structure, gives sound-looking results of the wrong thing. So
:class:`LabelScheme` keeps them apart, and :func:`read_label_table`, which gives one name for each value, refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medseg.errors import UsageError
from medseg.labels.regions import (
    ORDER_KEY,
    Regions,
    check_regions,
    is_region,
    label_table,
    numbered,
    painted_values,
)

LARGEST_LABEL = 65535
"""Label maps are written as uint8 or uint16."""

IGNORE = "ignore"
"""What tables call the value of voxels that nobody judged."""

MAPPING_KEY = "label_mapping"
"""Key of a datalist: value in the label files → label that is meant, as ``{"255": 1}``."""

ANNOTATED_KEY = "annotated"
"""Key of a datalist's item: the structures that were looked for in this case; all others are unknown there."""

_WHOLE = re.compile(r"[+-]?\d{1,18}")
_BACKGROUND = "background"


@dataclass(frozen=True)
class LabelScheme:
    """What the values of a study's label maps mean."""

    names: Mapping[int, str] = field(default_factory=dict)
    """Name by value, background included where it has one, ``ignore`` left out; empty if nothing is declared. With
    regions these are names of values, not of structures: a value that only regions of several values hold is called
    after the smallest of them, as ``whole (1)``."""
    mapping: Mapping[int, int] = field(default_factory=dict)
    """Value in a file → label that is meant; other values mean themselves."""
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Values by region, in the order in which they are painted into a label map; empty if structures do not overlap."""
    ignore: int | None = None  # the value of voxels that nobody judged: they count in no loss and no score
    paints: Mapping[str, int] = field(default_factory=dict)  # the value that each region paints into a label map

    @classmethod
    def of(
        cls,
        content: Mapping[str, Any],
        where: str = "the datalist",
        moved: Mapping[int, int] | None = None,
        *,
        painted: bool = True,
    ) -> LabelScheme:
        """The scheme of a datalist or ``dataset.json``: ``labels``, ``regions_class_order`` and ``label_mapping``.

        ``moved`` renumbers the table as it renumbers the files: names move with their values, and ``ignore`` is dropped
        where it is mapped to a label. Without ``painted``, for scoring alone, regions need no order. Raises
        ``UsageError`` if any of them is odd; see :func:`read_label_table`.
        """
        mapping = read_mapping(content.get(MAPPING_KEY), f"`{MAPPING_KEY}` of {where}")
        table = _Table.of(content.get("labels"), f"`labels` of {where}", moved or {})
        order = content.get(ORDER_KEY)
        if moved and isinstance(order, list):
            order = [moved.get(value, value) if isinstance(value, int) else value for value in order]
        paints: dict[str, int] = {}
        if table.regions:
            paints = painted_values(table.regions, order, where) if painted or order else numbered(table.regions)
        return cls(table.names, mapping, table.regions, table.ignore, paints)

    @property
    def structures(self) -> dict[int, str]:
        """What is segmented: name by label, background left out; of a region the label is the value it paints."""
        if self.regions:
            return {self.paints[name]: name for name in self.regions}
        return {value: name for value, name in self.names.items() if value != 0}

    @property
    def values(self) -> dict[int, str]:
        """Everything that a label map may hold: the names, and ``ignore``; empty if nothing is declared."""
        return {**self.names, **({} if self.ignore is None else {self.ignore: IGNORE})}

    @property
    def members(self) -> dict[int, tuple[int, ...]]:
        """By label of a structure the values in a label map that belong to it; a structure has its own alone."""
        if self.regions:
            return {self.paints[name]: values for name, values in self.regions.items()}
        return {label: (label,) for label in self.structures}

    def unknown_of(self, annotated: Any) -> tuple[int, ...]:
        """Labels of the structures that a case was not looked through for, from its list ``annotated``; ``None``: none.

        Raises ``UsageError`` if it is no list of declared structures.
        """
        if annotated is None:
            return ()
        known = {name: label for label, name in self.structures.items()}
        if not isinstance(annotated, list | tuple) or not all(name in known for name in annotated):
            raise UsageError(
                f"`{ANNOTATED_KEY}` of an item is {annotated!r}, expected a list of declared structures "
                f"({', '.join(known) or 'none is declared'}): those that were looked for in this case"
            )
        return tuple(label for name, label in known.items() if name not in annotated)

    @property
    def table(self) -> tuple[int, ...]:
        """The label of every combination of regions; see :func:`medseg.labels.regions.label_table`."""
        return label_table(self.regions, self.paints)

    def to_json(self) -> dict[str, Any]:
        """The keys of a datalist: the Decathlon's form, or nnU-Net's where there are regions."""
        if not self.regions:
            return {"labels": {str(value): name for value, name in sorted(self.values.items())}}
        background = {self.names.get(0, _BACKGROUND): 0}
        ignore = {} if self.ignore is None else {IGNORE: self.ignore}
        regions = {name: list(values) if len(values) > 1 else values[0] for name, values in self.regions.items()}
        return {"labels": {**background, **regions, **ignore}, ORDER_KEY: [self.paints[name] for name in self.regions]}


def listed(parts: Sequence[object], most: int | None = None) -> str:
    """``1, 2 and 3``, or ``1, 2 and 7 more`` where there are more than ``most``."""
    words = [str(part) for part in parts[:most]]
    words += [f"{len(parts) - len(words)} more"] * (len(parts) > len(words))
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def read_label_table(declared: Any, where: str, mapping: Mapping[int, int] | None = None) -> dict[int, str]:
    """Names by label value, background included, in the order of the values.

    ``declared``: ``{"1": "liver"}`` or ``{"liver": 1}``; ``None`` or empty if nothing is declared. ``mapping``:
    renumbers the table as it renumbers the files: names move with their values, and ``ignore`` is dropped where it is
    mapped to a label. Raises ``UsageError`` if it holds a region or ``ignore``, which only :class:`LabelScheme` can
    tell, a value that is no whole number from 0 to 65535, two names for one value, or a background that is not 0.
    """
    table = _Table.of(declared, where, mapping or {})
    for name, values in table.regions.items():
        if len(values) > 1:
            raise UsageError(
                f"{where} holds the region {name!r} ({listed(values)}), expected one value for each name: regions are "
                f"read from the `labels` of a datalist, with `{ORDER_KEY}` beside them"
            )
    if table.ignore is not None:
        raise UsageError(
            f"{where} holds {IGNORE!r} (value {table.ignore}), which marks voxels that nobody judged and is no "
            "structure; it is read from the `labels` of a datalist. If these voxels may count as background, say so "
            f"(medseg manifest create --map {table.ignore}=0)"
        )
    return table.names


@dataclass(frozen=True)
class _Table:
    """A table of labels as it is declared."""

    names: dict[int, str]
    regions: Regions
    ignore: int | None

    @classmethod
    def of(cls, declared: Any, where: str, moved: Mapping[int, int]) -> _Table:
        if declared is None or declared in ({}, []):
            return cls({}, {}, None)
        if not isinstance(declared, Mapping):
            raise UsageError(f'{where} is a {type(declared).__name__}, expected an object such as {{"1": "liver"}}')
        names, regions = _entries(declared, where, moved)
        names = _moved(names, moved, where)
        ignore = next((label for label, name in names.items() if name.casefold() == IGNORE), None)
        if ignore is not None:
            del names[ignore]
        if ignore == 0:
            raise UsageError(f"{where} gives the value 0 to {IGNORE!r}, but 0 is background; give it another value")
        _check_background(declared, names, where)
        if regions:
            check_regions(regions, ignore, where)
            for name in sorted(regions, key=lambda name: len(regions[name])):
                names.update({value: f"{name} ({value})" for value in regions[name] if value not in names})
        return cls(dict(sorted(names.items())), regions, ignore)


def _entries(declared: Mapping[Any, Any], where: str, moved: Mapping[int, int]) -> tuple[dict[int, str], Regions]:
    """Names by value as they are declared, and regions, renumbered: all structures, if one has several values."""
    names: dict[int, str] = {}
    regions: Regions = {}
    for key, value in declared.items():
        if is_region(value):
            found = _values(key, value, where)
            # values that the files merge are one, and what they take for background is no part any more
            merged = dict.fromkeys(moved.get(part, part) for part in found)
            regions[str(key).strip()] = tuple(part for part in merged if part != 0) if moved else found
            continue
        label, name = _entry(str(key), value, where)
        if label in names:
            raise UsageError(f"{where} has two names for the value {label}, {names[label]!r} and {name!r}; keep one")
        names[label] = name
        if name.casefold() not in {IGNORE, _BACKGROUND} and (target := moved.get(label, label)):
            regions[name] = (target,)
    return names, regions if any(map(is_region, declared.values())) else {}


def _values(key: Any, values: Sequence[Any], where: str) -> tuple[int, ...]:
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_LABEL:
            raise UsageError(
                f"{where} gives the region {str(key)!r} the value {value!r}, expected whole numbers from 1 to "
                f"{LARGEST_LABEL}"
            )
    return tuple(values)


def _moved(names: Mapping[int, str], mapping: Mapping[int, int], where: str) -> dict[int, str]:
    moved: dict[int, str] = {}
    for label, name in sorted(names.items()):
        target = mapping.get(label, label)
        if target != label and (target == 0 or name.casefold() == IGNORE):
            continue  # what counts as background or as another structure has no name of its own any more
        if moved.setdefault(target, name) != name:
            raise UsageError(
                f"{where} names both {moved[target]!r} and {name!r}, which the mapping makes one label, {target}; name "
                f"the structures (--label {target}=NAME)"
            )
    return moved


def _entry(key: str, value: Any, where: str) -> tuple[int, str]:
    """Label and name of one entry, in either form."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(value, str) and _WHOLE.fullmatch(key.strip()):
        label, name = int(key), value.strip()
    elif isinstance(value, int) and not isinstance(value, bool):
        label, name = value, key.strip()
    else:
        raise UsageError(
            f"{where} holds {key!r}: {value!r}, which gives no name to a value; write "
            f'{{"1": "liver"}} or {{"liver": 1}}, values as whole numbers'
        )
    if not 0 <= label <= LARGEST_LABEL:
        raise UsageError(
            f"{where} gives the name {name!r} to {label}; labels are whole numbers from 0 to {LARGEST_LABEL}: map the "
            f"value (medseg manifest create --map {label}=LABEL --label LABEL={name or 'NAME'})"
        )
    if not name:
        raise UsageError(f"{where} has no name for the value {label}; give it one")
    return label, name


def _check_background(declared: Mapping[Any, Any], names: Mapping[int, str], where: str) -> None:
    """Background is 0; nnU-Net's form must even call it so, since there a structure may not have the value 0."""
    shifted = [label for label, name in names.items() if name.casefold() == _BACKGROUND and label != 0]
    if shifted:
        raise UsageError(
            f"{where} calls {shifted[0]} the background, expected 0; map it (medseg manifest create --map "
            f"{shifted[0]}=0)"
        )
    by_name = any(isinstance(value, int) for value in declared.values())
    if by_name and names.get(0, _BACKGROUND).casefold() != _BACKGROUND:
        raise UsageError(
            f"{where} gives the value 0 to {names[0]!r}, but 0 is background: call it background if it is that, "
            "else give the structure another value"
        )


def read_mapping(declared: Any, where: str) -> dict[int, int]:
    """Value in a file → label, from a datalist's ``{"255": 1}``.

    Raises ``UsageError`` if it is anything else.
    """
    if declared is None:
        return {}
    if not isinstance(declared, Mapping):
        raise UsageError(f'{where} is a {type(declared).__name__}, expected an object such as {{"255": 1}}')
    return _mapping([(str(value), str(label)) for value, label in declared.items()], where)


def parse_mapping(texts: Iterable[str]) -> dict[int, int]:
    """``["7=1,200=2"]`` → ``{7: 1, 200: 2}``.

    Raises ``UsageError`` if a part is no ``VALUE=LABEL``, or a value is mapped twice.
    """
    pairs = []
    for part in (part for text in texts for part in text.split(",")):
        value, equals, label = part.partition("=")
        if not equals:
            raise UsageError(f"found --map {part!r}, expected VALUE=LABEL, for example --map 255=1")
        pairs.append((value, label))
    return _mapping(pairs, "--map")


def parse_names(texts: Iterable[str]) -> dict[int, str]:
    """``["1=liver", "2=tumour"]`` → ``{0: "background", 1: "liver", 2: "tumour"}``; empty if there is none.

    Raises ``UsageError`` if one is no ``VALUE=NAME``, or odd; see :func:`read_label_table`.
    """
    pairs = [text.partition("=")[::2] for text in texts]
    for value, name in pairs:
        if not _WHOLE.fullmatch(value.strip()) or not name.strip():
            raise UsageError(f"found --label {value}={name}, expected VALUE=NAME, for example --label 1=liver")
    if len({int(value) for value, _ in pairs}) < len(pairs):
        raise UsageError("--label names one value twice; name each once")
    names = read_label_table({value.strip(): name for value, name in pairs}, "--label")
    return {0: _BACKGROUND, **names} if names else {}


def _mapping(pairs: Iterable[tuple[str, str]], where: str) -> dict[int, int]:
    mapping: dict[int, int] = {}
    for value, label in pairs:
        if not (_WHOLE.fullmatch(value.strip()) and _WHOLE.fullmatch(label.strip())):
            raise UsageError(f"{where} maps {value!r} to {label!r}, expected whole numbers, for example 255=1")
        source, target = int(value), int(label)
        if not 0 <= target <= LARGEST_LABEL:
            raise UsageError(f"{where} maps {source} to {target}, expected a label from 0 to {LARGEST_LABEL}")
        if mapping.setdefault(source, target) != target:
            raise UsageError(f"{where} maps {source} to both {mapping[source]} and {target}; keep one")
    return dict(sorted(mapping.items()))


def renumbering_advice(values: Iterable[int]) -> str | None:
    """What to do where the labels besides 0 are not 1, 2, … without gaps, as a network's classes are; else ``None``."""
    found = sorted(set(values) - {0})
    moves = ",".join(f"{value}={label}" for label, value in enumerate(found, start=1) if value != label)
    if not moves:
        return None
    return (
        f"the label values are {listed(found)}, which leaves gaps; a network needs consecutive classes, "
        f"1 to {len(found)}: renumber them (medseg manifest create --images DATALIST --map {moves} -o DATALIST)"
    )
