"""Derive the public key, the PEM form and the certificate of an ed25519 key that is stored as a secret.

The certificate is made at each converge and is the same each time: ed25519 signatures are deterministic, and its dates
and serial number are fixed. So only the key must survive the machine, and the certificate to pin follows from the key.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from minipc.core.errors import SecretError
from minipc.secrets import Secret

# A certificate is replaced with its key and the pin, not by a date that passes unnoticed.
_NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(2099, 1, 1, tzinfo=UTC)


def public_key(secret: Secret) -> str:
    """Return the public key as in authorized_keys and known_hosts: `ssh-ed25519 AAAA…`. Raises SecretError."""
    return _key(secret).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def pem(secret: Secret) -> str:
    """Return the private key as PKCS#8. Raises SecretError."""
    return _key(secret).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def certificate(secret: Secret, address: str, *, client: bool = False) -> str:
    """Return the key's self-signed TLS certificate, PEM.

    Args:
        address: IP address or name under which clients reach the server.
        client: it is for a client.

    Raises:
        SecretError: the secret is not an ed25519 key.
    """
    key = _key(secret)
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "minipc off-site")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.SubjectAlternativeName([_general_name(address)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    return builder.sign(key, None).public_bytes(Encoding.PEM).decode()


def htpasswd(secret: Secret) -> str:
    """Return the password as an htpasswd hash, the same each time. A slow hash adds nothing to 190 random bits."""
    digest = hashlib.sha1(secret.reveal().encode(), usedforsecurity=False).digest()
    return "{SHA}" + base64.b64encode(digest).decode()


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _key(secret: Secret) -> Ed25519PrivateKey:
    try:
        key = load_ssh_private_key(secret.reveal().encode(), None)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SecretError(
            f"{secret.name} is not an ed25519 private key", f"store one with `minipc secrets set {secret.name}`"
        )
    return key
