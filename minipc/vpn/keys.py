"""WireGuard keys: Curve25519, in base64 (RFC 7748; wg(8))."""

from __future__ import annotations

import base64

from minipc.core.errors import SecretError
from minipc.secrets import Secret


def public_key(private: Secret) -> str:
    """Return the public key, as `wg pubkey` prints it.

    Raises:
        SecretError: the value is not a WireGuard key.
    """
    # Imported here, because group_data imports this package in every run, and the library takes 0.1 s to load.
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415

    try:
        raw = base64.b64decode(private.reveal(), validate=True)
        key = X25519PrivateKey.from_private_bytes(raw)
    except ValueError:
        raise SecretError(
            f"{private.name} is not a WireGuard private key", f"store one: `minipc secrets set {private.name}`"
        ) from None
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()
