"""Keyed pseudonyms: the same patient gets the same name in every run, and nobody without the key can guess it.

A plain hash of a patient id is no protection, since ids are short and can be tried one by one; a keyed hash
(HMAC-SHA-256, RFC 2104) is. The key is made once per user and stays in the user's configuration folder, or is
given in ``MEDSEG_PSEUDONYM_KEY`` so that several machines agree.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

from platformdirs import user_config_dir

KEY_VARIABLE = "MEDSEG_PSEUDONYM_KEY"
_KEY_BYTES = 32


@lru_cache(maxsize=65536)
def uid_hash(uid: str) -> str:
    """SHA-256 of a UID as 64 hex digits; empty for an empty UID. UIDs are too long to be guessed."""
    return hashlib.sha256(uid.encode()).hexdigest() if uid else ""


@lru_cache(maxsize=65536)
def pseudonym(identity: str) -> str:
    """Keyed hash of an identity as 32 hex digits; empty for an empty identity."""
    if not identity:
        return ""
    return hmac.new(_key(os.environ.get(KEY_VARIABLE, "")), identity.encode(), hashlib.sha256).hexdigest()[:32]


@lru_cache(maxsize=4)
def _key(given: str) -> bytes:
    if given:
        return given.encode()
    path = Path(user_config_dir("medseg")) / "pseudonym.key"
    try:
        return _read_or_create(path)
    except OSError:
        # No place to keep a key (a read-only home): derive one that all processes of this user here share.
        return hashlib.sha256(f"medseg:{_machine()}:{path}".encode()).digest()


def _read_or_create(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        mine = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
        mine.touch(mode=0o600)
        mine.write_bytes(secrets.token_bytes(_KEY_BYTES))
        try:
            os.link(mine, path)  # fails if another process was faster: then its key is the one
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    return path.read_bytes()


def _machine() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""
