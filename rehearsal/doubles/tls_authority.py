"""A certificate authority for tests, and a server certificate that it signed."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Authority:
    """TLS for servers under some names, and for clients that trust its CA.

    Args:
        names: IP addresses and host names of the servers.

    Attributes:
        bundle: the CA's certificate, PEM.
        chain: the servers' key and certificate, PEM.
        key: the servers' key.
        certificate: the servers' certificate.
        server: TLS context of a server.
        client: TLS context of a client that trusts only this CA.
    """

    def __init__(self, directory: Path, *names: str) -> None:
        directory.mkdir(exist_ok=True)
        self.bundle, self.chain = directory / "ca.pem", directory / "server.pem"
        self.key, ca_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.bundle.write_bytes(_certificate("test CA", ca_key, ca_key, ()).public_bytes(Encoding.PEM))
        self.certificate = _certificate("server", self.key, ca_key, names or ("127.0.0.1",))
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.chain.touch(mode=0o600)
        self.chain.write_bytes(pem + self.certificate.public_bytes(Encoding.PEM))
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(self.chain)
        self.client = ssl.create_default_context(cafile=str(self.bundle))


def _certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, names: Sequence[str]
) -> x509.Certificate:
    """Return a certificate for servers, or without names that of the CA."""
    now = datetime.datetime.now(datetime.UTC)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer, critical=False)
    )
    if names:
        general = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = builder.add_extension(general, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
