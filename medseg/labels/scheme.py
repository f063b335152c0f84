"""Which structures there are: names by label value, and which values of the files are meant by them.

Tables come in two forms. The Medical Segmentation Decathlon writes ``{"1": "liver"}``; nnU-Net (version 2,
``documentation/dataset_format.md``) writes ``{"liver": 1}``, with lists of values for regions that overlap and
``ignore`` for voxels that nobody judged. The last two are no structures: they are refused by name, since a region read
as the label of its first value, or ``ignore`` as a structure, gives sound-looking results of the wrong thing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medseg.errors import UsageError

LARGEST_LABEL = 65535
"""Label maps are written as uint8 or uint16."""

MAPPING_KEY = "label_mapping"
"""Key of a datalist: value in the label files → label that is meant, as ``{"255": 1}``."""

_WHOLE = re.compile(r"[+-]?\d{1,18}")
_IGNORE = "ignore"
_BACKGROUND = "background"


@dataclass(frozen=True)
class LabelScheme:
    """What the values of a study's label maps mean.

    Parameters
    ----------
    names
        Name by label, background included where it has one; empty if nothing is declared.
    mapping
        Value in a file → label that is meant; other values mean themselves.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    mapping: Mapping[int, int] = field(default_factory=dict)
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def table(self) -> tuple[int, ...]:
        """The label of every combination of regions."""
        return ()

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str = "the datalist") -> LabelScheme:
        """The scheme that a datalist or ``dataset.json`` declares under ``labels`` and ``label_mapping``.

        Raises
        ------
        UsageError
            If either is odd; see :func:`read_label_table`.
        """
        mapping = read_mapping(content.get(MAPPING_KEY), f"`{MAPPING_KEY}` of {where}")
        return cls(read_label_table(content.get("labels"), f"`labels` of {where}"), mapping)

    @property
    def structures(self) -> dict[int, str]:
        """The names without the background."""
        return {value: name for value, name in self.names.items() if value != 0}


def listed(parts: Sequence[object]) -> str:
    """``1, 2 and 3``."""
    words = [str(part) for part in parts]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def read_label_table(declared: Any, where: str, mapping: Mapping[int, int] | None = None) -> dict[int, str]:
    """Names by label value, background included, in the order of the values.

    Parameters
    ----------
    declared
        ``{"1": "liver"}`` or ``{"liver": 1}``; ``None`` or empty if nothing is declared.
    where
        Whose table it is, for messages.
    mapping
        Renumbers the table as it renumbers the files: names move with their values, and ``ignore`` is dropped where it
        is mapped to a label.

    Raises
    ------
    UsageError
        If it holds a region or ``ignore``, a value that is no whole number from 0 to 65535, two names for one value, or
        a background that is not 0.
    """
    if declared is None or declared in ({}, []):
        return {}
    if not isinstance(declared, Mapping):
        raise UsageError(f'{where} is a {type(declared).__name__}, expected an object such as {{"1": "liver"}}')
    _refuse_regions(declared, where)
    names: dict[int, str] = {}
    for key, value in declared.items():
        label, name = _entry(str(key), value, where)
        if label in names:
            raise UsageError(
                f"{where} has two names for the value {label}, {names[label]!r} and {name!r}; keep one of them"
            )
        names[label] = name
    names = _moved(names, mapping or {}, where)
    _refuse_ignore(names, where)
    _check_background(declared, names, where)
    return dict(sorted(names.items()))


def _moved(names: Mapping[int, str], mapping: Mapping[int, int], where: str) -> dict[int, str]:
    moved: dict[int, str] = {}
    for label, name in sorted(names.items()):
        target = mapping.get(label, label)
        if target != label and (target == 0 or name.casefold() == _IGNORE):
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


def _refuse_regions(declared: Mapping[Any, Any], where: str) -> None:
    regions = {str(name): value for name, value in declared.items() if isinstance(value, list) and len(value) != 1}
    if regions:
        shown = listed([f"{name!r} ({listed(values) or 'no value'})" for name, values in list(regions.items())[:4]])
        raise UsageError(
            f"{where} holds the region {shown}: regions of several values are not supported yet, and none of them is "
            "left out or cut down without a word; declare each value once under a name of its own, as "
            '{"1": "NAME", "2": "NAME"} (medseg manifest create --label 1=NAME --label 2=NAME), which trains and '
            "scores the parts"
        )


def _refuse_ignore(names: Mapping[int, str], where: str) -> None:
    for label, name in names.items():
        if name.casefold() == _IGNORE:
            raise UsageError(
                f"{where} holds {name!r} (value {label}), which marks voxels that nobody judged and is no structure; "
                "leaving voxels out of losses and scores is not supported yet: complete these label maps, or, if the "
                f"voxels may count as background, say so (medseg manifest create --map {label}=0)"
            )


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

    Raises
    ------
    UsageError
        If it is anything else.
    """
    if declared is None:
        return {}
    if not isinstance(declared, Mapping):
        raise UsageError(f'{where} is a {type(declared).__name__}, expected an object such as {{"255": 1}}')
    return _mapping([(str(value), str(label)) for value, label in declared.items()], where)


def parse_mapping(texts: Iterable[str]) -> dict[int, int]:
    """``["7=1,200=2"]`` → ``{7: 1, 200: 2}``.

    Raises
    ------
    UsageError
        If a part is no ``VALUE=LABEL``, or a value is mapped twice.
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

    Raises
    ------
    UsageError
        If one is no ``VALUE=NAME``, or odd; see :func:`read_label_table`.
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
