"""References between config items (``@id``, ``%id``), resolved as MONAI does, and which of them reach a module.

MONAI replaces an import statement by the module it imports. An expression that refers to such an item would hold the
module itself, and ``.replace`` of a string is harmless while that of ``os`` is not: such references are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from medseg.bundle.expressions import is_import

__all__ = ["SEPARATOR", "ModulePlaces", "absolute_text", "place_of", "referred", "strings_in"]

SEPARATOR = "::"
_RELATIVE = re.compile(rf"(?:@|%){SEPARATOR}+")
_REFERENCE = re.compile(rf"@(\w*(?:{SEPARATOR}\w*)*)")


def strings_in(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string value of a parsed config with its path."""
    if isinstance(config, str):
        yield path, config
    elif isinstance(config, Mapping):
        for key, value in config.items():
            yield from strings_in(value, (*path, str(key)))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from strings_in(value, (*path, str(index)))


def place_of(path: Iterable[str]) -> list[str]:
    """Config id of a path, in parts; a key of an overlay such as ``train#dataset`` counts as two, ``+`` not at all."""
    return [part for key in path for part in key.lstrip("+").replace("#", SEPARATOR).split(SEPARATOR)]


def absolute_text(text: str, path: tuple[str, ...]) -> str:
    """A config string with ``#`` as ``::`` and relative ids made absolute, as MONAI does before anything else."""
    text = text.replace("#", SEPARATOR)
    here = place_of(path)
    for prefix in sorted(set(_RELATIVE.findall(text)), reverse=True):
        levels = prefix.count(SEPARATOR)
        kept = here[: max(0, len(here) - levels)]
        text = text.replace(prefix, prefix[0] + "".join(part + SEPARATOR for part in kept))
    return text


class ModulePlaces:
    """Where import statements stand in a bundle's configs.

    Parameters
    ----------
    configs
        All parsed configs; they are laid over each other, so that their imports count together.
    """

    def __init__(self, configs: Iterable[Any]) -> None:
        self._lists = {
            tuple(place_of(path)[:-1])
            for config in configs
            for path, text in strings_in(config)
            if text.startswith("$") and is_import(text[1:])
        }

    def reached_by(self, text: str) -> str | None:
        """First reference in an absolute config string that reaches a module, or a container of one."""
        for name in referred(text):
            parts = tuple(name.split(SEPARATOR)) if name else ()
            if any(holder[: len(parts)] == parts or parts[:-1] == holder for holder in self._lists):
                return name or "the whole config"
        return None


def referred(text: str) -> list[str]:
    """Ids that an absolute config string refers to."""
    if text.startswith("$"):
        return _REFERENCE.findall(text)
    if text.startswith("@") and _REFERENCE.fullmatch(text):
        return [text[1:]]
    return [text[1:]] if text.startswith("%") else []
