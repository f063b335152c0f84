from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from medseg.pacs.dicom_network import NetworkRemote
from medseg.pacs.remote import PacsError
from medseg.pacs.settings import DicomNode, Tls
from tests.pacs.conftest import listening, write_study


def certificate(folder: Path, name: str) -> Tls:
    """A self-signed certificate for 127.0.0.1 that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = folder / f"{name}.pem", folder / f"{name}.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Tls(ca=str(pem), cert=str(pem), key=str(secret))


def test_instances_travel_encrypted_between_nodes_that_trust_each_other(tmp_path: Path) -> None:
    tls = certificate(tmp_path, "hospital")
    with listening(tmp_path / "in", tls=tls) as (_, node):
        files = write_study(tmp_path / "source", "a", 2)
        trusted = DicomNode(node.ae_title, node.host, node.port, tls=tls, timeout_seconds=10)
        assert len(NetworkRemote(trusted).send(files).sent) == 2
    assert len(list((tmp_path / "in" / "studies").rglob("*.dcm"))) == 2


def test_a_caller_with_another_certificate_or_none_is_refused(tmp_path: Path) -> None:
    tls, stranger = certificate(tmp_path, "hospital"), certificate(tmp_path, "stranger")
    with listening(tmp_path / "in", tls=tls) as (listener, node):
        for other in (stranger, None):
            caller = DicomNode(node.ae_title, node.host, node.port, tls=other, timeout_seconds=3)
            with pytest.raises(PacsError):
                NetworkRemote(caller).echo()
        assert listener.queue.studies() == []
