"""What a run is trained with, kept in its checkpoints: the configuration, the cases by their content, the start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from medseg.labels import MAPPING_KEY
from medseg.manifests.checksums import path_checksum
from medseg.training.configuration import values_used

__all__ = ["Case", "Conditions", "conditions_of"]

Case = dict[str, str | list[str]]
"""SHA-256 of each file of one case, by what it is (``image``, ``label``, a channel); and the mapping of its labels."""

_READERS = 4


@dataclass(frozen=True)
class Conditions:
    """What decides what a network learns.

    Attributes
    ----------
    configuration
        As :func:`~medseg.training.configuration.values_used` gives it; empty for a trainer that was built by hand.
    cases
        Those to train on, to validate on, and without labels, in their order; empty where cases are not files.
    start
        SHA-256 of the weights that the network started from; None for fresh ones.
    """

    configuration: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, list[Case]] = field(default_factory=dict)
    start: str | None = None

    def text(self) -> str:
        """As JSON, which any loader can read safely."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Conditions:
        """From what :meth:`text` gave."""
        return cls(**json.loads(text))


def conditions_of(parser: ConfigParser | None, data: Mapping[str, Iterable[Any] | None]) -> Conditions:
    """The conditions of a run that is about to start.

    Parameters
    ----------
    parser
        The configuration it was built from, if there is one.
    data
        The cases of each part, as their datasets hold them: mappings in which paths of files stand. Every file is
        read once.
    """
    configuration = {} if parser is None else values_used(parser)
    start = configuration.get("init")
    checksum = cache(path_checksum)  # an image may stand among the labelled and the unlabelled cases
    with ThreadPoolExecutor(_READERS) as readers:
        hashed = {
            part: list(readers.map(lambda item: _case(checksum, item), list(items or ())))
            for part, items in data.items()
        }
    cases = {part: found for part, found in hashed.items() if any(found)}
    return Conditions(configuration, cases, None if start is None else _start_checksum(Path(start)))


def _case(checksum: Callable[[Path], str], item: Any) -> Case:
    if not isinstance(item, Mapping):
        return {}
    found: Case = {}
    for key, value in item.items():
        if isinstance(value, list | tuple) and value and all(_is_file(part) for part in value):
            found[str(key)] = [checksum(Path(part)) for part in value]
        elif _is_file(value):
            found[str(key)] = checksum(Path(value))
        elif key == MAPPING_KEY:  # what the values in the label file mean decides as much as the file
            found[MAPPING_KEY] = json.dumps(value, sort_keys=True)
    return found


def _is_file(value: Any) -> bool:
    return isinstance(value, str | Path) and Path(value).exists()


def _start_checksum(path: Path) -> str:
    """Of a file with weights, or of those of a bundle, whatever else has changed in it."""
    return path_checksum(path / "models" if (path / "models").is_dir() else path)
