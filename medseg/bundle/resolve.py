"""A config as the one tree that is judged and evaluated: macros written out, ids absolute, the user's values in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medseg.bundle.audit_expressions import imported_names, is_import, judge_import
from medseg.bundle.config import ABSENT, META_ID, RELATIVE, SEPARATOR, absolute_text, item_at, strings_in
from medseg.errors import BundleError


def resolved(config: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A laid-out config with its macros written out and its ids made absolute, as MONAI makes it in one go.

    What is judged and handed to MONAI's parser is this tree, so that no text can be read in two ways. ``metadata``:
    What macros find at ``_meta_``. Raises ``BundleError`` if a macro names nothing, or copies what holds macros or
    relative ids: where these lead would depend on when they are read.
    """
    whole = {META_ID: metadata or {}, **config}
    return {key: _resolved(value, (key,), whole) for key, value in config.items()}


def _resolved(value: Any, path: tuple[str, ...], whole: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolved(part, (*path, key), whole) for key, part in value.items()}
    if isinstance(value, list):
        return [_resolved(part, (*path, str(index)), whole) for index, part in enumerate(value)]
    if not isinstance(value, str):
        return value
    text = absolute_text(value, path)
    if not text.startswith("%"):
        return text
    copied = item_at(whole, text[1:])
    where = f"the macro {value!r} at {SEPARATOR.join(path)}"
    if copied is ABSENT:
        raise BundleError(f"{where} names nothing in the config; correct the id")
    if unclear := next((part for _, part in strings_in(copied) if is_moved(part)), None):
        raise BundleError(f"{where} copies {unclear!r}, which leads elsewhere from there; write the ids in full")
    return _resolved(copied, tuple(text[1:].split(SEPARATOR)), whole)


def is_moved(text: str) -> bool:
    """Whether a text means something else once a macro has copied it: another macro, or a relative id."""
    return text.startswith("%") or (
        text.startswith(("$", "@")) and RELATIVE.search(text.replace("#", SEPARATOR)) is not None
    )


def may_hold(config: Any, place: str) -> bool:
    """Whether something stands at an id, or an object above it that could take it."""
    above, _, _ = place.replace("#", SEPARATOR).rpartition(SEPARATOR)
    return item_at(config, place) is not ABSENT or isinstance(item_at(config, above), Mapping)


def needless_imports(config: Mapping[str, Any]) -> dict[str, str]:
    """Imports that the audit refuses and whose name no other text of the config says, by their ids.

    Nothing is lost where they are not executed; MONAI itself executes all of them.
    """
    listed = config.get("imports")
    places = {"imports": listed} if isinstance(listed, str) else {}
    places |= {f"imports{SEPARATOR}{at}": text for at, text in enumerate(listed if isinstance(listed, list) else ())}
    statements = {
        place: text
        for place, text in places.items()
        if isinstance(text, str) and text.startswith("$") and is_import(text[1:])
    }
    said = " ".join(text for path, text in strings_in(config) if SEPARATOR.join(path) not in statements)
    words = set(re.findall(r"\w+", said))
    refused = {place: text for place, text in statements.items() if judge_import(text[1:])}
    return {place: text for place, text in refused.items() if words.isdisjoint(_bound_by(text[1:]) or words)}


def _bound_by(statement: str) -> set[str]:
    return {name.partition(".")[0] for name in imported_names(statement)}


def without_needless_imports(config: Mapping[str, Any]) -> dict[str, Any]:
    """A laid-out config less its :func:`needless_imports`."""
    left_out = needless_imports(config)
    if not left_out:
        return dict(config)
    if isinstance(config["imports"], str):
        return {**config, "imports": []}
    kept = [text for number, text in enumerate(config["imports"]) if f"imports{SEPARATOR}{number}" not in left_out]
    return {**config, "imports": kept}
