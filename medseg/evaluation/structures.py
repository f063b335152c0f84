"""Which structures are scored: declared, or at least named by what lies beside the label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.evaluation.case import Reference
from medseg.evaluation.pairing import Collection
from medseg.json_shape import ANYTHING, read_json
from medseg.labels.regions import ORDER_KEY
from medseg.labels.scheme import LabelScheme, listed, read_label_table
from medseg.manifests.items import SECTIONS
from medseg.results import RunReport

_DATASET = "dataset.json"
_SHOWN = 4


@dataclass(frozen=True)
class Structures:
    """Structures by label value; of a region the label is the value that it paints."""

    declared: Mapping[int, str] | None  # the only values that may occur; None if whatever occurs is scored
    names: Mapping[int, str]  # names of values, whether or not they are declared
    warnings: list[str] = field(default_factory=list)  # what was found that contradicts these names
    truth: Reference = field(default_factory=Reference)  # values of regions, and the value of ignored voxels
    scheme: LabelScheme = field(default_factory=LabelScheme)  # what names in DICOM objects and mask files mean


def structures_of(
    labels: str | Path | Mapping[int, str] | LabelScheme | None, predictions: Collection, references: Collection
) -> Structures:
    """Structures from the first source that has any; every further source is compared with it.

    In order: what was asked for, the references' datalist (these two declare), the ``run.json`` beside the predictions,
    their datalist, a ``dataset.json`` beside either side (these name). Raises ``UsageError`` if ``labels`` cannot be
    used, or two sources give one name to different values, or one region different values, and none was asked for.
    """
    warnings: list[str] = []
    datalist = f"the datalist {references.source.name}"
    run = predictions.run
    candidates = [
        ("--labels", _asked(labels)),
        (datalist, references.scheme),
        ("run.json beside the predictions", _of_run(run) if run else LabelScheme()),
        (f"the datalist {predictions.source.name}", predictions.scheme),
    ]
    for side, found in (("predictions", predictions), ("references", references)):
        candidates += [(f"{_DATASET} beside the {side}", _named(path, warnings)) for path in _datasets(found.source)]
    tables = [(source, scheme) for source, scheme in candidates if scheme.structures]
    if not tables:
        return Structures(None, {}, warnings)
    (first, scheme), *others = tables
    for other in others:
        warnings += _differences((first, scheme), other, asked=labels is not None)
    names = scheme.structures
    truth = Reference(scheme.members if scheme.regions else {}, scheme.ignore)
    declared = labels is not None or first == datalist or bool(scheme.regions)
    return Structures(names if declared else None, names, warnings, truth, _readable(scheme))


def _readable(scheme: LabelScheme) -> LabelScheme:
    """The scheme for objects whose regions overlap: each region paints a value of its own, also where none is declared.

    Scoring alone needs no ``regions_class_order``, but a region found where no value means just this combination has to
    be painted somehow: by the value that fewest regions hold, which the reader notes with its number of voxels.
    """
    if not scheme.regions:
        return scheme
    held = Counter(value for values in scheme.regions.values() for value in values)
    paints = {
        name: scheme.paints[name]
        if scheme.paints[name] in values
        else min(values, key=lambda value: (held[value], value))
        for name, values in scheme.regions.items()
    }
    return replace(scheme, paints=paints)


def _asked(labels: str | Path | Mapping[int, str] | LabelScheme | None) -> LabelScheme:
    if isinstance(labels, LabelScheme):
        return labels
    if labels is None or isinstance(labels, Mapping):
        return LabelScheme({int(value): str(name) for value, name in (labels or {}).items()})
    return read_scheme(Path(labels))


def _of_run(run: RunReport) -> LabelScheme:
    names, members = run.names, run.regions
    if not members:
        return LabelScheme(names)
    regions = {names[label]: values for label, values in members.items()}
    return LabelScheme({}, regions=regions, paints={names[label]: label for label in members})


def _datasets(source: Path) -> Iterator[Path]:
    """A ``dataset.json`` in a folder of label maps, or beside nnU-Net's and the Decathlon's ``labelsTr``."""
    if source.is_file() and source.suffix.lower() == ".json":
        return
    folder = source if source.is_dir() else source.parent
    places = [folder, folder.resolve().parent] if folder.resolve().name.lower().startswith("labels") else [folder]
    yield from (place / _DATASET for place in places if (place / _DATASET).is_file())


def _named(path: Path, warnings: list[str]) -> LabelScheme:
    """Names in a file that merely lies there: one that cannot be used does not stop the evaluation."""
    try:
        content = read_json(path, ANYTHING, "correct it")
        declares = isinstance(content, Mapping) and bool(content.get("labels"))
        return read_scheme(path) if declares else LabelScheme()
    except UsageError as error:
        warnings.append(f"the names in {path} were not used: {error}")
        return LabelScheme()


def _differences(first: tuple[str, LabelScheme], other: tuple[str, LabelScheme], *, asked: bool) -> Iterator[str]:
    source, second = first[0], other[0]
    regions, others_regions = first[1].regions, other[1].regions
    if regions and others_regions and not asked:
        unlike = [name for name in regions if set(others_regions.get(name, regions[name])) != set(regions[name])]
        if unlike:
            raise UsageError(
                f"{source} makes the region {unlike[0]!r} of the values {listed(regions[unlike[0]])}, {second} of "
                f"{listed(others_regions[unlike[0]])}; map one of them, or say which holds with --labels"
            )
    if regions or others_regions:
        return  # a value is named after one of its regions on one side, and after its structure on the other
    names, others = first[1].structures, other[1].structures
    values = {plain(name): label for label, name in names.items()}
    moved = {name: label for label, name in others.items() if values.get(plain(name), label) != label}
    if moved and not asked:
        name, label = next(iter(moved.items()))
        raise UsageError(
            f"{source} calls the value {values[plain(name)]} {name!r}, {second} the value {label}: the two sides seem "
            "to number their structures differently; map one of them, or say which names hold with --labels"
        )
    differing = [label for label in sorted(set(names) & set(others)) if plain(names[label]) != plain(others[label])]
    if differing:
        shown = ", ".join(f"{label} is {names[label]!r} and {others[label]!r}" for label in differing[:_SHOWN])
        yield f"{source} and {second} name structures differently: {shown}; the names of {source} were taken"


def plain(name: str) -> str:
    """A name without capitals, blanks, hyphens and underscores, which tools write differently."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def read_scheme(source: Path) -> LabelScheme:
    """What label values mean: structures, regions and the value of ignored voxels; nothing is executed.

    ``source``: A JSON file ``{"1": "liver"}`` or ``{"whole": [1, 2]}``, a datalist or dataset.json with ``labels``, or
    a bundle's folder, whose ``configs/metadata.json`` describes its output. Raises ``UsageError`` if no labels are
    found.
    """
    path = source / "configs" / "metadata.json" if source.is_dir() else source
    content = read_json(path, ANYTHING, "give a JSON file of labels or a bundle folder")
    table, where = _label_table(content, path)
    if "channel_def" in where:  # a channel of a network is a structure
        read_label_table(table["labels"], where)
    scheme = LabelScheme.of({ORDER_KEY: table.get(ORDER_KEY), "labels": table["labels"]}, where, painted=False)
    if not scheme.structures:
        raise UsageError(f'{path} declares no labels; expected {{"1": "name", ...}} or a bundle with channel_def')
    times = Counter(scheme.names.values())
    names = {label: name if times[name] == 1 else f"{name} ({label})" for label, name in scheme.names.items()}
    return replace(scheme, names=names)


def _label_table(content: Any, path: Path) -> tuple[dict[str, Any], str]:
    """The first table of labels there is, under ``labels``: a bundle's output, a datalist's, or the file itself."""
    output = content
    for key in ("network_data_format", "outputs", "pred"):
        output = output.get(key) if isinstance(output, dict) else None
    if isinstance(output, dict) and (output.get("labels") or output.get("channel_def")):
        declares = bool(output.get("labels"))
        where = f"`{'labels' if declares else 'channel_def'}` of {path}"
        return (output if declares else {"labels": output["channel_def"]}), where
    if isinstance(content, dict) and isinstance(content.get("labels"), dict | list) and content["labels"]:
        return content, str(path)
    is_datalist = isinstance(content, dict) and any(isinstance(content.get(key), list) for key in SECTIONS)
    return {"labels": content if isinstance(content, dict) and not is_datalist else {}}, str(path)
