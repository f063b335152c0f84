"""Which bundles a site allows to run: a small TOML file of names, versions, SHA-256 sums and keys.

::

    mode = "enforce"                     # or "warn": say it, and run all the same

    [[bundles]]
    name = "hippocampus_mri_segmentation"
    version = "0.2.0"                    # optional
    sha256 = "3f5c…"                     # as `medseg bundle info` says it

    [[bundles]]
    name = "liver_ct_segmentation"
    key = "sender.key.pub"               # whatever is signed by this key (a path from this file's folder)

The files ``policy.toml`` in the system's and in the user's configuration folder and the one that ``MEDSEG_POLICY``
names hold together: what one of them does not allow does not run. One that cannot be read allows nothing. What is
hashed is what a prediction depends on (:attr:`~medseg.bundle.Bundle.sha256`); a bundle's own code is not, so where a
policy is enforced it never runs.
"""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from medseg.bundle.config import parse_config
from medseg.errors import BundleError, MedsegError, UntrustedBundle
from medseg.files import read_bounded
from medseg.json_shape import TEXT, misfit, one_of

POLICY_VARIABLE = "MEDSEG_POLICY"
_NAME = "policy.toml"
_LARGEST_BYTES = 4 << 20
_MODE = one_of("enforce", "warn")
_ENTRY = {"name!": TEXT, "version": TEXT, "sha256": TEXT, "key": TEXT}
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
"""What a packed bundle has beside its own files, in its archive and unpacked."""
_log = logging.getLogger(__name__)


class Running(Protocol):
    """What a policy asks of a :class:`~medseg.bundle.Bundle`."""

    path: Path
    permission: Literal["audited", "network-only", "everything"]

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def sums(self) -> Mapping[str, str]: ...  # noqa: D102


@dataclass(frozen=True)
class Allowed:
    """One entry: a bundle of this name, of that version if one is stated, and with that sum, that signature or both."""

    name: str
    version: str | None = None
    sha256: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Policy:
    """What one file allows; ``damage`` says why it cannot be read, and then it allows nothing."""

    path: Path
    mode: Literal["enforce", "warn"] = "enforce"
    bundles: tuple[Allowed, ...] = ()
    damage: str = ""

    @classmethod
    def read(cls, path: Path) -> Policy:
        """The policy in a file, whatever state that is in."""
        try:
            content = tomllib.loads(read_bounded(path, _LARGEST_BYTES).decode())
            return cls(path, content.get("mode", "enforce"), _entries(content))
        except OSError as error:
            return cls(path, damage=f"it cannot be read: {error.strerror or error}")
        except (ValueError, RecursionError) as error:
            return cls(path, damage=f"it is damaged: {error}")

    def describe(self) -> str:
        """What it does, for people."""
        held = "only these run" if self.mode == "enforce" else "others run with a warning"
        return f"nothing runs: {self.damage}" if self.damage else f"{len(self.bundles)} bundles, {held}"

    def objection(self, bundle: Running) -> str:
        """Why a bundle is not allowed; empty if it is."""
        if self.damage:
            return f"the policy {self.path} allows nothing, since {self.damage}; mend it or ask who keeps it"
        entries = [entry for entry in self.bundles if entry.name == bundle.name]
        if not entries:
            why = "does not list it"
        elif bundle.permission == "everything":
            why = "cannot speak for its own code, which no sum covers (--trust-bundle)"
        else:
            why = ""
            for entry in entries:
                if not (why := self._differs(entry, bundle)):
                    return ""
        found = f"{bundle.name} {bundle.version} with the SHA-256 {bundle.sha256}"
        return f"{found}: the policy {self.path} {why}; use a bundle that it lists, or ask who keeps it"

    def _differs(self, entry: Allowed, bundle: Running) -> str:
        if entry.version not in (None, bundle.version):
            return f"lists version {entry.version}"
        if entry.sha256 not in (None, bundle.sha256):
            return f"lists it with the SHA-256 {entry.sha256}"
        if entry.key is None:
            return ""
        try:
            _check_signed(bundle, self.path.parent / entry.key)
        except (MedsegError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"asks for a signature by {entry.key} ({error})"
        return ""


def _entries(content: Mapping[str, Any]) -> tuple[Allowed, ...]:
    """The entries of a policy; a ``ValueError`` at the first thing that is not understood: it may have been a limit."""
    if wrong := misfit(content, {"mode": _MODE, "bundles": [_ENTRY]}):
        raise ValueError(wrong)
    odd = [
        key for entry in content.get("bundles", ()) for key in entry if f"{key}!" not in _ENTRY and key not in _ENTRY
    ]
    if odd := [*(key for key in content if key not in {"mode", "bundles"}), *odd]:
        raise ValueError(f"it says {min(odd)!r}, expected mode and [[bundles]] with name, version, sha256 and key")
    entries = tuple(Allowed(**entry) for entry in content.get("bundles", ()))
    if bare := [entry.name for entry in entries if entry.sha256 is None and entry.key is None]:
        raise ValueError(f"{bare[0]} has neither sha256 nor key, and anything can have that name")
    return entries


def policy_files() -> list[Path]:
    """The files that hold here: the system's and the user's if they exist, and the one that the environment names."""
    from platformdirs import site_config_path, user_config_path

    usual = (folder / _NAME for folder in (site_config_path("medseg"), user_config_path("medseg")))
    named = os.environ.get(POLICY_VARIABLE)
    return [*([Path(named)] if named else []), *(path for path in usual if not _is_absent(path))]


def _is_absent(path: Path) -> bool:
    """Whether there is certainly no such file; one in a folder that cannot be looked into holds, and is damaged."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def policies() -> list[Policy]:
    """The policies in force, read now."""
    return [Policy.read(path) for path in policy_files()]


def policy_state(bundle: Running) -> str | None:
    """What the policies in force say of a bundle: ``allowed`` or the first objection; None where there are none."""
    found = policies()
    return next(filter(None, (policy.objection(bundle) for policy in found)), "allowed") if found else None


def require_listed(bundle: Running) -> None:
    """Pass if every policy allows a bundle, and warn of what a policy of the mode ``warn`` does not.

    Raises ``UntrustedBundle`` if one that is enforced, or damaged, does not allow it.
    """
    for policy in policies():
        if objection := policy.objection(bundle):
            if policy.mode == "enforce":
                raise UntrustedBundle(objection)
            _log.warning("%s", objection)


def require_unchanged(bundle: Running, now: Running) -> None:
    """Raise ``UntrustedBundle`` where a policy is enforced and a bundle is not the one ``now`` that was allowed."""
    for policy in policies():
        if policy.mode == "enforce" and bundle.sums != now.sums:
            what = f"{bundle.name} was changed while it was loaded, after the policy {policy.path} had allowed it"
            raise UntrustedBundle(f"{what}; run it again when nobody writes to {bundle.path}")


def require_no_loose_weights(path: Path) -> None:
    """Raise ``UntrustedBundle`` for weights that are in no bundle where a policy is enforced: none can list them."""
    for policy in policies():
        if policy.mode == "enforce":
            raise UntrustedBundle(f"{path} is in no bundle, and the policy {policy.path} lists bundles; give a bundle")


def _check_signed(bundle: Running, key: Path) -> None:
    """Raise unless the manifest that the bundle was packed with is signed by a key, and is of what would run."""
    from medseg.bundle.signing import read_public_key, verify_signature  # takes long to import

    trusted = read_public_key(key)
    parts = [bundle.path / name for name in (MANIFEST, SIGNATURE)]
    if not all(part.is_file() for part in parts):
        raise BundleError("it is not signed")
    manifest, signature = (read_bounded(part, _LARGEST_BYTES) for part in parts)
    verify_signature(manifest, signature, trusted)
    content = parse_config(manifest, MANIFEST)
    if content["name"] != bundle.name:
        raise BundleError(f"the signature is for {content['name']}")
    for name, found in bundle.sums.items():
        if content["files"].get(name, {}).get("sha256") != found:
            raise BundleError(f"{name} is not the file that was signed")
    if gone := sorted(name for name in content["files"] if name.startswith("trust/") and name not in bundle.sums):
        raise BundleError(f"{gone[0]} was signed, and is missing: without it results are judged in another way")
