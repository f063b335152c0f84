"""What is asked of an import, and what it left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ImportOptions:
    """What a source does not say of itself.

    ``name``: of the bundle, by default one made of the source's. ``orientation``: of the images that the origin was
    trained on, as they lay on disk (``RAS``, ``LPS`` …); ``like``: one of these images, to read it from. ``fetch``:
    weights that the source lists and has not. ``network``: a JSON file that defines the network of weights that come
    without one.
    """

    name: str | None = None
    orientation: str | None = None
    like: Path | None = None
    fetch: bool = False
    network: Path | None = None


@dataclass(frozen=True)
class Imported:
    """A bundle that was made of another tool's model.

    ``kind``: what the source was, for people. ``notes``: what was decided on the way, and what is not as in the origin.
    ``checked``: what a comparison with the origin gave; None without one.
    """

    path: Path
    kind: str
    notes: tuple[str, ...] = ()
    checked: Mapping[str, Any] | None = None
