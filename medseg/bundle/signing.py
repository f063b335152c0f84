"""Ed25519 keys and signatures of packed bundles (RFC 8032), offline, with keys as PEM files."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medseg.errors import UntrustedBundle, UsageError
from medseg.files import read_bounded, write_bytes

_DOMAIN = b"medseg bundle manifest, version 1\n"  # a signature made for something else never fits a manifest
_LARGEST_KEY = 16 << 10  # a PEM of Ed25519 has 120 bytes


def create_key_pair(private_path: str | Path) -> tuple[Path, Path]:
    """Write a new private key (readable by its owner only) and, beside it, the public key (``.pub``); gives both paths.

    Raises ``UsageError`` if one of the files exists: a key is never overwritten.
    """
    private = Path(private_path)
    public = private.with_name(private.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise UsageError(f"{path} exists; choose another name, a key is never overwritten")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(pem)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    write_bytes(public, key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return private, public


def read_private_key(path: str | Path) -> Ed25519PrivateKey:
    """Read an unencrypted Ed25519 private key (PEM).

    Raises ``UsageError`` if the file is missing or holds another kind of key.
    """
    try:
        key = serialization.load_pem_private_key(read_bounded(path, _LARGEST_KEY), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no readable private key ({error}); make one with: medseg bundle keygen") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} holds a {type(key).__name__}, expected an Ed25519 private key")
    return key


def read_public_key(path: str | Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key (PEM); raises as :func:`read_private_key`."""
    try:
        key = serialization.load_pem_public_key(read_bounded(path, _LARGEST_KEY))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no readable public key ({error}); give the sender's .pub file") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} holds a {type(key).__name__}, expected an Ed25519 public key")
    return key


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """Short name of a public key: the first 16 hex digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """Signature file (JSON) for the bytes of a manifest; the same key and manifest give the same bytes."""
    public = key.public_key()
    signature = {
        "algorithm": "Ed25519",
        "fingerprint": fingerprint_of(public),
        "public_key": base64.b64encode(public.public_bytes_raw()).decode(),
        "signature": base64.b64encode(key.sign(_DOMAIN + manifest)).decode(),
    }
    return (json.dumps(signature, indent=2, sort_keys=True) + "\n").encode()


def verify_signature(manifest: bytes, signature_file: bytes, trusted: Ed25519PublicKey | None) -> str:
    """Check a signature and return the fingerprint of the key that made it.

    ``manifest``: The signed bytes. ``signature_file``: What :func:`sign` wrote. ``trusted``: The sender's key. None
    checks only that the archive is in itself consistent, not who sent it. Raises ``UntrustedBundle`` if the signature
    does not fit, or was made by another key.
    """
    try:
        parts = json.loads(signature_file)
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(parts["public_key"], validate=True))
        signature = base64.b64decode(parts["signature"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UntrustedBundle(f"manifest.sig cannot be read ({error}); ask the sender for the bundle again") from error
    if trusted is not None and trusted.public_bytes_raw() != key.public_bytes_raw():
        raise UntrustedBundle(
            f"the bundle is signed by the key {fingerprint_of(key)}, expected {fingerprint_of(trusted)}; "
            "use the sender's public key, or do not use the bundle"
        )
    try:
        key.verify(signature, _DOMAIN + manifest)
    except InvalidSignature as error:
        raise UntrustedBundle("the signature does not fit manifest.json: it was changed after signing") from error
    return fingerprint_of(key)
