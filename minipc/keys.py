"""What follows from an ed25519 key that is kept as a secret: its public half, its PEM form, its certificate.

The certificate is made anew at each converge and comes out the same each time: ed25519 signatures are deterministic,
and its dates and number are fixed. So nothing but the key has to survive the machine, and whoever has the key knows
the certificate to pin.
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

from minipc.errors import SecretError
from minipc.secrets import Secret

# The pin is what ends a certificate's life here: a new key, not a date that passes unnoticed.
_NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(2099, 1, 1, tzinfo=UTC)


def public_key(secret: Secret) -> str:
    """The public half as in authorized_keys and known_hosts: `ssh-ed25519 AAAA…`. Raises SecretError."""
    return _key(secret).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def pem(secret: Secret) -> str:
    """The private key as PKCS#8. Raises SecretError."""
    return _key(secret).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def certificate(secret: Secret, address: str) -> str:
    """The key's self-signed TLS server certificate, PEM.

    Args:
        address: IP address or name under which clients reach the server.

    Raises:
        SecretError: the secret is no ed25519 key.
    """
    key = _key(secret)
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
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return builder.sign(key, None).public_bytes(Encoding.PEM).decode()


def htpasswd(secret: Secret) -> str:
    """The password as an htpasswd entry, the same each time. A slow hash adds nothing to 190 random bits."""
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
        raise SecretError(f"{secret.name} is no ed25519 private key", f"store one: minipc secrets set {secret.name}")
    return key
