"""Which structures are scored: declared, or at least named by what lies beside the label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.evaluation.pairing import Collection
from medseg.json_shape import ANYTHING, read_json
from medseg.labels.scheme import read_label_table
from medseg.manifests.items import SECTIONS

_DATASET = "dataset.json"
_SHOWN = 4


@dataclass(frozen=True)
class Structures:
    """Structures by label value."""

    declared: Mapping[int, str] | None  # the only values that may occur; None if whatever occurs is scored
    names: Mapping[int, str]  # names of values, whether or not they are declared
    warnings: list[str] = field(default_factory=list)  # what was found that contradicts these names


def structures_of(
    labels: str | Path | Mapping[int, str] | None, predictions: Collection, references: Collection
) -> Structures:
    """Structures from the first source that has any; every further source is compared with it.

    In order: what was asked for, the references' datalist (these two declare), the ``run.json`` beside the predictions,
    their datalist, a ``dataset.json`` beside either side (these name). Raises ``UsageError`` if ``labels`` cannot be
    used, or two sources give one name to different values and none was asked for.
    """
    warnings: list[str] = []
    asked = labels if isinstance(labels, Mapping) or labels is None else read_labels(Path(labels))
    datalist = f"the datalist {references.source.name}"
    candidates = [
        ("--labels", dict(asked or {})),
        (datalist, dict(references.labels)),
        ("run.json beside the predictions", predictions.run.names if predictions.run else {}),
        (f"the datalist {predictions.source.name}", dict(predictions.labels)),
    ]
    for side, found in (("predictions", predictions), ("references", references)):
        candidates += [(f"{_DATASET} beside the {side}", _named(path, warnings)) for path in _datasets(found.source)]
    tables = [(source, {int(v): str(name) for v, name in names.items() if int(v) != 0}) for source, names in candidates]
    tables = [(source, names) for source, names in tables if names]
    if not tables:
        return Structures(None, {}, warnings)
    (first, names), *others = tables
    for other in others:
        warnings += _differences((first, names), other, asked=labels is not None)
    return Structures(names if labels is not None or first == datalist else None, names, warnings)


def _datasets(source: Path) -> Iterator[Path]:
    """A ``dataset.json`` in a folder of label maps, or beside nnU-Net's and the Decathlon's ``labelsTr``."""
    if source.is_file() and source.suffix.lower() == ".json":
        return
    folder = source if source.is_dir() else source.parent
    places = [folder, folder.resolve().parent] if folder.resolve().name.lower().startswith("labels") else [folder]
    yield from (place / _DATASET for place in places if (place / _DATASET).is_file())


def _named(path: Path, warnings: list[str]) -> dict[int, str]:
    """Names in a file that merely lies there: one that cannot be used does not stop the evaluation."""
    try:
        content = read_json(path, ANYTHING, "correct it")
        declares = isinstance(content, Mapping) and bool(content.get("labels"))
        return read_labels(path) if declares else {}
    except UsageError as error:
        warnings.append(f"the names in {path} were not used: {error}")
        return {}


def _differences(
    first: tuple[str, Mapping[int, str]], other: tuple[str, Mapping[int, str]], *, asked: bool
) -> Iterator[str]:
    (source, names), (second, others) = first, other
    values = {_plain(name): label for label, name in names.items()}
    moved = {name: label for label, name in others.items() if values.get(_plain(name), label) != label}
    if moved and not asked:
        name, label = next(iter(moved.items()))
        raise UsageError(
            f"{source} calls the value {values[_plain(name)]} {name!r}, {second} the value {label}: the two sides seem "
            "to number their structures differently; map one of them, or say which names hold with --labels"
        )
    differing = [label for label in sorted(set(names) & set(others)) if _plain(names[label]) != _plain(others[label])]
    if differing:
        shown = ", ".join(f"{label} is {names[label]!r} and {others[label]!r}" for label in differing[:_SHOWN])
        yield f"{source} and {second} name structures differently: {shown}; the names of {source} were taken"


def _plain(name: str) -> str:
    """A name without capitals, blanks, hyphens and underscores, which tools write differently."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def read_labels(source: Path) -> dict[int, str]:
    """Structures by label value, background left out; nothing is executed.

    ``source``: A JSON file ``{"1": "liver"}``, a datalist or dataset.json with ``labels``, or a bundle's folder, whose
    ``configs/metadata.json`` names the channels of its output. Raises ``UsageError`` if no labels are found.
    """
    path = source / "configs" / "metadata.json" if source.is_dir() else source
    content = read_json(path, ANYTHING, "give a JSON file of labels or a bundle folder")
    table, where = _label_table(content, path)
    names = read_label_table(table, where)
    times = Counter(names.values())
    if not set(names) - {0}:
        raise UsageError(f'{path} declares no labels; expected {{"1": "name", ...}} or a bundle with channel_def')
    return {label: name if times[name] == 1 else f"{name} ({label})" for label, name in names.items() if label != 0}


def _label_table(content: Any, path: Path) -> tuple[Any, str]:
    """The first table of labels there is: a bundle's channels, a datalist's labels, or the file itself."""
    for keys in (("network_data_format", "outputs", "pred", "channel_def"), ("labels",)):
        table = content
        for key in keys:
            table = table.get(key) if isinstance(table, dict) else None
        if table:
            return table, f"`{keys[-1]}` of {path}"
    is_datalist = isinstance(content, dict) and any(isinstance(content.get(key), list) for key in SECTIONS)
    return (content if isinstance(content, dict) and not is_datalist else {}), str(path)
