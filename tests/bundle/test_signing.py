from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from medseg.bundle.signing import create_key_pair, read_private_key, read_public_key, sign, verify_signature
from medseg.errors import UntrustedBundle, UsageError


def test_a_signature_fits_its_manifest_only(tmp_path: Path) -> None:
    private, public = create_key_pair(tmp_path / "a.key")
    signature = sign(b"manifest", read_private_key(private))
    assert verify_signature(b"manifest", signature, read_public_key(public)) == json.loads(signature)["fingerprint"]
    with pytest.raises(UntrustedBundle, match="changed after signing"):
        verify_signature(b"Manifest", signature, read_public_key(public))


def test_the_private_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    private, _ = create_key_pair(tmp_path / "a.key")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="never overwritten"):
        create_key_pair(private)


@pytest.mark.parametrize("text", [b"", b"nonsense", b'{"public_key": "!", "signature": ""}', b"[]"])
def test_an_unreadable_signature_is_refused(text: bytes) -> None:
    with pytest.raises(UntrustedBundle, match="cannot be read"):
        verify_signature(b"manifest", text, None)


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "ec.key").write_bytes(pem)
    with pytest.raises(UsageError, match="expected an Ed25519"):
        read_private_key(tmp_path / "ec.key")
    with pytest.raises(UsageError, match="no readable public key"):
        read_public_key(tmp_path / "absent.pub")
