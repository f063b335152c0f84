"""What the values of label maps mean in a datalist: names, renumbering, several values as one structure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from medseg.errors import UsageError
from medseg.labels.regions import ORDER_KEY
from medseg.labels.scheme import MAPPING_KEY, LabelScheme, listed
from medseg.manifests.manifest import Manifest


def declare_values(
    manifest: Manifest, names: Mapping[int, str], mapping: Mapping[int, int], merges: Mapping[str, Sequence[str]]
) -> Manifest:
    """Declare the labels: as asked, else as the dataset does, renumbered as its files are.

    Regions and ``ignore`` of the dataset's own table are kept. Raises ``UsageError`` if a value has no name, or a merge
    names what is not there.
    """
    scheme = LabelScheme.of(manifest.content, "the dataset", {} if names else mapping)
    if names:  # they replace the dataset's own; what nobody judged stays so, unless it is named or mapped
        ignored = scheme.ignore not in names and scheme.ignore not in mapping
        scheme = LabelScheme(names, scheme.mapping, ignore=scheme.ignore if ignored else None)
    moved = {**scheme.mapping, **mapping}
    if merges:
        scheme, target = _merged(scheme, merges)
        moved = {value: target.get(meant, meant) for value, meant in {**{v: v for v in target}, **moved}.items()}
    unnamed = sorted(set(moved.values()) - {0} - set(scheme.values)) if scheme.names else []
    if unnamed:
        raise UsageError(
            f"--map makes {unnamed[0]} a label, which has no name; give it one with --label {unnamed[0]}=NAME (--label "
            "replaces the names that the dataset declares, so name every structure)"
        )
    written = {str(value): meant for value, meant in sorted(moved.items()) if value != meant or value in mapping}
    kept = {key: value for key, value in manifest.content.items() if key not in (ORDER_KEY, MAPPING_KEY)}
    return replace(manifest, content={**kept, **scheme.to_json(), **({MAPPING_KEY: written} if written else {})})


def _merged(scheme: LabelScheme, merges: Mapping[str, Sequence[str]]) -> tuple[LabelScheme, dict[int, int]]:
    """The scheme with several values as one structure, its values without gaps, and the new value of each old one."""
    if scheme.regions:
        raise UsageError(
            f"--merge is for labels that do not overlap, and the dataset declares the regions "
            f"{listed([*scheme.regions])}; name the structures with --label VALUE=NAME first"
        )
    by_name = {name: value for value, name in scheme.structures.items()}
    target: dict[int, int] = {}
    names = dict(scheme.structures)
    for structure, parts in merges.items():
        values = [_value(part, by_name) for part in parts]
        if scheme.names and (unknown := [value for value in values if value not in scheme.names]):
            raise UsageError(f"--merge {structure} names the value {unknown[0]}, which the labels do not declare")
        if twice := sorted(set(values) & set(target)):
            raise UsageError(f"--merge puts the value {twice[0]} into two structures; keep one")
        target |= dict.fromkeys(values, min(values))
        names = {value: name for value, name in names.items() if value not in values} | {min(values): structure}
    if clash := sorted(name for name in set(names.values()) if [*names.values()].count(name) > 1):
        raise UsageError(f"--merge makes a second structure called {clash[0]!r}; give it another name")
    if not scheme.names:
        return LabelScheme({0: "background", **names}, scheme.mapping), target
    number = {old: new for new, old in enumerate(sorted(names), start=1)}
    target = {old: number[target.get(old, old)] for old in {*target, *names}}
    made = {0: scheme.names.get(0, "background"), **{number[old]: name for old, name in names.items()}}
    ignore = scheme.ignore
    if ignore is not None and ignore in made:
        raise UsageError(f"--merge would number a structure {ignore}, which is the ignore value; number with --map")
    changed = {old: new for old, new in target.items() if old != new}
    return LabelScheme(dict(sorted(made.items())), scheme.mapping, ignore=ignore), changed


def _value(part: str, by_name: Mapping[str, int]) -> int:
    if re.fullmatch(r"\d{1,18}", part):
        return int(part)
    if part not in by_name:
        raise UsageError(
            f"--merge names {part!r}, which is neither a value nor one of the structures "
            f"{listed([*by_name]) or 'of this dataset, which declares none'}"
        )
    return by_name[part]


def parse_merges(texts: Iterable[str]) -> dict[str, list[str]]:
    """``["tumour=1,2,3"]`` → ``{"tumour": ["1", "2", "3"]}``.

    Raises ``UsageError`` if one is no ``NAME=PART,PART``, or a name stands twice.
    """
    merges: dict[str, list[str]] = {}
    for text in texts:
        name, equals, parts = text.partition("=")
        found = [part.strip() for part in parts.split(",") if part.strip()]
        if not equals or not name.strip() or not found:
            raise UsageError(f"found --merge {text!r}, expected NAME=PART,PART, for example --merge tumour=1,2,3")
        if name.strip() in merges:
            raise UsageError(f"--merge names {name.strip()!r} twice; list all its parts at once")
        merges[name.strip()] = found
    return merges
