"""WireGuard's keys: Curve25519, in base64 (RFC 7748; wg(8))."""

from __future__ import annotations

import base64

from minipc.errors import SecretError
from minipc.secrets import Secret


def public_key(private: Secret) -> str:
    """The public half, as `wg pubkey` prints it.

    Raises:
        SecretError: the value is no WireGuard key.
    """
    # Imported here: group_data imports this package in every run, and the library costs a tenth of a second.
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    try:
        raw = base64.b64decode(private.reveal(), validate=True)
        key = X25519PrivateKey.from_private_bytes(raw)
    except ValueError:
        raise SecretError(
            f"{private.name} is no WireGuard private key", f"store one: minipc secrets set {private.name}"
        ) from None
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()
