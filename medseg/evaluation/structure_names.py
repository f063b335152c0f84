"""Which structures there are: declared, or at least named by what lies beside the label maps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medseg.errors import UsageError
from medseg.evaluation.pairing import Collection, read_labels

_DATASET = "dataset.json"
_SHOWN = 4


@dataclass(frozen=True)
class Structures:
    """Structures by label value.

    Parameters
    ----------
    declared
        The only values that may occur; None if whatever occurs is scored.
    names
        Names of values, whether or not they are declared.
    warnings
        What was found that contradicts these names.
    """

    declared: Mapping[int, str] | None
    names: Mapping[int, str]
    warnings: list[str] = field(default_factory=list)


def structures_of(
    labels: str | Path | Mapping[int, str] | None,
    predictions: tuple[Path, Collection],
    references: tuple[Path, Collection],
) -> Structures:
    """Structures from the first source that has any; every further source is compared with it.

    In order: what was asked for, the references' datalist (these two declare), the ``run.json`` beside the
    predictions, their datalist, a ``dataset.json`` beside either side (these name).

    Raises
    ------
    UsageError
        If ``labels`` cannot be used, or two sources give one name to different values and none was asked for.
    """
    warnings: list[str] = []
    sources = list(_sources(labels, predictions, references, warnings))
    if not sources:
        return Structures(None, {}, warnings)
    (first, names), *others = sources
    for other, others_names in others:
        _compare((first, names), (other, others_names), asked=labels is not None, warnings=warnings)
    declares = labels is not None or first == _datalist_of(references[0])
    return Structures(names if declares else None, names, warnings)


def _datalist_of(source: Path) -> str:
    return f"the datalist {source.name}"


def _sources(
    labels: str | Path | Mapping[int, str] | None,
    predictions: tuple[Path, Collection],
    references: tuple[Path, Collection],
    warnings: list[str],
) -> Iterator[tuple[str, dict[int, str]]]:
    """What names structures, and how, the strongest first."""
    asked = labels if isinstance(labels, Mapping) or labels is None else read_labels(Path(labels))
    run = predictions[1].run
    candidates = [
        ("--labels", dict(asked or {})),
        (_datalist_of(references[0]), dict(references[1].labels)),
        ("run.json beside the predictions", run.names if run else {}),
        (_datalist_of(predictions[0]), dict(predictions[1].labels)),
    ]
    for (source, _), side in ((predictions, "predictions"), (references, "references")):
        candidates += [(f"{_DATASET} beside the {side}", _of_dataset(path, warnings)) for path in _datasets(source)]
    for source_name, found in candidates:
        names = {int(label): str(name) for label, name in found.items() if int(label) != 0}
        if names:
            yield source_name, names


def _datasets(source: Path) -> Iterator[Path]:
    """A ``dataset.json`` in a folder of label maps, or beside nnU-Net's and the Decathlon's ``labelsTr``."""
    if source.is_file() and source.suffix.lower() == ".json":
        return
    folder = source if source.is_dir() else source.parent
    places = [folder, folder.resolve().parent] if folder.resolve().name.lower().startswith("labels") else [folder]
    yield from (place / _DATASET for place in places if (place / _DATASET).is_file())


def _of_dataset(path: Path, warnings: list[str]) -> dict[int, str]:
    """Names in a file that merely lies there: one that cannot be used is told and does not stop the evaluation."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        declares = isinstance(content, Mapping) and bool(content.get("labels"))
        return read_labels(path) if declares else {}
    except (UsageError, OSError, ValueError, RecursionError) as error:
        warnings.append(f"the names in {path} were not used: {error}")
        return {}


def _compare(
    first: tuple[str, Mapping[int, str]], other: tuple[str, Mapping[int, str]], *, asked: bool, warnings: list[str]
) -> None:
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
        told = ", ".join(f"{label} is {names[label]!r} and {others[label]!r}" for label in differing[:_SHOWN])
        warnings.append(f"{source} and {second} name structures differently: {told}; the names of {source} were taken")


def _plain(name: str) -> str:
    """A name without capitals, blanks, hyphens and underscores, which tools write differently."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())
