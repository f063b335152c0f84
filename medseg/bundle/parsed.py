"""Evaluate parts of an audited config as MONAI does, with errors that say what is wrong with the bundle."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from medseg.bundle.pipeline import ABSENT, item_at
from medseg.errors import BundleError, MedsegError, MissingDependency

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

__all__ = ["Parsed", "first_cause", "missing_package"]

_PACKAGES = {"skimage": "scikit-image", "cucim": "cucim-cu12", "cv2": "opencv-python", "PIL": "pillow"}
_NOT_THERE = tuple(map(re.compile, (r"[Nn]o module named '(\w+)", r"`(\w+)`", r"(?:from|import) (\w+)")))
_REQUIRED = re.compile(r"^(\w+)(\.\w+)* required\.$", re.IGNORECASE)
"""How MONAI's transforms say that an optional package is not there."""


class Parsed:
    """A config that MONAI's own parser resolves, id by id.

    Parameters
    ----------
    config
        What :meth:`medseg.bundle.Bundle.runnable_config` gave: it may be evaluated.
    bundle
        The bundle's name, for messages.
    """

    def __init__(self, config: Mapping[str, Any], bundle: str) -> None:
        self._config, self._bundle = config, bundle
        self._parser: ConfigParser | None = None

    def get(self, place: str, default: Any = None) -> Any:
        """What the id ``place`` stands for, instantiated and evaluated; ``default`` where nothing stands.

        Raises
        ------
        BundleError
            If MONAI cannot evaluate it.
        MissingDependency
            If a package that it needs is not installed.
        """
        if item_at(self._config, place) is ABSENT:
            return default
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI warns about parsing and about defaults: the author's concern
            try:
                return self._prepared().get_parsed_content(place)
            except MedsegError:
                raise
            except Exception as error:
                missing = missing_package(error, f"{place} of {self._bundle}")
                if missing is not None:
                    raise missing from error
                where = f"{place} in inference.json of {self._bundle}"
                raise BundleError(f"{where} cannot be evaluated: {first_cause(error)}; correct the config") from error

    def enabled(self, place: str) -> bool:
        """Whether the component at ``place`` is switched on, by what ``_disabled_`` is once it is evaluated."""
        value = self.get(f"{place}::_disabled_", default=False)
        return value.lower().strip() != "true" if isinstance(value, str) else not value

    def _prepared(self) -> ConfigParser:
        if self._parser is None:
            from monai.bundle import ConfigParser

            self._parser = ConfigParser(dict(self._config))
        return self._parser


def missing_package(error: BaseException, purpose: str) -> MissingDependency | None:
    """The error to raise if a package that is not installed is behind ``error``, else None."""
    for cause in _causes(error):
        package = _package_of(cause).partition(".")[0]
        if package:
            return MissingDependency(_PACKAGES.get(package, package), None, purpose)
    return None


def _package_of(error: BaseException) -> str:
    """The package that an error says is missing; empty if it says nothing of the kind."""
    if isinstance(error, ImportError):
        said = (pattern.search(str(error)) for pattern in _NOT_THERE)
        return error.name or next((found[1] for found in said if found), "")
    if isinstance(error, RuntimeError) and _REQUIRED.match(str(error)):
        return str(error).partition(" ")[0].lower()
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def first_cause(error: BaseException) -> str:
    """The first line of what went wrong first, with its kind."""
    last = list(_causes(error))[-1]
    return f"{type(last).__name__}: {str(last).splitlines()[0] if str(last) else ''}"
